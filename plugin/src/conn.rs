//! The one thing the engine needs of a connection, and the crate's error type.
//!
//! The same engine code runs on the client's own server connection (DDL inside the client's
//! transaction) and on the worker's connections, so it only ever sends plain statements.

use std::borrow::Cow;
use std::fmt;

use pgcat::plugins::ErrorFields;

use crate::plan::literal;

/// A result row, values in text form, `None` is NULL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row(pub Vec<Option<String>>);

impl Row {
    /// The value of column `index`, if it is there and not NULL.
    pub fn text(&self, index: usize) -> Option<&str> {
        self.0.get(index).and_then(Option::as_deref)
    }

    /// The value of column `index` as an integer, if it is one.
    pub fn int(&self, index: usize) -> Option<i64> {
        self.text(index).and_then(|value| value.parse().ok())
    }

    /// Whether column `index` is true.
    pub fn is_true(&self, index: usize) -> bool {
        self.text(index) == Some("t")
    }
}

/// A statement and the values of its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// With `$1` and so on for the parameters.
    pub sql: String,
    /// All of type text.
    pub parameters: Vec<String>,
    /// Its text will come again: the server may keep its plan.
    pub kept: bool,
}

impl Statement {
    /// One whose plan the server keeps. The result's columns are of the types that [`Row`] reads (boolean, text, numbers).
    pub fn kept(sql: String, parameters: Vec<String>) -> Self {
        Self {
            sql,
            parameters,
            kept: true,
        }
    }

    /// The text with the values in it.
    pub(crate) fn inlined(&self) -> Cow<'_, str> {
        if self.parameters.is_empty() {
            return Cow::Borrowed(&self.sql);
        }
        let mut out = String::with_capacity(self.sql.len() + 64);
        // In one pass and outside of quotes: names and values may have a $1 in them.
        let mut quote = None;
        let mut rest = self.sql.as_str();
        while let Some(c) = rest.chars().next() {
            let tail = &rest[c.len_utf8()..];
            if c == '$' && quote.is_none() {
                let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
                let number = tail[..digits].parse::<usize>().ok();
                let value = number.and_then(|n| self.parameters.get(n.checked_sub(1)?));
                if let Some(value) = value {
                    out.push_str(&literal(value));
                    rest = &tail[digits..];
                    continue;
                }
            }
            match quote {
                Some(open) if open == c => quote = None,
                None if matches!(c, '\'' | '"') => quote = Some(c),
                _ => {}
            }
            out.push(c);
            rest = tail;
        }
        Cow::Owned(out)
    }
}

impl From<String> for Statement {
    fn from(sql: String) -> Self {
        Self {
            sql,
            parameters: Vec::new(),
            kept: false,
        }
    }
}

/// A connection to PostgreSQL. Its futures stay on one thread.
#[allow(async_fn_in_trait)]
pub trait Conn {
    /// Runs one statement and returns its rows.
    ///
    /// # Errors
    /// The server's error, classified, or the loss of the connection.
    async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error>;

    /// Runs several statements in order, each with its rows; the first error ends it. Where the connection can, it does so in
    /// one round trip.
    ///
    /// # Errors
    /// As [`Conn::query`].
    async fn run(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, Error> {
        let mut results = Vec::with_capacity(statements.len());
        for statement in statements {
            results.push(self.query(&statement.inlined()).await?);
        }
        Ok(results)
    }

    /// Runs one statement of a kind that comes often: see [`Statement::kept`].
    ///
    /// # Errors
    /// As [`Conn::query`].
    async fn query_kept(
        &mut self,
        sql: String,
        parameters: Vec<String>,
    ) -> Result<Vec<Row>, Error> {
        let results = self.run(&[Statement::kept(sql, parameters)]).await?;
        Ok(results.into_iter().next().unwrap_or_default())
    }

    /// [`Conn::run`] of statements without parameters that do not come again.
    ///
    /// # Errors
    /// As [`Conn::query`].
    async fn batch(&mut self, statements: &[String]) -> Result<Vec<Vec<Row>>, Error> {
        let statements: Vec<_> = statements.iter().cloned().map(Statement::from).collect();
        self.run(&statements).await
    }
}

/// Why something did not work, and so who is to act.
#[derive(Debug, Clone)]
pub enum Error {
    /// The server refused a statement; a retry would not help.
    Server(Box<ErrorFields>),
    /// We refuse the user's request.
    Refused(Box<ErrorFields>),
    /// Serialization failure or deadlock: a retry is safe and likely to succeed.
    Conflict(Box<ErrorFields>),
    /// A lock was not granted within `lock_timeout`: retry the whole transaction a little later.
    LockNotAvailable(Box<ErrorFields>),
    /// Another session is refreshing or changing this stream table at the moment.
    Busy,
    /// The sources are no longer what the plan was made for: [`crate::engine::replan`], then retry.
    Drift(String),
    /// The connection was lost.
    Connection(String),
    /// A defect of ours, or a catalog somebody edited.
    Internal(String),
}

impl Error {
    /// An error of ours about the user's request.
    pub fn refused(code: &str, message: impl Into<String>) -> Self {
        Self::Refused(Box::new(ErrorFields::error(code, message)))
    }

