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

/// A change costs no less, in seconds: what is halved again and again ends outside of what a number can be.
const LEAST: f64 = 1e-9;

/// The largest number of changes that are taken in, rather than to recompute, as an SQL expression; NULL where it is not known what
/// either costs.
pub(super) fn most(record: &Record) -> String {
    if record.refresh_mode == "incremental" {
        return "NULL::bigint".to_owned();
    }
    // As many as can be taken in while recomputing would run. Each costs BEYOND times as much if they are more than are known.
    format!(
        "(SELECT CASE WHEN x.most IS NOT NULL THEN floor(greatest({FEW}, least(1e15,
            CASE WHEN x.most / {BEYOND} > x.known THEN x.most / {BEYOND} ELSE least(x.most, x.known) END)))::bigint END
          FROM (SELECT (c.full_seconds * {MARGIN} - coalesce(c.base_seconds, 0))
                    / CASE WHEN c.change_seconds IS NOT NULL THEN greatest(c.change_seconds, {LEAST}) END AS most,
                2 * coalesce((SELECT max(h.changes) FROM pgtrickle.history h
                    WHERE h.stream_table = c.id AND h.mode = 'incremental'), 0) AS known
            FROM pgtrickle.catalog c WHERE c.id = {id}) x)",
        FEW = MANY - 1,
        id = record.id
    )
}

/// Why more than [`most`] changes are not taken in.
///
/// # Errors
/// Those of the server.
pub(super) async fn reason<C: Conn>(c: &mut C, record: &Record) -> Result<String, Error> {
    let sql = format!(
        "SELECT {}, (c.full_seconds * 1000)::bigint FROM pgtrickle.catalog c WHERE c.id = {}",
        most(record),
        record.id
    );
    let rows = c.query(&sql).await?;
    let row = rows.first().cloned().unwrap_or_default();
    Ok(format!(
        "more than {} changes are expected to take longer than recomputing, which takes {} ms",
        row.int(0).unwrap_or_default(),
        row.int(1).unwrap_or_default()
    ))
}

/// What a refresh that is about to end teaches: assignments for the catalog's row, after a comma. `seconds` is how long it
/// took and `changes` how many changes it took in, NULL for few, as SQL expressions.
pub(super) fn lesson(mode: &str, seconds: &str, changes: &str) -> String {
    if mode == "full" {
        // What changes cost is forgotten little by little, or a bad day would keep a stream table full for ever.
        return format!(
            ", full_seconds = {seconds}, change_seconds = CASE WHEN change_seconds > {LEAST} THEN change_seconds * 0.9 ELSE change_seconds END"
        );
    }
    let each = format!("greatest(({seconds} - coalesce(base_seconds, 0)) / {changes}, {LEAST})");
    format!(
        ", base_seconds = CASE WHEN coalesce({changes}, 0) < {MANY} THEN coalesce(base_seconds * 0.8 + {seconds} * 0.2, {seconds})
            ELSE base_seconds END,
         change_seconds = CASE WHEN {changes} >= {MANY} THEN coalesce(change_seconds * 0.5 + {each} * 0.5, {each})
            ELSE change_seconds END"
    )
}
