//! `auth_file`: `"name" "password, md5 hash or SCRAM secret"` lines.

use std::path::Path;

use super::super::error::ConfigError;
use super::ini::{self, Place};

/// A user of `auth_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub name: String,
    /// As it stands in the file; may be empty.
    pub secret: String,
    pub place: Place,
}

/// Reads the file; the last line of a name counts.
///
/// # Errors
/// The file cannot be read, or has a line that is none. PgBouncer leaves the rest of such a file out,
/// with an entry in its log: an import that loses users would be noticed too late.
pub(super) fn read(path: &Path) -> Result<Vec<Login>, ConfigError> {
    parse(&ini::text(path)?, path)
}

fn parse(text: &str, path: &Path) -> Result<Vec<Login>, ConfigError> {
    let mut logins: Vec<Login> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        let place = Place {
            path: path.into(),
            line: index + 1,
        };
        let Some((name, secret)) = login(line) else {
            return Err(place.syntax_error("expected \"user name\" \"password\", both in quotes"));
        };
        logins.retain(|login| login.name != name);
        logins.push(Login {
            name,
            secret,
            place,
        });
    }
    Ok(logins)
}

/// Name and secret; the rest of the line is a remark.
fn login(line: &str) -> Option<(String, String)> {
    let (name, rest) = ini::until_quote(line.strip_prefix('"')?)?;
    let (_, quoted) = rest.split_once('"')?;
    let (secret, _) = ini::until_quote(quoted)?;
    Some((name, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_every_kind_are_kept_as_they_are() {
        let text = "; users\n\n\"a\" \"plain \"\"pw\"\"\" remark\n \"b\"\t\"md545f2\"\n\
                    \"c\" \"SCRAM-SHA-256$4096:s$k:v\"\n\"a\" \"later\"\n\"d\" \"\"";
        let logins = parse(text, Path::new("u")).expect("valid");
        let found: Vec<_> = logins
            .iter()
            .map(|login| (login.name.as_str(), login.secret.as_str(), login.place.line))
            .collect();
        assert_eq!(
            found,
            [
                ("b", "md545f2", 4),
                ("c", "SCRAM-SHA-256$4096:s$k:v", 5),
                ("a", "later", 6),
                ("d", "", 7)
            ]
        );
    }

    #[test]
    fn a_broken_line_is_named() {
        for line in ["a b", "\"a\"", "\"a\" \"b", "\"a"] {
            let error = parse(&format!("\n{line}"), Path::new("u")).expect_err(line);
            let message = "u:2: Could not parse config file: expected \"user name\" \"password\", both in quotes";
            assert_eq!(error.to_string(), message);
        }
    }
}
