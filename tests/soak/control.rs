//! What happens to a pooler: its servers die, and its administrators are busy.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use test_support::wire::{Wire, tags};
use test_support::{Pooler, Postgres};

use crate::{Tally, config, count};

/// The pool in transaction mode has this size at first and at the end, and less in between.
pub const LARGEST: usize = 8;
const SMALLEST: usize = 3;

pub fn run(server: &Postgres, pooler: &Pooler, seed: u64, tally: &Tally, done: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(!seed);
    let mut direct = Wire::connect(server.port(), "postgres", "postgres");
    let mut admin = Wire::connect(pooler.port(), "admin", "pgbouncer");
    let reload = |admin: &mut Wire, size: usize| {
        fs::write(pooler.config_path(), config(server, pooler.port(), size)).expect("pgcat.toml");
        assert_eq!(tags(&admin.query("RELOAD")), "CZ");
    };
    while !done.load(Ordering::Relaxed) {
        match random.random_range(0..10) {
            0..4 => {
                direct.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'soak' \
                     ORDER BY random() LIMIT 1",
                );
                count(&tally.kills);
            }
            4 | 5 => {
                reload(&mut admin, random.random_range(SMALLEST..=LARGEST));
                count(&tally.reloads);
            }
            6 | 7 => {
                assert_eq!(tags(&admin.query("PAUSE transactions")), "CZ");
                thread::sleep(Duration::from_millis(random.random_range(0..100)));
                assert_eq!(tags(&admin.query("RESUME transactions")), "CZ");
                count(&tally.pauses);
            }
            8 => {
                assert_eq!(tags(&admin.query("RECONNECT transactions")), "CZ");
                count(&tally.reconnects);
            }
            _ => {
                for show in [
                    "CLIENTS",
                    "SERVERS",
                    "POOLS",
                    "STATS",
                    "LISTS",
                    "PREPARED_STATEMENTS",
                ] {
                    let messages = admin.query(&format!("SHOW {show}"));
                    assert!(
                        !tags(&messages).contains('E') || show == "PREPARED_STATEMENTS",
                        "{messages:?}"
                    );
                }
            }
        }
        admin.transcript.clear();
        direct.transcript.clear();
        thread::sleep(Duration::from_millis(random.random_range(20..300)));
    }
    reload(&mut admin, LARGEST);
}
