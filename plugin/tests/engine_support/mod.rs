//! What the engine's tests share: a database of their own, and the comparison of a stream table with its query.

use stream_tables::conn::{Conn, Error};
use stream_tables::engine::{
    self, Definition, How, Isolation, Mode, RefreshOutcome, StreamTableId,
};
use tokio_postgres::{Client, NoTls};

/// A database that exists for one test.
pub struct Database {
    url: String,
    pub name: String,
}

impl Database {
    /// Creates it on the server of `ENGINE_TEST_URL` (`host=… port=… user=…`, a superuser).
    pub async fn create(name: &str) -> Self {
        let url = std::env::var("ENGINE_TEST_URL")
            .expect("ENGINE_TEST_URL must name a PostgreSQL server, e.g. 'host=127.0.0.1 port=5432 user=postgres'");
        let name = format!("{name}_{}", std::process::id());
        let admin = connect(&format!("{url} dbname=postgres")).await;
        admin
            .batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            .await
            .unwrap();
        admin
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .await
            .unwrap();
        Self { url, name }
    }

    pub async fn connect(&self) -> Client {
        connect(&format!("{} dbname={}", self.url, self.name)).await
    }

    pub async fn drop(self) {
        let admin = connect(&format!("{} dbname=postgres", self.url)).await;
        admin
            .batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name))
            .await
            .unwrap();
    }
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connect");
    tokio::task::spawn_local(connection);
    client
}

/// CREATE STREAM TABLE as outside a block.
pub async fn create(c: &mut Client, name: &str, query: &str) -> Result<StreamTableId, Error> {
    let definition = Definition {
        name: name.to_owned(),
        query: query.to_owned(),
        schedule: "live".to_owned(),
        refresh_mode: Mode::Auto,
        with_data: true,
        ..Definition::default()
    };
    c.query("BEGIN").await?;
    let id = match engine::define(c, &definition).await {
        Ok(id) => id,
        Err(error) => {
            c.query("ROLLBACK").await?;
            return Err(error);
        }
    };
    c.query("COMMIT").await?;
    c.query("BEGIN").await?;
    engine::load(c, id, Isolation::ReadCommitted).await?;
    c.query("COMMIT").await?;
    Ok(id)
}

/// Refreshes until no other transaction is in the way.
pub async fn refresh(c: &mut Client, id: StreamTableId) -> RefreshOutcome {
    loop {
        match engine::refresh(c, id, How::Auto).await {
            Ok(outcome) => return outcome,
            Err(error) if error.is_transient() => {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await
            }
            Err(error) => panic!("refresh of {id}: {error}"),
        }
    }
}

/// How many rows differ between table and query, by the text of the row: one snapshot, both ways.
pub async fn differences(c: &mut Client, name: &str, query: &str) -> i64 {
    let sql = format!(
        "SELECT count(*) FROM (
            SELECT sum(w) FROM (SELECT 1 AS w, pgt_q::text AS row FROM ({query}) pgt_q
                UNION ALL SELECT -1, pgt_t::text FROM {name} pgt_t) u GROUP BY row HAVING sum(w) <> 0) d"
    );
    let rows = Conn::query(c, &sql).await.expect("comparison");
    rows[0].int(0).expect("a count")
}
