//! Rules for logins: `hba_file`, and the methods only it and TLS make possible.

use std::fs;

use test_support::{
    Auth, Authority, Certificate, Pooler, PoolerConfig, Postgres, Psql, PsqlOutput, Settings,
};

use crate::stage::{eventually, start};

struct Guarded {
    authority: Authority,
    pooler: Pooler,
}

const ROLES: &[&str] = &[
    "trusted",
    "rejected",
    "hashed",
    "scrammed",
    "clear",
    "certified",
    "twofold",
];

const RULES: &str = "\
local     all  all        trust
host      all  trusted    127.0.0.0/8          trust
host      all  rejected   127.0.0.1/32         reject
host      all  hashed     127.0.0.1 255.255.255.255 md5
host      all  scrammed   all                  scram-sha-256
host      all  clear      all                  password
hostssl   all  certified  all                  cert
hostssl   all  twofold     all                  scram-sha-256 clientcert=verify-full
";

fn postgres() -> Postgres {
    let postgres = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    for role in ROLES {
        postgres
            .psql("postgres", "postgres")
            .run(&[&format!("CREATE ROLE {role} LOGIN")]);
    }
    postgres
}

impl Guarded {
    fn new(postgres: &Postgres) -> Self {
        let authority = Authority::new();
        let own = authority.issue("localhost", &["localhost"]);
        let rules = authority.file().with_file_name("pg_hba.conf");
        fs::write(&rules, RULES).expect("pg_hba.conf");
        let mut config = PoolerConfig::new(postgres)
            .general(&format!(
                "tls_certificate = {:?}\ntls_private_key = {:?}\ntls_ca = {:?}\nhba_file = {rules:?}",
                own.certificate,
                own.key,
                authority.file()
            ))
            .general("connect_timeout = 5000");
        for role in ROLES {
            config = config.user(role, 1);
        }
        Self {
            pooler: start(&config.user("unnamed", 1)),
            authority,
        }
    }

    fn login(
        &self,
        user: &str,
        password: &str,
        mode: &str,
        own: Option<&Certificate>,
    ) -> PsqlOutput {
        let mut psql = Psql::new("127.0.0.1", self.pooler.port(), user, "postgres")
            .password(password)
            .variable("PGSSLMODE", mode);
        if let Some(own) = own {
            psql = psql
                .variable("PGSSLCERT", own.certificate.display().to_string())
                .variable("PGSSLKEY", own.key.display().to_string());
        }
        psql.try_run(&["SELECT current_user"])
    }

    fn lets_in(&self, user: &str, password: &str, mode: &str, own: Option<&Certificate>) {
        let output = self.login(user, password, mode, own);
        assert_eq!(output.stdout.trim(), user, "{}", output.stderr);
    }

    fn refuses(
        &self,
        user: &str,
        password: &str,
        mode: &str,
        own: Option<&Certificate>,
        reason: &str,
    ) {
        let output = self.login(user, password, mode, own);
        assert!(!output.success, "{user} was let in");
        assert!(output.stderr.contains(reason), "{}", output.stderr);
    }
}

#[test]
fn the_rules_decide() {
    let postgres = postgres();
    let stage = Guarded::new(&postgres);
    let wrong = "password authentication failed";
    stage.lets_in("trusted", "whatever", "disable", None);
    stage.refuses(
        "rejected",
        "rejected",
        "disable",
        None,
        "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"rejected\", database \"postgres\", no encryption",
    );
    stage.refuses(
        "unnamed",
        "unnamed",
        "require",
        None,
        "no pg_hba.conf entry for host \"127.0.0.1\", user \"unnamed\", database \"postgres\", SSL encryption",
    );
    for user in ["hashed", "scrammed"] {
        for mode in ["disable", "require"] {
            stage.lets_in(user, user, mode, None);
            stage.refuses(user, "wrong", mode, None, wrong);
        }
    }
    stage.lets_in("clear", "clear", "require", None);
    stage.refuses("clear", "wrong", "require", None, wrong);
    stage.refuses("clear", "clear", "disable", None, "needs an SSL connection");
}

