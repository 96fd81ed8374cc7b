//! `pgtrickle.history`: a refresh writes its own row; failures, which roll back, are written here.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::command::literal;
use crate::conn::{Conn, Error};
use crate::engine::StreamTableId;

/// Rows kept per stream table.
const KEPT: u32 = 1000;

/// A failed refresh, to be written later together with others.
#[derive(Debug)]
pub(super) struct Failure {
    table: StreamTableId,
    /// Since the epoch.
    started_at: Duration,
    duration: Duration,
    error: String,
}

impl Failure {
    /// `duration`: how long the refresh took, till now.
    pub(super) fn new(table: StreamTableId, duration: Duration, error: String) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            table,
            started_at: now.saturating_sub(duration),
            duration,
            error,
        }
    }

    pub(super) fn table(&self) -> StreamTableId {
        self.table
    }

    fn values(&self) -> String {
        format!(
            "({}::bigint, {}::double precision, {}::double precision, {}::text)",
            self.table,
            self.started_at.as_secs_f64(),
            self.duration.as_secs_f64(),
            literal(&self.error),
        )
    }
}

/// Adds the failures. A stream table dropped meanwhile gets none.
pub(super) async fn write(conn: &mut impl Conn, failures: &[Failure]) -> Result<(), Error> {
    let values: Vec<String> = failures.iter().map(Failure::values).collect();
    let sql = format!(
        "INSERT INTO pgtrickle.history (stream_table, owner, started_at, duration, mode, \
         rows_inserted, rows_deleted, error) \
         SELECT v.id, c.owner, pg_catalog.to_timestamp(v.started), \
         pg_catalog.make_interval(secs => v.took), 'none', 0, 0, v.error \
         FROM (VALUES {}) AS v (id, started, took, error) \
         JOIN pgtrickle.catalog c ON c.id = v.id",
        values.join(", ")
    );
    conn.query(&sql).await.map(|_| ())
}

/// Deletes what is past the limit.
pub(super) async fn prune(
    conn: &mut impl Conn,
    tables: &BTreeSet<StreamTableId>,
) -> Result<(), Error> {
    for id in tables {
        let sql = format!(
            "DELETE FROM pgtrickle.history WHERE stream_table = {id} AND started_at < (\
             SELECT h.started_at FROM pgtrickle.history h WHERE h.stream_table = {id} \
             ORDER BY h.started_at DESC OFFSET {KEPT} LIMIT 1)"
        );
        conn.query(&sql).await?;
    }
    Ok(())
}
