//! The extended query protocol: pipelines, portals, errors and what is skipped after them.

use std::time::Duration;

use test_support::wire::{Messages, sqlstate, tags};

use crate::stage::{Stage, direct, same, same_after};

#[test]
fn parse_bind_describe_execute() {
    same(|wire| {
        wire.send(
            Messages::new()
                .parse_typed("", "SELECT $1, $2::text AS b", &[23])
                .describe_statement("")
                .bind("", "", &[Some("1"), None])
                .describe_portal("")
                .execute("")
                .sync(),
        );
        assert_eq!(tags(&wire.ready()), "1tT2TDCZ");
    });
}

#[test]
fn a_pipeline_with_one_sync() {
    same(|wire| {
        let mut pipeline = Messages::new();
        for n in 0..200 {
            pipeline = pipeline.statement(&format!("SELECT {n}, repeat('x', {n})"));
        }
        wire.send(pipeline.sync());
        wire.ready();
    });
}

#[test]
fn a_pipeline_with_many_syncs() {
    same(|wire| {
        let mut pipeline = Messages::new();
        for n in 0..100 {
            let sql = if n % 7 == 0 {
                "SELECT 1/0".to_owned()
            } else {
                format!("SELECT {n}")
            };
            pipeline = pipeline.statement(&sql).sync();
        }
        wire.send(pipeline);
        for _ in 0..100 {
            wire.ready();
        }
    });
}

#[test]
fn an_error_skips_to_the_sync() {
    same(|wire| {
        wire.send(
            Messages::new()
                .statement("SELECT 1")
                .statement("SELECT 1/0")
                .statement("SELECT 2")
                .describe_statement("")
                .close_statement("nothing")
                .parse("named", "SELECT 3")
                .sync()
                .statement("SELECT 4")
                .sync(),
        );
        wire.ready();
        wire.ready();
        // What was skipped does not exist.
        wire.send(Messages::new().bind("", "named", &[]).execute("").sync());
        assert_eq!(sqlstate(&wire.ready()), "26000");
    });
}

/// The rest of the pipeline, and its Sync, arrive only after the error has come back.
#[test]
fn an_error_skips_what_arrives_later() {
    same(|wire| {
        wire.send(Messages::new().statement("SELECT 1/0"));
        wire.send(Messages::new().flush());
        wire.until(b'E');
        wire.send(
            Messages::new()
                .statement("SELECT 1")
                .parse("late", "SELECT 1")
                .flush(),
        );
        assert!(wire.silent_for(Duration::from_millis(100)));
        wire.send(Messages::new().sync());
        assert_eq!(tags(&wire.ready()), "Z");
        wire.send(Messages::new().bind("", "late", &[]).sync());
        assert_eq!(sqlstate(&wire.ready()), "26000");
        wire.query("SELECT 1");
    });
}

/// The server skips a simple Query too, and answers only the Sync.
#[test]
fn a_query_in_a_failed_batch_is_swallowed() {
    same(|wire| {
        wire.send(
            Messages::new()
                .statement("SELECT 1/0")
                .query("SELECT 'skipped'")
                .sync()
                .query("SELECT 'run'"),
        );
        assert_eq!(tags(&wire.ready()), "1EZ");
        assert_eq!(tags(&wire.ready()), "TDCZ");
    });
}

#[test]
fn a_query_ends_a_batch_without_sync() {
    same_after(
        "CREATE TABLE IF NOT EXISTS unsynced (a int); TRUNCATE unsynced",
        |wire| {
            wire.send(
                Messages::new()
                    .statement("INSERT INTO unsynced VALUES (1)")
                    .query("SELECT count(*) FROM unsynced"),
            );
            wire.ready();
            wire.send(Messages::new().sync());
            wire.ready();
        },
    );
}

#[test]
fn an_error_in_a_batch_rolls_its_implicit_transaction_back() {
    same_after(
        "CREATE TABLE IF NOT EXISTS implicit (a int); TRUNCATE implicit",
        |wire| {
            wire.send(
                Messages::new()
                    .statement("INSERT INTO implicit VALUES (1)")
                    .statement("SELECT 1/0")
                    .sync()
                    .statement("INSERT INTO implicit VALUES (2)")
                    .sync(),
            );
            wire.ready();
            wire.ready();
            wire.query("SELECT a FROM implicit");
        },
    );
}

