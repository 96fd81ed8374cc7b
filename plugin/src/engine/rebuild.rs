//! The full refresh: recompute, compare, and write what differs. Also the refresh inside a client's transaction.

use pgcat::plugins::ErrorFields;

use super::conclude::{Conclusion, Done, Place, finish};
use super::look::Now;
use super::record::{self, Record};
use super::recursion;
use super::refresh::{ASKED, Attempt};
use super::{How, Isolation, RefreshOutcome, StreamTableId, load, replan, settings, stages};
use crate::conn::{Conn, Error, Statement};
use crate::delta::apply;
use crate::delta::state::Onto;
use crate::plan::literal;

/// Recomputes the result, and writes what differs; of what is hidden too, or all of it, as `onto` says: somebody who asks for it, or
/// an earlier attempt that has failed, may have reason to doubt that it is sound.
pub(super) async fn rebuild<C: Conn>(
    c: &mut C,
    record: &Record,
    now: &Now,
    reason: &str,
    onto: Onto,
) -> Result<Attempt, Error> {
    let statements = rebuild_statements(c, record, onto).await?;
    let emptied: Vec<_> = record.staging().collect();
    let done = Done {
        mode: "full",
        reason: Some(record.plan.full_reason().unwrap_or(reason)),
        changes: None,
        emptied: &emptied,
    };
    // Who asks for it waits as long as he likes.
    let limited = reason != ASKED && recursion::limit(c, record).await?;
    let rebuilt = finish(c, record, now, statements, done).await;
    if !limited {
        return rebuilt;
    }
    let attempt = rebuilt.map_err(recursion::beyond_limit)?;
    if now.place != Place::Alone && matches!(attempt, Attempt::Done(..)) {
        // Others are refreshed in the same transaction.
        c.query("SET LOCAL statement_timeout = 0").await?;
    }
    Ok(attempt)
}

/// The difference between query and table into the staging table, with state and frontier from the same snapshot.
async fn rebuild_statements<C: Conn>(
    c: &mut C,
    record: &Record,
    onto: Onto,
) -> Result<Vec<Statement>, Error> {
    let id = record.id.0;
    let target = record.target()?;
    let function = stages::function(c, id, &record.plan).await?;
    let (mut ctes, new) = stages::fill(id, &record.plan, function.as_deref(), onto)?;
    ctes.push(load::frontier(record));
    let with = format!("WITH {}", ctes.join(", "));
    let mut statements = match onto {
        Onto::Empty => stages::emptied(id, &record.plan),
        Onto::Old => Vec::new(),
    };
    statements.extend(settings::under_creators_path(
        &record.plan,
        apply::collect(
            &id.to_string(),
            &record.plan.columns,
            &with,
            &apply::difference(target, &new),
        ),
    ));
    statements.push(format!("ANALYZE (SKIP_LOCKED) pgtrickle.out_{id}"));
    if !record.plan.stages.is_empty() {
        statements.extend(stages::analyze(id, &record.plan));
    }
    Ok(statements.into_iter().map(Statement::from).collect())
}

/// The same from the sources alone, with what is hidden left as it is.
fn view_statements(record: &Record) -> Result<Vec<Statement>, Error> {
    let id = record.id.0;
    let new = format!("SELECT * FROM pgtrickle.def_{id}");
    let difference = apply::difference(record.target()?, &new);
    let collect = apply::collect(&id.to_string(), &record.plan.columns, "", &difference);
    let mut statements = settings::under_creators_path(&record.plan, collect);
    statements.push(format!("ANALYZE (SKIP_LOCKED) pgtrickle.out_{id}"));
    Ok(statements.into_iter().map(Statement::from).collect())
}

/// REFRESH inside the caller's transaction, of any isolation level: the full difference in one statement, so that result
/// and frontier have one snapshot.
///
/// # Errors
/// As [`refresh`]; the caller's transaction has failed then.
pub async fn refresh_in_transaction<C: Conn>(
    c: &mut C,
    id: StreamTableId,
    how: How,
) -> Result<RefreshOutcome, Error> {
    let onto = match how {
        How::Auto => Onto::Old,
        How::Full => Onto::Empty,
    };
    let mut record = record::read_sized(c, id).await?;
    if record.relid.is_none() {
        load::load(c, id, Isolation::ReadCommitted).await?;
        return Ok(RefreshOutcome::loaded());
    }
    c.query(&format!(
        "SELECT 1 FROM pgtrickle.catalog WHERE id = {id} FOR UPDATE"
    ))
    .await?;
    let rows = c
        .query(&format!(
            "SELECT {} = fingerprint, pg_catalog.current_setting('transaction_isolation') <> 'read committed',
                pg_catalog.to_char(pg_catalog.timezone('UTC', pg_catalog.clock_timestamp()), 'YYYY-MM-DD HH24:MI:SS.US') || 'Z'
             FROM pgtrickle.catalog WHERE id = {id}",
            record.fingerprint_now()
        ))
        .await?;
    let row = rows.first().cloned().unwrap_or_default();
    if !row.is_true(0) {
        replan::replan(c, id).await?;
        record = record::read_sized(c, id).await?;
    }
    let (saved, _) = settings::pin(c, Some(&record.plan.settings)).await?;
    c.batch(&record.locks()).await?;
    let target = record.target()?;
    // Shared stages are not refreshed in here.
    let by_view = record.plan.reads_shared();
    let mut statements = if by_view {
        view_statements(&record)?
    } else {
        rebuild_statements(c, &record, onto).await?
    };
    let reason = "the refresh ran inside a transaction block";
    let emptied: Vec<_> = record.staging().collect();
    let set = if by_view || row.is_true(1) {
        let why = match how {
            How::Auto => "it was refreshed in a transaction block",
            How::Full => ASKED,
        };
        format!(", frontier_snapshot = NULL, rebuild = {}", literal(why))
    } else {
        String::new()
    };
    let conclusion = Conclusion {
        started_at: &literal(row.text(2).unwrap_or_default()),
        done: &Done {
            mode: "full",
            reason: Some(reason),
            changes: None,
            emptied: &emptied,
        },
        // An old snapshot is older than the triggers may be: rebuilt once more after the commit. So is what is hidden.
        set: &set,
        check: "0",
    };
    statements.push(conclusion.statement(&record, target));
    let results = match c.run(&statements).await {
        // Under READ COMMITTED each statement sees what others have done to the table since the last one.
        Err(Error::Server(fields)) if apply::is_about_other_rows(&fields) => {
            return Err(Error::Conflict(Box::new(ErrorFields::error(
                "40001",
                format!(
                    "stream table \"{}\" was written to during its refresh",
                    record.name
                ),
            ))));
        }
        results => results?,
    };
    let counts = results.last().and_then(|rows| rows.first());
    let outcome = RefreshOutcome::new("full", Some(reason.to_owned()), counts);
    saved.restore(c).await?;
    Ok(outcome)
}
