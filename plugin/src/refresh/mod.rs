//! The worker: one thread that keeps all stream tables of all databases up to date, through the
//! pooler's own pools.
//!
//! ```text
//! Worker ─ Database (one per server database: polls, reads the catalog)
//!            └ Lane (one per owner: asks which stream tables have changes waiting; history, clean-up)
//!                └ Group (one per set of stream tables that hang together: refreshes them)
//!                    └ Table (one per stream table: when, retries, reports)
//! ```

mod board;
mod clients;
mod database;
mod group;
mod history;
mod lane;
mod own_writes;
mod pace;
mod prepared;
mod role;
mod signal;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::thread;
use std::time::Duration;

use pgcat::plugins::PoolHandle;
use tokio::sync::mpsc;

use crate::settings::Settings;
pub(crate) use board::{Board, Counters, Entry};
pub(crate) use signal::{Signal, Signals};

/// How long a stop waits for the thread; its transactions are simply rolled back by the server.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The worker's thread, once started.
#[derive(Default)]
pub(crate) struct Worker {
    running: Mutex<Option<Running>>,
    board: Arc<Board>,
}

struct Running {
    /// New sets of databases to serve; closed to stop.
    databases: mpsc::UnboundedSender<Vec<Assignment>>,
    stopped: std_mpsc::Receiver<()>,
}

/// A database to serve.
struct Assignment {
    pools: Vec<(PoolHandle, Settings)>,
    signal: Arc<Signal>,
    notes: board::Notes,
}

impl Worker {
    /// What it knows.
    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// Serves these pools from now on, and no others.
    ///
    /// # Errors
    /// The thread could not be started.
    pub(crate) fn serve(
        &self,
        pools: Vec<(PoolHandle, Settings)>,
        signals: &Signals,
    ) -> io::Result<()> {
        signals.add(
            pools
                .iter()
                .map(|(pool, _)| (pool.identity().clone(), pool.server_database())),
        );
        let mut databases: BTreeMap<_, Assignment> = BTreeMap::new();
        let mut names = BTreeMap::new();
        for (pool, settings) in pools {
            let Some(signal) = signals.of(pool.identity()).cloned() else {
                continue;
            };
            let database = pool.server_database();
            // The first of the pools that lead there gives its name to it.
            names
                .entry(database.clone())
                .or_insert_with(|| pool.identity().database.clone());
            databases
                .entry(database.clone())
                .or_insert_with(|| Assignment {
                    pools: Vec::new(),
                    signal,
                    notes: board::Notes::new(Arc::clone(&self.board), database),
                })
                .pools
                .push((pool, settings));
        }
        let databases = databases.into_values().collect();
        self.board.assign(names);
        let mut running = self
            .running
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let running = match &mut *running {
            Some(running) => running,
            none => none.insert(Running::start()?),
        };
        running
            .databases
            .send(databases)
            .map_err(|_| io::Error::other("the stream tables' worker has ended"))
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        let running = self
            .running
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        if let Some(Running { databases, stopped }) = running {
            drop(databases);
            // Disconnected is the answer: the thread has dropped its end.
            if stopped.recv_timeout(STOP_TIMEOUT) == Err(std_mpsc::RecvTimeoutError::Timeout) {
                log::warn!("the stream tables' worker did not stop in time");
            }
        }
    }
}

impl Running {
    fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (databases, assignments) = mpsc::unbounded_channel();
        let (alive, stopped) = std_mpsc::channel();
        thread::Builder::new()
            .name("stream-tables".to_owned())
            .spawn(move || {
                // Everything the worker runs is dropped with the set, at the next point where it waits.
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, supervise(assignments));
                drop(local);
                drop(alive);
            })?;
        Ok(Self { databases, stopped })
    }
}

/// Runs a task per database, anew for every set, until there is nobody left to send one.
async fn supervise(mut assignments: mpsc::UnboundedReceiver<Vec<Assignment>>) {
    let mut tasks: Vec<lane::Task> = Vec::new();
    while let Some(databases) = assignments.recv().await {
        tasks.clear();
        tasks.extend(databases.into_iter().map(|assignment| {
            let pools = database::Pools::new(assignment.pools);
            lane::Task::spawn(database::serve(pools, assignment.signal, assignment.notes))
        }));
    }
}
