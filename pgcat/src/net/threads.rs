//! The threads: each a current-thread runtime with its own clients and its own idle server
//! connections, and a mailbox for the little that concerns another thread.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};

use super::client;
use super::clock::{Clock, Woken};
use super::dial::Dialler;
use super::dns;
use super::io::{DetachedIo, TcpOptions};
use super::notify::Broken;
use super::orders::Order;
use super::registration::{Kind, SessionHandle, Who};
use super::reload::Fixed;
use super::takeover::Predecessors;
use crate::admin::state::ClientState;
use crate::config::model::{Config, Timeouts};
use crate::error::Error;
use crate::plugins::{Plugin, PoolIdentity};
use crate::pool::limits::{Count, Tallies};
use crate::pool::local::LocalPool;
use crate::pool::shared::PoolShared;
use crate::pool::statistics::{self, Ids};
use crate::session::auth::hba::Hba;
use crate::session::prepared::Interner;
use crate::tls::Tls;

/// What all threads share.
pub struct Pooler {
    config: RwLock<Arc<Config>>,
    pools: RwLock<Arc<Vec<Arc<PoolShared>>>>,
    /// Held by whoever changes them.
    pub(super) changing_pools: tokio::sync::Mutex<()>,
    pub plugins: Vec<Arc<dyn Plugin>>,
    pub threads: Vec<ThreadHandle>,
    pub interner: Interner,
    /// Replaced by a reload; looked at when a connection begins.
    tls: RwLock<Tls>,
    hba: RwLock<Option<Arc<Hba>>>,
    /// Clients that are logging in.
    pub(crate) logins: AtomicUsize,
    /// Makes up the secrets of users that do not exist, alike from login to login.
    pub(crate) mock_key: [u8; 32],
    /// Where coarse time begins, for all threads.
    began: Instant,
    /// The same moment by the calendar.
    began_at: SystemTime,
    /// Where clients connect to.
    pub listen: SocketAddr,
    /// For connections and sessions.
    pub ids: Ids,
    tallies: Arc<Tallies>,
    /// Clients that are counted for `max_client_conn`.
    pub(super) seats: Arc<Count>,
    /// To the thread that listens.
    pub orders: mpsc::UnboundedSender<Order>,
    /// Which session a cancel key belongs to.
    cancel_keys: Mutex<HashMap<CancelKey, (usize, u64)>>,
    /// The processes whose sockets this one has taken over.
    pub(super) predecessors: Predecessors,
    /// Clients that have logged in, the in-process ones not counted.
    pub(super) clients: AtomicUsize,
    /// Connections that have been accepted, and are no clients yet.
    newcomers: AtomicUsize,
    /// New clients are told that the pooler shuts down.
    refuses: AtomicBool,
}

/// The pid and secret the pooler gives a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CancelKey {
    pub pid: u32,
    pub secret: u32,
}

/// Something to be done on a thread.
type Work = Box<dyn FnOnce(&Rc<ThreadContext>) + Send>;

/// What one thread asks of another.
enum Mail {
    /// A connection that has just been accepted.
    Accepted(DetachedIo, Arrival),
    /// Cancel what the session runs; `done` is dropped when the request has been delivered.
    Cancel {
        session: u64,
        done: oneshot::Sender<()>,
    },
    /// An in-process client of a pool.
    Internal {
        io: DetachedIo,
        pool: usize,
    },
    /// The connection that listened for these sessions is lost.
    ListenerLost(Vec<u64>),
    /// A notification for these sessions.
    Notify {
        sessions: Vec<u64>,
        channel: Box<str>,
        message: Arc<[u8]>,
    },
    ServeWaiters {
        pool: usize,
        address: usize,
    },
    /// Do this on the thread.
    Run(Work),
    /// End sessions as they become idle.
    Shutdown,
    /// End now.
    Stop,
}

/// A thread as seen from the others.
pub struct ThreadHandle {
    mail: mpsc::UnboundedSender<Mail>,
    /// Sessions on the thread.
    load: AtomicUsize,
}

