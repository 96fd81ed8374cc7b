//! A thread's own part of a pool: its idle connections, and taking and giving them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::timeout;

use super::address::Address;
use super::shared::PoolShared;
use super::slots::{Grant, Slot};
use crate::error::Error;
use crate::net::server::Server;
use crate::net::threads::ThreadContext;
use crate::plugins::Plugin;
use crate::router::route::Route;

/// See the module's text.
pub struct LocalPool {
    pub shared: Arc<PoolShared>,
    /// The plugins that look at this pool's statements.
    pub plugins: Vec<Arc<dyn Plugin>>,
    /// Idle connections, by server: in the order of [`PoolShared::addresses`].
    idle: Box<[RefCell<VecDeque<Box<Server>>>]>,
}

impl LocalPool {
    pub fn new(shared: Arc<PoolShared>, plugins: Vec<Arc<dyn Plugin>>) -> Self {
        Self {
            idle: shared
                .addresses
                .iter()
                .map(|_| RefCell::default())
                .collect(),
            shared,
            plugins,
        }
    }

    fn address(&self, at: usize) -> &Address {
        &self.shared.addresses[at]
    }

    /// An idle connection of this thread to a server that the route allows, unless others wait for
    /// one.
    pub fn try_checkout(&self, thread: &ThreadContext, route: Route) -> Option<Box<Server>> {
        let at = self.shared.choose(route, &[])?;
        self.try_checkout_at(thread, at)
    }

    fn try_checkout_at(&self, thread: &ThreadContext, at: usize) -> Option<Box<Server>> {
        if self.address(at).slots.waiting() > 0 {
            return None;
        }
        self.pop_idle(thread, at)
    }

    fn pop_idle(&self, thread: &ThreadContext, at: usize) -> Option<Box<Server>> {
        loop {
            let mut idle = self.idle[at].borrow_mut();
            let mut server = if thread.pooler.config.general.server_round_robin {
                idle.pop_front()?
            } else {
                idle.pop_back()?
            };
            drop(idle);
            self.address(at).slots.idle_removed(thread.index);
            if server.is_alive() {
                return Some(server);
            }
        }
    }

    /// A connection to a server that the route allows. One that cannot be reached is passed over for
    /// the next.
    ///
    /// # Errors
    /// [`Error::Timeout`] after a wait of `connect_timeout`, or why the last server could not be
    /// reached.
    pub async fn checkout(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        route: Route,
    ) -> Result<Box<Server>, Error> {
        let mut tried = Vec::new();
        let mut failure = Error::NoSuchServer;
        while let Some(at) = self.shared.choose(route, &tried) {
            match self.checkout_at(thread, at).await {
                Ok(server) => return Ok(server),
                // It is busy, not broken.
                Err(Error::Timeout) => return Err(Error::Timeout),
                Err(error) => failure = error,
            }
            tried.push(at);
        }
        Err(failure)
    }

    /// A connection to this server, after waiting for one if need be: first come, first served, over
    /// all threads.
    async fn checkout_at(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        at: usize,
    ) -> Result<Box<Server>, Error> {
        if let Some(server) = self.try_checkout_at(thread, at) {
            return Ok(server);
        }
        let slots = &self.address(at).slots;
        if slots.waiting() == 0
            && let Some(slot) = Slot::take(&self.shared, at)
        {
            return self.open(thread, slot).await;
        }
        let granted = slots.enqueue(thread.index, thread.now.get());
        // From here on a connection that is given back sees the waiter. One that was given back, or
        // closed, just before is looked for now.
        if let Some(slot) = Slot::take(&self.shared, at) {
            slots.grant(slot);
        }
        self.serve_waiters(thread, at);
        for index in slots.idle_threads(thread.index) {
            thread.pooler.threads[index].serve_waiters(self.shared.index, at);
        }
        match granted.await {
            Ok(grant) => self.redeem(thread, grant).await,
            // Taken off the queue: see `Slots::expire`.
            Err(_) => Err(Error::Timeout),
        }
    }

    async fn redeem(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        grant: Grant,
    ) -> Result<Box<Server>, Error> {
        match grant {
            Grant::Slot(slot) => self.open(thread, slot).await,
            Grant::Here(server) => Ok(server),
            Grant::Moved(server) => match server.attach() {
                Ok(server) => Ok(server),
                Err(slot) => self.open(thread, slot).await,
            },
        }
    }

    /// Opens a connection for a slot.
    async fn open(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        slot: Slot,
    ) -> Result<Box<Server>, Error> {
        let limit = self.shared.user.connect_timeout;
        let address = self.address(slot.address().id);
        let connecting = Server::connect(slot, &thread.pooler.tcp, thread.now.get());
        let outcome = timeout(limit, connecting)
            .await
            .unwrap_or(Err(Error::ConnectTimeout));
        let failing = outcome.is_err();
        let was_failing = address.failing.swap(failing, Ordering::Relaxed);
        let user = &self.shared.identity.user;
        match &outcome {
            Ok(_) if was_failing => {
                log::info!("server {} (user {user}) is reachable again", address.name);
            }
            Ok(_) => (),
            Err(error) if was_failing => {
                log::debug!("connecting to {} (user {user}): {error}", address.name);
            }
            Err(error) => log::error!("connecting to {} (user {user}): {error}", address.name),
        }
        outcome
    }

