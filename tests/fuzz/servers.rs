//! Servers that break the protocol, in one pool, beside a pool whose server does not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use std::io::{ErrorKind, Read as _, Write as _};
use test_support::wire::{Messages, PROTOCOL_3_0, Wire, cancel, startup, tags};
use test_support::{Auth, Pooler, PoolerConfig, Postgres, Settings};

use crate::clients::assert_framed;
use crate::mutate::one_of;
use crate::run::cases;
use crate::scripted::{MORE, Manners, Scripted, UNASKED};

const TRUST: &str = "auth_type = \"trust\"";

fn pooler(server: &Scripted, pool_size: u32) -> Pooler {
    let config = PoolerConfig::for_server("127.0.0.1", server.port)
        .user_with("postgres", pool_size, TRUST)
        .general("connect_timeout = 5000");
    Pooler::start(env!("CARGO_BIN_EXE_pgcat"), &config)
}

fn client(pooler: &Pooler) -> Wire {
    Wire::connect(pooler.port(), "postgres", "postgres")
}

fn assert_served(wire: &mut Wire, sql: &str) {
    assert_eq!(wire.value(sql), sql);
    wire.send(Messages::new().statement(sql).describe_portal("").sync());
    assert_eq!(tags(&wire.ready()), "12DCTZ");
}

/// A login or an answer may be cut anywhere (PgBouncer 1446 was a login).
#[test]
fn a_server_that_sends_byte_by_byte() {
    let server = Scripted::start(Manners::Slow);
    let pooler = pooler(&server, 2);
    let mut wire = client(&pooler);
    assert_served(&mut wire, &format!("SELECT '{}'", "x".repeat(5000)));
}

/// Such as a pooler of another kind: it serves, and cannot cancel.
#[test]
fn a_server_without_a_key_for_cancel_requests() {
    let server = Scripted::start(Manners::Keyless);
    let pooler = pooler(&server, 1);
    let mut wire = client(&pooler);
    assert_served(&mut wire, "SELECT 1");
    cancel(pooler.port(), wire.key());
    assert_served(&mut wire, "SELECT 2");
    assert_served(&mut client(&pooler), "SELECT 3");
}

/// What comes behind the answer was not asked for: the connection goes to nobody else with it.
#[test]
fn what_nobody_asked_for_reaches_no_other_client() {
    for more in UNASKED {
        let server = Scripted::start(Manners::Extra(more));
        let pooler = pooler(&server, 1);
        for turn in 0..3 {
            let mut one = client(&pooler);
            one.send(Messages::new().query(&format!("SELECT 1, {MORE}")));
            let replies = one.replies();
            // Whether the first one is told what came before, and lives, is the pooler's choice.
            assert!(
                tags(&replies).starts_with("TDCZ") || tags(&replies) == "E",
                "{replies:?}"
            );
            let mut two = client(&pooler);
            let sql = format!("SELECT 'two', {turn}");
            let replies = two.query(&sql);
            assert_eq!(
                tags(&replies),
                "TDCZ",
                "{:?}",
                more.escape_ascii().to_string()
            );
            assert_eq!(replies[1].row(), [Some(sql)]);
            drop(one);
        }
        assert!(!pooler.log().contains("panicked"), "{}", pooler.log());
    }
}

/// Sends something to the bad pool, and reads for a moment.
fn ask(random: &mut StdRng, port: u16) {
    let login = startup(PROTOCOL_3_0, &[("user", "postgres"), ("database", "bad")]);
    let mut messages = Messages::new();
    for n in 0..random.random_range(1..5) {
        let sql = one_of(
            random,
            &["SELECT 1", "SET work_mem = '1MB'", "BEGIN", "", "LISTEN x"],
        );
        messages = match random.random_range(0..4) {
            0 => messages.query(sql),
            1 => messages.statement(sql).sync(),
            2 => messages
                .parse(&format!("s{n}"), sql)
                .describe_statement(&format!("s{n}"))
                .flush()
                .bind("", &format!("s{n}"), &[])
                .execute("")
                .sync(),
            _ => messages
                .statement(sql)
                .flush()
                .query(sql)
                .close_statement("")
                .sync(),
        };
    }
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connection");
    stream
        .write_all(&[&login, messages.as_ref()].concat())
        .expect("sent");
    stream
        .set_read_timeout(Some(Duration::from_millis(random.random_range(5..40))))
        .expect("a timeout");
    let mut received = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            // Silence, or a reset.
            Err(_) => break,
        }
    }
    assert_framed(&received);
}

#[test]
fn servers_that_send_anything() {
    let postgres = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    let bad = Scripted::start(Manners::Bad);
    let text = |port: u16| {
        let good = PoolerConfig::new(&postgres)
            .user_with("postgres", 2, TRUST)
            .general(
                "connect_timeout = 20000\nhealthcheck_delay = 100\nadmin_auth_type = \"trust\"",
            );
        format!(
            "{}\n[pools.bad]\npool_mode = \"transaction\"\n[pools.bad.users.0]\nusername = \"postgres\"\n\
             {TRUST}\npool_size = 3\nconnect_timeout = 300\n\
             [pools.bad.shards.0]\nservers = [[\"127.0.0.1\", {}, \"primary\"]]\ndatabase = \"bad\"\n",
            good.render(port),
            bad.port
        )
    };
    let pooler = Pooler::start_text(env!("CARGO_BIN_EXE_pgcat"), text);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let healthy = scope.spawn(|| {
            let mut wire = client(&pooler);
            let mut turn = 0;
            while !done.load(Ordering::Relaxed) {
                turn += 1;
                assert_eq!(wire.value(&format!("SELECT {turn}")), turn.to_string());
                wire.transcript.clear();
            }
        });
        let fuzzers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut turn = 0;
                    cases("servers", |random| {
                        bad.seed(random.random());
                        ask(random, pooler.port());
                        turn += 1;
                        if turn % 50 == 0 {
                            assert!(!pooler.log().contains("panicked"), "{}", pooler.log());
                        }
                    });
                })
            })
            .collect();
        let outcomes: Vec<_> = fuzzers.into_iter().map(|fuzzer| fuzzer.join()).collect();
        done.store(true, Ordering::Relaxed);
        healthy.join().expect("the other pool is not disturbed");
        assert!(outcomes.iter().all(Result::is_ok));
    });
    assert!(!pooler.log().contains("panicked"), "{}", pooler.log());
    // Once it behaves, it is used again, with all of the pool's connections.
    bad.mend();
    let deadline = Instant::now() + Duration::from_secs(20);
    let served = || {
        let mut wire = Wire::open(pooler.port());
        wire.send(startup(
            PROTOCOL_3_0,
            &[("user", "postgres"), ("database", "bad")],
        ));
        wire.try_greeted().is_ok() && tags(&wire.query_to_end("SELECT 1")) == "TDCZ"
    };
    let mut in_a_row = 0;
    while in_a_row < 10 {
        assert!(
            Instant::now() < deadline,
            "the pool does not recover: {}",
            pooler.log()
        );
        in_a_row = if served() { in_a_row + 1 } else { 0 };
    }
    let mut admin = Wire::connect(pooler.port(), "admin", "pgcat");
    // A connection that listened for a client who has left, or a login that hangs, is given up after a while.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let servers = admin.query("SHOW SERVERS");
        if tags(&servers).matches('D').count() <= 3 + 2 {
            break;
        }
        assert!(Instant::now() < deadline, "{servers:?}");
        thread::sleep(Duration::from_millis(50));
    }
}
