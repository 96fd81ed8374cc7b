//! The client's own server connection, lent to a plugin for the length of one statement.

use super::ErrorFields;

/// How a handled statement relates to transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionContext {
    /// No transaction is open: each [`ServerHandle::query`] commits by itself unless the plugin calls
    /// [`ServerHandle::begin`]. Several transactions in a row are possible.
    None,
    /// The client's explicit transaction block is open; the statement is part of it.
    Block,
    /// The statement is part of an implicit transaction (an extended batch before its Sync, or a Query
    /// of several statements) which commits or aborts as a whole; it cannot be committed here.
    Implicit,
}

/// The rows and tag of one statement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueryResult {
    /// Text values; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
    pub tag: String,
}
