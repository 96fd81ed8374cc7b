//! Mistakes and refusals: SQLSTATE, position, reason, and nothing left behind.

use test_support::{EVERYTHING, Settings, Stack, refused, scalar, statement_stack};
use tokio_postgres::error::ErrorPosition;

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");

#[tokio::test]
async fn errors_are_postgresqls_own() {
    let (_stack, pooled, direct) = statement_stack(PGCAT).await;
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
    let (_stack, pooled, _direct) = statement_stack(PGCAT).await;
    pooled
        .batch_execute("CREATE FUNCTION dice() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 4'")
        .await
        .expect("function");
    let cases = [
        ("SELECT id, random() AS r FROM t", "random"),
        ("SELECT id, dice() AS r FROM t", "dice"),
        ("SELECT id FROM t TABLESAMPLE BERNOULLI (10)", "TABLESAMPLE"),
        ("SELECT id FROM t FOR UPDATE", "FOR UPDATE"),
        ("SELECT ctid, id FROM t", "system column"),
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
async fn nobody_gains_a_privilege() {
    let stack = Stack::start_with(PGCAT, 15, &Settings::default(), |config| {
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
