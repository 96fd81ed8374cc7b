//! From a commit to its change in the stream table, all through the pooler.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use test_support::Pooler;
use tokio_postgres::Client;

use crate::plan::Plan;
use crate::report::{Table, ms, percentile};
use crate::stage;

const SOURCE_ROWS: u32 = 100_000;
const WRITES_PER_SECOND: u32 = 500;
const WRITERS: u32 = 5;

/// How often the reader looks: the resolution of the figures.
const LOOK: Duration = Duration::from_micros(500);

pub async fn run(plan: &Plan) {
    let server = stage::server();
    let pooler = stage::pooler(&server, 20, true, 2);
    let client = stage::pooled(&pooler).await;
    stage::run(
        &client,
        &format!(
            "CREATE TABLE customers (id int PRIMARY KEY, region text NOT NULL);
             CREATE TABLE orders (id bigserial PRIMARY KEY, customer_id int NOT NULL, amount numeric NOT NULL);
             INSERT INTO customers SELECT n, 'region ' || n % 50 FROM generate_series(1, 1000) n;
             INSERT INTO customers VALUES (0, 'probe');
             INSERT INTO orders (customer_id, amount)
                 SELECT 1 + n % 1000, n % 100 FROM generate_series(1, {SOURCE_ROWS}) n;
             ANALYZE"
        ),
    )
    .await;
    stage::run(
        &client,
        "CREATE STREAM TABLE revenue_by_region AS
         SELECT c.region, count(*) AS orders, sum(o.amount) AS revenue
         FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region",
    )
    .await;

    let mut table = Table::new(
        &format!(
            "Commit to visible in the stream table (ms; join with GROUP BY over {SOURCE_ROWS} rows; commit, wake-up, refresh and read through the pooler)"
        ),
        &[
            "",
            "p50",
            "p90",
            "p99",
            "max",
            "commits timed",
            "writes/s meanwhile",
        ],
    );
    let mut add = |name: &str, samples: &[Duration], rate: f64| {
        table.row(&[
            name.to_owned(),
            ms(percentile(samples, 0.5)),
            ms(percentile(samples, 0.9)),
            ms(percentile(samples, 0.99)),
            ms(percentile(samples, 1.0)),
            samples.len().to_string(),
            format!("{rate:.0}"),
        ]);
    };

    let mut probe = Probe::new(
        "INSERT INTO orders (customer_id, amount) VALUES (0, 1)",
        "SELECT orders FROM revenue_by_region WHERE region = 'probe'",
    );
    // The first refreshes plan and cache.
    probe.time(&pooler, &client, 10).await;
    let idle = probe.time(&pooler, &client, plan.latency_samples).await;
    add("idle", &idle, 0.0);

    let done = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let writer = stage::pooled(&pooler).await;
        writers.push(tokio::spawn(write(writer, done.clone(), written.clone())));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (began, before) = (Instant::now(), written.load(Ordering::Relaxed));
    let busy = probe.time(&pooler, &client, plan.latency_samples).await;
    let rate = (written.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("a writer");
    }
    add(&format!("at {WRITES_PER_SECOND} writes/s"), &busy, rate);
    table.print();
}

/// Writes at its share of [`WRITES_PER_SECOND`], whatever the latency.
async fn write(client: Client, done: Arc<AtomicBool>, written: Arc<AtomicU64>) {
    let insert = client
        .prepare("INSERT INTO orders (customer_id, amount) VALUES ($1, 1)")
        .await
        .expect("prepare");
    let mut clock = tokio::time::interval(Duration::from_secs(1) * WRITERS / WRITES_PER_SECOND);
    let mut customer = 0;
    while !done.load(Ordering::Relaxed) {
        clock.tick().await;
        customer = customer % 1000 + 1;
        client.execute(&insert, &[&customer]).await.expect("insert");
        written.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is committed, and where it shows.
pub struct Probe {
    insert: String,
    look: String,
    inserted: i64,
}

impl Probe {
    /// `look` counts, in a stream table, what `insert` has inserted so far.
    pub fn new(insert: impl Into<String>, look: impl Into<String>) -> Self {
        Self {
            insert: insert.into(),
            look: look.into(),
            inserted: 0,
        }
    }

    /// Commits and looks until the stream table counts it. Time runs from the moment the client knows of
    /// its commit.
    pub async fn time(
        &mut self,
        pooler: &Pooler,
        writer: &Client,
        samples: usize,
    ) -> Vec<Duration> {
        let reader = stage::pooled(pooler).await;
        let insert = writer.prepare(&self.insert).await.expect("prepare");
        let look = reader.prepare(&self.look).await.expect("prepare");
        let mut times = Vec::new();
        while times.len() < samples {
            writer.execute(&insert, &[]).await.expect("insert");
            let committed = Instant::now();
            self.inserted += 1;
            loop {
                let row = reader.query_opt(&look, &[]).await.expect("look");
                if row.is_some_and(|row| row.get::<_, i64>(0) >= self.inserted) {
                    break;
                }
                assert!(
                    committed.elapsed() < Duration::from_secs(30),
                    "the stream table does not follow"
                );
                tokio::time::sleep(LOOK).await;
            }
            times.push(committed.elapsed());
            // Not in step with the worker's own pauses.
            let pause = 5 + (times.len() as u64 * 7) % 13;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        times
    }
}
