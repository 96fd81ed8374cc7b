//! A client's session after login: its state, and the slow paths around the relay.

use std::collections::{BTreeSet, HashMap};
use std::future::{pending, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::time::timeout;

use super::handled::{HandledPortal, Piece};
use super::io::{Io, KEEP_CAPACITY, OutBuffer};
use super::notify::{Subscriber, Subscriptions};
use super::own_writes::OwnWrites;
use super::registration::Registration;
use super::routing::SharedChoice;
use super::server::Server;
use super::threads::ThreadContext;
use crate::config::model::PoolMode;
use crate::error::Error;
use crate::plugins::Statement;
use crate::pool::local::LocalPool;
use crate::router::choice::Choice;
use crate::router::route::Route;
use crate::session::ledger::{BeforeUnnamed, Fate, Request, Undo};
use crate::session::prepared::PreparedStatement;
use crate::session::settings::{Patience, Settings};
use crate::session::traits::Traits;
use crate::wire::error_fields::{ErrorFields, Severity};
use crate::wire::{TransactionStatus, message};

/// What a client's names stand for. They are looked up for every message, and no other client's are among them, so that a
/// faster hash than the standard library's will do.
type Names<T> = HashMap<Box<[u8]>, T, foldhash::fast::RandomState>;

/// For how long what a client has left to be done keeps a server connection from the others.
pub(super) const LAST_WORK: Duration = Duration::from_secs(5);

/// The message with which a client takes its leave.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// A client's session.
pub struct Session {
    pub(super) thread: Rc<ThreadContext>,
    pub(super) pool: Rc<LocalPool>,
    pub(super) registration: Registration,
    pub(super) io: Io,
    /// Received from the client and not yet processed.
    pub(super) input: Vec<u8>,
    /// `input` may hold a complete message: look before reading more.
    pub(super) input_ready: bool,
    /// How many bytes of `input` there have to be before they are looked at again.
    pub(super) input_wanted: usize,
    /// Bytes of the client's current message that are still to come, and whether they are forwarded.
    pub(super) client_body: Body,
    pub(super) out: OutBuffer,
    pub(super) server: Option<Box<Server>>,
    pub(super) server_body: Body,
    /// What the client has set for its session.
    pub(super) settings: Arc<Settings>,
    pub(super) statements: Names<ClientStatement>,
    pub(super) unnamed: Unnamed,
    /// Portals of statements a plugin answers.
    pub(super) portals: Names<HandledPortal>,
    /// The session's settings may have changed: ask the server before letting go of it.
    pub(super) settings_changed: bool,
    pub(super) captured: Settings,
    pub(super) patience: Patience,
    /// Statements that replies to come may yet be about, with the client's names: whose Close the server may
    /// turn out to skip, or in whose place the name has come to stand for another.
    pub(super) dropped: Vec<Option<(Box<[u8]>, ClientStatement)>>,
    /// A statement that may drop prepared statements is perhaps still outstanding.
    pub(super) deallocating: bool,
    /// Names with a dot that the client may have set.
    pub(super) custom_settings: BTreeSet<String>,
    /// The settings of the startup message: what RESET goes back to.
    pub(super) startup_settings: Arc<Settings>,
    /// Which servers the next statement may go to.
    pub(super) route: Route,
    /// What the client has chosen by routing commands.
    pub(super) choice: SharedChoice,
    /// How often no server connection could be had.
    checkout_failures: u64,
    /// A connection taken from the pool whose settings are to be changed with care.
    pub(super) checked_out: Option<Box<Server>>,
    /// The client said Terminate.
    terminated: bool,
    /// A command that may write has completed in the current transaction.
    pub(super) wrote: bool,
    /// What replicas must have before they serve this client.
    pub(super) own_writes: OwnWrites,
    /// The server's last words were FATAL, and the client has them.
    pub(super) told_fatal: bool,
    /// A plugin or the pooler is using the server connection: it is not to be given back.
    pub(super) hold: bool,
    /// A message of the client's batch has gone to the server since the last Sync.
    pub(super) batch_reached_server: bool,
    /// The client is in this process: no plugin looks at its statements.
    pub(super) internal: bool,
    /// What the client listens to, in transaction mode; `None` until its first LISTEN.
    pub(super) subscriptions: Option<Arc<Subscriptions>>,
}

/// The rest of a message that is passed on as it arrives.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Body {
    pub left: usize,
    pub discard: bool,
}

