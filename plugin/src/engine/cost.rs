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

/// Why so many changes are better met by a full refresh; `None`: they are not, or it is not known.
///
/// # Errors
/// Those of the server.
pub(super) async fn too_many<C: Conn>(
    c: &mut C,
    record: &Record,
    changes: i64,
) -> Result<Option<String>, Error> {
    if changes < MANY || record.refresh_mode == "incremental" {
        return Ok(None);
    }
    let sql = "SELECT full_seconds, base_seconds, change_seconds,
            (SELECT max(h.changes) FROM pgtrickle.history h WHERE h.stream_table = c.id AND h.mode = 'incremental')
         FROM pgtrickle.catalog c WHERE id = $1::bigint";
    let rows = c
        .query_kept(sql.to_owned(), vec![record.id.to_string()])
        .await?;
    let row = rows.first().cloned().unwrap_or_default();
    let seconds = |i: usize| row.text(i).and_then(|s| s.parse::<f64>().ok());
    let (Some(full), Some(each)) = (seconds(0), seconds(2)) else {
        return Ok(None);
    };
    let most = row.int(3).unwrap_or_default();
    let factor = if changes > 2 * most { BEYOND } else { 1.0 };
    let incremental = seconds(1).unwrap_or_default() + each * factor * changes as f64;
    Ok((incremental > full * MARGIN).then(|| {
        format!(
            "{changes} changes would take {:.0} ms, and recomputing takes {:.0} ms",
            incremental * 1e3,
            full * 1e3
        )
    }))
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
