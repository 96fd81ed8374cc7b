//! Runs a case and compares the stream table with its query after each refresh.

use std::collections::BTreeMap;

use stream_tables::conn::{Conn, Error};
use stream_tables::engine::{self, How, RefreshOutcome, StreamTableId};
use tokio_postgres::Client;

use crate::case::{Case, comparison};
use crate::dml::Batch;
use crate::engine_support::{create, create_sharing, memory};

/// What a case came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Exact(Run),
    /// PostgreSQL itself refuses the query or cannot run it, or we refuse it with a reason.
    Skipped(String),
    Failed(Failure),
}

/// A run without a fault.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    /// Why refreshes are full, if they are.
    pub full: Option<String>,
    /// Refreshes by mode.
    pub refreshes: BTreeMap<&'static str, usize>,
    /// Statements that PostgreSQL refused (keys taken, say).
    pub refused_writes: usize,
    pub writes: usize,
    /// Shared stages.
    pub shared: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The same for a smaller case that fails for the same reason.
    pub kind: String,
    pub details: String,
    /// After how many batches.
    pub batch: usize,
}

/// A fault of the engine, made by hand: the check must see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    None,
    /// A row too many before the last comparison.
    ExtraRow,
    /// The last batch is not captured.
    MissBatch,
}

/// Something ends a case early.
enum Stop {
    Skip(String),
    Fail(String, String),
}

const NAME: &str = "st";

/// Runs a case in a database of its own, and leaves it as it was.
pub async fn run(c: &mut Client, case: &Case, sabotage: Sabotage) -> Verdict {
    let mut batch = 0;
    let result = steps(c, case, sabotage, &mut batch).await;
    let verdict = match result {
        Ok(run) => return Verdict::Exact(run),
        Err(Stop::Skip(reason)) => Verdict::Skipped(reason),
        Err(Stop::Fail(kind, details)) => Verdict::Failed(Failure {
            kind,
            details,
            batch,
        }),
    };
    // Whatever is left of it, however long that takes: the timeout is for the case.
    for sql in [
        "ROLLBACK; SET statement_timeout = 0",
        "SET session_replication_role = origin; SET client_min_messages = error;
         DROP SCHEMA IF EXISTS pgtrickle CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public",
        "SET statement_timeout = '5s'",
    ] {
        c.batch_execute(sql)
            .await
            .expect("the database can be emptied");
    }
    verdict
}

