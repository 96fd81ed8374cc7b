//! What an idle client costs in memory.

use test_support::wire::Wire;
use test_support::{PgBouncer, Postgres, memory};

use crate::plan::Plan;
use crate::report::Table;
use crate::stage;

pub fn run(plan: &Plan, server: &Postgres) {
    let clients = plan.idle_clients;
    // Fresh ones: what earlier loads have left in the allocator would be taken for nothing.
    let ours = stage::pooler(server, 5, false, 1);
    let theirs = PgBouncer::start(server, "transaction", 5);
    let mut table = Table::new(
        &format!("Memory of {clients} clients that are idle, each after one query (kB per client)"),
        &["pooler", "kB"],
    );
    for (name, port, pid) in [
        ("pgcat", ours.port(), ours.pid()),
        ("PgBouncer", theirs.port(), theirs.pid()),
    ] {
        let connect = || {
            let mut client = Wire::connect(port, "postgres", "postgres");
            client.run("SELECT 1");
            client
        };
        let first = connect();
        let before = memory(pid).0;
        let idle: Vec<Wire> = (0..clients).map(|_| connect()).collect();
        let grown = memory(pid).0 - before;
        drop((first, idle));
        table.row(&[
            name.to_owned(),
            format!("{:.2}", grown as f64 / f64::from(clients)),
        ]);
    }
    table.print();
}
