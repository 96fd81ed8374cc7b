//! The pool: its size, its queue, and session mode.

use std::thread;
use std::time::{Duration, Instant};

use test_support::PoolerConfig;
use test_support::wire::{Message, Messages, Wire, tags};

use crate::stage::{Stage, direct, eventually, server, start};

const NO_SERVER: &str = "could not get connection from the pool - AllServersDown";

fn server_connections(user: &str) -> u32 {
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}'");
    direct().value(&sql).parse().unwrap()
}

#[test]
fn a_pool_never_has_more_servers_than_its_size() {
    direct()
        .run("DO $$ BEGIN CREATE ROLE crowd LOGIN; EXCEPTION WHEN duplicate_object THEN END $$");
    let config = PoolerConfig::new(server()).user_with("crowd", 3, "auth_type = \"trust\"");
    let pooler = start(&config.general("connect_timeout = 60000"));
    let port = pooler.port();
    let clients: Vec<_> = (0..40)
        .map(|n| {
            thread::spawn(move || {
                let mut wire = Wire::connect(port, "crowd", "postgres");
                for _ in 0..10 {
                    if n % 2 == 0 {
                        wire.run("BEGIN; SELECT pg_sleep(0.001); COMMIT");
                    } else {
                        wire.send(Messages::new().statement("SELECT 1").sync());
                        assert_eq!(tags(&wire.ready()), "12DCZ");
                    }
                }
            })
        })
        .collect();
    let mut most = 0;
    while clients.iter().any(|client| !client.is_finished()) {
        most = most.max(server_connections("crowd"));
        thread::sleep(Duration::from_millis(5));
    }
    for client in clients {
        client.join().expect("a client");
    }
    assert!((1..=3).contains(&most), "{most} server connections");
}

#[test]
fn the_queue_is_served_in_its_order() {
    let stage = Stage::with(1, |config| config.general("connect_timeout = 60000"));
    direct().run("DROP TABLE IF EXISTS queued; CREATE TABLE queued (n int, place serial)");
    let mut occupant = stage.occupant();
    let mut waiting: Vec<Wire> = (0..10).map(|_| stage.client()).collect();
    for (n, client) in waiting.iter_mut().enumerate() {
        client.send(Messages::new().query(&format!("INSERT INTO queued VALUES ({n})")));
        // They are to arrive in this order.
        thread::sleep(Duration::from_millis(30));
    }
    // Among those who have waited for less than 100 ms a thread may prefer its own clients.
    thread::sleep(Duration::from_millis(300));
    occupant.run("COMMIT");
    for client in &mut waiting {
        assert_eq!(tags(&client.ready()), "CZ");
    }
    assert_eq!(
        direct().value("SELECT string_agg(n::text, ' ' ORDER BY place) FROM queued"),
        "0 1 2 3 4 5 6 7 8 9"
    );
}

#[test]
fn a_client_waits_for_connect_timeout() {
    let stage = Stage::with(1, |config| config.general("connect_timeout = 700"));
    let mut client = stage.client();
    let mut extended = stage.client();
    let mut occupant = stage.occupant();
    let began = Instant::now();
    let messages = client.query("SELECT 1");
    let waited = began.elapsed();
    assert_eq!(tags(&messages), "EZ", "{messages:?}");
    assert_eq!(messages[0].field(b'C').unwrap(), "58000");
    assert_eq!(messages[0].field(b'M').unwrap(), NO_SERVER);
    // The connection lives, so it is no FATAL (drivers give up a connection at one).
    assert_eq!(messages[0].field(b'V').unwrap(), "ERROR");
    assert_eq!(messages[1].body, b"I");
    assert!((650..3000).contains(&waited.as_millis()), "{waited:?}");
    // In the extended protocol there is one answer, at Sync.
    extended.send(
        Messages::new()
            .parse("s", "SELECT 1")
            .bind("", "s", &[])
            .describe_portal("")
            .execute("")
            .close_statement("s")
            .sync(),
    );
    let messages = extended.ready();
    assert_eq!(tags(&messages), "EZ", "{messages:?}");
    assert_eq!(messages[0].field(b'M').unwrap(), NO_SERVER);
    // What did not run is not remembered, and both go on.
    occupant.run("COMMIT");
    assert_eq!(client.value("SELECT 2"), "2");
    extended.send(
        Messages::new()
            .parse("s", "SELECT 3")
            .bind("", "s", &[])
            .execute("")
            .sync(),
    );
    assert_eq!(tags(&extended.ready()), "12DCZ");
}

