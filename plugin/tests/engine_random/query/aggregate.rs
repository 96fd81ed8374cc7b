//! GROUP BY, aggregates, HAVING, grouping sets.

use super::{Feature, Generator, Query, Scope, Usable};
use crate::schema::Column;
use crate::sql::{Sql, name, sql};
use crate::types::Type;

impl Generator<'_> {
    pub(super) fn aggregate(&mut self, depth: usize, outer: &[Usable]) -> Query {
        let from = self.from(depth, outer);
        let scope = Scope {
            own: from.columns,
            outer: outer.to_vec(),
        };
        let conditions = self.conditions(&scope, depth);
        let keys = self.keys(&scope);
        let (mut targets, mut columns) = (Vec::new(), Vec::<Column>::new());
        for (i, key) in keys.iter().enumerate() {
            if self.random.chance(88) {
                let keeps = columns.iter().all(|c| c.name != key.name) && !key.name.is_empty();
                let output = if keeps {
                    key.name.clone()
                } else {
                    format!("k{}", i + 1)
                };
                targets.push(sql![key.sql.clone(), format!(" AS {}", name(&output))]);
                columns.push(Column {
                    name: output,
                    ty: key.ty,
                });
            }
        }
        let least = usize::from(targets.is_empty());
        for i in 0..self.random.between(least, 3) {
            let (call, ty) = self.aggregate_call(&scope, depth);
            let output = format!("c{}", i + 1);
            if columns.iter().any(|c| c.name == output) {
                continue;
            }
            targets.push(sql![call, format!(" AS {output}")]);
            columns.push(Column { name: output, ty });
        }
        let mut group: Vec<_> = keys.iter().map(|k| k.sql.clone()).collect();
        let sets = !group.is_empty() && self.has(Feature::GroupingSets) && self.random.chance(60);
        if sets {
            if self.random.chance(30) {
                targets.push(sql![format!("GROUPING({}) AS grouping", group[0])]);
                columns.push(Column {
                    name: "grouping".to_owned(),
                    ty: Type::Int,
                });
            }
            let list = group.join(", ");
            group = vec![match self.random.below(3) {
                0 => format!("ROLLUP ({list})"),
                1 => format!("CUBE ({list})"),
                _ => format!("GROUPING SETS (({list}), ({}), ())", group[0]),
            }];
        }
        // Windows over groups: ties of these are of no consequence.
        if !sets && self.has(Feature::Window) && self.random.chance(20) {
            let (call, ty) = *self.random.pick(&[
                ("sum(count(*)) OVER ()", Type::Whole),
                ("rank() OVER (ORDER BY count(*))", Type::Big),
                ("max(count(*)) OVER ()", Type::Big),
            ]);
            targets.push(format!("{call} AS among").into());
            columns.push(Column {
                name: "among".to_owned(),
                ty,
            });
        }
        let mut having = Vec::new();
        if self.random.chance(25) {
            having.push(self.having(&scope));
        }
        let rows = if keys.is_empty() {
            1
        } else {
            from.rows.min(12) * if sets { 2 } else { 1 }
        };
        Query {
            sql: sql![
                "SELECT ",
                Sql::commas(targets),
                " FROM ",
                from.sql,
                Sql::conditions(" WHERE ", conditions),
                Sql::List {
                    open: " GROUP BY ",
                    separator: ", ",
                    close: "",
                    items: group.into_iter().map(Sql::from).collect(),
                    least: 0,
                },
                Sql::conditions(" HAVING ", having)
            ],
            columns,
            rows,
        }
    }

    /// Up to two keys. Their text appears twice, in the output and in GROUP BY, so it is no part of its own.
    fn keys(&mut self, scope: &Scope) -> Vec<Usable> {
        let exact: Vec<_> = scope
            .own
            .iter()
            .filter(|c| c.ty.is_exact())
            .cloned()
            .collect();
        let mut keys: Vec<Usable> = Vec::new();
        let n = self.random.weighted(&[(2, 0), (5, 1), (3, 2)]);
        for _ in 0..n {
            if exact.is_empty() {
                break;
            }
            let column = self.random.pick(&exact).clone();
            let sql = &column.sql;
            let expression = |sql: String, ty| Usable {
                sql,
                name: String::new(),
                ty,
            };
            let key = match (column.ty, self.random.below(8)) {
                (Type::Int, 0) => expression(format!("({sql} % 2)"), Type::Int),
                (Type::Int, 1) => expression(format!("COALESCE({sql}, 0)"), Type::Int),
                (Type::Text, 0) => expression(format!("lower({sql})"), Type::Text),
                (Type::Date, 0) => expression(format!("(extract(day FROM {sql}))::int"), Type::Int),
                (_, 2) => expression(format!("({sql} IS NULL)"), Type::Bool),
                (ty, 3) => expression(
                    format!(
                        "CASE WHEN {sql} = {} THEN {sql} END",
                        ty.constant(self.random)
                    ),
                    ty,
                ),
                _ => column,
            };
            if keys.iter().all(|k| k.sql != key.sql) {
                keys.push(key);
            }
        }
        keys
    }

    fn having(&mut self, scope: &Scope) -> Sql {
        let (call, ty) = self.aggregate_call(scope, 0);
        let n = self.random.below(4);
        if ty.is_number() && self.random.chance(70) {
            let operator = self.random.pick(&[">", "<=", "<>"]);
            return sql![call, format!(" {operator} {n}")];
        }
        match self.random.below(3) {
            0 => sql![call, " IS NOT NULL"],
            1 => format!("count(*) > {n}").into(),
            _ => format!("count(*) <= {}", n + 1).into(),
        }
    }

    fn aggregate_call(&mut self, scope: &Scope, depth: usize) -> (Sql, Type) {
        // One of a random type, else the one that always works.
        let ty = *self.random.pick(&Type::ALL);
        match self.aggregate_of(ty, scope, depth) {
            Some(call) => (call, ty),
            None => ("count(*)".into(), Type::Big),
        }
    }

    /// An aggregate with a result of this type. Its argument has a column of the query's own: else it would belong to the
    /// query around.
    pub(super) fn aggregate_of(&mut self, ty: Type, scope: &Scope, depth: usize) -> Option<Sql> {
        let own = Scope {
            own: scope.own.clone(),
            outer: Vec::new(),
        };
        let argument = |g: &mut Self, ty: Type| -> Option<Sql> {
            let column = g.column(ty, &own)?;
            let plain = Sql::from(column.sql);
            Some(match g.random.below(6) {
                0 if ty == Type::Int => sql!["(", plain, " * 2)"],
                1 => sql!["COALESCE(", plain, ", ", ty.constant(g.random), ")"],
                2 => sql![
                    "CASE WHEN ",
                    g.condition(&own, 0, 0),
                    " THEN ",
                    plain,
                    " END"
                ],
                _ => plain,
            })
        };
        let any = |g: &mut Self, exact: bool| -> Option<Sql> {
            let fitting: Vec<_> = own
                .own
                .iter()
                .filter(|c| !exact || c.ty.is_exact())
                .cloned()
                .collect();
            (!fitting.is_empty()).then(|| g.random.pick(&fitting).sql.clone().into())
        };
        let extreme = *self.random.pick(&["min", "max"]);
        let call = match ty {
            Type::Int => match self.random.below(6) {
                0 => {
                    let a = argument(self, ty)?;
                    sql!["percentile_disc(0.5) WITHIN GROUP (ORDER BY ", a, ")"]
                }
                1 => sql!["mode() WITHIN GROUP (ORDER BY ", argument(self, ty)?, ")"],
                _ => sql![extreme, "(", argument(self, ty)?, ")"],
            },
            Type::Big => match self.random.below(7) {
                0 | 1 => "count(*)".into(),
                2 => sql!["count(", any(self, false)?, ")"],
                3 => sql!["count(DISTINCT ", any(self, false)?, ")"],
                4 => sql![extreme, "(", argument(self, ty)?, ")"],
                _ => sql!["sum(", argument(self, Type::Int)?, ")"],
            },
            Type::Text => match self.random.below(3) {
                0 => sql![extreme, "(", argument(self, ty)?, ")"],
                1 => {
                    let a = argument(self, ty)?;
                    let distinct = self.random.pick(&["", "DISTINCT "]);
                    sql![
                        "string_agg(",
                        *distinct,
                        a.clone(),
                        ", ',' ORDER BY ",
                        a,
                        ")"
                    ]
                }
                _ => sql![
                    "array_to_string(array_agg(",
                    any(self, true).map(|a| sql![a.clone(), " ORDER BY ", a])?,
                    "), ';', '*')"
                ],
            },
            Type::Cents => match self.random.below(4) {
                0 => sql![extreme, "(", argument(self, ty)?, ")"],
                1 => sql!["round(avg(", argument(self, Type::Cents)?, "), 2)"],
                _ => sql!["sum(", argument(self, ty)?, ")"],
            },
            Type::Whole => sql!["sum(", argument(self, Type::Big)?, ")"],
            Type::Loose => {
                let of = *self.random.pick(&[
                    Type::Int,
                    Type::Big,
                    Type::Cents,
                    Type::Loose,
                    Type::Loose,
                ]);
                match self.random.below(5) {
                    0 | 1 => sql!["sum(", argument(self, Type::Loose)?, ")"],
                    2 if of == Type::Int => sql!["var_pop(", argument(self, of)?, ")"],
                    _ => sql!["avg(", argument(self, of)?, ")"],
                }
            }
            Type::Bool => {
                let function = *self.random.pick(&["bool_or", "bool_and", "every"]);
                sql![function, "(", self.condition(&own, 0, 1), ")"]
            }
            Type::Date => sql![extreme, "(", argument(self, ty)?, ")"],
            Type::Float => {
                let function = *self.random.pick(&["sum", "min", "max"]);
                sql![function, "(", argument(self, ty)?, ")"]
            }
            Type::Ints => {
                let a = argument(self, Type::Int)?;
                let order = self.random.pick(&["", " DESC", " NULLS FIRST"]);
                sql!["array_agg(", a.clone(), " ORDER BY ", a, *order, ")"]
            }
            Type::Json => {
                let a = argument(self, Type::Int)?;
                sql!["jsonb_agg(", a.clone(), " ORDER BY ", a, ")"]
            }
        };
        // A FILTER belongs to the call; of the calls above two are within another function.
        let text = call.to_string();
        let filtered =
            !text.starts_with("round") && !text.starts_with("array_to") && self.random.chance(18);
        if !filtered {
            return Some(call);
        }
        let condition = self.condition(&own, depth.min(1), 1);
        Some(sql![call, " FILTER (WHERE ", condition, ")"])
    }
}
