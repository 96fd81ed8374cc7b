//! `[general]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::model::{AuthQuery, AuthType, General, Pool, TakeoverSocket, Timeouts};
use super::section::Section;
use super::tls;

/// What pools and users take over from `[general]` unless they set it.
#[derive(Debug, Clone)]
pub(super) struct Inherited {
    pub connect_timeout: Duration,
    pub idle_timeout: Option<Duration>,
    pub server_lifetime: Option<Duration>,
    pub reserve_pool_timeout: Option<Duration>,
    pub timeouts: Timeouts,
    pub auth_query: AuthQueryKeys,
}

/// The three keys of an auth_query; each is inherited by itself.
#[derive(Debug, Clone, Default)]
pub(super) struct AuthQueryKeys {
    pub query: Option<String>,
    pub user: Option<String>,
    pub password: Option<String>,
}

pub(super) const AUTH_TYPES: &[(&str, AuthType)] = &[
    ("md5", AuthType::Md5),
    ("scram-sha-256", AuthType::ScramSha256),
    ("password", AuthType::Password),
    ("cert", AuthType::Cert),
    ("trust", AuthType::Trust),
];

// The kernel's bounds (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL, MAX_TCP_KEEPCNT); beyond them setsockopt
// fails. 0 leaves the system's default.
const MAX_KEEPALIVE_SECONDS: u64 = 32_767;
const MAX_KEEPALIVE_COUNT: u32 = 127;

/// More threads than any machine has cores; past it a figure is a slip of the keyboard.
const MAX_WORKER_THREADS: usize = 1024;

pub(super) fn read(section: &Section<'_>) -> Result<(General, Inherited), ConfigError> {
    let milliseconds = |name, min, default| -> Result<Duration, ConfigError> {
        Ok(section
            .milliseconds(name, min)?
            .unwrap_or(Duration::from_millis(default)))
    };
    let keepalive_seconds = |name| -> Result<Duration, ConfigError> {
        let seconds = section.integer(name, 0, MAX_KEEPALIVE_SECONDS)?;
        Ok(Duration::from_secs(seconds.unwrap_or(5)))
    };
    let flag = |name, default| -> Result<bool, ConfigError> {
        Ok(section.boolean(name)?.unwrap_or(default))
    };

    let auth_query = AuthQueryKeys::read(section)?;
    let (admin_username, admin_password) = admin_login(section)?;
    // PgBouncer's default.
    let reserve_pool_timeout = section
        .timeout("reserve_pool_timeout")?
        .unwrap_or(Some(Duration::from_secs(5)));
    let client_tls = tls::client(section)?;
    let server_tls = tls::server(section)?;
    let general = General {
        host: section
            .string("host")?
            .unwrap_or_else(|| "0.0.0.0".to_owned()),
        port: section.integer("port", 0, u16::MAX)?.unwrap_or(5432),
        enable_prometheus_exporter: flag("enable_prometheus_exporter", false)?,
        prometheus_exporter_port: section
            .integer("prometheus_exporter_port", 1, u16::MAX)?
            .unwrap_or(9930),
        connect_timeout: milliseconds("connect_timeout", 1, 1000)?,
        idle_timeout: section
            .timeout("idle_timeout")?
            .unwrap_or(Some(Duration::from_secs(600))),
        server_lifetime: section
            .timeout("server_lifetime")?
            .unwrap_or(Some(Duration::from_secs(3600))),
        tcp_keepalives_idle: keepalive_seconds("tcp_keepalives_idle")?,
        tcp_keepalives_count: section
            .integer("tcp_keepalives_count", 0, MAX_KEEPALIVE_COUNT)?
            .unwrap_or(5),
        tcp_keepalives_interval: keepalive_seconds("tcp_keepalives_interval")?,
        tcp_user_timeout: Duration::from_millis(
            // A C int in the kernel. PgCat's default is 10 s, which ends the connection of a client that takes so long over a
            // part of a result, and of a server that is busy for so long while data waits for it: the kernel counts the
            // time of a full window, too.
            section
                .integer("tcp_user_timeout", 0, 2_147_483_647u64)?
                .unwrap_or(0),
        ),
        log_client_connections: flag("log_client_connections", false)?,
        log_client_disconnections: flag("log_client_disconnections", false)?,
        shutdown_timeout: milliseconds("shutdown_timeout", 0, 60_000)?,
        client_login_timeout: milliseconds("client_login_timeout", 1, 60_000)?,
        unix_socket_dir: section.string("unix_socket_dir")?.map(PathBuf::from),
        max_client_logins: section.limit("max_client_logins")?,
        max_client_conn: section.limit("max_client_conn")?,
        hba_file: tls::file(section, "hba_file")?,
        unix_socket_mode: unix_socket_mode(section)?,
        takeover_socket: match section.string("takeover_socket")? {
            None => TakeoverSocket::Default,
            Some(path) if path.is_empty() => TakeoverSocket::Off,
            Some(path) => TakeoverSocket::At(path.into()),
        },
        takeover_timeout: section
            .timeout("takeover_timeout")?
            .unwrap_or(Some(Duration::from_secs(3600))),
        healthcheck_timeout: milliseconds("healthcheck_timeout", 1, 1000)?,
        healthcheck_delay: milliseconds("healthcheck_delay", 0, 30_000)?,
        ban_time: section
            .seconds("ban_time", 0)?
            .unwrap_or(Duration::from_secs(60)),
        timeouts: timeouts(section, Timeouts::default())?,
        server_round_robin: flag("server_round_robin", true)?,
        worker_threads: section
            .integer("worker_threads", 1, MAX_WORKER_THREADS)?
            .unwrap_or(4),
        autoreload: section.timeout("autoreload")?.flatten(),
        client_tls,
        server_tls,
        admin_username,
        admin_password,
        admin_auth_type: section
            .choice("admin_auth_type", AUTH_TYPES)?
            .unwrap_or(AuthType::Md5),
        admin_users: names(section, "admin_users")?,
        stats_users: names(section, "stats_users")?,
        validate_config: flag("validate_config", true)?,
        dns_cache_enabled: flag("dns_cache_enabled", false)?,
        dns_max_ttl: section
            .seconds("dns_max_ttl", 1)?
            .unwrap_or(Duration::from_secs(30)),
        auth_query: auth_query.complete(),
    };
    if auth_query.query.is_some() && general.auth_query.is_none() {
        return Err(section.error("auth_query", INCOMPLETE_AUTH_QUERY));
    }
    section.finish();

    let inherited = Inherited {
        connect_timeout: general.connect_timeout,
        idle_timeout: general.idle_timeout,
        server_lifetime: general.server_lifetime,
        reserve_pool_timeout,
        timeouts: general.timeouts,
        auth_query,
    };
    Ok((general, inherited))
}

