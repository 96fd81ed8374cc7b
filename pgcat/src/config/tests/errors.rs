use std::path::Path;

use super::{MINIMAL, error, with_general, with_pool, with_user};
use crate::config::{ConfigError, load};

#[test]
fn a_wrong_value_is_named_with_file_line_and_key() {
    for (text, expected) in [
        (
            MINIMAL.replace("pool_size = 7", "pool_size = \"ten\""),
            "pgcat.toml:9: pools.db.users.0.pool_size: expected an integer from 1 to 4294967295, found \"ten\"",
        ),
        (
            with_user("server_password = \"${PGCAT_NO_SUCH_VARIABLE}\""),
            "pgcat.toml:7: pools.db.users.0.server_password: ${PGCAT_NO_SUCH_VARIABLE}: environment variable not found",
        ),
        (
            MINIMAL.replace("pool_size = 7", "pool_size = 0"),
            "pgcat.toml:9: pools.db.users.0.pool_size: expected an integer from 1 to 4294967295, found 0",
        ),
        (
            MINIMAL.replace("pool_size = 7", ""),
            "pgcat.toml:6: pools.db.users.0.pool_size: expected an integer, found nothing",
        ),
        (
            MINIMAL.replace("pools.db", "pools.pgbouncer"),
            "pgcat.toml:6: pools.pgbouncer: the name \"pgbouncer\" is reserved for the admin database",
        ),
        (
            with_general("port = 70000"),
            "pgcat.toml:3: general.port: expected an integer from 0 to 65535, found 70000",
        ),
        (
            with_general("connect_timeout = 0"),
            "pgcat.toml:3: general.connect_timeout: expected an integer from 1 to 3153600000000, found 0",
        ),
        (
            with_general("idle_timeout = -1"),
            "pgcat.toml:3: general.idle_timeout: expected an integer from 0 to 3153600000000, found -1",
        ),
        (
            with_general("worker_threads = 0x0"),
            "pgcat.toml:3: general.worker_threads: expected an integer from 1 to 1024, found 0x0",
        ),
        (
            with_general("server_round_robin = \"yes\""),
            "pgcat.toml:3: general.server_round_robin: expected true or false, found \"yes\"",
        ),
        (
            with_pool("pool_mode = \"sesion\""),
            "pgcat.toml:7: pools.db.pool_mode: expected \"session\" or \"transaction\", found \"sesion\"",
        ),
        (
            with_pool("pool_mode = 1.5"),
            "pgcat.toml:7: pools.db.pool_mode: expected \"session\" or \"transaction\", found a float",
        ),
        (
            with_user("auth_type = \"SCRAM\""),
            "pgcat.toml:7: pools.db.users.0.auth_type: expected \"md5\" or \"scram-sha-256\" or \"password\" or \"cert\" or \"trust\", found \"SCRAM\"",
        ),
        (
            MINIMAL.replace("password = \"pw\"", "password = 1234"),
            "pgcat.toml:8: pools.db.users.0.password: expected a string, found an integer",
        ),
        (
            MINIMAL.replace("5432", "\n\"5432\""),
            "pgcat.toml:13: pools.db.shards.0.servers.0.port: expected an integer from 1 to 65535, found \"5432\"",
        ),
        (
            MINIMAL.replace("5432, \"primary\"", "5432, \"master\""),
            "pgcat.toml:12: pools.db.shards.0.servers.0.role: expected \"primary\" or \"replica\" or \"auto\" or \"mirror\", found \"master\"",
        ),
        (
            MINIMAL.replace(", \"primary\"", ""),
            "pgcat.toml:12: pools.db.shards.0.servers.0: expected [host, port, role], found 2 elements",
        ),
        (
            MINIMAL
                .replace("[pools.db.", "[pools.\"a.b\".")
                .replace("\"app_db\"", "[]"),
            "pgcat.toml:13: pools.\"a.b\".shards.0.database: expected a string, found an array",
        ),
        (
            format!(
                "general = 1\n{}",
                MINIMAL
                    .split_once("[pools")
                    .expect("pools")
                    .0
                    .replace("[general]", "")
            ),
            "pgcat.toml:1: general: expected a table, found 1",
        ),
        (
            String::new(),
            "pgcat.toml:1: general: expected a table, found nothing",
        ),
        (
            "[general]".to_owned(),
            "pgcat.toml:1: pools: expected a table, found nothing",
        ),
        (
            with_general("").replace("admin_username = \"admin\"\n", ""),
            "pgcat.toml:2: general.admin_username: expected a string, found nothing",
        ),
    ] {
        assert_eq!(error(&text), expected);
    }
}

