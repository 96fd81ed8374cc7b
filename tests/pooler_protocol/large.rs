//! Sizes: messages at the edges of buffers, and more than any buffer holds, in both directions.

use std::thread;
use std::time::Duration;

use test_support::wire::{Messages, tags};

use crate::stage::{Stage, alone, peak_memory, same, same_after, ten_megabytes_each_way};

/// A pooler's buffers are powers of two, less or more a few bytes.
#[test]
fn messages_at_buffer_sizes() {
    same(|wire| {
        for power in [9_u32, 10, 12, 13, 14, 15, 16, 17] {
            for delta in -12_i32..=12 {
                let size = usize::try_from(2_i32.pow(power) + delta).unwrap();
                // A Query message of exactly this many bytes, with a row of about the same size.
                let frame = "SELECT ''".len() + 6;
                let query = format!("SELECT '{}'", "x".repeat(size - frame));
                wire.send(Messages::new().query(&query));
                wire.ready();
            }
        }
    });
}

#[test]
fn extended_messages_at_buffer_sizes() {
    same(|wire| {
        for power in [12_u32, 13, 14, 15, 16] {
            for delta in -8_i32..=8 {
                let value = "v".repeat(usize::try_from(2_i32.pow(power) + delta).unwrap());
                wire.send(
                    Messages::new()
                        .parse("s", &format!("SELECT $1::text /* {value} */"))
                        .bind("", "s", &[Some(&value)])
                        .execute("")
                        .close_statement("s")
                        .sync(),
                );
                assert_eq!(tags(&wire.ready()), "12DC3Z");
            }
        }
    });
}

/// CopyData, Describe and Close of exactly so many bytes, with another message right behind.
#[test]
fn other_messages_at_buffer_sizes() {
    same_after(
        "CREATE TABLE IF NOT EXISTS at_edges (a text); TRUNCATE at_edges",
        |wire| {
            for power in [12_u32, 13, 14, 15, 16] {
                for delta in -8_i32..=8 {
                    let size = usize::try_from(2_i32.pow(power) + delta).unwrap();
                    // PostgreSQL takes no longer ones.
                    if size < 10_000 {
                        // Beside the name: a header of five bytes, what it is a name of, and a NUL.
                        let name = "n".repeat(size - 7);
                        wire.send(Messages::new().parse(&name, "SELECT 1").flush());
                        wire.until(b'1');
                        wire.send(Messages::new().describe_statement(&name).flush());
                        assert_eq!(tags(&wire.until(b'T')), "tT");
                        wire.send(Messages::new().close_statement(&name).sync());
                        assert_eq!(tags(&wire.ready()), "3Z");
                    }
                    wire.send(Messages::new().query("COPY at_edges FROM STDIN"));
                    wire.until(b'G');
                    let line = format!("{}\n", "x".repeat(size - 6));
                    wire.send(
                        Messages::new()
                            .copy_data(line.as_bytes())
                            .copy_data(b"short\n")
                            .copy_done(),
                    );
                    assert_eq!(tags(&wire.ready()), "CZ");
                }
            }
            wire.query("SELECT length(a), count(*) FROM at_edges GROUP BY 1 ORDER BY 1");
        },
    );
}

/// Wherever a buffer ends among them: within a header, behind it, or between two messages.
#[test]
fn many_small_messages_in_one_write() {
    same_after(
        "CREATE TABLE IF NOT EXISTS small (a text); TRUNCATE small",
        |wire| {
            let mut copy = Messages::new().query("COPY small FROM STDIN");
            for n in 0..100_000 {
                let line = format!("{n}{}\n", "c".repeat(n % 59));
                copy = copy.copy_data(line.as_bytes());
            }
            wire.send(copy.copy_done());
            assert_eq!(tags(&wire.ready()), "GCZ");
            wire.query("SELECT count(*), md5(string_agg(a, ',' ORDER BY a)) FROM small");
            let mut batch = Messages::new().parse("s", "SELECT 1");
            for n in 0..4000 {
                batch = batch
                    .describe_statement("s")
                    .close_statement(&"c".repeat(n % 61 + 1));
            }
            wire.send(batch.sync());
            wire.ready();
        },
    );
}

#[test]
fn many_small_rows_and_a_few_large_ones() {
    same(|wire| {
        wire.query("SELECT n, repeat('x', n % 100) FROM generate_series(1, 50000) n");
        wire.query("SELECT repeat('x', 3000000), repeat('y', 70000) FROM generate_series(1, 3)");
    });
}

#[test]
fn ten_megabytes_each_way_at_once() {
    let _alone = alone();
    let stage = Stage::new(1);
    let mut client = stage.client();
    ten_megabytes_each_way(&mut client);
    drop(client);
    stage.assert_clean();
}

/// As a driver without threads: send all, then read all. The kernel's buffers hold what the pooler
/// cannot pass on.
#[test]
fn a_pipeline_that_is_read_only_at_its_end() {
    same(|wire| {
        let mut pipeline = Messages::new();
        for n in 0..500 {
            pipeline = pipeline.statement(&format!("SELECT {n}, '{}'", "x".repeat(500)));
        }
        wire.send(pipeline.sync());
        wire.ready();
    });
}

#[test]
fn a_row_of_50_megabytes_passes_through_little_memory() {
    let _alone = alone();
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("SELECT 1");
    let before = peak_memory(&stage.pooler);
    let messages = client.query("SELECT repeat('x', 50000000)");
    assert_eq!(messages[1].body.len(), 50_000_006);
    let grown = peak_memory(&stage.pooler) - before;
    assert!(grown < 8_000, "{grown} kB for a row of 50 MB");
    stage.assert_clean();
}

