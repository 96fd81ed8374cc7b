//! `[pools]`, made of `[databases]`, `[users]` and `auth_file`.

use super::super::error::ConfigError;
use super::Sources;
use super::database::Line;
use super::general::{ONCE, auth_user, limit, or_zero};
use super::settings::Setting;
use super::userlist::Login;
use super::writer::Writer;
use crate::config::model::User;
use crate::session::auth::Secret;

pub(super) fn write(
    sources: &Sources,
    database: &Line,
    writer: &mut Writer,
) -> Result<(), ConfigError> {
    let name = database.name.as_str();
    writer.section(&["pools", name]);
    let origin = format!("line {}", database.place.line);
    writer.comment(&format!("[databases], {origin}"));
    for note in database.notes() {
        writer.note(&database.place, note);
    }
    let mode = database.get("pool_mode");
    let mode = mode.unwrap_or_else(|| sources.settings.get("pool_mode"));
    pool_mode(&mode, writer)?;
    if let Some(lifetime) = database.get("server_lifetime") {
        writer.set_from("server_lifetime", or_zero(&lifetime, ONCE)?, &origin);
    }
    for (key, name) in [
        ("max_db_connections", "max_db_connections"),
        ("max_client_connections", "max_db_client_connections"),
    ] {
        let own = database.get(name);
        let setting = own.unwrap_or_else(|| sources.settings.get(name));
        limit(key, &setting, writer)?;
    }
    prepared_statements(sources, writer)?;
    let has_auth_query = auth_query(sources, database, writer);

    let mut users = users(sources, database, has_auth_query, writer);
    users.extend(others(sources, database, has_auth_query));
    if users.is_empty() {
        let message = "no user is known who could log in; --user names those that are in neither auth_file \
                       nor the database's line";
        let key = format!("databases.{name}");
        return Err(database.place.error(&key, message));
    }
    if database.text("user").is_some() && users.len() > 1 {
        let message = format!(
            "databases.{name}: pool_size holds for each user, in PgBouncer for all of a database with user="
        );
        writer.note(&database.place, message);
    }
    for (index, (login, auth_type)) in users.iter().enumerate() {
        writer.section(&["pools", name, "users", &index.to_string()]);
        user(sources, database, login, auth_type, writer)?;
    }

    writer.section(&["pools", name, "shards", "0"]);
    let directory = sources.settings.get("unix_socket_dir");
    let servers = database.servers(if directory.text.is_empty() {
        "/tmp"
    } else {
        &directory.text
    })?;
    writer.set("servers", servers);
    writer.set("database", database.text("dbname").unwrap_or(name));
    Ok(())
}

fn pool_mode(setting: &Setting, writer: &mut Writer) -> Result<(), ConfigError> {
    let mut mode = setting.choice(&["session", "transaction", "statement"])?;
    if mode == "statement" {
        mode = "transaction";
        let message =
            "there is no pool_mode statement; with transaction, transactions are allowed as well";
        writer.note(&setting.place, message.to_owned());
    }
    writer.set_from("pool_mode", mode, &setting.origin());
    Ok(())
}

fn prepared_statements(sources: &Sources, writer: &mut Writer) -> Result<(), ConfigError> {
    let setting = sources.settings.get("max_prepared_statements");
    if setting.is_default {
        return Ok(());
    }
    match setting.count()? {
        0 => writer.comment(&format!(
            "{}: prepared statements work in every mode; there is no off",
            setting.origin()
        )),
        size => writer.set_from("prepared_statements_cache_size", size, &setting.origin()),
    }
    Ok(())
}

/// Writes an auth_query of the database's own. Returns whether it has one at all.
fn auth_query(sources: &Sources, database: &Line, writer: &mut Writer) -> bool {
    let global = sources.settings.get("auth_user");
    let own = (database.get("auth_user"), database.get("auth_query"));
    let (user, query) = match own {
        (None, None) => return !global.text.is_empty(),
        (user, query) => (
            user.unwrap_or(global),
            query.unwrap_or_else(|| sources.settings.get("auth_query")),
        ),
    };
    if user.text.is_empty() {
        return false;
    }
    writer.set_from("auth_query", query.text.as_str(), &query.origin());
    auth_user(sources, writer, &user.text, &user.origin());
    true
}

