//! `EXPLAIN STREAM TABLE` and `EXPLAIN CREATE STREAM TABLE`.

use std::time::Instant;

use pgcat::plugins::{Column, TransactionContext};

use super::lookup::stream_table;
use super::parse::Create;
use super::syntax::QualifiedName;
use super::{create, refresh};
use crate::conn::Error;
use crate::engine;
use crate::session::Session;

/// The result's column, as PostgreSQL's EXPLAIN has it.
pub(crate) fn columns() -> Vec<Column> {
    vec![Column::text("QUERY PLAN")]
}

/// How the stream table is kept. `analyze`: refreshes it, and tells what that did.
///
/// # Errors
/// As REFRESH.
pub(crate) async fn run(
    session: &mut impl Session,
    name: &QualifiedName,
    analyze: bool,
    verbose: bool,
) -> Result<Vec<Vec<Option<String>>>, Error> {
    let (id, relation) = stream_table(session, name).await?;
    relation.require_owner()?;
    let begin = Instant::now();
    if analyze {
        refresh::run(session, name, false).await?;
    }
    let took = begin.elapsed();
    let mut lines = engine::explain(session, id, verbose).await?;
    if analyze {
        lines.extend(engine::last_refreshes(session, id).await?);
        lines.push(format!(
            "Execution Time: {:.3} ms",
            took.as_secs_f64() * 1e3
        ));
    }
    Ok(rows(lines))
}

/// How a stream table would be kept. Nothing is left behind.
///
/// # Errors
/// As CREATE.
pub(crate) async fn run_create(
    session: &mut impl Session,
    create: &Create,
    default_schedule: &str,
) -> Result<Vec<Vec<Option<String>>>, Error> {
    let Some(schema) = create::target(session, create).await? else {
        return Ok(Vec::new());
    };
    let definition = create::definition(create, schema, default_schedule);
    if session.transaction() != TransactionContext::None {
        const SAVEPOINT: &str = "pgtrickle_explain";
        session.query(&format!("SAVEPOINT {SAVEPOINT}")).await?;
        let lines = engine::explain_definition(session, &definition).await?;
        session
            .query(&format!("ROLLBACK TO SAVEPOINT {SAVEPOINT}"))
            .await?;
        session
            .query(&format!("RELEASE SAVEPOINT {SAVEPOINT}"))
            .await?;
        return Ok(rows(lines));
    }
    session.begin().await?;
    let lines = engine::explain_definition(session, &definition).await;
    session.rollback().await?;
    Ok(rows(lines?))
}

fn rows(lines: Vec<String>) -> Vec<Vec<Option<String>>> {
    lines.into_iter().map(|line| vec![Some(line)]).collect()
}
