//! The simple query protocol, and messages that are no queries.

use test_support::wire::{Message, Messages, Wire, sqlstate, tags};

use crate::stage::{Stage, direct, same, same_after};

#[test]
fn empty_queries() {
    same(|wire| {
        for sql in ["", ";", " ; ; ", "-- nothing", "/* nothing */"] {
            wire.query(sql);
        }
    });
}

#[test]
fn several_statements_with_an_error_among_them() {
    same(|wire| {
        wire.query("SELECT 1; SELECT 2 AS b, NULL; SELECT 1/0; SELECT 3");
        wire.query("SELECT 'syntax");
        wire.query("SELECT 1");
    });
}

#[test]
fn transactions_and_their_status() {
    same(|wire| {
        wire.query("BEGIN; SELECT 1");
        wire.query("SELECT no_such_column");
        wire.query("SELECT 1");
        wire.query("COMMIT");
        wire.query("COMMIT");
        wire.query("BEGIN");
        wire.query("SAVEPOINT a; SELECT 1/0");
        wire.query("ROLLBACK TO a");
        wire.query("END");
    });
}

#[test]
fn queries_sent_before_the_answers_are_read() {
    same(|wire| {
        wire.send(
            Messages::new()
                .query("SELECT 1")
                .query("SELECT 1/0")
                .query("")
                .query("SELECT 2"),
        );
        for _ in 0..4 {
            wire.ready();
        }
    });
}

#[test]
fn notices_come_in_their_place() {
    same(|wire| {
        wire.query("SELECT 1; DO $$ BEGIN RAISE NOTICE 'in between'; END $$; SELECT 2");
        wire.query("ROLLBACK");
    });
}

#[test]
fn parameter_changes_are_told() {
    same(|wire| {
        wire.query("SET application_name = 'told'");
        wire.query("SELECT 1; SET DateStyle = 'German'; SELECT 2");
        wire.query("BEGIN; SET TimeZone = 'Europe/Berlin'");
        wire.query("ROLLBACK");
        wire.query("RESET ALL");
    });
}

#[test]
fn function_calls() {
    same(|wire| {
        // int4pl(2, 3): text arguments and result.
        let call = [
            &177_u32.to_be_bytes()[..],
            &[0, 0, 0, 2],
            &[0, 0, 0, 1],
            b"2",
            &[0, 0, 0, 1],
            b"3",
            &[0, 0],
        ]
        .concat();
        wire.send(Messages::new().message(b'F', &call));
        assert_eq!(tags(&wire.ready()), "VZ");
        let unknown = [&4_000_000_u32.to_be_bytes()[..], &[0; 6]].concat();
        wire.send(Messages::new().message(b'F', &unknown));
        assert_eq!(tags(&wire.ready()), "EZ");
        wire.query("BEGIN");
        wire.send(Messages::new().message(b'F', &call).query("COMMIT"));
        wire.ready();
        wire.ready();
    });
}

#[test]
fn an_unknown_message_type_ends_the_connection_as_in_postgresql() {
    let stage = Stage::new(1);
    for port in [crate::stage::server().port(), stage.pooler.port()] {
        let mut wire = Wire::connect(port, "postgres", "postgres");
        wire.send(Messages::new().message(b'!', b"what"));
        let messages = wire.end();
        assert_eq!(sqlstate(&messages), "08P01", "{messages:?}");
        assert_eq!(messages[0].field(b'V').unwrap(), "FATAL");
    }
    stage.assert_clean();
}

/// What came before it is done and answered.
#[test]
fn queries_before_a_message_that_ends_the_connection() {
    direct().run("DROP TABLE IF EXISTS before_the_end; CREATE TABLE before_the_end (a int)");
    let stage = Stage::new(1);
    let insert = "INSERT INTO before_the_end VALUES (1)";
    for before in [
        Messages::new()
            .query(insert)
            .query("SELECT repeat('x', 100000)"),
        Messages::new().query(insert).statement("SELECT 1").sync(),
        Messages::new().query(insert).statement("SELECT 1"),
        Messages::new().query(insert).query("BEGIN"),
    ] {
        for last in [&b"!\0\0\0\x05a"[..], b"\0\0\0\0\0", b"Q\0\0\0\0"] {
            let play = |port| {
                let mut wire = Wire::connect(port, "postgres", "postgres");
                wire.send([before.as_ref(), last].concat());
                wire.end()
            };
            let is_fatal = |message: &Message| {
                message.tag == b'E'
                    && message.field(b'V').as_deref() == Some("FATAL")
                    && message.field(b'C').as_deref() == Some("08P01")
            };
            let mut expected = play(crate::stage::server().port());
            let mut messages = play(stage.pooler.port());
            let told = expected.pop_if(|message| is_fatal(message)).is_some();
            assert!(
                messages.pop_if(|message| is_fatal(message)).is_some(),
                "{messages:?}"
            );
            if told {
                assert_eq!(messages, expected);
            } else {
                // Of a length that cannot be PostgreSQL tells its log only, and keeps to itself what it
                // has not flushed.
                assert!(messages.starts_with(&expected), "{messages:?}");
            }
        }
    }
    // A COPY is not waited for: its data will not come.
    for _ in 0..10 {
        let mut wire = stage.client();
        let copy = Messages::new().query("COPY before_the_end FROM STDIN");
        wire.send([copy.as_ref(), b"!\0\0\0\x04"].concat());
        assert!(tags(&wire.end()).ends_with('E'));
    }
    let rows = stage.client().value("SELECT count(*) FROM before_the_end");
    assert_eq!(rows, "24");
    stage.assert_clean();
}

