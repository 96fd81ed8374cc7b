//! Stream tables that share a stage, kept by the worker.

use std::time::Duration;

use test_support::{Stack, converges, refused, scalar};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::{PGCAT, SHORTLY, eventually, run};

const SOURCES: &str =
    "CREATE TABLE orders (id serial PRIMARY KEY, customer int, amount numeric(10, 2), note text);
    CREATE TABLE customers (id int PRIMARY KEY, region text);
    INSERT INTO customers SELECT i, 'r' || i % 4 FROM generate_series(1, 40) i;
    INSERT INTO orders (customer, amount) SELECT i % 40 + 1, i FROM generate_series(1, 400) i";

/// They share the totals.
const BY_REGION: &str = "SELECT c.region, max(s.total) AS most
    FROM (SELECT customer, sum(amount) AS total FROM orders GROUP BY customer) s JOIN customers c ON c.id = s.customer GROUP BY c.region";
const LARGE: &str = "SELECT s.customer, s.total FROM (SELECT customer, sum(amount) AS total FROM orders GROUP BY customer) s WHERE s.total > 1500";
const ALL: &str = "SELECT sum(s.total) AS total, count(*) AS customers
    FROM (SELECT customer, sum(amount) AS total FROM orders GROUP BY customer) s";

const WRITES: &[&str] = &[
    "INSERT INTO orders (customer, amount) SELECT i % 7 + 1, i FROM generate_series(1, 10) i",
    "UPDATE orders SET amount = amount + 1 WHERE id % 3 = 0; UPDATE customers SET region = 'r1' WHERE id = 5",
    "DELETE FROM orders WHERE id % 7 = 0",
    "TRUNCATE orders; INSERT INTO orders (customer, amount) SELECT i % 9, i * 40 FROM generate_series(1, 100) i",
    "UPDATE orders SET customer = 3 WHERE customer = 4",
];

/// `reader <- shared stage`, all of them.
const SHARING: &str = "SELECT coalesce(string_agg(r.target_name, ' ' ORDER BY r.id), '') || ' ' || count(DISTINCT p.id)
    FROM pgtrickle.catalog p JOIN pgtrickle.source s ON s.relid = p.relid JOIN pgtrickle.catalog r ON r.id = s.stream_table
    WHERE p.shares IS NOT NULL";

async fn create(client: &Client, name: &str, options: &str, query: &str) {
    run(
        client,
        &format!("CREATE STREAM TABLE {name} {options} AS {query}"),
    )
    .await;
}

#[tokio::test]
async fn each_is_refreshed_at_its_own_pace() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(&pooled, SOURCES).await;
    create(&pooled, "live", "", BY_REGION).await;
    create(&pooled, "often", "WITH (schedule = '1s')", LARGE).await;
    create(&pooled, "by_hand", "WITH (schedule = 'manual')", ALL).await;
    // The first is planned anew by the worker, without a write.
    eventually(&direct, SHARING, "live often by_hand 1").await;
    let before = scalar(&direct, "SELECT total::text FROM by_hand").await;
    for write in WRITES {
        run(&direct, write).await;
        converges(&direct, "live", BY_REGION, SHORTLY).await;
        converges(&direct, "often", LARGE, SHORTLY).await;
    }
    assert_eq!(
        scalar(&direct, "SELECT total::text FROM by_hand").await,
        before
    );
    run(&pooled, "REFRESH STREAM TABLE by_hand").await;
    converges(&direct, "by_hand", ALL, Duration::ZERO).await;
    // Nobody is live any more.
    run(&pooled, "ALTER STREAM TABLE live SUSPEND").await;
    for write in &WRITES[..3] {
        run(&direct, write).await;
        run(&pooled, "REFRESH STREAM TABLE by_hand").await;
        converges(&direct, "by_hand", ALL, Duration::ZERO).await;
        converges(&direct, "often", LARGE, SHORTLY).await;
    }
    run(
        &pooled,
        "ALTER STREAM TABLE live RESUME; DROP STREAM TABLE often",
    )
    .await;
    converges(&direct, "live", BY_REGION, SHORTLY).await;
    run(&direct, WRITES[1]).await;
    converges(&direct, "live", BY_REGION, SHORTLY).await;
    run(
        &pooled,
        "VERIFY STREAM TABLE live; DROP STREAM TABLE live, by_hand",
    )
    .await;
    let left = "SELECT count(*)::text FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname ~ '[0-9]$'";
    assert_eq!(scalar(&direct, left).await.as_deref(), Some("0"));
}

