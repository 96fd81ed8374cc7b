//! The 22 queries of TPC-H as stream tables against REFRESH MATERIALIZED VIEW of the same query, all of them live at once.
//!
//! `TPCH_SCALE` sets the scale factor (default 1, with `BENCH_QUICK=1` 0.1).

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::plan::Plan;
use crate::report::{Table, median, ms, ratio};
use crate::stage::{self, time};

/// One in so many orders, customers, parts, offers and suppliers changes; 0: a single order comes.
const BATCHES: [(u32, &str); 3] = [(0, "one order"), (1000, "0.1 %"), (100, "1 %")];

/// What a query took after a batch.
#[derive(Clone)]
struct Sample {
    refresh: Duration,
    /// What the refresh computed from.
    by: &'static str,
    /// Of the materialized view.
    full: Duration,
}

impl Sample {
    fn faster_by(&self) -> f64 {
        self.full.as_secs_f64() / self.refresh.as_secs_f64()
    }
}

pub async fn run(plan: &Plan) {
    let default = if plan.source_rows.len() > 1 { 1.0 } else { 0.1 };
    let scale = std::env::var("TPCH_SCALE").ok();
    let scale = scale.and_then(|s| s.parse().ok()).unwrap_or(default);
    let server = stage::server();
    let pooler = stage::pooler(&server, 10, true, 2);
    let direct = stage::direct(&server).await;
    let pooled = stage::pooled(&pooler).await;
    ::tpch::load(&direct, scale).await.expect("TPC-H's data");
    stage::run(&direct, "CHECKPOINT").await;
    let bare = writes(&direct, 100).await;
    for (name, query) in ::tpch::QUERIES {
        let create = format!("CREATE STREAM TABLE {name} WITH (schedule = 'manual') AS {query}");
        stage::run(&pooled, &create).await;
        stage::run(
            &direct,
            &format!("CREATE MATERIALIZED VIEW full_{name} AS {query}"),
        )
        .await;
    }
    stage::run(&direct, "VACUUM ANALYZE").await;
    let mut columns = vec!["query".to_owned()];
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); ::tpch::QUERIES.len()];
    let mut recomputed = Vec::new();
    let mut captured = Vec::new();
    for (round, (every, title)) in (1..).zip(BATCHES) {
        columns.extend([title, "by", "full", "faster by"].map(str::to_owned));
        captured.push(writes_of(&direct, round, every).await);
        for ((name, _), samples) in ::tpch::QUERIES.iter().zip(&mut samples) {
            let refresh = time(&pooled, &format!("REFRESH STREAM TABLE {name}")).await;
            let (mode, reason) = last_refresh(&direct, name).await;
            if mode == "full" {
                recomputed.push(format!("  {name}, {title}: {reason}"));
            }
            let by = if mode == "full" { "query" } else { "changes" };
            let full = time(&direct, &format!("REFRESH MATERIALIZED VIEW full_{name}")).await;
            samples.push(Sample { refresh, by, full });
        }
    }
    for (name, _) in ::tpch::QUERIES {
        assert_equal(&pooled, name).await;
    }
    let columns: Vec<_> = columns.iter().map(String::as_str).collect();
    let mut table = Table::new(
        &format!(
            "TPC-H at scale factor {scale}: refresh after a batch that changes six tables (ms)"
        ),
        &columns,
    );
    for ((name, _), samples) in ::tpch::QUERIES.iter().zip(&samples) {
        let mut cells = vec![(*name).to_owned()];
        for sample in samples {
            cells.extend([
                ms(sample.refresh),
                sample.by.to_owned(),
                ms(sample.full),
                ratio(sample.faster_by(), 1.0),
            ]);
        }
        table.row(&cells);
    }
    let mut means = vec!["geometric mean".to_owned()];
    for batch in 0..BATCHES.len() {
        let logs: f64 = samples.iter().map(|s| s[batch].faster_by().ln()).sum();
        let mean = (logs / samples.len() as f64).exp();
        means.extend([
            String::new(),
            String::new(),
            String::new(),
            ratio(mean, 1.0),
        ]);
    }
    table.row(&means);
    table.print();
    if !recomputed.is_empty() {
        println!("  Recomputed from the query, and why:");
        recomputed.iter().for_each(|line| println!("  {line}"));
    }
    println!(
        "  The 1 % batch's own statements: {} ms without stream tables, {} ms with all 22 live ({}).",
        ms(bare),
        ms(captured[2]),
        ratio(captured[2].as_secs_f64(), bare.as_secs_f64())
    );
}

/// The time of a batch that is then rolled back.
async fn writes(client: &Client, every: u32) -> Duration {
    let mut samples = Vec::new();
    for _ in 0..3 {
        stage::run(client, "BEGIN").await;
        let began = Instant::now();
        for statement in ::tpch::batch(3, every) {
            stage::run(client, &statement).await;
        }
        samples.push(began.elapsed());
        stage::run(client, "ROLLBACK").await;
    }
    median(&samples)
}

async fn writes_of(client: &Client, round: u32, every: u32) -> Duration {
    stage::run(client, "BEGIN").await;
    let began = Instant::now();
    for statement in ::tpch::batch(round, every) {
        stage::run(client, &statement).await;
    }
    let took = began.elapsed();
    stage::run(client, "COMMIT").await;
    took
}

/// How the last refresh of a stream table went about it, and why. None is noted that had nothing to do.
async fn last_refresh(client: &Client, name: &str) -> (String, String) {
    let sql = "SELECT mode, coalesce(reason, '') FROM pgtrickle.refresh_history WHERE name = $1 ORDER BY started_at DESC LIMIT 1";
    let row = client.query_opt(sql, &[&name]).await.expect("the history");
    row.map(|row| (row.get(0), row.get(1))).unwrap_or_default()
}

/// A wrong table is not fast.
async fn assert_equal(client: &Client, name: &str) {
    let rows = client
        .simple_query(&format!("VERIFY STREAM TABLE {name}"))
        .await
        .expect("VERIFY");
    let different = rows
        .iter()
        .any(|m| matches!(m, tokio_postgres::SimpleQueryMessage::Row(_)));
    assert!(!different, "{name} is not its query");
}
