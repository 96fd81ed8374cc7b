//! What a stream-table statement needs of the connection it runs on.

use std::sync::Arc;

use pgcat::plugins::{ErrorFields, TransactionContext};

use crate::conn::{Conn, Error};
use crate::engine::Memory;

/// The client's own server connection for the length of one statement. The pooler's is
/// [`crate::host_conn::HostConn`]; tests run the statements on a plain connection.
#[allow(async_fn_in_trait, reason = "polled on the thread it was made on")]
pub trait Session: Conn {
    /// How the statement relates to transactions.
    fn transaction(&self) -> TransactionContext;

    /// What is known of the database's stream tables.
    fn memory(&self) -> Arc<Memory>;

    /// Begins a transaction of the plugin's own; only in [`TransactionContext::None`].
    async fn begin(&mut self) -> Result<(), Error>;

    async fn commit(&mut self) -> Result<(), Error>;

    async fn rollback(&mut self) -> Result<(), Error>;

    /// Runs the client's own text, and returns the command tag.
    async fn forward(&mut self, sql: &str) -> Result<String, Error>;

    /// Sends a NOTICE to the client.
    fn notice(&mut self, notice: ErrorFields);
}
