//! Random scripts, played directly and through a pooler on whose servers others work meanwhile: all
//! replies must be the same.
//!
//! `FUZZ_SCRIPTS` is the number of scripts, `FUZZ_SEED` the seed of the first. Without either, always the same 200.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use test_support::wire::{Message, Messages, Wire};
use test_support::{Auth, PoolerConfig, Postgres, Settings};

use crate::stage::start;

const END: &str = "the end of the script";

/// Statements without parameters. Nothing in their results differs from run to run.
const STATEMENTS: &[&str] = &[
    "SELECT 1",
    "SELECT 1 AS one, NULL AS nothing, 'text' AS some",
    "SELECT generate_series(1, 7) AS n",
    "SELECT repeat('x', 9000)",
    "SELECT 1/0",
    "SELECT * FROM no_such_table",
    "SELECT syntax error",
    "",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE s",
    "SELECT count(*) FROM fuzzed",
    "INSERT INTO fuzzed VALUES (1)",
    "DELETE FROM fuzzed",
    "SELECT * FROM fuzzed LIMIT 1",
    "INSERT INTO fuzzed VALUES (3) RETURNING *",
    "ALTER TABLE fuzzed ADD b int",
    "ALTER TABLE fuzzed DROP b",
    "SET work_mem = '1MB'",
    "SET LOCAL work_mem = '2MB'",
    "RESET work_mem",
    "SHOW work_mem",
    "SET application_name = 'it''s fuzzed'",
    "SET my.setting = 'custom'",
    // Once known to a session, PostgreSQL keeps such a setting, as '' after RESET.
    "SELECT nullif(current_setting('my.setting', true), '')",
    "DEALLOCATE ALL",
    "DISCARD ALL",
    "DO $$ BEGIN RAISE NOTICE 'told'; END $$",
    "COPY fuzzed TO STDOUT",
    "COPY (SELECT generate_series(1, 3)) TO STDOUT",
];

/// Statements with a parameter.
const PARAMETERISED: &[&str] = &[
    "SELECT $1::int + 1",
    "SELECT $1::text || '!', generate_series(1, 3)",
    "INSERT INTO fuzzed VALUES ($1)",
    "SELECT 10 / $1::int",
];

/// SQL that names statements of the protocol.
const NAMING: &[&str] = &[
    "DEALLOCATE a",
    "EXECUTE a",
    "EXECUTE b (1)",
    "SELECT 1; DEALLOCATE c; SELECT 2",
    "SELECT 1/0; DEALLOCATE b",
    "BEGIN; EXECUTE c; EXECUTE a (0)",
];

const NAMES: &[&str] = &["", "a", "b", "c"];

struct Script {
    seed: u64,
    random: StdRng,
    messages: Messages,
    /// For the one who has to find out why it failed.
    steps: Vec<String>,
}

impl Drop for Script {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("FUZZ_SEED={}: {:#?}", self.seed, self.steps);
        }
    }
}

impl Script {
    fn new(seed: u64) -> Self {
        let mut script = Self {
            seed,
            random: StdRng::seed_from_u64(seed),
            messages: Messages::new(),
            steps: Vec::new(),
        };
        for _ in 0..script.random.random_range(5..50) {
            script.step();
        }
        script.add("the end".to_owned(), |messages| {
            messages
                .sync()
                .query("ROLLBACK")
                .query(&format!("SELECT '{END}'"))
        });
        script
    }

    fn add(&mut self, step: String, extend: impl FnOnce(Messages) -> Messages) {
        self.messages = extend(std::mem::take(&mut self.messages));
        self.steps.push(step);
    }

