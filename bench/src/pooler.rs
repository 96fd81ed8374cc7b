//! The pooler's own cost per transaction, and its throughput, beside PgBouncer's.

use std::time::Duration;

use test_support::{PgBouncer, Pooler, Postgres, Psql, cpu_time};

use crate::plan::Plan;
use crate::report::{Table, median_of, ratio};
use crate::stage;

const CLIENTS: [u32; 3] = [1, 16, 100];
const SCALE: &str = "10";

/// Server connections of each pooler in transaction mode.
const POOL: u32 = 20;

pub fn run(plan: &Plan) {
    let server = stage::server();
    let psql = server.psql("postgres", "postgres");
    let loaded = psql.program("pgbench", &["-i", "-q", "-s", SCALE]);
    assert!(loaded.success, "{}", loaded.stderr);

    {
        let ours = stage::pooler(&server, POOL, false, 1);
        let theirs = PgBouncer::start(&server, "transaction", POOL);
        let title = format!(
            "pgbench -S, simple protocol, both in transaction mode with {POOL} server connections and one thread"
        );
        compare(plan, &server, &ours, &theirs, "simple", &title);
        let ours = stage::pooler(&server, POOL, true, 1);
        let title = "The same, with stream tables enabled";
        compare(plan, &server, &ours, &theirs, "simple", title);
        let ours = stage::pooler(&server, POOL, false, 2);
        let title = "The same, pgcat with two threads";
        compare(plan, &server, &ours, &theirs, "simple", title);
    }
    {
        // This PgBouncer knows prepared statements only in session mode, where it needs a server for
        // every client.
        let ours = stage::pooler(&server, POOL, false, 1);
        let theirs = PgBouncer::start(&server, "session", 100);
        let title = format!(
            "pgbench -S, prepared: pgcat in transaction mode with {POOL} server connections, PgBouncer in session mode with 100"
        );
        compare(plan, &server, &ours, &theirs, "prepared", &title);
    }
}

/// What one run of pgbench did.
struct Run {
    tps: f64,
    /// µs of the pooler per transaction.
    cpu: f64,
}

fn compare(
    plan: &Plan,
    server: &Postgres,
    ours: &Pooler,
    theirs: &PgBouncer,
    protocol: &str,
    title: &str,
) {
    let mut table = Table::new(
        title,
        &[
            "clients",
            "pgcat µs/tx",
            "PgBouncer µs/tx",
            "CPU",
            "pgcat tps",
            "PgBouncer tps",
            "throughput",
            "direct tps",
        ],
    );
    for clients in CLIENTS {
        let (mut a, mut b, mut direct) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..plan.pgbench_repetitions {
            // In turn, so that whatever else the machine does hits all alike.
            a.push(measure(
                plan,
                ours.port(),
                Some(ours.pid()),
                protocol,
                clients,
            ));
            b.push(measure(
                plan,
                theirs.port(),
                Some(theirs.pid()),
                protocol,
                clients,
            ));
            direct.push(measure(plan, server.port(), None, protocol, clients));
        }
        let tps = |runs: &[Run]| median_of(&runs.iter().map(|run| run.tps).collect::<Vec<_>>());
        let cpu = |runs: &[Run]| median_of(&runs.iter().map(|run| run.cpu).collect::<Vec<_>>());
        table.row(&[
            clients.to_string(),
            format!("{:.1}", cpu(&a)),
            format!("{:.1}", cpu(&b)),
            ratio(cpu(&a), cpu(&b)),
            format!("{:.0}", tps(&a)),
            format!("{:.0}", tps(&b)),
            ratio(tps(&a), tps(&b)),
            format!("{:.0}", tps(&direct)),
        ]);
    }
    table.print();
}

fn measure(plan: &Plan, port: u16, pooler: Option<u32>, protocol: &str, clients: u32) -> Run {
    let psql = Psql::new("127.0.0.1", port, "postgres", "postgres");
    let before = pooler.map_or(Duration::ZERO, cpu_time);
    let output = psql.program(
        "pgbench",
        &[
            "-n",
            "-S",
            "-M",
            protocol,
            "-c",
            &clients.to_string(),
            "-j",
            if clients == 1 { "1" } else { "2" },
            "-T",
            &plan.pgbench.as_secs().to_string(),
        ],
    );
    let used = pooler.map_or(Duration::ZERO, cpu_time) - before;
    assert!(
        output.success && !output.stderr.contains("error"),
        "pgbench on port {port}: {}{}",
        output.stdout,
        output.stderr
    );
    let figure = |prefix: &str| -> f64 {
        let line = output
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(prefix));
        let word = line.and_then(|rest| rest.split([' ', '/']).next());
        word.and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no figure after {prefix:?} in {}", output.stdout))
    };
    let transactions = figure("number of transactions actually processed: ");
    Run {
        tps: figure("tps = "),
        cpu: used.as_secs_f64() * 1e6 / transactions,
    }
}
