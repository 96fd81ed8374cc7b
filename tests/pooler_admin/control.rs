//! PAUSE, KILL, RECONNECT, SHUTDOWN and the like.

use std::io::Write as _;
use std::time::Duration;

use test_support::wire::{Message, Messages, PROTOCOL_3_0, Wire, sqlstate, startup, tags};
use test_support::{Pooler, PoolerConfig};

use crate::stage::{admin, client, config, eventually, row, rows, server, start};

/// How long nothing must come where nothing is to come.
const QUIET: Duration = Duration::from_millis(300);

fn assert_ended(wire: &mut Wire) {
    let messages = wire.end();
    let last = messages.last().expect("last words");
    assert_eq!(last.tag, b'E', "{messages:?}");
    assert_eq!(last.field(b'C').unwrap(), "57P01");
}

fn message_of(messages: &[Message]) -> String {
    let error = messages.iter().find(|message| message.tag == b'E');
    error
        .unwrap_or_else(|| panic!("{messages:?}"))
        .field(b'M')
        .unwrap()
}

fn begun(wire: &mut Wire, sql: &str) {
    wire.send(Messages::new().query(sql));
}

fn waiting(pooler: &Pooler) -> usize {
    let clients = rows(&mut admin(pooler, "pgcat"), "SHOW CLIENTS");
    clients
        .iter()
        .filter(|row| row["state"] == "waiting")
        .count()
}

#[test]
fn pause_waits_for_transactions_and_resume_goes_on() {
    let pooler = start(&config(2));
    let mut busy = client(&pooler);
    busy.run("BEGIN");
    let mut control = admin(&pooler, "pgbouncer");
    begun(&mut control, "PAUSE");
    eventually("the pool is paused", || {
        let state = row(
            &mut admin(&pooler, "pgbouncer"),
            "SHOW STATE",
            "key",
            "paused",
        );
        state["value"] == "yes"
    });
    assert!(control.silent_for(QUIET), "a transaction is open");
    let mut late = client(&pooler);
    begun(&mut late, "SELECT 'late'");
    assert!(late.silent_for(QUIET), "nothing begins while paused");
    busy.run("SELECT 1");
    busy.run("COMMIT");
    assert_eq!(tags(&control.ready()), "CZ");
    // Server connections are closed, so that the server may be restarted.
    assert_eq!(rows(&mut control, "SHOW SERVERS").len(), 0);
    assert_eq!(
        message_of(&control.query("PAUSE")),
        "already suspended/paused"
    );
    let databases = row(&mut control, "SHOW DATABASES", "name", "postgres");
    assert_eq!(databases["paused"], "1");
    control.run("RESUME");
    assert_eq!(tags(&late.ready()), "TDCZ");
    assert_eq!(
        message_of(&control.query("RESUME")),
        "pooler is not paused/suspended"
    );
    busy.run("SELECT 1");
}

/// What a client has sent already is answered to its last Sync, or waits as a whole: PgBouncer once
/// paused between the two, and the second was lost.
#[test]
fn pause_does_not_cut_a_pipeline_in_two() {
    let pooler = start(&config(1));
    let mut busy = client(&pooler);
    let mut direct = Wire::connect(server().port(), "postgres", "postgres");
    direct.run("SELECT pg_advisory_lock(4711)");
    let mut pipeline = Messages::new()
        .statement("SELECT pg_advisory_xact_lock(4711)")
        .sync();
    for n in 0..20 {
        pipeline = pipeline.statement(&format!("SELECT {n}")).sync();
    }
    busy.send(pipeline);
    eventually("the pipeline runs", || {
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        direct.value(sql) == "1"
    });
    let mut control = admin(&pooler, "pgbouncer");
    begun(&mut control, "PAUSE");
    assert!(control.silent_for(QUIET), "the pipeline is not at its end");
    direct.run("SELECT pg_advisory_unlock(4711)");
    for _ in 0..21 {
        assert_eq!(tags(&busy.ready()), "12DCZ");
    }
    assert_eq!(tags(&control.ready()), "CZ");
    control.run("RESUME");
    busy.run("SELECT 1");
}

/// PgCat takes this for a pause of everything.
/// As PgBouncer has it, a session has to end before its server connection is free.
#[test]
fn pause_waits_for_sessions() {
    let pooler = start(&config(2).session_mode());
    let mut idle = client(&pooler);
    let mut session = client(&pooler);
    session.run("CREATE TEMP TABLE kept (a int)");
    let mut control = admin(&pooler, "pgbouncer");
    begun(&mut control, "PAUSE");
    assert!(control.silent_for(QUIET), "a session is open");
    session.run("TABLE kept");
    begun(&mut idle, "SELECT 'later'");
    assert!(idle.silent_for(QUIET), "nothing begins while paused");
    drop(session);
    assert_eq!(tags(&control.ready()), "CZ");
    assert!(rows(&mut control, "SHOW SERVERS").is_empty());
    control.run("RESUME");
    assert_eq!(tags(&idle.ready()), "TDCZ");
}

