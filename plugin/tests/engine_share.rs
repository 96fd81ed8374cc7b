//! Stages that several stream tables have in common.

mod engine_support;

use engine_support::{connect, create_sharing, create_sharing_as, differences, memory, refresh};
use stream_tables::engine::{self, How, Mode, StreamTableId};
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
        run(&c, sql).await;
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

/// Two that share groups, and the shared stage.
async fn pair(c: &mut Client) -> (StreamTableId, StreamTableId, StreamTableId) {
    let a = made(c, "a", BY_REGION).await;
    let b = made(c, "b", LARGE).await;
    refresh(c, a).await;
    (a, b, the_shared(c).await)
}

async fn the_shared(c: &Client) -> StreamTableId {
    let ids = list(
        c,
        "SELECT id::text FROM pgtrickle.catalog WHERE shares IS NOT NULL",
    )
    .await;
    assert_eq!(ids.len(), 1, "{ids:?}");
    StreamTableId(ids[0].parse().unwrap())
}

#[tokio::test(flavor = "current_thread")]
async fn the_larger_part_is_shared_and_the_smaller_with_a_third() {
    let (_server, mut c) = connected().await;
    let tops = |n| {
        format!(
            "SELECT x.customer, x.total FROM (SELECT customer, sum(amount) AS total FROM orders GROUP BY customer) x ORDER BY 2 DESC, 1 LIMIT {n}"
        )
    };
    let a_query = format!(
        "SELECT c.region, t.total FROM ({}) t JOIN customers c ON c.id = t.customer",
        tops(5)
    );
    let b_query = format!(
        "SELECT count(*) AS n, sum(t.total) AS s FROM ({}) t",
        tops(5)
    );
    let d_query = format!("SELECT max(t.total) AS s FROM ({}) t", tops(7));
    let a = made(&mut c, "a", &a_query).await;
    let b = made(&mut c, "b", &b_query).await;
    refresh(&mut c, a).await;
    let limited = the_shared(&c).await;
    // The groups below are a stage of the shared one, until somebody else needs them.
    let d = made(&mut c, "d", &d_query).await;
    run(&c, "DELETE FROM orders WHERE id = 1").await;
    for id in [a, b, d] {
        refresh(&mut c, id).await;
    }
    let shared = sharing(&c).await;
    let inner = shared
        .last()
        .and_then(|s| s.split_once(" <- "))
        .unwrap()
        .1
        .to_owned();
    let limited = format!("shared_{limited}");
    let expected = [
        format!("a <- {limited}"),
        format!("b <- {limited}"),
        format!("{limited} <- {inner}"),
        format!("d <- {inner}"),
    ];
    assert_eq!(shared, expected);
    for sql in WRITES {
        run(&c, sql).await;
        for (id, name, query) in [(b, "b", &b_query), (d, "d", &d_query), (a, "a", &a_query)] {
            refresh(&mut c, id).await;
            is(&mut c, name, query).await;
        }
    }
    // With all members named, as the worker does it.
    run(&c, "UPDATE orders SET amount = amount * 2 WHERE id % 5 = 0").await;
    let refreshed = engine::refresh_together(&mut c, &memory(), &[a, b, d])
        .await
        .unwrap();
    assert!(refreshed.iter().all(|r| r.result.is_ok()), "{refreshed:?}");
    for (name, query) in [("b", &b_query), ("d", &d_query), ("a", &a_query)] {
        is(&mut c, name, query).await;
    }
    for id in [a, b, d] {
        dropped(&mut c, id).await;
    }
    assert_eq!(remains(&c).await, [""; 0]);
}

