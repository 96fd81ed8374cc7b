//! REFRESH: one REPEATABLE READ transaction that reads changes and tables in the same snapshot and moves the frontier to it.

use pgcat::plugins::ErrorFields;

use super::at_once;
use super::conclude::Place;
use super::incremental::incremental;
use super::look::{Changes, Now, look, opening};
use super::memory::Memory;
use super::rebuild::{rebuild, refresh_in_transaction};
use super::record::{self, Record, Seen};
use super::{How, Isolation, RefreshOutcome, StreamTableId, cost, group, load, replan, settings};
use crate::conn::{Conn, Error, Statement};
use crate::delta::stage::{STAGED, stage};
use crate::delta::state::Onto;

/// Why a refresh is a full one, for which somebody waits.
pub(super) const ASKED: &str = "a full refresh was asked for";

/// Brings a stream table up to date, in transactions of its own. The stream tables of its owner that it reads come along,
/// other than manual ones, so that it is its query over the tables below them.
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
    if let Some(record) = memory.take(id).filter(|record| is_quick(record, how))
        && let Some(outcome) = by_memory(c, memory, record, None).await?
    {
        return Ok(outcome);
    }
    let record = record::read_briefly(c, id).await?;
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
    let remembered = memory.take_named(&name);
    if let Some(record) = remembered.filter(|record| is_quick(record, how))
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

