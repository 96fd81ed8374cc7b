//! The full refresh: recompute, compare, and write what differs. Also the refresh inside a client's transaction.

use std::time::Instant;

use super::record::{self, Record};
use super::refresh::{Attempt, Now, finish, history};
use super::{How, Isolation, RefreshOutcome, StreamTableId, load, replan, settings};
use crate::conn::{Conn, Error, Statement};
use crate::delta::{apply, state};
use crate::plan::Body;

/// Recomputes the result, and writes what differs.
pub(super) async fn rebuild<C: Conn>(
    c: &mut C,
    record: &Record,
    now: &Now,
    started: Instant,
    reason: &str,
) -> Result<Attempt, Error> {
    let statements = rebuild_statements(record)?
        .into_iter()
        .map(Statement::from)
        .collect();
    let reason = Some(record.plan.full_reason().unwrap_or(reason).to_owned());
    finish(c, record, now, statements, "full", reason, started).await
}

/// The difference between query and table into the staging table, with state and frontier from the same snapshot.
fn rebuild_statements(record: &Record) -> Result<Vec<String>, Error> {
    let id = record.id.0;
    let target = record.target()?;
    let mut statements: Vec<_> = record
        .plan
        .tables
        .iter()
        .filter_map(|t| t.buffer)
        .map(|b| format!("DELETE FROM pgtrickle.delta_{b}"))
        .collect();
    let mut ctes = Vec::new();
    let new = match &record.plan.body {
        Body::Keyed(k) => {
            statements.push(format!("DELETE FROM pgtrickle.state_{id}"));
            ctes.push(state::rebuild(id, k));
            "SELECT * FROM result".to_owned()
        }
        _ => format!("SELECT * FROM pgtrickle.def_{id}"),
    };
    ctes.push(load::frontier(record));
    let with = format!("WITH {}", ctes.join(", "));
    statements.extend(settings::under_creators_path(
        &record.plan,
        apply::collect(
            id,
            &record.plan.columns,
            &with,
            &apply::difference(target, &new),
        ),
    ));
    statements.push(format!("ANALYZE pgtrickle.out_{id}"));
    Ok(statements)
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
    let _ = how;
    let started = Instant::now();
    let mut record = record::read(c, id).await?;
    if record.relid.is_none() {
        load::load(c, id, Isolation::ReadCommitted).await?;
        return Ok(RefreshOutcome {
            mode: "full",
            changed: true,
            ..RefreshOutcome::default()
        });
    }
    c.query(&format!(
        "SELECT 1 FROM pgtrickle.catalog WHERE id = {id} FOR UPDATE"
    ))
    .await?;
    let rows = c
        .query(&format!(
            "SELECT {} = fingerprint, pg_catalog.current_setting('transaction_isolation') <> 'read committed',
                clock_timestamp() FROM pgtrickle.catalog WHERE id = {id}",
            record.fingerprint_now()
        ))
        .await?;
    let row = rows.first().cloned().unwrap_or_default();
    if !row.is_true(0) {
        replan::replan(c, id).await?;
        record = record::read(c, id).await?;
    }
    let (saved, _) = settings::pin(c, Some(&record.plan.settings)).await?;
    c.batch(&record.locks()).await?;
    let mut statements = rebuild_statements(&record)?;
    let head = statements.len();
    statements.extend(apply::apply(id.0, &record.plan, record.target()?));
    // An old snapshot is older than the triggers may be: rebuilt once more after the commit.
    let forget = if row.is_true(1) {
        ", frontier_snapshot = NULL"
    } else {
        ""
    };
    statements.push(format!(
        "UPDATE pgtrickle.catalog SET last_refresh = clock_timestamp(), failures = 0, last_error = NULL,
            status = CASE WHEN status = 'suspended' AND last_refresh IS NOT NULL THEN status ELSE 'active' END{forget}
         WHERE id = {id}"
    ));
    let results = c.batch(&statements).await?;
    let number = |i: usize| {
        results
            .get(head + i)
            .and_then(|r| r.first())
            .and_then(|r| r.int(0))
            .unwrap_or_default()
            .unsigned_abs()
    };
    let outcome = RefreshOutcome {
        mode: "full",
        reason: Some("the refresh ran inside a transaction block".to_owned()),
        deleted: number(0),
        inserted: number(1),
        changed: number(0) + number(1) > 0,
    };
    let history = history(id, row.text(2).unwrap_or_default(), &outcome, started);
    c.run(&[history]).await?;
    saved.restore(c).await?;
    Ok(outcome)
}
