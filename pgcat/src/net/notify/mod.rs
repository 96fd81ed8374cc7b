//! LISTEN in transaction mode: one server connection per pool listens for all its clients.
//!
//! A client's LISTEN and UNLISTEN are answered by the pooler (see [`statement`]); NOTIFY is the server's, and as
//! transactional as ever. What the listening connection hears reaches each client that listens between two of its
//! transactions, as from PostgreSQL. Should that connection be lost, notifications may be, too: then the clients that
//! listen are disconnected, as they would be by the loss of a connection of their own, so that they look again.

mod hub;
mod statement;
mod subscriptions;

pub use hub::Hub;
pub(super) use statement::{Command, ListenStatement, parse};
pub(super) use subscriptions::Subscriptions;
pub use subscriptions::{Broken, Inbox};

/// A session, as the hub knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subscriber {
    pub thread: usize,
    pub session: u64,
}