/// What a client's statement name stands for.
pub(super) enum ClientStatement {
    Handled(Arc<dyn Statement>),
    Prepared {
        statement: Arc<PreparedStatement>,
        traits: Traits,
        /// The version of [`crate::pool::stateful`] that they are of.
        known: u64,
    },
}

/// The client's unnamed statement.
pub(super) struct Unnamed {
    pub statement: UnnamedStatement,
    /// Of its text.
    pub traits: Traits,
    /// The version of [`crate::pool::stateful`] that they are of.
    pub known: u64,
    /// Its number among the client's, to tell whether a server has the current one.
    pub version: u64,
    /// The last number given.
    pub last: u64,
}

impl Unnamed {
    /// What came after the given one has not come to be.
    pub fn become_again(&mut self, before: Option<BeforeUnnamed>) {
        let mut rest = None;
        if let Some(before) = before {
            self.version = before.version;
            self.traits = before.traits;
            self.known = before.known;
            rest = before.rest;
        }
        self.statement = rest.map_or(UnnamedStatement::None, UnnamedStatement::Text);
    }
}

pub(super) enum UnnamedStatement {
    Handled(Arc<dyn Statement>),
    None,
    /// The Parse body after the name. The buffer is reused.
    Text(Vec<u8>),
}

/// Why the relay stopped.
pub(super) enum Event {
    /// The client closed its connection.
    Closed,
    /// Execute of a statement that a plugin answers.
    Execute {
        portal: Box<[u8]>,
    },
    /// An extended message is refused, as if the server had.
    FailBatch(Box<ErrorFields>),
    /// The client left a transaction idle for too long.
    IdleInTransaction,
    /// The next message needs a server connection, and none was at hand.
    NeedServer,
    /// The next message needs a statement that the server does not have.
    Provide {
        /// The client's.
        name: Box<[u8]>,
        /// The message is a Describe.
        described: bool,
    },
    /// A Query with a statement that a plugin answers.
    Query(Vec<Piece>),
    /// The next message breaks the protocol.
    Refused(Box<ErrorFields>),
    /// The next message depends on replies that are still to come.
    Settle,
    Shutdown,
    /// The client said Terminate: what it sent before is still to be done.
    Terminated,
}

impl Session {
    pub fn new(
        thread: Rc<ThreadContext>,
        pool: Rc<LocalPool>,
        registration: Registration,
        io: Io,
        settings: Settings,
        input: Vec<u8>,
    ) -> Self {
        let settings = Arc::new(settings);
        let internal = !io.is_external();
        if !internal {
            let timeouts = pool.shared.user.timeouts;
            registration.handle.timeouts.set(Some(timeouts));
        }
        let choice = Choice::default();
        let route = if internal {
            Route::primary_of(&pool.shared.settings)
        } else {
            choice.route(&pool.shared.settings)
        };
        Self {
            thread,
            pool,
            registration,
            io,
            input_ready: !input.is_empty(),
            input,
            input_wanted: 0,
            client_body: Body::default(),
            out: OutBuffer::default(),
            server: None,
            server_body: Body::default(),
            settings: settings.clone(),
            startup_settings: settings,
            custom_settings: BTreeSet::new(),
            route,
            choice: Arc::new(Mutex::new(choice)),
            checkout_failures: 0,
            checked_out: None,
            terminated: false,
            statements: Names::default(),
            unnamed: Unnamed {
                statement: UnnamedStatement::None,
                traits: Traits::default(),
                known: 0,
                version: 0,
                last: 0,
            },
            portals: Names::default(),
            settings_changed: false,
            deallocating: false,
            dropped: Vec::new(),
            captured: Settings::default(),
            patience: Patience::default(),
            wrote: false,
            own_writes: OwnWrites::default(),
            told_fatal: false,
            hold: false,
            batch_reached_server: false,
            internal,
            subscriptions: None,
        }
    }

    /// Serves the client until it leaves. All it does rarely is boxed: what a future may need at some time it has room for all
    /// the time, in every idle client.
    ///
    /// # Errors
    /// Why the session had to end; the client has been told where that was possible.
    pub async fn run(&mut self) -> Result<(), Error> {
        let outcome = self.serve().await;
        if let Err(error) = &outcome {
            Box::pin(self.say_goodbye(error)).await;
        }
        self.leave_server();
        outcome
    }

