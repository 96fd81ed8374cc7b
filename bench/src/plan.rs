//! How long and how often things are measured.

use std::time::Duration;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Commits timed in each situation.
    pub latency_samples: usize,
    /// Rows of the sources.
    pub source_rows: Vec<u32>,
    /// Refreshes per number of changed rows.
    pub refreshes: usize,
    /// Repetitions of the bulk statements.
    pub bulk_repetitions: usize,
    /// Single-row statements per batch.
    pub single_rows: usize,
    /// One run of pgbench.
    pub pgbench: Duration,
    /// Runs of pgbench per pooler and situation, in turn.
    pub pgbench_repetitions: usize,
}

impl Plan {
    /// The whole plan, or a short one with `BENCH_QUICK=1`.
    pub fn from_environment() -> Self {
        if std::env::var("BENCH_QUICK").is_ok_and(|value| value == "1") {
            Self {
                latency_samples: 60,
                source_rows: vec![300_000],
                refreshes: 2,
                bulk_repetitions: 1,
                single_rows: 300,
                pgbench: Duration::from_secs(1),
                pgbench_repetitions: 1,
            }
        } else {
            Self {
                latency_samples: 300,
                source_rows: vec![1_000_000, 4_000_000],
                refreshes: 5,
                bulk_repetitions: 3,
                single_rows: 1000,
                pgbench: Duration::from_secs(3),
                pgbench_repetitions: 3,
            }
        }
    }
}
