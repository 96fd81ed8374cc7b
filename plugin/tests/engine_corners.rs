//! Queries and changes that once gave wrong results, or errors the query itself does not raise.

mod engine_support;

use engine_support::{connect, create, differences, refresh};
use test_support::Postgres;
use tokio::task::LocalSet;

const SCHEMA: &str = "
    CREATE TABLE l (id int PRIMARY KEY, k int, b int);
    CREATE TABLE m (id int PRIMARY KEY, k int, x int);
    CREATE TABLE r (id int PRIMARY KEY, l int, v int, k int);
    INSERT INTO l SELECT i, i % 3, i % 4 FROM generate_series(1, 8) i;
    INSERT INTO m SELECT i, i % 3, i % 5 FROM generate_series(1, 12) i;
    INSERT INTO r SELECT i, i % 8 + 1, i % 5, i % 3 FROM generate_series(1, 20) i;";

/// Runs the writes one by one; after each the stream table is its query. Gives the modes of the refreshes.
async fn follows(schema: &str, queries: &[&str], writes: &[&str]) -> Vec<String> {
    LocalSet::new()
        .run_until(async {
            let server = Postgres::start(15);
            let mut c = connect(&server).await;
            c.batch_execute(schema).await.unwrap();
            let mut tables = Vec::new();
            for (i, query) in queries.iter().enumerate() {
                let name = format!("corner_{i}");
                let id = create(&mut c, &name, query)
                    .await
                    .unwrap_or_else(|e| panic!("{query}: {e}"));
                tables.push((name, *query, id));
            }
            let mut modes = Vec::new();
            for write in writes {
                c.batch_execute(write)
                    .await
                    .unwrap_or_else(|e| panic!("{write}: {e}"));
                for (name, query, id) in &tables {
                    let outcome = refresh(&mut c, *id).await;
                    modes.push(outcome.mode.to_owned());
                    assert_eq!(
                        differences(&mut c, name, query).await,
                        [""; 0],
                        "{query} after {write}"
                    );
                }
            }
            modes
        })
        .await
}

/// The same, where every refresh has to be by the changes.
async fn follows_by_changes(schema: &str, queries: &[&str], writes: &[&str]) {
    let modes = follows(schema, queries, writes).await;
    assert!(!modes.iter().any(|mode| mode == "full"), "{modes:?}");
}

