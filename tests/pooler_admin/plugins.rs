//! What plugins show, here the stream tables.

use std::fs;

use test_support::wire::{Messages, Wire, tags};
use test_support::{Auth, PoolerConfig, Postgres, Settings};

use crate::metrics::{get, with_metrics};
use crate::stage::{Row, admin, client, config, described, eventually, one_worker, rows};

/// The row of a stream table, if there is one.
fn shown(admin: &mut Wire, name: &str) -> Option<Row> {
    let rows = rows(admin, "SHOW STREAM TABLES");
    rows.into_iter().find(|row| row["name"] == name)
}

/// The value of a metric of a stream table.
fn value(port: u16, metric: &str, name: &str) -> Option<f64> {
    let (_, body) = get(port, "/metrics");
    let labels = format!("{{database=\"postgres\",schema=\"public\",name=\"{name}\"}} ");
    let prefix = format!("pgcat_stream_table_{metric}{labels}");
    let mut values = body.lines().filter_map(|line| line.strip_prefix(&prefix));
    let value = values.next()?.parse().expect("a number");
    assert_eq!(values.next(), None, "two samples with the same labels");
    Some(value)
}

#[test]
fn stream_tables_are_shown() {
    let _alone = one_worker();
    let (pooler, port) = with_metrics(&config(4).stream_tables());
    let mut client = client(&pooler);
    for sql in [
        "CREATE TABLE shown_source (a int)",
        "CREATE STREAM TABLE shown AS SELECT a FROM shown_source",
        "CREATE STREAM TABLE \"shown full\" WITH (schedule = 'manual', refresh_mode = full) AS SELECT a FROM shown_source",
        "INSERT INTO shown_source VALUES (1), (2), (3)",
    ] {
        client.run(sql);
    }
    let mut pgcat = admin(&pooler, "pgcat");
    eventually("the refresh is counted", || {
        value(port, "rows_total", "shown") == Some(3.0)
    });
    let row = shown(&mut pgcat, "shown").expect("a row");
    for (column, expected) in [
        ("database", "postgres"),
        ("schema", "public"),
        ("owner", "postgres"),
        ("status", "active"),
        ("effective_mode", "incremental"),
        ("last_error", ""),
    ] {
        assert_eq!(row[column], expected, "{row:?}");
    }
    assert!(row["last_refresh"].ends_with(" UTC"), "{row:?}");
    assert!(row["staleness"].parse::<f64>().is_ok(), "{row:?}");
    let mut pgbouncer = admin(&pooler, "pgbouncer");
    let full = shown(&mut pgbouncer, "shown full").expect("a row");
    assert_eq!(full["effective_mode"], "full");
    let help = pgbouncer.query("show help");
    assert!(help[0].field(b'D').unwrap().contains("STREAM TABLES"));

    // By the extended protocol, too, and in any case.
    let extended = Messages::new().parse("", "show  Stream\ntables");
    let extended = extended.bind("", "", &[]).describe_portal("");
    pgcat.send(extended.execute("").sync());
    let replies = pgcat.ready();
    assert!(tags(&replies).starts_with("12TD"), "{replies:?}");
    assert_eq!(described(&replies[2]).len(), 9);
    assert_eq!(pgcat.error("SHOW STREAM"), "58000");

    assert!(value(port, "refreshes_total", "shown") >= Some(1.0));
    assert!(value(port, "refresh_seconds_total", "shown") > Some(0.0));
    assert_eq!(value(port, "errors_total", "shown"), Some(0.0));
    assert!(value(port, "staleness_seconds", "shown") >= Some(0.0));
    let (_, body) = get(port, "/metrics");
    let number = "\npgcat_stream_tables{database=\"postgres\",status=\"active\"} ";
    assert!(body.contains(number), "{body}");

    client.run("DROP STREAM TABLE \"shown full\"");
    eventually("it is gone", || shown(&mut pgcat, "shown full").is_none());
    client.run("DROP STREAM TABLE shown");
    client.run("DROP TABLE shown_source");
}

