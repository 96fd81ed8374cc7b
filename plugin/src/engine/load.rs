//! CREATE STREAM TABLE, second step: the table and its data.

use super::record::{self, Record};
use super::refresh::may_be_ours;
use super::{Isolation, StreamTableId, replan, settings, stages};
use crate::catalog;
use crate::conn::{Conn, Error};
use crate::delta::apply::{self, Target};
use crate::delta::state::Onto;
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
    let mut record = record::locked(c, id).await?;
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
    if record.with_data {
        record = filled(c, record, &target, isolation).await?;
    }
    let status = if record.with_data {
        "active"
    } else {
        "suspended"
    };
    let mut statements = vec![format!(
        "UPDATE pgtrickle.catalog SET relid = {relid}, status = '{status}',
            last_refresh = CASE WHEN with_data THEN clock_timestamp() END,
            full_seconds = CASE WHEN with_data THEN date_part('epoch', clock_timestamp() - transaction_timestamp()) END
         WHERE id = {id}"
    )];
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

/// Fills the table, and returns the record by which that was done. A part of the query may fail where the whole does not, as
/// PostgreSQL does not compute what nobody reads: then the whole is recomputed from now on.
async fn filled<C: Conn>(
    c: &mut C,
    record: Record,
    target: &Target,
    isolation: Isolation,
) -> Result<Record, Error> {
    let statements = fill(c, &record, target, isolation).await?;
    if !record.is_by_parts() {
        c.batch(&statements).await?;
        return Ok(record);
    }
    c.query("SAVEPOINT pgtrickle_load").await?;
    let failure = match c.batch(&statements).await {
        Err(Error::Server(fields)) if may_be_ours(&fields.code) => fields,
        outcome => {
            outcome?;
            c.query("RELEASE SAVEPOINT pgtrickle_load").await?;
            return Ok(record);
        }
    };
    c.batch(&[
        "ROLLBACK TO SAVEPOINT pgtrickle_load".to_owned(),
        "RELEASE SAVEPOINT pgtrickle_load".to_owned(),
    ])
    .await?;
    let id = record.id;
    if record.refresh_mode == "incremental" {
        // That is refused, unless the query itself fails. The whole row, or its columns would not be computed.
        let whole = format!("SELECT pg_catalog.count(q) FROM pgtrickle.def_{id} q");
        c.query(&whole).await?;
    }
    replan::recompute(c, id, &failure).await?;
    let record = record::read(c, id).await?;
    let statements = fill(c, &record, target, isolation).await?;
    c.batch(&statements).await?;
    Ok(record)
}

/// One statement, so one snapshot also under READ COMMITTED: data, stages, states and frontier.
async fn fill<C: Conn>(
    c: &mut C,
    record: &Record,
    target: &Target,
    isolation: Isolation,
) -> Result<Vec<String>, Error> {
    let columns: Vec<_> = target.columns.iter().map(|c| quote(c)).collect();
    let into = if columns.is_empty() {
        String::new()
    } else {
        format!(" ({})", columns.join(", "))
    };
    if record.plan.reads_shared() && isolation != Isolation::Together {
        // The shared stages may be of another moment: from the sources themselves, until the first refresh.
        let fill = format!(
            "INSERT INTO {}{into} SELECT * FROM pgtrickle.def_{}",
            target.name, record.id
        );
        return Ok(settings::under_creators_path(&record.plan, fill));
    }
    let function = stages::function(c, record.id.0, &record.plan).await?;
    let (mut ctes, rows) =
        stages::fill(record.id.0, &record.plan, function.as_deref(), Onto::Empty)?;
    ctes.push(format!(
        "data AS (INSERT INTO {}{into} {rows})",
        target.name
    ));
    if isolation != Isolation::SnapshotTooOld {
        ctes.push(frontier(record));
    }
    let fill = format!("WITH {} SELECT 1", ctes.join(", "));
    Ok(settings::under_creators_path(&record.plan, fill))
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
