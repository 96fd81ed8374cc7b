//! What can be done with stream tables, on any [`Conn`].
//!
//! # Who calls what
//! - CREATE outside a transaction block: `BEGIN; SET LOCAL lock_timeout = '100ms'`, [`define`], `COMMIT` (on
//!   [`Error::LockNotAvailable`] roll back, wait a little, again), then `BEGIN`, [`load`], `COMMIT`. Whoever finds a
//!   stream table with status `creating` and no user's table may call [`load`] again: it finishes the work.
//! - CREATE inside a block: [`define`] and [`load`] in the caller's transaction.
//! - CREATE outside a block of a stream table that reads others: [`load_with_sources`] as the second step.
//! - The worker: [`pending`] to learn who has work, [`refresh`] for each, or [`refresh_together`] for those that read one
//!   another, [`cleanup_buffers`] now and then.
//! - Every function but these and [`refresh_by_name`] works in the caller's transaction.
//! - Source DDL: [`dependents`] of the relations, forward the statement (for ALTER COLUMN TYPE and DROP COLUMN between
//!   [`drop_definition_view`] and [`recreate_definition_view`]), then [`replan`] each. Whoever finds the sources changed later calls
//!   [`replan_in_own`].
//! - `lock_timeout` is the caller's: in a block the user's own value counts, as for PostgreSQL's own DDL.

mod at_once;
mod cleanup;
mod conclude;
mod cost;
mod cycle;
mod define;
mod drift;
mod explain;
mod fingerprint;
mod group;
mod habit;
mod incremental;
mod load;
mod look;
mod memory;
mod pending;
mod rebuild;
mod record;
mod recursion;
mod refresh;
mod remove;
mod replan;
mod settings;
mod share;
mod stages;
mod summary;

pub use crate::catalog::bootstrap;
use crate::conn::Row;
#[cfg(doc)]
use crate::conn::{Conn, Error};
pub use cleanup::cleanup_buffers;
pub use define::define;
pub use drift::{check, dependents, is_owner};
pub use explain::{
    Differences, MissingIndex, differences, explain, explain_definition, last_refreshes,
    missing_indexes,
};
pub use group::{Refreshed, load_with_sources, refresh_together};
pub use load::load;
pub use memory::Memory;
pub use pending::{FEW, pending};
pub use rebuild::refresh_in_transaction;
pub use refresh::{refresh, refresh_by_name};
pub use remove::drop;
pub use replan::{
    drop_definition_view, go_alone, recreate_definition_view, replan, replan_in_own, set_mode,
};
pub use summary::{Summary, by_name};

/// The identity of a stream table in `pgtrickle.catalog`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct StreamTableId(pub i64);

impl std::fmt::Display for StreamTableId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// `refresh_mode` as the user asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    #[default]
    Auto,
    /// Refused at CREATE where the query allows only full refreshes.
    Incremental,
    Full,
}

impl Mode {
    /// As in the catalog and in `WITH (refresh_mode = …)`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Incremental => "incremental",
            Self::Full => "full",
        }
    }

    /// Why a stream table of this mode is recomputed as a whole, if it is for its mode.
    fn full_reason(self) -> Option<String> {
        (self == Self::Full).then(|| "refresh_mode is full".to_owned())
    }
}

/// A CREATE STREAM TABLE statement, parsed.
#[derive(Debug, Clone, Default)]
pub struct Definition {
    /// `None`: the first schema of the search path that exists.
    pub schema: Option<String>,
    pub name: String,
    /// The column list, empty if there is none.
    pub columns: Vec<String>,
    /// The defining query, as the user wrote it.
    pub query: String,
    /// Characters before the query in the user's text: errors point into that.
    pub query_offset: usize,
    /// As in the catalog: `live`, a duration, a cron line, `manual`.
    pub schedule: String,
    pub refresh_mode: Mode,
    pub with_data: bool,
    /// Whether parts of the query that other stream tables have too may be computed once for all of them. Then the second step is
    /// [`load_with_sources`].
    pub may_share: bool,
}

/// Whether the caller's transaction sees what other transactions commit meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// READ COMMITTED: the snapshot of each statement is newer than the triggers.
    ReadCommitted,
    /// REPEATABLE READ or SERIALIZABLE block: the snapshot may be older than the triggers, so the first refresh
    /// after the commit rebuilds the table (as a difference).
    SnapshotTooOld,
    /// One snapshot for all of the transaction, in which what the stream table reads has been refreshed.
    Together,
}

/// How to refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum How {
    /// Incrementally where the plan allows it.
    #[default]
    Auto,
    /// By recomputing, writing the difference.
    Full,
}

/// What a refresh did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RefreshOutcome {
    /// `incremental`, `full`, or `none` when nothing was waiting.
    pub mode: &'static str,
    /// Why it was full.
    pub reason: Option<String>,
    pub inserted: u64,
    pub deleted: u64,
    /// Whether the user's table changed.
    pub changed: bool,
}

impl RefreshOutcome {
    /// Nothing was waiting.
    fn nothing() -> Self {
        Self {
            mode: "none",
            ..Self::default()
        }
    }

    /// The table has been filled for the first time.
    fn loaded() -> Self {
        Self {
            mode: "full",
            changed: true,
            ..Self::default()
        }
    }

    /// `counts`: rows inserted, rows deleted.
    fn new(mode: &'static str, reason: Option<String>, counts: Option<&Row>) -> Self {
        let count = |i: usize| counts.and_then(|row| row.int(i)).unwrap_or_default();
        let (inserted, deleted) = (count(0).unsigned_abs(), count(1).unsigned_abs());
        Self {
            mode,
            reason,
            inserted,
            deleted,
            changed: inserted + deleted > 0,
        }
    }
}

/// What [`check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    /// All is as the plan was made for.
    None,
    /// Something changed that [`replan`] takes in.
    Sources(String),
    /// The user's table was dropped: [`drop()`] the rest.
    TableGone,
    /// The definition view was dropped (DROP … CASCADE of a source): the stream table cannot be refreshed any more.
    DefinitionGone,
}

/// A stream table that depends on a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependent {
    pub id: StreamTableId,
    pub schema: String,
    pub name: String,
    /// The relation it depends on, directly or through views.
    pub relid: u32,
    /// It is a shared stage: those that read it are among the dependents too.
    pub shared: bool,
}
