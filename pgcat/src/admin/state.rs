//! A picture of the pooler at one moment: what the SHOW commands and the metrics are made from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::config::model::Config;
use crate::net::threads::Pooler;
use crate::pool::address::Address;
use crate::pool::health::Ban;
use crate::pool::shared::PoolShared;
use crate::pool::statistics::{Connection, Counters, Phase, Totals};

/// See the module's text.
pub struct State {
    pub config: Arc<Config>,
    pub listen: SocketAddr,
    pub now: SystemTime,
    pub pools: Vec<PoolState>,
    pub clients: Vec<ClientState>,
    /// Clients that have not logged in yet.
    pub logging_in: usize,
    pub paused: bool,
    pub suspended: bool,
    /// Name on the servers, text, and how many clients' names stand for it.
    pub statements: Vec<(String, String, usize)>,
    /// By the clock that bans are timed with: coarse milliseconds.
    pub coarse_now: u64,
}

/// A pool, with its servers.
pub struct PoolState {
    pub pool: Arc<PoolShared>,
    pub servers: Vec<AddressState>,
    pub paused: bool,
    pub disabled: bool,
    /// How long the first in the queues has been waiting.
    pub longest_wait: Duration,
}

/// A server of a pool, with the connections to it.
pub struct AddressState {
    /// Position in [`PoolShared::addresses`].
    pub index: usize,
    pub totals: Totals,
    /// What the counters grew by in [`AddressState::period`].
    pub recent: Totals,
    pub period: Duration,
    pub connections: Vec<Arc<Connection>>,
    pub ban: Option<Ban>,
}

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It has a server connection.
    Active,
    Idle,
    /// For a server connection.
    Waiting,
}

/// A client.
#[derive(Debug, Clone)]
pub struct ClientState {
    pub id: u64,
    pub database: String,
    pub user: String,
    pub application_name: String,
    pub peer: Option<SocketAddr>,
    pub local: Option<SocketAddr>,
    pub tls: String,
    /// Of an admin database.
    pub admin: bool,
    pub doing: Doing,
    pub connected: SystemTime,
    pub requested: SystemTime,
    pub waiting_for: Duration,
    pub counters: Counters,
    pub prepared_statements: usize,
}

impl PoolState {
    pub fn address(&self, server: &AddressState) -> &Address {
        &self.pool.addresses[server.index]
    }

    /// How many connections do this now.
    pub fn in_phase(&self, phase: Phase) -> usize {
        let connections = self.servers.iter().flat_map(|server| &server.connections);
        connections
            .filter(|connection| connection.phase() == phase)
            .count()
    }

    /// The clients of the pool.
    pub fn clients<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a ClientState> {
        let identity = &self.pool.identity;
        state
            .clients
            .iter()
            .filter(|client| client.database == identity.database && client.user == identity.user)
    }
}

impl State {
    /// Looks at everything.
    pub async fn of(pooler: &Pooler) -> Self {
        let (clients, logging_in) = pooler.client_states().await;
        let now = Instant::now();
        let coarse = pooler.now();
        let present = pooler.pools();
        let pools = present.iter().map(|pool| {
            let servers = pool.addresses.iter().map(|address| {
                let (recent, period) = address.statistics.recent(now);
                AddressState {
                    index: address.id,
                    totals: address.statistics.totals(),
                    recent,
                    period,
                    connections: address.statistics.connections(),
                    ban: address.health.banned(coarse),
                }
            });
            let waiting = pool.addresses.iter();
            let first = waiting
                .filter_map(|address| address.slots.waiting_since())
                .min();
            PoolState {
                servers: servers.collect(),
                paused: pool.gate.is_paused(),
                disabled: pool.gate.is_disabled(),
                longest_wait: first.map_or(Duration::ZERO, |since| {
                    Duration::from_millis(coarse.saturating_sub(since))
                }),
                pool: pool.clone(),
            }
        });
        let every = |is: &dyn Fn(&PoolShared) -> bool| {
            !present.is_empty() && present.iter().all(|pool| is(pool))
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let statements = pooler.interner.list().into_iter();
        Self {
            config: pooler.config(),
            listen: pooler.listen,
            now: SystemTime::now(),
            coarse_now: coarse,
            pools: pools.collect(),
            clients,
            logging_in,
            paused: every(&|pool| pool.gate.is_paused()),
            suspended: every(&|pool| pool.gate.is_suspended()),
            statements: statements
                .map(|(statement, holders)| {
                    (
                        text(&statement.server_name),
                        text(statement.text()),
                        holders,
                    )
                })
                .collect(),
        }
    }

    /// All server connections.
    pub fn connections(&self) -> impl Iterator<Item = &Connection> {
        let servers = self.pools.iter().flat_map(|pool| &pool.servers);
        servers.flat_map(|server| server.connections.iter().map(|connection| &**connection))
    }

    fn client_of(&self, connection: &Connection) -> Option<&ClientState> {
        let id = connection.client()?;
        self.clients.iter().find(|client| client.id == id)
    }

    /// The name of the application that uses a connection.
    pub fn application_name(&self, connection: &Connection) -> &str {
        self.client_of(connection)
            .map_or("", |client| &client.application_name)
    }

    /// When the last request went to a connection that is in use.
    pub fn requested(&self, connection: &Connection) -> Option<SystemTime> {
        self.client_of(connection).map(|client| client.requested)
    }

    /// The sum of the counters of all servers that `choose` picks.
    pub fn sum(&self, choose: impl Fn(&PoolState) -> bool) -> (Totals, Averages) {
        let servers = self
            .pools
            .iter()
            .filter(|pool| choose(pool))
            .flat_map(|pool| &pool.servers);
        let mut totals = Totals::default();
        let mut recent = Totals::default();
        let mut period = Duration::ZERO;
        for server in servers {
            totals += server.totals;
            recent += server.recent;
            period = period.max(server.period);
        }
        (totals, Averages::over(recent, period))
    }
}

/// Counters per second, and times per transaction, query or wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Averages {
    pub transactions: u64,
    pub queries: u64,
    pub received: u64,
    pub sent: u64,
    pub errors: u64,
    pub transaction_time: u64,
    pub query_time: u64,
    /// Per second, as PgBouncer has it.
    pub wait_time: u64,
}

impl Averages {
    pub fn over(recent: Totals, period: Duration) -> Self {
        let micros = period.as_micros().max(1);
        let rate = |count: u64| (u128::from(count) * 1_000_000 / micros) as u64;
        let each = |time: u64, count: u64| time.checked_div(count).unwrap_or(0);
        Self {
            transactions: rate(recent.transactions),
            queries: rate(recent.queries),
            received: rate(recent.received),
            sent: rate(recent.sent),
            errors: rate(recent.errors),
            transaction_time: each(recent.transaction_time, recent.transactions),
            query_time: each(recent.query_time, recent.queries),
            wait_time: rate(recent.wait_time),
        }
    }
}
