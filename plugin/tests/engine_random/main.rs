//! Random schemas, queries and writes: after each refresh a stream table is what its query returns at that moment.
//!
//! A case follows from its seed. What fails is made smaller, and printed as a script.
//!
//! - `RANDOM_SEED`: the seed of the first case; those after it have the next numbers. Default: always the same, so
//!   that a change is to blame for a failure and not the dice; with `RANDOM_SECONDS` another one each time.
//! - `RANDOM_CASES`: how many cases. `RANDOM_SEED=n RANDOM_CASES=1` runs one again.
//! - `RANDOM_SECONDS`: run for so long instead.
//! - `RANDOM_MAJOR`: the PostgreSQL to run on. Default: 15, or the first of `PGCAT_TEST_MAJORS`.

#[path = "../engine_support/mod.rs"]
mod engine_support;

mod case;
mod check;
mod dml;
mod query;
mod random;
mod schema;
mod selfcheck;
mod shrink;
mod sql;
mod tally;
mod types;

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use case::Case;
use check::{Sabotage, Verdict, run};
use tally::Tally;
use test_support::Postgres;
use tokio::task::LocalSet;
use tokio_postgres::Client;

/// About a minute on a machine of two cores.
const CASES: u64 = 500;

/// Connections, each with its database: while one waits for the test, the others work.
const WORKERS: usize = 3;

/// After so many cases a worker goes on in a new database: a session that has seen thousands of tables come and go takes longer and
/// longer for the next, and most of a gigabyte.
const CASES_OF_A_SESSION: usize = 100;

/// After so many failures the rest would tell nothing new.
const MOST_FAILURES: usize = 4;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn server() -> Postgres {
    let majors = test_support::majors();
    let default = if majors.contains(&15) { 15 } else { majors[0] };
    let major = number("RANDOM_MAJOR").map_or(default, |m| u32::try_from(m).expect("a major"));
    let settings = test_support::Settings::default()
        .parameter("synchronous_commit", "off")
        .parameter("full_page_writes", "off")
        .parameter("wal_level", "minimal")
        .parameter("max_wal_senders", "0")
        .parameter("jit", "off");
    Postgres::start_with(major, &settings)
}

/// A connection to an empty database of its own.
async fn database(server: &Postgres, name: &str) -> Client {
    let c = server.client("postgres", "postgres").await;
    for sql in [
        format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
        format!("CREATE DATABASE {name}"),
    ] {
        c.batch_execute(&sql).await.expect(&sql);
    }
    let c = server.client("postgres", name).await;
    c.batch_execute("SET statement_timeout = '5s'")
        .await
        .expect("SET");
    c
}

struct Work {
    first: u64,
    cases: u64,
    /// Runs until then, whatever the number of cases.
    deadline: Option<Instant>,
    next: Cell<u64>,
    tally: RefCell<Tally>,
}

impl Work {
    /// The seed of the next case, if there is to be one.
    fn seed(&self) -> Option<u64> {
        let n = self.next.get();
        let enough = match self.deadline {
            Some(deadline) => Instant::now() > deadline,
            None => n >= self.cases,
        };
        if enough || self.tally.borrow().failures.len() >= MOST_FAILURES {
            return None;
        }
        self.next.set(n + 1);
        Some(self.first.wrapping_add(n))
    }
}

async fn worker(work: Rc<Work>, server: Rc<Postgres>, name: String) {
    let mut c = database(&server, &name).await;
    let mut cases = 0;
    while let Some(seed) = work.seed() {
        if cases == CASES_OF_A_SESSION {
            c = database(&server, &name).await;
            cases = 0;
        }
        cases += 1;
        let case = Case::generate(seed);
        let verdict = run(&mut c, &case, Sabotage::None).await;
        if let Verdict::Failed(failure) = verdict {
            println!(
                "seed {seed}: {} ({}); making it smaller",
                failure.kind, failure.details
            );
            let limit = Duration::from_secs(25);
            let (case, failure) =
                shrink::shrink(&mut c, case, failure, Sabotage::None, limit).await;
            let report = format!(
                "-- {}: {}\n-- again: RANDOM_SEED={seed} RANDOM_CASES=1 cargo test -p stream-tables --test engine_random\n{}",
                failure.kind,
                failure.details,
                case.script()
            );
            println!("{report}");
            work.tally.borrow_mut().failures.push(report);
        } else {
            work.tally.borrow_mut().add(&verdict);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn stream_tables_are_their_queries() {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock")
        .as_secs();
    let long = number("RANDOM_SECONDS").is_some();
    let first = number("RANDOM_SEED").unwrap_or(if long { now * 1_000_000 } else { 20_000 });
    let begin = Instant::now();
    let work = Rc::new(Work {
        first,
        cases: number("RANDOM_CASES").unwrap_or(CASES),
        deadline: number("RANDOM_SECONDS").map(|s| begin + Duration::from_secs(s)),
        next: Cell::new(0),
        tally: RefCell::default(),
    });
    println!("RANDOM_SEED={first}");
    let server = Rc::new(server());
    LocalSet::new()
        .run_until(async {
            let mut workers = Vec::new();
            for i in 0..WORKERS {
                let worker = worker(work.clone(), server.clone(), format!("random_{i}"));
                workers.push(tokio::task::spawn_local(worker));
            }
            for worker in workers {
                worker.await.expect("a worker");
            }
        })
        .await;
    let tally = work.tally.borrow();
    let summary = tally.summary(begin.elapsed());
    // Past what the test harness keeps back, so that a test that passes says what it has seen.
    let _ = writeln!(std::io::stderr(), "RANDOM_SEED={first}: {summary}");
    assert!(
        tally.failures.is_empty(),
        "{} of {} cases failed:\n\n{}",
        tally.failures.len(),
        work.next.get(),
        tally.failures.join("\n")
    );
    assert!(tally.is_sound(), "too many cases say nothing: {tally:?}");
}
