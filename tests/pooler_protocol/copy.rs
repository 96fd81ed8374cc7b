//! COPY in both directions, by both protocols, and its ways to fail.

use test_support::wire::{Messages, sqlstate, tags};

use crate::stage::{Stage, direct, eventually, is_running, same, same_after};

fn table(name: &str) -> String {
    // The same table for both plays: RowDescription tells its OID.
    format!("CREATE TABLE IF NOT EXISTS {name} (a int PRIMARY KEY, b text); TRUNCATE {name}")
}

#[test]
fn copy_in_and_out() {
    same_after(&table("copied"), |wire| {
        wire.send(Messages::new().query("COPY copied FROM STDIN"));
        assert_eq!(tags(&wire.until(b'G')), "G");
        wire.send(
            Messages::new()
                .copy_data(b"1\tone\n2\t")
                .copy_data(b"two\n")
                .flush()
                .sync()
                .copy_done(),
        );
        assert_eq!(tags(&wire.ready()), "CZ");
        wire.query("COPY copied TO STDOUT");
        wire.query("COPY copied TO STDOUT (FORMAT binary)");
        wire.query("COPY (SELECT generate_series(1, 3)) TO STDOUT (FORMAT csv)");
    });
}

#[test]
fn copies_among_other_statements() {
    same_after(&table("copied_among"), |wire| {
        wire.send(
            Messages::new()
                .query("SELECT 1; COPY copied_among FROM STDIN; SELECT 2; COPY copied_among FROM STDIN; COPY copied_among TO STDOUT"),
        );
        wire.until(b'G');
        wire.send(Messages::new().copy_data(b"1\tone\n").copy_done());
        wire.until(b'G');
        wire.send(Messages::new().copy_data(b"2\ttwo\n").copy_done());
        wire.ready();
        wire.query("BEGIN");
        wire.send(
            Messages::new()
                .query("COPY copied_among FROM STDIN")
                .copy_data(b"3\tthree\n")
                .copy_done(),
        );
        wire.ready();
        wire.query("COMMIT; SELECT * FROM copied_among");
    });
}

#[test]
fn the_client_gives_up() {
    same_after(&table("copy_failed"), |wire| {
        wire.send(Messages::new().query("COPY copy_failed FROM STDIN"));
        wire.until(b'G');
        wire.send(Messages::new().copy_data(b"1\tone\n").copy_fail("enough"));
        assert_eq!(sqlstate(&wire.ready()), "57014");
        wire.query("SELECT * FROM copy_failed");
    });
}

/// The client learns of the error while it is still sending; the server drops what comes late.
#[test]
fn an_error_in_the_middle() {
    same_after(&table("copy_broken"), |wire| {
        wire.send(Messages::new().query("COPY copy_broken FROM STDIN"));
        wire.until(b'G');
        wire.send(Messages::new().copy_data(b"1\tone\nbad\n"));
        wire.ready();
        for _ in 0..100 {
            wire.send(Messages::new().copy_data(b"2\ttwo\n"));
        }
        wire.send(Messages::new().copy_done());
        wire.query("SELECT * FROM copy_broken");
    });
}

#[test]
fn an_error_in_the_middle_of_a_transaction() {
    same_after(&table("copy_broken_transaction"), |wire| {
        wire.query("BEGIN");
        wire.send(Messages::new().query("COPY copy_broken_transaction FROM STDIN"));
        wire.until(b'G');
        wire.send(Messages::new().copy_data(b"bad\n"));
        assert_eq!(tags(&wire.ready()), "EZ");
        wire.send(
            Messages::new()
                .copy_data(b"2\ttwo\n")
                .copy_done()
                .query("SELECT 1"),
        );
        wire.ready();
        wire.query("ROLLBACK");
    });
}

/// The server connection serves another client by then, which is in the middle of a COPY of its own.
#[test]
fn late_copy_data_does_not_reach_the_next_client() {
    direct().run(&table("copy_of_the_next"));
    let stage = Stage::new(1);
    let (mut late, mut next) = (stage.client(), stage.client());
    for n in 0..5 {
        let copy = Messages::new().query("COPY copy_of_the_next FROM STDIN");
        late.send(&copy);
        late.until(b'G');
        late.send(Messages::new().copy_data(b"bad\n"));
        assert_eq!(tags(&late.ready()), "EZ");
        next.send(&copy);
        next.until(b'G');
        late.send(
            Messages::new()
                .copy_data(b"666\tlate\n")
                .copy_fail("too late")
                .copy_done()
                .sync(),
        );
        // By then all of it has been dealt with.
        assert_eq!(tags(&late.ready()), "Z");
        let row = format!("{n}\tnext\n");
        next.send(Messages::new().copy_data(row.as_bytes()).copy_done());
        assert_eq!(tags(&next.ready()), "CZ");
    }
    let rows = "SELECT string_agg(a || b, ' ' ORDER BY a) FROM copy_of_the_next";
    assert_eq!(late.value(rows), "0next 1next 2next 3next 4next");
    stage.assert_clean();
}