    /// Sorts a server's error by what to do about it.
    pub fn from_server(fields: ErrorFields) -> Self {
        match fields.code.as_str() {
            "40001" | "40P01" => Self::Conflict(Box::new(fields)),
            "55P03" => Self::LockNotAvailable(Box::new(fields)),
            _ => Self::Server(Box::new(fields)),
        }
    }

    /// The SQLSTATE.
    pub fn code(&self) -> &str {
        match self {
            Self::Server(f) | Self::Refused(f) | Self::Conflict(f) | Self::LockNotAvailable(f) => {
                &f.code
            }
            Self::Busy => "55006",
            Self::Drift(_) => "55000",
            Self::Connection(_) => "08006",
            Self::Internal(_) => "XX000",
        }
    }

    /// Whether it is one of the server or the pool as a whole, and says nothing about what was asked.
    pub fn is_the_servers(&self) -> bool {
        // Of class 53, memory and limits of temporary files are used up by a query: often by this one.
        ["08", "53000", "53100", "53300", "57P", "58"]
            .iter()
            .any(|class| self.code().starts_with(class))
    }

    /// Whether the same call may succeed when it is made again.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Conflict(_) | Self::LockNotAvailable(_) | Self::Busy | Self::Connection(_)
        )
    }
}

impl From<Error> for Box<ErrorFields> {
    fn from(error: Error) -> Self {
        match error {
            Error::Server(f)
            | Error::Refused(f)
            | Error::Conflict(f)
            | Error::LockNotAvailable(f) => f,
            other => Box::new(ErrorFields::error(other.code(), other.to_string())),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(e) | Self::Refused(e) | Self::Conflict(e) | Self::LockNotAvailable(e) => {
                e.fmt(f)
            }
            Self::Busy => f.write_str("the stream table is being refreshed by another session"),
            Self::Drift(what) => write!(f, "the sources of the stream table have changed: {what}"),
            Self::Connection(what) => write!(f, "connection to the server lost: {what}"),
            Self::Internal(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return Self::Connection(error.to_string());
        };
        let mut fields = ErrorFields::error(db.code().code(), db.message());
        fields.detail = db.detail().map(str::to_owned);
        fields.hint = db.hint().map(str::to_owned);
        if let Some(tokio_postgres::error::ErrorPosition::Original(position)) = db.position() {
            fields.position = Some(*position);
        }
        Self::from_server(fields)
    }
}

impl Conn for tokio_postgres::Client {
    async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        let messages = self.simple_query(sql).await?;
        Ok(results(messages)
            .into_iter()
            .next_back()
            .unwrap_or_default())
    }

    async fn run(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, Error> {
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        let texts: Vec<_> = statements.iter().map(Statement::inlined).collect();
        Ok(results(self.simple_query(&texts.join(";\n")).await?))
    }
}

/// The rows of each statement of a simple Query.
pub(crate) fn results(messages: Vec<tokio_postgres::SimpleQueryMessage>) -> Vec<Vec<Row>> {
    use tokio_postgres::SimpleQueryMessage as Message;
    let mut results = Vec::new();
    let mut rows = Vec::new();
    for message in messages {
        match message {
            Message::Row(row) => {
                rows.push(Row((0..row.len())
                    .map(|i| row.get(i).map(str::to_owned))
                    .collect()));
            }
            Message::CommandComplete(_) => results.push(std::mem::take(&mut rows)),
            _ => {}
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_for_parameters_and_nothing_else() {
        let statement = Statement::kept(
            r#"SELECT $1, "a$1", 'it''s $2', $2, $10, """$1" FROM "é$2""#.to_owned(),
            (1..=10).map(|n| format!("{n}$1")).collect(),
        );
        assert_eq!(
            statement.inlined(),
            r#"SELECT '1$1', "a$1", 'it''s $2', '2$1', '10$1', """$1" FROM "é$2""#
        );
    }
}
