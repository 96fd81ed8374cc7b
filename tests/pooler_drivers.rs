//! Real drivers and pgbench through the pooler. `tests/drivers/run` installs the drivers.

use std::path::Path;
use std::process::Command;

use test_support::{Pooler, PoolerConfig, Postgres};

/// A server with a database `app` of the plain role `app`, and a pooler in front whose clients log in
/// by SCRAM.
fn stack(pool_size: u32) -> (Postgres, Pooler) {
    let postgres = Postgres::start(15);
    postgres.psql("postgres", "postgres").run(&[
        "CREATE ROLE app LOGIN PASSWORD 'app'",
        "CREATE DATABASE app OWNER app",
    ]);
    postgres
        .psql("postgres", "app")
        .run(&["ALTER SCHEMA public OWNER TO app"]);
    let config = PoolerConfig::new(&postgres)
        .databases(&["app"])
        .user_with("app", pool_size, "auth_type = \"scram-sha-256\"")
        .general("connect_timeout = 30000")
        .stream_tables();
    let pooler = Pooler::start(env!("CARGO_BIN_EXE_pgcat"), &config);
    (postgres, pooler)
}

fn driver(name: &str) {
    let (postgres, pooler) = stack(5);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers/run");
    let output = Command::new(script)
        .arg(name)
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", pooler.port().to_string())
        .env("DIRECT_PORT", postgres.port().to_string())
        .env("PGUSER", "app")
        .env("PGPASSWORD", "app")
        .env("PGDATABASE", "app")
        .output()
        .expect("tests/drivers/run");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {}", output.status);
    // A program that is empty proves nothing.
    assert!(text.lines().filter(|line| line.starts_with("ok ")).count() >= 8);
}

#[test]
fn psycopg() {
    driver("psycopg");
}

#[test]
fn asyncpg() {
    driver("asyncpg");
}

#[test]
fn node_postgres() {
    driver("node");
}

/// Every protocol of pgbench, read-only and TPC-B, with fewer and with more clients than servers:
/// no transaction fails, and the balances agree at the end.
///
/// Each client has a thread of its own, because pgbench prepares in a blocking call: with clients that
/// share a thread, one that waits for a server would keep the others from ending their transactions.
#[test]
fn pgbench() {
    let (_postgres, pooler) = stack(10);
    let psql = pooler.psql("app", "app");
    let bench = |arguments: &[&str]| {
        let output = psql.program("pgbench", arguments);
        assert!(
            output.success,
            "pgbench {arguments:?}:\n{}{}",
            output.stdout, output.stderr
        );
        assert!(
            !output.stderr.contains("error") && !output.stderr.contains("abort"),
            "pgbench {arguments:?}:\n{}",
            output.stderr
        );
        output.stdout
    };
    bench(&["-i", "-s", "10", "-q"]);
    for protocol in ["simple", "extended", "prepared"] {
        for clients in ["1", "16", "100"] {
            for script in ["select-only", "tpcb-like"] {
                let text = bench(&[
                    "-n", "-b", script, "-M", protocol, "-c", clients, "-j", clients, "-T", "2",
                ]);
                let processed = text
                    .lines()
                    .find_map(|line| {
                        line.strip_prefix("number of transactions actually processed: ")
                    })
                    .unwrap_or_else(|| panic!("{text}"));
                assert_ne!(processed, "0", "{script} {protocol} {clients}");
                assert!(
                    text.contains("number of failed transactions: 0 "),
                    "{script} {protocol} {clients}:\n{text}"
                );
            }
        }
    }
    let sums = psql.run(&[
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
            AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)",
    ]);
    assert_eq!(sums.trim(), "t");
}
