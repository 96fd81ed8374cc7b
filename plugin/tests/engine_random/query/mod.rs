//! Queries by typed recursion over the operators of SQL. Every query has one answer as a multiset of row images: where
//! an order matters it is total, and values of a type whose equal values may look different ([`Type::Loose`]) are
//! never grouped or made distinct.

mod aggregate;
mod condition;
mod expression;
mod from;
mod operators;
mod recursion;
mod window;

use std::collections::BTreeSet;

use crate::random::Random;
use crate::schema::{Column, Relation, Schema};
use crate::sql::{QUERY, Sql, name, sql};
use crate::types::Type;

/// A query with what its user must know.
#[derive(Debug, Clone)]
pub struct Query {
    pub sql: Sql,
    pub columns: Vec<Column>,
    /// About how many rows it returns at most.
    pub rows: usize,
}

/// A column that an expression can use.
#[derive(Debug, Clone)]
struct Usable {
    /// How it is written.
    sql: String,
    name: String,
    ty: Type,
}

/// What an expression can use: the columns of its own FROM, and those of the queries around it.
#[derive(Debug, Clone, Default)]
struct Scope {
    own: Vec<Usable>,
    outer: Vec<Usable>,
}

impl Scope {
    /// The scope around a query within.
    fn all(&self) -> Vec<Usable> {
        self.outer.iter().chain(&self.own).cloned().collect()
    }
}

/// What a case may use. Each has a part of it, so that rare operators meet often (and some cases stay simple).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Feature {
    Aggregate,
    Cte,
    Distinct,
    DistinctOn,
    GroupingSets,
    Lateral,
    Limit,
    OuterJoin,
    Recursive,
    Scalar,
    SetFunction,
    SetOperation,
    Subquery,
    Using,
    Values,
    Window,
}

const FEATURES: [Feature; 16] = [
    Feature::Aggregate,
    Feature::Cte,
    Feature::Distinct,
    Feature::DistinctOn,
    Feature::GroupingSets,
    Feature::Lateral,
    Feature::Limit,
    Feature::OuterJoin,
    Feature::Recursive,
    Feature::Scalar,
    Feature::SetFunction,
    Feature::SetOperation,
    Feature::Subquery,
    Feature::Using,
    Feature::Values,
    Feature::Window,
];

/// Joins that may have more rows than this are not made.
const MOST_ROWS: usize = 1500;

#[derive(Debug)]
pub struct Generator<'a> {
    random: &'a mut Random,
    relations: Vec<Relation>,
    /// WITH queries in scope.
    ctes: Vec<Relation>,
    features: BTreeSet<Feature>,
    /// How many more queries may be nested anywhere.
    budget: usize,
    aliases: usize,
}

impl<'a> Generator<'a> {
    pub fn new(random: &'a mut Random, schema: &Schema) -> Self {
        let share = random.weighted(&[(4, 15), (3, 40), (2, 100)]);
        let features = FEATURES
            .into_iter()
            .filter(|_| random.chance(share))
            .collect();
        let tables = schema.tables.iter().map(|t| t.relation.clone());
        Self {
            relations: tables.chain(schema.views.iter().cloned()).collect(),
            ctes: Vec::new(),
            features,
            budget: random.between(2, 9),
            aliases: 0,
            random,
        }
    }

    /// The query of a stream table.
    pub fn top(&mut self) -> Query {
        // What can be kept incrementally deserves more than its share of all shapes.
        let depth = self
            .random
            .weighted(&[(1, 0), (3, 1), (3, 2), (2, 3), (2, 4)]);
        let query = match self.random.below(10) {
            0..3 => self.aggregate(depth, &[]),
            3 => self.distinct(depth, &[]),
            4 if self.has(Feature::Recursive) => self.recursive(depth.max(1), &[]),
            _ => self.query(depth, &[]),
        };
        self.named(query)
    }

    /// The query of a view.
    pub fn view(&mut self) -> Query {
        let query = self.query(1, &[]);
        self.named(query)
    }

    fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }

    fn weight(&self, weight: usize, feature: Feature) -> usize {
        if self.has(feature) { weight } else { 0 }
    }

    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("s{}", self.aliases)
    }

    /// A query that may use the columns around it.
    fn query(&mut self, depth: usize, outer: &[Usable]) -> Query {
        if depth == 0 || self.budget == 0 {
            return self.select(0, outer);
        }
        self.budget -= 1;
        let choices = [
            (8, Self::select as fn(&mut Self, usize, &[Usable]) -> Query),
            (3, Self::union_all),
            (self.weight(5, Feature::Aggregate), Self::aggregate),
            (self.weight(2, Feature::Distinct), Self::distinct),
            (self.weight(2, Feature::DistinctOn), Self::distinct_on),
            (self.weight(4, Feature::SetOperation), Self::set_operation),
            (self.weight(5, Feature::Window), Self::window),
            (self.weight(3, Feature::Limit), Self::limit),
            (self.weight(3, Feature::Cte), Self::with),
            (self.weight(4, Feature::Recursive), Self::recursive),
            (self.weight(1, Feature::Values), Self::values),
        ];
        let make = self.random.weighted(&choices);
        let query = make(self, depth, outer);
        self.named(query)
    }

    /// Marks a query as a part that the shrinker may replace.
    fn named(&mut self, query: Query) -> Query {
        if let Sql::Part { .. } = query.sql {
            return query;
        }
        let columns = &query.columns;
        let sort = format!("{QUERY} {columns:?}");
        let simplest: Vec<_> = columns
            .iter()
            .map(|c| format!("{} AS {}", c.ty.constant(self.random), name(&c.name)))
            .collect();
        let simplest = format!("SELECT {}", simplest.join(", "));
        Query {
            sql: Sql::part(sort, Some(simplest), query.sql),
            ..query
        }
    }

    /// SELECT … FROM … WHERE.
    fn select(&mut self, depth: usize, outer: &[Usable]) -> Query {
        let from = self.from(depth, outer);
        let scope = Scope {
            own: from.columns,
            outer: outer.to_vec(),
        };
        let (mut targets, mut columns) = self.targets(&scope, depth, |_| true);
        let mut rows = from.rows;
        if self.has(Feature::SetFunction) && rows < MOST_ROWS / 3 && self.random.chance(15) {
            let n = self.expression(Type::Int, &scope, 0, 0);
            targets.push(sql!["generate_series(1, least(", n, ", 3)) AS series"]);
            columns.push(Column {
                name: "series".to_owned(),
                ty: Type::Int,
            });
            rows *= 3;
        }
        let conditions = self.conditions(&scope, depth);
        if !conditions.is_empty() {
            rows = rows.div_ceil(2);
        }
        Query {
            sql: sql![
                "SELECT ",
                Sql::commas(targets),
                " FROM ",
                from.sql,
                Sql::conditions(" WHERE ", conditions)
            ],
            columns,
            rows,
        }
    }

    /// Output columns of types that are wanted.
    fn targets(
        &mut self,
        scope: &Scope,
        depth: usize,
        wanted: fn(Type) -> bool,
    ) -> (Vec<Sql>, Vec<Column>) {
        let (mut targets, mut columns) = (Vec::new(), Vec::<Column>::new());
        for i in 0..self.random.between(1, 4) {
            let usable: Vec<_> = scope.own.iter().filter(|c| wanted(c.ty)).cloned().collect();
            let (expression, column) = if !usable.is_empty() && self.random.chance(65) {
                let column = self.random.pick(&usable).clone();
                let keeps = columns.iter().all(|c| c.name != column.name) && self.random.chance(80);
                let name = if keeps {
                    column.name
                } else {
                    format!("c{}", i + 1)
                };
                (
                    Sql::from(column.sql),
                    Column {
                        name,
                        ty: column.ty,
                    },
                )
            } else {
                let ty = self.type_for(scope, wanted);
                let expression = self.expression(ty, scope, depth, 2);
                (
                    expression,
                    Column {
                        name: format!("c{}", i + 1),
                        ty,
                    },
                )
            };
            if columns.iter().any(|c| c.name == column.name) {
                continue;
            }
            targets.push(sql![expression, format!(" AS {}", name(&column.name))]);
            columns.push(column);
        }
        (targets, columns)
    }

    /// A type to make an expression of: mostly one that is there already.
    fn type_for(&mut self, scope: &Scope, wanted: fn(Type) -> bool) -> Type {
        let there: Vec<_> = scope
            .own
            .iter()
            .map(|c| c.ty)
            .filter(|t| wanted(*t))
            .collect();
        if !there.is_empty() && self.random.chance(75) {
            return *self.random.pick(&there);
        }
        let all: Vec<_> = Type::ALL.into_iter().filter(|t| wanted(*t)).collect();
        *self.random.pick(&all)
    }

    /// As a query with exactly these columns.
    fn conform(&mut self, query: Query, columns: &[Column], depth: usize) -> Query {
        if query.columns == columns {
            return query;
        }
        let alias = self.alias();
        let own = usable(&alias, &query.columns);
        let scope = Scope {
            own,
            outer: Vec::new(),
        };
        let mut targets = Vec::new();
        for column in columns {
            let expression = self.expression(column.ty, &scope, depth.min(1), 1);
            targets.push(sql![expression, format!(" AS {}", name(&column.name))]);
        }
        let made = Query {
            sql: sql![
                "SELECT ",
                Sql::commas(targets),
                " FROM (",
                query.sql,
                format!(") {alias}")
            ],
            columns: columns.to_vec(),
            rows: query.rows,
        };
        self.named(made)
    }
}

/// The columns of something in FROM under an alias.
fn usable(alias: &str, columns: &[Column]) -> Vec<Usable> {
    columns
        .iter()
        .map(|c| Usable {
            sql: format!("{alias}.{}", name(&c.name)),
            name: c.name.clone(),
            ty: c.ty,
        })
        .collect()
}

/// Expressions that order rows so that only equal images are ties.
fn total_order(columns: &[Usable]) -> Vec<String> {
    columns
        .iter()
        .map(|c| {
            if c.ty.is_exact() {
                c.sql.clone()
            } else {
                format!("{}::text", c.sql)
            }
        })
        .collect()
}
