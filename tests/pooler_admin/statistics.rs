//! What is counted, and who is seen doing what.

use test_support::Pooler;
use test_support::wire::{Messages, Wire};

use crate::stage::{Row, admin, client, config, eventually, row, rows, server, start};

fn number(row: &Row, column: &str) -> u64 {
    row[column]
        .parse()
        .unwrap_or_else(|_| panic!("{column}: {row:?}"))
}

fn stats(pooler: &Pooler) -> Row {
    row(
        &mut admin(pooler, "pgbouncer"),
        "SHOW STATS",
        "database",
        "postgres",
    )
}

#[test]
fn transactions_and_queries_are_counted() {
    let pooler = start(&config(2));
    let mut one = client(&pooler);
    let before = stats(&pooler);
    for _ in 0..3 {
        one.run("BEGIN");
        one.run("SELECT 1");
        one.run("COMMIT");
    }
    one.run("SELECT 1; SELECT 2");
    // A pipeline of two.
    one.send(
        Messages::new()
            .statement("SELECT 1")
            .sync()
            .statement("SELECT 2")
            .sync(),
    );
    one.ready();
    one.ready();
    let after = stats(&pooler);
    let grown = |column: &str| number(&after, column) - number(&before, column);
    assert_eq!(grown("total_query_count"), 3 * 3 + 1 + 2);
    assert_eq!(grown("total_xact_count"), 3 + 1 + 2);
    // Received from the client, sent to it: a Query has 5 bytes beside its text and a NUL.
    let simple = 3 * ("BEGINSELECT 1COMMIT".len() + 18) + "SELECT 1; SELECT 2".len() + 6;
    assert!(grown("total_received") >= simple as u64, "{after:?}");
    assert!(grown("total_sent") > grown("total_received"), "{after:?}");
    let totals = row(
        &mut admin(&pooler, "pgcat"),
        "SHOW STATS",
        "instance",
        "postgres_shard_0_primary",
    );
    assert_eq!(totals["total_query_count"], after["total_query_count"]);
    assert_eq!(
        totals["total_received"], after["total_sent"],
        "PgCat's is from the server"
    );
    // The counters are the pool's, not those of connections that exist now.
    let pid = one.value("SELECT pg_backend_pid()");
    let mut direct = Wire::connect(server().port(), "postgres", "postgres");
    direct.run(&format!("SELECT pg_terminate_backend({pid})"));
    let next = stats(&pooler);
    assert!(number(&next, "total_query_count") > number(&after, "total_query_count"));
}

#[test]
fn times_are_those_of_queries_transactions_and_waits() {
    let pooler = start(&config(1).general("connect_timeout = 60000"));
    let mut one = client(&pooler);
    let before = stats(&pooler);
    one.run("BEGIN");
    one.run("SELECT pg_sleep(0.2)");
    let mut two = client(&pooler);
    two.send(Messages::new().query("SELECT 1"));
    eventually("the second client waits", || {
        number(&stats(&pooler), "total_query_count") > 0
            && rows(&mut admin(&pooler, "pgcat"), "SHOW CLIENTS")
                .iter()
                .any(|client| client["state"] == "waiting")
    });
    std::thread::sleep(std::time::Duration::from_millis(200));
    let pools = row(
        &mut admin(&pooler, "pgbouncer"),
        "SHOW POOLS",
        "database",
        "postgres",
    );
    assert_eq!(
        (&*pools["cl_waiting"], &*pools["cl_active"]),
        ("1", "1"),
        "{pools:?}"
    );
    assert!(
        number(&pools, "maxwait") > 0 || number(&pools, "maxwait_us") >= 100_000,
        "{pools:?}"
    );
    one.run("COMMIT");
    two.ready();
    let after = stats(&pooler);
    let grown = |column: &str| number(&after, column) - number(&before, column);
    assert!(grown("total_query_time") >= 200_000, "{after:?}");
    assert!(grown("total_xact_time") >= 400_000, "{after:?}");
    assert!(grown("total_wait_time") >= 200_000, "{after:?}");
    // The transaction was idle for a while.
    assert!(
        grown("total_xact_time") >= grown("total_query_time") + 100_000,
        "{after:?}"
    );
}

