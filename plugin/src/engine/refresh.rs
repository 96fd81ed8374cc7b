//! REFRESH: one REPEATABLE READ transaction that reads changes and tables in the same snapshot and moves the frontier to it.

use pgcat::plugins::ErrorFields;

use super::at_once;
use super::conclude::{Done, finish};
use super::look::{Changes, Now, look, opening};
use super::memory::Memory;
use super::rebuild::rebuild;
use super::record::{self, Record};
use super::recursion;
use super::{How, Isolation, RefreshOutcome, StreamTableId, cost, load, replan, settings, stages};
use crate::conn::{Conn, Error, Statement};
use crate::delta::stage::stage;
use crate::delta::{apply, estimated_rows, keyed, partition};
use crate::plan::{Body, Column};

/// Brings a stream table up to date, in transactions of its own.
///
/// # Errors
/// [`Error::Busy`] while another session does it, [`Error::Conflict`] and [`Error::LockNotAvailable`]: again a little later;
/// those of the query itself.
pub async fn refresh<C: Conn>(
    c: &mut C,
    memory: &Memory,
    id: StreamTableId,
    how: How,
) -> Result<RefreshOutcome, Error> {
    if let Some(record) = memory.take(id).filter(|_| how == How::Auto)
        && let Some(outcome) = by_memory(c, memory, record, None).await?
    {
        return Ok(outcome);
    }
    let record = record::read(c, id).await?;
    refresh_record(c, memory, record, None, how).await
}

/// The same for the stream table that a name stands for, found in one look at most. `None`: it stands for none of the
/// current role's.
///
/// # Errors
/// As [`refresh`]; and 42P01 in a database without stream tables.
pub async fn refresh_by_name<C: Conn>(
    c: &mut C,
    memory: &Memory,
    name: String,
    how: How,
) -> Result<Option<RefreshOutcome>, Error> {
    if let Some(record) = memory.take_named(&name).filter(|_| how == How::Auto)
        && let Some(outcome) = by_memory(c, memory, record, Some(&name)).await?
    {
        return Ok(Some(outcome));
    }
    let Some(record) = record::find(c, name.clone()).await? else {
        return Ok(None);
    };
    refresh_record(c, memory, record, Some(name), how)
        .await
        .map(Some)
}

/// Refreshes without reading the stream table's row first. `None`: it is not as remembered, or something is in the way that
/// the long way finds out.
async fn by_memory<C: Conn>(
    c: &mut C,
    memory: &Memory,
    mut record: Record,
    name: Option<&str>,
) -> Result<Option<RefreshOutcome>, Error> {
    if let Some(batch) = at_once::batch(&mut record, name)? {
        match batch.run(c, &mut record).await {
            Ok(outcome) => {
                remember(memory, record, name.map(str::to_owned), &outcome);
                return Ok(Some(outcome));
            }
            Err(error @ Error::Connection(_)) => return Err(error),
            Err(error) => {
                rollback(c).await;
                if matches!(error, Error::LockNotAvailable(_) | Error::Conflict(_)) {
                    return Err(error);
                }
                record.habit.surprised();
            }
        }
    }
    match attempt(c, &mut record, name, None).await {
        Ok(Attempt::Done(outcome)) => {
            remember(memory, record, name.map(str::to_owned), &outcome);
            Ok(Some(outcome))
        }
        Err(error @ Error::Connection(_)) => Err(error),
        Err(error @ (Error::LockNotAvailable(_) | Error::Conflict(_))) => {
            rollback(c).await;
            Err(error)
        }
        Ok(Attempt::Rebuild) | Err(_) => {
            rollback(c).await;
            Ok(None)
        }
    }
}

fn remember(memory: &Memory, record: Record, name: Option<String>, outcome: &RefreshOutcome) {
    // A full one was for a reason, or there is no other way.
    if matches!(outcome.mode, "incremental" | "none") {
        memory.keep(record, name);
    }
}