    async fn serve(&mut self) -> Result<(), Error> {
        loop {
            match poll_fn(|cx| self.poll_relay(cx, true)).await? {
                Event::Closed => return Ok(()),
                Event::Terminated => {
                    self.terminated = true;
                    return Ok(());
                }
                Event::Execute { portal } => {
                    let work = async |session: &mut Self| session.execute_handled(&portal).await;
                    Box::pin(self.attended(work)).await?;
                }
                Event::FailBatch(error) => {
                    let work = async |session: &mut Self| session.fail_batch(*error).await;
                    Box::pin(self.attended(work)).await?;
                }
                Event::IdleInTransaction => {
                    let work = async |session: &mut Self| session.idle_in_transaction().await;
                    Box::pin(self.attended(work)).await?;
                }
                Event::NeedServer => match Box::pin(self.checkout()).await {
                    Ok(server) if server.settings.is_certain(&self.settings) => {
                        self.attach(server);
                    }
                    Ok(server) => {
                        let work = async |session: &mut Self| session.attach_safely(server).await;
                        Box::pin(self.attended(work)).await?;
                    }
                    Err(error @ (Error::Client(_) | Error::Refused(_))) => return Err(error),
                    Err(error) => Box::pin(self.no_server(&error)).await?,
                },
                Event::Provide { name, described } => {
                    let work = async |session: &mut Self| session.provide(&name, described).await;
                    Box::pin(self.attended(work)).await?;
                }
                Event::Query(pieces) => {
                    let work = async |session: &mut Self| session.query_handled(pieces).await;
                    Box::pin(self.attended(work)).await?;
                }
                Event::Refused(fields) => {
                    Box::pin(self.answer_the_rest()).await?;
                    return Err(Error::Refused(fields));
                }
                Event::Settle => {
                    let work = async |session: &mut Self| session.settle().await;
                    Box::pin(self.attended(work)).await?;
                }
                Event::Shutdown => return Err(Error::Refused(Box::new(shutting_down()))),
            }
            self.check_failures()?;
        }
    }

    /// Gives the client the answers to what it sent before a message that ends its session, as the
    /// server would; but such a client does not hold a server connection for long.
    async fn answer_the_rest(&mut self) -> Result<(), Error> {
        self.ask_for_replies();
        let answered = poll_fn(|cx| {
            let drained = self.poll_drain(cx);
            match &self.server {
                // It waits for data that will not come.
                Some(server) if server.ledger.is_copying_in() => Poll::Ready(Ok(())),
                _ => drained,
            }
        });
        timeout(LAST_WORK, answered).await.unwrap_or(Ok(()))
    }

    /// Does something with the server connection that does not read from the client, as long as the client is there: a
    /// server may be long in answering.
    async fn attended(
        &mut self,
        work: impl AsyncFnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let peer = self.io.peer();
        let handle = self.registration.handle.clone();
        let mut work = pin!(work(self));
        loop {
            match timeout(LAST_WORK, work.as_mut()).await {
                Ok(outcome) => return outcome,
                // The wait for a connection looks by itself.
                Err(_) if handle.waiting_since.get().is_none() && peer.has_left() => {
                    return Err(Error::Client(io::ErrorKind::UnexpectedEof.into()));
                }
                Err(_) => {}
            }
        }
    }

    /// The connection taken already, or one from the pool.
    pub(super) async fn checkout(&mut self) -> Result<Box<Server>, Error> {
        match self.checked_out.take() {
            Some(server) => Ok(server),
            None => loop {
                let began = self.thread.clock.now();
                let handle = self.registration.handle.clone();
                let route = self.own_writes.bind(self.route);
                handle.waiting_since.set(Some(began));
                let outcome = tokio::select! {
                    // A connection that has been granted is not thrown away.
                    biased;
                    outcome = self.pool.checkout(&self.thread, route) => outcome,
                    () = handle.killing.notified() => {
                        Err(Error::Refused(Box::new(shutting_down())))
                    }
                    // Clients that give up and come back would else wait behind what nobody waits for any more.
                    () = departure(&mut self.io, &mut self.input), if !self.internal => {
                        Err(Error::Client(io::ErrorKind::UnexpectedEof.into()))
                    }
                };
                self.input_ready = !self.input.is_empty();
                handle.waiting_since.set(None);
                if matches!(outcome, Err(Error::Retired)) {
                    self.change_pool()?;
                    continue;
                }
                self.checkout_failures += u64::from(outcome.is_err());
                if let Ok(server) = &outcome {
                    let waited = self.thread.clock.now() - began;
                    server.address().statistics.waited(waited);
                }
                break outcome;
            },
        }
    }

