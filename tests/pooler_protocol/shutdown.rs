//! SIGINT and SIGTERM: transactions end, clients are told.

use std::thread;
use std::time::Duration;

use test_support::PoolerConfig;
use test_support::wire::{Messages, PROTOCOL_3_0, Wire, sqlstate, startup, tags};

use crate::stage::{Stage, direct, eventually, is_running};

const LIMIT: Duration = Duration::from_secs(20);

fn assert_told(wire: &mut Wire) {
    let messages = wire.end();
    assert_eq!(tags(&messages), "E", "{messages:?}");
    assert_eq!(messages[0].field(b'C').unwrap(), "57P01");
    assert_eq!(messages[0].field(b'V').unwrap(), "FATAL");
    assert_eq!(
        messages[0].field(b'M').unwrap(),
        "terminating connection due to administrator command"
    );
}

fn is_refused(stage: &Stage) -> bool {
    let mut late = Wire::open(stage.pooler.port());
    let parameters = [("user", "postgres"), ("database", "postgres")];
    late.send(startup(PROTOCOL_3_0, &parameters));
    late.try_greeted().is_err_and(|messages| {
        assert_eq!(tags(&messages), "E", "{messages:?}");
        assert_eq!(messages[0].field(b'V').unwrap(), "FATAL");
        sqlstate(&messages) == "57P03"
    })
}

fn transactions_end(signal: &str, mode: fn(PoolerConfig) -> PoolerConfig) {
    let table = format!("ended_by_{}_{}", signal.to_lowercase(), mode as usize);
    direct().run(&format!(
        "DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (a int)"
    ));
    let mut stage = Stage::with(3, mode);
    let mut idle = stage.client();
    idle.run("SELECT 1");
    let mut busy = stage.client();
    busy.run(&format!("BEGIN; INSERT INTO {table} VALUES (1)"));
    stage.pooler.signal(signal);
    assert_told(&mut idle);
    thread::sleep(Duration::from_millis(200));
    assert!(
        stage.pooler.exit_status().is_none(),
        "a transaction is open"
    );
    assert!(is_refused(&stage));
    busy.run(&format!("INSERT INTO {table} VALUES (2)"));
    busy.run("COMMIT");
    assert_told(&mut busy);
    eventually_ends(&mut stage);
    assert_eq!(
        direct().value(&format!("SELECT count(*) FROM {table}")),
        "2"
    );
    direct().run(&format!("DROP TABLE {table}"));
}

#[test]
fn sigint_lets_transactions_end() {
    transactions_end("INT", |config| config);
}

#[test]
fn sigterm_lets_transactions_end() {
    transactions_end("TERM", |config| config);
}

#[test]
fn sessions_are_told_too() {
    transactions_end("INT", PoolerConfig::session_mode);
}

#[test]
fn a_running_query_ends() {
    let mut stage = Stage::new(2);
    let mut client = stage.client();
    client.send(Messages::new().query("SELECT pg_sleep(1)"));
    thread::sleep(Duration::from_millis(300));
    stage.pooler.signal("TERM");
    assert_eq!(tags(&client.ready()), "TDCZ");
    assert_told(&mut client);
    let status = stage.pooler.sigterm(LIMIT);
    assert!(status.is_some_and(|status| status.success()));
}

#[test]
fn shutdown_timeout_ends_transactions() {
    let mut stage = Stage::with(2, |config| config.general("shutdown_timeout = 500"));
    let mut busy = stage.client();
    busy.run("BEGIN");
    assert!(stage.pooler.sigint(Duration::from_secs(8)).is_some());
    busy.end();
}

#[test]
fn a_second_signal_is_immediate() {
    for (first, second) in [("INT", "INT"), ("TERM", "TERM"), ("TERM", "INT")] {
        let mut stage = Stage::new(2);
        let mut idle = stage.client();
        let mut busy = stage.occupant();
        stage.pooler.signal(first);
        assert_told(&mut idle);
        assert!(stage.pooler.exit_status().is_none());
        stage.pooler.signal(second);
        eventually_ends(&mut stage);
        busy.end();
    }
}

#[test]
fn queries_can_be_cancelled_to_the_end() {
    let mut stage = Stage::new(2);
    let mut idle = stage.client();
    let mut busy = stage.client();
    let sql = "/* until the end */ SELECT pg_sleep(100)";
    busy.send(Messages::new().query(sql));
    eventually("the query runs", || is_running(sql));
    stage.pooler.signal("TERM");
    assert_told(&mut idle);
    busy.cancel();
    assert_eq!(sqlstate(&busy.ready()), "57014");
    assert_told(&mut busy);
    eventually_ends(&mut stage);
}

#[test]
fn administrators_are_let_in_to_the_end() {
    let mut stage = Stage::with(2, |config| config.general("admin_auth_type = \"trust\""));
    let mut idle = stage.client();
    let mut busy = stage.occupant();
    stage.pooler.signal("TERM");
    assert_told(&mut idle);
    let mut admin = Wire::connect(stage.pooler.port(), "admin", "pgbouncer");
    assert!(tags(&admin.query("SHOW CLIENTS")).starts_with("TD"));
    // RELOAD is refused, and in the way of nothing.
    assert_eq!(admin.error("RELOAD"), "08P01");
    admin.send(Messages::new().query("SHUTDOWN"));
    eventually_ends(&mut stage);
    busy.end();
}

/// `shutdown_timeout` counts from the moment transactions are waited for.
#[test]
fn waiting_for_clients_may_turn_into_waiting_for_transactions() {
    let mut stage = Stage::with(2, |config| {
        config.general("admin_auth_type = \"trust\"\nshutdown_timeout = 5000")
    });
    let mut idle = stage.client();
    let mut busy = stage.occupant();
    let mut admin = Wire::connect(stage.pooler.port(), "admin", "pgbouncer");
    admin.run("SHUTDOWN WAIT_FOR_CLIENTS");
    eventually("nobody new is let in", || is_refused(&stage));
    idle.run("SELECT 1");
    stage.pooler.signal("TERM");
    assert_told(&mut idle);
    assert!(stage.pooler.exit_status().is_none());
    busy.run("COMMIT");
    assert_told(&mut busy);
    eventually_ends(&mut stage);
}

fn eventually_ends(stage: &mut Stage) {
    let deadline = std::time::Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = stage.pooler.exit_status() {
            break status;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the pooler still runs"
        );
        thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status:?}");
}

#[test]
fn without_clients_the_end_is_at_once() {
    for terminate in [true, false] {
        let mut stage = Stage::new(2);
        stage.client().run("SELECT 1");
        let limit = Duration::from_secs(5);
        let status = if terminate {
            stage.pooler.sigterm(limit)
        } else {
            stage.pooler.sigint(limit)
        };
        assert!(status.is_some_and(|status| status.success()));
    }
}