#[test]
fn certificates_for_users() {
    let postgres = postgres();
    let stage = Guarded::new(&postgres);
    let (certified, both) = (
        stage.authority.issue("certified", &[]),
        stage.authority.issue("twofold", &[]),
    );
    let failed = "certificate authentication failed";
    stage.lets_in("certified", "", "require", Some(&certified));
    stage.refuses("certified", "certified", "require", Some(&both), failed);
    stage.refuses("certified", "certified", "require", None, failed);
    stage.refuses(
        "certified",
        "certified",
        "disable",
        None,
        "no pg_hba.conf entry",
    );
    stage.lets_in("twofold", "twofold", "require", Some(&both));
    stage.refuses(
        "twofold",
        "wrong",
        "require",
        Some(&both),
        "password authentication failed",
    );
    stage.refuses("twofold", "twofold", "require", Some(&certified), failed);
    stage.refuses("twofold", "twofold", "require", None, failed);
}

#[test]
fn rules_are_read_again() {
    let postgres = postgres();
    let stage = Guarded::new(&postgres);
    let file = stage.authority.file().with_file_name("pg_hba.conf");
    stage.lets_in("trusted", "whatever", "disable", None);
    // A bad line leaves everything as it was.
    fs::write(&file, "host all all all ident\n").expect("pg_hba.conf");
    stage.pooler.signal("HUP");
    eventually("the bad line is told", || {
        stage.pooler.log().contains("pg_hba.conf: line 1: ")
    });
    stage.lets_in("trusted", "whatever", "disable", None);
    fs::write(&file, "host all all all reject\n").expect("pg_hba.conf");
    stage.pooler.signal("HUP");
    eventually("the new rule counts", || {
        !stage.login("trusted", "whatever", "disable", None).success
    });
}

/// A pooler with a certificate of this authority's.
fn encrypted(postgres: &Postgres, authority: &Authority) -> PoolerConfig {
    let own = authority.issue("localhost", &["localhost"]);
    PoolerConfig::new(postgres).general(&format!(
        "tls_certificate = {:?}\ntls_private_key = {:?}",
        own.certificate, own.key
    ))
}

/// The same methods without a file of rules.
#[test]
fn a_password_in_the_clear_opens_the_server() {
    let postgres = Postgres::start(15);
    let secret = postgres
        .psql("postgres", "postgres")
        .run(&["SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'"]);
    let authority = Authority::new();
    let config = encrypted(&postgres, &authority)
        .user_with(
            "postgres",
            1,
            &format!("auth_type = \"password\"\npassword = \"{}\"", secret.trim()),
        )
        .without_passwords();
    let pooler = start(&config);
    let psql = pooler
        .psql("postgres", "postgres")
        .variable("PGSSLMODE", "require");
    assert!(
        !psql
            .clone()
            .password("wrong")
            .try_run(&["SELECT 1"])
            .success
    );
    assert_eq!(psql.run(&["SELECT 1"]), "1\n");
}

/// The longest that PostgreSQL takes, and one that nobody does.
#[test]
fn a_password_of_64_kilobytes_in_the_clear() {
    let password = "p".repeat(65_530);
    let postgres = Postgres::start_with(15, &Settings::auth(Auth::Password));
    postgres
        .psql("postgres", "postgres")
        .run(&[&format!("CREATE ROLE tokens LOGIN PASSWORD '{password}'")]);
    let authority = Authority::new();
    let config = encrypted(&postgres, &authority)
        .user_with(
            "tokens",
            1,
            &format!("auth_type = \"password\"\npassword = \"{password}\""),
        )
        .without_passwords();
    let pooler = start(&config);
    let psql = pooler
        .psql("tokens", "postgres")
        .variable("PGSSLMODE", "require");
    let login = |password: &str| psql.clone().password(password).try_run(&["SELECT 1"]);
    for wrong in [&password[1..], &"p".repeat(70_000)] {
        assert!(!login(wrong).success);
    }
    let output = login(&password);
    assert_eq!(output.stdout, "1\n", "{}", output.stderr);
}