#[test]
fn failures_are_shown_to_administrators_only() {
    let _alone = one_worker();
    let (pooler, port) = with_metrics(&config(4).stream_tables());
    let mut client = client(&pooler);
    client.run("CREATE TABLE failing_source (a text)");
    client.run("CREATE STREAM TABLE failing AS SELECT a::int FROM failing_source");
    client.run("INSERT INTO failing_source VALUES ('a secret')");
    let mut admin = admin(&pooler, "pgcat");
    eventually("the error is shown", || {
        shown(&mut admin, "failing")
            .is_some_and(|row| row["status"] == "error" && row["last_error"].contains("a secret"))
    });
    assert!(value(port, "errors_total", "failing") >= Some(3.0));
    let (head, body) = get(port, "/stream-tables");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("application/json"), "{head}");
    let table = body
        .split("},")
        .find(|table| table.contains("\"name\":\"failing\""))
        .unwrap_or_else(|| panic!("{body}"));
    assert!(table.contains("\"last_error_code\":\"22P02\""), "{table}");
    assert!(table.contains("\"status\":\"error\""), "{table}");
    assert!(!body.contains("a secret"), "{body}");

    client.run("UPDATE failing_source SET a = '1'");
    client.run("REFRESH STREAM TABLE failing");
    eventually("it has recovered", || {
        shown(&mut admin, "failing")
            .is_some_and(|row| row["status"] == "active" && row["last_error"].is_empty())
    });
    client.run("DROP STREAM TABLE failing");
    client.run("DROP TABLE failing_source");
}

#[test]
fn a_server_that_is_down_keeps_nobody_waiting() {
    let mut server = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    let config = PoolerConfig::new(&server)
        .user_with("postgres", 2, "auth_type = \"trust\"")
        .general("admin_auth_type = \"trust\"")
        .stream_tables();
    let (pooler, port) = with_metrics(&config);
    let mut client = client(&pooler);
    client.run("CREATE TABLE source (a int)");
    client.run("CREATE STREAM TABLE derived AS SELECT a FROM source");
    let mut admin = admin(&pooler, "pgcat");
    eventually("it is shown", || shown(&mut admin, "derived").is_some());
    server.stop();
    // As it was, with time going on.
    let before = value(port, "staleness_seconds", "derived");
    assert!(value(port, "staleness_seconds", "derived") > before);
    assert!(get(port, "/stream-tables").1.contains("\"derived\""));
    assert!(shown(&mut admin, "derived").is_some());
}

#[test]
fn after_a_take_over_the_new_process_refreshes() {
    let _alone = one_worker();
    let (mut pooler, port) = with_metrics(&config(4).stream_tables());
    let mut before = client(&pooler);
    before.run("CREATE TABLE taken_source (a int)");
    before.run("CREATE STREAM TABLE taken AS SELECT a FROM taken_source");
    let _old = pooler.take_over();
    let mut after = client(&pooler);
    // Whichever process the writes, and the statements, come through.
    before.run("INSERT INTO taken_source VALUES (1)");
    after.run("INSERT INTO taken_source VALUES (2)");
    before.run("CREATE STREAM TABLE taken_sum AS SELECT sum(a) AS total FROM taken_source");
    before.run("INSERT INTO taken_source VALUES (3)");
    eventually("all is in the stream tables", || {
        before.value("SELECT count(*) FROM taken") == "3"
            && after.value("SELECT total FROM taken_sum") == "6"
    });
    eventually("the new process has done it", || {
        value(port, "rows_total", "taken") == Some(3.0)
    });
    before.run("DROP STREAM TABLE taken, taken_sum");
    after.run("DROP TABLE taken_source");
}

#[test]
fn a_reload_asks_the_plugins() {
    let _alone = one_worker();
    let (pooler, port) = with_metrics(&config(2).stream_tables());
    let mut admin = admin(&pooler, "pgbouncer");
    let path = pooler.config_path();
    let good = fs::read_to_string(&path).expect("the configuration");
    assert!(good.contains("[plugins.stream_tables]\n"), "{good}");
    let section = "[plugins.stream_tables]\nschedule = \"often\"\n";
    let bad = good.replace("[plugins.stream_tables]\n", section);
    fs::write(&path, bad).expect("written");
    let messages = admin.query("RELOAD");
    let message = messages[0].field(b'M').expect("an error");
    assert!(
        message.contains(": plugins.stream_tables.schedule: "),
        "{message}"
    );
    // Without them, nothing of theirs is left.
    fs::write(&path, good.replace("enabled = true", "enabled = false")).expect("written");
    admin.run("RELOAD");
    assert_eq!(rows(&mut admin, "SHOW STREAM TABLES").len(), 0);
    assert_eq!(get(port, "/stream-tables").1, "[]\n");
}
