//! The statements themselves: variants, errors, transactions and both protocols.

use std::time::Duration;

use test_support::{Stack, converges, differences, scalar};
use tokio_postgres::error::{DbError, ErrorPosition};
use tokio_postgres::{Client, SimpleQueryMessage};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");
const LIMIT: Duration = Duration::from_secs(10);

async fn stack() -> (Stack, Client, Client) {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    direct
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int, tag text); INSERT INTO t SELECT i, i % 7, 'g' || i % 3 FROM generate_series(1, 50) i")
        .await
        .expect("source");
    (stack, pooled, direct)
}

async fn refused(client: &Client, sql: &str) -> DbError {
    let error = client.batch_execute(sql).await.expect_err(sql);
    error
        .as_db_error()
        .unwrap_or_else(|| panic!("{sql}: {error:?}"))
        .clone()
}

/// Every object of the database by name, and every trigger.
const EVERYTHING: &str = "
    SELECT md5(string_agg(o, ',' ORDER BY o)) FROM (
        SELECT 'c' || oid || relname FROM pg_class WHERE relnamespace <> 'pg_toast'::regnamespace
        UNION ALL SELECT 'p' || oid || proname FROM pg_proc
        UNION ALL SELECT 'n' || oid || nspname FROM pg_namespace
        UNION ALL SELECT 'y' || oid || typname FROM pg_type
        UNION ALL SELECT 't' || oid || tgname FROM pg_trigger) x(o)";

