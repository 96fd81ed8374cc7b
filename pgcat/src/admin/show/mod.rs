//! The `SHOW` commands: PgCat's tables on database `pgcat`, PgBouncer's on `pgbouncer`. What only one
//! of the two has looks alike on both.

use super::state::State;
use super::{Dialect, Failure};
use crate::config::model::Config;
use crate::plugins::Column;

mod columns;
mod pgbouncer;
mod pgcat;
mod settings;

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    ActiveSockets,
    Bans,
    Clients,
    Config,
    Databases,
    DnsHosts,
    DnsZones,
    Help,
    Lists,
    Mem,
    Peers,
    PeerPools,
    Pools,
    PoolsExtended,
    PreparedStatements,
    Replication,
    Servers,
    Sockets,
    State,
    Stats,
    StatsAverages,
    StatsTotals,
    Totals,
    Users,
    Version,
}

const NAMES: &[(&str, Show)] = &[
    ("ACTIVE_SOCKETS", Show::ActiveSockets),
    ("BANS", Show::Bans),
    ("CLIENTS", Show::Clients),
    ("CONFIG", Show::Config),
    ("DATABASES", Show::Databases),
    ("DNS_HOSTS", Show::DnsHosts),
    ("DNS_ZONES", Show::DnsZones),
    ("HELP", Show::Help),
    ("LISTS", Show::Lists),
    ("MEM", Show::Mem),
    ("PEERS", Show::Peers),
    ("PEER_POOLS", Show::PeerPools),
    ("POOLS", Show::Pools),
    ("POOLS_EXTENDED", Show::PoolsExtended),
    ("PREPARED_STATEMENTS", Show::PreparedStatements),
    ("REPLICATION", Show::Replication),
    ("SERVERS", Show::Servers),
    ("SOCKETS", Show::Sockets),
    ("STATE", Show::State),
    ("STATS", Show::Stats),
    ("STATS_AVERAGES", Show::StatsAverages),
    ("STATS_TOTALS", Show::StatsTotals),
    ("TOTALS", Show::Totals),
    ("USERS", Show::Users),
    ("VERSION", Show::Version),
];

/// A row of a table; `None` is NULL.
pub(super) type Row = Vec<Option<String>>;

impl Show {
    pub fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let [subject] = arguments else {
            return Err(Failure::UnknownShow(arguments.join(" ")));
        };
        if subject.eq_ignore_ascii_case("FDS") {
            // PgBouncer's online restart asks for its descriptors; ours hands them over otherwise.
            return Err(Failure::Usage("SHOW FDS is not supported"));
        }
        NAMES
            .iter()
            .find(|(name, _)| subject.eq_ignore_ascii_case(name))
            .map(|(_, show)| *show)
            .ok_or_else(|| Failure::UnknownShow(subject.clone()))
    }

    /// The names that can be shown, for SHOW HELP.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// The rows of SHOW CONFIG.
    pub fn settings(dialect: Dialect, config: &Config) -> Vec<Row> {
        match dialect {
            Dialect::Pgcat => settings::pgcat(config),
            Dialect::Pgbouncer => settings::pgbouncer(config),
        }
    }

    pub fn columns(self, dialect: Dialect) -> Vec<Column> {
        columns::of(self, dialect)
    }

    pub fn tag(self, dialect: Dialect) -> &'static str {
        match (self, dialect) {
            // As in PgCat.
            (Self::Bans, Dialect::Pgcat) => "SHOW BANS",
            _ => "SHOW",
        }
    }

    pub fn rows(self, dialect: Dialect, state: &State) -> Vec<Row> {
        match dialect {
            Dialect::Pgcat => pgcat::rows(self, state),
            Dialect::Pgbouncer => pgbouncer::rows(self, state),
        }
    }
}

/// Values as text, of any type that can be shown.
macro_rules! row {
    ($($value:expr),* $(,)?) => {
        vec![$(Some($value.to_string())),*]
    };
}
use row;