#[test]
fn empty_sync_and_flush() {
    same(|wire| {
        wire.send(Messages::new().sync());
        assert_eq!(tags(&wire.ready()), "Z");
        wire.send(Messages::new().flush());
        assert!(wire.silent_for(Duration::from_millis(50)));
        wire.send(Messages::new().sync().sync().sync());
        for _ in 0..3 {
            wire.ready();
        }
        wire.query("BEGIN");
        wire.query("SELECT 1/0");
        wire.send(Messages::new().sync());
        assert_eq!(wire.ready()[0].body, b"E");
        wire.query("ROLLBACK");
    });
}

/// asyncpg prepares with Flush only.
#[test]
fn flush_delivers_without_sync() {
    same(|wire| {
        wire.send(
            Messages::new()
                .parse("s", "SELECT $1::int AS a")
                .describe_statement("s")
                .flush(),
        );
        assert_eq!(tags(&wire.until(b'T')), "1tT");
        wire.send(
            Messages::new()
                .bind("", "s", &[Some("3")])
                .execute("")
                .flush(),
        );
        assert_eq!(tags(&wire.until(b'C')), "2DC");
        assert!(wire.silent_for(Duration::from_millis(50)));
        wire.send(Messages::new().sync());
        assert_eq!(tags(&wire.ready()), "Z");
    });
}

#[test]
fn an_empty_statement() {
    same(|wire| {
        wire.send(Messages::new().statement("").describe_statement("").sync());
        assert_eq!(tags(&wire.ready()), "12ItnZ");
    });
}

#[test]
fn portals_with_row_limits() {
    same(|wire| {
        wire.query("BEGIN");
        wire.send(
            Messages::new()
                .parse("s", "SELECT generate_series(1, 5) AS n")
                .bind("p", "s", &[])
                .describe_portal("p")
                .execute_rows("p", 2)
                .flush(),
        );
        assert_eq!(tags(&wire.until(b's')), "12TDDs");
        wire.send(Messages::new().execute_rows("p", 2).sync());
        assert_eq!(tags(&wire.ready()), "DDsZ");
        // In a transaction a portal outlives Sync.
        wire.send(
            Messages::new()
                .execute_rows("p", 2)
                .execute_rows("p", 2)
                .close_portal("p")
                .sync(),
        );
        assert_eq!(tags(&wire.ready()), "DCC3Z");
        wire.send(Messages::new().execute("p").sync());
        assert_eq!(sqlstate(&wire.ready()), "34000");
        wire.query("ROLLBACK");
    });
}

#[test]
fn a_portal_outside_a_transaction_ends_with_sync() {
    same(|wire| {
        wire.send(
            Messages::new()
                .parse("", "SELECT generate_series(1, 5)")
                .bind("p", "", &[])
                .execute_rows("p", 2)
                .execute_rows("p", 1)
                .sync()
                .execute_rows("p", 2)
                .sync(),
        );
        assert_eq!(tags(&wire.ready()), "12DDsDsZ");
        assert_eq!(sqlstate(&wire.ready()), "34000");
    });
}

#[test]
fn close_of_what_does_not_exist() {
    same(|wire| {
        wire.send(
            Messages::new()
                .close_statement("no")
                .close_portal("no")
                .close_statement("")
                .sync(),
        );
        assert_eq!(tags(&wire.ready()), "333Z");
    });
}

#[test]
fn a_portal_and_a_statement_of_one_name() {
    same(|wire| {
        wire.query("BEGIN");
        wire.send(
            Messages::new()
                .parse("s", "SELECT generate_series(1, 3)")
                .bind("s", "s", &[])
                .close_statement("s")
                .execute("s")
                .describe_statement("s")
                .sync(),
        );
        wire.ready();
        wire.query("ROLLBACK");
        wire.send(
            Messages::new()
                .parse("s", "SELECT 1")
                .bind("s", "s", &[])
                .close_portal("s")
                .bind("s", "s", &[])
                .execute("s")
                .sync(),
        );
        wire.ready();
        wire.send(Messages::new().close_statement("s").sync());
        wire.ready();
    });
}

