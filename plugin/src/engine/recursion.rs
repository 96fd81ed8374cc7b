//! The change of a stage of WITH RECURSIVE.

use super::incremental::analyze;
use super::record::Record;
use crate::conn::{Conn, Error, Statement};
use crate::delta::recursion::Recursion;
use crate::plan::cut::stage_name;
use crate::plan::{Body, Recursive, Stage};

/// What is said of a refresh that gave a walk up.
pub(super) const TOO_FAR: &str = "the changes reach as many rows as recomputing finds";

/// Recomputing a recursion may take so many seconds,
const LONG: u32 = 60;

/// or so many times as long as it took before. Twice as long after each failure.
const LONG_TIMES: u32 = 20;

/// Empties what a walk that was given up has put into staging tables: `used`, and its keys.
///
/// # Errors
/// Those of the server.
pub(super) async fn give_up<C: Conn>(
    c: &mut C,
    record: &Record,
    used: &[String],
) -> Result<(), Error> {
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
    c.batch(&statements).await.map(|_| ())
}

/// A recursion may have no end (a circle in what was a tree, say), so that recomputing it is given one, unless the role has set
/// one itself. Returns whether it is for this transaction to take it back.
///
/// # Errors
/// Those of the server.
pub(super) async fn limit<C: Conn>(c: &mut C, record: &Record) -> Result<bool, Error> {
    let is_recursive = |stage: &Stage| matches!(stage.body, Body::Recursive(_));
    if !record.plan.stages.iter().any(is_recursive) {
        return Ok(false);
    }
    let sql = format!(
        "SELECT pg_catalog.set_config('statement_timeout', least(2000000000, 1000 * greatest({LONG}, {LONG_TIMES} * full_seconds)
            * pg_catalog.power(2, least(failures, 10)))::int8::text, true)
         FROM pgtrickle.catalog WHERE id = {} AND pg_catalog.current_setting('statement_timeout') = '0'",
        record.id
    );
    Ok(!c.query(&sql).await?.is_empty())
}

/// The error of a recomputation that was limited.
pub(super) fn beyond_limit(error: Error) -> Error {
    match error {
        Error::Server(mut fields) if fields.code == "57014" => {
            let hint = "The recursion may have no end. If it has, REFRESH STREAM TABLE ... FULL takes as long as it needs.";
            fields.hint = Some(hint.to_owned());
            Error::Server(fields)
        }
        error => error,
    }
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