    fn one_of(&mut self, list: &[&'static str]) -> &'static str {
        list[self.random.random_range(0..list.len())]
    }

    fn step(&mut self) {
        let name = self.one_of(NAMES);
        let portal = self.one_of(NAMES);
        match self.random.random_range(0..100) {
            0..20 => {
                let sql = self.one_of(STATEMENTS);
                self.add(format!("query {sql}"), |m| m.query(sql));
            }
            20..24 => {
                let sql = format!("{}; {}", self.one_of(STATEMENTS), self.one_of(STATEMENTS));
                self.add(format!("query {sql}"), |m| m.query(&sql));
            }
            24 => {
                let sql = self.one_of(NAMING);
                self.add(format!("query {sql}"), |m| m.query(sql));
            }
            25..36 => {
                let mut sql = self.one_of(STATEMENTS);
                if name.is_empty() && sql.contains(" *") {
                    // Parsed anew in a later transaction it has the columns of that time, where PostgreSQL would say that
                    // a cached plan must not change its result type.
                    sql = "SELECT a FROM fuzzed";
                }
                self.add(format!("parse {name:?}: {sql}"), |m| m.parse(name, sql));
            }
            36..44 => {
                let sql = self.one_of(PARAMETERISED);
                self.add(format!("parse {name:?}: {sql}"), |m| m.parse(name, sql));
            }
            44..54 => self.add(
                format!("bind {portal:?} to {name:?} without parameters"),
                |m| m.bind(portal, name, &[]),
            ),
            54..62 => {
                let value = self.one_of(&["0", "1", "2", "text"]);
                self.add(format!("bind {portal:?} to {name:?} with {value}"), |m| {
                    m.bind(portal, name, &[Some(value)])
                });
            }
            62..66 => self.add(format!("describe statement {name:?}"), |m| {
                m.describe_statement(name)
            }),
            66..70 => self.add(format!("describe portal {portal:?}"), |m| {
                m.describe_portal(portal)
            }),
            70..78 => {
                let rows = self.random.random_range(0..4);
                self.add(format!("execute {portal:?} for {rows} rows"), |m| {
                    m.execute_rows(portal, rows)
                });
            }
            78..80 => self.add(format!("close statement {name:?}"), |m| {
                m.close_statement(name)
            }),
            80..82 => self.add(format!("close portal {portal:?}"), |m| {
                m.close_portal(portal)
            }),
            82..94 => self.add("sync".to_owned(), Messages::sync),
            94..96 => self.add("flush".to_owned(), Messages::flush),
            _ => self.copy_in(),
        }
    }

    /// A whole COPY, with the Flush messages that the server ignores in it, and libpq's Sync before the
    /// data. (A Sync behind bad data is ignored or answered, depending on which the server reads first.)
    fn copy_in(&mut self) {
        let copy = "COPY fuzzed FROM STDIN";
        if self.random.random_bool(0.5) {
            self.add(format!("query {copy}"), |m| m.query(copy));
        } else {
            self.add(format!("statement {copy}"), |m| m.statement(copy));
            if self.random.random_bool(0.5) {
                self.add("sync in the copy".to_owned(), Messages::sync);
            }
        }
        for _ in 0..self.random.random_range(0..4) {
            match self.random.random_range(0..6) {
                0 | 1 => self.add("flush in the copy".to_owned(), Messages::flush),
                2 => self.add("bad copy data".to_owned(), |m| m.copy_data(b"bad\n")),
                _ => self.add("copy data".to_owned(), |m| m.copy_data(b"5\n6\n")),
            }
        }
        if self.random.random_bool(0.8) {
            self.add("copy done".to_owned(), Messages::copy_done);
        } else {
            self.add("copy fail".to_owned(), |m| m.copy_fail("enough"));
        }
    }

    /// Plays it in pieces of random sizes; returns the replies.
    fn play(&mut self, reset: &mut Wire, port: u16) -> Vec<Message> {
        reset.run("DELETE FROM fuzzed; ALTER TABLE fuzzed DROP IF EXISTS b");
        let mut wire = Wire::connect(port, "postgres", "postgres");
        let mut rest = self.messages.as_ref();
        while !rest.is_empty() {
            let size = self.random.random_range(1..=400).min(rest.len());
            let (piece, tail) = rest.split_at(size);
            if !wire.try_send(piece) {
                break;
            }
            rest = tail;
        }
        loop {
            let replies = wire.replies();
            if replies.is_empty() || replies.iter().any(is_end) {
                wire.transcript.iter_mut().for_each(mask);
                return settled(wire.transcript);
            }
        }
    }
}

fn is_end(message: &Message) -> bool {
    message.tag == b'D' && message.body.ends_with(END.as_bytes())
}

/// PostgreSQL 15 loses track of a savepoint in an implicit transaction that a Parse has begun, and says so.
fn is_confused(message: &Message) -> bool {
    message.tag == b'N'
        && message
            .field(b'M')
            .is_some_and(|text| text.contains("AbortSubTransaction while in"))
}

/// The replies with what has become of each setting at the end of a Query or batch, in the place of each change: one that is
/// taken back before its end is not reported, and the pooler runs a text that names statements of the protocol in pieces,
/// each with an end of its own.
fn settled(replies: Vec<Message>) -> Vec<Message> {
    let mut told = BTreeMap::from([(b"application_name".to_vec(), Vec::new())]);
    let mut changed = told.clone();
    let mut kept = Vec::new();
    for reply in replies {
        if reply.tag == b'S' {
            let mut fields = reply.body.split(|&byte| byte == 0).map(<[u8]>::to_vec);
            let (name, value) = (fields.next(), fields.next());
            changed.insert(name.expect("a name"), value.expect("a value"));
            continue;
        }
        if reply.tag == b'Z' {
            for (name, value) in &changed {
                if told.get(name) != Some(value) {
                    let body = [&name[..], &[0], value, &[0]].concat();
                    kept.push(Message { tag: b'S', body });
                }
            }
            told.clone_from(&changed);
        }
        kept.push(reply);
    }
    kept
}

/// What may differ. Of a column, its number in a table that has lost others; of an error: of two names for one text the pooler may tell the wrong one (but one of
/// the client's), and where in the server's code a failed transaction is noticed depends on whether a
/// statement had to be parsed there again.
fn mask(message: &mut Message) {
    if message.tag == b'T' {
        let mut at = 2;
        while at < message.body.len() {
            let name = message.body[at..].iter().position(|&byte| byte == 0);
            at += name.expect("a name") + 1;
            message.body[at + 4..at + 6].fill(0);
            at += 18;
        }
    }
    if message.tag != b'E' {
        return;
    }
    let prefix = b"prepared statement \"";
    let fields = message.body.split(|&byte| byte == 0);
    let kept = fields.filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')));
    let mut body = kept.collect::<Vec<_>>().join(&0);
    let found = body
        .windows(prefix.len())
        .position(|window| window == prefix);
    if let Some(at) = found {
        let name = at + prefix.len();
        if NAMES.contains(&str::from_utf8(&body[name..=name]).unwrap_or_default()) {
            body[name] = b'?';
        }
    }
    message.body = body;
}

/// Clients with the same names for other statements, and other settings.
fn others(port: u16, done: &Arc<AtomicBool>) -> Vec<thread::JoinHandle<()>> {
    (0..2)
        .map(|n| {
            let done = done.clone();
            thread::spawn(move || {
                let mut wire = Wire::connect(port, "postgres", "postgres");
                wire.run(&format!("SET work_mem = '{}kB'", 100 + n));
                wire.send(Messages::new().parse("a", &format!("SELECT {n}")).sync());
                wire.ready();
                while !done.load(Ordering::Relaxed) {
                    wire.send(Messages::new().bind("", "a", &[]).execute("").sync());
                    let replies = wire.ready();
                    assert_eq!(replies[1].row(), [Some(n.to_string())], "{replies:?}");
                    assert_eq!(wire.value("SHOW work_mem"), format!("{}kB", 100 + n));
                }
            })
        })
        .collect()
}

#[test]
fn random_scripts() {
    let from_environment = |name| -> Option<u64> {
        std::env::var(name)
            .ok()
            .map(|value| value.parse().expect(name))
    };
    let wanted = from_environment("FUZZ_SCRIPTS");
    let scripts = wanted.unwrap_or(200);
    let first = from_environment("FUZZ_SEED").unwrap_or_else(|| match wanted {
        Some(_) => rand::random_range(1_000..1_000_000),
        None => 1,
    });
    // Its own, because PostgreSQL 15 does not survive every script: about one in 5000 is a segmentation
    // fault there, with and without a pooler.
    let postgres = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    let mut reset = Wire::connect(postgres.port(), "postgres", "postgres");
    reset.run("CREATE TABLE fuzzed (a int)");
    let config = PoolerConfig::new(&postgres)
        .user_with("postgres", 2, "auth_type = \"trust\"")
        .general("connect_timeout = 15000")
        .pool("prepared_statements_cache_size = 3");
    let pooler = start(&config);
    let done = Arc::new(AtomicBool::new(false));
    let others = others(pooler.port(), &done);
    for seed in first..first + scripts {
        let mut script = Script::new(seed);
        let expected = script.play(&mut reset, postgres.port());
        if !expected.iter().any(is_end) {
            eprintln!("FUZZ_SEED={seed} ends a connection, or the server; no more scripts");
            return;
        }
        if expected.iter().any(is_confused) {
            continue;
        }
        let replies = script.play(&mut reset, pooler.port());
        if replies != expected {
            let index = expected
                .iter()
                .zip(&replies)
                .take_while(|(a, b)| a == b)
                .count();
            panic!(
                "message {index} of {} is {:?} instead of {:?}\nreplies: {replies:#?}",
                expected.len(),
                replies.get(index),
                expected.get(index),
            );
        }
    }
    done.store(true, Ordering::Relaxed);
    for other in others {
        other.join().expect("the others are not disturbed");
    }
}
