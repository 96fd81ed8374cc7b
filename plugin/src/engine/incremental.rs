//! A refresh from the changes: the delta of each stage, and then that of the result.

use super::conclude::{Done, finish};
use super::look::{Changes, Now};
use super::rebuild::rebuild;
use super::record::Record;
use super::refresh::Attempt;
use super::{cost, recursion, settings, stages};
use crate::conn::{Conn, Error, Statement};
use crate::delta::stage::staging;
use crate::delta::state::Onto;
use crate::delta::{apply, estimated_rows, keyed, partition};
use crate::plan::terms::Olds;
use crate::plan::{Body, Column};

/// From so many changes on, what many terms save is more than it takes to plan them. Few in a debug build, so that tests, whose
/// tables are small, meet both ways.
const APART_FROM: i64 = if cfg!(debug_assertions) { 8 } else { 500 };

/// Takes in what is staged, to the end of the refresh.
///
/// # Errors
/// Those of the server, which may be of the delta's making.
pub(super) async fn incremental<C: Conn>(
    c: &mut C,
    record: &mut Record,
    now: &Now,
    changes: &[Changes],
) -> Result<Attempt, Error> {
    let id = record.id.0;
    let due = changes.iter().map(|c| c.due).sum();
    record.resize(c, due).await?;
    let changes: Vec<_> = changes.iter().filter(|c| c.net > 0).collect();
    let changed: Vec<_> = changes.iter().map(|c| c.relid).collect();
    let mut total = changes.iter().map(|c| c.net).sum();
    let mut emptied = Vec::new();
    let mut statements: Vec<Statement> = Vec::new();
    let olds = if total < APART_FROM {
        Olds::Within
    } else {
        statements.push(settings::IN_MEMORY.to_owned().into());
        Olds::Apart
    };
    for changes in &changes {
        let table = staging(id, changes.buffer);
        let analyze = analyze(&table, changes.net, changes.analysed);
        statements.extend(analyze.map(Statement::from));
        emptied.push(table);
    }
    let mut changed_stages = Vec::new();
    for i in 0..record.plan.stages.len() {
        let delta = record.delta(i, &changed, &changed_stages, olds)?;
        let stage = &record.plan.stages[i];
        let slot = format!("{id}_{}", i + 1);
        let target = stages::target(id, i + 1, stage);
        let mut count = 0;
        if let Some(delta) = delta {
            let piece = Piece {
                slot: &slot,
                body: &stage.body,
                columns: &stage.columns,
                table: &target.name,
            };
            let out = format!("pgtrickle.out_{slot}");
            if let Body::Recursive(recursive) = &stage.body {
                let far = recursion::change(c, record, i, recursive, &delta, &mut statements);
                if far.await? {
                    emptied.push(out);
                    recursion::give_up(c, record, &emptied).await?;
                    return rebuild(c, record, now, recursion::TOO_FAR, Onto::Old).await;
                }
            } else {
                piece.change(c, record, &delta, &mut statements).await?;
            }
            let look = format!("SELECT count(*), {} FROM {out}", estimated_rows(&out));
            statements.push(look.into());
            let results = c.run(&std::mem::take(&mut statements)).await?;
            let row = results.last().and_then(|r| r.first()).cloned();
            let row = row.unwrap_or_default();
            count = row.int(0).unwrap_or_default();
            if count > 0 {
                let analysed = row.text(1).and_then(|n| n.parse().ok());
                statements.extend(analyze(&out, count, analysed).map(Statement::from));
                let replace = apply::replace(&slot, &stage.body, &stage.columns, &target);
                statements.push(format!("WITH {replace} SELECT ok FROM checked").into());
            }
            emptied.push(out);
            total += count;
        }
        changed_stages.push(count > 0);
    }
    if let Some(delta) = record.delta(changed_stages.len(), &changed, &changed_stages, olds)? {
        let slot = id.to_string();
        let piece = Piece {
            slot: &slot,
            body: &record.plan.body,
            columns: &record.plan.columns,
            table: &record.target()?.name,
        };
        piece.change(c, record, &delta, &mut statements).await?;
        let analyze = analyze(&format!("pgtrickle.out_{id}"), total, now.out_rows());
        statements.extend(analyze.map(Statement::from));
    }
    if olds == Olds::Apart {
        statements.push(settings::ANYWHERE.to_owned().into());
    }
    let done = Done {
        mode: "incremental",
        reason: None,
        changes: (due >= cost::MANY).then_some(due),
        emptied: &emptied,
    };
    finish(c, record, now, statements, done).await
}

/// A stage, or the result.
struct Piece<'a> {
    slot: &'a str,
    body: &'a Body,
    columns: &'a [Column],
    /// The table its rows are in.
    table: &'a str,
}

impl Piece<'_> {
    /// Adds the statements that put the change of its rows into its staging table. `delta` is that of its body.
    async fn change<C: Conn>(
        &self,
        c: &mut C,
        record: &Record,
        delta: &str,
        statements: &mut Vec<Statement>,
    ) -> Result<(), Error> {
        let slot = self.slot;
        let kept = |sql: String| record.kept(&sql, Vec::new());
        let affected = match self.body {
            Body::Keyed(k) if k.by_weights => {
                statements.push(kept(keyed::by_weights(slot, k, self.columns, delta)));
                keyed::left_over(slot, k)
            }
            Body::Keyed(k) => Some(keyed::affected(slot, k.keys.len(), k.args.len(), delta)),
            Body::Partition(p) => Some(keyed::affected(slot, p.keys.len(), p.args, delta)),
            Body::Linear { .. } | Body::Full { .. } | Body::Recursive(_) => {
                statements.push(kept(apply::collect(slot, self.columns, "", delta)));
                None
            }
        };
        let Some(affected) = affected else {
            return Ok(());
        };
        statements.push(kept(affected));
        let results = c.run(&std::mem::take(statements)).await?;
        let row = results.last().and_then(|r| r.first()).cloned();
        let row = row.unwrap_or_default();
        let count = row.int(0).unwrap_or_default();
        if count > 0 {
            let analysed = row.text(2).and_then(|n| n.parse().ok());
            statements.extend(
                analyze(&format!("pgtrickle.keys_{slot}"), count, analysed).map(Statement::from),
            );
            let recompute = match self.body {
                Body::Keyed(k) => keyed::recompute(slot, k, self.columns, row.is_true(1)),
                Body::Partition(p) => {
                    partition::recompute(slot, p, self.columns, self.table, row.is_true(1))
                }
                Body::Linear { .. } | Body::Full { .. } | Body::Recursive(_) => Vec::new(),
            };
            statements.extend(recompute.into_iter().map(kept));
        }
        Ok(())
    }
}

/// ANALYZE where the staging table's size is far from what the planner last heard of: it would scan whole tables for a few
/// rows. A table analysed while empty counts as never analysed, as PostgreSQL takes it for ten pages then.
pub(super) fn analyze(table: &str, rows: i64, analysed: Option<f64>) -> Option<String> {
    let (rows, analysed) = (rows as f64, analysed.unwrap_or(-1.0));
    let known = analysed > 0.0
        && rows <= 4.0 * analysed.max(25.0)
        && (analysed <= 100.0 || rows * 4.0 >= analysed);
    (rows > 0.0 && !known).then(|| format!("ANALYZE (SKIP_LOCKED) {table}"))
}
