//! Clients that send anything, beside clients whose answers have to stay right.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use test_support::wire::{
    Messages, PROTOCOL_3_0, Wire, cancel_request, gss_request, ssl_request, startup, tags,
};
use test_support::{Auth, Pooler, PoolerConfig, Postgres, Settings};

use crate::mutate::{damage, message};
use crate::run::{cases, corpus};

const POOL: u32 = 3;
const FUZZERS: usize = 3;
const HEALTHY: usize = 3;

struct Stage {
    postgres: Postgres,
    pooler: Pooler,
}

impl Stage {
    fn new() -> Self {
        // More of the log than the errors of clients would be a gigabyte after an hour.
        let settings = Settings::auth(Auth::Trust).parameter("log_min_messages", "panic");
        let postgres = Postgres::start_with(15, &settings);
        Wire::connect(postgres.port(), "postgres", "postgres").run(
            "CREATE ROLE fuzz LOGIN; CREATE UNLOGGED TABLE fuzzed (a int); GRANT ALL ON fuzzed TO fuzz",
        );
        let config = PoolerConfig::new(&postgres)
            .user_with("fuzz", POOL, "auth_type = \"trust\"")
            .general("connect_timeout = 20000\nadmin_auth_type = \"trust\"")
            .pool("prepared_statements_cache_size = 3")
            .stream_tables();
        Self {
            pooler: Pooler::start(env!("CARGO_BIN_EXE_pgcat"), &config),
            postgres,
        }
    }

    fn client(&self) -> Wire {
        Wire::connect(self.pooler.port(), "fuzz", "postgres")
    }

    /// For the one who has to find out what became of the server connections.
    fn show(&self) {
        let mut admin = Wire::connect(self.pooler.port(), "admin", "pgcat");
        for command in ["SHOW POOLS", "SHOW CLIENTS", "SHOW SERVERS"] {
            show(&mut admin, command);
        }
        let mut direct = Wire::connect(self.postgres.port(), "postgres", "postgres");
        show(
            &mut direct,
            "SELECT pid, usename, state, wait_event, query_start, now(), left(query, 200) FROM pg_stat_activity \
             WHERE backend_type = 'client backend'",
        );
        let log = self.pooler.log();
        eprintln!("{}", &log[log.len().saturating_sub(8000)..]);
    }

