//! Working as a stream table's owner where the owner has no pool of its own.

use tokio_postgres::Client;

use crate::conn::{Conn, Error, Row};

/// A worker's connection. With a role, every transaction begun on it goes on as that role; `SET LOCAL`
/// ends with the transaction, so it cannot leak to whoever gets the server connection next.
pub(super) struct WorkerConn {
    client: Client,
    set_role: Option<String>,
}

impl WorkerConn {
    pub(super) fn new(client: Client, role: Option<String>) -> Self {
        let set_role =
            role.map(|role| format!("SET LOCAL ROLE {}", crate::command::identifier(&role)));
        Self { client, set_role }
    }

    pub(super) fn into_client(self) -> Client {
        self.client
    }
}

impl Conn for WorkerConn {
    async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        let rows = Conn::query(&mut self.client, sql).await?;
        if let Some(set_role) = self.set_role.as_deref().filter(|_| begins(sql)) {
            Conn::query(&mut self.client, set_role).await?;
        }
        Ok(rows)
    }

    async fn batch(&mut self, statements: &[String]) -> Result<Vec<Vec<Row>>, Error> {
        let begin = statements.iter().position(|statement| begins(statement));
        let (Some(set_role), Some(begin)) = (&self.set_role, begin) else {
            return self.client.batch(statements).await;
        };
        let mut with_role = statements.to_vec();
        with_role.insert(begin + 1, set_role.clone());
        let mut results = self.client.batch(&with_role).await?;
        // The caller counts the results of its own statements.
        if results.len() > begin + 1 {
            results.remove(begin + 1);
        }
        Ok(results)
    }
}

fn begins(sql: &str) -> bool {
    sql.trim_start()
        .get(..5)
        .is_some_and(|word| word.eq_ignore_ascii_case("begin"))
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
