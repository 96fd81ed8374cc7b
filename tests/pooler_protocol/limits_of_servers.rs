//! Limits of server connections over several pools: of a database, and of a user.

use std::thread;
use std::time::Duration;

use test_support::wire::{Messages, Wire, tags};
use test_support::{Pooler, PoolerConfig};

use crate::stage::{direct, eventually, server, start};

const TRUST: &str = "auth_type = \"trust\"";
/// Roles of these tests alone.
const ROLES: [&str; 3] = ["limited_a", "limited_b", "limited_c"];

/// A pooler whose clients wait for as long as it takes.
fn pooler(configure: impl Fn(PoolerConfig) -> PoolerConfig) -> Pooler {
    for role in ROLES {
        let create = format!("CREATE ROLE {role} LOGIN");
        direct().run(&format!(
            "DO $$ BEGIN {create}; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"
        ));
    }
    let config = PoolerConfig::new(server())
        .general("connect_timeout = 60000\nadmin_auth_type = \"trust\"\nvalidate_config = false");
    start(&configure(config))
}

/// A column of a SHOW command, over the rows that begin with these values.
fn shown(pooler: &Pooler, show: &str, database: &str, user: &str, column: usize) -> Vec<String> {
    let rows = pooler.psql("admin", "pgbouncer").run(&[show]);
    let rows = rows
        .lines()
        .map(|row| row.split('|').map(str::to_owned).collect());
    rows.filter(|row: &Vec<String>| row[0] == database && row[1] == user)
        .map(|row| row[column].clone())
        .collect()
}

fn waiting(pooler: &Pooler, database: &str, user: &str) -> bool {
    shown(pooler, "SHOW POOLS", database, user, 3) == ["1"]
}

/// How many server connections the pooler has.
fn connections(pooler: &Pooler) -> usize {
    let rows = pooler.psql("admin", "pgbouncer").run(&["SHOW SERVERS"]);
    rows.lines().count()
}

fn client(pooler: &Pooler, user: &str, database: &str) -> Wire {
    Wire::connect(pooler.port(), user, database)
}

#[test]
fn an_idle_connection_makes_room_for_another_users() {
    let pooler = pooler(|config| {
        config
            .pool("max_db_connections = 2")
            .user_with(ROLES[0], 2, TRUST)
            .user_with(ROLES[1], 2, TRUST)
    });
    let mut of_a = [(); 2].map(|()| client(&pooler, ROLES[0], "postgres"));
    for client in &mut of_a {
        client.run("BEGIN");
    }
    for client in &mut of_a {
        client.run("COMMIT");
    }
    assert_eq!(connections(&pooler), 2);
    let mut of_b = client(&pooler, ROLES[1], "postgres");
    for _ in 0..5 {
        assert_eq!(of_b.value("SELECT current_user"), ROLES[1]);
        for client in &mut of_a {
            assert_eq!(client.value("SELECT current_user"), ROLES[0]);
        }
        assert!(connections(&pooler) <= 2);
    }
    // Both of them are B's now.
    of_b.run("BEGIN");
    let mut second = client(&pooler, ROLES[1], "postgres");
    second.run("BEGIN");
    assert_eq!(connections(&pooler), 2);
}

#[test]
fn a_connection_in_use_is_waited_for_in_turn() {
    let pooler = pooler(|config| {
        config
            .pool("max_db_connections = 1")
            .user_with(ROLES[0], 2, TRUST)
            .user_with(ROLES[1], 2, TRUST)
    });
    // A login asks the server for its greeting, once.
    let mut of_b = client(&pooler, ROLES[1], "postgres");
    let mut occupant = client(&pooler, ROLES[0], "postgres");
    let mut second = client(&pooler, ROLES[0], "postgres");
    occupant.run("BEGIN");
    of_b.send(Messages::new().query("BEGIN"));
    eventually("B waits", || waiting(&pooler, "postgres", ROLES[1]));
    second.send(Messages::new().query("SELECT current_user"));
    eventually("A's second client waits", || {
        waiting(&pooler, "postgres", ROLES[0])
    });
    // Who has waited for long comes first, wherever he waits.
    thread::sleep(Duration::from_millis(300));
    assert!(of_b.silent_for(Duration::from_millis(10)));
    occupant.run("COMMIT");
    assert_eq!(tags(&of_b.ready()), "CZ");
    assert!(second.silent_for(Duration::from_millis(300)));
    of_b.run("COMMIT");
    assert_eq!(tags(&second.ready()), "TDCZ");
    assert_eq!(connections(&pooler), 1);
}

