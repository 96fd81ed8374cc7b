//! Which changes are due, and their net.

use super::{Cell, net};
use crate::plan::{Column, literal};

/// The point up to which a stream table has taken changes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frontier {
    pub snapshot: String,
    pub xid: u64,
    pub seq: i64,
    pub cluster: String,
}

impl Frontier {
    /// The condition for a change to be after the frontier (and visible: the server sees to that). With
    /// `xid >= xmin` instead, one old transaction would make every refresh scan the whole buffer.
    pub(crate) fn after(&self) -> String {
        let parameters = self.parameters();
        let value = |i: usize| literal(&parameters[i]);
        condition(&value(0), &value(1), &value(2), &value(3))
    }

    /// The values of [`condition`].
    pub(crate) fn parameters(&self) -> Vec<String> {
        let mut parts = self.snapshot.split(':');
        let _xmin = parts.next();
        let xmax = parts.next().unwrap_or("0");
        let own = self.xid.to_string();
        let running: Vec<_> = parts
            .next()
            .unwrap_or("")
            .split(',')
            .filter(|x| !x.is_empty() && *x != own)
            .collect();
        let running = format!("{{{}}}", running.join(","));
        vec![xmax.to_owned(), running, own, self.seq.to_string()]
    }
}

/// See [`Frontier::after`]; its values are those of [`Frontier::parameters`].
pub(crate) fn condition(xmax: &str, running: &str, own: &str, seq: &str) -> String {
    format!(
        "(xid >= {xmax}::xid8 AND xid <> {own}::xid8 OR xid = ANY ({running}::xid8[])
            OR xid = {own}::xid8 AND seq > {seq}::bigint)"
    )
}

/// The table in which a stream table's refreshes stage the changes of a buffer.
pub(crate) fn staging(id: i64, buffer: i64) -> String {
    format!("pgtrickle.delta_{id}_{buffer}")
}

/// The definition of [`staging`]. Filled and emptied within each refresh, and not logged: its rows never outlive a transaction.
pub(crate) fn staging_table(id: i64, buffer: i64, columns: &[Column]) -> String {
    let typed = columns
        .iter()
        .map(|c| format!(", c{} {}", c.attnum, c.typed()));
    format!(
        "CREATE UNLOGGED TABLE {} (w bigint NOT NULL{})",
        staging(id, buffer),
        typed.collect::<String>()
    )
}

/// How many values [`stage`] returns for a table.
pub(crate) const STAGED: usize = 4;

/// Puts the net changes of tables (buffers and columns) into the staging tables of stream table `id`, if there are no more of them
/// than `most`, an expression that may be NULL: to stage very many takes longer than to recompute many a query, and so does to count
/// them. Returns one row, for each of them: how many rows were staged (`net_<buffer>`), whether changes were lost (`lost_`), how many changes there
/// were before netting (`due_`), and the staging table's rows as the planner takes them (`rows_`); and after all of them `worth`,
/// without which nothing is staged and no change looked at any further, and `last`.
pub(crate) fn stage(
    id: i64,
    tables: &[(i64, &[Column])],
    frontier: &Frontier,
    most: &str,
    last: &str,
) -> (String, Vec<String>) {
    let mut ctes = Vec::new();
    let mut staged = Vec::new();
    let mut counts = Vec::new();
    let mut found = Vec::new();
    for (buffer, columns) in tables {
        let names: Vec<_> = columns.iter().map(|c| format!("c{}", c.attnum)).collect();
        let list = super::comma(&names);
        let cells: Vec<_> = columns
            .iter()
            .zip(&names)
            .map(|(c, n)| Cell::new(n.clone(), c))
            .collect();
        ctes.push(format!(
            "due_{buffer} AS MATERIALIZED (SELECT w{list} FROM pgtrickle.changes_{buffer} WHERE {})",
            condition("$1", "$2", "$3", "$4"),
        ));
        let from = format!("due_{buffer} WHERE w <> 0 AND (SELECT worth FROM choice)");
        staged.push(format!(
            "staged_{buffer} AS (INSERT INTO {} (w{list}) {} RETURNING 1)",
            staging(id, *buffer),
            net("w", &cells, &from)
        ));
        // PostgreSQL reads no more of it than it is asked for.
        counts.push(format!("SELECT FROM due_{buffer}"));
        found.push(format!(
            "(SELECT count(*) FROM staged_{buffer}) AS net_{buffer},
             (SELECT worth FROM choice) AND EXISTS (SELECT FROM due_{buffer} WHERE w = 0) AS lost_{buffer},
             CASE WHEN (SELECT worth FROM choice) THEN (SELECT count(*) FROM due_{buffer}) END AS due_{buffer},
             {} AS rows_{buffer}",
            super::estimated_rows(&staging(id, *buffer))
        ));
    }
    ctes.push(format!(
        "bound AS MATERIALIZED (SELECT {most} AS most),
         choice AS MATERIALIZED (SELECT coalesce(
            (SELECT count(*) FROM ({} LIMIT (SELECT most + 1 FROM bound)) d) <= (SELECT most FROM bound), true) AS worth)",
        counts.join(" UNION ALL ")
    ));
    ctes.append(&mut staged);
    let sql = format!(
        "WITH {}, found AS MATERIALIZED (SELECT {}, (SELECT worth FROM choice) AS worth) SELECT found.*, {last} FROM found",
        ctes.join(", "),
        found.join(", ")
    );
    (sql, frontier.parameters())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_is_narrow_and_leaves_out_the_frontiers_own_transaction() {
        let frontier = Frontier {
            snapshot: "10:20:10,12,15".into(),
            xid: 12,
            seq: 7,
            cluster: String::new(),
        };
        assert_eq!(
            frontier.after(),
            "(xid >= '20'::xid8 AND xid <> '12'::xid8 OR xid = ANY ('{10,15}'::xid8[])
            OR xid = '12'::xid8 AND seq > '7'::bigint)"
        );
    }
}
