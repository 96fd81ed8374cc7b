//! The pooler's configuration, built for a test.

use std::fmt::Write as _;

use crate::postgres::Postgres;

/// Builds a `pgcat.toml` with one server per pool. Users have their own name as password, on both
/// sides of the pooler.
#[derive(Debug, Clone)]
pub struct PoolerConfig {
    server_host: String,
    server_port: u16,
    databases: Vec<String>,
    pool_mode: &'static str,
    users: Vec<(String, u32, String)>,
    general: String,
    pool: String,
    stream_tables: Option<String>,
}

impl PoolerConfig {
    /// One pool, `postgres`, in transaction mode and without users.
    pub fn new(server: &Postgres) -> Self {
        Self::for_server("127.0.0.1", server.port())
    }

    pub fn for_server(host: &str, port: u16) -> Self {
        Self {
            server_host: host.to_owned(),
            server_port: port,
            databases: vec!["postgres".to_owned()],
            pool_mode: "transaction",
            users: Vec::new(),
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
                "[pools.\"{database}\".users.{index}]\nusername = \"{name}\"\npassword = \"{name}\"\n\
                 pool_size = {pool_size}\n{lines}\n\n"
            )
            .expect("writing to a String");
        }
        write!(
            text,
            "[pools.\"{database}\".shards.0]\nservers = [[\"{}\", {}, \"primary\"]]\ndatabase = \"{database}\"\n\n",
            self.server_host, self.server_port
        )
        .expect("writing to a String");
    }
}