pub(super) const INCOMPLETE_AUTH_QUERY: &str = "If auth_query is specified, you need to provide a value \
     for `auth_query_user`, `auth_query_password`";

/// A login for an auth_query is of no use without one, in `[general]` or in a pool.
pub(super) fn check_auth_query(
    root: &Section<'_>,
    inherited: &Inherited,
    pools: &BTreeMap<String, Pool>,
) -> Result<(), ConfigError> {
    let keys = &inherited.auth_query;
    let name = match (&keys.query, &keys.user, &keys.password) {
        (None, Some(_), _) => "auth_query_user",
        (None, None, Some(_)) => "auth_query_password",
        _ => return Ok(()),
    };
    if pools.values().any(|pool| pool.auth_query.is_some()) {
        return Ok(());
    }
    let general = root.required_section("general")?;
    Err(general.error(name, format!("{name} is set, but auth_query is not")))
}

impl AuthQueryKeys {
    pub fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            query: section.string("auth_query")?,
            user: section.string("auth_query_user")?,
            password: section.secret("auth_query_password")?,
        })
    }

    /// The keys, with those of `other` where one is not set.
    pub fn or(self, other: &Self) -> Self {
        Self {
            query: self.query.or_else(|| other.query.clone()),
            user: self.user.or_else(|| other.user.clone()),
            password: self.password.or_else(|| other.password.clone()),
        }
    }

    /// The auth_query, if all three keys are set.
    pub fn complete(&self) -> Option<AuthQuery> {
        Some(AuthQuery {
            query: self.query.clone()?,
            user: self.user.clone()?,
            password: self.password.clone()?,
        })
    }
}

fn names(section: &Section<'_>, key: &'static str) -> Result<Vec<String>, ConfigError> {
    let Some(value) = section.value(key) else {
        return Ok(Vec::new());
    };
    let names = value.array("an array of user names")?;
    names.into_iter().map(|name| name.string()).collect()
}

/// An octal number in a string, as PgBouncer has it.
fn unix_socket_mode(section: &Section<'_>) -> Result<u32, ConfigError> {
    let Some(value) = section.value("unix_socket_mode") else {
        return Ok(0o777);
    };
    let text = value.string()?;
    u32::from_str_radix(&text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| value.expected("a file mode such as \"0700\""))
}

/// The times that a section allows clients, those it does not mention being inherited.
pub(super) fn timeouts(
    section: &Section<'_>,
    inherited: Timeouts,
) -> Result<Timeouts, ConfigError> {
    let time = |name, inherited| -> Result<Option<Duration>, ConfigError> {
        Ok(section.timeout(name)?.unwrap_or(inherited))
    };
    Ok(Timeouts {
        statement: time("statement_timeout", inherited.statement)?,
        transaction: time("transaction_timeout", inherited.transaction)?,
        idle_in_transaction: time(
            "idle_client_in_transaction_timeout",
            inherited.idle_in_transaction,
        )?,
        idle: time("client_idle_timeout", inherited.idle)?,
    })
}

/// Both keys or neither; PgCat requires both. Without them there is no admin database.
fn admin_login(section: &Section<'_>) -> Result<(String, String), ConfigError> {
    let username = section.string("admin_username")?;
    let password = section.secret("admin_password")?;
    match (username, password) {
        (Some(username), Some(password)) => Ok((username, password)),
        (None, None) => Ok((String::new(), String::new())),
        (Some(_), None) => Err(section.error("admin_password", "expected a string, found nothing")),
        (None, Some(_)) => Err(section.error("admin_username", "expected a string, found nothing")),
    }
}
