//! Clients that leave, or sit idle, where the pooler might keep a server connection for them for ever.

use std::thread;
use std::time::Duration;

use test_support::wire::{Message, Messages, Wire, sqlstate, tags};

use crate::prepared::{prepare, run};
use crate::stage::{Stage, same};

/// A pool of one whose clients do not wait for ever.
fn stage() -> Stage {
    Stage::with(1, |config| config.general("connect_timeout = 15000"))
}

fn with_stream_tables() -> Stage {
    Stage::with(1, |config| {
        config.general("connect_timeout = 15000").stream_tables()
    })
}

/// The client leaves after so many milliseconds, and the next one gets the server connection.
fn leave(stage: &Stage, client: Wire, after: u64) {
    thread::sleep(Duration::from_millis(after));
    drop(client);
    stage.client().run("SELECT 1");
}

#[test]
fn copy_and_terminate_in_one_go() {
    let stage = stage();
    stage
        .client()
        .run("DROP TABLE IF EXISTS left_copy; CREATE TABLE left_copy (a int)");
    for copy in [
        Messages::new().query("COPY left_copy FROM STDIN"),
        Messages::new().statement("COPY left_copy FROM STDIN"),
        Messages::new()
            .statement("COPY left_copy FROM STDIN")
            .sync(),
    ] {
        let mut client = stage.client();
        client.send(copy.terminate());
        leave(&stage, client, 100);
    }
    stage.assert_clean();
}

/// The session must not fail over the missing body, least of all with a server connection.
#[test]
fn messages_that_claim_a_body_they_have_no_use_for() {
    let stage = stage();
    for tag in [b'X', b'S', b'H'] {
        for begin in ["", "BEGIN"] {
            let mut client = stage.client();
            client.run(begin);
            client.send([tag, 0x20, 0, 0, 0, 1, 2, 3]);
            leave(&stage, client, 50);
        }
    }
    assert!(!stage.pooler.log().contains("panicked"));
    stage.assert_clean();
}

#[test]
fn a_query_ends_a_batch_without_sync() {
    same(|client| {
        client.send(
            Messages::new()
                .statement("SELECT 1")
                .flush()
                .query("SELECT 2"),
        );
        client.ready();
    });
    let stage = stage();
    let mut client = stage.client();
    client.send(
        Messages::new()
            .statement("SELECT 1")
            .flush()
            .query("SELECT 2"),
    );
    client.ready();
    stage.client().run("SELECT 1");
}

#[test]
fn half_a_message_does_not_prolong_a_transaction() {
    let stage = Stage::with(1, |config| {
        config
            .general("connect_timeout = 5000")
            .general("idle_client_in_transaction_timeout = 500")
    });
    let mut client = stage.client();
    client.run("BEGIN");
    client.send(&Messages::new().query("SELECT 1").as_ref()[..3]);
    stage.client().run("SELECT 1");
}

/// The server owes nothing for data of a COPY where there is none, and waits for the rest of it.
#[test]
fn half_a_message_is_not_left_to_the_next_client() {
    let stage = stage();
    let mut leaving = stage.client();
    let data = Messages::new().copy_data(&[b'x'; 1000]);
    let mut bytes = Messages::new()
        .query("SELECT pg_sleep(0.05)")
        .as_ref()
        .to_vec();
    bytes.extend_from_slice(&data.as_ref()[..10]);
    leaving.send(&bytes[..]);
    assert_eq!(tags(&leaving.ready()), "TDCZ");
    drop(leaving);
    stage.client().run("SELECT 1");
    stage.assert_clean();
}

/// Drivers that prepare with Flush wait for the reply before they send Sync.
#[test]
fn a_batch_without_server_fails_before_its_sync() {
    let stage = Stage::with(1, |config| config.general("connect_timeout = 300"));
    let mut occupant = stage.occupant();
    let mut client = stage.client();
    client.send(Messages::new().parse("s", "SELECT 1").flush());
    let error = client.until(b'E');
    assert_eq!(
        (tags(&error), sqlstate(&error)),
        ("E".into(), "58000".into())
    );
    client.send(Messages::new().bind("", "s", &[]).query("SELECT 2").sync());
    assert_eq!(tags(&client.ready()), "Z");
    occupant.run("COMMIT");
    client.run("SELECT 1");
}

