//! Running `psql`.

use std::process::{Command, Stdio};

use crate::install;

/// A psql invocation: no psqlrc, stops at the first error, unaligned tuples-only output.
#[derive(Debug, Clone)]
pub struct Psql {
    host: String,
    port: u16,
    user: String,
    database: String,
    password: String,
    aligned: bool,
    variables: Vec<(String, String)>,
}

/// What psql printed.
#[derive(Debug, Clone)]
pub struct PsqlOutput {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Psql {
    pub fn new(host: &str, port: u16, user: &str, database: &str) -> Self {
        Self {
            host: host.to_owned(),
            port,
            user: user.to_owned(),
            database: database.to_owned(),
            password: user.to_owned(),
            aligned: false,
            variables: Vec::new(),
        }
    }

    /// Another password than the user's name.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        password.clone_into(&mut self.password);
        self
    }

    /// An environment variable of libpq's, such as `PGSSLMODE`.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// The libpq of this major, which must not be Debian's, under Debian's psql.
    #[must_use]
    pub fn libpq(self, major: u32) -> Self {
        let directory = install::bin_dir(major).join("../lib");
        self.variable("LD_LIBRARY_PATH", directory.display().to_string())
    }

    /// psql's own table layout, as a user sees it.
    #[must_use]
    pub fn aligned(mut self) -> Self {
        self.aligned = true;
        self
    }

    /// Runs each text with a `-c` of its own.
    pub fn try_run(&self, commands: &[&str]) -> PsqlOutput {
        let mut psql = self.command("psql");
        psql.args(["-X", "-v", "ON_ERROR_STOP=1"]);
        if !self.aligned {
            psql.args(["-A", "-t"]);
        }
        for command in commands {
            psql.args(["-c", command]);
        }
        finish(psql)
    }

    /// The output of commands that must succeed.
    pub fn run(&self, commands: &[&str]) -> String {
        let output = self.try_run(commands);
        assert!(
            output.success,
            "psql {commands:?}:\n{}{}",
            output.stdout, output.stderr
        );
        output.stdout
    }

    /// Another client program (`pg_dump`, `pgbench` …) on the same connection parameters.
    pub fn program(&self, name: &str, arguments: &[&str]) -> PsqlOutput {
        let mut command = self.command(name);
        command.args(arguments);
        finish(command)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(install::client_program(name));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        command
            .env("PGHOST", &self.host)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", &self.user)
            .env("PGPASSWORD", &self.password)
            .env("PGDATABASE", &self.database)
            .env("LC_ALL", "C.UTF-8")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }
}

fn finish(mut command: Command) -> PsqlOutput {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    PsqlOutput {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
