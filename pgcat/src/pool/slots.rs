//! The right to have connections open to one server: how many there are, and the queue of those who
//! wait for one.
//!
//! In steady state a transaction only reads [`Slots::waiting`] and counts its own thread's idle
//! connections; the queue's lock is taken by those who wait, and by those who serve them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::address::Address;
use super::shared::PoolShared;
use super::statistics::Connection;
use crate::net::server::{DetachedServer, Server};
use crate::wire::error_fields::ErrorFields;

/// The slots of one server of a pool.
#[derive(Debug)]
pub struct Slots {
    size: usize,
    /// Server connections that exist or are being opened.
    open: AtomicUsize,
    /// Length of `queue`, for a look without the lock.
    waiting: AtomicUsize,
    queue: Mutex<VecDeque<Waiter>>,
    /// Idle connections, by thread.
    idle: Box<[IdleCount]>,
    /// Until when, in coarse milliseconds, the server has no room for more connections than there are. 0: it has.
    full_until: AtomicU64,
    /// The server's words for it.
    full: Mutex<Option<ErrorFields>>,
}

/// For how long no further connection is asked for where the server had no room for one.
const FULL_STANDS: u64 = 500;

/// On a cache line of its own, because its thread writes it twice per transaction.
#[derive(Debug, Default)]
#[repr(align(128))]
struct IdleCount(AtomicUsize);

/// What a waiter is given.
#[derive(Debug)]
pub enum Grant {
    /// A connection of the waiter's own thread.
    Here(Box<Server>),
    /// A connection of another thread.
    Moved(DetachedServer),
    /// The right to open a connection.
    Slot(Slot),
}

/// The right to have one connection open, counted while this value exists. A connection owns its slot,
/// so that no way of losing the one (an abandoned future, a panic) can leave the other behind.
#[derive(Debug)]
pub struct Slot {
    pool: Arc<PoolShared>,
    /// Position in [`PoolShared::addresses`].
    address: usize,
    /// What is counted and shown of the connection.
    connection: Arc<Connection>,
    /// Whether it counts towards `pool_size`.
    counted: bool,
}

impl Slot {
    /// The right to open a connection to a server of the pool, if it is below its size.
    pub fn take(pool: &Arc<PoolShared>, address: usize) -> Option<Self> {
        let to = &pool.addresses[address];
        to.slots.count().then(|| Self {
            pool: pool.clone(),
            address,
            connection: to
                .statistics
                .opening(pool.ids.next(), to.health.generation(), false),
            counted: true,
        })
    }

    /// The right to open a connection of the pooler's own, which serves no client by itself.
    pub fn beyond(pool: &Arc<PoolShared>, address: usize) -> Self {
        let to = &pool.addresses[address];
        Self {
            pool: pool.clone(),
            address,
            connection: to
                .statistics
                .opening(pool.ids.next(), to.health.generation(), true),
            counted: false,
        }
    }

    /// Lets the first waiter try to open a connection, if the pool is below its size.
    pub fn offer(pool: &Arc<PoolShared>, address: usize) {
        let slots = &pool.addresses[address].slots;
        if slots.waiting() > 0
            && !pool.gate.is_shut()
            && let Some(slot) = Self::take(pool, address)
        {
            // One that nobody takes is returned in its turn.
            slots.grant(slot);
        }
    }

    /// Lets the first waiter ask a server for room that had none some time ago.
    pub fn offer_again(pool: &Arc<PoolShared>, address: usize, now: u64) {
        if pool.addresses[address].slots.is_room_to_be_tried(now) {
            Self::offer(pool, address);
        }
    }

    pub fn pool(&self) -> &Arc<PoolShared> {
        &self.pool
    }