/// Runs a statement that the client's own timeout may cancel on a loaded machine, until it does not.
fn insist(client: &mut Wire, sql: &str) -> Vec<Message> {
    for _ in 0..1000 {
        let messages = client.query(sql);
        if !tags(&messages).contains('E') {
            return messages;
        }
        assert_eq!(sqlstate(&messages), "57014", "{messages:?}");
    }
    panic!("always cancelled: {sql}");
}

/// What the pooler asks the server for itself does not fail by the client's own timeout.
#[test]
fn a_short_statement_timeout() {
    let stage = stage();
    for n in 0..30 {
        let mut client = stage.client();
        client.run("SET statement_timeout = 1");
        let wanted = format!("{}ms", 2 + n % 2);
        insist(&mut client, &format!("SET statement_timeout = '{wanted}'"));
        let mut other = stage.client();
        other.run("SET lock_timeout = 1000");
        let shown = insist(&mut client, "SHOW statement_timeout");
        let row = shown.iter().find(|message| message.tag == b'D');
        assert_eq!(row.map(Message::row), Some(vec![Some(wanted)]));
        assert_eq!(other.value("SHOW statement_timeout"), "0");
    }
    stage.assert_clean();
}

/// The rest of the result must not be taken for the replies to the next client's statements.
#[test]
fn a_client_that_dies_in_a_result_beside_a_plugins_statement() {
    let stage = with_stream_tables();
    for _ in 0..3 {
        let mut client = stage.client();
        client.send(
            Messages::new().query(
                "SHOW STREAM TABLES; SELECT repeat('x', 1000) FROM generate_series(1, 200000)",
            ),
        );
        client.until(b'D');
        drop(client);
        for n in 0..5 {
            let mut next = stage.client();
            assert_eq!(next.value(&format!("SELECT {n}")), n.to_string());
        }
    }
    stage.assert_clean();
}

#[test]
fn session_state_beside_a_plugins_statement() {
    let stage = with_stream_tables();
    let mut client = stage.client();
    client.run(
        "SHOW STREAM TABLES; SET work_mem = '9MB'; CREATE TEMP TABLE left_over (a int); \
         SELECT pg_advisory_lock(7); LISTEN left_over",
    );
    // While the client is connected: the server connection is not kept for it, either.
    stage.assert_clean();
    assert_eq!(client.value("SHOW work_mem"), "9MB");
}

#[test]
fn statements_of_the_protocol_named_beside_a_plugins_statement() {
    let stage = with_stream_tables();
    let mut client = stage.client();
    prepare(&mut client, "s", "SELECT $1::int + 1");
    let messages = client.query("SHOW STREAM TABLES; EXECUTE s(1); SELECT 5");
    let rows = messages.iter().filter(|message| message.tag == b'D');
    let values: Vec<_> = rows.map(|row| row.row()[0].clone()).collect();
    assert_eq!(values, [Some("2".to_owned()), Some("5".to_owned())]);
    assert_eq!(
        client.error("SHOW STREAM TABLES; PREPARE s AS SELECT 1"),
        "42P05"
    );
    assert_eq!(run(&mut client, "s", "2"), "3");
    let mut other = stage.client();
    prepare(&mut other, "s", "SELECT $1::int + 1");
    for (sql, code) in [
        ("SELECT 1/0; DEALLOCATE s; SHOW STREAM TABLES", "22012"),
        ("SHOW STREAM TABLES; EXECUTE s('x')", "22P02"),
    ] {
        assert_eq!(client.error(sql), code);
        assert_eq!(run(&mut client, "s", "3"), "4");
    }
    client.run("SHOW STREAM TABLES; DEALLOCATE s");
    client.send(Messages::new().bind("", "s", &[Some("1")]).sync());
    assert_eq!(sqlstate(&client.ready()), "26000");
    assert_eq!(client.error("SHOW STREAM TABLES; DEALLOCATE s"), "26000");
    assert_eq!(run(&mut other, "s", "4"), "5");
    drop((client, other));
    stage.assert_clean();
}

