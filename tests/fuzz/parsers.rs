//! The readers of bytes: none may panic, and what they make of the bytes has to be what is there.

use pgcat::router::command::{Command, may_be_command};
use pgcat::router::lexer::{self, Kind};
use pgcat::router::{analysis::Analysis, statements};
use pgcat::session::auth::hba::Hba;
use pgcat::session::auth::scram::Binding;
use pgcat::session::auth::scram_client::{Proof, ScramClient, ServerBinding};
use pgcat::session::auth::{ScramSecret, ScramServer, Secret};
use pgcat::session::settings::{Settings, literal};
use pgcat::session::traits::{PreparedUse, Traits, custom_settings, prepared_use};
use pgcat::wire::error_fields::ErrorFields;
use pgcat::wire::message::{build, data_row, put_cstr};
use pgcat::wire::startup::{FirstPacket, parse_options};
use pgcat::wire::{HEADER, Header};
use rand::RngExt;
use rand::rngs::StdRng;
use test_support::wire::startup;

use crate::mutate::{damage, message, one_of};
use crate::run::{cases, corpus};

fn headers(input: &[u8]) {
    match Header::read(input) {
        Ok(None) => assert!(input.len() < HEADER),
        Ok(Some(header)) => {
            let mut again = vec![header.tag];
            again.extend_from_slice(&(header.body as u32 + 4).to_be_bytes());
            assert_eq!(again, input[..HEADER]);
            assert!(header.total() <= 1 << 30);
        }
        Err(_) => assert!(input[1] >= 0x40 || input[1..4] == [0; 3]),
    }
}

fn first_packets(input: &[u8]) {
    if let Some((length, _)) = input.split_first_chunk::<4>()
        && let Ok(length) = FirstPacket::body_length(*length)
    {
        assert!(length <= 10_000);
    }
    let Ok(FirstPacket::Startup(packet)) = FirstPacket::read(input) else {
        return;
    };
    // What was read, written again, is read as the same.
    let options = packet.protocol_options.iter().map(|name| (&**name, ""));
    let parameters = packet.parameters.iter();
    let all: Vec<(&str, &str)> = parameters
        .map(|(name, value)| (&**name, &**value))
        .chain(options)
        .collect();
    let version = 3 << 16 | u32::from(packet.minor_version);
    let again = startup(version, &all);
    assert_eq!(
        FirstPacket::read(&again[4..]),
        Ok(FirstPacket::Startup(packet))
    );
}

fn errors(input: &[u8]) {
    let fields = ErrorFields::read(input);
    let mut out = Vec::new();
    fields.write(&mut out);
    assert_eq!(ErrorFields::read(&out[HEADER..]), fields);
}

fn rows(input: &[u8]) {
    let Some(values) = data_row(input) else {
        return;
    };
    let mut out = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        match value {
            None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(value) => {
                out.extend_from_slice(&(value.len() as u32).to_be_bytes());
                out.extend_from_slice(value);
            }
        }
    }
    // Any negative length is a NULL.
    assert!(input.len() >= out.len());
}

fn sql(text: &str) {
    let mut end = 0;
    for token in lexer::tokens(text) {
        assert!(token.span.start >= end && token.span.start < token.span.end);
        // Panics if it cuts a character in two.
        assert!(!text[token.span.clone()].is_empty());
        end = token.span.end;
    }
    let mut end = 0;
    for statement in statements::split(text) {
        assert!(statement.start >= end && !text[statement.clone()].is_empty());
        end = statement.end;
    }
    for name in custom_settings(text) {
        assert!(name.contains('.'));
    }
    if matches!(prepared_use(text), Some((PreparedUse::Deallocate, _))) {
        assert!(Traits::of(text.as_bytes()).deallocates, "{text:?}");
    }
    if Command::parse(text).is_some() {
        assert!(may_be_command(text.as_bytes()), "{text:?}");
    }
}

/// The grammar of PostgreSQL, in C: in the pooler's own process.
fn grammar(text: &str) {
    Analysis::of(text, Some("t.a"));
}

/// A value of a setting is one literal for the server, whatever is in it.
fn literals(text: &str) {
    let quoted = literal(text);
    let tokens: Vec<_> = lexer::tokens(&quoted).collect();
    assert!(
        tokens.len() == 1 && tokens[0].kind == Kind::String,
        "{quoted}"
    );
    let quoted = quoted.trim_start();
    let escaped = quoted.strip_prefix('E');
    let inner = escaped.unwrap_or(quoted);
    let inner = inner[1..inner.len() - 1].replace("''", "'");
    let inner = if escaped.is_some() {
        inner.replace("\\\\", "\\")
    } else {
        inner
    };
    assert_eq!(inner, text.replace('\0', ""));
}

/// The SQL between two sets of settings is so many statements, whatever names and values are.
fn settings(text: &str) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let of = |words: &[&str]| {
        let mut settings = Settings::default();
        for pair in words.chunks_exact(2) {
            settings.set(pair[0], pair[1].to_owned());
        }
        settings
    };
    let (from, to) = words.split_at(words.len() / 2);
    let (from, to) = (of(from), of(to));
    assert_eq!(from.transition(&from), "");
    if text.contains('\0') {
        return;
    }
    let sql = from.transition(&to);
    for statement in statements::split(&sql) {
        let statement = &sql[statement];
        assert!(
            statement.starts_with("RESET ")
                || statement.starts_with("SELECT pg_catalog.set_config("),
            "{statement} in {sql}"
        );
    }
}

