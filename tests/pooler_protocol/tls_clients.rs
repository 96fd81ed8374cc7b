//! TLS between clients and the pooler.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use test_support::wire::{
    Messages, PROTOCOL_3_0, Wire, cancel_request, sqlstate, ssl_request, startup,
};
use test_support::{Authority, Certificate, Pooler, PoolerConfig, Psql};

use crate::stage::{eventually, is_running, server, start};

/// A pooler with a certificate for `localhost`, and who signed it.
struct Encrypted {
    authority: Authority,
    certificate: Certificate,
    pooler: Pooler,
}

impl Encrypted {
    fn with(lines: impl Fn(&Authority) -> String) -> Self {
        Self::for_user("auth_type = \"scram-sha-256\"", lines)
    }

    fn for_user(user: &str, lines: impl Fn(&Authority) -> String) -> Self {
        let authority = Authority::new();
        let certificate = authority.issue("localhost", &["localhost"]);
        let config = PoolerConfig::new(server())
            .general(&format!(
                "tls_certificate = {:?}\ntls_private_key = {:?}",
                certificate.certificate, certificate.key
            ))
            .general(&lines(&authority))
            .user_with("postgres", 2, user);
        Self {
            pooler: start(&config),
            authority,
            certificate,
        }
    }

    fn new() -> Self {
        Self::with(|_| String::new())
    }

    fn psql(&self, mode: &str) -> Psql {
        self.psql_at("localhost", mode)
    }

    fn psql_at(&self, host: &str, mode: &str) -> Psql {
        Psql::new(host, self.pooler.port(), "postgres", "postgres")
            .variable("PGSSLMODE", mode)
            .variable("PGSSLROOTCERT", self.authority.file().display().to_string())
    }

    /// A handshake of our own, before or after SSLRequest.
    fn handshake(&self, stream: TcpStream, alpn: &[&[u8]]) -> Stream {
        let mut roots = RootCertStore::empty();
        let ca = rustls::pki_types::CertificateDer::from_pem_file(self.authority.file());
        roots.add(ca.expect("the CA")).expect("a root");
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        StreamOwned::new(connection, stream)
    }

    /// A client that has logged in, where everybody is trusted.
    fn client(&self) -> Stream {
        let mut socket = self.socket();
        socket.write_all(&ssl_request()).expect("SSLRequest");
        socket.read_exact(&mut [0]).expect("an answer");
        let mut stream = self.handshake(socket, &[]);
        let startup = startup(PROTOCOL_3_0, USER);
        stream.write_all(&startup).expect("a startup message");
        until_ready(&mut stream);
        stream
    }

    fn socket(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.pooler.port())).expect("connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("read timeout");
        stream
    }
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

const USER: &[(&str, &str)] = &[("user", "postgres"), ("database", "postgres")];

/// What comes up to ReadyForQuery.
fn until_ready(stream: &mut Stream) -> Vec<u8> {
    let mut answer = Vec::new();
    let ready = |answer: &[u8]| {
        let end = answer.len().saturating_sub(6);
        answer[end..].starts_with(b"Z\0\0\0\x05")
    };
    while !ready(&answer) {
        let mut chunk = [0; 8192];
        let n = stream.read(&mut chunk).expect("more");
        assert!(n > 0, "the end");
        answer.extend_from_slice(&chunk[..n]);
    }
    answer
}

/// Sends a startup message and returns the type of the first answer; `None`: the connection ended.
fn first_answer(mut stream: Stream) -> Option<u8> {
    stream.write_all(&startup(PROTOCOL_3_0, USER)).ok()?;
    let mut tag = [0];
    stream.read_exact(&mut tag).ok()?;
    Some(tag[0])
}

const QUERY: &[&str] = &["SELECT repeat('x', 300000)", "SELECT 6 * 7"];