/// A thread as seen from its own tasks.
pub struct ThreadContext {
    pub index: usize,
    pub pooler: Arc<Pooler>,
    pools: RefCell<Vec<Rc<LocalPool>>>,
    config: RefCell<Arc<Config>>,
    /// Reads land here; only what is left over is copied into a connection's own buffer.
    pub scratch: RefCell<Box<[u8]>>,
    pub(super) sessions: RefCell<HashMap<u64, Rc<SessionHandle>>>,
    /// Milliseconds since the pooler began, to about [`TICK`]: reading the clock costs more than a
    /// transaction can afford.
    pub now: Cell<u64>,
    /// Finer, for statistics.
    pub clock: Clock,
    pub shutting_down: Cell<bool>,
}

/// Precision of coarse time, and how often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often idle server connections are looked at, in ticks.
const TEND_EVERY: u64 = 10;
/// The same of the periods of statistics.
const PERIOD: u64 = (statistics::PERIOD.as_millis() / TICK.as_millis()) as u64;
/// Size of the buffer that a thread reads into.
pub const SCRATCH: usize = 64 * 1024;

impl ThreadHandle {
    /// Asks the thread to give its idle connections to a server of a pool to those who wait.
    pub fn serve_waiters(&self, pool: usize, address: usize) {
        self.send(Mail::ServeWaiters { pool, address });
    }

    /// Gives sessions of the thread a notification, framed.
    pub(super) fn notify(&self, sessions: Vec<u64>, channel: Box<str>, message: Arc<[u8]>) {
        self.send(Mail::Notify {
            sessions,
            channel,
            message,
        });
    }

    /// Tells sessions of the thread that they may have missed notifications.
    pub(super) fn listener_lost(&self, sessions: Vec<u64>) {
        self.send(Mail::ListenerLost(sessions));
    }

    fn send(&self, mail: Mail) {
        // A thread that has ended has nothing to do any more.
        let _ = self.mail.send(mail);
    }
}

