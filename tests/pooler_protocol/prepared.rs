//! Prepared statements, as one client sees them.

use test_support::wire::{Messages, Wire, sqlstate, tags};

use crate::stage::same;

/// What `statement` of this client returns for a parameter.
pub fn run(wire: &mut Wire, statement: &str, parameter: &str) -> String {
    wire.send(
        Messages::new()
            .bind("", statement, &[Some(parameter)])
            .execute("")
            .sync(),
    );
    let messages = wire.ready();
    match messages.iter().find(|message| message.tag == b'D') {
        Some(row) => row.row()[0].clone().expect("not NULL"),
        None => panic!("{messages:?}"),
    }
}

pub fn prepare(wire: &mut Wire, statement: &str, sql: &str) {
    wire.send(Messages::new().parse(statement, sql).sync());
    let messages = wire.ready();
    assert_eq!(tags(&messages), "1Z", "{messages:?}");
}

#[test]
fn a_name_that_is_taken() {
    same(|wire| {
        prepare(wire, "s", "SELECT $1::int");
        wire.send(Messages::new().parse("s", "SELECT 2").sync());
        assert_eq!(sqlstate(&wire.ready()), "42P05");
        // Even with the same text.
        wire.send(Messages::new().parse("s", "SELECT $1::int").sync());
        assert_eq!(sqlstate(&wire.ready()), "42P05");
        run(wire, "s", "1");
        wire.send(
            Messages::new()
                .close_statement("s")
                .parse("s", "SELECT $1::text || '!'")
                .sync(),
        );
        wire.ready();
        run(wire, "s", "2");
        // In one pipeline; what follows is skipped.
        wire.send(
            Messages::new()
                .parse("s", "SELECT 3")
                .statement("SELECT 4")
                .sync(),
        );
        wire.ready();
        run(wire, "s", "5");
    });
}

#[test]
fn a_name_that_is_unknown() {
    same(|wire| {
        wire.send(Messages::new().bind("", "nothing", &[]).execute("").sync());
        assert_eq!(sqlstate(&wire.ready()), "26000");
        wire.send(
            Messages::new()
                .describe_statement("nothing")
                .statement("SELECT 1")
                .sync(),
        );
        assert_eq!(sqlstate(&wire.ready()), "26000");
        wire.send(Messages::new().bind("", "", &[]).sync());
        assert_eq!(sqlstate(&wire.ready()), "26000");
        wire.query("BEGIN");
        wire.send(Messages::new().bind("", "nothing", &[]).execute("").sync());
        assert_eq!(
            wire.ready().last().map(|ready| ready.body.clone()),
            Some(b"E".to_vec())
        );
        wire.query("ROLLBACK");
    });
}

#[test]
fn a_parse_that_failed_is_not_remembered() {
    same(|wire| {
        for _ in 0..2 {
            wire.send(
                Messages::new()
                    .parse("s", "SELECT * FROM no_such_table")
                    .sync(),
            );
            assert_eq!(sqlstate(&wire.ready()), "42P01");
            wire.send(Messages::new().bind("", "s", &[]).execute("").sync());
            assert_eq!(sqlstate(&wire.ready()), "26000");
        }
        wire.send(
            Messages::new()
                .parse("s", "SELECT bad syntax from")
                .parse("s2", "SELECT 2")
                .sync(),
        );
        wire.ready();
        wire.send(
            Messages::new()
                .parse("s2", "SELECT 3")
                .bind("", "s2", &[])
                .execute("")
                .sync(),
        );
        wire.ready();
        // The table exists by now: the same text is tried again.
        wire.query("CREATE TABLE no_such_table (a int)");
        prepare(wire, "s", "SELECT * FROM no_such_table");
        wire.query("DROP TABLE no_such_table");
    });
}

/// As above, with all of it on the way before the first error is back.
#[test]
fn a_skipped_parse_leaves_its_name_free() {
    same(|wire| {
        wire.send(
            Messages::new()
                .parse("s", "SELECT bad syntax from")
                .parse("s2", "SELECT 2")
                .sync()
                .parse("s2", "SELECT 3")
                .bind("", "s2", &[])
                .execute("")
                .sync(),
        );
        wire.ready();
        wire.ready();
    });
}

#[test]
fn the_unnamed_statement_outlives_sync() {
    same(|wire| {
        wire.send(
            Messages::new()
                .parse("", "SELECT $1::int * 2")
                .describe_statement("")
                .sync(),
        );
        wire.ready();
        run(wire, "", "4");
        run(wire, "", "5");
        // A simple Query drops it.
        wire.query("SELECT 1");
        wire.send(
            Messages::new()
                .bind("", "", &[Some("6")])
                .execute("")
                .sync(),
        );
        assert_eq!(sqlstate(&wire.ready()), "26000");
        wire.send(Messages::new().parse("", "SELECT $1::int").sync());
        wire.ready();
        wire.send(
            Messages::new()
                .close_statement("")
                .bind("", "", &[Some("1")])
                .sync(),
        );
        wire.ready();
    });
}

