//! Servers that fail, and come back.

use std::thread;
use std::time::Duration;

use test_support::wire::{Messages, Wire, sqlstate, tags};
use test_support::{Auth, PoolerConfig, Postgres, Settings};

use crate::stage::{client, config_of, eventually, own_server, start, tally};

fn direct(server: &Postgres) -> Wire {
    Wire::connect(server.port(), "postgres", "postgres")
}

const PORT: &str = "SELECT current_setting('port')";

/// A server that cannot be reached fails nobody while another serves.
#[test]
fn an_unreachable_server_is_passed_over() {
    let (mut down, up) = (own_server(), own_server());
    down.stop();
    let pooler = start(&config_of(&[(&down, "replica"), (&up, "replica")]));
    let mut client = client(&pooler);
    for _ in 0..50 {
        assert_eq!(client.value("SELECT 1"), "1");
    }
    assert!(pooler.log().contains("is banned"), "{}", pooler.log());
}

/// A replica that was killed is banned, and used again when the ban is over and it answers.
#[test]
fn a_replica_that_comes_back_is_used_again() {
    let (mut first, second) = (own_server(), own_server());
    let config = config_of(&[(&first, "replica"), (&second, "replica")]);
    let pooler = start(&config.general("ban_time = 1"));
    let mut client = client(&pooler);
    eventually("both are in use", || {
        tally(&mut client, PORT, 20).len() == 2
    });
    first.kill9();
    // The connections that existed are known to be dead before anything is sent on them.
    thread::sleep(Duration::from_millis(300));
    for _ in 0..50 {
        assert_eq!(client.value(PORT), second.port().to_string());
    }
    first.restart();
    eventually("both are in use", || {
        tally(&mut client, PORT, 20).len() == 2
    });
}

/// A server that hangs is found out by the health check, and whoever asks is served by another.
#[test]
fn a_frozen_replica_is_passed_over() {
    let (frozen, other) = (own_server(), own_server());
    let config = config_of(&[(&frozen, "replica"), (&other, "replica")])
        .general("healthcheck_delay = 0")
        .general("healthcheck_timeout = 300")
        .general("connect_timeout = 300");
    let pooler = start(&config);
    let mut client = client(&pooler);
    eventually("both are in use", || {
        tally(&mut client, PORT, 20).len() == 2
    });
    frozen.freeze();
    for _ in 0..50 {
        assert_eq!(client.value(PORT), other.port().to_string());
    }
    assert!(pooler.log().contains("is banned"), "{}", pooler.log());
    frozen.thaw();
}

/// PgCat bans a replica whose connections are all in use (research, probe 35), whose query ran into a
/// timeout, or whose backend was terminated.
#[test]
fn what_clients_do_bans_no_server() {
    let (first, second) = (own_server(), own_server());
    let config =
        config_of(&[(&first, "replica"), (&second, "replica")]).general("connect_timeout = 300");
    let pooler = start(&config);
    let mut occupants: Vec<Wire> = (0..8).map(|_| client(&pooler)).collect();
    for occupant in &mut occupants {
        occupant.run("BEGIN");
    }
    let mut waiting = client(&pooler);
    assert_eq!(waiting.error("SELECT 1"), "58000");
    for occupant in &mut occupants {
        occupant.run("ROLLBACK");
    }
    waiting.run("SET statement_timeout = '50ms'");
    assert_eq!(waiting.error("SELECT pg_sleep(10)"), "57014");
    waiting.run("RESET statement_timeout");
    assert_eq!(waiting.error("SELECT 1/0"), "22012");
    let mut victim = client(&pooler);
    victim.try_send(Messages::new().query("SELECT pg_terminate_backend(pg_backend_pid())"));
    victim.replies();
    assert_eq!(tally(&mut waiting, PORT, 60).len(), 2);
    assert!(!pooler.log().contains("is banned"), "{}", pooler.log());
}

/// PgCat bans the replica then, and lets the statement run on (probe 36).
#[test]
fn a_statement_that_takes_too_long_bans_no_server() {
    let (first, second) = (own_server(), own_server());
    let config =
        config_of(&[(&first, "replica"), (&second, "replica")]).general("statement_timeout = 500");
    let pooler = start(&config);
    let mut client = client(&pooler);
    for _ in 0..4 {
        let messages = client.query("SELECT pg_sleep(100)");
        assert_eq!(tags(&messages), "TEZ", "{messages:?}");
        assert_eq!(sqlstate(&messages), "57014");
    }
    for server in [&first, &second] {
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(100)' AND state = 'active'";
        assert_eq!(direct(server).value(running), "0");
    }
    assert_eq!(tally(&mut client, PORT, 60).len(), 2);
    assert!(!pooler.log().contains("is banned"), "{}", pooler.log());
}

/// PgCat goes on answering AllServersDown for as long as the bans last (issues 857, 921).
#[test]
fn all_servers_down_and_up_again() {
    let (mut first, mut second) = (own_server(), own_server());
    let config = config_of(&[(&first, "replica"), (&second, "replica")]).general("ban_time = 3600");
    let pooler = start(&config);
    let mut client = client(&pooler);
    first.kill9();
    second.kill9();
    thread::sleep(Duration::from_millis(300));
    let messages = client.query("SELECT 1");
    assert_eq!(tags(&messages), "EZ");
    assert_eq!(sqlstate(&messages), "58000");
    second.restart();
    assert_eq!(client.value(PORT), second.port().to_string());
    // Having served, it is no longer banned; the other still is.
    let log = pooler.log();
    assert!(log.contains("reachable again"), "{log}");
    first.restart();
    assert_eq!(tally(&mut client, PORT, 20).len(), 1);
}

