//! A case: tables with data, a query, batches of writes. All of it follows from the seed.

use std::fmt::Write as _;

use crate::dml::{self, Batch};
use crate::query::Generator;
use crate::random::Random;
use crate::schema::{self, Relation};
use crate::sql::{Sql, name, sql};

#[derive(Debug, Clone)]
pub struct Case {
    /// Tables, rows and views.
    pub setup: Vec<Sql>,
    pub query: Sql,
    pub batches: Vec<Batch>,
    /// Queries of further stream tables, around that query: they share its stages.
    pub others: &'static [Around],
}

/// A query around another.
#[derive(Debug, Clone, Copy)]
pub struct Around {
    pub name: &'static str,
    before: &'static str,
    after: &'static str,
}

impl Around {
    pub fn query(self, query: &str) -> String {
        [self.before, query, self.after].concat()
    }
}

const OTHERS: &[Around] = &[
    Around {
        name: "other",
        before: "SELECT * FROM (",
        after: ") around",
    },
    Around {
        name: "another",
        before: "SELECT count(*) AS n FROM (",
        after: ") around",
    },
];

impl Case {
    pub fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut schema = schema::generate(&mut random);
        if random.chance(30) {
            let view = Generator::new(&mut random, &schema).view();
            schema
                .statements
                .push(sql![format!("CREATE VIEW {} AS ", name("View")), view.sql]);
            schema.views.push(Relation {
                name: "View".to_owned(),
                columns: view.columns,
                rows: view.rows,
            });
        }
        let query = Generator::new(&mut random, &schema).top().sql;
        let batches = dml::generate(&mut random, &schema);
        let others = if random.chance(25) { OTHERS } else { &[] };
        Self {
            setup: schema.statements,
            query,
            batches,
            others,
        }
    }

    /// A script for psql that shows it, with the comparison at the end.
    pub fn script(&self) -> String {
        let mut script = String::new();
        for statement in &self.setup {
            writeln!(script, "{statement};").expect("a String");
        }
        for (name, query) in self.tables() {
            writeln!(script, "CREATE STREAM TABLE {name} AS\n{query};").expect("a String");
        }
        for batch in &self.batches {
            let (begin, end) = if batch.together {
                ("BEGIN;\n", "COMMIT;\n")
            } else {
                ("", "")
            };
            script.push_str(begin);
            for statement in &batch.statements {
                writeln!(script, "{statement};").expect("a String");
            }
            script.push_str(end);
            let full = if batch.full { " FULL" } else { "" };
            writeln!(script, "REFRESH STREAM TABLE st{full};").expect("a String");
            for other in self.others {
                writeln!(script, "REFRESH STREAM TABLE {};", other.name).expect("a String");
            }
        }
        for (name, query) in self.tables() {
            writeln!(script, "{};", comparison(name, &query)).expect("a String");
        }
        script
    }

    /// The stream tables and their queries.
    pub fn tables(&self) -> Vec<(&'static str, String)> {
        let query = self.query.to_string();
        let others = self.others.iter();
        let mut tables: Vec<_> = others
            .map(|other| (other.name, other.query(&query)))
            .collect();
        tables.insert(0, ("st", query));
        tables
    }
}

/// The rows that differ between the stream table and its query, by the text of the row, with how many the query has more.
pub fn comparison(name: &str, query: &str) -> String {
    format!(
        "SELECT sum(w) || ' x ' || row FROM (SELECT 1 AS w, live::text AS row FROM ({query}) live
    UNION ALL SELECT -1, stored::text FROM {name} stored) u GROUP BY row HAVING sum(w) <> 0"
    )
}
