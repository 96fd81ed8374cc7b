//! The commands of the admin databases, as text.

use super::show::Show;
use super::{Dialect, Failure};
use crate::net::orders::Ending;
use crate::plugins::AdminTable;
use crate::router::lexer;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Ban {
        host: String,
        seconds: u64,
    },
    Disable(String),
    Enable(String),
    Kill(Target),
    KillClient(u64),
    Pause(Target),
    Reconnect(Target),
    Reload,
    Resume(Target),
    Set {
        name: String,
    },
    Show(Show),
    /// A plugin's table.
    ShowOfPlugin(&'static AdminTable),
    Shutdown(Ending),
    Suspend,
    Unban {
        host: String,
    },
    WaitClose(Target),
}

/// The pools a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    All,
    Database(String),
    /// Database and user.
    Pool(String, String),
}

impl Command {
    /// Reads one statement, without its semicolon.
    pub fn parse(text: &str, dialect: Dialect) -> Result<Self, Failure> {
        let start = lexer::skip_blank(text.as_bytes(), 0);
        let end = lexer::word_end(text.as_bytes(), start);
        let (word, rest) = (&text[start..end], &text[end..]);
        let unknown = || Failure::Unknown(text.trim().to_owned());
        let mut arguments = arguments(rest).ok_or_else(unknown)?;
        let word = word.to_ascii_uppercase();
        let most = match word.as_str() {
            "SET" => return set(&arguments).ok_or_else(unknown),
            "SHOW" => return Show::parse(&arguments).map(Self::Show),
            "BAN" | "PAUSE" | "RESUME" | "KILL" | "RECONNECT" | "WAIT_CLOSE" => 2,
            "DISABLE" | "ENABLE" | "KILL_CLIENT" | "SHUTDOWN" | "UNBAN" => 1,
            "RELOAD" | "SUSPEND" => 0,
            _ => return Err(unknown()),
        };
        if word == "BAN" {
            return ban(&arguments);
        }
        if arguments.len() > most {
            return Err(unknown());
        }
        let second = (arguments.len() > 1).then(|| arguments.remove(1));
        let first = arguments.pop();
        let target = match (first.clone(), second) {
            (None, _) => Target::All,
            (Some(database), None) => Target::Database(database),
            (Some(database), Some(user)) => Target::Pool(database, user),
        };
        let database = || {
            first
                .clone()
                .ok_or(Failure::Usage("a database is required"))
        };
        Ok(match word.as_str() {
            "DISABLE" => Self::Disable(database()?),
            "ENABLE" => Self::Enable(database()?),
            "KILL" => Self::Kill(target),
            "KILL_CLIENT" => Self::KillClient(client_id(first.as_deref())?),
            "PAUSE" => Self::Pause(target),
            "RECONNECT" => Self::Reconnect(target),
            "RELOAD" => Self::Reload,
            "RESUME" => Self::Resume(target),
            "SHUTDOWN" => Self::Shutdown(shutdown(first.as_deref(), dialect).ok_or_else(unknown)?),
            "SUSPEND" => Self::Suspend,
            "UNBAN" => Self::Unban {
                host: first.ok_or(Failure::Usage("UNBAN command requires a hostname to unban"))?,
            },
            _ => Self::WaitClose(target),
        })
    }
}

/// `SET name = value`, `SET name TO value`, and whatever else drivers SET.
fn set(arguments: &[String]) -> Option<Command> {
    let first = arguments.first()?;
    let skipped = first.eq_ignore_ascii_case("session") || first.eq_ignore_ascii_case("local");
    let name = arguments.get(usize::from(skipped)).unwrap_or(first);
    let name = name.split('=').next().unwrap_or(name).to_ascii_lowercase();
    Some(Command::Set { name })
}

fn ban(arguments: &[String]) -> Result<Command, Failure> {
    let [host, seconds] = arguments else {
        return Err(Failure::Usage("usage: BAN hostname duration_seconds"));
    };
    let seconds: i64 = seconds
        .parse()
        .map_err(|_| Failure::Usage("duration_seconds must be an integer"))?;
    match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Ok(Command::Ban {
            host: host.clone(),
            seconds,
        }),
        _ => Err(Failure::Usage("duration_seconds must be > 0")),
    }
}

/// A client's number, as SHOW CLIENTS has it: `0x0000002A` in PgCat's, 42 or a `ptr` in PgBouncer's.
fn client_id(argument: Option<&str>) -> Result<u64, Failure> {
    let argument = argument.ok_or(Failure::Usage("a client id is required"))?;
    let parsed = match argument.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => argument.parse(),
    };
    parsed.map_err(|_| Failure::Usage("invalid client id"))
}

