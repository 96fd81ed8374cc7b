//! The client's own server connection, lent to a plugin for the length of one statement.

use super::ErrorFields;
use crate::error::Error;
use crate::net::pipeline::PipelineEnd;
use crate::net::server::Server;
use crate::session::prepared::Interner;
use crate::session::traits::Traits;
use crate::wire::TransactionStatus;

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
    /// The command tag, such as `INSERT 0 1`.
    pub tag: String,
}

/// A statement of a plugin's for [`ServerHandle::pipeline`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginQuery {
    /// With `$1` and so on for the parameters.
    pub sql: String,
    /// Values of parameters, all of type text.
    pub parameters: Vec<String>,
    /// It will come again: the server connection keeps it prepared, as far as `prepared_statements_cache_size` goes.
    pub kept: bool,
}

impl PluginQuery {
    /// A statement without parameters that is parsed for this once.
    pub fn new(sql: impl Into<String>) -> Self {
        Self {
            sql: sql.into(),
            parameters: Vec::new(),
            kept: false,
        }
    }
}

/// See the module's text.
pub struct ServerHandle<'a> {
    server: &'a mut Server,
    interner: &'a Interner,
    /// Notices for the client, framed.
    notices: &'a mut Vec<u8>,
    context: TransactionContext,
    /// Inside an extended batch before its Sync: a simple Query would commit what came before it
    /// (PostgreSQL 17 and older).
    batched: bool,
    /// A batched statement failed: the server ignores everything up to the Sync.
    skipping: bool,
    /// The connection itself failed.
    lost: Option<Error>,
}

impl<'a> ServerHandle<'a> {
    pub(crate) fn new(
        server: &'a mut Server,
        interner: &'a Interner,
        notices: &'a mut Vec<u8>,
        context: TransactionContext,
        batched: bool,
    ) -> Self {
        Self {
            server,
            interner,
            notices,
            context,
            batched,
            skipping: false,
            lost: None,
        }
    }

    /// How the statement relates to transactions.
    pub fn transaction(&self) -> TransactionContext {
        self.context
    }

    /// Whether a transaction is open now, and whether it has failed.
    pub fn status(&self) -> TransactionStatus {
        self.server.status
    }

    /// Runs one SQL statement under the client's role and settings. Notices of the server reach the
    /// client.
    ///
    /// # Errors
    /// The server's error. Inside a transaction it has failed then, unless a savepoint was set and is
    /// rolled back to; in an extended batch ([`TransactionContext::Implicit`]) nothing more can be
    /// done.
    pub async fn query(&mut self, sql: &str) -> Result<QueryResult, Box<ErrorFields>> {
        // It may be the client's own text: CREATE OR REPLACE TEMP VIEW.
        self.server.dirty |= Traits::of(sql.as_bytes()).leaves_state;
        self.run(sql, true).await
    }

    /// The same for a statement of the plugin's own, of which the client has never heard: the server's
    /// notices about it are dropped.
    ///
    /// # Errors
    /// As [`ServerHandle::query`].
    pub async fn quiet_query(&mut self, sql: &str) -> Result<QueryResult, Box<ErrorFields>> {
        self.run(sql, false).await
    }

    /// Runs several statements of the plugin's own in one round trip; the first error ends it. Outside a transaction block
    /// they are one transaction, unless there is a BEGIN among them.
    ///
    /// # Errors
    /// As [`ServerHandle::query`].
    pub async fn pipeline(
        &mut self,
        queries: &[PluginQuery],
    ) -> Result<Vec<QueryResult>, Box<ErrorFields>> {
        self.check()?;
        let end = match self.batched {
            true => PipelineEnd::Flush,
            false => PipelineEnd::Sync,
        };
        let outcome = self
            .server
            .pipeline(queries, end, self.interner, &mut Vec::new())
            .await;
        self.outcome(outcome)
    }

    async fn run(&mut self, sql: &str, heard: bool) -> Result<QueryResult, Box<ErrorFields>> {
        self.check()?;
        let mut unheard = Vec::new();
        let notices = if heard {
            &mut *self.notices
        } else {
            &mut unheard
        };
        let outcome = if self.batched {
            let queries = [PluginQuery::new(sql)];
            self.server
                .pipeline(&queries, PipelineEnd::Flush, self.interner, notices)
                .await
                .map(|results| results.into_iter().next().unwrap_or_default())
        } else {
            self.server.simple_query(sql, notices).await
        };
        self.outcome(outcome)
    }

    /// Whether the server takes statements at all.
    fn check(&self) -> Result<(), Box<ErrorFields>> {
        if self.lost.is_some() {
            return Err(Box::new(ErrorFields::fatal(
                "08006",
                "the server connection was lost",
            )));
        }
        if self.skipping {
            return Err(Box::new(ErrorFields::error(
                "25P02",
                "current transaction is aborted, commands ignored until end of transaction block",
            )));
        }
        Ok(())
    }

    fn outcome<T>(&mut self, outcome: Result<T, Error>) -> Result<T, Box<ErrorFields>> {
        outcome.map_err(|error| match error {
            Error::ServerRefused(fields) => {
                self.skipping = self.batched;
                fields
            }
            error => {
                let fields = ErrorFields::fatal("08006", format!("server connection: {error}"));
                self.lost = Some(error);
                Box::new(fields)
            }
        })
    }

    /// Begins a transaction; only in [`TransactionContext::None`]. `characteristics` as after BEGIN,
    /// e.g. `ISOLATION LEVEL REPEATABLE READ`, or empty.
    ///
    /// # Errors
    /// The server's error.
    pub async fn begin(&mut self, characteristics: &str) -> Result<(), Box<ErrorFields>> {
        debug_assert_eq!(self.context, TransactionContext::None);
        self.query(&format!("BEGIN {characteristics}"))
            .await
            .map(drop)
    }

    /// Commits the transaction that [`ServerHandle::begin`] began.
    ///
    /// # Errors
    /// The server's error, or 40000 if the transaction had failed and was rolled back.
    pub async fn commit(&mut self) -> Result<(), Box<ErrorFields>> {
        let result = self.query("COMMIT").await?;
        if result.tag == "COMMIT" {
            return Ok(());
        }
        Err(Box::new(ErrorFields::error(
            "40000",
            "the transaction was rolled back",
        )))
    }

    /// Rolls back the transaction that [`ServerHandle::begin`] began.
    ///
    /// # Errors
    /// The server's error.
    pub async fn rollback(&mut self) -> Result<(), Box<ErrorFields>> {
        self.query("ROLLBACK").await.map(drop)
    }

    /// Sends the client a notice or warning.
    pub fn notice(&mut self, fields: &ErrorFields) {
        fields.write(self.notices);
    }

    /// Whether the server skips to a Sync, and what became of the connection.
    pub(crate) fn finish(self) -> (bool, Option<Error>) {
        (self.skipping, self.lost)
    }
}