/// Whoever has waited for long enough gets a connection beyond the pool's size. When the crowd has gone, so
/// does the reserve.
#[test]
fn the_reserve_is_for_those_who_have_waited() {
    direct()
        .run("DO $$ BEGIN CREATE ROLE reserved LOGIN; EXCEPTION WHEN duplicate_object THEN END $$");
    let lines = "auth_type = \"trust\"\nreserve_pool_size = 2";
    let config = PoolerConfig::new(server())
        .general("connect_timeout = 60000\nreserve_pool_timeout = 700")
        .user_with("reserved", 1, lines);
    let pooler = start(&config);
    let mut clients: Vec<_> = (0..4)
        .map(|_| Wire::connect(pooler.port(), "reserved", "postgres"))
        .collect();
    clients[0].run("BEGIN");
    let began = Instant::now();
    for client in &mut clients[1..] {
        client.send(Messages::new().query("BEGIN"));
    }
    // Two of the three, whichever came first.
    eventually("the reserve is open", || {
        server_connections("reserved") == 3
    });
    assert!(began.elapsed() >= Duration::from_millis(600));
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(server_connections("reserved"), 3);
    let (mut served, mut waiting): (Vec<_>, Vec<_>) = clients
        .drain(1..)
        .map(|mut client| (client.silent_for(Duration::from_millis(1)), client))
        .partition(|(is_silent, _)| !is_silent);
    assert_eq!((served.len(), waiting.len()), (2, 1));
    clients[0].run("COMMIT");
    for (_, client) in served.iter_mut().chain(&mut waiting) {
        assert_eq!(tags(&client.ready()), "CZ");
        client.run("COMMIT");
    }
    // Threads that look at the same moment may close one more, which is opened when it is needed.
    eventually("the reserve is closed", || {
        server_connections("reserved") <= 1
    });
    clients[0].run("SELECT 1");
}

#[test]
fn a_client_that_leaves_the_queue_takes_no_server() {
    let stage = Stage::new(1);
    let mut occupant = stage.occupant();
    for _ in 0..5 {
        let mut leaving = stage.client();
        leaving.send(Messages::new().query("SELECT 1"));
        thread::sleep(Duration::from_millis(20));
    }
    occupant.run("COMMIT");
    stage.assert_clean();
}

/// Those behind it do not wait for what nobody waits for any more: what it asked for is not run. With a Terminate, as
/// PostgreSQL would, the pooler does what was sent before that.
#[test]
fn a_client_that_leaves_the_queue_asks_for_nothing() {
    let stage = Stage::with(1, |config| config.general("admin_auth_type = \"trust\""));
    direct().run("DROP TABLE IF EXISTS left_behind; CREATE TABLE left_behind (n int)");
    let mut occupant = stage.occupant();
    let insert = |n| Messages::new().query(&format!("INSERT INTO left_behind VALUES ({n})"));
    for n in 1..=3 {
        stage.client().send(insert(n));
    }
    stage.client().send(insert(4).terminate());
    eventually("those who left are gone", || {
        let clients = Wire::connect(stage.pooler.port(), "admin", "pgcat").query("SHOW CLIENTS");
        let is_waiting =
            |reply: &&Message| reply.tag == b'D' && reply.row()[4].as_deref() == Some("waiting");
        clients.iter().filter(is_waiting).count() == 1
    });
    occupant.run("COMMIT");
    stage.client().run("INSERT INTO left_behind VALUES (5)");
    assert_eq!(
        direct().value("SELECT string_agg(n::text, ' ' ORDER BY n) FROM left_behind"),
        "4 5"
    );
}