/// Without an argument, PgBouncer ends at once, and PgCat gracefully.
fn shutdown(argument: Option<&str>, dialect: Dialect) -> Option<Ending> {
    let Some(argument) = argument else {
        return Some(match dialect {
            Dialect::Pgbouncer => Ending::Immediate,
            Dialect::Pgcat => Ending::Graceful,
        });
    };
    match argument.to_ascii_uppercase().as_str() {
        "WAIT_FOR_CLIENTS" => Some(Ending::WaitForClients),
        // Clients who hold none are told, and leave, at once.
        "WAIT_FOR_SERVERS" => Some(Ending::Graceful),
        _ => None,
    }
}

/// The words after the first, separated by white space or commas; quotes keep a word together.
/// `None` if a quote is not closed.
fn arguments(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        rest = &rest[lexer::skip_blank(rest.as_bytes(), 0)..];
        rest = rest.trim_start_matches(',');
        rest = &rest[lexer::skip_blank(rest.as_bytes(), 0)..];
        let Some(first) = rest.chars().next() else {
            return Some(words);
        };
        if matches!(first, '"' | '\'') {
            let mut word = String::new();
            let mut characters = rest[1..].char_indices().peekable();
            let end = loop {
                let (at, character) = characters.next()?;
                if character != first {
                    word.push(character);
                } else if characters.next_if(|(_, next)| *next == first).is_some() {
                    word.push(first);
                } else {
                    break 1 + at + 1;
                }
            };
            words.push(word);
            rest = &rest[end..];
        } else {
            let end = rest
                .find(|c: char| c.is_whitespace() || c == ',')
                .unwrap_or(rest.len());
            words.push(rest[..end].to_owned());
            rest = &rest[end..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pgbouncer(text: &str) -> Result<Command, Failure> {
        Command::parse(text, Dialect::Pgbouncer)
    }

    #[test]
    fn targets() {
        let pool = |database: &str, user: &str| Target::Pool(database.into(), user.into());
        let cases = [
            ("pause", Target::All),
            ("PAUSE db", Target::Database("db".into())),
            ("PAUSE db,u", pool("db", "u")),
            // PgCat pauses every pool here, though its own SHOW HELP says to write it like this.
            ("PAUSE db, u", pool("db", "u")),
            ("pause db u", pool("db", "u")),
            (
                "/* a */ pause -- b\n \"d b\" , \"u\"\"1\"",
                pool("d b", "u\"1"),
            ),
            ("pause my-db", Target::Database("my-db".into())),
        ];
        for (text, target) in cases {
            assert_eq!(pgbouncer(text), Ok(Command::Pause(target)), "{text}");
        }
        assert!(matches!(pgbouncer("pause a b c"), Err(Failure::Unknown(_))));
        assert!(matches!(pgbouncer("pause \"a"), Err(Failure::Unknown(_))));
    }

    #[test]
    fn drivers_set_what_they_like() {
        let set = |name: &str| Ok(Command::Set { name: name.into() });
        assert_eq!(
            pgbouncer("SET extra_float_digits = 3"),
            set("extra_float_digits")
        );
        assert_eq!(
            pgbouncer("set Client_Encoding to 'utf8'"),
            set("client_encoding")
        );
        assert_eq!(pgbouncer("set a=1"), set("a"));
        let session = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY";
        assert_eq!(pgbouncer(session), set("characteristics"));
        assert!(pgbouncer("set").is_err());
    }

    #[test]
    fn the_others() {
        assert_eq!(
            pgbouncer("ban 10.0.0.1 60"),
            Ok(Command::Ban {
                host: "10.0.0.1".into(),
                seconds: 60
            })
        );
        assert_eq!(
            pgbouncer("BAN a"),
            Err(Failure::Usage("usage: BAN hostname duration_seconds"))
        );
        assert_eq!(
            pgbouncer("BAN a x"),
            Err(Failure::Usage("duration_seconds must be an integer"))
        );
        assert_eq!(pgbouncer("KILL_CLIENT 0x1F"), Ok(Command::KillClient(31)));
        assert_eq!(pgbouncer("KILL_CLIENT 31"), Ok(Command::KillClient(31)));
        assert_eq!(
            pgbouncer("shutdown"),
            Ok(Command::Shutdown(Ending::Immediate))
        );
        assert_eq!(
            Command::parse("shutdown", Dialect::Pgcat),
            Ok(Command::Shutdown(Ending::Graceful))
        );
        assert_eq!(
            pgbouncer("shutdown wait_for_clients"),
            Ok(Command::Shutdown(Ending::WaitForClients))
        );
        assert_eq!(
            pgbouncer("disable"),
            Err(Failure::Usage("a database is required"))
        );
        for text in ["", "select 1", "shutdown now", "reload x", "showme"] {
            assert!(
                matches!(pgbouncer(text), Err(Failure::Unknown(_))),
                "{text}"
            );
        }
    }
}
