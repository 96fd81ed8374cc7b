//! One stream table: when it is to be refreshed, and what happens when that fails.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgcat::plugins::ErrorFields;
use tokio::sync::Notify;

use super::database::Listed;
use super::history::Failure;
use super::lane::Lane;
use super::pace::{self, FAILURES_TO_ERROR};
use crate::command::{self, Schedule, literal};
use crate::conn::{Conn, Error};
use crate::engine::{self, Drift, Isolation, RefreshOutcome, StreamTableId};

/// A CREATE STREAM TABLE that has not loaded its data by now has died between its two steps.
const CREATION: Duration = Duration::from_secs(10);
/// A refresh that takes longer is slow: it must not take the last connection.
const SLOW: Duration = Duration::from_millis(500);
/// So many slow refreshes in a row are no accident.
const OFTEN: u32 = 3;
/// The longest wait for a time of the clock, which may be set meanwhile.
const CLOCK_LOOK: Duration = Duration::from_secs(60);
/// A stream table refreshed this recently needs no check for DDL: a refresh checks by itself.
const FRESH: Duration = Duration::from_millis(500);

/// How often a stream table is refreshed, from often to seldom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pace {
    Live,
    /// Live, and recomputed as a whole or slow: as often as its cost allows.
    Slow,
    Every(Duration),
    Manual,
}

pub(super) struct Table {
    pub(super) id: StreamTableId,
    listed: RefCell<Listed>,
    listed_at: Cell<Instant>,
    /// There is something to do, as far as others know.
    woken: Cell<bool>,
    /// That of its group.
    bell: RefCell<Rc<Notify>>,
    running: Cell<bool>,
    /// Its sources are no longer as planned.
    drifted: Cell<bool>,
    /// Not before this, whatever happens.
    not_before: Cell<Instant>,
    refreshed_at: Cell<Option<Instant>>,
    /// Consecutive failures, and consecutive losses against others.
    failures: Cell<u32>,
    conflicts: Cell<u32>,
    last_took: Cell<Duration>,
    /// Somebody else wrote something since the last refresh began.
    written: Cell<bool>,
    /// Consecutive refreshes that were slow, full ones aside.
    slow: Cell<u32>,
}

impl Table {
    pub(super) fn new(listed: Listed) -> Rc<Self> {
        let now = Instant::now();
        let table = Self {
            id: listed.id,
            listed_at: Cell::new(now),
            // After a start of the pooler nobody knows what has happened meanwhile.
            woken: Cell::new(true),
            bell: RefCell::default(),
            running: Cell::new(false),
            drifted: Cell::new(false),
            not_before: Cell::new(now),
            refreshed_at: Cell::new(listed.since_refresh.and_then(|age| now.checked_sub(age))),
            failures: Cell::new(0),
            conflicts: Cell::new(0),
            last_took: Cell::new(Duration::ZERO),
            written: Cell::new(true),
            slow: Cell::new(0),
            listed: RefCell::new(listed),
        };
        Rc::new(table)
    }

    /// What the catalog says now.
    pub(super) fn update(&self, listed: Listed) {
        let changed = {
            let known = self.listed.borrow();
            (&known.schedule, &known.status, known.wanted)
                != (&listed.schedule, &listed.status, listed.wanted)
        };
        let ring = changed || (listed.stale && listed.wanted && !self.running.get());
        *self.listed.borrow_mut() = listed;
        self.listed_at.set(Instant::now());
        if ring {
            self.wake();
        }
    }

    /// It is one of a group that waits for this bell.
    pub(super) fn join(&self, bell: &Rc<Notify>) {
        *self.bell.borrow_mut() = Rc::clone(bell);
        // The group that it was in may have been at work.
        self.running.set(false);
        self.wake();
    }

    pub(super) fn reads(&self, other: StreamTableId) -> bool {
        self.listed.borrow().reads.contains(&other)
    }

    /// The stream tables of the same owner that it reads.
    pub(super) fn sources(&self) -> Vec<StreamTableId> {
        self.listed.borrow().reads.clone()
    }

