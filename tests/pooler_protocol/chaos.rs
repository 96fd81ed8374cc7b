//! Everything at once: clients that work, fail, cancel and vanish, and servers that are killed.
//! Every answer must be the asker's own, and money is neither made nor lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use test_support::PoolerConfig;
use test_support::wire::{Message, Messages, Wire, cancel, tags};

use crate::stage::{direct, eventually, server, start};

const CLIENTS: u64 = 12;
const POOL: u32 = 4;
const LENGTH: Duration = Duration::from_secs(6);

/// A client that takes a new connection when it has lost one.
struct Worker {
    port: u16,
    random: StdRng,
    wire: Option<Wire>,
    number: u64,
}

impl Worker {
    /// The client's connection, with its own statement and setting.
    fn wire(&mut self) -> Option<&mut Wire> {
        if self.wire.is_none() {
            let mut wire = Wire::open(self.port);
            let name = format!("client {}", self.number);
            let parameters = [
                ("user", "chaos"),
                ("database", "postgres"),
                ("application_name", &name),
            ];
            wire.send(test_support::wire::startup(
                test_support::wire::PROTOCOL_3_0,
                &parameters,
            ));
            // A pooler that has just lost a server may refuse.
            wire.try_greeted().ok()?;
            wire.try_send(
                Messages::new()
                    .parse("own", &format!("SELECT {} + $1::int", self.number * 1000))
                    .sync(),
            );
            if tags(&wire.replies()) != "1Z" {
                return None;
            }
            self.wire = Some(wire);
        }
        self.wire.as_mut()
    }

    /// The replies up to `readies` times ReadyForQuery; `None` if the connection is lost.
    fn ask(&mut self, messages: &Messages, readies: usize) -> Option<Vec<Message>> {
        let wire = self.wire.as_mut()?;
        let mut replies = Vec::new();
        if wire.try_send(messages) {
            for _ in 0..readies {
                replies.extend(wire.replies());
            }
        }
        wire.transcript.clear();
        if tags(&replies).matches('Z').count() < readies {
            self.wire = None;
            return None;
        }
        Some(replies)
    }

    /// Asks something only this client asks; any row must be its own.
    fn step(&mut self) -> bool {
        if self.wire().is_none() {
            thread::sleep(Duration::from_millis(5));
            return false;
        }
        let number = self.number;
        let token = self.random.random_range(0..1000_u64);
        let own = format!("{number}/{token}");
        let row = |messages: &Messages, worker: &mut Self, readies, expected: &str| -> bool {
            let Some(replies) = worker.ask(messages, readies) else {
                return false;
            };
            let rows: Vec<&Message> = replies.iter().filter(|m| m.tag == b'D').collect();
            for row in &rows {
                assert_eq!(
                    row.row()[0].as_deref(),
                    Some(expected),
                    "another's answer: {replies:?}"
                );
            }
            !rows.is_empty()
        };
        match self.random.random_range(0..10) {
            0 | 1 => row(
                &Messages::new().query(&format!("SELECT '{own}'")),
                self,
                1,
                &own,
            ),
            2 | 3 => {
                let messages = Messages::new()
                    .bind("", "own", &[Some(&token.to_string())])
                    .execute("")
                    .sync();
                row(&messages, self, 1, &(number * 1000 + token).to_string())
            }
            4 => {
                let name = format!("client {number}");
                let messages = Messages::new().query("SELECT current_setting('application_name')");
                row(&messages, self, 1, &name)
            }
            5 => {
                // A pipeline with an error in its middle.
                let messages = Messages::new()
                    .statement(&format!("SELECT '{own}'"))
                    .sync()
                    .statement("SELECT 1/0")
                    .statement("SELECT 'skipped'")
                    .sync()
                    .statement(&format!("SELECT '{own}'"))
                    .sync();
                row(&messages, self, 3, &own)
            }
            6 | 7 => self.transfer(),
            8 => {
                // Killed by itself, perhaps too late.
                let wire = self.wire.as_mut().expect("connected");
                let key = wire.key().to_vec();
                if !wire.try_send(
                    Messages::new().query(&format!("SELECT '{own}' FROM pg_sleep(0.002)")),
                ) {
                    self.wire = None;
                    return false;
                }
                cancel(self.port, &key);
                row(&Messages::new(), self, 1, &own)
            }
            _ => {
                // Gone in the middle of something.
                let wire = self.wire.as_mut().expect("connected");
                let messages = Messages::new()
                    .query("BEGIN; UPDATE accounts SET balance = balance + 1000000 WHERE id = 1")
                    .statement("UPDATE accounts SET balance = balance - 7")
                    .query("SELECT pg_sleep(0.01)");
                let end = self.random.random_range(1..messages.as_ref().len());
                wire.try_send(&messages.as_ref()[..end]);
                self.wire = None;
                false
            }
        }
    }

