//! REFRESH: one REPEATABLE READ transaction that reads changes and tables in the same snapshot and moves the frontier to it.

use super::rebuild::rebuild;
use pgcat::plugins::ErrorFields;

use super::record::{self, Record};
use super::{
    How, Isolation, RefreshOutcome, StreamTableId, fingerprint, load, replan, settings, stages,
};
use crate::conn::{Conn, Error, Row, Statement};
use crate::delta::stage::{Frontier, stage};
use crate::delta::{apply, estimated_rows, is_raised, keyed, partition, raise_unless};
use crate::plan::{Body, Column, Table, terms};

/// Brings a stream table up to date, in transactions of its own.
///
/// # Errors
/// [`Error::Busy`] while another session does it, [`Error::Conflict`] and [`Error::LockNotAvailable`]: again a little later;
/// those of the query itself.
pub async fn refresh<C: Conn>(
    c: &mut C,
    id: StreamTableId,
    how: How,
) -> Result<RefreshOutcome, Error> {
    let record = record::read(c, id).await?;
    refresh_record(c, record, how).await
}

/// The same for the stream table that a name stands for, found in one look. `None`: it stands for none of the current role's.
///
/// # Errors
/// As [`refresh`]; and 42P01 in a database without stream tables.
pub async fn refresh_by_name<C: Conn>(
    c: &mut C,
    name: String,
    how: How,
) -> Result<Option<RefreshOutcome>, Error> {
    let Some(record) = record::find(c, name).await? else {
        return Ok(None);
    };
    refresh_record(c, record, how).await.map(Some)
}

