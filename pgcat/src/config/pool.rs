//! `[pools.<name>]`.

use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

use super::error::ConfigError;
use super::general::{AuthQueryKeys, INCOMPLETE_AUTH_QUERY, Inherited, timeouts};
use super::model::{
    AuthQuery, DefaultShard, LoadBalancing, PluginTables, Pool, PoolMode, Role, Shard,
    ShardingFunction, WantedRole,
};
use super::section::Section;
use super::user::PoolDefaults;
use super::{plugin_sections, shard, user};
use crate::plugins::Plugin;

pub(super) const POOL_MODES: &[(&str, PoolMode)] = &[
    ("session", PoolMode::Session),
    ("transaction", PoolMode::Transaction),
];

const LOAD_BALANCING: &[(&str, LoadBalancing)] = &[
    ("random", LoadBalancing::Random),
    ("loc", LoadBalancing::LeastOutstandingConnections),
    (
        "least_outstanding_connections",
        LoadBalancing::LeastOutstandingConnections,
    ),
    (
        "LeastOutstandingConnections",
        LoadBalancing::LeastOutstandingConnections,
    ),
];

const SHARDING_FUNCTIONS: &[(&str, ShardingFunction)] = &[
    ("pg_bigint_hash", ShardingFunction::PgBigintHash),
    ("PgBigintHash", ShardingFunction::PgBigintHash),
    ("sha1", ShardingFunction::Sha1),
];

pub(super) fn read(
    section: &Section<'_>,
    name: &str,
    inherited: &Inherited,
    global_plugins: &PluginTables,
    known_plugins: &[Arc<dyn Plugin>],
) -> Result<Pool, ConfigError> {
    let flag = |name, default| -> Result<bool, ConfigError> {
        Ok(section.boolean(name)?.unwrap_or(default))
    };
    let auth_query = auth_query(section, name, inherited)?;
    if let Some(cleanup) = section.value("cleanup_server_connections")
        && !cleanup.boolean()?
    {
        // It leaks settings from client to client. Cleaning costs nothing where nothing is left behind.
        let message = "has no effect: what a client leaves behind is always cleaned up";
        cleanup.place.remark(message);
    }
    let pool_mode = section
        .choice("pool_mode", POOL_MODES)?
        .unwrap_or(PoolMode::Transaction);
    let defaults = PoolDefaults {
        pool: name,
        pool_mode,
        connect_timeout: section
            .milliseconds("connect_timeout", 1)?
            .unwrap_or(inherited.connect_timeout),
        idle_timeout: section
            .timeout("idle_timeout")?
            .unwrap_or(inherited.idle_timeout),
        server_lifetime: section
            .timeout("server_lifetime")?
            .unwrap_or(inherited.server_lifetime),
        reserve_pool_timeout: section
            .timeout("reserve_pool_timeout")?
            .unwrap_or(inherited.reserve_pool_timeout),
        timeouts: timeouts(section, inherited.timeouts)?,
        has_auth_query: auth_query.is_some(),
    };
    let query_parser_enabled = flag("query_parser_enabled", false)?;
    let query_parser_read_write_splitting = flag("query_parser_read_write_splitting", false)?;
    if query_parser_read_write_splitting && !query_parser_enabled {
        return Err(section.error(
            "query_parser_read_write_splitting",
            "query_parser_read_write_splitting is only valid when query_parser_enabled is true",
        ));
    }
    let plugins = match section.section("plugins")? {
        Some(plugins) => {
            let read = plugin_sections::read(&plugins, known_plugins)?;
            if read.needs_query_parser && !query_parser_enabled {
                let message = "plugins are only valid when query_parser_enabled is true";
                return Err(plugins.error_here(message));
            }
            read.tables
        }
        None => global_plugins.clone(),
    };
    let shards = shard::read_all(&section.required_section("shards")?)?;
    let (users, other_users) = user::read_all(&section.required_section("users")?, &defaults)?;
    let db_activity_based_routing = flag("db_activity_based_routing", false)?;
    // A zero would expire what it governs at once; without the routing nobody reads it.
    let least = u64::from(db_activity_based_routing);

    let pool = Pool {
        pool_mode,
        load_balancing_mode: section
            .choice("load_balancing_mode", LOAD_BALANCING)?
            .unwrap_or(LoadBalancing::Random),
        checkout_failure_limit: section
            .integer("checkout_failure_limit", 0, i64::MAX as u64)?
            .filter(|&limit| limit > 0),
        default_role: default_role(section)?,
        query_parser_enabled,
        query_parser_max_length: section.integer(
            "query_parser_max_length",
            0,
            i64::MAX as usize,
        )?,
        query_parser_read_write_splitting,
        primary_reads_enabled: flag("primary_reads_enabled", false)?,
        read_only_functions: read_only_functions(section)?,
        replica_to_primary_failover_enabled: flag("replica_to_primary_failover_enabled", false)?,
        max_replica_lag: max_replica_lag(section, &shards)?,
        read_your_writes: flag("read_your_writes", false)?,
        sharding_function: section
            .choice("sharding_function", SHARDING_FUNCTIONS)?
            .unwrap_or(ShardingFunction::PgBigintHash),
        automatic_sharding_key: automatic_sharding_key(section)?,
        sharding_key_regex: pattern(section, "sharding_key_regex")?,
        shard_id_regex: pattern(section, "shard_id_regex")?,
        regex_search_limit: section
            .integer("regex_search_limit", 0, i64::MAX as usize)?
            .unwrap_or(1000),
        default_shard: default_shard(section, shards.len())?,
        auth_query,
        max_client_connections: section.limit("max_client_connections")?,
        max_db_connections: section.limit("max_db_connections")?,
        log_client_parameter_status_changes: flag("log_client_parameter_status_changes", false)?,
        prepared_statements_cache_size: section
            .integer("prepared_statements_cache_size", 0, i32::MAX as usize)?
            .filter(|&size| size > 0)
            .unwrap_or(Pool::DEFAULT_PREPARED_STATEMENTS),
        db_activity_based_routing,
        db_activity_init_delay: greater_than_zero(
            section,
            "db_activity_init_delay",
            least,
            Section::milliseconds,
        )?
        .unwrap_or(Duration::from_millis(100)),
        db_activity_ttl: greater_than_zero(section, "db_activity_ttl", least, Section::seconds)?
            .unwrap_or(Duration::from_secs(900)),
        table_mutation_cache_ms_ttl: greater_than_zero(
            section,
            "table_mutation_cache_ms_ttl",
            least,
            Section::milliseconds,
        )?
        .unwrap_or(Duration::from_millis(50)),
        plugins,
        shards,
        users,
        other_users,
    };
    section.finish();
    Ok(pool)
}

