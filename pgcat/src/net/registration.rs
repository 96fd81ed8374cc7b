//! A session as its thread, and through it the rest of the pooler, knows it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use super::notify::Inbox;
use super::server::ServerKey;
use super::threads::{CancelKey, ThreadContext};
use crate::admin::state::{ClientState, Doing};
use crate::config::model::Timeouts;
use crate::plugins::PoolIdentity;
use crate::pool::statistics::Counters;

/// What a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of an admin database. A shutdown does not wait for it.
    Admin,
    Client,
    /// In this process; a plugin's. Nobody waits for it, and nobody is shown it.
    Internal,
}

/// Whose session it is, and how it is connected.
#[derive(Debug)]
pub struct Who {
    pub kind: Kind,
    pub identity: Arc<PoolIdentity>,
    pub application_name: RefCell<Box<str>>,
    /// The peer's address and ours, over TCP.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// Protocol version and cipher; empty without TLS.
    pub tls: Box<str>,
    pub connected: SystemTime,
}

/// What the thread knows of a session without waking its task.
#[derive(Debug)]
pub struct SessionHandle {
    pub who: Who,
    /// The server connection the session has now.
    pub server: RefCell<Option<Arc<ServerKey>>>,
    /// The times the client is allowed; `None`: nobody looks at its times.
    pub timeouts: Cell<Option<Timeouts>>,
    /// Since when the client has left a transaction idle, in coarse milliseconds; `None`: it has not.
    pub idle_in_transaction: Cell<Option<u64>>,
    /// When the request that is being answered came, by the thread's clock; 0: none is.
    pub query_began: Cell<u64>,
    /// The same of the transaction.
    pub transaction_began: Cell<u64>,
    /// When it was last heard of or answered, by the thread's clock.
    pub active: Cell<u64>,
    /// A batch is open, but until then nothing of it was running, by the thread's clock.
    pub resting: Cell<u64>,
    /// The statement was to be cancelled because it took too long.
    pub cancelled: Cell<bool>,
    /// The cancel request is on its way: nothing more is taken from the client, or it might be hit.
    pub cancelling: Cell<bool>,
    /// A time is over: see [`SessionHandle::overdue`].
    pub timed_out: Cell<bool>,
    /// Notifications for the client.
    pub inbox: Inbox,
    /// Since when it has been waiting for a server connection, by the thread's clock.
    pub waiting_since: Cell<Option<u64>>,
    /// When its last request came, by the thread's clock; 0: none has.
    pub requested: Cell<u64>,
    pub counters: Cell<Counters>,
    pub prepared_statements: Cell<usize>,
    /// An administrator has ended the session.
    pub killed: Cell<bool>,
    /// Wakes it where it waits for a server connection.
    pub killing: Notify,
    pub waker: RefCell<Option<Waker>>,
}

/// What has taken too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    IdleInTransaction,
    Transaction,
    Statement,
    Idle,
}

/// How long a server may take to end a statement that was to be cancelled, before the client is sent away:
/// microseconds.
const GRACE: u64 = 10_000_000;

/// A session's registration with its thread; ends with it.
pub struct Registration {
    thread: Rc<ThreadContext>,
    pub id: u64,
    pub key: CancelKey,
    pub handle: Rc<SessionHandle>,
}

impl Registration {
    pub fn new(thread: &Rc<ThreadContext>, who: Who) -> Self {
        let pooler = &thread.pooler;
        if who.kind == Kind::Client {
            pooler.clients.fetch_add(1, Ordering::SeqCst);
        }
        let id = pooler.ids.next();
        let handle = Rc::new(SessionHandle {
            who,
            server: RefCell::default(),
            timeouts: Cell::default(),
            idle_in_transaction: Cell::default(),
            query_began: Cell::default(),
            transaction_began: Cell::default(),
            active: Cell::new(thread.clock.now()),
            resting: Cell::default(),
            cancelled: Cell::default(),
            cancelling: Cell::default(),
            timed_out: Cell::default(),
            inbox: Inbox::default(),
            waiting_since: Cell::default(),
            requested: Cell::default(),
            counters: Cell::default(),
            prepared_statements: Cell::default(),
            killed: Cell::default(),
            killing: Notify::new(),
            waker: RefCell::default(),
        });
        thread.sessions.borrow_mut().insert(id, handle.clone());
        Self {
            thread: thread.clone(),
            id,
            key: pooler.new_key(thread.index, id),
            handle,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.thread.sessions.borrow_mut().remove(&self.id);
        self.thread.pooler.forget_key(&self.key);
        if self.handle.who.kind == Kind::Client {
            self.thread.pooler.clients.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl SessionHandle {
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// What has taken too long at this moment of the thread's clock. Times are not counted in a session
    /// that waits for a server connection.
    pub fn overdue(&self, now: u64) -> Option<Overdue> {
        let limits = self.timeouts.get()?;
        let is_over = |limit: Option<Duration>, since: u64| {
            limit.is_some_and(|limit| now >= since.saturating_add(limit.as_micros() as u64))
        };
        if let Some(since) = self.idle_in_transaction.get()
            && is_over(limits.idle_in_transaction, since * 1000)
        {
            return Some(Overdue::IdleInTransaction);
        }
        let (query, transaction) = (self.query_began.get(), self.transaction_began.get());
        if transaction != 0 && is_over(limits.transaction, transaction) {
            return Some(Overdue::Transaction);
        }
        if query != 0 {
            let grace = if self.cancelled.get() { GRACE } else { 0 };
            let since = query.max(self.resting.get()) + grace;
            return is_over(limits.statement, since).then_some(Overdue::Statement);
        }
        let is_idle = transaction == 0 && self.waiting_since.get().is_none();
        (is_idle && is_over(limits.idle, self.active.get())).then_some(Overdue::Idle)
    }

    /// Ends the session.
    pub fn kill(&self) {
        self.killed.set(true);
        self.killing.notify_one();
        self.wake();
    }

    /// Adds to the session's counters.
    pub fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// The session as the admin databases show it. `began` is when the thread's clock was at 0.
    pub fn state(&self, id: u64, began: SystemTime, now: u64) -> ClientState {
        let who = &self.who;
        let waiting_since = self.waiting_since.get();
        ClientState {
            id,
            database: who.identity.database.clone(),
            user: who.identity.user.clone(),
            application_name: who.application_name.borrow().to_string(),
            peer: who.ends.map(|(peer, _)| peer),
            local: who.ends.map(|(_, local)| local),
            tls: who.tls.to_string(),
            admin: who.kind == Kind::Admin,
            doing: match waiting_since {
                Some(_) => Doing::Waiting,
                None if who.kind == Kind::Admin || self.server.borrow().is_some() => Doing::Active,
                None => Doing::Idle,
            },
            connected: who.connected,
            requested: match self.requested.get() {
                0 => who.connected,
                requested => began + Duration::from_micros(requested),
            },
            waiting_for: waiting_since.map_or(Duration::ZERO, |since| {
                Duration::from_micros(now.saturating_sub(since))
            }),
            counters: self.counters.get(),
            prepared_statements: self.prepared_statements.get(),
        }
    }
}
