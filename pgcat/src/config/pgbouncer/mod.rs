//! From PgBouncer: `pgbouncer.ini`, and the files it names, as a `pgcat.toml`.
//!
//! Every setting becomes a key, or is named with the reason why it does not: where nothing is missed
//! by it, in a comment, and where something is, in a [`Warning`] as well. What PgBouncer would
//! refuse is an error here.

use std::path::{Path, PathBuf};

use super::error::{ConfigError, Warning};
use database::Line;
use ini::{Entry, Place, Section};
use settings::Settings;
use userlist::Login;
use writer::Writer;

mod connect_string;
mod database;
mod general;
mod ini;
mod pools;
mod settings;
#[cfg(test)]
mod tests;
mod userlist;
mod writer;

/// What to import.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `pgbouncer.ini`.
    pub path: &'a Path,
    /// Databases to be served by the fallback `*`, which takes any name.
    pub databases: &'a [String],
    /// Users beside those of `auth_file`, such as those that `auth_query` knows.
    pub users: &'a [String],
}

/// A configuration made from PgBouncer's.
#[derive(Debug)]
pub struct Imported {
    /// The text of the `pgcat.toml`. It is valid if the files that it names are.
    pub text: String,
    /// What works differently, or not at all.
    pub notes: Vec<Warning>,
}

/// What PgBouncer's files say.
struct Sources {
    path: PathBuf,
    settings: Settings,
    /// Without the fallback.
    databases: Vec<Line>,
    /// The lines of `[users]`.
    user_lines: Vec<Line>,
    /// Who may log in.
    users: Vec<Login>,
    peers: Option<Place>,
}

/// Reads `pgbouncer.ini` and writes a `pgcat.toml`.
///
/// # Errors
/// The first thing that PgBouncer would refuse as well, or that cannot be expressed at all, with its file
/// and line.
pub fn import(request: Request<'_>) -> Result<Imported, ConfigError> {
    let mut writer = Writer::default();
    let source = request.path.display().to_string();
    writer.comment(&format!("Made from {source} by `pgcat import`."));
    writer.comment("Times are in milliseconds, but for dns_max_ttl.");
    let sources = Sources::read(request, &mut writer)?;
    general::write(&sources, &mut writer)?;
    for database in &sources.databases {
        pools::write(&sources, database, &mut writer)?;
    }
    general::write_rest(&sources, &mut writer);
    let Writer { text, notes } = writer;
    Ok(Imported { text, notes })
}

impl Sources {
    fn read(request: Request<'_>, writer: &mut Writer) -> Result<Self, ConfigError> {
        let mut sources = Self {
            path: request.path.to_owned(),
            settings: Settings::new(request.path),
            databases: Vec::new(),
            user_lines: Vec::new(),
            users: Vec::new(),
            peers: None,
        };
        let mut fallback = None;
        for entry in ini::read(request.path)? {
            match entry.section {
                Section::Pgbouncer => sources.settings.put(entry.key, entry.value, entry.place),
                Section::Peers => sources.peers = Some(entry.place),
                Section::Users => replace(&mut sources.user_lines, Line::user(entry)?),
                Section::Databases if entry.key == "*" => fallback = Some(Line::database(entry)?),
                Section::Databases => sources.database(entry, writer)?,
            }
        }
        sources.check_auth_type()?;
        let start = sources.settings.start.clone();
        for name in request.databases {
            if sources.databases.iter().any(|line| line.name == *name) {
                continue;
            }
            let Some(fallback) = &fallback else {
                let message = "no such database, and there is no fallback *";
                return Err(start.error(&format!("databases.{name}"), message));
            };
            sources.databases.push(fallback.named(name));
        }
        if let (Some(fallback), []) = (&fallback, request.databases) {
            let message =
                "databases.*: a pool has a name: name the databases it serves with --database";
            if sources.databases.is_empty() {
                return Err(fallback.place.syntax_error(message));
            }
            writer.note(&fallback.place, message.to_owned());
        }
        if sources.databases.is_empty() {
            return Err(start.syntax_error("[databases] is empty"));
        }
        let file = sources.settings.get("auth_file");
        if !file.text.is_empty() {
            sources.users = userlist::read(&sources.resolve(&file.text))?;
        }
        // With settings of their own, those whom only `auth_query` knows have to have a name, too.
        let own = sources.user_lines.iter().map(|line| line.name.clone());
        let named: Vec<_> = match sources.has_auth_query() {
            true => request.users.iter().cloned().chain(own).collect(),
            false => request.users.to_vec(),
        };
        for name in &named {
            if sources.secret(name).is_none() {
                sources.users.push(Login {
                    name: name.clone(),
                    secret: String::new(),
                    place: start.clone(),
                });
            }
        }
        Ok(sources)
    }

    fn database(&mut self, entry: Entry, writer: &mut Writer) -> Result<(), ConfigError> {
        let line = Line::database(entry)?;
        match line.name.as_str() {
            "pgbouncer" => {
                let message = "database name \"pgbouncer\" is reserved";
                Err(line.place.error("databases.pgbouncer", message))
            }
            "pgcat" => {
                let message =
                    "databases.pgcat is left out: the name is that of pgcat's admin database";
                writer.note(&line.place, message.to_owned());
                Ok(())
            }
            _ => {
                replace(&mut self.databases, line);
                Ok(())
            }
        }
    }

    fn check_auth_type(&self) -> Result<(), ConfigError> {
        let setting = self.settings.get("auth_type");
        match setting.text.as_str() {
            "any" | "trust" | "plain" | "md5" | "scram-sha-256" | "cert" | "hba" => Ok(()),
            "pam" | "ldap" | "peer" => {
                let message = format!("{} has no counterpart in pgcat", setting.text);
                Err(setting.error(message))
            }
            other => Err(setting.error(format!("there is no auth_type {other:?}"))),
        }
    }

    /// One of those that [`Self::check_auth_type`] lets pass.
    fn auth_type(&self) -> &str {
        self.settings.text("auth_type")
    }

    /// What `auth_file` has for a user.
    fn secret(&self, name: &str) -> Option<String> {
        let login = self.users.iter().find(|login| login.name == name)?;
        Some(login.secret.clone())
    }

    fn has_auth_query(&self) -> bool {
        let of_database = self
            .databases
            .iter()
            .any(|line| line.text("auth_user").is_some());
        of_database || !self.settings.text("auth_user").is_empty()
    }

    fn resolve(&self, name: &str) -> PathBuf {
        ini::resolve(name, &self.path)
    }
}

/// Adds a line in the place of one of the same name.
fn replace(lines: &mut Vec<Line>, line: Line) {
    match lines.iter_mut().find(|other| other.name == line.name) {
        Some(other) => *other = line,
        None => lines.push(line),
    }
}
