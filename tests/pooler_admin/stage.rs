//! What the tests are played on: one server for all, a pooler for each.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use test_support::wire::{Message, Wire};
use test_support::{Auth, Pooler, PoolerConfig, Postgres, Settings};

/// PostgreSQL 15 that trusts everybody. Ends with the process, by its watchdog.
pub fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        Postgres::start_with(
            15,
            &Settings::auth(Auth::Trust).parameter("max_connections", "400"),
        )
    })
}

/// A pool `postgres` for the user `postgres`, and an admin database that trusts everybody.
pub fn config(pool_size: u32) -> PoolerConfig {
    PoolerConfig::new(server())
        .user_with("postgres", pool_size, "auth_type = \"trust\"")
        .general("admin_auth_type = \"trust\"")
}

pub fn start(config: &PoolerConfig) -> Pooler {
    Pooler::start(env!("CARGO_BIN_EXE_pgcat"), config)
}

pub fn client(pooler: &Pooler) -> Wire {
    Wire::connect(pooler.port(), "postgres", "postgres")
}

/// A session of an admin database.
pub fn admin(pooler: &Pooler, database: &str) -> Wire {
    Wire::connect(pooler.port(), "admin", database)
}

/// A row by its columns' names.
pub type Row = BTreeMap<String, String>;

/// Names and type OIDs of a RowDescription.
pub fn described(message: &Message) -> Vec<(String, u32)> {
    assert_eq!(message.tag, b'T', "{message:?}");
    let mut rest = &message.body[2..];
    let mut columns = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|&byte| byte == 0).expect("a name");
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        let field = &rest[end + 1..];
        let oid = u32::from_be_bytes(field[6..10].try_into().expect("four bytes"));
        columns.push((name, oid));
        rest = &field[18..];
    }
    columns
}

/// The rows of a command. NULL is an empty text.
pub fn rows(session: &mut Wire, sql: &str) -> Vec<Row> {
    let messages = session.query(sql);
    let mut names = Vec::new();
    let mut rows = Vec::new();
    for message in &messages {
        match message.tag {
            b'T' => names = described(message),
            b'D' => {
                let values = message.row().into_iter().map(Option::unwrap_or_default);
                let named = names.iter().map(|(name, _)| name.clone()).zip(values);
                rows.push(named.collect());
            }
            b'E' => panic!("{sql}: {messages:?}"),
            _ => (),
        }
    }
    rows
}

/// The first row whose column has this value.
pub fn row(session: &mut Wire, sql: &str, column: &str, value: &str) -> Row {
    let rows = rows(session, sql);
    match rows.iter().find(|row| row[column] == value) {
        Some(row) => row.clone(),
        None => panic!("{sql}: no {value} in {rows:#?}"),
    }
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 15 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Held by tests of stream tables: the workers of several poolers on one database refresh each other's stream tables, and
/// each counts what it has done.
pub fn one_worker() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