impl Pooler {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Start`] if the operating system refuses a thread.
    pub fn start(
        config: Config,
        pools: Vec<Arc<PoolShared>>,
        plugins: Vec<Arc<dyn Plugin>>,
        listen: SocketAddr,
        fixed: Fixed,
        orders: mpsc::UnboundedSender<Order>,
        predecessors: Predecessors,
    ) -> Result<(Arc<Self>, Vec<std::thread::JoinHandle<()>>), Error> {
        let (threads, mailboxes): (Vec<_>, Vec<_>) = (0..fixed.threads)
            .map(|_| {
                let (mail, mailbox) = mpsc::unbounded_channel();
                (
                    ThreadHandle {
                        mail,
                        load: AtomicUsize::new(0),
                    },
                    mailbox,
                )
            })
            .unzip();
        let Files { tls, hba } = Self::load_files(&config).map_err(Error::Start)?;
        let pooler = Arc::new(Self {
            config: RwLock::new(Arc::new(config)),
            pools: RwLock::new(Arc::new(pools)),
            changing_pools: tokio::sync::Mutex::default(),
            plugins,
            threads,
            interner: Interner::default(),
            tls: RwLock::new(tls),
            hba: RwLock::new(hba),
            logins: AtomicUsize::new(0),
            mock_key: rand::random(),
            began: Instant::now(),
            began_at: SystemTime::now(),
            listen,
            ids: fixed.ids,
            tallies: fixed.tallies,
            seats: Arc::default(),
            orders,
            cancel_keys: Mutex::default(),
            predecessors,
            clients: AtomicUsize::new(0),
            newcomers: AtomicUsize::new(0),
            refuses: AtomicBool::new(false),
        });
        let mut handles = Vec::new();
        for (index, mailbox) in mailboxes.into_iter().enumerate() {
            let pooler = pooler.clone();
            let handle = std::thread::Builder::new()
                .name(format!("pgcat-{index}"))
                .spawn(move || run_thread(index, pooler, mailbox))
                .map_err(|error| Error::Start(format!("could not start a thread: {error}")))?;
            handles.push(handle);
        }
        Ok((pooler, handles))
    }

    /// Gives an accepted connection to the thread with the fewest sessions.
    pub fn accepted(self: &Arc<Self>, io: DetachedIo) {
        self.newcomers.fetch_add(1, Ordering::SeqCst);
        let arrival = Arrival(self.clone());
        self.least_loaded().send(Mail::Accepted(io, arrival));
    }

    /// Begins an in-process session of a pool.
    pub fn internal(&self, io: DetachedIo, pool: &Arc<PoolShared>) {
        let mut index = pool.index;
        if pool.is_retired() {
            let pools = self.pools();
            let Some(successor) = pools.iter().find(|other| other.is_successor_of(pool)) else {
                // Its other end finds the connection closed.
                return;
            };
            index = successor.index;
        }
        self.least_loaded().send(Mail::Internal { io, pool: index });
    }

    fn least_loaded(&self) -> &ThreadHandle {
        let least = self
            .threads
            .iter()
            .min_by_key(|thread| thread.load.load(Ordering::Relaxed));
        let Some(thread) = least else {
            unreachable!("worker_threads is at least 1")
        };
        // Counted here, so that connections accepted in one go spread.
        thread.load.fetch_add(1, Ordering::Relaxed);
        thread
    }

    /// Lets no new clients in. They can still cancel, and administrators may look.
    pub fn refuse(&self) {
        self.refuses.store(true, Ordering::SeqCst);
    }

    /// Whether new clients are refused.
    pub fn refuses(&self) -> bool {
        self.refuses.load(Ordering::SeqCst)
    }

    /// Tells all sessions to end as they become idle, and lets no new ones in.
    pub fn shutdown(&self) {
        self.refuse();
        self.threads
            .iter()
            .for_each(|thread| thread.send(Mail::Shutdown));
    }

    /// Ends the threads, whatever they do.
    pub fn stop(&self) {
        self.threads
            .iter()
            .for_each(|thread| thread.send(Mail::Stop));
    }

    /// How servers are reached now.
    pub(crate) fn dialler(&self) -> Dialler {
        Dialler {
            tcp: TcpOptions::new(&self.config().general),
            tls: self.tls(),
        }
    }

    /// What TLS sessions begin with now.
    pub fn tls(&self) -> Tls {
        self.tls
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The rules for logins, if they are in a file.
    pub(crate) fn hba(&self) -> Option<Arc<Hba>> {
        self.hba
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads the files that a configuration names: certificates, keys, CAs, and the rules for logins.
    ///
    /// # Errors
    /// What is wrong with them, with line and key.
    pub(super) fn load_files(config: &Config) -> Result<Files, String> {
        Ok(Files {
            tls: load_tls(config)?,
            hba: load_hba(config)?,
        })
    }

    /// What new connections begin with from now on.
    pub(super) fn set_files(&self, files: Files) {
        *self.hba.write().unwrap_or_else(PoisonError::into_inner) = files.hba;
        let tls = files.tls;
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        let config = self.config.read();
        config.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_config(&self, config: Arc<Config>) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// The pools, as they are now.
    pub fn pools(&self) -> Arc<Vec<Arc<PoolShared>>> {
        let pools = self.pools.read();
        pools.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_pools(&self, pools: Arc<Vec<Arc<PoolShared>>>) {
        *self.pools.write().unwrap_or_else(PoisonError::into_inner) = pools;
    }

    /// What no reload changes.
    pub(super) fn fixed(&self) -> Fixed {
        Fixed {
            threads: self.threads.len(),
            ids: self.ids.clone(),
            tallies: self.tallies.clone(),
        }
    }

    /// How many clients have logged in.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::SeqCst)
    }

    /// How many connections are on their way in.
    pub fn newcomers(&self) -> usize {
        self.newcomers.load(Ordering::SeqCst)
    }

    /// Cancels what the session with this key runs, here or in a process that has been taken over from,
    /// and returns when the server has been told.
    pub async fn cancel(&self, key: CancelKey) {
        if !self.cancel_own(key).await {
            self.predecessors.cancel(key).await;
        }
    }

    /// As [`Pooler::cancel`], of this process only; `false`: it did not give the key out.
    pub(super) async fn cancel_own(&self, key: CancelKey) -> bool {
        let Some((thread, session)) = self.keys().get(&key).copied() else {
            return false;
        };
        let (done, delivered) = oneshot::channel();
        self.threads[thread].send(Mail::Cancel { session, done });
        // Dropped, not sent: either way it is over.
        let _ = delivered.await;
        true
    }

    /// A new cancel key, of a session of this thread.
    pub(super) fn new_key(&self, thread: usize, session: u64) -> CancelKey {
        let mut keys = self.keys();
        let key = loop {
            // Positive, because pgjdbc ignores a negative pid.
            let key = CancelKey {
                pid: rand::random::<u32>() >> 1,
                secret: rand::random(),
            };
            if key.pid != 0 && !keys.contains_key(&key) {
                break key;
            }
        };
        keys.insert(key, (thread, session));
        key
    }

    pub(super) fn forget_key(&self, key: &CancelKey) {
        self.keys().remove(key);
    }

    /// Does something on every thread, and gathers what comes of it.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl Fn(&Rc<ThreadContext>) -> T + Clone + Send + 'static,
    ) -> Vec<T> {
        let mut pending = Vec::new();
        for thread in &self.threads {
            let (answer, answered) = oneshot::channel();
            let question = question.clone();
            thread.send(Mail::Run(Box::new(move |thread| {
                // Nobody may be listening any more.
                let _ = answer.send(question(thread));
            })));
            pending.push(answered);
        }
        let mut answers = Vec::new();
        for answered in pending {
            // A thread that has ended has nothing to say.
            answers.extend(answered.await.ok());
        }
        answers
    }

    /// The clients that have logged in, by number, and how many have not yet.
    pub async fn client_states(&self) -> (Vec<ClientState>, usize) {
        let connected: usize = self
            .threads
            .iter()
            .map(|thread| thread.load.load(Ordering::Relaxed))
            .sum();
        let answers = self.ask(|thread| thread.client_states()).await;
        let sessions: usize = answers.iter().map(|(_, sessions)| sessions).sum();
        let mut clients: Vec<_> = answers
            .into_iter()
            .flat_map(|(clients, _)| clients)
            .collect();
        clients.sort_by_key(|client| client.id);
        (clients, connected.saturating_sub(sessions))
    }

    fn begin_period(&self) {
        let now = Instant::now();
        let pools = self.pools();
        let addresses = pools.iter().flat_map(|pool| &pool.addresses);
        addresses.for_each(|address| address.statistics.begin_period(now));
    }

    /// Coarse milliseconds, as in [`ThreadContext::now`].
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, HashMap<CancelKey, (usize, u64)>> {
        self.cancel_keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Pooler::load_files`].
