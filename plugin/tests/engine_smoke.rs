//! One stream table of each kind through its life, on one connection.

mod engine_support;

use engine_support::{connect, create, create_as, differences, refresh};
use stream_tables::conn::Conn;
use stream_tables::engine::{self, How, Mode};
use test_support::Postgres;

const SCHEMA: &str = "
    CREATE TABLE customers (id int PRIMARY KEY, region text, \"Full Name\" varchar(20));
    CREATE TABLE orders (id serial PRIMARY KEY, customer_id int, amount numeric(10,2), quantity int, weight float8, note jsonb);
    CREATE INDEX ON orders (customer_id);
    INSERT INTO customers SELECT i, CASE WHEN i % 7 = 0 THEN NULL ELSE 'r' || i % 5 END, 'Name ' || i FROM generate_series(1, 50) i;
    INSERT INTO orders (customer_id, amount, quantity, weight) SELECT i % 50 + 1, i * 1.5, i % 9, i / 3.0 FROM generate_series(1, 1000) i;";

const WRITES: &[&str] = &[
    "INSERT INTO orders (customer_id, amount, quantity, weight) VALUES (3, 9.99, 2, 1.5), (7, NULL, NULL, NULL), (7, 'NaN', 1, 0)",
    "UPDATE orders SET amount = amount + 1 WHERE id % 100 = 3",
    "UPDATE customers SET region = 'new' WHERE id IN (7, 8); DELETE FROM orders WHERE customer_id = 8",
    "DELETE FROM orders WHERE amount = 'NaN'",
    "UPDATE customers SET region = NULL WHERE id = 3; DELETE FROM customers WHERE id = 9",
    "DELETE FROM orders WHERE customer_id IN (SELECT id FROM customers WHERE region = 'r1')",
    "UPDATE orders SET note = '{\"a\": 1.0}' WHERE id < 5",
    "UPDATE orders SET note = '{\"a\": 1.00}' WHERE id < 5",
    "TRUNCATE orders",
    "INSERT INTO orders (customer_id, amount, quantity) VALUES (3, 1, 1)",
];

const QUERIES: &[(&str, &str, &str)] = &[
    ("by_region", "SELECT c.region, count(*) AS orders, sum(o.amount) AS revenue, avg(o.quantity) AS q
        FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region", "incremental"),
    ("flat", "SELECT o.id, c.\"Full Name\", o.amount * 2 AS double, o.note FROM orders o JOIN customers c ON c.id = o.customer_id
        WHERE o.quantity > 1 OR o.note IS NOT NULL", "incremental"),
    ("extremes", "SELECT c.region, min(o.amount), max(o.weight), string_agg(c.\"Full Name\", ',' ORDER BY o.id)
        FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region HAVING count(*) > 2", "incremental"),
    ("total", "SELECT count(*), sum(amount), sum(quantity) FILTER (WHERE quantity > 3) AS big FROM orders", "incremental"),
    ("ranked", "SELECT id, rank() OVER (ORDER BY amount, id) FROM orders", "incremental"),
    ("counted", "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT o.id, n.i FROM orders o, n WHERE n.i < o.quantity", "incremental"),
    ("sided", "SELECT c.id, o.id AS order_id FROM customers c LEFT JOIN orders o ON o.customer_id = c.id AND o.quantity > 1", "incremental"),
    ("both_sides", "SELECT c.id, o.id AS order_id FROM customers c FULL JOIN orders o ON o.customer_id = c.id", "incremental"),
    ("without", "SELECT c.id FROM customers c WHERE NOT EXISTS (SELECT FROM orders o WHERE o.customer_id = c.id AND o.amount > 500)
        OR c.id IN (SELECT o.quantity FROM orders o)", "incremental"),
    ("sums", "SELECT c.id, (SELECT sum(o.amount) FROM orders o WHERE o.customer_id = c.id) AS s FROM customers c", "incremental"),
    ("in_row", "SELECT id, customer_id, lag(id) OVER (PARTITION BY customer_id ORDER BY id) FROM orders", "incremental"),
    ("first", "SELECT DISTINCT ON (customer_id) customer_id, id, amount FROM orders ORDER BY customer_id, amount DESC NULLS LAST, id", "incremental"),
    ("least", "SELECT customer_id, count(*) FROM orders GROUP BY customer_id ORDER BY count(*), customer_id LIMIT 5", "incremental"),
    ("rolled", "SELECT region, \"Full Name\", count(*), GROUPING(region) AS g FROM customers GROUP BY ROLLUP (region, \"Full Name\")", "incremental"),
    ("rest", "SELECT id FROM customers EXCEPT ALL SELECT customer_id FROM orders", "incremental"),
    ("kinds", "SELECT DISTINCT quantity, weight > 2 AS heavy FROM orders", "incremental"),
    ("pairs", "SELECT a.id, b.id AS other FROM orders a JOIN orders b ON a.quantity = b.quantity AND a.customer_id = b.customer_id
        WHERE a.id < b.id", "incremental"),
    ("everybody", "SELECT id, region AS x FROM customers UNION ALL SELECT customer_id, note::text FROM orders", "incremental"),
];

#[tokio::test(flavor = "current_thread")]
async fn every_kind_follows_its_sources_on_every_major() {
    for major in test_support::majors() {
        follows(major).await;
    }
}

async fn follows(major: u32) {
    let server = Postgres::start(major);
    let mut c = connect(&server).await;
    c.batch_execute(SCHEMA).await.unwrap();
    let mut ids = Vec::new();
    for (name, query, mode) in QUERIES {
        let id = create(&mut c, name, query)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let sql = format!(
            "SELECT effective_mode, reason FROM pgtrickle.stream_tables WHERE name = '{name}'"
        );
        let rows = Conn::query(&mut c, &sql).await.unwrap();
        assert_eq!(
            rows[0].text(0),
            Some(*mode),
            "{name}: {:?}",
            rows[0].text(1)
        );
        assert_eq!(
            differences(&mut c, name, query).await,
            [""; 0],
            "{name} after its creation"
        );
        ids.push(id);
    }
    for write in WRITES {
        c.batch_execute(write).await.unwrap();
        for ((name, query, _), id) in QUERIES.iter().zip(&ids) {
            let outcome = refresh(&mut c, *id).await;
            assert_eq!(
                differences(&mut c, name, query).await,
                [""; 0],
                "{name} on {major} after {write}: {outcome:?}"
            );
            assert!(
                !refresh(&mut c, *id).await.changed,
                "{name} on {major}: nothing is left to do"
            );
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn virtual_columns_are_read_and_not_captured() {
    if !test_support::majors().contains(&18) {
        println!("majors are limited to those without virtual columns");
        return;
    }
    let server = Postgres::start(18);
    let mut c = connect(&server).await;
    c.batch_execute("CREATE TABLE t (a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL)")
        .await
        .unwrap();
    let id = create(&mut c, "st", "SELECT a, b FROM t").await.unwrap();
    c.batch_execute("INSERT INTO t VALUES (1), (2)")
        .await
        .unwrap();
    assert_eq!(refresh(&mut c, id).await.mode, "full");
    assert_eq!(
        differences(&mut c, "st", "SELECT a, b FROM t").await,
        [""; 0]
    );
}

#[tokio::test(flavor = "current_thread")]
async fn many_changes_are_recomputed_where_that_is_cheaper() {
    let server = Postgres::start(15);
    let mut c = connect(&server).await;
    // Each change is made dear: the condition is evaluated for the rows it can affect, all of them.
    c.batch_execute(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i % 10 FROM generate_series(1, 3000) i",
    )
    .await
    .unwrap();
    let query = "SELECT a.id FROM t a WHERE a.v < (SELECT count(*) FROM t b WHERE b.v + b.id = a.v + a.id) * 5";
    let id = create_as(&mut c, "st", query, Mode::Auto).await.unwrap();
    let cost = "SELECT full_seconds IS NOT NULL, base_seconds IS NOT NULL, change_seconds IS NOT NULL FROM pgtrickle.catalog";
    let known = async |c: &mut tokio_postgres::Client| {
        let rows = Conn::query(c, cost).await.unwrap();
        (0..3).map(|i| rows[0].is_true(i)).collect::<Vec<_>>()
    };
    assert_eq!(known(&mut c).await, [true, false, false]);
    c.batch_execute("UPDATE t SET v = v + 1 WHERE id = 5")
        .await
        .unwrap();
    assert_eq!(refresh(&mut c, id).await.mode, "incremental");
    assert_eq!(known(&mut c).await, [true, true, false]);
    c.batch_execute("UPDATE t SET v = v + 1 WHERE id <= 100")
        .await
        .unwrap();
    assert_eq!(refresh(&mut c, id).await.mode, "incremental");
    assert_eq!(known(&mut c).await, [true, true, true]);
    // What it is like is written down, so that the test does not depend on how fast the machine is. The last are more than twice as
    // many as ever, which may cost more than in proportion.
    for (updates, full, expected) in [
        (150, 0.001, "full"),
        (150, 1000.0, "incremental"),
        (200, 4.0, "incremental"),
        (450, 9.0, "full"),
    ] {
        c.batch_execute(&format!(
            "UPDATE pgtrickle.catalog SET full_seconds = {full}, base_seconds = 0.01, change_seconds = 0.01;
             UPDATE t SET v = v + 1 WHERE id <= {updates}"
        ))
        .await
        .unwrap();
        let outcome = refresh(&mut c, id).await;
        assert_eq!(outcome.mode, expected, "{outcome:?}");
        if expected == "full" {
            let reason = outcome.reason.unwrap_or_default();
            let told = match updates {
                150 => {
                    "more than 99 changes are expected to take longer than recomputing, which takes 1 ms"
                }
                _ => {
                    "more than 800 changes are expected to take longer than recomputing, which takes 9000 ms"
                }
            };
            assert!(reason.contains(told), "{reason}");
        }
        assert_eq!(differences(&mut c, "st", query).await, [""; 0]);
    }
    // Few changes are taken in one by one whatever it costs.
    c.batch_execute(
        "UPDATE pgtrickle.catalog SET full_seconds = 0; UPDATE t SET v = v + 1 WHERE id = 7",
    )
    .await
    .unwrap();
    assert_eq!(refresh(&mut c, id).await.mode, "incremental");
}

/// PostgreSQL does not compute an aggregate that nobody reads.
#[tokio::test(flavor = "current_thread")]
async fn a_part_that_fails_where_the_query_does_not() {
    let server = Postgres::start(15);
    let mut c = connect(&server).await;
    c.batch_execute(
        "CREATE TABLE t (id int, a int[]); INSERT INTO t VALUES (1, '{1}'), (2, '{1,2}')",
    )
    .await
    .unwrap();
    let query = "SELECT k, count(*) FROM (SELECT id % 2 AS k, array_agg(a) AS unread FROM t GROUP BY 1) s GROUP BY ROLLUP (k)";
    let good = create_as(&mut c, "good", query, Mode::Auto).await.unwrap();
    let reasons = async |c: &mut tokio_postgres::Client| {
        let sql = "SELECT string_agg(effective_mode || ': ' || coalesce(reason, ''), ', ' ORDER BY id) FROM pgtrickle.catalog";
        let rows = Conn::query(c, sql).await.unwrap();
        rows[0].text(0).unwrap_or_default().to_owned()
    };
    assert_eq!(reasons(&mut c).await, "incremental: ");
    c.batch_execute("INSERT INTO t VALUES (4, '{3}')")
        .await
        .unwrap();
    let bad = create_as(&mut c, "bad", query, Mode::Auto).await.unwrap();
    assert_eq!(refresh(&mut c, good).await.mode, "full");
    let demanded = create_as(&mut c, "demanded", query, Mode::Incremental).await;
    assert_eq!(demanded.unwrap_err().code(), "0A000");
    let told = "full: a part of it fails (SQLSTATE 2202E)";
    assert_eq!(reasons(&mut c).await, format!("{told}, {told}"));
    for _ in 0..2 {
        for (id, name) in [(good, "good"), (bad, "bad")] {
            refresh(&mut c, id).await;
            assert_eq!(differences(&mut c, name, query).await, [""; 0]);
        }
        c.batch_execute("INSERT INTO t VALUES (7, NULL)")
            .await
            .unwrap();
    }
    // What the query itself fails with changes nothing.
    c.batch_execute("CREATE TABLE n (a int); INSERT INTO n VALUES (1)")
        .await
        .unwrap();
    let query = "SELECT 1 / min(k) AS q FROM (SELECT a AS k, count(*) FROM n GROUP BY a) s";
    let id = create_as(&mut c, "own", query, Mode::Auto).await.unwrap();
    c.batch_execute("INSERT INTO n VALUES (0)").await.unwrap();
    let error = engine::refresh(&mut c, &engine::Memory::default(), id, How::Auto).await;
    assert_eq!(error.unwrap_err().code(), "22012");
    let demanded = create_as(&mut c, "demanded", query, Mode::Incremental).await;
    assert_eq!(demanded.unwrap_err().code(), "22012");
    c.batch_execute("DELETE FROM n WHERE a = 0").await.unwrap();
    assert_eq!(refresh(&mut c, id).await.mode, "incremental");
    c.batch_execute("INSERT INTO n VALUES (-1)").await.unwrap();
    assert_eq!(refresh(&mut c, id).await.mode, "incremental");
    assert_eq!(differences(&mut c, "own", query).await, [""; 0]);
}
