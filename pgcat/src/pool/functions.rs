//! Which functions may write: what the server's catalog says, and what the configuration adds.
//!
//! PostgreSQL lets only VOLATILE functions write, so a SELECT that calls others is a read. Of the
//! volatile ones some are known to be harmless. A name that is not known counts as a writer, and has
//! the catalog read again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::plugins::QueryResult;

/// All functions by name, with whether any of that name is volatile.
pub const CATALOG: &str =
    "SELECT proname, bool_or(provolatile = 'v') FROM pg_catalog.pg_proc GROUP BY proname";

/// Volatile, because their results differ from call to call; but they change nothing, and standbys
/// run them.
const HARMLESS: [&str; 21] = [
    "clock_timestamp",
    "gen_random_uuid",
    "pg_database_size",
    "pg_indexes_size",
    "pg_is_in_recovery",
    "pg_last_wal_receive_lsn",
    "pg_last_wal_replay_lsn",
    "pg_last_xact_replay_timestamp",
    "pg_relation_size",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_total_relation_size",
    "random",
    "random_normal",
    "timeofday",
    "uuid_generate_v4",
    "uuidv4",
    "uuidv7",
];

/// Between two looks at the catalog, in milliseconds: where nothing is missing, and at least.
const REFRESH: u64 = 60_000;
const PAUSE: u64 = 2_000;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Functions {
    volatile: Mutex<Arc<HashMap<String, bool>>>,
    /// A name was not found.
    missing: AtomicBool,
    /// When the catalog was last asked for, plus one; 0: never.
    asked: AtomicU64,
}

impl Functions {
    /// Whether calling these changes nothing. `declared` are the configuration's.
    pub fn only_read(&self, names: &[String], declared: &[String]) -> bool {
        if names.is_empty() {
            return true;
        }
        let volatile = self.volatile().clone();
        names.iter().all(|name| {
            if declared.contains(name) || HARMLESS.contains(&name.as_str()) {
                return true;
            }
            let known = volatile.get(name);
            if known.is_none() {
                self.missing.store(true, Ordering::Relaxed);
            }
            known == Some(&false)
        })
    }

    /// Whether the catalog is to be read (again); the caller does so.
    pub fn is_due(&self, now: u64) -> bool {
        let age = match self.asked.load(Ordering::Relaxed) {
            0 => u64::MAX,
            asked => (now + 1).saturating_sub(asked),
        };
        let missing = self.missing.load(Ordering::Relaxed);
        let due = age >= REFRESH || (missing && age >= PAUSE);
        if due {
            self.asked.store(now + 1, Ordering::Relaxed);
            self.missing.store(false, Ordering::Relaxed);
        }
        due
    }

    /// Takes in the result of [`CATALOG`].
    pub fn learn(&self, result: QueryResult) {
        let mut known = HashMap::with_capacity(result.rows.len());
        for row in result.rows {
            if let Ok([Some(name), Some(volatile)]) = <[Option<String>; 2]>::try_from(row) {
                known.insert(name, volatile == "t");
            }
        }
        *self.volatile() = Arc::new(known);
    }

    fn volatile(&self) -> std::sync::MutexGuard<'_, Arc<HashMap<String, bool>>> {
        self.volatile.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
