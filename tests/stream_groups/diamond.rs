//! A diamond under load: readers never see its sides differ, not while it is made, nor with two poolers at it, nor through
//! crashes of them and of the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use test_support::{Pooler, PoolerConfig, Stack, converges, scalar, try_connect};
use tokio::task::JoinHandle;

use crate::{PGCAT, SHORTLY, run};

/// The sides have the same sums, each in its way.
const LEFT: &str = "SELECT k, sum(v) AS s, count(*) AS n FROM t GROUP BY k";
const RIGHT: &str = "SELECT k, sum(v + 1) - count(*) AS s FROM t GROUP BY k";
const BOTH: &str = "SELECT k, l.s AS a, r.s AS b, l.n FROM l JOIN r USING (k)";
/// With what all of it is made from.
const BELOW: &str = "SELECT d.k, d.a, d.b, d.n, sum(t.v) AS s FROM d JOIN t ON t.k = d.k GROUP BY d.k, d.a, d.b, d.n";

/// Rows that no moment has had.
const NEVER: &str = "SELECT coalesce(string_agg(row, '; '), '') FROM (
    SELECT 'd ' || d::text AS row FROM d WHERE a <> b
    UNION ALL SELECT 'below ' || e::text FROM below e WHERE a <> b OR a <> s) never";

/// The same between the tables, as one statement sees them.
const NEVER_TOGETHER: &str = "SELECT coalesce(string_agg(row, '; '), '') FROM (
    SELECT 'sides ' || concat_ws(' ', l, r) AS row FROM l FULL JOIN r USING (k) WHERE l.s IS DISTINCT FROM r.s
    UNION ALL SELECT 'd and below ' || concat_ws(' ', d, e) FROM d FULL JOIN below e USING (k) WHERE d.a IS DISTINCT FROM e.s
    UNION ALL SELECT 'd and l ' || concat_ws(' ', d, l) FROM d FULL JOIN l USING (k) WHERE d.a IS DISTINCT FROM l.s) never";

struct Load {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    reads: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
    readers: Vec<JoinHandle<()>>,
}

