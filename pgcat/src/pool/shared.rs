//! What all threads know of a pool: its servers, and what is the same on all of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::activity::Activity;
use super::address::Address;
use super::functions::Functions;
use super::gate::Gate;
use super::limits::{Count, Tally};
use super::replay::History;
use super::slots::Slot;
use super::stateful::StatefulFunctions;
use super::statistics::Ids;
use crate::config::model::{PluginTables, Pool, Role, ServerAddress, Shard, User};
use crate::net::notify::Hub;
use crate::net::reload::Fixed;
use crate::net::server::Parameters;
use crate::plugins::PoolIdentity;
use crate::router::route::Route;
use crate::session::auth::{ScramKeys, ScramSecret, Secret};
use crate::session::settings::Settings;

/// A pool: one user of one database.
#[derive(Debug)]
pub struct PoolShared {
    /// Its number, unique in the process.
    pub index: usize,
    /// A reload has replaced or removed it.
    retired: AtomicBool,
    pub identity: Arc<PoolIdentity>,
    pub user: User,
    pub settings: Pool,
    /// The servers, in the order of shards and of servers in them.
    pub addresses: Box<[Address]>,
    pub ids: Ids,
    /// What is counted over all pools of the database, and over all of the user, with the limits of
    /// server connections.
    tallies: [(Arc<Tally>, Option<usize>); 2],
    /// What administrators have ordered.
    pub gate: Arc<Gate>,
    /// The functions that may write.
    pub functions: Functions,
    /// Those that leave something in the session.
    pub stateful: Arc<StatefulFunctions>,
    pub activity: Activity,
    /// What the primaries had written when, by shard.
    pub histories: Box<[History]>,
    /// Its servers are watched: see [`super::watch`].
    watched: AtomicBool,
    greetings: Mutex<Greetings>,
    /// Who listens to what, in transaction mode.
    pub notifications: Hub,
    /// What clients are verified with by SCRAM; made at the first login. `None`: not possible.
    pub scram_secret: OnceLock<Option<ScramSecret>>,
    /// What a client has proved itself with, where it is all the pool has to log in with.
    learned: Mutex<Option<Credentials>>,
    /// A pool for `auth_query`, which no client logs in to.
    pub asks_auth_query: bool,
    /// A pool of a user whom only `auth_query` knows: it is there as long as it is needed.
    pub of_other_user: bool,
    /// Clients that use it, those that log in included.
    pub sessions: Arc<Count>,
}

/// What the pool proves itself to servers with.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A password, or an md5 hash, which does for servers that ask for md5.
    Secret(Secret),
    Keys(ScramKeys),
}

/// What servers report to sessions; asked once, then known until a server says otherwise.
#[derive(Debug, Default)]
struct Greetings {
    /// By the settings of the startup message.
    known: Vec<(Settings, Parameters)>,
    /// What the last login has reported to the pooler.
    defaults: Parameters,
}

/// Distinct sets of startup settings whose greeting is remembered.
const GREETINGS: usize = 64;

