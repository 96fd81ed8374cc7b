//! A connection through the pooler, as sqllogictest wants it.

use std::fmt;

use async_trait::async_trait;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType};
use tokio_postgres::{Client, SimpleQueryMessage};

pub struct Pooled(pub Client);

/// With the server's message: the driver's own text leaves it out.
#[derive(Debug)]
pub struct Error(tokio_postgres::Error);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_db_error() {
            Some(error) => {
                write!(f, "{}: {}", error.code().code(), error.message())?;
                match error.detail() {
                    Some(detail) => write!(f, " ({detail})"),
                    None => Ok(()),
                }
            }
            None => write!(f, "{:?}", self.0),
        }
    }
}

impl std::error::Error for Error {}

#[async_trait]
impl AsyncDB for Pooled {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    /// The rows of all the statements in `sql`.
    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Error> {
        let messages = self.0.simple_query(sql).await.map_err(Error)?;
        let mut complete = 0;
        let mut types = Vec::new();
        let mut rows = Vec::new();
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    types = vec![DefaultColumnType::Any; columns.len()];
                }
                SimpleQueryMessage::Row(row) => {
                    let values = (0..row.len()).map(|i| row.get(i).unwrap_or("NULL").to_owned());
                    rows.push(values.collect());
                }
                SimpleQueryMessage::CommandComplete(count) => complete = count,
                _ => {}
            }
        }
        if types.is_empty() {
            return Ok(DBOutput::StatementComplete(complete));
        }
        Ok(DBOutput::Rows { types, rows })
    }

    async fn shutdown(&mut self) {}

    fn error_sql_state(error: &Error) -> Option<String> {
        error.0.code().map(|code| code.code().to_owned())
    }
}
