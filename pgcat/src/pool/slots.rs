//! The right to have connections open to one server: how many there are, and the queue of those who
//! wait for one.
//!
//! In steady state a transaction only reads [`Slots::waiting`] and counts its own thread's idle
//! connections; the queue's lock is taken by those who wait, and by those who serve them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::address::Address;
use super::limits::Seat;
use super::queue::{Claim, Queue, Turn, Waiter};
use super::shared::PoolShared;
use super::statistics::Connection;
use crate::net::server::{DetachedServer, Server};
use crate::wire::error_fields::ErrorFields;

/// The slots of one server of a pool.
#[derive(Debug)]
pub struct Slots {
    size: usize,
    /// Connections beyond `size` for when clients have waited for too long.
    reserve: usize,
    /// Server connections that exist or are being opened.
    open: AtomicUsize,
    /// Length of `queue`, for a look without the lock.
    waiting: AtomicUsize,
    /// How many of those in the queue are clients.
    clients: AtomicUsize,
    queue: Mutex<Queue>,
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
    /// For the limits over several pools.
    seats: Vec<Seat>,
    /// Whose client is to open a connection in the place of this one.
    heir: Option<Claim>,
}

impl Slot {
    /// The right to open a connection to a server of the pool, if it is below its size.
    pub fn take(pool: &Arc<PoolShared>, address: usize) -> Option<Self> {
        Self::take_with(pool, address, 0, &mut Vec::new())
    }

    /// The same for a client that has waited for so long that it may use the reserve.
    pub fn take_reserve(pool: &Arc<PoolShared>, address: usize) -> Option<Self> {
        let reserve = pool.addresses[address].slots.reserve;
        Self::take_with(pool, address, reserve, &mut Vec::new())
    }

