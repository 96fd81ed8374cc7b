//! Limits of clients: of all, of a database, of a user, and of those that are logging in.

use std::cell::RefCell;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use test_support::wire::{Message, Messages, PROTOCOL_3_0, Wire, cancel, sqlstate, startup};
use test_support::{Pooler, PoolerConfig, cpu_time, memory};

use crate::stage::{direct, eventually, is_running, server, start};

const TRUST: &str = "auth_type = \"trust\"";

fn pooler(configure: impl Fn(PoolerConfig) -> PoolerConfig) -> Pooler {
    start(&configure(
        PoolerConfig::new(server()).general("admin_auth_type = \"trust\""),
    ))
}

/// A login that may be refused.
fn login(pooler: &Pooler, user: &str, database: &str) -> Result<Wire, Vec<Message>> {
    let mut wire = Wire::open(pooler.port());
    wire.send(startup(
        PROTOCOL_3_0,
        &[("user", user), ("database", database)],
    ));
    wire.try_greeted().map(|()| wire)
}

fn assert_refused(pooler: &Pooler, user: &str, database: &str, words: &str) {
    let messages = login(pooler, user, database).err().expect("let in");
    assert_eq!(sqlstate(&messages), "53300", "{messages:?}");
    let error = messages.last().expect("an error");
    assert_eq!(error.field(b'M').as_deref(), Some(words));
    assert_eq!(error.field(b'V').as_deref(), Some("FATAL"));
}

fn logins(port: u16, user: &str, database: &str) -> bool {
    let mut wire = Wire::open(port);
    wire.send(startup(
        PROTOCOL_3_0,
        &[("user", user), ("database", database)],
    ));
    wire.try_greeted().is_ok()
}

/// Starts a query that runs for longer than any test.
fn sleep(wire: &mut Wire, name: &str) {
    let sql = format!("/* {name} */ SELECT pg_sleep(100)");
    wire.send(Messages::new().query(&sql));
    eventually("the query runs", || is_running(&sql));
}

const FULL: &str = "no more connections allowed (max_client_conn)";

#[test]
fn a_full_pooler() {
    let pooler = pooler(|config| {
        config
            .general("max_client_conn = 2")
            .user_with("postgres", 2, TRUST)
            .user("careful", 1)
    });
    let mut one = login(&pooler, "postgres", "postgres").expect("the first");
    let two = login(&pooler, "postgres", "postgres").expect("the second");
    assert_refused(&pooler, "postgres", "postgres", FULL);
    // Nobody is asked for a password first.
    let asked = login(&pooler, "careful", "postgres").err().expect("let in");
    assert_eq!((asked.len(), asked[0].tag), (1, b'E'), "{asked:?}");
    // Administrators get in, and take nobody's place; so do cancel requests.
    let mut admin = login(&pooler, "admin", "pgcat").expect("the administrator");
    admin.run("SHOW POOLS");
    login(&pooler, "admin", "pgbouncer").expect("the administrator, once more");
    sleep(&mut one, "full pooler");
    one.cancel();
    assert_eq!(sqlstate(&one.ready()), "57014");
    drop(two);
    eventually("a place is free", || {
        logins(pooler.port(), "postgres", "postgres")
    });
    // A refused login takes no place for long.
    eventually("the place is free again", || {
        logins(pooler.port(), "postgres", "postgres")
    });
}

#[test]
fn full_databases_and_users() {
    direct().run("DO $$ BEGIN CREATE ROLE many LOGIN; EXCEPTION WHEN duplicate_object THEN END $$");
    let pooler = pooler(|config| {
        config
            .databases(&["postgres", "template1"])
            .pool("max_client_connections = 3")
            .user_with("postgres", 2, TRUST)
            .user_with("many", 2, &format!("{TRUST}\nmax_client_connections = 2"))
    });
    let one = login(&pooler, "many", "postgres").expect("the first");
    let _two = login(&pooler, "many", "template1").expect("the second");
    let user = "client connections exceeded (max_user_client_connections)";
    for database in ["postgres", "template1"] {
        assert_refused(&pooler, "many", database, user);
    }
    let _others: Vec<_> = (0..2)
        .map(|_| login(&pooler, "postgres", "postgres").expect("another user"))
        .collect();
    let database = "client connections exceeded (max_db_client_connections)";
    assert_refused(&pooler, "postgres", "postgres", database);
    login(&pooler, "postgres", "template1").expect("another database");
    drop(one);
    eventually("a place is free", || {
        logins(pooler.port(), "many", "postgres")
    });
}

