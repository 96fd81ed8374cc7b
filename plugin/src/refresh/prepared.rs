//! A worker's client that prepares what comes again, and sends many statements in one round trip.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio_postgres::Client;
use tokio_postgres::types::{FromSql, ToSql, Type};

use crate::conn::{self, Conn, Error, Row, Statement};

/// Texts a client remembers. Beyond, it starts anew: stream tables come and go, and their texts with them.
const REMEMBERED: usize = 1000;

pub(super) struct PreparedClient {
    client: Client,
    /// `None` for what was seen once: most texts of a stream table that changes rarely are not worth preparing.
    statements: HashMap<String, Option<tokio_postgres::Statement>>,
}

/// What is sent as one message or a few that belong together.
enum Step<'a> {
    /// Statements as the text of one Query, and their number.
    Simple(String, usize),
    Prepared(&'a tokio_postgres::Statement, &'a [String]),
}

impl PreparedClient {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            statements: HashMap::new(),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Prepares those that come for the second time.
    async fn prepare(&mut self, statements: &[Statement]) -> Result<(), Error> {
        if self.statements.len() > REMEMBERED {
            self.statements.clear();
        }
        for statement in statements.iter().filter(|statement| statement.kept) {
            match self.statements.get_mut(&statement.sql) {
                None => {
                    self.statements.insert(statement.sql.clone(), None);
                }
                Some(Some(_)) => {}
                Some(prepared @ None) => {
                    let types = vec![Type::TEXT; statement.parameters.len()];
                    *prepared = Some(self.client.prepare_typed(&statement.sql, &types).await?);
                }
            }
        }
        Ok(())
    }

    fn steps<'a>(&'a self, statements: &'a [Statement]) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        for statement in statements {
            let prepared = self.statements.get(&statement.sql).and_then(Option::as_ref);
            match (prepared, steps.last_mut()) {
                (Some(prepared), _) => {
                    steps.push(Step::Prepared(prepared, &statement.parameters));
                }
                (None, Some(Step::Simple(text, number))) => {
                    text.push_str(";\n");
                    text.push_str(&statement.inlined());
                    *number += 1;
                }
                (None, _) => steps.push(Step::Simple(statement.inlined().into_owned(), 1)),
            }
        }
        steps
    }

    async fn step(&self, step: Step<'_>) -> Result<Vec<Vec<Row>>, Error> {
        match step {
            Step::Simple(text, number) => {
                let results = conn::results(self.client.simple_query(&text).await?);
                debug_assert_eq!(results.len(), number);
                Ok(results)
            }
            Step::Prepared(statement, parameters) => {
                let parameters: Vec<_> = parameters
                    .iter()
                    .map(|value| value as &(dyn ToSql + Sync))
                    .collect();
                let rows = self.client.query(statement, &parameters).await?;
                let rows = rows.iter().map(read).collect::<Result<_, _>>()?;
                Ok(vec![rows])
            }
        }
    }
}

impl Conn for PreparedClient {
    async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        Conn::query(&mut self.client, sql).await
    }

    async fn run(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, Error> {
        let mut results = Vec::with_capacity(statements.len());
        // The pooler may have no connection for a BEGIN and one for what follows, which would then commit by itself.
        let begins = statements
            .first()
            .is_some_and(|statement| statement.sql.starts_with("BEGIN"));
        let (begin, statements) = statements.split_at(usize::from(begins));
        self.prepare(statements).await?;
        for statement in begin {
            results.push(self.query(&statement.sql).await?);
        }
        let this = &*self;
        let mut steps: Vec<_> = this
            .steps(statements)
            .into_iter()
            .map(|step| (Box::pin(this.step(step)), None))
            .collect();
        // A step is sent when it is first polled: all are, in order, before the first answer is awaited.
        poll_fn(|cx| {
            let mut pending = false;
            for (future, result) in &mut steps {
                if result.is_none() {
                    match Pin::new(future).poll(cx) {
                        Poll::Ready(ready) => *result = Some(ready),
                        Poll::Pending => pending = true,
                    }
                }
            }
            if pending {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        for (_, result) in steps {
            // The first error is the cause of those after it.
            results.extend(result.unwrap_or_else(|| Ok(Vec::new()))?);
        }
        Ok(results)
    }
}

/// A value in the text form that a simple Query gives.
struct Text(String);

impl<'a> FromSql<'a> for Text {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(match *ty {
            Type::BOOL => if bool::from_sql(ty, raw)? { "t" } else { "f" }.to_owned(),
            Type::INT8 => i64::from_sql(ty, raw)?.to_string(),
            Type::INT4 => i32::from_sql(ty, raw)?.to_string(),
            Type::FLOAT4 => f32::from_sql(ty, raw)?.to_string(),
            Type::FLOAT8 => f64::from_sql(ty, raw)?.to_string(),
            _ => String::from_sql(ty, raw)?,
        }))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(
            *ty,
            Type::BOOL | Type::INT8 | Type::INT4 | Type::FLOAT4 | Type::FLOAT8 | Type::TEXT
        )
    }
}

fn read(row: &tokio_postgres::Row) -> Result<Row, Error> {
    let values = (0..row.len()).map(|i| Ok(row.try_get::<_, Option<Text>>(i)?.map(|text| text.0)));
    values
        .collect::<Result<_, tokio_postgres::Error>>()
        .map(Row)
        // Not a loss of the connection, which is what an error without a server's message means elsewhere.
        .map_err(|error| Error::Internal(error.to_string()))
}