async fn refresh_record<C: Conn>(
    c: &mut C,
    memory: &Memory,
    mut record: Record,
    name: Option<String>,
    how: How,
) -> Result<RefreshOutcome, Error> {
    let mut demand = (how == How::Full).then_some("a full refresh was asked for");
    let mut attempts = 0;
    loop {
        match attempt(c, &mut record, None, demand).await {
            Ok(Attempt::Done(outcome)) => {
                remember(memory, record, name, &outcome);
                return Ok(outcome);
            }
            Ok(Attempt::Rebuild) if demand.is_some() => {
                rollback(c).await;
                let message = format!(
                    "rows of stream table \"{}\" could not be deleted",
                    record.name
                );
                let error = ErrorFields::error("55000", message);
                return Err(Error::Refused(Box::new(error.hint(
                    "It may have a trigger that suppresses the deletion, or row security.",
                ))));
            }
            Ok(Attempt::Rebuild) => {
                rollback(c).await;
                demand = Some("the table held other rows than the last refresh left");
            }
            Err(Error::Drift(_)) => {
                rollback(c).await;
                in_transaction_replan(c, record.id).await?;
            }
            Err(Error::Server(fields)) if demand.is_none() && may_be_ours(&fields.code) => {
                rollback(c).await;
                demand = Some("the change alone could not be computed");
            }
            Err(error) => {
                rollback(c).await;
                return Err(error);
            }
        }
        // A change of the sources was taken in, or a rebuild was found necessary.
        attempts += 1;
        if attempts == 3 {
            return Err(Error::Drift("they keep changing".to_owned()));
        }
        record = record::read(c, record.id).await?;
    }
}

pub(super) enum Attempt {
    Done(RefreshOutcome),
    /// The user's table is not what we left.
    Rebuild,
}

/// Whether an error may be one that the query itself does not raise. A delta combines rows of different states, which the
/// query never meets together: rows that are gone with sub-selects as they are now, for one. So a division by what was never
/// zero may fail, or a sub-select have more rows than one; and errors of functions, checks of domains and types likewise.
fn may_be_ours(code: &str) -> bool {
    code != "42501"
        && ["21", "22", "2F", "38", "39", "42", "P0"]
            .iter()
            .any(|class| code.starts_with(class))
        || code == "23514"
}

async fn rollback<C: Conn>(c: &mut C) {
    // A lost connection shows in the next statement.
    let _ = c.query("ROLLBACK").await;
}

async fn in_transaction_replan<C: Conn>(c: &mut C, id: StreamTableId) -> Result<(), Error> {
    c.batch(&[
        "BEGIN".to_owned(),
        "SET LOCAL lock_timeout = '500ms'".to_owned(),
    ])
    .await?;
    let result = replan::replan(c, id).await;
    let end = if result.is_ok() { "COMMIT" } else { "ROLLBACK" };
    c.query(end).await?;
    result
}

