//! Prepared statements in pipelines where an error is on its way back: what the server skips must not
//! be believed, and what follows the next Sync must not be lost with it.

use test_support::wire::{Messages, Wire, sqlstate, tags};

use crate::prepared::{prepare, run};
use crate::stage::{Stage, same};

/// A batch that fails, with more messages that are skipped for it.
fn failing(skipped: Messages) -> Messages {
    Messages::new()
        .statement("SELECT 1/0")
        .then(&skipped)
        .sync()
}

fn bound(statement: &str) -> Messages {
    Messages::new()
        .bind("", statement, &[Some("1")])
        .execute("")
        .sync()
}

#[test]
fn a_skipped_close_keeps_the_statement() {
    same(|wire| {
        prepare(wire, "s", "SELECT $1::int");
        wire.send(failing(Messages::new().close_statement("s")).then(&bound("s")));
        wire.ready();
        assert_eq!(tags(&wire.ready()), "2DCZ");
        wire.send(failing(Messages::new().close_statement("s")));
        wire.ready();
        run(wire, "s", "2");
    });
}

#[test]
fn a_skipped_close_and_sql_that_names_the_statement() {
    for sql in ["DEALLOCATE s", "EXECUTE s(1)"] {
        same(|wire| {
            prepare(wire, "s", "SELECT $1::int");
            let skipped = failing(Messages::new().close_statement("s"));
            wire.send(skipped.query(sql));
            wire.ready();
            assert!(wire.ready().iter().all(|reply| reply.tag != b'E'), "{sql}");
        });
    }
}

#[test]
fn a_skipped_deallocate_keeps_the_statement() {
    same(|wire| {
        prepare(wire, "s", "SELECT $1::int");
        wire.send(failing(Messages::new().query("DEALLOCATE s")).then(&bound("s")));
        wire.ready();
        assert_eq!(tags(&wire.ready()), "2DCZ");
        wire.query("BEGIN; SELECT 1/0");
        wire.query("DEALLOCATE s");
        wire.query("ROLLBACK");
        run(wire, "s", "2");
    });
}

#[test]
fn a_skipped_parse_is_unknown_by_the_clients_name() {
    same(|wire| {
        wire.send(failing(Messages::new().parse("s", "SELECT $1::int")).then(&bound("s")));
        wire.ready();
        assert_eq!(sqlstate(&wire.ready()), "26000");
        wire.send(
            failing(
                Messages::new()
                    .parse("s", "SELECT $1::int")
                    .close_statement("s"),
            )
            .then(&Messages::new().parse("s", "SELECT $1::int + 1"))
            .then(&bound("s")),
        );
        wire.ready();
        assert_eq!(tags(&wire.ready()), "12DCZ");
    });
}

#[test]
fn statements_after_a_pipelined_discard() {
    same(|wire| {
        for discard in ["DISCARD ALL", "DEALLOCATE ALL"] {
            prepare(wire, "s", "SELECT $1::int");
            wire.send(
                Messages::new()
                    .query(discard)
                    .parse("s", "SELECT $1::int + 1")
                    .then(&bound("s"))
                    .query(discard)
                    .then(&bound("s")),
            );
            wire.ready();
            assert_eq!(tags(&wire.ready()), "12DCZ");
            wire.ready();
            assert_eq!(sqlstate(&wire.ready()), "26000");
        }
    });
}

#[test]
fn a_taken_name_in_and_after_a_failed_transaction() {
    same(|wire| {
        prepare(wire, "s", "SELECT $1::int");
        for _ in 0..2 {
            wire.query("BEGIN; SELECT 1/0");
            for sql in ["SELECT 2", "ROLLBACK", ""] {
                wire.send(Messages::new().parse("s", sql).sync());
                wire.ready();
            }
            wire.query("ROLLBACK");
            wire.send(Messages::new().parse("s", "SELECT 2").sync());
            assert_eq!(sqlstate(&wire.ready()), "42P05");
        }
        run(wire, "s", "2");
        wire.send(Messages::new().close_statement("s").then(&bound("s")));
        assert_eq!(tags(&wire.ready()), "3EZ");
    });
}

#[test]
fn errors_tell_the_clients_name() {
    same(|wire| {
        prepare(wire, "my statement", "SELECT $1::int");
        wire.send(Messages::new().bind("", "my statement", &[]).sync());
        let messages = wire.ready();
        let text = messages[0].field(b'M').expect("a message");
        assert!(
            text.contains("prepared statement \"my statement\""),
            "{text}"
        );
    });
}

/// The statement is unknown to the server, and its injected Parse is skipped; the next batch is on its
/// way already and needs it.
#[test]
fn a_statement_for_a_skipped_batch_and_the_next() {
    let stage = Stage::new(2);
    let mut client = stage.client();
    client.run("BEGIN");
    prepare(&mut client, "s", "SELECT $1::int + 1");
    let home = client.value("SELECT pg_backend_pid()");
    let mut other = stage.occupant();
    client.run("COMMIT");
    let mut occupant = occupy(&stage, &home);
    other.run("COMMIT");
    let skipped = Messages::new().bind("", "s", &[Some("1")]).execute("");
    client.send(failing(skipped).then(&bound("s")).then(&bound("s")));
    assert_eq!(sqlstate(&client.ready()), "22012");
    for _ in 0..2 {
        assert_eq!(tags(&client.ready()), "2DCZ");
    }
    assert_eq!(run(&mut client, "s", "4"), "5");
    occupant.run("ROLLBACK");
}

/// A client that holds this server in a transaction.
fn occupy(stage: &Stage, pid: &str) -> Wire {
    let mut occupant = stage.occupant();
    assert_eq!(occupant.value("SELECT pg_backend_pid()"), pid);
    occupant
}