/// What is refused for want of a server is dropped as it comes.
#[test]
fn a_refused_query_of_50_megabytes_takes_little_memory() {
    let _alone = alone();
    let stage = Stage::with(1, |config| config.general("connect_timeout = 300"));
    let mut occupant = stage.occupant();
    let mut client = stage.client();
    let before = peak_memory(&stage.pooler);
    let query = format!("SELECT '{}'", "x".repeat(50_000_000));
    client.send(Messages::new().query(&query).query("SELECT"));
    assert_eq!(tags(&client.ready()), "EZ");
    assert_eq!(tags(&client.ready()), "EZ");
    let grown = peak_memory(&stage.pooler) - before;
    assert!(grown < 8_000, "{grown} kB for a Query that is refused");
    occupant.run("ROLLBACK");
    client.run("SELECT 1");
}

/// A word that may be a command needs the whole text to be looked at, and it comes in hundreds of pieces.
#[test]
fn a_query_of_50_megabytes_with_a_word_of_commands() {
    let _alone = alone();
    let stage = Stage::new(1);
    let query = format!("SELECT length('listen {}')", "x".repeat(50_000_000));
    assert_eq!(stage.client().value(&query), "50000007");
    stage.assert_clean();
}

#[test]
fn copies_of_50_megabytes_pass_through_little_memory() {
    let _alone = alone();
    crate::stage::direct()
        .run("DROP TABLE IF EXISTS copied_much; CREATE UNLOGGED TABLE copied_much (a text)");
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("SELECT 1");
    let before = peak_memory(&stage.pooler);
    client.send(Messages::new().query("COPY copied_much FROM STDIN"));
    client.until(b'G');
    let line = format!("{}\n", "x".repeat(99_999));
    for _ in 0..500 {
        client.send(Messages::new().copy_data(line.as_bytes()));
    }
    client.send(Messages::new().copy_done());
    assert_eq!(tags(&client.ready()), "CZ");
    let out = client.query("COPY copied_much TO STDOUT");
    assert_eq!(
        out.iter().filter(|message| message.tag == b'd').count(),
        500
    );
    let grown = peak_memory(&stage.pooler) - before;
    assert!(grown < 8_000, "{grown} kB for a COPY of 50 MB");
    client.run("DROP TABLE copied_much");
}

/// A slow reader is not served from the pooler's memory.
#[test]
fn a_client_that_does_not_read_is_not_buffered_for() {
    let _alone = alone();
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("SELECT 1");
    let before = peak_memory(&stage.pooler);
    client.send(Messages::new().query("SELECT repeat('x', 10000) FROM generate_series(1, 10000)"));
    thread::sleep(std::time::Duration::from_millis(1500));
    let grown = peak_memory(&stage.pooler) - before;
    assert!(grown < 8_000, "{grown} kB for a client that does not read");
    let messages = client.ready();
    assert_eq!(
        messages
            .iter()
            .filter(|message| message.tag == b'D')
            .count(),
        10_000
    );
}

#[test]
fn large_messages_of_every_kind() {
    let large = "l".repeat(2_000_000);
    same_after(
        "CREATE TABLE IF NOT EXISTS large (a text); TRUNCATE large",
        |wire| {
            wire.query(&format!("SELECT length('{large}')"));
            wire.query(&format!("DO $$ BEGIN RAISE NOTICE '{large}'; END $$"));
            wire.query(&format!("DO $$ BEGIN RAISE EXCEPTION '{large}'; END $$"));
            wire.send(
                Messages::new()
                    .parse("s", &format!("SELECT length($1), length('{large}')"))
                    .bind("", "s", &[Some(&large)])
                    .execute("")
                    .sync(),
            );
            assert_eq!(tags(&wire.ready()), "12DCZ");
            wire.send(
                Messages::new()
                    .query("COPY large FROM STDIN")
                    .copy_data(format!("{large}\n").as_bytes())
                    .copy_done(),
            );
            wire.ready();
            wire.query("COPY large TO STDOUT");
        },
    );
}

/// What the pooler answers itself waits for the replies before it, and must not pile up.
#[test]
fn many_messages_behind_a_statement_that_takes_long() {
    let _alone = alone();
    let stage = Stage::new(1);
    let before = peak_memory(&stage.pooler);
    let mut client = stage.client();
    client.send(Messages::new().query("SELECT pg_sleep(100)"));
    let mut closes = Messages::new();
    for _ in 0..10_000 {
        closes = closes.close_statement("PGCAT_1");
    }
    let flood = thread::spawn(move || while client.try_send(&closes) {});
    thread::sleep(Duration::from_secs(4));
    let grown = peak_memory(&stage.pooler) - before;
    drop(stage);
    flood.join().unwrap();
    assert!(grown < 40_000, "{grown} kB more");
}

/// A batch need not end for its replies to be read.
#[test]
fn a_long_batch_without_sync() {
    same(|wire| {
        let mut batch = Messages::new();
        for _ in 0..5000 {
            batch = batch.statement("SELECT 1");
        }
        wire.send(batch.flush());
        for _ in 0..5000 {
            wire.until(b'C');
        }
        wire.send(Messages::new().sync());
        wire.ready();
    });
}

#[test]
fn statements_closed_in_a_batch_without_end() {
    let _alone = alone();
    let stage = Stage::new(1);
    let before = peak_memory(&stage.pooler);
    let mut client = stage.client();
    for n in 0..1500 {
        let name = format!("{n:050000}");
        client.send(
            Messages::new()
                .parse(&name, "SELECT 1")
                .close_statement(&name)
                .flush(),
        );
        client.until(b'3');
    }
    let grown = peak_memory(&stage.pooler) - before;
    assert!(grown < 40_000, "{grown} kB more");
    client.send(Messages::new().sync());
    client.ready();
}
