//! `auth_query`: no password in the configuration, neither for clients nor for the server.

use std::sync::OnceLock;

use test_support::wire::{PROTOCOL_3_0, Wire, startup};
use test_support::{Auth, Pooler, PoolerConfig, Postgres, Psql, Settings};

use crate::stage::{eventually, start};

/// A server that asks for SCRAM, or with `md5_` before the name for md5, with one role for each test.
fn postgres() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let settings = Settings::auth(Auth::Scram)
            .hba("host all md5_user 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 scram-sha-256\n");
        let postgres = Postgres::start_with(15, &settings);
        postgres.psql("postgres", "postgres").run(&[
            "CREATE ROLE scram_user LOGIN PASSWORD 'first'",
            "CREATE ROLE changing LOGIN PASSWORD 'first'",
            "CREATE ROLE expired LOGIN PASSWORD 'first' VALID UNTIL '2020-01-01'",
            "CREATE ROLE \"o'\\neill\" LOGIN PASSWORD 'first'",
            "SET password_encryption = md5",
            "CREATE ROLE md5_user LOGIN PASSWORD 'first'",
        ]);
        postgres
    })
}

const PGBOUNCERS: &str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END \
     FROM pg_authid WHERE rolname = $1 AND rolcanlogin";
const PGCATS: &str = "SELECT usename, passwd FROM pg_shadow WHERE usename='$1'";

fn pooler(query: &str, users: &[&str]) -> Pooler {
    let mut config = PoolerConfig::new(postgres()).general(&format!(
        "auth_query = \"{query}\"\nauth_query_user = \"postgres\"\nauth_query_password = \"postgres\""
    ));
    for user in users {
        config = config.user(&user.replace('\\', "\\\\"), 2);
    }
    start(&config.without_passwords())
}

fn login(pooler: &Pooler, user: &str, password: &str) -> Result<String, String> {
    let output = Psql::new("127.0.0.1", pooler.port(), user, "postgres")
        .password(password)
        .try_run(&["SELECT current_user"]);
    if output.success {
        Ok(output.stdout.trim().to_owned())
    } else {
        Err(output.stderr)
    }
}

fn assert_refused(pooler: &Pooler, user: &str, password: &str) {
    let error = login(pooler, user, password).expect_err("let in");
    assert!(
        error.contains(&format!(
            "password authentication failed for user \"{user}\""
        )),
        "{error}"
    );
}

#[test]
fn logins_are_passed_through() {
    let users = ["scram_user", "md5_user", "o'\\neill"];
    for query in [PGBOUNCERS, PGCATS] {
        let pooler = pooler(query, &users);
        for user in users {
            assert_refused(&pooler, user, "wrong");
            assert_eq!(login(&pooler, user, "first"), Ok(user.to_owned()));
            assert_refused(&pooler, user, "wrong");
            assert_eq!(login(&pooler, user, "first"), Ok(user.to_owned()));
        }
        let log = pooler.log();
        assert!(!log.contains("ERROR"), "{log}");
    }
}

/// The old password is refused, and the new one works, at once.
#[test]
fn a_changed_password() {
    let pooler = pooler(PGBOUNCERS, &["changing"]);
    assert_eq!(
        login(&pooler, "changing", "first"),
        Ok("changing".to_owned())
    );
    let server = postgres().psql("postgres", "postgres");
    server.run(&["ALTER ROLE changing PASSWORD 'second'"]);
    // The pool has to open a connection with the new keys.
    server.run(&[
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'changing'",
    ]);
    assert_refused(&pooler, "changing", "first");
    assert_eq!(
        login(&pooler, "changing", "second"),
        Ok("changing".to_owned())
    );
}

/// CVE-2025-2291.
#[test]
fn an_expired_password() {
    let pooler = pooler(PGBOUNCERS, &["expired"]);
    assert_refused(&pooler, "expired", "first");
}

/// Somebody of whom the query knows nothing is asked for a proof like anybody else, with a salt that
/// stays.
#[test]
fn a_role_that_does_not_exist() {
    let pooler = pooler(PGBOUNCERS, &["nobody", "scram_user"]);
    let salt = |user: &str| {
        let mut wire = Wire::open(pooler.port());
        wire.send(startup(
            PROTOCOL_3_0,
            &[("user", user), ("database", "postgres")],
        ));
        let offer = wire.message();
        let mut body = b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc".to_vec();
        let length = (body.len() + 4) as u32;
        let mut message = vec![b'p'];
        message.extend_from_slice(&length.to_be_bytes());
        message.append(&mut body);
        wire.send(message);
        let challenge = wire.message();
        let text = String::from_utf8_lossy(&challenge.body[4..]).into_owned();
        let parts: Vec<_> = text.split(',').map(str::to_owned).collect();
        (offer, parts[1].clone(), parts[2].clone())
    };
    let (real, unknown) = (salt("scram_user"), salt("nobody"));
    assert_eq!(real.0, unknown.0);
    assert_eq!((real.1.len(), &real.2), (unknown.1.len(), &unknown.2));
    assert_eq!(unknown, salt("nobody"));
    assert_refused(&pooler, "nobody", "first");
}

/// The user who asks is no way in.
#[test]
fn the_user_who_asks_is_no_client() {
    let pooler = pooler(PGBOUNCERS, &["scram_user"]);
    let error = login(&pooler, "postgres", "postgres").expect_err("let in");
    assert!(error.contains("No pool configured"), "{error}");
}

