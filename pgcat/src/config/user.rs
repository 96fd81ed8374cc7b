//! `[pools.<name>.users.<n>]`.

use std::time::Duration;

use super::error::ConfigError;
use super::general::{AUTH_TYPES, timeouts};
use super::model::{AuthType, PoolMode, Timeouts, User};
use super::pool::POOL_MODES;
use super::section::Section;
use crate::session::auth::Secret;

/// What a user takes over from its pool.
#[derive(Debug)]
pub(super) struct PoolDefaults<'a> {
    pub pool: &'a str,
    pub pool_mode: PoolMode,
    pub connect_timeout: Duration,
    pub idle_timeout: Option<Duration>,
    pub server_lifetime: Option<Duration>,
    pub reserve_pool_timeout: Option<Duration>,
    pub timeouts: Timeouts,
    pub has_auth_query: bool,
}

/// Reads all users of a pool, in the order of the file, and what holds for all others.
pub(super) fn read_all(
    section: &Section<'_>,
    defaults: &PoolDefaults<'_>,
) -> Result<(Vec<User>, Option<User>), ConfigError> {
    let mut users: Vec<User> = Vec::new();
    let mut others = None;
    for (_, value) in section.entries() {
        let section = value.section()?;
        let user = read(&section, defaults)?;
        // PgCat lets the last of them win without a word.
        let mut known = users.iter().chain(&others);
        if known.any(|other| other.username == user.username) {
            let message = format!("the pool has more than one user {:?}", user.username);
            return Err(section.error("username", message));
        }
        if user.username == User::OTHERS {
            check_others(&section, &user, defaults)?;
            others = Some(user);
        } else {
            users.push(user);
        }
    }
    if users.is_empty() && others.is_none() {
        return Err(section.error_here("the pool has no users configured"));
    }
    Ok((users, others))
}

/// Whether the user `*` is somebody whom `auth_query` can be asked about.
fn check_others(
    section: &Section<'_>,
    user: &User,
    defaults: &PoolDefaults<'_>,
) -> Result<(), ConfigError> {
    let refuse = |key, message: &str| Err(section.error(key, message));
    if !defaults.has_auth_query {
        return refuse(
            "username",
            "the user \"*\" is whoever auth_query knows, but there is no auth_query",
        );
    }
    if user.password.is_some() {
        return refuse(
            "password",
            "the user \"*\" has the password that auth_query finds",
        );
    }
    if matches!(user.auth_type, AuthType::Trust | AuthType::Cert) {
        let message = "the user \"*\" has to prove a password: md5, scram-sha-256 or password";
        return refuse("auth_type", message);
    }
    if user.min_pool_size > 0 {
        return refuse(
            "min_pool_size",
            "the user \"*\" has no pool before somebody logs in",
        );
    }
    Ok(())
}

fn read(section: &Section<'_>, defaults: &PoolDefaults<'_>) -> Result<User, ConfigError> {
    let name = section.required("username", "a string")?;
    let username = name.string()?;
    if username.is_empty() {
        return Err(name.expected("a user name"));
    }
    let password = section.secret("password")?;
    let auth_type = section
        .choice("auth_type", AUTH_TYPES)?
        .unwrap_or(AuthType::Md5);
    if password.is_none()
        && !matches!(auth_type, AuthType::Trust | AuthType::Cert)
        && !defaults.has_auth_query
    {
        return Err(section.error(
            "password",
            format!(
                "Error in pool {{ {} }}. You have to specify a user password for every pool if auth_query \
                 is not specified",
                defaults.pool
            ),
        ));
    }
    let auth_type = match (auth_type, password.as_deref().map(Secret::parse)) {
        (AuthType::ScramSha256, Some(Secret::Md5(_))) => {
            let message = "an md5 hash cannot serve for scram-sha-256; give the plain password or a \
                           SCRAM-SHA-256 secret";
            return Err(section.error("password", message));
        }
        // As in pg_hba.conf, where md5 means SCRAM for a user whose password is stored for SCRAM.
        (AuthType::Md5, Some(Secret::Scram(_))) => AuthType::ScramSha256,
        (auth_type, _) => auth_type,
    };

    let pool_size = section
        .required("pool_size", "an integer")?
        .integer(1, u32::MAX)?;
    let min_pool_size = section.integer("min_pool_size", 0, u32::MAX)?.unwrap_or(0);
    if min_pool_size > pool_size {
        let message = format!(
            "min_pool_size of {min_pool_size} cannot be larger than pool_size of {pool_size}"
        );
        return Err(section.error("min_pool_size", message));
    }

    let user = User {
        server_username: section
            .string("server_username")?
            .unwrap_or_else(|| username.clone()),
        server_password: section
            .secret("server_password")?
            .or_else(|| password.clone()),
        username,
        password,
        auth_type,
        pool_size,
        min_pool_size,
        pool_mode: section
            .choice("pool_mode", POOL_MODES)?
            .unwrap_or(defaults.pool_mode),
        server_lifetime: section
            .timeout("server_lifetime")?
            .unwrap_or(defaults.server_lifetime),
        idle_timeout: section
            .timeout("idle_timeout")?
            .unwrap_or(defaults.idle_timeout),
        connect_timeout: section
            .milliseconds("connect_timeout", 1)?
            .unwrap_or(defaults.connect_timeout),
        timeouts: timeouts(section, defaults.timeouts)?,
        reserve_pool_size: section
            .integer("reserve_pool_size", 0, u32::MAX)?
            .unwrap_or(0),
        reserve_pool_timeout: section
            .timeout("reserve_pool_timeout")?
            .unwrap_or(defaults.reserve_pool_timeout),
        max_client_connections: section.limit("max_client_connections")?,
        max_user_connections: section.limit("max_user_connections")?,
    };
    section.finish();
    Ok(user)
}
