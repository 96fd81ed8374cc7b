//! `pgbouncer.ini`: sections, `key = value` lines, comments and `%include`.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::super::error::ConfigError;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub path: Rc<Path>,
    /// From 1.
    pub line: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Databases,
    Pgbouncer,
    Users,
    Peers,
}

/// A line `key = value`.
#[derive(Debug)]
pub(super) struct Entry {
    pub section: Section,
    pub key: String,
    pub value: String,
    pub place: Place,
}

/// PgBouncer's own limit; a file that includes itself meets it.
const DEEPEST_INCLUDE: usize = 10;

impl Place {
    pub fn syntax_error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError::Syntax {
            path: self.path.to_path_buf(),
            line: self.line,
            message: message.into(),
        }
    }

    pub fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_path_buf(),
            line: self.line,
            key: key.to_owned(),
            message: message.into(),
        }
    }
}

/// Reads a file and what it includes, in order.
///
/// # Errors
/// The first file that cannot be read, or the first line that PgBouncer would refuse.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, ConfigError> {
    let mut reader = Reader::default();
    reader.file(path, 0)?;
    Ok(reader.entries)
}

/// The text of a file that PgBouncer's configuration leads to.
pub(super) fn text(path: &Path) -> Result<String, ConfigError> {
    let bytes = std::fs::read(path).map_err(|source| ConfigError::Open {
        path: path.to_owned(),
        source,
    })?;
    String::from_utf8(bytes).map_err(|error| ConfigError::NotUtf8 {
        path: path.to_owned(),
        source: error.utf8_error(),
    })
}

/// The file of a name in a configuration. PgBouncer looks for it in its working directory, which is
/// seldom that of an import: then it is looked for beside the configuration.
pub(super) fn resolve(name: &str, beside: &Path) -> PathBuf {
    let path = PathBuf::from(name);
    let there = beside.parent().map(|directory| directory.join(&path));
    match there {
        Some(there) if !path.exists() && there.exists() => there,
        _ => path,
    }
}

#[derive(Default)]
struct Reader {
    /// Of the last header, also across files.
    section: Option<Section>,
    entries: Vec<Entry>,
}

impl Reader {
    fn file(&mut self, path: &Path, depth: usize) -> Result<(), ConfigError> {
        let text = text(path)?;
        let path: Rc<Path> = path.into();
        for (index, line) in text.lines().enumerate() {
            let place = Place {
                path: path.clone(),
                line: index + 1,
            };
            self.line(line.trim(), place, depth)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str, place: Place, depth: usize) -> Result<(), ConfigError> {
        // Only at the start of a line are they comments: passwords may hold either.
        if line.is_empty() || line.starts_with([';', '#']) {
            return Ok(());
        }
        if let Some(name) = line.strip_prefix("%include")
            && name.starts_with([' ', '\t'])
        {
            if depth >= DEEPEST_INCLUDE {
                return Err(place.syntax_error("files include each other too deeply"));
            }
            return self.file(&resolve(name.trim(), &place.path), depth + 1);
        }
        if let Some(header) = line.strip_prefix('[') {
            let name = header
                .split_once(']')
                .map(|(name, _)| name)
                .ok_or_else(|| place.syntax_error("a section's name does not end with ]"))?;
            self.section = Some(match name {
                "databases" => Section::Databases,
                "pgbouncer" => Section::Pgbouncer,
                "users" => Section::Users,
                "peers" => Section::Peers,
                _ => return Err(place.syntax_error(format!("there is no section [{name}]"))),
            });
            return Ok(());
        }
        let (key, value) = entry(line).ok_or_else(|| place.syntax_error("expected key = value"))?;
        let section = self
            .section
            .ok_or_else(|| place.syntax_error(format!("{key} stands before any [section]")))?;
        self.entries.push(Entry {
            section,
            key,
            value: value.to_owned(),
            place,
        });
        Ok(())
    }
}

/// A key, plain or as a quoted SQL identifier, and what is right of the `=`.
fn entry(line: &str) -> Option<(String, &str)> {
    let (key, rest) = match line.strip_prefix('"') {
        Some(quoted) => until_quote(quoted)?,
        None => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_.-*".contains(c);
            let end = line.find(|c| !plain(c)).unwrap_or(line.len());
            (line[..end].to_owned(), &line[end..])
        }
    };
    let value = rest.trim_start().strip_prefix('=')?;
    (!key.is_empty()).then_some((key, value.trim()))
}

/// The text up to the closing double quote, where a doubled one stands for itself, and what follows.
pub(super) fn until_quote(text: &str) -> Option<(String, &str)> {
    let mut content = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"')?;
        content.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                content.push('"');
                rest = after;
            }
            None => return Some((content, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Result<Vec<Entry>, String> {
        let mut reader = Reader::default();
        for (index, line) in text.lines().enumerate() {
            let place = Place {
                path: Path::new("a.ini").into(),
                line: index + 1,
            };
            reader
                .line(line.trim(), place, 0)
                .map_err(|error| error.to_string())?;
        }
        Ok(reader.entries)
    }

    #[test]
    fn entries_are_read_as_pgbouncer_does() {
        let text = "; a comment\n# another\n\n [databases] ; not read\na-b.c* = host=x ; kept\n\
                    \"my \"\"db\"\"\"=\n[pgbouncer]\n\tlisten_port\t=  1 \r\n[users]\nu = pool_mode = session";
        let entries = lines(text).expect("valid");
        let found: Vec<_> = entries
            .iter()
            .map(|e| (e.section, e.key.as_str(), e.value.as_str(), e.place.line))
            .collect();
        assert_eq!(
            found,
            [
                (Section::Databases, "a-b.c*", "host=x ; kept", 5),
                (Section::Databases, "my \"db\"", "", 6),
                (Section::Pgbouncer, "listen_port", "1", 8),
                (Section::Users, "u", "pool_mode = session", 10),
            ]
        );
    }

    #[test]
    fn what_pgbouncer_refuses_is_refused_with_its_line() {
        let start = "a.ini:2: Could not parse config file: ";
        for (line, message) in [
            ("[bogus]", "there is no section [bogus]"),
            ("[databases", "a section's name does not end with ]"),
            ("a = b", "a stands before any [section]"),
            ("[users]\na b = c", "expected key = value"),
            ("[users]\n\"a = c", "expected key = value"),
            ("[users]\n= c", "expected key = value"),
        ] {
            let error = lines(&format!("\n{line}")).expect_err(line);
            let start = start.replace('2', &(line.lines().count() + 1).to_string());
            assert_eq!(error, format!("{start}{message}"));
        }
    }
}