#[test]
fn a_user_is_limited_over_all_databases() {
    let pooler = pooler(|config| {
        config
            .databases(&["postgres", "template1"])
            .user_with(ROLES[0], 2, &format!("{TRUST}\nmax_user_connections = 1"))
            .user_with(ROLES[1], 2, TRUST)
    });
    let mut clients = ["postgres", "template1"].map(|name| client(&pooler, ROLES[0], name));
    let mut other = client(&pooler, ROLES[1], "postgres");
    other.run("SELECT 1");
    for _ in 0..5 {
        for client in &mut clients {
            client.run("SELECT 1");
            assert!(connections(&pooler) <= 2);
        }
    }
    clients[0].run("BEGIN");
    clients[1].send(Messages::new().query("SELECT 1"));
    eventually("the other database waits", || {
        waiting(&pooler, "template1", ROLES[0])
    });
    // Nobody else is kept waiting.
    other.run("SELECT 1");
    clients[0].run("COMMIT");
    assert_eq!(tags(&clients[1].ready()), "TDCZ");
}

/// Both limits are reached, by connections that are of no use to each other.
#[test]
fn two_limits_at_once() {
    let pooler = pooler(|config| {
        config
            .databases(&["postgres", "template1"])
            .pool("max_db_connections = 1")
            .user_with(ROLES[0], 2, &format!("{TRUST}\nmax_user_connections = 1"))
            .user_with(ROLES[1], 2, &format!("{TRUST}\nmax_user_connections = 1"))
    });
    let mut clients = Vec::new();
    for (user, database) in [
        (ROLES[0], "template1"),
        (ROLES[1], "postgres"),
        (ROLES[0], "postgres"),
        (ROLES[1], "template1"),
    ] {
        let mut client = client(&pooler, user, database);
        client.run("SELECT 1");
        clients.push(client);
    }
    for client in &mut clients {
        client.run("SELECT 1");
    }
    assert!(connections(&pooler) <= 2);
}

/// Connections to be kept ready that the limit does not allow are not opened over and over, nor taken
/// from those who use them.
#[test]
fn a_minimum_above_the_limit() {
    let pooler = pooler(|config| {
        let lines = format!("{TRUST}\nmin_pool_size = 3");
        config
            .pool("max_db_connections = 2")
            .user_with(ROLES[0], 5, &lines)
            .user_with(ROLES[1], 5, &lines)
    });
    let mut of_a = client(&pooler, ROLES[0], "postgres");
    let mut of_b = client(&pooler, ROLES[1], "postgres");
    let pid = "SELECT pg_backend_pid()";
    // At first one user's minimum may have taken both, of which the other's client then takes one.
    for _ in 0..5 {
        of_a.value(pid);
        of_b.value(pid);
        thread::sleep(Duration::from_millis(300));
    }
    let pids = [of_a.value(pid), of_b.value(pid)];
    // Time for some looks at what is to be kept.
    thread::sleep(Duration::from_millis(2500));
    assert_eq!([of_a.value(pid), of_b.value(pid)], pids);
    assert_eq!(connections(&pooler), 2);
}

#[test]
fn many_clients_of_many_users() {
    let pooler = pooler(|config| {
        ROLES.iter().fold(
            config
                .general("worker_threads = 3")
                .pool("max_db_connections = 2"),
            |config, role| config.user_with(role, 2, TRUST),
        )
    });
    let port = pooler.port();
    let clients: Vec<_> = (0..12)
        .map(|n| {
            thread::spawn(move || {
                let mut wire = Wire::connect(port, ROLES[n % 3], "postgres");
                for _ in 0..30 {
                    wire.run("SELECT pg_sleep(0.001)");
                }
            })
        })
        .collect();
    let mut most = 0;
    while clients.iter().any(|client| !client.is_finished()) {
        most = most.max(connections(&pooler));
    }
    for client in clients {
        client.join().expect("a client");
    }
    assert!((1..=2).contains(&most), "{most} server connections");
    let log = pooler.log();
    assert!(!log.contains("ERROR"), "{log}");
}
