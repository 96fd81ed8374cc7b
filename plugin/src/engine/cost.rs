//! The choice between a refresh from the changes and a full one, by what both have cost before.

use super::record::Record;
use crate::conn::{Conn, Error};

/// Fewer changes are always taken in one by one, and tell what a refresh costs at least.
pub(super) const MANY: i64 = 100;

/// Full refreshes must be faster by that much.
const MARGIN: f64 = 1.1;

/// What more than twice as many changes as ever are taken to cost each, above what they have cost: more than in proportion, where
/// they fit into memory or cache no longer. To recompute in vain costs no more than that; to take in changes may cost any time.
const BEYOND: f64 = 1.5;

/// What a refresh from `due.n` changes of the stream table `c` is expected to take, in seconds: an SQL expression.
fn incremental() -> String {
    format!(
        "coalesce(c.base_seconds, 0) + c.change_seconds * due.n * CASE WHEN due.n > 2 * coalesce((SELECT max(h.changes)
            FROM pgtrickle.history h WHERE h.stream_table = c.id AND h.mode = 'incremental'), 0) THEN {BEYOND} ELSE 1 END"
    )
}

/// The condition for `due.n` changes to be taken in, rather than to recompute: also where it is not known what either costs.
pub(super) fn worth(record: &Record) -> String {
    if record.refresh_mode == "incremental" {
        return "true".to_owned();
    }
    format!(
        "(due.n < {MANY} OR coalesce((SELECT {} <= c.full_seconds * {MARGIN} FROM pgtrickle.catalog c WHERE c.id = {}), true))",
        incremental(),
        record.id
    )
}

/// Why so many changes are not [`worth`] it.
///
/// # Errors
/// Those of the server.
pub(super) async fn reason<C: Conn>(
    c: &mut C,
    record: &Record,
    changes: i64,
) -> Result<String, Error> {
    let sql = format!(
        "SELECT {}, c.full_seconds FROM pgtrickle.catalog c, (SELECT {changes}::bigint AS n) due WHERE c.id = {}",
        incremental(),
        record.id
    );
    let rows = c.query(&sql).await?;
    let row = rows.first().cloned().unwrap_or_default();
    let milliseconds = |i: usize| {
        row.text(i)
            .and_then(|s| s.parse::<f64>().ok())
            .unwrap_or_default()
            * 1e3
    };
    Ok(format!(
        "{changes} changes would take {:.0} ms, and recomputing takes {:.0} ms",
        milliseconds(0),
        milliseconds(1)
    ))
}

/// What a refresh that is about to end teaches: assignments for the catalog's row, after a comma. `seconds` is how long it
/// took and `changes` how many changes it took in, NULL for few, as SQL expressions.
pub(super) fn lesson(mode: &str, seconds: &str, changes: &str) -> String {
    if mode == "full" {
        // What changes cost is forgotten little by little, or a bad day would keep a stream table full for ever.
        return format!(", full_seconds = {seconds}, change_seconds = change_seconds * 0.9");
    }
    let each = format!("(greatest({seconds} - coalesce(base_seconds, 0), 0) / {changes})");
    format!(
        ", base_seconds = CASE WHEN coalesce({changes}, 0) < {MANY} THEN coalesce(base_seconds * 0.8 + {seconds} * 0.2, {seconds})
            ELSE base_seconds END,
         change_seconds = CASE WHEN {changes} >= {MANY} THEN coalesce(change_seconds * 0.5 + {each} * 0.5, {each})
            ELSE change_seconds END"
    )
}
