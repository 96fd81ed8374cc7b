//! `[general]`, made of `[pgbouncer]`.

use toml::Value;

use super::super::error::ConfigError;
use super::Sources;
use super::settings::{ALL, Fate, Setting};
use super::writer::Writer;
use crate::session::auth::hba::Hba;

/// Stands for "never" where PgBouncer has a 0 and pgcat has none: a day.
const A_DAY: i64 = 24 * 3600 * 1000;

const SSL_MODES: &[&str] = &[
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

pub(super) fn write(sources: &Sources, writer: &mut Writer) -> Result<(), ConfigError> {
    writer.section(&["general"]);
    listen(sources, writer)?;
    logging(sources, writer)?;
    times(sources, writer)?;
    let clients = sources.settings.get("max_client_conn");
    limit("max_client_conn", &clients, writer)?;
    tcp(sources, writer)?;
    client_tls(sources, writer)?;
    server_tls(sources, writer)?;
    authentication(sources, writer)?;
    Ok(())
}

fn listen(sources: &Sources, writer: &mut Writer) -> Result<(), ConfigError> {
    let addresses = sources.settings.get("listen_addr");
    let list = addresses.list();
    let host = match list.first().map(String::as_str) {
        None => {
            let message = "listen_addr is empty, which means no TCP to PgBouncer; pgcat always listens on an address";
            writer.note(&addresses.place, message.to_owned());
            "127.0.0.1".to_owned()
        }
        Some(_) if list.iter().any(|address| address == "*") => {
            writer.comment("All addresses of IPv4; \"[::]\" takes those of IPv6, too.");
            "0.0.0.0".to_owned()
        }
        // In brackets, as in an URL.
        Some(address) if address.contains(':') => format!("[{address}]"),
        Some(address) => address.to_owned(),
    };
    if list.len() > 1 && host != "0.0.0.0" {
        let message = format!("pgcat listens on one address: {host} of listen_addr");
        writer.note(&addresses.place, message);
    }
    writer.set_from("host", host, &addresses.origin());
    let port = sources.settings.get("listen_port");
    writer.set_from("port", port.count()?, &port.origin());

    let directory = sources.settings.get("unix_socket_dir");
    if directory.text.starts_with('@') {
        let message = "there are no sockets in the abstract namespace; clients come by TCP only";
        writer.note(&directory.place, message.to_owned());
    } else if !directory.text.is_empty() {
        let origin = directory.origin();
        writer.set_from("unix_socket_dir", directory.text.as_str(), &origin);
        let mode = sources.settings.get("unix_socket_mode");
        let text = format!("{:04o}", mode.integer()?);
        writer.set_from("unix_socket_mode", text, &mode.origin());
    }
    Ok(())
}

fn logging(sources: &Sources, writer: &mut Writer) -> Result<(), ConfigError> {
    for (key, name) in [
        ("log_client_connections", "log_connections"),
        ("log_client_disconnections", "log_disconnections"),
    ] {
        let setting = sources.settings.get(name);
        writer.set_from(key, setting.flag()?, &setting.origin());
    }
    Ok(())
}

fn times(sources: &Sources, writer: &mut Writer) -> Result<(), ConfigError> {
    writer.comment("For queueing and connecting together: server_connect_timeout has no key.");
    // What a 0 of PgBouncer becomes.
    for (key, name, zero) in [
        ("connect_timeout", "query_wait_timeout", A_DAY),
        ("idle_timeout", "server_idle_timeout", 0),
        ("server_lifetime", "server_lifetime", ONCE),
        (
            "idle_client_in_transaction_timeout",
            "idle_transaction_timeout",
            0,
        ),
        ("client_login_timeout", "client_login_timeout", A_DAY),
        ("healthcheck_delay", "server_check_delay", 0),
        ("reserve_pool_timeout", "reserve_pool_timeout", 0),
        ("transaction_timeout", "transaction_timeout", 0),
        ("client_idle_timeout", "client_idle_timeout", 0),
    ] {
        let setting = sources.settings.get(name);
        writer.set_from(key, or_zero(&setting, zero)?, &setting.origin());
    }
    let ttl = sources.settings.get("dns_max_ttl");
    let seconds = (ttl.milliseconds()? + 999) / 1000;
    writer.set("dns_cache_enabled", true);
    writer.set_from("dns_max_ttl", seconds.max(1), &ttl.origin());
    let round_robin = sources.settings.get("server_round_robin");
    let origin = round_robin.origin();
    writer.set_from("server_round_robin", round_robin.flag()?, &origin);
    Ok(())
}

/// PgBouncer uses a server connection of lifetime 0 once; pgcat would keep it for ever.
pub(super) const ONCE: i64 = 1;

/// A time in milliseconds, or what stands for a 0.
pub(super) fn or_zero(setting: &Setting, zero: i64) -> Result<i64, ConfigError> {
    let time = setting.milliseconds()?;
    Ok(if time == 0 { zero } else { time })
}

/// Writes a limit, where 0 is none.
pub(super) fn limit(key: &str, setting: &Setting, writer: &mut Writer) -> Result<(), ConfigError> {
    let limit = setting.count()?;
    if limit > 0 {
        writer.set_from(key, limit, &setting.origin());
    }
    Ok(())
}

fn tcp(sources: &Sources, writer: &mut Writer) -> Result<(), ConfigError> {
    for (key, name) in [
        ("tcp_keepalives_idle", "tcp_keepidle"),
        ("tcp_keepalives_count", "tcp_keepcnt"),
        ("tcp_keepalives_interval", "tcp_keepintvl"),
        ("tcp_user_timeout", "tcp_user_timeout"),
    ] {
        let setting = sources.settings.get(name);
        writer.set_from(key, setting.count()?, &setting.origin());
    }
    Ok(())
}

fn client_tls(sources: &Sources, writer: &mut Writer) -> Result<(), ConfigError> {
    let setting = sources.settings.get("client_tls_sslmode");
    let mode = setting.choice(SSL_MODES)?;
    writer.set_from("tls_mode", mode, &setting.origin());
    if mode == "disable" {
        return Ok(());
    }
    file(sources, writer, "tls_certificate", "client_tls_cert_file");
    file(sources, writer, "tls_private_key", "client_tls_key_file");
    // In the other modes PgBouncer takes any certificate of a client's, and pgcat with `tls_ca` only good ones.
    if mode.starts_with("verify") {
        file(sources, writer, "tls_ca", "client_tls_ca_file");
    }
    Ok(())
}

fn server_tls(sources: &Sources, writer: &mut Writer) -> Result<(), ConfigError> {
    let setting = sources.settings.get("server_tls_sslmode");
    let mode = setting.choice(SSL_MODES)?;
    writer.set_from("server_tls_mode", mode, &setting.origin());
    if mode == "disable" {
        return Ok(());
    }
    for (key, name) in [
        ("server_tls_ca", "server_tls_ca_file"),
        ("server_tls_certificate", "server_tls_cert_file"),
        ("server_tls_private_key", "server_tls_key_file"),
    ] {
        file(sources, writer, key, name);
    }
    Ok(())
}

/// Writes the name of a file, if it is set.
fn file(sources: &Sources, writer: &mut Writer, key: &str, name: &str) {
    let setting = sources.settings.get(name);
    if !setting.text.is_empty() {
        writer.set_from(key, setting.text.as_str(), &setting.origin());
    }
}

fn authentication(sources: &Sources, writer: &mut Writer) -> Result<(), ConfigError> {
    for name in ["admin_users", "stats_users"] {
        let setting = sources.settings.get(name);
        let names = setting.list();
        if names.is_empty() {
            continue;
        }
        for user in &names {
            if !sources.users.iter().any(|login| login.name == *user) {
                let message = format!(
                    "{user} of {name} is no user of a pool, and so cannot log in to the admin databases"
                );
                writer.note(&setting.place, message);
            }
        }
        let names: Vec<Value> = names.into_iter().map(Value::from).collect();
        writer.set_from(name, names, &setting.origin());
    }
    let file = sources.settings.get("auth_file");
    if !file.is_default {
        writer.comment(&format!("{}: the users of each pool.", file.origin()));
    }
    if sources.auth_type() == "hba" {
        hba(sources, writer)?;
    }
    let user = sources.settings.get("auth_user");
    if !user.text.is_empty() {
        let query = sources.settings.get("auth_query");
        writer.set_from("auth_query", query.text.as_str(), &query.origin());
        auth_user(sources, writer, &user.text, &user.origin());
    }
    Ok(())
}

/// Who asks the auth_query.
pub(super) fn auth_user(sources: &Sources, writer: &mut Writer, name: &str, origin: &str) {
    writer.set_from("auth_query_user", name, origin);
    // Without one PgBouncer counts on a server that asks for none.
    let login = sources.users.iter().find(|login| login.name == name);
    match login {
        Some(login) => writer.password("auth_query_password", &login.secret, &login.place),
        None => writer.set("auth_query_password", ""),
    }
}

fn hba(sources: &Sources, writer: &mut Writer) -> Result<(), ConfigError> {
    let setting = sources.settings.get("auth_hba_file");
    if setting.text.is_empty() {
        return Err(setting.error("auth_type is hba, but auth_hba_file is not set"));
    }
    let path = sources.resolve(&setting.text);
    let text = super::ini::text(&path)?;
    if let Err(bad) = Hba::parse(&text) {
        let place = super::ini::Place {
            path: path.as_path().into(),
            line: bad.line,
        };
        let message = format!(
            "{}; pgcat does not start before this line is changed",
            bad.message
        );
        writer.note(&place, message);
    }
    let path = path.display().to_string();
    writer.set_from("hba_file", path, &setting.origin());
    Ok(())
}

/// Names what is set and has no key. To be called last.
pub(super) fn write_rest(sources: &Sources, writer: &mut Writer) {
    if sources.settings.in_file().is_empty() {
        return;
    }
    writer.line("");
    writer.comment("What else PgBouncer's configuration sets:");
    for setting in sources.settings.in_file() {
        let Some(known) = ALL.iter().find(|known| known.name == setting.name) else {
            let message = format!("{}: not a setting of PgBouncer 1.25", setting.name);
            writer.note(&setting.place, message);
            continue;
        };
        match known.fate {
            Fate::Becomes(_) if writer.has(&setting.origin()) => (),
            Fate::Becomes(_) => {
                let origin = setting.origin();
                writer.comment(&format!(
                    "{origin}: has no effect beside the other settings"
                ));
            }
            Fate::NotNeeded(reason) => {
                writer.comment(&format!("{}: not needed: {reason}", setting.name));
            }
            Fate::Missing(reason) if setting.text == known.default => {
                writer.comment(&format!("{}: at its default: {reason}", setting.name));
            }
            Fate::Missing(reason) => {
                let message = format!(
                    "{} = {} has no counterpart: {reason}",
                    setting.name, setting.text
                );
                writer.note(&setting.place, message);
            }
        }
    }
    if let Some(place) = &sources.peers {
        let message = format!(
            "[peers], line {}: not needed: one process uses all processors",
            place.line
        );
        writer.comment(&message);
    }
}
