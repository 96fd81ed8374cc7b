//! Real drivers through the pooler, in transaction mode and with fewer servers than clients.
//!
//! Those of other languages are programs in `tests/drivers`, installed and run by `tests/drivers/run`; those of Rust
//! are modules here.

mod pgbench;
mod programs;
mod rust_sqlx;
mod rust_tokio_postgres;
mod stage;