/// One transaction by this record. It must be that of the stream table that `name` stands for, if one is given.
async fn attempt<C: Conn>(
    c: &mut C,
    record: &mut Record,
    name: Option<&str>,
    demand: Option<&str>,
) -> Result<Attempt, Error> {
    let id = record.id;
    record.batch = None;
    if record.relid.is_none() {
        c.query("BEGIN").await?;
        load::load(c, id, Isolation::ReadCommitted).await?;
        c.query("COMMIT").await?;
        return Ok(Attempt::Done(RefreshOutcome {
            mode: "full",
            changed: true,
            ..RefreshOutcome::default()
        }));
    }
    record.target()?;
    let stages = demand.is_none()
        && record.frontier.is_some()
        && !record.plan.is_full()
        && record.buffers().next().is_some();
    let named = name.map(|_| "pg_catalog.to_regclass($1)::pg_catalog.oid::pg_catalog.int8");
    let mut statements = opening(record, named, name, stages);
    let same = format!("{} = c.fingerprint", record.fingerprint_now());
    let look = look(record, &same, &record.undigested_now());
    statements.push(Statement::kept(look, Vec::new()));
    let head = statements.len();
    if let Some(frontier) = record.frontier.as_ref().filter(|_| stages) {
        let (sql, parameters) = stage(&record.captured(), frontier, &settings::planned());
        statements.push(record.kept(&sql, parameters));
    }
    let results = c.run(&statements).await.map_err(gone_is_drift)?;
    if let Some(row) = name.and_then(|_| results.get(head - 2)?.first())
        && row.int(0) != record.relid.map(i64::from)
    {
        return Err(Error::Busy);
    }
    let now = Now::read(results.get(head - 1))?;
    if !now.confirms(record) || name.is_some() && !now.owned {
        // Somebody was faster between our read and our lock.
        return Err(Error::Busy);
    }
    if !now.same_fingerprint {
        return Err(Error::Drift("the fingerprint differs".to_owned()));
    }
    let known = (record.frontier.as_ref()).is_some_and(|f| f.cluster == now.frontier.cluster);
    if known && demand.is_none() && !record.plan.is_full() && record.buffers().next().is_none() {
        // A query without sources.
        c.query("ROLLBACK").await?;
        return Ok(Attempt::Done(RefreshOutcome {
            mode: "none",
            ..RefreshOutcome::default()
        }));
    }
    let Some(found) = results.get(head).and_then(|r| r.first()).filter(|_| known) else {
        let reason = demand.unwrap_or("the changes since the last refresh are not known");
        return rebuild(c, record, &now, reason).await;
    };
    let changes = Changes::of_all(record, found);
    if changes.iter().any(|changes| changes.lost) {
        return rebuild(
            c,
            record,
            &now,
            "a source was truncated, or changes of it were lost",
        )
        .await;
    }
    if changes.iter().all(|changes| changes.due == 0) {
        c.query("ROLLBACK").await?;
        record.habit.saw(Vec::new());
        return Ok(Attempt::Done(RefreshOutcome {
            mode: "none",
            ..RefreshOutcome::default()
        }));
    }
    let due = changes.iter().map(|changes| changes.due).sum();
    if let Some(reason) = cost::too_many(c, record, due).await? {
        return rebuild(c, record, &now, &reason).await;
    }
    let done = incremental(c, record, &now, &changes).await?;
    if let Attempt::Done(_) = done {
        let changed = changes.iter().filter(|c| c.net > 0);
        record.habit.saw(changed.map(|c| c.relid).collect());
        record.saw(now);
    }
    Ok(done)
}

/// A table that vanished under its name was renamed or dropped.
fn gone_is_drift(error: Error) -> Error {
    match &error {
        Error::Server(fields) if matches!(fields.code.as_str(), "42P01" | "3F000" | "42703") => {
            Error::Drift(fields.message.clone())
        }
        _ => error,
    }
}

/// ANALYZE where the staging table's size is far from what the planner last heard of: it would scan whole tables for a few
/// rows. A table analysed while empty counts as never analysed, as PostgreSQL takes it for ten pages then.
pub(super) fn analyze(table: &str, rows: i64, analysed: Option<f64>) -> Option<String> {
    let (rows, analysed) = (rows as f64, analysed.unwrap_or(-1.0));
    let known = analysed > 0.0
        && rows <= 4.0 * analysed.max(25.0)
        && (analysed <= 100.0 || rows * 4.0 >= analysed);
    (rows > 0.0 && !known).then(|| format!("ANALYZE {table}"))
}

async fn incremental<C: Conn>(
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
    for changes in &changes {
        let table = format!("pgtrickle.delta_{}", changes.buffer);
        let analyze = analyze(&table, changes.net, changes.analysed);
        statements.extend(analyze.map(Statement::from));
        emptied.push(table);
    }
    let mut changed_stages = Vec::new();
    for i in 0..record.plan.stages.len() {
        let delta = record.delta(i, &changed, &changed_stages)?;
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
                    return rebuild(c, record, now, recursion::TOO_FAR).await;
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
    if let Some(delta) = record.delta(changed_stages.len(), &changed, &changed_stages)? {
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
