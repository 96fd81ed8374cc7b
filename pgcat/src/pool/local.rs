//! A thread's own part of a pool: its idle connections, and taking and giving them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use super::address::Address;
use super::analyser::Analyser;
use super::functions::CATALOG;
use super::health::BanReason;
use super::queue::{Claim, Turn};
use super::replay::Verdict;
use super::shared::PoolShared;
use super::slots::{Grant, Slot};
use super::statistics::Phase;
use super::watch;
use crate::config::model::{PoolMode, Role, WantedRole};
use crate::error::Error;
use crate::net::mirror;
use crate::net::server::Server;
use crate::net::threads::ThreadContext;
use crate::plugins::Plugin;
use crate::router::route::Route;
use crate::wire::TransactionStatus;
use crate::wire::error_fields::ErrorFields;

/// How often those who wait for a failover look.
const FAILOVER_LOOK: Duration = Duration::from_millis(100);

/// See the module's text.
pub struct LocalPool {
    pub shared: Arc<PoolShared>,
    /// The plugins that look at this pool's statements.
    pub plugins: Vec<Arc<dyn Plugin>>,
    /// Looks into statements, if that is wanted.
    pub analyser: Option<Analyser>,
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
            analyser: Analyser::of(&shared.settings),
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
        if self.shared.gate.is_shut() || self.shared.is_retired() {
            return None;
        }
        let at = self.shared.choose(route, &[])?;
        let server = self.try_checkout_at(thread, at)?;
        if self.judge(thread, &server, route) != Verdict::Has {
            self.push_unused(thread, server);
            return None;
        }
        Some(server)
    }

    /// Whether what the route asks to have been replayed is there, as far as is known.
    fn judge(&self, thread: &ThreadContext, server: &Server, route: Route) -> Verdict {
        let Some(after) = route.after else {
            return Verdict::Has;
        };
        let address = self.address(server.address().id);
        if address.role() == Role::Primary {
            return Verdict::Has;
        }
        let now = thread.pooler.now();
        address.replay.judge(after, server.connected_at, now)
    }

    /// The same, having asked the server if need be. One that does not tell has nothing.
    async fn has_replayed(
        &self,
        thread: &ThreadContext,
        server: &mut Server,
        route: Route,
    ) -> Result<bool, Error> {
        let (Verdict::Unknown, Some(after)) = (self.judge(thread, server, route), route.after)
        else {
            return Ok(self.judge(thread, server, route) == Verdict::Has);
        };
        let now = thread.pooler.now();
        let limit = thread.config().general.healthcheck_timeout;
        let state = match timeout(limit, server.ask_state()).await {
            Ok(Err(Error::ServerRefused(_))) => return Ok(false),
            Ok(outcome) => outcome?,
            Err(_) => return Err(Error::FailedHealthCheck),
        };
        let replay = &self.address(server.address().id).replay;
        replay.note_position(now, state.position);
        Ok(state.position.includes(after))
    }

    fn try_checkout_at(&self, thread: &ThreadContext, at: usize) -> Option<Box<Server>> {
        if self.address(at).slots.waiting() > 0 {
            return None;
        }
        let server = self.pop_idle(thread, at)?;
        if self.is_check_due(thread, &server) {
            self.push_unused(thread, server);
            return None;
        }
        Some(server)
    }

    fn pop_idle(&self, thread: &ThreadContext, at: usize) -> Option<Box<Server>> {
        loop {
            let mut idle = self.idle[at].borrow_mut();
            let mut server = if thread.config().general.server_round_robin {
                idle.pop_front()?
            } else {
                idle.pop_back()?
            };
            drop(idle);
            self.address(at).slots.idle_removed(thread.index);
            if server.is_alive() && server.generation == self.address(at).health.generation() {
                return Some(server);
            }
        }
    }

    /// Puts a connection back to where [`LocalPool::pop_idle`] took it from, as if it had not.
    fn push_unused(&self, thread: &ThreadContext, server: Box<Server>) {
        let at = server.address().id;
        let mut idle = self.idle[at].borrow_mut();
        if thread.config().general.server_round_robin {
            idle.push_front(server);
        } else {
            idle.push_back(server);
        }
        drop(idle);
        self.note_idle(thread, at);
    }

    /// One more connection of this thread is idle. Who has queued since it was last looked whether anybody waits has not
    /// seen it.
    fn note_idle(&self, thread: &ThreadContext, at: usize) {
        let slots = &self.address(at).slots;
        slots.idle_added(thread.index);
        if slots.waiting() > 0 {
            self.serve_waiters(thread, at);
        }
    }

    /// A connection to a server that the route allows. One that cannot be reached is passed over for
    /// the next. While a failover is under way, the wait for a new primary is `connect_timeout`; and so it is for a server
    /// that says it is starting, or shutting down, perhaps to start again.
    ///
    /// # Errors
    /// [`Error::Timeout`] after a wait of `connect_timeout`, or why the last server could not be
    /// reached.
    pub async fn checkout(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        route: Route,
    ) -> Result<Box<Server>, Error> {
        let mut passage = self.shared.gate.pass().await;
        let mut checkout = pin!(self.checkout_open(thread, route));
        poll_fn(|cx| {
            let outcome = checkout.as_mut().poll(cx);
            // It has a place in the queue, if it needs one: the next may come.
            passage = None;
            outcome
        })
        .await
    }

    async fn checkout_open(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        route: Route,
    ) -> Result<Box<Server>, Error> {
        if self.shared.is_retired() {
            return Err(Error::Retired);
        }
        let began = thread.now.get();
        let patience = self.shared.user.connect_timeout.as_millis() as u64;
        let mut restarting = false;
        loop {
            match self.checkout_some(thread, route).await {
                Err(error) if !matches!(error, Error::Timeout | Error::Retired) => {
                    restarting |= is_restarting(&error);
                    let waited = thread.now.get().saturating_sub(began);
                    let may_come = restarting || self.shared.awaits_failover(route);
                    if waited >= patience || !may_come {
                        return Err(error);
                    }
                    tokio::time::sleep(FAILOVER_LOOK).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn checkout_some(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        route: Route,
    ) -> Result<Box<Server>, Error> {
        match self.checkout_among(thread, route).await {
            Err(error)
                if route.after.is_some() && !matches!(error, Error::Timeout | Error::Retired) =>
            {
                // No replica has replayed it yet.
                let primary = Route {
                    role: WantedRole::Primary,
                    after: None,
                    ..route
                };
                self.checkout_among(thread, primary).await
            }
            outcome => outcome,
        }
    }

    async fn checkout_among(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        route: Route,
    ) -> Result<Box<Server>, Error> {
        let mut tried = Vec::new();
        let mut failure = match route.shard {
            Some(shard) if shard >= self.shared.settings.shards.len() => Error::InvalidShard(shard),
            _ => Error::NoSuchServer,
        };
        while let Some(at) = self.shared.choose(route, &tried) {
            match self.checkout_at(thread, at).await {
                Ok(mut server) if self.shared.may_serve(self.address(at), route) => {
                    match Box::pin(self.has_replayed(thread, &mut server, route)).await {
                        Ok(true) => return Ok(server),
                        Ok(false) => self.release(thread, server),
                        Err(error) => failure = error,
                    }
                }
                // What it is has only now become known.
                Ok(server) => self.release(thread, server),
                // It is busy, not broken.
                Err(error @ (Error::Timeout | Error::Retired)) => return Err(error),
                Err(error) => failure = error,
            }
            tried.push(at);
        }
        if no_room(&failure).is_none() {
            return Err(failure);
        }
        // None of them has room for another connection: wait for one there is, or for room.
        let began = thread.now.get();
        let patience = self.shared.user.connect_timeout.as_millis() as u64;
        let at = tried.pop().unwrap_or_default();
        loop {
            match self.checkout_at(thread, at).await {
                Ok(server) if self.shared.may_serve(self.address(at), route) => return Ok(server),
                Ok(server) => {
                    self.release(thread, server);
                    return Err(failure);
                }
                Err(error)
                    if no_room(&error).is_some()
                        && thread.now.get().saturating_sub(began) < patience => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection to this server, after waiting for one if need be: first come, first served, over
    /// all threads.
    async fn checkout_at(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        at: usize,
    ) -> Result<Box<Server>, Error> {
        let slots = &self.address(at).slots;
        loop {
            slots.forget_claims(&self.shared);
            if slots.waiting() == 0 {
                if let Some(server) = self.pop_idle(thread, at) {
                    match Box::pin(self.checked(thread, server)).await? {
                        Some(server) => return Ok(server),
                        None => continue,
                    }
                }
                if let Some(slot) = Slot::take(&self.shared, at) {
                    return Box::pin(self.open_paced(thread, slot)).await;
                }
            }
            let granted = slots.enqueue(thread.index, thread.now.get());
            // From here on a connection that is given back sees the waiter. One that was given back, or
            // closed, just before is looked for now.
            if !self.shared.gate.is_shut()
                && let Some(slot) = Slot::take(&self.shared, at)
            {
                slots.grant(slot);
            }
            self.serve_waiters(thread, at);
            for index in slots.idle_threads(thread.index) {
                thread.pooler.threads[index].serve_waiters(self.shared.index, at);
            }
            self.claim(thread, at);
            // Nothing is granted to those taken off the queue: see `Slots::expire`.
            let server = match granted.await.map_err(|_| self.why_dismissed(at))? {
                Grant::Slot(slot) => return Box::pin(self.open_paced(thread, slot)).await,
                Grant::Here(server) => server,
                Grant::Moved(server) => match server.attach() {
                    Ok(server) => server,
                    Err(slot) => return Box::pin(self.open_paced(thread, slot)).await,
                },
            };
            if let Some(server) = self.checked(thread, server).await? {
                return Ok(server);
            }
        }
    }

    /// Where those who wait could open connections but for a limit over several pools: has the others
    /// close some.
    fn claim(&self, thread: &ThreadContext, at: usize) {
        if !self.shared.is_limited() || !self.address(at).slots.wants_slot() {
            return;
        }
        for rival in self.shared.rivals() {
            if !self.shared.is_kept_out_by(&rival) {
                continue;
            }
            let is_here = |id| id == at && Arc::ptr_eq(&rival, &self.shared);
            for address in rival.addresses.iter().filter(|other| !is_here(other.id)) {
                if address.slots.open() == 0 {
                    continue;
                }
                let claim = Claim::new(self.shared.clone(), at, thread.now.get());
                address.slots.claim(claim);
                for index in address.slots.idle_threads(usize::MAX) {
                    thread.pooler.threads[index].serve_waiters(rival.index, address.id);
                }
            }
        }
    }

    /// Looks after those who wait for a connection that other pools may have to close; called now and then.
    /// One of theirs may have become idle, or the limit have room, in the moment between two looks.
    pub fn press_claims(&self, thread: &ThreadContext) {
        if !self.shared.is_limited() || self.shared.gate.is_shut() {
            return;
        }
        for address in &self.shared.addresses {
            if !address.slots.wants_slot() {
                continue;
            }
            address.slots.forget_gone();
            while address.slots.wants_slot()
                && let Some(slot) = Slot::take(&self.shared, address.id)
                && address.slots.grant(slot).is_none()
            {}
            self.claim(thread, address.id);
        }
    }

    /// Why a wait has ended without a connection.
    fn why_dismissed(&self, at: usize) -> Error {
        if self.shared.is_retired() {
            return Error::Retired;
        }
        match self.address(at).slots.full() {
            Some(fields) => Error::ServerRefused(Box::new(fields)),
            None => Error::Timeout,
        }
    }

    fn is_check_due(&self, thread: &ThreadContext, server: &Server) -> bool {
        let delay = thread.config().general.healthcheck_delay.as_millis() as u64;
        thread.now.get().saturating_sub(server.idle_since) >= delay
    }

    /// The connection, having asked the server for a sign of life if it was idle for long. `None`: the
    /// connection is lost.
    async fn checked(
        &self,
        thread: &ThreadContext,
        mut server: Box<Server>,
    ) -> Result<Option<Box<Server>>, Error> {
        if !self.is_check_due(thread, &server) {
            return Ok(Some(server));
        }
        let limit = thread.config().general.healthcheck_timeout;
        let parameters = server.parameters.clone();
        match timeout(limit, server.simple_query(";", &mut Vec::new())).await {
            Ok(Ok(_)) => {
                // The server tells of a reload with its next answer, which was this one.
                if server.parameters != parameters {
                    self.shared.forget_greetings();
                }
                Ok(Some(server))
            }
            Ok(Err(error)) => {
                log::info!(
                    "a connection to {} was lost: {error}",
                    server.address().name
                );
                Ok(None)
            }
            Err(_) => {
                let error = Error::FailedHealthCheck;
                self.note_failure(
                    thread,
                    server.address(),
                    BanReason::FailedHealthCheck,
                    &error,
                );
                Err(error)
            }
        }
    }

    fn note_failure(
        &self,
        thread: &ThreadContext,
        address: &Address,
        reason: BanReason,
        error: &Error,
    ) {
        let now = thread.now.get();
        let ban = address.ban_after_failure(thread.config().general.ban_time);
        let first = address.health.failed(now, reason, ban);
        let (name, user) = (&address.name, &self.shared.identity.user);
        if first {
            log::error!("server {name} (user {user}): {error}");
            if let Some(length) = ban {
                log::warn!(
                    "server {name} (user {user}) is banned for {} s",
                    length.as_secs()
                );
            }
        } else {
            log::debug!("server {name} (user {user}): {error}");
        }
    }

    /// Opens a connection for a slot, on behalf of a client. A login that was refused to another client
    /// a moment ago is not tried again. (What is opened in the background has a pace of its own, and
    /// finds servers before the roles of their users are there.)
    async fn open_paced(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        slot: Slot,
    ) -> Result<Box<Server>, Error> {
        let health = &self.address(slot.address().id).health;
        if let Some(refusal) = health.refusal(thread.now.get()) {
            return Err(Error::ServerRefused(Box::new(refusal)));
        }
        let outcome = self.open(thread, slot).await;
        if let Err(Error::ServerRefused(fields)) = &outcome {
            health.refused(thread.now.get(), fields);
        }
        outcome
    }

    /// Opens a connection for a slot.
    async fn open(
        self: &Rc<Self>,
        thread: &Rc<ThreadContext>,
        slot: Slot,
    ) -> Result<Box<Server>, Error> {
        let address = self.address(slot.address().id);
        let connecting = Box::pin(async {
            let dialler = thread.pooler.dialler();
            let mut server = Server::connect(slot, &dialler, thread.now.get()).await?;
            let silent = !server.parameters.contains_key("in_hot_standby");
            if address.server.role == Role::Auto && silent {
                // Other poolers do not report it.
                server.ask_standby().await?;
            }
            self.prewarm(&mut server).await?;
            let stateful = &self.shared.stateful;
            if self.is_transaction_mode() && stateful.is_due_first(thread.now.get()) {
                let limit = self.shared.user.connect_timeout / 8;
                stateful.learn(&mut server, limit).await?;
            }
            mirror::begin(thread, &mut server);
            Ok(server)
        });
        let mut outcome = timeout(self.shared.user.connect_timeout, connecting)
            .await
            .unwrap_or(Err(Error::ConnectTimeout));
        match &mut outcome {
            Ok(server) => {
                server.connected_at = thread.pooler.now();
                if address.health.succeeded(thread.now.get()) {
                    let user = &self.shared.identity.user;
                    log::info!("server {} (user {user}) is reachable again", address.name);
                }
                self.shared.note_defaults(&server.parameters);
                if address.slots.note_room() {
                    Slot::offer(&self.shared, address.id);
                }
            }
            Err(error) => match no_room(error) {
                // It is well, only full.
                Some(fields) => {
                    log::warn!("server {}: {fields}", address.name);
                    address.slots.note_full(thread.now.get(), fields);
                }
                None => self.note_failure(thread, address, BanReason::FailedCheckout, error),
            },
        }
        outcome
    }

    /// Gives a connection back. Only one that holds to the pool's invariant stays: see
    /// [`Server::is_reusable`].
    pub fn release(self: &Rc<Self>, thread: &Rc<ThreadContext>, server: Box<Server>) {
        let outdated = server.generation != server.address().health.generation();
        if !server.is_reusable() || outdated || self.is_expired(thread, &server) {
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
        if self.shared.is_retired() {
            return self.close(server);
        }
        let Some(mut server) = self.give(thread, server) else {
            return;
        };
        let at = server.address().id;
        server.idle_since = thread.now.get();
        server.connection().enter(Phase::Idle);
        self.idle[at].borrow_mut().push_back(server);
        self.note_idle(thread, at);
    }

    /// Gives the connection to whose turn it is; back if nobody waits.
    fn give(&self, thread: &ThreadContext, mut server: Box<Server>) -> Option<Box<Server>> {
        let slots = &self.address(server.address().id).slots;
        while slots.waiting() > 0 && !self.shared.gate.is_shut() {
            let waiter = match slots.next(thread.index, thread.now.get(), &self.shared) {
                Some(Turn::Client(waiter)) => waiter,
                Some(Turn::Rival(claim)) => {
                    server.leave_to(claim);
                    self.close(server);
                    return None;
                }
                None => break,
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
        while slots.waiting() > 0 && !self.shared.gate.is_shut() {
            let Some(server) = self.pop_idle(thread, at) else {
                return;
            };
            if let Some(server) = self.give(thread, server) {
                self.idle[at].borrow_mut().push_back(server);
                slots.idle_added(thread.index);
            }
        }
    }

    /// The pool hands out connections again: those who wait get what there is, or may open one.
    pub fn resume(&self, thread: &ThreadContext) {
        for address in &self.shared.addresses {
            self.serve_waiters(thread, address.id);
            while address.slots.clients() > 0
                && let Some(slot) = Slot::take(&self.shared, address.id)
                && address.slots.grant(slot).is_none()
            {}
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
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            server.discard_all().await
        };
        // A server that does not answer its DISCARD ALL is not worth keeping.
        match timeout(Duration::from_secs(15), cleaning).await {
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
        if thread.index == 0 && self.shared.is_watch_due() {
            watch::begin(thread, &self.shared);
        }
        let splits = self.shared.settings.query_parser_read_write_splitting;
        if thread.index == 0 && splits && self.shared.functions.looks.is_due(thread.now.get()) {
            let (pool, thread) = (self.clone(), thread.clone());
            tokio::task::spawn_local(async move { pool.learn_functions(&thread).await });
        }
        if self.is_transaction_mode() && self.shared.stateful.looks.is_due(thread.now.get()) {
            match self.try_checkout(thread, Route::primary_of(&self.shared.settings)) {
                Some(server) => {
                    let (pool, thread) = (self.clone(), thread.clone());
                    tokio::task::spawn_local(async move {
                        pool.learn_stateful(&thread, server).await;
                    });
                }
                // Not worth another connection. Other threads, and those that open connections, ask, too.
                None => self.shared.stateful.looks.make_due(),
            }
        }
    }

    fn is_transaction_mode(&self) -> bool {
        self.shared.user.pool_mode == PoolMode::Transaction
    }

    async fn learn_stateful(self: &Rc<Self>, thread: &Rc<ThreadContext>, mut server: Box<Server>) {
        server.unnamed = None;
        let limit = self.shared.user.connect_timeout;
        let learning = self.shared.stateful.learn(&mut server, limit / 8);
        match timeout(limit, learning).await {
            Ok(Ok(())) => self.release(thread, server),
            Ok(Err(error)) => log::info!("{}: {error}", server.address().name),
            Err(_) => log::info!("{}: {}", server.address().name, Error::Timeout),
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
            // The reserve goes when it has not been needed for as long as one waits for it.
            let patience = self.shared.user.reserve_pool_timeout.unwrap_or_default();
            let too_many = address.slots.is_over_size() && idle_for >= patience.as_millis() as u64;
            let outdated = server.generation != address.health.generation();
            if too_many
                || too_long
                || outdated
                || self.is_expired(thread, &server)
                || !server.is_alive()
            {
                address.slots.idle_removed(thread.index);
                self.close(server);
            } else {
                idle.borrow_mut().push_back(server);
            }
        }
        if thread.index == 0 && !self.shared.gate.is_shut() {
            self.keep_ready(thread, address, minimum);
        }
    }

    /// Opens the connections that are to be kept, finds out whether a server that failed is back, and
    /// asks one whose role may change for it.
    fn keep_ready(self: &Rc<Self>, thread: &Rc<ThreadContext>, address: &Address, minimum: usize) {
        let health = &address.health;
        let missing = minimum.saturating_sub(address.slots.open());
        // A server that is the only one is looked for by those who want it, and for the connections that are to be there.
        let several = self.shared.addresses.len() > 1;
        let probe = (several || missing > 0) && health.is_probe_due(thread.now.get());
        let wanted = if health.is_avoided() {
            usize::from(probe)
        } else {
            missing
        };
        let wanted = if self.shared.awaits_client() {
            0
        } else {
            wanted
        };
        for _ in 0..wanted {
            let Some(slot) = Slot::take(&self.shared, address.id) else {
                break;
            };
            self.open_spare(thread, slot);
        }
        if several && address.server.role == Role::Auto && !health.is_avoided() {
            self.ask_role(thread, address);
        }
    }

    fn open_spare(self: &Rc<Self>, thread: &Rc<ThreadContext>, slot: Slot) {
        let (pool, thread) = (self.clone(), thread.clone());
        tokio::task::spawn_local(async move {
            if let Ok(server) = pool.open(&thread, slot).await {
                pool.put(&thread, server);
            }
        });
    }

    /// Connections in use say by themselves when a standby has been promoted; idle ones only when
    /// asked something.
    fn ask_role(self: &Rc<Self>, thread: &Rc<ThreadContext>, address: &Address) {
        let Some(mut server) = self.pop_idle(thread, address.id) else {
            if let Some(slot) = Slot::take(&self.shared, address.id) {
                self.open_spare(thread, slot);
            }
            return;
        };
        let (pool, thread) = (self.clone(), thread.clone());
        tokio::task::spawn_local(async move {
            let limit = thread.config().general.healthcheck_timeout;
            match timeout(limit, server.ask_standby()).await {
                Ok(Ok(())) => {
                    if let Some(server) = pool.give(&thread, server) {
                        pool.push_unused(&thread, server);
                    }
                }
                Ok(Err(error)) => log::info!(
                    "a connection to {} was lost: {error}",
                    server.address().name
                ),
                Err(_) => {
                    let error = Error::FailedHealthCheck;
                    pool.note_failure(
                        &thread,
                        server.address(),
                        BanReason::FailedHealthCheck,
                        &error,
                    );
                }
            }
        });
    }

    /// Connects to every server once: what is wrong in the configuration is then in the log before a
    /// client meets it, and the first clients find connections.
    pub fn validate(self: &Rc<Self>, thread: &Rc<ThreadContext>) {
        for address in &self.shared.addresses {
            if address.server.role != Role::Mirror
                && !self.shared.awaits_client()
                && let Some(slot) = Slot::take(&self.shared, address.id)
            {
                self.open_spare(thread, slot);
            }
        }
    }

    /// Asks the primary which functions there are.
    async fn learn_functions(self: &Rc<Self>, thread: &Rc<ThreadContext>) {
        let route = Route::primary_of(&self.shared.settings);
        // Where there is no server, clients are told so themselves.
        let Ok(mut server) = self.checkout(thread, route).await else {
            return;
        };
        server.unnamed = None;
        match server.simple_query(CATALOG, &mut Vec::new()).await {
            Ok(result) => {
                self.shared.functions.learn(result);
                self.release(thread, server);
            }
            Err(error) => log::warn!("could not read the functions' catalog: {error}"),
        }
    }

    /// PgCat's plugin `prewarmer`: runs its queries on a new connection. What they report is logged and
    /// fails nobody.
    async fn prewarm(&self, server: &mut Server) -> Result<(), Error> {
        let Some(table) = self.shared.settings.plugins.get("prewarmer") else {
            return Ok(());
        };
        if table.get("enabled").and_then(toml::Value::as_bool) != Some(true) {
            return Ok(());
        }
        let queries = table.get("queries").and_then(toml::Value::as_array);
        for query in queries
            .into_iter()
            .flatten()
            .filter_map(toml::Value::as_str)
        {
            match server.simple_query(query, &mut Vec::new()).await {
                Ok(_) => (),
                Err(Error::ServerRefused(fields)) => {
                    log::warn!(
                        "prewarming {} by {query:?}: {fields}",
                        server.address().name
                    );
                }
                Err(error) => return Err(error),
            }
        }
        if server.status != TransactionStatus::Idle {
            server.simple_query("ROLLBACK", &mut Vec::new()).await?;
        }
        Ok(())
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

/// Whether the server is there, and not ready: 57P03, cannot_connect_now.
fn is_restarting(error: &Error) -> bool {
    matches!(error, Error::ServerRefused(fields) if fields.code == "57P03")
}

/// The server's words, if all that keeps it from another connection is how many it has.
fn no_room(error: &Error) -> Option<&ErrorFields> {
    match error {
        Error::ServerRefused(fields) if fields.code == "53300" => Some(fields),
        _ => None,
    }
}