fn options(text: &str) {
    let escaped: String = text.chars().flat_map(|c| ['\\', c]).collect();
    let written = format!("-c name={escaped} --other={escaped}");
    let read = parse_options(&written).expect("as written");
    assert_eq!(
        read,
        [
            ("name".to_owned(), text.to_owned()),
            ("other".to_owned(), text.to_owned())
        ]
    );
    parse_options(text);
}

/// Nobody gets in by a message that is not a proof.
fn logins(input: &[u8], secret: &ScramSecret) {
    let (first, rest) = input.split_at(input.len() / 2);
    for binding in [Binding::None, Binding::Declined, Binding::To(b"hash")] {
        let server = ScramServer::new(secret, "nonce", binding);
        for message in [first, b"n,,n=,r=abc", b"y,,n=,r=abc"] {
            let server = ScramServer::new(secret, "nonce", binding);
            if let Ok((_, awaiting)) = server.first(message) {
                assert!(awaiting.finish(rest).is_err());
            }
        }
        if let Ok((_, awaiting)) = server.first(input) {
            assert!(awaiting.finish(input).is_err());
        }
    }
    if let Ok(binding) = ServerBinding::choose(input, None) {
        let client = ScramClient::new(Proof::Password("password"), binding);
        assert!(client.proof(input).is_err(), "our nonce was guessed");
    }
    if let Ok(text) = str::from_utf8(input) {
        ScramSecret::parse(text);
        Secret::parse(text);
        // What is wrong with it is said, not thrown.
        let _ = Hba::parse(text);
    }
}

fn all(input: &[u8], secret: &ScramSecret) {
    headers(input);
    first_packets(input);
    errors(input);
    rows(input);
    logins(input, secret);
    Traits::of(input);
    may_be_command(input);
    let text = String::from_utf8_lossy(input);
    sql(&text);
    literals(&text);
    settings(&text);
    options(&text);
    grammar(&text);
}

const TEXTS: &[&str] = &[
    "SET SHARDING KEY TO '12'; SET SERVER ROLE TO 'primary'",
    "/* shard_id: 1 */ SELECT a, 'it''s', E'\\'x', $q$ body; $q$, U&\"d\\0061t\" FROM t WHERE t.a = 5;",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; END; SELECT 2",
    "DEALLOCATE PREPARE \"a name\"",
    "SET LOCAL my.\"x\" TO 1; SELECT set_config('a.b', '1', false)",
    "INSERT INTO t (a, b) VALUES (1, $1), (2, DEFAULT) RETURNING *; WITH w AS (DELETE FROM t RETURNING 1) SELECT * FROM w",
    "application_name O'Brien work_mem 1MB role x my.thing \\'; session_authorization b\"c",
    "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy",
    "host all all 127.0.0.1/32 md5\nlocal \"sameuser\" /^a trust # comment\nhostssl a,b c ::1/128 cert clientcert=verify-full",
    "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
    "r=fyko,s=QSXCR+Q6sek8bf92,i=4096",
    "-c statement_timeout=5s --search-path=a\\ b -cx=y",
    "SCRAM-SHA-256\0SCRAM-SHA-256-PLUS\0\0",
    "SERROR\0VERROR\0C42P01\0Mrelation \"t\" does not exist\0P15\0Fparse_relation.c\0L1392\0\0",
];

fn input(random: &mut StdRng) -> Vec<u8> {
    let mut input = match random.random_range(0..5) {
        0 => message(random).as_ref().to_vec(),
        1 => startup(
            3 << 16 | random.random_range(0..4),
            &[("user", "u"), ("options", "-c a=b"), ("_pq_.x", "1")],
        )[random.random_range(0..5)..]
            .to_vec(),
        2 => {
            let mut row = Vec::new();
            build(&mut row, b'D', |out| {
                out.extend_from_slice(&[0, 2, 0, 0, 0, 1, b'a', 0xff, 0xff, 0xff, 0xff]);
                put_cstr(out, b"rest");
            });
            row.split_off(random.random_range(0..HEADER + 1))
        }
        _ => one_of(random, TEXTS).as_bytes().to_vec(),
    };
    if random.random_bool(0.3) {
        let more = one_of(random, TEXTS).as_bytes();
        input.extend_from_slice(more);
    }
    damage(random, &mut input);
    input
}

#[test]
fn readers_of_bytes() {
    let secret = ScramSecret::from_password("password");
    for (path, input) in corpus("parsers") {
        println!("{}", path.display());
        all(&input, &secret);
    }
    cases("parsers", |random| {
        let input = input(random);
        let shown = Shown(&input);
        all(shown.0, &secret);
    });
}

/// Shows the input of a case that panics.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("input: {:?}", self.0.escape_ascii().to_string());
        }
    }
}

/// A text that nests deeply must not take the process's stack, which is 2 MB for the pooler's threads,
/// too: the grammar is in C, and recursive.
#[test]
fn texts_that_nest_deeply() {
    let nested = |n: usize| {
        [
            format!("SELECT {}1{}", "(".repeat(n), ")".repeat(n)),
            format!("SELECT 1{}", " + 1".repeat(n)),
            format!("SELECT {}1", "- ".repeat(n)),
            format!("SELECT {}1{}", "(SELECT ".repeat(n), ")".repeat(n)),
            format!("SELECT 1{}", " UNION SELECT 1".repeat(n)),
            format!("SELECT {}a{}", "f(".repeat(n), ")".repeat(n)),
        ]
    };
    let reading = std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(move || {
            for n in [10, 1000, 100_000] {
                for text in nested(n) {
                    sql(&text);
                    grammar(&text);
                }
            }
            let comment = format!("SELECT 1 {}", "/*".repeat(1000));
            sql(&comment);
            grammar(&comment);
        });
    reading.expect("a thread").join().expect("no panic");
}
