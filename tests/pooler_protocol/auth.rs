//! Who may log in: clients at the pooler, and the pooler at its servers.

use std::cell::RefCell;
use std::sync::OnceLock;

use test_support::wire::{PROTOCOL_3_0, Wire, sqlstate, startup};
use test_support::{Auth, Pooler, PoolerConfig, Postgres, Psql, Settings};

use crate::stage::{eventually, server, start};

fn scram_server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::start(15))
}

fn pooler_with(auth_type: &str) -> Pooler {
    start(&PoolerConfig::new(server()).user_with("postgres", 2, auth_type))
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

/// The SQLSTATE a login fails with.
fn refusal(pooler: &Pooler, user: &str, password: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(pooler.port())
        .user(user)
        .password(password)
        .dbname("postgres");
    let error = runtime.block_on(async { config.connect(tokio_postgres::NoTls).await.err() });
    let error = error.expect("let in with a wrong password");
    error.code().expect("a SQLSTATE").code().to_owned()
}

fn assert_refused(result: Result<String, String>, user: &str) {
    let error = result.expect_err("let in with a wrong password");
    assert!(
        error.contains(&format!(
            "password authentication failed for user \"{user}\""
        )),
        "{error}"
    );
}

/// PgCat's default.
#[test]
fn md5_clients() {
    for lines in ["", "auth_type = \"md5\""] {
        let pooler = pooler_with(lines);
        assert_eq!(refusal(&pooler, "postgres", "wrong"), "28P01");
        assert_eq!(login(&pooler, "postgres", "postgres").unwrap(), "postgres");
        assert_refused(login(&pooler, "postgres", "wrong"), "postgres");
        assert_refused(login(&pooler, "postgres", " postgres"), "postgres");
    }
}

#[test]
fn scram_clients() {
    let pooler = pooler_with("auth_type = \"scram-sha-256\"");
    assert_eq!(refusal(&pooler, "postgres", "wrong"), "28P01");
    assert_eq!(login(&pooler, "postgres", "postgres").unwrap(), "postgres");
    assert_refused(login(&pooler, "postgres", "wrong"), "postgres");
    for _ in 0..5 {
        assert_eq!(login(&pooler, "postgres", "postgres").unwrap(), "postgres");
    }
}

/// Tokens used as passwords: 1.2 kB at AWS, more where they are JWTs.
#[test]
fn long_passwords() {
    let password = "a long token: ".repeat(250);
    for auth in [Auth::Password, Auth::Md5, Auth::Scram] {
        let postgres = Postgres::start_with(15, &Settings::auth(auth));
        postgres
            .psql("postgres", "postgres")
            .run(&[&format!("CREATE ROLE tokens LOGIN PASSWORD '{password}'")]);
        for auth_type in ["md5", "scram-sha-256"] {
            let user = format!("auth_type = \"{auth_type}\"\npassword = \"{password}\"");
            let config = PoolerConfig::new(&postgres).without_passwords();
            let pooler = start(&config.user_with("tokens", 2, &user));
            assert_eq!(
                login(&pooler, "tokens", &password).unwrap(),
                "tokens",
                "{auth:?}"
            );
            assert_refused(login(&pooler, "tokens", &password[1..]), "tokens");
        }
    }
}

#[test]
fn trusted_clients() {
    let pooler = pooler_with("auth_type = \"trust\"");
    assert_eq!(login(&pooler, "postgres", "whatever").unwrap(), "postgres");
}

#[test]
fn unknown_users_are_refused() {
    for lines in ["", "auth_type = \"scram-sha-256\"", "auth_type = \"trust\""] {
        let pooler = pooler_with(lines);
        let error = login(&pooler, "nobody", "postgres").unwrap_err();
        assert!(
            error.contains("No pool configured for database: \"postgres\", user: \"nobody\""),
            "{error}"
        );
    }
}

/// Whatever the server asks for, the pooler answers with the user's password.
#[test]
fn servers_of_every_kind() {
    for auth in [Auth::Trust, Auth::Password, Auth::Md5] {
        let postgres = Postgres::start_with(15, &Settings::auth(auth));
        let pooler = start(&PoolerConfig::new(&postgres).user("postgres", 2));
        assert_eq!(
            login(&pooler, "postgres", "postgres").unwrap(),
            "postgres",
            "{auth:?}"
        );
    }
    let pooler = start(&PoolerConfig::new(scram_server()).user("postgres", 2));
    assert_eq!(login(&pooler, "postgres", "postgres").unwrap(), "postgres");
}

#[test]
fn another_user_and_password_for_the_server() {
    let pooler = start(&PoolerConfig::new(scram_server()).user_with(
        "alias",
        2,
        "server_username = \"postgres\"\nserver_password = \"postgres\"",
    ));
    assert_eq!(login(&pooler, "alias", "alias").unwrap(), "postgres");
}

/// Those who connect and say nothing neither stay for ever nor become many.
#[test]
fn clients_that_do_not_log_in() {
    let pooler = start(
        &PoolerConfig::new(server())
            .general("max_client_logins = 2\nclient_login_timeout = 3000")
            .user_with("postgres", 2, "auth_type = \"trust\""),
    );
    // Who has logged in does not count.
    let mut inside = Wire::connect(pooler.port(), "postgres", "postgres");
    let silent = RefCell::new(Vec::new());
    let login = || {
        let mut wire = Wire::open(pooler.port());
        wire.try_send(startup(
            PROTOCOL_3_0,
            &[("user", "postgres"), ("database", "postgres")],
        ));
        wire.try_greeted()
    };
    // One more at a time: a login that has just been answered may still be counted for a moment, and
    // take the place of a silent client.
    eventually("the places are taken", || {
        silent.borrow_mut().push(Wire::open(pooler.port()));
        // Nothing is told if the connection was reset.
        login().is_err_and(|told| !told.is_empty() && sqlstate(&told) == "53300")
    });
    assert_eq!(inside.value("SELECT 1"), "1");
    for mut wire in silent.into_inner() {
        // Panics if the client stays.
        wire.end();
    }
    eventually("their places are free", || login().is_ok());
}

/// The server's own reason reaches the log, and something of it the client; nobody waits long.
#[test]
fn a_wrong_password_for_the_server() {
    let pooler = start(
        &PoolerConfig::new(scram_server())
            .general("connect_timeout = 3000")
            .user_with("postgres", 2, "server_password = \"wrong\""),
    );
    let error = login(&pooler, "postgres", "postgres").unwrap_err();
    assert!(
        error.contains("Pool down for database: \"postgres\", user: \"postgres\""),
        "{error}"
    );
    assert!(
        pooler.log().contains("password authentication failed"),
        "{}",
        pooler.log()
    );
}

#[test]
fn a_database_the_server_does_not_have() {
    let pooler = start(
        &PoolerConfig::new(scram_server())
            .databases(&["absent"])
            .general("connect_timeout = 3000")
            .user("postgres", 2),
    );
    let output = pooler.psql("postgres", "absent").try_run(&["SELECT 1"]);
    assert!(!output.success);
    assert!(
        pooler.log().contains("database \"absent\" does not exist"),
        "{}",
        pooler.log()
    );
}
