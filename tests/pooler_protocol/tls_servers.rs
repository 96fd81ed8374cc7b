//! TLS between the pooler and servers.

use std::sync::OnceLock;

use test_support::wire::{Messages, Wire, cancel_request, sqlstate, tags};
use test_support::{Auth, Authority, Pooler, PoolerConfig, Postgres, Settings};

use crate::stage::{eventually, server, start, ten_megabytes_each_way};

/// A server with a certificate for `localhost`, which refuses what is not encrypted.
struct Encrypted {
    authority: Authority,
    postgres: Postgres,
}

fn encrypted() -> &'static Encrypted {
    static SERVER: OnceLock<Encrypted> = OnceLock::new();
    SERVER.get_or_init(|| {
        let authority = Authority::new();
        let certificate = authority.issue("localhost", &["localhost"]);
        let settings = Settings::auth(Auth::Scram).tls(&certificate).hba(
            "hostssl all certified 127.0.0.1/32 cert\nhostssl all all 127.0.0.1/32 scram-sha-256\n\
             hostnossl all all 127.0.0.1/32 reject\n",
        );
        let postgres = Postgres::start_with(15, &settings);
        // A statement of its own, on a Unix socket, where everybody is trusted.
        test_support::Psql::new(
            &postgres.socket_directory().display().to_string(),
            postgres.port(),
            "postgres",
            "postgres",
        )
        .run(&["CREATE ROLE certified LOGIN"]);
        Encrypted {
            authority,
            postgres,
        }
    })
}

/// A pooler in front of the encrypted server, reached by a name for it.
fn pooler(host: &str, lines: &str) -> Pooler {
    let stage = encrypted();
    let ca = format!("server_tls_ca = {:?}", stage.authority.file());
    start(
        &PoolerConfig::for_server(host, stage.postgres.port())
            .general(lines)
            .general(&ca)
            .general("connect_timeout = 5000\nworker_threads = 2")
            .user("postgres", 1),
    )
}

/// A pooler in front of the encrypted server that lets everybody in.
fn trusting_pooler() -> Pooler {
    let config = PoolerConfig::for_server("localhost", encrypted().postgres.port())
        .general("server_tls_mode = \"require\"")
        .user_with("postgres", 1, "auth_type = \"trust\"");
    start(&config)
}

const IS_ENCRYPTED: &[&str] =
    &["SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"];

/// SCRAM is with channel binding here: PostgreSQL offers it, and checks it.
#[test]
fn modes_that_connect() {
    for lines in [
        "server_tls = true",
        "server_tls = true\nverify_server_certificate = true",
        "server_tls_mode = \"allow\"",
        "server_tls_mode = \"prefer\"",
        "server_tls_mode = \"require\"",
        "server_tls_mode = \"verify-ca\"",
        "server_tls_mode = \"verify-full\"",
    ] {
        let pooler = pooler("localhost", lines);
        let output = pooler.psql("postgres", "postgres").try_run(IS_ENCRYPTED);
        assert_eq!(output.stdout, "t|TLSv1.3\n", "{lines}: {}", output.stderr);
    }
}

fn refused(pooler: &Pooler, reason: &str) {
    let output = pooler.psql("postgres", "postgres").try_run(IS_ENCRYPTED);
    assert!(!output.success, "{}", output.stdout);
    assert!(pooler.log().contains(reason), "{}", pooler.log());
}

#[test]
fn a_certificate_for_another_name() {
    let connected = pooler("127.0.0.1", "server_tls_mode = \"verify-ca\"");
    assert!(
        connected
            .psql("postgres", "postgres")
            .try_run(IS_ENCRYPTED)
            .success
    );
    let pooler = pooler("127.0.0.1", "server_tls_mode = \"verify-full\"");
    refused(&pooler, "not valid for name");
}

#[test]
fn a_certificate_of_another_authority() {
    let other = Authority::new();
    let config = |mode| {
        PoolerConfig::for_server("localhost", encrypted().postgres.port())
            .general(&format!(
                "server_tls_mode = \"{mode}\"\nserver_tls_ca = {:?}",
                other.file()
            ))
            .user("postgres", 1)
    };
    assert!(
        start(&config("require"))
            .psql("postgres", "postgres")
            .try_run(IS_ENCRYPTED)
            .success
    );
    for mode in ["verify-ca", "verify-full"] {
        refused(
            &start(&config(mode)),
            "TLS handshake: invalid peer certificate",
        );
    }
    // Without server_tls_ca the system's authorities count, none of which signed it.
    let system = PoolerConfig::for_server("localhost", encrypted().postgres.port())
        .general("server_tls_mode = \"verify-full\"")
        .user("postgres", 1);
    let pooler = Pooler::start(env!("CARGO_BIN_EXE_pgcat"), &system);
    refused(&pooler, "TLS handshake: invalid peer certificate");
}

/// A self-signed certificate that is the server's and its own authority's.
#[test]
fn a_self_signed_certificate() {
    let authority = Authority::new();
    let own = authority.self_signed("localhost", &["localhost"]);
    let postgres = Postgres::start_with(15, &Settings::auth(Auth::Scram).tls(&own));
    for (host, mode, works) in [
        ("localhost", "verify-full", true),
        ("127.0.0.1", "verify-ca", true),
        ("127.0.0.1", "verify-full", false),
    ] {
        let config = PoolerConfig::for_server(host, postgres.port())
            .general(&format!(
                "server_tls_mode = \"{mode}\"\nserver_tls_ca = {:?}",
                own.certificate
            ))
            .user("postgres", 1);
        let output = start(&config)
            .psql("postgres", "postgres")
            .try_run(IS_ENCRYPTED);
        assert_eq!(output.success, works, "{host} {mode}: {}", output.stderr);
    }
}

