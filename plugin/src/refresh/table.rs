//! One stream table: when it is refreshed, and what happens when that fails. Each has a task of its own,
//! so that a slow or failing one holds up nobody.

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
use crate::engine::{self, Drift, How, Isolation, RefreshOutcome, StreamTableId};

/// A CREATE STREAM TABLE that has not loaded its data by now has died between its two steps.
const CREATION: Duration = Duration::from_secs(10);
/// A refresh that takes longer is slow: it must not take the last connection.
const SLOW: Duration = Duration::from_millis(500);
/// The longest wait for a time of the clock, which may be set meanwhile.
const CLOCK_LOOK: Duration = Duration::from_secs(60);
/// A stream table refreshed this recently needs no check for DDL: a refresh checks by itself.
const FRESH: Duration = Duration::from_millis(500);

pub(super) struct Table {
    pub(super) id: StreamTableId,
    listed: RefCell<Listed>,
    listed_at: Cell<Instant>,
    bell: Notify,
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
}

impl Table {
    pub(super) fn new(listed: Listed) -> Rc<Self> {
        let now = Instant::now();
        let table = Self {
            id: listed.id,
            listed_at: Cell::new(now),
            bell: Notify::new(),
            running: Cell::new(false),
            drifted: Cell::new(false),
            not_before: Cell::new(now),
            refreshed_at: Cell::new(listed.since_refresh.and_then(|age| now.checked_sub(age))),
            failures: Cell::new(0),
            conflicts: Cell::new(0),
            last_took: Cell::new(Duration::ZERO),
            written: Cell::new(true),
            listed: RefCell::new(listed),
        };
        // After a start of the pooler nobody knows what has happened meanwhile.
        table.bell.notify_one();
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
            self.bell.notify_one();
        }
    }

    pub(super) fn schedule(&self) -> Schedule {
        self.listed.borrow().schedule.clone()
    }

    /// There are changes waiting.
    pub(super) fn wake(&self) {
        self.bell.notify_one();
    }

    /// Something was written in the database. Of what a full refresh reads nothing is captured, so any
    /// write may concern it.
    pub(super) fn written(&self) {
        self.written.set(true);
        if self.is_recomputed() {
            self.bell.notify_one();
        }
    }

    /// Is it a live one that can only be recomputed as a whole?
    fn is_recomputed(&self) -> bool {
        let listed = self.listed.borrow();
        listed.schedule == Schedule::Live && listed.full
    }

    pub(super) fn drifted(&self) {
        self.drifted.set(true);
        self.bell.notify_one();
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

    /// Waits until there is something to do.
    async fn wait(&self) {
        let timer = if self.failures.get() > 0 || self.conflicts.get() > 0 {
            Some(self.gap())
        } else if self.listed.borrow().status == "creating" {
            Some(CREATION)
        } else if self.serves() && self.listed.borrow().wanted {
            self.due_in(&self.schedule())
        } else {
            None
        };
        match timer {
            Some(timer) => {
                tokio::select! {
                    () = self.bell.notified() => {}
                    () = tokio::time::sleep(timer) => {}
                }
            }
            None => self.bell.notified().await,
        }
        let gap = self.gap();
        if !gap.is_zero() {
            tokio::time::sleep(gap).await;
        }
    }

    fn gap(&self) -> Duration {
        self.not_before
            .get()
            .saturating_duration_since(Instant::now())
    }
}

/// Serves one stream table for ever.
pub(super) async fn serve(table: Rc<Table>, lane: Rc<Lane>) {
    loop {
        table.wait().await;
        let started = Instant::now();
        table.running.set(true);
        let done = act(&table, &lane).await;
        table.running.set(false);
        let took = started.elapsed();
        let gap = match done {
            Ok(None) => {
                table.failures.set(0);
                table.conflicts.set(0);
                // While it was busy it was not asked about.
                lane.wake();
                Duration::ZERO
            }
            Ok(Some(outcome)) => {
                succeeded(&table, &lane, started, outcome).await;
                // Changes that came meanwhile, and those it made for stream tables that read it.
                lane.wake();
                pace::gap_after(took)
            }
            Err(error) => failed(&table, &lane, took, error).await,
        };
        table.not_before.set(Instant::now() + gap);
    }
}

/// Does what is to be done; `None` if that is nothing.
async fn act(table: &Rc<Table>, lane: &Rc<Lane>) -> Result<Option<RefreshOutcome>, Error> {
    let (status, live, wanted, age) = {
        let listed = table.listed.borrow();
        let live = listed.schedule == Schedule::Live;
        (
            listed.status.clone(),
            live,
            listed.wanted,
            listed.age + table.listed_at.get().elapsed(),
        )
    };
    if status == "creating" {
        if age >= CREATION {
            finish_creation(table, lane).await?;
        }
        return Ok(None);
    }
    if status == "suspended" {
        return Ok(None);
    }
    if table.drifted.get() {
        reconcile(table, lane).await?;
        table.drifted.set(false);
        table.listed.borrow_mut().stale = true;
    }
    if !wanted || !(table.is_due() || live && !table.is_recomputed()) {
        return Ok(None);
    }
    let _turn = match table.last_took.get() > SLOW {
        true => lane.slow.acquire().await.ok(),
        false => None,
    };
    let mut lease = lane.lease().await?;
    let started = Instant::now();
    let own = lane.own_writes.begin();
    // Before it reads: what is written meanwhile counts for the next.
    table.written.set(false);
    let outcome = engine::refresh(&mut *lease, lane.memory(), table.id, How::Auto).await?;
    lease.returned();
    own.end();
    table.last_took.set(started.elapsed());
    Ok(Some(outcome))
}

async fn succeeded(table: &Table, lane: &Lane, started: Instant, outcome: RefreshOutcome) {
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

/// Notes a failure; returns how long to leave the stream table alone.
async fn failed(table: &Table, lane: &Lane, took: Duration, error: Error) -> Duration {
    if let Error::Drift(_) = error {
        // Found by the refresh itself. Planning anew is the remedy; should that not last, it is a failure.
        if !table.drifted.replace(true) {
            table.bell.notify_one();
            return Duration::ZERO;
        }
    }
    if error.is_transient() && !matches!(error, Error::Connection(_)) {
        let conflicts = table.conflicts.get().saturating_add(1);
        table.conflicts.set(conflicts);
        table.bell.notify_one();
        return pace::yield_after(conflicts).max(pace::gap_after(took));
    }
    let failures = table
        .failures
        .get()
        .saturating_add(1)
        .max(table.listed.borrow().failures.min(2) + 1);
    table.failures.set(failures);
    if is_the_servers(&error) {
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

/// Is the failure one of the server or the pool as a whole, and says nothing about the stream table?
pub(super) fn is_the_servers(error: &Error) -> bool {
    matches!(error, Error::Connection(_))
        || ["08", "53", "57P", "58"]
            .iter()
            .any(|class| error.code().starts_with(class))
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
            engine::replan(conn, id).await
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
        Err(error @ (Error::Server(_) | Error::Refused(_))) if !is_the_servers(&error) => {
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
