//! Stream tables on stream tables, kept by the worker: whoever reads, and whatever happens meanwhile, sees them at one moment.

mod diamond;
mod shared;

use std::time::Duration;

use test_support::{PoolerConfig, Stack, converges, refused, scalar};
use tokio_postgres::Client;

pub const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");
pub const SHORTLY: Duration = Duration::from_secs(20);

pub async fn run(client: &Client, sql: &str) {
    client
        .batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

async fn eventually(client: &Client, sql: &str, expected: &str) {
    let mut found = None;
    for _ in 0..400 {
        found = scalar(client, sql).await;
        if found.as_deref() == Some(expected) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{found:?} and not {expected} within 20 s: {sql}");
}

#[tokio::test]
async fn a_chain_of_four_is_refreshed_at_once() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(
        &pooled,
        "CREATE TABLE t (id serial PRIMARY KEY, v int); INSERT INTO t (v) SELECT i % 9 FROM generate_series(1, 90) i;
         CREATE STREAM TABLE one AS SELECT id, v FROM t WHERE v > 0;
         CREATE STREAM TABLE two AS SELECT v, count(*) AS n FROM one GROUP BY v;
         CREATE STREAM TABLE three AS SELECT t.id, two.n FROM t JOIN two USING (v);
         CREATE STREAM TABLE four AS SELECT n, count(*) AS rows FROM three GROUP BY n",
    )
    .await;
    let four = "SELECT n, count(*) AS rows FROM t JOIN (SELECT v, count(*) AS n FROM t WHERE v > 0 GROUP BY v) two USING (v) GROUP BY n";
    for write in [
        "INSERT INTO t (v) VALUES (3), (3), (4)",
        "UPDATE t SET v = v + 1 WHERE id % 10 = 0",
        "DELETE FROM t WHERE v = 5",
        "TRUNCATE t; INSERT INTO t (v) VALUES (1), (2), (2)",
    ] {
        run(&direct, write).await;
        converges(&direct, "four", four, SHORTLY).await;
        // Nothing is left to do for another transaction.
        let transactions = "SELECT count(DISTINCT frontier_xid)::text FROM pgtrickle.catalog";
        assert_eq!(
            scalar(&direct, transactions).await.as_deref(),
            Some("1"),
            "{write}"
        );
    }
    let verified = pooled.simple_query("VERIFY STREAM TABLE four").await;
    assert!(
        !verified
            .expect("VERIFY")
            .iter()
            .any(|m| matches!(m, tokio_postgres::SimpleQueryMessage::Row(_))),
        "rows differ"
    );
    run(&pooled, "INSERT INTO t (v) VALUES (7), (8), (8)").await;
    run(&pooled, "REFRESH STREAM TABLE four").await;
    converges(&pooled, "four", four, Duration::ZERO).await;
    let history = "SELECT bool_and(mode IN ('incremental', 'full') AND error IS NULL)::text || ' ' || count(DISTINCT name)
        FROM pgtrickle.refresh_history";
    assert_eq!(scalar(&direct, history).await.as_deref(), Some("true 4"));
    let explained = pooled
        .simple_query("EXPLAIN (ANALYZE) STREAM TABLE two")
        .await
        .expect("EXPLAIN");
    let others = "Refreshed together with: one, three, four";
    assert!(
        explained.iter().any(|message| matches!(message,
            tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some(others))),
        "{explained:?}"
    );
}

/// Somebody is busy with what it reads for longer than CREATE has patience.
#[tokio::test]
async fn one_is_created_over_one_that_is_busy() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(
        &pooled,
        "CREATE TABLE t (v int); INSERT INTO t VALUES (1), (2);
         CREATE STREAM TABLE busy AS SELECT v FROM t WHERE v > 0",
    )
    .await;
    run(&direct, "BEGIN; SELECT FROM pgtrickle.catalog FOR UPDATE").await;
    run(
        &pooled,
        "CREATE STREAM TABLE over_it AS SELECT sum(v) AS s FROM busy",
    )
    .await;
    eventually(&pooled, "SELECT s::text FROM over_it", "3").await;
    run(&direct, "COMMIT; INSERT INTO t VALUES (3)").await;
    converges(
        &pooled,
        "over_it",
        "SELECT sum(v) AS s FROM t WHERE v > 0",
        SHORTLY,
    )
    .await;
}

/// What can only be recomputed is not at each refresh of the others, though nothing of it has changed.
#[tokio::test]
async fn one_that_is_recomputed_keeps_its_own_pace() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(
        &pooled,
        "CREATE TABLE t (v int); INSERT INTO t SELECT generate_series(1, 100);
         CREATE STREAM TABLE recomputed WITH (refresh_mode = 'full') AS SELECT count(*) AS n FROM t;
         CREATE STREAM TABLE reads_it WITH (schedule = '1s') AS SELECT n FROM recomputed",
    )
    .await;
    let times = "SELECT count(*)::text FROM pgtrickle.refresh_history WHERE name = 'recomputed'";
    // It is once more for what was written, and then in a minute, for what may change without a write.
    for _ in 0..6 {
        let before = scalar(&direct, times).await;
        run(&direct, "SELECT pg_sleep(5)").await;
        if scalar(&direct, times).await == before {
            return;
        }
    }
    panic!("it is recomputed again and again");
}

