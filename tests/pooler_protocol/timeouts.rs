//! What clients may take: time for statements, for transactions, and for silence.

use std::fs;
use std::thread;
use std::time::Duration;

use test_support::wire::{Message, Messages, PROTOCOL_3_0, Wire, sqlstate, startup, tags};
use test_support::{Auth, PoolerConfig, Postgres, Settings};

use crate::stage::{Stage, eventually, is_running, server, start};

const CANCELED: &str = "canceling statement due to statement timeout";

fn stage(lines: &str) -> Stage {
    Stage::with(1, |config| config.general(lines))
}

fn assert_error(messages: &[Message], code: &str, words: &str) {
    assert_eq!(sqlstate(messages), code, "{messages:?}");
    let error = messages.iter().find(|message| message.tag == b'E');
    let said = error.and_then(|error| error.field(b'M'));
    assert_eq!(said.as_deref(), Some(words));
}

#[test]
fn a_statement_that_takes_too_long_is_cancelled() {
    let stage = stage("statement_timeout = 300");
    let mut client = stage.client();
    let pid = client.value("SELECT pg_backend_pid()");
    for _ in 0..2 {
        let messages = client.query("/* too long */ SELECT pg_sleep(100)");
        assert_eq!(tags(&messages), "TEZ", "{messages:?}");
        assert_error(&messages, "57014", CANCELED);
        let error = messages[1].clone();
        assert_eq!(error.field(b'V').as_deref(), Some("ERROR"));
        assert!(!is_running("/* too long */"));
        // Neither the client nor the server connection is lost.
        assert_eq!(client.value("SELECT pg_backend_pid()"), pid);
    }
    client.run("BEGIN");
    let messages = client.query("SELECT pg_sleep(100)");
    assert_error(&messages, "57014", CANCELED);
    assert_eq!(messages.last().expect("Z").body, b"E");
    client.run("ROLLBACK");
    client.send(Messages::new().statement("SELECT pg_sleep(100)").sync());
    let messages = client.ready();
    assert_eq!(tags(&messages), "12EZ", "{messages:?}");
    assert_error(&messages, "57014", CANCELED);
    stage.assert_clean();
}

/// It is the whole statement that counts, not the time between two rows.
#[test]
fn a_statement_that_sends_rows_takes_too_long_as_well() {
    let stage = stage("statement_timeout = 500");
    let mut client = stage.client();
    let messages =
        client.query("SELECT pg_sleep(0.01), repeat('x', 2000) FROM generate_series(1, 10000)");
    assert!(tags(&messages).ends_with("DEZ"));
    assert_error(&messages, "57014", CANCELED);
    stage.assert_clean();
}

/// A transaction, a batch, or a session may stay open without a statement.
#[test]
fn without_a_statement_there_is_nothing_to_cancel() {
    let stage = stage("statement_timeout = 1500");
    let mut client = stage.client();
    let pause = || thread::sleep(Duration::from_millis(2000));
    client.run("BEGIN");
    pause();
    client.run("SELECT pg_sleep(0.1)");
    client.run("COMMIT");
    client.send(Messages::new().statement("SELECT 1").flush());
    client.until(b'C');
    pause();
    // Its time begins now.
    client.send(Messages::new().statement("SELECT pg_sleep(0.1)").sync());
    assert_eq!(tags(&client.ready()), "12DCZ");
    pause();
    // Each statement has its own time.
    client.send(
        Messages::new()
            .query("SELECT pg_sleep(0.6)")
            .query("SELECT pg_sleep(0.6)")
            .query("SELECT pg_sleep(0.6)"),
    );
    for _ in 0..3 {
        assert_eq!(tags(&client.ready()), "TDCZ");
    }
    stage.assert_clean();
}

#[test]
fn who_waits_for_a_connection_runs_no_statement() {
    let stage = stage("statement_timeout = 500\nconnect_timeout = 60000");
    let mut occupant = stage.occupant();
    let mut client = stage.client();
    client.send(Messages::new().query("SELECT 1"));
    assert!(client.silent_for(Duration::from_millis(1200)));
    occupant.run("COMMIT");
    assert_eq!(tags(&client.ready()), "TDCZ");
}

#[test]
fn a_cancel_request_has_its_own_words() {
    let stage = stage("statement_timeout = 60000");
    let mut client = stage.client();
    client.send(Messages::new().query("/* own words */ SELECT pg_sleep(100)"));
    eventually("the query runs", || is_running("/* own words */"));
    client.cancel();
    assert_error(
        &client.ready(),
        "57014",
        "canceling statement due to user request",
    );
}

/// A server that does not answer keeps its client waiting, but not for ever.
#[test]
fn a_server_that_does_not_cancel() {
    let server = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    let config = PoolerConfig::new(&server)
        .general("statement_timeout = 300")
        .user_with("postgres", 1, "auth_type = \"trust\"");
    let pooler = start(&config);
    let mut client = Wire::connect(pooler.port(), "postgres", "postgres");
    client.run("SELECT 1");
    server.freeze();
    client.send(Messages::new().query("SELECT 1"));
    let ended = client.end();
    assert_eq!(
        (tags(&ended).as_str(), sqlstate(&ended).as_str()),
        ("E", "57014")
    );
    server.thaw();
    eventually("a new client is served", || {
        let mut wire = Wire::open(pooler.port());
        wire.send(startup(PROTOCOL_3_0, &[("user", "postgres")]));
        wire.try_greeted().is_ok()
    });
}