#[tokio::test(flavor = "current_thread")]
async fn in_a_block_they_are_computed_from_their_sources() {
    let (_server, mut c) = connected().await;
    let (a, b, _) = pair(&mut c).await;
    run(
        &c,
        "BEGIN; UPDATE orders SET amount = amount + 7 WHERE id % 2 = 0",
    )
    .await;
    for how in [How::Auto, How::Full] {
        engine::refresh_in_transaction(&mut c, a, how)
            .await
            .unwrap();
        is(&mut c, "a", BY_REGION).await;
    }
    run(&c, "INSERT INTO orders VALUES (9000, 1, 9)").await;
    engine::refresh_in_transaction(&mut c, b, How::Auto)
        .await
        .unwrap();
    is(&mut c, "b", LARGE).await;
    run(&c, "COMMIT; INSERT INTO orders VALUES (9001, 2, 9)").await;
    for _ in 0..2 {
        for id in [a, b] {
            refresh(&mut c, id).await;
        }
        is(&mut c, "a", BY_REGION).await;
        is(&mut c, "b", LARGE).await;
        run(&c, "DELETE FROM orders WHERE id % 11 = 0").await;
    }
    refresh(&mut c, a).await;
    is(&mut c, "a", BY_REGION).await;
    let modes = list(
        &c,
        "SELECT mode FROM pgtrickle.history ORDER BY id DESC LIMIT 1",
    )
    .await;
    assert_eq!(
        modes,
        ["incremental"],
        "after the rebuilds changes are enough again"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn changes_of_the_sources_are_taken_in() {
    let (_server, mut c) = connected().await;
    let (a, b, shared) = pair(&mut c).await;
    let renamed = |query: &str| query.replace("amount", "price").replace("orders", "sales");
    for (ddl, seen_first) in [
        (
            "ALTER TABLE orders RENAME amount TO price; ALTER TABLE orders RENAME TO sales",
            a,
        ),
        ("ALTER TABLE sales ADD COLUMN note text", b),
        (
            "ALTER TABLE customers RENAME TO clients; ALTER TABLE clients RENAME TO customers",
            a,
        ),
        (
            "ALTER TABLE sales DISABLE TRIGGER ALL; DELETE FROM sales WHERE id < 30; ALTER TABLE sales ENABLE TRIGGER ALL",
            b,
        ),
    ] {
        // Nobody has seen it: the refreshes find it.
        run(&c, ddl).await;
        run(&c, "UPDATE sales SET price = price + 1 WHERE id % 3 = 0; DELETE FROM customers WHERE id = 12").await;
        for id in [seen_first, a, b] {
            refresh(&mut c, id).await;
        }
        is(&mut c, "a", &renamed(BY_REGION)).await;
        is(&mut c, "b", &renamed(LARGE)).await;
        assert_eq!(the_shared(&c).await, shared, "{ddl}");
        assert_eq!(sharing(&c).await.len(), 2, "{ddl}: {:?}", sharing(&c).await);
    }
    // As the pooler does it, in one transaction with the statement.
    run(&c, "BEGIN").await;
    for id in [b, a, shared] {
        engine::drop_definition_view(&mut c, id).await.unwrap();
    }
    run(
        &c,
        "ALTER TABLE sales ALTER COLUMN price TYPE numeric(12, 3)",
    )
    .await;
    let sales = relid(&c, "sales").await;
    let readers = engine::dependents(&mut c, &[sales]).await.unwrap();
    assert_eq!(
        readers.iter().map(|r| r.id).collect::<Vec<_>>(),
        [shared, a, b]
    );
    for reader in readers {
        engine::recreate_definition_view(&mut c, reader.id)
            .await
            .unwrap();
        engine::replan(&mut c, reader.id).await.unwrap();
    }
    run(
        &c,
        "COMMIT; UPDATE sales SET price = price + 0.125 WHERE id % 4 = 0",
    )
    .await;
    for id in [b, a] {
        refresh(&mut c, id).await;
    }
    is(&mut c, "a", &renamed(BY_REGION)).await;
    is(&mut c, "b", &renamed(LARGE)).await;
    assert_eq!(sharing(&c).await.len(), 2);
}

async fn relid(c: &Client, name: &str) -> u32 {
    let row = c
        .query_one("SELECT $1::text::regclass::oid", &[&name])
        .await
        .unwrap();
    row.get(0)
}

#[tokio::test(flavor = "current_thread")]
async fn what_fails_for_all_fails_nobody() {
    let (_server, mut c) = connected().await;
    let groups = "SELECT customer, sum(100 / amount) AS parts FROM orders GROUP BY customer";
    // PostgreSQL does not compute what is not asked for.
    let count = format!("SELECT count(*) AS n FROM ({groups}) g");
    let all = format!("SELECT g.customer, g.parts FROM ({groups}) g WHERE g.customer > 3");
    let a = create_sharing_as(&mut c, "a", &count, Mode::Auto);
    let a = a.await.unwrap();
    let b = create_sharing_as(&mut c, "b", &all, Mode::Auto);
    let b = b.await.unwrap();
    refresh(&mut c, a).await;
    assert_eq!(sharing(&c).await.len(), 2);
    run(&c, "INSERT INTO orders VALUES (7000, 50, 0), (7001, 51, 1)").await;
    assert_eq!(refresh(&mut c, a).await.mode, "full");
    is(&mut c, "a", &count).await;
    let failed = engine::refresh(&mut c, &memory(), b, How::Auto).await;
    assert_eq!(failed.unwrap_err().code(), "22012");
    run(&c, "ROLLBACK").await;
    run(&c, "DELETE FROM orders WHERE id = 7000").await;
    refresh(&mut c, b).await;
    is(&mut c, "b", &all).await;
    run(&c, "UPDATE orders SET amount = 5 WHERE id = 7001").await;
    for (id, name, query) in [(a, "a", &count), (b, "b", &all)] {
        refresh(&mut c, id).await;
        is(&mut c, name, query).await;
    }
    engine::cleanup_buffers(&mut c).await.unwrap();
    assert_eq!(sharing(&c).await, [""; 0]);
    let left = "SELECT target_name FROM pgtrickle.catalog WHERE shares IS NOT NULL";
    assert_eq!(list(&c, left).await, [""; 0]);
}

#[tokio::test(flavor = "current_thread")]
async fn only_equals_share() {
    let (server, mut c) = connected().await;
    run(&c, "CREATE ROLE other LOGIN PASSWORD 'other'; GRANT ALL ON SCHEMA public TO other; GRANT ALL ON ALL TABLES IN SCHEMA public TO other").await;
    let day = "SELECT to_char(d.at, 'YYYY-MM-DD') AS day, d.n FROM (SELECT date_trunc('day', timestamptz 'epoch' + id * interval '1 hour') AS at, count(*) AS n FROM orders GROUP BY 1) d";
    made(&mut c, "a", day).await;
    run(&c, "GRANT CREATE, USAGE ON SCHEMA pgtrickle TO other").await;
    // Another owner, another time zone, another mode.
    let mut o = server.client("other", "postgres").await;
    made(&mut o, "b", day).await;
    run(&c, "SET timezone = 'Asia/Tokyo'").await;
    made(&mut c, "d", day).await;
    run(&c, "RESET timezone").await;
    engine_support::create_as(&mut c, "e", day, Mode::Auto)
        .await
        .unwrap();
    assert_eq!(sharing(&c).await, [""; 0]);
    let f = made(&mut c, "f", day).await;
    assert_eq!(sharing(&c).await.len(), 1);
    // Not the mode of the others any more.
    run(&c, "BEGIN").await;
    engine::set_mode(&mut c, f, Mode::Full).await.unwrap();
    run(&c, "COMMIT; INSERT INTO orders VALUES (8000, 1, 1)").await;
    refresh(&mut c, f).await;
    is(&mut c, "f", day).await;
    assert_eq!(sharing(&c).await, [""; 0]);
    engine::cleanup_buffers(&mut c).await.unwrap();
    assert_eq!(
        list(
            &c,
            "SELECT target_name FROM pgtrickle.catalog WHERE shares IS NOT NULL"
        )
        .await,
        [""; 0]
    );
}

#[tokio::test(flavor = "current_thread")]
async fn without_its_table_everybody_goes_on() {
    let (_server, mut c) = connected().await;
    let (a, b, shared) = pair(&mut c).await;
    // By its name.
    dropped(&mut c, shared).await;
    assert_eq!(sharing(&c).await, [""; 0]);
    for id in [a, b] {
        refresh(&mut c, id).await;
    }
    is(&mut c, "a", BY_REGION).await;
    is(&mut c, "b", LARGE).await;
    dropped(&mut c, b).await;
    let b = made(&mut c, "b", LARGE).await;
    refresh(&mut c, a).await;
    let shared = the_shared(&c).await;
    assert_eq!(sharing(&c).await.len(), 2);
    // As a table, and with what is in it.
    run(&c, &format!("DROP TABLE pgtrickle.shared_{shared}; UPDATE orders SET amount = amount - 1 WHERE id % 2 = 1")).await;
    for id in [b, a] {
        refresh(&mut c, id).await;
    }
    is(&mut c, "a", BY_REGION).await;
    is(&mut c, "b", LARGE).await;
    engine::cleanup_buffers(&mut c).await.unwrap();
    assert_eq!(
        list(&c, "SELECT target_name FROM pgtrickle.catalog ORDER BY 1").await,
        ["a", "b"]
    );
}

#[tokio::test(flavor = "current_thread")]
async fn a_full_refresh_mends_the_shared_stage() {
    let (_server, mut c) = connected().await;
    let (a, b, shared) = pair(&mut c).await;
    run(&c, &format!("DELETE FROM pgtrickle.shared_{shared} WHERE c1 < 5; UPDATE pgtrickle.shared_{shared} SET c2 = 0 WHERE c1 = 7")).await;
    engine::refresh(&mut c, &memory(), a, How::Full)
        .await
        .unwrap();
    is(&mut c, "a", BY_REGION).await;
    refresh(&mut c, b).await;
    is(&mut c, "b", LARGE).await;
}

#[tokio::test(flavor = "current_thread")]
async fn two_sessions_refresh_and_a_third_writes() {
    let (server, mut c) = connected().await;
    let (a, b, _) = pair(&mut c).await;
    let mut first = connect(&server).await;
    let mut second = connect(&server).await;
    let writer = async {
        for i in 0..60 {
            let sql = format!(
                "UPDATE orders SET amount = amount + 1, customer = customer % 39 + 1 WHERE id % 60 = {i}; DELETE FROM orders WHERE id = {i};
                 INSERT INTO orders VALUES ({}, {}, {i})",
                20_000 + i,
                i % 45
            );
            run(&c, &sql).await;
        }
    };
    let refresher = async |c: &mut Client, id| {
        for _ in 0..40 {
            refresh(c, id).await;
        }
    };
    tokio::join!(writer, refresher(&mut first, a), refresher(&mut second, b));
    for (id, name, query) in [(b, "b", LARGE), (a, "a", BY_REGION)] {
        refresh(&mut c, id).await;
        is(&mut c, name, query).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn recursions_are_shared_too() {
    let (_server, mut c) = connected().await;
    run(
        &c,
        "CREATE TABLE parts (id int PRIMARY KEY, within int, weight int);
         INSERT INTO parts SELECT i, nullif(i / 3, 0), i FROM generate_series(1, 120) i;
         CREATE VIEW tree AS WITH RECURSIVE below(root, id, depth) AS (SELECT id, id, 0 FROM parts WHERE within IS NULL
            UNION ALL SELECT b.root, p.id, b.depth + 1 FROM below b JOIN parts p ON p.within = b.id) SELECT * FROM below",
    )
    .await;
    let depths = "SELECT t.depth, count(*) AS n FROM tree t GROUP BY t.depth";
    let weights = "WITH RECURSIVE below(root, id, depth) AS (SELECT x.id, x.id, 0 FROM parts x WHERE x.within IS NULL
            UNION ALL SELECT u.root, p.id, u.depth + 1 FROM below u JOIN parts p ON p.within = u.id)
        SELECT b.root, sum(p.weight) AS weight FROM below b JOIN parts p ON p.id = b.id GROUP BY b.root";
    let a = made(&mut c, "a", depths).await;
    let b = made(&mut c, "b", weights).await;
    refresh(&mut c, a).await;
    assert_eq!(sharing(&c).await.len(), 2, "{:?}", sharing(&c).await);
    for sql in [
        "INSERT INTO parts SELECT i, i - 200, 1 FROM generate_series(201, 220) i",
        "UPDATE parts SET within = 7 WHERE id IN (20, 21, 45)",
        "DELETE FROM parts WHERE id IN (5, 9)",
        "UPDATE parts SET within = NULL, weight = 0 WHERE id = 4",
        "ALTER TABLE parts RENAME weight TO w; ALTER TABLE parts RENAME w TO weight; UPDATE parts SET id = 500 WHERE id = 33",
    ] {
        run(&c, sql).await;
        for (id, name, query) in [(a, "a", depths), (b, "b", weights)] {
            refresh(&mut c, id).await;
            is(&mut c, name, query).await;
        }
        assert_eq!(sharing(&c).await.len(), 2, "{sql}");
    }
}

/// Names come to stand for other things, and nobody has looked yet.
#[tokio::test(flavor = "current_thread")]
async fn equal_texts_of_other_tables_are_not_shared() {
    let (_server, mut c) = connected().await;
    let totals = |table: &str, at_least: i32| {
        format!(
            "SELECT s.customer, s.n FROM (SELECT customer, count(*) AS n FROM {table} GROUP BY customer) s WHERE s.n > {at_least}"
        )
    };
    run(
        &c,
        "CREATE TABLE p AS SELECT id, customer FROM orders; CREATE TABLE q AS SELECT id, customer % 3 AS customer FROM orders WHERE id % 2 = 0",
    )
    .await;
    let mut all = Vec::new();
    for (name, table, at_least) in [
        ("p1", "p", 0),
        ("p2", "p", 3),
        ("q1", "q", 0),
        ("q2", "q", 3),
    ] {
        let id = made(&mut c, name, &totals(table, at_least)).await;
        all.push((id, name, table, at_least));
    }
    for (id, ..) in &all {
        refresh(&mut c, *id).await;
    }
    assert_eq!(sharing(&c).await.len(), 4);
    run(
        &c,
        "BEGIN; ALTER TABLE p RENAME TO r; ALTER TABLE q RENAME TO p; ALTER TABLE r RENAME TO q; COMMIT;
         INSERT INTO q VALUES (1000, 5); INSERT INTO p VALUES (1000, 77)",
    )
    .await;
    // Before anybody has seen it, and after.
    for (name, at_least) in [("p3", 1), ("p4", 2)] {
        let query = totals("p", at_least);
        let id = made(&mut c, name, &query).await;
        is(&mut c, name, &query).await;
        all.push((id, name, "q", at_least));
        for (id, name, was, at_least) in &all {
            let now = if *was == "p" { "q" } else { "p" };
            refresh(&mut c, *id).await;
            is(&mut c, name, &totals(now, *at_least)).await;
        }
        run(&c, "DELETE FROM p WHERE id % 5 = 0; INSERT INTO q SELECT i, i % 4 FROM generate_series(2000, 2010) i").await;
    }
    // A table in the place of another.
    run(
        &c,
        "ALTER TABLE p RENAME TO p_old; CREATE TABLE p AS SELECT id, 1 AS customer FROM orders",
    )
    .await;
    for (name, at_least) in [("n1", 0), ("n2", 5)] {
        let query = totals("p", at_least);
        let id = made(&mut c, name, &query).await;
        run(&c, "INSERT INTO p SELECT i, 2 FROM generate_series(1, 10) i; DELETE FROM p_old WHERE id % 3 = 0").await;
        refresh(&mut c, id).await;
        is(&mut c, name, &query).await;
    }
    for (id, name, was, at_least) in &all {
        let now = if *was == "p" { "q" } else { "p_old" };
        refresh(&mut c, *id).await;
        is(&mut c, name, &totals(now, *at_least)).await;
    }
    // And a function that fits better than that of before.
    run(
        &c,
        "CREATE FUNCTION kind(numeric) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'numeric' $$;
         CREATE TABLE v AS SELECT i AS id, i % 3 AS k FROM generate_series(1, 9) i",
    )
    .await;
    let kinds = |at_least| {
        format!(
            "SELECT s.kind, s.n FROM (SELECT kind(k), count(*) AS n FROM v GROUP BY 1) s WHERE s.n > {at_least}"
        )
    };
    made(&mut c, "k1", &kinds(0)).await;
    made(&mut c, "k2", &kinds(1)).await;
    run(&c, "CREATE FUNCTION kind(int) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'int ' || $1 $$").await;
    let k3 = made(&mut c, "k3", &kinds(0)).await;
    is(&mut c, "k3", &kinds(0)).await;
    run(&c, "DELETE FROM v WHERE id = 3").await;
    refresh(&mut c, k3).await;
    is(&mut c, "k3", &kinds(0)).await;
}

/// A block that another session has in the meantime made a reader in.
#[tokio::test(flavor = "current_thread")]
async fn a_drop_with_an_old_snapshot_leaves_the_shared_stage() {
    let (server, mut c) = connected().await;
    let (a, b, _) = pair(&mut c).await;
    let mut other = connect(&server).await;
    run(&other, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await;
    let d_query = "SELECT count(*) AS n FROM (SELECT customer, sum(amount) AS total FROM orders GROUP BY customer) s";
    let d = made(&mut c, "d", d_query).await;
    for id in [a, b] {
        engine::drop(&mut other, id, false).await.unwrap();
    }
    run(&other, "COMMIT").await;
    assert_eq!(sharing(&c).await.len(), 1);
    run(&c, "DELETE FROM orders WHERE customer = 8").await;
    refresh(&mut c, d).await;
    is(&mut c, "d", d_query).await;
    dropped(&mut c, d).await;
    // What only the block has dropped is left to the clean-up: the triggers on customers.
    assert_ne!(remains(&c).await, [""; 0]);
    engine::cleanup_buffers(&mut c).await.unwrap();
    assert_eq!(remains(&c).await, [""; 0]);
}

/// In somebody's open block nothing is locked that the others need.
#[tokio::test(flavor = "current_thread")]
async fn an_open_block_holds_up_nobody() {
    let (server, mut c) = connected().await;
    let (a, b, _) = pair(&mut c).await;
    let mut other = connect(&server).await;
    run(&other, "BEGIN").await;
    engine::set_mode(&mut other, b, Mode::Full).await.unwrap();
    engine::refresh_in_transaction(&mut other, b, How::Auto)
        .await
        .unwrap();
    run(&c, "UPDATE orders SET amount = amount + 3 WHERE id % 4 = 1").await;
    let refreshed = engine::refresh_together(&mut c, &memory(), &[a])
        .await
        .unwrap();
    assert!(
        refreshed.iter().any(|r| r.id == a && r.result.is_ok()),
        "{refreshed:?}"
    );
    is(&mut c, "a", BY_REGION).await;
    run(&other, "ROLLBACK; BEGIN").await;
    // One that has been offered a shared stage is not planned anew in here.
    run(
        &c,
        "UPDATE pgtrickle.catalog SET fingerprint = '' WHERE target_name = 'b'",
    )
    .await;
    engine::refresh_in_transaction(&mut other, b, How::Auto)
        .await
        .unwrap();
    run(&c, "DELETE FROM orders WHERE id % 4 = 2").await;
    let refreshed = engine::refresh_together(&mut c, &memory(), &[a])
        .await
        .unwrap();
    assert!(
        refreshed.iter().any(|r| r.id == a && r.result.is_ok()),
        "{refreshed:?}"
    );
    is(&mut c, "a", BY_REGION).await;
    run(&other, "COMMIT").await;
    refresh(&mut c, b).await;
    is(&mut c, "b", LARGE).await;
}