#[test]
fn pause_of_one_pool_leaves_the_others() {
    let pooler = start(&config(2).user_with(
        "other",
        2,
        "auth_type = \"trust\"\nserver_username = \"postgres\"",
    ));
    let mut control = admin(&pooler, "pgcat");
    assert_eq!(tags(&control.query("PAUSE postgres, postgres")), "CZ");
    let mut other = Wire::connect(pooler.port(), "other", "postgres");
    other.run("SELECT 1");
    let mut paused = Wire::open(pooler.port());
    paused.send(test_support::wire::startup(
        test_support::wire::PROTOCOL_3_0,
        &[("user", "postgres"), ("database", "postgres")],
    ));
    assert!(paused.silent_for(QUIET));
    control.run("RESUME postgres,postgres");
    paused.greeted();
    paused.run("SELECT 1");
    let message = message_of(&control.query("PAUSE nowhere, nobody"));
    assert_eq!(
        message,
        "No pool configured for database: nowhere, user: nobody"
    );
    assert_eq!(
        message_of(&control.query("PAUSE nowhere")),
        "no such database: nowhere"
    );
}

/// Who waits while paused has all of connect_timeout after it, and keeps its place.
#[test]
fn a_pause_does_not_count_as_waiting() {
    let pooler = start(&config(1).general("connect_timeout = 600"));
    let mut busy = client(&pooler);
    busy.run("BEGIN");
    let mut next = client(&pooler);
    begun(&mut next, "SELECT 1");
    eventually("it waits in the queue", || waiting(&pooler) == 1);
    let mut control = admin(&pooler, "pgbouncer");
    control.run("SUSPEND");
    busy.run("COMMIT");
    assert!(next.silent_for(Duration::from_millis(1500)));
    control.run("RESUME");
    assert_eq!(tags(&next.ready()), "TDCZ");
}

#[test]
fn clients_go_on_in_the_order_of_their_waiting() {
    for (threads, pause) in [(1, "PAUSE"), (1, "SUSPEND"), (3, "PAUSE"), (3, "SUSPEND")] {
        let pooler = start(&config(1).general(&format!(
            "worker_threads = {threads}\nconnect_timeout = 60000"
        )));
        let mut direct = Wire::connect(server().port(), "postgres", "postgres");
        direct.run("DROP TABLE IF EXISTS resumed; CREATE TABLE resumed (n int, place serial)");
        let mut clients: Vec<_> = (0..12).map(|_| client(&pooler)).collect();
        let mut control = admin(&pooler, "pgbouncer");
        control.run(pause);
        for (n, client) in clients.iter_mut().enumerate() {
            begun(client, &format!("INSERT INTO resumed VALUES ({n})"));
            eventually("it waits", || waiting(&pooler) == n + 1);
        }
        // Among those who have waited for less than 100 ms a thread may prefer its own clients.
        std::thread::sleep(QUIET);
        control.run("RESUME");
        for client in &mut clients {
            assert_eq!(tags(&client.ready()), "CZ");
        }
        assert_eq!(
            direct.value("SELECT string_agg(n::text, ' ' ORDER BY place) FROM resumed"),
            "0 1 2 3 4 5 6 7 8 9 10 11",
            "{threads} threads, {pause}"
        );
    }
}

/// Whoever waits for a connection as the pool is paused waits no longer for that; and a connection of the reserve is
/// waited for as any other.
#[test]
fn a_pause_opens_no_reserve() {
    let lines = "auth_type = \"trust\"\nreserve_pool_size = 2\nreserve_pool_timeout = 1500";
    let config = PoolerConfig::new(server())
        .user_with("postgres", 1, lines)
        .general("admin_auth_type = \"trust\"\nconnect_timeout = 60000");
    let pooler = start(&config);
    let mut clients = [(); 2].map(|()| client(&pooler));
    for client in &mut clients {
        client.run("BEGIN");
    }
    let mut waits = client(&pooler);
    begun(&mut waits, "SELECT 1");
    eventually("it waits", || waiting(&pooler) == 1);
    let mut control = admin(&pooler, "pgbouncer");
    begun(&mut control, "PAUSE");
    assert!(waits.silent_for(Duration::from_millis(2500)));
    let [of_pool, of_reserve] = &mut clients;
    of_pool.run("COMMIT");
    assert!(control.silent_for(QUIET), "a transaction is open");
    of_reserve.run("COMMIT");
    assert_eq!(tags(&control.ready()), "CZ");
    assert!(rows(&mut control, "SHOW SERVERS").is_empty());
    assert!(waits.silent_for(QUIET));
    control.run("RESUME");
    assert_eq!(tags(&waits.ready()), "TDCZ");
}