#[test]
fn an_error_at_the_end() {
    same_after(&table("copy_twice"), |wire| {
        for _ in 0..2 {
            wire.send(
                Messages::new()
                    .query("COPY copy_twice FROM STDIN")
                    .copy_data(b"1\tone\n")
                    .copy_done(),
            );
            wire.ready();
        }
        wire.query("COPY no_such_table FROM STDIN");
        wire.query("SELECT * FROM copy_twice");
    });
}

/// tokio-postgres: Sync only after CopyDone.
#[test]
fn extended_copy_with_one_sync() {
    same_after(&table("copy_one_sync"), |wire| {
        wire.send(
            Messages::new()
                .statement("COPY copy_one_sync FROM STDIN")
                .flush(),
        );
        wire.until(b'G');
        wire.send(Messages::new().copy_data(b"1\tone\n").copy_done().sync());
        assert_eq!(tags(&wire.ready()), "CZ");
        wire.send(
            Messages::new()
                .statement("COPY copy_one_sync TO STDOUT")
                .sync(),
        );
        assert_eq!(tags(&wire.ready()), "12HdcCZ");
    });
}

/// libpq: a Sync right behind Execute, which the server ignores, and another after CopyDone.
#[test]
fn extended_copy_with_a_sync_before_the_data() {
    same_after(&table("copy_two_syncs"), |wire| {
        for row in ["1\tone\n", "2\ttwo\n"] {
            wire.send(
                Messages::new()
                    .statement("COPY copy_two_syncs FROM STDIN")
                    .sync(),
            );
            wire.until(b'G');
            wire.send(Messages::new().copy_data(row.as_bytes()).copy_done().sync());
            assert_eq!(tags(&wire.ready()), "CZ");
        }
        wire.query("SELECT * FROM copy_two_syncs");
    });
}

#[test]
fn extended_copy_in_one_write() {
    same_after(&table("copy_at_once"), |wire| {
        wire.send(
            Messages::new()
                .statement("COPY copy_at_once FROM STDIN")
                .copy_data(b"1\tone\n")
                .copy_done()
                .statement("SELECT count(*) FROM copy_at_once")
                .sync()
                .statement("SELECT 2")
                .sync(),
        );
        assert_eq!(tags(&wire.ready()), "12GC12DCZ");
        assert_eq!(tags(&wire.ready()), "12DCZ");
        // With the Sync that the server ignores.
        wire.send(
            Messages::new()
                .statement("COPY copy_at_once FROM STDIN")
                .sync()
                .copy_data(b"2\ttwo\n")
                .copy_done()
                .sync()
                .query("SELECT 3"),
        );
        assert_eq!(tags(&wire.ready()), "12GCZ");
        assert_eq!(tags(&wire.ready()), "TDCZ");
    });
}

#[test]
fn extended_copy_that_fails() {
    same_after(&table("copy_extended_broken"), |wire| {
        // With one Sync.
        wire.send(
            Messages::new()
                .statement("COPY copy_extended_broken FROM STDIN")
                .flush(),
        );
        wire.until(b'G');
        wire.send(Messages::new().copy_data(b"bad\n").flush());
        wire.until(b'E');
        wire.send(
            Messages::new()
                .copy_data(b"1\tone\n")
                .copy_done()
                .statement("SELECT 1")
                .sync(),
        );
        assert_eq!(tags(&wire.ready()), "Z");
        // With the Sync that the server ignores.
        wire.send(
            Messages::new()
                .statement("COPY copy_extended_broken FROM STDIN")
                .sync(),
        );
        wire.until(b'G');
        wire.send(Messages::new().copy_data(b"bad\n"));
        wire.until(b'E');
        wire.send(Messages::new().copy_done().sync());
        assert_eq!(tags(&wire.ready()), "Z");
        // By the client.
        wire.send(
            Messages::new()
                .statement("COPY copy_extended_broken FROM STDIN")
                .sync(),
        );
        wire.until(b'G');
        wire.send(Messages::new().copy_fail("enough").sync());
        assert_eq!(tags(&wire.ready()), "EZ");
        // Before its data: here the Sync behind Execute counts.
        wire.send(
            Messages::new()
                .statement("COPY no_such_table FROM STDIN")
                .sync(),
        );
        assert_eq!(tags(&wire.ready()), "12EZ");
        // All at once, with the end of the copy and its Sync behind the error.
        wire.send(
            Messages::new()
                .statement("COPY copy_extended_broken FROM STDIN")
                .copy_data(b"bad\n")
                .copy_done()
                .sync()
                .query("SELECT 4"),
        );
        wire.ready();
        wire.ready();
        wire.query("SELECT * FROM copy_extended_broken");
    });
}

