//! PgCat's plugins.

use test_support::Pooler;
use test_support::wire::{Messages, Wire, sqlstate, tags};

use crate::stage::{client, config, eventually, extended, server};

fn with(section: &str) -> Pooler {
    let text = config(&["primary"]).pool("query_parser_enabled = true");
    Pooler::start_text(env!("CARGO_BIN_EXE_pgcat"), |port| {
        format!("{}\n{section}", text.render(port))
    })
}

fn direct() -> Wire {
    Wire::connect(server().port(), "postgres", "postgres")
}

fn logged(pooler: &Pooler, text: &str) -> usize {
    pooler.log().matches(text).count()
}

/// PgCat logs each simple query twice (issue 895), and none that is prepared twice.
#[test]
fn query_logger_logs_each_statement_once() {
    let pooler = with("[pools.postgres.plugins.query_logger]\nenabled = true");
    let mut client = client(&pooler);
    client.run("SELECT 'logged once'; SELECT 'logged, too'");
    client.send(
        Messages::new()
            .statement("SELECT 'logged as parsed'")
            .sync(),
    );
    assert_eq!(tags(&client.ready()), "12DCZ");
    for text in ["logged once", "logged, too", "logged as parsed"] {
        let line = format!("[pool: postgres][user: postgres] SELECT '{text}'");
        eventually("it is logged", || logged(&pooler, &line) > 0);
        assert_eq!(logged(&pooler, &line), 1, "{text}");
    }
}

/// The ways around it that PgCat leaves (research, probes 2 and 3).
#[test]
fn table_access_cannot_be_bypassed() {
    direct().run(
        "DROP TABLE IF EXISTS secret; CREATE TABLE secret (a int); INSERT INTO secret VALUES (42)",
    );
    let pooler =
        with("[pools.postgres.plugins.table_access]\nenabled = true\ntables = [\"secret\"]");
    let mut client = client(&pooler);
    for sql in [
        "SELECT * FROM secret",
        "select * from SECRET",
        "SELECT * FROM \"secret\"",
        "SELECT * FROM U&\"\\0073ecret\"",
        "SELECT * FROM public . /* here */ secret",
        "TABLE secret",
        "SELECT * FROM secret FOR NO KEY UPDATE",
        "SELECT 1; SELECT * FROM secret",
        "WITH x AS (SELECT * FROM secret) SELECT * FROM x",
        "SELECT (SELECT a FROM secret)",
        "SELECT 1 WHERE EXISTS (SELECT FROM secret)",
        "COPY secret TO STDOUT",
        "COPY (SELECT * FROM secret) TO STDOUT",
        "INSERT INTO secret VALUES (1)",
        "PREPARE p AS SELECT * FROM secret",
        "DECLARE c CURSOR FOR SELECT * FROM secret",
        "EXPLAIN ANALYZE SELECT * FROM secret",
        "CREATE VIEW v AS SELECT * FROM secret",
        "CREATE STREAM TABLE s AS SELECT * FROM secret",
        "DROP TABLE secret",
        "TRUNCATE secret",
        "LOCK secret",
    ] {
        let messages = client.query(sql);
        let refusal = messages.iter().find(|message| message.tag == b'E');
        let refusal = refusal.unwrap_or_else(|| panic!("{sql}: {messages:?}"));
        assert_eq!(
            refusal.field(b'M').as_deref(),
            Some("permission for table \"secret\" denied"),
            "{sql}"
        );
        assert_eq!(refusal.field(b'C').as_deref(), Some("58000"));
        client.send(Messages::new().parse("s", sql).sync());
        let messages = client.ready();
        assert!(tags(&messages).starts_with('E'), "{sql}: {messages:?}");
        // What was refused has not been prepared.
        client.send(Messages::new().bind("", "s", &[]).execute("").sync());
        assert_eq!(sqlstate(&client.ready()), "26000", "{sql}");
    }
    // One statement of a batch does not speak for another.
    client.send(
        Messages::new()
            .statement("SELECT * FROM secret")
            .statement("SELECT 1")
            .sync(),
    );
    assert_eq!(tags(&client.ready()), "EZ");
    // Inside a transaction it is an error like any other.
    client.run("BEGIN");
    let messages = client.query("SELECT * FROM secret");
    assert_eq!(messages.last().unwrap().body, b"E");
    client.run("ROLLBACK");
    for sql in [
        "SELECT 'secret'",
        "SELECT 1 AS secret",
        "SELECT 1 /* secret */",
    ] {
        assert_eq!(tags(&client.query(sql)), "TDCZ", "{sql}");
    }
}

/// As a server would answer, in both protocols, and the rest of the message runs (probes 5 to 7).
#[test]
fn intercept_answers_in_both_protocols() {
    direct().run("DROP TABLE IF EXISTS beside; CREATE TABLE beside (a int)");
    let pooler = with(
        "[pools.postgres.plugins.intercept]\nenabled = true\n\
         [pools.postgres.plugins.intercept.queries.0]\n\
         query = \"select current_database() as a, current_schemas(false) as b\"\n\
         schema = [[\"a\", \"text\"], [\"b\", \"anyarray\"]]\n\
         result = [[\"${DATABASE}-${USER}\", \"\"]]\n",
    );
    let sql = "SELECT  current_database() AS a,\n current_schemas(FALSE) AS b;";
    let mut clients: Vec<Wire> = (0..6).map(|_| client(&pooler)).collect();
    for client in &mut clients {
        let messages = client.query(sql);
        assert_eq!(tags(&messages), "TDCZ");
        assert_eq!(
            messages[1].row(),
            [Some("postgres-postgres".to_owned()), None]
        );
        assert_eq!(messages[2].body, b"SELECT 1\0");
        client.send(
            Messages::new()
                .parse("i", sql)
                .describe_statement("i")
                .sync(),
        );
        assert_eq!(tags(&client.ready()), "1tTZ");
        for _ in 0..2 {
            client.send(Messages::new().bind("", "i", &[]).execute("").sync());
            assert_eq!(tags(&client.ready()), "2DCZ");
        }
    }
    let messages = extended(&mut clients[0], sql);
    assert_eq!(tags(&messages), "12TDCZ", "{messages:?}");
    assert_eq!(messages[4].body, b"SELECT 1\0");
    let messages = clients[0].query(&format!("INSERT INTO beside VALUES (1); {sql} SELECT 2"));
    assert_eq!(tags(&messages), "CTDCTDCZ", "{messages:?}");
    assert_eq!(direct().value("SELECT count(*) FROM beside"), "1");
}

#[test]
fn prewarmer_runs_on_every_new_connection() {
    direct().run("DROP TABLE IF EXISTS warmed; CREATE TABLE warmed (pid int)");
    let pooler = with(
        "[pools.postgres.plugins.prewarmer]\nenabled = true\n\
         queries = [\"INSERT INTO warmed VALUES (pg_backend_pid())\", \"SELECT nothing\", \"BEGIN\"]",
    );
    let mut client = client(&pooler);
    let warmed = "SELECT count(*) FROM warmed WHERE pid = pg_backend_pid()";
    assert_eq!(client.value(warmed), "1");
    assert_eq!(client.query("SELECT 1").last().unwrap().body, b"I");
    assert!(logged(&pooler, "prewarming") > 0);
}
