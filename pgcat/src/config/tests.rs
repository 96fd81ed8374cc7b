use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::model::*;
use super::{load, parse};
use crate::plugins::{Action, Plugin, PoolIdentity, SessionView};

mod errors;
mod warnings;

const MINIMAL: &str = r#"
[general]
admin_username = "admin"
admin_password = "secret"

[pools.db.users.0]
username = "app"
password = "pw"
pool_size = 7

[pools.db.shards.0]
servers = [["127.0.0.1", 5432, "primary"]]
database = "app_db"
"#;

/// A plugin of the program around this library.
struct StreamTables;

impl Plugin for StreamTables {
    fn name(&self) -> &'static str {
        "stream_tables"
    }

    fn wants(&self, _pool: &PoolIdentity, _sql: &[u8]) -> bool {
        false
    }

    fn statement(&self, _session: &SessionView<'_>, _sql: &str) -> Action {
        Action::Allow
    }

    fn keys(&self) -> &'static [&'static str] {
        &["max_connections", "refresh_user", "schedule"]
    }

    fn check(&self, settings: &toml::Table) -> Result<(), String> {
        assert!(
            settings
                .keys()
                .all(|key| key == "enabled" || self.keys().iter().any(|known| *known == key))
        );
        match settings
            .get("max_connections")
            .map(|value| value.as_integer())
        {
            Some(Some(0)) => Err("max_connections: too few".to_owned()),
            _ => Ok(()),
        }
    }
}

fn plugins() -> Vec<Arc<dyn Plugin>> {
    vec![Arc::new(StreamTables)]
}

/// The configuration and the warnings of a text, which is read as `pgcat.toml`.
fn read(text: &str) -> (Config, Vec<String>) {
    match parse(text, Path::new("pgcat.toml"), &plugins()) {
        Ok((config, warnings)) => (config, warnings.iter().map(ToString::to_string).collect()),
        Err(error) => panic!("{error}"),
    }
}

fn error(text: &str) -> String {
    match parse(text, Path::new("pgcat.toml"), &plugins()) {
        Ok(_) => panic!("must be refused:\n{text}"),
        Err(error) => error.to_string(),
    }
}

/// [`MINIMAL`] with lines put behind a section's header.
fn with(header: &str, lines: &str) -> String {
    assert!(MINIMAL.contains(header), "{header}");
    MINIMAL.replace(header, &format!("{header}\n{lines}"))
}

fn with_general(lines: &str) -> String {
    with("[general]", lines)
}

fn with_pool(lines: &str) -> String {
    MINIMAL.replace(
        "[pools.db.users.0]",
        &format!("[pools.db]\n{lines}\n[pools.db.users.0]"),
    )
}

fn with_user(lines: &str) -> String {
    with("[pools.db.users.0]", lines)
}

#[test]
fn passwords_may_be_in_the_environment() {
    // Cargo sets it for tests.
    let (config, _) = read(&with_user("server_password = \"${CARGO_PKG_NAME}\""));
    let user = &config.pools["db"].users[0];
    assert_eq!(user.server_password.as_deref(), Some("pgcat"));
    let (config, _) = read(&with_user("server_password = \"a${CARGO_PKG_NAME}\""));
    let user = &config.pools["db"].users[0];
    assert_eq!(user.server_password.as_deref(), Some("a${CARGO_PKG_NAME}"));
}

#[test]
fn how_another_process_takes_over() {
    let of = |lines: &str| {
        let general = read(&with_general(lines)).0.general;
        (general.takeover_socket, general.takeover_timeout)
    };
    let hour = Some(Duration::from_secs(3600));
    assert_eq!(of(""), (TakeoverSocket::Default, hour));
    let off = "takeover_socket = \"\"\ntakeover_timeout = 0";
    assert_eq!(of(off), (TakeoverSocket::Off, None));
    let path = TakeoverSocket::At("/run/pgcat/takeover".into());
    assert_eq!(
        of("takeover_socket = \"/run/pgcat/takeover\""),
        (path, hour)
    );
}