#[test]
fn what_is_not_toml_is_named_with_its_line() {
    let text = MINIMAL.replace("pool_size = 7", "pool_size = ");
    assert!(
        error(&text).starts_with("pgcat.toml:9: Could not parse config file: "),
        "{}",
        error(&text)
    );
    let text = with_general("port = 1\nport = 2");
    assert!(
        error(&text).starts_with("pgcat.toml:4: Could not parse config file: duplicate key"),
        "{}",
        error(&text)
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = load(Path::new("/nowhere/pgcat.toml"), &[]).expect_err("there is no such file");
    assert!(matches!(error, ConfigError::Open { .. }));
    assert_eq!(
        error.to_string(),
        "Could not open '/nowhere/pgcat.toml': No such file or directory (os error 2)"
    );
}

#[test]
fn rules_between_settings_are_checked() {
    let servers = r#"[["127.0.0.1", 5432, "primary"]]"#;
    for (text, expected) in [
        (
            with_user("min_pool_size = 8"),
            "pgcat.toml:7: pools.db.users.0.min_pool_size: min_pool_size of 8 cannot be larger than pool_size of 7",
        ),
        (
            with_pool("default_role = \"Primary\""),
            "pgcat.toml:7: pools.db.default_role: Query router default_role must be 'primary', 'replica', or 'any', got: 'Primary'",
        ),
        (
            MINIMAL.replace("shards.0", "shards.first"),
            "pgcat.toml:11: pools.db.shards.first: Shard 'first' is not a valid number, shards must be numbered starting at 0",
        ),
        (
            MINIMAL.replace("shards.0", "shards.1"),
            "pgcat.toml:11: pools.db.shards.1: shards must be numbered from 0 to 0 without gaps, found shard 1",
        ),
        (
            format!("{MINIMAL}[pools.db.shards.00]\nservers = {servers}\ndatabase = \"x\""),
            "pgcat.toml:14: pools.db.shards.00: shards must be numbered from 0 to 1 without gaps, found shard 0",
        ),
        (
            with_pool("query_parser_read_write_splitting = true"),
            "pgcat.toml:7: pools.db.query_parser_read_write_splitting: query_parser_read_write_splitting is only valid when query_parser_enabled is true",
        ),
        (
            with_pool("[pools.db.plugins.query_logger]\nenabled = true"),
            "pgcat.toml:7: pools.db.plugins: plugins are only valid when query_parser_enabled is true",
        ),
        (
            with_pool("automatic_sharding_key = \"id\""),
            "pgcat.toml:7: pools.db.automatic_sharding_key: automatic_sharding_key 'id' must be fully qualified, e.g. t.id",
        ),
        (
            with_pool("default_shard = \"shard_99\""),
            "pgcat.toml:7: pools.db.default_shard: Invalid shard 99",
        ),
        (
            with_pool("default_shard = \"99\""),
            "pgcat.toml:7: pools.db.default_shard: expected \"shard_<n>\" or \"random\" or \"random_healthy\", found \"99\"",
        ),
        (
            with_pool("db_activity_based_routing = true\ndb_activity_ttl = 0"),
            "pgcat.toml:8: pools.db.db_activity_ttl: db_activity_ttl must be greater than 0",
        ),
        (
            MINIMAL.replace(servers, "[]"),
            "pgcat.toml:12: pools.db.shards.0.servers: Shard app_db has no servers configured",
        ),
        (
            MINIMAL.replace(servers, r#"[["a", 1, "primary"], ["b", 1, "primary"]]"#),
            "pgcat.toml:12: pools.db.shards.0.servers: Shard app_db has more than one primary configured",
        ),
        (
            MINIMAL.replace(servers, r#"[["a", 1, "replica"], ["a", 1, "replica"]]"#),
            "pgcat.toml:12: pools.db.shards.0.servers: Shard app_db contains duplicate server configs",
        ),
        (
            MINIMAL.replace(servers, &format!("{servers}\nmirrors = [[\"a\", 1, 1]]")),
            "pgcat.toml:13: pools.db.shards.0.mirrors.0.mirroring_target_index: expected an integer from 0 to 0, found 1",
        ),
        (
            MINIMAL.replace(
                servers,
                &format!("{servers}\nmirrors = [[\"127.0.0.1\", 5432, 0]]"),
            ),
            "pgcat.toml:13: pools.db.shards.0.mirrors.0: a server of the shard cannot be its mirror: it would do everything twice",
        ),
        (
            with_pool("max_replica_lag = 1000")
                .replace(servers, r#"[["a", 1, "replica"], ["b", 1, "replica"]]"#),
            "pgcat.toml:7: pools.db.max_replica_lag: shard 0 has no server with role primary or auto, by which the lag of its replicas could be measured",
        ),
        (
            with_general("auth_query = \"SELECT 1\"\nauth_query_user = \"u\""),
            "pgcat.toml:3: general.auth_query: If auth_query is specified, you need to provide a value for `auth_query_user`, `auth_query_password`",
        ),
        (
            with_general("auth_query_user = \"u\"\nauth_query_password = \"p\""),
            "pgcat.toml:3: general.auth_query_user: auth_query_user is set, but auth_query is not",
        ),
        (
            with_pool("auth_query = \"SELECT 1\""),
            "pgcat.toml:7: pools.db.auth_query: Error in pool { db }. If auth_query is specified, you need to provide a value for `auth_query_user`, `auth_query_password`",
        ),
        (
            with_pool("auth_query_user = \"u\"\nauth_query_password = \"p\""),
            "pgcat.toml:6: pools.db.auth_query: Error in pool { db }. `auth_query_user` and `auth_query_password` are of no use without `auth_query`",
        ),
        (
            MINIMAL.replace("password = \"pw\"\n", ""),
            "pgcat.toml:6: pools.db.users.0.password: Error in pool { db }. You have to specify a user password for every pool if auth_query is not specified",
        ),
        (
            format!(
                "{MINIMAL}[pools.db.users.1]\nusername = \"app\"\npassword = \"x\"\npool_size = 1"
            ),
            "pgcat.toml:15: pools.db.users.1.username: the pool has more than one user \"app\"",
        ),
        (
            MINIMAL.replace(
                "\"pw\"",
                "\"md5a3556571e93b0d20722ba62be61e8c2d\"\nauth_type = \"scram-sha-256\"",
            ),
            "pgcat.toml:8: pools.db.users.0.password: an md5 hash cannot serve for scram-sha-256; give the plain password or a SCRAM-SHA-256 secret",
        ),
        (
            with_general("tls_certificate = \"/dev/null\""),
            "pgcat.toml:3: general.tls_certificate: tls_certificate is set, but the tls_private_key is not",
        ),
        (
            with_general("tls_certificate = \"/nowhere\"\ntls_private_key = \"/dev/null\""),
            "pgcat.toml:3: general.tls_certificate: tls_certificate is incorrectly configured: No such file or directory (os error 2)",
        ),
        (
            with_pool("users = {}").replace(
                "[pools.db.users.0]\nusername = \"app\"\npassword = \"pw\"\npool_size = 7\n",
                "",
            ),
            "pgcat.toml:7: pools.db.users: the pool has no users configured",
        ),
        (
            format!("[plugins.stream_tables]\nenabled = true\nmax_connections = 0\n{MINIMAL}"),
            "pgcat.toml:3: plugins.stream_tables.max_connections: too few",
        ),
        (
            format!("[plugins.table_access]\ntables = []\n{MINIMAL}"),
            "pgcat.toml:1: plugins.table_access.enabled: expected true or false, found nothing",
        ),
    ] {
        assert_eq!(error(&text), expected);
    }
    let text = with_pool("sharding_key_regex = \"(\"");
    assert!(
        error(&text).starts_with(
            "pgcat.toml:7: pools.db.sharding_key_regex: sharding_key_regex is not a valid Regex: "
        ),
        "{}",
        error(&text)
    );
}