    pub fn address(&self) -> &Address {
        &self.pool.addresses[self.address]
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Slot {
    /// The connection was closed, or could not be opened: the slot goes to the first waiter.
    fn drop(&mut self) {
        self.address().statistics.closed(&self.connection);
        if !self.counted {
            return;
        }
        let slots = &self.address().slots;
        slots.open.fetch_sub(1, Ordering::SeqCst);
        Self::offer(&self.pool, self.address);
    }
}

/// One who waits for a connection.
#[derive(Debug)]
pub struct Waiter {
    pub thread: usize,
    since: u64,
    grant: oneshot::Sender<Grant>,
}

impl Waiter {
    /// Hands over the grant.
    ///
    /// # Errors
    /// The grant, if the waiter gave up in this moment.
    pub fn give(self, grant: Grant) -> Result<(), Grant> {
        self.grant.send(grant)
    }
}

/// A waiter this old (coarse milliseconds) is served before any younger one. Among younger ones a
/// thread prefers its own, because moving a connection costs two system calls and a wake-up.
const STRICT_ORDER_AFTER: u64 = 100;

impl Slots {
    pub fn new(size: usize, threads: usize) -> Self {
        Self {
            size,
            open: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
            idle: (0..threads).map(|_| IdleCount::default()).collect(),
            full_until: AtomicU64::new(0),
            full: Mutex::default(),
        }
    }

    /// The server has no room for another connection: those who want one queue for the ones there are.
    pub fn note_full(&self, now: u64, words: &ErrorFields) {
        *self.full.lock().unwrap_or_else(PoisonError::into_inner) = Some(words.clone());
        self.full_until.store(now + FULL_STANDS, Ordering::SeqCst);
    }

    /// The server had room for another connection. Says whether that was in doubt.
    pub fn note_room(&self) -> bool {
        self.full_until.store(0, Ordering::SeqCst);
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        full.take().is_some()
    }

    /// Why the server had no room, if that is the last that was heard.
    pub fn full(&self) -> Option<ErrorFields> {
        let full = self.full.lock();
        full.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is time to ask a full server for room again; true only once.
    fn is_room_to_be_tried(&self, now: u64) -> bool {
        let until = self.full_until.load(Ordering::SeqCst);
        until != 0
            && now >= until
            && self
                .full_until
                .compare_exchange(until, 0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
    }

    /// How many clients wait for a connection.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// How many server connections exist or are being opened.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// How many connections are idle, over all threads.
    pub fn idle(&self) -> usize {
        let counts = self.idle.iter();
        counts.map(|count| count.0.load(Ordering::SeqCst)).sum()
    }

    /// How many connections are in use or being opened. For comparison: the parts are not read at one
    /// moment.
    pub fn busy(&self) -> usize {
        self.open().saturating_sub(self.idle())
    }

    /// Whether a connection can probably be had without waiting for another client.
    pub fn has_room(&self) -> bool {
        self.waiting() == 0 && ((self.open() < self.size && !self.is_full()) || self.idle() > 0)
    }

    fn is_full(&self) -> bool {
        self.full_until.load(Ordering::SeqCst) != 0
    }

    fn count(&self) -> bool {
        if self.is_full() {
            return false;
        }
        self.open
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| {
                (open < self.size).then_some(open + 1)
            })
            .is_ok()
    }

    /// Since when the first in the queue has been waiting, in coarse milliseconds.
    pub fn waiting_since(&self) -> Option<u64> {
        if self.waiting() == 0 {
            return None;
        }
        self.lock().front().map(|first| first.since)
    }

    /// Gives a slot to the first waiter; back if there is none.
    pub fn grant(&self, mut slot: Slot) -> Option<Slot> {
        while let Some(waiter) = self.pop(|_| 0) {
            match waiter.give(Grant::Slot(slot)) {
                Err(Grant::Slot(back)) => slot = back,
                _ => return None,
            }
        }
        Some(slot)
    }

    /// The waiter whose turn it is for a connection of `thread`.
    pub fn next_waiter(&self, thread: usize, now: u64) -> Option<Waiter> {
        self.pop(|queue| {
            let first_is_old = queue
                .front()
                .is_some_and(|first| now >= first.since + STRICT_ORDER_AFTER);
            if first_is_old {
                return 0;
            }
            queue
                .iter()
                .position(|waiter| waiter.thread == thread)
                .unwrap_or(0)
        })
    }

    fn pop(&self, choose: impl FnOnce(&VecDeque<Waiter>) -> usize) -> Option<Waiter> {
        let mut queue = self.lock();
        let index = choose(&queue);
        let waiter = queue.remove(index);
        self.waiting.store(queue.len(), Ordering::SeqCst);
        waiter
    }

    /// Joins the queue, at its end. The channel is closed when the wait has been too long.
    pub fn enqueue(&self, thread: usize, now: u64) -> oneshot::Receiver<Grant> {
        let (grant, granted) = oneshot::channel();
        let mut queue = self.lock();
        queue.push_back(Waiter {
            thread,
            since: now,
            grant,
        });
        self.waiting.store(queue.len(), Ordering::SeqCst);
        granted
    }

    /// Takes those off the queue who have waited for `limit` milliseconds. Called now and then, instead
    /// of setting a timer for each wait.
    /// A wait counts from `not_before` at the earliest.
    pub fn expire(&self, now: u64, limit: u64, not_before: u64) {
        if self.waiting() == 0 {
            return;
        }
        let mut queue = self.lock();
        // The oldest come first. Time is coarse: nobody is to wait less than the limit.
        while queue
            .front()
            .is_some_and(|first| now > first.since.max(not_before) + limit + STRICT_ORDER_AFTER)
        {
            queue.pop_front();
        }
        self.waiting.store(queue.len(), Ordering::SeqCst);
    }

    /// Sends everybody who waits away.
    pub fn dismiss(&self) {
        let mut queue = self.lock();
        queue.clear();
        self.waiting.store(0, Ordering::SeqCst);
    }

    /// `thread` has one more idle connection.
    pub fn idle_added(&self, thread: usize) {
        self.idle[thread].0.fetch_add(1, Ordering::SeqCst);
    }

    /// `thread` has one idle connection less.
    pub fn idle_removed(&self, thread: usize) {
        self.idle[thread].0.fetch_sub(1, Ordering::SeqCst);
    }

    /// The threads other than `own` that have idle connections.
    pub fn idle_threads(&self, own: usize) -> impl Iterator<Item = usize> {
        let counts = self.idle.iter().enumerate();
        counts
            .filter(move |(index, count)| *index != own && count.0.load(Ordering::SeqCst) > 0)
            .map(|(index, _)| index)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        // Every critical section leaves the queue whole, even one that panicked.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
