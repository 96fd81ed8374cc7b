//! Refresh of a stream table against REFRESH MATERIALIZED VIEW of the same query.

use crate::orders;
use crate::plan::Plan;
use crate::report::{Table, median, ms, ratio};
use crate::stage::{self, time};

const CUSTOMERS: u32 = 10_000;
const CHANGED: [u32; 3] = [10, 1_000, 10_000];

pub async fn run(plan: &Plan) {
    let server = stage::server();
    let pooler = stage::pooler(&server, 10, true, 2);
    let direct = stage::direct(&server).await;
    let pooled = stage::pooled(&pooler).await;
    orders::create(&direct).await;
    orders::add_customers(&direct, 1..=CUSTOMERS).await;
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
        orders::add_orders(&direct, loaded + 1..=rows, &format!("1 + n % {CUSTOMERS}")).await;
        loaded = rows;
        stage::run(
            &direct,
            &format!(
                "CREATE MATERIALIZED VIEW by_region_full AS {}",
                orders::BY_REGION
            ),
        )
        .await;
        stage::run(
            &pooled,
            &format!(
                "CREATE STREAM TABLE by_region WITH (schedule = 'manual') AS {}",
                orders::BY_REGION
            ),
        )
        .await;
        let mut full = Vec::new();
        for _ in 0..plan.refreshes.min(3) {
            full.push(time(&direct, "REFRESH MATERIALIZED VIEW by_region_full").await);
        }
        for changed in CHANGED {
            let mut incremental = Vec::new();
            for round in 0..orders::WARM_UP + plan.refreshes {
                orders::change(&direct, rows, changed, round).await;
                let took = time(&pooled, "REFRESH STREAM TABLE by_region").await;
                if round >= orders::WARM_UP {
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
        stage::assert_equal(&direct, "by_region", orders::BY_REGION).await;
        stage::run(&pooled, "DROP STREAM TABLE by_region").await;
        stage::run(&direct, "DROP MATERIALIZED VIEW by_region_full").await;
    }
    table.print();
}