/// Many changes have other terms than few, in which tables are put elsewhere: whatever they and
/// their columns are called, and whatever joins them.
#[tokio::test(flavor = "current_thread")]
async fn many_changes_of_tables_with_odd_names() {
    let schema = format!(
        "{SCHEMA}
         CREATE TABLE \"O d\" (\"i D\" int, \"select\" int, a int[], c int);
         INSERT INTO \"O d\" SELECT i, i % 4, ARRAY[i % 3], i % 8 + 1 FROM generate_series(1, 20) i;
         CREATE TABLE threshold (name text PRIMARY KEY, value int); INSERT INTO threshold VALUES ('low', 2), ('other', 9)"
    );
    follows_by_changes(
        &schema,
        &[
            // Aliases with names for columns, of the table that a driver looks up and of others.
            "SELECT t.p, u.q FROM l AS t(p, q, s), m AS u(p, q) WHERE t.q = u.q AND EXISTS (SELECT FROM r WHERE r.l = t.p)",
            "SELECT t.\"i D\" AS x, l.b FROM \"O d\" t JOIN l ON l.id = t.c JOIN m ON m.k = l.k
                WHERE EXISTS (SELECT FROM r WHERE r.l = t.c AND r.v > 1) AND t.\"select\" > 0",
            // A table in a join, beside a nullable one, a function and a sub-select without names.
            "SELECT l.id, r.v, f.e FROM l LEFT JOIN r ON r.l = l.id AND r.v > 2 JOIN \"O d\" o ON o.c = l.id, LATERAL unnest(o.a) f(e)
                WHERE NOT EXISTS (SELECT FROM m WHERE m.id = l.id AND m.x = 1)",
            "SELECT l.id, s.* FROM l, (SELECT o.\"select\" + 1, count(*) FROM \"O d\" o GROUP BY 1) s(\"?\", n)
                WHERE l.b = s.\"?\" AND l.k IN (SELECT m.k FROM m WHERE m.x = s.n)",
            "SELECT a.id, b.id AS b FROM l a, l b WHERE a.k = b.k AND EXISTS (SELECT FROM r WHERE r.l = a.id AND r.k = b.k)",
            "SELECT x.id FROM (SELECT l.id, l.k FROM l JOIN m ON m.id = l.id) x WHERE EXISTS (SELECT FROM r WHERE r.l = x.id)",
            "SELECT l.id FROM l WHERE l.b + l.k > (SELECT value FROM threshold WHERE name = 'low')
                AND (l.id = ANY (SELECT r.l FROM r) OR (SELECT max(x) FROM m) > 3)",
            "SELECT m.id, (SELECT value FROM threshold WHERE name = 'low') AS low FROM m JOIN l ON l.k = m.k AND l.b < (SELECT avg(v) FROM r)",
            "SELECT l.id FROM l, m WHERE l.k = m.k AND EXISTS (SELECT FROM r WHERE r.l = l.id) UNION ALL SELECT r.id FROM r, m WHERE r.k = m.k",
        ],
        &[
            "UPDATE l SET k = (k + 1) % 3, b = b + id % 2; UPDATE m SET x = (x + id) % 5, k = (k + id) % 3;
             INSERT INTO r SELECT i, i % 9, i % 6, i % 3 FROM generate_series(30, 60) i",
            "UPDATE \"O d\" SET \"select\" = \"select\" + 1, c = c % 8 + 1, a = a || c; DELETE FROM r WHERE id % 3 = 0;
             INSERT INTO l SELECT i, i % 4, i % 5 FROM generate_series(20, 40) i",
            "UPDATE threshold SET value = 3 WHERE name = 'low'; UPDATE r SET v = v + 1, l = l % 8 + 1; DELETE FROM m WHERE id % 4 = 1",
            "UPDATE threshold SET value = 4 WHERE name = 'other'; UPDATE l SET b = NULL WHERE id % 3 = 0; UPDATE m SET k = NULL WHERE id > 6;
             UPDATE r SET l = NULL WHERE id % 2 = 0",
        ],
    )
    .await;
}

/// A condition above an outer join sees NULLs where the changed row was.
#[tokio::test(flavor = "current_thread")]
async fn a_sub_select_looks_for_what_has_no_match() {
    follows_by_changes(
        SCHEMA,
        &["SELECT l.id FROM l WHERE EXISTS (SELECT FROM m LEFT JOIN (SELECT r.v AS x FROM r) s ON s.x = m.x
            WHERE m.k = l.k AND s.x IS NULL)"],
        &["DELETE FROM r WHERE v = 3", "INSERT INTO r VALUES (50, 1, 3, 1)"],
    )
    .await;
}

/// Both sides of a FULL JOIN may be NULL.
#[tokio::test(flavor = "current_thread")]
async fn a_sub_select_looks_for_what_has_no_match_on_either_side() {
    follows_by_changes(
        SCHEMA,
        &[
            "SELECT l.id FROM l WHERE EXISTS (SELECT FROM m FULL JOIN r ON r.v = m.x WHERE m.k = l.k AND r.v IS NULL)",
            "SELECT l.id, (SELECT count(*) FROM r FULL JOIN m ON r.v = m.x WHERE r.v IS NULL AND m.k = l.k) AS n FROM l",
        ],
        &["DELETE FROM r WHERE v = 3", "INSERT INTO r VALUES (50, 1, 3, 1)"],
    )
    .await;
}

