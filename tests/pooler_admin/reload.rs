//! Reload: by RELOAD, by SIGHUP, and by itself.

use std::fs;
use std::time::Duration;

use test_support::wire::{Messages, PROTOCOL_3_0, Wire, startup, tags};
use test_support::{Auth, Pooler, PoolerConfig, Postgres, Settings};

use crate::stage::{admin, client, config, eventually, one_worker, row, rows, start};

fn write(pooler: &Pooler, config: &PoolerConfig) {
    fs::write(pooler.config_path(), config.render(pooler.port())).expect("pgcat.toml");
}

fn reload(pooler: &Pooler, config: &PoolerConfig) {
    write(pooler, config);
    let mut control = admin(pooler, "pgbouncer");
    let messages = control.query("RELOAD");
    assert_eq!(tags(&messages), "CZ", "{messages:?}");
}

fn pool_size(pooler: &Pooler) -> String {
    row(
        &mut admin(pooler, "pgbouncer"),
        "SHOW DATABASES",
        "name",
        "postgres",
    )["pool_size"]
        .clone()
}

#[test]
fn nothing_is_lost_where_nothing_changed() {
    // Of a pool of one it is known which server connection a client gets.
    let base = || config(1).general("connect_timeout = 10000");
    let pooler = start(&base());
    let mut one = client(&pooler);
    let pid = one.value("SELECT pg_backend_pid()");
    reload(&pooler, &base().general("ban_time = 7"));
    assert_eq!(one.value("SELECT pg_backend_pid()"), pid);
    let ban_time = row(
        &mut admin(&pooler, "pgcat"),
        "SHOW CONFIG",
        "key",
        "ban_time",
    );
    assert_eq!(ban_time["value"], "7");
}

#[test]
fn a_changed_pool_keeps_its_clients_and_statistics() {
    let of = |size| config(size).general("connect_timeout = 10000");
    let pooler = start(&of(1));
    let mut busy = client(&pooler);
    busy.run("BEGIN");
    let pid = busy.value("SELECT pg_backend_pid()");
    let mut waits = client(&pooler);
    waits.send(Messages::new().query("SELECT 'waited'"));
    eventually("it waits", || {
        let clients = rows(&mut admin(&pooler, "pgcat"), "SHOW CLIENTS");
        clients.iter().any(|row| row["state"] == "waiting")
    });
    let count = |pooler: &Pooler| -> u64 {
        let stats = row(
            &mut admin(pooler, "pgbouncer"),
            "SHOW STATS",
            "database",
            "postgres",
        );
        stats["total_query_count"].parse().expect("a number")
    };
    let before = count(&pooler);
    reload(&pooler, &of(3));
    assert_eq!(pool_size(&pooler), "3");
    // Who waited is served by the new pool; who is in a transaction ends it on the old connection.
    assert_eq!(tags(&waits.ready()), "TDCZ");
    assert_eq!(busy.value("SELECT pg_backend_pid()"), pid);
    busy.run("COMMIT");
    assert_ne!(busy.value("SELECT pg_backend_pid()"), pid);
    assert!(count(&pooler) >= before + 3, "statistics go on");
    eventually("the old connection is closed", || {
        let servers = rows(&mut admin(&pooler, "pgbouncer"), "SHOW SERVERS");
        servers.iter().all(|row| row["remote_pid"] != pid)
    });
}

/// The greeting of a client is asked of a server: it must not matter which pool that belongs to.
#[test]
fn a_login_that_waits_goes_over_to_the_changed_pool() {
    let of = |size| config(size).general("connect_timeout = 15000");
    let pooler = start(&of(1));
    let mut busy = client(&pooler);
    busy.run("BEGIN");
    let mut newcomer = Wire::open(pooler.port());
    let parameters = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("options", "-c work_mem=3MB"),
    ];
    newcomer.send(startup(PROTOCOL_3_0, &parameters));
    assert!(newcomer.silent_for(Duration::from_millis(300)));
    reload(&pooler, &of(2));
    newcomer.greeted();
    assert_eq!(newcomer.value("SHOW work_mem"), "3MB");
    busy.run("COMMIT");
}

