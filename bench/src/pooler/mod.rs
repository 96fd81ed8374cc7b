//! The pooler's own cost, and its throughput, beside PgBouncer's.

mod contest;
mod large;
mod memory;
mod rate;

use contest::{Contest, Load};
use test_support::{Authority, PgBouncer};

use crate::plan::Plan;
use crate::stage;

const SCALE: &str = "10";

/// Server connections of each pooler in transaction mode.
const POOL: u32 = 20;

pub fn run(plan: &Plan) {
    let server = stage::server();
    let psql = server.psql("postgres", "postgres");
    let loaded = psql.program("pgbench", &["-i", "-q", "-s", SCALE]);
    assert!(loaded.success, "{}", loaded.stderr);

    let transactions = PgBouncer::start(&server, "transaction", POOL);
    let ours = stage::pooler(&server, POOL, false, 1);
    let contest = Contest::new(plan, &server, &ours, &transactions);
    for protocol in ["simple", "extended"] {
        let title = format!(
            "pgbench -S, {protocol} protocol, both in transaction mode with {POOL} server connections and one thread"
        );
        contest.over_clients(&title, protocol);
    }
    {
        // This PgBouncer knows prepared statements only in session mode, where it needs a server for
        // every client.
        let sessions = PgBouncer::start(&server, "session", plan.most_clients());
        let title = format!(
            "pgbench -S, prepared: pgcat in transaction mode with {POOL} server connections, PgBouncer in session mode with {}",
            plan.most_clients()
        );
        Contest::new(plan, &server, &ours, &sessions).over_clients(&title, "prepared");
    }
    {
        let with_plugin = stage::pooler(&server, POOL, true, 1);
        let title = "pgbench -S, simple protocol, pgcat with stream tables enabled";
        Contest::new(plan, &server, &with_plugin, &transactions).over_clients(title, "simple");
    }
    {
        let two_threads = stage::pooler(&server, POOL, false, 2);
        let title = "pgbench -S, simple protocol, pgcat with two threads";
        Contest::new(plan, &server, &two_threads, &transactions).over_clients(title, "simple");
    }
    contest.table(
        "Other loads of 16 clients, one thread",
        "load",
        &[
            Load::new("a connection per transaction").argument("-C"),
            Load::new("results of 200 kB")
                .script("SELECT repeat('x', 1000) FROM generate_series(1, 200);"),
        ],
    );
    {
        let authority = Authority::new();
        let certificate = authority.issue("localhost", &["localhost", "127.0.0.1"]);
        let ours = stage::tls_pooler(&server, POOL, &certificate);
        let theirs = PgBouncer::start_tls(&server, "transaction", POOL, &certificate);
        Contest::new(plan, &server, &ours, &theirs).table(
            "The same with TLS between client and pooler (direct: without)",
            "load",
            &[
                Load::new("SELECT of one row").tls(),
                Load::new("a connection per transaction")
                    .tls()
                    .argument("-C"),
                Load::new("results of 200 kB")
                    .tls()
                    .script("SELECT repeat('x', 1000) FROM generate_series(1, 200);"),
            ],
        );
    }
    rate::run(plan, &server, &ours, &transactions);
    large::run(plan, &ours, &transactions);
    memory::run(plan, &server);
}
