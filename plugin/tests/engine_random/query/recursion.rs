//! WITH RECURSIVE: walks from the rows of a query along a table or another query. What is there makes it a tree, or a graph
//! with circles or without; so each of them has an end of its own, or PostgreSQL would have none.

use super::{Feature, Generator, MOST_ROWS, Query, Scope, Usable, usable};
use crate::schema::{Column, Relation};
use crate::sql::{Sql, name, sql};
use crate::types::Type;

/// Why a walk ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It counts its steps.
    Counted,
    /// Each step leads to a larger number.
    Rising,
    /// UNION, and nothing but values that are there.
    Union,
}

impl Generator<'_> {
    pub(super) fn recursive(&mut self, depth: usize, outer: &[Usable]) -> Query {
        // What depends on the query around it is recomputed as a whole.
        let around = if self.random.chance(10) { outer } else { &[] };
        let start = self.query(depth - 1, around);
        let all = self.random.chance(50);
        let end = if self.random.chance(40) {
            End::Counted
        } else if all {
            End::Rising
        } else {
            End::Union
        };
        let mut columns = vec![Column {
            name: "n".to_owned(),
            ty: Type::Int,
        }];
        for i in 0..self.random.below(3) {
            let ty = if all {
                *self.random.pick(&Type::ALL)
            } else {
                // Others are recomputed as a whole.
                self.random.weighted(&[
                    (6, Type::Int),
                    (3, Type::Big),
                    (6, Type::Text),
                    (3, Type::Bool),
                    (3, Type::Date),
                    (1, Type::Cents),
                ])
            };
            columns.push(Column {
                name: format!("c{}", i + 2),
                ty,
            });
        }
        let start = self.conform(start, &columns, 0);
        let (cte, inner) = (self.cte_name(), self.alias());
        let mut base: Vec<Sql> = (columns.iter())
            .map(|c| plain(c.ty, format!("{inner}.{}", name(&c.name)).into()))
            .collect();
        if end == End::Counted {
            base.push("0".into());
            columns.push(Column {
                name: "steps".to_owned(),
                ty: Type::Int,
            });
        }
        let base = sql![
            "SELECT ",
            Sql::Sequence(separated(base)),
            " FROM (",
            start.sql,
            format!(") {inner}")
        ];
        let step = self.step(&cte, &columns, end, depth - 1);
        let body = self.over(
            Relation {
                name: cte.clone(),
                columns: columns.clone(),
                rows: (start.rows * 4).min(MOST_ROWS / 4),
            },
            depth - 1,
            outer,
        );
        let list: Vec<_> = columns.iter().map(|c| name(&c.name)).collect();
        let union = if all { "UNION ALL" } else { "UNION" };
        Query {
            sql: sql![
                format!("WITH RECURSIVE {}({}) AS ((", name(&cte), list.join(", ")),
                base,
                format!(") {union} SELECT "),
                step,
                ") ",
                body.sql
            ],
            ..body
        }
    }

    /// The recursive term, behind SELECT.
    fn step(&mut self, cte: &str, columns: &[Column], end: End, depth: usize) -> Sql {
        let alias = self.alias();
        let own = usable(&alias, columns);
        let from = sql![format!("{} {alias}", name(cte))];
        let right = self.source(depth.min(1), &[], &[]);
        let on = self.equality(&own[..1], &right.columns);
        let numbers: Vec<_> = (right.columns.iter())
            .filter(|c| c.ty == Type::Int)
            .cloned()
            .collect();
        let mut conditions = Vec::new();
        let mut own_columns = own.clone();
        let mut next = own[0].sql.clone();
        let from = match on {
            Some(on) if !numbers.is_empty() => {
                own_columns.extend(right.columns);
                next = self.random.pick(&numbers).sql.clone();
                let left = self.has(Feature::OuterJoin) && self.random.chance(25);
                let join = if left { " LEFT JOIN " } else { " JOIN " };
                match self.random.below(3) {
                    // The other way round.
                    0 if !left => sql![right.sql, join, from, " ON ", on],
                    1 if !left => {
                        conditions.push(on);
                        sql![from, ", ", right.sql]
                    }
                    _ => sql![from, join, right.sql, " ON ", on],
                }
            }
            _ => from,
        };
        match end {
            End::Counted => {
                let most = self.random.between(1, 3);
                conditions.push(format!("{alias}.steps < {most}").into());
            }
            End::Rising => conditions.push(format!("{next} > {alias}.n").into()),
            End::Union => {}
        }
        let scope = Scope {
            own: own_columns,
            outer: Vec::new(),
        };
        let mut targets = Vec::new();
        for (i, column) in columns.iter().enumerate() {
            let there: Vec<_> = (scope.own.iter())
                .filter(|c| c.ty == column.ty)
                .cloned()
                .collect();
            let value = match end {
                End::Counted if i + 1 == columns.len() => format!("{alias}.steps + 1").into(),
                _ if i == 0 => next.clone().into(),
                // Anything, as long as there is an end.
                End::Counted | End::Rising if self.random.chance(50) => {
                    self.expression(column.ty, &scope, depth.min(1), 1)
                }
                _ => self.random.pick(&there).sql.clone().into(),
            };
            targets.push(plain(column.ty, value));
        }
        let mut all = self.conditions(&scope, depth);
        all.extend(conditions.into_iter().map(|c| sql![c]));
        sql![
            Sql::Sequence(separated(targets)),
            " FROM ",
            from,
            " WHERE ",
            Sql::Sequence(all.into_iter().flat_map(|c| [c, " AND ".into()]).collect()),
            "true"
        ]
    }
}

/// Of the type itself, without a length or scale: PostgreSQL wants the same on both sides.
fn plain(ty: Type, value: Sql) -> Sql {
    match ty {
        Type::Cents | Type::Whole | Type::Loose => sql!["(", value, " + 0)"],
        _ => sql!["(", value, format!(")::{}", ty.sql())],
    }
}

fn separated(items: Vec<Sql>) -> Vec<Sql> {
    let mut all = Vec::new();
    for item in items {
        if !all.is_empty() {
            all.push(", ".into());
        }
        all.push(item);
    }
    all
}
