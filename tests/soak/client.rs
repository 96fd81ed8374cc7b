//! A client that knows what each of its answers has to be.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use test_support::wire::{Message, Messages, PROTOCOL_3_0, Wire, startup, tags};

use crate::{Tally, count};

/// The connection is gone, for a reason that was to be expected.
struct Lost;

/// Lives one connection after another.
pub fn live(port: u16, number: u64, seed: u64, tally: &Tally, done: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
    while !done.load(Ordering::Relaxed) {
        let Some(mut client) = Client::connect(port, number, &mut random) else {
            count(&tally.lost);
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        count(&tally.connections);
        for _ in 0..random.random_range(1..20) {
            if done.load(Ordering::Relaxed) {
                break;
            }
            if client.work(&mut random).is_err() {
                count(&tally.lost);
                break;
            }
            count(&tally.answers);
            if random.random_bool(0.1) {
                thread::sleep(Duration::from_millis(random.random_range(0..20)));
            }
        }
        client.leave(&mut random);
    }
}

struct Client {
    wire: Wire,
    /// This client's, and no other's.
    own: String,
    /// Of its setting, in kB.
    work_mem: u32,
    in_session: bool,
}

impl Client {
    fn connect(port: u16, number: u64, random: &mut StdRng) -> Option<Self> {
        // Few, because each has its server connection for itself.
        let in_session = number % 20 == 19;
        let own = format!("{number}/{}", random.random::<u32>());
        let work_mem = random.random_range(64..100_000);
        let mut wire = Wire::open(port);
        let parameters = [
            ("user", "soak"),
            (
                "database",
                if in_session {
                    "sessions"
                } else {
                    "transactions"
                },
            ),
            ("application_name", &own),
        ];
        if !wire.try_send(startup(PROTOCOL_3_0, &parameters)) {
            return None;
        }
        wire.try_greeted().ok()?;
        let mut client = Self {
            wire,
            own,
            work_mem,
            in_session,
        };
        let settings = format!("SET work_mem = '{work_mem}kB'");
        let statement = format!("SELECT '{}: ' || $1", client.own);
        let messages = Messages::new()
            .query(&settings)
            .parse("own", &statement)
            .sync();
        let replies = client.ask(&messages, 2).ok()?;
        assert_eq!(tags(&replies), "CZ1Z", "{replies:?}");
        if in_session {
            client
                .ask(&Messages::new().query("CREATE TEMP TABLE mine (a text)"), 1)
                .ok()?;
        }
        Some(client)
    }

    /// All replies up to so many ReadyForQuery.
    fn ask(&mut self, messages: &Messages, readies: usize) -> Result<Vec<Message>, Lost> {
        let mut replies = Vec::new();
        if self.wire.try_send(messages) {
            for _ in 0..readies {
                replies.extend(self.wire.replies());
            }
        }
        self.wire.transcript.clear();
        // What a killed server, and the pooler in its place, may say; nothing else may go wrong.
        for error in replies.iter().filter(|message| message.tag == b'E') {
            let code = error.field(b'C').unwrap_or_default();
            let expected = ["57P01", "58000", "22012", "22023", "25P02"];
            assert!(expected.contains(&&*code), "{error:?}");
        }
        let lost = |error: &Message| {
            error.tag == b'E'
                && error
                    .field(b'C')
                    .is_some_and(|code| code == "57P01" || code == "58000")
        };
        if replies.iter().any(lost) || tags(&replies).matches('Z').count() < readies {
            return Err(Lost);
        }
        Ok(replies)
    }

    /// The first row of a query.
    fn value(&mut self, sql: &str) -> Result<String, Lost> {
        let replies = self.ask(&Messages::new().query(sql), 1)?;
        let row = replies.iter().find(|message| message.tag == b'D');
        let row = row.unwrap_or_else(|| panic!("{sql}: {replies:?}"));
        Ok(row.row()[0].clone().unwrap_or_default())
    }

    fn work(&mut self, random: &mut StdRng) -> Result<(), Lost> {
        let token = random.random::<u32>().to_string();
        match random.random_range(0..9) {
            0 => assert_eq!(
                self.value(&format!("SELECT '{}' || {token}", self.own))?,
                format!("{}{token}", self.own)
            ),
            1 | 2 => {
                let bind = Messages::new()
                    .bind("", "own", &[Some(&token)])
                    .execute("")
                    .sync();
                let replies = self.ask(&bind, 1)?;
                assert_eq!(tags(&replies), "2DCZ", "{replies:?}");
                assert_eq!(replies[1].row()[0], Some(format!("{}: {token}", self.own)));
            }
            3 => {
                let sql = "SELECT current_setting('application_name') || ' ' || current_setting('work_mem')";
                let expected = Self::shown(self.work_mem);
                assert_eq!(self.value(sql)?, format!("{} {expected}", self.own));
            }
            4 => {
                self.work_mem = random.random_range(64..100_000);
                let setting = format!("SET work_mem = '{}kB'", self.work_mem);
                assert_eq!(tags(&self.ask(&Messages::new().query(&setting), 1)?), "CZ");
            }
            5 => self.transfer(random)?,
            6 => self.pipeline(&token)?,
            7 => self.objects(&token)?,
            _ => self.large(random)?,
        }
        Ok(())
    }

    /// As SHOW has it.
    fn shown(kilobytes: u32) -> String {
        if kilobytes.is_multiple_of(1024) {
            format!("{}MB", kilobytes / 1024)
        } else {
            format!("{kilobytes}kB")
        }
    }

    /// Moves money, in a transaction of several round trips.
    fn transfer(&mut self, random: &mut StdRng) -> Result<(), Lost> {
        let mut changes = [
            (random.random_range(1..=50), -3),
            (random.random_range(1..=50), 3),
        ];
        // In one order, so that there is no deadlock.
        changes.sort_unstable();
        assert_eq!(tags(&self.ask(&Messages::new().query("BEGIN"), 1)?), "CZ");
        for (account, amount) in changes {
            let sql =
                format!("UPDATE accounts SET balance = balance + {amount} WHERE id = {account}");
            assert_eq!(tags(&self.ask(&Messages::new().query(&sql), 1)?), "CZ");
        }
        let end = if random.random_bool(0.8) {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        assert_eq!(tags(&self.ask(&Messages::new().query(end), 1)?), "CZ");
        Ok(())
    }

    /// With an error in its middle.
    fn pipeline(&mut self, token: &str) -> Result<(), Lost> {
        let messages = Messages::new()
            .bind("", "own", &[Some(token)])
            .execute("")
            .sync()
            .statement("SELECT 1/0")
            .statement("SELECT 'skipped'")
            .sync()
            .parse("second", &format!("SELECT '{}' || $1", self.own))
            .bind("", "second", &[Some(token)])
            .execute("")
            .close_statement("second")
            .sync();
        let replies = self.ask(&messages, 3)?;
        assert_eq!(tags(&replies), "2DCZ1EZ12DC3Z", "{replies:?}");
        assert_eq!(replies[9].row()[0], Some(format!("{}{token}", self.own)));
        Ok(())
    }

    /// Temporary objects and locks: nobody else's are there, and one's own are.
    fn objects(&mut self, token: &str) -> Result<(), Lost> {
        if self.in_session {
            self.ask(
                &Messages::new().query(&format!("INSERT INTO mine VALUES ('{token}')")),
                1,
            )?;
            assert_eq!(
                self.value("SELECT a FROM mine ORDER BY ctid DESC LIMIT 1")?,
                token
            );
            return Ok(());
        }
        let sql = format!(
            "BEGIN; CREATE TEMP TABLE mine (a text) ON COMMIT DROP; INSERT INTO mine VALUES ('{token}')"
        );
        assert_eq!(tags(&self.ask(&Messages::new().query(&sql), 1)?), "CCCZ");
        assert_eq!(self.value("SELECT a FROM mine")?, *token);
        assert_eq!(tags(&self.ask(&Messages::new().query("COMMIT"), 1)?), "CZ");
        Ok(())
    }

    fn large(&mut self, random: &mut StdRng) -> Result<(), Lost> {
        let (size, rows) = (random.random_range(1..50_000), random.random_range(1..20));
        let sql = format!(
            "SELECT repeat('{}', {size}) FROM generate_series(1, {rows})",
            self.own
        );
        let replies = self.ask(&Messages::new().query(&sql), 1)?;
        let received = replies.iter().filter(|message| message.tag == b'D');
        assert_eq!(received.clone().count(), rows);
        for row in received {
            assert_eq!(row.body.len(), 6 + size * self.own.len());
        }
        Ok(())
    }

    /// In a way that gives the pooler something to clean up.
    fn leave(mut self, random: &mut StdRng) {
        let last = Messages::new()
            .query("BEGIN; UPDATE accounts SET balance = balance + 1000 WHERE id = 1")
            .statement("SELECT repeat('x', 100000)")
            .flush();
        match random.random_range(0..5) {
            // In the middle of it; what is unread resets the connection.
            0 => {
                let end = random.random_range(1..=last.as_ref().len());
                self.wire.try_send(&last.as_ref()[..end]);
            }
            1 => {
                self.wire.try_send(last);
                thread::sleep(Duration::from_millis(2));
            }
            2 => (),
            _ => {
                self.wire.try_send(Messages::new().terminate());
            }
        }
    }
}