    /// Goes over to the pool that a reload has put in the place of the session's.
    fn change_pool(&mut self) -> Result<(), Error> {
        let identity = &self.pool.shared.identity;
        let Some(pool) = self.thread.pool_of(identity) else {
            return Err(Error::Refused(Box::new(ErrorFields::fatal(
                "58000",
                format!(
                    "No pool configured for database: {}, user: {}",
                    identity.database, identity.user
                ),
            ))));
        };
        self.pool = pool;
        self.own_writes.follow(&self.pool.shared.settings);
        self.follow_choice();
        Ok(())
    }

    /// Ends a session that has failed to get a server connection too often, for its client to try
    /// another pooler.
    fn check_failures(&self) -> Result<(), Error> {
        let failures = self.checkout_failures;
        match self.pool.shared.settings.checkout_failure_limit {
            Some(limit) if failures >= limit => Err(Error::Refused(Box::new(ErrorFields::fatal(
                "58000",
                format!("checkout failure limit reached ({failures} / {limit})"),
            )))),
            _ => Ok(()),
        }
    }

    /// Like [`Session::attach`], but settings that the server may refuse are set, and found to be,
    /// before anything of the client's is sent: its statement must not run under others.
    pub(super) async fn attach_safely(&mut self, mut server: Box<Server>) -> Result<(), Error> {
        if !server.settings.is_certain(&self.settings) {
            let sql = server.settings.transition(&self.settings);
            match server.simple_query(&sql, &mut Vec::new()).await {
                Ok(_) => {
                    server.unnamed = None;
                    server.settings = self.settings.clone();
                }
                Err(Error::ServerRefused(mut fields)) => {
                    server.dirty = true;
                    self.pool.release(&self.thread, server);
                    fields.severity = Severity::Fatal;
                    return Err(Error::Refused(fields));
                }
                Err(error) => {
                    self.pool.close(server);
                    return Err(error);
                }
            }
        }
        self.attach(server);
        Ok(())
    }

    /// Takes a server connection into use. Where its session settings differ from the client's, the
    /// difference is sent along with the client's first message, and its replies are swallowed.
    pub(super) fn attach(&mut self, mut server: Box<Server>) {
        if let Io::Mirrored(stream) = &server.io {
            let interner = &self.thread.pooler.interner;
            if stream.follow(&server.settings, interner, |id| {
                server.statements.contains(id)
            }) {
                // It is not among what a mirror has been given.
                server.unnamed = None;
            }
        }
        if !Arc::ptr_eq(&server.settings, &self.settings) {
            if *server.settings == *self.settings {
                // Of two copies the one at the lower address, so that before long all equal sessions
                // and servers share one, and are seen to be equal at a glance.
                if Arc::as_ptr(&server.settings) < Arc::as_ptr(&self.settings) {
                    self.settings = server.settings.clone();
                }
            } else {
                let sql = server.settings.transition(&self.settings);
                server
                    .ledger
                    .push(Request::Query, Fate::Swallow, Undo::Nothing);
                message::query(server.out.tail(), &sql);
                // A simple Query destroys the unnamed statement.
                server.unnamed = None;
            }
            server.settings = self.settings.clone();
        }
        *self.registration.handle.server.borrow_mut() = Some(server.key.clone());
        server.connection().assigned(self.registration.id);
        self.server_body = Body::default();
        self.told_fatal = false;
        self.server = Some(server);
    }

    /// A request, or a part of one, has gone to the server.
    pub(super) fn count_request(&mut self) {
        let handle = &self.registration.handle;
        if handle.query_began.get() == 0 {
            let now = self.thread.clock.now();
            handle.query_began.set(now);
            handle.requested.set(now);
            if handle.transaction_began.get() == 0 {
                handle.transaction_began.set(now);
            }
        }
    }

    /// The client is told that its request has been answered.
    pub(super) fn count_ready(&mut self) {
        let Some(server) = &self.server else {
            return;
        };
        let now = self.thread.clock.now();
        let pipelined = server.ledger.is_waiting();
        let handle = &self.registration.handle;
        let began = handle.query_began.replace(if pipelined { now } else { 0 });
        handle.active.set(now);
        handle.cancelled.set(false);
        let connection = server.connection();
        connection.query_ended(since(began, now));
        let ended = server.status == TransactionStatus::Idle;
        if ended {
            let began = handle
                .transaction_began
                .replace(if pipelined { now } else { 0 });
            connection.transaction_ended(since(began, now));
        }
        handle.count(|counters| {
            counters.queries += 1;
            counters.transactions += u64::from(ended);
        });
    }