impl PoolShared {
    pub fn new(
        identity: PoolIdentity,
        user: User,
        settings: Pool,
        fixed: &Fixed,
        predecessor: Option<&Self>,
    ) -> Self {
        let mut addresses = Address::all(&identity.database, &settings, &user, fixed.threads);
        for address in &mut addresses {
            let same =
                predecessor.and_then(|pool| pool.addresses.iter().find(|a| a.is_same(address)));
            if let Some(same) = same {
                address.succeed(same);
                // Until it has been looked at again.
                let lagging = settings.max_replica_lag.is_some() && same.replay.is_lagging();
                address.replay.note_lagging(lagging);
            }
            // Its connections are no user's, and count for nobody.
            let apart = Fixed {
                tallies: Arc::default(),
                ..fixed.clone()
            };
            address.mirrors = mirrors(address, &settings)
                .map(|mirror| {
                    let (identity, user) = (identity.clone(), user.clone());
                    Arc::new(Self::new(identity, user, mirror, &apart, None))
                })
                .collect();
        }
        // What clients have proved themselves with is good as long as the secrets are the same.
        let learned = predecessor
            .filter(|pool| {
                pool.user.password == user.password
                    && pool.user.server_password == user.server_password
            })
            .and_then(|pool| {
                let learned = pool.learned.lock();
                learned.unwrap_or_else(PoisonError::into_inner).clone()
            });
        let sessions = predecessor.map_or_else(Arc::default, |pool| pool.sessions.clone());
        // It is asked anew, but the first clients do not wait for that.
        let stateful = predecessor.map_or_else(Arc::default, |pool| pool.stateful.clone());
        stateful.looks.make_due();
        let histories = settings.shards.iter().map(|_| History::default()).collect();
        Self {
            index: fixed.ids.next() as usize,
            retired: AtomicBool::new(false),
            addresses,
            tallies: [
                (
                    fixed.tallies.database(&identity.database),
                    settings.max_db_connections,
                ),
                (
                    fixed.tallies.user(&identity.user),
                    user.max_user_connections,
                ),
            ],
            identity: Arc::new(identity),
            user,
            settings,
            ids: fixed.ids.clone(),
            gate: predecessor.map_or_else(Arc::default, |pool| pool.gate.clone()),
            functions: Functions::default(),
            stateful,
            activity: Activity::default(),
            histories,
            watched: AtomicBool::new(false),
            greetings: Mutex::default(),
            notifications: Hub::default(),
            scram_secret: OnceLock::new(),
            learned: Mutex::new(learned),
            asks_auth_query: false,
            of_other_user: false,
            sessions,
        }
    }

    /// Makes it a pool of a user whom only `auth_query` knows.
    #[must_use]
    pub fn for_other_user(self) -> Self {
        Self {
            of_other_user: true,
            ..self
        }
    }

    /// Whether nobody would miss it.
    pub fn is_unused(&self) -> bool {
        let mut addresses = self.addresses.iter();
        self.sessions.is_empty() && addresses.all(|address| address.slots.open() == 0)
    }

    /// Takes the pool out of use if it is unused, and stays so.
    pub fn retire_if_unused(&self) -> bool {
        if !self.is_unused() {
            return false;
        }
        self.retire();
        // Somebody may have begun to log in at the same moment.
        let is_unused = self.sessions.is_empty();
        self.retired.store(is_unused, Ordering::Release);
        is_unused
    }

    /// Keeps what a client has proved itself with to another pool of the user.
    pub fn learn_from(&self, other: &Self) {
        let learned = other.learned.lock();
        let learned = learned.unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(credentials) = learned {
            self.learn(credentials);
        }
    }

    /// The clients of the database, and of the user over all databases, with the limits.
    pub fn client_counts(&self) -> [(&Arc<Count>, Option<usize>); 2] {
        let [(of_database, _), (of_user, _)] = &self.tallies;
        [
            (&of_database.clients, self.settings.max_client_connections),
            (&of_user.clients, self.user.max_client_connections),
        ]
    }

    /// Whether its server connections are counted with those of other pools, and limited.
    pub fn is_limited(&self) -> bool {
        let tallies = self.tallies();
        tallies.iter().any(|(tally, _)| tally.is_limited())
    }

    /// What its server connections are counted by, with the limits. A pool for `auth_query` has its own
    /// limit only: logins must not wait for transactions.
    pub fn tallies(&self) -> &[(Arc<Tally>, Option<usize>)] {
        if self.asks_auth_query {
            &[]
        } else {
            &self.tallies
        }
    }

    /// Whether it may open no connection to any server now, for others have too many.
    pub fn is_full(&self) -> bool {
        self.is_limited() && self.full_tallies().next().is_some()
    }

    /// The tallies in which no server connection more is allowed.
    fn full_tallies(&self) -> impl Iterator<Item = &Arc<Tally>> {
        let tallies = self.tallies().iter();
        let full = tallies.filter(|(tally, limit)| !tally.servers.has_room(*limit));
        full.map(|(tally, _)| tally)
    }

