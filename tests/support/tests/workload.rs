//! The load by itself, without a pooler: what it does must be right on PostgreSQL alone.

use std::time::Duration;

use test_support::workload::{Disturbances, Load, SOURCES, stream_tables};
use test_support::{Postgres, differences, scalar};

#[tokio::test]
async fn runs_on_plain_postgresql() {
    let postgres = Postgres::start(15);
    postgres.psql("postgres", "postgres").run(&[
        "CREATE ROLE app LOGIN PASSWORD 'app'",
        "CREATE DATABASE app OWNER app",
    ]);
    postgres
        .psql("postgres", "app")
        .run(&["ALTER SCHEMA public OWNER TO app"]);
    let client = postgres.client("app", "app").await;
    client.batch_execute(SOURCES).await.expect("sources");
    for table in stream_tables() {
        client
            .batch_execute(&format!("CREATE VIEW {} AS {}", table.name, table.query))
            .await
            .expect(table.query);
    }
    let load = Load::start(&[postgres.port(); 8], 1, Disturbances::None);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let quiet = load.pause().await;
    for table in stream_tables() {
        let (stored, query) = table.sides();
        assert_eq!(
            differences(&client, &stored, &query).await.expect(&query),
            Vec::<String>::new()
        );
        println!(
            "{}: {:?} rows",
            table.name,
            scalar(&client, &format!("SELECT count(*) FROM {}", table.name)).await
        );
    }
    drop(quiet);
    let report = load.finish();
    println!("{report:?}");
    assert_eq!(report.failures, Vec::<String>::new());
    assert!(report.transactions > 300);
    let total = scalar(&client, "SELECT sum(balance) FROM accounts").await;
    assert_eq!(total.as_deref(), Some("40000"));
    // The comparison must be able to fail, also on what `=` does not see.
    let seen = differences(&client, "SELECT 1.0 AS x", "SELECT 1.00 AS x")
        .await
        .expect("compared");
    assert_eq!(seen.len(), 2);
    let seen = differences(&client, "SELECT 1 AS x UNION ALL SELECT 1", "SELECT 1")
        .await
        .expect("compared");
    assert_eq!(seen.len(), 1);
}
