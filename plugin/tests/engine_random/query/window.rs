//! Window functions. Those that depend on the order of peers have a total one.

use super::{Generator, Query, Scope, Usable, total_order};
use crate::schema::Column;
use crate::sql::{Sql, name, sql};
use crate::types::Type;

const FRAMES: [&str; 6] = [
    "ROWS BETWEEN 1 PRECEDING AND CURRENT ROW",
    "ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING",
    "ROWS BETWEEN CURRENT ROW AND 2 FOLLOWING",
    "GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING",
    "ROWS BETWEEN 2 PRECEDING AND CURRENT ROW EXCLUDE CURRENT ROW",
    "RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW",
];

impl Generator<'_> {
    pub(super) fn window(&mut self, depth: usize, outer: &[Usable]) -> Query {
        let from = self.from(depth, outer);
        let scope = Scope {
            own: from.columns,
            outer: outer.to_vec(),
        };
        let (mut targets, mut columns) = self.targets(&scope, 0, |_| true);
        for i in 0..self.random.between(1, 2) {
            let (call, ty) = self.window_call(&scope.own);
            let output = format!("w{}", i + 1);
            if columns.iter().all(|c| c.name != output) {
                targets.push(sql![call, format!(" AS {}", name(&output))]);
                columns.push(Column { name: output, ty });
            }
        }
        let conditions = self.conditions(&scope, depth);
        Query {
            sql: sql![
                "SELECT ",
                Sql::commas(targets),
                " FROM ",
                from.sql,
                Sql::conditions(" WHERE ", conditions)
            ],
            columns,
            rows: from.rows,
        }
    }

    fn window_call(&mut self, columns: &[Usable]) -> (String, Type) {
        let column = self.random.pick(columns).clone();
        let partition = if self.random.chance(60) {
            format!("PARTITION BY {} ", self.random.pick(columns).sql)
        } else {
            String::new()
        };
        let by = self.random.pick(columns).sql.clone();
        let direction = self.random.pick(&["", " DESC", " NULLS FIRST"]);
        let total = format!("{by}{direction}, {}", total_order(columns).join(", "));
        let frame = *self.random.pick(&FRAMES);
        match self.random.below(12) {
            0 => (
                format!("row_number() OVER ({partition}ORDER BY {total})"),
                Type::Big,
            ),
            1 => (
                format!("rank() OVER ({partition}ORDER BY {by}{direction})"),
                Type::Big,
            ),
            2 => (
                format!("dense_rank() OVER ({partition}ORDER BY {by}{direction})"),
                Type::Big,
            ),
            3 => (
                format!("count(*) OVER ({partition}ORDER BY {by}{direction})"),
                Type::Big,
            ),
            4 => (
                format!("lag({}) OVER ({partition}ORDER BY {total})", column.sql),
                column.ty,
            ),
            5 => (
                format!("lead({}, 2) OVER ({partition}ORDER BY {total})", column.sql),
                column.ty,
            ),
            6 => (
                format!(
                    "first_value({}) OVER ({partition}ORDER BY {total} {frame})",
                    column.sql
                ),
                column.ty,
            ),
            7 => (
                format!(
                    "last_value({}) OVER ({partition}ORDER BY {total} {frame})",
                    column.sql
                ),
                column.ty,
            ),
            8 => (
                format!("ntile(3) OVER ({partition}ORDER BY {total})"),
                Type::Int,
            ),
            9 => (
                format!(
                    "count({}) OVER ({partition}ORDER BY {total} {frame})",
                    column.sql
                ),
                Type::Big,
            ),
            _ => {
                let (function, ty) = match column.ty {
                    Type::Int => ("sum", Type::Big),
                    Type::Big => ("sum", Type::Whole),
                    Type::Cents | Type::Loose | Type::Float => ("sum", column.ty),
                    Type::Text | Type::Date => ("max", column.ty),
                    _ => ("count", Type::Big),
                };
                let over = match self.random.below(3) {
                    0 => partition,
                    1 => format!("{partition}ORDER BY {by}{direction}"),
                    _ => format!("{partition}ORDER BY {total} {frame}"),
                };
                (format!("{function}({}) OVER ({over})", column.sql), ty)
            }
        }
    }
}
