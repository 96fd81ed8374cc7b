//! What the tests are played on.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use test_support::wire::{Message, Messages, Wire};
use test_support::{Auth, Pooler, PoolerConfig, Postgres, Settings};

/// Where a test wants servers that need not be different ones: all of these lead to [`server`], which
/// says by `inet_server_addr()` which of them a connection was made to.
pub const HOSTS: [&str; 4] = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"];

/// The name of the host that a connection was made to.
pub const HOST: &str = "SELECT host(inet_server_addr())";

/// PostgreSQL 15 that trusts everybody, with the databases `shard0`, `shard1` and `shard2`. Ends with
/// the process, by its watchdog.
pub fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let settings = Settings::auth(Auth::Trust)
            .parameter("max_connections", "400")
            .parameter("listen_addresses", &HOSTS.join(","));
        let server = Postgres::start_with(15, &settings);
        let mut direct = Wire::connect(server.port(), "postgres", "postgres");
        for shard in 0..3 {
            direct.run(&format!("CREATE DATABASE shard{shard}"));
        }
        server
    })
}

/// A pool `postgres` of the user `postgres` over the hosts of [`server`] with these roles.
pub fn config(roles: &[&str]) -> PoolerConfig {
    let port = server().port();
    let servers: Vec<_> = HOSTS
        .iter()
        .zip(roles)
        .map(|(host, role)| (*host, port, *role))
        .collect();
    PoolerConfig::new(server())
        .servers(&servers)
        .user_with("postgres", 4, "auth_type = \"trust\"")
}

pub fn start(config: &PoolerConfig) -> Pooler {
    Pooler::start(env!("CARGO_BIN_EXE_pgcat"), config)
}

pub fn client(pooler: &Pooler) -> Wire {
    Wire::connect(pooler.port(), "postgres", "postgres")
}

/// How often a statement gave which value.
pub fn tally(client: &mut Wire, sql: &str, times: usize) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for _ in 0..times {
        *tally.entry(client.value(sql)).or_default() += 1;
    }
    tally
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A server of its own, to be harmed.
pub fn own_server() -> Postgres {
    Postgres::start_with(15, &Settings::auth(Auth::Trust))
}

/// A pool `postgres` of the user `postgres` over these servers.
pub fn config_of(servers: &[(&Postgres, &str)]) -> PoolerConfig {
    let listed: Vec<_> = servers
        .iter()
        .map(|(server, role)| ("127.0.0.1", server.port(), *role))
        .collect();
    PoolerConfig::new(servers[0].0).servers(&listed).user_with(
        "postgres",
        4,
        "auth_type = \"trust\"",
    )
}

/// The replies to a statement by the extended protocol, sent all at once, as pgjdbc does it.
pub fn extended(client: &mut Wire, sql: &str) -> Vec<Message> {
    client.send(
        Messages::new()
            .parse("", sql)
            .bind("", "", &[])
            .describe_portal("")
            .execute("")
            .sync(),
    );
    client.ready()
}