#[test]
fn clients_and_servers_are_seen() {
    // Without the connection that a start opens: there are only those that clients need.
    let pooler = start(&config(3).general("validate_config = false"));
    let mut one = Wire::connect_with(
        pooler.port(),
        &[
            ("user", "postgres"),
            ("database", "postgres"),
            ("application_name", "first"),
        ],
    );
    one.run("SELECT 1");
    one.run("BEGIN");
    assert_eq!(one.error("SELECT nonsense"), "42703");
    let mut idle = client(&pooler);
    idle.run("SET application_name = 'second'");
    eventually("the pooler has asked the server for the new name", || {
        let clients = rows(&mut admin(&pooler, "pgcat"), "SHOW CLIENTS");
        clients
            .iter()
            .any(|row| row["application_name"] == "second" && row["state"] == "idle")
    });
    let mut pgcat = admin(&pooler, "pgcat");
    let clients = rows(&mut pgcat, "SHOW CLIENTS");
    let of = |name: &str| {
        clients
            .iter()
            .find(|row| row["application_name"] == name)
            .unwrap()
    };
    assert_eq!(of("first")["state"], "active");
    assert_eq!(of("first")["transaction_count"], "1");
    assert_eq!(of("first")["query_count"], "3");
    assert_eq!(of("first")["error_count"], "1");
    assert_eq!(of("second")["state"], "idle");
    assert_eq!(clients.len(), 3, "the administrator is one: {clients:?}");
    let servers = rows(&mut pgcat, "SHOW SERVERS");
    assert_eq!(servers.len(), 2, "{servers:?}");
    let active = servers.iter().find(|row| row["state"] == "active").unwrap();
    assert_eq!(active["application_name"], "first");
    assert_eq!(active["address_id"], "postgres_shard_0_primary");
    let pool = row(&mut pgcat, "SHOW POOLS", "database", "postgres");
    let counts = ["cl_idle", "cl_active", "cl_waiting", "sv_active", "sv_idle"].map(|c| &*pool[c]);
    assert_eq!(counts, ["1", "1", "0", "1", "1"], "{pool:?}");

    let mut pgbouncer = admin(&pooler, "pgbouncer");
    let clients = rows(&mut pgbouncer, "SHOW CLIENTS");
    let of = |name: &str| {
        clients
            .iter()
            .find(|row| row["application_name"] == name)
            .unwrap()
    };
    let servers = rows(&mut pgbouncer, "SHOW SERVERS");
    let linked = servers
        .iter()
        .find(|row| row["ptr"] == of("first")["link"])
        .unwrap();
    assert_eq!(linked["link"], of("first")["ptr"]);
    assert_eq!(linked["state"], "active");
    // The row leads to the backend, and to both ends of the connections.
    one.run("ROLLBACK");
    let backend = one.value("SELECT pg_backend_pid()");
    assert!(
        servers.iter().any(|row| row["remote_pid"] == backend),
        "{servers:?}"
    );
    assert_eq!(of("first")["addr"], "127.0.0.1");
    assert_eq!(of("first")["local_port"], pooler.port().to_string());
    assert_eq!(linked["port"], crate::stage::server().port().to_string());
    let lists = |name: &str| row(&mut admin(&pooler, "pgbouncer"), "SHOW LISTS", "list", name);
    assert_eq!(lists("pools")["items"], "2");
    assert_eq!(lists("free_servers")["items"], "2");
    drop(one);
    eventually("a client who has left is not shown", || {
        let clients = rows(&mut admin(&pooler, "pgcat"), "SHOW CLIENTS");
        clients.iter().all(|row| row["application_name"] != "first")
    });
}

#[test]
fn prepared_statements_are_listed() {
    let pooler = start(&config(1));
    let mut one = client(&pooler);
    one.send(Messages::new().parse("mine", "SELECT 42 AS answer").sync());
    one.ready();
    let statements = rows(&mut admin(&pooler, "pgcat"), "SHOW PREPARED_STATEMENTS");
    assert!(
        statements
            .iter()
            .any(|row| row["statement"] == "SELECT 42 AS answer"),
        "{statements:?}"
    );
    let of = |show: &str| {
        row(
            &mut admin(&pooler, "pgbouncer"),
            show,
            "database",
            "postgres",
        )
    };
    assert_eq!(of("SHOW CLIENTS")["prepared_statements"], "1");
    assert_eq!(of("SHOW SERVERS")["prepared_statements"], "1");
}