    /// Moves money, in a transaction of several round trips.
    fn transfer(&mut self) -> bool {
        let (from, to) = (
            self.random.random_range(1..=20),
            self.random.random_range(1..=20),
        );
        if self.ask(&Messages::new().query("BEGIN"), 1).is_none() {
            return false;
        }
        // In one order, so that there is no deadlock.
        let mut changes = [(from, -5), (to, 5)];
        changes.sort_unstable();
        for (account, amount) in changes {
            let update =
                format!("UPDATE accounts SET balance = balance + {amount} WHERE id = {account}");
            let Some(replies) = self.ask(&Messages::new().query(&update), 1) else {
                return false;
            };
            if tags(&replies) != "CZ" {
                // Never half of it.
                self.ask(&Messages::new().query("ROLLBACK"), 1);
                return false;
            }
        }
        self.ask(&Messages::new().query("COMMIT"), 1).is_some()
    }
}

#[test]
fn clients_and_servers_that_fail_at_random() {
    direct()
        .run("DO $$ BEGIN CREATE ROLE chaos LOGIN; EXCEPTION WHEN duplicate_object THEN END $$");
    direct().run(
        "DROP TABLE IF EXISTS accounts; CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
         INSERT INTO accounts SELECT n, 1000 FROM generate_series(1, 20) n; GRANT ALL ON accounts TO chaos",
    );
    let config = PoolerConfig::new(server())
        .user_with("chaos", POOL, "auth_type = \"trust\"")
        .general("connect_timeout = 20000");
    let pooler = start(&config);
    let seed = rand::random_range(0..1_000_000);
    println!("seed {seed}");
    let answered = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (answered, done) = (answered.clone(), done.clone());
            let port = pooler.port();
            thread::spawn(move || {
                let random = StdRng::seed_from_u64(seed + number);
                let mut worker = Worker {
                    port,
                    random,
                    wire: None,
                    number,
                };
                while !done.load(Ordering::Relaxed) {
                    if worker.step() {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let mut killer = direct();
    let end = Instant::now() + LENGTH;
    while Instant::now() < end {
        killer.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'chaos' ORDER BY random() LIMIT 1");
        let open: u32 = killer
            .value("SELECT count(*) FROM pg_stat_activity WHERE usename = 'chaos'")
            .parse()
            .expect("a count");
        // One more for each that is on its way out.
        assert!(open <= POOL * 2, "{open} server connections");
        thread::sleep(Duration::from_millis(60));
    }
    done.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().expect("a worker");
    }
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered > 300, "only {answered} answers");
    eventually("no transaction is left open", || {
        direct().value(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'chaos' AND state <> 'idle'",
        ) == "0"
    });
    assert_eq!(direct().value("SELECT sum(balance) FROM accounts"), "20000");
    // All servers of the pool can still be had.
    let mut clients: Vec<Wire> = (0..POOL)
        .map(|_| Wire::connect(pooler.port(), "chaos", "postgres"))
        .collect();
    for client in &mut clients {
        client.run("BEGIN");
    }
    assert!(!pooler.log().contains("panicked"), "{}", pooler.log());
}