/// A Parse that fails drops the one before; one that is skipped does not, nor does anything else that is.
#[test]
fn the_unnamed_statement_outlives_what_is_skipped() {
    let run_it = |messages: Messages| messages.bind("", "", &[]).execute("").sync();
    for at_once in [false, true] {
        same(|wire| {
            prepare(wire, "", "SELECT 'first'");
            let failed = || Messages::new().execute("nothing");
            for batch in [
                failed().parse("", "SELECT 'second'"),
                failed().close_statement(""),
                failed().query("SELECT 'third'"),
                failed()
                    .close_statement("")
                    .parse("", "SELECT 'second'")
                    .query("SELECT 'third'"),
            ] {
                if at_once {
                    wire.send(run_it(batch.sync()));
                    assert_eq!(sqlstate(&wire.ready()), "34000");
                } else {
                    wire.send(batch.sync());
                    assert_eq!(sqlstate(&wire.ready()), "34000");
                    wire.send(run_it(Messages::new()));
                }
                assert_eq!(wire.ready()[1].row(), [Some("first".to_owned())]);
            }
            // In a transaction that has failed.
            wire.query("BEGIN");
            prepare(wire, "", "SELECT 'first'");
            wire.send(failed().parse("", "SELECT 'second'").sync());
            wire.ready();
            wire.send(run_it(Messages::new()));
            assert_eq!(sqlstate(&wire.ready()), "25P02");
            wire.query("ROLLBACK");
        });
    }
    same(|wire| {
        prepare(wire, "", "SELECT 'first'");
        wire.send(Messages::new().parse("", "SELECT syntax error").sync());
        wire.ready();
        wire.send(run_it(Messages::new()));
        assert_eq!(sqlstate(&wire.ready()), "26000");
    });
}

/// The failure of an earlier one, which becomes known only then, is not that of a later one.
#[test]
fn unnamed_statements_of_several_batches_in_a_pipeline() {
    let run_it = |messages: Messages| messages.bind("", "", &[]).execute("").sync();
    same(|wire| {
        let failed = || Messages::new().execute("nothing");
        for batch in [
            Messages::new().parse("", "SELECT error error error"),
            failed().parse("", "SELECT 'skipped'"),
            failed().close_statement(""),
        ] {
            wire.send(run_it(batch.sync().parse("", "SELECT 'second'")));
            wire.ready();
            assert_eq!(wire.ready()[2].row(), [Some("second".to_owned())]);
        }
        // Of two batches that fail, neither replaces it; and a Query between them drops it.
        for query in [false, true] {
            prepare(wire, "", "SELECT 'first'");
            let mut batches = failed().parse("", "SELECT 'skipped'").sync();
            if query {
                batches = batches.query("SELECT 1");
            }
            batches = batches
                .execute("nothing")
                .parse("", "SELECT 'skipped, too'");
            wire.send(run_it(batches.sync()));
            for _ in 0..3 + usize::from(query) {
                wire.ready();
            }
        }
    });
}

/// A Query ends the implicit transaction of an unfinished batch, also one that needs no server.
#[test]
fn a_deallocate_ends_what_a_batch_has_begun() {
    same(|wire| {
        prepare(wire, "s", "SELECT generate_series(1, 3)");
        wire.send(
            Messages::new()
                .bind("p", "s", &[])
                .query("DEALLOCATE s")
                .execute("p")
                .sync(),
        );
        wire.ready();
        assert_eq!(sqlstate(&wire.ready()), "34000");
    });
}

#[test]
fn two_unnamed_statements_in_a_pipeline() {
    same(|wire| {
        wire.send(
            Messages::new()
                .statement("CREATE TABLE unnamed_first (a int)")
                .statement("SELECT * FROM unnamed_first")
                .statement("DROP TABLE unnamed_first")
                .sync(),
        );
        wire.ready();
    });
}

#[test]
fn long_names() {
    same(|wire| {
        for length in [63, 64, 300, 5000, 9000] {
            let name = "n".repeat(length);
            prepare(wire, &name, "SELECT $1::int");
            run(wire, &name, "1");
            wire.send(Messages::new().parse(&name, "SELECT 2").sync());
            wire.ready();
            wire.send(
                Messages::new()
                    .close_statement(&name)
                    .bind("", &name, &[])
                    .sync(),
            );
            wire.ready();
        }
    });
}

