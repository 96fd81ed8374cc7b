//! Where a statement is to go.

use crate::config::model::{DefaultShard, Pool, WantedRole};
use crate::pool::wal::Position;

/// Which of a pool's servers may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// `None`: any shard.
    pub shard: Option<usize>,
    pub role: WantedRole,
    /// What a replica has to have replayed.
    pub after: Option<Position>,
}

impl Route {
    /// Where statements go of which nothing is known.
    pub fn default_of(pool: &Pool) -> Self {
        let shard = match pool.default_shard {
            _ if pool.shards.len() == 1 => Some(0),
            DefaultShard::Shard(number) => Some(number),
            DefaultShard::Random | DefaultShard::RandomHealthy => None,
        };
        Self {
            shard,
            role: pool.default_role,
            after: None,
        }
    }

    /// Where the pooler's and its plugins' own work is done.
    pub fn primary_of(pool: &Pool) -> Self {
        Self {
            shard: Some(Self::default_of(pool).shard.unwrap_or(0)),
            role: WantedRole::Primary,
            after: None,
        }
    }
}