#[test]
fn formats_are_kept_byte_for_byte() {
    same(|wire| {
        // One binary parameter, two result formats.
        let bind = [
            &b"\0s\0"[..],
            &[0, 1, 0, 1],
            &[0, 1, 0, 0, 0, 4, 0, 0, 1, 0],
            &[0, 2, 0, 1, 0, 0],
        ]
        .concat();
        wire.send(
            Messages::new()
                .parse("s", "SELECT $1::int AS a, $1::int AS b")
                .message(b'B', &bind)
                .describe_portal("")
                .execute("")
                .sync(),
        );
        assert_eq!(tags(&wire.ready()), "12TDCZ");
    });
}

#[test]
fn more_than_32767_parameters() {
    let list: Vec<String> = (1..=40_000).map(|n| format!("${n}")).collect();
    let sql = format!(
        "SELECT count(*) FROM unnest(ARRAY[{}]::int[]) a",
        list.join(",")
    );
    same(|wire| {
        wire.send(
            Messages::new()
                .parse("s", &sql)
                .bind("", "s", &vec![Some("7"); 40_000])
                .execute("")
                .sync(),
        );
        assert_eq!(wire.ready()[2].row()[0].as_deref(), Some("40000"));
    });
}

#[test]
fn malformed_messages_are_the_servers_to_refuse() {
    let stage = Stage::new(1);
    // Names without their end, a Bind that promises more than it has, an unknown kind of Describe.
    let malformed: [(u8, &[u8]); 7] = [
        (b'P', b"name"),
        (b'P', b"name\0SELECT 1\0\0\x05"),
        (b'B', b"portal\0stmt"),
        (b'B', b"\0\0\0\x09"),
        (b'D', b"Xname\0"),
        (b'D', b""),
        (b'C', b"Sname"),
    ];
    for (tag, body) in malformed {
        let mut direct = direct();
        direct.send(Messages::new().message(tag, body).sync());
        let expected = direct.replies();
        let mut pooled = stage.client();
        pooled.send(Messages::new().message(tag, body).sync());
        let messages = pooled.replies();
        // PostgreSQL reports some as an ERROR and some as FATAL; the client hears of each, with the
        // same SQLSTATE.
        assert_eq!(
            sqlstate(&messages),
            sqlstate(&expected),
            "{} {body:?}",
            char::from(tag)
        );
        stage.assert_clean();
    }
}

#[test]
fn a_failed_transaction_answers_as_in_postgresql() {
    same(|wire| {
        wire.query("BEGIN");
        wire.send(Messages::new().parse("s", "SELECT 1").sync());
        wire.ready();
        wire.query("SELECT 1/0");
        wire.send(Messages::new().bind("", "s", &[]).execute("").sync());
        assert_eq!(sqlstate(&wire.ready()), "25P02");
        wire.send(Messages::new().parse("s2", "SELECT 2").sync());
        assert_eq!(sqlstate(&wire.ready()), "25P02");
        wire.send(Messages::new().statement("ROLLBACK").sync());
        wire.ready();
        wire.send(Messages::new().bind("", "s", &[]).execute("").sync());
        wire.ready();
        wire.send(Messages::new().bind("", "s2", &[]).execute("").sync());
        assert_eq!(sqlstate(&wire.ready()), "26000");
    });
}

#[test]
fn transactions_by_the_extended_protocol() {
    same(|wire| {
        for sql in [
            "BEGIN",
            "SELECT 1",
            "SAVEPOINT a",
            "SELECT 1/0",
            "ROLLBACK TO a",
            "COMMIT",
        ] {
            wire.send(Messages::new().statement(sql).describe_statement("").sync());
            wire.ready();
        }
        // A transaction of one pipeline.
        wire.send(
            Messages::new()
                .statement("BEGIN")
                .statement("SELECT 1")
                .statement("COMMIT")
                .statement("SELECT 2")
                .sync(),
        );
        wire.ready();
    });
}