/// Those who are there stay, and count.
#[test]
fn limits_are_reloaded() {
    let config = |limit: usize| {
        PoolerConfig::new(server())
            .general(&format!("max_client_conn = {limit}"))
            .pool(&format!("max_client_connections = {limit}"))
            .user_with("postgres", 2, TRUST)
    };
    let pooler = start(&config(1));
    let mut one = login(&pooler, "postgres", "postgres").expect("the first");
    assert_refused(&pooler, "postgres", "postgres", FULL);
    let reload = |limit| {
        fs::write(pooler.config_path(), config(limit).render(pooler.port())).expect("pgcat.toml");
        pooler.signal("HUP");
    };
    reload(2);
    let second = RefCell::new(None);
    eventually("the second is let in", || {
        *second.borrow_mut() = login(&pooler, "postgres", "postgres").ok();
        second.borrow().is_some()
    });
    assert_refused(&pooler, "postgres", "postgres", FULL);
    reload(1);
    eventually("the reload is over", || {
        pooler.log().matches("Configuration reloaded").count() == 2
    });
    assert_eq!(one.value("SELECT 1"), "1");
    drop(second);
    // One is there still.
    assert_refused(&pooler, "postgres", "postgres", FULL);
}

#[test]
fn a_cancel_request_is_no_login() {
    let pooler = pooler(|config| {
        config
            .general("max_client_logins = 1\nclient_login_timeout = 60000")
            .user_with("postgres", 2, TRUST)
    });
    // The pooler was asked whether it is there, and may take a moment to see that the asker has gone.
    let found = RefCell::new(None);
    eventually("a client", || {
        *found.borrow_mut() = login(&pooler, "postgres", "postgres").ok();
        found.borrow().is_some()
    });
    let mut client = found.take().expect("it is logged in");
    sleep(&mut client, "logins");
    let silent = RefCell::new(Vec::new());
    eventually("somebody is logging in", || {
        silent.borrow_mut().push(Wire::open(pooler.port()));
        !logins(pooler.port(), "postgres", "postgres")
    });
    cancel(pooler.port(), client.key());
    assert_eq!(sqlstate(&client.ready()), "57014");
    // Who says nothing is not kept waiting for long.
    let late = Wire::open(pooler.port()).end();
    assert_eq!(sqlstate(&late), "53300");
}

/// The operating system's limit. Who is in goes on, others wait until somebody leaves, and the pooler does not spin.
#[test]
fn no_more_files() {
    let pooler = pooler(|config| config.user_with("postgres", 2, TRUST));
    let mut inside = login(&pooler, "postgres", "postgres").expect("the first");
    inside.run("SELECT 1");
    let pid = pooler.pid().to_string();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("its files");
    let limit = open.count() + 3;
    let limited = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--nofile={limit}:")])
        .status();
    assert!(limited.is_ok_and(|status| status.success()));
    let crowd: Vec<_> = (0..20).map(|_| Wire::open(pooler.port())).collect();
    let told = || pooler.log().matches("could not accept a client").count();
    eventually("there are no more files", || told() > 0);
    let (told_before, time_before) = (told(), cpu_time(pooler.pid()));
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(200));
        assert_eq!(inside.value("SELECT 1"), "1");
    }
    let time = cpu_time(pooler.pid()) - time_before;
    assert!(
        time < Duration::from_millis(500),
        "{time:?} of CPU for nothing"
    );
    let told = told() - told_before;
    assert!((1..100).contains(&told), "told {told} times");
    drop(crowd);
    eventually("newcomers are let in", || {
        logins(pooler.port(), "postgres", "postgres")
    });
    inside.run("SELECT 1");
}

#[test]
fn an_idle_client_takes_little_memory() {
    const CLIENTS: u64 = 400;
    let pooler = pooler(|config| config.user_with("postgres", 1, TRUST));
    let connect = || {
        let mut client = Wire::connect(pooler.port(), "postgres", "postgres");
        client.run("SELECT 1");
        client
    };
    let first = connect();
    let before = memory(pooler.pid()).0;
    let idle: Vec<_> = (0..CLIENTS).map(|_| connect()).collect();
    let grown = memory(pooler.pid()).0 - before;
    drop((first, idle));
    // It was 4.6 kB when its task had room for a login, and for waiting for a server connection.
    let limit = CLIENTS * 7 / 2;
    assert!(grown < limit, "{grown} kB for {CLIENTS} clients");
}