    /// What the client listens to.
    pub(super) fn subscriptions(&mut self) -> Arc<Subscriptions> {
        let subscriptions = self.subscriptions.get_or_insert_with(|| {
            let shared = &self.pool.shared;
            let subscriber = Subscriber {
                thread: self.thread.index,
                session: self.registration.id,
            };
            let hub = shared.notifications.commands(&self.thread, shared);
            Arc::new(Subscriptions::new(subscriber, hub))
        });
        subscriptions.clone()
    }

    /// A transaction has ended: now it is certain what the client listens to.
    pub(super) fn settle_subscriptions(&self) {
        if let Some(subscriptions) = &self.subscriptions {
            subscriptions.transaction_ended();
        }
    }

    /// Gives the client its notifications, if it is between transactions, as PostgreSQL does.
    ///
    /// # Errors
    /// Notifications are lost; the client is told so as its session ends.
    pub(super) fn hand_over_notifications(&mut self) -> Result<(), Error> {
        let between = self.server_body.left == 0
            && self.server.as_ref().is_none_or(|server| {
                server.status == TransactionStatus::Idle
                    && server.ledger.is_empty()
                    && !server.unsynced
            });
        match &self.subscriptions {
            Some(subscriptions) if between => {
                let inbox = &self.registration.handle.inbox;
                let taken = inbox.take(subscriptions, self.out.tail());
                taken.map_err(Error::Refused)
            }
            _ => Ok(()),
        }
    }

    /// Lets go of the server connection.
    pub(super) fn detach(&mut self) -> Option<Box<Server>> {
        let handle = &self.registration.handle;
        *handle.server.borrow_mut() = None;
        handle.idle_in_transaction.set(None);
        handle.prepared_statements.set(self.statements.len());
        handle.query_began.set(0);
        handle.transaction_began.set(0);
        handle.cancelled.set(false);
        let server = self.server.take()?;
        server.connection().returned(server.statements.len());
        Some(server)
    }

    /// Gives the server connection back if the transaction is over. In session mode it stays.
    pub(super) fn release_if_idle(&mut self) {
        let idle = self.is_pooled()
            && !self.hold
            && self.client_body.left == 0
            && !self.settings_changed
            && !self.own_writes.is_asked()
            && self
                .server
                .as_ref()
                .is_some_and(|server| server.is_reusable());
        if idle && let Some(server) = self.detach() {
            self.pool.release(&self.thread, server);
        }
    }

    /// The client is gone or will be: the server connection must not be left as it is.
    fn leave_server(&mut self) {
        if let Some(unused) = self.checked_out.take() {
            self.pool.release(&self.thread, unused);
        }
        let session_mode = self.pool.shared.user.pool_mode == PoolMode::Session;
        let Some(mut server) = self.detach() else {
            return;
        };
        let (pool, thread) = (self.pool.clone(), self.thread.clone());
        server.dirty |= session_mode || self.settings_changed;
        // What comes next would be the rest of the message to the server. It may owe nothing for it: data of a COPY goes
        // to the server at any time, and where there is no COPY gets no reply.
        let half_sent = self.client_body.left > 0;
        if server.is_reusable() && !half_sent {
            return pool.release(&thread, server);
        }
        let quiet = server.ledger.is_empty()
            && !server.ledger.is_ambiguous()
            && !server.unsynced
            && !server.unaccounted
            && self.server_body.left == 0
            && !half_sent
            && server.input.is_empty()
            && server.out.is_empty();
        // Nobody will read what is still to be told.
        let told = server.ledger.is_only(Fate::Position) && server.out.is_empty();
        let unfinished = half_sent || server.ledger.is_copying_in();
        let uncertain = server.unsynced || server.unaccounted || server.ledger.is_ambiguous();
        if !quiet && (!(self.terminated || told) || unfinished || uncertain) {
            // Something is running, or half a message has been sent. A running statement is
            // cancelled, so that it does not go on for nobody; a COPY is aborted by the close.
            if (server.ledger.is_waiting() || server.unaccounted) && !server.key.secret.is_empty() {
                let key = server.key.clone();
                key.cancels.fetch_add(1, Ordering::SeqCst);
                let dialler = thread.pooler.dialler();
                tokio::task::spawn_local(async move { key.cancel(&dialler).await });
            }
            return pool.close(server);
        }
        let body = self.server_body.left;
        tokio::task::spawn_local(async move {
            // What the client sent before its Terminate is done, as by a server of its own; then a
            // transaction that it left open is rolled back.
            let mut ignored = Vec::new();
            let finish = async {
                server.drain(body).await?;
                if server.status != TransactionStatus::Idle {
                    server.simple_query("ROLLBACK", &mut ignored).await?;
                }
                Ok::<_, Error>(())
            };
            // What takes longer the server ends by itself, as it does for a client of its own.
            match timeout(LAST_WORK, finish).await {
                Ok(Ok(())) => pool.release(&thread, server),
                _ => pool.close(server),
            }
        });
    }