async fn steps(
    c: &mut Client,
    case: &Case,
    sabotage: Sabotage,
    at: &mut usize,
) -> Result<Run, Stop> {
    set_up(c, case).await?;
    let query = case.query.to_string();
    let id = match create(c, NAME, &query).await {
        Ok(id) => id,
        Err(error) => return Err(explain(c, "CREATE", error, &query).await),
    };
    let mut run = Run {
        full: reason(c).await,
        ..Run::default()
    };
    compare(c, NAME, &query, "after CREATE").await?;
    let mut others = Vec::new();
    for other in case.others {
        let query = other.query(&query);
        match create_sharing(c, other.name, &query).await {
            Ok(id) => others.push((id, other.name, query)),
            Err(error) => return Err(explain(c, "CREATE", error, &query).await),
        }
    }
    for (_, name, query) in &others {
        compare(c, name, query, "after CREATE").await?;
    }
    run.shared = shared(c).await;
    if run.shared > 0 {
        // It is planned anew, and reads them.
        refresh(c, id, How::Auto, &query).await?;
    }
    for (i, batch) in case.batches.iter().enumerate() {
        *at = i + 1;
        let last = i + 1 == case.batches.len();
        if batch.cleanup
            && let Err(error) = engine::cleanup_buffers(c).await
        {
            return Err(explain(c, "clean-up", error, &query).await);
        }
        let missed = last && sabotage == Sabotage::MissBatch;
        if missed {
            let _ = c
                .batch_execute("SET session_replication_role = replica")
                .await;
        }
        write(c, batch, &mut run).await;
        if missed {
            let _ = c
                .batch_execute("SET session_replication_role = origin")
                .await;
        }
        let how = match (batch.full, i % 2) {
            (true, 0) => How::Full,
            // The same, but what is hidden is compared and not made anew.
            (true, _) => {
                c.batch_execute("UPDATE pgtrickle.catalog SET frontier_snapshot = NULL")
                    .await
                    .expect("the catalog can be written");
                How::Auto
            }
            (false, _) => How::Auto,
        };
        let outcome = refresh(c, id, how, &query).await?;
        unexpected(&run, batch, &outcome)?;
        *run.refreshes.entry(outcome.mode).or_default() += 1;
        if last && sabotage == Sabotage::ExtraRow {
            let _ = c.batch_execute("INSERT INTO st DEFAULT VALUES").await;
        }
        compare(c, NAME, &query, outcome.mode).await?;
        for (n, (id, name, query)) in others.iter().enumerate() {
            // One of them every time, the other every other time.
            if n == 0 || i % 2 == 0 || last {
                let outcome = refresh(c, *id, How::Auto, query).await?;
                compare(c, name, query, outcome.mode).await?;
            }
        }
    }
    if run.full.is_none() {
        recomputed(c).await?;
    }
    let again = refresh(c, id, How::Auto, &query).await?;
    if again.changed {
        return Err(Stop::Fail(
            "restless".to_owned(),
            format!("a second refresh changed rows: {again:?}"),
        ));
    }
    let full = refresh(c, id, How::Full, &query).await?;
    compare(c, NAME, &query, "after REFRESH FULL").await?;
    if full.changed {
        return Err(Stop::Fail(
            "restless".to_owned(),
            format!("a full refresh rewrote equal rows: {full:?}"),
        ));
    }
    let dropped = async {
        Conn::query(c, "BEGIN").await?;
        engine::drop(c, id, false).await?;
        for (id, ..) in &others {
            engine::drop(c, *id, false).await?;
        }
        Conn::query(c, "COMMIT").await.map(|_| ())
    };
    if let Err(error) = dropped.await {
        return Err(Stop::Fail(
            format!("DROP: {}", error.code()),
            error.to_string(),
        ));
    }
    // Those that larger ones have taken the place of are left to the clean-up.
    if let Err(error) = engine::cleanup_buffers(c).await {
        return Err(explain(c, "clean-up", error, &query).await);
    }
    if shared(c).await > 0 {
        let details = "shared stages are left after DROP".to_owned();
        return Err(Stop::Fail("left over".to_owned(), details));
    }
    c.batch_execute(
        "SET client_min_messages = error; DROP SCHEMA public CASCADE; CREATE SCHEMA public",
    )
    .await
    .expect("the schema can be emptied");
    Ok(run)
}

/// How many shared stages there are.
async fn shared(c: &mut Client) -> usize {
    let sql = "SELECT FROM pgtrickle.catalog WHERE shares IS NOT NULL";
    Conn::query(c, sql).await.expect("pgtrickle.catalog").len()
}

/// A delta that fails is made up for by recomputing, of a shared stage too.
async fn recomputed(c: &mut Client) -> Result<(), Stop> {
    let sql = "SELECT stream_table || ': ' || reason FROM pgtrickle.history WHERE reason LIKE 'the change alone%'";
    let rows = Conn::query(c, sql).await.expect("pgtrickle.history");
    match rows.first() {
        None => Ok(()),
        Some(row) => {
            let details = row.text(0).unwrap_or_default().to_owned();
            Err(Stop::Fail("rebuilt".to_owned(), details))
        }
    }
}

/// At once where that works; else one by one, as the rows that PostgreSQL refuses are simply not there.
async fn set_up(c: &mut Client, case: &Case) -> Result<(), Stop> {
    let setup: Vec<_> = case.setup.iter().map(ToString::to_string).collect();
    if c.batch_execute(&setup.join(";\n")).await.is_ok() {
        return Ok(());
    }
    for statement in &setup {
        if let Err(error) = c.batch_execute(statement).await
            && !statement.starts_with("INSERT")
        {
            return Err(Stop::Skip(format!("setup: {}", message(&error))));
        }
    }
    Ok(())
}