/// A primary has no substitute: it is tried again and again.
#[test]
fn a_primary_is_never_banned() {
    let (mut primary, replica) = (own_server(), own_server());
    let config = config_of(&[(&primary, "primary"), (&replica, "replica")])
        .pool("default_role = \"primary\"")
        .general("ban_time = 3600");
    let pooler = start(&config);
    let mut client = client(&pooler);
    client.run("SELECT 1");
    primary.kill9();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(client.error(PORT), "58000");
    primary.restart();
    assert_eq!(client.value(PORT), primary.port().to_string());
}

/// Unless the pool allows it, the primary does not get the load of replicas that are down.
#[test]
fn reads_fail_over_to_the_primary_if_allowed() {
    for allowed in [false, true] {
        let (primary, mut replica) = (own_server(), own_server());
        let config = config_of(&[(&primary, "primary"), (&replica, "replica")])
            .pool("default_role = \"replica\"")
            .pool(&format!("replica_to_primary_failover_enabled = {allowed}"))
            .general("ban_time = 1");
        let pooler = start(&config);
        let mut client = client(&pooler);
        assert_eq!(client.value(PORT), replica.port().to_string());
        replica.kill9();
        thread::sleep(Duration::from_millis(300));
        if allowed {
            assert_eq!(client.value(PORT), primary.port().to_string());
        } else {
            assert_eq!(client.error(PORT), "58000");
        }
        replica.restart();
        eventually("the replica serves", || {
            client.value(PORT) == replica.port().to_string()
        });
    }
}

#[test]
fn a_client_that_fails_too_often_is_disconnected() {
    let mut server = own_server();
    let config = config_of(&[(&server, "primary")]).pool("checkout_failure_limit = 3");
    let pooler = start(&config);
    let mut client = client(&pooler);
    server.kill9();
    thread::sleep(Duration::from_millis(300));
    for _ in 0..2 {
        assert_eq!(tags(&client.query("SELECT 1")), "EZ");
    }
    client.send(Messages::new().query("SELECT 1"));
    let messages = client.end();
    assert_eq!(tags(&messages), "EZE");
    assert_eq!(
        messages[2].field(b'M').as_deref(),
        Some("checkout failure limit reached (3 / 3)")
    );
}

/// A connection that was lost while idle fails no client, without a ban.
#[test]
fn a_lost_idle_connection_is_replaced() {
    let server = own_server();
    let config = config_of(&[(&server, "primary")]).general("healthcheck_delay = 0");
    let pooler = start(&config);
    let mut client = client(&pooler);
    for _ in 0..5 {
        let pid = client.value("SELECT pg_backend_pid()");
        direct(&server).run(&format!("SELECT pg_terminate_backend({pid})"));
        assert_ne!(client.value("SELECT pg_backend_pid()"), pid);
    }
}

/// The server's own words reach the client, and a refused login is not repeated by every request.
#[test]
fn a_refused_login_is_paced() {
    let server = Postgres::start_with(
        15,
        &Settings::auth(Auth::Scram).parameter("log_min_messages", "fatal"),
    );
    let config = PoolerConfig::new(&server)
        .user_with(
            "postgres",
            2,
            "auth_type = \"trust\"\nserver_password = \"wrong\"",
        )
        .general("validate_config = false");
    let pooler = start(&config);
    for _ in 0..100 {
        let mut wire = Wire::open(pooler.port());
        wire.send(test_support::wire::startup(
            test_support::wire::PROTOCOL_3_0,
            &[("user", "postgres"), ("database", "postgres")],
        ));
        let messages = wire.end();
        let detail = messages[0].field(b'D').unwrap_or_default();
        assert!(
            detail.contains("password authentication failed"),
            "{messages:?}"
        );
    }
    let refused = server
        .log()
        .matches("password authentication failed")
        .count();
    assert!(refused < 50, "{refused} logins for 100 clients");
}

#[test]
fn the_primary_is_found_and_found_again() {
    let primary = own_server();
    let mut old = primary;
    let standby = old.standby();
    let config = config_of(&[(&standby, "auto"), (&old, "auto")])
        .pool("default_role = \"primary\"")
        .general("connect_timeout = 20000");
    let pooler = start(&config);
    let mut client = client(&pooler);
    for _ in 0..20 {
        assert_eq!(client.value(PORT), old.port().to_string());
    }
    client.run("CREATE TABLE t (a int)");
    old.kill9();
    thread::sleep(Duration::from_millis(300));
    standby.promote();
    // The wait for the new primary is the client's, and no error.
    client.run("INSERT INTO t VALUES (1)");
    assert_eq!(client.value(PORT), standby.port().to_string());
}

#[test]
fn a_standby_with_role_auto_serves_reads() {
    let primary = own_server();
    let standby = primary.standby();
    let config =
        config_of(&[(&primary, "auto"), (&standby, "auto")]).pool("default_role = \"replica\"");
    let pooler = start(&config);
    let mut client = client(&pooler);
    for _ in 0..20 {
        assert_eq!(client.value("SELECT pg_is_in_recovery()"), "t");
    }
    standby.promote();
    drop(primary);
    // Nothing is a replica now, but everything that is there can read.
    eventually("somebody serves", || {
        tags(&client.query("SELECT 1")) == "TDCZ"
    });
}

#[test]
fn min_pool_size_is_kept() {
    let mut server = own_server();
    let config = PoolerConfig::new(&server).user_with(
        "postgres",
        5,
        "auth_type = \"trust\"\nmin_pool_size = 3",
    );
    let pooler = start(&config);
    let count = |server: &Postgres| {
        direct(server).value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
    };
    eventually("three connections", || count(&server) == "3");
    server.stop();
    eventually("the pooler has looked for it", || {
        pooler.log().contains("ERROR")
    });
    server.restart();
    eventually("three connections", || count(&server) == "3");
}