#[tokio::test]
async fn options_and_lists_show_in_the_catalog() {
    let (_stack, pooled, direct) = stack().await;
    for sql in [
        "CREATE STREAM TABLE plain AS SELECT id, v FROM t",
        "create stream table slow with (schedule = '1h30m', refresh_mode = 'full') as select count(*) as n from t;",
        "CREATE STREAM TABLE named (a, \"B c\") WITH (SCHEDULE = 'manual') AS SELECT id, v FROM t WITH DATA",
        "CREATE STREAM TABLE public.live WITH (schedule = 'live', refresh_mode = 'incremental') AS TABLE t",
        "CREATE STREAM TABLE listed AS VALUES (1, 'x'), (2, 'y')",
    ] {
        pooled
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    let row = |name: &str| {
        format!("SELECT schema || ' ' || owner || ' ' || schedule || ' ' || refresh_mode || ' ' || effective_mode || ' ' || status
                 FROM pgtrickle.stream_tables WHERE name = '{name}'")
    };
    assert_eq!(
        scalar(&direct, &row("plain")).await.as_deref(),
        Some("public app live auto incremental active")
    );
    assert_eq!(
        scalar(&direct, &row("slow")).await.as_deref(),
        Some("public app 1h30m full full active")
    );
    assert_eq!(
        scalar(&direct, &row("named")).await.as_deref(),
        Some("public app manual auto incremental active")
    );
    assert_eq!(
        scalar(&direct, &row("live")).await.as_deref(),
        Some("public app live incremental incremental active")
    );
    let columns = "SELECT string_agg(quote_ident(attname), ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'named'::regclass AND attnum > 0";
    assert_eq!(scalar(&direct, columns).await.as_deref(), Some("a,\"B c\""));
    for (name, query) in [
        ("plain", "SELECT id, v FROM t"),
        ("live", "TABLE t"),
        ("listed", "VALUES (1, 'x'), (2, 'y')"),
    ] {
        converges(&direct, name, query, LIMIT).await;
    }
    // Everything a full recompute has a reason that a user can read.
    let reason = "SELECT reason FROM pgtrickle.stream_tables WHERE name = 'listed' AND effective_mode = 'full'";
    if let Some(reason) = scalar(&direct, reason).await {
        assert!(!reason.is_empty());
    }
    let shown = pooled
        .query("SHOW STREAM TABLES", &[])
        .await
        .expect("SHOW by the extended protocol");
    let names: Vec<&str> = shown.iter().map(|row| row.get::<_, &str>("name")).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    let expected = [
        "schema",
        "name",
        "owner",
        "query",
        "schedule",
        "refresh_mode",
        "effective_mode",
        "reason",
        "status",
    ];
    let columns: Vec<&str> = shown[0]
        .columns()
        .iter()
        .map(|column| column.name())
        .collect();
    assert_eq!(columns[..9], expected);
}

#[tokio::test]
async fn manual_tables_wait_for_refresh() {
    let (_stack, pooled, direct) = stack().await;
    pooled.batch_execute("CREATE STREAM TABLE m WITH (schedule = 'manual') AS SELECT tag, sum(v) AS s FROM t GROUP BY tag").await.expect("created");
    let query = "SELECT tag, sum(v) AS s FROM t GROUP BY tag";
    converges(&direct, "m", query, Duration::ZERO).await;
    direct
        .batch_execute("UPDATE t SET v = v + 1")
        .await
        .expect("write");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        !differences(&direct, "TABLE m", query)
            .await
            .expect("compared")
            .is_empty(),
        "manual means manual"
    );
    pooled
        .batch_execute("REFRESH STREAM TABLE m")
        .await
        .expect("refresh");
    converges(&direct, "m", query, Duration::ZERO).await;
    direct
        .batch_execute("DELETE FROM t WHERE id < 10")
        .await
        .expect("write");
    pooled
        .execute("REFRESH STREAM TABLE m FULL", &[])
        .await
        .expect("full refresh");
    converges(&direct, "m", query, Duration::ZERO).await;
    // In a block it sees the block's own writes.
    pooled
        .batch_execute("BEGIN; UPDATE t SET tag = 'own'; REFRESH STREAM TABLE m")
        .await
        .expect("in a block");
    converges(&pooled, "m", query, Duration::ZERO).await;
    assert_eq!(
        scalar(&pooled, "SELECT count(*) FROM m").await.as_deref(),
        Some("1")
    );
    pooled.batch_execute("ROLLBACK").await.expect("rollback");
    converges(&direct, "m", query, Duration::ZERO).await;
    assert_eq!(
        refused(&pooled, "REFRESH STREAM TABLE nowhere")
            .await
            .code()
            .code(),
        "42P01"
    );
    assert_eq!(
        refused(&pooled, "REFRESH STREAM TABLE t")
            .await
            .code()
            .code(),
        "42809"
    );
}

#[tokio::test]
async fn with_no_data_is_filled_by_refresh() {
    let (_stack, pooled, direct) = stack().await;
    pooled
        .batch_execute(
            "CREATE STREAM TABLE n WITH (schedule = 'manual') AS SELECT id FROM t WITH NO DATA",
        )
        .await
        .expect("created");
    assert_eq!(
        scalar(&direct, "SELECT count(*) FROM n").await.as_deref(),
        Some("0")
    );
    pooled
        .batch_execute("REFRESH STREAM TABLE n")
        .await
        .expect("refresh");
    converges(&direct, "n", "SELECT id FROM t", Duration::ZERO).await;
}

#[tokio::test]
async fn existing_names() {
    let (stack, pooled, direct) = stack().await;
    pooled
        .batch_execute("CREATE STREAM TABLE s AS SELECT id FROM t")
        .await
        .expect("created");
    let error = refused(&pooled, "CREATE STREAM TABLE s AS SELECT v FROM t").await;
    assert_eq!(
        (error.code().code(), error.message()),
        ("42P07", "relation \"s\" already exists")
    );
    assert_eq!(
        refused(&pooled, "CREATE STREAM TABLE t AS SELECT 1")
            .await
            .code()
            .code(),
        "42P07"
    );
    let output = stack
        .psql()
        .try_run(&["CREATE STREAM TABLE IF NOT EXISTS s AS SELECT v FROM t"]);
    assert_eq!(output.stdout, "CREATE STREAM TABLE\n");
    assert_eq!(
        output.stderr,
        "NOTICE:  relation \"s\" already exists, skipping\n"
    );
    converges(&direct, "s", "SELECT id FROM t", LIMIT).await;
    assert_eq!(
        refused(&pooled, "CREATE TABLE s (x int)")
            .await
            .code()
            .code(),
        "42P07"
    );
}

#[tokio::test]
async fn errors_are_postgresqls_own() {
    let (_stack, pooled, direct) = stack().await;
    let before = scalar(&direct, EVERYTHING).await;
    // The position counts characters of the user's text, so one that takes several bytes comes first.
    let positioned = [
        (
            "CREATE STREAM TABLE \"größe\" AS SELECT id FROM nowhere",
            "42P01",
            "nowhere",
        ),
        (
            "/* ä */ CREATE STREAM TABLE x AS SELECT missing FROM t",
            "42703",
            "missing",
        ),
        (
            "CREATE STREAM TABLE x AS SELECT 'ü', id FRO t",
            "42601",
            "t",
        ),
        (
            "CREATE STREAM TABLE x AS SELECT 'é' || no_such_function(id) FROM t",
            "42883",
            "no_such_function",
        ),
        (
            "CREATE STREAM TABLE x WITH (schedule = 'live') AS SELECT tag, sum(v) FROM t",
            "42803",
            "tag",
        ),
        ("CREATE STREAM TABL x AS SELECT 1", "42601", "STREAM"),
        ("CREATE STREAM TABLE AS SELECT 1", "42601", "AS"),
    ];
    for (sql, code, at) in positioned {
        let error = refused(&pooled, sql).await;
        assert_eq!(error.code().code(), code, "{sql}: {error:?}");
        let Some(ErrorPosition::Original(position)) = error.position() else {
            panic!("{sql}: no position in {error:?}")
        };
        let rest: String = sql.chars().skip(*position as usize - 1).collect();
        assert!(
            rest.starts_with(at),
            "{sql}: position {position} is at {rest:?}"
        );
    }
    let others = [
        ("CREATE STREAM TABLE x (a, b) AS SELECT id FROM t", "42601"),
        ("CREATE STREAM TABLE x AS SELECT id, id FROM t", "42701"),
        ("CREATE STREAM TABLE nowhere.x AS SELECT id FROM t", "3F000"),
        (
            "CREATE STREAM TABLE x AS SELECT 1 / 0 AS boom FROM t",
            "22012",
        ),
        (
            "CREATE STREAM TABLE pg_catalog.x AS SELECT id FROM t",
            "42501",
        ),
        ("DROP STREAM TABLE nowhere", "42P01"),
        ("DROP STREAM TABLE t", "42809"),
        (
            "CREATE STREAM TABLE x AS SELECT id FROM t; SELECT 1 / 0",
            "22012",
        ),
    ];
    for (sql, code) in others {
        let error = refused(&pooled, sql).await;
        assert_eq!(error.code().code(), code, "{sql}: {error:?}");
    }
    let option = refused(
        &pooled,
        "CREATE STREAM TABLE x WITH (shedule = 'live') AS SELECT id FROM t",
    )
    .await;
    assert!(option.message().contains("shedule"), "{option:?}");
    let help = format!(
        "{} {}",
        option.detail().unwrap_or(""),
        option.hint().unwrap_or("")
    );
    assert!(
        help.contains("schedule") && help.contains("refresh_mode"),
        "{option:?}"
    );
    assert!(
        refused(
            &pooled,
            "CREATE STREAM TABLE x WITH (schedule = 'often') AS SELECT id FROM t"
        )
        .await
        .code()
        .code()
        .starts_with("22")
    );
    // Whatever failed, nothing is left of it, but for the plugin's own schema.
    let after = scalar(&direct, "SELECT count(*) FROM pg_class WHERE relname = 'x'").await;
    assert_eq!(after.as_deref(), Some("0"));
    if scalar(&direct, EVERYTHING).await != before {
        assert_eq!(
            scalar(&direct, "SELECT count(*) FROM pgtrickle.stream_tables")
                .await
                .as_deref(),
            Some("0")
        );
        let left = "SELECT string_agg(relname, ',') FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname ~ '_[0-9]+$'";
        assert_eq!(scalar(&direct, left).await, None);
        assert_eq!(
            scalar(
                &direct,
                "SELECT count(*) FROM pg_trigger WHERE tgrelid = 't'::regclass"
            )
            .await
            .as_deref(),
            Some("0")
        );
    }
}

#[tokio::test]
async fn queries_that_cannot_be_followed_are_refused_with_a_reason() {
    let (_stack, pooled, _direct) = stack().await;
    pooled
        .batch_execute("CREATE FUNCTION dice() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 4'")
        .await
        .expect("function");
    let cases = [
        ("SELECT id, random() AS r FROM t", "random"),
        ("SELECT id, dice() AS r FROM t", "dice"),
        ("SELECT id FROM t TABLESAMPLE BERNOULLI (10)", "TABLESAMPLE"),
        ("SELECT id FROM t FOR UPDATE", "FOR UPDATE"),
        ("SELECT ctid, id FROM t", "ctid"),
        ("SELECT nextval('t_seq') AS n FROM t", "nextval"),
    ];
    pooled
        .batch_execute("CREATE SEQUENCE t_seq")
        .await
        .expect("sequence");
    for (query, word) in cases {
        let error = refused(&pooled, &format!("CREATE STREAM TABLE x AS {query}")).await;
        let text = format!(
            "{} {} {}",
            error.message(),
            error.detail().unwrap_or(""),
            error.hint().unwrap_or("")
        );
        assert!(text.contains(word), "{query}: {text}");
        assert!(
            ["0A000", "42P17", "42P16"].contains(&error.code().code()),
            "{query}: {error:?}"
        );
    }
    for text in [
        "INSERT INTO t VALUES (0)",
        "DELETE FROM t RETURNING id",
        "WITH d AS (DELETE FROM t RETURNING id) SELECT * FROM d",
    ] {
        let error = refused(&pooled, &format!("CREATE STREAM TABLE x AS {text}")).await;
        assert!(
            ["42601", "0A000"].contains(&error.code().code()),
            "{text}: {error:?}"
        );
    }
    pooled
        .batch_execute("BEGIN; CREATE TEMP TABLE tmp (x int)")
        .await
        .expect("temporary table");
    let error = refused(&pooled, "CREATE STREAM TABLE x AS SELECT x FROM tmp").await;
    assert!(
        format!("{} {}", error.message(), error.detail().unwrap_or("")).contains("temporary"),
        "{error:?}"
    );
    pooled.batch_execute("ROLLBACK").await.expect("rollback");
}

#[tokio::test]
async fn drop_variants() {
    let (stack, pooled, direct) = stack().await;
    for name in ["a", "b", "c", "d", "\"E e\""] {
        pooled
            .batch_execute(&format!(
                "CREATE STREAM TABLE {name} AS SELECT id, v FROM t"
            ))
            .await
            .expect(name);
    }
    pooled
        .batch_execute("DROP STREAM TABLE a, public.b")
        .await
        .expect("two at once");
    pooled
        .batch_execute("drop /* c */ stream -- x\n table if exists \"E e\" restrict;")
        .await
        .expect("any spelling");
    let output = stack.psql().try_run(&["DROP STREAM TABLE IF EXISTS a"]);
    assert_eq!(output.stdout, "DROP STREAM TABLE\n");
    assert_eq!(
        output.stderr,
        "NOTICE:  stream table \"a\" does not exist, skipping\n"
    );
    // All or nothing.
    assert_eq!(
        refused(&pooled, "DROP STREAM TABLE c, a")
            .await
            .code()
            .code(),
        "42P01"
    );
    converges(&direct, "c", "SELECT id, v FROM t", LIMIT).await;

    direct
        .batch_execute("CREATE VIEW on_c AS SELECT id FROM c")
        .await
        .expect("view");
    let error = refused(&pooled, "DROP STREAM TABLE c").await;
    assert_eq!(error.code().code(), "2BP01", "{error:?}");
    assert!(
        error.detail().is_some_and(|detail| detail.contains("on_c")),
        "{error:?}"
    );
    pooled
        .batch_execute("DROP STREAM TABLE c CASCADE")
        .await
        .expect("cascade");
    assert_eq!(scalar(&direct, "SELECT to_regclass('on_c')").await, None);

    // PostgreSQL's own statement on the plain table means the same.
    pooled
        .batch_execute("DROP TABLE d")
        .await
        .expect("DROP TABLE");
    assert_eq!(
        scalar(&direct, "SELECT count(*) FROM pgtrickle.stream_tables")
            .await
            .as_deref(),
        Some("0")
    );
    assert_eq!(
        scalar(
            &direct,
            "SELECT count(*) FROM pg_trigger WHERE tgrelid = 't'::regclass"
        )
        .await
        .as_deref(),
        Some("0")
    );
    let left = "SELECT string_agg(relname, ',') FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname ~ '_[0-9]+$'";
    assert_eq!(scalar(&direct, left).await, None);
}

#[tokio::test]
async fn a_rolled_back_block_leaves_nothing() {
    let (_stack, pooled, direct) = stack().await;
    let before = scalar(&direct, EVERYTHING).await;
    // Also of the schema that the first CREATE makes.
    for sql in [
        "BEGIN; CREATE STREAM TABLE s AS SELECT id FROM t; ROLLBACK",
        "BEGIN; CREATE TABLE u (x int); INSERT INTO u VALUES (1); CREATE STREAM TABLE s AS SELECT x FROM u; ROLLBACK",
        "BEGIN; SAVEPOINT p; CREATE STREAM TABLE s AS SELECT id FROM t; ROLLBACK TO p; COMMIT",
    ] {
        // In one message and in one message each.
        pooled
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        assert_eq!(scalar(&direct, EVERYTHING).await, before, "{sql}");
        for statement in sql.split("; ") {
            pooled
                .batch_execute(statement)
                .await
                .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        assert_eq!(
            scalar(&direct, EVERYTHING).await,
            before,
            "{sql}, one by one"
        );
        for statement in sql.split("; ") {
            pooled
                .execute(statement, &[])
                .await
                .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        assert_eq!(scalar(&direct, EVERYTHING).await, before, "{sql}, extended");
    }
    pooled
        .batch_execute("CREATE STREAM TABLE s AS SELECT id FROM t")
        .await
        .expect("created");
    let before = scalar(&direct, EVERYTHING).await;
    pooled
        .batch_execute("BEGIN; DROP STREAM TABLE s; ROLLBACK")
        .await
        .expect("rolled back drop");
    assert_eq!(scalar(&direct, EVERYTHING).await, before);
    direct
        .batch_execute("INSERT INTO t VALUES (1000, 1, 'after')")
        .await
        .expect("write");
    converges(&direct, "s", "SELECT id FROM t", LIMIT).await;
    // An error in the block undoes it too.
    pooled
        .batch_execute("BEGIN; DROP STREAM TABLE s")
        .await
        .expect("drop");
    assert_eq!(
        refused(&pooled, "CREATE STREAM TABLE z AS SELECT nonsense")
            .await
            .code()
            .code(),
        "42703"
    );
    assert_eq!(refused(&pooled, "SELECT 1").await.code().code(), "25P02");
    assert_eq!(
        refused(&pooled, "CREATE STREAM TABLE z AS SELECT 1")
            .await
            .code()
            .code(),
        "25P02"
    );
    pooled
        .batch_execute("COMMIT")
        .await
        .expect("which rolls back");
    assert_eq!(scalar(&direct, EVERYTHING).await, before);
}

#[tokio::test]
async fn a_committed_block_is_there_at_once() {
    let (_stack, pooled, direct) = stack().await;
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        pooled
            .batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}; CREATE TABLE u (x int); INSERT INTO u VALUES (1), (1)"))
            .await
            .expect("begin");
        pooled
            .batch_execute("CREATE STREAM TABLE s AS SELECT x, count(*) AS n FROM u GROUP BY x")
            .await
            .expect("created");
        assert_eq!(
            scalar(&pooled, "SELECT n FROM s").await.as_deref(),
            Some("2"),
            "{isolation}: seen in the block"
        );
        pooled
            .batch_execute("INSERT INTO u VALUES (1), (2)")
            .await
            .expect("a write after it");
        assert_eq!(scalar(&direct, "SELECT to_regclass('s')").await, None);
        pooled.batch_execute("COMMIT").await.expect("commit");
        converges(
            &direct,
            "s",
            "SELECT x, count(*) AS n FROM u GROUP BY x",
            LIMIT,
        )
        .await;
        direct
            .batch_execute("DELETE FROM u WHERE x = 1")
            .await
            .expect("write");
        converges(
            &direct,
            "s",
            "SELECT x, count(*) AS n FROM u GROUP BY x",
            LIMIT,
        )
        .await;
        pooled
            .batch_execute("DROP STREAM TABLE s; DROP TABLE u")
            .await
            .expect("dropped");
    }
}

#[tokio::test]
async fn many_statements_in_one_query_message() {
    let (_stack, pooled, direct) = stack().await;
    let messages = pooled
        .simple_query(
            "CREATE TABLE u (x int); INSERT INTO u SELECT generate_series(1, 3); -- a comment; not a statement\n
             CREATE STREAM TABLE s AS SELECT x, ';' AS semicolon FROM u; SELECT count(*) FROM s; INSERT INTO u VALUES (4)",
        )
        .await
        .expect("all of it");
    let rows: Vec<&str> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    assert_eq!(rows, ["3"]);
    let commands = messages
        .iter()
        .filter(|message| matches!(message, SimpleQueryMessage::CommandComplete(_)))
        .count();
    assert_eq!(commands, 5);
    converges(&direct, "s", "SELECT x, ';' AS semicolon FROM u", LIMIT).await;
    // One implicit transaction: an error takes everything back.
    let error = refused(
        &pooled,
        "CREATE TABLE w (x int); CREATE STREAM TABLE s2 AS SELECT x FROM w; SELECT 1 / 0",
    )
    .await;
    assert_eq!(error.code().code(), "22012");
    assert_eq!(
        scalar(
            &direct,
            "SELECT concat(to_regclass('w'), to_regclass('s2'))"
        )
        .await
        .as_deref(),
        Some("")
    );
}

#[tokio::test]
async fn extended_protocol() {
    let (_stack, pooled, direct) = stack().await;
    let create = pooled
        .prepare("CREATE STREAM TABLE s AS SELECT id, v FROM t")
        .await
        .expect("prepared");
    assert!(create.columns().is_empty() && create.params().is_empty());
    let drop = pooled
        .prepare("DROP STREAM TABLE s")
        .await
        .expect("prepared");
    for _ in 0..3 {
        pooled.execute(&create, &[]).await.expect("created");
        converges(&direct, "s", "SELECT id, v FROM t", LIMIT).await;
        assert_eq!(
            pooled
                .execute(&create, &[])
                .await
                .expect_err("twice")
                .code()
                .map(|code| code.code()),
            Some("42P07")
        );
        pooled.execute(&drop, &[]).await.expect("dropped");
    }
    let show = pooled
        .prepare("SHOW STREAM TABLES")
        .await
        .expect("prepared");
    assert_eq!(show.columns()[1].name(), "name");
    assert_eq!(pooled.query(&show, &[]).await.expect("none").len(), 0);
}

/// Spelling as PostgreSQL's own DDL allows it.
#[tokio::test]
async fn quoting_comments_and_case() {
    let (_stack, pooled, direct) = stack().await;
    pooled
        .batch_execute("CREATE SCHEMA \"S 1\"; SET search_path = \"S 1\", public")
        .await
        .expect("schema");
    pooled
        .batch_execute("  cReAtE/* a /* nested */ comment */Stream\n-- line\n\tTABLE \"Weird \"\"Name; \" AS\nSELECT id AS \"I d\", $q$a;'b$q$ AS q FROM t -- end")
        .await
        .expect("created");
    assert_eq!(
        scalar(
            &direct,
            "SELECT to_regclass('\"S 1\".\"Weird \"\"Name; \"')"
        )
        .await
        .as_deref(),
        Some("\"S 1\".\"Weird \"\"Name; \"")
    );
    direct
        .batch_execute("DELETE FROM t WHERE id > 40")
        .await
        .expect("write");
    converges(
        &direct,
        "\"S 1\".\"Weird \"\"Name; \"",
        "SELECT id AS \"I d\", $q$a;'b$q$ AS q FROM t",
        LIMIT,
    )
    .await;
    // A text that only looks like one of ours.
    assert_eq!(
        scalar(&pooled, "SELECT 'CREATE STREAM TABLE x AS SELECT 1'")
            .await
            .as_deref(),
        Some("CREATE STREAM TABLE x AS SELECT 1")
    );
    pooled
        .batch_execute(
            "CREATE TABLE stream (\"table\" int); ALTER TABLE stream ADD x int; DROP TABLE stream",
        )
        .await
        .expect("a plain table");
}

#[tokio::test]
async fn nobody_gains_a_privilege() {
    let stack = Stack::start_with(PGCAT, 15, &test_support::Settings::default(), |config| {
        config.user("guest", 2)
    });
    stack
        .postgres
        .psql("postgres", "app")
        .run(&["CREATE ROLE guest LOGIN PASSWORD 'guest'"]);
    let (app, guest) = (
        stack.pooled().await,
        stack.pooler.client("guest", "app").await,
    );
    app.batch_execute("CREATE TABLE secret (x int); CREATE TABLE open (x int); GRANT SELECT ON open TO guest; CREATE STREAM TABLE s AS SELECT x FROM secret")
        .await
        .expect("set up");
    app.batch_execute("CREATE SCHEMA theirs; GRANT ALL ON SCHEMA theirs TO guest")
        .await
        .expect("schema");
    for sql in [
        "CREATE STREAM TABLE theirs.x AS SELECT x FROM secret",
        "CREATE STREAM TABLE public.x AS SELECT 1 AS one",
        "DROP STREAM TABLE s",
        "REFRESH STREAM TABLE s",
        "SELECT * FROM s",
    ] {
        assert_eq!(refused(&guest, sql).await.code().code(), "42501", "{sql}");
    }
}
