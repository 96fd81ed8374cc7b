//! Sockets, threads, and the relay between clients and servers.

mod auth_query;
pub mod client;
pub mod clock;
mod dial;
mod dns;
mod extended;
mod frontend;
mod handled;
pub mod io;
mod listener;
mod listeners;
mod login;
pub mod mirror;
pub mod notify;
pub mod orders;
mod own_writes;
pub mod pipeline;
pub mod pool_handle;
pub mod registration;
mod relay;
pub mod reload;
mod replication;
mod routing;
pub mod rows;
pub mod server;
mod server_login;
mod service_manager;
pub mod session;
mod takeover;
pub mod threads;
mod timeouts;
pub mod tls;
mod unix_socket;

pub use listener::{Start, run};
pub use reload::Load;
pub use threads::check;
