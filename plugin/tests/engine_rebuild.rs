//! Full refreshes: what they write, what they mend, and how they are computed.

mod engine_support;

use engine_support::{connect, create, create_as, differences, memory, refresh};
use stream_tables::engine::{self, How, Mode, StreamTableId};
use test_support::{Auth, Postgres, Settings};
use tokio_postgres::Client;

/// A WITH query that is read twice, below groups.
const ABOVE_AVERAGE: &str = "WITH s AS (SELECT k, sum(v) AS v, count(*) AS n FROM t GROUP BY k)
    SELECT a.n, count(*) AS groups, sum(a.v) AS v FROM s a WHERE a.v > (SELECT avg(b.v) FROM s b) GROUP BY a.n";

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, k int, v numeric);
    INSERT INTO t SELECT i, nullif(i % 300, 7), i * 1.5 FROM generate_series(1, 3000) i";

async fn full(c: &mut Client, id: StreamTableId) -> engine::RefreshOutcome {
    engine::refresh(c, &memory(), id, How::Full).await.unwrap()
}

/// The hidden tables of a stream table that hold rows.
async fn hidden(c: &Client, kind: &str, id: StreamTableId) -> Vec<String> {
    let sql = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relname ~ ('^' || $1 || '_' || $2 || '(_|$)') ORDER BY 1";
    let rows = c.query(sql, &[&kind, &id.to_string()]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Where the rows of these tables are, and which transaction wrote them.
async fn versions(c: &Client, tables: &[String]) -> Vec<String> {
    let mut versions = Vec::new();
    for table in tables {
        let sql = format!("SELECT '{table} ' || ctid::text || ' ' || xmin::text FROM {table}");
        let rows = c.query(&sql, &[]).await.unwrap();
        versions.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    versions
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_the_same_is_not_written() {
    let server = Postgres::start(15);
    let mut c = connect(&server).await;
    c.batch_execute(SCHEMA).await.unwrap();
    let id = create_as(&mut c, "st", ABOVE_AVERAGE, Mode::Auto)
        .await
        .unwrap();
    // What is read twice is there once: it, and its average.
    let stages = hidden(&c, "stage", id).await;
    assert_eq!(stages.len(), 2, "{stages:?}");
    let tables = [stages, hidden(&c, "state", id).await].concat();
    let before = versions(&c, &tables).await;
    assert!(before.len() > 600, "{}", before.len());
    c.batch_execute(
        "UPDATE pgtrickle.catalog SET full_seconds = 0.001, base_seconds = 1, change_seconds = 1;
         UPDATE t SET v = v + 1 WHERE k < 6; DELETE FROM t WHERE k = 10; INSERT INTO t VALUES (-1, -1, 5)",
    )
    .await
    .unwrap();
    assert_eq!(refresh(&mut c, id).await.mode, "full");
    assert_eq!(differences(&mut c, "st", ABOVE_AVERAGE).await, [""; 0]);
    let after = versions(&c, &tables).await;
    let written = after.iter().filter(|v| !before.contains(v)).count();
    // The seven groups that are other or new, in the state and in what reads it, the average, and the groups of the result.
    assert!((14..25).contains(&written), "{written} rows were written");
}

#[tokio::test(flavor = "current_thread")]
async fn hidden_tables_are_mended() {
    let server = Postgres::start(15);
    let mut c = connect(&server).await;
    c.batch_execute(SCHEMA).await.unwrap();
    let id = create(&mut c, "st", ABOVE_AVERAGE).await.unwrap();
    for table in [hidden(&c, "stage", id).await, hidden(&c, "state", id).await].concat() {
        c.batch_execute(&format!(
            "INSERT INTO {table} SELECT * FROM {table} LIMIT 2; DELETE FROM {table} WHERE ctid IN (SELECT max(ctid) FROM {table})"
        ))
        .await
        .unwrap();
        full(&mut c, id).await;
        let writes = "UPDATE t SET v = v + 1000 WHERE k < 20 OR k IS NULL; DELETE FROM t WHERE id % 300 = 299";
        c.batch_execute(writes).await.unwrap();
        assert_eq!(refresh(&mut c, id).await.mode, "incremental");
        assert_eq!(differences(&mut c, "st", ABOVE_AVERAGE).await, [""; 0]);
    }
}

/// A slice of an array has other bytes than the array of the same values.
#[tokio::test(flavor = "current_thread")]
async fn slices_of_arrays_are_found_again() {
    let server = Postgres::start(15);
    let mut c = connect(&server).await;
    c.batch_execute(
        "CREATE TABLE src (k int, a int[]); CREATE TABLE u (k int, x int);
         INSERT INTO src SELECT i, ARRAY[NULL, i, i + 1] FROM generate_series(1, 5) i; INSERT INTO u SELECT i, i FROM generate_series(1, 3) i",
    )
    .await
    .unwrap();
    let queries = [
        ("flat", "SELECT k, a[2:3] AS a FROM src"),
        (
            "stage",
            "SELECT s.k, s.a, u.x FROM (SELECT DISTINCT k, a[2:3] AS a FROM src) s JOIN u USING (k)",
        ),
        (
            "part",
            "SELECT s.k, s.a, u.x FROM (SELECT k, a[2:3] AS a, rank() OVER (ORDER BY k) AS r FROM src) s JOIN u USING (k)",
        ),
    ];
    let mut ids = Vec::new();
    for (name, query) in queries {
        ids.push(create(&mut c, name, query).await.unwrap());
    }
    for writes in [
        "DELETE FROM src WHERE k = 1",
        "UPDATE pgtrickle.catalog SET frontier_snapshot = NULL; DELETE FROM src WHERE k = 2",
        "INSERT INTO u VALUES (1, 10), (2, 20), (3, 30)",
        "UPDATE src SET a = a || a WHERE k = 3",
    ] {
        c.batch_execute(writes).await.unwrap();
        for ((name, query), id) in queries.iter().zip(&ids) {
            refresh(&mut c, *id).await;
            assert_eq!(
                differences(&mut c, name, query).await,
                [""; 0],
                "{name} after {writes}"
            );
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn there_may_be_no_columns() {
    let server = Postgres::start(15);
    let mut c = connect(&server).await;
    c.batch_execute(SCHEMA).await.unwrap();
    let ids = [
        create(&mut c, "bare", "SELECT FROM t WHERE k < 3")
            .await
            .unwrap(),
        create(
            &mut c,
            "grouped",
            "SELECT FROM t GROUP BY k HAVING count(*) > 5",
        )
        .await
        .unwrap(),
    ];
    for how in [How::Auto, How::Full, How::Auto] {
        c.batch_execute("DELETE FROM t WHERE id IN (SELECT id FROM t WHERE k < 3 LIMIT 7)")
            .await
            .unwrap();
        for (id, name, query) in [
            (ids[0], "bare", "t WHERE k < 3"),
            (
                ids[1],
                "grouped",
                "(SELECT FROM t GROUP BY k HAVING count(*) > 5) q",
            ),
        ] {
            engine::refresh(&mut c, &memory(), id, how).await.unwrap();
            let sql =
                format!("SELECT (SELECT count(*) FROM {name}) = (SELECT count(*) FROM {query})");
            assert!(
                c.query_one(&sql, &[]).await.unwrap().get::<_, bool>(0),
                "{name}, {how:?}"
            );
        }
    }
}

/// Autovacuum may be busy for long with what a large refresh has left in a staging table.
#[tokio::test(flavor = "current_thread")]
async fn a_staging_table_that_autovacuum_has_is_not_waited_for() {
    let server = Postgres::start(15);
    let mut c = connect(&server).await;
    c.batch_execute(SCHEMA).await.unwrap();
    let id = create(&mut c, "st", ABOVE_AVERAGE).await.unwrap();
    let autovacuum = connect(&server).await;
    let staging = [
        hidden(&c, "delta", id).await,
        hidden(&c, "out", id).await,
        hidden(&c, "state", id).await,
    ];
    assert!(
        staging.iter().all(|tables| !tables.is_empty()),
        "{staging:?}"
    );
    let staging = staging.concat().join(", ");
    let lock = format!("BEGIN; LOCK TABLE {staging} IN SHARE UPDATE EXCLUSIVE MODE");
    autovacuum.batch_execute(&lock).await.unwrap();
    for how in [How::Auto, How::Full] {
        c.batch_execute("UPDATE t SET v = v + 1").await.unwrap();
        engine::refresh(&mut c, &memory(), id, how).await.unwrap();
        assert_eq!(differences(&mut c, "st", ABOVE_AVERAGE).await, [""; 0]);
    }
}

/// Which PostgreSQL counts from 18 on.
#[tokio::test(flavor = "current_thread")]
async fn a_full_refresh_is_computed_in_parallel() {
    let settings = [
        ("parallel_setup_cost", "0"),
        ("parallel_tuple_cost", "0"),
        // Larger than any catalog: none but the source's scans are parallel.
        ("min_parallel_table_scan_size", "4MB"),
        ("min_parallel_index_scan_size", "1GB"),
        ("max_parallel_workers_per_gather", "2"),
        ("max_worker_processes", "8"),
    ];
    let settings = settings
        .iter()
        .fold(Settings::auth(Auth::Trust), |s, (name, value)| {
            s.parameter(name, value)
        });
    let server = Postgres::start_with(18, &settings);
    let mut c = connect(&server).await;
    c.batch_execute(SCHEMA).await.unwrap();
    c.batch_execute(
        "ALTER TABLE t ADD wide text; UPDATE t SET wide = repeat('x', 1500); ANALYZE t",
    )
    .await
    .unwrap();
    let queries = [
        (
            "groups",
            "SELECT k, sum(v * 2) AS v, avg(v) AS a FROM t GROUP BY k",
        ),
        ("stages", ABOVE_AVERAGE),
    ];
    let workers = async |c: &Client| -> i64 {
        let sql = "SELECT pg_stat_force_next_flush()";
        c.query_one(sql, &[]).await.unwrap();
        let sql = "SELECT parallel_workers_launched FROM pg_stat_database WHERE datname = current_database()";
        c.query_one(sql, &[]).await.unwrap().get(0)
    };
    for (name, query) in queries {
        let before = workers(&c).await;
        let id = create(&mut c, name, query).await.unwrap();
        let loaded = workers(&c).await;
        assert!(loaded > before, "CREATE of {name}");
        full(&mut c, id).await;
        assert!(workers(&c).await > loaded, "REFRESH of {name}");
        assert_eq!(differences(&mut c, name, query).await, [""; 0]);
        c.batch_execute("BEGIN").await.unwrap();
        engine::drop(&mut c, id, false).await.unwrap();
        c.batch_execute("COMMIT").await.unwrap();
    }
    let sql = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'rows\\_%'";
    assert_eq!(c.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
}
