//! The queue for one server: clients that wait for a connection, and pools that wait for one to be closed.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::shared::PoolShared;
use super::slots::{Grant, Slots};

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    /// How many of them are claims: there are none unless a limit over several pools is reached.
    claims: usize,
}

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
    pub pool: Arc<PoolShared>,
    /// Position in [`PoolShared::addresses`].
    pub address: usize,
    since: u64,
}

/// Whose turn it is for a connection.
#[derive(Debug)]
pub enum Turn {
    Client(Waiter),
    /// A client of another pool: the connection is to be closed.
    Rival(Claim),
}

/// An entry this old (coarse milliseconds) is served before any younger one. Among younger ones a
/// thread prefers its own, because moving a connection costs two system calls and a wake-up.
const STRICT_ORDER_AFTER: u64 = 100;

impl Queue {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn clients(&self) -> usize {
        self.entries.len() - self.claims
    }

    /// Since when the first client has been waiting.
    pub fn waiting_since(&self) -> Option<u64> {
        let first = self.entries.iter().find(|entry| is_client(entry));
        first.map(Entry::since)
    }

    /// A client joins the queue, at its end.
    pub fn join(&mut self, waiter: Waiter) {
        self.entries.push_back(Entry::Client(waiter));
    }

    /// A claim joins the queue, unless there are as many as clients wait behind it.
    pub fn claim(&mut self, claim: Claim) {
        let is_same = |entry: &&Entry| matches!(entry, Entry::Claim(c) if c.is_of(&claim));
        if self.entries.iter().filter(is_same).count() < claim.slots().clients() {
            self.entries.push_back(Entry::Claim(claim));
            self.claims += 1;
        }
    }

    /// The first client.
    pub fn take_client(&mut self) -> Option<Waiter> {
        let first = self.entries.iter().position(is_client)?;
        match self.remove(first)? {
            Entry::Client(waiter) => Some(waiter),
            Entry::Claim(_) => None,
        }
    }

    /// Whose turn it is for a connection of `thread`. `opened_at`: when a pause has ended.
    pub fn take(&mut self, thread: usize, now: u64, opened_at: u64) -> Option<Turn> {
        let index = self.next(thread, now, opened_at)?;
        Some(match self.remove(index)? {
            Entry::Client(waiter) => Turn::Client(waiter),
            Entry::Claim(claim) => Turn::Rival(claim),
        })
    }

    fn next(&self, thread: usize, now: u64, opened_at: u64) -> Option<usize> {
        let wanted_here = self.clients() > 0;
        // While it is wanted here, a connection is closed only for those who have none at all.
        let may = |entry: &Entry| match entry {
            Entry::Client(_) => true,
            Entry::Claim(claim) => !wanted_here || claim.slots().open() == 0,
        };
        let index = self.entries.iter().position(may)?;
        let since = self.entries[index].since();
        // Who came as the pool was opened has waited for that.
        if now >= since + STRICT_ORDER_AFTER || since <= opened_at {
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

    /// Drops clients that have given up.
    pub fn forget_gone(&mut self) {
        self.entries.retain(|entry| match entry {
            Entry::Client(waiter) => !waiter.grant.is_closed(),
            Entry::Claim(_) => true,
        });
    }

    /// Drops claims against `pool`, whose queue it is, that are of no use any more.
    pub fn forget_claims(&mut self, pool: &PoolShared) {
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

    /// Drops those who have waited for `limit` milliseconds, from `not_before` at the earliest.
    pub fn expire(&mut self, now: u64, limit: u64, not_before: u64) {
        // The oldest come first. Time is coarse: nobody is to wait less than the limit.
        let is_over =
            |entry: &Entry| now > entry.since().max(not_before) + limit + STRICT_ORDER_AFTER;
        while self.entries.front().is_some_and(is_over) && self.remove(0).is_some() {}
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

fn is_client(entry: &Entry) -> bool {
    matches!(entry, Entry::Client(_))
}

impl Waiter {
    pub(super) fn new(thread: usize, since: u64, grant: oneshot::Sender<Grant>) -> Self {
        Self {
            thread,
            since,
            grant,
        }
    }

    /// Hands over the grant.
    ///
    /// # Errors
    /// The grant, if the waiter gave up in this moment.
    pub fn give(self, grant: Grant) -> Result<(), Grant> {
        self.grant.send(grant)
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
