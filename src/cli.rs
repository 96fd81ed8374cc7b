//! The command line: PgCat's flags and environment variables.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// PostgreSQL pooler with stream tables.
#[derive(Debug, Parser, PartialEq, Eq)]
#[command(name = "pgcat", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The configuration file
    #[arg(env = "CONFIG_FILE", default_value = "pgcat.toml")]
    pub config_file: PathBuf,

    /// Online restart: take the listening sockets over from the pgcat that serves now, if there is one
    #[arg(short = 'R', long)]
    pub takeover: bool,

    /// Log messages of this level and above; RUST_LOG, if set, is used instead
    #[arg(
        short,
        long,
        env = "LOG_LEVEL",
        value_enum,
        ignore_case = true,
        default_value = "info"
    )]
    pub log_level: LogLevel,

    /// text: a line per message; structured: a JSON object per line; debug: text with source positions
    #[arg(
        short = 'F',
        long,
        env = "LOG_FORMAT",
        value_enum,
        ignore_case = true,
        default_value = "text"
    )]
    pub log_format: LogFormat,

    /// Log without colours [env: NO_COLOR]
    #[arg(short, long)]
    no_color: bool,
}

/// What else there is to do than to serve.
#[derive(Debug, Subcommand, PartialEq, Eq)]
pub enum Command {
    /// Validate a configuration file, with the files that it names
    Check {
        /// The configuration file
        #[arg(env = "CONFIG_FILE", default_value = "pgcat.toml")]
        config_file: PathBuf,
    },
    /// Write the configuration file that does what a pgbouncer.ini says
    Import(Import),
}

#[derive(Debug, clap::Args, PartialEq, Eq)]
pub struct Import {
    /// PgBouncer's configuration file
    pub pgbouncer_ini: PathBuf,

    /// Write to this file, which must not exist, instead of standard output
    #[arg(short, long)]
    pub output: Option<PathBuf>,

    /// A database that the fallback `*` serves; may be repeated
    #[arg(long = "database", value_name = "NAME")]
    pub databases: Vec<String>,

    /// A user who is not in auth_file, such as one that auth_query knows; may be repeated
    #[arg(long = "user", value_name = "NAME")]
    pub users: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Structured,
    Debug,
}

impl Args {
    /// Whether the log may be coloured, given the value of `NO_COLOR`: any but an empty one forbids
    /// it (no-color.org), while clap would take `0` or `false` for "no".
    pub fn color(&self, no_color: Option<&OsStr>) -> bool {
        !self.no_color && no_color.is_none_or(OsStr::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Args {
        Args::try_parse_from([&["pgcat"], args].concat()).expect("valid arguments")
    }

    #[test]
    fn flags_of_pgcat() {
        let args = parse(&["/etc/pgcat.toml", "-l", "WARN", "-F", "structured", "-n"]);
        assert_eq!(args.config_file, PathBuf::from("/etc/pgcat.toml"));
        assert_eq!(
            (args.log_level, args.log_format),
            (LogLevel::Warn, LogFormat::Structured)
        );
        let long = [
            "/etc/pgcat.toml",
            "--log-level",
            "warn",
            "--log-format",
            "structured",
            "--no-color",
        ];
        assert_eq!(parse(&long), args);
        assert!(Args::try_parse_from(["pgcat", "--log-level", "loud"]).is_err());
    }

    #[test]
    fn a_take_over_is_asked_for_as_of_pgbouncer() {
        assert!(parse(&["-R", "a.toml"]).takeover);
        assert!(parse(&["a.toml", "--takeover"]).takeover);
        assert!(!parse(&["a.toml"]).takeover);
    }

    #[test]
    fn commands_are_told_from_files() {
        let check = parse(&["check", "a.toml"]).command;
        let config_file = PathBuf::from("a.toml");
        assert_eq!(check, Some(Command::Check { config_file }));
        let import = [
            "import", "p.ini", "-o", "a.toml", "--user", "a", "--user", "b",
        ];
        let Some(Command::Import(import)) = parse(&import).command else {
            panic!("the command is import");
        };
        assert_eq!(import.output, Some(PathBuf::from("a.toml")));
        assert_eq!(import.users, ["a", "b"]);
        assert_eq!(parse(&["./check"]).command, None);
        assert!(Args::try_parse_from(["pgcat", "import"]).is_err());
    }

    #[test]
    fn any_value_of_no_color_forbids_colours() {
        let color = |flag: &[&str], value: Option<&str>| parse(flag).color(value.map(OsStr::new));
        assert!(color(&[], None));
        assert!(color(&[], Some("")));
        assert!(!color(&[], Some("0")));
        assert!(!color(&[], Some("1")));
        assert!(!color(&["-n"], None));
    }
}
