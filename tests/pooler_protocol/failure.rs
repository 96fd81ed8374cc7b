//! Servers and clients that die, at any moment: it harms nobody else.

use std::io::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use test_support::wire::{Messages, Wire, sqlstate, tags};
use test_support::{Auth, Pooler, PoolerConfig, Postgres, Settings};

use crate::stage::{DONE, Stage, direct, eventually, is_running, scripted, start};

fn terminate(pid: &str) {
    direct().run(&format!("SELECT pg_terminate_backend({pid}, 5000)"));
}

#[test]
fn a_server_that_dies_idle_is_not_noticed() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.send(Messages::new().parse("s", "SELECT 5").sync());
    client.ready();
    client.run("SET statement_timeout = '50s'");
    for _ in 0..3 {
        let pid = client.value("SELECT pg_backend_pid()");
        terminate(&pid);
        assert_ne!(client.value("SELECT pg_backend_pid()"), pid);
        client.send(Messages::new().bind("", "s", &[]).execute("").sync());
        assert_eq!(tags(&client.ready()), "2DCZ");
        assert_eq!(client.value("SHOW statement_timeout"), "50s");
    }
    stage.assert_clean();
}

/// Sent at the same moment as the server dies: the pooler has no time to notice first.
#[test]
fn many_servers_that_die_idle() {
    let stage = Stage::new(5);
    let mut clients: Vec<Wire> = (0..5).map(|_| stage.client()).collect();
    for _ in 0..5 {
        let mut pids = Vec::new();
        for client in &mut clients {
            client.run("BEGIN");
            pids.push(client.value("SELECT pg_backend_pid()"));
        }
        for client in &mut clients {
            client.run("COMMIT");
        }
        direct().run(&format!(
            "SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[{}]) pid",
            pids.join(",")
        ));
        thread::sleep(Duration::from_millis(100));
        for client in &mut clients {
            client.run("SELECT 1");
        }
    }
}

#[test]
fn a_server_that_dies_in_a_query() {
    let stage = Stage::new(2);
    let mut other = stage.client();
    for extended in [false, true] {
        let mut client = stage.client();
        let sql = format!("SELECT pg_sleep(200), {extended}");
        client.send(if extended {
            Messages::new().statement(&sql).sync()
        } else {
            Messages::new().query(&sql)
        });
        eventually("the query runs", || is_running(&sql));
        direct().run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(query, '{sql}') AND state = 'active' AND pid <> pg_backend_pid()"));
        let error = client.until(b'E').pop().expect("an error");
        // The server's own last words.
        assert_eq!(error.field(b'C').unwrap(), "57P01", "{error:?}");
        // Nothing of the pooler's own behind them.
        assert_eq!(tags(&client.end()), "");
        other.run("SELECT 1");
    }
    stage.assert_clean();
}

#[test]
fn a_server_that_dies_in_a_transaction() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("BEGIN");
    let pid = client.value("SELECT pg_backend_pid()");
    terminate(&pid);
    client.try_send(Messages::new().query("SELECT 1"));
    let messages = client.end();
    // Never an answer of another server, as if the transaction went on; and one error.
    assert_eq!(tags(&messages), "E", "{messages:?}");
    assert_eq!(sqlstate(&messages), "57P01", "{messages:?}");
    stage.assert_clean();
}

#[test]
fn a_server_that_dies_in_a_result() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client
        .send(Messages::new().query("SELECT repeat('z', 1000) FROM generate_series(1, 10000000)"));
    client.until(b'D');
    direct().run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(query, 'SELECT repeat(''z''') AND pid <> pg_backend_pid()");
    // Whole messages up to the end, or to the error.
    let messages = client.replies();
    assert!(
        messages
            .last()
            .is_some_and(|last| last.tag != b'Z' || tags(&messages).contains('E'))
    );
    stage.assert_clean();
}

