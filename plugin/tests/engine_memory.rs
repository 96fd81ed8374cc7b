//! What is remembered of a stream table makes its refresh short, and never wrong.

mod engine_support;

use std::sync::Arc;

use engine_support::{connect, create_as, differences};
use stream_tables::conn::{Conn, Error, Row, Statement};
use stream_tables::engine::{self, How, Memory, Mode, RefreshOutcome, StreamTableId};
use test_support::Postgres;
use tokio_postgres::Client;

/// A connection that counts round trips.
struct Counted {
    client: Client,
    round_trips: usize,
}

impl Conn for Counted {
    async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        self.round_trips += 1;
        Conn::query(&mut self.client, sql).await
    }

    async fn run(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, Error> {
        self.round_trips += 1;
        self.client.run(statements).await
    }
}

struct Case {
    server: Postgres,
    c: Counted,
    id: StreamTableId,
    memory: Arc<Memory>,
}

const QUERY: &str = "SELECT c.region, count(*) AS n, sum(o.amount) AS s FROM public.orders o JOIN public.customers c ON c.id = o.customer_id GROUP BY c.region";
const WRITE: &str = "INSERT INTO orders (customer_id, amount) VALUES (3, 7); UPDATE orders SET amount = amount + 1 WHERE id IN (7, 8)";

impl Case {
    /// A stream table whose next refresh is expected to find changes of `orders`.
    async fn new() -> Self {
        let server = Postgres::start(15);
        let mut client = connect(&server).await;
        client
            .batch_execute(
                "CREATE TABLE customers (id int PRIMARY KEY, region varchar(10), note text);
                 CREATE TABLE orders (id serial PRIMARY KEY, customer_id int, amount int, extra text);
                 INSERT INTO customers SELECT i, 'r' || i % 3 FROM generate_series(1, 10) i;
                 INSERT INTO orders (customer_id, amount) SELECT i % 10 + 1, i FROM generate_series(1, 100) i",
            )
            .await
            .unwrap();
        let id = create_as(&mut client, "st", QUERY, Mode::Auto)
            .await
            .unwrap();
        let mut case = Self {
            server,
            c: Counted {
                client,
                round_trips: 0,
            },
            id,
            memory: Arc::default(),
        };
        case.get_used().await;
        case
    }

    /// Until a refresh takes one round trip.
    async fn get_used(&mut self) {
        for _ in 0..10 {
            self.sql(WRITE).await;
            self.c.round_trips = 0;
            assert_eq!(self.by_name("st").await.unwrap().mode, "incremental");
            if self.c.round_trips == 1 {
                return;
            }
        }
        panic!("refreshes do not get short");
    }

    async fn sql(&self, sql: &str) {
        self.c
            .client
            .batch_execute(sql)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    async fn by_name(&mut self, name: &str) -> Option<RefreshOutcome> {
        let name = name.to_owned();
        engine::refresh_by_name(&mut self.c, &self.memory, name, How::Auto)
            .await
            .unwrap()
    }

    /// A refresh makes the table what the query gives.
    async fn follows(&mut self, query: &str) -> &'static str {
        let outcome = self.by_name("st").await.expect("the stream table");
        self.is("st", query).await;
        outcome.mode
    }

