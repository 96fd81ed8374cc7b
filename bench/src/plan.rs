//! How long and how often things are measured.

use std::time::Duration;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Commits timed in each situation.
    pub latency_samples: usize,
    /// Rows of the sources.
    pub source_rows: Vec<u32>,
    /// Rows of the sources in `flat`.
    pub flat_rows: Vec<u32>,
    /// Refreshes per number of changed rows.
    pub refreshes: usize,
    /// Stream tables, and sources, in `many`.
    pub many_tables: u32,
    /// How long the pooler is watched while nothing happens.
    pub idle: Duration,
    /// Events per second in `nexmark`.
    pub event_rates: Vec<u32>,
    /// How long each of them lasts.
    pub event_time: Duration,
    /// Repetitions of the bulk statements.
    pub bulk_repetitions: usize,
    /// Single-row statements per batch.
    pub single_rows: usize,
    /// One run of pgbench.
    pub pgbench: Duration,
    /// Runs of pgbench per pooler and situation, in turn.
    pub pgbench_repetitions: usize,
    /// Numbers of pgbench's clients.
    pub clients: Vec<u32>,
    /// Size of what is sent at once.
    pub bulk_megabytes: usize,
    /// Clients that do nothing.
    pub idle_clients: u32,
}

impl Plan {
    /// The whole plan, or a short one with `BENCH_QUICK=1`.
    pub fn from_environment() -> Self {
        if std::env::var("BENCH_QUICK").is_ok_and(|value| value == "1") {
            Self {
                latency_samples: 60,
                source_rows: vec![300_000],
                flat_rows: vec![100_000, 1_000_000],
                many_tables: 200,
                idle: Duration::from_secs(5),
                event_rates: vec![1_000],
                event_time: Duration::from_secs(5),
                refreshes: 2,
                bulk_repetitions: 1,
                single_rows: 300,
                pgbench: Duration::from_secs(1),
                pgbench_repetitions: 1,
                clients: vec![1, 16],
                bulk_megabytes: 100,
                idle_clients: 500,
            }
        } else {
            Self {
                latency_samples: 300,
                source_rows: vec![1_000_000, 4_000_000],
                flat_rows: vec![100_000, 1_000_000, 10_000_000],
                many_tables: 1_000,
                idle: Duration::from_secs(20),
                event_rates: vec![1_000, 2_000, 5_000, 10_000, 20_000],
                event_time: Duration::from_secs(15),
                refreshes: 5,
                bulk_repetitions: 3,
                single_rows: 1000,
                pgbench: Duration::from_secs(2),
                pgbench_repetitions: 3,
                clients: vec![1, 16, 64, 500],
                bulk_megabytes: 1000,
                idle_clients: 5000,
            }
        }
    }

    /// The largest number of pgbench's clients.
    pub fn most_clients(&self) -> u32 {
        self.clients.iter().copied().max().unwrap_or(1)
    }
}
