//! Many writers at once, on a thread of their own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::writer::Writer;
use crate::connect;

/// Which errors of a writer are no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbances {
    /// Only what writers do to one another: deadlocks, serialisation failures, TRUNCATE in the way.
    None,
    /// Also lost and refused connections.
    Crashes,
}

/// What the writers have done.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Transactions that ended without an error, rolled back ones included.
    pub transactions: u64,
    /// Tolerated errors by SQLSTATE, `connection` where there is none.
    pub errors: BTreeMap<String, u64>,
    /// Errors that must not happen.
    pub failures: Vec<String>,
}

/// No transaction of the load takes nearly as long, even while a server recovers.
const STUCK: Duration = Duration::from_secs(30);

struct Shared {
    /// Held for reading during each transaction, for writing in a quiet point.
    gate: Arc<RwLock<()>>,
    stop: AtomicBool,
    report: Mutex<Report>,
    disturbances: Disturbances,
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts one writer per port, as `app` in database `app`.
    pub fn start(ports: &[u16], seed: u64, disturbances: Disturbances) -> Self {
        let shared = Arc::new(Shared {
            gate: Arc::new(RwLock::new(())),
            stop: AtomicBool::new(false),
            report: Mutex::default(),
            disturbances,
        });
        let (ports, of_thread) = (ports.to_vec(), Arc::clone(&shared));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let writers: Vec<_> = ports
                    .into_iter()
                    .enumerate()
                    .map(|(number, port)| {
                        let writer = Writer::new(seed, number as u64);
                        tokio::spawn(of_thread.clone().run(writer, port))
                    })
                    .collect();
                for writer in writers {
                    writer.await.expect("a writer does not panic");
                }
            });
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Waits for the running transactions and keeps new ones from starting while the guard lives.
    pub async fn pause(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.shared.gate).write_owned().await
    }

    pub fn report(&self) -> Report {
        self.shared.report.lock().expect("no panic").clone()
    }

    /// Ends the load after the running transactions.
    pub fn finish(mut self) -> Report {
        self.stop();
        self.report()
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the load does not panic");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    async fn run(self: Arc<Self>, mut writer: Writer, port: u16) {
        let mut client: Option<Client> = None;
        let number = writer.number();
        while !self.stop.load(Ordering::Relaxed) {
            let turn = self.gate.read().await;
            let connected = match client.take() {
                Some(client) => client,
                None => match connect::try_connect(port, "app", "app").await {
                    Ok(client) => client,
                    Err(error) => {
                        drop(turn);
                        self.failed(&error);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let transaction = tokio::time::timeout(STUCK, writer.transaction(&connected));
            let Ok(result) = transaction.await else {
                // The connection is given up with it.
                self.fail(format!(
                    "a transaction of writer {number} on port {port} hangs"
                ));
                continue;
            };
            match result {
                Ok(()) => {
                    self.report.lock().expect("no panic").transactions += 1;
                    client = Some(connected);
                }
                Err(error) => {
                    self.failed(&error);
                    // A deadlock ends the transaction, not the session.
                    if connected.batch_execute("ROLLBACK").await.is_ok() {
                        client = Some(connected);
                    }
                }
            }
            drop(turn);
            // The writers share one thread: let the others, and a pause, have their turn.
            tokio::task::yield_now().await;
        }
    }

    fn failed(&self, error: &tokio_postgres::Error) {
        let code = error
            .code()
            .map_or("connection".to_owned(), |code| code.code().to_owned());
        let among_writers = [
            &SqlState::T_R_DEADLOCK_DETECTED,
            &SqlState::T_R_SERIALIZATION_FAILURE,
            &SqlState::LOCK_NOT_AVAILABLE,
        ]
        .iter()
        .any(|state| error.code() == Some(state));
        let lost = matches!(code.as_str(), "connection" | "58000")
            || code.starts_with("08")
            || code.starts_with("57P");
        let tolerated = among_writers || (lost && self.disturbances == Disturbances::Crashes);
        *self
            .report
            .lock()
            .expect("no panic")
            .errors
            .entry(code)
            .or_default() += 1;
        if !tolerated {
            self.fail(format!("{error:?}"));
        }
    }

    fn fail(&self, failure: String) {
        let mut report = self.report.lock().expect("no panic");
        if report.failures.len() < 20 {
            report.failures.push(failure);
        }
    }
}