/// The plugin runs it on the client's behalf, as it may be a view that a stream table reads.
#[test]
fn a_temporary_view_by_way_of_a_plugin() {
    let stage = with_stream_tables();
    let mut client = stage.client();
    client.run("CREATE OR REPLACE TEMP VIEW left_behind AS SELECT 666 AS leaked");
    stage.assert_clean();
}

#[test]
fn a_function_call_ends_a_batch_without_sync() {
    // pi().
    let call = [1610_u32.to_be_bytes().as_slice(), &[0; 6]].concat();
    let batch = Messages::new()
        .statement("SELECT 1")
        .flush()
        .message(b'F', &call);
    same(|client| {
        client.send(&batch);
        client.ready();
    });
    let stage = stage();
    let mut client = stage.client();
    client.send(&batch);
    client.ready();
    stage.client().run("SELECT 1");
}

/// The server answers it with an error, and skips to the next Sync: it would not answer what the pooler asks it then.
#[test]
fn a_flush_with_a_body_and_a_plugins_statement() {
    let stage = with_stream_tables();
    let flush = Messages::new().parse("", "SELECT 1").message(b'H', &[0]);
    for wait in [false, true] {
        let mut client = stage.client();
        client.send(&flush);
        if wait {
            thread::sleep(Duration::from_millis(200));
        }
        client.send(Messages::new().query("SHOW STREAM TABLES; SELECT 1"));
        leave(&stage, client, 100);
    }
    stage.assert_clean();
}

#[test]
fn a_flush_with_a_body_and_a_refused_message() {
    let stage = stage();
    let mut client = stage.client();
    client.send(Messages::new().parse("", "SELECT 1").message(b'H', &[0]));
    thread::sleep(Duration::from_millis(200));
    // Not the client's.
    client.send(Messages::new().bind("", "PGCAT_1", &[]));
    leave(&stage, client, 100);
    stage.assert_clean();
}

/// A timeout that has struck in the middle of a batch is told with the next message, even if that is a Flush, which has no other
/// reply.
#[test]
fn a_flush_that_is_answered_by_a_timeout() {
    let begin = |client: &mut Wire| {
        client.run("SET statement_timeout = 100");
        client.send(Messages::new().parse("", "SELECT 1").flush());
        client.until(b'1');
        thread::sleep(Duration::from_millis(300));
        client.send(Messages::new().flush());
        assert_eq!(sqlstate(&client.until(b'E')), "57014");
    };
    same(|client| {
        begin(client);
        client.send(Messages::new().bind("", "", &[]).query("SELECT 2").sync());
        client.ready();
        client.run("SET statement_timeout = 0");
    });
    let stage = stage();
    let mut client = stage.client();
    begin(&mut client);
    // Not the client's: refused by the pooler.
    client.send(Messages::new().bind("", "PGCAT_1", &[]));
    leave(&stage, client, 100);
    stage.assert_clean();
}

/// The same where the Flush is the pooler's own.
#[test]
fn a_batch_whose_time_is_over_and_a_refused_message() {
    let stage = stage();
    let mut client = stage.client();
    client.run("BEGIN; SET LOCAL statement_timeout = 1");
    client.send(Messages::new().parse("", "SELECT 1"));
    thread::sleep(Duration::from_millis(300));
    client.send(Messages::new().bind("", "PGCAT_1", &[]));
    leave(&stage, client, 100);
    stage.assert_clean();
}

