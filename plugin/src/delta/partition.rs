//! Partitions that are computed anew where a change touches them: window functions, DISTINCT ON, LIMIT. The old rows are
//! those of the stage's own table.

use super::{apply, keyed, numbered};
use crate::plan::{Column, Partition};

/// Computes the partitions of the keys in `keys_<slot>` anew, and collects the change of the result. `nulls`: whether there
/// are keys with a NULL.
pub(crate) fn recompute(
    slot: &str,
    partition: &Partition,
    columns: &[Column],
    table: &str,
    nulls: bool,
) -> Vec<String> {
    let mut new = partition.by_key.clone();
    if nulls && !partition.keys.is_empty() {
        // Each arm in parentheses: it may have an ORDER BY of its own.
        new = format!("({new}) UNION ALL ({})", partition.by_null);
    }
    let names: Vec<_> = numbered("s.c", columns.len());
    let keys = &names[columns.len() - partition.keys.len()..];
    let q = numbered("q.k", keys.len());
    let old = if keys.is_empty() {
        format!("{table} s")
    } else {
        format!(
            "pgtrickle.keys_{slot} q JOIN {table} s ON {}",
            keyed::same(&q, keys)
        )
    };
    let rows = format!(
        "SELECT n.*, 1::int8 FROM ({new}) n UNION ALL SELECT {}, (-1)::int8 FROM {old}",
        names.join(", ")
    );
    vec![
        apply::collect(slot, columns, "", &rows),
        format!("DELETE FROM pgtrickle.keys_{slot}"),
    ]
}
