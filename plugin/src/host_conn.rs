//! The pooler's side of [`Session`].

use std::sync::Arc;

use pgcat::plugins::{ErrorFields, PluginQuery, QueryResult, ServerHandle, TransactionContext};
use pgcat::wire::TransactionStatus;

use crate::conn::{Conn, Error, Row, Statement};
use crate::engine::Memory;
use crate::session::Session;

/// A client's server connection, as the pooler lends it.
pub struct HostConn<'a, 'server> {
    server: &'a mut ServerHandle<'server>,
    memory: Arc<Memory>,
}

impl<'a, 'server> HostConn<'a, 'server> {
    pub fn new(server: &'a mut ServerHandle<'server>, memory: Arc<Memory>) -> Self {
        Self { server, memory }
    }
}

impl Conn for HostConn<'_, '_> {
    async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        // The host keeps account of the transaction, so these must not go past it as mere text.
        match TransactionCommand::of(sql) {
            Some(TransactionCommand::Begin(isolation)) => self.server.begin(isolation).await?,
            Some(TransactionCommand::Commit) => self.server.commit().await?,
            Some(TransactionCommand::Rollback) => self.rollback().await?,
            None => {
                let result = self.server.quiet_query(sql).await?;
                return Ok(result.rows.into_iter().map(Row).collect());
            }
        }
        Ok(Vec::new())
    }

    async fn run(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, Error> {
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        let queries: Vec<_> = statements
            .iter()
            .map(|statement| PluginQuery {
                sql: statement.sql.clone(),
                parameters: statement.parameters.clone(),
                kept: statement.kept,
            })
            .collect();
        let results = self.server.pipeline(&queries).await?;
        for (statement, result) in statements.iter().zip(&results) {
            if TransactionCommand::of(&statement.sql) == Some(TransactionCommand::Commit)
                && result.tag != "COMMIT"
            {
                return Err(Error::from_server(ErrorFields::error(
                    "40000",
                    "the transaction was rolled back",
                )));
            }
        }
        let rows = |result: QueryResult| result.rows.into_iter().map(Row).collect();
        Ok(results.into_iter().map(rows).collect())
    }
}

impl Session for HostConn<'_, '_> {
    fn transaction(&self) -> TransactionContext {
        self.server.transaction()
    }

    fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory)
    }

    async fn begin(&mut self) -> Result<(), Error> {
        Ok(self.server.begin("").await?)
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(self.server.commit().await?)
    }

    async fn rollback(&mut self) -> Result<(), Error> {
        // Without a transaction the client would see the server's warning.
        if self.server.status() != TransactionStatus::Idle {
            self.server.rollback().await?;
        }
        Ok(())
    }

    async fn forward(&mut self, sql: &str) -> Result<String, Error> {
        Ok(self.server.query(sql).await?.tag)
    }

    fn notice(&mut self, notice: ErrorFields) {
        self.server.notice(&notice);
    }
}

impl From<Box<ErrorFields>> for Error {
    fn from(fields: Box<ErrorFields>) -> Self {
        Self::from_server(*fields)
    }
}

/// A statement of the engine's that begins or ends a transaction.
#[derive(Debug, PartialEq, Eq)]
enum TransactionCommand<'a> {
    /// With its characteristics, e.g. the isolation level.
    Begin(&'a str),
    Commit,
    Rollback,
}

impl<'a> TransactionCommand<'a> {
    fn of(sql: &'a str) -> Option<Self> {
        match sql.trim() {
            "COMMIT" => Some(Self::Commit),
            "ROLLBACK" => Some(Self::Rollback),
            "BEGIN" => Some(Self::Begin("")),
            begin => begin.strip_prefix("BEGIN ").map(Self::Begin),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TransactionCommand as Command;

    #[test]
    fn transaction_commands() {
        assert_eq!(
            Command::of("BEGIN ISOLATION LEVEL REPEATABLE READ"),
            Some(Command::Begin("ISOLATION LEVEL REPEATABLE READ"))
        );
        assert_eq!(Command::of("COMMIT"), Some(Command::Commit));
        assert_eq!(Command::of("SELECT 1"), None);
    }
}
