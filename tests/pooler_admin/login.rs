//! Who is let in.

use test_support::wire::{PROTOCOL_3_0, Wire, sqlstate, startup};
use test_support::{PoolerConfig, Psql};

use crate::stage::{server, start};

fn config() -> PoolerConfig {
    PoolerConfig::new(server())
        .user("postgres", 2)
        .user("watcher", 1)
}

fn psql(port: u16, user: &str, database: &str, password: &str) -> Psql {
    Psql::new("127.0.0.1", port, user, database).password(password)
}

#[test]
fn the_administrator_by_md5_and_scram() {
    for auth_type in ["md5", "scram-sha-256"] {
        let line = format!("admin_auth_type = \"{auth_type}\"");
        let pooler = start(&config().general(&line));
        for database in ["pgcat", "pgbouncer"] {
            let port = pooler.port();
            let version = psql(port, "admin", database, "admin").run(&["SHOW VERSION"]);
            assert!(version.to_lowercase().starts_with(database), "{version}");
            for (user, password) in [
                ("admin", "wrong"),
                ("nobody", "admin"),
                ("postgres", "postgres"),
            ] {
                let output = psql(port, user, database, password).try_run(&["SHOW VERSION"]);
                assert!(!output.success);
                let message = format!("password authentication failed for user \"{user}\"");
                assert!(output.stderr.contains(&message), "{}", output.stderr);
            }
        }
    }
}

#[test]
fn users_of_pools_who_are_named() {
    let pooler = start(
        &config()
            .general("admin_users = [\"postgres\"]")
            .general("stats_users = [\"watcher\"]"),
    );
    let admin = psql(pooler.port(), "postgres", "pgbouncer", "postgres");
    admin.run(&["SHOW POOLS"]);
    let watcher = psql(pooler.port(), "watcher", "pgbouncer", "watcher");
    watcher.run(&["SHOW STATS"]);
    for command in ["RELOAD", "PAUSE", "SHUTDOWN", "KILL postgres"] {
        let output = watcher.try_run(&[command]);
        assert!(
            output.stderr.contains("admin access needed"),
            "{command}: {}",
            output.stderr
        );
    }
    let wrong = psql(pooler.port(), "watcher", "pgbouncer", "wrong").try_run(&["SHOW STATS"]);
    assert!(!wrong.success);
}

#[test]
fn without_an_administrator_there_is_no_admin_database() {
    let pooler = test_support::Pooler::start_text(env!("CARGO_BIN_EXE_pgcat"), |port| {
        let text = config().render(port);
        let lines = text.lines().filter(|line| !line.starts_with("admin_"));
        lines.map(|line| format!("{line}\n")).collect()
    });
    let mut wire = Wire::open(pooler.port());
    wire.send(startup(
        PROTOCOL_3_0,
        &[("user", "admin"), ("database", "pgcat")],
    ));
    assert_eq!(sqlstate(&wire.end()), "58000");
}