pub(super) struct Files {
    tls: Tls,
    hba: Option<Arc<Hba>>,
}

/// Reads the files that a configuration names, as a start does.
///
/// # Errors
/// [`Error::Start`]: the first one that is not as it should be.
pub fn check(config: &Config) -> Result<(), Error> {
    Pooler::load_files(config).map(drop).map_err(Error::Start)
}

fn load_hba(config: &Config) -> Result<Option<Arc<Hba>>, String> {
    let Some(path) = &config.general.hba_file else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let rules = Hba::parse(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(Some(Arc::new(rules)))
}

fn load_tls(config: &Config) -> Result<Tls, String> {
    Tls::load(&config.general).map_err(|error| {
        let line = crate::config::line_of(&config.path, &["general", error.key]);
        let line = line.map_or(String::new(), |line| format!(":{line}"));
        format!("{}{line}: {error}", config.path.display())
    })
}

/// Where a session comes from.
pub(super) enum Origin {
    Outside(Arrival),
    /// It is a plugin's, for the pool of this index.
    Inside(usize),
}

/// Counts a connection until it has logged in or gone.
pub(super) struct Arrival(Arc<Pooler>);

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.newcomers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection's share of its thread's load, counted when it was given to the thread.
struct Load<'a>(&'a ThreadContext);

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let thread = &self.0.pooler.threads[self.0.index];
        thread.load.fetch_sub(1, Ordering::Relaxed);
    }
}

fn run_thread(index: usize, pooler: Arc<Pooler>, mailbox: mpsc::UnboundedReceiver<Mail>) {
    let woken = Woken::default();
    let waking = woken.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_unpark(move || waking.set())
        .build_local(tokio::runtime::LocalOptions::default());
    match runtime {
        Ok(runtime) => runtime.block_on(serve(index, pooler, mailbox, woken)),
        Err(error) => log::error!("could not start the runtime of thread {index}: {error}"),
    }
}

