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
}

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
        Self {
            setup: schema.statements,
            query,
            batches,
        }
    }

    /// A script for psql that shows it, with the comparison at the end.
    pub fn script(&self) -> String {
        let mut script = String::new();
        for statement in &self.setup {
            writeln!(script, "{statement};").expect("a String");
        }
        writeln!(script, "CREATE STREAM TABLE st AS\n{};", self.query).expect("a String");
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
        }
        writeln!(script, "{};", comparison(&self.query.to_string())).expect("a String");
        script
    }
}

/// The rows that differ between the stream table and its query, by the text of the row, with how many the query has more.
pub fn comparison(query: &str) -> String {
    format!(
        "SELECT sum(w) || ' x ' || row FROM (SELECT 1 AS w, live::text AS row FROM ({query}) live
    UNION ALL SELECT -1, stored::text FROM st stored) u GROUP BY row HAVING sum(w) <> 0"
    )
}
