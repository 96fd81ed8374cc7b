//! The 22 queries of TPC-H as stream tables: all of them incremental, and exact after batches that change six tables at once.
//!
//! `TPCH_SCALE` sets the scale factor (default 0.01), `TPCH_MAJOR` the PostgreSQL version.

mod engine_support;

use std::time::{Duration, Instant};

use engine_support::{connect, create, differences, refresh};
use test_support::Postgres;
use tokio::task::LocalSet;

#[tokio::test(flavor = "current_thread")]
async fn all_queries_are_incremental_and_exact() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<f64>().ok());
    let scale = number("TPCH_SCALE").unwrap_or(0.01);
    let major = number("TPCH_MAJOR").unwrap_or(15.0) as u32;
    LocalSet::new()
        .run_until(async move {
            let server = Postgres::start(major);
            let mut c = connect(&server).await;
            tpch::load(&c, scale).await.unwrap();
            let mut ids = Vec::new();
            for (name, query) in tpch::QUERIES {
                let id = create(&mut c, name, query).await.unwrap_or_else(|e| panic!("{name}: {e}"));
                let row = c
                    .query_one("SELECT effective_mode, reason FROM pgtrickle.stream_tables WHERE name = $1", &[&name])
                    .await
                    .unwrap();
                assert_eq!(row.get::<_, String>(0), "incremental", "{name}: {:?}", row.get::<_, Option<String>>(1));
                c.batch_execute(&format!("CREATE MATERIALIZED VIEW full_{name} AS {query}")).await.unwrap();
                ids.push(id);
            }
            for (round, every) in [(0, 0), (1, 1000), (2, 100), (3, 10), (4, 0)] {
                c.batch_execute(&format!("BEGIN; {}; COMMIT", tpch::batch(round, every).join("; "))).await.unwrap();
                let mut times = Vec::new();
                for ((name, query), id) in tpch::QUERIES.iter().zip(&ids) {
                    let begin = Instant::now();
                    let outcome = refresh(&mut c, *id).await;
                    let incremental = begin.elapsed();
                    assert_ne!(outcome.mode, "full", "{name}: {:?}", outcome.reason);
                    let begin = Instant::now();
                    c.batch_execute(&format!("REFRESH MATERIALIZED VIEW full_{name}")).await.unwrap();
                    times.push((name, incremental, begin.elapsed()));
                    assert_eq!(differences(&mut c, name, query).await, [""; 0], "{name} after batch {round}");
                }
                report(every, &times);
            }
        })
        .await;
}

/// Shown with `--nocapture`; nothing is asserted about time.
fn report(every: u32, times: &[(&&str, Duration, Duration)]) {
    println!("one in {every} changed:");
    let mut log = 0.0;
    for (name, incremental, full) in times {
        let ratio = full.as_secs_f64() / incremental.as_secs_f64();
        log += ratio.ln();
        println!(
            "  {name} {:8.1} ms, full {:8.1} ms: {ratio:6.1}x",
            incremental.as_secs_f64() * 1e3,
            full.as_secs_f64() * 1e3
        );
    }
    println!("  geometric mean {:.1}x", (log / times.len() as f64).exp());
}