fn assert_works(psql: &Psql) {
    let output = psql.run(QUERY);
    assert_eq!(
        output.len(),
        300_001 + 3,
        "{}",
        &output[output.len() - 20..]
    );
    assert!(output.ends_with("42\n"));
}

#[test]
fn every_mode_of_libpq() {
    let stage = Encrypted::new();
    for mode in [
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
    ] {
        assert_works(&stage.psql(mode));
    }
    // The name is not the certificate's.
    let output = stage.psql_at("127.0.0.1", "verify-full").try_run(QUERY);
    assert!(
        output.stderr.contains("does not match host name"),
        "{}",
        output.stderr
    );
    let status = stage.psql("require").aligned().try_run(&["\\conninfo"]);
    assert!(
        status.stdout.contains("protocol: TLSv1.3"),
        "{}",
        status.stdout
    );
}

#[test]
fn channel_binding_to_the_poolers_certificate() {
    let stage = Encrypted::new();
    for binding in ["disable", "prefer", "require"] {
        assert_works(&stage.psql("require").variable("PGCHANNELBINDING", binding));
    }
    let output = stage
        .psql("disable")
        .variable("PGCHANNELBINDING", "require")
        .try_run(QUERY);
    assert!(
        output.stderr.contains("channel binding"),
        "{}",
        output.stderr
    );
    let wrong = stage
        .psql("require")
        .variable("PGCHANNELBINDING", "require")
        .password("wrong")
        .try_run(QUERY);
    assert!(
        wrong.stderr.contains("password authentication failed"),
        "{}",
        wrong.stderr
    );
}

/// TLS 1.2, where the messages of the handshake come in another order.
#[test]
fn the_older_protocol() {
    let stage = Encrypted::new();
    assert_works(
        &stage
            .psql("verify-full")
            .variable("PGSSLMAXPROTOCOLVERSION", "TLSv1.2"),
    );
}

/// libpq 17's `sslnegotiation=direct`.
#[test]
fn libpq_with_direct_tls() {
    let stage = Encrypted::new();
    for major in [17, 18] {
        assert_works(
            &stage
                .psql("verify-full")
                .libpq(major)
                .variable("PGSSLNEGOTIATION", "direct"),
        );
    }
}

#[test]
fn direct_tls_needs_the_protocols_name() {
    let stage = Encrypted::new();
    let direct = |alpn| first_answer(stage.handshake(stage.socket(), alpn));
    assert_eq!(direct(&[b"postgresql"]), Some(b'R'));
    assert_eq!(direct(&[b"http/1.1", b"postgresql"]), Some(b'R'));
    assert_eq!(direct(&[]), None);
    assert_eq!(direct(&[b"http/1.1"]), None);
}

/// After SSLRequest the name is not needed, but another one is refused.
#[test]
fn the_protocols_name_after_ssl_request() {
    let stage = Encrypted::new();
    let asked = |alpn| {
        let mut socket = stage.socket();
        socket.write_all(&ssl_request()).expect("SSLRequest");
        let mut answer = [0];
        socket.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, *b"S");
        first_answer(stage.handshake(socket, alpn))
    };
    assert_eq!(asked(&[b"postgresql"]), Some(b'R'));
    assert_eq!(asked(&[]), Some(b'R'));
    assert_eq!(asked(&[b"http/1.1"]), None);
}

/// CVE-2021-23214: what comes in the clear with SSLRequest is not the client's.
#[test]
fn bytes_in_the_clear_after_ssl_request() {
    let stage = Encrypted::new();
    let mut wire = Wire::open(stage.pooler.port());
    wire.send([ssl_request(), startup(PROTOCOL_3_0, USER)].concat());
    let error = wire.end();
    assert_eq!(sqlstate(&error), "08P01");
}

#[test]
fn an_ssl_request_inside_tls() {
    let stage = Encrypted::new();
    let mut stream = stage.handshake(stage.socket(), &[b"postgresql"]);
    stream.write_all(&ssl_request()).expect("SSLRequest");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer.first(), Some(&b'E'));
}