    fn assert_alive(&self) {
        let log = self.pooler.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    /// Whatever was sent: all connections can be had, and nothing is left on them.
    fn assert_clean(&self) {
        let mut clients: Vec<Wire> = (0..POOL).map(|_| self.client()).collect();
        for client in &mut clients {
            let begun = client.query("BEGIN");
            if tags(&begun) != "CZ" {
                self.show();
                panic!("a server connection is not to be had: {begun:?}");
            }
            let left = client.value(
                "SELECT coalesce((SELECT string_agg(name, ' ') FROM pg_settings WHERE source = 'session' \
                   AND name NOT LIKE 'transaction%'), '') \
                 || (SELECT count(*) FROM pg_cursors WHERE name <> '') \
                 || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) \
                 || (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()) \
                 || (SELECT count(*) FROM pg_listening_channels()) \
                 || (SELECT count(*) FROM pg_prepared_statements WHERE from_sql) \
                 || current_user",
            );
            assert_eq!(left, "00000fuzz");
        }
        drop(clients);
        let deadline = Instant::now() + Duration::from_secs(15);
        let mut direct = Wire::connect(self.postgres.port(), "postgres", "postgres");
        // One may listen for those who do.
        while direct
            .value("SELECT count(*) FROM pg_stat_activity WHERE usename = 'fuzz'")
            .parse::<u32>()
            .expect("a count")
            > POOL + 1
        {
            assert!(Instant::now() < deadline, "server connections have leaked");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn show(wire: &mut Wire, query: &str) {
    eprintln!("{query}:");
    for reply in wire.query(query).iter().filter(|reply| reply.tag == b'D') {
        eprintln!("  {:?}", reply.row());
    }
}

/// Asks what only this client asks, by all that the pooler has to keep apart.
fn work(wire: &mut Wire, number: usize, turn: usize) {
    let own = format!("{number}/{turn}");
    assert_eq!(wire.value(&format!("SELECT '{own}'")), own);
    let bound = Messages::new()
        .bind("", "a", &[Some(&own)])
        .execute("")
        .sync();
    wire.send(bound);
    let replies = wire.ready();
    assert_eq!(tags(&replies), "2DCZ", "{replies:?}");
    assert_eq!(replies[1].row()[0], Some(format!("client {number}: {own}")));
    assert_eq!(wire.value("SHOW work_mem"), format!("{}kB", 200 + number));
    wire.run("BEGIN; SET LOCAL lock_timeout = 4711");
    assert_eq!(
        wire.value(&format!(
            "SELECT '{own}' || current_setting('lock_timeout')"
        )),
        format!("{own}4711ms")
    );
    wire.run("COMMIT");
    wire.transcript.clear();
}

fn healthy(stage: &Stage, number: usize, done: &AtomicBool) {
    let mut wire = stage.client();
    wire.run(&format!("SET work_mem = '{}kB'", 200 + number));
    wire.send(
        Messages::new()
            .parse("a", &format!("SELECT 'client {number}: ' || $1"))
            .sync(),
    );
    assert_eq!(tags(&wire.ready()), "1Z");
    for turn in 0.. {
        work(&mut wire, number, turn);
        if done.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Reads what comes until nothing comes for a while; `false` at the end of the connection.
fn read(stream: &mut TcpStream, received: &mut Vec<u8>, patience: Duration) -> bool {
    stream.set_read_timeout(Some(patience)).expect("a timeout");
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(error) => {
                return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            }
        }
    }
}

/// Whatever a client has sent, what it gets is messages.
pub fn assert_framed(mut received: &[u8]) {
    while let [tag, a, b, c, d, rest @ ..] = received {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        assert!(
            tag.is_ascii_graphic() && (4..1 << 30).contains(&length),
            "{:?}",
            received[..received.len().min(50)]
                .escape_ascii()
                .to_string()
        );
        received = rest.get(length - 4..).unwrap_or_default();
    }
}

/// Sends bytes in pieces, reads or does not, and leaves in one way or another.
fn send(random: &mut StdRng, stream: &mut TcpStream, mut bytes: &[u8]) -> Vec<u8> {
    let mut received = Vec::new();
    let whole = random.random_bool(0.5);
    while !bytes.is_empty() {
        let size = if whole {
            bytes.len()
        } else {
            random.random_range(1..=bytes.len().min(200))
        };
        if stream.write_all(&bytes[..size]).is_err() {
            break;
        }
        bytes = &bytes[size..];
        if random.random_bool(0.1) {
            read(stream, &mut received, Duration::from_millis(1));
        }
        if random.random_bool(0.02) {
            break;
        }
    }
    match random.random_range(0..6) {
        // With something unread, this resets the connection.
        0 | 1 => (),
        2 => {
            // It may be closed already.
            let _ = stream.write_all(Messages::new().terminate().as_ref());
        }
        3 => {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            read(stream, &mut received, Duration::from_millis(20));
        }
        _ => {
            read(stream, &mut received, Duration::from_millis(20));
        }
    }
    received
}

fn newcomer(random: &mut StdRng, port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connection");
    let parameters = [
        ("user", "fuzz"),
        (
            "database",
            ["postgres", "pgcat", "pgbouncer", "none"][random.random_range(0..4)],
        ),
        ("options", "-c work_mem=1MB"),
        ("application_name", "fuzzed"),
    ];
    let version = PROTOCOL_3_0 + [0, 0, 2, 9999][random.random_range(0..4)];
    let login = startup(version, &parameters[..random.random_range(0..=4)]);
    let mut bytes = match random.random_range(0..6) {
        0 => [ssl_request(), login].concat(),
        1 => [gss_request(), ssl_request(), login].concat(),
        2 => cancel_request(&[1; 8]),
        3 => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        _ => [
            &login,
            Messages::new()
                .query("SHOW VERSION; SHOW POOLS; SELECT 1")
                .as_ref(),
        ]
        .concat(),
    };
    if random.random_bool(0.7) {
        damage(random, &mut bytes);
    }
    send(random, &mut stream, &bytes);
}

fn client(random: &mut StdRng, stage: &Stage) {
    if random.random_bool(0.2) {
        return newcomer(random, stage.pooler.port());
    }
    let wire = stage.client();
    let mut messages = Messages::new();
    for _ in 0..random.random_range(1..14) {
        messages = messages.then(&message(random));
    }
    let mut bytes = messages.as_ref().to_vec();
    if random.random_bool(0.6) {
        damage(random, &mut bytes);
    }
    let received = send(random, &mut wire.sender(), &bytes);
    assert_framed(&received);
}

#[test]
fn clients_that_send_anything() {
    let stage = Stage::new();
    for (path, input) in corpus("clients") {
        println!("{}", path.display());
        let mut stream = stage.client().sender();
        // The pooler may well close it at once.
        let _ = stream.write_all(&input);
        let mut received = Vec::new();
        read(&mut stream, &mut received, Duration::from_millis(50));
        assert_framed(&received);
        stage.assert_alive();
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let healthy: Vec<_> = (0..HEALTHY)
            .map(|number| {
                let (stage, done) = (&stage, &done);
                scope.spawn(move || healthy(stage, number, done))
            })
            .collect();
        let fuzzers: Vec<_> = (0..FUZZERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut turn = 0;
                    cases("clients", |random| {
                        client(random, &stage);
                        turn += 1;
                        if turn % 50 == 0 {
                            stage.assert_alive();
                        }
                    });
                })
            })
            .collect();
        let outcomes: Vec<_> = fuzzers.into_iter().map(|fuzzer| fuzzer.join()).collect();
        done.store(true, Ordering::Relaxed);
        let undisturbed: Vec<_> = healthy.into_iter().map(|client| client.join()).collect();
        if undisturbed.iter().any(Result::is_err) {
            stage.show();
        }
        assert!(
            undisturbed.iter().all(Result::is_ok),
            "a healthy client is not disturbed"
        );
        assert!(outcomes.iter().all(Result::is_ok));
    });
    stage.assert_alive();
    stage.assert_clean();
}
