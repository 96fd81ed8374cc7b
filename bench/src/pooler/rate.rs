//! Latency at a fixed rate, well below what any of them could do: what a pooler adds where nothing is saturated.

use std::fs;
use std::time::Duration;

use test_support::{PgBouncer, Pooler, Postgres, Psql};

use crate::plan::Plan;
use crate::report::{Table, ms, percentile};

const RATE: &str = "3000";

pub fn run(plan: &Plan, server: &Postgres, ours: &Pooler, theirs: &PgBouncer) {
    let mut table = Table::new(
        &format!(
            "pgbench -S -R {RATE}, 16 clients: latency from the scheduled start (ms), so that no wait is left out"
        ),
        &["through", "p50", "p99", "p99.9"],
    );
    let rivals = [
        ("pgcat", ours.port()),
        ("PgBouncer", theirs.port()),
        ("nothing (direct)", server.port()),
    ];
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..plan.pgbench_repetitions {
        for ((_, port), samples) in rivals.iter().zip(&mut samples) {
            samples.extend(latencies(plan, *port));
        }
    }
    for ((name, _), samples) in rivals.iter().zip(&samples) {
        let shares = [0.5, 0.99, 0.999].map(|share| ms(percentile(samples, share)));
        let mut cells = vec![(*name).to_owned()];
        cells.extend(shares);
        table.row(&cells);
    }
    table.print();
}

fn latencies(plan: &Plan, port: u16) -> Vec<Duration> {
    let directory = std::env::temp_dir().join(format!("pgcat-bench-log-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let prefix = directory.join("log").display().to_string();
    let seconds = plan.pgbench.as_secs().to_string();
    let psql = Psql::new("127.0.0.1", port, "postgres", "postgres");
    let output = psql.program(
        "pgbench",
        &[
            "-n",
            "-S",
            "-c",
            "16",
            "-j",
            "2",
            "-R",
            RATE,
            "-T",
            &seconds,
            "-l",
            "--log-prefix",
            &prefix,
        ],
    );
    assert!(output.success, "pgbench: {}", output.stderr);
    let mut samples = Vec::new();
    for file in fs::read_dir(&directory).expect("the directory") {
        let text = fs::read_to_string(file.expect("a file").path()).expect("a log");
        // client, transaction, time, script, epoch's seconds and microseconds, lag; the time is from the scheduled start.
        samples.extend(text.lines().map(|line| {
            let time = line.split(' ').nth(2).and_then(|time| time.parse().ok());
            Duration::from_micros(time.expect("a time"))
        }));
    }
    fs::remove_dir_all(&directory).expect("the directory");
    samples
}