#[tokio::test]
async fn one_that_fails_holds_up_nobody() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(
        &pooled,
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 20) i;
         CREATE STREAM TABLE first AS SELECT id, v FROM t;
         CREATE STREAM TABLE middle AS SELECT id, 100 / v AS q FROM first;
         CREATE STREAM TABLE last AS SELECT first.id, v, q FROM first LEFT JOIN middle USING (id);
         CREATE STREAM TABLE beside AS SELECT sum(v) AS s FROM first",
    )
    .await;
    run(&direct, "UPDATE t SET v = 0 WHERE id = 7").await;
    let status =
        "SELECT string_agg(name || ' ' || status, ', ' ORDER BY name) FROM pgtrickle.stream_tables";
    eventually(
        &direct,
        status,
        "beside active, first active, last active, middle error",
    )
    .await;
    for n in 100..110 {
        run(&direct, &format!("INSERT INTO t VALUES ({n}, {n})")).await;
        let as_it_is = "SELECT first.id, v, q FROM first LEFT JOIN middle USING (id)";
        converges(&direct, "beside", "SELECT sum(v) AS s FROM t", SHORTLY).await;
        converges(&direct, "last", as_it_is, SHORTLY).await;
    }
    let failed =
        "SELECT (min(error) || ', ' || (count(*) < 30))::text FROM pgtrickle.refresh_history
        WHERE name = 'middle' AND error IS NOT NULL";
    assert_eq!(
        scalar(&direct, failed).await.as_deref(),
        Some("division by zero, true")
    );
    let others = "SELECT count(*)::text FROM pgtrickle.refresh_history WHERE name <> 'middle' AND error IS NOT NULL";
    assert_eq!(scalar(&direct, others).await.as_deref(), Some("0"));
    run(&direct, "UPDATE t SET v = 7 WHERE id = 7").await;
    let last = "SELECT id, v, 100 / v AS q FROM t";
    converges(&direct, "last", last, Duration::from_secs(60)).await;
    eventually(
        &direct,
        status,
        "beside active, first active, last active, middle active",
    )
    .await;
}

/// Between owners it is one hop after the other: nobody's refresh runs with the rights of somebody else.
#[tokio::test]
async fn owners_follow_each_other() {
    let stack = Stack::start_with(
        PGCAT,
        15,
        &test_support::Settings::default(),
        |config: PoolerConfig| config.user("reader", 3),
    );
    stack.postgres.psql("postgres", "app").run(&[
        "CREATE ROLE reader LOGIN PASSWORD 'reader'",
        "GRANT CREATE ON SCHEMA public TO reader",
    ]);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(
        &pooled,
        "CREATE TABLE t (k int, v int); INSERT INTO t SELECT i % 3, i FROM generate_series(1, 9) i;
         CREATE STREAM TABLE sums AS SELECT k, sum(v) AS s FROM t GROUP BY k;
         CREATE STREAM TABLE counts AS SELECT k, count(*) AS n FROM t GROUP BY k;
         GRANT SELECT, TRIGGER ON sums, counts TO reader; GRANT CREATE ON SCHEMA pgtrickle TO reader",
    )
    .await;
    let reader = stack.pooler.client("reader", "app").await;
    run(
        &reader,
        "CREATE STREAM TABLE means AS SELECT k, s / n AS mean FROM sums JOIN counts USING (k);
         CREATE STREAM TABLE all_means AS SELECT sum(mean) AS s FROM means",
    )
    .await;
    for write in [
        "INSERT INTO t VALUES (1, 100), (7, 7)",
        "UPDATE t SET v = v + 10",
        "DELETE FROM t WHERE k = 2",
    ] {
        run(&direct, write).await;
        let mean =
            "SELECT sum(m) AS s FROM (SELECT sum(v) / count(*) AS m FROM t GROUP BY k) means";
        let theirs = "SELECT sum(mean) AS s FROM means";
        converges(
            &pooled,
            "sums",
            "SELECT k, sum(v) AS s FROM t GROUP BY k",
            SHORTLY,
        )
        .await;
        stack
            .postgres
            .psql("postgres", "app")
            .run(&["GRANT SELECT ON means, all_means TO app"]);
        converges(&direct, "all_means", mean, SHORTLY).await;
        converges(&direct, "all_means", theirs, SHORTLY).await;
    }
}