#[test]
fn a_prepared_copy() {
    same_after(&table("copy_prepared"), |wire| {
        wire.send(
            Messages::new()
                .parse("s", "COPY copy_prepared FROM STDIN")
                .describe_statement("s")
                .sync(),
        );
        wire.ready();
        for row in ["1\tone\n", "2\ttwo\n"] {
            wire.send(Messages::new().bind("", "s", &[]).execute("").sync());
            wire.until(b'G');
            wire.send(Messages::new().copy_data(row.as_bytes()).copy_done().sync());
            wire.ready();
        }
        wire.query("SELECT * FROM copy_prepared");
    });
}

/// The server gives up a connection on which a query comes in the middle of a COPY.
#[test]
fn a_query_during_copy_in() {
    same_after(&table("copy_interrupted"), |wire| {
        wire.send(Messages::new().query("COPY copy_interrupted FROM STDIN"));
        wire.until(b'G');
        wire.send(Messages::new().query("SELECT 1"));
        wire.end();
    });
}

#[test]
fn a_client_that_dies_in_copy_in() {
    for ends_with_terminate in [false, true] {
        for extended in [false, true] {
            direct().run(&table("copy_orphaned"));
            let stage = Stage::new(1);
            let mut client = stage.client();
            let copy = "COPY copy_orphaned FROM STDIN";
            client.send(if extended {
                Messages::new().statement(copy).sync()
            } else {
                Messages::new().query(copy)
            });
            client.until(b'G');
            client.send(Messages::new().copy_data(b"1\tone\n2\ttwo\n"));
            if ends_with_terminate {
                client.send(Messages::new().terminate());
            }
            drop(client);
            eventually("the COPY is given up", || !is_running(copy));
            stage.assert_clean();
            assert_eq!(
                stage.client().value("SELECT count(*) FROM copy_orphaned"),
                "0"
            );
        }
    }
}

/// In the middle of a CopyData message.
#[test]
fn a_client_that_dies_within_copy_data() {
    direct().run(&table("copy_torn"));
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.send(Messages::new().query("COPY copy_torn FROM STDIN"));
    client.until(b'G');
    let data = Messages::new().copy_data(b"1\tone\n2\ttwo\n");
    client.send(&data.as_ref()[..12]);
    drop(client);
    eventually("the COPY is given up", || !is_running("COPY copy_torn"));
    stage.assert_clean();
    assert_eq!(stage.client().value("SELECT count(*) FROM copy_torn"), "0");
}

#[test]
fn a_client_that_dies_in_copy_out() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    let copy = "COPY (SELECT repeat(''y'', 1000) FROM generate_series(1, 10000000)) TO STDOUT";
    client.send(Messages::new().query(&copy.replace("''", "'")));
    client.until(b'H');
    client.message();
    drop(client);
    eventually("the COPY is given up", || !is_running(copy));
    stage.assert_clean();
}

#[test]
fn copy_data_of_nothing() {
    same(|wire| {
        wire.query("COPY (SELECT 1 WHERE false) TO STDOUT");
        wire.query("CREATE TABLE copied_nothing (a int)");
        wire.send(
            Messages::new()
                .query("COPY copied_nothing FROM STDIN")
                .copy_data(b"")
                .copy_done(),
        );
        wire.ready();
        wire.query("DROP TABLE copied_nothing");
    });
}

/// The pooler asks for the settings after a SET: not in the middle of a message that is passed through.
#[test]
fn late_copy_data_in_two_parts_around_the_end_of_a_set() {
    same(|wire| {
        let late = Messages::new().copy_fail("too late");
        let (head, tail) = late.as_ref().split_at(7);
        let set = Messages::new().query("SET work_mem = '1MB'");
        wire.send([set.as_ref(), head].concat());
        wire.ready();
        wire.send(tail);
        wire.query("SHOW work_mem");
        wire.query("RESET work_mem");
    });
}

/// The server ends the connection over it. What waits for outstanding replies in other places would wait for the data.
#[test]
fn a_message_that_is_no_data_in_the_middle_of_a_copy() {
    for message in [
        Messages::new().query("LISTEN copied_at"),
        Messages::new().query("EXECUTE s"),
        Messages::new().parse("s", "SELECT 1").sync(),
        Messages::new().bind("", "s", &[]).execute("").sync(),
        Messages::new().close_statement("s").sync(),
    ] {
        same_after(&table("copied_with_others"), |wire| {
            wire.send(Messages::new().parse("s", "SELECT 1").sync());
            wire.ready();
            wire.send(Messages::new().query("COPY copied_with_others FROM STDIN"));
            wire.until(b'G');
            wire.send(&message);
            while wire.try_message().is_some() {}
        });
    }
}