#[test]
fn defaults_are_those_of_the_code_of_pgcat_not_of_its_manual() {
    let (config, _) = read(MINIMAL);
    let general = &config.general;
    assert_eq!((general.host.as_str(), general.port), ("0.0.0.0", 5432));
    assert_eq!(general.connect_timeout, Duration::from_secs(1));
    assert_eq!(general.idle_timeout, Some(Duration::from_secs(600)));
    assert_eq!(general.server_lifetime, Some(Duration::from_secs(3600)));
    assert_eq!(general.tcp_keepalives_idle, Duration::from_secs(5));
    assert_eq!(general.tcp_user_timeout, Duration::ZERO);
    assert_eq!(general.shutdown_timeout, Duration::from_secs(60));
    assert_eq!(general.worker_threads, 4);
    assert_eq!(general.autoreload, None);
    assert_eq!(general.timeouts, Timeouts::default());
    assert!(general.server_round_robin && general.validate_config);
    assert_eq!(general.admin_auth_type, AuthType::Md5);

    let pool = &config.pools["db"];
    assert_eq!(pool.pool_mode, PoolMode::Transaction);
    assert_eq!(pool.load_balancing_mode, LoadBalancing::Random);
    assert_eq!(pool.default_role, WantedRole::Any);
    assert_eq!(pool.default_shard, DefaultShard::Shard(0));
    assert_eq!(pool.regex_search_limit, 1000);
    assert_eq!(
        pool.prepared_statements_cache_size,
        Pool::DEFAULT_PREPARED_STATEMENTS
    );
    assert!(!pool.query_parser_enabled && !pool.primary_reads_enabled);
    assert!(pool.max_replica_lag.is_none() && !pool.read_your_writes);
    assert_eq!(pool.db_activity_ttl, Duration::from_secs(900));
    assert_eq!(pool.shards[0].database, "app_db");
    let address = ServerAddress {
        host: "127.0.0.1".into(),
        port: 5432,
        role: Role::Primary,
    };
    assert_eq!(pool.shards[0].servers, [address]);

    let user = &pool.users[0];
    assert_eq!(
        (user.username.as_str(), user.server_username.as_str()),
        ("app", "app")
    );
    assert_eq!(user.password.as_deref(), Some("pw"));
    assert_eq!(user.server_password.as_deref(), Some("pw"));
    assert_eq!((user.pool_size, user.min_pool_size), (7, 0));
    assert_eq!(user.auth_type, AuthType::Md5);
    assert_eq!(user.timeouts, Timeouts::default());
    let reserve = (user.reserve_pool_size, user.reserve_pool_timeout);
    assert_eq!(reserve, (0, Some(Duration::from_secs(5))));
    let limits = [
        general.max_client_conn,
        pool.max_client_connections,
        pool.max_db_connections,
        user.max_client_connections,
        user.max_user_connections,
    ];
    assert_eq!(limits, [None; 5]);
}

#[test]
fn every_key_of_pgcat_is_known() {
    let text = include_str!("tests/every_key.toml");
    let (config, warnings) = read(text);
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].ends_with(
        "pools.sharded_db.cleanup_server_connections: has no effect: what a client leaves behind is always cleaned up"
    ));

    assert_eq!(config.general.prometheus_exporter_port, 40_000);
    assert_eq!(config.general.autoreload, Some(Duration::from_secs(15)));
    let sharded = &config.pools["sharded_db"];
    assert_eq!(
        sharded.load_balancing_mode,
        LoadBalancing::LeastOutstandingConnections
    );
    assert_eq!(sharded.automatic_sharding_key.as_deref(), Some("data.id"));
    assert_eq!(sharded.default_shard, DefaultShard::RandomHealthy);
    let databases: Vec<_> = sharded
        .shards
        .iter()
        .map(|shard| shard.database.as_str())
        .collect();
    assert_eq!(databases, ["shard0", "shard1", "shard2"]);
    assert_eq!(sharded.shards[1].servers[1].role, Role::Replica);
    assert_eq!(sharded.max_replica_lag, Some(Duration::from_secs(5)));
    assert!(sharded.read_your_writes);
    assert_eq!(sharded.shards[0].mirrors[0].mirroring_target_index, 1);
    let names: Vec<_> = sharded
        .users
        .iter()
        .map(|user| user.username.as_str())
        .collect();
    assert_eq!(names, ["sharding_user", "other_user", "trusted"]);
    assert_eq!(sharded.users[1].pool_mode, PoolMode::Session);
    assert_eq!(
        sharded.users[1].timeouts.statement,
        Some(Duration::from_secs(3))
    );
    assert_eq!(sharded.users[2].auth_type, AuthType::Trust);
    assert!(
        sharded.plugins.contains_key("table_access")
            && !sharded.plugins.contains_key("stream_tables")
    );
    assert_eq!(
        config.pools["simple_db"]
            .auth_query
            .as_ref()
            .map(|query| query.user.as_str()),
        Some("md5_auth_user")
    );
    assert_eq!(config.pools["simple_db"].plugins, config.plugins);
    assert_eq!(
        config.plugins["stream_tables"]["max_connections"].as_integer(),
        Some(2)
    );
    let rows = &config.plugins["intercept"]["queries"]["0"]["result"];
    assert_eq!(rows[0][1].as_str(), Some("${USER}"));
}

