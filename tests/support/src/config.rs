//! The pooler's configuration, built for a test.

use std::fmt::Write as _;

use crate::postgres::Postgres;

/// A server of a shard: host, port and role.
pub type Server<'a> = (&'a str, u16, &'a str);

/// Builds a `pgcat.toml`, by default with one server per pool. Users have their own name as password, on both
/// sides of the pooler.
#[derive(Debug, Clone)]
pub struct PoolerConfig {
    shards: Vec<Shard>,
    shard_lines: String,
    databases: Vec<String>,
    pool_mode: &'static str,
    users: Vec<(String, u32, String)>,
    passwords: bool,
    general: String,
    pool: String,
    stream_tables: Option<String>,
}

#[derive(Debug, Clone)]
struct Shard {
    /// `None`: that of the pool.
    database: Option<String>,
    /// As the file has them.
    servers: String,
}

impl Shard {
    fn new(database: Option<&str>, servers: &[Server<'_>]) -> Self {
        let servers: Vec<String> = servers
            .iter()
            .map(|(host, port, role)| format!("[\"{host}\", {port}, \"{role}\"]"))
            .collect();
        Self {
            database: database.map(str::to_owned),
            servers: servers.join(", "),
        }
    }
}

impl PoolerConfig {
    /// One pool, `postgres`, in transaction mode and without users.
    pub fn new(server: &Postgres) -> Self {
        Self::for_server("127.0.0.1", server.port())
    }

    pub fn for_server(host: &str, port: u16) -> Self {
        Self {
            shards: vec![Shard::new(None, &[(host, port, "primary")])],
            shard_lines: String::new(),
            databases: vec!["postgres".to_owned()],
            pool_mode: "transaction",
            users: Vec::new(),
            passwords: true,
            general: String::new(),
            pool: String::new(),
            stream_tables: None,
        }
    }

    /// The databases with a pool of the same name, instead of `postgres`.
    #[must_use]
    pub fn databases(mut self, names: &[&str]) -> Self {
        self.databases = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// The servers of the only shard.
    #[must_use]
    pub fn servers(mut self, servers: &[Server<'_>]) -> Self {
        self.shards = vec![Shard::new(None, servers)];
        self
    }

    /// The shards, in order: each a database's name and its servers.
    #[must_use]
    pub fn shards(mut self, shards: &[(&str, &[Server<'_>])]) -> Self {
        self.shards = shards
            .iter()
            .map(|(database, servers)| Shard::new(Some(database), servers))
            .collect();
        self
    }

    /// Adds a line to every shard.
    #[must_use]
    pub fn shard_line(mut self, line: &str) -> Self {
        self.shard_lines.push_str(line);
        self.shard_lines.push('\n');
        self
    }

    /// Adds a user to every pool.
    #[must_use]
    pub fn user(self, name: &str, pool_size: u32) -> Self {
        self.user_with(name, pool_size, "")
    }

    /// Adds a user with further lines of its section, e.g. `"auth_type = \"trust\""`.
    #[must_use]
    pub fn user_with(mut self, name: &str, pool_size: u32, lines: &str) -> Self {
        self.users
            .push((name.to_owned(), pool_size, lines.to_owned()));
        self
    }

    /// No passwords of users but those in their own lines.
    #[must_use]
    pub fn without_passwords(mut self) -> Self {
        self.passwords = false;
        self
    }

    #[must_use]
    pub fn session_mode(mut self) -> Self {
        self.pool_mode = "session";
        self
    }

    /// Adds a line to `[general]`.
    #[must_use]
    pub fn general(mut self, line: &str) -> Self {
        self.general.push_str(line);
        self.general.push('\n');
        self
    }

    /// Adds a line to every `[pools.<name>]`.
    #[must_use]
    pub fn pool(mut self, line: &str) -> Self {
        self.pool.push_str(line);
        self.pool.push('\n');
        self
    }

    /// Turns stream tables on.
    #[must_use]
    pub fn stream_tables(self) -> Self {
        self.stream_tables_with("")
    }

    /// Turns stream tables on, with further lines of `[plugins.stream_tables]`.
    #[must_use]
    pub fn stream_tables_with(mut self, lines: &str) -> Self {
        self.stream_tables = Some(lines.to_owned());
        self
    }

    /// The file's text, for a pooler that listens on `port`.
    pub fn render(&self, port: u16) -> String {
        let mut text = format!(
            "[general]\nhost = \"127.0.0.1\"\nport = {port}\nadmin_username = \"admin\"\nadmin_password = \"admin\"\n{}\n",
            self.general
        );
        if let Some(lines) = &self.stream_tables {
            write!(text, "[plugins.stream_tables]\nenabled = true\n{lines}\n\n")
                .expect("writing to a String");
        }
        for database in &self.databases {
            self.render_pool(&mut text, database);
        }
        text
    }

    fn render_pool(&self, text: &mut String, database: &str) {
        write!(
            text,
            "[pools.\"{database}\"]\npool_mode = \"{}\"\n{}\n",
            self.pool_mode, self.pool
        )
        .expect("writing to a String");
        for (index, (name, pool_size, lines)) in self.users.iter().enumerate() {
            write!(
                text,
                "[pools.\"{database}\".users.{index}]\nusername = \"{name}\"\n{}\n\
                 pool_size = {pool_size}\n{lines}\n\n",
                if self.passwords {
                    format!("password = \"{name}\"")
                } else {
                    String::new()
                }
            )
            .expect("writing to a String");
        }
        for (index, shard) in self.shards.iter().enumerate() {
            write!(
                text,
                "[pools.\"{database}\".shards.{index}]\nservers = [{}]\ndatabase = \"{}\"\n{}\n",
                shard.servers,
                shard.database.as_deref().unwrap_or(database),
                self.shard_lines,
            )
            .expect("writing to a String");
        }
    }
}
