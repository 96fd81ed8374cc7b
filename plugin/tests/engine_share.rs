//! Stages that several stream tables have in common.

mod engine_support;

use engine_support::{connect, create_sharing, differences, memory, refresh};
use stream_tables::conn::Conn;
use stream_tables::engine::{self, How, Isolation, Mode, StreamTableId};
use test_support::Postgres;
use tokio_postgres::Client;

const SCHEMA: &str =
    "CREATE TABLE orders (id int PRIMARY KEY, customer int, amount numeric(10, 2));
    CREATE TABLE customers (id int PRIMARY KEY, region text);
    INSERT INTO customers SELECT i, 'r' || i % 4 FROM generate_series(1, 40) i;
    INSERT INTO orders SELECT i, i % 40 + 1, i FROM generate_series(1, 400) i";

/// Two queries over the same groups, written differently.
const BY_REGION: &str = "SELECT c.region, count(*) AS n, max(s.total) AS most
    FROM (SELECT customer, sum(amount) AS total FROM orders GROUP BY customer) s JOIN customers c ON c.id = s.customer GROUP BY c.region";
const LARGE: &str =
    "WITH totals AS (SELECT o.customer AS who, sum(o.amount) FROM orders o GROUP BY o.customer)
    SELECT t.who, t.sum FROM totals t WHERE t.sum > (SELECT avg(u.sum) FROM totals u)";

const WRITES: &[&str] = &[
    "INSERT INTO orders SELECT i, i % 7 + 1, i FROM generate_series(1001, 1010) i",
    "UPDATE orders SET amount = amount + 1 WHERE id % 3 = 0; UPDATE customers SET region = 'r1' WHERE id = 5",
    "DELETE FROM orders WHERE id % 7 = 0",
    "UPDATE orders SET customer = 3 WHERE id BETWEEN 10 AND 20; DELETE FROM customers WHERE id = 9",
    "BEGIN; INSERT INTO orders VALUES (5000, 41, 5), (5001, NULL, 6); DELETE FROM orders WHERE customer = 2; COMMIT",
    "TRUNCATE orders; INSERT INTO orders SELECT i, i % 9, i FROM generate_series(1, 100) i",
    "INSERT INTO orders VALUES (6000, 1, 1)",
];

async fn connected() -> (Postgres, Client) {
    let server = Postgres::start(15);
    let c = connect(&server).await;
    run(&c, SCHEMA).await;
    (server, c)
}

async fn run(c: &Client, sql: &str) {
    c.batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

async fn made(c: &mut Client, name: &str, query: &str) -> StreamTableId {
    let created = create_sharing(c, name, query).await;
    created.unwrap_or_else(|error| panic!("{name}: {error}"))
}

async fn is(c: &mut Client, name: &str, query: &str) {
    assert_eq!(differences(c, name, query).await, [""; 0], "{name}");
}

/// One text for all rows of a query with one column.
async fn list(c: &Client, sql: &str) -> Vec<String> {
    let rows = c
        .query(sql, &[])
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

/// `reader <- shared stage` for each that reads one.
async fn sharing(c: &Client) -> Vec<String> {
    list(
        c,
        "SELECT r.target_name || ' <- ' || p.target_name FROM pgtrickle.catalog p JOIN pgtrickle.source s ON s.relid = p.relid
         JOIN pgtrickle.catalog r ON r.id = s.stream_table WHERE p.shares IS NOT NULL ORDER BY r.id, p.id",
    )
    .await
}

async fn stages(c: &Client) -> Vec<String> {
    let sql =
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relname ~ '^stage_' ORDER BY 1";
    list(c, sql).await
}

/// What there is of ours beside the catalog.
async fn remains(c: &Client) -> Vec<String> {
    list(
        c,
        "SELECT k.relname::text FROM pg_class k WHERE k.relnamespace = 'pgtrickle'::regnamespace
            AND k.relname ~ '[0-9]$' AND k.relkind IN ('r', 'v')
         UNION ALL SELECT p.proname::text FROM pg_proc p WHERE p.pronamespace = 'pgtrickle'::regnamespace AND p.proname ~ '[0-9]$'
         UNION ALL SELECT t.tgname::text FROM pg_trigger t WHERE t.tgname ~ '^pgtrickle'",
    )
    .await
}

async fn dropped(c: &mut Client, id: StreamTableId) {
    run(c, "BEGIN").await;
    engine::drop(c, id, false).await.unwrap();
    run(c, "COMMIT").await;
}

#[tokio::test(flavor = "current_thread")]
async fn what_two_compute_is_computed_once() {
    let (_server, mut c) = connected().await;
    let a = made(&mut c, "a", BY_REGION).await;
    assert_eq!(sharing(&c).await, [""; 0], "one alone shares nothing");
    let b = made(&mut c, "b", LARGE).await;
    refresh(&mut c, a).await;
    let shared = sharing(&c).await;
    assert_eq!(shared.len(), 2, "{shared:?}");
    let names: Vec<_> = shared
        .iter()
        .map(|s| s.split_once(" <- ").unwrap())
        .collect();
    assert_eq!((names[0].0, names[1].0), ("a", "b"));
    assert_eq!(names[0].1, names[1].1, "they read the same one");
    // The average of `b` is a stage of its own; nobody else has one.
    assert_eq!(stages(&c).await, [format!("stage_{b}_1")]);
    for sql in WRITES {
        run(&c, sql).await;
        for id in [b, a] {
            let outcome = refresh(&mut c, id).await;
            let after_truncate = sql.starts_with("TRUNCATE");
            assert!(
                outcome.mode == "incremental" || after_truncate,
                "{sql}: {outcome:?}"
            );
        }
        is(&mut c, "a", BY_REGION).await;
        is(&mut c, "b", LARGE).await;
    }
    // One of them is refreshed more seldom: the shared stage has moved on meanwhile.
    for sql in &WRITES[..3] {
        run(&c, sql).await.to_owned();
        refresh(&mut c, a).await;
        is(&mut c, "a", BY_REGION).await;
        run(&c, "DELETE FROM orders WHERE id >= 1000").await;
    }
    assert_eq!(refresh(&mut c, b).await.mode, "incremental");
    is(&mut c, "b", LARGE).await;
    let lines = engine::explain(&mut c, a, false).await.unwrap().join("\n");
    assert!(
        lines.contains(&format!("Shared stage: pgtrickle.{}, for a, b", names[0].1)),
        "{lines}"
    );
    let visible = list(&c, "SELECT name FROM pgtrickle.stream_tables ORDER BY 1").await;
    assert_eq!(visible, ["a", "b"]);

    dropped(&mut c, a).await;
    assert_eq!(sharing(&c).await.len(), 1);
    run(&c, "UPDATE orders SET amount = 3 WHERE id = 4").await;
    refresh(&mut c, b).await;
    is(&mut c, "b", LARGE).await;
    dropped(&mut c, b).await;
    assert_eq!(remains(&c).await, [""; 0]);
}
