//! pgbench, which is also a driver: libpq in every protocol.

use crate::stage::Stage;

/// Every protocol of pgbench, read-only and TPC-B, with fewer and with more clients than servers:
/// no transaction fails, and the balances agree at the end.
///
/// Each client has a thread of its own, because pgbench prepares in a blocking call: with clients that
/// share a thread, one that waits for a server would keep the others from ending their transactions.
#[test]
fn pgbench() {
    let stage = Stage::new("pgbench", 10);
    let psql = stage.pooler.psql("app", &stage.database);
    let bench = |arguments: &[&str]| {
        let output = psql.program("pgbench", arguments);
        assert!(
            output.success,
            "pgbench {arguments:?}:\n{}{}",
            output.stdout, output.stderr
        );
        assert!(
            !output.stderr.contains("error") && !output.stderr.contains("abort"),
            "pgbench {arguments:?}:\n{}",
            output.stderr
        );
        output.stdout
    };
    bench(&["-i", "-s", "10", "-q"]);
    for protocol in ["simple", "extended", "prepared"] {
        for clients in ["1", "16", "100"] {
            for script in ["select-only", "tpcb-like"] {
                let text = bench(&[
                    "-n", "-b", script, "-M", protocol, "-c", clients, "-j", clients, "-T", "2",
                ]);
                let processed = text
                    .lines()
                    .find_map(|line| {
                        line.strip_prefix("number of transactions actually processed: ")
                    })
                    .unwrap_or_else(|| panic!("{text}"));
                assert_ne!(processed, "0", "{script} {protocol} {clients}");
                assert!(
                    text.contains("number of failed transactions: 0 "),
                    "{script} {protocol} {clients}:\n{text}"
                );
            }
        }
    }
    let sums = psql.run(&[
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
            AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)",
    ]);
    assert_eq!(sums.trim(), "t");
}
