//! What the worker knows of the stream tables, kept for those who look at the pooler. No server is
//! asked, so a server that is down keeps nobody waiting.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use pgcat::plugins::ErrorFields;

use super::database::Listed;
use super::signal::Database;
use crate::engine::{RefreshOutcome, StreamTableId};

/// The stream tables of all databases.
#[derive(Debug, Default)]
pub(crate) struct Board {
    databases: Mutex<BTreeMap<Database, OfDatabase>>,
}

#[derive(Debug)]
struct OfDatabase {
    /// The name clients connect to.
    name: String,
    tables: BTreeMap<StreamTableId, Entry>,
}

/// A stream table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub schema: String,
    pub name: String,
    pub owner: String,
    pub status: String,
    /// Can it only be recomputed as a whole?
    pub full: bool,
    pub refreshed_at: Option<SystemTime>,
    /// SQLSTATE and message of the last refresh, if it failed.
    pub error: Option<(String, String)>,
    pub counters: Counters,
}

/// What the worker has done since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub refreshes: u64,
    pub refresh_time: Duration,
    pub inserted: u64,
    pub deleted: u64,
    pub errors: u64,
}

impl Board {
    /// A board with these, for tests of what shows it.
    #[cfg(test)]
    pub(crate) fn of(entries: impl Iterator<Item = Entry>) -> Self {
        let board = Self::default();
        let tables = (0..).map(StreamTableId).zip(entries).collect();
        let name = "db".to_owned();
        let key = ("host".to_owned(), 5432, "db".to_owned());
        board.lock().insert(key, OfDatabase { name, tables });
        board
    }

    /// All of them, each with the name of its database, in order.
    pub(crate) fn all(&self) -> Vec<(String, Entry)> {
        let databases = self.lock();
        let entries = databases.values().flat_map(|database| {
            let entries = database.tables.values();
            entries.map(|entry| (database.name.clone(), entry.clone()))
        });
        let mut all: Vec<_> = entries.collect();
        all.sort_by(|(a, one), (b, two)| {
            (a, &one.schema, &one.name).cmp(&(b, &two.schema, &two.name))
        });
        all
    }

    /// Knows these databases, by the names clients connect to, and no others.
    pub(super) fn assign(&self, names: BTreeMap<Database, String>) {
        let mut databases = self.lock();
        databases.retain(|database, _| names.contains_key(database));
        for (database, name) in names {
            databases
                .entry(database)
                .or_insert_with(|| OfDatabase {
                    name: String::new(),
                    tables: BTreeMap::new(),
                })
                .name = name;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Database, OfDatabase>> {
        self.databases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One database's part of the board.
#[derive(Debug, Clone)]
pub(super) struct Notes {
    board: Arc<Board>,
    database: Database,
}

impl Notes {
    pub(super) fn new(board: Arc<Board>, database: Database) -> Self {
        Self { board, database }
    }

    /// Takes over the catalog's list.
    pub(super) fn listed(&self, listed: &[Listed]) {
        let now = SystemTime::now();
        self.edit(|tables| {
            let mut before = std::mem::take(tables);
            for table in listed.iter().filter(|table| !table.gone && !table.shared) {
                let known = before.remove(&table.id);
                let age = table.since_refresh;
                let entry = Entry {
                    schema: table.schema.clone(),
                    name: table.table.clone(),
                    owner: table.owner.clone(),
                    status: table.status.clone(),
                    full: table.full,
                    refreshed_at: age.and_then(|age| now.checked_sub(age)),
                    error: known.as_ref().and_then(|known| known.error.clone()),
                    counters: known.map_or_else(Counters::default, |known| known.counters),
                };
                tables.insert(table.id, entry);
            }
        });
    }

    /// A refresh has succeeded.
    pub(super) fn refreshed(&self, id: StreamTableId, took: Duration, outcome: &RefreshOutcome) {
        self.entry(id, |entry| {
            entry.error = None;
            // A look that found nothing to do is no refresh.
            if outcome.mode != "none" {
                entry.refreshed_at = Some(SystemTime::now());
                entry.counters.refreshes += 1;
                entry.counters.refresh_time += took;
                entry.counters.inserted += outcome.inserted;
                entry.counters.deleted += outcome.deleted;
            }
        });
    }

    /// A refresh has failed, by the stream table's own fault.
    pub(super) fn failed(&self, id: StreamTableId, error: &ErrorFields) {
        self.entry(id, |entry| {
            entry.error = Some((error.code.clone(), error.message.clone()));
            entry.counters.errors += 1;
        });
    }

    /// The worker has changed the status in the catalog.
    pub(super) fn status(&self, id: StreamTableId, status: &str) {
        self.entry(id, |entry| status.clone_into(&mut entry.status));
    }

    fn entry(&self, id: StreamTableId, edit: impl FnOnce(&mut Entry)) {
        self.edit(|tables| {
            // Dropped meanwhile, it is of no interest.
            if let Some(entry) = tables.get_mut(&id) {
                edit(entry);
            }
        });
    }

    fn edit(&self, edit: impl FnOnce(&mut BTreeMap<StreamTableId, Entry>)) {
        if let Some(database) = self.board.lock().get_mut(&self.database) {
            edit(&mut database.tables);
        }
    }
}
