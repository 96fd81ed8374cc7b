//! Pure state machines of a session: no sockets, no tokio.

pub mod auth;
pub mod ledger;
pub mod prepared;
pub mod settings;
pub mod traits;
