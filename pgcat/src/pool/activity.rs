//! Which tables have been written a moment ago (`db_activity_based_routing`): replicas may not have
//! the change yet, so they are read on the primary.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::model::Pool;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Activity(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Since when the pool has been in use, and when it was last.
    used: Option<(Instant, Instant)>,
    /// When a table was last written.
    written: HashMap<String, Instant>,
}

impl Activity {
    /// Notes a write to these tables.
    pub fn wrote(&self, tables: &[String], pool: &Pool) {
        let now = Instant::now();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.touch(now, pool.db_activity_ttl);
        let lasting = pool.table_mutation_cache_ms_ttl;
        state
            .written
            .retain(|_, written| now.duration_since(*written) < lasting);
        for table in tables {
            state.written.insert(table.clone(), now);
        }
    }

    /// Whether replicas may be expected to have what there is to read in these tables.
    pub fn is_settled(&self, tables: &[String], pool: &Pool) -> bool {
        let now = Instant::now();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = state.touch(now, pool.db_activity_ttl);
        // Others may have written just before the pool came into use.
        now.duration_since(since) >= pool.db_activity_init_delay
            && tables.iter().all(|table| {
                state.written.get(table).is_none_or(|written| {
                    now.duration_since(*written) >= pool.table_mutation_cache_ms_ttl
                })
            })
    }
}

impl State {
    /// Notes that the pool is in use; returns since when.
    fn touch(&mut self, now: Instant, ttl: Duration) -> Instant {
        let since = match self.used {
            Some((since, last)) if now.duration_since(last) < ttl => since,
            _ => now,
        };
        self.used = Some((since, now));
        since
    }
}