    /// Is it a shared stage?
    pub(super) fn is_shared(&self) -> bool {
        self.listed.borrow().shared
    }

    pub(super) fn schedule(&self) -> Schedule {
        self.listed.borrow().schedule.clone()
    }

    /// There are changes waiting.
    pub(super) fn wake(&self) {
        self.woken.set(true);
        self.bell.borrow().notify_one();
    }

    /// Something was written in the database. Of what a full refresh reads nothing is captured, so any
    /// write may concern it.
    pub(super) fn written(&self) {
        self.written.set(true);
        if self.is_recomputed() {
            self.wake();
        }
    }

    /// Is it a live one that can only be recomputed as a whole?
    fn is_recomputed(&self) -> bool {
        let listed = self.listed.borrow();
        listed.schedule == Schedule::Live && listed.full
    }

    pub(super) fn drifted(&self) {
        self.drifted.set(true);
        self.wake();
    }

    /// Is it to be asked whether changes wait for it?
    pub(super) fn awaits_changes(&self) -> bool {
        let listed = self.listed.borrow();
        listed.schedule == Schedule::Live
            && (listed.stale || !listed.full)
            && listed.wanted
            && self.serves()
            && !self.running.get()
            && self.failures.get() == 0
    }

    /// Is nothing going on that would notice DDL?
    pub(super) fn is_at_rest(&self) -> bool {
        self.serves()
            && !self.running.get()
            && self.failures.get() == 0
            && self
                .refreshed_at
                .get()
                .is_none_or(|at| at.elapsed() > FRESH)
    }

    /// Since its creation.
    fn age(&self) -> Duration {
        self.listed.borrow().age + self.listed_at.get().elapsed()
    }

    /// Is it slow?
    pub(super) fn is_slow(&self) -> bool {
        self.last_took.get() > SLOW
    }

    /// Is it slow again and again, when it has only changes to take in?
    pub(super) fn is_always_slow(&self) -> bool {
        self.slow.get() >= OFTEN
    }

    /// Is it to be refreshed together with others that are due, and are refreshed as seldom?
    pub(super) fn keeps_company(&self) -> bool {
        let wanted = self.listed.borrow().wanted;
        let sound = self.failures.get() == 0 && !self.drifted.get();
        let by_company = !matches!(self.schedule(), Schedule::At(_) | Schedule::Manual);
        // At its own pace only, for what it costs.
        let affordable = !self.is_recomputed()
            || self
                .due_in(&Schedule::Live)
                .is_some_and(|due| due.is_zero());
        wanted && sound && by_company && affordable && self.serves()
    }

    pub(super) fn pace(&self) -> Pace {
        match self.schedule() {
            Schedule::Live if self.is_recomputed() => Pace::Slow,
            Schedule::Live => Pace::Live,
            Schedule::Every(interval) => Pace::Every(interval),
            Schedule::At(cron) => Pace::Every(command::period(&cron)),
            Schedule::Manual => Pace::Manual,
        }
    }

    /// Did it lose against somebody else, and is not to try again yet?
    pub(super) fn waits(&self) -> bool {
        self.conflicts.get() > 0 && !self.gap().is_zero()
    }

    /// A refresh of it begins.
    pub(super) fn begin(&self) {
        // Before it reads: what is written meanwhile counts for the next.
        self.written.set(false);
    }

    pub(super) fn set_running(&self, running: bool) {
        self.running.set(running);
    }

    fn serves(&self) -> bool {
        matches!(self.listed.borrow().status.as_str(), "active" | "error")
    }

    /// Is a refresh due by itself, without a commit seen?
    fn is_due(&self) -> bool {
        let listed = self.listed.borrow();
        if !listed.wanted {
            return false;
        }
        // A rebuild that DDL made necessary is done at once. A manual one waits for REFRESH, unless it has
        // never been right: CREATE in a REPEATABLE READ block sees an old snapshot.
        (listed.stale && (listed.schedule != Schedule::Manual || listed.never_current))
            || (self.failures.get() > 0 && listed.schedule != Schedule::Manual)
            || self.due_in(&listed.schedule).is_some_and(|d| d.is_zero())
    }

