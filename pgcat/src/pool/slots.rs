//! The right to have connections open to one server: how many there are, and the queue of those who
//! wait for one.
//!
//! In steady state a transaction only reads [`Slots::waiting`] and counts its own thread's idle
//! connections; the queue's lock is taken by those who wait, and by those who serve them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::address::Address;
use super::limits::Seat;
use super::shared::PoolShared;
use super::statistics::Connection;
use crate::net::server::{DetachedServer, Server};

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
}

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

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    /// How many of them are claims: there are none unless a limit over several pools is reached.
    claims: usize,
}

/// One in the queue.
#[derive(Debug)]
enum Entry {
    Client(Waiter),
    Claim(Claim),
}

/// A client who waits for a connection.
#[derive(Debug)]
pub struct Waiter {
    pub thread: usize,
    since: u64,
    grant: oneshot::Sender<Grant>,
}

/// The claim of another server or pool, whose client may open a connection as soon as one is closed
/// here: they share a limit.
#[derive(Debug)]
pub struct Claim {
    pool: Arc<PoolShared>,
    address: usize,
    since: u64,
}

/// Whose turn it is for a connection.
#[derive(Debug)]
pub enum Turn {
    Client(Waiter),
    /// A client of another pool: the connection is to be closed.
    Rival(Claim),
}

impl Queue {
    /// The entry whose turn it is for a connection of `thread`.
    fn next(&self, thread: usize, now: u64) -> Option<usize> {
        let wanted_here = self.entries.len() > self.claims;
        // While it is wanted here, a connection is closed only for those who have none at all.
        let may = |entry: &Entry| match entry {
            Entry::Client(_) => true,
            Entry::Claim(claim) => !wanted_here || claim.slots().open() == 0,
        };
        let index = self.entries.iter().position(may)?;
        if now >= self.entries[index].since() + STRICT_ORDER_AFTER {
            return Some(index);
        }
        let own = |entry: &Entry| matches!(entry, Entry::Client(w) if w.thread == thread);
        self.entries.iter().position(own).or(Some(index))
    }

    fn remove(&mut self, index: usize) -> Option<Entry> {
        let entry = self.entries.remove(index)?;
        self.claims -= usize::from(!is_client(&entry));
        Some(entry)
    }

    /// Drops claims that are of no use any more.
    fn forget_claims(&mut self, pool: &PoolShared) {
        if self.claims == 0 {
            return;
        }
        self.entries.retain(|entry| match entry {
            Entry::Client(_) => true,
            Entry::Claim(claim) => claim.holds_against(pool),
        });
        let claims = self.entries.iter().filter(|entry| !is_client(entry));
        self.claims = claims.count();
    }
}

impl Entry {
    fn since(&self) -> u64 {
        match self {
            Self::Client(waiter) => waiter.since,
            Self::Claim(claim) => claim.since,
        }
    }
}

impl Claim {
    pub fn new(pool: Arc<PoolShared>, address: usize, since: u64) -> Self {
        Self {
            pool,
            address,
            since,
        }
    }

    /// Whether a connection of `pool` closed for it would be of use.
    fn holds_against(&self, pool: &PoolShared) -> bool {
        self.slots().wants_slot() && !self.pool.gate.is_shut() && self.pool.is_kept_out_by(pool)
    }

    fn slots(&self) -> &Slots {
        &self.pool.addresses[self.address].slots
    }

    fn is_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pool, &other.pool) && self.address == other.address
    }
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
    pub fn new(size: usize, reserve: usize, threads: usize) -> Self {
        Self {
            size,
            reserve,
            open: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
            queue: Mutex::default(),
            idle: (0..threads).map(|_| IdleCount::default()).collect(),
        }
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
        self.waiting() == 0 && (self.open() < self.size || self.idle() > 0)
    }

    /// Whether more connections are open than the size allows, by the reserve.
    pub fn is_over_size(&self) -> bool {
        self.open() > self.size
    }

    fn count(&self, reserve: usize) -> bool {
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
        let queue = self.lock();
        let first = queue.entries.iter().find(|entry| is_client(entry));
        first.map(Entry::since)
    }

    /// Gives a slot to the first client that waits; back if there is none.
    pub fn grant(&self, mut slot: Slot) -> Option<Slot> {
        let next = |queue: &mut Queue| {
            let first = queue.entries.iter().position(is_client)?;
            queue.remove(first)
        };
        while let Some(Entry::Client(waiter)) = self.change(next) {
            match waiter.give(Grant::Slot(slot)) {
                Err(Grant::Slot(back)) => slot = back,
                _ => return None,
            }
        }
        Some(slot)
    }

    /// Whose turn it is for a connection of `thread`, which belongs to `pool`.
    pub fn next(&self, thread: usize, now: u64, pool: &PoolShared) -> Option<Turn> {
        let entry = self.change(|queue| {
            queue.forget_claims(pool);
            let index = queue.next(thread, now)?;
            queue.remove(index)
        })?;
        Some(match entry {
            Entry::Client(waiter) => Turn::Client(waiter),
            Entry::Claim(claim) => Turn::Rival(claim),
        })
    }

    /// Drops clients that have given up: a connection is not to be closed for them.
    pub fn forget_gone(&self) {
        self.change(|queue| {
            queue.entries.retain(|entry| match entry {
                Entry::Client(waiter) => !waiter.grant.is_closed(),
                Entry::Claim(_) => true,
            });
        });
    }

    /// Drops claims that are of no use any more.
    pub fn forget_claims(&self, pool: &PoolShared) {
        if self.waiting() > self.clients() {
            self.change(|queue| queue.forget_claims(pool));
        }
    }

    /// Puts a claim to the end of the queue, unless there are as many as clients wait behind it.
    pub fn claim(&self, claim: Claim) {
        let wanted = claim.slots().clients();
        self.change(|queue| {
            let is_same = |entry: &&Entry| matches!(entry, Entry::Claim(c) if c.is_of(&claim));
            if queue.entries.iter().filter(is_same).count() < wanted {
                queue.entries.push_back(Entry::Claim(claim));
                queue.claims += 1;
            }
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.lock();
        let outcome = change(&mut queue);
        let length = queue.entries.len();
        self.clients.store(length - queue.claims, Ordering::SeqCst);
        self.waiting.store(length, Ordering::SeqCst);
        outcome
    }

    /// Joins the queue, at its end. The channel is closed when the wait has been too long.
    pub fn enqueue(&self, thread: usize, now: u64) -> oneshot::Receiver<Grant> {
        let (grant, granted) = oneshot::channel();
        let waiter = Waiter {
            thread,
            since: now,
            grant,
        };
        self.change(|queue| queue.entries.push_back(Entry::Client(waiter)));
        granted
    }

    /// Takes those off the queue who have waited for `limit` milliseconds. Called now and then, instead
    /// of setting a timer for each wait.
    /// A wait counts from `not_before` at the earliest.
    pub fn expire(&self, now: u64, limit: u64, not_before: u64) {
        if self.waiting() == 0 {
            return;
        }
        // The oldest come first. Time is coarse: nobody is to wait less than the limit.
        let is_over =
            |entry: &Entry| now > entry.since().max(not_before) + limit + STRICT_ORDER_AFTER;
        self.change(|queue| {
            while queue.entries.front().is_some_and(is_over) && queue.remove(0).is_some() {}
        });
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

fn is_client(entry: &Entry) -> bool {
    matches!(entry, Entry::Client(_))
}