/// Runs one statement after the other on a connection that may get lost.
async fn again(
    port: u16,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    next: impl AsyncFnMut(&tokio_postgres::Client) -> bool,
) {
    let mut next = next;
    while !stop.load(Ordering::Relaxed) {
        let Ok(client) = try_connect(port, "app", "app").await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) && next(&client).await {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Load {
    fn start(server: u16, pooler: u16) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            writes: Arc::default(),
            reads: Arc::default(),
            writers: Vec::new(),
            readers: Vec::new(),
        };
        for (seed, port) in [server, pooler, server].into_iter().enumerate() {
            let mut random = seed as u64 * 7919 + 1;
            let write = async move |client: &tokio_postgres::Client| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let (n, k) = (random >> 33, (random >> 40) % 5);
                let sql = match n % 6 {
                    0 => format!("INSERT INTO t (k, v) VALUES ({k}, {})", n % 100),
                    1 => format!(
                        "BEGIN; UPDATE t SET v = v + 1 WHERE k = {k} AND id % 9 = 0; SAVEPOINT s; DELETE FROM t WHERE k = {k}; ROLLBACK TO s; COMMIT"
                    ),
                    2 => format!(
                        "DELETE FROM t WHERE id IN (SELECT id FROM t WHERE k = {k} ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)"
                    ),
                    3 => format!("UPDATE t SET k = {k} WHERE id % 50 = {}", n % 50),
                    4 => format!(
                        "BEGIN; INSERT INTO t (k, v) VALUES ({k}, 1); SELECT pg_sleep(0.02); UPDATE t SET v = v * 2 % 1000 WHERE id % 40 = {}; COMMIT",
                        n % 40
                    ),
                    _ => format!("INSERT INTO t (k, v) SELECT {k}, i FROM generate_series(1, 3) i"),
                };
                // Deadlocks of the writers are theirs.
                let gone = client
                    .batch_execute(&sql)
                    .await
                    .is_err_and(|error| error.as_db_error().is_none());
                if !gone {
                    let _ = client.batch_execute("ROLLBACK").await;
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                !gone
            };
            let work = again(port, load.stop.clone(), load.writes.clone(), write);
            load.writers.push(tokio::spawn(work));
        }
        load
    }

    /// Looks for rows that never were, by this query.
    fn read(&mut self, server: u16, never: &'static str) {
        for _ in 0..2 {
            let read = async |client: &tokio_postgres::Client| {
                let found = client.query_one(never, &[]).await;
                match found {
                    Ok(row) => assert_eq!(row.get::<_, &str>(0), "", "a state that never was"),
                    Err(error) => assert!(!error.to_string().contains("exist"), "{error:?}"),
                }
                !client.is_closed()
            };
            let work = again(server, self.stop.clone(), self.reads.clone(), read);
            self.readers.push(tokio::spawn(work));
        }
    }

    async fn for_a_while(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            assert!(
                !self.readers.iter().any(JoinHandle::is_finished),
                "a reader has failed"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn quiet(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.writers.into_iter().chain(self.readers) {
            task.await.expect("a writer or reader");
        }
        (
            self.writes.load(Ordering::Relaxed),
            self.reads.load(Ordering::Relaxed),
        )
    }
}

#[tokio::test]
async fn readers_never_see_the_sides_differ() {
    let mut stack = Stack::start(PGCAT, 15);
    let (server, pooler) = (stack.postgres.port(), stack.pooler.port());
    let pooled = stack.pooled().await;
    run(
        &pooled,
        "CREATE TABLE t (id serial PRIMARY KEY, k int, v int); CREATE INDEX ON t (k);
         INSERT INTO t (k, v) SELECT i % 5, i FROM generate_series(1, 400) i",
    )
    .await;
    let mut load = Load::start(server, pooler);
    // They are made while it changes what they are made of; incremental, as full refreshes would hide wrong changes.
    for (name, query) in [("l", LEFT), ("r", RIGHT), ("d", BOTH), ("below", BELOW)] {
        run(
            &pooled,
            &format!("CREATE STREAM TABLE {name} WITH (refresh_mode = 'incremental') AS {query}"),
        )
        .await;
    }
    load.read(server, NEVER);
    let (short, long) = (Duration::from_millis(1500), Duration::from_secs(5));
    // Until the worker has taken notice that they hang together.
    load.for_a_while(short).await;
    load.read(server, NEVER_TOGETHER);
    load.for_a_while(long).await;
    let other = Pooler::start(
        PGCAT,
        &PoolerConfig::new(&stack.postgres)
            .databases(&["app"])
            .user("app", 5)
            .stream_tables(),
    );
    load.for_a_while(long).await;
    for _ in 0..3 {
        stack.pooler.kill9();
        load.for_a_while(short / 3).await;
        stack.pooler.restart();
        load.for_a_while(short).await;
    }
    for _ in 0..2 {
        stack.postgres.kill9();
        stack.postgres.restart();
        load.for_a_while(short).await;
    }
    let (writes, reads) = load.quiet().await;
    println!("{writes} writes, {reads} reads");
    assert!(writes > 500 && reads > 100, "the load was no load");
    let direct = stack.direct().await;
    converges(&direct, "l", LEFT, SHORTLY).await;
    converges(&direct, "r", RIGHT, SHORTLY).await;
    let sums = "SELECT k, sum(v) AS a, sum(v) AS b, count(*) AS n FROM t GROUP BY k";
    converges(&direct, "d", sums, SHORTLY).await;
    let below = "SELECT k, sum(v) AS a, sum(v) AS b, count(*) AS n, sum(v) AS s FROM t GROUP BY k";
    converges(&direct, "below", below, SHORTLY).await;
    let refreshed = "SELECT string_agg(name || ' ' || mode || ' ' || n, ', ') FROM (SELECT name, mode, count(*) AS n
        FROM pgtrickle.refresh_history GROUP BY name, mode ORDER BY name) h";
    println!("{}", scalar(&direct, refreshed).await.unwrap_or_default());
    let incremental = "SELECT bool_and(n > 20)::text FROM (SELECT count(*) FILTER (WHERE mode = 'incremental') AS n
        FROM pgtrickle.refresh_history GROUP BY name) h";
    assert_eq!(scalar(&direct, incremental).await.as_deref(), Some("true"));
    drop(other);
}