/// Whether it may be that nothing but the stream table itself has to be looked at.
fn is_quick(record: &Record, how: How) -> bool {
    how == How::Auto && !record.reads_others
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
        Ok(Attempt::Done(outcome, _)) => {
            remember(memory, record, name.map(str::to_owned), &outcome);
            Ok(Some(outcome))
        }
        Ok(Attempt::Nothing) => {
            memory.keep(record, name.map(str::to_owned));
            Ok(Some(RefreshOutcome::nothing()))
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

/// Remembers a stream table after a refresh.
pub(super) fn remember(
    memory: &Memory,
    record: Record,
    name: Option<String>,
    outcome: &RefreshOutcome,
) {
    // A full one was for a reason, or there is no other way.
    if matches!(outcome.mode, "incremental" | "none") {
        memory.keep(record, name);
    }
}

async fn refresh_record<C: Conn>(
    c: &mut C,
    memory: &Memory,
    record: Record,
    name: Option<String>,
    how: How,
) -> Result<RefreshOutcome, Error> {
    if record.reads_others {
        return group::refresh_with_sources(c, memory, record, how).await;
    }
    let mut work = Work::new(record, how);
    loop {
        let trouble = match attempt(c, &mut work.record, None, work.demand).await {
            Ok(Attempt::Done(outcome, _)) => {
                remember(memory, work.record, name, &outcome);
                return Ok(outcome);
            }
            Ok(Attempt::Nothing) => {
                memory.keep(work.record, name);
                return Ok(RefreshOutcome::nothing());
            }
            Ok(Attempt::Rebuild) => Trouble::OtherRows,
            Err(error) => Trouble::Error(error),
        };
        rollback(c).await;
        work.remedy(c, trouble).await?;
        if work.record.reads_others {
            // Since it has been planned anew.
            return group::refresh_with_sources(c, memory, work.record, how).await;
        }
    }
}

/// A refresh that may take several attempts.
pub(super) struct Work {
    pub record: Record,
    /// Why it is to be a full one.
    pub demand: Option<&'static str>,
    failed_attempts: u32,
}

/// Why an attempt has failed.
pub(super) enum Trouble {
    /// [`Attempt::Rebuild`].
    OtherRows,
    Error(Error),
}

impl Work {
    pub(super) fn new(record: Record, how: How) -> Self {
        Self {
            record,
            demand: (how == How::Full).then_some(ASKED),
            failed_attempts: 0,
        }
    }

    /// Sees to it that the next attempt may succeed. The one that failed has been rolled back.
    ///
    /// # Errors
    /// That of the attempt, if nothing is left to try.
    pub(super) async fn remedy<C: Conn>(
        &mut self,
        c: &mut C,
        trouble: Trouble,
    ) -> Result<(), Error> {
        let id = self.record.id;
        match trouble {
            Trouble::OtherRows if self.demand.is_some() => {
                let message = format!(
                    "rows of stream table \"{}\" could not be deleted",
                    self.record.name
                );
                let error = ErrorFields::error("55000", message);
                return Err(Error::Refused(Box::new(error.hint(
                    "It may have a trigger that suppresses the deletion, or row security.",
                ))));
            }
            Trouble::OtherRows => {
                self.demand = Some("the table held other rows than the last refresh left");
            }
            Trouble::Error(Error::Drift(_)) => {
                in_transaction(c, async |c| replan::replan_in_own(c, id).await).await?;
            }
            Trouble::Error(Error::Server(fields))
                if self.demand.is_none() && may_be_ours(&fields.code) =>
            {
                self.demand = Some("the change alone could not be computed");
            }
            // Those that read a shared stage go on without it.
            Trouble::Error(Error::Server(fields))
                if self.record.is_by_parts()
                    && self.record.shares.is_none()
                    && may_be_ours(&fields.code) =>
            {
                let recomputed = in_transaction(c, async |c| {
                    replan::recompute(c, id, &fields).await?;
                    refresh_in_transaction(c, id, How::Full).await.map(|_| ())
                });
                if recomputed.await.is_err() {
                    // It is the query's own, or met again by the next refresh.
                    return Err(Error::Server(fields));
                }
            }
            Trouble::Error(error) => return Err(error),
        }
        // A change of the sources was taken in, or a rebuild was found necessary.
        self.failed_attempts += 1;
        if self.failed_attempts == 3 {
            return Err(Error::Drift("they keep changing".to_owned()));
        }
        self.record = record::read_briefly(c, id).await?;
        Ok(())
    }
}

pub(super) enum Attempt {
    /// With what there is to be remembered once it is committed.
    Done(RefreshOutcome, Option<Box<Seen>>),
    /// Nothing was waiting.
    Nothing,
    /// The user's table is not what we left.
    Rebuild,
}

/// Whether an error may be one that the query itself does not raise. A delta combines rows of different states, which the
/// query never meets together: rows that are gone with sub-selects as they are now, for one. So a division by what was never
/// zero may fail, or a sub-select have more rows than one; and errors of functions, checks of domains and types likewise.
pub(super) fn may_be_ours(code: &str) -> bool {
    code != "42501"
        && ["21", "22", "2F", "38", "39", "42", "P0"]
            .iter()
            .any(|class| code.starts_with(class))
        || code == "23514"
}

pub(super) async fn rollback<C: Conn>(c: &mut C) {
    // A lost connection shows in the next statement.
    let _ = c.query("ROLLBACK").await;
}

/// Runs `work` in a transaction of its own, which waits for no lock for long.
pub(super) async fn in_transaction<C: Conn>(
    c: &mut C,
    work: impl AsyncFnOnce(&mut C) -> Result<(), Error>,
) -> Result<(), Error> {
    c.batch(&[
        "BEGIN".to_owned(),
        "SET LOCAL lock_timeout = '500ms'".to_owned(),
    ])
    .await?;
    let result = work(c).await;
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
    if record.relid.is_none() {
        c.query("BEGIN").await?;
        load::load(c, record.id, Isolation::ReadCommitted).await?;
        c.query("COMMIT").await?;
        return Ok(Attempt::Done(RefreshOutcome::loaded(), None));
    }
    let named = name.map(|_| "pg_catalog.to_regclass($1)::pg_catalog.oid::pg_catalog.int8");
    let opening = opening(record, named, name, stages(record, demand));
    let attempt = within(c, record, opening, Within::Own { name }, demand).await?;
    match attempt {
        Attempt::Done(outcome, seen) => {
            record.saw(seen);
            Ok(Attempt::Done(outcome, None))
        }
        Attempt::Nothing => {
            c.query("ROLLBACK").await?;
            Ok(Attempt::Nothing)
        }
        Attempt::Rebuild => Ok(Attempt::Rebuild),
    }
}

/// A transaction in which a refresh runs.
#[derive(Clone, Copy)]
pub(super) enum Within<'a> {
    /// Its own. The record must be that of the stream table that the name stands for, if one is given.
    Own { name: Option<&'a str> },
    /// One in which others have been refreshed before it.
    Shared,
}

/// Whether the changes are to be staged.
fn stages(record: &Record, demand: Option<&str>) -> bool {
    demand.is_none()
        && record.frontier.is_some()
        && !record.plan.is_full()
        && record.buffers().next().is_some()
}

/// The same in a transaction that others are refreshed in.
pub(super) async fn refresh_among<C: Conn>(
    c: &mut C,
    record: &mut Record,
    demand: Option<&str>,
) -> Result<Attempt, Error> {
    let settings = settings::of_refresh(&record.plan.settings, None, stages(record, demand));
    let opening = [settings, Place::NEXT.to_owned()];
    let opening = opening.map(|sql| Statement::kept(sql, Vec::new())).into();
    within(c, record, opening, Within::Shared, demand).await
}

/// What there is to do once the sources are locked. `opening` is sent first.
async fn within<C: Conn>(
    c: &mut C,
    record: &mut Record,
    opening: Vec<Statement>,
    within: Within<'_>,
    demand: Option<&str>,
) -> Result<Attempt, Error> {
    record.batch = None;
    record.target()?;
    let mut statements = opening;
    let same = format!("{} = c.fingerprint", record.fingerprint_now());
    let look = look(record, &same, &record.undigested_now());
    statements.push(Statement::kept(look, Vec::new()));
    let head = statements.len();
    if let Some(frontier) = record.frontier.as_ref().filter(|_| stages(record, demand)) {
        let most = cost::most(record);
        let (sql, parameters) = stage(
            record.id.0,
            &record.captured(),
            frontier,
            &most,
            &settings::planned(),
        );
        statements.push(record.kept(&sql, parameters));
    }
    let results = c.run(&statements).await.map_err(gone_is_drift)?;
    let before = results.get(head - 2).and_then(|rows| rows.first());
    let (place, named) = match within {
        Within::Own { name } => (Place::Alone, name.is_some()),
        Within::Shared => (Place::read(before)?, false),
    };
    if named && before.is_some_and(|row| row.int(0) != record.relid.map(i64::from)) {
        return Err(Error::Busy);
    }
    let now = Now::read(results.get(head - 1), place)?;
    if !now.confirms(record) || named && !now.owned {
        // Somebody was faster between our read and our lock.
        return Err(Error::Busy);
    }
    if !now.same_fingerprint {
        return Err(Error::Drift("the fingerprint differs".to_owned()));
    }
    let known = (record.frontier.as_ref()).is_some_and(|f| f.cluster == now.frontier.cluster);
    if known && demand.is_none() && !record.plan.is_full() && record.buffers().next().is_none() {
        // A query without sources.
        return Ok(Attempt::Nothing);
    }
    let Some(found) = results.get(head).and_then(|r| r.first()).filter(|_| known) else {
        let unknown = record
            .rebuild
            .as_deref()
            .filter(|_| record.frontier.is_none());
        let unknown = unknown.unwrap_or("the changes since the last refresh are not known");
        let reason = demand.unwrap_or(unknown);
        // In a block what is hidden may have been left for later.
        let onto = if demand.is_some() || unknown == ASKED {
            Onto::Empty
        } else {
            Onto::Old
        };
        return rebuild(c, record, &now, reason, onto).await;
    };
    let changes = Changes::of_all(record, found);
    if !found.is_true(STAGED * changes.len()) {
        let reason = cost::reason(c, record).await?;
        return rebuild(c, record, &now, &reason, Onto::Old).await;
    }
    if changes.iter().any(|changes| changes.lost) {
        return rebuild(
            c,
            record,
            &now,
            "a source was truncated, or changes of it were lost",
            Onto::Old,
        )
        .await;
    }
    if changes.iter().all(|changes| changes.due == 0) {
        record.habit.saw(Vec::new());
        return Ok(Attempt::Nothing);
    }
    match incremental(c, record, &now, &changes).await? {
        Attempt::Done(outcome, _) => {
            let changed = changes.iter().filter(|c| c.net > 0);
            let changed = changed.map(|c| c.relid).collect();
            let seen = Some(Box::new(Seen { changed, now }));
            Ok(Attempt::Done(outcome, seen))
        }
        other => Ok(other),
    }
}

/// A table that vanished under its name was renamed or dropped; and a column of a buffer that does not fit ours has been given
/// the type that it has in the source by now, for another stream table.
pub(super) fn gone_is_drift(error: Error) -> Error {
    match &error {
        Error::Server(fields)
            if matches!(fields.code.as_str(), "42P01" | "3F000" | "42703" | "42804") =>
        {
            Error::Drift(fields.message.clone())
        }
        _ => error,
    }
}