#[test]
fn disabled_databases_let_nobody_in() {
    let pooler = start(&config(2));
    let mut inside = client(&pooler);
    let mut control = admin(&pooler, "pgbouncer");
    control.run("DISABLE postgres");
    let mut refused = Wire::open(pooler.port());
    refused.send(test_support::wire::startup(
        test_support::wire::PROTOCOL_3_0,
        &[("user", "postgres"), ("database", "postgres")],
    ));
    assert_eq!(
        message_of(&refused.end()),
        "database does not allow connections: postgres"
    );
    inside.run("SELECT 1");
    let database = row(&mut control, "SHOW DATABASES", "name", "postgres");
    assert_eq!(database["disabled"], "1");
    control.run("ENABLE postgres");
    client(&pooler).run("SELECT 1");
    assert_eq!(
        message_of(&control.query("DISABLE nowhere")),
        "no such database: nowhere"
    );
}

#[test]
fn kill_ends_clients_wherever_they_are() {
    let pooler = start(&config(1).general("connect_timeout = 60000"));
    let mut idle = client(&pooler);
    idle.run("SELECT 1");
    let mut running = client(&pooler);
    begun(&mut running, "SELECT pg_sleep(60)");
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'";
    let mut direct = Wire::connect(server().port(), "postgres", "postgres");
    eventually("it runs", || direct.value(sleeping) == "1");
    let mut waits = client(&pooler);
    begun(&mut waits, "SELECT 1");
    eventually("one waits", || waiting(&pooler) == 1);
    let mut control = admin(&pooler, "pgbouncer");
    control.run("KILL postgres");
    for killed in [&mut idle, &mut running, &mut waits] {
        assert_ended(killed);
    }
    eventually("the running statement was cancelled", || {
        direct.value(sleeping) == "0"
    });
    // As in PgBouncer, new ones wait for a RESUME.
    control.run("RESUME postgres");
    client(&pooler).run("SELECT 1");
}

/// What the name stands for depends on the reply.
#[test]
fn kill_ends_a_client_whose_next_message_depends_on_replies() {
    let pooler = start(&config(1));
    let mut settling = client(&pooler);
    settling.send(Messages::new().parse("s", "SELECT 1").sync());
    settling.ready();
    settling.send(
        Messages::new()
            .query("SELECT pg_sleep(61)")
            .parse("s", "SELECT 2")
            .sync(),
    );
    std::thread::sleep(QUIET);
    admin(&pooler, "pgbouncer").run("KILL postgres");
    assert_ended(&mut settling);
}

/// There is no server for it, and the rest of it is awaited only to be dropped.
#[test]
fn kill_ends_a_client_in_the_middle_of_a_refused_query() {
    let pooler = start(&config(1).general("connect_timeout = 300"));
    let mut occupant = client(&pooler);
    occupant.run("BEGIN");
    let mut refused = client(&pooler);
    let query = Messages::new().query(&format!("SELECT '{}'", "x".repeat(2_000_000)));
    let message: &[u8] = query.as_ref();
    refused
        .sender()
        .write_all(&message[..1_500_000])
        .expect("a part of it");
    std::thread::sleep(QUIET + Duration::from_millis(300));
    admin(&pooler, "pgbouncer").run("KILL postgres");
    assert_ended(&mut refused);
}

#[test]
fn one_client_is_killed_by_its_number() {
    let pooler = start(&config(2));
    let mut one = Wire::connect_with(
        pooler.port(),
        &[
            ("user", "postgres"),
            ("database", "postgres"),
            ("application_name", "one"),
        ],
    );
    one.run("BEGIN");
    let mut two = client(&pooler);
    let mut control = admin(&pooler, "pgcat");
    let id = row(&mut control, "SHOW CLIENTS", "application_name", "one")["client_id"].clone();
    assert!(id.starts_with("0x"), "{id}");
    assert_eq!(tags(&control.query(&format!("KILL_CLIENT {id}"))), "CZ");
    assert_ended(&mut one);
    two.run("SELECT 1");
    assert_eq!(
        message_of(&control.query(&format!("KILL_CLIENT {id}"))),
        "client not found"
    );
}

