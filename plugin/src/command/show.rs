//! `SHOW STREAM TABLES`.

use pgcat::plugins::Column;

use super::lookup::installed;
use crate::conn::{Conn, Error};

/// The columns of `pgtrickle.stream_tables`.
const COLUMNS: [&str; 13] = [
    "schema",
    "name",
    "owner",
    "query",
    "schedule",
    "refresh_mode",
    "effective_mode",
    "reason",
    "status",
    "last_refresh",
    "staleness",
    "pending_changes",
    "last_error",
];

/// The result's columns, all text.
pub(crate) fn columns() -> Vec<Column> {
    COLUMNS.into_iter().map(Column::text).collect()
}

/// One row per stream table of the database; none where there has never been one.
pub(crate) async fn run(conn: &mut impl Conn) -> Result<Vec<Vec<Option<String>>>, Error> {
    if !installed(conn).await? {
        return Ok(Vec::new());
    }
    let list = COLUMNS
        .map(|column| format!("{column}::pg_catalog.text"))
        .join(", ");
    let sql = format!("SELECT {list} FROM pgtrickle.stream_tables ORDER BY schema, name");
    Ok(conn
        .query(&sql)
        .await?
        .into_iter()
        .map(|row| row.0)
        .collect())
}
