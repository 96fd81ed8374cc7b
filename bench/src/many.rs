//! Many stream tables, each on a source of its own, of which one changes: what the others cost.

use std::time::Duration;

use test_support::cpu_time;

use crate::latency::Probe;
use crate::plan::Plan;
use crate::report::{Table, ms, percentile};
use crate::stage;

const SAMPLES: usize = 50;

pub async fn run(plan: &Plan) {
    let server = stage::server();
    let pooler = stage::pooler(&server, 10, true, 2);
    let client = stage::pooled(&pooler).await;
    let mut table = Table::new(
        "A commit into one of many sources, each with a stream table of its own (ms from commit to visible; CPU of the pooler while nothing happens)",
        &[
            "stream tables",
            "idle CPU s/min",
            "slowest of the first 5",
            "p50",
            "p99",
            "refreshes of it",
            "of others",
        ],
    );
    let mut created = 0;
    for tables in [1, plan.many_tables] {
        for n in created + 1..=tables {
            create(&client, n).await;
        }
        created = tables;
        // Until what creation has set in motion is done.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = cpu_time(pooler.pid());
        tokio::time::sleep(plan.idle).await;
        let idle = (cpu_time(pooler.pid()) - before).as_secs_f64() * 60.0 / plan.idle.as_secs_f64();

        let mut probe = Probe::new(
            format!("INSERT INTO source_{tables} VALUES (0, 1)"),
            format!("SELECT number FROM stream_{tables} WHERE kind = 0"),
        );
        // The first refreshes plan and cache, and the pooler looks for what else has happened in its rest.
        let first = probe.time(&pooler, &client, 5).await;
        let began = client.query_one("SELECT clock_timestamp()::text", &[]);
        let began: String = began.await.expect("the time").get(0);
        let times = probe.time(&pooler, &client, SAMPLES).await;
        let refreshes = client
            .query_one(
                "SELECT count(*) FILTER (WHERE name = $1), count(*) FILTER (WHERE name <> $1)
                 FROM pgtrickle.refresh_history WHERE started_at >= $2::text::timestamptz",
                &[&format!("stream_{tables}"), &began],
            )
            .await
            .expect("the history");
        let (own, others): (i64, i64) = (refreshes.get(0), refreshes.get(1));
        assert!(own > 0, "the stream table was not refreshed");
        assert_eq!(others, 0, "refreshes of stream tables that had no change");
        table.row(&[
            tables.to_string(),
            format!("{idle:.2}"),
            ms(percentile(&first, 1.0)),
            ms(percentile(&times, 0.5)),
            ms(percentile(&times, 0.99)),
            own.to_string(),
            others.to_string(),
        ]);
    }
    table.print();
}

/// One source and its stream table.
async fn create(client: &tokio_postgres::Client, n: u32) {
    stage::run(
        client,
        &format!(
            "CREATE TABLE source_{n} (kind int NOT NULL, amount int NOT NULL);
             INSERT INTO source_{n} SELECT 1 + i % 10, i FROM generate_series(1, 100) i"
        ),
    )
    .await;
    stage::run(
        client,
        &format!(
            "CREATE STREAM TABLE stream_{n} AS
             SELECT kind, count(*) AS number, sum(amount) AS total FROM source_{n} GROUP BY kind"
        ),
    )
    .await;
}