    /// The same, with the seats that somebody has left.
    fn take_with(
        pool: &Arc<PoolShared>,
        address: usize,
        reserve: usize,
        left: &mut Vec<Seat>,
    ) -> Option<Self> {
        let to = &pool.addresses[address];
        if !to.slots.count(reserve) {
            return None;
        }
        let Some(seats) = seats(pool, left) else {
            to.slots.uncount();
            return None;
        };
        Some(Self {
            pool: pool.clone(),
            address,
            connection: to
                .statistics
                .opening(pool.ids.next(), to.health.generation(), false),
            counted: true,
            seats,
            heir: None,
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
            seats: Vec::new(),
            heir: None,
        }
    }

    /// Lets the first waiter try to open a connection, if the pool is below its size.
    pub fn offer(pool: &Arc<PoolShared>, address: usize) {
        grant_if_waiting(pool, address, &mut Vec::new());
    }

    /// Lets the first waiter ask a server for room that had none some time ago.
    pub fn offer_again(pool: &Arc<PoolShared>, address: usize, now: u64) {
        if pool.addresses[address].slots.is_room_to_be_tried(now) {
            Self::offer(pool, address);
        }
    }

    /// Leaves its seats to another pool.
    pub fn leave_to(&mut self, heir: Claim) {
        self.heir = Some(heir);
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
    /// The connection was closed, or could not be opened: the slot goes to the first waiter, over all
    /// pools that share a limit.
    fn drop(&mut self) {
        self.address().statistics.closed(&self.connection);
        if !self.counted {
            return;
        }
        let slots = &self.address().slots;
        slots.uncount();
        if self.pool.is_limited() {
            let is_left = self
                .heir
                .take()
                .is_some_and(|heir| grant_if_waiting(&heir.pool, heir.address, &mut self.seats));
            if !is_left {
                grant_to_oldest(&self.pool, &mut self.seats);
            }
            // Who has come since then has found the seats taken.
            self.seats.clear();
            grant_to_oldest(&self.pool, &mut self.seats);
        } else {
            self.seats.clear();
            grant_if_waiting(&self.pool, self.address, &mut self.seats);
        }
    }
}

/// Seats for one more connection of a pool, out of those that are left, as far as they fit.
fn seats(pool: &PoolShared, left: &mut Vec<Seat>) -> Option<Vec<Seat>> {
    let mut seats = Vec::new();
    for (tally, limit) in pool.tallies() {
        let fits = left.iter().position(|seat| seat.is_of(&tally.servers));
        let seat = match fits {
            Some(index) => Some(left.swap_remove(index)),
            None => tally.servers.take(*limit),
        };
        let Some(seat) = seat else {
            left.append(&mut seats);
            return None;
        };
        seats.push(seat);
    }
    Some(seats)
}

/// Has the longest waiting client open a connection that may: of this pool or of one it shares a limit
/// with.
fn grant_to_oldest(pool: &PoolShared, left: &mut Vec<Seat>) {
    let rivals = pool.rivals();
    let addresses = rivals
        .iter()
        .flat_map(|pool| pool.addresses.iter().map(move |address| (pool, address)));
    let mut waiting: Vec<_> = addresses
        .filter_map(|(pool, address)| Some((address.slots.waiting_since()?, pool, address.id)))
        .collect();
    waiting.sort_by_key(|(since, ..)| *since);
    for (_, pool, address) in waiting {
        if grant_if_waiting(pool, address, left) {
            return;
        }
    }
}

/// Has the first who waits open a connection. Says whether somebody does.
fn grant_if_waiting(pool: &Arc<PoolShared>, address: usize, left: &mut Vec<Seat>) -> bool {
    let slots = &pool.addresses[address].slots;
    slots.clients() > 0
        && !pool.gate.is_shut()
        && Slot::take_with(pool, address, 0, left)
            // One that nobody takes is returned in its turn.
            .is_some_and(|slot| slots.grant(slot).is_none())
}

impl Slots {
    pub fn new(size: usize, reserve: usize, threads: usize) -> Self {
        Self {
            size,
            reserve,
            open: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
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

    /// How many wait for a connection, or for one to be closed.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// How many clients wait for a connection.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::SeqCst)
    }

    /// Whether a client waits who may open a connection as far as this server's size goes.
    pub fn wants_slot(&self) -> bool {
        self.clients() > 0 && self.open() < self.size
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

    /// Whether more connections are open than the size allows, by the reserve.
    pub fn is_over_size(&self) -> bool {
        self.open() > self.size
    }

    fn count(&self, reserve: usize) -> bool {
        if self.is_full() {
            return false;
        }
        self.open
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| {
                (open < self.size + reserve).then_some(open + 1)
            })
            .is_ok()
    }

    fn uncount(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    /// Since when the first client in the queue has been waiting, in coarse milliseconds.
    pub fn waiting_since(&self) -> Option<u64> {
        if self.clients() == 0 {
            return None;
        }
        self.lock().waiting_since()
    }

    /// Gives a slot to the first client that waits; back if there is none.
    pub fn grant(&self, mut slot: Slot) -> Option<Slot> {
        while let Some(waiter) = self.change(Queue::take_client) {
            match waiter.give(Grant::Slot(slot)) {
                Err(Grant::Slot(back)) => slot = back,
                _ => return None,
            }
        }
        Some(slot)
    }

    /// Whose turn it is for a connection of `thread`, which belongs to `pool`.
    pub fn next(&self, thread: usize, now: u64, pool: &PoolShared) -> Option<Turn> {
        self.change(|queue| {
            queue.forget_claims(pool);
            queue.take(thread, now, pool.gate.opened_at())
        })
    }

    /// Drops clients that have given up: a connection is not to be closed for them.
    pub fn forget_gone(&self) {
        self.change(Queue::forget_gone);
    }

    /// Drops claims that are of no use any more.
    pub fn forget_claims(&self, pool: &PoolShared) {
        if self.waiting() > self.clients() {
            self.change(|queue| queue.forget_claims(pool));
        }
    }

    /// Puts a claim to the end of the queue, unless there are as many as clients wait behind it.
    pub fn claim(&self, claim: Claim) {
        self.change(|queue| queue.claim(claim));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.lock();
        let outcome = change(&mut queue);
        self.clients.store(queue.clients(), Ordering::SeqCst);
        self.waiting.store(queue.len(), Ordering::SeqCst);
        outcome
    }

    /// Joins the queue, at its end. The channel is closed when the wait has been too long.
    pub fn enqueue(&self, thread: usize, now: u64) -> oneshot::Receiver<Grant> {
        let (grant, granted) = oneshot::channel();
        let waiter = Waiter::new(thread, now, grant);
        self.change(|queue| queue.join(waiter));
        granted
    }

    /// Takes those off the queue who have waited for `limit` milliseconds. Called now and then, instead
    /// of setting a timer for each wait.
    /// A wait counts from `not_before` at the earliest.
    pub fn expire(&self, now: u64, limit: u64, not_before: u64) {
        if self.waiting() == 0 {
            return;
        }
        self.change(|queue| queue.expire(now, limit, not_before));
    }

    /// Sends everybody who waits away.
    pub fn dismiss(&self) {
        self.change(std::mem::take);
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

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Every critical section leaves the queue whole, even one that panicked.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