/// The server's own timeouts reach the client as they would without a pooler.
#[test]
fn the_servers_timeouts() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("SET statement_timeout = '100ms'");
    assert_eq!(client.error("SELECT pg_sleep(10)"), "57014");
    client.run("RESET statement_timeout");
    client.run("SELECT pg_sleep(0.2)");
    client.run("SET idle_in_transaction_session_timeout = '200ms'; BEGIN");
    thread::sleep(Duration::from_millis(600));
    client.try_send(Messages::new().query("SELECT 1"));
    assert_eq!(sqlstate(&client.replies()), "25P03");
    stage.assert_clean();
}

/// A client that dies after each byte of a script, without a word. What it had begun is undone, and
/// an incomplete message is not run.
#[test]
fn a_client_that_dies_at_any_byte() {
    direct().run("DROP TABLE IF EXISTS died; CREATE TABLE died (a int)");
    let stage = Stage::new(1);
    let script = Messages::new()
        .query("BEGIN")
        .query("INSERT INTO died VALUES (1)")
        .parse("s", "INSERT INTO died VALUES ($1)")
        .bind("p", "s", &[Some("2")])
        .execute("p")
        .flush()
        .statement("SELECT 1")
        .sync()
        .query("COPY died FROM STDIN")
        .copy_data(b"3\n");
    for cut in 1..script.as_ref().len() {
        let mut client = stage.client();
        client.send(&script.as_ref()[..cut]);
        if cut % 3 == 0 {
            // So that the server has got it.
            thread::sleep(Duration::from_millis(2));
        }
        drop(client);
        let mut next = stage.client();
        assert_eq!(
            next.value("SELECT count(*) FROM died"),
            "0",
            "after {cut} bytes"
        );
        next.send(
            Messages::new()
                .parse("s", "SELECT 1")
                .bind("", "s", &[])
                .execute("")
                .sync(),
        );
        assert_eq!(tags(&next.ready()), "12DCZ", "after {cut} bytes");
    }
    stage.assert_clean();
    assert!(
        !stage.pooler.log().contains("panicked"),
        "{}",
        stage.pooler.log()
    );
}

#[test]
fn a_client_that_dies_in_a_long_query() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    let sql = "SELECT pg_sleep(300)";
    client.send(Messages::new().query(sql));
    eventually("the query runs", || is_running(sql));
    drop(client);
    // Nobody waits for its answer any more.
    eventually("the query is given up", || !is_running(sql));
    stage.assert_clean();
}

#[test]
fn a_client_that_dies_in_a_result() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client
        .send(Messages::new().query("SELECT repeat('w', 1000) FROM generate_series(1, 10000000)"));
    client.until(b'D');
    drop(client);
    eventually("the query is given up", || {
        !is_running("SELECT repeat(''w''")
    });
    stage.assert_clean();
}

/// A query that nobody waits for is run all the same, as by the server.
#[test]
fn a_query_before_terminate_is_run() {
    direct().run("DROP TABLE IF EXISTS unwatched; CREATE TABLE unwatched (a int)");
    let stage = Stage::new(1);
    for n in 0..20 {
        let mut client = stage.client();
        let insert = format!("INSERT INTO unwatched SELECT {n} FROM pg_sleep(0.01)");
        client.send(Messages::new().query(&insert).terminate());
        drop(client);
    }
    eventually("all are run", || {
        direct().value("SELECT count(*) FROM unwatched") == "20"
    });
    stage.assert_clean();
}

/// But not for as long as it likes: the server goes on with it alone.
#[test]
fn a_long_query_before_terminate_keeps_no_server() {
    let stage = Stage::with(1, |config| config.general("connect_timeout = 15000"));
    let mut client = stage.client();
    let sql = "SELECT pg_sleep(61)";
    client.send(Messages::new().query(sql));
    eventually("the query runs", || is_running(sql));
    client.send(Messages::new().terminate());
    drop(client);
    stage.client().run("SELECT 1");
    assert!(is_running(sql));
    direct().run(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = '{sql}'"
    ));
    stage.assert_clean();
}

/// Where the pooler waits for replies before it can go on, it notices that nobody else does.
#[test]
fn a_client_that_dies_while_its_next_message_waits() {
    let stage = Stage::with(1, |config| config.general("connect_timeout = 15000"));
    let mut client = stage.client();
    client.send(Messages::new().parse("s", "SELECT 1").sync());
    client.ready();
    let sql = "SELECT pg_sleep(62)";
    client.send(Messages::new().query(sql).query("DEALLOCATE s"));
    eventually("the query runs", || is_running(sql));
    drop(client);
    stage.client().run("SELECT 1");
    eventually("the query is given up", || !is_running(sql));
    stage.assert_clean();
}

