//! The servers the benchmark runs on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use test_support::{Auth, Certificate, Pooler, PoolerConfig, Postgres, Settings};
use tokio_postgres::Client;

pub const MAJOR: u32 = 15;

/// As in production: commits are durable. Memory for the data to be in, so that the figures are those
/// of the software and not of the disk.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
    ("max_connections", "1200"),
    ("log_min_messages", "error"),
];

pub const SETTINGS_SHOWN: &str =
    "fsync, synchronous_commit and full_page_writes on, shared_buffers 1GB";

/// A server that trusts everybody: logging in is not what is measured.
pub fn server() -> Postgres {
    let settings = SETTINGS
        .iter()
        .fold(Settings::auth(Auth::Trust), |settings, (name, value)| {
            settings.parameter(name, value)
        });
    Postgres::start_with(MAJOR, &settings)
}

/// The pooler that was built along with this program.
pub fn pooler(server: &Postgres, pool_size: u32, stream_tables: bool, threads: u32) -> Pooler {
    let config = config(server, pool_size, threads);
    let config = if stream_tables {
        config.stream_tables()
    } else {
        config
    };
    Pooler::start(binary(), &config)
}

/// The same for clients with TLS.
pub fn tls_pooler(server: &Postgres, pool_size: u32, certificate: &Certificate) -> Pooler {
    let config = config(server, pool_size, 1)
        .general(&format!(
            "tls_certificate = \"{}\"",
            certificate.certificate.display()
        ))
        .general(&format!(
            "tls_private_key = \"{}\"",
            certificate.key.display()
        ));
    Pooler::start(binary(), &config)
}

fn config(server: &Postgres, pool_size: u32, threads: u32) -> PoolerConfig {
    PoolerConfig::new(server)
        .general(&format!("worker_threads = {threads}"))
        .general("connect_timeout = 60000")
        .user_with("postgres", pool_size, "auth_type = \"trust\"")
}

fn binary() -> PathBuf {
    let mut path = std::env::current_exe().expect("this program's path");
    path.set_file_name("pgcat");
    assert!(path.exists(), "{} is missing", path.display());
    path
}

pub async fn direct(server: &Postgres) -> Client {
    server.client("postgres", "postgres").await
}

pub async fn pooled(pooler: &Pooler) -> Client {
    pooler.client("postgres", "postgres").await
}

/// Runs statements that must succeed.
///
/// # Panics
/// With the server's error.
pub async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{sql}: {error:?}");
    }
}

/// How long statements take that must succeed.
pub async fn time(client: &Client, sql: &str) -> Duration {
    let began = Instant::now();
    run(client, sql).await;
    began.elapsed()
}

/// A wrong table is not fast.
///
/// # Panics
/// If the stream table is not its query.
pub async fn assert_equal(client: &Client, table: &str, query: &str) {
    let sql = format!(
        "WITH query AS MATERIALIZED ({query}) SELECT count(*)
         FROM ((TABLE {table} EXCEPT ALL TABLE query) UNION ALL (TABLE query EXCEPT ALL TABLE {table})) d"
    );
    let row = client.query_one(&sql, &[]).await.expect("comparison");
    let different: i64 = row.get(0);
    assert_eq!(different, 0, "rows of {table} that differ from its query");
}