    fn due_in(&self, schedule: &Schedule) -> Option<Duration> {
        let since = self.refreshed_at.get().map(|at| at.elapsed());
        let interval = match schedule {
            Schedule::At(cron) => {
                return match since {
                    Some(since) => Some(command::due_in(cron, since)?.min(CLOCK_LOOK)),
                    None => Some(Duration::ZERO),
                };
            }
            Schedule::Every(interval) => *interval,
            Schedule::Live if self.is_recomputed() => {
                pace::recompute_after(self.last_took.get(), self.written.get())
            }
            Schedule::Live | Schedule::Manual => return None,
        };
        Some(since.map_or(Duration::ZERO, |since| interval.saturating_sub(since)))
    }

    /// When there is something to do; `None`: when the bell rings.
    pub(super) fn acts_at(&self, now: Instant) -> Option<Instant> {
        let wait = if self.woken.get() {
            Duration::ZERO
        } else if self.failures.get() > 0 || self.conflicts.get() > 0 {
            self.gap()
        } else if self.listed.borrow().status == "creating" {
            CREATION.saturating_sub(self.age())
        } else if self.serves() && self.listed.borrow().wanted {
            self.due_in(&self.schedule())?
        } else {
            return None;
        };
        Some((now + wait).max(self.not_before.get()))
    }

    pub(super) fn leave_alone_for(&self, gap: Duration) {
        self.leave_alone_until(Instant::now() + gap);
    }

    pub(super) fn leave_alone_until(&self, at: Instant) {
        self.not_before.set(at);
    }

    pub(super) fn left_alone_until(&self) -> Instant {
        self.not_before.get()
    }

    fn gap(&self) -> Duration {
        self.not_before
            .get()
            .saturating_duration_since(Instant::now())
    }
}

/// Whether it is to be refreshed now; does what else there is to do.
pub(super) async fn prepare(table: &Table, lane: &Lane) -> Result<bool, Error> {
    table.woken.set(false);
    let (status, live, wanted) = {
        let listed = table.listed.borrow();
        let live = listed.schedule == Schedule::Live;
        (listed.status.clone(), live, listed.wanted)
    };
    if status == "creating" {
        if table.age() >= CREATION {
            finish_creation(table, lane).await?;
            // Whoever else is at it may take his time.
            table.leave_alone_for(Duration::from_secs(1));
        }
        return Ok(false);
    }
    if status == "suspended" {
        return Ok(false);
    }
    if table.drifted.get() {
        reconcile(table, lane).await?;
        table.drifted.set(false);
        table.listed.borrow_mut().stale = true;
    }
    Ok(wanted && (table.is_due() || live && !table.is_recomputed()))
}

/// There was nothing to do.
pub(super) fn rested(table: &Table) {
    table.failures.set(0);
    table.conflicts.set(0);
}

/// Notes a refresh begun at `started`, of which this stream table's part took `took`.
pub(super) async fn succeeded(
    table: &Table,
    lane: &Lane,
    started: Instant,
    took: Duration,
    outcome: RefreshOutcome,
) {
    table.last_took.set(took);
    match (outcome.mode, table.is_slow()) {
        ("incremental", true) => table.slow.set(table.slow.get() + 1),
        ("incremental", false) => table.slow.set(0),
        _ => {}
    }
    table.refreshed_at.set(Some(started));
    table.failures.set(0);
    let recovered = table.listed.borrow().status == "error";
    table.conflicts.set(0);
    table.listed.borrow_mut().stale = false;
    lane.notes
        .refreshed(table.id, table.last_took.get(), &outcome);
    if outcome.mode != "none" {
        lane.refreshed(table.id);
    }
    if recovered {
        let sql = format!(
            "UPDATE pgtrickle.catalog SET status = 'active', failures = 0, last_error = NULL \
             WHERE id = {} AND status = 'error'",
            table.id
        );
        match lane.transaction(async |conn| conn.query(&sql).await).await {
            Ok(_) => {
                "active".clone_into(&mut table.listed.borrow_mut().status);
                lane.notes.status(table.id, "active");
                log::info!(
                    "stream table {} is refreshed again",
                    table.listed.borrow().name
                );
            }
            Err(error) => log::debug!("stream tables: status not written: {error}"),
        }
    }
}

