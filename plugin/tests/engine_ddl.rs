//! What happens to a stream table when its sources are altered, seen (replan in the same transaction) or unseen.

mod engine_support;

use engine_support::{connect, create, differences, refresh};
use stream_tables::conn::Error;
use stream_tables::engine::{self, Definition, Drift, How, Isolation, Mode, StreamTableId};
use test_support::Postgres;
use tokio_postgres::Client;

struct Case {
    _server: Postgres,
    c: Client,
    id: StreamTableId,
}

const QUERY: &str = "SELECT c.region, count(*) AS n, sum(o.amount) AS s FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region";

impl Case {
    async fn new() -> Self {
        Self::with(QUERY).await
    }

    async fn with(query: &str) -> Self {
        let server = Postgres::start(15);
        let mut c = connect(&server).await;
        c.batch_execute(
            "CREATE TABLE customers (id int PRIMARY KEY, region varchar(10), note text);
             CREATE TABLE orders (id serial PRIMARY KEY, customer_id int, amount int, extra text);
             INSERT INTO customers SELECT i, 'r' || i % 3 FROM generate_series(1, 10) i;
             INSERT INTO orders (customer_id, amount) SELECT i % 10 + 1, i FROM generate_series(1, 100) i",
        )
        .await
        .unwrap();
        let id = create(&mut c, "st", query)
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        Self {
            _server: server,
            c,
            id,
        }
    }

    async fn sql(&self, sql: &str) {
        self.c
            .batch_execute(sql)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// As the pooler does it: the statement and the new plan in one transaction.
    async fn seen(&mut self, ddl: &str) {
        self.sql("BEGIN").await;
        self.sql(ddl).await;
        engine::replan(&mut self.c, self.id)
            .await
            .unwrap_or_else(|e| panic!("{ddl}: {e}"));
        self.sql("COMMIT").await;
    }

    async fn follows(&mut self, query: &str) -> &'static str {
        let outcome = refresh(&mut self.c, self.id).await;
        assert_eq!(
            differences(&mut self.c, "st", query).await,
            [""; 0],
            "{outcome:?}"
        );
        outcome.mode
    }
}

const WRITE: &str =
    "INSERT INTO orders (customer_id, amount) VALUES (3, 7); DELETE FROM orders WHERE id = 5";

#[tokio::test(flavor = "current_thread")]
async fn renames_are_followed_without_a_rebuild() {
    let mut case = Case::new().await;
    case.seen("ALTER TABLE orders RENAME TO sales").await;
    case.seen("ALTER TABLE sales RENAME COLUMN amount TO total")
        .await;
    case.seen("ALTER TABLE customers RENAME COLUMN region TO area")
        .await;
    case.sql(
        "INSERT INTO sales (customer_id, total) VALUES (3, 7); DELETE FROM sales WHERE id = 5",
    )
    .await;
    let query = "SELECT c.area, count(*) AS n, sum(o.total) AS s FROM sales o JOIN customers c ON c.id = o.customer_id GROUP BY c.area";
    assert_eq!(case.follows(query).await, "incremental");
}

#[tokio::test(flavor = "current_thread")]
async fn a_rename_on_a_direct_connection_breaks_no_write_and_is_repaired() {
    let mut case = Case::new().await;
    case.sql("ALTER TABLE orders RENAME COLUMN amount TO total")
        .await;
    case.sql("INSERT INTO orders (customer_id, total) VALUES (3, 7); UPDATE orders SET total = 1 WHERE id = 9").await;
    assert!(matches!(
        engine::check(&mut case.c, case.id).await,
        Ok(Drift::Sources(_))
    ));
    let query = QUERY.replace("o.amount", "o.total");
    case.follows(&query).await;
    case.sql("INSERT INTO orders (customer_id, total) VALUES (3, 7)")
        .await;
    assert_eq!(case.follows(&query).await, "incremental");
    assert_eq!(
        engine::check(&mut case.c, case.id).await.unwrap(),
        Drift::None
    );
}

