//! Private PostgreSQL servers and poolers for tests.
//!
//! ```no_run
//! # async fn example() {
//! use test_support::{Pooler, PoolerConfig, Postgres};
//! let postgres = Postgres::start(15);
//! let config = PoolerConfig::new(&postgres).user("postgres", 4).stream_tables();
//! let pooler = Pooler::start("target/debug/pgcat", &config);
//! let client = pooler.client("postgres", "postgres").await;
//! client.batch_execute("SELECT 1").await.unwrap();
//! # }
//! ```
//!
//! Every server gets its own directory, port and watchdog, so tests run in parallel, and nothing is
//! left behind even by a test process that is killed. Helpers panic: in a test there is nobody to
//! hand an error to.

mod certificates;
mod config;
mod connect;
mod install;
mod pgbouncer;
mod pooler;
mod postgres;
mod process;
mod psql;
mod stack;
mod statements;
pub mod wire;
pub mod workload;

pub use certificates::{Authority, Certificate};
pub use config::PoolerConfig;
pub use connect::{connect, try_connect};
pub use install::{bin_dir, client_program, majors};
pub use pgbouncer::PgBouncer;
pub use pooler::{Pooler, Retired};
pub use postgres::{Auth, Postgres, Settings};
pub use process::{cpu_time, free_port, memory};
pub use psql::{Psql, PsqlOutput};
pub use stack::{
    Stack, catalog_row, converges, converges_as, differences, refused, scalar, sessions,
};
pub use statements::{EVERYTHING, statement_stack};
