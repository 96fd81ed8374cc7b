//! Which of several servers a connection goes to.

use test_support::wire::Wire;

use crate::stage::{HOST, HOSTS, client, config, eventually, start, tally};

#[test]
fn statements_spread_over_all_servers() {
    for mode in ["random", "loc"] {
        let config = config(&["primary", "replica", "replica"])
            .pool(&format!("load_balancing_mode = \"{mode}\""));
        let pooler = start(&config);
        let tally = tally(&mut client(&pooler), HOST, 600);
        assert_eq!(tally.len(), 3, "{mode}: {tally:?}");
        for (host, count) in &tally {
            assert!((130..=270).contains(count), "{mode}: {host} {tally:?}");
        }
    }
}

#[test]
fn default_role_chooses_the_servers() {
    for (role, hosts) in [("primary", &HOSTS[0..1]), ("replica", &HOSTS[1..3])] {
        let config =
            config(&["primary", "replica", "replica"]).pool(&format!("default_role = \"{role}\""));
        let pooler = start(&config);
        let tally = tally(&mut client(&pooler), HOST, 100);
        assert_eq!(tally.keys().collect::<Vec<_>>(), hosts, "{role}");
    }
}

/// PgCat answers AllServersDown (research, probe 28).
#[test]
fn a_role_that_no_server_has_is_served_by_the_others() {
    let pooler = start(&config(&["primary"]).pool("default_role = \"replica\""));
    assert_eq!(client(&pooler).value(HOST), HOSTS[0]);
}

/// Connections that are in use count, those that are idle do not.
#[test]
fn least_outstanding_connections_avoids_busy_servers() {
    let config = config(&["primary", "replica"]).pool("load_balancing_mode = \"loc\"");
    let pooler = start(&config);
    let mut occupant = client(&pooler);
    // One that is being opened, and looked over, counts as in use.
    eventually("the connections of the start are idle", || {
        occupant.run("SELECT 1");
        let servers = pooler.psql("admin", "pgcat").run(&["SHOW SERVERS"]);
        let open = servers.matches("postgres_shard").count();
        open > 0 && open == servers.matches("idle").count()
    });
    occupant.run("BEGIN");
    let busy = occupant.value(HOST);
    let tally = tally(&mut client(&pooler), HOST, 50);
    assert_eq!(tally.len(), 1, "{tally:?}");
    assert!(!tally.contains_key(&busy), "{tally:?}, busy: {busy}");
    occupant.run("COMMIT");
}

/// The limit is per server, and nobody waits for one server while another has room.
#[test]
fn a_full_server_is_passed_over() {
    let config = config(&["primary", "replica"]).general("connect_timeout = 60000");
    let pooler = start(&config);
    let mut occupants: Vec<Wire> = (0..8).map(|_| client(&pooler)).collect();
    for occupant in &mut occupants {
        occupant.run("BEGIN");
    }
    let mut hosts: Vec<String> = occupants.iter_mut().map(|o| o.value(HOST)).collect();
    hosts.sort_unstable();
    assert_eq!(hosts[..4], [HOSTS[0]; 4]);
    assert_eq!(hosts[4..], [HOSTS[1]; 4]);
}

#[test]
fn a_transaction_stays_where_it_began() {
    let pooler = start(&config(&["primary", "replica", "replica"]));
    let mut client = client(&pooler);
    for _ in 0..20 {
        client.run("BEGIN");
        assert_eq!(tally(&mut client, HOST, 5).len(), 1);
        client.run("COMMIT");
    }
}
