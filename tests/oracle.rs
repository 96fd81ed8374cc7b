//! The oracle: under a random concurrent load every stream table equals its query, as a multiset of
//! row images, at every quiet point.

use std::time::{Duration, Instant};

use rand::RngExt;
use test_support::workload::{Disturbances, Load, SOURCES, stream_tables};
use test_support::{Stack, converges, converges_as, majors, scalar};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");

/// Writers through the pooler and beside it.
const WRITERS: usize = 10;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text:?} is not a number")),
    )
}

#[tokio::test]
async fn every_stream_table_equals_its_query() {
    let seconds = from_environment("ORACLE_SECONDS").unwrap_or(60);
    let seed = from_environment("ORACLE_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    let major = *majors()
        .iter()
        .find(|&&major| major == 15)
        .unwrap_or(&majors()[0]);
    println!("ORACLE_SEED={seed} ORACLE_SECONDS={seconds} PostgreSQL {major}");

    let stack = Stack::start(PGCAT, major);
    let (direct, pooled) = (stack.direct().await, stack.pooled().await);
    direct.batch_execute(SOURCES).await.expect("sources");
    let tables = stream_tables();
    for table in &tables {
        pooled
            .batch_execute(&table.create())
            .await
            .unwrap_or_else(|error| panic!("{}: {error:?}", table.create()));
    }
    // A stream table on a stream table.
    const ON_TOP: &str = "SELECT region, revenue / orders AS mean FROM st_revenue WHERE orders > 3";
    pooled
        .batch_execute(&format!("CREATE STREAM TABLE st_on_top AS {ON_TOP}"))
        .await
        .expect("on top");

    let ports: Vec<u16> = (0..WRITERS)
        .map(|number| {
            if number % 2 == 0 {
                stack.pooler.port()
            } else {
                stack.postgres.port()
            }
        })
        .collect();
    let load = Load::start(&ports, seed, Disturbances::None);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut quiet_points, mut slowest) = (0, Duration::ZERO);
    while Instant::now() < end {
        // Every transaction keeps this sum, so every snapshot a refresh can show has it.
        let look_until =
            (Instant::now() + Duration::from_millis(rand::rng().random_range(2000..5000))).min(end);
        while Instant::now() < look_until {
            let sum = scalar(&direct, "SELECT balance FROM st_all_money").await;
            assert_eq!(sum.as_deref(), Some("40000"), "a state that never was");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Its changes are in the buffers at the quiet point, but in no table before it commits.
        let straggler = stack.direct().await;
        let uncommitted = "BEGIN; INSERT INTO orders (customer_id, amount) VALUES (1, 999);
             INSERT INTO events VALUES (1, 1, 'straggler', 1); INSERT INTO items VALUES (1, 's1', 9, 9)";
        straggler
            .batch_execute(uncommitted)
            .await
            .expect("the straggler");
        let straggler_from = Instant::now();
        let quiet = load.pause().await;
        for table in &tables {
            let (stored, query) = table.sides();
            let took = converges_as(
                &direct,
                &stored,
                &query,
                table.name,
                Duration::from_secs(20),
            )
            .await;
            slowest = slowest.max(took);
        }
        converges(&direct, "st_on_top", ON_TOP, Duration::from_secs(20)).await;
        let reset = if quiet_points % 2 == 0 {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        straggler
            .batch_execute(reset)
            .await
            .expect("the straggler ends");
        for table in &tables {
            let (stored, query) = table.sides();
            converges_as(
                &direct,
                &stored,
                &query,
                table.name,
                Duration::from_secs(20),
            )
            .await;
        }
        quiet_points += 1;
        println!(
            "quiet point {quiet_points}: equal, straggler open {:?}",
            straggler_from.elapsed()
        );
        drop(quiet);
    }
    let report = load.finish();
    println!(
        "{quiet_points} quiet points, {} stream tables, {} transactions, slowest convergence {slowest:?}, errors {:?}",
        tables.len() + 1,
        report.transactions,
        report.errors
    );
    assert_eq!(report.failures, Vec::<String>::new());
    assert!(
        quiet_points > 0 && report.transactions > seconds * 10,
        "the load was no load"
    );
    let modes = "SELECT string_agg(name || ': ' || effective_mode, ', ' ORDER BY name) FROM pgtrickle.stream_tables";
    println!("{}", scalar(&direct, modes).await.unwrap_or_default());
    let history = "SELECT string_agg(concat_ws(' ', n, mode, 'in', average), ', ') FROM (
         SELECT mode, count(*) AS n, date_trunc('milliseconds', avg(duration)) AS average
         FROM pgtrickle.refresh_history GROUP BY mode) h";
    println!(
        "refreshes kept in the history: {}",
        scalar(&direct, history).await.unwrap_or_default()
    );
    let log = stack.postgres.log();
    let ours: Vec<&str> = log
        .split("deadlock detected")
        .skip(1)
        .filter_map(|rest| rest.split("HINT:").next())
        .filter(|detail| detail.contains("pgtrickle."))
        .collect();
    assert!(
        ours.is_empty(),
        "a refresh must give way before PostgreSQL looks for a deadlock: {ours:#?}"
    );
    let errors = "SELECT string_agg(name || ': ' || coalesce(last_error, ''), '; ') FROM pgtrickle.stream_tables WHERE status <> 'active'";
    assert_eq!(scalar(&direct, errors).await, None);
}
