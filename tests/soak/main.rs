//! Hours in a minute: clients that come, work, check every answer and leave in every way, while
//! servers are killed, the configuration is reloaded, and the pool is paused and reconnected. At the end
//! nothing has leaked.
//!
//! `SOAK_SECONDS` is the length (default 20), `SOAK_CLIENTS` how many clients there are at a time
//! (default 40), `SOAK_SEED` the seed.

mod client;
mod control;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use test_support::wire::{Wire, tags};
use test_support::{Auth, Pooler, Postgres, Settings};

/// Server connections of the two pools, at most.
const SERVERS: usize = control::LARGEST + SESSIONS;
/// Of the pool in session mode.
const SESSIONS: usize = 4;

/// What happened.
#[derive(Debug, Default)]
pub struct Tally {
    connections: AtomicU64,
    answers: AtomicU64,
    /// Connections lost to a killed server or by an administrator's order.
    lost: AtomicU64,
    kills: AtomicU64,
    reloads: AtomicU64,
    pauses: AtomicU64,
    reconnects: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value:?}")))
}

fn config(server: &Postgres, port: u16, pool_size: usize) -> String {
    let pool = |name: &str, mode: &str, size: usize| {
        format!(
            "[pools.{name}]\npool_mode = \"{mode}\"\nprepared_statements_cache_size = 20\n\
             [pools.{name}.users.0]\nusername = \"soak\"\nauth_type = \"trust\"\npool_size = {size}\n\
             [pools.{name}.shards.0]\nservers = [[\"127.0.0.1\", {}, \"primary\"]]\ndatabase = \"postgres\"\n",
            server.port()
        )
    };
    format!(
        "[general]\nhost = \"127.0.0.1\"\nport = {port}\nadmin_username = \"admin\"\nadmin_password = \"admin\"\n\
         admin_auth_type = \"trust\"\nconnect_timeout = 60000\nworker_threads = 2\n{}{}",
        pool("transactions", "transaction", pool_size),
        pool("sessions", "session", SESSIONS)
    )
}

/// Resident memory of a process, in bytes.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let status = status.expect("the pooler runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kilobytes.expect("VmRSS") * 1024
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Lines of the log that a soak explains: logins and connections cut short by `pg_terminate_backend`.
fn is_expected(line: &str) -> bool {
    [
        "terminating connection due to administrator command",
        "57P01",
        "unexpected end of file",
        "reset by peer",
        "Broken pipe",
    ]
    .iter()
    .any(|reason| line.contains(reason))
}

#[test]
fn clients_come_and_go() {
    let length = Duration::from_secs(from_environment("SOAK_SECONDS").unwrap_or(20));
    let clients = from_environment("SOAK_CLIENTS").unwrap_or(40);
    let seed = from_environment("SOAK_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    println!("SOAK_SEED={seed}");
    let settings = Settings::auth(Auth::Trust)
        .parameter("max_connections", "200")
        .parameter("log_min_messages", "panic");
    let server = Postgres::start_with(15, &settings);
    let direct = || Wire::connect(server.port(), "postgres", "postgres");
    direct().run(
        "CREATE ROLE soak LOGIN;
         CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
         INSERT INTO accounts SELECT n, 1000 FROM generate_series(1, 50) n;
         GRANT ALL ON accounts TO soak; GRANT CREATE, USAGE ON SCHEMA public TO soak",
    );
    let pooler = Pooler::start_text(env!("CARGO_BIN_EXE_pgcat"), |port| {
        config(&server, port, control::LARGEST)
    });
    let tally = Tally::default();
    let done = AtomicBool::new(false);
    let began = Instant::now();
    let (early, early_connections) = thread::scope(|scope| {
        let workers: Vec<_> = (0..clients)
            .map(|number| {
                let (tally, done, port) = (&tally, &done, pooler.port());
                thread::Builder::new()
                    .stack_size(512 << 10)
                    .spawn_scoped(scope, move || client::live(port, number, seed, tally, done))
                    .expect("a thread")
            })
            .collect();
        let controller = scope.spawn(|| control::run(&server, &pooler, seed, &tally, &done));
        thread::sleep(length / 3);
        let early = (
            memory(pooler.pid()),
            tally.connections.load(Ordering::Relaxed),
        );
        while began.elapsed() < length
            && !controller.is_finished()
            && workers.iter().all(|worker| !worker.is_finished())
        {
            thread::sleep(Duration::from_millis(50));
        }
        done.store(true, Ordering::Relaxed);
        controller.join().expect("the controller");
        for worker in workers {
            worker.join().expect("a client");
        }
        early
    });
    println!("{length:?}, {clients} clients at a time: {tally:?}");
    let mut admin = Wire::connect(pooler.port(), "admin", "pgcat");
    let mut rows = |sql: &str, of: &str| {
        let messages = admin.query(sql);
        let rows = messages.iter().filter(|message| message.tag == b'D');
        rows.filter(|row| row.row().iter().flatten().any(|value| value == of))
            .count()
    };
    eventually("no client is left", || rows("SHOW CLIENTS", "soak") == 0);
    eventually("the pooler and the server agree on the connections", || {
        let at_server = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'soak'";
        let known = rows("SHOW SERVERS", "soak");
        known <= SERVERS && direct().value(at_server) == known.to_string()
    });
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'soak' AND state <> 'idle'";
    eventually("no transaction is left", || direct().value(idle) == "0");
    assert_eq!(direct().value("SELECT sum(balance) FROM accounts"), "50000");
    // All of the pool can be had at once.
    let mut occupants: Vec<Wire> = (0..control::LARGEST)
        .map(|_| Wire::connect(pooler.port(), "soak", "transactions"))
        .collect();
    for occupant in &mut occupants {
        assert_eq!(tags(&occupant.query("BEGIN")), "CZ");
    }
    drop(occupants);
    let grown = memory(pooler.pid()).saturating_sub(early);
    let connections = tally.connections.load(Ordering::Relaxed) - early_connections;
    println!(
        "memory {early} bytes after a third, {grown} more after {connections} more connections"
    );
    assert!(
        grown < (3 << 20) + 512 * connections,
        "{grown} bytes more for {connections} connections"
    );
    let log = pooler.log();
    assert!(!log.contains("panicked"), "{log}");
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("ERROR") && !is_expected(line))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    assert!(tally.answers.load(Ordering::Relaxed) > 10 * clients);
}
