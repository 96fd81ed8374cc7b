//! One owner's stream tables in a database: which of them have work waiting, and the housekeeping.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use super::board::Notes;
use super::clients::{Clients, Lease};
use super::database::Listed;
use super::group::{self, Group};
use super::history::{self, Failure};
use super::own_writes::OwnWrites;
use super::pace;
use super::role::{WorkerConn, in_transaction};
use super::signal::Signal;
use super::table::Table;
use crate::command::Schedule;
use crate::conn::Error;
use crate::engine::{self, Drift, Memory, StreamTableId};

/// How often history is written and dropped tables are cleared away.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How often consumed changes are deleted while there are any.
const CLEANUP: Duration = Duration::from_secs(5);

/// An owner's part of the worker. Its tasks end when the handle that started it is dropped.
pub(super) struct Lane {
    clients: Rc<Clients>,
    /// The role to work as, where the pool's user is another.
    role: Option<String>,
    signal: Arc<Signal>,
    tables: RefCell<BTreeMap<StreamTableId, Rc<Table>>>,
    /// The tasks of those that hang together.
    groups: RefCell<HashMap<BTreeSet<StreamTableId>, Task>>,
    bell: Notify,
    /// The bell of the look at all of them: those that changed lately have been looked at.
    rest: Notify,
    /// Those that changed lately, the last one first.
    recent: RefCell<VecDeque<StreamTableId>>,
    /// Somebody wrote something, maybe DDL beside the pooler.
    suspicious: Cell<bool>,
    failures: RefCell<Vec<Failure>>,
    /// Those refreshed since the last clean-up: their buffers hold consumed changes.
    refreshed: RefCell<BTreeSet<StreamTableId>>,
    /// There may be something to clean up.
    dirty: Cell<bool>,
    pub(super) own_writes: Rc<OwnWrites>,
    pub(super) notes: Notes,
    /// A user's table has been dropped beside the pooler.
    leftovers: Cell<bool>,
    /// Slow refreshes leave one connection to the others, if there is more than one.
    pub(super) slow: Semaphore,
}

/// A task that ends with its owner.
pub(super) struct Task(JoinHandle<()>);

