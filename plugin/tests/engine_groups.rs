//! Stream tables on stream tables: refreshed together, each is its query over the tables below all of them.

mod engine_support;

use engine_support::{connect, create, create_as, differences, memory};
use stream_tables::engine::{self, How, Memory, Mode, Refreshed, StreamTableId};
use test_support::Postgres;
use tokio::task::LocalSet;
use tokio_postgres::Client;

/// Runs a test on a server of its own.
fn on_a_server<T>(test: impl AsyncFnOnce(Postgres, Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let server = Postgres::start(15);
        let client = connect(&server).await;
        test(server, client).await
    })
}

async fn run(c: &Client, sql: &str) {
    c.batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// CREATE STREAM TABLE, which works.
async fn made(c: &mut Client, name: &str, query: &str) -> StreamTableId {
    let created = create(c, name, query).await;
    created.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Asserts that a stream table is this query, row by row.
async fn is(c: &mut Client, name: &str, query: &str) {
    assert_eq!(differences(c, name, query).await, [""; 0], "{name}");
}

/// Refreshes together, and returns the modes.
async fn together(c: &mut Client, memory: &Memory, ids: &[StreamTableId]) -> Vec<Refreshed> {
    let mut refreshed = engine::refresh_together(c, memory, ids)
        .await
        .expect("a common refresh");
    refreshed.sort_by_key(|refreshed| refreshed.id);
    refreshed
}

fn modes(refreshed: &[Refreshed]) -> Vec<String> {
    refreshed
        .iter()
        .map(|refreshed| match &refreshed.result {
            Ok(outcome) => outcome.mode.to_owned(),
            Err(error) => error.code().to_owned(),
        })
        .collect()
}

const CHAIN: &[(&str, &str, &str)] = &[
    (
        "c1",
        "SELECT id, v * 2 AS v FROM t WHERE v > 0",
        "SELECT id, v * 2 AS v FROM t WHERE v > 0",
    ),
    (
        "c2",
        "SELECT v % 10 AS k, count(*) AS n, sum(v) AS s FROM c1 GROUP BY 1",
        "SELECT v % 10 AS k, count(*) AS n, sum(v) AS s FROM (SELECT v * 2 AS v FROM t WHERE v > 0) c1 GROUP BY 1",
    ),
    (
        "c3",
        "SELECT t.id, c2.n FROM t JOIN c2 ON c2.k = t.v * 2 % 10",
        "SELECT t.id, c2.n FROM t JOIN (SELECT v * 2 % 10 AS k, count(*) AS n FROM t WHERE v > 0 GROUP BY 1) c2 ON c2.k = t.v * 2 % 10",
    ),
    (
        "c4",
        "SELECT n, count(*) AS rows FROM c3 GROUP BY n",
        "SELECT n, count(*) AS rows FROM (SELECT c2.n FROM t JOIN (SELECT v * 2 % 10 AS k, count(*) AS n FROM t WHERE v > 0 GROUP BY 1) c2
            ON c2.k = t.v * 2 % 10) c3 GROUP BY n",
    ),
];

async fn chain(c: &mut Client) -> Vec<StreamTableId> {
    run(
        c,
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i % 37 - 3 FROM generate_series(1, 200) i",
    )
    .await;
    let mut ids = Vec::new();
    for (name, query, _) in CHAIN {
        ids.push(create(c, name, query).await.expect(name));
    }
    ids
}

async fn compare(c: &mut Client, when: &str) {
    for (name, _, over_tables) in CHAIN {
        assert_eq!(
            differences(c, name, over_tables).await,
            [""; 0],
            "{name} {when}"
        );
    }
}

const WRITES: &[&str] = &[
    "INSERT INTO t SELECT i, i % 11 FROM generate_series(1000, 1010) i",
    "UPDATE t SET v = v + 1 WHERE id % 3 = 0",
    "DELETE FROM t WHERE id % 7 = 0",
    "UPDATE t SET v = -v WHERE id % 5 = 0",
    "INSERT INTO t VALUES (5000, 5), (5001, NULL); DELETE FROM t WHERE v = 4",
];

#[test]
fn a_chain_of_four_takes_one_transaction() {
    on_a_server(async |_server, mut c| {
        let ids = chain(&mut c).await;
        let memory = memory();
        for round in 0..3 {
            for write in WRITES {
                run(
                    &c,
                    &write
                        .replace("5000", &format!("{round}5000"))
                        .replace("5001", &format!("{round}5001"))
                        .replace("1000, 1010", &format!("{round}1000, {round}1010")),
                )
                .await;
                let refreshed = together(&mut c, &memory, &ids).await;
                assert_eq!(modes(&refreshed), ["incremental"; 4], "{write}");
                compare(&mut c, write).await;
                let xids = "SELECT count(DISTINCT frontier_xid) FROM pgtrickle.catalog";
                let row = c.query_one(xids, &[]).await.expect(xids);
                assert_eq!(row.get::<_, i64>(0), 1, "one transaction");
                // What the transaction wrote for itself is not waiting.
                assert_eq!(engine::pending(&mut c, &ids).await.expect("a look"), []);
                let refreshed = together(&mut c, &memory, &ids).await;
                assert_eq!(modes(&refreshed), ["none"; 4], "{write}");
            }
        }
        // A change that the second does not let through.
        run(&c, "INSERT INTO t VALUES (-1, -1)").await;
        let refreshed = together(&mut c, &memory, &ids).await;
        assert_eq!(
            modes(&refreshed),
            ["incremental", "none", "incremental", "none"]
        );
        compare(&mut c, "a row that is filtered out").await;
    });
}

#[test]
fn the_buffers_are_emptied() {
    on_a_server(async |_server, mut c| {
        let ids = chain(&mut c).await;
        let memory = memory();
        run(&c, WRITES[0]).await;
        together(&mut c, &memory, &ids).await;
        engine::cleanup_buffers(&mut c).await.expect("a clean-up");
        let left = "SELECT coalesce(sum((xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM pgtrickle.%I', relname), false, true, '')))[1]::text::bigint), 0)::bigint
            FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname ~ '^(changes|delta|out)_' AND relkind = 'r' AND relname NOT IN
            (SELECT 'changes_' || id FROM pgtrickle.buffer WHERE relid = 't'::regclass)";
        let row = c.query_one(left, &[]).await.expect(left);
        assert_eq!(row.get::<_, i64>(0), 0);
        run(&c, WRITES[1]).await;
        together(&mut c, &memory, &ids).await;
        compare(&mut c, "after a clean-up").await;
    });
}

/// A refresh of one takes those along that it reads, as REFRESH STREAM TABLE does.
#[test]
fn the_last_brings_the_others_along() {
    on_a_server(async |_server, mut c| {
        let ids = chain(&mut c).await;
        let memory = memory();
        for how in [How::Auto, How::Full, How::Auto] {
            run(&c, "UPDATE t SET v = v + 1 WHERE id % 4 = 1").await;
            let outcome = engine::refresh(&mut c, &memory, ids[3], how)
                .await
                .expect("a refresh");
            assert_eq!(
                outcome.mode,
                if how == How::Full {
                    "full"
                } else {
                    "incremental"
                }
            );
            compare(&mut c, "after a refresh of the last").await;
        }
        // The first alone leaves the others as they were, and what it wrote to them.
        run(&c, "UPDATE t SET v = v + 1").await;
        engine::refresh(&mut c, &memory, ids[0], How::Auto)
            .await
            .expect("a refresh");
        assert_eq!(
            engine::pending(&mut c, &ids).await.expect("a look"),
            ids[1..3]
        );
        together(&mut c, &memory, &ids).await;
        compare(&mut c, "after all").await;
        // A manual one is not brought along.
        run(&c, "UPDATE pgtrickle.catalog SET schedule = 'manual' WHERE target_name = 'c2'; UPDATE t SET v = v + 1").await;
        engine::refresh(&mut c, &memory, ids[3], How::Auto)
            .await
            .expect("a refresh");
        assert_eq!(
            engine::pending(&mut c, &ids).await.expect("a look"),
            ids[..1]
        );
    });
}

/// The two sides of a diamond have the same sum at every moment.
#[test]
fn a_diamond_that_is_made_anew_is_of_one_moment() {
    on_a_server(async |_server, mut c| {
        run(&c, "CREATE TABLE t (k int, v int); INSERT INTO t SELECT i % 5, i FROM generate_series(1, 50) i").await;
        let left = made(&mut c, "l", "SELECT k, sum(v) AS s FROM t GROUP BY k").await;
        let right = made(
            &mut c,
            "r",
            "SELECT k, sum(v + 1) - count(*) AS s FROM t GROUP BY k",
        )
        .await;
        let both = made(
            &mut c,
            "d",
            "SELECT k, l.s AS a, r.s AS b FROM l JOIN r USING (k)",
        )
        .await;
        let memory = memory();
        let unequal = async |c: &Client| -> i64 {
            let sql = "SELECT count(*) FROM d WHERE a <> b";
            c.query_one(sql, &[]).await.expect(sql).get(0)
        };
        // The left one alone is a moment ahead. The other side follows before the two are read together.
        run(&c, "UPDATE t SET v = v + 1").await;
        engine::refresh(&mut c, &memory, left, How::Auto)
            .await
            .expect("a refresh");
        engine::refresh(&mut c, &memory, both, How::Auto)
            .await
            .expect("a refresh");
        assert_eq!(unequal(&c).await, 0);
        assert_eq!(
            engine::pending(&mut c, &[left, right, both])
                .await
                .expect("a look"),
            []
        );
        // TRUNCATE has them rebuilt.
        run(&c, "TRUNCATE t; INSERT INTO t VALUES (1, 1), (2, 2)").await;
        let refreshed = together(&mut c, &memory, &[left, right, both]).await;
        assert_eq!(modes(&refreshed), ["full", "full", "incremental"]);
        is(
            &mut c,
            "d",
            "SELECT k, sum(v) AS a, sum(v) AS b FROM t GROUP BY k",
        )
        .await;
    });
}

#[test]
fn one_that_fails_is_left_as_it_is() {
    on_a_server(async |_server, mut c| {
        run(&c, "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 20) i").await;
        let first = made(&mut c, "first", "SELECT id, v FROM t").await;
        let failing = made(&mut c, "failing", "SELECT id, 100 / v AS q FROM first").await;
        let after = made(
            &mut c,
            "after",
            "SELECT first.id, v, q FROM first LEFT JOIN failing USING (id)",
        )
        .await;
        let beside = made(
            &mut c,
            "beside",
            "SELECT count(*) AS n, sum(v) AS s FROM first",
        )
        .await;
        let ids = [first, failing, after, beside];
        let memory = memory();
        run(
            &c,
            "UPDATE t SET v = 0 WHERE id = 3; DELETE FROM t WHERE id = 4",
        )
        .await;
        let refreshed = together(&mut c, &memory, &ids).await;
        assert_eq!(
            modes(&refreshed),
            ["incremental", "22012", "incremental", "incremental"]
        );
        is(&mut c, "first", "SELECT id, v FROM t").await;
        is(&mut c, "beside", "SELECT count(*) AS n, sum(v) AS s FROM t").await;
        is(
            &mut c,
            "after",
            "SELECT first.id, v, q FROM first LEFT JOIN failing USING (id)",
        )
        .await;
        // The others do not wait for it, and it comes back.
        run(&c, "INSERT INTO t VALUES (100, 100)").await;
        let refreshed = together(&mut c, &memory, &[first, after, beside]).await;
        assert_eq!(modes(&refreshed), ["incremental"; 3]);
        run(&c, "UPDATE t SET v = 3 WHERE id = 3").await;
        let refreshed = together(&mut c, &memory, &ids).await;
        assert_eq!(modes(&refreshed), ["incremental"; 4]);
        is(&mut c, "after", "SELECT id, v, 100 / v AS q FROM t").await;
        // A source that may no longer be read is a failure of who reads it.
        let error = refreshed
            .iter()
            .find_map(|refreshed| refreshed.result.as_ref().err());
        assert!(error.is_none(), "{error:?}");
    });
}

/// Whoever else is busy with one holds up those that read it, and nobody else.
#[test]
fn one_that_is_locked_holds_up_its_readers() {
    on_a_server(async |server, mut c| {
        let ids = chain(&mut c).await;
        let memory = memory();
        let other = connect(&server).await;
        run(&c, WRITES[0]).await;
        run(
            &other,
            &format!(
                "BEGIN; SELECT FROM pgtrickle.catalog WHERE id = {} FOR UPDATE",
                ids[1]
            ),
        )
        .await;
        let refreshed = together(&mut c, &memory, &ids).await;
        assert_eq!(modes(&refreshed), ["incremental", "55006"]);
        run(&other, "ROLLBACK").await;
        let refreshed = together(&mut c, &memory, &ids).await;
        assert_eq!(
            modes(&refreshed),
            ["none", "incremental", "incremental", "incremental"]
        );
        compare(&mut c, "after the lock").await;
        // A source that is locked against reading.
        run(&c, "CREATE TABLE u (a int); INSERT INTO u VALUES (1)").await;
        let reader = made(&mut c, "reader", "SELECT n, a FROM c4, u").await;
        let all = [&ids[..], &[reader]].concat();
        run(&c, WRITES[1]).await;
        run(&other, "BEGIN; LOCK TABLE u").await;
        let refreshed = together(&mut c, &memory, &all).await;
        assert_eq!(
            modes(&refreshed),
            [
                "incremental",
                "incremental",
                "incremental",
                "incremental",
                "55P03"
            ]
        );
        run(&other, "ROLLBACK").await;
        let refreshed = together(&mut c, &memory, &all).await;
        assert_eq!(modes(&refreshed)[4], "incremental");
        is(&mut c, "reader", "SELECT n, a FROM c4, u").await;
    });
}

/// Rows that a trigger on a stream table writes to a source are taken in by the next refresh, or by those after it in the same.
#[test]
fn what_triggers_write_is_neither_lost_nor_taken_twice() {
    on_a_server(async |_server, mut c| {
        run(
            &c,
            "CREATE TABLE t (v int); CREATE TABLE log (v int); INSERT INTO t VALUES (1)",
        )
        .await;
        let first = made(
            &mut c,
            "first",
            "SELECT v FROM t UNION ALL SELECT v FROM log WHERE v < 0",
        )
        .await;
        let second = made(
            &mut c,
            "second",
            "SELECT v FROM log UNION ALL SELECT v FROM first",
        )
        .await;
        run(&c, "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.v > 0 THEN INSERT INTO public.log VALUES (NEW.v), (-NEW.v); END IF; RETURN NEW; END $$;
             CREATE TRIGGER note AFTER INSERT ON first FOR EACH ROW EXECUTE FUNCTION note();").await;
        let memory = memory();
        for n in 2..5 {
            run(&c, &format!("INSERT INTO t VALUES ({n})")).await;
            together(&mut c, &memory, &[first, second]).await;
            is(
                &mut c,
                "second",
                "SELECT v FROM log UNION ALL SELECT v FROM first",
            )
            .await;
            assert_eq!(
                engine::pending(&mut c, &[first, second])
                    .await
                    .expect("a look"),
                [first]
            );
            together(&mut c, &memory, &[first, second]).await;
            is(
                &mut c,
                "first",
                "SELECT v FROM t UNION ALL SELECT v FROM log WHERE v < 0",
            )
            .await;
            is(
                &mut c,
                "second",
                "SELECT v FROM log UNION ALL SELECT v FROM first",
            )
            .await;
            assert_eq!(
                engine::pending(&mut c, &[first, second])
                    .await
                    .expect("a look"),
                []
            );
        }
    });
}

/// Rows that somebody took from a stream table between: it is rebuilt, and those that read it see that as a change.
#[test]
fn rebuilds_and_ddl_within_a_group() {
    on_a_server(async |_server, mut c| {
        let ids = chain(&mut c).await;
        let memory = memory();
        run(&c, WRITES[1]).await;
        together(&mut c, &memory, &ids).await;
        run(
            &c,
            "DELETE FROM c1 WHERE id % 2 = 0; DELETE FROM t WHERE id % 4 = 0",
        )
        .await;
        let refreshed = together(&mut c, &memory, &ids).await;
        assert_eq!(modes(&refreshed)[0], "full");
        compare(&mut c, "after rows were gone").await;
        run(
            &c,
            "ALTER TABLE t RENAME COLUMN v TO w; UPDATE t SET w = w + 1",
        )
        .await;
        let refreshed = together(&mut c, &memory, &ids).await;
        assert!(
            refreshed.iter().all(|refreshed| refreshed.result.is_ok()),
            "{refreshed:?}"
        );
        run(&c, "ALTER TABLE t RENAME COLUMN w TO v").await;
        let refreshed = together(&mut c, &memory, &ids).await;
        assert!(
            refreshed.iter().all(|refreshed| refreshed.result.is_ok()),
            "{refreshed:?}"
        );
        compare(&mut c, "after a rename").await;
        // One that can only be recomputed.
        let full = create_as(
            &mut c,
            "full_one",
            "SELECT n, rows FROM c4 WHERE rows > 1",
            Mode::Full,
        )
        .await
        .expect("full");
        let on_full = made(&mut c, "on_full", "SELECT sum(rows) AS s FROM full_one").await;
        run(&c, "UPDATE t SET v = v + 1").await;
        let all = [&ids[..], &[full, on_full]].concat();
        let refreshed = together(&mut c, &memory, &all).await;
        assert_eq!(modes(&refreshed)[4..], ["full", "incremental"]);
        is(
            &mut c,
            "on_full",
            "SELECT sum(rows) AS s FROM (SELECT rows FROM c4 WHERE rows > 1) f",
        )
        .await;
    });
}

/// What the server has not enough of for one of them it may have for the others.
#[test]
fn one_that_runs_out_of_memory_does_not_stop_the_others() {
    on_a_server(async |_server, mut c| {
        run(
            &c,
            "CREATE TABLE t (id int, v int); INSERT INTO t VALUES (1, 1);
             CREATE FUNCTION hungry(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
             BEGIN
                IF $1 = 0 THEN
                    RAISE EXCEPTION 'out of memory' USING ERRCODE = '53200';
                END IF;
                RETURN $1;
             END $$",
        )
        .await;
        let first = made(&mut c, "first", "SELECT id, v FROM t").await;
        let hungry = made(&mut c, "hungry", "SELECT id, hungry(v) AS h FROM first").await;
        let memory = memory();
        run(&c, "INSERT INTO t VALUES (2, 0)").await;
        let refreshed = together(&mut c, &memory, &[first, hungry]).await;
        assert_eq!(modes(&refreshed), ["incremental", "53200"]);
        let error = refreshed[1].result.as_ref().expect_err("no memory");
        assert!(!error.is_the_servers(), "it is to be seen in the status");
        is(&mut c, "first", "SELECT id, v FROM t").await;
    });
}

#[test]
fn a_circle_is_refused_with_its_path() {
    on_a_server(async |_server, mut c| {
        run(
            &c,
            "CREATE TABLE t (v int); INSERT INTO t VALUES (1); CREATE VIEW seen AS SELECT v FROM t",
        )
        .await;
        let first = made(&mut c, "first", "SELECT v FROM seen").await;
        let second = made(&mut c, "second", "SELECT v + 1 AS v FROM first").await;
        run(&c, "CREATE OR REPLACE VIEW seen AS SELECT v FROM second").await;
        let memory = memory();
        let refreshed = together(&mut c, &memory, &[first, second]).await;
        let error = refreshed[0].result.as_ref().expect_err("a circle");
        assert_eq!(error.code(), "42P17", "{error}");
        let path = "public.second -> public.first -> public.second";
        assert!(error.to_string().contains(path), "{error}");
        assert!(refreshed[1].result.is_ok());
        run(&c, "CREATE OR REPLACE VIEW seen AS SELECT v FROM first").await;
        let error = engine::refresh(&mut c, &memory, first, How::Auto)
            .await
            .expect_err("a circle");
        assert_eq!(error.code(), "42P17", "{error}");
        run(
            &c,
            "CREATE OR REPLACE VIEW seen AS SELECT v FROM t; INSERT INTO t VALUES (2)",
        )
        .await;
        let refreshed = together(&mut c, &memory, &[first, second]).await;
        assert!(
            refreshed.iter().all(|refreshed| refreshed.result.is_ok()),
            "{refreshed:?}"
        );
        is(&mut c, "second", "SELECT v + 1 AS v FROM t").await;
    });
}