async fn serve(
    index: usize,
    pooler: Arc<Pooler>,
    mut mailbox: mpsc::UnboundedReceiver<Mail>,
    woken: Woken,
) {
    let thread = Rc::new(ThreadContext {
        index,
        clock: Clock::new(pooler.began, woken),
        config: RefCell::new(pooler.config()),
        pooler,
        pools: RefCell::default(),
        scratch: RefCell::new(vec![0; SCRATCH].into()),
        sessions: RefCell::default(),
        now: Cell::new(0),
        shutting_down: Cell::new(false),
    });
    thread.adopt(thread.pooler.config(), &thread.pooler.pools());
    tokio::task::spawn_local(keep_time(thread.clone()));
    let dns_cache_enabled = thread.config().general.dns_cache_enabled;
    if index == 0 && dns_cache_enabled {
        tokio::task::spawn_local(dns::watch(thread.clone()));
    }
    while let Some(mail) = mailbox.recv().await {
        match mail {
            Mail::Accepted(io, arrival) => begin(&thread, io, Origin::Outside(arrival)),
            Mail::Internal { io, pool } => begin(&thread, io, Origin::Inside(pool)),
            Mail::ServeWaiters { pool, address } => {
                if let Some(pool) = thread.pool(pool) {
                    pool.serve_waiters(&thread, address);
                }
            }
            Mail::ListenerLost(sessions) => {
                thread.for_each(&sessions, |session| session.inbox.fail(Broken::Lost));
            }
            Mail::Notify {
                sessions,
                channel,
                message,
            } => thread.for_each(&sessions, |session| session.inbox.put(&channel, &message)),
            Mail::Cancel { session, done } => thread.cancel(session, done),
            Mail::Run(work) => work(&thread),
            Mail::Shutdown => thread.shut_down(),
            Mail::Stop => {
                thread
                    .pools
                    .borrow()
                    .iter()
                    .for_each(|pool| pool.close_idle(&thread));
                return;
            }
        }
    }
}

fn begin(thread: &Rc<ThreadContext>, io: DetachedIo, origin: Origin) {
    let thread = thread.clone();
    let admission = Box::pin({
        let thread = thread.clone();
        async move {
            match io.attach() {
                Ok(io) => client::admit(&thread, io, origin).await,
                Err(error) => {
                    log::warn!("a client's socket could not be used: {error}");
                    None
                }
            }
        }
    });
    tokio::task::spawn_local(async move {
        let _load = Load(&thread);
        let client = admission.await;
        if let Some(mut client) = client {
            client.serve().await;
        }
    });
}

/// Sets the coarse time, finds overdue sessions, and tends the idle connections.
async fn keep_time(thread: Rc<ThreadContext>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for tick in 0_u64.. {
        interval.tick().await;
        thread
            .now
            .set(thread.pooler.began.elapsed().as_millis() as u64);
        for pool in &*thread.pools.borrow() {
            pool.shared.expire(thread.now.get());
            if thread.index == 0 {
                pool.press_claims(&thread);
            }
        }
        thread.find_overdue();
        if thread.index == 0 && tick % PERIOD == 0 {
            thread.pooler.begin_period();
        }
        if tick % TEND_EVERY == 0 {
            let pools = thread.pools.borrow().clone();
            pools.iter().for_each(|pool| pool.tend(&thread));
            let is_unused =
                |pool: &Rc<LocalPool>| pool.shared.of_other_user && pool.shared.is_unused();
            if thread.index == 0 && pools.iter().any(is_unused) {
                let pooler = thread.pooler.clone();
                tokio::task::spawn_local(async move { pooler.remove_unused_pools().await });
            }
        }
    }
}

impl ThreadContext {
    fn cancel(&self, session: u64, done: oneshot::Sender<()>) {
        let server = self
            .sessions
            .borrow()
            .get(&session)
            .and_then(|s| s.server.borrow().clone());
        let Some(server) = server.filter(|server| !server.secret.is_empty()) else {
            return;
        };
        server.cancels.fetch_add(1, Ordering::SeqCst);
        let dialler = self.pooler.dialler();
        tokio::task::spawn_local(async move {
            server.cancel(&dialler).await;
            drop(done);
        });
    }

    /// Ends sessions as they become idle. Those that wait for a RESUME would wait for ever.
    fn shut_down(&self) {
        self.shutting_down.set(true);
        for session in self.sessions.borrow().values() {
            let paused = || {
                let pool = self.pool_of(&session.who.identity);
                pool.is_some_and(|pool| pool.shared.gate.is_shut())
            };
            if session.waiting_since.get().is_some() && paused() {
                session.kill();
            } else {
                session.wake();
            }
        }
    }

    /// The thread's part of a pool.
    pub fn pool(&self, index: usize) -> Option<Rc<LocalPool>> {
        let pools = self.pools.borrow();
        pools
            .iter()
            .find(|pool| pool.shared.index == index)
            .cloned()
    }