/// What is read together is of one moment, and each change is taken in by one transaction.
#[tokio::test]
async fn they_move_together() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(&pooled, SOURCES).await;
    create(&pooled, "large", "", LARGE).await;
    create(&pooled, "all_of_them", "", ALL).await;
    eventually(&direct, SHARING, "large all_of_them 1").await;
    run(&direct, "UPDATE orders SET amount = 5000").await;
    let same = "SELECT (SELECT sum(total) FROM large) = (SELECT total FROM all_of_them)";
    eventually(
        &direct,
        &format!("SELECT ({same} AND (SELECT total FROM all_of_them) = 2000000)::text"),
        "true",
    )
    .await;
    let writer = stack.direct().await;
    let write = async {
        for i in 1..200 {
            run(
                &writer,
                &format!(
                    "UPDATE orders SET amount = amount + {i} WHERE id % 50 = {}",
                    i % 50
                ),
            )
            .await;
        }
    };
    let look = async {
        for _ in 0..200 {
            let row = direct.query_one(same, &[]).await.expect(same);
            assert!(row.get::<_, bool>(0), "of two moments");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    tokio::join!(write, look);
    converges(&direct, "large", LARGE, SHORTLY).await;
    converges(&direct, "all_of_them", ALL, SHORTLY).await;
    let explained = pooled
        .simple_query("EXPLAIN STREAM TABLE large")
        .await
        .expect("EXPLAIN");
    let lines = explained.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let lines = lines.collect::<Vec<_>>().join("\n");
    assert!(
        lines.contains("Refreshed together with: all_of_them\n"),
        "{lines}"
    );
    assert!(
        lines.contains("\nShared stage: pgtrickle.shared_"),
        "{lines}"
    );
    assert!(lines.contains(", for large, all_of_them\n"), "{lines}");
}

/// Nobody has heard of what they share.
#[tokio::test]
async fn ddl_knows_the_stream_tables_only() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(&pooled, SOURCES).await;
    create(&pooled, "large", "", LARGE).await;
    create(&pooled, "totals", "", ALL).await;
    eventually(&direct, SHARING, "large totals 1").await;
    for (sql, detail) in [
        (
            "DROP TABLE orders",
            "stream table large depends on table orders\nstream table totals depends on table orders",
        ),
        (
            "ALTER TABLE orders DROP COLUMN amount",
            "stream table large depends on column amount of table orders",
        ),
    ] {
        let error = refused(&pooled, sql).await;
        assert_eq!(
            (error.code().code(), error.detail()),
            ("2BP01", Some(detail)),
            "{sql}"
        );
    }
    run(
        &pooled,
        "ALTER TABLE orders ALTER COLUMN amount TYPE numeric(12, 4); ALTER TABLE orders DROP COLUMN note;
         ALTER TABLE orders RENAME amount TO price; ALTER TABLE orders RENAME TO sales",
    )
    .await;
    let renamed = |query: &str| query.replace("amount", "price").replace("orders", "sales");
    run(
        &direct,
        "UPDATE sales SET price = price + 0.0001 WHERE id % 2 = 0",
    )
    .await;
    for (name, query) in [("large", LARGE), ("totals", ALL)] {
        converges(&direct, name, &renamed(query), SHORTLY).await;
    }
    eventually(&direct, SHARING, "large totals 1").await;
    let shown = pooled
        .simple_query("SHOW STREAM TABLES")
        .await
        .expect("SHOW");
    let rows = shown
        .iter()
        .filter(|m| matches!(m, SimpleQueryMessage::Row(_)));
    assert_eq!(rows.count(), 2);
    // One whose query is changed by way of a view goes its own way.
    run(
        &pooled,
        "CREATE VIEW busy AS SELECT customer, sum(price) AS total FROM sales GROUP BY customer;
         CREATE STREAM TABLE by_view AS SELECT count(*) AS n FROM busy b WHERE b.total > 10;
         CREATE OR REPLACE VIEW busy AS SELECT customer, sum(price) AS total FROM sales WHERE customer > 9 GROUP BY customer",
    )
    .await;
    eventually(&direct, SHARING, "large totals 1").await;
    converges(
        &direct,
        "by_view",
        "SELECT count(*) AS n FROM busy b WHERE b.total > 10",
        SHORTLY,
    )
    .await;
    converges(&direct, "totals", &renamed(ALL), SHORTLY).await;
    run(&pooled, "DROP TABLE sales CASCADE").await;
    let left = "SELECT count(*)::text FROM pgtrickle.catalog";
    assert_eq!(scalar(&direct, left).await.as_deref(), Some("0"));
}