#[test]
fn garbage_instead_of_a_handshake_harms_nobody() {
    let stage = Encrypted::new();
    for garbage in [
        &[0x16; 200][..],
        &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3],
        b"\x16\x03\x01\x00\x05hello",
    ] {
        let mut socket = stage.socket();
        socket.write_all(garbage).expect("garbage");
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        // An alert, or a reset.
        let _ = socket.read_to_end(&mut rest);
    }
    assert_works(&stage.psql("verify-full"));
}

/// The end of the connection must not overtake the error that explains it.
#[test]
fn the_last_words_arrive() {
    let stage = Encrypted::for_user("auth_type = \"trust\"", |_| String::new());
    for _ in 0..10 {
        let mut socket = stage.socket();
        socket.write_all(&ssl_request()).expect("SSLRequest");
        socket.read_exact(&mut [0]).expect("an answer");
        let mut stream = stage.handshake(socket, &[]);
        let messages = Messages::new()
            .query("SELECT repeat('x', 100000)")
            .message(b'!', b"no such message");
        let all = [&startup(PROTOCOL_3_0, USER), messages.as_ref()].concat();
        stream.write_all(&all).expect("sent");
        let mut answer = Vec::new();
        // An error here would be an end without close_notify.
        stream
            .read_to_end(&mut answer)
            .expect("the end, as TLS has it");
        assert!(answer.len() > 100_000);
        let end = String::from_utf8_lossy(&answer[100_000..]).into_owned();
        assert!(end.contains("08P01"), "{end}");
    }
}

/// Whether a client says goodbye, by the one protocol or the other, nobody has to hear of it.
#[test]
fn clients_that_leave() {
    let stage = Encrypted::for_user("auth_type = \"trust\"", |_| {
        "connect_timeout = 15000".to_owned()
    });
    for sql in ["SELECT 1", "BEGIN", "SELECT pg_sleep(100) -- left"] {
        for (terminates, closes) in [(false, false), (false, true), (true, false), (true, true)] {
            let sleeps = sql.contains("sleep");
            if sleeps && terminates {
                // It goes on for a while.
                continue;
            }
            let mut stream = stage.client();
            let query = Messages::new().query(sql);
            stream.write_all(query.as_ref()).expect("sent");
            if sleeps {
                eventually("the statement runs", || is_running(sql));
            } else {
                until_ready(&mut stream);
            }
            if terminates {
                let terminate = Messages::new().terminate();
                stream.write_all(terminate.as_ref()).expect("sent");
            }
            let (mut connection, mut socket) = stream.into_parts();
            if !closes {
                continue;
            }
            connection.send_close_notify();
            while connection.wants_write() {
                connection.write_tls(&mut socket).expect("sent");
            }
            // An error would be an end without the pooler's own goodbye.
            let mut stream = StreamOwned::new(connection, socket);
            let end = stream.read_to_end(&mut Vec::new());
            end.expect("the end, as TLS has it");
        }
    }
    // All of the pool can be had.
    let mut streams = [stage.client(), stage.client()];
    for stream in &mut streams {
        stream
            .write_all(Messages::new().query("BEGIN").as_ref())
            .expect("sent");
        assert!(until_ready(stream).ends_with(b"T"));
    }
    let log = stage.pooler.log();
    for word in ["panicked", "ERROR", "WARN"] {
        assert!(!log.contains(word), "{log}");
    }
}