/// A new row of DISTINCT ON may take the place of another.
#[tokio::test(flavor = "current_thread")]
async fn a_sub_select_has_the_first_row_of_each_kind() {
    follows_by_changes(
        SCHEMA,
        &["SELECT l.id FROM l WHERE l.id IN (SELECT DISTINCT ON (r.l) r.v FROM r WHERE r.k = l.k ORDER BY r.l, r.v)"],
        &[
            "INSERT INTO r VALUES (50, 5, 0, 1), (51, 5, 0, 2), (52, 3, -1, 0)",
            "INSERT INTO r SELECT 60 + i, i, -3, i % 3 FROM generate_series(1, 8) i",
            "DELETE FROM r WHERE v = -3",
        ],
    )
    .await;
}

/// Whose columns have names of its own, which for a UNION ALL are those of its first arm.
#[tokio::test(flavor = "current_thread")]
async fn values_come_first_in_a_union() {
    follows_by_changes(
        SCHEMA,
        &[
            "SELECT l.id, u.column1 FROM l JOIN ((VALUES (1), (2)) UNION ALL SELECT r.v FROM r) u ON u.column1 = l.k",
            "SELECT u.a, count(*) AS n FROM ((VALUES (1, 'x'), (2, NULL)) UNION ALL SELECT r.v, 'r' FROM r) u(a) JOIN l ON l.k = u.a GROUP BY u.a",
        ],
        &[
            "UPDATE l SET k = 3 - k WHERE k IN (1, 2); INSERT INTO r VALUES (50, 5, 0, 1), (51, 5, 0, 2)",
            "DELETE FROM r WHERE v = 1",
            "UPDATE l SET k = k",
            "INSERT INTO l SELECT 100 + i, i % 3, i FROM generate_series(1, 20) i; DELETE FROM r WHERE id = 51",
        ],
    )
    .await;
}

/// `a` and `A` are equal under the collation, and differ all the same.
#[tokio::test(flavor = "current_thread")]
async fn the_case_of_a_letter_changes_under_a_collation_without_case() {
    follows_by_changes(
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE l (id int PRIMARY KEY, n text COLLATE nocase);
         CREATE TABLE r (id int PRIMARY KEY, l int, n text COLLATE nocase);
         INSERT INTO l SELECT i, 'a' FROM generate_series(1, 4) i;
         INSERT INTO r SELECT i, i % 4, 'A' FROM generate_series(1, 8) i",
        &[
            "SELECT l.id, s.n FROM l LEFT JOIN r s ON s.l = l.id",
            "SELECT l.id, string_agg(s.n, ',' ORDER BY s.id) AS names FROM l JOIN r s ON s.n = l.n GROUP BY l.id",
            "SELECT id, row_number() OVER (PARTITION BY n ORDER BY id) AS place, n FROM r",
            "SELECT n FROM r",
        ],
        &[
            "INSERT INTO r VALUES (50, 3, 'a')",
            "UPDATE r SET n = 'a' WHERE id < 4",
            "UPDATE r SET n = 'A' WHERE id IN (2, 50)",
        ],
    )
    .await;
}

/// Values without equality, which past states have to bring back in one piece: arrays among them.
#[tokio::test(flavor = "current_thread")]
async fn an_outer_join_has_arrays_without_equality() {
    follows_by_changes(
        "CREATE TABLE l (id int PRIMARY KEY);
         CREATE TABLE r (id int PRIMARY KEY, l int, js json[], x xml[], p point[], j json);
         INSERT INTO l SELECT i FROM generate_series(1, 4) i;
         INSERT INTO r SELECT i, i % 5, ARRAY['{\"a\":1}'::json, NULL], '{}', ARRAY[point(1, 2)], '{\"a\":1}'
            FROM generate_series(1, 8) i",
        &["SELECT l.id, r.js, r.x, r.p, r.j FROM l LEFT JOIN r ON r.l = l.id"],
        &[
            "INSERT INTO r VALUES (50, 3, NULL, ARRAY['<a/>'::xml], '{}', NULL), (51, 3, ARRAY[NULL]::json[], NULL, NULL, NULL)",
            "UPDATE r SET js = '{}', p = ARRAY[NULL, point(0, 0)] WHERE id < 4",
            "UPDATE r SET js = NULL, j = '{\"a\": 1}' WHERE id IN (2, 50)",
            "DELETE FROM r WHERE id IN (1, 4, 51)",
        ],
    )
    .await;
}