#[test]
fn a_server_without_tls() {
    let config = |mode| {
        PoolerConfig::new(server())
            .general(&format!("server_tls_mode = \"{mode}\""))
            .user("postgres", 1)
    };
    let output = start(&config("prefer"))
        .psql("postgres", "postgres")
        .run(IS_ENCRYPTED);
    assert_eq!(output, "f|\n");
    for mode in ["require", "verify-full"] {
        refused(
            &start(&config(mode)),
            "server does not support SSL, but SSL was required",
        );
    }
}

#[test]
fn a_server_that_wants_tls_and_gets_none() {
    refused(&pooler("localhost", "server_tls = false"), "no encryption");
}

#[test]
fn the_poolers_own_certificate() {
    let stage = encrypted();
    let own = stage.authority.issue("certified", &[]);
    let config = PoolerConfig::for_server("localhost", stage.postgres.port())
        .general(&format!(
            "server_tls_mode = \"require\"\nserver_tls_certificate = {:?}\nserver_tls_private_key = {:?}",
            own.certificate, own.key
        ))
        .user("certified", 1);
    let output = start(&config)
        .psql("certified", "postgres")
        .run(&["SELECT current_user"]);
    assert_eq!(output, "certified\n");
}

/// And the connection goes from thread to thread meanwhile.
#[test]
fn much_data_for_many_clients() {
    let pooler = pooler("localhost", "server_tls_mode = \"verify-full\"");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let psql = pooler.psql("postgres", "postgres");
                for _ in 0..3 {
                    let output = psql.run(&["SELECT repeat(md5('1'), 100000)", "SELECT 1"]);
                    assert_eq!(output.len(), 3_200_001 + 2);
                }
            });
        }
    });
}

#[test]
fn ten_megabytes_each_way_at_once() {
    let pooler = trusting_pooler();
    let mut client = Wire::connect(pooler.port(), "postgres", "postgres");
    ten_megabytes_each_way(&mut client);
}

/// They arrive although the connection ends right behind them.
#[test]
fn the_last_words_of_a_server() {
    let pooler = trusting_pooler();
    for _ in 0..5 {
        let mut client = Wire::connect(pooler.port(), "postgres", "postgres");
        let messages =
            client.query_to_end("SELECT 1; SELECT pg_terminate_backend(pg_backend_pid())");
        assert!(tags(&messages).starts_with("TDC"), "{messages:?}");
        assert_eq!(sqlstate(&messages), "57P01", "{messages:?}");
        assert_eq!(tags(&client.end()), "");
    }
}

#[test]
fn cancel_requests_go_by_tls() {
    let stage = encrypted();
    let pooler = trusting_pooler();
    let mut wire = Wire::connect(pooler.port(), "postgres", "postgres");
    wire.send(Messages::new().query("SELECT pg_sleep(60)"));
    let watch = test_support::Psql::new(
        &stage.postgres.socket_directory().display().to_string(),
        stage.postgres.port(),
        "postgres",
        "postgres",
    );
    eventually("the statement runs", || {
        watch.run(&[
            "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'",
        ]) == "1\n"
    });
    Wire::open(pooler.port()).send(cancel_request(wire.key()));
    assert_eq!(sqlstate(&wire.ready()), "57014");
}

/// A server whose host is a directory is reached by its Unix socket, without TLS whatever is asked.
#[test]
fn servers_on_unix_sockets() {
    let postgres = &encrypted().postgres;
    let directory = postgres.socket_directory().display().to_string();
    let config = PoolerConfig::for_server(&directory, postgres.port())
        .general("server_tls_mode = \"require\"")
        .user("postgres", 1);
    assert_eq!(
        start(&config)
            .psql("postgres", "postgres")
            .run(IS_ENCRYPTED),
        "f|\n"
    );
}

/// Contradictions and missing halves end the start, with line and key.
#[test]
fn settings_that_do_not_fit() {
    for (lines, error) in [
        (
            "server_tls = false\nserver_tls_mode = \"require\"",
            "contradict",
        ),
        (
            "verify_server_certificate = true\nserver_tls_mode = \"require\"",
            "contradict",
        ),
        (
            "server_tls_certificate = \"/dev/null\"",
            "server_tls_private_key is not",
        ),
        (
            "server_tls_mode = \"verify-full\"\nserver_tls_ca = \"/dev/null\"",
            "no certificate in it",
        ),
        ("tls_mode = \"require\"", "tls_certificate"),
        ("tls_mode = \"always\"", "\"verify-full\""),
    ] {
        let config = PoolerConfig::new(server())
            .general(lines)
            .user("postgres", 1);
        let path =
            std::env::temp_dir().join(format!("pgcat-tls-{}.toml", test_support::free_port()));
        std::fs::write(&path, config.render(test_support::free_port())).expect("a file");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_pgcat"))
            .arg(&path)
            .output()
            .expect("pgcat runs");
        std::fs::remove_file(&path).expect("the file is removed");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(
            stderr.contains(".toml:") && stderr.contains(error),
            "{stderr}"
        );
    }
}
