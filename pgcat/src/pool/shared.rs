//! What all threads know of a pool: its servers, and what is the same on all of them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::activity::Activity;
use super::address::Address;
use super::functions::Functions;
use super::gate::Gate;
use super::replay::History;
use super::statistics::Ids;
use crate::config::model::{PluginTables, Pool, Role, ServerAddress, Shard, User};
use crate::net::notify::Hub;
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
    pub identity: PoolIdentity,
    pub user: User,
    pub settings: Pool,
    /// The servers, in the order of shards and of servers in them.
    pub addresses: Box<[Address]>,
    pub ids: Ids,
    /// What administrators have ordered.
    pub gate: Arc<Gate>,
    /// Counts the schema changes seen on this pool's connections.
    pub schema_version: AtomicU64,
    /// The functions that may write.
    pub functions: Functions,
    pub activity: Activity,
    /// What the primaries had written when, by shard.
    pub histories: Box<[History]>,
    /// Its servers are watched: see [`super::watch`].
    watched: AtomicBool,
    /// What a server reports to a session with these settings; asked once, then known.
    greetings: Mutex<Vec<(Settings, Parameters)>>,
    /// Who listens to what, in transaction mode.
    pub notifications: Hub,
    /// What clients are verified with by SCRAM; made at the first login. `None`: not possible.
    pub scram_secret: OnceLock<Option<ScramSecret>>,
    /// What a client has proved itself with, where it is all the pool has to log in with.
    learned: Mutex<Option<Credentials>>,
    /// A pool for `auth_query`, which no client logs in to.
    pub asks_auth_query: bool,
}

/// What the pool proves itself to servers with.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A password, or an md5 hash, which does for servers that ask for md5.
    Secret(Secret),
    Keys(ScramKeys),
}

/// Distinct sets of startup settings whose greeting is remembered.
const GREETINGS: usize = 64;

impl PoolShared {
    pub fn new(
        identity: PoolIdentity,
        user: User,
        settings: Pool,
        threads: usize,
        ids: Ids,
        predecessor: Option<&Self>,
    ) -> Self {
        let mut addresses = Address::all(&identity.database, &settings, &user, threads);
        for address in &mut addresses {
            let same =
                predecessor.and_then(|pool| pool.addresses.iter().find(|a| a.is_same(address)));
            if let Some(same) = same {
                address.succeed(same);
                // Until it has been looked at again.
                let lagging = settings.max_replica_lag.is_some() && same.replay.is_lagging();
                address.replay.note_lagging(lagging);
            }
            address.mirrors = mirrors(address, &settings)
                .map(|mirror| {
                    let (identity, user) = (identity.clone(), user.clone());
                    Arc::new(Self::new(
                        identity,
                        user,
                        mirror,
                        threads,
                        ids.clone(),
                        None,
                    ))
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
        let histories = settings.shards.iter().map(|_| History::default()).collect();
        Self {
            index: ids.next() as usize,
            retired: AtomicBool::new(false),
            addresses,
            identity,
            user,
            settings,
            ids,
            gate: predecessor.map_or_else(Arc::default, |pool| pool.gate.clone()),
            schema_version: AtomicU64::new(0),
            functions: Functions::default(),
            activity: Activity::default(),
            histories,
            watched: AtomicBool::new(false),
            greetings: Mutex::default(),
            notifications: Hub::default(),
            scram_secret: OnceLock::new(),
            learned: Mutex::new(learned),
            asks_auth_query: false,
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

    /// Takes those off the queues who have waited for `connect_timeout`.
    pub fn expire(&self, now: u64) {
        if self.gate.is_shut() {
            // They wait for a RESUME.
            return;
        }
        let limit = self.user.connect_timeout.as_millis() as u64;
        for address in &self.addresses {
            address.slots.expire(now, limit, self.gate.opened_at());
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