#[tokio::test]
async fn a_schedule_counts_within_a_group_too() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(
        &pooled,
        "CREATE TABLE t (k int, v int); INSERT INTO t SELECT i % 3, i FROM generate_series(1, 9) i;
         CREATE STREAM TABLE live AS SELECT sum(v) AS s FROM t;
         CREATE STREAM TABLE hourly WITH (schedule = '1h') AS SELECT sum(v) AS s FROM t;
         CREATE STREAM TABLE by_hand WITH (schedule = 'manual') AS SELECT live.s AS a, hourly.s AS b FROM live, hourly;
         CREATE STREAM TABLE on_top AS SELECT live.s AS a, hourly.s AS b, by_hand.a AS c FROM live, hourly, by_hand",
    )
    .await;
    let row = "SELECT concat_ws(' ', a, b, c) FROM on_top";
    run(&direct, "INSERT INTO t VALUES (1, 5)").await;
    // What is not due is seen as it is.
    eventually(&direct, row, "50 45 45").await;
    run(&direct, "INSERT INTO t VALUES (1, 50)").await;
    eventually(&direct, row, "100 45 45").await;
    // By hand, what is read comes along, and what reads it follows.
    run(&pooled, "REFRESH STREAM TABLE by_hand").await;
    assert_eq!(
        scalar(&direct, "SELECT concat_ws(' ', a, b) FROM by_hand")
            .await
            .as_deref(),
        Some("100 100")
    );
    eventually(&direct, row, "100 100 100").await;
    // One that is suspended is left alone, and resumed it catches up.
    run(&pooled, "ALTER STREAM TABLE live SUSPEND").await;
    run(&pooled, "INSERT INTO t VALUES (1, 1)").await;
    run(&pooled, "REFRESH STREAM TABLE by_hand").await;
    assert_eq!(
        scalar(&direct, "SELECT concat_ws(' ', a, b) FROM by_hand")
            .await
            .as_deref(),
        Some("100 101")
    );
    run(&pooled, "ALTER STREAM TABLE live RESUME").await;
    eventually(&direct, row, "101 101 100").await;
}

#[tokio::test]
async fn a_circle_is_refused() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(
        &pooled,
        "CREATE TABLE t (v int); INSERT INTO t VALUES (1); CREATE VIEW seen AS SELECT v FROM t;
         CREATE STREAM TABLE one AS SELECT v FROM seen; CREATE STREAM TABLE two AS SELECT v + 1 AS v FROM one;
         CREATE STREAM TABLE beside AS SELECT count(*) AS n FROM t",
    )
    .await;
    let circle = "CREATE OR REPLACE VIEW seen AS SELECT v FROM two";
    let error = refused(&pooled, circle).await;
    assert_eq!(error.code().code(), "42P17", "{error:?}");
    let message = "a stream table must not read itself: public.two -> public.one -> public.two";
    assert_eq!(error.message(), message);
    // Beside the pooler nobody can refuse it.
    run(&direct, circle).await;
    eventually(
        &direct,
        "SELECT status || ': ' || last_error FROM pgtrickle.stream_tables WHERE name = 'one'",
        &format!("error: {message}"),
    )
    .await;
    run(&direct, "INSERT INTO t VALUES (2)").await;
    eventually(&direct, "SELECT n::text FROM beside", "2").await;
    let refreshes = "SELECT count(*)::text FROM pgtrickle.refresh_history WHERE error IS NULL";
    let before = scalar(&direct, refreshes).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        scalar(&direct, refreshes).await,
        before,
        "it goes round and round"
    );
    run(&direct, "CREATE OR REPLACE VIEW seen AS SELECT v FROM t").await;
    converges(
        &direct,
        "two",
        "SELECT v + 1 AS v FROM t",
        Duration::from_secs(60),
    )
    .await;
}

#[tokio::test]
async fn a_slow_one_leaves_time_to_the_others() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    run(
        &pooled,
        "CREATE TABLE t (id serial, v int);
         CREATE FUNCTION slowly(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM pg_sleep(1); RETURN $1; END $$;
         CREATE STREAM TABLE first AS SELECT id, v FROM t;
         CREATE STREAM TABLE slow AS SELECT slowly(sum(v)::int) AS s FROM first;
         CREATE STREAM TABLE quick AS SELECT sum(v) AS s FROM first",
    )
    .await;
    for n in 0..120 {
        run(&direct, &format!("INSERT INTO t (v) VALUES ({n})")).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let often = "SELECT string_agg(concat_ws(' ', name, n), ', ' ORDER BY name) FROM (SELECT name, count(*) AS n
        FROM pgtrickle.refresh_history GROUP BY name) h";
    let often = scalar(&direct, often).await.unwrap_or_default();
    let count = |name: &str| -> u32 {
        let of = often.split(", ").find_map(|entry| entry.strip_prefix(name));
        of.and_then(|n| n.trim().parse().ok()).unwrap_or_default()
    };
    assert!(count("quick") > 3 * count("slow").max(1), "{often}");
    converges(&direct, "slow", "SELECT sum(v) AS s FROM t", SHORTLY).await;
}
