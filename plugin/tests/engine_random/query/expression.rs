//! Expressions of a wanted type.

use super::{Feature, Generator, Scope, Usable, total_order, usable};
use crate::sql::{Sql, sql};
use crate::types::Type;

impl Generator<'_> {
    /// An expression of type `ty`; sub-selects in it are nested `depth` deep at most, operators `size`.
    pub(super) fn expression(&mut self, ty: Type, scope: &Scope, depth: usize, size: usize) -> Sql {
        let body = self.any_expression(ty, scope, depth, size);
        Sql::part(format!("{ty:?}"), Some(ty.null()), body)
    }

    fn any_expression(&mut self, ty: Type, scope: &Scope, depth: usize, size: usize) -> Sql {
        let column = self.column(ty, scope);
        if size == 0 || self.random.chance(35) {
            return match column {
                Some(column) if self.random.chance(85) => column.sql.into(),
                _ if self.random.chance(10) => ty.null().into(),
                _ => ty.constant(self.random).into(),
            };
        }
        let scalar = if depth > 0 && self.budget > 0 {
            self.weight(3, Feature::Scalar)
        } else {
            0
        };
        let inner = |g: &mut Self, ty| g.expression(ty, scope, depth, size - 1);
        match self
            .random
            .weighted(&[(5, 0), (2, 1), (2, 2), (1, 3), (scalar, 4)])
        {
            0 => self.operator(ty, scope, depth, size - 1),
            1 => {
                let condition = self.condition(scope, depth, size - 1);
                let (yes, no) = (inner(self, ty), inner(self, ty));
                if self.random.chance(30) {
                    return sql!["CASE WHEN ", condition, " THEN ", yes, " END"];
                }
                sql!["CASE WHEN ", condition, " THEN ", yes, " ELSE ", no, " END"]
            }
            2 => {
                let (first, second) = (inner(self, ty), inner(self, ty));
                sql!["COALESCE(", first, ", ", second, ")"]
            }
            // NULLIF shows its first argument, so that equality is all that counts.
            3 => {
                let (first, second) = (inner(self, ty), inner(self, ty));
                sql!["NULLIF(", first, ", ", second, ")"]
            }
            _ => self.scalar(ty, scope, depth),
        }
    }

    /// A column of the type, of those around at times.
    pub(super) fn column(&mut self, ty: Type, scope: &Scope) -> Option<Usable> {
        let of = |columns: &[Usable]| {
            columns
                .iter()
                .filter(|c| c.ty == ty)
                .cloned()
                .collect::<Vec<_>>()
        };
        let (own, outer) = (of(&scope.own), of(&scope.outer));
        if !outer.is_empty() && (own.is_empty() || self.random.chance(30)) {
            return Some(self.random.pick(&outer).clone());
        }
        (!own.is_empty()).then(|| self.random.pick(&own).clone())
    }

    fn operator(&mut self, ty: Type, scope: &Scope, depth: usize, size: usize) -> Sql {
        let mut of = |ty| self.expression(ty, scope, depth, size);
        match ty {
            Type::Int => {
                let (a, b) = (of(Type::Int), of(Type::Int));
                match self.random.below(8) {
                    // Bounded, so that no nesting overflows.
                    0 | 1 => sql!["((", a, " + ", b, ") % 100)"],
                    2 => sql!["((", a, " * ", b, ") % 50)"],
                    3 => sql!["(", a, " / NULLIF(", b, ", 0))"],
                    4 => sql!["greatest(", a, ", ", b, ")"],
                    5 => sql![
                        "length(",
                        self.expression(Type::Text, scope, depth, size),
                        ")"
                    ],
                    6 => sql!["abs(", a, " - ", b, " % 10)"],
                    _ => sql![
                        "cardinality(",
                        self.expression(Type::Ints, scope, depth, size),
                        ")"
                    ],
                }
            }
            Type::Big => {
                let (a, b) = (of(Type::Big), of(Type::Int));
                match self.random.below(3) {
                    0 => sql!["(", a, " % 1000 + ", b, ")"],
                    1 => sql!["(", b, ")::bigint"],
                    _ => sql!["least(", a, ", ", b, ")"],
                }
            }
            Type::Text => {
                let (a, b) = (of(Type::Text), of(Type::Text));
                match self.random.below(7) {
                    0 => sql!["left(", a, " || ", b, ", 8)"],
                    1 => sql!["upper(", a, ")"],
                    2 => sql![
                        "(",
                        self.expression(Type::Int, scope, depth, size),
                        ")::text"
                    ],
                    3 => sql![
                        "(",
                        self.expression(Type::Loose, scope, depth, size),
                        ")::text"
                    ],
                    4 => sql!["substr(", a, ", 1, 2)"],
                    5 => sql![
                        "concat(",
                        a,
                        ", '-', ",
                        self.expression(Type::Date, scope, depth, size),
                        ")"
                    ],
                    _ => sql![
                        "(",
                        self.expression(Type::Json, scope, depth, size),
                        " ->> 'a')"
                    ],
                }
            }
            Type::Cents => {
                let (a, b) = (of(Type::Cents), of(Type::Cents));
                match self.random.below(4) {
                    0 => sql!["(", a, " + ", b, ")"],
                    1 => sql![
                        "round(",
                        self.expression(Type::Loose, scope, depth, size),
                        ", 2)"
                    ],
                    2 => sql![
                        "(",
                        self.expression(Type::Int, scope, depth, size),
                        ")::numeric(14,2)"
                    ],
                    _ => sql!["(", a, " - ", b, ")"],
                }
            }
            Type::Whole => sql!["(", of(Type::Big), ")::numeric"],
            Type::Loose => {
                let (a, b) = (of(Type::Loose), of(Type::Cents));
                match self.random.below(4) {
                    0 => sql!["(", a, " + ", b, ")"],
                    1 => sql![
                        "(",
                        b,
                        " / NULLIF(",
                        self.expression(Type::Int, scope, depth, size),
                        ", 0))"
                    ],
                    2 => sql!["(", b, " * 1.5)"],
                    _ => b,
                }
            }
            Type::Bool => sql!["(", self.condition(scope, depth, size), ")"],
            Type::Date => {
                let (a, n) = (of(Type::Date), of(Type::Int));
                sql!["(", a, " + ", n, " % 5)"]
            }
            Type::Float => {
                let (a, b) = (of(Type::Float), of(Type::Float));
                match self.random.below(3) {
                    0 => sql![
                        "(",
                        self.expression(Type::Int, scope, depth, size),
                        ")::float8"
                    ],
                    _ => sql!["(", a, " + ", b, ")"],
                }
            }
            Type::Ints => {
                let (a, n) = (of(Type::Ints), of(Type::Int));
                match self.random.below(2) {
                    0 => sql!["ARRAY[", n, ", 1]"],
                    _ => sql!["(", a, ")[1:2]"],
                }
            }
            Type::Json => {
                let (n, text) = (of(Type::Int), of(Type::Text));
                match self.random.below(2) {
                    0 => sql!["jsonb_build_object('a', ", n, ")"],
                    _ => sql!["to_jsonb(", text, ")"],
                }
            }
        }
    }

    /// A sub-select of one value: an aggregate, or the first of some order.
    fn scalar(&mut self, ty: Type, scope: &Scope, depth: usize) -> Sql {
        self.budget -= 1;
        let outer = scope.all();
        if self.random.chance(60) {
            let from = self.from(depth - 1, &outer);
            let within = Scope {
                own: from.columns,
                outer,
            };
            if let Some(call) = self.aggregate_of(ty, &within, 0) {
                let conditions = self.conditions(&within, depth - 1);
                return sql![
                    "(SELECT ",
                    call,
                    " FROM ",
                    from.sql,
                    Sql::conditions(" WHERE ", conditions),
                    ")"
                ];
            }
        }
        let outer = scope.all();
        let query = self.query(depth - 1, &outer);
        let alias = self.alias();
        let columns = usable(&alias, &query.columns);
        let order = total_order(&columns).join(", ");
        let within = Scope {
            own: columns,
            outer,
        };
        let expression = self.expression(ty, &within, 0, 1);
        sql![
            "(SELECT ",
            expression,
            " FROM (",
            query.sql,
            format!(") {alias} ORDER BY {order} LIMIT 1)")
        ]
    }
}
