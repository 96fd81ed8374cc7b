//! Which functions may write: what the server's catalog says, and what the configuration adds.
//!
//! PostgreSQL lets only VOLATILE functions write, so a SELECT that calls others is a read. Of the
//! volatile ones some are known to be harmless. A name that is not known counts as a writer, and has
//! the catalog read again. A function may also be called by a view, a row security policy, an operator
//! or a cast; of these the catalog has to name those that call volatile ones.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::looks::Looks;
use crate::plugins::QueryResult;
use crate::router::analysis::Analysis;

/// Names by kind, each with a volatile function that its use calls: functions ('f', all of them, without
/// one where none of that name is volatile), operators ('o'), casts by target type ('c'), and relations
/// ('r'), through however many views. pg_depend knows nothing of built-in functions; the stored trees do.
/// The server's own views only show.
pub const CATALOG: &str = "WITH RECURSIVE trees(relation, tree) AS (\
    SELECT r.ev_class, r.ev_action::text FROM pg_catalog.pg_rewrite r \
    JOIN pg_catalog.pg_class c ON c.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE r.ev_type = '1' AND c.relkind = 'v' AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
    UNION ALL SELECT polrelid, polqual::text FROM pg_catalog.pg_policy \
    WHERE polcmd IN ('r', '*') AND polqual IS NOT NULL), \
    calls(relation, function) AS (SELECT DISTINCT relation, m[1]::oid FROM trees, \
    pg_catalog.regexp_matches(tree, ':(?:funcid|opfuncid|winfnoid|aggfnoid) ([0-9]+)', 'g') m), \
    reads(relation, other) AS (SELECT DISTINCT relation, m[1]::oid FROM trees, \
    pg_catalog.regexp_matches(tree, ':relid ([0-9]+)', 'g') m), \
    closure(relation, through) AS (SELECT relation, relation FROM trees \
    UNION SELECT c.relation, r.other FROM closure c JOIN reads r ON r.relation = c.through) \
    SELECT 'f', proname, CASE WHEN bool_or(provolatile = 'v') THEN proname END \
    FROM pg_catalog.pg_proc GROUP BY proname \
    UNION ALL SELECT 'o', o.oprname, p.proname FROM pg_catalog.pg_operator o \
    JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode WHERE p.provolatile = 'v' \
    UNION ALL SELECT 'c', t.typname, p.proname FROM pg_catalog.pg_cast c \
    JOIN pg_catalog.pg_type t ON t.oid = c.casttarget \
    JOIN pg_catalog.pg_proc p ON p.oid = c.castfunc WHERE p.provolatile = 'v' \
    UNION ALL SELECT DISTINCT 'r', c.relname, p.proname FROM closure v \
    JOIN calls ON calls.relation = v.through \
    JOIN pg_catalog.pg_proc p ON p.oid = calls.function AND p.provolatile = 'v' \
    JOIN pg_catalog.pg_class c ON c.oid = v.relation";

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

/// See the module's text.
#[derive(Debug, Default)]
pub struct Functions {
    catalog: Mutex<Arc<Catalog>>,
    /// Counts the catalogs, for a look without the lock.
    version: AtomicU64,
    /// At the server's. A name that is not found has it looked at sooner.
    pub looks: Looks,
}

/// A thread's copy of the catalog, with its version.
#[derive(Debug, Default)]
pub struct KnownCatalog(RefCell<(u64, Arc<Catalog>)>);

/// What the server's catalog says.
#[derive(Debug, Default)]
pub struct Catalog {
    /// All functions by name, with whether any of that name is volatile.
    functions: HashMap<String, bool>,
    /// Volatile functions that are called by the use of these.
    operators: HashMap<String, Vec<String>>,
    casts: HashMap<String, Vec<String>>,
    relations: HashMap<String, Vec<String>>,
}

impl Functions {
    /// Whether running a statement that is a read by its grammar changes nothing. `declared` are the
    /// functions that the configuration calls harmless.
    pub fn only_read(
        &self,
        known: &KnownCatalog,
        analysis: &Analysis,
        declared: &[String],
    ) -> bool {
        let mut known = known.0.borrow_mut();
        let version = self.version.load(Ordering::Acquire);
        if known.0 != version {
            *known = (version, self.catalog().clone());
        }
        let catalog = &known.1;
        let is_harmless =
            |name: &String| declared.contains(name) || HARMLESS.contains(&name.as_str());
        let functions = analysis.functions.iter().all(|name| {
            is_harmless(name)
                || match catalog.functions.get(name) {
                    Some(volatile) => !volatile,
                    None => {
                        self.looks.note_change();
                        false
                    }
                }
        });
        let call_none = |names: &[String], calls: &HashMap<String, Vec<String>>| {
            calls.is_empty()
                || names
                    .iter()
                    .filter_map(|name| calls.get(name))
                    .flatten()
                    .all(is_harmless)
        };
        functions
            && call_none(&analysis.tables, &catalog.relations)
            && call_none(&analysis.operators, &catalog.operators)
            && call_none(&analysis.casts, &catalog.casts)
    }

    /// Takes in the result of [`CATALOG`].
    pub fn learn(&self, result: QueryResult) {
        let mut catalog = Catalog::default();
        for row in result.rows {
            let Ok([Some(kind), Some(name), function]) = <[Option<String>; 3]>::try_from(row)
            else {
                continue;
            };
            let calls = match kind.as_str() {
                "f" => {
                    catalog.functions.insert(name, function.is_some());
                    continue;
                }
                "o" => &mut catalog.operators,
                "c" => &mut catalog.casts,
                _ => &mut catalog.relations,
            };
            calls.entry(name).or_default().extend(function);
        }
        *self.catalog() = Arc::new(catalog);
        self.version.fetch_add(1, Ordering::Release);
    }

    fn catalog(&self) -> std::sync::MutexGuard<'_, Arc<Catalog>> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