/// Notes a failure after `took`, and how long to leave the stream table alone.
pub(super) async fn failed(table: &Table, lane: &Lane, took: Duration, error: Error) {
    let gap = gap_after_failure(table, lane, took, error).await;
    table.leave_alone_for(gap);
}

async fn gap_after_failure(table: &Table, lane: &Lane, took: Duration, error: Error) -> Duration {
    if let Error::Drift(_) = error {
        // Found by the refresh itself. Planning anew is the remedy; should that not last, it is a failure.
        if !table.drifted.replace(true) {
            table.wake();
            return Duration::ZERO;
        }
    }
    if error.is_transient() && !matches!(error, Error::Connection(_)) {
        let conflicts = table.conflicts.get().saturating_add(1);
        table.conflicts.set(conflicts);
        table.wake();
        return pace::yield_after(conflicts).max(pace::gap_after(took));
    }
    let failures = table
        .failures
        .get()
        .saturating_add(1)
        .max(table.listed.borrow().failures.min(2) + 1);
    table.failures.set(failures);
    if error.is_the_servers() {
        log::debug!("stream tables: {}: {error}", table.listed.borrow().name);
    } else {
        let fields = Box::<ErrorFields>::from(error);
        lane.notes.failed(table.id, &fields);
        let message = fields.message;
        lane.record(Failure::new(table.id, took, message.clone()));
        if failures >= FAILURES_TO_ERROR {
            report(table, lane, failures, &message).await;
        }
    }
    pace::retry_after(failures).max(pace::gap_after(took))
}

/// Makes the failure visible in the catalog.
async fn report(table: &Table, lane: &Lane, failures: u32, message: &str) {
    let name = table.listed.borrow().name.clone();
    if table.listed.borrow().status != "error" {
        log::warn!("stream table {name} cannot be refreshed: {message}");
    }
    let sql = format!(
        "UPDATE pgtrickle.catalog SET status = 'error', failures = {failures}, last_error = {} \
         WHERE id = {} AND status IN ('active', 'error')",
        literal(message),
        table.id
    );
    match lane.transaction(async |conn| conn.query(&sql).await).await {
        Ok(_) => {
            "error".clone_into(&mut table.listed.borrow_mut().status);
            lane.notes.status(table.id, "error");
        }
        Err(error) => log::debug!("stream tables: status not written: {error}"),
    }
}

/// Takes in a change of the sources' definitions.
async fn reconcile(table: &Table, lane: &Lane) -> Result<(), Error> {
    let id = table.id;
    lane.transaction(async |conn| match engine::check(conn, id).await? {
        Drift::None => Ok(()),
        Drift::Sources(_) => {
            // Below deadlock_timeout: against user DDL the worker loses, not the user.
            conn.query("SET LOCAL lock_timeout = '100ms'").await?;
            engine::replan_in_own(conn, id).await
        }
        Drift::TableGone => engine::drop(conn, id, false).await,
        Drift::DefinitionGone => Err(Error::refused(
            "42P01",
            "a relation that the stream table's query reads has been dropped",
        )),
    })
    .await
}

/// Finishes a CREATE STREAM TABLE that died between its two steps, or takes it back if its query fails.
async fn finish_creation(table: &Table, lane: &Lane) -> Result<(), Error> {
    let id = table.id;
    let loaded = lane.transaction(async |conn| {
        if crate::command::create::claim(conn, id, "SKIP LOCKED").await? {
            engine::load(conn, id, Isolation::ReadCommitted).await?;
        }
        Ok(())
    });
    match loaded.await {
        Err(error @ (Error::Server(_) | Error::Refused(_))) if !error.is_the_servers() => {
            log::warn!(
                "unfinished stream table {} is taken back: {error}",
                table.listed.borrow().name
            );
            lane.transaction(async |conn| engine::drop(conn, id, false).await)
                .await
        }
        other => other,
    }
}