async fn refresh_record<C: Conn>(
    c: &mut C,
    mut record: Record,
    how: How,
) -> Result<RefreshOutcome, Error> {
    let mut demand = (how == How::Full).then_some("a full refresh was asked for");
    let mut attempts = 0;
    loop {
        match attempt(c, &record, demand).await {
            Ok(Attempt::Done(outcome)) => return Ok(outcome),
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

async fn attempt<C: Conn>(
    c: &mut C,
    record: &Record,
    demand: Option<&str>,
) -> Result<Attempt, Error> {
    let id = record.id;
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
    let buffers = match (&record.frontier, demand) {
        (Some(frontier), None) if !record.plan.is_full() => Some(frontier),
        _ => None,
    };
    let mut statements: Vec<Statement> = settings::begin(&record.plan.settings)
        .into_iter()
        .chain(record.locks())
        .map(Statement::from)
        .collect();
    let look = format!(
        "SELECT pg_catalog.pg_current_snapshot()::text, pg_catalog.pg_current_xact_id()::text,
            pg_catalog.nextval('pgtrickle.change_seq'), frontier_snapshot::text, frontier_seq, {}, {} = fingerprint,
            clock_timestamp()::text, {}
         FROM pgtrickle.catalog WHERE id = {id} FOR UPDATE SKIP LOCKED",
        record::cluster(&record.plan),
        record.fingerprint_now(),
        beyond(record)
    );
    statements.push(Statement::kept(look, Vec::new()));
    let head = statements.len();
    let mut staged: Vec<&Table> = Vec::new();
    if let Some(frontier) = buffers {
        for table in &record.plan.tables {
            if let Some(buffer) = table.buffer {
                let (sql, parameters) = stage(buffer, frontier, &table.columns);
                statements.push(record.kept(&sql, parameters));
                staged.push(table);
            }
        }
    }
    let results = c.run(&statements).await.map_err(gone_is_drift)?;
    let now = Now::read(results.get(head - 1))?;
    if !now.same_fingerprint {
        return Err(Error::Drift("the fingerprint differs".to_owned()));
    }
    let Some(frontier) = buffers.filter(|f| f.cluster == now.frontier.cluster) else {
        let reason = demand.unwrap_or("the changes since the last refresh are not known");
        return rebuild(c, record, &now, reason).await;
    };
    if now.stored != Some((frontier.snapshot.clone(), frontier.seq)) {
        // Somebody was faster between our read and our lock.
        return Err(Error::Busy);
    }
    let rows: Vec<&Row> = results[head..].iter().filter_map(|r| r.first()).collect();
    if rows.iter().any(|r| r.is_true(1)) {
        return rebuild(
            c,
            record,
            &now,
            "a source was truncated, or changes of it were lost",
        )
        .await;
    }
    if rows.iter().all(|r| r.int(2) == Some(0)) {
        c.query("ROLLBACK").await?;
        return Ok(Attempt::Done(RefreshOutcome {
            mode: "none",
            ..RefreshOutcome::default()
        }));
    }
    incremental(c, record, &now, &staged, &rows).await
}

/// Partitions and function bodies change in mid-snapshot.
fn beyond(record: &Record) -> String {
    fingerprint::beyond_snapshot(&record.plan).unwrap_or_else(|| "NULL::text".to_owned())
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

/// What the locking statement of a refresh found.
pub(super) struct Now {
    frontier: Frontier,
    stored: Option<(String, i64)>,
    same_fingerprint: bool,
    started_at: String,
    /// What a snapshot does not hold still.
    beyond: Option<String>,
}

impl Now {
    fn read(rows: Option<&Vec<Row>>) -> Result<Self, Error> {
        let row = rows.and_then(|r| r.first()).ok_or(Error::Busy)?;
        let text = |i: usize| row.text(i).unwrap_or_default().to_owned();
        Ok(Self {
            frontier: Frontier {
                snapshot: text(0),
                xid: text(1).parse().unwrap_or_default(),
                seq: row.int(2).unwrap_or_default(),
                cluster: text(5),
            },
            stored: row.text(3).map(str::to_owned).zip(row.int(4)),
            same_fingerprint: row.is_true(6),
            started_at: text(7),
            beyond: row.text(8).map(str::to_owned),
        })
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
    record: &Record,
    now: &Now,
    staged: &[&Table],
    rows: &[&Row],
) -> Result<Attempt, Error> {
    let id = record.id.0;
    let plan = &record.plan;
    let mut changed = Vec::new();
    let mut emptied = Vec::new();
    let mut total = 0;
    let mut statements: Vec<Statement> = Vec::new();
    for (table, row) in staged.iter().zip(rows) {
        let count = row.int(0).unwrap_or_default();
        let Some(buffer) = table.buffer.filter(|_| count > 0) else {
            continue;
        };
        changed.push(table.relid);
        total += count;
        let delta = format!("pgtrickle.delta_{buffer}");
        let analysed = row.text(3).and_then(|n| n.parse().ok());
        statements.extend(analyze(&delta, count, analysed).map(Statement::from));
        emptied.push(delta);
    }
    let mut changed_stages = Vec::new();
    for (i, stage) in plan.stages.iter().enumerate() {
        let inputs = plan.inputs(id, |relid| changed.contains(&relid), &changed_stages);
        let slot = format!("{id}_{}", i + 1);
        let target = stages::target(id, i + 1, stage);
        let piece = Piece {
            slot: &slot,
            body: &stage.body,
            columns: &stage.columns,
            table: &target.name,
        };
        let mut count = 0;
        if piece.change(c, record, &inputs, &mut statements).await? {
            let out = format!("pgtrickle.out_{slot}");
            let look = format!("SELECT count(*), {} FROM {out}", estimated_rows(&out));
            statements.push(look.into());
            let results = c.run(&std::mem::take(&mut statements)).await?;
            let row = results.last().and_then(|r| r.first()).cloned();
            let row = row.unwrap_or_default();
            count = row.int(0).unwrap_or_default();
            if count > 0 {
                let analysed = row.text(1).and_then(|n| n.parse().ok());
                statements.extend(analyze(&out, count, analysed).map(Statement::from));
                statements.push(apply::remove(&slot, &stage.body, &stage.columns, &target).into());
                statements.push(apply::insert(&slot, &target).into());
            }
            emptied.push(out);
            total += count;
        }
        changed_stages.push(count > 0);
    }
    let inputs = plan.inputs(id, |relid| changed.contains(&relid), &changed_stages);
    let slot = id.to_string();
    let target = record.target()?;
    let piece = Piece {
        slot: &slot,
        body: &plan.body,
        columns: &plan.columns,
        table: &target.name,
    };
    if piece.change(c, record, &inputs, &mut statements).await? {
        statements.extend(
            analyze(&format!("pgtrickle.out_{id}"), total, record.out_rows).map(Statement::from),
        );
    }
    finish(c, record, now, statements, &emptied, "incremental", None).await
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
    /// Adds the statements that put the change of its rows into its staging table. Returns whether there may be any.
    async fn change<C: Conn>(
        &self,
        c: &mut C,
        record: &Record,
        inputs: &[terms::Input<'_>],
        statements: &mut Vec<Statement>,
    ) -> Result<bool, Error> {
        let slot = self.slot;
        let kept = |sql: String| record.kept(&sql, Vec::new());
        let body = self.body.linear();
        let body = body.ok_or_else(|| Error::Internal("a full plan has no delta".to_owned()))?;
        let terms = terms::delta(body, inputs)?;
        if terms.is_empty() {
            return Ok(false);
        }
        let delta = terms.join(" UNION ALL ");
        let affected = match self.body {
            Body::Keyed(k) if k.by_weights => {
                statements.push(kept(keyed::by_weights(slot, k, self.columns, &delta)));
                keyed::left_over(slot, k)
            }
            Body::Keyed(k) => Some(keyed::affected(slot, k.keys.len(), k.args.len(), &delta)),
            Body::Partition(p) => Some(keyed::affected(slot, p.keys.len(), p.args, &delta)),
            Body::Linear { .. } | Body::Full { .. } => {
                statements.push(kept(apply::collect(slot, self.columns, "", &delta)));
                None
            }
        };
        let Some(affected) = affected else {
            return Ok(true);
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
                Body::Linear { .. } | Body::Full { .. } => Vec::new(),
            };
            statements.extend(recompute.into_iter().map(kept));
        }
        Ok(true)
    }
}

/// The error's value when partitions or functions have changed within our snapshot.
const CHANGED: &str = "pgtrickle: other sources";

/// Applies what is staged, empties the staging tables of these buffers, writes frontier and history, checks the fingerprint
/// a last time, and commits: in one go, as a check that fails fails the transaction.
pub(super) async fn finish<C: Conn>(
    c: &mut C,
    record: &Record,
    now: &Now,
    mut statements: Vec<Statement>,
    emptied: &[String],
    mode: &'static str,
    reason: Option<String>,
) -> Result<Attempt, Error> {
    let target = record.target()?;
    statements.push(record.kept(
        &apply::remove(
            &record.id.to_string(),
            &record.plan.body,
            &record.plan.columns,
            target,
        ),
        Vec::new(),
    ));
    let check = match fingerprint::beyond_snapshot(&record.plan) {
        Some(now) => raise_unless(&format!("{now} IS NOT DISTINCT FROM $9"), CHANGED),
        None => "$9".to_owned(),
    };
    let mut conclusion = Conclusion {
        started_at: &now.started_at,
        mode,
        reason: reason.as_deref(),
        emptied,
        set: ", frontier_snapshot = $5::pg_snapshot, frontier_xid = $6::xid8, frontier_seq = $7::bigint, frontier_cluster = $8",
        check: &check,
    }
    .statement(record, target);
    conclusion.parameters.extend([
        now.frontier.snapshot.clone(),
        now.frontier.xid.to_string(),
        now.frontier.seq.to_string(),
        now.frontier.cluster.clone(),
        now.beyond.clone().unwrap_or_default(),
    ]);
    statements.push(conclusion);
    statements.push("COMMIT".to_owned().into());
    let results = match c.run(&statements).await {
        Err(Error::Server(fields)) if apply::is_about_other_rows(&fields) => {
            return Ok(Attempt::Rebuild);
        }
        Err(Error::Server(fields)) if is_raised(&fields, CHANGED) => {
            return Err(Error::Drift(
                "the sources changed during the refresh".to_owned(),
            ));
        }
        results => results?,
    };
    let counts = results.iter().rev().nth(1).and_then(|rows| rows.first());
    Ok(Attempt::Done(RefreshOutcome::new(mode, reason, counts)))
}

/// What the last statement of a refresh writes besides the rows themselves.
pub(super) struct Conclusion<'a> {
    /// By the server's clock.
    pub started_at: &'a str,
    pub mode: &'static str,
    pub reason: Option<&'a str>,
    /// Staging tables that have been read.
    pub emptied: &'a [String],
    /// Further columns of the catalog's row, after a comma. Parameters from $5 on are the caller's.
    pub set: &'a str,
    /// An expression that fails if the refresh is not to be.
    pub check: &'a str,
}

impl Conclusion<'_> {
    /// Adds the staged rows to the user's table, empties the staging tables, and notes the refresh in the catalog and the
    /// history. Returns the rows inserted and deleted.
    pub(super) fn statement(&self, record: &Record, target: &apply::Target) -> Statement {
        let emptied: String = self
            .emptied
            .iter()
            .enumerate()
            .map(|(i, table)| format!("used_{i} AS (DELETE FROM {table}), "))
            .collect();
        let sql = format!(
            "WITH {emptied}{},
             moved AS (UPDATE pgtrickle.catalog SET last_refresh = clock_timestamp(), failures = 0, last_error = NULL,
                status = CASE WHEN status = 'suspended' AND last_refresh IS NOT NULL THEN status ELSE 'active' END{}
                WHERE id = $1::bigint),
             noted AS (INSERT INTO pgtrickle.history (stream_table, owner, started_at, duration, mode, reason, rows_inserted,
                    rows_deleted)
                SELECT c.id, c.owner, $2::timestamptz, clock_timestamp() - $2::timestamptz, $3, nullif($4, ''), a.inserted,
                    a.deleted
                FROM pgtrickle.catalog c, applied a WHERE c.id = $1::bigint)
             SELECT inserted, deleted, {} FROM applied",
            apply::add(&record.id.to_string(), target),
            self.set,
            self.check
        );
        record.kept(
            &sql,
            vec![
                record.id.to_string(),
                self.started_at.to_owned(),
                self.mode.to_owned(),
                self.reason.unwrap_or_default().to_owned(),
            ],
        )
    }
}
