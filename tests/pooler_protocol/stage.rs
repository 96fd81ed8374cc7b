//! What the tests are played on: one server for all, a pooler for each.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use test_support::wire::{Messages, Wire, sqlstate};
use test_support::{Auth, Pooler, PoolerConfig, Postgres, Settings};

/// PostgreSQL 15 that trusts everybody. Ends with the process, by its watchdog.
pub fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        Postgres::start_with(
            15,
            &Settings::auth(Auth::Trust).parameter("max_connections", "400"),
        )
    })
}

/// A direct connection.
pub fn direct() -> Wire {
    Wire::connect(server().port(), "postgres", "postgres")
}

/// A pooler with a pool `postgres` for the user `postgres`.
pub struct Stage {
    pub pooler: Pooler,
}

impl Stage {
    pub fn new(pool_size: u32) -> Self {
        // The default is a second, which a loaded machine may need for a connection.
        Self::with(pool_size, |config| {
            config.general("connect_timeout = 15000")
        })
    }

    pub fn with(pool_size: u32, configure: impl Fn(PoolerConfig) -> PoolerConfig) -> Self {
        let config =
            PoolerConfig::new(server()).user_with("postgres", pool_size, "auth_type = \"trust\"");
        Self {
            pooler: start(&configure(config)),
        }
    }

    pub fn client(&self) -> Wire {
        Wire::connect(self.pooler.port(), "postgres", "postgres")
    }

    /// A client that holds a server connection in an open transaction.
    pub fn occupant(&self) -> Wire {
        let mut client = self.client();
        client.run("BEGIN");
        client
    }

    /// Asserts that the next client finds the server as a fresh connection would be. Only with a pool
    /// of one it is known which server connection that is.
    pub fn assert_clean(&self) {
        let mut next = self.client();
        let status = next.query("SELECT 1");
        assert_eq!(
            status.last().map(|ready| ready.body.clone()),
            Some(b"I".to_vec()),
            "{status:?}"
        );
        // What the pooler itself sets for a client is what the client asked for.
        let set = next.value(
            "SELECT coalesce(string_agg(name || '=' || setting, ', '), '') FROM pg_settings \
             WHERE source = 'session' AND name NOT LIKE 'transaction%'",
        );
        assert_eq!(set, "", "settings left behind");
        let left = next.value(
            "SELECT (SELECT count(*) FROM pg_cursors WHERE name <> '') \
             || ' cursors, ' || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) \
             || ' advisory locks, ' || (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()) \
             || ' temporary relations, ' || (SELECT count(*) FROM pg_listening_channels()) \
             || ' channels, ' || (SELECT count(*) FROM pg_prepared_statements WHERE from_sql) \
             || ' SQL statements, ' || current_user || ', ' || session_user",
        );
        assert_eq!(
            left,
            "0 cursors, 0 advisory locks, 0 temporary relations, 0 channels, 0 SQL statements, postgres, postgres"
        );
        // Statements of other clients are not this one's.
        for name in ["s", "s1", "s2"] {
            next.send(Messages::new().describe_statement(name).sync());
            assert_eq!(sqlstate(&next.ready()), "26000");
        }
    }
}

pub fn start(config: &PoolerConfig) -> Pooler {
    Pooler::start(env!("CARGO_BIN_EXE_pgcat"), config)
}

/// Plays a script directly and through a pooler with a single server connection: all replies must
/// be the same, and the server clean afterwards.
pub fn same(script: impl Fn(&mut Wire)) {
    same_after("", script);
}

/// As [`same`]; `setup` is run on a connection of its own before each of the two.
pub fn same_after(setup: &str, script: impl Fn(&mut Wire)) {
    let stage = Stage::new(1);
    let play = |port| {
        if !setup.is_empty() {
            direct().run(setup);
        }
        let mut wire = Wire::connect(port, "postgres", "postgres");
        script(&mut wire);
        for message in &mut wire.transcript {
            if message.tag == b'A' {
                // The notifying server process.
                message.body[..4].fill(0);
            }
        }
        wire.transcript
    };
    let expected = play(server().port());
    let transcript = play(stage.pooler.port());
    for (index, message) in expected.iter().enumerate() {
        assert_eq!(
            transcript.get(index),
            Some(message),
            "message {index}; through the pooler: {transcript:#?}"
        );
    }
    assert_eq!(transcript.len(), expected.len(), "{transcript:#?}");
    stage.assert_clean();
}

/// Waits until a condition holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 15 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a backend is busy with a statement that begins like this.
pub fn is_running(statement: &str) -> bool {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() \
         AND starts_with(query, '{statement}')"
    );
    direct().value(&sql) != "0"
}

/// Largest resident size so far, in kB.
pub fn peak_memory(pooler: &Pooler) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pooler.pid())).expect("status");
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .expect("VmHWM")
}

/// For tests that measure time or memory: one at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What a server says that has done what it was asked.
pub const DONE: &[u8] = b"C\0\0\0\x0dSELECT 0\0Z\0\0\0\x05I";

/// A pooler with a pool of one in front of a server of our own making, which lets everybody in and answers by `answer`
/// whatever comes at once. It ends with the process.
pub fn scripted(answer: fn(&mut TcpStream, &[u8])) -> Pooler {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                // The startup message, or a TLS request, which is refused.
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if n == 8 {
                        let _ = stream.write_all(b"N");
                        continue;
                    }
                    break;
                }
                let greeting = Messages::new()
                    .message(b'R', &[0; 4])
                    .message(b'S', b"server_version\x0015.0\0")
                    .message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2])
                    .message(b'Z', b"I");
                let _ = stream.write_all(greeting.as_ref());
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    answer(&mut stream, &buffer[..n]);
                }
            });
        }
    });
    let config = PoolerConfig::for_server("127.0.0.1", port)
        .user_with("postgres", 1, "auth_type = \"trust\"")
        .general("validate_config = false\nadmin_auth_type = \"trust\"");
    start(&config)
}

/// Has ten megabytes sent and twice as many received at the same time: a pooler that stops reading a server while it writes to
/// it would wait for ever.
pub fn ten_megabytes_each_way(client: &mut Wire) {
    let mut pipeline = Messages::new().parse("s", "SELECT $1::text || $1::text");
    let value = "v".repeat(10_000);
    for _ in 0..1000 {
        pipeline = pipeline.bind("", "s", &[Some(&value)]).execute("");
    }
    let pipeline = pipeline.sync();
    let mut sender = client.sender();
    let sending = thread::spawn(move || sender.write_all(pipeline.as_ref()).expect("sent"));
    let messages = client.ready();
    sending.join().expect("the sender");
    let rows = messages.iter().filter(|message| message.tag == b'D');
    let bytes: usize = rows.map(|row| row.body.len()).sum();
    assert_eq!(bytes, 1000 * (20_000 + 6));
}