    /// Whether it may open no connection as long as pools like this one keep theirs.
    pub fn is_kept_out_by(&self, other: &Self) -> bool {
        let is_theirs = |full| {
            let mut theirs = other.tallies().iter();
            theirs.any(|(tally, _)| Arc::ptr_eq(tally, full))
        };
        self.full_tallies().any(is_theirs)
    }

    /// The pools that share a limit with this one, and it itself.
    pub fn rivals(&self) -> Vec<Arc<Self>> {
        let mut rivals: Vec<Arc<Self>> = Vec::new();
        for (tally, _) in self.tallies() {
            for pool in tally.pools() {
                if !pool.is_retired() && !rivals.iter().any(|known| Arc::ptr_eq(known, &pool)) {
                    rivals.push(pool);
                }
            }
        }
        rivals
    }

    /// Counts its server connections with those of others from now on.
    pub fn join(self: &Arc<Self>) {
        for (tally, limit) in self.tallies() {
            tally.join(self, *limit);
        }
    }

    /// Makes it a pool for `auth_query`.
    #[must_use]
    pub fn for_auth_query(self) -> Self {
        Self {
            asks_auth_query: true,
            ..self
        }
    }

    /// What to log in to servers with, if anything.
    pub fn credentials(&self) -> Option<Credentials> {
        match self.configured_secret() {
            Some(secret @ (Secret::Plain(_) | Secret::Md5(_))) => Some(Credentials::Secret(secret)),
            // It verifies clients; to log in takes the keys that one of them has used.
            Some(Secret::Scram(_)) | None => self
                .learned
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// Whether a client has to log in before the pool can.
    pub fn awaits_client(&self) -> bool {
        let learns = match self.configured_secret() {
            Some(secret) => matches!(secret, Secret::Scram(_)),
            None => self.settings.auth_query.is_some(),
        };
        learns && self.credentials().is_none()
    }

    /// Keeps what a client has proved itself with, for logins to servers.
    pub fn learn(&self, credentials: Credentials) {
        *self.learned.lock().unwrap_or_else(PoisonError::into_inner) = Some(credentials);
    }

    fn configured_secret(&self) -> Option<Secret> {
        let password = self.user.server_password.as_ref();
        password
            .or(self.user.password.as_ref())
            .map(|p| Secret::parse(p))
    }

    /// Whether it is a pool for the same.
    pub fn is_successor_of(&self, other: &Self) -> bool {
        self.identity == other.identity && self.asks_auth_query == other.asks_auth_query
    }

    /// Whether a reload has replaced or removed it: nothing begins with it any more.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Takes the pool out of use, and sends those away who wait for a connection: see
    /// [`crate::error::Error::Retired`].
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.addresses
            .iter()
            .for_each(|address| address.slots.dismiss());
    }

    /// What to report to a client that starts with these settings, if it is known.
    pub fn greeting(&self, settings: &Settings) -> Option<Parameters> {
        let greetings = self.greetings();
        let known = greetings.known.iter().find(|(known, _)| known == settings);
        known.map(|(_, parameters)| parameters.clone())
    }

    /// Takes note of what a new server connection has reported: another version after an upgrade, or
    /// another default, makes what is remembered worthless.
    pub fn note_defaults(&self, parameters: &Parameters) {
        let mut greetings = self.greetings();
        if greetings.defaults != *parameters {
            greetings.defaults = parameters.clone();
            greetings.known.clear();
        }
    }

    /// A server has changed a default of its own accord, or a client a setting: new clients are told
    /// what the server says then.
    pub fn forget_greetings(&self) {
        self.greetings().known.clear();
    }

    fn greetings(&self) -> MutexGuard<'_, Greetings> {
        self.greetings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn remember_greeting(&self, settings: Settings, parameters: Parameters) {
        let known = &mut self.greetings().known;
        known.retain(|(known, _)| *known != settings);
        if known.len() >= GREETINGS {
            known.remove(0);
        }
        known.push((settings, parameters));
    }

    /// The server that the pooler's and its plugins' own work is meant for: the primary of the default
    /// shard, in the words of the configuration.
    pub fn home(&self) -> &Address {
        let shard = Route::primary_of(&self.settings).shard;
        let mut servers = self
            .addresses
            .iter()
            .filter(|address| Some(address.shard) == shard);
        let first = servers.clone().next();
        servers
            .find(|address| address.server.role == Role::Primary)
            .or(first)
            .unwrap_or(&self.addresses[0])
    }

    /// Notes what a server has said about being a standby, if that decides its role.
    pub fn note_standby(&self, address: &Address, in_recovery: bool) {
        if address.server.role != Role::Auto {
            return;
        }
        let role = if in_recovery {
            Role::Replica
        } else {
            Role::Primary
        };
        if !address.health.note_role(role) {
            return;
        }
        let word = if in_recovery { "replica" } else { "primary" };
        log::info!(
            "server {} (user {}) is a {word}",
            address.name,
            self.identity.user
        );
        if role == Role::Primary {
            // The one that was it before is to be asked again: it may be gone, or a standby now.
            let others = self.addresses.iter().filter(|other| {
                other.shard == address.shard
                    && other.id != address.id
                    && other.server.role == Role::Auto
                    && other.role() == Role::Primary
            });
            others.for_each(|other| {
                other.health.note_role(Role::Auto);
            });
        }
    }

    /// Whether a shard has servers that may be replicas.
    pub fn has_replicas(&self, shard: usize) -> bool {
        let mut servers = self.addresses.iter();
        servers.any(|address| {
            address.shard == shard && matches!(address.server.role, Role::Replica | Role::Auto)
        })
    }

    /// Whether to begin to watch how far its servers have replayed; true once, and only where that matters.
    pub fn is_watch_due(&self) -> bool {
        let wanted = self.settings.max_replica_lag.is_some() || self.settings.read_your_writes;
        wanted
            && self
                .addresses
                .iter()
                .any(|address| self.has_replicas(address.shard))
            && !self.asks_auth_query
            && !self.watched.swap(true, Ordering::Relaxed)
    }

    /// Takes those off the queues who have waited for `connect_timeout`, and has those who have waited for
    /// `reserve_pool_timeout` open connections of the reserve.
    pub fn expire(self: &Arc<Self>, now: u64) {
        if self.gate.is_shut() {
            // They wait for a RESUME.
            return;
        }
        if self.user.reserve_pool_size > 0
            && let Some(patience) = self.user.reserve_pool_timeout
        {
            self.open_reserve(now, patience.as_millis() as u64);
        }
        let limit = self.user.connect_timeout.as_millis() as u64;
        for address in &self.addresses {
            address.slots.expire(now, limit, self.gate.opened_at());
            Slot::offer_again(self, address.id, now);
        }
    }

    fn open_reserve(self: &Arc<Self>, now: u64, patience: u64) {
        let opened = self.gate.opened_at();
        for address in &self.addresses {
            let slots = &address.slots;
            let is_urgent = || {
                let since = slots.waiting_since();
                since.is_some_and(|since| now >= since.max(opened) + patience)
            };
            while is_urgent()
                && let Some(slot) = Slot::take_reserve(self, address.id)
                && slots.grant(slot).is_none()
            {}
        }
    }
}

/// The settings of the mirrors of a server, as pools of their own.
fn mirrors(address: &Address, settings: &Pool) -> impl Iterator<Item = Pool> {
    let mirrors = settings.shards[address.shard].mirrors.iter();
    let own = mirrors.filter(|mirror| mirror.mirroring_target_index == address.number);
    own.map(|mirror| Pool {
        plugins: PluginTables::new(),
        shards: vec![Shard {
            database: address.database.clone(),
            servers: vec![ServerAddress {
                host: mirror.host.clone(),
                port: mirror.port,
                role: Role::Primary,
            }],
            mirrors: Vec::new(),
        }],
        ..settings.clone()
    })
}
