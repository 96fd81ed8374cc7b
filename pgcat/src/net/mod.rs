//! Sockets, threads, and the relay between clients and servers.

pub mod client;
mod dns;
mod extended;
mod frontend;
mod handled;
pub mod io;
mod listener;
mod login;
pub mod pipeline;
pub mod pool_handle;
mod relay;
pub mod server;
mod server_login;
pub mod session;
pub mod threads;
pub mod tls;

pub use listener::run;