#[test]
fn a_query_that_fails() {
    for (query, reason) in [
        ("SELECT nonsense", "column \"nonsense\" does not exist"),
        ("SELECT 1", "a row of 1 columns"),
        ("SELECT 'postgres', 'md5x'", "a row for another user"),
        (
            "SELECT v, v FROM (VALUES ('scram_user'), ('b')) t (v)",
            "more than one row",
        ),
    ] {
        let pooler = pooler(query, &["scram_user"]);
        let error = login(&pooler, "scram_user", "first").expect_err("let in");
        assert!(error.contains("auth_query failed"), "{error}");
        let log = pooler.log();
        assert!(
            log.contains("Error trying to obtain password from auth_query"),
            "{log}"
        );
        assert!(log.contains(reason), "{log}");
    }
}

/// A SCRAM secret in the configuration: nobody's password is in it, and clients' logins open the pool.
#[test]
fn a_secret_in_the_configuration() {
    let secret = postgres()
        .psql("postgres", "postgres")
        .run(&["SELECT rolpassword FROM pg_authid WHERE rolname = 'scram_user'"]);
    let config = PoolerConfig::new(postgres())
        .user_with(
            "scram_user",
            2,
            &format!("password = \"{}\"", secret.trim()),
        )
        .without_passwords();
    let pooler = start(&config);
    assert_refused(&pooler, "scram_user", "wrong");
    assert_eq!(
        login(&pooler, "scram_user", "first"),
        Ok("scram_user".to_owned())
    );
    let log = pooler.log();
    assert!(!log.contains("ERROR"), "{log}");
}

/// The users who have pools now.
fn users_with_pools(pooler: &Pooler) -> Vec<String> {
    let pools = pooler.psql("admin", "pgbouncer").run(&["SHOW POOLS"]);
    let of_database = pools
        .lines()
        .filter_map(|row| row.strip_prefix("postgres|"));
    // The pool of the user who asks is there as well.
    let users = of_database.filter_map(|row| row.split('|').next());
    let mut users: Vec<_> = users
        .filter(|u| *u != "postgres")
        .map(str::to_owned)
        .collect();
    users.sort();
    users
}

#[test]
fn users_whom_nobody_has_named() {
    let pooler = pooler(PGBOUNCERS, &["*", "changing"]);
    for user in ["scram_user", "md5_user", "o'\\neill"] {
        assert_refused(&pooler, user, "wrong");
    }
    for user in ["nobody", "expired", "*"] {
        assert_refused(&pooler, user, "first");
    }
    // Who has not proved anything has no pool.
    assert_eq!(users_with_pools(&pooler), ["changing"]);
    for user in ["scram_user", "md5_user", "o'\\neill"] {
        assert_eq!(login(&pooler, user, "first"), Ok(user.to_owned()));
        assert_refused(&pooler, user, "wrong");
        assert_eq!(login(&pooler, user, "first"), Ok(user.to_owned()));
    }
    let users = ["changing", "md5_user", "o'\\neill", "scram_user"];
    assert_eq!(users_with_pools(&pooler), users);
    let log = pooler.log();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn many_logins_of_a_new_user_at_once() {
    let pooler = pooler(PGBOUNCERS, &["*"]);
    std::thread::scope(|scope| {
        let logins: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| login(&pooler, "scram_user", "first")))
            .collect();
        for login in logins {
            assert_eq!(login.join().expect("a login"), Ok("scram_user".to_owned()));
        }
    });
    assert_eq!(users_with_pools(&pooler), ["scram_user"]);
}

/// A pool stays for its clients, also over a reload, and for its connections; then it is removed.
#[test]
fn a_pool_that_nobody_uses_any_more() {
    let config = |size, idle| {
        PoolerConfig::new(postgres())
            .general(&format!(
                "auth_query = \"{PGBOUNCERS}\"\nauth_query_user = \"postgres\"\n\
                 auth_query_password = \"postgres\"\nidle_timeout = {idle}"
            ))
            .user("*", size)
            .without_passwords()
    };
    let pooler = start(&config(1, 300));
    let psql = Psql::new("127.0.0.1", pooler.port(), "scram_user", "postgres").password("first");
    let session = std::thread::spawn(move || {
        psql.try_run(&["SELECT 1", "\\! sleep 3", "SELECT current_user"])
    });
    eventually("the client has logged in", || {
        let clients = pooler.psql("admin", "pgbouncer").run(&["SHOW CLIENTS"]);
        clients.contains("|scram_user|")
    });
    std::fs::write(pooler.config_path(), config(2, 400).render(pooler.port())).expect("pgcat.toml");
    pooler.signal("HUP");
    eventually("the configuration is reloaded", || {
        pooler.log().contains("Configuration reloaded")
    });
    assert_eq!(users_with_pools(&pooler), ["scram_user"]);
    let output = session.join().expect("psql");
    assert!(output.success, "{}", output.stderr);
    assert!(output.stdout.ends_with("scram_user\n"), "{}", output.stdout);
    eventually("the pool is gone", || users_with_pools(&pooler).is_empty());
    assert_eq!(
        login(&pooler, "scram_user", "first"),
        Ok("scram_user".to_owned())
    );
}