    /// The thread's part of the present pool of a user.
    pub fn pool_of(&self, identity: &PoolIdentity) -> Option<Rc<LocalPool>> {
        let pools = self.pools.borrow();
        let mut present = pools.iter().filter(|pool| !pool.shared.is_retired());
        present
            .find(|pool| !pool.shared.asks_auth_query && *pool.shared.identity == *identity)
            .cloned()
    }

    /// The thread's part of the pool that asks the `auth_query` of a database.
    pub fn asking_pool(&self, database: &str) -> Option<Rc<LocalPool>> {
        let pools = self.pools.borrow();
        let mut present = pools.iter().filter(|pool| !pool.shared.is_retired());
        present
            .find(|pool| pool.shared.asks_auth_query && pool.shared.identity.database == database)
            .cloned()
    }

    /// The configuration in force.
    pub fn config(&self) -> Ref<'_, Config> {
        Ref::map(self.config.borrow(), |config| &**config)
    }

    /// Has these pools from now on, and no others.
    pub fn adopt(self: &Rc<Self>, config: Arc<Config>, pools: &[Arc<PoolShared>]) {
        let mut before = self.pools.take();
        let mut new = Vec::new();
        let mut after = Vec::new();
        for shared in pools {
            let known = before
                .iter()
                .position(|pool| Arc::ptr_eq(&pool.shared, shared));
            after.push(match known {
                Some(known) => before.swap_remove(known),
                None => {
                    let pool = Rc::new(LocalPool::new(shared.clone(), self.plugins_of(shared)));
                    new.push(pool.clone());
                    pool
                }
            });
        }
        let validates = self.index == 0 && config.general.validate_config;
        self.config.replace(config);
        self.pools.replace(after);
        self.follow_timeouts();
        before.iter().for_each(|pool| pool.close_idle(self));
        if validates {
            new.iter().for_each(|pool| pool.validate(self));
        }
    }

    fn plugins_of(&self, pool: &PoolShared) -> Vec<Arc<dyn Plugin>> {
        let enabled = |plugin: &&Arc<dyn Plugin>| {
            let table = pool.settings.plugins.get(plugin.name());
            table
                .and_then(|t| t.get("enabled"))
                .and_then(toml::Value::as_bool)
                == Some(true)
        };
        self.pooler
            .plugins
            .iter()
            .filter(enabled)
            .cloned()
            .collect()
    }

    /// Ends the sessions of clients that `choose` picks; says how many.
    pub fn kill(&self, choose: impl Fn(u64, &Who) -> bool) -> usize {
        let sessions = self.sessions.borrow();
        let chosen = sessions.iter().filter(|(id, session)| {
            session.who.kind != Kind::Internal && choose(**id, &session.who)
        });
        chosen.map(|(_, session)| session.kill()).count()
    }

    /// The clients of this thread, and how many sessions there are of any kind.
    fn client_states(&self) -> (Vec<ClientState>, usize) {
        let sessions = self.sessions.borrow();
        let now = self.clock.now();
        let clients = sessions
            .iter()
            .filter(|(_, session)| session.who.kind != Kind::Internal)
            .map(|(id, session)| session.state(*id, self.pooler.began_at, now));
        (clients.collect(), sessions.len())
    }

    /// Does something to sessions, and wakes them. Those that are gone are passed over.
    fn for_each(&self, sessions: &[u64], act: impl Fn(&SessionHandle)) {
        let known = self.sessions.borrow();
        for session in sessions.iter().filter_map(|id| known.get(id)) {
            act(session);
            session.wake();
        }
    }

    /// Wakes the sessions in which something takes too long.
    fn find_overdue(&self) {
        let pools = self.pools.borrow();
        let mut limits = pools.iter().map(|pool| pool.shared.user.timeouts);
        if limits.all(|limits| limits == Timeouts::default()) {
            return;
        }
        let now = self.clock.now();
        for session in self.sessions.borrow().values() {
            if session.overdue(now).is_some() {
                session.timed_out.set(true);
                session.wake();
            }
        }
    }

    /// Has sessions that are there follow the limits of time in their pools' configuration.
    fn follow_timeouts(&self) {
        for session in self.sessions.borrow().values() {
            if session.timeouts.get().is_some()
                && let Some(pool) = self.pool_of(&session.who.identity)
            {
                session.timeouts.set(Some(pool.shared.user.timeouts));
            }
        }
    }
}
