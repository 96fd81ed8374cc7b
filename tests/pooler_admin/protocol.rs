//! Both protocols, and what drivers do with them.

use test_support::wire::{Messages, Wire, sqlstate, tags};

use crate::stage::{admin, config, described, rows, start};

#[test]
fn several_commands_in_one_query() {
    let pooler = start(&config(2));
    let mut session = admin(&pooler, "pgcat");
    let messages = session.query("SHOW VERSION; show /* a comment */ version ;");
    assert_eq!(tags(&messages), "TDCTDCZ", "{messages:?}");
    // What follows an error is not done, and the session goes on.
    let messages = session.query("SHOW VERSION; SHOW NONSENSE; SHOW VERSION");
    assert_eq!(tags(&messages), "TDCEZ", "{messages:?}");
    assert_eq!(tags(&session.query(";")), "IZ");
    assert_eq!(tags(&session.query("SHOW HELP")), "NCZ");
}

#[test]
fn errors_are_those_of_the_originals() {
    let pooler = start(&config(2));
    let error = |session: &mut Wire, sql: &str| {
        let messages = session.query(sql);
        let error = messages
            .iter()
            .find(|message| message.tag == b'E')
            .expect("an error");
        (error.field(b'C').unwrap(), error.field(b'M').unwrap())
    };
    let of = |code: &str, message: &str| (code.to_owned(), message.to_owned());
    let mut pgcat = admin(&pooler, "pgcat");
    assert_eq!(
        error(&mut pgcat, "SHOW NONSENSE"),
        of("58000", "Unsupported SHOW query against the admin database")
    );
    assert_eq!(
        error(&mut pgcat, "SELECT 1"),
        of("58000", "Unsupported query against the admin database")
    );
    let mut pgbouncer = admin(&pooler, "pgbouncer");
    assert_eq!(
        error(&mut pgbouncer, "SELECT 1"),
        of("08P01", "invalid command 'SELECT 1', use SHOW HELP;")
    );
    // Descriptors and secrets are not for showing.
    assert_eq!(error(&mut pgbouncer, "SHOW FDS").0, "08P01");
}

#[test]
fn the_extended_protocol() {
    let pooler = start(&config(2));
    for database in ["pgcat", "pgbouncer"] {
        let mut session = admin(&pooler, database);
        // As pgjdbc: all at once.
        let all = Messages::new()
            .parse("", "SHOW LISTS")
            .bind("", "", &[])
            .describe_portal("")
            .execute("")
            .sync();
        session.send(&all);
        let messages = session.ready();
        assert_eq!(tags(&messages).replace('D', ""), "12TCZ", "{messages:?}");
        // As libpq and asyncpg: step by step, with a Flush or a Sync after each.
        session.send(
            Messages::new()
                .parse("s", "SHOW LISTS")
                .describe_statement("s")
                .flush(),
        );
        let messages = session.until(b'T');
        assert_eq!(tags(&messages), "1tT");
        assert_eq!(described(&messages[2])[1].0, "items");
        session.send(
            Messages::new()
                .bind("p", "s", &[])
                .execute_rows("p", 5)
                .flush(),
        );
        assert_eq!(tags(&session.until(b's')), "2DDDDDs");
        session.send(Messages::new().execute("p").sync());
        assert_eq!(tags(&session.ready()), "DDDDDDDCZ");
        session.send(Messages::new().parse("s", "SHOW LISTS").sync());
        assert_eq!(sqlstate(&session.ready()), "42P05");
        session.send(Messages::new().close_statement("s").parse("s", "").sync());
        assert_eq!(tags(&session.ready()), "31Z");
        // An error skips to the Sync.
        session.send(
            Messages::new()
                .parse("", "SHOW NONSENSE")
                .bind("", "", &[])
                .execute("")
                .sync(),
        );
        assert_eq!(tags(&session.ready()), "EZ");
        session.send(Messages::new().bind("", "unknown", &[]).sync());
        assert_eq!(sqlstate(&session.ready()), "26000");
        session.send(Messages::new().execute("unknown").sync());
        assert_eq!(sqlstate(&session.ready()), "34000");
    }
}

/// asyncpg asks for every known type in binary.
#[test]
fn binary_results() {
    let pooler = start(&config(2));
    let mut session = admin(&pooler, "pgbouncer");
    let bind = b"\0\0\0\0\0\0\0\x01\0\x01";
    session.send(
        Messages::new()
            .parse("", "SHOW TOTALS")
            .message(b'B', bind)
            .execute("")
            .sync(),
    );
    let messages = session.ready();
    let row = messages
        .iter()
        .find(|message| message.tag == b'D')
        .expect("a row");
    // "total_xact_count", and a numeric of no digits: zero.
    let mut expected = b"\0\x02\0\0\0\x10total_xact_count\0\0\0\x08".to_vec();
    expected.extend_from_slice(&[0; 8]);
    assert_eq!(row.body, expected);
}

#[test]
fn what_drivers_set_as_they_connect() {
    let pooler = start(&config(2));
    for database in ["pgcat", "pgbouncer"] {
        let mut session = admin(&pooler, database);
        for set in [
            "SET extra_float_digits = 3",
            "SET application_name = 'x'",
            "SET client_encoding TO 'utf-8'",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        ] {
            let messages = session.query(set);
            assert_eq!(tags(&messages), "NCZ", "{set}: {messages:?}");
            assert_eq!(messages[1].body, b"SET\0");
        }
        // What is not done is not acknowledged.
        let key = if database == "pgcat" {
            "ban_time"
        } else {
            "server_lifetime"
        };
        let messages = session.query(&format!("SET {key} = 5"));
        assert_eq!(tags(&messages), "EZ", "{messages:?}");
        // pgjdbc reads the version's beginning, and needs the rest to know how to send text.
        for name in [
            "server_version",
            "client_encoding",
            "standard_conforming_strings",
        ] {
            assert!(session.parameter(name).is_some(), "{name}");
        }
        let version = session
            .parameter("server_version")
            .expect("it was just there");
        assert!(version.starts_with("1."), "{version}");
    }
}

#[test]
fn config_shows_what_is_set() {
    let pooler = start(&config(2).general("connect_timeout = 3000"));
    let value = |database: &str, key: &str| {
        let rows = rows(&mut admin(&pooler, database), "SHOW CONFIG");
        let row = rows.into_iter().find(|row| row["key"] == key);
        row.unwrap_or_else(|| panic!("no {key}"))["value"].clone()
    };
    assert_eq!(value("pgcat", "connect_timeout"), "3000");
    assert_eq!(value("pgcat", "pools.postgres.pool_mode"), "transaction");
    assert_eq!(value("pgcat", "pools.\"postgres\".users"), "postgres");
    assert_eq!(value("pgbouncer", "server_connect_timeout"), "3");
    assert_eq!(value("pgbouncer", "listen_port"), pooler.port().to_string());
}