/// In a block the rest would have to wait for its end, so nothing is shared before that; refreshes in one are right nevertheless.
#[tokio::test]
async fn blocks_wait_for_nothing_and_are_right() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(&pooled, SOURCES).await;
    run(&pooled, "BEGIN").await;
    create(&pooled, "large", "", LARGE).await;
    create(&pooled, "totals", "", ALL).await;
    run(&pooled, "COMMIT").await;
    assert_eq!(scalar(&direct, SHARING).await.as_deref(), Some(" 0"));
    create(&pooled, "by_region", "", BY_REGION).await;
    eventually(&direct, SHARING, "large totals by_region 1").await;
    for level in ["READ COMMITTED", "REPEATABLE READ"] {
        run(&pooled, &format!("BEGIN ISOLATION LEVEL {level}; UPDATE orders SET amount = amount + 100 WHERE id % 3 = 0;
             REFRESH STREAM TABLE totals; REFRESH STREAM TABLE large")).await;
        converges(&pooled, "totals", ALL, Duration::ZERO).await;
        converges(&pooled, "large", LARGE, Duration::ZERO).await;
        run(&pooled, "COMMIT").await;
        run(&direct, "DELETE FROM orders WHERE id % 17 = 0").await;
        for (name, query) in [("large", LARGE), ("totals", ALL), ("by_region", BY_REGION)] {
            converges(&direct, name, query, SHORTLY).await;
        }
    }
}

/// An error in what is shared is that of those who meet it.
#[tokio::test]
async fn an_error_is_of_those_who_meet_it() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(&pooled, SOURCES).await;
    let groups = "(SELECT customer, sum(100 / amount) AS parts FROM orders GROUP BY customer) g";
    let count = format!("SELECT count(*) AS n FROM {groups}");
    let parts = format!("SELECT g.customer, g.parts FROM {groups}");
    create(&pooled, "counted", "", &count).await;
    create(&pooled, "parted", "", &parts).await;
    create(&pooled, "totals", "", ALL).await;
    eventually(&direct, SHARING, "counted parted 1").await;
    run(
        &direct,
        "INSERT INTO orders (customer, amount) VALUES (77, 0), (78, 1)",
    )
    .await;
    converges(&direct, "counted", &count, SHORTLY).await;
    converges(&direct, "totals", ALL, SHORTLY).await;
    let status = "SELECT string_agg(concat_ws(' ', name, status, last_error), ', ' ORDER BY name) FROM pgtrickle.stream_tables";
    eventually(
        &direct,
        status,
        "counted active, parted error division by zero, totals active",
    )
    .await;
    eventually(&direct, "SELECT count(*)::text FROM pgtrickle.catalog", "3").await;
    run(&direct, "DELETE FROM orders WHERE amount = 0").await;
    converges(&direct, "parted", &parts, Duration::from_secs(60)).await;
    eventually(
        &direct,
        status,
        "counted active, parted active, totals active",
    )
    .await;
}

/// Those that share a stage have not asked to wait for each other.
#[tokio::test]
async fn a_slow_one_goes_its_own_way() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(&pooled, SOURCES).await;
    run(
        &pooled,
        "CREATE FUNCTION slowly(numeric) RETURNS numeric LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM pg_sleep(1); RETURN $1; END $$",
    )
    .await;
    let slow = "SELECT slowly(max(s.total)) AS most FROM (SELECT customer, sum(amount) AS total FROM orders GROUP BY customer) s";
    create(&pooled, "large", "", LARGE).await;
    create(&pooled, "totals", "", ALL).await;
    create(&pooled, "slow", "", slow).await;
    eventually(&direct, SHARING, "large totals slow 1").await;
    for n in 0..200 {
        run(
            &direct,
            &format!("UPDATE orders SET amount = 9000 + {n} WHERE id = 7"),
        )
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        if scalar(&direct, SHARING).await.as_deref() == Some("large totals 1") {
            break;
        }
    }
    assert_eq!(
        scalar(&direct, SHARING).await.as_deref(),
        Some("large totals 1")
    );
    // The worker hears of it, and rebuilds what has parted.
    converges(&direct, "slow", &slow.replace("slowly", ""), SHORTLY).await;
    converges(&direct, "totals", ALL, SHORTLY).await;
    // It is not offered the same again, and the two others are refreshed while it is at work.
    let often = "SELECT count(*)::text FROM pgtrickle.refresh_history WHERE name = 'totals'";
    let before: i64 = scalar(&direct, often)
        .await
        .and_then(|n| n.parse().ok())
        .unwrap_or_default();
    for n in 0..120 {
        run(
            &pooled,
            &format!("UPDATE orders SET amount = 19000 + {n} WHERE id = 7"),
        )
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after: i64 = scalar(&direct, often)
        .await
        .and_then(|n| n.parse().ok())
        .unwrap_or_default();
    assert!(after - before > 60, "{before} {after}");
    assert_eq!(
        scalar(&direct, SHARING).await.as_deref(),
        Some("large totals 1")
    );
    converges(&direct, "slow", &slow.replace("slowly", ""), SHORTLY).await;
    converges(&direct, "totals", ALL, SHORTLY).await;
}

