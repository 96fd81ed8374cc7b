//! From the first byte to the first ReadyForQuery.

use std::time::Duration;

use test_support::wire::{
    Message, Messages, PROTOCOL_3_0, Wire, cancel_request, gss_request, sqlstate, ssl_request,
    startup, tags,
};

use crate::stage::{Stage, direct, server};

const USER: &[(&str, &str)] = &[("user", "postgres"), ("database", "postgres")];

fn usable(mut wire: Wire) {
    wire.greeted();
    assert_eq!(wire.value("SELECT 41 + 1"), "42");
}

/// ParameterStatus messages in an order of their own, and all others as they came.
fn sorted(mut greeting: Vec<Message>) -> Vec<Message> {
    greeting.sort_by(|a, b| (a.tag, &a.body).cmp(&(b.tag, &b.body)));
    greeting
}

#[test]
fn the_greeting_is_the_servers() {
    let stage = Stage::new(1);
    assert_eq!(sorted(stage.client().greeting), sorted(direct().greeting));
    // The second client may be greeted from memory.
    assert_eq!(sorted(stage.client().greeting), sorted(direct().greeting));
}

#[test]
fn the_greeting_tells_the_clients_own_settings() {
    let stage = Stage::new(1);
    let parameters = [
        USER,
        &[
            ("application_name", "O'Brien \\ \"x\""),
            ("DateStyle", "German"),
            ("client_encoding", "latin1"),
            ("TimeZone", "Europe/Berlin"),
            (
                "options",
                "-c IntervalStyle=iso_8601 --extra-float-digits=1",
            ),
        ],
    ]
    .concat();
    let expected = Wire::connect_with(server().port(), &parameters);
    let pooled = Wire::connect_with(stage.pooler.port(), &parameters);
    assert_eq!(sorted(pooled.greeting), sorted(expected.greeting));
}

#[test]
fn encryption_requests_are_declined_in_either_order() {
    let stage = Stage::new(1);
    for requests in [
        vec![ssl_request()],
        vec![gss_request()],
        vec![ssl_request(), gss_request()],
        vec![gss_request(), ssl_request()],
    ] {
        let mut wire = Wire::open(stage.pooler.port());
        for request in requests {
            wire.send(request);
            assert_eq!(wire.byte(), Some(b'N'));
        }
        wire.send(startup(PROTOCOL_3_0, USER));
        usable(wire);
    }
}

#[test]
fn a_repeated_encryption_request_ends_the_connection() {
    let stage = Stage::new(1);
    let mut wire = Wire::open(stage.pooler.port());
    wire.send(ssl_request());
    assert_eq!(wire.byte(), Some(b'N'));
    wire.send(ssl_request());
    assert_ne!(wire.byte(), Some(b'N'));
}

/// CVE-2021-3935: bytes behind SSLRequest may be another's, injected before the encryption starts.
#[test]
fn bytes_behind_an_encryption_request_are_refused() {
    let stage = Stage::new(1);
    for request in [ssl_request(), gss_request()] {
        let mut wire = Wire::open(stage.pooler.port());
        wire.send([request, startup(PROTOCOL_3_0, USER)].concat());
        match wire.byte() {
            // A pooler may have answered before the rest arrived; but it never logs in.
            Some(b'N') | None => {
                let messages = wire.end();
                assert!(!tags(&messages).contains('Z'), "{messages:?}");
            }
            Some(tag) => assert_eq!(tag, b'E'),
        }
    }
}

#[test]
fn higher_minor_versions_are_negotiated() {
    let stage = Stage::new(1);
    for version in [PROTOCOL_3_0 + 2, PROTOCOL_3_0 + 9999] {
        let mut wire = Wire::open(stage.pooler.port());
        wire.send(startup(version, USER));
        let first = wire.message();
        // Newest minor 0, no unrecognised option.
        assert_eq!(
            (first.tag, first.body),
            (b'v', vec![0, 3, 0, 0, 0, 0, 0, 0])
        );
        usable(wire);
    }
}

