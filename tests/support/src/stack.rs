//! A server with a pooler in front of it, and the comparison every stream-table test ends in.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio_postgres::error::DbError;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use crate::{Pooler, PoolerConfig, Postgres, Psql, Settings};

/// PostgreSQL with a database `app` that belongs to the plain role `app`, and a pooler with stream
/// tables for it. `postgres` is a superuser on both.
pub struct Stack {
    // Fields are dropped in order: the pooler must not see its server go away.
    pub pooler: Pooler,
    pub postgres: Postgres,
}

impl Stack {
    pub fn start(binary: impl AsRef<Path>, major: u32) -> Self {
        Self::start_with(binary, major, &Settings::default(), |config| config)
    }

    /// As [`Self::start`], with settings for the server and further configuration of the pooler.
    pub fn start_with(
        binary: impl AsRef<Path>,
        major: u32,
        settings: &Settings,
        configure: impl Fn(PoolerConfig) -> PoolerConfig,
    ) -> Self {
        let postgres = Postgres::start_with(major, settings);
        let superuser = postgres.psql("postgres", "postgres");
        superuser.run(&[
            "CREATE ROLE app LOGIN PASSWORD 'app'",
            "CREATE DATABASE app OWNER app",
        ]);
        // From 15 on only the database's owner may create in public; 14 lets everybody.
        postgres
            .psql("postgres", "app")
            .run(&["ALTER SCHEMA public OWNER TO app"]);
        let config = PoolerConfig::new(&postgres)
            .databases(&["app"])
            .user("app", 10)
            .user("postgres", 3)
            .stream_tables();
        let pooler = Pooler::start(binary, &configure(config));
        Self { pooler, postgres }
    }

    /// A client of `app` through the pooler.
    pub async fn pooled(&self) -> Client {
        self.pooler.client("app", "app").await
    }

    /// A client of `app` beside the pooler.
    pub async fn direct(&self) -> Client {
        self.postgres.client("app", "app").await
    }

    /// psql of `app` through the pooler.
    pub fn psql(&self) -> Psql {
        self.pooler.psql("app", "app")
    }

    /// psql of `app` beside the pooler.
    pub fn direct_psql(&self) -> Psql {
        self.postgres.psql("app", "app")
    }
}

/// How two queries' results differ as multisets of row images, at most 20 rows of it, seen by one
/// snapshot. Rows are compared by their text: `1.0` and `1.00`, `0` and `-0`, `bob` and `Bob` differ
/// for every type, whatever its `=` says.
pub async fn differences(client: &Client, left: &str, right: &str) -> Result<Vec<String>, Error> {
    let sql = format!(
        // Names that no test's query refers to.
        "WITH stored__ AS (SELECT compared::text AS image, count(*) AS n FROM ({left}) AS compared GROUP BY 1),
              defined__ AS (SELECT compared::text AS image, count(*) AS n FROM ({right}) AS compared GROUP BY 1)
         SELECT coalesce(a.image, b.image), coalesce(a.n, 0), coalesce(b.n, 0)
         FROM stored__ a FULL JOIN defined__ b ON a.image = b.image
         WHERE a.n IS DISTINCT FROM b.n ORDER BY 1 LIMIT 20"
    );
    let rows = client.simple_query(&sql).await?;
    Ok(rows
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(format!(
                "{} ×{} in the table, ×{} in the query",
                row.get(0).unwrap_or_default(),
                row.get(1).unwrap_or_default(),
                row.get(2).unwrap_or_default()
            )),
            _ => None,
        })
        .collect())
}

/// Waits until a stream table equals its query, and returns how long that took.
///
/// # Panics
/// If it does not within `limit`, with the rows that differ and what the catalog says.
pub async fn converges(client: &Client, table: &str, query: &str, limit: Duration) -> Duration {
    converges_as(
        client,
        &format!("SELECT * FROM {table}"),
        query,
        table,
        limit,
    )
    .await
}

/// As [`converges`], with a query of its own for the table's side.
pub async fn converges_as(
    client: &Client,
    stored: &str,
    query: &str,
    table: &str,
    limit: Duration,
) -> Duration {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let asked = Instant::now();
        let differences = match differences(client, stored, query).await {
            Ok(differences) if differences.is_empty() => return asked - start,
            Ok(differences) => differences.join("\n  "),
            Err(error) => panic!("{table}: {error:?}\n{stored}\n{query}"),
        };
        if start.elapsed() > limit {
            panic!(
                "{table} differs from its query after {limit:?}:\n  {differences}\nquery: {query}\ncatalog: {}\nsessions:\n{}",
                catalog_row(client, table).await,
                sessions(client).await
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// What `pgtrickle.stream_tables` says about a table, for the output of a failed test.
pub async fn catalog_row(client: &Client, table: &str) -> String {
    let name = table.rsplit('.').next().unwrap_or(table).trim_matches('"');
    let sql = format!("SELECT s::text FROM pgtrickle.stream_tables s WHERE name = '{name}'");
    match client.simple_query(&sql).await {
        Ok(messages) => messages
            .iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .unwrap_or_else(|| "no row".to_owned()),
        Err(error) => format!("{error:?}"),
    }
}

/// What the server's sessions of this database are doing, one per line.
pub async fn sessions(client: &Client) -> String {
    let sql = "SELECT string_agg(concat_ws(' ', pid, state, now() - state_change, wait_event, left(query, 120)), E'\\n')
        FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    scalar(client, sql).await.unwrap_or_default()
}

/// The single value of a query's single row, as text (`None`: NULL or no row).
pub async fn scalar(client: &Client, sql: &str) -> Option<String> {
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(error) => panic!("{sql}: {error:?}"),
    };
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// The server's error for a statement that must fail.
pub async fn refused(client: &Client, sql: &str) -> DbError {
    let error = client.batch_execute(sql).await.expect_err(sql);
    error
        .as_db_error()
        .unwrap_or_else(|| panic!("{sql}: {error:?}"))
        .clone()
}