/// A change is computed from rows that the query never meets together: it may fail where the query does not.
#[tokio::test(flavor = "current_thread")]
async fn a_change_fails_where_the_query_does_not() {
    let modes = follows(
        SCHEMA,
        &[
            "SELECT l.id, 100 / (SELECT count(*) FROM r WHERE r.l = l.id) AS share FROM l",
            "SELECT m.id, (SELECT l.k FROM l WHERE l.b = m.id + 100) AS k FROM m",
        ],
        &[
            "BEGIN; INSERT INTO l VALUES (20, 1, 1); INSERT INTO r VALUES (50, 20, 1, 1); COMMIT",
            "BEGIN; DELETE FROM l WHERE id = 20; DELETE FROM r WHERE l = 20; COMMIT",
            "BEGIN; INSERT INTO l VALUES (30, 1, 200), (31, 1, 200); INSERT INTO r VALUES (51, 30, 1, 1), (52, 31, 1, 1); COMMIT",
            "BEGIN; DELETE FROM l WHERE id = 30; DELETE FROM r WHERE l = 30; INSERT INTO m VALUES (100, 1, 1); COMMIT",
        ],
    )
    .await;
    assert!(modes.iter().any(|mode| mode == "incremental"), "{modes:?}");
}

/// What is looked up by equality is not what DISTINCT tells apart.
#[tokio::test(flavor = "current_thread")]
async fn a_sub_select_compares_by_an_equality_of_its_own() {
    follows_by_changes(
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE l (id int PRIMARY KEY, n text COLLATE nocase, c text COLLATE \"C\");
         CREATE TABLE r (id int PRIMARY KEY, n text);
         CREATE TABLE p (id int PRIMARY KEY, c text COLLATE \"C\", shape box);
         CREATE TABLE q (id int PRIMARY KEY, n text, shape box);
         INSERT INTO l SELECT i, 'a', 'b' FROM generate_series(1, 4) i;
         INSERT INTO p SELECT i, 'a', box(point(0, 0), point(1, i)) FROM generate_series(1, 4) i;
         INSERT INTO q SELECT i, 'b', box(point(0, 0), point(1, i % 2)) FROM generate_series(1, 4) i",
        &[
            "SELECT l.id FROM l WHERE EXISTS (SELECT FROM r WHERE r.n = l.n)",
            "SELECT l.id, (SELECT count(*) FROM r WHERE r.n = l.n) AS n FROM l",
            "SELECT p.id FROM p WHERE EXISTS (SELECT FROM q WHERE q.shape = p.shape)",
            "SELECT p.id FROM p WHERE EXISTS (SELECT FROM q WHERE q.n COLLATE nocase = p.c)",
        ],
        &[
            "INSERT INTO r VALUES (1, 'a'), (2, 'A'), (3, 'b')",
            "INSERT INTO q VALUES (10, 'A', box(point(0, 0), point(1, 2))), (11, 'a', box(point(0, 0), point(2, 1)))",
            "DELETE FROM r WHERE id = 1; DELETE FROM q WHERE id = 10",
            "DELETE FROM r; DELETE FROM q",
        ],
    )
    .await;
}

/// How many rows there are may follow from other tables.
#[tokio::test(flavor = "current_thread")]
async fn a_limit_is_a_sub_select() {
    follows_by_changes(
        SCHEMA,
        &[
            "SELECT id, v FROM r ORDER BY v, id LIMIT (SELECT count(*) / 2 FROM l)",
            "SELECT r.id, m.x FROM r JOIN m ON m.x = r.v ORDER BY r.v, r.id, m.id OFFSET (SELECT min(k) FROM l) LIMIT (SELECT max(b) FROM l)",
            "SELECT k, count(*) AS n FROM r GROUP BY k ORDER BY count(*), k LIMIT (SELECT max(k) FROM m WHERE x > 3)",
        ],
        &[
            "INSERT INTO l SELECT 100 + i, 2, 5 FROM generate_series(1, 6) i",
            "DELETE FROM r WHERE v = 1; UPDATE l SET k = k + 1",
            "UPDATE m SET x = 1 WHERE k = 2",
            "DELETE FROM l",
            "INSERT INTO l VALUES (1, 1, 3), (2, 1, 1)",
        ],
    )
    .await;
}

/// Rows that more than one sub-select may change are counted once.
#[tokio::test(flavor = "current_thread")]
async fn two_sub_selects_change_at_once() {
    follows_by_changes(
        SCHEMA,
        &[
            "SELECT a.id, b.v, (SELECT count(*) FROM r x WHERE x.l = a.l AND x.v > a.v) AS n FROM r a LEFT JOIN r b ON b.id = a.v
                WHERE NOT EXISTS (SELECT FROM r y WHERE y.k = a.k AND y.id > a.id + 10)",
            "SELECT l.id, (l.k, l.b) IN (SELECT r.k, r.v FROM r WHERE r.l = l.id) AS a,
                l.b < ALL (SELECT NULLIF(r.v, 3) FROM r WHERE r.l = l.id) AS b FROM l",
        ],
        &[
            "UPDATE r SET v = (v + 1) % 5 WHERE id % 3 = 0",
            "DELETE FROM r WHERE id IN (4, 8); UPDATE l SET b = (b + 1) % 4",
            "UPDATE r SET l = 2 WHERE l = 3; UPDATE r SET k = NULL WHERE id % 4 = 1",
            "DELETE FROM r WHERE id > 3",
        ],
    )
    .await;
}

/// A transaction id that nobody needs is a record in the log, a commit to wait for, and a look at all buffers.
#[tokio::test(flavor = "current_thread")]
async fn a_statement_without_a_change_takes_no_transaction_id() {
    LocalSet::new()
        .run_until(async {
            let server = Postgres::start(15);
            let mut c = connect(&server).await;
            c.batch_execute(SCHEMA).await.unwrap();
            let query = "SELECT k, count(*) AS n, sum(b) AS s FROM l GROUP BY k";
            let id = create(&mut c, "by_k", query).await.unwrap();
            let without_a_change = [
                "INSERT INTO l SELECT 9, 9, 9 WHERE false",
                "UPDATE l SET b = 7 WHERE id = 100",
                "DELETE FROM l WHERE id = 100",
            ];
            for statement in without_a_change {
                let sql = format!("BEGIN; {statement}");
                c.batch_execute(&sql).await.unwrap();
                let sql = "SELECT pg_current_xact_id_if_assigned() IS NULL";
                let none: bool = c.query_one(sql, &[]).await.unwrap().get(0);
                assert!(none, "{statement}");
                c.batch_execute("ROLLBACK").await.unwrap();
            }
            // All rows of a statement have one number; those of the statements of a transaction are in order.
            c.batch_execute(
                "BEGIN; UPDATE l SET b = b + 1; DELETE FROM l WHERE k = 0; INSERT INTO l SELECT i, 0, 5 FROM generate_series(20, 29) i; COMMIT",
            )
            .await
            .unwrap();
            let sql = "SELECT id::text FROM pgtrickle.buffer";
            let buffer: String = c.query_one(sql, &[]).await.unwrap().get(0);
            let sql = &format!(
                "SELECT count(DISTINCT seq), count(DISTINCT xid), count(*) > 3 FROM pgtrickle.changes_{buffer}"
            );
            let row = c.query_one(sql, &[]).await.unwrap();
            let seen: (i64, i64, bool) = (row.get(0), row.get(1), row.get(2));
            assert_eq!(seen, (3, 1, true));
            refresh(&mut c, id).await;
            assert_eq!(differences(&mut c, "by_k", query).await, [""; 0]);
        })
        .await;
}