#[test]
fn unknown_protocol_options_are_listed_once() {
    let stage = Stage::new(1);
    for version in [PROTOCOL_3_0, PROTOCOL_3_0 + 2] {
        let parameters = [USER, &[("_pq_.a", "1"), ("_pq_.b", "2")]].concat();
        let mut wire = Wire::open(stage.pooler.port());
        wire.send(startup(version, &parameters));
        let first = wire.message();
        assert_eq!(first.tag, b'v', "{first:?}");
        assert_eq!(first.body[4..], *b"\0\0\0\x02_pq_.a\0_pq_.b\0");
        wire.transcript.clear();
        wire.greeted();
        assert!(!tags(&wire.greeting).contains('v'));
        assert_eq!(wire.value("SELECT 1"), "1");
    }
}

#[test]
fn protocol_4_is_refused() {
    let stage = Stage::new(1);
    for version in [0x0004_0000, 0x04d2_1234] {
        let mut wire = Wire::open(stage.pooler.port());
        wire.send(startup(version, USER));
        let messages = wire.end();
        assert_eq!(tags(&messages), "E");
        assert_eq!(sqlstate(&messages), "0A000");
    }
}

/// In the form that such a client reads: a line of text instead of fields.
#[test]
fn protocol_2_is_refused_in_its_own_words() {
    let stage = Stage::new(1);
    for version in [0x0002_0000, 0x0001_0000, 1] {
        let answer = |port| {
            let mut wire = Wire::open(port);
            wire.send(startup(version, USER));
            let mut answer = Vec::new();
            answer.extend(std::iter::from_fn(|| wire.byte()));
            String::from_utf8_lossy(&answer).into_owned()
        };
        let expected = answer(server().port());
        assert!(expected.starts_with("EFATAL:  "), "{expected}");
        assert_eq!(answer(stage.pooler.port()), expected);
    }
}

#[test]
fn a_startup_message_may_come_byte_by_byte() {
    let stage = Stage::new(1);
    let mut wire = Wire::open(stage.pooler.port());
    wire.send_pieces(ssl_request(), 1);
    assert_eq!(wire.byte(), Some(b'N'));
    wire.send_pieces(startup(PROTOCOL_3_0, USER), 1);
    usable(wire);
}

#[test]
fn a_long_startup_message_is_read_whole() {
    let stage = Stage::new(1);
    let name = "n".repeat(60);
    let options = format!("-c search_path={}", vec![name.as_str(); 120].join(","));
    let parameters = [USER, &[("options", &options)]].concat();
    let mut wire = Wire::connect_with(stage.pooler.port(), &parameters);
    let path = wire.value("SHOW search_path");
    assert_eq!(path.matches(&name).count(), 120);
}

#[test]
fn absurd_startup_lengths_end_the_connection() {
    let stage = Stage::new(1);
    for length in [
        0x7fff_ffff_u32,
        0x8000_0000,
        0xffff_ffff,
        10_001,
        7,
        4,
        2,
        0,
    ] {
        let mut wire = Wire::open(stage.pooler.port());
        wire.send([&length.to_be_bytes()[..], b"\0\x03\0\0"].concat());
        let messages = wire.end();
        assert!(["", "E"].contains(&&*tags(&messages)), "{messages:?}");
    }
    assert!(crate::stage::peak_memory(&stage.pooler) < 300_000);
    stage.assert_clean();
}

#[test]
fn malformed_startup_messages_end_the_connection() {
    let stage = Stage::new(1);
    let bodies: [&[u8]; 5] = [
        b"\0\x03\0\0",
        b"\0\x03\0\0user\0postgres",
        b"\0\x03\0\0user\0",
        b"\0\x03\0\0user\0postgres\0database\0\0\0\0\0garbage",
        b"GET / HTTP/1.1\r\n\r\n",
    ];
    for body in bodies {
        let mut wire = Wire::open(stage.pooler.port());
        let length = u32::try_from(body.len() + 4).unwrap();
        wire.send([&length.to_be_bytes(), body].concat());
        wire.shut_down_sending();
        let messages = wire.end();
        assert!(!tags(&messages).contains('Z'), "{body:?}: {messages:?}");
    }
    stage.assert_clean();
}