/// The client sends all without waiting for answers, which begin when the server cannot take more, and are not read at first.
#[test]
fn ten_megabytes_each_way_at_once() {
    let stage = Encrypted::for_user("auth_type = \"trust\"", |_| String::new());
    let mut pipeline = Messages::new()
        .statement("SELECT pg_sleep(0.5)")
        .parse("s", "SELECT $1::text || $1::text");
    let value = "v".repeat(10_000);
    for _ in 0..1000 {
        pipeline = pipeline.bind("", "s", &[Some(&value)]).execute("");
    }
    let (mut connection, mut socket) = stage.client().into_parts();
    connection.set_buffer_limit(None);
    let sent = connection.writer().write_all(pipeline.sync().as_ref());
    sent.expect("taken");
    let mut records = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut records).expect("encrypted");
    }
    let mut sender = socket.try_clone().expect("a second handle");
    let sending = std::thread::spawn(move || sender.write_all(&records).expect("sent"));
    // BindComplete, a row, and `SELECT 1`.
    let answer_of = |bytes: usize| 5 + (5 + 2 + 4 + bytes) + (5 + 9);
    // Each with a ParseComplete; and ReadyForQuery.
    let expected = 5 + answer_of(0) + 5 + 1000 * answer_of(20_000) + 6;
    std::thread::sleep(Duration::from_millis(1000));
    let mut answer = Vec::new();
    while answer.len() < expected {
        assert!(connection.read_tls(&mut socket).expect("more") > 0);
        let state = connection.process_new_packets().expect("TLS");
        let mut plain = vec![0; state.plaintext_bytes_to_read()];
        connection
            .reader()
            .read_exact(&mut plain)
            .expect("decrypted");
        answer.append(&mut plain);
    }
    sending.join().expect("the sender");
    assert_eq!(answer.len(), expected);
    assert!(answer.ends_with(b"Z\0\0\0\x05I"));
}

#[test]
fn required_tls() {
    let stage = Encrypted::with(|_| "tls_mode = \"require\"".to_owned());
    let output = stage.psql("disable").try_run(QUERY);
    assert!(
        output.stderr.contains("SSL connection is required"),
        "{}",
        output.stderr
    );
    let mut wire = Wire::open(stage.pooler.port());
    wire.send(startup(PROTOCOL_3_0, USER));
    assert_eq!(sqlstate(&wire.end()), "28000");
    assert_works(&stage.psql("allow"));
    assert_works(&stage.psql("prefer"));
}

#[test]
fn disabled_tls() {
    let stage = Encrypted::with(|_| "tls_mode = \"disable\"".to_owned());
    assert_works(&stage.psql("prefer"));
    let output = stage.psql("require").try_run(QUERY);
    assert!(
        output.stderr.contains("does not support SSL"),
        "{}",
        output.stderr
    );
    assert_eq!(
        first_answer(stage.handshake(stage.socket(), &[b"postgresql"])),
        None
    );
}

#[test]
fn certificates_of_clients() {
    let stage = Encrypted::with(|authority| {
        format!("tls_mode = \"verify-ca\"\ntls_ca = {:?}", authority.file())
    });
    let with = |authority: &Authority| {
        let own = authority.issue("client", &[]);
        stage
            .psql("verify-full")
            .variable("PGSSLCERT", own.certificate.display().to_string())
            .variable("PGSSLKEY", own.key.display().to_string())
    };
    assert_works(&with(&stage.authority));
    let other = Authority::new();
    assert!(!with(&other).try_run(QUERY).success);
    assert!(!stage.psql("verify-full").try_run(QUERY).success);
    assert!(!stage.psql("disable").try_run(QUERY).success);
}

/// As PostgreSQL with `ssl_ca_file`: good if there, not needed.
#[test]
fn optional_certificates_of_clients() {
    let stage = Encrypted::with(|authority| format!("tls_ca = {:?}", authority.file()));
    assert_works(&stage.psql("verify-full"));
    let other = Authority::new();
    let foreign = other.issue("client", &[]);
    let output = stage
        .psql("verify-full")
        .variable("PGSSLCERT", foreign.certificate.display().to_string())
        .variable("PGSSLKEY", foreign.key.display().to_string())
        .try_run(QUERY);
    assert!(!output.success);
}

