//! Reading a TOML document key by key, so that every complaint can name its line and key.
//!
//! What a section was asked for is what it knows: there is no second list of keys to keep in step.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::DeTable;

use super::error::{ConfigError, Warning};
use super::section::Section;

/// A file being read, and what was noticed on the way.
pub(super) struct Document<'t> {
    path: &'t Path,
    text: &'t str,
    findings: RefCell<Findings>,
}

#[derive(Default)]
struct Findings {
    /// Keys without effect: where, and their path.
    unknown: Vec<Unknown>,
    /// What else is worth a warning, and where.
    remarks: Vec<(usize, String)>,
    /// By section pattern, the keys that have been asked for.
    known: BTreeMap<String, Vec<&'static str>>,
}

struct Unknown {
    offset: usize,
    section: String,
    name: String,
    key: String,
}

/// Where a section or a value stands.
#[derive(Clone)]
pub(super) struct Place<'d> {
    document: &'d Document<'d>,
    /// In bytes from the start of the text.
    offset: usize,
    key: String,
    /// The key with `*` for every name and number the user chose.
    pattern: String,
}

impl<'t> Document<'t> {
    pub fn new(text: &'t str, path: &'t Path) -> Self {
        Self {
            path,
            text,
            findings: RefCell::default(),
        }
    }

    /// Parses the text.
    pub fn tree(&self) -> Result<Spanned<DeTable<'t>>, ConfigError> {
        DeTable::parse(self.text).map_err(|error| ConfigError::Syntax {
            path: self.path.to_owned(),
            line: self.line(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })
    }

    pub fn root<'d>(&'d self, table: &'d DeTable<'d>) -> Section<'d> {
        let place = Place {
            document: self,
            offset: 0,
            key: String::new(),
            pattern: String::new(),
        };
        Section::new(place, table)
    }

    /// What was noticed, in the order of the file.
    pub fn into_warnings(self) -> Vec<Warning> {
        let findings = self.findings.borrow();
        let mut found = findings.remarks.clone();
        for unknown in &findings.unknown {
            found.push((unknown.offset, findings.describe(unknown)));
        }
        found.sort();
        found
            .into_iter()
            .map(|(offset, message)| Warning {
                path: self.path.to_owned(),
                line: self.line(offset),
                message,
            })
            .collect()
    }

    /// The line of a key, given by its path.
    pub fn line_of(&self, table: &DeTable<'_>, keys: &[&str]) -> Option<usize> {
        let (name, rest) = keys.split_first()?;
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
        if rest.is_empty() {
            return Some(self.line(key.span().start));
        }
        self.line_of(value.get_ref().as_table()?, rest)
    }

    fn line(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        memchr::memchr_iter(b'\n', before).count() + 1
    }
}

impl<'d> Place<'d> {
    /// The place of a part. `pattern` is its name, or `*` where the user chose it.
    pub fn part(&self, name: &str, pattern: &str, offset: usize) -> Self {
        Self {
            document: self.document,
            offset,
            key: join(&self.key, name),
            pattern: if self.pattern.is_empty() {
                pattern.to_owned()
            } else {
                format!("{}.{pattern}", self.pattern)
            },
        }
    }

    /// The place of a part that is not there: that of the whole, with the part's key.
    pub fn missing(&self, name: &str) -> Self {
        self.part(name, name, self.offset)
    }

    /// The same place, but with another name for the last part of the key.
    pub fn named(mut self, name: &str) -> Self {
        if let Some(dot) = self.key.rfind('.') {
            self.key.truncate(dot);
        }
        self.key = join(&self.key, name);
        self
    }

    pub fn error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            path: self.document.path.to_owned(),
            line: self.document.line(self.offset),
            key: self.key.clone(),
            message: message.into(),
        }
    }

    /// Whether what stands here must not be shown in a message: the log is read by more people than
    /// the file.
    pub fn is_secret(&self) -> bool {
        self.key.contains("password")
    }

    /// Notes that the section here knows a key.
    pub fn note_known(&self, name: &'static str) {
        let mut findings = self.document.findings.borrow_mut();
        let known = findings.known.entry(self.pattern.clone()).or_default();
        if !known.contains(&name) {
            known.push(name);
        }
    }

    /// Notes a key of the section here if nobody has asked for it.
    pub fn note_if_unknown(&self, name: &str, offset: usize) {
        let mut findings = self.document.findings.borrow_mut();
        let known = findings.known.get(&self.pattern);
        if !known.is_some_and(|known| known.contains(&name)) {
            findings.unknown.push(Unknown {
                offset,
                section: self.pattern.clone(),
                name: name.to_owned(),
                key: join(&self.key, name),
            });
        }
    }

    /// Warns of what stands here.
    pub fn remark(&self, message: &str) {
        let remark = (self.offset, format!("{}: {message}", self.key));
        self.document.findings.borrow_mut().remarks.push(remark);
    }
}

impl Findings {
    fn describe(&self, unknown: &Unknown) -> String {
        let siblings = self
            .known
            .get(&unknown.section)
            .map_or(&[][..], Vec::as_slice);
        let nearest = siblings
            .iter()
            .map(|name| (strsim::jaro_winkler(name, &unknown.name), name))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(similarity, _)| *similarity > 0.7);
        // PgCat's own documentation names some keys in the wrong section.
        let elsewhere = self
            .known
            .iter()
            .filter(|(section, _)| !section.is_empty() && !section.contains("s.*.servers"))
            .find(|(_, names)| names.contains(&unknown.name.as_str()))
            .map(|(section, _)| {
                section
                    .replace("rs.*", "rs.<n>")
                    .replace("ds.*", "ds.<n>")
                    .replace('*', "<name>")
            });
        let hint = match (elsewhere, nearest) {
            (Some(section), _) => format!("; it belongs in [{section}]"),
            (None, Some((_, name))) => format!("; did you mean {name:?}?"),
            (None, None) => String::new(),
        };
        format!("{}: unknown key is ignored{hint}", unknown.key)
    }
}

/// A dotted key, quoted where TOML needs it.
fn join(section: &str, name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let name = if !name.is_empty() && name.bytes().all(bare) {
        name.to_owned()
    } else {
        format!("{name:?}")
    };
    if section.is_empty() {
        name
    } else {
        format!("{section}.{name}")
    }
}
