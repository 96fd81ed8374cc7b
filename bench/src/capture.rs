//! What change capture adds to the writes of a source table.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::plan::Plan;
use crate::report::{Table, median, ratio};
use crate::stage;

const BULK: u32 = 100_000;

/// A kind of write. `$table` and `$n` (a number that grows) are put in.
struct Write {
    name: &'static str,
    sql: &'static str,
    /// Whether it is one of many statements, or one statement for many rows.
    single: bool,
    /// Without the wait for the disk, which would hide the rest.
    asynchronous: bool,
}

const WRITES: [Write; 6] = [
    Write {
        name: "INSERT of one row, durable",
        sql: "INSERT INTO $table VALUES ($n, $n % 1000, $n % 97, 'some more text of a row')",
        single: true,
        asynchronous: false,
    },
    Write {
        name: "INSERT of one row, synchronous_commit off",
        sql: "INSERT INTO $table VALUES ($n, $n % 1000, $n % 97, 'some more text of a row')",
        single: true,
        asynchronous: true,
    },
    Write {
        name: "UPDATE of one row, durable",
        sql: "UPDATE $table SET amount = amount + 1 WHERE id = $n",
        single: true,
        asynchronous: false,
    },
    Write {
        name: "UPDATE of one row, synchronous_commit off",
        sql: "UPDATE $table SET amount = amount + 1 WHERE id = $n",
        single: true,
        asynchronous: true,
    },
    Write {
        name: "INSERT of 100000 rows",
        sql: "INSERT INTO $table SELECT $n + i, i % 1000, i % 97, 'some more text of a row' FROM generate_series(1, 100000) i",
        single: false,
        asynchronous: false,
    },
    Write {
        name: "UPDATE of 100000 rows",
        sql: "UPDATE $table SET amount = amount + 1 WHERE id BETWEEN 1 AND 100000",
        single: false,
        asynchronous: false,
    },
];

pub async fn run(plan: &Plan) {
    let server = stage::server();
    let pooler = stage::pooler(&server, 10, true, 2);
    let direct = stage::direct(&server).await;
    for table in ["plain", "captured"] {
        stage::run(
            &direct,
            &format!(
                "CREATE TABLE {table} (id bigint PRIMARY KEY, customer_id int NOT NULL, amount numeric NOT NULL, note text);
                 INSERT INTO {table} SELECT i, i % 1000, i % 97, 'some more text of a row' FROM generate_series(1, {BULK}) i"
            ),
        )
        .await;
    }
    // Not refreshed meanwhile: capture is what is measured.
    let pooled = stage::pooled(&pooler).await;
    stage::run(
        &pooled,
        "CREATE STREAM TABLE by_customer WITH (schedule = 'manual') AS
         SELECT customer_id, count(*) AS orders, sum(amount) AS revenue FROM captured GROUP BY customer_id",
    )
    .await;
    stage::run(&direct, "VACUUM ANALYZE").await;
    stage::run(&direct, "CHECKPOINT").await;

    let mut table = Table::new(
        "Writes on a direct connection, without and with a stream table on their table (µs per statement, medians)",
        &["", "without", "with", "slower by"],
    );
    let mut next = 1_000_000;
    for write in &WRITES {
        let mode = if write.asynchronous { "off" } else { "on" };
        stage::run(&direct, &format!("SET synchronous_commit = {mode}")).await;
        let (mut plain, mut captured) = (Vec::new(), Vec::new());
        let repetitions = if write.single {
            plan.bulk_repetitions * 2
        } else {
            plan.bulk_repetitions
        };
        for _ in 0..repetitions {
            for (name, samples) in [("plain", &mut plain), ("captured", &mut captured)] {
                let statements = if write.single { plan.single_rows } else { 1 };
                let took = batch(&direct, write, name, statements, &mut next).await;
                samples.push(took / u32::try_from(statements).expect("few"));
                // Dead rows and the buffer are not to slow down what comes next.
                if !write.single {
                    stage::run(&pooled, "REFRESH STREAM TABLE by_customer").await;
                    stage::run(&direct, &format!("VACUUM {name}")).await;
                }
            }
        }
        let (plain, captured) = (median(&plain), median(&captured));
        table.row(&[
            write.name.to_owned(),
            format!("{:.0}", plain.as_secs_f64() * 1e6),
            format!("{:.0}", captured.as_secs_f64() * 1e6),
            ratio(captured.as_secs_f64(), plain.as_secs_f64()),
        ]);
    }
    table.print();
}

async fn batch(
    client: &Client,
    write: &Write,
    table: &str,
    statements: usize,
    next: &mut u64,
) -> Duration {
    let texts: Vec<String> = (0..statements)
        .map(|index| {
            *next += if write.single { 1 } else { u64::from(BULK) };
            let n = if write.single && write.sql.starts_with("UPDATE") {
                1 + index as u64 * 97 % u64::from(BULK)
            } else {
                *next
            };
            write
                .sql
                .replace("$table", table)
                .replace("$n", &n.to_string())
        })
        .collect();
    let began = Instant::now();
    for text in &texts {
        stage::run(client, text).await;
    }
    began.elapsed()
}
