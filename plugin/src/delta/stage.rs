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
    fn parameters(&self) -> Vec<String> {
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

fn condition(xmax: &str, running: &str, own: &str, seq: &str) -> String {
    format!(
        "(xid >= {xmax}::xid8 AND xid <> {own}::xid8 OR xid = ANY ({running}::xid8[])
            OR xid = {own}::xid8 AND seq > {seq}::bigint)"
    )
}

/// Puts the net change of a table into its staging table. Returns one row: how many rows were staged, whether changes
/// were lost, how many changes there were before netting, and the staging table's rows as the planner takes them.
pub(crate) fn stage(buffer: i64, frontier: &Frontier, columns: &[Column]) -> (String, Vec<String>) {
    let names: Vec<_> = columns.iter().map(|c| format!("c{}", c.attnum)).collect();
    let list = super::comma(&names);
    let cells: Vec<_> = columns
        .iter()
        .zip(&names)
        .map(|(c, n)| Cell::new(n.clone(), c))
        .collect();
    let sql = format!(
        "WITH due AS MATERIALIZED (SELECT w{list} FROM pgtrickle.changes_{buffer} WHERE {}),
         staged AS (INSERT INTO pgtrickle.delta_{buffer} (w{list}) {} RETURNING 1)
         SELECT (SELECT count(*) FROM staged), EXISTS (SELECT FROM due WHERE w = 0), (SELECT count(*) FROM due),
            {}",
        condition("$1", "$2", "$3", "$4"),
        net("w", &cells, "due WHERE w <> 0"),
        super::estimated_rows(&format!("pgtrickle.delta_{buffer}"))
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
