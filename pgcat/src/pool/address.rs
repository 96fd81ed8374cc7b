//! One server as a pool sees it: where it is, what it is, how it is, and the slots for connections.
//!
//! What is to be shown or counted per server hangs here.

use std::sync::Arc;
use std::time::Duration;

use super::health::Health;
use super::replay::Replay;
use super::shared::PoolShared;
use super::slots::Slots;
use super::statistics::Statistics;
use crate::config::model::{Pool, Role, ServerAddress, User, WantedRole};

/// See the module's text.
#[derive(Debug)]
pub struct Address {
    /// Position in [`super::shared::PoolShared::addresses`].
    pub id: usize,
    /// PgCat's name for it, such as `sharded_db_shard_0_replica_1`.
    pub name: String,
    /// Host, port and configured role.
    pub server: ServerAddress,
    /// The database's name on the server.
    pub database: String,
    /// The shard it belongs to.
    pub shard: usize,
    /// Its place among the servers of its shard, as the configuration has them.
    pub number: usize,
    /// Where what is sent to it is sent, too: each a pool of that server alone, which serves nobody.
    pub mirrors: Vec<Arc<PoolShared>>,
    pub slots: Slots,
    pub health: Arc<Health>,
    pub statistics: Arc<Statistics>,
    /// How far it has replayed, where that is watched.
    pub replay: Replay,
}

impl Address {
    /// The servers of a pool, in the order of shards and of servers in them.
    pub fn all(pool_name: &str, pool: &Pool, user: &User, threads: usize) -> Box<[Self]> {
        let mut addresses = Vec::new();
        for (shard, settings) in pool.shards.iter().enumerate() {
            let mut replicas = 0;
            for (number, server) in settings.servers.iter().enumerate() {
                let prefix = format!("{pool_name}_shard_{shard}");
                let name = match server.role {
                    Role::Primary => format!("{prefix}_primary"),
                    Role::Replica => {
                        replicas += 1;
                        format!("{prefix}_replica_{}", replicas - 1)
                    }
                    Role::Mirror => format!("{prefix}_mirror_{number}"),
                    Role::Auto => format!("{prefix}_server_{number}"),
                };
                addresses.push(Self {
                    id: addresses.len(),
                    name,
                    server: server.clone(),
                    database: settings.database.clone(),
                    shard,
                    number,
                    mirrors: Vec::new(),
                    slots: Slots::new(
                        user.pool_size as usize,
                        user.reserve_pool_size as usize,
                        threads,
                    ),
                    health: Arc::new(Health::new(server.role)),
                    statistics: Arc::default(),
                    replay: Replay::default(),
                });
            }
        }
        addresses.into()
    }

    /// Whether it is the same server, of another generation of the pool.
    pub fn is_same(&self, other: &Self) -> bool {
        self.server == other.server && self.database == other.database && self.shard == other.shard
    }

    /// Takes over what is known of the server.
    pub fn succeed(&mut self, predecessor: &Self) {
        self.health = predecessor.health.clone();
        self.statistics = predecessor.statistics.clone();
    }

    /// Whether connections of an earlier generation still exist.
    pub fn has_outdated(&self) -> bool {
        let generation = self.health.generation();
        let connections = self.statistics.connections();
        connections
            .iter()
            .any(|connection| !connection.own && connection.generation != generation)
    }

    /// The name of its role.
    pub fn role_name(&self) -> &'static str {
        match self.health.role() {
            Role::Auto => "auto",
            Role::Mirror => "mirror",
            Role::Primary => "primary",
            Role::Replica => "replica",
        }
    }

    /// What the server is now: [`Role::Auto`] if it is yet to be asked.
    pub fn role(&self) -> Role {
        match self.server.role {
            Role::Auto => self.health.role(),
            configured => configured,
        }
    }

    /// Whether it is, or may turn out to be, what a statement asks for.
    pub fn serves(&self, wanted: WantedRole) -> bool {
        match self.role() {
            Role::Primary => wanted != WantedRole::Replica,
            Role::Replica => wanted != WantedRole::Primary,
            Role::Auto => true,
            Role::Mirror => false,
        }
    }

    /// For how long it is banned if a connection fails. A primary has no substitute, so it never is.
    pub fn ban_after_failure(&self, ban_time: Duration) -> Option<Duration> {
        (self.role() == Role::Replica && !ban_time.is_zero()).then_some(ban_time)
    }
}
