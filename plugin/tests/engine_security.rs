//! Roles that do not trust each other, and types whose operators are not in pg_catalog.

mod engine_support;

use engine_support::{connect, create, differences, memory, refresh};
use stream_tables::engine;
use test_support::Postgres;
use tokio_postgres::Client;

async fn sql(c: &Client, sql: &str) {
    c.batch_execute(sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

async fn count(c: &Client, query: &str) -> i64 {
    c.query_one(query, &[])
        .await
        .unwrap_or_else(|e| panic!("{query}: {e:?}"))
        .get(0)
}

async fn local(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn what_others_put_into_the_search_path_does_not_run() {
    local(async {
        let server = Postgres::start(15);
        let mut c = connect(&server).await;
        sql(
            &c,
            "CREATE TABLE loot (how text);
             CREATE FUNCTION loot(text) RETURNS void LANGUAGE sql AS 'INSERT INTO loot VALUES ($1)';
             CREATE FUNCTION generate_series(int, bigint) RETURNS SETOF bigint LANGUAGE plpgsql AS
                $$ BEGIN PERFORM loot('generate_series'); RETURN QUERY SELECT pg_catalog.generate_series($1::bigint, $2); END $$;
             CREATE FUNCTION other(numeric, int) RETURNS boolean LANGUAGE plpgsql AS
                $$ BEGIN PERFORM loot('<>'); RETURN true; END $$;
             CREATE OPERATOR public.<> (LEFTARG = numeric, RIGHTARG = int, FUNCTION = other);
             CREATE FUNCTION format(text, int) RETURNS text LANGUAGE plpgsql AS
                $$ BEGIN PERFORM loot('format'); RETURN 'x'; END $$;
             CREATE FUNCTION nextval(text) RETURNS bigint LANGUAGE plpgsql AS
                $$ BEGIN PERFORM loot('nextval'); RETURN 1; END $$;
             CREATE FUNCTION joined(text, bigint) RETURNS text LANGUAGE plpgsql AS
                $$ BEGIN PERFORM loot('||'); RETURN $1 || $2::text; END $$;
             CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = bigint, FUNCTION = joined);
             CREATE TABLE t (a int, n numeric); INSERT INTO t VALUES (1, 1.0)",
        )
        .await;
        let full = "SELECT DISTINCT ON (a) a, n FROM t ORDER BY a, n";
        let linear = "SELECT a, n FROM t";
        let ids = [
            create(&mut c, "full", full).await.expect("full"),
            create(&mut c, "linear", linear).await.expect("linear"),
        ];
        sql(&c, "INSERT INTO t VALUES (2, 2), (1, 0.5)").await;
        for id in ids {
            refresh(&mut c, id).await;
        }
        assert!(differences(&mut c, "\"full\"", full).await.is_empty());
        assert!(differences(&mut c, "linear", linear).await.is_empty());
        assert_eq!(count(&c, "SELECT count(*) FROM loot").await, 0);
    })
    .await;
}

/// Whoever may create in the schema may add functions of the same names with optional parameters, so that no call is without
/// doubt.
#[tokio::test]
async fn what_others_put_into_our_schema_stops_no_write() {
    local(async {
        let server = Postgres::start(15);
        let mut c = connect(&server).await;
        sql(&c, "CREATE TABLE t (a int, b int)").await;
        let id = create(&mut c, "st", "SELECT a FROM t").await.expect("st");
        sql(
            &c,
            "CREATE ROLE mallory; GRANT CREATE, USAGE ON SCHEMA pgtrickle TO mallory; SET ROLE mallory;
             DO $do$ DECLARE b bigint := (SELECT id FROM pgtrickle.buffer); f text; BEGIN
                FOREACH f IN ARRAY ARRAY['columns', 'capture'] LOOP
                    EXECUTE format('CREATE FUNCTION pgtrickle.%s_%s(int DEFAULT 0) RETURNS boolean LANGUAGE sql AS $f$SELECT true$f$', f, b);
                END LOOP;
             END $do$; RESET ROLE; INSERT INTO t VALUES (1, 2)",
        )
        .await;
        // In a session that has no plans yet, and after a change of the table.
        let other = connect(&server).await;
        sql(
            &other,
            "INSERT INTO t VALUES (2, 3); ALTER TABLE t DROP b; INSERT INTO t VALUES (3)",
        )
        .await;
        refresh(&mut c, id).await;
        assert!(differences(&mut c, "st", "SELECT a FROM t").await.is_empty());
    })
    .await;
}

/// A buffer without columns has no view of them yet: one that somebody else has put there is not taken for ours.
#[tokio::test]
async fn what_others_put_in_the_place_of_a_view_does_not_run() {
    local(async {
        let server = Postgres::start(15);
        let mut c = connect(&server).await;
        sql(&c, "CREATE TABLE t (a int, b int)").await;
        create(&mut c, "st", "SELECT count(*) AS n FROM t").await.expect("st");
        sql(
            &c,
            "CREATE ROLE mallory; CREATE TABLE loot (who text); GRANT INSERT ON loot TO mallory;
             GRANT CREATE ON SCHEMA public TO mallory; GRANT CREATE, USAGE ON SCHEMA pgtrickle TO mallory; SET ROLE mallory;
             CREATE FUNCTION public.trap() RETURNS boolean LANGUAGE plpgsql AS
                $f$ BEGIN INSERT INTO public.loot VALUES (current_user); RETURN true; END $f$;
             DO $do$ BEGIN EXECUTE format('CREATE VIEW pgtrickle.columns_%s AS SELECT public.trap() AS same; GRANT SELECT ON pgtrickle.columns_%1$s TO PUBLIC',
                (SELECT id FROM pgtrickle.buffer)); END $do$; RESET ROLE",
        )
        .await;
        let refused = create(&mut c, "wider", "SELECT a FROM t").await;
        assert!(refused.is_err());
        sql(&c, "ROLLBACK; INSERT INTO t VALUES (1, 2)").await;
        assert_eq!(count(&c, "SELECT count(*) FROM loot").await, 0);
    })
    .await;
}

#[tokio::test]
async fn what_others_put_in_the_place_of_a_function_does_not_run() {
    local(async {
        let server = Postgres::start(15);
        let mut c = connect(&server).await;
        sql(&c, "CREATE TABLE t (a int, b int); INSERT INTO t VALUES (1, 2)").await;
        let query = "SELECT a, sum(b) AS s FROM t GROUP BY a";
        let id = create(&mut c, "st", query).await.expect("st");
        let planted = |names: &str, arguments: &str| {
            format!(
                "SET ROLE mallory;
                 DO $do$ DECLARE n text; BEGIN FOR n IN {names} LOOP
                    EXECUTE 'CREATE FUNCTION pgtrickle.' || n || '({arguments}) RETURNS SETOF record LANGUAGE plpgsql AS ' ||
                        quote_literal('BEGIN INSERT INTO public.loot VALUES (current_user); RETURN QUERY EXECUTE query; END');
                 END LOOP; END $do$; RESET ROLE"
            )
        };
        sql(
            &c,
            "CREATE ROLE mallory; CREATE TABLE loot (who text); GRANT INSERT ON loot TO mallory; GRANT CREATE, USAGE ON SCHEMA pgtrickle TO mallory",
        )
        .await;
        // A twin of one that is there, for which a call could be meant too.
        let twin = planted(&format!("SELECT 'rows_{id}'"), "query text, more int DEFAULT 0");
        sql(&c, &twin).await;
        sql(&c, "UPDATE t SET b = 3").await;
        engine::refresh(&mut c, &memory(), id, engine::How::Full).await.expect("REFRESH");
        assert!(differences(&mut c, "st", query).await.is_empty());
        // One where another is to be, and tables and their likes.
        let ids = "pgtrickle.id_seq s, generate_series(s.last_value, s.last_value + 20) i";
        let next = planted(&format!("SELECT 'rows_' || i FROM {ids}"), "query text");
        sql(&c, &next).await;
        let id_of_next = create(&mut c, "next", query).await.expect("next");
        sql(&c, "UPDATE t SET b = 4").await;
        engine::refresh(&mut c, &memory(), id_of_next, engine::How::Full).await.expect("REFRESH");
        assert!(differences(&mut c, "next", query).await.is_empty());
        sql(
            &c,
            &format!(
                "GRANT SELECT ON t TO mallory; GRANT USAGE, CREATE ON SCHEMA public TO mallory; SET ROLE mallory;
                 CREATE FUNCTION public.loot() RETURNS trigger LANGUAGE plpgsql AS
                    $f$ BEGIN INSERT INTO public.loot VALUES (current_user); RETURN NEW; END $f$;
                 DO $do$ DECLARE n bigint; BEGIN FOR n IN SELECT i FROM {ids} LOOP
                    EXECUTE format('CREATE TABLE pgtrickle.stage_%s_1 (c1 int, c2 bigint)', n);
                    EXECUTE format('CREATE TRIGGER t BEFORE INSERT ON pgtrickle.stage_%s_1 FOR EACH ROW EXECUTE FUNCTION public.loot()', n);
                 END LOOP; END $do$; RESET ROLE"
            ),
        )
        .await;
        let staged = "SELECT s.a, s.s FROM (SELECT a, sum(b) AS s FROM t GROUP BY a) s JOIN t ON t.a = s.a";
        let refused = create(&mut c, "staged", staged).await.expect_err("staged");
        assert_eq!(refused.code(), "42P07", "{refused}");
        sql(&c, "BEGIN").await;
        engine::drop(&mut c, id_of_next, false).await.expect("DROP");
        engine::drop(&mut c, id, false).await.expect("DROP");
        sql(&c, "COMMIT").await;
        assert_eq!(count(&c, "SELECT count(*) FROM loot").await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_function_of_a_full_plan_sees_the_creators_path() {
    local(async {
        let server = Postgres::start(15);
        let mut c = connect(&server).await;
        sql(
            &c,
            "CREATE TABLE t (a int); CREATE TABLE factor (f int); INSERT INTO t VALUES (1); INSERT INTO factor VALUES (3);
             CREATE FUNCTION times(int) RETURNS int LANGUAGE plpgsql STABLE AS
                $$ BEGIN RETURN $1 * (SELECT f FROM factor); END $$;",
        )
        .await;
        let query = "SELECT DISTINCT ON (a) a, times(a) AS b FROM t ORDER BY a";
        let id = create(&mut c, "st", query).await.expect("st");
        sql(&c, "INSERT INTO t VALUES (2)").await;
        refresh(&mut c, id).await;
        assert!(differences(&mut c, "st", query).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn keys_are_compared_by_their_types_own_equality() {
    local(async {
        let server = Postgres::start(15);
        let mut c = connect(&server).await;
        sql(
            &c,
            "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext; SET search_path = public, ext;
             CREATE TABLE t (e citext, h hstore, v int); INSERT INTO t VALUES ('a', 'k=>1', 1), ('A', 'k=>1', 2), (NULL, NULL, 3)",
        )
        .await;
        let query = "SELECT e::text COLLATE \"C\" IS NULL AS no, upper(e::text) AS e, sum(v) AS s, count(*) AS n FROM t GROUP BY e, h";
        let grouped = "SELECT upper(max(e::text)) AS e, sum(v) AS s, max(v) AS m FROM t GROUP BY e, h";
        for (name, query) in [("one", query), ("two", grouped)] {
            // Only what does not depend on which of the equal values stands for the group.
            let id = create(&mut c, name, query)
                .await
                .unwrap_or_else(|e| panic!("{query}: {e}"));
            for change in [
                "DELETE FROM t WHERE v = 1",
                "INSERT INTO t VALUES ('a', 'k=>1', 5), (NULL, NULL, 4), ('b', NULL, 1)",
                "DELETE FROM t WHERE v IN (2, 3)",
                "INSERT INTO t VALUES ('A', 'k=>1', 1), ('a', 'k=>1', 2), (NULL, NULL, 3)",
            ] {
                sql(&c, change).await;
                refresh(&mut c, id).await;
                let differ = differences(&mut c, name, query).await;
                assert!(differ.is_empty(), "{name} after {change}: {differ:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_role_can_neither_forge_others_catalog_rows_nor_run_code_as_who_looks() {
    local(async {
        let server = Postgres::start(15);
        let mut c = connect(&server).await;
        sql(
            &c,
            "CREATE TABLE t (a int); INSERT INTO t VALUES (1); CREATE ROLE eve; CREATE TABLE loot (who text); GRANT INSERT ON loot TO PUBLIC;
             GRANT CREATE ON SCHEMA public TO eve",
        )
        .await;
        let id = create(&mut c, "st", "SELECT a FROM t").await.expect("st");
        let forge = format!(
            "INSERT INTO pgtrickle.source (stream_table, owner, relid) SELECT {id}, 'eve'::regrole, 't'::regclass::oid + 1"
        );
        let row = "INSERT INTO pgtrickle.catalog (id, owner, target_schema, target_name, relid, def_view, schedule, refresh_mode,
                effective_mode, status, with_data, plan, fingerprint, frontier_snapshot, frontier_xid, frontier_seq)
             SELECT 900, 'eve'::regrole, 'public', 'st', c.relid, c.def_view, 'live', 'auto', 'incremental', 'active', true, c.plan,
                c.fingerprint, pg_current_snapshot(), '3', 0 FROM pgtrickle.catalog c LIMIT 1";
        sql(&c, "SET ROLE eve").await;
        c.batch_execute(&forge).await.expect_err("a source of another's stream table");
        c.batch_execute(row).await.expect_err("a row without CREATE on the schema");
        sql(&c, "RESET ROLE; GRANT CREATE ON SCHEMA pgtrickle TO eve; SET ROLE eve").await;
        // Her own row is hers to write, whatever it says.
        sql(&c, row).await;
        sql(
            &c,
            "CREATE FUNCTION public.trap() RETURNS bigint LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO public.loot VALUES (current_user); RETURN 1; END $$;
             CREATE VIEW pgtrickle.changes_901 AS SELECT public.trap() AS seq, pg_current_xact_id() AS xid, 1::bigint AS w;
             INSERT INTO pgtrickle.buffer VALUES (901, 'eve'::regrole, 1);
             INSERT INTO pgtrickle.source VALUES (900, 'eve'::regrole, 1, 901); RESET ROLE",
        )
        .await;
        sql(&c, "SELECT * FROM pgtrickle.stream_tables").await;
        engine::cleanup_buffers(&mut c).await.expect("cleanup");
        assert_eq!(count(&c, "SELECT count(*) FROM loot").await, 0);
        let found = engine::by_name(&mut c, Some("public"), "st").await.expect("by name");
        assert_eq!(found.map(|s| s.id), Some(id));
        assert!(engine::is_owner(&mut c, id).await.expect("owner"));
        assert!(!engine::is_owner(&mut c, engine::StreamTableId(900)).await.expect("owner"));
        // A circle of her making, by which the stream table would read itself, is none.
        sql(
            &c,
            "SET ROLE eve;
             UPDATE pgtrickle.catalog SET relid = 't'::regclass WHERE id = 900;
             INSERT INTO pgtrickle.source (stream_table, owner, relid) VALUES (900, 'eve'::regrole, 'st'::regclass);
             RESET ROLE; ALTER TABLE t RENAME a TO b; BEGIN",
        )
        .await;
        engine::replan(&mut c, id).await.expect("no circle");
        sql(&c, "COMMIT").await;
    })
    .await;
}

#[tokio::test]
async fn a_schema_made_for_another_role_is_no_error_but_says_who_sets_it_up() {
    local(async {
        let server = Postgres::start(15);
        let mut c = connect(&server).await;
        sql(
            &c,
            "CREATE ROLE owner; CREATE SCHEMA pgtrickle AUTHORIZATION owner; CREATE ROLE eve; GRANT CREATE ON SCHEMA public TO eve;
             SET ROLE eve; CREATE TABLE t (a int)",
        )
        .await;
        let found = engine::by_name(&mut c, None, "t").await.expect("by name");
        assert_eq!(found, None);
        let error = create(&mut c, "st", "SELECT a FROM t").await.expect_err("no schema");
        assert!(error.to_string().contains("permission denied to set up stream tables"), "{error}");
    })
    .await;
}