#[test]
fn reconnect_replaces_connections_as_they_become_free() {
    let pooler = start(&config(2));
    let mut busy = client(&pooler);
    busy.run("BEGIN");
    let pid = busy.value("SELECT pg_backend_pid()");
    let mut idle = client(&pooler);
    let idle_pid = idle.value("SELECT pg_backend_pid()");
    let mut control = admin(&pooler, "pgbouncer");
    control.run("RECONNECT postgres");
    assert_ne!(idle.value("SELECT pg_backend_pid()"), idle_pid);
    assert_eq!(
        busy.value("SELECT pg_backend_pid()"),
        pid,
        "a transaction goes on"
    );
    let old = row(&mut control, "SHOW SERVERS", "remote_pid", &pid);
    assert_eq!(old["close_needed"], "1");
    begun(&mut control, "WAIT_CLOSE postgres");
    assert!(control.silent_for(QUIET));
    busy.run("COMMIT");
    assert_eq!(tags(&control.ready()), "CZ");
    assert_ne!(busy.value("SELECT pg_backend_pid()"), pid);
}

#[test]
fn replicas_are_banned_by_host() {
    let port = server().port();
    let servers = [
        ("127.0.0.1", port, "primary"),
        ("localhost", port, "replica"),
    ];
    let pooler = start(
        &PoolerConfig::new(server())
            .servers(&servers)
            .user_with("postgres", 2, "auth_type = \"trust\"")
            .general("admin_auth_type = \"trust\""),
    );
    let mut control = admin(&pooler, "pgcat");
    let banned = rows(&mut control, "BAN localhost 600");
    assert_eq!(banned.len(), 1);
    assert_eq!(banned[0]["role"], "replica");
    assert_eq!(
        rows(&mut control, "BAN localhost 600").len(),
        0,
        "it is banned already"
    );
    assert_eq!(
        rows(&mut control, "BAN 127.0.0.1 600").len(),
        0,
        "primaries are not banned"
    );
    let ban = row(&mut control, "SHOW BANS", "host", "localhost");
    assert_eq!(ban["reason"], "AdminBan(600)");
    assert_eq!(ban["ban_duration_seconds"], "600");
    let database = row(&mut control, "SHOW DATABASES", "host", "localhost");
    assert_eq!(database["disabled"], "1");
    assert_eq!(rows(&mut control, "UNBAN localhost").len(), 1);
    assert_eq!(rows(&mut control, "SHOW BANS").len(), 0);
    assert_eq!(sqlstate(&control.query("BAN localhost soon")), "58000");
}

fn exits(pooler: &mut Pooler) {
    eventually("the pooler ends", || {
        pooler.exit_status().is_some_and(|status| status.success())
    });
}

#[test]
fn shutdown_of_pgcat_lets_transactions_end() {
    let mut pooler = start(&config(2));
    let mut idle = client(&pooler);
    let mut busy = client(&pooler);
    busy.run("BEGIN");
    let mut control = admin(&pooler, "pgcat");
    assert_eq!(tags(&control.query("SHUTDOWN")), "TDCZ");
    assert_ended(&mut idle);
    // Administrators may still look on.
    control.run("SHOW POOLS");
    busy.run("COMMIT");
    assert_ended(&mut busy);
    exits(&mut pooler);
}

#[test]
fn shutdown_of_pgbouncer_is_immediate() {
    let mut pooler = start(&config(2));
    let mut busy = client(&pooler);
    busy.run("BEGIN");
    admin(&pooler, "pgbouncer").send(Messages::new().query("SHUTDOWN"));
    exits(&mut pooler);
    busy.end();
}

#[test]
fn shutdown_waits_for_clients() {
    let mut pooler = start(&config(2).general("shutdown_timeout = 100"));
    let mut stays = client(&pooler);
    let mut control = admin(&pooler, "pgbouncer");
    control.run("SHUTDOWN WAIT_FOR_CLIENTS");
    eventually("nobody new is let in", || {
        let mut late = Wire::open(pooler.port());
        let parameters = [("user", "postgres"), ("database", "postgres")];
        late.send(startup(PROTOCOL_3_0, &parameters));
        late.try_greeted()
            .is_err_and(|told| sqlstate(&told) == "57P03")
    });
    std::thread::sleep(QUIET);
    stays.run("SELECT 1");
    assert!(pooler.exit_status().is_none());
    drop(stays);
    exits(&mut pooler);
}

#[test]
fn a_shutdown_does_not_wait_for_a_resume() {
    let mut pooler = start(&config(2));
    let mut waits = client(&pooler);
    admin(&pooler, "pgbouncer").run("PAUSE");
    begun(&mut waits, "SELECT 1");
    eventually("it waits", || waiting(&pooler) == 1);
    pooler.signal("TERM");
    assert_ended(&mut waits);
    exits(&mut pooler);
}