    async fn is(&mut self, name: &str, query: &str) {
        let differences = differences(&mut self.c.client, name, query).await;
        assert_eq!(differences, [""; 0]);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_as_always_takes_one_round_trip() {
    let mut case = Case::new().await;
    for _ in 0..5 {
        case.sql(WRITE).await;
        case.c.round_trips = 0;
        assert_eq!(case.follows(QUERY).await, "incremental");
        assert_eq!(case.c.round_trips, 1);
    }
    // By its number it is the same one.
    case.sql(WRITE).await;
    case.c.round_trips = 0;
    let outcome = engine::refresh(&mut case.c, &case.memory, case.id, How::Auto)
        .await
        .unwrap();
    assert_eq!((outcome.mode, case.c.round_trips), ("incremental", 1));
    case.is("st", QUERY).await;
}

#[tokio::test(flavor = "current_thread")]
async fn other_changes_than_always_are_taken_in() {
    for (write, mode) in [
        (
            "UPDATE customers SET region = 'r9' WHERE id = 4",
            "incremental",
        ),
        (
            "UPDATE customers SET region = 'r9' WHERE id = 4; DELETE FROM orders WHERE id < 9",
            "incremental",
        ),
        (
            "INSERT INTO orders (customer_id, amount) SELECT i % 10 + 1, i FROM generate_series(1, 5000) i",
            "incremental",
        ),
        (
            "INSERT INTO orders (id, customer_id, amount) VALUES (0, 1, 1); DELETE FROM orders WHERE id = 0",
            "incremental",
        ),
        ("SELECT", "none"),
        ("TRUNCATE orders", "full"),
        ("TRUNCATE customers", "full"),
        (
            "DELETE FROM st WHERE region = 'r1'; UPDATE orders SET amount = 0 WHERE customer_id = 1",
            "full",
        ),
    ] {
        let mut case = Case::new().await;
        case.sql(write).await;
        assert_eq!(case.follows(QUERY).await, mode, "{write}");
        case.sql(WRITE).await;
        case.follows(QUERY).await;
        if !write.starts_with("TRUNCATE") {
            case.get_used().await;
            case.is("st", QUERY).await;
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn ddl_of_the_sources_beside_us_is_noticed() {
    let renamed = QUERY.replace("o.amount", "o.total");
    let swapped = QUERY.replace("o.amount", "o.id");
    for (ddl, write, query) in [
        (
            "ALTER TABLE orders RENAME amount TO total",
            "UPDATE orders SET total = 3 WHERE id = 9",
            renamed.as_str(),
        ),
        // The view follows the columns, whatever they are called.
        (
            "ALTER TABLE orders RENAME amount TO x; ALTER TABLE orders RENAME id TO amount; ALTER TABLE orders RENAME x TO id",
            "UPDATE orders SET id = 3 WHERE amount = 9",
            swapped.as_str(),
        ),
        (
            "ALTER TABLE orders DISABLE TRIGGER ALL",
            "UPDATE orders SET amount = 3 WHERE id = 9; ALTER TABLE orders ENABLE TRIGGER ALL",
            QUERY,
        ),
        (
            "CREATE TABLE more () INHERITS (orders)",
            "INSERT INTO more VALUES (1000, 3, 4)",
            QUERY,
        ),
        ("ALTER TABLE orders DROP extra", WRITE, QUERY),
    ] {
        let mut case = Case::new().await;
        case.sql(ddl).await;
        case.sql(write).await;
        case.follows(query).await;
        case.sql(write).await;
        case.follows(query).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn another_table_of_that_name_is_another_table() {
    let mut case = Case::new().await;
    case.sql("ALTER TABLE st RENAME TO ts").await;
    case.sql(WRITE).await;
    assert_eq!(case.by_name("st").await, None);
    assert_eq!(case.by_name("ts").await.unwrap().mode, "incremental");
    case.is("ts", QUERY).await;

    case.sql("ALTER TABLE ts RENAME TO st; ALTER TABLE st RENAME n TO number; ALTER TABLE st ADD mine text").await;
    case.sql(WRITE).await;
    assert_eq!(case.by_name("st").await.unwrap().mode, "incremental");
    case.is("(SELECT region, number, s FROM st)", QUERY).await;
    case.sql("ALTER TABLE st DROP mine").await;

    case.get_used().await;
    let sums = QUERY.replace("sum(o.amount)", "sum(o.amount + 1)");
    case.sql("BEGIN").await;
    engine::drop(&mut case.c, case.id, false).await.unwrap();
    case.sql("COMMIT; DROP TABLE IF EXISTS st").await;
    create_as(&mut case.c.client, "st", &sums, Mode::Auto)
        .await
        .unwrap();
    case.sql(WRITE).await;
    case.follows(&sums).await;

    case.get_used().await;
    case.sql("CREATE SCHEMA s; SET search_path = s, public")
        .await;
    let doubled = QUERY.replace("sum(o.amount)", "sum(o.amount * 2)");
    create_as(&mut case.c.client, "st", &doubled, Mode::Auto)
        .await
        .unwrap();
    case.sql(WRITE).await;
    case.follows(&doubled).await;
    case.sql("RESET search_path").await;
    case.follows(&sums).await;
}

#[tokio::test(flavor = "current_thread")]
async fn the_refreshes_of_others_are_noticed() {
    let mut case = Case::new().await;
    let mut other = connect(&case.server).await;
    let others = Memory::default();
    for how in [How::Auto, How::Full, How::Auto] {
        case.sql(WRITE).await;
        engine::refresh(&mut other, &others, case.id, how)
            .await
            .unwrap();
        assert_eq!(case.follows(QUERY).await, "none");
        case.sql(WRITE).await;
        assert_eq!(case.follows(QUERY).await, "incremental");
        case.get_used().await;
    }
    case.sql(WRITE).await;
    let outcome = engine::refresh(&mut case.c, &case.memory, case.id, How::Full)
        .await
        .unwrap();
    assert_eq!(outcome.mode, "full");
    case.sql(WRITE).await;
    assert_eq!(case.follows(QUERY).await, "incremental");

    case.get_used().await;
    case.sql(WRITE).await;
    let lock = "BEGIN; SELECT FROM pgtrickle.catalog FOR UPDATE";
    other.batch_execute(lock).await.unwrap();
    let name = "st".to_owned();
    let busy = engine::refresh_by_name(&mut case.c, &case.memory, name, How::Auto).await;
    assert!(matches!(busy, Err(Error::Busy)), "{busy:?}");
    other.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(case.follows(QUERY).await, "incremental");
}

#[tokio::test(flavor = "current_thread")]
async fn another_database_is_not_taken_for_this_one() {
    let mut case = Case::new().await;
    let mut other = Case::new().await;
    other.sql("DELETE FROM orders WHERE id = 1").await;
    other.memory = Arc::clone(&case.memory);
    assert_eq!(other.follows(QUERY).await, "incremental");
    case.sql(WRITE).await;
    assert_eq!(case.follows(QUERY).await, "incremental");
}

#[tokio::test(flavor = "current_thread")]
async fn another_role_does_not_refresh_by_what_its_owner_has_left() {
    let mut case = Case::new().await;
    case.sql("CREATE ROLE clerk; GRANT SELECT ON ALL TABLES IN SCHEMA public TO clerk")
        .await;
    case.sql(WRITE).await;
    case.sql("SET ROLE clerk").await;
    let name = "st".to_owned();
    // It is none of his: what has to be said of that is found out otherwise.
    let found = engine::refresh_by_name(&mut case.c, &case.memory, name, How::Auto).await;
    assert!(matches!(found, Ok(None)), "{found:?}");
    case.sql("RESET ROLE").await;
    assert_eq!(case.follows(QUERY).await, "incremental");
}

#[tokio::test(flavor = "current_thread")]
async fn a_query_that_fails_fails_as_it_is() {
    let mut case = Case::new().await;
    let query = "SELECT id, 100 / amount AS q FROM public.orders";
    case.sql("DELETE FROM orders WHERE amount = 0").await;
    create_as(&mut case.c.client, "quotients", query, Mode::Auto)
        .await
        .unwrap();
    for _ in 0..4 {
        case.sql(WRITE).await;
        case.by_name("quotients").await.unwrap();
    }
    case.sql("UPDATE orders SET amount = 0 WHERE id = 9").await;
    let name = "quotients".to_owned();
    let failed = engine::refresh_by_name(&mut case.c, &case.memory, name, How::Auto).await;
    assert_eq!(failed.unwrap_err().code(), "22012");
    case.sql("UPDATE orders SET amount = 1 WHERE id = 9").await;
    assert_eq!(case.by_name("quotients").await.unwrap().mode, "incremental");
    case.is("quotients", query).await;
}
