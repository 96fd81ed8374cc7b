//! What a client has chosen for itself by the commands of [`super::command`].

use super::command::{Command, RoleArgument, ShardArgument};
use super::route::Route;
use crate::config::model::{Pool, WantedRole};
use crate::wire::error_fields::ErrorFields;

/// See the module's text. What has not been chosen is as the pool's configuration has it now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Choice {
    pub shard: Option<usize>,
    /// `None`: the pool's default, or what a statement needs.
    pub role: Option<WantedRole>,
    parser: Option<bool>,
    primary_reads: Option<bool>,
}

impl Choice {
    /// Whether statements are parsed, to tell reads from writes where the pool does that.
    pub fn parses(&self, pool: &Pool) -> bool {
        self.parser.unwrap_or(pool.query_parser_enabled)
    }

    /// Whether the primary may serve reads.
    pub fn reads_primary(&self, pool: &Pool) -> bool {
        self.primary_reads.unwrap_or(pool.primary_reads_enabled)
    }

    /// Where statements go of which nothing else is known.
    pub fn route(&self, pool: &Pool) -> Route {
        let default = Route::default_of(pool);
        Route {
            shard: self.shard.or(default.shard),
            role: self.role.unwrap_or(default.role),
            after: None,
        }
    }

    /// Does what the client commands. The value is the result of a SHOW.
    ///
    /// # Errors
    /// What the client is told; nothing has changed then.
    pub fn apply(
        &mut self,
        command: &Command,
        pool: &Pool,
    ) -> Result<Option<String>, Box<ErrorFields>> {
        let shards = pool.shards.len();
        match command {
            Command::SetShard(ShardArgument::Any) => {
                self.shard = Some(rand::random_range(0..shards));
            }
            Command::SetShard(ShardArgument::Number(Ok(shard))) if *shard < shards => {
                self.shard = Some(*shard);
            }
            Command::SetShard(ShardArgument::Number(shard)) => {
                let shard = match shard {
                    Ok(number) => number.to_string(),
                    Err(text) => text.clone(),
                };
                return Err(Box::new(ErrorFields::error(
                    "58000",
                    format!(
                        "shard {shard} is not configured {shards}, staying on shard {:?} (shard numbers start at 0)",
                        self.shard
                    ),
                )));
            }
            Command::SetShardingKey(Ok(key)) => {
                self.shard = Some(pool.sharding_function.shard(*key, shards));
            }
            Command::SetShardingKey(Err(text)) => {
                return Err(Box::new(ErrorFields::error(
                    "22003",
                    format!("value \"{text}\" is out of range for type bigint"),
                )));
            }
            Command::SetServerRole(role) => {
                let (role, parser) = match role {
                    RoleArgument::Primary => (Some(WantedRole::Primary), Some(false)),
                    RoleArgument::Replica => (Some(WantedRole::Replica), Some(false)),
                    RoleArgument::Any => (Some(WantedRole::Any), Some(false)),
                    RoleArgument::Auto => (None, Some(true)),
                    RoleArgument::Default => (None, None),
                };
                (self.role, self.parser) = (role, parser);
            }
            Command::SetPrimaryReads(wanted) => {
                self.primary_reads = *wanted;
            }
            Command::ShowShard => {
                let shard = self
                    .shard
                    .map_or("unset".to_owned(), |shard| shard.to_string());
                return Ok(Some(shard));
            }
            Command::ShowServerRole => {
                let role = match self.role.unwrap_or(pool.default_role) {
                    WantedRole::Primary if !self.parses(pool) => "primary",
                    WantedRole::Replica if !self.parses(pool) => "replica",
                    _ if self.parses(pool) => "auto",
                    _ => "any",
                };
                return Ok(Some(role.to_owned()));
            }
            Command::ShowPrimaryReads => {
                let reads = if self.reads_primary(pool) {
                    "on"
                } else {
                    "off"
                };
                return Ok(Some(reads.to_owned()));
            }
        }
        Ok(None)
    }
}
