//! CREATE STREAM TABLE, second step: the table and its data.

use super::record::{self, Record};
use super::{Isolation, StreamTableId, settings, stages};
use crate::catalog;
use crate::conn::{Conn, Error};
use crate::delta::apply::{self, Target};
use crate::plan::quote;

/// Creates the user's table with its data, index and frontier, in the caller's transaction. Does nothing if that is done.
///
/// # Errors
/// Those of the server, of the query too.
pub async fn load<C: Conn>(
    c: &mut C,
    id: StreamTableId,
    isolation: Isolation,
) -> Result<(), Error> {
    // Two sessions may want to finish one creation: the second finds it done.
    c.query(&format!(
        "SELECT 1 FROM pgtrickle.catalog WHERE id = {id} FOR UPDATE"
    ))
    .await?;
    let record = record::read(c, id).await?;
    if record.relid.is_some() {
        return Ok(());
    }
    let (saved, _) = settings::pin(c, Some(&record.plan.settings)).await?;
    c.batch(&record.locks()).await?;
    let name = format!("{}.{}", quote(&record.schema), quote(&record.name));
    c.query(&format!(
        "CREATE TABLE {name} AS SELECT * FROM pgtrickle.def_{id} WITH NO DATA"
    ))
    .await?;
    let relid = catalog::regclass(c, &name).await?;
    let target = Target {
        name,
        columns: record.plan.columns.iter().map(|c| c.name.clone()).collect(),
    };
    let mut statements = Vec::new();
    if record.with_data {
        statements.extend(settings::under_creators_path(
            &record.plan,
            fill(&record, &target, isolation)?,
        ));
    }
    let status = if record.with_data {
        "active"
    } else {
        "suspended"
    };
    statements.push(format!(
        "UPDATE pgtrickle.catalog SET relid = {relid}, status = '{status}',
            last_refresh = CASE WHEN with_data THEN clock_timestamp() END,
            full_seconds = CASE WHEN with_data THEN date_part('epoch', clock_timestamp() - transaction_timestamp()) END
         WHERE id = {id}"
    ));
    statements.extend(apply::index(
        &record.plan.body,
        &record.plan.columns,
        &target,
    ));
    statements.push(format!("ANALYZE {}", target.name));
    statements.extend(stages::analyze(id.0, &record.plan));
    c.batch(&statements).await?;
    saved.restore(c).await
}

/// One statement, so one snapshot also under READ COMMITTED: data, stages, states and frontier.
fn fill(record: &Record, target: &Target, isolation: Isolation) -> Result<String, Error> {
    let columns: Vec<_> = target.columns.iter().map(|c| quote(c)).collect();
    let into = if columns.is_empty() {
        String::new()
    } else {
        format!(" ({})", columns.join(", "))
    };
    let (mut ctes, rows) = stages::fill(record.id.0, &record.plan)?;
    ctes.push(format!(
        "data AS (INSERT INTO {}{into} {rows})",
        target.name
    ));
    if isolation == Isolation::ReadCommitted {
        ctes.push(frontier(record));
    }
    Ok(format!("WITH {} SELECT 1", ctes.join(", ")))
}

/// The CTE that moves the frontier to the statement's own snapshot.
pub(super) fn frontier(record: &Record) -> String {
    format!(
        "frontier AS (UPDATE pgtrickle.catalog SET frontier_snapshot = pg_catalog.pg_current_snapshot(),
            frontier_xid = pg_catalog.pg_current_xact_id(), frontier_seq = pg_catalog.nextval('pgtrickle.change_seq'), frontier_cluster = {}
            WHERE id = {})",
        record::cluster(&record.plan),
        record.id
    )
}
