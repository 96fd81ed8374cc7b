//! The change of a stage of WITH RECURSIVE.

use super::conclude::Place;
use super::incremental::analyze;
use super::look::Now;
use super::rebuild::rebuild;
use super::record::Record;
use super::refresh::Attempt;
use crate::conn::{Conn, Error, Statement};
use crate::delta::recursion::Recursion;
use crate::plan::cut::stage_name;
use crate::plan::{Body, Recursive};

/// What is said of a refresh that gave a walk up.
const TOO_FAR: &str = "the changes reach as many rows as recomputing finds";

/// Recomputing after that may take so many seconds,
const LONG: u32 = 60;

/// or so many times as long as it took before.
const LONG_TIMES: u32 = 20;

/// A full refresh in the transaction in which a walk was given up: `used` are the staging tables so far. The query may have no
/// end itself (a circle in what was a tree, say), so that is given an end after a time.
///
/// # Errors
/// Those of the server.
pub(super) async fn rebuild_instead<C: Conn>(
    c: &mut C,
    record: &Record,
    now: &Now,
    used: &[String],
) -> Result<Attempt, Error> {
    let mut statements: Vec<_> = used.iter().map(|t| format!("DELETE FROM {t}")).collect();
    for (i, stage) in record.plan.stages.iter().enumerate() {
        if matches!(&stage.body, Body::Recursive(r) if !r.all) {
            statements.push(format!(
                "DELETE FROM pgtrickle.keys_{}_{}",
                record.id,
                i + 1
            ));
        }
    }
    c.batch(&statements).await?;
    let limit = format!(
        "SELECT set_config('statement_timeout', (1000 * greatest({LONG}, {LONG_TIMES} * full_seconds))::int8::text, true)
         FROM pgtrickle.catalog WHERE id = {} AND current_setting('statement_timeout') = '0'",
        record.id
    );
    let limited = !c.query(&limit).await?.is_empty();
    let rebuilt = rebuild(c, record, now, TOO_FAR).await?;
    if limited && now.place != Place::Alone {
        // Others are refreshed in the same transaction.
        c.query("SET LOCAL statement_timeout = 0").await?;
    }
    Ok(rebuilt)
}

/// Runs `statements`, and puts the change of stage `i` (from 0) into its staging table. `delta` is that of base and step.
/// Returns whether that was given up, as it reaches too many rows.
pub(super) async fn change<C: Conn>(
    c: &mut C,
    record: &Record,
    i: usize,
    recursive: &Recursive,
    delta: &str,
    statements: &mut Vec<Statement>,
) -> Result<bool, Error> {
    let id = record.id.0;
    let (slot, stage) = (format!("{id}_{}", i + 1), stage_name(id, i + 1));
    let recursion = Recursion {
        slot: &slot,
        stage: &stage,
        recursive,
        columns: &record.plan.stages[i].columns,
    };
    let step = recursion.step(record.plan.inputs(id, |_| false, &[]))?;
    if recursive.all {
        statements.push(recursion.all(delta, &step).into());
        let results = c.run(&std::mem::take(statements)).await?;
        return Ok(results
            .last()
            .and_then(|r| r.first())
            .is_some_and(|r| r.is_true(0)));
    }
    statements.push(recursion.gone(delta, &step).into());
    let results = c.run(&std::mem::take(statements)).await?;
    let row = results.last().and_then(|r| r.first()).cloned();
    let row = row.unwrap_or_default();
    if row.is_true(0) {
        return Ok(true);
    }
    let count = row.int(1).unwrap_or_default();
    let analysed = row.text(2).and_then(|n| n.parse().ok());
    let keys = format!("pgtrickle.keys_{slot}");
    statements.extend(analyze(&keys, count, analysed).map(Statement::from));
    let nulls: Vec<_> = (3..row.0.len()).map(|i| row.is_true(i)).collect();
    let nulls = (count > 0).then_some(nulls.as_slice());
    statements.push(recursion.come(delta, &step, nulls)?.into());
    let results = c.run(&std::mem::take(statements)).await?;
    Ok(results
        .last()
        .and_then(|r| r.first())
        .is_some_and(|r| r.is_true(0)))
}
