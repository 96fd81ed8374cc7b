//! A PostgreSQL connection pooler with PgCat's configuration, and an interface for plugins.
//!
//! - [`config`]: `pgcat.toml` as a typed, validated model.
//! - [`wire`]: the protocol's bytes; [`session`]: pure state machines over them.
//! - [`tls`]: what the settings of TLS mean.
//! - [`net`]: threads, sockets and the relay; [`pool`]: who has which server connection.
//! - [`plugins`]: what code outside this crate may do.
//! - `admin`: the databases `pgcat` and `pgbouncer`, by which the pooler is looked at and controlled.
//!
//! The life of a connection: [`net::run`] accepts it and gives the socket to the least loaded thread;
//! `net::client` logs it in; `net::session` serves it, where `net::relay` moves the bytes and
//! `session::ledger` knows what the server still owes.

mod admin;
pub mod calendar;
pub mod config;
mod error;
mod metrics;
pub mod net;
pub mod plugins;
mod pool;
pub mod router;
pub mod session;
pub mod tls;
pub mod wire;

pub use error::Error;
pub use net::{Load, Start, check, run};