impl Task {
    pub(super) fn spawn(work: impl Future<Output = ()> + 'static) -> Self {
        Self(tokio::task::spawn_local(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A running lane.
pub(super) struct LaneHandle {
    lane: Rc<Lane>,
    _tasks: [Task; 3],
}

impl std::ops::Deref for LaneHandle {
    type Target = Rc<Lane>;

    fn deref(&self) -> &Rc<Lane> {
        &self.lane
    }
}

impl Drop for LaneHandle {
    fn drop(&mut self) {
        // The tasks hold the lane.
        self.lane.groups.borrow_mut().clear();
    }
}

impl Lane {
    pub(super) fn start(
        clients: Rc<Clients>,
        role: Option<String>,
        signal: Arc<Signal>,
        own_writes: Rc<OwnWrites>,
        notes: Notes,
    ) -> LaneHandle {
        let slow = Semaphore::new(clients.max_connections().saturating_sub(1).max(1));
        let lane = Rc::new(Self {
            clients,
            role,
            signal,
            tables: RefCell::default(),
            groups: RefCell::default(),
            bell: Notify::new(),
            rest: Notify::new(),
            recent: RefCell::default(),
            suspicious: Cell::new(false),
            failures: RefCell::default(),
            refreshed: RefCell::default(),
            dirty: Cell::new(true),
            own_writes,
            notes,
            leftovers: Cell::new(false),
            slow,
        });
        let tasks = [
            Task::spawn(Rc::clone(&lane).rounds_of_recent()),
            Task::spawn(Rc::clone(&lane).rounds_of_all()),
            Task::spawn(Rc::clone(&lane).housekeeping()),
        ];
        LaneHandle {
            lane,
            _tasks: tasks,
        }
    }

    /// Takes over the catalog's list of the owner's stream tables.
    pub(super) fn assign(self: &Rc<Self>, listed: Vec<Listed>) {
        let mut tables = self.tables.borrow_mut();
        tables.retain(|id, _| listed.iter().any(|listed| listed.id == *id));
        for listed in listed {
            if listed.gone {
                self.leftovers.set(true);
                tables.remove(&listed.id);
                continue;
            }
            match tables.get(&listed.id) {
                Some(table) => table.update(listed),
                None => {
                    let table = Table::new(listed);
                    tables.insert(table.id, table);
                }
            }
        }
        self.regroup(&tables);
    }

    /// Those that hang together get a task, unless they have it already.
    fn regroup(self: &Rc<Self>, tables: &BTreeMap<StreamTableId, Rc<Table>>) {
        let reads = tables.iter().map(|(&id, table)| (id, table.sources()));
        let mut found = group::groups(&reads.collect());
        let mut groups = self.groups.borrow_mut();
        // A refresh under way is taken back.
        groups.retain(|ids, _| found.remove(ids));
        for ids in found {
            let members = ids.iter().filter_map(|id| tables.get(id).cloned());
            let group = Group::new(members.collect());
            let task = Task::spawn(group::serve(group, Rc::clone(self)));
            groups.insert(ids, task);
        }
    }

    /// There may be changes: look for them soon.
    pub(super) fn wake(&self) {
        self.bell.notify_one();
    }

    /// Something was written in the database: changes beside the pooler, or DDL.
    pub(super) fn written_somewhere(&self) {
        self.suspicious.set(true);
        for table in self.tables.borrow().values() {
            table.written();
        }
        self.bell.notify_one();
    }

    pub(super) fn record(&self, failure: Failure) {
        self.failures.borrow_mut().push(failure);
    }

    /// A stream table has been refreshed: the changes it has read are of no more use to it.
    pub(super) fn refreshed(&self, id: StreamTableId) {
        self.refreshed.borrow_mut().insert(id);
        self.dirty.set(true);
    }

    /// What is known of the database's stream tables.
    pub(super) fn memory(&self) -> &Memory {
        self.signal.memory()
    }

    pub(super) async fn lease(&self) -> Result<Lease, Error> {
        self.clients.lease(self.role.clone()).await
    }

    /// Runs `work` as the owner in a transaction of its own.
    pub(super) async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(&mut WorkerConn) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut lease = self.lease().await?;
        let value = in_transaction(&mut lease, work).await?;
        lease.returned();
        Ok(value)
    }

    /// Runs one reading call as the owner.
    async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut WorkerConn) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut lease = self.lease().await?;
        let value = work(&mut lease).await?;
        lease.returned();
        Ok(value)
    }

    fn all(&self) -> Vec<Rc<Table>> {
        self.tables.borrow().values().map(Rc::clone).collect()
    }

    /// A look at all of a thousand takes a tenth of a second. What changed lately mostly changes again, and is found by this
    /// look at a few, also while that one is under way.
    async fn rounds_of_recent(self: Rc<Self>) {
        loop {
            self.bell.notified().await;
            let started = Instant::now();
            if let Err(error) = self.wake_recent().await {
                log::debug!("stream tables: cannot look for recent changes: {error}");
            }
            self.rest.notify_one();
            tokio::time::sleep(pause_after(started.elapsed())).await;
        }
    }

    async fn rounds_of_all(self: Rc<Self>) {
        let mut failures = 0;
        let mut checks_from = Instant::now();
        loop {
            self.rest.notified().await;
            let started = Instant::now();
            let mut looked = self.wake_pending().await;
            if looked.is_ok() && self.suspicious.get() && started >= checks_from {
                self.suspicious.set(false);
                looked = self.check_definitions().await;
                // A tenth of the time at most: DDL beside the pooler is rare.
                checks_from = Instant::now() + started.elapsed() * 10;
            }
            let pause = match looked {
                Ok(()) => {
                    failures = 0;
                    pause_after(started.elapsed())
                }
                Err(error) => {
                    log::debug!("stream tables: cannot look for changes: {error}");
                    failures += 1;
                    self.rest.notify_one();
                    pace::retry_after(failures)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Wakes those of the recent ones that have changes waiting, where there are so many others that they would have to wait
    /// for them.
    async fn wake_recent(&self) -> Result<(), Error> {
        let all = self.waiting_for_changes();
        if all.len() <= engine::FEW {
            return Ok(());
        }
        let recent = self.recent.borrow().clone();
        let recent: Vec<_> = all
            .into_iter()
            .filter(|table| recent.contains(&table.id))
            .collect();
        self.wake_those_pending(&recent).await
    }

    /// Wakes the live stream tables that have changes waiting.
    async fn wake_pending(&self) -> Result<(), Error> {
        self.wake_those_pending(&self.waiting_for_changes()).await
    }

    /// The live stream tables to be asked whether changes wait for them. What commits from now on rings.
    fn waiting_for_changes(&self) -> Vec<Rc<Table>> {
        let mut all = self.all();
        if all.iter().any(|table| table.schedule() == Schedule::Live) {
            self.signal.arm();
        }
        all.retain(|table| table.awaits_changes());
        all
    }

    async fn wake_those_pending(&self, tables: &[Rc<Table>]) -> Result<(), Error> {
        if tables.is_empty() {
            return Ok(());
        }
        let ids: Vec<StreamTableId> = tables.iter().map(|table| table.id).collect();
        let pending = match self.pending(&ids).await {
            Err(Error::Server(_)) if ids.len() > 1 => self.pending_one_by_one(&ids).await?,
            found => found?,
        };
        let pending = tables.iter().filter(|table| pending.contains(&table.id));
        for table in pending {
            self.note_recent(table.id);
            table.wake();
        }
        Ok(())
    }

    fn note_recent(&self, id: StreamTableId) {
        let mut recent = self.recent.borrow_mut();
        recent.retain(|&known| known != id);
        recent.push_front(id);
        recent.truncate(engine::FEW);
    }

    async fn pending(&self, ids: &[StreamTableId]) -> Result<Vec<StreamTableId>, Error> {
        self.read(async |conn| engine::pending(conn, ids).await)
            .await
    }

    /// One of them has lost its buffer, say. It counts as pending: its own refresh meets the error and
    /// reports it, and the others go on.
    async fn pending_one_by_one(&self, ids: &[StreamTableId]) -> Result<Vec<StreamTableId>, Error> {
        let mut pending = Vec::new();
        for &id in ids {
            match self.pending(&[id]).await {
                Ok(found) => pending.extend(found),
                Err(Error::Server(_)) => pending.push(id),
                Err(error) => return Err(error),
            }
        }
        Ok(pending)
    }

    /// Looks for DDL that nobody told us of. A refresh looks by itself, so this is for those at rest.
    async fn check_definitions(&self) -> Result<(), Error> {
        for table in self.all().iter().filter(|table| table.is_at_rest()) {
            // There may be a thousand: a commit does not wait for all of them.
            if pin!(self.rest.notified()).enable() {
                self.wake_pending().await?;
            }
            let drift = self
                .read(async |conn| engine::check(conn, table.id).await)
                .await;
            match drift {
                Ok(Drift::None) => {}
                Ok(Drift::TableGone) => self.leftovers.set(true),
                Ok(Drift::Sources(_) | Drift::DefinitionGone) => table.drifted(),
                Err(error) if error.is_the_servers() => return Err(error),
                // Its own trouble, which its own refresh meets and reports.
                Err(_) => table.drifted(),
            }
        }
        Ok(())
    }

    async fn housekeeping(self: Rc<Self>) {
        let mut cleanup_from = Instant::now() + CLEANUP;
        loop {
            tokio::time::sleep(HOUSEKEEPING).await;
            if let Err(error) = self.write_failures().await {
                log::debug!("stream tables: failures not written to the history: {error}");
            }
            let due = self.dirty.get() && Instant::now() >= cleanup_from;
            if due || self.leftovers.get() {
                self.dirty.set(false);
                self.leftovers.set(false);
                cleanup_from = Instant::now() + CLEANUP;
                if let Err(error) = self.cleanup().await {
                    log::debug!("stream tables: consumed changes not deleted: {error}");
                    self.dirty.set(true);
                }
            }
        }
    }

    async fn write_failures(&self) -> Result<(), Error> {
        let failures = self.failures.take();
        if failures.is_empty() {
            return Ok(());
        }
        self.refreshed
            .borrow_mut()
            .extend(failures.iter().map(Failure::table));
        self.dirty.set(true);
        self.transaction(async |conn| history::write(conn, &failures).await)
            .await
    }

    async fn cleanup(&self) -> Result<(), Error> {
        let tables = self.refreshed.take();
        if !tables.is_empty() {
            self.transaction(async |conn| history::prune(conn, &tables).await)
                .await?;
        }
        let mut lease = self.lease().await?;
        engine::cleanup_buffers(&mut *lease).await?;
        lease.returned();
        Ok(())
    }
}

/// Half of the time at most is for looks; but a second is long.
fn pause_after(look: Duration) -> Duration {
    look.clamp(Duration::from_millis(1), Duration::from_secs(1))
}
