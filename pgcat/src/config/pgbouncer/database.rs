//! A line of `[databases]`.

use toml::Value;

use super::super::error::ConfigError;
use super::connect_string;
use super::ini::{Entry, Place};
use super::settings::Setting;

/// A line of `[databases]` or `[users]`, read into its parameters.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub name: String,
    pub place: Place,
    section: &'static str,
    pairs: Vec<(String, String)>,
}

/// Parameters of a database without a counterpart, and what is different without them.
const MISSING_OF_DATABASE: &[(&str, &str)] = &[
    ("connect_query", "nothing is run on new connections"),
    ("client_encoding", ALTER),
    ("datestyle", ALTER),
    ("timezone", ALTER),
    ("application_name", ALTER),
    (
        "auth_dbname",
        "auth_query is asked in the database of the pool",
    ),
    (
        "load_balance_hosts",
        "clients are spread over the hosts, and those that fail are left out",
    ),
];

const DATABASE: &[&str] = &[
    "dbname",
    "host",
    "port",
    "user",
    "password",
    "auth_user",
    "auth_query",
    "pool_size",
    "min_pool_size",
    "reserve_pool",
    "reserve_pool_size",
    "pool_mode",
    "server_lifetime",
    "max_db_connections",
    "max_db_client_connections",
];

const USER: &[&str] = &[
    "pool_mode",
    "pool_size",
    "reserve_pool_size",
    "query_timeout",
    "transaction_timeout",
    "idle_transaction_timeout",
    "client_idle_timeout",
    "max_user_connections",
    "max_user_client_connections",
];

const ALTER: &str = "set it in the server, by ALTER DATABASE or ALTER ROLE";

impl Line {
    /// # Errors
    /// What PgBouncer would refuse.
    pub fn database(entry: Entry) -> Result<Self, ConfigError> {
        Self::read(entry, "databases", DATABASE, MISSING_OF_DATABASE)
    }

    /// # Errors
    /// What PgBouncer would refuse.
    pub fn user(entry: Entry) -> Result<Self, ConfigError> {
        Self::read(entry, "users", USER, &[])
    }

    fn read(
        entry: Entry,
        section: &'static str,
        known: &[&str],
        missing: &[(&str, &str)],
    ) -> Result<Self, ConfigError> {
        let Entry {
            key, value, place, ..
        } = entry;
        let here = format!("{section}.{key}");
        let pairs = connect_string::parse(&value).map_err(|m| place.error(&here, m))?;
        for (name, _) in &pairs {
            let is_missing = missing.iter().any(|(missing, _)| missing == name);
            if !is_missing && !known.contains(&name.as_str()) {
                // PgBouncer's words.
                let message = format!("unrecognized connection parameter: {name}");
                return Err(place.error(&here, message));
            }
        }
        Ok(Self {
            name: key,
            place,
            section,
            pairs,
        })
    }

    /// The same parameters for another name: those of the fallback for a database.
    pub fn named(&self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self.clone()
        }
    }

    /// A parameter; the last one of a name counts.
    pub fn text(&self, name: &str) -> Option<&str> {
        let pair = self.pairs.iter().rev().find(|(key, _)| key == name)?;
        Some(&pair.1)
    }

    /// A parameter, with all that is needed to complain about it.
    pub fn get(&self, name: &str) -> Option<Setting> {
        let text = self.text(name)?.to_owned();
        Some(Setting {
            name: format!("{}.{}.{name}", self.section, self.name),
            text,
            place: self.place.clone(),
            is_default: false,
        })
    }

    /// What is set and has no counterpart.
    pub fn notes(&self) -> Vec<String> {
        let missing = MISSING_OF_DATABASE.iter();
        let mut notes: Vec<_> = missing
            .filter_map(|&(name, reason)| {
                let value = self.text(name).filter(|value| *value != "0")?;
                Some(format!(
                    "{}.{}: {name} = {value} has no counterpart: {reason}",
                    self.section, self.name
                ))
            })
            .collect();
        notes.dedup();
        notes
    }

    /// Host, port and role of each server. `socket_directory` is where a server without a host is.
    ///
    /// # Errors
    /// A host or port that cannot be used.
    pub fn servers(&self, socket_directory: &str) -> Result<Vec<Value>, ConfigError> {
        let port = match self.get("port") {
            Some(port) => port.count()?,
            None => 5432,
        };
        let mut hosts = self.get("host").map(|h| h.list()).unwrap_or_default();
        if hosts.is_empty() {
            hosts.push(socket_directory.to_owned());
        }
        if hosts.iter().any(|host| host.starts_with('@')) {
            let message = "sockets in the abstract namespace are not supported";
            return Err(self
                .place
                .error(&format!("databases.{}.host", self.name), message));
        }
        // PgBouncer lets a host have more turns by naming it more often.
        let mut seen = Vec::new();
        hosts.retain(|host| {
            let is_new = !seen.contains(host);
            seen.push(host.clone());
            is_new
        });
        // Any of several may be the primary; the pooler asks them.
        let role = if hosts.len() == 1 { "primary" } else { "auto" };
        let server =
            |host: String| -> Value { Value::Array(vec![host.into(), port.into(), role.into()]) };
        Ok(hosts.into_iter().map(server).collect())
    }
}