/// libpq 17 and later cancel by TLS, and take an end without close_notify for a failure.
#[test]
fn cancel_requests_by_tls() {
    let stage = Encrypted::for_user("auth_type = \"trust\"", |_| String::new());
    for asks in [true, false] {
        let mut wire = Wire::connect(stage.pooler.port(), "postgres", "postgres");
        wire.send(Messages::new().query("SELECT pg_sleep(60) -- tls"));
        eventually("the statement runs", || {
            is_running("SELECT pg_sleep(60) -- tls")
        });
        let mut socket = stage.socket();
        if asks {
            socket.write_all(&ssl_request()).expect("SSLRequest");
            socket.read_exact(&mut [0]).expect("an answer");
        }
        let mut stream = stage.handshake(socket, &[b"postgresql"]);
        stream
            .write_all(&cancel_request(wire.key()))
            .expect("CancelRequest");
        assert_eq!(stream.read(&mut [0]).expect("a clean end"), 0);
        assert_eq!(sqlstate(&wire.ready()), "57014");
    }
}

/// A large COPY both ways, which blocks in the middle of records.
#[test]
fn much_data_both_ways() {
    let stage = Encrypted::new();
    let file = std::env::temp_dir().join(format!("pgcat-tls-{}", std::process::id()));
    let path = file.display();
    let psql = stage.psql("verify-full");
    psql.run(&[&format!(
        "\\copy (SELECT i, md5(i::text) FROM generate_series(1, 300000) i) TO '{path}'"
    )]);
    let lines = fs::read_to_string(&file).expect("the copy");
    assert_eq!(lines.lines().count(), 300_000);
    let output = psql.program(
        "psql",
        &[
            "-X",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            "BEGIN",
            "-c",
            "CREATE TEMP TABLE tls_copy (i int, m text) ON COMMIT DROP",
            "-c",
            &format!("\\copy tls_copy FROM '{path}'"),
            "-c",
            "SELECT count(*), bool_and(m = md5(i::text)) FROM tls_copy",
            "-c",
            "COMMIT",
        ],
    );
    fs::remove_file(&file).expect("the copy is removed");
    assert!(
        output.stdout.contains("300000|t"),
        "{}{}",
        output.stdout,
        output.stderr
    );
}

/// Certificates are renewed while the pooler runs.
#[test]
fn renewed_certificates() {
    let stage = Encrypted::new();
    let other = Authority::new();
    let new = other.issue("localhost", &["localhost"]);
    fs::copy(&new.certificate, &stage.certificate.certificate).expect("certificate");
    // Key and certificate do not fit: nothing changes.
    stage.pooler.signal("HUP");
    eventually("the refusal is logged", || {
        stage.pooler.log().contains("tls_private_key")
    });
    assert_works(&stage.psql("verify-full"));
    fs::copy(&new.key, &stage.certificate.key).expect("key");
    stage.pooler.signal("HUP");
    let renewed = stage
        .psql("verify-full")
        .variable("PGSSLROOTCERT", other.file().display().to_string());
    eventually("the new certificate serves", || {
        renewed.try_run(&["SELECT 1"]).success
    });
    assert!(!stage.psql("verify-full").try_run(QUERY).success);
}

#[test]
fn files_that_do_not_fit_end_the_start() {
    let authority = Authority::new();
    let (one, other) = (authority.issue("one", &[]), authority.issue("other", &[]));
    let config = PoolerConfig::new(server())
        .general(&format!(
            "tls_certificate = {:?}\ntls_private_key = {:?}",
            one.certificate, other.key
        ))
        .user("postgres", 1);
    let directory = std::env::temp_dir().join(format!("pgcat-tls-start-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let path = directory.join("pgcat.toml");
    fs::write(&path, config.render(test_support::free_port())).expect("pgcat.toml");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pgcat"))
        .arg(&path)
        .output()
        .expect("pgcat runs");
    fs::remove_dir_all(&directory).expect("the directory is removed");
    assert_eq!(output.status.code(), Some(78));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("pgcat.toml:7: general.tls_private_key: "),
        "{error}"
    );
}
