//! Stream tables that read themselves by way of others. What makes one is a view replaced after the stream table that reads
//! it: the table of a stream table is no view, so PostgreSQL sees no recursion.

use pgcat::plugins::ErrorFields;

use super::record::Record;
use crate::capture::list;
use crate::conn::{Conn, Error};
use crate::plan::Plan;

/// The catalog's rows of those who own the table, too. Anybody may say of his own row that it is of any table.
const OF_OWNERS: &str = "(pgtrickle.catalog c JOIN pg_catalog.pg_class k ON k.oid = c.relid
    AND pg_catalog.pg_has_role(c.owner, k.relowner, 'MEMBER'))";

/// Refuses a plan by which a stream table would read itself.
///
/// # Errors
/// 42P17, with the path.
pub(super) async fn refuse<C: Conn>(c: &mut C, record: &Record, plan: &Plan) -> Result<(), Error> {
    let relids: Vec<_> = plan.tables.iter().map(|table| table.relid).collect();
    // Each with what reads it, the shortest ways first.
    let rows = c
        .query(&format!(
            "WITH RECURSIVE read(id, relid, by) AS (
                SELECT c.id, c.relid, NULL::bigint FROM {OF_OWNERS} WHERE c.relid IN ({})
                UNION SELECT c.id, c.relid, read.id FROM read JOIN pgtrickle.source s ON s.stream_table = read.id
                JOIN {OF_OWNERS} ON c.relid = s.relid WHERE read.id <> {})
             SELECT id, relid::pg_catalog.regclass::text, by FROM read",
            list(&relids),
            record.id
        ))
        .await?;
    let find = |id: i64| rows.iter().find(|row| row.int(0) == Some(id));
    let mut path = Vec::new();
    let mut at = find(record.id.0);
    while let Some(row) = at {
        path.push(row.text(1).unwrap_or_default().to_owned());
        at = row.int(2).and_then(find);
    }
    if path.is_empty() {
        return Ok(());
    }
    // From what it reads itself to what reads it.
    path.reverse();
    Err(error(&path))
}

/// The error for stream tables each of which reads the next, and the last the first.
pub(super) fn error(path: &[String]) -> Error {
    let mut round = path.to_vec();
    round.extend(path.first().cloned());
    // In the message, as that is what the catalog keeps of an error.
    let message = format!(
        "a stream table must not read itself: {}",
        round.join(" -> ")
    );
    Error::Refused(Box::new(ErrorFields::error("42P17", message).hint(
        "Replace the view that closes the circle, or drop one of the stream tables.",
    )))
}
