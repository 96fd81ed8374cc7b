//! Refresh of a stream table against REFRESH MATERIALIZED VIEW of the same query.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::plan::Plan;
use crate::report::{Table, median, ms, ratio};
use crate::stage;

const CUSTOMERS: u32 = 10_000;
/// The first ones after CREATE cache catalogs and plans, and teach the pooler what to expect.
const WARM_UP: usize = 4;
const CHANGED: [u32; 3] = [10, 1_000, 10_000];

const QUERY: &str = "SELECT c.region, count(*) AS orders, sum(o.amount) AS revenue
    FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region";

pub async fn run(plan: &Plan) {
    let server = stage::server();
    let pooler = stage::pooler(&server, 10, true, 2);
    let direct = stage::direct(&server).await;
    let pooled = stage::pooled(&pooler).await;
    stage::run(
        &direct,
        &format!(
            "CREATE TABLE customers (id int PRIMARY KEY, region text NOT NULL);
             CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, amount numeric NOT NULL);
             INSERT INTO customers SELECT n, 'region ' || n % 100 FROM generate_series(1, {CUSTOMERS}) n"
        ),
    )
    .await;
    let mut table = Table::new(
        "Refresh after UPDATE of n orders, orders joined with 10000 customers, 100 regions (ms, medians)",
        &[
            "source rows",
            "changed rows",
            "REFRESH STREAM TABLE",
            "REFRESH MATERIALIZED VIEW",
            "faster by",
        ],
    );
    let mut loaded = 0;
    for &rows in &plan.source_rows {
        stage::run(
            &direct,
            &format!(
                "INSERT INTO orders SELECT n, 1 + n % {CUSTOMERS}, n % 1000 FROM generate_series({loaded} + 1, {rows}) n;
                 ANALYZE; CHECKPOINT"
            ),
        )
        .await;
        loaded = rows;
        stage::run(
            &direct,
            &format!("CREATE MATERIALIZED VIEW by_region_full AS {QUERY}"),
        )
        .await;
        stage::run(
            &pooled,
            &format!("CREATE STREAM TABLE by_region WITH (schedule = 'manual') AS {QUERY}"),
        )
        .await;
        let mut full = Vec::new();
        for _ in 0..plan.refreshes.min(3) {
            full.push(time(&direct, "REFRESH MATERIALIZED VIEW by_region_full").await);
        }
        for changed in CHANGED {
            let mut incremental = Vec::new();
            for round in 0..WARM_UP + plan.refreshes {
                let step = rows / changed;
                stage::run(
                    &direct,
                    &format!(
                        "UPDATE orders SET amount = amount + 1 WHERE id IN
                             (SELECT n * {step} + {round} + 1 FROM generate_series(0, {changed} - 1) n)"
                    ),
                )
                .await;
                let took = time(&pooled, "REFRESH STREAM TABLE by_region").await;
                if round >= WARM_UP {
                    incremental.push(took);
                }
            }
            let (incremental, full) = (median(&incremental), median(&full));
            table.row(&[
                rows.to_string(),
                changed.to_string(),
                ms(incremental),
                ms(full),
                ratio(full.as_secs_f64(), incremental.as_secs_f64()),
            ]);
        }
        assert_equal(&direct).await;
        stage::run(&pooled, "DROP STREAM TABLE by_region").await;
        stage::run(&direct, "DROP MATERIALIZED VIEW by_region_full").await;
    }
    table.print();
}

/// A wrong table is not fast.
async fn assert_equal(client: &Client) {
    let sql = format!(
        "SELECT count(*) FROM ((TABLE by_region EXCEPT ALL {QUERY}) UNION ALL ({QUERY} EXCEPT ALL TABLE by_region)) d"
    );
    let row = client.query_one(&sql, &[]).await.expect("comparison");
    assert_eq!(row.get::<_, i64>(0), 0, "the stream table is not its query");
}

async fn time(client: &Client, sql: &str) -> Duration {
    let began = Instant::now();
    stage::run(client, sql).await;
    began.elapsed()
}