/// Who may use the database, each with an `auth_type`.
fn users<'s>(
    sources: &'s Sources,
    database: &Line,
    has_auth_query: bool,
    writer: &mut Writer,
) -> Vec<(Login, &'s str)> {
    let auth_type = sources.auth_type();
    if auth_type == "any" {
        let forced = database.text("user");
        let message = "auth_type any: only the users that are named may log in, they are not asked for a password";
        writer.note(&sources.settings.get("auth_type").place, message.to_owned());
        let mut logins = sources.users.clone();
        if let Some(name) = forced
            && !logins.iter().any(|login| login.name == name)
        {
            logins.push(Login {
                name: name.to_owned(),
                secret: String::new(),
                place: database.place.clone(),
            });
        }
        return logins.into_iter().map(|login| (login, "trust")).collect();
    }
    let mut users = Vec::new();
    for login in &sources.users {
        let is_md5 = matches!(Secret::parse(&login.secret), Secret::Md5(_));
        let without_password = login.secret.is_empty() && !has_auth_query;
        let reason = match auth_type {
            "md5" | "scram-sha-256" | "plain" if without_password => "an empty password",
            "scram-sha-256" if is_md5 => "an md5 hash, which does not do for scram-sha-256",
            _ => "",
        };
        if !reason.is_empty() {
            let message = format!(
                "user {} is left out: it has {reason}, so that it cannot log in to PgBouncer either",
                login.name
            );
            writer.note(&login.place, message);
            continue;
        }
        let auth_type = match auth_type {
            "plain" => "password",
            // The rules of hba_file decide. Without them such a user shall not get in.
            "hba" if without_password => "cert",
            "hba" => "md5",
            other => other,
        };
        users.push((login.clone(), auth_type));
    }
    users
}

/// Whoever `auth_query` knows, beside those who are named.
fn others<'s>(
    sources: &'s Sources,
    database: &Line,
    has_auth_query: bool,
) -> Option<(Login, &'s str)> {
    let auth_type = match sources.auth_type() {
        "plain" => "password",
        "hba" => "md5",
        other @ ("md5" | "scram-sha-256") => other,
        _ => return None,
    };
    let login = Login {
        name: User::OTHERS.to_owned(),
        secret: String::new(),
        place: database.place.clone(),
    };
    has_auth_query.then_some((login, auth_type))
}

fn user(
    sources: &Sources,
    database: &Line,
    login: &Login,
    auth_type: &str,
    writer: &mut Writer,
) -> Result<(), ConfigError> {
    let own = sources.user_lines.iter().find(|l| l.name == login.name);
    for note in own.iter().flat_map(|own| own.notes()) {
        writer.note(&login.place, note);
    }
    writer.set("username", login.name.as_str());
    if !login.secret.is_empty() {
        writer.password("password", &login.secret, &login.place);
    }
    let origin = sources.settings.get("auth_type").origin();
    writer.set_from("auth_type", auth_type, &origin);
    if let Some(name) = database.text("user") {
        writer.set("server_username", name);
        let password = database.text("password").map(str::to_owned);
        if let Some(password) = password.or_else(|| sources.secret(name)) {
            writer.password("server_password", &password, &database.place);
        }
    }

    let of_user = |name| own.and_then(|own| own.get(name));
    let default = || sources.settings.get("default_pool_size");
    let size = of_user("pool_size").or_else(|| database.get("pool_size"));
    let size = size.unwrap_or_else(default);
    // Below 0, PgBouncer takes the default.
    let size = if size.integer()? < 0 { default() } else { size };
    let connections = size.count()?;
    if connections == 0 {
        return Err(size.error("a pool of no connections serves nobody"));
    }
    writer.set_from("pool_size", connections, &size.origin());
    let min = database.get("min_pool_size");
    let min = min.unwrap_or_else(|| sources.settings.get("min_pool_size"));
    if min.integer()? > 0 && login.name != User::OTHERS {
        writer.set_from(
            "min_pool_size",
            min.count()?.min(connections),
            &min.origin(),
        );
    }
    let reserve = of_user("reserve_pool_size")
        .or_else(|| database.get("reserve_pool_size"))
        // The name before version 1.24.
        .or_else(|| database.get("reserve_pool"));
    let reserve = reserve.unwrap_or_else(|| sources.settings.get("reserve_pool_size"));
    limit("reserve_pool_size", &reserve, writer)?;
    for (key, name) in [
        ("max_user_connections", "max_user_connections"),
        ("max_client_connections", "max_user_client_connections"),
    ] {
        let setting = of_user(name).unwrap_or_else(|| sources.settings.get(name));
        limit(key, &setting, writer)?;
    }
    if let Some(mode) = of_user("pool_mode") {
        pool_mode(&mode, writer)?;
    }
    let timeout = of_user("query_timeout");
    let timeout = timeout.unwrap_or_else(|| sources.settings.get("query_timeout"));
    let milliseconds = timeout.milliseconds()?;
    if milliseconds > 0 {
        writer.set_from("statement_timeout", milliseconds, &timeout.origin());
    }
    for (key, name) in [
        ("transaction_timeout", "transaction_timeout"),
        (
            "idle_client_in_transaction_timeout",
            "idle_transaction_timeout",
        ),
        ("client_idle_timeout", "client_idle_timeout"),
    ] {
        if let Some(time) = of_user(name) {
            writer.set_from(key, time.milliseconds()?, &time.origin());
        }
    }
    Ok(())
}