    /// No server connection could be had. The client is told, and lives: its request is answered as
    /// if the server had failed it.
    async fn no_server(&mut self, error: &Error) -> Result<(), Error> {
        let fields = self.no_server_error(error);
        self.answer_without_server(&fields).await
    }

    /// What the client is told where no server connection could be had.
    pub(super) fn no_server_error(&self, error: &Error) -> ErrorFields {
        if let Some(fields) = Self::invalid_shard(error) {
            return fields;
        }
        let fields = ErrorFields::error(
            "58000",
            "could not get connection from the pool - AllServersDown",
        );
        match error {
            Error::Timeout => fields.detail(format!(
                "No server connection was available within {} ms.",
                self.pool.shared.user.connect_timeout.as_millis()
            )),
            Error::ServerRefused(reason) => fields.detail(format!("The server said: {reason}")),
            other => fields.detail(other.to_string()),
        }
    }

    /// Sends everything that waits for the client.
    pub(super) async fn flush_client(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.out.poll_flush(&mut self.io, cx))
            .await
            .map_err(Error::Client)
    }

    /// The last words to a client whose session ends.
    async fn say_goodbye(&mut self, error: &Error) {
        let fields = match error {
            // It is gone, or it has heard it from the server itself.
            Error::Client(_) => return,
            _ if self.told_fatal => return,
            Error::Refused(fields) => (**fields).clone(),
            other => ErrorFields::fatal(
                "58000",
                format!("error receiving data from server: {other}"),
            ),
        };
        if self.server_body.left > 0 {
            // In the middle of a message nothing can be said.
            return;
        }
        fields.write(self.out.tail());
        let flush = tokio::time::timeout(std::time::Duration::from_secs(5), self.flush_client());
        // It may well be gone, too.
        let _ = flush.await;
    }

    /// Takes the transaction from a client that left it idle: rolled back, the connection given back,
    /// the client told. It may go on.
    async fn idle_in_transaction(&mut self) -> Result<(), Error> {
        self.registration.handle.idle_in_transaction.set(None);
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        if server.status == TransactionStatus::Idle || !server.ledger.is_empty() {
            return Ok(());
        }
        server.simple_query("ROLLBACK", &mut Vec::new()).await?;
        // PgCat's words, PostgreSQL's code.
        ErrorFields::error("25P03", "idle transaction timeout").write(self.out.tail());
        message::ready_for_query(self.out.tail(), TransactionStatus::Idle);
        self.release_if_idle();
        self.flush_client().await
    }
}

/// Ends when the client is gone without a Terminate: what it sent before one is still to be done. What it sends meanwhile goes
/// to `input`, up to a limit.
async fn departure(io: &mut Io, input: &mut Vec<u8>) {
    poll_fn(|cx| {
        while input.len() < KEEP_CAPACITY {
            match ready!(io.poll_read_into(cx, input)) {
                Ok(n) if n > 0 => {}
                _ => return Poll::Ready(()),
            }
        }
        Poll::Pending
    })
    .await;
    if input.ends_with(TERMINATE) {
        pending().await
    }
}

/// Time since `began`, where 0 stands for "it has not".
fn since(began: u64, now: u64) -> u64 {
    if began == 0 {
        0
    } else {
        now.saturating_sub(began)
    }
}

/// What clients hear when the pooler shuts down.
pub fn shutting_down() -> ErrorFields {
    ErrorFields::fatal(
        "57P01",
        "terminating connection due to administrator command",
    )
}