#[test]
fn prepared_statements_outlive_a_changed_pool() {
    let pooler = start(&config(1));
    let mut one = client(&pooler);
    one.send(Messages::new().parse("s", "SELECT 'prepared'").sync());
    one.ready();
    reload(&pooler, &config(2));
    one.send(Messages::new().bind("", "s", &[]).execute("").sync());
    assert_eq!(tags(&one.ready()), "2DCZ");
}

#[test]
fn pools_come_and_go() {
    let both = || {
        config(2).user_with(
            "other",
            2,
            "auth_type = \"trust\"\nserver_username = \"postgres\"",
        )
    };
    let pooler = start(&config(2));
    let attempt = || {
        let mut wire = Wire::open(pooler.port());
        wire.send(startup(
            PROTOCOL_3_0,
            &[("user", "other"), ("database", "postgres")],
        ));
        wire.try_greeted().map(|()| wire)
    };
    assert!(attempt().is_err());
    reload(&pooler, &both());
    let mut other = attempt().expect("the pool is there");
    other.run("BEGIN");
    reload(&pooler, &config(2));
    assert!(attempt().is_err());
    // Its transaction may end; then there is nothing left for it.
    other.run("SELECT 1");
    other.run("COMMIT");
    let messages = other.query_to_end("SELECT 1");
    let error = messages.last().expect("last words");
    assert_eq!(
        error.field(b'M').unwrap(),
        "No pool configured for database: postgres, user: other"
    );
    client(&pooler).run("SELECT 1");
}

#[test]
fn a_server_that_moves_is_followed() {
    let second = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    let pooler = start(&config(2));
    let mut one = client(&pooler);
    let port = one.value("SELECT inet_server_port()");
    let moved = PoolerConfig::for_server("127.0.0.1", second.port())
        .user_with("postgres", 2, "auth_type = \"trust\"")
        .general("admin_auth_type = \"trust\"");
    reload(&pooler, &moved);
    assert_ne!(one.value("SELECT inet_server_port()"), port);
}

#[test]
fn a_password_that_the_server_has_changed() {
    let postgres = Postgres::start(15);
    let superuser = postgres.psql("postgres", "postgres");
    superuser.run(&["CREATE ROLE app LOGIN PASSWORD 'first'"]);
    let of = |password: &str| {
        PoolerConfig::new(&postgres)
            .user_with(
                "app",
                2,
                &format!("auth_type = \"trust\"\nserver_password = \"{password}\""),
            )
            .general("admin_auth_type = \"trust\"\nconnect_timeout = 15000")
    };
    let pooler = start(&of("first"));
    let connect = || Wire::connect(pooler.port(), "app", "postgres");
    let pid = |wire: &mut Wire| wire.value("SELECT pg_backend_pid()");
    let is_there = |pid: &str| {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
        superuser.run(&[&sql]) == "1\n"
    };
    let mut busy = connect();
    busy.run("BEGIN");
    let of_busy = pid(&mut busy);
    let mut idle = connect();
    let of_idle = pid(&mut idle);
    superuser.run(&["ALTER ROLE app PASSWORD 'second'"]);
    reload(&pooler, &of("second"));
    eventually("the idle connection is closed", || !is_there(&of_idle));
    idle.run("BEGIN");
    // Once more, with somebody who waits.
    let mut other = connect();
    other.run("BEGIN");
    let mut waits = connect();
    waits.send(Messages::new().query("SELECT 'waited'"));
    eventually("it waits", || {
        let clients = rows(&mut admin(&pooler, "pgcat"), "SHOW CLIENTS");
        clients.iter().any(|row| row["state"] == "waiting")
    });
    superuser.run(&["ALTER ROLE app PASSWORD 'third'"]);
    reload(&pooler, &of("third"));
    assert_eq!(tags(&waits.ready()), "TDCZ");
    // Transactions have outlived both.
    assert_eq!(pid(&mut busy), of_busy);
    for client in [&mut busy, &mut idle, &mut other] {
        client.run("COMMIT");
    }
    eventually("the old connection is closed", || !is_there(&of_busy));
    busy.run("SELECT 1");
}

