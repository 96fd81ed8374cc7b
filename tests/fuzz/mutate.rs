//! Inputs from what is valid: messages by a grammar, and changes to them.

use rand::RngExt;
use rand::rngs::StdRng;
use test_support::wire::Messages;

pub fn one_of<'a, T: ?Sized>(random: &mut StdRng, list: &[&'a T]) -> &'a T {
    list[random.random_range(0..list.len())]
}

const NAMES: &[&str] = &["", "a", "b", "PGCAT_1", "\u{e9}\"'\\"];

/// Nothing in them harms the others, whatever becomes of them.
const SQL: &[&str] = &[
    "SELECT 1",
    "SELECT $1::text",
    "SELECT repeat('x', 20000)",
    "SELECT generate_series(1, 50)",
    "SELECT 1/0",
    "SELECT 1; SELECT 2; BEGIN",
    "",
    ";",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "SET work_mem = '3MB'",
    "SET LOCAL statement_timeout = 1",
    "SET statement_timeout = '40ms'",
    "SELECT set_config('my.fuzz', 'fuzzed', false)",
    "SET my.\"odd name\" = 'x'",
    "RESET ALL",
    "DISCARD ALL",
    "DEALLOCATE a",
    "DEALLOCATE ALL",
    "PREPARE b AS SELECT 5",
    "LISTEN fuzzed",
    "NOTIFY fuzzed, 'told'",
    "UNLISTEN *",
    "CREATE TEMP TABLE fuzzed_temp (a int)",
    "SELECT pg_advisory_lock_shared(5)",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "COPY fuzzed FROM STDIN",
    "COPY fuzzed TO STDOUT",
    "COPY (SELECT generate_series(1, 2000)) TO STDOUT",
    "SELECT pg_sleep(0.01)",
    "SET SHARD TO 0",
    "SHOW STREAM TABLES",
    "DO $$ BEGIN RAISE NOTICE 'noticed'; END $$",
];

/// One message of a client that knows the protocol.
pub fn message(random: &mut StdRng) -> Messages {
    let (name, portal) = (one_of(random, NAMES), one_of(random, NAMES));
    let sql = one_of(random, SQL);
    let messages = Messages::new();
    match random.random_range(0..24) {
        0..6 => messages.query(sql),
        6..9 => messages.parse(name, sql),
        9 => messages.parse_typed(name, sql, &[23, 0, 4_000_000_000]),
        10 | 11 => messages.bind(portal, name, &[]),
        12 => messages.bind(portal, name, &[Some("a value"), None]),
        13 => messages.describe_statement(name),
        14 => messages.describe_portal(portal),
        15 => messages.execute(portal),
        16 => messages.execute_rows(portal, random.random_range(0..5)),
        17 => messages.close_statement(name).close_portal(portal),
        18 => messages.statement(sql),
        19 => messages.flush(),
        20 => messages.copy_data(b"1\n2\n").copy_done(),
        21 => messages.message(b'F', &[0, 0, 0, 177, 0, 0, 0, 0, 0, 0]),
        _ => messages.sync(),
    }
}

/// Bytes at which parsers go wrong.
const INTERESTING: &[&[u8]] = &[
    &[0],
    &[0xff],
    &[0; 4],
    &[0, 0, 0, 3],
    &[0, 0, 0, 4],
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x80, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0xff],
    &[0x3f, 0xff, 0xff, 0xff],
    &[0, 3, 0, 0],
    b"\0\0",
    b"'",
    b"\"",
    b"$$",
    b"/*",
    b"--",
    b"\\",
    b"E'",
    b";",
    "\u{e9}".as_bytes(),
];

/// Changes some bytes, wherever they are.
pub fn damage(random: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(1..5) {
        if bytes.is_empty() {
            return;
        }
        let at = random.random_range(0..bytes.len());
        let end = random.random_range(at..=bytes.len().min(at + 16));
        match random.random_range(0..7) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let insert = one_of(random, INTERESTING);
                bytes.splice(at..at, insert.iter().copied());
            }
            5 => {
                let value = one_of(random, INTERESTING);
                let end = bytes.len().min(at + value.len());
                bytes.splice(at..end, value.iter().copied());
            }
            _ => bytes.truncate(at),
        }
    }
}
