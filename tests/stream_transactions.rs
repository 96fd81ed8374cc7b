//! The statements in transactions, in Query messages of several statements, and by both protocols.

use std::time::Duration;

use test_support::{EVERYTHING, converges, refused, scalar, statement_stack};
use tokio_postgres::SimpleQueryMessage;

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");
const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_rolled_back_block_leaves_nothing() {
    let (_stack, pooled, direct) = statement_stack(PGCAT).await;
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
    let (_stack, pooled, direct) = statement_stack(PGCAT).await;
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
    let (_stack, pooled, direct) = statement_stack(PGCAT).await;
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
    let (_stack, pooled, direct) = statement_stack(PGCAT).await;
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
    let (_stack, pooled, direct) = statement_stack(PGCAT).await;
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
