//! The text of a `pgcat.toml`, with comments that say where its values come from.

use std::fmt::Display;

use toml::Value;

use super::super::error::Warning;
use super::ini::Place;

/// What is written, and what the user has to be told.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub text: String,
    pub notes: Vec<Warning>,
}

impl Writer {
    pub fn line(&mut self, line: impl Display) {
        self.text.push_str(&line.to_string());
        self.text.push('\n');
    }

    /// Whether a comment begins with these words.
    pub fn has(&self, origin: &str) -> bool {
        let starts = |comment: &str| {
            let rest = comment.strip_prefix(origin);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        self.text.lines().any(|line| line.split("# ").any(starts))
    }

    pub fn comment(&mut self, text: &str) {
        // A name from the old file must not end the comment.
        self.line(format_args!("# {}", text.replace(char::is_control, " ")));
    }

    /// Begins `[a.b.c]`.
    pub fn section(&mut self, path: &[&str]) {
        let path: Vec<_> = path.iter().map(|name| key(name)).collect();
        self.line(format_args!("\n[{}]", path.join(".")));
    }

    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.line(format_args!("{name} = {}", value.into()));
    }

    /// As [`Self::set`], with a remark behind it.
    pub fn set_from(&mut self, name: &str, value: impl Into<Value>, origin: &str) {
        let origin = origin.replace(char::is_control, " ");
        self.line(format_args!("{name} = {}  # {origin}", value.into()));
    }

    /// Writes a password. `place` is where it stands, for a note.
    pub fn password(&mut self, name: &str, password: &str, place: &Place) {
        if password.starts_with("${") && password.ends_with('}') {
            let message =
                "a password like ${this} is a variable of the environment to pgcat: change it";
            self.note(place, message.to_owned());
        }
        self.set(name, password);
    }

    /// Tells the user, in the file and beside it.
    pub fn note(&mut self, place: &Place, message: String) {
        self.comment(&format!("NOTE: {message}"));
        let note = Warning {
            path: place.path.to_path_buf(),
            line: place.line,
            message,
        };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// A key as TOML has it.
fn key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.bytes().all(bare) {
        name.to_owned()
    } else {
        Value::from(name).to_string()
    }
}
