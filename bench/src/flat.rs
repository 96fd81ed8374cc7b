//! The time of a refresh against the size of its source, the change being the same: it should not grow.

use std::time::Duration;

use tokio_postgres::Client;

use crate::orders;
use crate::plan::Plan;
use crate::report::{Table, median, ms, ratio};
use crate::stage::{self, time};

const CHANGED: u32 = 100;

/// More orders are more customers, so that what a change touches stays the same.
const ORDERS_PER_CUSTOMER: u32 = 10;

const QUERIES: [(&str, &str); 3] = [
    ("join, GROUP BY", orders::BY_REGION),
    (
        "LEFT JOIN, HAVING",
        "SELECT c.id, c.region, count(o.id) AS orders, sum(o.amount) AS revenue
         FROM customers c LEFT JOIN orders o ON o.customer_id = c.id AND o.amount > 100
         GROUP BY c.id, c.region HAVING count(o.id) >= 10",
    ),
    (
        "window function",
        "SELECT id, customer_id, amount, rank() OVER (PARTITION BY customer_id ORDER BY amount DESC, id) AS place
         FROM orders",
    ),
];

pub async fn run(plan: &Plan) {
    let server = stage::server();
    let pooler = stage::pooler(&server, 10, true, 2);
    let direct = stage::direct(&server).await;
    let pooled = stage::pooled(&pooler).await;
    orders::create(&direct).await;
    stage::run(&direct, "CREATE INDEX ON orders (customer_id)").await;

    let first = plan.flat_rows[0];
    let mut table = Table::new(
        &format!(
            "Refresh after UPDATE of {CHANGED} orders, {ORDERS_PER_CUSTOMER} per customer, against the number of orders (ms, medians)"
        ),
        &[
            "query",
            "orders",
            "incremental",
            "REFRESH STREAM TABLE",
            &format!("to {first} orders"),
            "REFRESH MATERIALIZED VIEW",
            "to the same",
            "faster by",
        ],
    );
    let mut loaded = 0;
    let mut of_first: Vec<(Duration, Duration)> = Vec::new();
    for &rows in &plan.flat_rows {
        let per = ORDERS_PER_CUSTOMER;
        orders::add_customers(&direct, loaded / per + 1..=rows / per).await;
        orders::add_orders(&direct, loaded + 1..=rows, &format!("1 + (n - 1) / {per}")).await;
        loaded = rows;
        for (index, (name, query)) in QUERIES.iter().enumerate() {
            stage::run(
                &direct,
                &format!("CREATE MATERIALIZED VIEW flat_full AS {query}"),
            )
            .await;
            stage::run(
                &pooled,
                &format!("CREATE STREAM TABLE flat WITH (schedule = 'manual') AS {query}"),
            )
            .await;
            // A table that was just filled is vacuumed soon, as everywhere.
            stage::run(&direct, "VACUUM ANALYZE flat").await;
            let mut incremental = Vec::new();
            for round in 0..orders::WARM_UP + plan.refreshes.max(5) {
                orders::change(&direct, rows, CHANGED, round).await;
                let took = time(&pooled, "REFRESH STREAM TABLE flat").await;
                if round >= orders::WARM_UP {
                    incremental.push(took);
                }
            }
            stage::assert_equal(&direct, "flat", query).await;
            let timed = incremental.len();
            let by_changes = by_changes(&direct, timed).await;
            let incremental = median(&incremental);
            let full = time(&direct, "REFRESH MATERIALIZED VIEW flat_full").await;
            if of_first.len() == index {
                of_first.push((incremental, full));
            }
            let (first_incremental, first_full) = of_first[index];
            table.row(&[
                (*name).to_owned(),
                rows.to_string(),
                format!("{by_changes}/{timed}"),
                ms(incremental),
                ratio(incremental.as_secs_f64(), first_incremental.as_secs_f64()),
                ms(full),
                ratio(full.as_secs_f64(), first_full.as_secs_f64()),
                ratio(full.as_secs_f64(), incremental.as_secs_f64()),
            ]);
            stage::run(&pooled, "DROP STREAM TABLE flat").await;
            stage::run(&direct, "DROP MATERIALIZED VIEW flat_full").await;
        }
    }
    table.print();
}

/// How many of the last refreshes were incremental, and not a recompute that promised to be faster.
async fn by_changes(client: &Client, refreshes: usize) -> i64 {
    let sql = format!(
        "SELECT count(*) FILTER (WHERE mode = 'incremental') FROM (
             SELECT mode FROM pgtrickle.refresh_history WHERE name = 'flat'
             ORDER BY started_at DESC LIMIT {refreshes}) last"
    );
    let row = client.query_one(&sql, &[]).await.expect("the history");
    row.get(0)
}