    /// Gives a connection back. Only one that holds to the pool's invariant stays: see
    /// [`Server::is_reusable`].
    pub fn release(self: &Rc<Self>, thread: &Rc<ThreadContext>, server: Box<Server>) {
        if !server.is_reusable() || self.is_expired(thread, &server) {
            self.close(server);
            return;
        }
        if server.dirty || server.key.cancels.load(Ordering::SeqCst) > 0 {
            let (pool, thread) = (self.clone(), thread.clone());
            tokio::task::spawn_local(async move { pool.clean_and_release(&thread, server).await });
            return;
        }
        self.put(thread, server);
    }

    fn put(self: &Rc<Self>, thread: &Rc<ThreadContext>, server: Box<Server>) {
        let Some(mut server) = self.give(thread, server) else {
            return;
        };
        let at = server.address().id;
        let slots = &self.address(at).slots;
        server.idle_since = thread.now.get();
        self.idle[at].borrow_mut().push_back(server);
        slots.idle_added(thread.index);
        // A waiter that queued between the look above and the count just made has not seen this one.
        if slots.waiting() > 0 {
            self.serve_waiters(thread, at);
        }
    }

    /// Gives the connection to whose turn it is; back if nobody waits.
    fn give(&self, thread: &ThreadContext, mut server: Box<Server>) -> Option<Box<Server>> {
        let slots = &self.address(server.address().id).slots;
        while slots.waiting() > 0 {
            let Some(waiter) = slots.next_waiter(thread.index, thread.now.get()) else {
                break;
            };
            let grant = if waiter.thread == thread.index {
                Grant::Here(server)
            } else {
                match server.detach() {
                    Ok(detached) => Grant::Moved(detached),
                    Err(slot) => {
                        // The waiter may open another one in its place.
                        let _ = waiter.give(Grant::Slot(slot));
                        return None;
                    }
                }
            };
            match waiter.give(grant) {
                Ok(()) => return None,
                Err(Grant::Here(back)) => server = back,
                Err(Grant::Moved(back)) => match back.attach() {
                    Ok(back) => server = back,
                    Err(_) => return None,
                },
                Err(Grant::Slot(_)) => return None,
            }
        }
        Some(server)
    }

    /// Hands this thread's idle connections to a server to those who wait for one.
    pub fn serve_waiters(&self, thread: &ThreadContext, at: usize) {
        let slots = &self.address(at).slots;
        while slots.waiting() > 0 {
            let Some(server) = self.pop_idle(thread, at) else {
                return;
            };
            if let Some(server) = self.give(thread, server) {
                self.idle[at].borrow_mut().push_back(server);
                slots.idle_added(thread.index);
            }
        }
    }

    async fn clean_and_release(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        mut server: Box<Server>,
    ) {
        let cleaning = async {
            // A cancel request on its way must not hit the next client's statement.
            while server.key.cancels.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            server.discard_all().await
        };
        // A server that does not answer its DISCARD ALL is not worth keeping.
        match timeout(std::time::Duration::from_secs(15), cleaning).await {
            Ok(Ok(())) => self.put(thread, server),
            _ => self.close(server),
        }
    }

    /// Closes a connection and gives its slot to the next waiter.
    pub fn close(&self, server: Box<Server>) {
        drop(server);
    }

    fn is_expired(&self, thread: &ThreadContext, server: &Server) -> bool {
        self.shared.user.server_lifetime.is_some_and(|lifetime| {
            thread.now.get().saturating_sub(server.created_at) >= lifetime.as_millis() as u64
        })
    }

    /// Closes idle connections that are dead, too old, or idle for too long, and opens those that are
    /// to be kept ready; called now and then.
    pub fn tend(self: &Rc<Self>, thread: &Rc<ThreadContext>) {
        for address in &self.shared.addresses {
            self.tend_at(thread, address);
        }
    }

    fn tend_at(self: &Rc<Self>, thread: &Rc<ThreadContext>, address: &Address) {
        let idle = &self.idle[address.id];
        let candidates = idle.borrow().len();
        let idle_timeout = self
            .shared
            .user
            .idle_timeout
            .map(|limit| limit.as_millis() as u64);
        let minimum = self.shared.user.min_pool_size as usize;
        for _ in 0..candidates {
            let Some(mut server) = idle.borrow_mut().pop_front() else {
                break;
            };
            let idle_for = thread.now.get().saturating_sub(server.idle_since);
            let too_long = idle_timeout.is_some_and(|limit| idle_for >= limit)
                && address.slots.open() > minimum;
            if too_long || self.is_expired(thread, &server) || !server.is_alive() {
                address.slots.idle_removed(thread.index);
                self.close(server);
            } else {
                idle.borrow_mut().push_back(server);
            }
        }
        if thread.index == 0
            && address.slots.open() < minimum
            && let Some(slot) = Slot::take(&self.shared, address.id)
        {
            let (pool, thread) = (self.clone(), thread.clone());
            tokio::task::spawn_local(async move {
                if let Ok(server) = pool.open(&thread, slot).await {
                    pool.put(&thread, server);
                }
            });
        }
    }

    /// Closes all idle connections: the pooler is ending.
    pub fn close_idle(&self, thread: &ThreadContext) {
        for address in &self.shared.addresses {
            while let Some(server) = self.idle[address.id].borrow_mut().pop_front() {
                address.slots.idle_removed(thread.index);
                self.close(server);
            }
        }
    }
}
