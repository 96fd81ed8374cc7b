//! The worker beside a pool's clients, and refreshes that do not go as usual.

use std::time::Duration;

use test_support::{
    Pooler, PoolerConfig, Postgres, Settings, Stack, converges, differences, refused, scalar,
};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");

/// One connection for the clients and the worker together.
fn pool_of_one(configure: impl Fn(PoolerConfig) -> PoolerConfig) -> (Postgres, Pooler) {
    let postgres = Postgres::start_with(15, &Settings::default());
    let config = PoolerConfig::new(&postgres)
        .user("postgres", 1)
        .stream_tables();
    let pooler = Pooler::start(PGCAT, &configure(config));
    (postgres, pooler)
}

async fn eventually(client: &tokio_postgres::Client, sql: &str, expected: &str) {
    for _ in 0..600 {
        if scalar(client, sql).await.as_deref() == Some(expected) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not {expected} within 30 s: {sql}");
}

/// The worker's BEGIN may be refused for want of a connection, and what it sends next find one: nothing of that may commit.
#[tokio::test]
async fn a_begin_without_a_connection_commits_nothing() {
    let (postgres, pooler) = pool_of_one(|config| config.general("connect_timeout = 300"));
    let direct = postgres.client("postgres", "postgres").await;
    direct
        .batch_execute("CREATE TABLE held (id bigserial, v int); INSERT INTO held (v) SELECT 0 FROM generate_series(1, 5)")
        .await
        .expect("a table");
    let pooled = pooler.client("postgres", "postgres").await;
    pooled
        .batch_execute("CREATE STREAM TABLE held_st AS SELECT id, v FROM held WHERE v >= 0")
        .await
        .expect("a stream table");
    for n in 0..25 {
        // Its end comes at any moment of the worker's wait.
        let sleep = 0.1 + f64::from(n % 10) * 0.06;
        let sql =
            format!("BEGIN; INSERT INTO held (v) VALUES ({n}); SELECT pg_sleep({sleep}); COMMIT");
        while pooled.batch_execute(&sql).await.is_err() {
            let _ = pooled.batch_execute("ROLLBACK").await;
        }
        let staged = "SELECT coalesce(sum((xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM pgtrickle.%I', relname), false, true, '')))[1]::text::bigint), 0)::text
            FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname LIKE 'delta\\_%' AND relkind = 'r'";
        assert_eq!(
            scalar(&direct, staged).await.as_deref(),
            Some("0"),
            "staged rows were committed"
        );
    }
    let query = "SELECT id, v FROM held WHERE v >= 0";
    converges(&direct, "held_st", query, Duration::from_secs(20)).await;
}

/// A session keeps its connection, but the worker's keeps none between its transactions.
#[tokio::test]
async fn the_worker_keeps_no_connection_in_session_mode() {
    let (postgres, pooler) =
        pool_of_one(|config| config.session_mode().general("connect_timeout = 15000"));
    for n in 0..3 {
        let pooled = pooler.client("postgres", "postgres").await;
        let sql = match n {
            0 => "CREATE TABLE alone (a int)",
            1 => "CREATE STREAM TABLE alone_st AS SELECT sum(a) AS s FROM alone",
            _ => "INSERT INTO alone VALUES (42)",
        };
        pooled.batch_execute(sql).await.expect(sql);
    }
    let direct = postgres.client("postgres", "postgres").await;
    eventually(&direct, "SELECT s::text FROM alone_st", "42").await;
}

/// A cron line says when, and nothing else: neither a commit that is seen nor a start of the pooler.
#[tokio::test]
async fn a_cron_line_is_kept_to() {
    let stack = Stack::start(PGCAT, 15);
    let pooled = stack.pooled().await;
    pooled
        .batch_execute(
            "CREATE TABLE timed (a int);
             CREATE STREAM TABLE often WITH (schedule = '*/2 * * * * *') AS SELECT a FROM timed;
             CREATE STREAM TABLE rarely WITH (schedule = '0 0 29 2 *') AS SELECT a FROM timed;",
        )
        .await
        .expect("stream tables");
    for n in 1..=2 {
        let sql = format!("INSERT INTO timed VALUES ({n})");
        pooled.batch_execute(&sql).await.expect("a row");
        eventually(&pooled, "SELECT count(*)::text FROM often", &n.to_string()).await;
    }
    let rarely = "SELECT count(*)::text FROM rarely";
    assert_eq!(scalar(&pooled, rarely).await.as_deref(), Some("0"));
    pooled
        .batch_execute("ALTER STREAM TABLE rarely SET (schedule = '@weekly')")
        .await
        .expect("altered");
    assert_eq!(scalar(&pooled, rarely).await.as_deref(), Some("0"));
    let never = "ALTER STREAM TABLE rarely SET (schedule = '0 0 30 2 *')";
    let error = refused(&pooled, never).await;
    assert_eq!(error.code().code(), "22023");
    assert_eq!(error.detail(), Some("There is no such time."));
}

/// `$` is a letter of identifiers, and begins a parameter elsewhere.
#[tokio::test]
async fn columns_may_be_named_like_parameters() {
    let stack = Stack::start(PGCAT, 15);
    let pooled = stack.pooled().await;
    pooled
        .batch_execute(
            "CREATE TABLE dollars (a$1 int, \"b$2\" text);
             INSERT INTO dollars VALUES (1, '$1')",
        )
        .await
        .expect("a table");
    let query = "SELECT a$1, \"b$2\" FROM dollars WHERE \"b$2\" <> '$9'";
    pooled
        .batch_execute(&format!("CREATE STREAM TABLE dollars_st AS {query}"))
        .await
        .expect("a stream table");
    for n in 0..4 {
        pooled
            .batch_execute(&format!("INSERT INTO dollars VALUES ({n}, '${n}')"))
            .await
            .expect("a row");
        converges(&pooled, "dollars_st", query, Duration::from_secs(20)).await;
    }
    let errors = "SELECT string_agg(error, ', ') FROM pgtrickle.refresh_history";
    assert_eq!(scalar(&pooled, errors).await, None);
}

/// What the client has set for itself is not how the engine reads and writes times.
#[tokio::test]
async fn a_refresh_in_a_block_under_any_datestyle() {
    let stack = Stack::start(PGCAT, 15);
    let pooled = stack.pooled().await;
    pooled
        .batch_execute(
            "CREATE TABLE dated (a int);
             CREATE STREAM TABLE dated_st WITH (schedule = 'manual') AS SELECT a FROM dated",
        )
        .await
        .expect("a stream table");
    for style in ["SQL, DMY", "German", "Postgres, MDY"] {
        pooled
            .batch_execute(&format!(
                "SET DateStyle = '{style}'; INSERT INTO dated VALUES (1)"
            ))
            .await
            .expect("a setting");
        pooled
            .batch_execute("BEGIN; REFRESH STREAM TABLE dated_st; COMMIT")
            .await
            .expect(style);
        let rest = differences(&pooled, "TABLE dated_st", "SELECT a FROM dated").await;
        assert_eq!(rest.expect("a comparison"), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_cancelled_refresh_does_not_start_again() {
    let stack = Stack::start(PGCAT, 15);
    let pooled = stack.pooled().await;
    pooled
        .batch_execute(
            "CREATE TABLE slow (a int); INSERT INTO slow VALUES (1);
             CREATE FUNCTION slowly(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
                BEGIN PERFORM pg_sleep(CASE WHEN current_setting('application_name') = 'slow' THEN 60 ELSE 0 END); RETURN $1; END $$;
             CREATE STREAM TABLE slow_st WITH (schedule = 'manual') AS SELECT slowly(a) AS a FROM slow;
             SET application_name = 'slow'; SET statement_timeout = '500ms'",
        )
        .await
        .expect("a stream table");
    let error = refused(&pooled, "REFRESH STREAM TABLE slow_st FULL").await;
    assert_eq!(error.code().code(), "57014", "{error:?}");
    // It has run once: the second time would have been the long way's, which says so in the history or takes as long again.
    let direct = stack.direct().await;
    let running = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = 'slow' AND state = 'active'";
    eventually(&direct, running, "0").await;
    pooled
        .batch_execute(
            "RESET application_name; RESET statement_timeout; REFRESH STREAM TABLE slow_st",
        )
        .await
        .expect("a refresh");
}

#[tokio::test]
async fn a_trigger_that_keeps_rows_is_named() {
    let stack = Stack::start(PGCAT, 15);
    let pooled = stack.pooled().await;
    pooled
        .batch_execute(
            "CREATE TABLE kept (a int); INSERT INTO kept VALUES (1);
             CREATE STREAM TABLE kept_st WITH (schedule = 'manual') AS SELECT a FROM kept;
             CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             CREATE TRIGGER keep BEFORE DELETE ON kept_st FOR EACH ROW EXECUTE FUNCTION keep();
             DELETE FROM kept",
        )
        .await
        .expect("a stream table with a trigger");
    let error = refused(&pooled, "REFRESH STREAM TABLE kept_st").await;
    assert_eq!(error.code().code(), "55000", "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("trigger")));
    pooled
        .batch_execute("DROP TRIGGER keep ON kept_st; REFRESH STREAM TABLE kept_st")
        .await
        .expect("a refresh without the trigger");
    assert_eq!(
        scalar(&pooled, "SELECT count(*)::text FROM kept_st")
            .await
            .as_deref(),
        Some("0")
    );
}

/// A look at all of many takes its time, here because of a lock. What changed lately is looked at beside it.
#[tokio::test]
async fn what_changed_lately_does_not_wait_for_many_others() {
    let stack = Stack::start(PGCAT, 15);
    let pooled = stack.pooled().await;
    for n in 1..=12 {
        let sql = format!(
            "CREATE TABLE many_{n} (a int); CREATE STREAM TABLE many_{n}_st AS SELECT a FROM many_{n}"
        );
        pooled.batch_execute(&sql).await.expect("a stream table");
    }
    let write = async |n: u32| {
        let sql = format!("INSERT INTO many_{n} SELECT count(*) FROM many_{n}");
        pooled.batch_execute(&sql).await.expect("a row");
    };
    let follows = async |n: u32| {
        let (table, query) = (format!("many_{n}_st"), format!("SELECT a FROM many_{n}"));
        converges(&pooled, &table, &query, Duration::from_secs(20)).await;
    };
    write(1).await;
    follows(1).await;
    let holder = stack.direct().await;
    let buffer = "SELECT format('pgtrickle.changes_%s', buffer) FROM pgtrickle.source WHERE relid = 'many_12'::regclass";
    let buffer = scalar(&holder, buffer).await.expect("a buffer");
    holder
        .batch_execute(&format!(
            "BEGIN; LOCK TABLE {buffer} IN ACCESS EXCLUSIVE MODE"
        ))
        .await
        .expect("a lock");
    for _ in 0..5 {
        write(1).await;
        follows(1).await;
    }
    write(2).await;
    holder.batch_execute("COMMIT").await.expect("no lock");
    write(12).await;
    follows(2).await;
    follows(12).await;
}
