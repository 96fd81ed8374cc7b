//! What the drivers are tried on: one server for all; for each a database and a pooler of its own.

use std::path::PathBuf;
use std::sync::OnceLock;

use test_support::{Authority, Pooler, PoolerConfig, Postgres};

/// Fewer servers than any of the programs has clients.
pub const POOL_SIZE: u32 = 3;

/// Role `app` owns what the drivers see. Ends with the process, by its watchdog.
pub fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let postgres = Postgres::start(15);
        postgres
            .psql("postgres", "postgres")
            .run(&["CREATE ROLE app LOGIN PASSWORD 'app'"]);
        postgres
    })
}

/// A pooler whose clients log in as `app` by SCRAM, with TLS or without.
pub struct Stage {
    pub pooler: Pooler,
    pub database: String,
    authority: Authority,
    stranger: Authority,
}

impl Stage {
    /// With a new database.
    pub fn new(database: &str, pool_size: u32) -> Self {
        let postgres = server();
        postgres.psql("postgres", "postgres").run(&[&format!(
            "CREATE DATABASE {database} OWNER app TEMPLATE template0"
        )]);
        postgres
            .psql("postgres", database)
            .run(&["ALTER SCHEMA public OWNER TO app"]);
        let authority = Authority::new();
        let certificate = authority.issue("localhost", &["localhost"]);
        let config = PoolerConfig::new(postgres)
            .databases(&[database])
            .user_with("app", pool_size, "auth_type = \"scram-sha-256\"")
            .general("connect_timeout = 30000")
            .general(&format!(
                "tls_certificate = {:?}\ntls_private_key = {:?}",
                certificate.certificate, certificate.key
            ))
            .stream_tables();
        Self {
            pooler: Pooler::start(env!("CARGO_BIN_EXE_pgcat"), &config),
            database: database.to_owned(),
            authority,
            stranger: Authority::new(),
        }
    }

    /// The authority that signed the pooler's certificate, which is for `localhost`.
    pub fn ca(&self) -> PathBuf {
        self.authority.file()
    }

    /// An authority that did not.
    pub fn other_ca(&self) -> PathBuf {
        self.stranger.file()
    }
}
