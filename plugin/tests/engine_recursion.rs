//! WITH RECURSIVE from changes: trees and graphs, with circles or without, and when a walk is given up.

mod engine_support;

use engine_support::{connect, create, differences, refresh};
use stream_tables::conn::Conn;
use stream_tables::engine::{self, StreamTableId};
use test_support::Postgres;
use tokio_postgres::Client;

const SCHEMA: &str = "
    CREATE TABLE tree (id int PRIMARY KEY, parent int, name text, cost numeric);
    CREATE INDEX ON tree (parent);
    CREATE TABLE edge (src int, dst int, len int);
    CREATE TABLE hidden (id int);
    CREATE TABLE start (id int);
    INSERT INTO tree VALUES (1, NULL, 'a', 1), (2, 1, 'b', 1.0), (3, 1, 'c', 2), (4, 2, 'd', 1), (5, 4, 'e', 0), (6, NULL, 'f', 1), (7, 6, 'g', 3);
    INSERT INTO edge VALUES (1, 2, 1), (2, 3, 1), (3, 1, 1), (3, 4, 2), (4, 5, 1), (6, 7, 1), (1, 2, 1);
    INSERT INTO start VALUES (1), (6);";

const QUERIES: &[(&str, &str)] = &[
    ("paths", "WITH RECURSIVE w AS (SELECT id, name AS path, 1 AS depth, parent FROM tree WHERE parent IS NULL
        UNION ALL SELECT t.id, w.path || '/' || t.name, w.depth + 1, t.parent FROM tree t JOIN w ON t.parent = w.id)
        SELECT * FROM w"),
    ("costs", "WITH RECURSIVE w(node, total) AS (SELECT id, cost FROM tree WHERE parent IS NULL
        UNION ALL SELECT t.id, w.total + t.cost FROM w, tree t WHERE t.parent = w.node AND NOT EXISTS (SELECT FROM hidden h WHERE h.id = t.id))
        SELECT node, total FROM w"),
    ("ancestors", "WITH RECURSIVE up AS (SELECT id AS of, parent AS id FROM tree WHERE parent IS NOT NULL
        UNION ALL SELECT up.of, t.parent FROM up JOIN tree t USING (id) WHERE t.parent IS NOT NULL)
        SELECT t.name, count(*) FROM up JOIN tree t ON t.id = up.of GROUP BY t.name"),
    ("closure", "WITH RECURSIVE r AS (SELECT src, dst FROM edge UNION SELECT r.src, e.dst FROM r JOIN edge e ON e.src = r.dst)
        SELECT src, dst FROM r"),
    ("reached", "WITH RECURSIVE r(id) AS (SELECT id FROM start UNION SELECT e.dst FROM r JOIN edge e ON e.src = r.id)
        SELECT t.id, t.name, EXISTS (SELECT FROM r WHERE r.id = t.id) AS reached FROM tree t"),
    ("open", "WITH RECURSIVE r(id) AS (SELECT id FROM start UNION
        SELECT e.dst FROM r JOIN edge e ON e.src = r.id LEFT JOIN hidden h ON h.id = e.dst WHERE h.id IS NULL AND e.len < 3)
        SELECT count(*), max(id) FROM r"),
    ("walks", "WITH RECURSIVE r AS (SELECT id, ARRAY[id] AS path FROM start
        UNION ALL SELECT e.dst, r.path || e.dst FROM r JOIN edge e ON e.src = r.id WHERE e.dst <> ALL (r.path))
        SELECT id, path FROM r"),
    ("hops", "WITH RECURSIVE r AS (SELECT id, 0 AS n FROM start UNION SELECT e.dst, r.n + e.len FROM edge e, r WHERE e.src = r.id AND r.n < 6)
        SELECT id, min(n) FROM r GROUP BY id"),
    ("holes", "WITH RECURSIVE r AS (SELECT id, parent FROM tree WHERE id IN (SELECT id FROM start)
        UNION SELECT t.id, t.parent FROM tree t JOIN r ON t.parent = r.id)
        SELECT r.id, r.parent, s.id AS same FROM r LEFT JOIN r s ON s.parent = r.parent AND s.id < r.id"),
    ("two", "WITH RECURSIVE a AS (SELECT id FROM start UNION SELECT e.dst FROM a JOIN edge e ON e.src = a.id),
        b AS (SELECT id, 1 AS n FROM a UNION ALL SELECT t.id, b.n + 1 FROM b JOIN tree t ON t.parent = b.id)
        SELECT a.id, b.n FROM a FULL JOIN b ON a.id = b.id"),
    ("numbers", "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 4)
        SELECT s.id, n.i FROM start s JOIN n ON n.i < s.id"),
];

async fn reason(c: &mut Client, name: &str) -> Option<String> {
    let sql = format!("SELECT reason FROM pgtrickle.stream_tables WHERE name = '{name}'");
    let rows = Conn::query(c, &sql).await.expect("a stream table");
    rows[0].text(0).map(str::to_owned)
}

/// Writes by chance: a circle is made or broken by many of them.
fn write(n: u64) -> String {
    let dice = |k: u64, sides: u64| {
        let mut x = n
            .wrapping_mul(6364136223846793005)
            .wrapping_add(k.wrapping_mul(1442695040888963407));
        x ^= x >> 29;
        x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 32;
        x % sides
    };
    let (a, b, c) = (dice(1, 8) + 1, dice(2, 8) + 1, dice(3, 3) + 1);
    match dice(4, 12) {
        // Parents have lower numbers: no circles, as one would have the query itself run for ever.
        0 => format!(
            "INSERT INTO tree VALUES ({a}, nullif({b} % {a}, 0), 'n{c}', {c}.{c}0) ON CONFLICT DO NOTHING"
        ),
        1 => format!("UPDATE tree SET parent = nullif({b} % id, 0) WHERE id = {a}"),
        2 => format!("UPDATE tree SET name = name || 'x', cost = cost + {c} WHERE id = {a}"),
        3 => format!("DELETE FROM tree WHERE id = {a}"),
        4 | 5 => format!("INSERT INTO edge VALUES ({a}, {b}, {c})"),
        6 => format!("DELETE FROM edge WHERE src = {a} AND dst % 2 = {b} % 2"),
        7 => format!("UPDATE edge SET dst = {b} WHERE src = {a}"),
        8 => format!("UPDATE edge SET src = {a}, len = len % 3 + 1 WHERE dst = {b}"),
        9 => format!("INSERT INTO hidden VALUES ({a}); DELETE FROM hidden WHERE id = {b}"),
        10 => format!("INSERT INTO start VALUES ({a})"),
        _ => format!("DELETE FROM start WHERE id = {a}"),
    }
}

#[tokio::test(flavor = "current_thread")]
async fn recursions_follow_their_sources_on_every_major() {
    for major in test_support::majors() {
        // The planners differ, the SQL does not.
        let writes = if major == 15 { 0..150 } else { 200..230 };
        follow(major, writes).await;
    }
}

async fn follow(major: u32, writes: std::ops::Range<u64>) {
    let server = Postgres::start(major);
    let mut c = connect(&server).await;
    c.batch_execute(SCHEMA).await.unwrap();
    // The comparisons are small, and look large to the planner.
    c.batch_execute("SET jit = off").await.unwrap();
    let mut ids = Vec::new();
    for (name, query) in QUERIES {
        ids.push(
            create(&mut c, name, query)
                .await
                .unwrap_or_else(|e| panic!("{name}: {e}")),
        );
        assert_eq!(reason(&mut c, name).await, None, "{name}");
        assert_eq!(differences(&mut c, name, query).await, [""; 0], "{name}");
    }
    for n in writes {
        let mut writes = vec![write(n)];
        writes.extend((0..n % 3).map(|k| write(1000 + n * 3 + k)));
        let writes = writes.join("; ");
        c.batch_execute(&writes).await.unwrap();
        for ((name, query), id) in QUERIES.iter().zip(&ids) {
            let outcome = refresh(&mut c, *id).await;
            assert_ne!(
                outcome.mode, "full",
                "{name} on {major} after {writes}: {outcome:?}"
            );
            assert_eq!(
                differences(&mut c, name, query).await,
                [""; 0],
                "{name} on {major} after {writes}: {outcome:?}"
            );
        }
    }
}

/// Refreshes after a write; says how, and why it was full.
async fn after(
    c: &mut Client,
    (name, query): (&str, &str),
    id: StreamTableId,
    write: &str,
) -> (&'static str, Option<String>) {
    c.batch_execute(write).await.unwrap();
    let outcome = refresh(c, id).await;
    assert_eq!(
        differences(c, name, query).await,
        [""; 0],
        "{write}: {outcome:?}"
    );
    assert!(!refresh(c, id).await.changed, "{write}");
    (outcome.mode, outcome.reason)
}

#[tokio::test(flavor = "current_thread")]
async fn a_walk_without_an_end_or_to_all_there_is_is_given_up() {
    let given_up = || {
        let reason = "the changes reach as many rows as recomputing finds";
        ("full", Some(reason.to_owned()))
    };
    let incremental = || ("incremental", None);
    let server = Postgres::start(15);
    let mut c = connect(&server).await;
    c.batch_execute(
        "SET jit = off;
         CREATE TABLE e (a int, b int); INSERT INTO e VALUES (1, 2), (2, 3), (3, 4); CREATE INDEX ON e (a);
         CREATE TABLE s (id int); INSERT INTO s VALUES (1);
         CREATE TABLE t (id int PRIMARY KEY, parent int, name text); CREATE INDEX ON t (parent);
         INSERT INTO t SELECT i, nullif(i / 10, 0), 'n' FROM generate_series(1, 12000) i",
    )
    .await
    .unwrap();

    // What is left behind meets a circle that is new: the query ends, as it does not come there.
    let walks = (
        "walks",
        "WITH RECURSIVE r AS (SELECT id FROM s UNION ALL SELECT e.b FROM r JOIN e ON e.a = r.id) SELECT id FROM r",
    );
    let id = create(&mut c, walks.0, walks.1).await.unwrap();
    let write = "UPDATE e SET a = 4 WHERE a = 1";
    assert_eq!(after(&mut c, walks, id, write).await, given_up());
    let write = "DELETE FROM e WHERE a = 4; INSERT INTO e VALUES (1, 3), (1, 4)";
    assert_eq!(after(&mut c, walks, id, write).await, incremental());

    // The first of all rows: each of them twice is more than all of them once.
    let paths = ("paths", "WITH RECURSIVE w AS (SELECT id, name AS path FROM t WHERE parent IS NULL
        UNION ALL SELECT t.id, w.path || t.name FROM t JOIN w ON t.parent = w.id) SELECT id, path FROM w");
    let id = create(&mut c, paths.0, paths.1).await.unwrap();
    let write = "UPDATE t SET name = 'm' WHERE id < 10";
    assert_eq!(after(&mut c, paths, id, write).await, given_up());
    let write = "UPDATE t SET name = 'l', parent = 7 WHERE id = 42";
    assert_eq!(after(&mut c, paths, id, write).await, incremental());

    // From nothing to everything, and back.
    let reached = (
        "reached",
        "WITH RECURSIVE r AS (SELECT id FROM s WHERE id > 1 UNION SELECT t.id FROM r JOIN t ON t.parent = r.id) SELECT id, count(*) FROM r GROUP BY id",
    );
    let id = create(&mut c, reached.0, reached.1).await.unwrap();
    let write = "INSERT INTO s SELECT generate_series(2, 4)";
    assert_eq!(after(&mut c, reached, id, write).await, incremental());
    let write = "UPDATE t SET parent = 3 WHERE id = 1; UPDATE t SET parent = 12000 WHERE id = 2";
    assert_eq!(after(&mut c, reached, id, write).await, incremental());
    assert_eq!(
        after(&mut c, reached, id, "DELETE FROM s").await,
        incremental()
    );
    let write = "INSERT INTO t SELECT i, 5, 'n' FROM generate_series(20000, 40000) i; INSERT INTO s VALUES (5)";
    assert_eq!(after(&mut c, reached, id, write).await, given_up());
    let write = "DELETE FROM t WHERE id = 20000";
    assert_eq!(after(&mut c, reached, id, write).await, incremental());
}

#[tokio::test(flavor = "current_thread")]
async fn indexes_that_a_recursion_misses_are_told() {
    let server = Postgres::start(15);
    let mut c = connect(&server).await;
    c.batch_execute(
        "CREATE TABLE e (a int, b int); INSERT INTO e SELECT i, i + 1 FROM generate_series(1, 20000) i; ANALYZE e;
         CREATE TABLE s (id int)",
    )
    .await
    .unwrap();
    let id = create(&mut c, "st", "WITH RECURSIVE r(id) AS (SELECT id FROM s UNION SELECT e.b FROM r JOIN e ON e.a = r.id) SELECT id FROM r")
        .await
        .unwrap();
    for index in [
        "CREATE INDEX ON \"public\".\"e\" (\"a\")",
        "CREATE INDEX ON \"public\".\"e\" (\"b\")",
    ] {
        let missing = engine::missing_indexes(&mut c, id).await.unwrap();
        let statements: Vec<_> = missing.iter().map(|m| m.statement.as_str()).collect();
        assert_eq!(statements.first(), Some(&index), "{statements:?}");
        c.batch_execute(index).await.unwrap();
    }
    assert!(
        engine::missing_indexes(&mut c, id)
            .await
            .unwrap()
            .is_empty()
    );
    // The stage has its own: a step of one row does not scan it.
    let indexes = Conn::query(
        &mut c,
        "SELECT count(*) FROM pg_index WHERE indrelid = 'pgtrickle.stage_1_1'::regclass",
    )
    .await
    .unwrap();
    assert_eq!(
        indexes[0].int(0),
        Some(2),
        "by the whole row, and by what it is joined by"
    );
}
