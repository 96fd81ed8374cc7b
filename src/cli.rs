//! The command line: PgCat's flags and environment variables.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// PostgreSQL pooler with stream tables.
#[derive(Debug, Parser, PartialEq, Eq)]
#[command(name = "pgcat", version)]
pub struct Args {
    /// The configuration file
    #[arg(env = "CONFIG_FILE", default_value = "pgcat.toml")]
    pub config_file: PathBuf,

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
    fn any_value_of_no_color_forbids_colours() {
        let color = |flag: &[&str], value: Option<&str>| parse(flag).color(value.map(OsStr::new));
        assert!(color(&[], None));
        assert!(color(&[], Some("")));
        assert!(!color(&[], Some("0")));
        assert!(!color(&[], Some("1")));
        assert!(!color(&["-n"], None));
    }
}
