//! What all threads know of a pool: how many server connections exist, and the queue of waiters.
//!
//! In steady state a transaction only reads [`PoolShared::waiting`] and counts its own thread's idle
//! connections; the queue's lock is taken by those who wait, and by those who serve them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::oneshot;

use crate::config::model::{Pool, ServerAddress, User};
use crate::net::server::{DetachedServer, Parameters, Server};
use crate::net::threads::ThreadHandle;
use crate::plugins::PoolIdentity;
use crate::session::auth::ScramSecret;
use crate::session::settings::Settings;

/// A pool: one user of one database.
#[derive(Debug)]
pub struct PoolShared {
    /// Position in [`crate::net::threads::Pooler::pools`].
    pub index: usize,
    pub identity: PoolIdentity,
    pub user: User,
    pub settings: Pool,
    pub address: ServerAddress,
    /// The database's name on the server.
    pub server_database: String,
    /// Server connections that exist or are being opened.
    open: AtomicUsize,
    /// Length of `queue`, for a look without the lock.
    waiting: AtomicUsize,
    queue: Mutex<VecDeque<Waiter>>,
    /// Idle connections, by thread.
    idle: Box<[IdleCount]>,
    /// Counts the schema changes seen on this pool's connections.
    pub schema_version: AtomicU64,
    /// What a server reports to a session with these settings; asked once, then known.
    greetings: Mutex<Vec<(Settings, Parameters)>>,
    /// Whether the last attempt to connect failed: log the first failure, not each.
    pub failing: AtomicBool,
    /// What clients are verified with by SCRAM; made at the first login. `None`: not possible.
    pub scram_secret: OnceLock<Option<ScramSecret>>,
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
pub struct Slot(Arc<PoolShared>);

impl Slot {
    pub fn pool(&self) -> &Arc<PoolShared> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.slot_returned();
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

/// Distinct sets of startup settings whose greeting is remembered.
const GREETINGS: usize = 64;

/// A waiter this old (coarse milliseconds) is served before any younger one. Among younger ones a
/// thread prefers its own, because moving a connection costs two system calls and a wake-up.
const STRICT_ORDER_AFTER: u64 = 100;

impl PoolShared {
    pub fn new(
        index: usize,
        identity: PoolIdentity,
        user: User,
        settings: Pool,
        threads: usize,
    ) -> Self {
        // One server per pool so far; more shards and replicas are reported as not yet supported.
        let shard = &settings.shards[0];
        let address = shard
            .servers
            .iter()
            .find(|server| server.role == crate::config::model::Role::Primary)
            .unwrap_or(&shard.servers[0])
            .clone();
        let server_database = shard.database.clone();
        Self {
            index,
            identity,
            user,
            address,
            server_database,
            settings,
            open: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
            idle: (0..threads).map(|_| IdleCount::default()).collect(),
            schema_version: AtomicU64::new(0),
            greetings: Mutex::default(),
            failing: AtomicBool::new(false),
            scram_secret: OnceLock::new(),
        }
    }

    /// What to report to a client that starts with these settings, if it is known.
    pub fn greeting(&self, settings: &Settings) -> Option<Parameters> {
        let greetings = self
            .greetings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = greetings.iter().find(|(known, _)| known == settings);
        known.map(|(_, parameters)| parameters.clone())
    }

    pub fn remember_greeting(&self, settings: Settings, parameters: Parameters) {
        let mut greetings = self
            .greetings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        greetings.retain(|(known, _)| *known != settings);
        if greetings.len() >= GREETINGS {
            greetings.remove(0);
        }
        greetings.push((settings, parameters));
    }

    /// How many clients wait for a connection.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// How many server connections exist or are being opened.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Takes the right to open a connection, if the pool is below its size.
    pub fn take_slot(self: &Arc<Self>) -> Option<Slot> {
        self.count_slot().then(|| Slot(self.clone()))
    }

    fn count_slot(&self) -> bool {
        let size = self.user.pool_size as usize;
        self.open
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| {
                (open < size).then_some(open + 1)
            })
            .is_ok()
    }

    /// A connection was closed, or could not be opened: the slot goes to the first waiter.
    fn slot_returned(self: &Arc<Self>) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        if self.waiting() > 0
            && let Some(slot) = self.take_slot()
        {
            // One that nobody takes is returned in its turn.
            self.grant_slot(slot);
        }
    }

    /// Gives a slot to the first waiter; back if there is none.
    pub fn grant_slot(&self, mut slot: Slot) -> Option<Slot> {
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

    /// Takes those off the queue who have waited for `connect_timeout`. Called now and then, instead of
    /// setting a timer for each wait.
    pub fn expire(&self, now: u64) {
        if self.waiting() == 0 {
            return;
        }
        let limit = self.user.connect_timeout.as_millis() as u64;
        let mut queue = self.lock();
        // The oldest come first. Time is coarse: nobody is to wait less than the limit.
        while queue
            .front()
            .is_some_and(|first| now > first.since + limit + STRICT_ORDER_AFTER)
        {
            queue.pop_front();
        }
        self.waiting.store(queue.len(), Ordering::SeqCst);
    }

    /// `thread` has one more idle connection.
    pub fn idle_added(&self, thread: usize) {
        self.idle[thread].0.fetch_add(1, Ordering::SeqCst);
    }

    /// `thread` has one idle connection less.
    pub fn idle_removed(&self, thread: usize) {
        self.idle[thread].0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Asks the other threads that have idle connections to serve the queue.
    pub fn call_idle_threads(&self, threads: &[ThreadHandle], own: usize) {
        for (index, thread) in threads.iter().enumerate() {
            if index != own && self.idle[index].0.load(Ordering::SeqCst) > 0 {
                thread.serve_waiters(self.index);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        // Every critical section leaves the queue whole, even one that panicked.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