#[test]
fn without_a_user_nobody_is_let_in() {
    let stage = Stage::new(1);
    let mut wire = Wire::open(stage.pooler.port());
    wire.send(startup(PROTOCOL_3_0, &[("database", "postgres")]));
    assert_eq!(sqlstate(&wire.end()), "28000");
}

#[test]
fn the_database_defaults_to_the_users_name() {
    let stage = Stage::new(1);
    let mut wire = Wire::connect_with(stage.pooler.port(), &[("user", "postgres")]);
    assert_eq!(wire.value("SELECT current_database()"), "postgres");
}

#[test]
fn an_empty_value_is_a_value() {
    let stage = Stage::new(1);
    let parameters = [USER, &[("application_name", "")]].concat();
    let mut wire = Wire::connect_with(stage.pooler.port(), &parameters);
    assert_eq!(wire.value("SHOW application_name"), "");
}

#[test]
fn an_unknown_database_is_named() {
    let stage = Stage::new(1);
    let mut wire = Wire::open(stage.pooler.port());
    wire.send(startup(
        PROTOCOL_3_0,
        &[("user", "u"), ("database", "nope")],
    ));
    let messages = wire.end();
    let error = messages.iter().find(|message| message.tag == b'E').unwrap();
    assert_eq!(error.field(b'C').unwrap(), "58000");
    assert_eq!(error.field(b'V').unwrap(), "FATAL");
    assert_eq!(
        error.field(b'M').unwrap(),
        "No pool configured for database: \"nope\", user: \"u\""
    );
}

/// An invalid setting is the client's mistake, told at its login as by PostgreSQL.
#[test]
fn an_invalid_setting_refuses_the_login() {
    let stage = Stage::new(1);
    for (name, value, code) in [
        ("DateStyle", "nonsense", "22023"),
        ("no_such_setting", "1", "42704"),
    ] {
        let parameters = [USER, &[(name, value)]].concat();
        for port in [server().port(), stage.pooler.port()] {
            let mut wire = Wire::open(port);
            wire.send(startup(PROTOCOL_3_0, &parameters));
            assert_eq!(sqlstate(&wire.end()), code, "{name} on port {port}");
        }
    }
    stage.assert_clean();
}

#[test]
fn a_port_check_harms_nobody() {
    let stage = Stage::new(1);
    for bytes in [&b""[..], b"\0", b"\0\0\0\x08", b"\0\0\0\x54\0\x03\0\0user"] {
        let mut wire = Wire::open(stage.pooler.port());
        wire.send(bytes);
        drop(wire);
    }
    // Those that speak another protocol: a browser, a scanner.
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"\0\0\0\0",
        b"SSH-2.0-x\r\n",
        &[0xff; 64],
    ] {
        let mut wire = Wire::open(stage.pooler.port());
        wire.send(bytes);
        assert!(["", "E"].contains(&&*tags(&wire.end())));
    }
    let mut wire = Wire::open(stage.pooler.port());
    wire.send(cancel_request(&[0; 3]));
    wire.shut_down_sending();
    assert!(!tags(&wire.end()).contains('Z'));
    stage.assert_clean();
    // A load balancer does it every second: no line of the log asks for attention.
    let log = stage.pooler.log();
    for word in ["panicked", "ERROR", "WARN"] {
        assert!(!log.contains(word), "{log}");
    }
}

#[test]
fn a_client_may_send_its_first_query_with_its_startup() {
    let stage = Stage::new(1);
    let mut wire = Wire::open(stage.pooler.port());
    let query = Messages::new().query("SELECT 7");
    wire.send([&startup(PROTOCOL_3_0, USER), query.as_ref()].concat());
    wire.greeted();
    assert_eq!(tags(&wire.ready()), "TDCZ");
    assert!(wire.silent_for(Duration::from_millis(50)));
}
