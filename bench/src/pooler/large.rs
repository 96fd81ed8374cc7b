//! Bulk: COPY and a single huge row. CPU, speed, and the memory it takes.

use std::time::Instant;

use test_support::{PgBouncer, Pooler, Psql, cpu_time, memory};

use crate::plan::Plan;
use crate::report::{Table, ratio};

pub fn run(plan: &Plan, ours: &Pooler, theirs: &PgBouncer) {
    let megabytes = plan.bulk_megabytes;
    let rows = megabytes * 1024;
    let bytes = megabytes * 1_000_000;
    let row = format!("SELECT repeat('x', {bytes})");
    let out = format!("COPY (SELECT repeat('x', 1023) FROM generate_series(1, {rows})) TO STDOUT");
    let into = format!(
        "\\copy sink FROM PROGRAM 'yes {} | head -n {rows}' WHERE false",
        "x".repeat(1023)
    );
    let direct = Psql::new("127.0.0.1", ours.port(), "postgres", "postgres");
    direct.run(&["CREATE TABLE IF NOT EXISTS sink (line text)"]);
    let mut table = Table::new(
        &format!("{megabytes} MB at once, one thread"),
        &[
            "load",
            "pgcat CPU s",
            "PgBouncer CPU s",
            "CPU",
            "pgcat MB/s",
            "PgBouncer MB/s",
            "pgcat memory +MB",
            "PgBouncer memory +MB",
        ],
    );
    for (name, command) in [
        ("COPY TO STDOUT", &out),
        ("COPY FROM STDIN", &into),
        ("one row", &row),
    ] {
        let a = measure(ours.port(), ours.pid(), command);
        let b = measure(theirs.port(), theirs.pid(), command);
        table.row(&[
            name.to_owned(),
            format!("{:.2}", a.cpu),
            format!("{:.2}", b.cpu),
            ratio(a.cpu, b.cpu),
            format!("{:.0}", megabytes as f64 / a.seconds),
            format!("{:.0}", megabytes as f64 / b.seconds),
            format!("{:.1}", a.grown),
            format!("{:.1}", b.grown),
        ]);
    }
    table.print();
}

struct Run {
    seconds: f64,
    cpu: f64,
    /// Growth of the largest resident memory so far, in MB.
    grown: f64,
}

fn measure(port: u16, pid: u32, command: &str) -> Run {
    let psql = Psql::new("127.0.0.1", port, "postgres", "postgres");
    let (began, cpu, (_, before)) = (Instant::now(), cpu_time(pid), memory(pid));
    let output = psql.program("psql", &["-X", "-q", "-o", "/dev/null", "-c", command]);
    assert!(output.success, "{command:.60}: {}", output.stderr);
    Run {
        seconds: began.elapsed().as_secs_f64(),
        cpu: (cpu_time(pid) - cpu).as_secs_f64(),
        grown: (memory(pid).1 - before) as f64 / 1024.0,
    }
}