/// Shared stages come and go while others create, drop, write and alter.
#[tokio::test]
async fn sessions_create_and_drop_at_once() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(&pooled, SOURCES).await;
    create(&pooled, "stays", "", LARGE).await;
    let mut sessions = Vec::new();
    for session in 0..3 {
        sessions.push((session, stack.pooled().await));
    }
    let churn = async |session: usize, client: &Client| {
        let mut failed = Vec::new();
        for round in 0..25 {
            let query = [BY_REGION, ALL, LARGE][(session + round) % 3];
            for sql in [
                format!("CREATE STREAM TABLE churn_{session} AS {query}"),
                format!("REFRESH STREAM TABLE churn_{session}"),
                format!("BEGIN; DROP STREAM TABLE IF EXISTS churn_{session}; COMMIT"),
            ] {
                if let Err(error) = client.batch_execute(&sql).await {
                    let code = error
                        .code()
                        .map(|code| code.code().to_owned())
                        .unwrap_or_default();
                    // What is busy for ten seconds, and a block that meets a deadlock. The next round finds what is left.
                    let expected = ["55P03", "40001", "40P01", "42P07", "42P01"];
                    if !expected.contains(&code.as_str()) {
                        failed.push(format!("{sql}: {error:?}"));
                    }
                    let _ = client.batch_execute("ROLLBACK").await;
                }
            }
        }
        failed
    };
    let alter = async {
        for n in 0..20 {
            let sql = match n % 4 {
                0 => "ALTER TABLE orders ADD COLUMN extra int",
                1 => "ALTER TABLE orders DROP COLUMN extra",
                2 => "ALTER TABLE orders ALTER COLUMN amount TYPE numeric(14, 2)",
                _ => "ALTER TABLE orders ALTER COLUMN amount TYPE numeric(10, 2)",
            };
            let altered = pooled.batch_execute(sql).await;
            if let Err(error) = &altered {
                let code = error.code().map(|code| code.code());
                assert!(
                    matches!(code, Some("55P03" | "40001" | "40P01" | "42701" | "42703")),
                    "{sql}: {error:?}"
                );
            }
            run(&direct, WRITES[n % 3]).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let [first, second, third] = [0, 1, 2].map(|i| churn(sessions[i].0, &sessions[i].1));
    let (a, b, c, ()) = tokio::join!(first, second, third, alter);
    let failed = [a, b, c].concat();
    assert!(failed.is_empty(), "{failed:#?}");
    converges(&direct, "stays", LARGE, SHORTLY).await;
    run(
        &pooled,
        "DROP STREAM TABLE IF EXISTS stays, churn_0, churn_1, churn_2",
    )
    .await;
    let left = "SELECT string_agg(relname, ' ') FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname ~ '[0-9]$'";
    for _ in 0..100 {
        if scalar(&direct, left).await.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("left over: {:?}", scalar(&direct, left).await);
}

/// After a change of what they share, and from a block.
#[tokio::test]
async fn they_find_each_other_again() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(&pooled, SOURCES).await;
    run(&pooled, "CREATE VIEW totals_of AS SELECT customer, sum(amount) AS total FROM orders GROUP BY customer").await;
    let queries = [
        "SELECT t.customer, t.total FROM totals_of t WHERE t.total > 20",
        "SELECT max(t.total) AS most FROM totals_of t",
    ];
    run(&pooled, "BEGIN").await;
    create(&pooled, "one", "", queries[0]).await;
    create(&pooled, "two", "", queries[1]).await;
    run(&pooled, "COMMIT").await;
    eventually(&direct, SHARING, "one two 1").await;
    run(&pooled, "CREATE OR REPLACE VIEW totals_of AS SELECT customer, sum(amount) AS total FROM orders WHERE id > 10 GROUP BY customer").await;
    run(&direct, WRITES[1]).await;
    for (name, query) in ["one", "two"].into_iter().zip(queries) {
        converges(&direct, name, query, SHORTLY).await;
    }
    let made = "SELECT string_agg(p.id::text, ' ') FROM pgtrickle.catalog p WHERE p.shares IS NOT NULL AND p.fragments = '{}'";
    eventually(&direct, SHARING, "one two 1").await;
    assert!(scalar(&direct, made).await.is_some());
    run(&direct, WRITES[2]).await;
    for (name, query) in ["one", "two"].into_iter().zip(queries) {
        converges(&direct, name, query, SHORTLY).await;
    }
}
