//! How a commit on a client's thread wakes the worker, at next to no cost for the client.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use pgcat::plugins::PoolIdentity;
use tokio::sync::Notify;

use crate::engine::Memory;

/// Nobody waits for commits: there are no live stream tables, or a wake-up is already on its way.
const QUIET: u8 = 0;
/// The next commit wakes the worker.
const ARMED: u8 = 1;

/// One database's bell. A commit rings it at most once per round of the worker: the worker arms it
/// before it looks for changes, so whatever commits later rings again.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    state: AtomicU8,
    catalog_changed: AtomicBool,
    bell: Notify,
    /// What this process knows of the database.
    memory: Arc<Memory>,
}

impl Signal {
    /// What is known of the database's stream tables.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// A transaction that may have written has committed.
    pub(crate) fn committed(&self) {
        // The plain load keeps the cache line shared while nothing is armed.
        if self.state.load(Ordering::Relaxed) == ARMED
            && self.state.swap(QUIET, Ordering::AcqRel) == ARMED
        {
            self.bell.notify_one();
        }
    }

    /// A statement of ours has changed the catalog, or will have when its transaction commits.
    pub(crate) fn changed_catalog(&self) {
        self.catalog_changed.store(true, Ordering::Release);
        self.bell.notify_one();
    }

    /// Asks for a ring at the next commit.
    pub(super) fn arm(&self) {
        self.state.store(ARMED, Ordering::SeqCst);
    }

    /// Waits for a ring.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    /// Has the catalog changed since the last call?
    pub(super) fn take_catalog_changed(&self) -> bool {
        self.catalog_changed.swap(false, Ordering::AcqRel)
    }
}

/// The bells of all databases, by pool. Grows only, at a reload, and is read without a lock; pools that
/// lead to the same database of the same server share a bell.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    first: OnceLock<Box<Generation>>,
}

#[derive(Debug)]
struct Generation {
    signals: HashMap<PoolIdentity, Entry>,
    next: OnceLock<Box<Generation>>,
}

#[derive(Debug)]
struct Entry {
    database: Database,
    signal: Arc<Signal>,
}

/// A database: the server's host and port, and its name there.
pub(super) type Database = (String, u16, String);

impl Signals {
    /// The bell of the pool's database, if stream tables are enabled there.
    pub(crate) fn of(&self, pool: &PoolIdentity) -> Option<&Arc<Signal>> {
        let mut generation = self.first.get();
        while let Some(current) = generation {
            if let Some(entry) = current.signals.get(pool) {
                return Some(&entry.signal);
            }
            generation = current.next.get();
        }
        None
    }

    /// Adds bells for pools that have none yet.
    pub(super) fn add(&self, pools: impl Iterator<Item = (PoolIdentity, Database)>) {
        let mut known: HashMap<Database, Arc<Signal>> = HashMap::new();
        let mut tail = &self.first;
        while let Some(generation) = tail.get() {
            for entry in generation.signals.values() {
                known.insert(entry.database.clone(), Arc::clone(&entry.signal));
            }
            tail = &generation.next;
        }
        let mut signals = HashMap::new();
        for (pool, database) in pools.filter(|(pool, _)| self.of(pool).is_none()) {
            let signal = Arc::clone(known.entry(database.clone()).or_default());
            signals.insert(pool, Entry { database, signal });
        }
        if !signals.is_empty() {
            // Only `Plugin::start` adds, one call at a time, so the place at the tail is free.
            let _ = tail.set(Box::new(Generation {
                signals,
                next: OnceLock::new(),
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, user: &str) -> PoolIdentity {
        PoolIdentity {
            database: name.to_owned(),
            user: user.to_owned(),
        }
    }

    fn at(name: &str, user: &str, database: &str) -> (PoolIdentity, Database) {
        (
            pool(name, user),
            ("localhost".to_owned(), 5432, database.to_owned()),
        )
    }

    #[test]
    fn pools_of_a_database_share_a_bell() {
        let signals = Signals::default();
        signals.add([at("a", "x", "d"), at("a", "y", "d"), at("b", "x", "e")].into_iter());
        signals.add([at("a", "x", "d"), at("alias", "z", "d")].into_iter());
        let of = |database, user| signals.of(&pool(database, user)).expect("bell");
        assert!(Arc::ptr_eq(of("a", "x"), of("a", "y")));
        assert!(Arc::ptr_eq(of("a", "x"), of("alias", "z")));
        assert!(!Arc::ptr_eq(of("a", "x"), of("b", "x")));
        assert!(signals.of(&pool("c", "x")).is_none());
    }

    #[tokio::test]
    async fn rings_once_per_arming() {
        let signal = Signal::default();
        let rung = || async {
            tokio::time::timeout(std::time::Duration::from_millis(20), signal.rung())
                .await
                .is_ok()
        };
        signal.committed();
        assert!(!rung().await, "nobody waits yet");
        signal.arm();
        signal.committed();
        signal.committed();
        assert!(rung().await);
        assert!(!rung().await, "one ring per arming");
        signal.committed();
        assert!(!rung().await);
    }
}