/// Neither of a session that has its plans, nor of one whose snapshot is older than the change; and nothing gets into the buffer
/// by a name that meant another column.
#[tokio::test(flavor = "current_thread")]
async fn columns_that_change_break_no_write_of_a_session_that_knew_them() {
    let plain = "";
    let partitioned = "PARTITION BY RANGE (a)";
    let older = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1";
    let cases = [
        (14, plain, "BEGIN"),
        (15, partitioned, older),
        (16, plain, older),
        (17, partitioned, "BEGIN"),
        (18, plain, older),
    ];
    for (major, by, begin) in cases {
        if !test_support::majors().contains(&major) {
            continue;
        }
        let server = Postgres::start(major);
        let mut c = connect(&server).await;
        let sql = format!("CREATE TABLE t (a int, b text, c int) {by}");
        c.batch_execute(&sql).await.unwrap();
        if by == partitioned {
            let sql = "CREATE TABLE leaf PARTITION OF t DEFAULT";
            c.batch_execute(sql).await.unwrap();
        }
        let id = create(&mut c, "st", "SELECT a, b FROM t").await.unwrap();
        let writer = connect(&server).await;
        let warm = "INSERT INTO t VALUES (1, 'x', 2), (2, 'y', 3); UPDATE t SET b = 'z' WHERE a = 2; DELETE FROM t WHERE a = 1";
        writer.batch_execute(warm).await.unwrap();
        writer.batch_execute(begin).await.unwrap();
        c.batch_execute("ALTER TABLE t RENAME a TO d; ALTER TABLE t RENAME c TO a")
            .await
            .unwrap();
        let writes = "INSERT INTO t (d, b, a) VALUES (5, 'v', 6), (7, 'w', 8); UPDATE t SET b = 'u' WHERE d = 5;
            DELETE FROM t WHERE d = 7; COMMIT";
        let written = writer.batch_execute(writes).await;
        written.unwrap_or_else(|e| panic!("{major}: {e:?}"));
        c.batch_execute("ALTER TABLE t RENAME a TO c; ALTER TABLE t RENAME d TO a")
            .await
            .unwrap();
        for mode in ["full", "incremental"] {
            writer.batch_execute(warm).await.unwrap();
            assert_eq!(refresh(&mut c, id).await.mode, mode, "{major}");
            let query = "SELECT a, b FROM t";
            assert_eq!(differences(&mut c, "st", query).await, [""; 0], "{major}");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn swapped_names_are_no_swapped_tables() {
    let mut case = Case::with("SELECT id, amount FROM orders").await;
    case.sql(
        "CREATE TABLE other (LIKE orders INCLUDING ALL); INSERT INTO other VALUES (1, 1, 1, 'x')",
    )
    .await;
    case.sql("BEGIN; ALTER TABLE orders RENAME TO old; ALTER TABLE other RENAME TO orders; COMMIT")
        .await;
    case.sql("INSERT INTO orders (id, amount) VALUES (-1, 5); INSERT INTO old (amount) VALUES (6)")
        .await;
    case.follows("SELECT id, amount FROM old").await;
}

#[tokio::test(flavor = "current_thread")]
async fn unused_columns_come_and_go() {
    let mut case = Case::new().await;
    case.seen("ALTER TABLE orders ADD COLUMN more text DEFAULT 'x'")
        .await;
    case.sql(WRITE).await;
    assert_eq!(
        case.follows(QUERY).await,
        "incremental",
        "a new column is nobody's business"
    );
    case.seen("ALTER TABLE orders DROP COLUMN extra").await;
    case.sql(WRITE).await;
    case.follows(QUERY).await;
    case.sql("UPDATE orders SET more = 'y'").await;
    assert_eq!(
        engine::pending(&mut case.c, &[case.id]).await.unwrap(),
        [],
        "an unused column leaves nothing behind"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn a_columns_type_changes_with_its_sources() {
    let mut case = Case::with("SELECT id, amount, amount * 2 AS twice FROM orders").await;
    case.sql("BEGIN").await;
    engine::drop_definition_view(&mut case.c, case.id)
        .await
        .unwrap();
    case.sql("ALTER TABLE orders ALTER COLUMN amount TYPE numeric(12,3)")
        .await;
    engine::recreate_definition_view(&mut case.c, case.id)
        .await
        .unwrap();
    engine::replan(&mut case.c, case.id).await.unwrap();
    assert_eq!(
        differences(
            &mut case.c,
            "st",
            "SELECT id, amount, amount * 2 AS twice FROM orders"
        )
        .await,
        [""; 0]
    );
    case.sql("COMMIT").await;
    case.sql("UPDATE orders SET amount = 1.5 WHERE id < 9")
        .await;
    case.follows("SELECT id, amount, amount * 2 AS twice FROM orders")
        .await;
    let row = case
        .c
        .query_one("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'st'::regclass AND attnum = 2", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, String>(0), "numeric(12,3)");
}

#[tokio::test(flavor = "current_thread")]
async fn a_used_column_cannot_be_dropped() {
    let mut case = Case::new().await;
    case.sql("BEGIN").await;
    engine::drop_definition_view(&mut case.c, case.id)
        .await
        .unwrap();
    case.sql("ALTER TABLE orders DROP COLUMN amount").await;
    let error = engine::recreate_definition_view(&mut case.c, case.id)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "2BP01", "{error}");
    case.sql("ROLLBACK").await;
    case.sql(WRITE).await;
    assert_eq!(case.follows(QUERY).await, "incremental");
}

#[tokio::test(flavor = "current_thread")]
async fn a_replaced_view_gives_a_new_result() {
    let mut case = Case::new().await;
    case.sql("CREATE VIEW v AS SELECT id, amount FROM orders WHERE amount > 50")
        .await;
    let id = create(
        &mut case.c,
        "sv",
        "SELECT count(*) AS n, sum(amount) AS s FROM v",
    )
    .await
    .unwrap();
    case.sql("CREATE OR REPLACE VIEW v AS SELECT id, amount FROM orders WHERE amount > 10")
        .await;
    refresh(&mut case.c, id).await;
    assert_eq!(
        differences(
            &mut case.c,
            "sv",
            "SELECT count(*) AS n, sum(amount) AS s FROM v"
        )
        .await,
        [""; 0]
    );
    let relid = case
        .c
        .query_one("SELECT 'v'::regclass::oid", &[])
        .await
        .unwrap()
        .get::<_, u32>(0);
    let dependents = engine::dependents(&mut case.c, &[relid]).await.unwrap();
    assert_eq!(dependents.iter().map(|d| d.id).collect::<Vec<_>>(), [id]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_rolled_back_creation_leaves_nothing_and_a_block_counts_its_own_writes() {
    let mut case = Case::new().await;
    let definition = Definition {
        name: "inblock".into(),
        query: QUERY.into(),
        schedule: "live".into(),
        with_data: true,
        ..Definition::default()
    };
    for (end, there) in [("ROLLBACK", 0), ("COMMIT", 1)] {
        case.sql("BEGIN; INSERT INTO orders (customer_id, amount) VALUES (1, 1000)")
            .await;
        let id = engine::define(&mut case.c, &definition).await.unwrap();
        engine::load(&mut case.c, id, Isolation::ReadCommitted)
            .await
            .unwrap();
        case.sql("INSERT INTO orders (customer_id, amount) VALUES (2, 2000)")
            .await;
        case.sql(end).await;
        let count = "SELECT count(*) FROM pg_class WHERE relname IN ('inblock', 'def_' || (SELECT max(id) FROM pgtrickle.catalog WHERE target_name = 'inblock'))";
        let row = case.c.query_one(count, &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), there * 2, "{end}");
        if there == 1 {
            let outcome = refresh(&mut case.c, id).await;
            assert_eq!(outcome.mode, "incremental");
            assert_eq!(differences(&mut case.c, "inblock", QUERY).await, [""; 0]);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_old_snapshot_is_made_good_after_the_commit() {
    let mut case = Case::new().await;
    let definition = Definition {
        name: "old".into(),
        query: QUERY.into(),
        schedule: "live".into(),
        with_data: true,
        ..Definition::default()
    };
    let other = connect(&case._server).await;
    case.sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        .await;
    other.batch_execute(WRITE).await.unwrap();
    let id = engine::define(&mut case.c, &definition).await.unwrap();
    engine::load(&mut case.c, id, Isolation::SnapshotTooOld)
        .await
        .unwrap();
    case.sql("COMMIT").await;
    assert_eq!(engine::pending(&mut case.c, &[id]).await.unwrap(), [id]);
    refresh(&mut case.c, id).await;
    assert_eq!(differences(&mut case.c, "old", QUERY).await, [""; 0]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_refresh_inside_a_block_is_exact_and_the_next_one_goes_on_from_it() {
    let mut case = Case::new().await;
    case.sql("BEGIN").await;
    case.sql(WRITE).await;
    engine::refresh_in_transaction(&mut case.c, case.id, How::Auto)
        .await
        .unwrap();
    assert_eq!(differences(&mut case.c, "st", QUERY).await, [""; 0]);
    case.sql("DELETE FROM orders WHERE id = 7; COMMIT").await;
    assert_eq!(case.follows(QUERY).await, "incremental");
}

#[tokio::test(flavor = "current_thread")]
async fn a_table_somebody_wrote_to_is_put_right() {
    let mut case = Case::new().await;
    case.sql("DELETE FROM st WHERE region = 'r1'; INSERT INTO orders (customer_id, amount) VALUES (1, 1)").await;
    assert_eq!(case.follows(QUERY).await, "full");
}

#[tokio::test(flavor = "current_thread")]
async fn what_cannot_be_a_stream_table_is_refused_with_a_reason() {
    let mut case = Case::new().await;
    case.sql("CREATE TEMP TABLE passing (a int); CREATE TABLE taken (a int)")
        .await;
    for (name, query, code, words) in [
        (
            "x",
            "SELECT random() FROM orders",
            "0A000",
            "volatile function random()",
        ),
        (
            "x",
            "SELECT * FROM orders TABLESAMPLE SYSTEM (10)",
            "0A000",
            "TABLESAMPLE",
        ),
        (
            "x",
            "SELECT * FROM orders FOR UPDATE",
            "0A000",
            "FOR UPDATE",
        ),
        ("x", "SELECT ctid FROM orders", "0A000", "system columns"),
        ("x", "SELECT * FROM passing", "0A000", "temporary"),
        ("x", "SELECT nothing FROM orders", "42703", "does not exist"),
        ("x", "DELETE FROM orders", "42601", "one SELECT"),
        ("x", "SELECT 1; DROP TABLE orders", "42601", "one SELECT"),
        ("taken", "SELECT 1 AS a", "42P07", "already exists"),
        ("st", "SELECT 1 AS a", "42P07", "already exists"),
    ] {
        let error = create(&mut case.c, name, query).await.expect_err(query);
        assert_eq!(error.code(), code, "{query}: {error}");
        assert!(error.to_string().contains(words), "{query}: {error}");
    }
    let definition = Definition {
        name: "x".into(),
        query: "SELECT nothing FROM orders".into(),
        query_offset: 100,
        ..Definition::default()
    };
    case.sql("BEGIN").await;
    match engine::define(&mut case.c, &definition).await {
        Err(Error::Server(fields)) => assert_eq!(fields.position, Some(108)),
        other => panic!("{other:?}"),
    }
    case.sql("ROLLBACK; BEGIN").await;
    let definition = Definition {
        query: "SELECT id, current_date AS d FROM orders".into(),
        refresh_mode: Mode::Incremental,
        ..definition
    };
    assert_eq!(
        engine::define(&mut case.c, &definition)
            .await
            .unwrap_err()
            .code(),
        "0A000"
    );
    case.sql("ROLLBACK").await;
}

#[tokio::test(flavor = "current_thread")]
async fn dropping_minds_what_depends_on_it() {
    let mut case = Case::new().await;
    let above = create(&mut case.c, "above", "SELECT region FROM st WHERE n > 1")
        .await
        .unwrap();
    case.sql("BEGIN").await;
    let error = engine::drop(&mut case.c, case.id, false).await.unwrap_err();
    assert_eq!(error.code(), "2BP01");
    case.sql("ROLLBACK; BEGIN").await;
    engine::drop(&mut case.c, case.id, true).await.unwrap();
    case.sql("COMMIT").await;
    assert_eq!(
        engine::check(&mut case.c, above).await.unwrap_err().code(),
        "42704"
    );
    let left = case
        .c
        .query_one(
            "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pgtrickle%'",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
    case.sql(WRITE).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_table_dropped_behind_our_back_is_cleared_away() {
    let mut case = Case::new().await;
    case.sql("DROP TABLE st").await;
    assert_eq!(
        engine::check(&mut case.c, case.id).await.unwrap(),
        Drift::TableGone
    );
    engine::cleanup_buffers(&mut case.c).await.unwrap();
    let left = case
        .c
        .query_one("SELECT count(*) FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname ~ '_[0-9]+$'", &[])
        .await
        .unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
}