/// More clients than servers, on all threads of the pooler: nobody starves, whichever thread has
/// the servers.
#[test]
fn nobody_starves() {
    let stage = Stage::with(1, |config| {
        config
            .general("connect_timeout = 60000")
            .general("worker_threads = 4")
    });
    let port = stage.pooler.port();
    let began = Instant::now();
    let clients: Vec<_> = (0..16)
        .map(|_| {
            thread::spawn(move || {
                let mut wire = Wire::connect(port, "postgres", "postgres");
                let mut longest = Duration::ZERO;
                for _ in 0..100 {
                    let began = Instant::now();
                    wire.run("SELECT 1");
                    longest = longest.max(began.elapsed());
                }
                longest
            })
        })
        .collect();
    for client in clients {
        let longest = client.join().expect("a client");
        assert!(longest < Duration::from_secs(5), "{longest:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(60));
}

/// An idle client holds no server; neither do Sync, Flush or an error outside a transaction.
#[test]
fn what_needs_no_server_holds_none() {
    let stage = Stage::new(1);
    let mut clients: Vec<Wire> = (0..6).map(|_| stage.client()).collect();
    clients[0].run("SELECT 1");
    clients[1].error("SELECT 1/0");
    clients[2].send(Messages::new().statement("SELECT 1").sync());
    clients[2].ready();
    clients[3].send(Messages::new().sync());
    clients[3].ready();
    clients[4].run("BEGIN; ROLLBACK");
    clients[5].send(Messages::new().statement("SELECT 1/0").sync());
    clients[5].ready();
    stage.assert_clean();
}

/// Between its pipelined messages and their Sync a client keeps its server, whatever comes back.
#[test]
fn an_open_batch_keeps_its_server() {
    let stage = Stage::new(2);
    direct().run("DROP TABLE IF EXISTS open_batch; CREATE TABLE open_batch (a int)");
    let mut client = stage.client();
    client.send(
        Messages::new()
            .statement("INSERT INTO open_batch VALUES (1)")
            .flush(),
    );
    client.until(b'C');
    let mut other = stage.client();
    for _ in 0..3 {
        assert_eq!(other.value("SELECT count(*) FROM open_batch"), "0");
    }
    client.send(Messages::new().sync());
    client.ready();
    assert_eq!(other.value("SELECT count(*) FROM open_batch"), "1");
}

#[test]
fn a_session_keeps_its_server() {
    let stage = Stage::with(2, PoolerConfig::session_mode);
    let mut one = stage.client();
    let mut two = stage.client();
    one.run("CREATE TEMP TABLE mine (a int); PREPARE p AS SELECT 1; SET statement_timeout = '10s'; SELECT pg_advisory_lock(7)");
    one.send(Messages::new().parse("s", "SELECT 1").sync());
    one.ready();
    let pid = one.value("SELECT pg_backend_pid()");
    two.run("SELECT 1");
    for _ in 0..3 {
        assert_eq!(one.value("SELECT pg_backend_pid()"), pid);
        one.run("INSERT INTO mine VALUES (1); EXECUTE p");
        one.error("SELECT 1/0");
        assert_ne!(two.value("SELECT pg_backend_pid()"), pid);
    }
    assert_eq!(one.value("SHOW statement_timeout"), "10s");
    one.send(Messages::new().bind("", "s", &[]).execute("").sync());
    assert_eq!(tags(&one.ready()), "2DCZ");
}

#[test]
fn a_session_hands_its_server_on_clean() {
    let stage = Stage::with(1, PoolerConfig::session_mode);
    for _ in 0..2 {
        let mut one = stage.client();
        one.run("CREATE TEMP TABLE mine (a int); PREPARE p AS SELECT 1; SET statement_timeout = '10s'; SELECT pg_advisory_lock(7); LISTEN x");
        one.send(Messages::new().parse("s", "SELECT 1").sync());
        one.ready();
        let mut waiting = stage.client();
        waiting.send(Messages::new().query("SELECT 1"));
        assert!(waiting.silent_for(Duration::from_millis(100)));
        drop(one);
        assert_eq!(tags(&waiting.ready()), "TDCZ");
        drop(waiting);
        stage.assert_clean();
    }
}

/// Whatever becomes of DISCARD ALL, under the time limit that the session has left: the next one finds
/// nothing of it.
#[test]
fn a_session_that_is_hard_to_clean_is_not_handed_on() {
    let stage = Stage::with(1, PoolerConfig::session_mode);
    for _ in 0..3 {
        let mut one = stage.client();
        one.run("DO $$ BEGIN FOR n IN 1..100 LOOP EXECUTE format('CREATE TEMP TABLE left_%s (a int)', n); END LOOP; END $$");
        one.run("SET statement_timeout = 1");
        drop(one);
        stage.assert_clean();
    }
}

/// PgCat takes the session away from a client that is idle outside of a transaction (probe 33).
#[test]
fn an_idle_session_outside_a_transaction_is_kept() {
    let stage = Stage::with(1, |config| {
        config
            .session_mode()
            .general("idle_client_in_transaction_timeout = 100")
    });
    let mut client = stage.client();
    client.run("CREATE TEMP TABLE kept (a int)");
    assert!(client.silent_for(Duration::from_millis(500)));
    client.run("SELECT * FROM kept");
    client.run("BEGIN");
    assert_eq!(tags(&client.ready()), "EZ");
}

/// A session's server is read while its client is idle.
#[test]
fn a_session_is_notified_while_idle() {
    let stage = Stage::with(2, PoolerConfig::session_mode);
    let mut listener = stage.client();
    listener.run("LISTEN news");
    stage.client().run("NOTIFY news, 'here'");
    let message = listener.message();
    assert_eq!(message.tag, b'A');
    assert!(message.body.ends_with(b"news\0here\0"));
    listener.run("SELECT 1");
}

#[test]
fn idle_servers_are_closed_after_idle_timeout() {
    direct()
        .run("DO $$ BEGIN CREATE ROLE sleeper LOGIN; EXCEPTION WHEN duplicate_object THEN END $$");
    let config = PoolerConfig::new(server()).user_with("sleeper", 3, "auth_type = \"trust\"");
    let pooler = start(&config.general("idle_timeout = 500"));
    let mut client = Wire::connect(pooler.port(), "sleeper", "postgres");
    client.run("SELECT 1");
    eventually("the idle server is closed", || {
        server_connections("sleeper") == 0
    });
    client.run("SELECT 1");
    assert_eq!(server_connections("sleeper"), 1);
}

#[test]
fn an_idle_transaction_times_out() {
    let stage = Stage::with(1, |config| {
        config.general("idle_client_in_transaction_timeout = 300")
    });
    let mut client = stage.client();
    client.run("SELECT 1");
    thread::sleep(Duration::from_millis(700));
    // Idle outside a transaction is no harm.
    client.run("BEGIN");
    let messages = client.ready();
    assert_eq!(tags(&messages), "EZ", "{messages:?}");
    assert_eq!(messages[0].field(b'M').unwrap(), "idle transaction timeout");
    assert_eq!(messages[0].field(b'C').unwrap(), "25P03");
    assert_eq!(messages[1].body, b"I");
    client.run("SELECT 1");
    stage.assert_clean();
}
