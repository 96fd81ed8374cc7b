//! Orders of customers in regions: the sources of `refresh` and `flat`.

use std::ops::RangeInclusive;

use tokio_postgres::Client;

use crate::stage;

/// The first refreshes after CREATE cache catalogs and plans, and teach the pooler what to expect.
pub const WARM_UP: usize = 4;

/// A join with GROUP BY.
pub const BY_REGION: &str = "SELECT c.region, count(*) AS orders, sum(o.amount) AS revenue
    FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region";

pub async fn create(client: &Client) {
    stage::run(
        client,
        "CREATE TABLE customers (id int PRIMARY KEY, region text NOT NULL);
         CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, amount numeric NOT NULL)",
    )
    .await;
}

/// Customers with these ids, in 100 regions.
pub async fn add_customers(client: &Client, ids: RangeInclusive<u32>) {
    let (first, last) = ids.into_inner();
    stage::run(
        client,
        &format!("INSERT INTO customers SELECT n, 'region ' || n % 100 FROM generate_series({first}, {last}) n"),
    )
    .await;
}

/// Orders with these ids; `customer` is an expression of the id, `n`.
pub async fn add_orders(client: &Client, ids: RangeInclusive<u32>, customer: &str) {
    let (first, last) = ids.into_inner();
    stage::run(
        client,
        &format!("INSERT INTO orders SELECT n, {customer}, n % 1000 FROM generate_series({first}, {last}) n"),
    )
    .await;
    // What a load leaves to its first readers is not to be the refreshes'.
    stage::run(client, "VACUUM ANALYZE").await;
    stage::run(client, "CHECKPOINT").await;
}

/// Changes so many of the orders, spread evenly, and others in each round.
pub async fn change(client: &Client, orders: u32, changed: u32, round: usize) {
    let step = orders / changed;
    stage::run(
        client,
        &format!(
            "UPDATE orders SET amount = amount + 1 WHERE id IN
                 (SELECT n * {step} + {round} + 1 FROM generate_series(0, {changed} - 1) n)"
        ),
    )
    .await;
}
