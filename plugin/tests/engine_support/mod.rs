//! What the engine's tests share: creation, refresh, and the comparison of a stream table with its query.
#![allow(dead_code, reason = "each test uses its part")]

use std::sync::Arc;

use stream_tables::conn::{Conn, Error};
use stream_tables::engine::{
    self, Definition, How, Isolation, Memory, Mode, RefreshOutcome, StreamTableId,
};
use test_support::Postgres;
use tokio_postgres::Client;

/// A connection whose driver runs on this thread's [`tokio::task::LocalSet`].
pub async fn connect(server: &Postgres) -> Client {
    server.client("postgres", "postgres").await
}

/// CREATE STREAM TABLE as outside a block. Incremental where the query allows it, however many changes there are: a full
/// refresh would hide a wrong delta.
pub async fn create(c: &mut Client, name: &str, query: &str) -> Result<StreamTableId, Error> {
    match create_as(c, name, query, Mode::Incremental).await {
        Err(error) if error.to_string().contains("incrementally") => {
            create_as(c, name, query, Mode::Auto).await
        }
        created => created,
    }
}

/// The same with a `refresh_mode`.
pub async fn create_as(
    c: &mut Client,
    name: &str,
    query: &str,
    refresh_mode: Mode,
) -> Result<StreamTableId, Error> {
    let id = define(c, name, query, refresh_mode, false).await?;
    c.query("BEGIN").await?;
    if let Err(error) = engine::load(c, id, Isolation::ReadCommitted).await {
        c.query("ROLLBACK").await?;
        c.query("BEGIN").await?;
        engine::drop(c, id, false).await?;
        c.query("COMMIT").await?;
        return Err(error);
    }
    c.query("COMMIT").await?;
    Ok(id)
}

/// The first step.
async fn define(
    c: &mut Client,
    name: &str,
    query: &str,
    refresh_mode: Mode,
    may_share: bool,
) -> Result<StreamTableId, Error> {
    let definition = Definition {
        name: name.to_owned(),
        query: query.to_owned(),
        schedule: "live".to_owned(),
        refresh_mode,
        with_data: true,
        may_share,
        ..Definition::default()
    };
    c.query("BEGIN").await?;
    match engine::define(c, &definition).await {
        Ok(id) => {
            c.query("COMMIT").await?;
            Ok(id)
        }
        Err(error) => {
            c.query("ROLLBACK").await?;
            Err(error)
        }
    }
}

/// CREATE STREAM TABLE outside a block that may share stages, in the mode of [`create`].
pub async fn create_sharing(
    c: &mut Client,
    name: &str,
    query: &str,
) -> Result<StreamTableId, Error> {
    match create_sharing_as(c, name, query, Mode::Incremental).await {
        Err(error) if error.to_string().contains("incrementally") => {
            create_sharing_as(c, name, query, Mode::Auto).await
        }
        created => created,
    }
}

/// The same with a `refresh_mode`.
pub async fn create_sharing_as(
    c: &mut Client,
    name: &str,
    query: &str,
    refresh_mode: Mode,
) -> Result<StreamTableId, Error> {
    let id = define(c, name, query, refresh_mode, true).await?;
    let loaded = loop {
        match engine::load_with_sources(c, &memory(), id).await {
            Err(Error::Busy | Error::LockNotAvailable(_) | Error::Conflict(_)) => {
                c.query("ROLLBACK").await?;
            }
            loaded => break loaded,
        }
    };
    c.query("ROLLBACK").await?;
    c.query("BEGIN").await?;
    let loaded = match loaded {
        Ok(false) => engine::load(c, id, Isolation::ReadCommitted).await,
        other => other.map(|_| ()),
    };
    if loaded.is_err() {
        c.query("ROLLBACK").await?;
        c.query("BEGIN").await?;
        engine::drop(c, id, false).await?;
    }
    c.query("COMMIT").await?;
    loaded.map(|()| id)
}

thread_local! {
    /// Of all databases of a test, whose stream tables have the same numbers: none may be taken for another.
    static MEMORY: Arc<Memory> = Arc::default();
}

/// What the test's thread knows of stream tables.
pub fn memory() -> Arc<Memory> {
    MEMORY.with(Arc::clone)
}

/// Refreshes until no other transaction is in the way.
pub async fn refresh(c: &mut Client, id: StreamTableId) -> RefreshOutcome {
    loop {
        match engine::refresh(c, &memory(), id, How::Auto).await {
            Ok(outcome) => return outcome,
            Err(error) if error.is_transient() => {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await
            }
            Err(error) => panic!("refresh of {id}: {error}"),
        }
    }
}

/// The rows that differ between table and query, with how many times the query has them more: one snapshot, both ways, by
/// the text of the row.
pub async fn differences(c: &mut Client, name: &str, query: &str) -> Vec<String> {
    let sql = format!(
        "SELECT sum(w) || ' x ' || row FROM (SELECT 1 AS w, pgt_q::text AS row FROM ({query}) pgt_q
            UNION ALL SELECT -1, pgt_t::text FROM {name} pgt_t) u GROUP BY row HAVING sum(w) <> 0"
    );
    let rows = Conn::query(c, &sql).await.expect("comparison");
    rows.iter()
        .filter_map(|r| r.text(0))
        .map(str::to_owned)
        .collect()
}
