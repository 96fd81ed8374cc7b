//! The other operators: DISTINCT, set operations, LIMIT, WITH, VALUES.

use super::{Generator, Query, Scope, Usable, total_order, usable};
use crate::schema::{Column, Relation};
use crate::sql::{Sql, name, sql};
use crate::types::Type;

impl Generator<'_> {
    pub(super) fn distinct(&mut self, depth: usize, outer: &[Usable]) -> Query {
        let from = self.from(depth, outer);
        let scope = Scope {
            own: from.columns,
            outer: outer.to_vec(),
        };
        let (targets, columns) = self.targets(&scope, depth, Type::is_exact);
        let conditions = self.conditions(&scope, depth);
        Query {
            sql: sql![
                "SELECT DISTINCT ",
                Sql::commas(targets),
                " FROM ",
                from.sql,
                Sql::conditions(" WHERE ", conditions)
            ],
            columns,
            rows: from.rows,
        }
    }

    pub(super) fn distinct_on(&mut self, depth: usize, outer: &[Usable]) -> Query {
        let query = self.query(depth - 1, outer);
        let alias = self.alias();
        let columns = usable(&alias, &query.columns);
        let key = self.random.pick(&columns).sql.clone();
        let direction = self.random.pick(&["", " DESC", " NULLS FIRST"]);
        let order = self.directions(&columns);
        Query {
            sql: sql![
                format!("SELECT DISTINCT ON ({key}) {alias}.* FROM ("),
                query.sql,
                format!(") {alias} ORDER BY {key}{direction}, {order}")
            ],
            ..query
        }
    }

    pub(super) fn union_all(&mut self, depth: usize, outer: &[Usable]) -> Query {
        let left = self.query(depth - 1, outer);
        let right = self.query(depth - 1, outer);
        let right = self.conform(right, &left.columns, 0);
        Query {
            sql: sql!["(", left.sql, ") UNION ALL (", right.sql, ")"],
            columns: left.columns,
            rows: left.rows + right.rows,
        }
    }

    pub(super) fn set_operation(&mut self, depth: usize, outer: &[Usable]) -> Query {
        let left = self.query(depth - 1, outer);
        let exact: Vec<_> = left
            .columns
            .iter()
            .map(|c| Column {
                name: c.name.clone(),
                ty: if c.ty.is_exact() { c.ty } else { Type::Cents },
            })
            .collect();
        let left = self.conform(left, &exact, 0);
        let right = self.query(depth - 1, outer);
        let right = self.conform(right, &exact, 0);
        let operator = self.random.pick(&[
            "UNION",
            "INTERSECT",
            "EXCEPT",
            "INTERSECT ALL",
            "EXCEPT ALL",
        ]);
        Query {
            sql: sql!["(", left.sql, format!(") {operator} ("), right.sql, ")"],
            columns: exact,
            rows: left.rows + right.rows,
        }
    }

    /// A total order with random directions.
    fn directions(&mut self, columns: &[Usable]) -> String {
        let order: Vec<_> = total_order(columns)
            .into_iter()
            .map(|sql| {
                let direction =
                    self.random
                        .pick(&["", "", " DESC", " NULLS FIRST", " DESC NULLS LAST"]);
                format!("{sql}{direction}")
            })
            .collect();
        order.join(", ")
    }

    pub(super) fn limit(&mut self, depth: usize, outer: &[Usable]) -> Query {
        let query = self.query(depth - 1, outer);
        let alias = self.alias();
        let columns = usable(&alias, &query.columns);
        let n = self.random.between(1, 4);
        let tail = match self.random.below(4) {
            // All ties are taken, so that any order will do.
            0 => format!(
                "ORDER BY {} FETCH FIRST {n} ROWS WITH TIES",
                self.random.pick(&columns).sql
            ),
            1 => format!("ORDER BY {} OFFSET {n}", self.directions(&columns)),
            2 => format!("ORDER BY {} LIMIT {n} OFFSET 1", self.directions(&columns)),
            _ => format!("ORDER BY {} LIMIT {n}", self.directions(&columns)),
        };
        Query {
            sql: sql![
                format!("SELECT {alias}.* FROM ("),
                query.sql,
                format!(") {alias} {tail}")
            ],
            ..query
        }
    }

    pub(super) fn cte_name(&mut self) -> String {
        // Now and then it has the name of a table.
        if self.random.chance(10) {
            self.relations[0].name.clone()
        } else {
            format!("w{}", self.ctes.len() + 1)
        }
    }

    /// A query that may read a WITH query, to stand behind it.
    pub(super) fn over(&mut self, cte: Relation, depth: usize, outer: &[Usable]) -> Query {
        self.ctes.push(cte);
        let body = self.query(depth, outer);
        self.ctes.pop();
        // Two WITH clauses in a row are no query.
        if body.sql.to_string().starts_with("WITH") {
            let alias = self.alias();
            let sql = sql![
                format!("SELECT {alias}.* FROM ("),
                body.sql,
                format!(") {alias}")
            ];
            Query { sql, ..body }
        } else {
            body
        }
    }

    pub(super) fn with(&mut self, depth: usize, outer: &[Usable]) -> Query {
        let query = self.query(depth - 1, outer);
        let cte = Relation {
            name: self.cte_name(),
            columns: query.columns,
            rows: query.rows,
        };
        let body = self.over(cte.clone(), depth - 1, outer);
        let materialized = self
            .random
            .pick(&["", "", "MATERIALIZED ", "NOT MATERIALIZED "]);
        Query {
            sql: sql![
                format!("WITH {} AS {materialized}(", name(&cte.name)),
                query.sql,
                ") ",
                body.sql
            ],
            ..body
        }
    }

    pub(super) fn values(&mut self, _depth: usize, _outer: &[Usable]) -> Query {
        let types: Vec<_> = (0..self.random.between(1, 3))
            .map(|_| *self.random.pick(&Type::ALL))
            .collect();
        let rows = self.random.between(1, 3);
        let lists = (0..rows)
            .map(|_| {
                let row: Vec<_> = types
                    .iter()
                    .map(|t| {
                        if self.random.chance(15) {
                            t.null()
                        } else {
                            t.constant(self.random)
                        }
                    })
                    .collect();
                Sql::from(format!("({})", row.join(", ")))
            })
            .collect();
        let columns = types
            .iter()
            .enumerate()
            .map(|(i, ty)| Column {
                name: format!("column{}", i + 1),
                ty: *ty,
            })
            .collect();
        Query {
            sql: sql!["VALUES ", Sql::commas(lists)],
            columns,
            rows,
        }
    }
}