/// PgCat loses the one who waits: it waits on a pool that is no more.
#[test]
fn a_reload_while_paused_leaves_nobody_behind() {
    let pooler = start(&config(2));
    let mut control = admin(&pooler, "pgbouncer");
    let mut one = client(&pooler);
    control.run("PAUSE");
    one.send(Messages::new().query("SELECT 1"));
    assert!(one.silent_for(Duration::from_millis(300)));
    reload(&pooler, &config(3));
    assert!(
        one.silent_for(Duration::from_millis(300)),
        "it is still paused"
    );
    control.run("RESUME");
    assert_eq!(tags(&one.ready()), "TDCZ");
}

#[test]
fn a_wrong_configuration_changes_nothing() {
    // Of a pool of one it is known which server connection a client gets.
    let pooler = start(&config(1));
    let mut one = client(&pooler);
    let pid = one.value("SELECT pg_backend_pid()");
    let text = config(1)
        .render(pooler.port())
        .replace("pool_size = 1", "pool_size = \"two\"");
    fs::write(pooler.config_path(), text).expect("pgcat.toml");
    let mut control = admin(&pooler, "pgbouncer");
    let messages = control.query("RELOAD");
    assert_eq!(tags(&messages), "EZ");
    let message = messages[0].field(b'M').unwrap();
    assert!(
        message.contains("pgcat.toml:") && message.contains("found \"two\""),
        "{message}"
    );
    control.run("SHOW POOLS");
    // As PgCat: the connection is closed. But it says why.
    let messages = admin(&pooler, "pgcat").query_to_end("RELOAD");
    assert_eq!(tags(&messages), "E");
    assert!(pooler.log().contains("Config reload error: "));
    assert_eq!(one.value("SELECT pg_backend_pid()"), pid);
}

#[test]
fn by_signal_and_by_itself() {
    let pooler = start(&config(2));
    write(&pooler, &config(3));
    pooler.signal("HUP");
    eventually("the signal was followed", || pool_size(&pooler) == "3");
    write(&pooler, &config(4).general("autoreload = 50"));
    pooler.signal("HUP");
    eventually("the signal was followed", || pool_size(&pooler) == "4");
    write(&pooler, &config(5).general("autoreload = 50"));
    eventually("the file is watched", || pool_size(&pooler) == "5");
}

#[test]
fn what_takes_a_restart_is_named() {
    let pooler = start(&config(2).general("worker_threads = 2"));
    reload(&pooler, &config(2).general("worker_threads = 3"));
    assert!(
        pooler
            .log()
            .contains("a restart is needed to change general.worker_threads")
    );
    let threads = row(
        &mut admin(&pooler, "pgcat"),
        "SHOW CONFIG",
        "key",
        "worker_threads",
    );
    assert_eq!(threads["value"], "2");
}

/// The plugin's worker goes over to the new pools.
#[test]
fn stream_tables_go_on() {
    let _alone = one_worker();
    let of = |size| config(size).stream_tables();
    let pooler = start(&of(4));
    let mut one = client(&pooler);
    one.run("DROP TABLE IF EXISTS reloaded CASCADE; CREATE TABLE reloaded (a int)");
    one.run("CREATE STREAM TABLE reloaded_sum AS SELECT sum(a) AS s FROM reloaded");
    reload(&pooler, &of(5));
    one.run("INSERT INTO reloaded VALUES (42)");
    eventually("it follows", || {
        client(&pooler).value("SELECT s FROM reloaded_sum") == "42"
    });
    one.run("DROP STREAM TABLE reloaded_sum");
    one.run("DROP TABLE reloaded");
}
