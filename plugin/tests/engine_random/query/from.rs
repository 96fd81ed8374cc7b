//! FROM: tables, views, WITH queries, sub-selects, functions, and joins of them.

use super::{Feature, Generator, MOST_ROWS, Scope, Usable, usable};
use crate::schema::Column;
use crate::sql::{Sql, name, sql};
use crate::types::Type;

/// A FROM clause with the columns it offers.
#[derive(Debug)]
pub(super) struct From {
    pub sql: Sql,
    pub columns: Vec<Usable>,
    pub rows: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    Inner,
    Left,
    Right,
    Full,
    Cross,
    Comma,
    Lateral,
    Using,
    Nested,
}

impl Generator<'_> {
    pub(super) fn from(&mut self, depth: usize, outer: &[Usable]) -> From {
        let mut from = self.source(depth, outer, &[]);
        let joins = self
            .random
            .weighted(&[(4, 0), (4, 1), (2, 2), (usize::from(depth > 0), 3)]);
        for i in 0..joins {
            let outer_join = self.weight(2, Feature::OuterJoin);
            let mut join = self.random.weighted(&[
                (8, Join::Inner),
                (2, Join::Comma),
                (1, Join::Cross),
                (2 * outer_join, Join::Left),
                (outer_join, Join::Right),
                (outer_join, Join::Full),
                (self.weight(2, Feature::Lateral) * depth, Join::Lateral),
                (
                    self.weight(5, Feature::Using) * usize::from(joins == 1),
                    Join::Using,
                ),
                (outer_join * usize::from(depth > 0), Join::Nested),
            ]);
            // Behind a comma nothing on its left can be joined any more.
            if join == Join::Comma && i + 1 < joins {
                join = Join::Cross;
            }
            let Some(joined) = self.join(&mut from, join, depth, outer) else {
                break;
            };
            from = joined;
        }
        from
    }

    /// `None` where it would have too many rows.
    fn join(
        &mut self,
        left: &mut From,
        join: Join,
        depth: usize,
        outer: &[Usable],
    ) -> Option<From> {
        if join == Join::Lateral {
            return self.lateral(left, depth, outer);
        }
        let depth = depth.saturating_sub(1);
        let mut right = self.source(depth, outer, &[]);
        if join == Join::Nested {
            let third = self.source(0, outer, &[]);
            if right.rows * third.rows <= MOST_ROWS {
                let (on, rows) = self.on(&right, &third, outer, 0, false);
                let kind = self.random.pick(&[" JOIN ", " LEFT JOIN ", " FULL JOIN "]);
                let columns = [right.columns.clone(), third.columns].concat();
                let on = if *kind == " FULL JOIN " {
                    self.equality(&right.columns, &columns[right.columns.len()..])?
                } else {
                    on
                };
                right = From {
                    sql: sql!["(", right.sql, *kind, third.sql, " ON ", on, ")"],
                    columns,
                    rows,
                };
            }
        }
        if left.rows * right.rows > MOST_ROWS {
            return None;
        }
        let left_sql = left.sql.clone();
        let product = left.rows * right.rows;
        let columns = [left.columns.clone(), right.columns.clone()].concat();
        let (sql, rows) = match join {
            Join::Cross => (sql![left_sql, " CROSS JOIN ", right.sql], product),
            Join::Comma => (sql![left_sql, ", ", right.sql], product),
            Join::Using => return self.using(left, right),
            Join::Full => {
                let on = self.equality(&left.columns, &right.columns)?;
                (
                    sql![left_sql, " FULL JOIN ", right.sql, " ON ", on],
                    product / 2 + left.rows + right.rows,
                )
            }
            _ => {
                let (on, rows) = self.on(left, &right, outer, depth, join == Join::Inner);
                let kind = match join {
                    Join::Left | Join::Nested => " LEFT JOIN ",
                    Join::Right => " RIGHT JOIN ",
                    _ => " JOIN ",
                };
                (sql![left_sql, kind, right.sql, " ON ", on], rows)
            }
        };
        Some(From {
            sql: Sql::part("from", None, sql),
            columns,
            rows,
        })
    }

    /// A condition between two sides.
    fn on(
        &mut self,
        left: &From,
        right: &From,
        outer: &[Usable],
        depth: usize,
        inner: bool,
    ) -> (Sql, usize) {
        let product = left.rows * right.rows;
        let mut conditions = Vec::new();
        let mut rows = product + left.rows + right.rows;
        if self.random.chance(85)
            && let Some(equality) = self.equality(&left.columns, &right.columns)
        {
            conditions.push(equality);
            rows = product / 3 + left.rows + right.rows;
        }
        if conditions.is_empty() || self.random.chance(20) {
            let own = [left.columns.clone(), right.columns.clone()].concat();
            let scope = Scope {
                own,
                outer: outer.to_vec(),
            };
            let depth = if inner || self.random.chance(20) {
                depth
            } else {
                0
            };
            conditions.push(self.condition(&scope, depth, 1));
        }
        let list = Sql::List {
            open: "",
            separator: " AND ",
            close: "",
            items: conditions,
            least: 1,
        };
        (Sql::part("bool", Some("true".to_owned()), list), rows)
    }

    /// An equality of a column of each side, if some have one type.
    pub(super) fn equality(&mut self, left: &[Usable], right: &[Usable]) -> Option<Sql> {
        let mut pairs = Vec::new();
        for l in left {
            for r in right {
                // Numbers are most likely to match.
                let weight = if l.ty.is_number() { 3 } else { 1 };
                if l.ty == r.ty {
                    pairs.push((weight, (l, r)));
                }
            }
        }
        if pairs.is_empty() {
            return None;
        }
        let (l, r) = self.random.weighted(&pairs);
        let (l, r) = if self.random.chance(50) {
            (l, r)
        } else {
            (r, l)
        };
        Some(format!("{} = {}", l.sql, r.sql).into())
    }

    /// NATURAL JOIN or USING. A common column is offered as the merged one.
    fn using(&mut self, left: &From, right: From) -> Option<From> {
        let common: Vec<_> = left
            .columns
            .iter()
            .filter(|l| {
                right
                    .columns
                    .iter()
                    .any(|r| r.name == l.name && r.ty == l.ty)
            })
            .cloned()
            .collect();
        let clash = left.columns.iter().any(|l| {
            right
                .columns
                .iter()
                .any(|r| r.name == l.name && r.ty != l.ty)
        });
        if common.is_empty() {
            return None;
        }
        let kinds: &[&str] = if self.has(Feature::OuterJoin) {
            &["", "LEFT ", "RIGHT ", "FULL "]
        } else {
            &[""]
        };
        let kind = self.random.pick(kinds);
        let natural = !clash && self.random.chance(30);
        let merged = if natural {
            common
        } else {
            vec![self.random.pick(&common).clone()]
        };
        let mut columns: Vec<_> = merged
            .iter()
            .map(|c| Usable {
                sql: name(&c.name),
                name: c.name.clone(),
                ty: c.ty,
            })
            .collect();
        for column in left.columns.iter().chain(&right.columns) {
            if merged.iter().all(|m| m.name != column.name) || self.random.chance(20) {
                columns.push(column.clone());
            }
        }
        let sql = if natural {
            sql![left.sql.clone(), format!(" NATURAL {kind}JOIN "), right.sql]
        } else {
            sql![
                left.sql.clone(),
                format!(" {kind}JOIN "),
                right.sql,
                format!(" USING ({})", name(&merged[0].name))
            ]
        };
        Some(From {
            sql: Sql::part("from", None, sql),
            columns,
            rows: left.rows * right.rows / 3 + left.rows + right.rows,
        })
    }

    /// A sub-select or function that uses what is left of it.
    fn lateral(&mut self, left: &From, depth: usize, outer: &[Usable]) -> Option<From> {
        let within: Vec<_> = outer.iter().chain(&left.columns).cloned().collect();
        let right = if self.has(Feature::SetFunction) && self.random.chance(40) {
            self.function(&left.columns)
        } else {
            let query = self.query(depth.saturating_sub(1), &within);
            let alias = self.alias();
            let columns = usable(&alias, &query.columns);
            From {
                sql: sql!["LATERAL (", query.sql, format!(") {alias}")],
                columns,
                rows: query.rows,
            }
        };
        if left.rows * right.rows > MOST_ROWS {
            return None;
        }
        let columns = [left.columns.clone(), right.columns].concat();
        let left_join = self.has(Feature::OuterJoin) && self.random.chance(50);
        let sql = if left_join {
            sql![left.sql.clone(), " LEFT JOIN ", right.sql, " ON true"]
        } else {
            sql![left.sql.clone(), " CROSS JOIN ", right.sql]
        };
        Some(From {
            sql: Sql::part("from", None, sql),
            columns,
            rows: left.rows * right.rows + left.rows,
        })
    }

    /// One item of FROM.
    pub(super) fn source(&mut self, depth: usize, outer: &[Usable], left: &[Usable]) -> From {
        let nested = if depth > 0 && self.budget > 0 { 5 } else { 0 };
        match self.random.weighted(&[
            (7, 0),
            (nested, 1),
            (if self.ctes.is_empty() { 0 } else { 6 }, 2),
            (self.weight(1, Feature::SetFunction), 3),
        ]) {
            1 => {
                // Only LATERAL sub-selects see what is left of them; what is around the query all see.
                let query = self.query(depth - 1, outer);
                let alias = self.alias();
                let columns = usable(&alias, &query.columns);
                From {
                    sql: sql!["(", query.sql, format!(") {alias}")],
                    columns,
                    rows: query.rows,
                }
            }
            3 => self.function(left),
            choice => {
                // A WITH query hides a table of its name.
                let hidden = |name: &str| self.ctes.iter().any(|c| c.name == name);
                let relations = if choice == 2 {
                    self.ctes.clone()
                } else {
                    let all = self.relations.iter();
                    all.filter(|r| !hidden(&r.name)).cloned().collect()
                };
                let relation = self.random.pick(&relations).clone();
                let alias = self.alias();
                let mut columns = relation.columns.clone();
                let mut list = String::new();
                if self.random.chance(4) {
                    for (i, column) in columns.iter_mut().enumerate() {
                        column.name = format!("r{i}");
                    }
                    let names: Vec<_> = columns.iter().map(|c| name(&c.name)).collect();
                    list = format!("({})", names.join(", "));
                }
                let sql = format!("{} {alias}{list}", name(&relation.name));
                From {
                    sql: sql.into(),
                    columns: usable(&alias, &columns),
                    rows: relation.rows,
                }
            }
        }
    }

    /// A set-returning function, of a column on its left if there is one.
    fn function(&mut self, left: &[Usable]) -> From {
        let alias = self.alias();
        let fitting: Vec<_> = left
            .iter()
            .filter(|c| matches!(c.ty, Type::Int | Type::Ints))
            .cloned()
            .collect();
        let call = if fitting.is_empty() {
            (*self
                .random
                .pick(&["generate_series(1, 3)", "unnest(ARRAY[1, 1, 2])"]))
            .to_owned()
        } else {
            let column = self.random.pick(&fitting);
            match column.ty {
                Type::Ints => format!("unnest({})", column.sql),
                _ => format!("generate_series(1, least({}, 3))", column.sql),
            }
        };
        let mut columns = vec![Column {
            name: "n".to_owned(),
            ty: Type::Int,
        }];
        let sql = if self.random.chance(30) {
            columns.push(Column {
                name: "o".to_owned(),
                ty: Type::Big,
            });
            format!("{call} WITH ORDINALITY {alias}(n, o)")
        } else {
            format!("{call} {alias}(n)")
        };
        From {
            sql: sql.into(),
            columns: usable(&alias, &columns),
            rows: 3,
        }
    }
}