#[test]
fn deallocate() {
    same(|wire| {
        for deallocate in [
            "DEALLOCATE ALL",
            "deallocate  prepare all;",
            "DISCARD ALL",
            "discard plans",
            "DEALLOCATE s",
            "DEALLOCATE PREPARE \"s\"",
        ] {
            prepare(wire, "s", "SELECT $1::int");
            run(wire, "s", "1");
            wire.query(deallocate);
            wire.send(
                Messages::new()
                    .bind("", "s", &[Some("2")])
                    .execute("")
                    .sync(),
            );
            wire.ready();
            wire.send(Messages::new().close_statement("s").sync());
            wire.ready();
        }
        wire.query("DEALLOCATE nothing");
        for deallocate in ["DEALLOCATE ALL", "DEALLOCATE s", "DISCARD ALL"] {
            prepare(wire, "s", "SELECT $1::int");
            wire.send(Messages::new().statement(deallocate).sync());
            wire.ready();
            wire.send(
                Messages::new()
                    .bind("", "s", &[Some("2")])
                    .execute("")
                    .sync(),
            );
            let messages = wire.ready();
            assert_eq!(tags(&messages), "EZ", "after {deallocate}: {messages:?}");
        }
        // Among other statements, and rolled back (which does not bring it back).
        prepare(wire, "s", "SELECT $1::int");
        wire.query("BEGIN; DEALLOCATE ALL; ROLLBACK");
        wire.send(
            Messages::new()
                .bind("", "s", &[Some("2")])
                .execute("")
                .sync(),
        );
        wire.ready();
    });
}

#[test]
fn sql_prepare_in_a_transaction() {
    same(|wire| {
        wire.query("BEGIN; PREPARE p (int) AS SELECT $1 + 1");
        wire.query("EXECUTE p(1)");
        wire.query("EXECUTE p(2); DEALLOCATE p");
        wire.query("COMMIT");
    });
}

#[test]
fn sql_that_names_a_statement_of_the_protocol() {
    same(|wire| {
        let gone = |wire: &mut Wire| {
            wire.send(Messages::new().bind("", "s", &[Some("1")]).sync());
            assert_eq!(sqlstate(&wire.ready()), "26000");
        };
        prepare(wire, "s", "SELECT $1::int");
        wire.query("EXECUTE s(2)");
        wire.query("EXECUTE S (3); SELECT 4; EXECUTE \"s\"(5);");
        wire.query("PREPARE s AS SELECT 2");
        wire.query("SELECT 1; PREPARE s AS SELECT 2");
        run(wire, "s", "6");
        wire.query("BEGIN");
        wire.query("EXECUTE s('x')");
        wire.query("EXECUTE s(1)");
        wire.query("DEALLOCATE s");
        wire.query("ROLLBACK");
        wire.query("SELECT 1/0; DEALLOCATE s");
        run(wire, "s", "7");
        // It is not part of the transaction that fails.
        wire.query("SELECT 1; DEALLOCATE s; SELECT 1/0");
        gone(wire);
        wire.query("EXECUTE s(1)");
        prepare(wire, "s", "SELECT $1::int");
        wire.query("BEGIN; EXECUTE s(8); COMMIT; DEALLOCATE PREPARE s");
        gone(wire);
        wire.query("PREPARE s AS SELECT 9; EXECUTE s; DEALLOCATE s");
        prepare(wire, "s", "SELECT $1::int");
        wire.send(Messages::new().statement("EXECUTE s(10)").sync());
        wire.ready();
        wire.send(Messages::new().statement("PREPARE s AS SELECT 2").sync());
        wire.ready();
        run(wire, "s", "11");
        // What it reads is gone.
        wire.query("CREATE TABLE named_in_sql (a int)");
        prepare(wire, "t", "SELECT * FROM named_in_sql");
        wire.query("DROP TABLE named_in_sql");
        wire.query("EXECUTE t");
        wire.query("SELECT 1; EXECUTE t");
    });
}

/// The text of a Parse names a statement, and its own name may be taken.
#[test]
fn a_statement_that_names_a_statement() {
    for text in [
        "EXECUTE s(1)",
        "PREPARE s AS SELECT 2",
        "DEALLOCATE s",
        "DEALLOCATE ALL",
    ] {
        same(|wire| {
            prepare(wire, "s", "SELECT $1::int");
            prepare(wire, "t", "SELECT 3");
            for name in ["s", "t"] {
                wire.send(Messages::new().parse(name, text).sync());
                assert_eq!(sqlstate(&wire.ready()), "42P05", "{name}: {text}");
            }
            run(wire, "s", "4");
            // Behind something that is still to be answered, and may fail.
            wire.send(
                Messages::new()
                    .statement("SELECT 1/0")
                    .parse("s", text)
                    .sync()
                    .parse("s", text)
                    .sync(),
            );
            wire.ready();
            assert_eq!(sqlstate(&wire.ready()), "42P05", "{text}");
            run(wire, "s", "5");
        });
    }
}