/// Why the stream table is recomputed as a whole, if it is.
async fn reason(c: &mut Client) -> Option<String> {
    let sql = "SELECT effective_mode, reason FROM pgtrickle.stream_tables WHERE name = 'st'";
    let rows = Conn::query(c, sql).await.expect("pgtrickle.stream_tables");
    let row = rows.first().expect("the stream table is there");
    (row.text(0) == Some("full")).then(|| row.text(1).unwrap_or("no reason").to_owned())
}

/// An incremental plan is recomputed only after a TRUNCATE: anything else would hide a wrong change.
fn unexpected(run: &Run, batch: &Batch, outcome: &RefreshOutcome) -> Result<(), Stop> {
    let reason = outcome.reason.as_deref().unwrap_or_default();
    let wanted = run.full.is_some() || batch.full || reason.contains("truncated");
    if outcome.mode == "full" && !wanted {
        return Err(Stop::Fail(
            "rebuilt".to_owned(),
            format!("rebuilt, because {reason}"),
        ));
    }
    Ok(())
}

/// Statements that PostgreSQL refuses change nothing, here as in the script.
async fn write(c: &mut Client, batch: &Batch, run: &mut Run) {
    run.writes += batch.statements.len();
    if batch.together {
        let statements: Vec<_> = batch.statements.iter().map(ToString::to_string).collect();
        let sql = format!("BEGIN;\n{};\nCOMMIT", statements.join(";\n"));
        if c.batch_execute(&sql).await.is_err() {
            let _ = c.batch_execute("ROLLBACK").await;
            run.refused_writes += batch.statements.len();
        }
        return;
    }
    for statement in &batch.statements {
        run.refused_writes += usize::from(c.batch_execute(&statement.to_string()).await.is_err());
    }
}

async fn refresh(
    c: &mut Client,
    id: StreamTableId,
    how: How,
    query: &str,
) -> Result<RefreshOutcome, Stop> {
    loop {
        match engine::refresh(c, &memory(), id, how).await {
            Ok(outcome) => return Ok(outcome),
            // Autovacuum may be in the way.
            Err(error) if error.is_transient() && !matches!(error, Error::Connection(_)) => {}
            Err(error) => return Err(explain(c, "refresh", error, query).await),
        }
    }
}

/// An error of the engine is a fault, unless PostgreSQL has the same with the query itself.
async fn explain(c: &mut Client, what: &str, error: Error, query: &str) -> Stop {
    let _ = c.batch_execute("ROLLBACK").await;
    if let Error::Refused(fields) = &error {
        return Stop::Skip(format!("refused: {}", fields.message));
    }
    if error.code() == "57014" {
        return Stop::Skip("too slow".to_owned());
    }
    let own = match Conn::query(c, &format!("CREATE TEMP VIEW probe AS {query}")).await {
        Ok(_) => Conn::query(c, "SELECT * FROM probe").await,
        refused => refused,
    };
    match own {
        Err(own) if own.code() == error.code() => Stop::Skip(format!("PostgreSQL: {own}")),
        _ => Stop::Fail(format!("{what}: {}", error.code()), error.to_string()),
    }
}

async fn compare(c: &mut Client, name: &str, query: &str, when: &str) -> Result<(), Stop> {
    match Conn::query(c, &comparison(name, query)).await {
        Ok(rows) if rows.is_empty() => Ok(()),
        Ok(rows) => {
            let rows: Vec<_> = rows.iter().filter_map(|r| r.text(0)).take(8).collect();
            Err(Stop::Fail(
                "mismatch".to_owned(),
                format!("{name} {when}: {}", rows.join("; ")),
            ))
        }
        Err(error) => Err(Stop::Skip(format!("comparison: {error}"))),
    }
}

fn message(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |e| e.message().to_owned())
}