fn auth_query(
    section: &Section<'_>,
    pool: &str,
    inherited: &Inherited,
) -> Result<Option<AuthQuery>, ConfigError> {
    let own = AuthQueryKeys::read(section)?;
    let sets_some = own.user.is_some() || own.password.is_some();
    let keys = own.or(&inherited.auth_query);
    if keys.query.is_some() && keys.complete().is_none() {
        let message = format!("Error in pool {{ {pool} }}. {INCOMPLETE_AUTH_QUERY}");
        return Err(section.error("auth_query", message));
    }
    // PgCat checks the password twice and the query never, and then unwraps the query.
    if keys.query.is_none() && sets_some {
        let message = format!(
            "Error in pool {{ {pool} }}. `auth_query_user` and `auth_query_password` are of no use without \
             `auth_query`"
        );
        return Err(section.error("auth_query", message));
    }
    Ok(keys.complete())
}

fn read_only_functions(section: &Section<'_>) -> Result<Vec<String>, ConfigError> {
    let Some(value) = section.value("read_only_functions") else {
        return Ok(Vec::new());
    };
    let names = value.array("an array of function names, e.g. [\"my_report\"]")?;
    names.iter().map(|name| name.string()).collect()
}

fn max_replica_lag(
    section: &Section<'_>,
    shards: &[Shard],
) -> Result<Option<Duration>, ConfigError> {
    let Some(limit) = section.timeout("max_replica_lag")?.flatten() else {
        return Ok(None);
    };
    let is_measured = |shard: &Shard| {
        let mut servers = shard.servers.iter();
        servers.any(|server| matches!(server.role, Role::Primary | Role::Auto))
    };
    if let Some(number) = shards.iter().position(|shard| !is_measured(shard)) {
        let message = format!(
            "shard {number} has no server with role primary or auto, by which the lag of its replicas could be \
             measured"
        );
        return Err(section.error("max_replica_lag", message));
    }
    Ok(Some(limit))
}

fn default_role(section: &Section<'_>) -> Result<WantedRole, ConfigError> {
    let Some(role) = section.string("default_role")? else {
        return Ok(WantedRole::Any);
    };
    match role.as_str() {
        "any" => Ok(WantedRole::Any),
        "primary" => Ok(WantedRole::Primary),
        "replica" => Ok(WantedRole::Replica),
        other => Err(section.error(
            "default_role",
            format!(
                "Query router default_role must be 'primary', 'replica', or 'any', got: '{other}'"
            ),
        )),
    }
}

fn default_shard(section: &Section<'_>, shards: usize) -> Result<DefaultShard, ConfigError> {
    let Some(value) = section.value("default_shard") else {
        return Ok(DefaultShard::Shard(0));
    };
    let name = value.string()?;
    match name.as_str() {
        "random" => return Ok(DefaultShard::Random),
        "random_healthy" => return Ok(DefaultShard::RandomHealthy),
        _ => {}
    }
    let number: usize = name
        .strip_prefix("shard_")
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| value.expected("\"shard_<n>\" or \"random\" or \"random_healthy\""))?;
    if number >= shards {
        return Err(value.error(format!("Invalid shard {number}")));
    }
    Ok(DefaultShard::Shard(number))
}

/// `table.column`, quotes taken off.
fn automatic_sharding_key(section: &Section<'_>) -> Result<Option<String>, ConfigError> {
    let Some(key) = section.string("automatic_sharding_key")? else {
        return Ok(None);
    };
    let key = key.replace('"', "");
    if key.split('.').count() != 2 || key.split('.').any(str::is_empty) {
        return Err(section.error(
            "automatic_sharding_key",
            format!("automatic_sharding_key '{key}' must be fully qualified, e.g. t.{key}"),
        ));
    }
    Ok(Some(key))
}

fn pattern(section: &Section<'_>, name: &'static str) -> Result<Option<String>, ConfigError> {
    let Some(text) = section.string(name)? else {
        return Ok(None);
    };
    Regex::new(&text)
        .map_err(|error| section.error(name, format!("{name} is not a valid Regex: {error}")))?;
    Ok(Some(text))
}

fn greater_than_zero<'d>(
    section: &Section<'d>,
    name: &'static str,
    least: u64,
    read: impl Fn(&Section<'d>, &'static str, u64) -> Result<Option<Duration>, ConfigError>,
) -> Result<Option<Duration>, ConfigError> {
    let time = read(section, name, 0)?;
    if least > 0 && time.is_some_and(|time| time.is_zero()) {
        return Err(section.error(name, format!("{name} must be greater than 0")));
    }
    Ok(time)
}