#[test]
fn the_example_at_the_root_loads_without_a_warning() {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../pgcat.toml"));
    let (config, warnings) = load(&path, &plugins()).expect("pgcat.toml loads");
    assert!(warnings.is_empty(), "{warnings:#?}");
    assert_eq!(
        (config.general.host.as_str(), config.general.port),
        ("127.0.0.1", 6432)
    );
    let pool = &config.pools["demo"];
    assert_eq!(pool.users[0].username, "demo");
    assert_eq!(pool.users[0].pool_size, 10);
    assert_eq!(pool.shards[0].servers[0].port, 5432);
    assert_eq!(
        pool.plugins["stream_tables"]["enabled"].as_bool(),
        Some(true)
    );
}

#[test]
fn spellings_of_pgcat_are_taken() {
    for (line, pool_mode) in [
        ("Session", PoolMode::Session),
        ("Transaction", PoolMode::Transaction),
    ] {
        let (config, _) = read(&with_pool(&format!("pool_mode = \"{line}\"")));
        assert_eq!(config.pools["db"].pool_mode, pool_mode);
        assert_eq!(config.pools["db"].users[0].pool_mode, pool_mode);
    }
    for line in ["loc", "LOC", "least_outstanding_connections"] {
        let (config, _) = read(&with_pool(&format!("load_balancing_mode = \"{line}\"")));
        let mode = config.pools["db"].load_balancing_mode;
        assert_eq!(mode, LoadBalancing::LeastOutstandingConnections);
    }
    for line in ["PgBigintHash", "pg_bigint_hash"] {
        let (config, _) = read(&with_pool(&format!("sharding_function = \"{line}\"")));
        assert_eq!(
            config.pools["db"].sharding_function,
            ShardingFunction::PgBigintHash
        );
    }
    for (line, auth_type) in [
        ("MD5", AuthType::Md5),
        ("Trust", AuthType::Trust),
        ("scram-sha-256", AuthType::ScramSha256),
    ] {
        let (config, _) = read(&with_user(&format!("auth_type = \"{line}\"")));
        assert_eq!(config.pools["db"].users[0].auth_type, auth_type);
    }
    let table = r#"servers = [{ host = "127.0.0.1", port = 5432, role = "Primary" }]"#;
    let (config, warnings) =
        read(&MINIMAL.replace(r#"servers = [["127.0.0.1", 5432, "primary"]]"#, table));
    assert_eq!(config.pools, read(MINIMAL).0.pools);
    assert_eq!(warnings, <[String; 0]>::default());
}

#[test]
fn timeouts_are_taken_from_user_then_pool_then_general() {
    let text = with_user("idle_timeout = 3\nconnect_timeout = 30\ntransaction_timeout = 0").replace(
        "[pools.db.users.0]",
        "[pools.db]\nidle_timeout = 2\nstatement_timeout = 22\nserver_lifetime = 20\n[pools.db.users.0]",
    );
    let text = text.replace(
        "[general]",
        "[general]\nidle_timeout = 1\nserver_lifetime = 10\nconnect_timeout = 100\nstatement_timeout = 11\n\
         transaction_timeout = 12\nclient_idle_timeout = 13",
    );
    let (config, _) = read(&text);
    let user = &config.pools["db"].users[0];
    assert_eq!(user.idle_timeout, Some(Duration::from_millis(3)));
    assert_eq!(user.server_lifetime, Some(Duration::from_millis(20)));
    assert_eq!(user.connect_timeout, Duration::from_millis(30));
    let timeouts = Timeouts {
        statement: Some(Duration::from_millis(22)),
        transaction: None,
        idle_in_transaction: None,
        idle: Some(Duration::from_millis(13)),
    };
    assert_eq!(user.timeouts, timeouts);
}

#[test]
fn zero_turns_a_timeout_off_also_against_an_inherited_one() {
    let (config, _) = read(&with_user("idle_timeout = 0\nserver_lifetime = 0"));
    let user = &config.pools["db"].users[0];
    assert_eq!((user.idle_timeout, user.server_lifetime), (None, None));
    let (config, _) = read(&with_general(
        "autoreload = 0\nidle_client_in_transaction_timeout = 0",
    ));
    assert_eq!(config.general.autoreload, None);
    assert_eq!(config.general.timeouts.idle_in_transaction, None);
}

#[test]
fn a_pool_with_plugins_of_its_own_has_only_those() {
    let text = with_pool("[pools.db.plugins.stream_tables]\nenabled = false");
    let text = format!("[plugins.stream_tables]\nenabled = true\nschedule = \"5s\"\n{text}");
    let (config, _) = read(&text);
    assert_eq!(
        config.plugins["stream_tables"]["schedule"].as_str(),
        Some("5s")
    );
    let own = &config.pools["db"].plugins["stream_tables"];
    assert_eq!(
        (own["enabled"].as_bool(), own.get("schedule")),
        (Some(false), None)
    );
}

#[test]
fn other_users_are_verified_by_auth_query() {
    let others = |lines: &str, query: &str| {
        with_pool(query)
            .replace("username = \"app\"", &format!("username = \"*\"\n{lines}"))
            .replace("password = \"pw\"\n", "")
    };
    let query = "auth_query = \"q\"\nauth_query_user = \"u\"\nauth_query_password = \"p\"";
    let (config, _) = read(&others("", query));
    let pool = &config.pools["db"];
    assert!(pool.users.is_empty());
    let user = pool.other_users.as_ref().expect("others").named("joe");
    assert_eq!(
        (user.username.as_str(), user.server_username.as_str()),
        ("joe", "joe")
    );
    for (lines, expected) in [
        (
            "password = \"x\"",
            "password: the user \"*\" has the password that",
        ),
        (
            "auth_type = \"trust\"",
            "auth_type: the user \"*\" has to prove a password",
        ),
        (
            "min_pool_size = 1",
            "min_pool_size: the user \"*\" has no pool before",
        ),
    ] {
        let error = error(&others(lines, query));
        assert!(error.contains(&format!("users.0.{expected}")), "{error}");
    }
    let error = error(&others("", ""));
    assert!(error.contains("if auth_query is not specified"), "{error}");
}

#[test]
fn a_scram_secret_makes_md5_mean_scram() {
    let secret = crate::session::auth::TEST_SECRET;
    let (config, _) = read(&MINIMAL.replace("\"pw\"", &format!("\"{secret}\"")));
    assert_eq!(config.pools["db"].users[0].auth_type, AuthType::ScramSha256);
}

#[test]
fn without_an_admin_login_there_is_none_to_guess() {
    let text = MINIMAL
        .replace("admin_username = \"admin\"\n", "")
        .replace("admin_password = \"secret\"\n", "");
    let (config, warnings) = read(&text);
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(config.general.admin_username.is_empty());
}

#[test]
fn what_pgcat_refuses_without_need_is_taken() {
    // A user who needs no password.
    let text = MINIMAL.replace("password = \"pw\"\n", "auth_type = \"trust\"\n");
    assert_eq!(read(&text).0.pools["db"].users[0].password, None);
    // Stream tables need no query parser of PgCat's.
    let text = with_pool("[pools.db.plugins.stream_tables]\nenabled = true");
    assert!(
        read(&text).0.pools["db"]
            .plugins
            .contains_key("stream_tables")
    );
    // A query in the pool, its login in [general].
    let text = with_pool("auth_query = \"SELECT 1\"").replace(
        "[general]",
        "[general]\nauth_query_user = \"u\"\nauth_query_password = \"p\"",
    );
    assert!(read(&text).0.pools["db"].auth_query.is_some());
}