/// A closed sending half is taken for a client that has gone (it cannot be told from one), but the
/// server stays usable.
#[test]
fn a_half_closed_client_ends() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.send(
        Messages::new()
            .query("SELECT pg_sleep(0.1)")
            .query("SELECT 2"),
    );
    client.shut_down_sending();
    client.end();
    stage.assert_clean();
}

fn own_server() -> (Postgres, Pooler) {
    let postgres = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    let config = PoolerConfig::new(&postgres)
        .user_with("postgres", 2, "auth_type = \"trust\"")
        .general("connect_timeout = 2000");
    let pooler = start(&config);
    (postgres, pooler)
}

#[test]
fn a_restarted_server_is_found_again() {
    let (mut postgres, pooler) = own_server();
    let connect = || Wire::connect(pooler.port(), "postgres", "postgres");
    let mut idle = connect();
    idle.run("SELECT 1");
    let mut busy = connect();
    busy.run("BEGIN");
    postgres.restart();
    assert_eq!(
        idle.value("SELECT 1"),
        "1",
        "an idle client does not notice a restart"
    );
    busy.try_send(Messages::new().query("SELECT 1"));
    assert!(!tags(&busy.replies()).contains('D'));
    postgres.kill9();
    // What is sent to a server in its last moment may have been run, and cannot be sent again.
    thread::sleep(Duration::from_millis(300));
    idle.try_send(Messages::new().query("SELECT 1"));
    let messages = idle.replies();
    assert_eq!(sqlstate(&messages), "58000", "{messages:?}");
    assert_eq!(tags(&messages), "EZ", "{messages:?}");
    postgres.restart();
    assert_eq!(idle.value("SELECT 1"), "1");
    assert_eq!(connect().value("SELECT 1"), "1");
}

/// A pooler may start before its server, as in a container that has no order.
#[test]
fn a_pooler_starts_without_its_server() {
    let mut postgres = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    postgres.stop();
    let config = PoolerConfig::new(&postgres)
        .user_with("postgres", 2, "auth_type = \"trust\"")
        .general("connect_timeout = 500");
    let pooler = start(&config);
    let mut early = Wire::open(pooler.port());
    early.send(test_support::wire::startup(
        test_support::wire::PROTOCOL_3_0,
        &[("user", "postgres"), ("database", "postgres")],
    ));
    let messages = early.end();
    assert_eq!(sqlstate(&messages), "58000", "{messages:?}");
    assert_eq!(
        messages[0].field(b'M').unwrap(),
        "Pool down for database: \"postgres\", user: \"postgres\""
    );
    postgres.restart();
    let mut client = Wire::connect(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("SELECT 1"), "1");
}

/// A row in two pieces, the second with rubbish behind it.
fn breaks_off(stream: &mut TcpStream, asked: &[u8]) {
    if asked.windows(6).all(|w| w != b"halves") {
        let _ = stream.write_all(DONE);
        return;
    }
    let row = Messages::new().message(b'D', b"\0\x01\0\0\0\x10two halves of it");
    let (first, second) = row.as_ref().split_at(12);
    let _ = stream.write_all(first);
    thread::sleep(Duration::from_millis(200));
    let _ = stream.write_all(&[second, b"\xff\xff\xff\xff\xff\xff"].concat());
}

/// Found by the fuzzer: the end of a row was lost if what followed it was no message, and the client took the error for it.
#[test]
fn rubbish_behind_a_row_does_not_cut_it_off() {
    let pooler = scripted(breaks_off);
    let mut client = Wire::connect(pooler.port(), "postgres", "postgres");
    client.send(Messages::new().query("SELECT 'halves'"));
    let messages = client.end();
    assert_eq!(tags(&messages), "DE", "{messages:?}");
    assert_eq!(messages[0].row(), [Some("two halves of it".to_owned())]);
}