/// Nobody keeps a server connection by not reading what it sends. A server that cannot send does not look for cancel
/// requests, so it is the session that ends.
#[test]
fn a_client_that_does_not_read() {
    thread::scope(|scope| {
        for (limit, before) in [("statement", "SELECT 1"), ("transaction", "BEGIN")] {
            scope.spawn(move || {
                // The kernel has a limit for what nobody takes, too.
                let stage = stage(&format!(
                    "{limit}_timeout = 1000\nconnect_timeout = 60000\ntcp_user_timeout = 60000"
                ));
                let mut client = stage.client();
                client.run(before);
                // More than the buffers on the way hold.
                let sql = format!(
                    "/* unread {limit} */ SELECT repeat('x', 1000000) FROM generate_series(1, 1000)"
                );
                client.send(Messages::new().query(&sql));
                let mut next = stage.client();
                assert_eq!(next.value("SELECT 1"), "1");
                let running = format!("/* unread {limit} */");
                eventually("the statement has ended", || !is_running(&running));
                let log = stage.pooler.log();
                assert!(log.contains(&format!("due to {limit} timeout")), "{log}");
                assert!(!tags(&client.end()).contains('C'));
                stage.assert_clean();
            });
        }
    });
}

/// The time of its silence begins with the server's last answer.
#[test]
fn a_statement_in_a_transaction_is_no_silence() {
    let stage = stage("idle_client_in_transaction_timeout = 1500");
    let mut client = stage.client();
    client.run("BEGIN");
    client.run("SELECT pg_sleep(2)");
    // Longer than between two looks at the time.
    thread::sleep(Duration::from_millis(300));
    client.run("SELECT 1");
    let messages = client.ready();
    assert_error(&messages, "25P03", "idle transaction timeout");
    assert_eq!(tags(&messages), "EZ");
}

#[test]
fn who_waits_for_a_connection_has_not_begun_a_transaction() {
    let stage =
        stage("transaction_timeout = 1500\nconnect_timeout = 60000\nadmin_auth_type = \"trust\"");
    let mut client = stage.client();
    let mut admin = Wire::connect(stage.pooler.port(), "admin", "pgbouncer");
    admin.run("PAUSE");
    client.send(Messages::new().query("BEGIN"));
    assert!(client.silent_for(Duration::from_millis(2000)));
    admin.run("RESUME");
    assert_eq!(tags(&client.ready()), "CZ");
    client.run("SELECT pg_sleep(0.3)");
    client.run("COMMIT");
}

/// Each user has his own time.
#[test]
fn users_have_their_own_times() {
    let config = PoolerConfig::new(server())
        .general("statement_timeout = 300")
        .user_with(
            "postgres",
            1,
            "auth_type = \"trust\"\nstatement_timeout = 0",
        );
    let pooler = start(&config);
    let mut client = Wire::connect(pooler.port(), "postgres", "postgres");
    client.run("SELECT pg_sleep(1)");
}

#[test]
fn a_transaction_that_takes_too_long() {
    let stage = stage("transaction_timeout = 1500");
    let words = "terminating connection due to transaction timeout";
    // Idle in it, between statements that are short.
    let mut client = stage.client();
    client.run("BEGIN");
    let ended = client.end();
    assert_error(&ended, "25P04", words);
    assert_eq!(tags(&ended), "E");
    // In the middle of a statement, which ends with it.
    let mut client = stage.client();
    client.run("BEGIN");
    client.send(Messages::new().query("/* long transaction */ SELECT pg_sleep(100)"));
    assert_error(&client.end(), "25P04", words);
    eventually("the statement has ended", || {
        !is_running("/* long transaction */")
    });
    // Several short ones are no long one.
    let mut client = stage.client();
    for _ in 0..4 {
        client.run("BEGIN");
        client.run("SELECT pg_sleep(0.4)");
        client.run("COMMIT");
    }
    thread::sleep(Duration::from_millis(2000));
    client.run("SELECT 1");
    stage.assert_clean();
}

#[test]
fn an_idle_client() {
    let stage = Stage::with(2, |config| config.general("client_idle_timeout = 1200"));
    let mut busy = stage.client();
    busy.send(Messages::new().query("SELECT pg_sleep(2.5)"));
    let mut occupant = stage.occupant();
    let mut idle = stage.client();
    let ended = idle.end();
    assert_eq!(tags(&ended), "E");
    assert_error(
        &ended,
        "57P05",
        "terminating connection due to idle-session timeout",
    );
    // A statement is no silence, and what is in a transaction has a limit of its own.
    assert_eq!(tags(&busy.ready()), "TDCZ");
    assert_eq!(busy.value("SELECT 1"), "1");
    occupant.run("COMMIT");
}

/// Clients that are there already have the new times.
#[test]
fn times_are_reloaded() {
    let config = |lines: &str| {
        PoolerConfig::new(server())
            .general(lines)
            .user_with("postgres", 1, "auth_type = \"trust\"")
    };
    let pooler = start(&config(""));
    let mut client = Wire::connect(pooler.port(), "postgres", "postgres");
    client.run("SELECT 1");
    let text = config("client_idle_timeout = 300").render(pooler.port());
    fs::write(pooler.config_path(), text).expect("pgcat.toml");
    pooler.signal("HUP");
    assert_eq!(sqlstate(&client.end()), "57P05");
}

#[test]
fn sessions_have_the_same_times() {
    let stage = Stage::with(1, |config| {
        config
            .session_mode()
            .general("statement_timeout = 300\nclient_idle_timeout = 1500")
    });
    let mut client = stage.client();
    client.run("CREATE TEMP TABLE kept (a int)");
    let messages = client.query("SELECT pg_sleep(100)");
    assert_error(&messages, "57014", CANCELED);
    client.run("TABLE kept");
    assert_eq!(sqlstate(&client.end()), "57P05");
    stage.assert_clean();
}