/// As the pooler does not know yet that it has, it takes what comes next for a breach of the protocol.
#[test]
fn a_batch_in_a_copy_that_has_failed() {
    let stage = with_stream_tables();
    stage
        .client()
        .run("DROP TABLE IF EXISTS failed_copy; CREATE TABLE failed_copy (a int)");
    for _ in 0..5 {
        let mut client = stage.client();
        client.send(Messages::new().query("COPY failed_copy FROM STDIN"));
        client.until(b'G');
        client.send(Messages::new().copy_data(b"x\n").bind("", "missing", &[]));
        thread::sleep(Duration::from_millis(50));
        client.send(Messages::new().query("SHOW STREAM TABLES; SELECT 1"));
        leave(&stage, client, 50);
    }
    stage.assert_clean();
}

/// The server would answer it with the timeout of a batch, and that it is ready.
#[test]
fn data_of_no_copy_in_a_batch_whose_time_is_over() {
    let stage = stage();
    for data in [
        Messages::new().copy_data(b"1\n"),
        Messages::new().copy_done(),
        Messages::new().copy_fail("why"),
    ] {
        for answered in [true, false] {
            let mut client = stage.client();
            client.run("SET statement_timeout = 200");
            client.send(Messages::new().parse("", "SELECT 1"));
            if answered {
                client.send(Messages::new().flush());
                client.until(b'1');
            }
            thread::sleep(Duration::from_millis(400));
            client.send(data.clone().query("SELECT pg_sleep(0.1), 'its'"));
            client.ready();
            let mut next = stage.client();
            assert_eq!(next.value("SELECT 'own'"), "own");
        }
    }
    stage.assert_clean();
}

#[test]
fn a_client_that_leaves_a_plugins_statement_running() {
    let stage = with_stream_tables();
    let mut client = stage.client();
    client.send(Messages::new().query("SHOW STREAM TABLES; SELECT pg_sleep(60)"));
    leave(&stage, client, 300);
    stage.assert_clean();
}

#[test]
fn a_client_that_leaves_much_unread() {
    let stage = with_stream_tables();
    stage
        .client()
        .run("DROP TABLE IF EXISTS unread_copy; CREATE TABLE unread_copy (a int)");
    let mut client = stage.client();
    client.send(
        Messages::new()
            .statement("COPY unread_copy FROM STDIN")
            .query("SHOW STREAM TABLES")
            .query(&format!("SELECT '{}'", "x".repeat(20_000))),
    );
    leave(&stage, client, 200);
    stage.assert_clean();
}

/// The same behind a statement that has not come to its end.
#[test]
fn data_of_no_copy_behind_a_portal() {
    let stage = stage();
    for sql in ["SELECT generate_series(1, 5)", ""] {
        let mut client = stage.client();
        client.run("SET statement_timeout = 200");
        let batch = Messages::new().parse("", sql).bind("", "", &[]);
        client.send(batch.execute_rows("", 1));
        thread::sleep(Duration::from_millis(400));
        client.send(
            Messages::new()
                .copy_data(b"1\n")
                .query("SELECT pg_sleep(0.1), 'its'"),
        );
        client.ready();
        let mut next = stage.client();
        assert_eq!(next.value("SELECT 'own'"), "own");
    }
    stage.assert_clean();
}

/// The server skips the Query, and so does the pooler.
#[test]
fn a_plugins_statement_right_behind_a_flush_that_fails() {
    let stage = with_stream_tables();
    let mut client = stage.client();
    client.run("SET statement_timeout = 100");
    client.send(Messages::new().parse("", "SELECT 1").flush());
    client.until(b'1');
    thread::sleep(Duration::from_millis(300));
    client.send(
        Messages::new()
            .flush()
            .query("SHOW STREAM TABLES; SELECT 1")
            .sync(),
    );
    assert_eq!(tags(&client.ready()), "EZ");
    client.run("SET statement_timeout = 0");
    // A Flush that does not fail.
    client.send(
        Messages::new()
            .parse("", "SELECT 1")
            .flush()
            .query("SHOW STREAM TABLES; SELECT 1"),
    );
    assert_eq!(tags(&client.ready()), "1TCTDCZ");
    drop(client);
    stage.assert_clean();
}