#[test]
fn absurd_message_lengths_end_the_connection() {
    let stage = Stage::new(1);
    for length in [0_u32, 3, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
        let mut wire = stage.client();
        // Where the length is possible, the pooler may wait for more; it must not reserve memory.
        wire.send([b"Q", &length.to_be_bytes()[..], b"SELECT 1"].concat());
        wire.shut_down_sending();
        let messages = wire.end();
        assert!(!tags(&messages).contains('D'), "{messages:?}");
    }
    assert!(crate::stage::peak_memory(&stage.pooler) < 300_000);
    stage.assert_clean();
}

#[test]
fn messages_that_belong_to_other_phases() {
    same(|wire| {
        // A late CopyData, CopyDone or CopyFail is ignored by the server: an error may have ended
        // the COPY before the client knew.
        wire.send(
            Messages::new()
                .copy_data(b"x")
                .copy_done()
                .copy_fail("late")
                .query("SELECT 1"),
        );
        wire.ready();
    });
}

#[test]
fn two_phase_commit_passes() {
    same(|wire| {
        wire.query("BEGIN; CREATE TABLE two_phase (a int); PREPARE TRANSACTION 'two_phase'");
        wire.query("COMMIT PREPARED 'two_phase'");
        wire.query("DROP TABLE two_phase");
    });
}

#[test]
fn explicit_transactions_keep_one_server() {
    let stage = Stage::new(3);
    let mut client = stage.client();
    client.run("BEGIN");
    let pid = client.value("SELECT pg_backend_pid()");
    let mut others: Vec<Wire> = (0..2).map(|_| stage.occupant()).collect();
    for _ in 0..5 {
        assert_eq!(client.value("SELECT pg_backend_pid()"), pid);
        client.error("SELECT 1/0");
        client.run("ROLLBACK AND CHAIN");
    }
    client.run("COMMIT");
    for other in &mut others {
        other.run("ROLLBACK");
    }
}

/// Both a rollback and the tags of commands that only look like the end of a transaction.
#[test]
fn a_closed_client_rolls_back() {
    direct().run("DROP TABLE IF EXISTS rolled_back; CREATE TABLE rolled_back (a int)");
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("BEGIN; INSERT INTO rolled_back VALUES (1)");
    client.send(Messages::new().terminate());
    drop(client);
    stage.assert_clean();
    assert_eq!(
        stage.client().value("SELECT count(*) FROM rolled_back"),
        "0"
    );
}

#[test]
fn bytes_behind_terminate_are_not_run() {
    direct().run("DROP TABLE IF EXISTS behind_terminate; CREATE TABLE behind_terminate (a int)");
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.send(
        Messages::new()
            .terminate()
            .query("INSERT INTO behind_terminate VALUES (1)"),
    );
    client.end();
    assert_eq!(
        stage
            .client()
            .value("SELECT count(*) FROM behind_terminate"),
        "0"
    );
}

#[test]
fn messages_split_anywhere() {
    same_after(
        "CREATE TABLE IF NOT EXISTS split (a text); TRUNCATE split",
        |wire| {
            let script = Messages::new()
                .query("INSERT INTO split VALUES ('simple')")
                .parse("s", "SELECT a || $1 FROM split")
                .bind("p", "s", &[Some("value")])
                .describe_portal("p")
                .execute("p")
                .sync()
                .query("COPY split FROM STDIN")
                .copy_data(b"copied\n")
                .copy_done()
                .query("COPY split TO STDOUT");
            let bytes = script.as_ref();
            for cut in 1..bytes.len() {
                wire.send(&bytes[..cut]);
                // Without a pause the kernel would join the two again.
                std::thread::sleep(std::time::Duration::from_micros(300));
                wire.send(&bytes[cut..]);
                for _ in 0..4 {
                    wire.ready();
                }
                wire.query("TRUNCATE split");
                // The name must be free again.
                wire.query("DEALLOCATE ALL");
            }
        },
    );
}

#[test]
fn a_script_byte_by_byte() {
    same(|wire| {
        let script = Messages::new()
            .query("SELECT 1")
            .parse("", "SELECT $1::int")
            .bind("", "", &[Some("5")])
            .describe_portal("")
            .execute("")
            .sync();
        wire.send_pieces(script, 1);
        wire.ready();
        wire.ready();
    });
}
