//! Working as a stream table's owner where the owner has no pool of its own.

use super::prepared::PreparedClient;
use crate::conn::{Conn, Error, Row, Statement};

/// A worker's connection. With a role, everything runs in transactions as that role; `SET LOCAL` ends with
/// the transaction, so it cannot leak to whoever gets the server connection next.
pub(super) struct WorkerConn {
    client: PreparedClient,
    set_role: Option<String>,
    /// A transaction has been begun and not ended.
    open: bool,
}

impl WorkerConn {
    pub(super) fn new(client: PreparedClient, role: Option<String>) -> Self {
        let set_role =
            role.map(|role| format!("SET LOCAL ROLE {}", crate::command::identifier(&role)));
        Self {
            client,
            set_role,
            open: false,
        }
    }

    pub(super) fn into_client(self) -> PreparedClient {
        self.client
    }

    /// One statement outside a transaction, as the role.
    async fn query_as_role(&mut self, set_role: &str, sql: &str) -> Result<Vec<Row>, Error> {
        let statements = ["BEGIN", set_role, sql, "COMMIT"].map(str::to_owned);
        match self.client.batch(&statements).await {
            Ok(mut results) if results.len() == statements.len() => Ok(results.swap_remove(2)),
            Ok(_) => Ok(Vec::new()),
            Err(error) => {
                // If the connection is lost, the next statement says so.
                let _ = Conn::query(&mut self.client, "ROLLBACK").await;
                Err(error)
            }
        }
    }
}

impl Conn for WorkerConn {
    async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        if let Some(set_role) = self.set_role.clone()
            && !self.open
        {
            if !starts_with(sql, "BEGIN") {
                return self.query_as_role(&set_role, sql).await;
            }
            self.open = true;
            return self
                .client
                .batch(&[sql.to_owned(), set_role])
                .await
                .map(|_| Vec::new());
        }
        self.open &= !ends(sql);
        Conn::query(&mut self.client, sql).await
    }

    async fn run(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, Error> {
        let Some(set_role) = self.set_role.clone() else {
            return self.client.run(statements).await;
        };
        let begin = statements
            .iter()
            .position(|statement| starts_with(&statement.sql, "BEGIN"));
        if !self.open && begin != Some(0) {
            let mut results = Vec::with_capacity(statements.len());
            for statement in statements {
                results.push(self.query(&statement.inlined()).await?);
            }
            return Ok(results);
        }
        self.open = !statements
            .last()
            .is_some_and(|statement| ends(&statement.sql));
        let Some(begin) = begin else {
            return self.client.run(statements).await;
        };
        let mut with_role = statements.to_vec();
        with_role.insert(begin + 1, set_role.into());
        let mut results = self.client.run(&with_role).await?;
        // The caller counts the results of its own statements.
        if results.len() > begin + 1 {
            results.remove(begin + 1);
        }
        Ok(results)
    }
}

fn starts_with(sql: &str, word: &str) -> bool {
    sql.trim_start()
        .get(..word.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(word))
}

fn ends(sql: &str) -> bool {
    starts_with(sql, "COMMIT") || sql.trim().eq_ignore_ascii_case("ROLLBACK")
}

/// Runs `work` in one transaction, which ends with it.
pub(super) async fn in_transaction<T>(
    conn: &mut WorkerConn,
    work: impl AsyncFnOnce(&mut WorkerConn) -> Result<T, Error>,
) -> Result<T, Error> {
    conn.query("BEGIN").await?;
    match work(conn).await {
        Ok(value) => {
            conn.query("COMMIT").await?;
            Ok(value)
        }
        Err(error) => {
            // The connection is not given back after an error; this only ends the transaction sooner.
            let _ = conn.query("ROLLBACK").await;
            Err(error)
        }
    }
}
