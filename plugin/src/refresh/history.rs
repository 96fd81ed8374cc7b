//! `pgtrickle.history`: what refreshes did.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::command::literal;
use crate::conn::{Conn, Error};
use crate::engine::{RefreshOutcome, StreamTableId};

/// Rows kept per stream table.
const KEPT: u32 = 1000;

/// One refresh, to be written later together with others: a transaction for each would cost more than
/// the refresh.
#[derive(Debug)]
pub(super) struct Entry {
    table: StreamTableId,
    /// Since the epoch.
    started_at: Duration,
    duration: Duration,
    outcome: RefreshOutcome,
    error: Option<String>,
}

impl Entry {
    /// `duration`: how long the refresh took, till now.
    pub(super) fn new(table: StreamTableId, duration: Duration, outcome: RefreshOutcome) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            table,
            started_at: now.saturating_sub(duration),
            duration,
            outcome,
            error: None,
        }
    }

    pub(super) fn failed(table: StreamTableId, duration: Duration, error: String) -> Self {
        let outcome = RefreshOutcome {
            mode: "none",
            ..RefreshOutcome::default()
        };
        Self {
            error: Some(error),
            ..Self::new(table, duration, outcome)
        }
    }

    fn values(&self) -> String {
        let optional = |text: &Option<String>| match text {
            Some(text) => literal(text),
            None => "NULL".to_owned(),
        };
        format!(
            "({}::bigint, {}::double precision, {}::double precision, {}, {}::text, {}::bigint, \
             {}::bigint, {}::text)",
            self.table,
            self.started_at.as_secs_f64(),
            self.duration.as_secs_f64(),
            literal(self.outcome.mode),
            optional(&self.outcome.reason),
            self.outcome.inserted,
            self.outcome.deleted,
            optional(&self.error),
        )
    }
}

/// Adds the entries, and deletes what is past the limit. A stream table dropped meanwhile gets none.
pub(super) async fn write(conn: &mut impl Conn, entries: &[Entry]) -> Result<(), Error> {
    let values: Vec<String> = entries.iter().map(Entry::values).collect();
    let insert = format!(
        "INSERT INTO pgtrickle.history (stream_table, owner, started_at, duration, mode, reason, \
         rows_inserted, rows_deleted, error) \
         SELECT v.id, c.owner, pg_catalog.to_timestamp(v.started), \
         pg_catalog.make_interval(secs => v.took), v.mode, v.reason, v.inserted, v.deleted, v.error \
         FROM (VALUES {}) AS v (id, started, took, mode, reason, inserted, deleted, error) \
         JOIN pgtrickle.catalog c ON c.id = v.id",
        values.join(", ")
    );
    conn.query(&insert).await?;
    let mut ids: Vec<StreamTableId> = entries.iter().map(|entry| entry.table).collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let prune = format!(
            "DELETE FROM pgtrickle.history WHERE stream_table = {id} AND started_at < (\
             SELECT h.started_at FROM pgtrickle.history h WHERE h.stream_table = {id} \
             ORDER BY h.started_at DESC OFFSET {KEPT} LIMIT 1)"
        );
        conn.query(&prune).await?;
    }
    Ok(())
}
