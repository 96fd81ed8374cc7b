//! `SHOW CONFIG`.

use std::time::Duration;

use super::{Row, row};
use crate::config::model::{Config, LoadBalancing, PoolMode, ShardingFunction, WantedRole};

/// What takes a restart to change.
const FIXED: &[&str] = &["host", "port", "worker_threads"];

fn changeable(key: &str) -> &'static str {
    if FIXED.contains(&key) { "no" } else { "yes" }
}

/// PgCat's keys, in its spelling.
pub(super) fn pgcat(config: &Config) -> Vec<Row> {
    let general = &config.general;
    let millis = |time: Duration| time.as_millis().to_string();
    let mut pairs: Vec<(String, String)> = [
        ("host", general.host.clone()),
        ("port", general.port.to_string()),
        ("worker_threads", general.worker_threads.to_string()),
        (
            "prometheus_exporter_port",
            general.prometheus_exporter_port.to_string(),
        ),
        ("connect_timeout", millis(general.connect_timeout)),
        (
            "idle_timeout",
            millis(general.idle_timeout.unwrap_or_default()),
        ),
        ("healthcheck_timeout", millis(general.healthcheck_timeout)),
        ("shutdown_timeout", millis(general.shutdown_timeout)),
        ("healthcheck_delay", millis(general.healthcheck_delay)),
        ("ban_time", general.ban_time.as_secs().to_string()),
        (
            "max_client_conn",
            general.max_client_conn.unwrap_or(0).to_string(),
        ),
        (
            "idle_client_in_transaction_timeout",
            millis(general.timeouts.idle_in_transaction.unwrap_or_default()),
        ),
        (
            "statement_timeout",
            millis(general.timeouts.statement.unwrap_or_default()),
        ),
        (
            "transaction_timeout",
            millis(general.timeouts.transaction.unwrap_or_default()),
        ),
        (
            "client_idle_timeout",
            millis(general.timeouts.idle.unwrap_or_default()),
        ),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    for (name, pool) in &config.pools {
        let users: Vec<_> = pool
            .users
            .iter()
            .chain(&pool.other_users)
            .map(|user| user.username.as_str())
            .collect();
        let settings = [
            ("pool_mode", mode(pool.pool_mode).to_owned()),
            (
                "load_balancing_mode",
                match pool.load_balancing_mode {
                    LoadBalancing::LeastOutstandingConnections => "loc",
                    LoadBalancing::Random => "random",
                }
                .to_owned(),
            ),
            (
                "primary_reads_enabled",
                pool.primary_reads_enabled.to_string(),
            ),
            (
                "query_parser_enabled",
                pool.query_parser_enabled.to_string(),
            ),
            (
                "query_parser_max_length",
                pool.query_parser_max_length
                    .map_or("unlimited".to_owned(), |length| length.to_string()),
            ),
            (
                "query_parser_read_write_splitting",
                pool.query_parser_read_write_splitting.to_string(),
            ),
            (
                "default_role",
                match pool.default_role {
                    WantedRole::Any => "any",
                    WantedRole::Primary => "primary",
                    WantedRole::Replica => "replica",
                }
                .to_owned(),
            ),
            (
                "sharding_function",
                match pool.sharding_function {
                    ShardingFunction::PgBigintHash => "pg_bigint_hash",
                    ShardingFunction::Sha1 => "sha1",
                }
                .to_owned(),
            ),
        ];
        pairs.extend(settings.map(|(key, value)| (format!("pools.{name}.{key}"), value)));
        // PgCat writes the name of these two with quotes, and dashboards may look for them.
        pairs.push((
            format!("pools.{name:?}.shard_count"),
            pool.shards.len().to_string(),
        ));
        pairs.push((format!("pools.{name:?}.users"), users.join(", ")));
    }
    let rows = pairs.into_iter().map(|(key, value)| {
        let changeable = changeable(&key);
        row![key, value, "-", changeable]
    });
    rows.collect()
}

/// PgBouncer's names, of what there is a counterpart for.
pub(super) fn pgbouncer(config: &Config) -> Vec<Row> {
    let general = &config.general;
    let seconds = |time: Option<Duration>| time.unwrap_or_default().as_secs().to_string();
    let flag = |is: bool| u8::from(is).to_string();
    // 0 is no limit.
    let limit = |limit: Option<usize>| limit.unwrap_or(0).to_string();
    let settings: [(&str, String, &str); 29] = [
        ("admin_users", general.admin_username.clone(), ""),
        ("client_idle_timeout", seconds(general.timeouts.idle), "0"),
        (
            "client_login_timeout",
            seconds(Some(general.client_login_timeout)),
            "60",
        ),
        ("conffile", config.path.display().to_string(), ""),
        (
            "dns_max_ttl",
            general.dns_max_ttl.as_secs().to_string(),
            "15",
        ),
        (
            "idle_transaction_timeout",
            seconds(general.timeouts.idle_in_transaction),
            "0",
        ),
        ("job_name", "pgcat".into(), "pgbouncer"),
        ("listen_addr", general.host.clone(), ""),
        ("listen_backlog", "1024".into(), "128"),
        ("listen_port", general.port.to_string(), "6432"),
        ("log_connections", flag(general.log_client_connections), "1"),
        (
            "log_disconnections",
            flag(general.log_client_disconnections),
            "1",
        ),
        ("max_client_conn", limit(general.max_client_conn), "100"),
        ("max_db_connections", "0".into(), "0"),
        ("max_packet_size", "1073741823".into(), "2147483647"),
        ("max_user_connections", "0".into(), "0"),
        ("query_timeout", seconds(general.timeouts.statement), "0"),
        (
            "query_wait_timeout",
            seconds(Some(general.connect_timeout)),
            "120",
        ),
        ("reserve_pool_size", "0".into(), "0"),
        (
            "server_connect_timeout",
            seconds(Some(general.connect_timeout)),
            "15",
        ),
        ("server_idle_timeout", seconds(general.idle_timeout), "600"),
        ("server_lifetime", seconds(general.server_lifetime), "3600"),
        ("server_reset_query", "DISCARD ALL".into(), "DISCARD ALL"),
        ("server_round_robin", flag(general.server_round_robin), "0"),
        ("stats_period", "15".into(), "60"),
        ("tcp_keepcnt", general.tcp_keepalives_count.to_string(), "0"),
        (
            "tcp_keepidle",
            general.tcp_keepalives_idle.as_secs().to_string(),
            "0",
        ),
        (
            "tcp_keepintvl",
            general.tcp_keepalives_interval.as_secs().to_string(),
            "0",
        ),
        (
            "tcp_user_timeout",
            general.tcp_user_timeout.as_millis().to_string(),
            "0",
        ),
    ];
    let rows = settings.into_iter().map(|(key, value, default)| {
        let fixed = [
            "conffile",
            "job_name",
            "listen_addr",
            "listen_backlog",
            "listen_port",
        ];
        let changeable = if fixed.contains(&key) { "no" } else { "yes" };
        row![key, value, default, changeable]
    });
    rows.collect()
}

fn mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
    }
}
