//! One table of the document, read key by key.

use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::Place;
use super::error::ConfigError;
use super::value::{Number, Value};

/// A table of the document.
pub(super) struct Section<'d> {
    /// Of the section's beginning, which is where what is missing in it is reported.
    place: Place<'d>,
    table: &'d DeTable<'d>,
}

/// A hundred years. Longer times could not be added to a clock reading without overflow.
const LONGEST_TIME: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl<'d> Section<'d> {
    pub fn new(place: Place<'d>, table: &'d DeTable<'d>) -> Self {
        Self { place, table }
    }

    /// The value of a key, if it is set.
    pub fn value(&self, name: &'static str) -> Option<Value<'d>> {
        self.place.note_known(name);
        let (key, value) = self.table.iter().find(|(key, _)| key.get_ref() == name)?;
        Some(self.child(key, value, name))
    }

    pub fn required(&self, name: &'static str, expected: &str) -> Result<Value<'d>, ConfigError> {
        self.value(name)
            .ok_or_else(|| self.error(name, format!("expected {expected}, found nothing")))
    }

    pub fn section(&self, name: &'static str) -> Result<Option<Section<'d>>, ConfigError> {
        self.value(name).map(|value| value.section()).transpose()
    }

    pub fn required_section(&self, name: &'static str) -> Result<Section<'d>, ConfigError> {
        self.required(name, "a table")?.section()
    }

    /// All keys with their values, where the names are the user's choice.
    pub fn entries(&self) -> impl Iterator<Item = (String, Value<'d>)> {
        self.table
            .iter()
            .map(|(key, value)| (key.get_ref().to_string(), self.child(key, value, "*")))
    }

    pub fn string(&self, name: &'static str) -> Result<Option<String>, ConfigError> {
        self.value(name).map(|value| value.string()).transpose()
    }

    /// A string that may be in the environment: `${NAME}` is the value of that variable.
    pub fn secret(&self, name: &'static str) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.string(name)? else {
            return Ok(None);
        };
        let variable = text
            .strip_prefix("${")
            .and_then(|rest| rest.strip_suffix('}'));
        let Some(variable) = variable else {
            return Ok(Some(text));
        };
        std::env::var(variable)
            .map(Some)
            .map_err(|error| self.error(name, format!("${{{variable}}}: {error}")))
    }

    pub fn boolean(&self, name: &'static str) -> Result<Option<bool>, ConfigError> {
        self.value(name).map(|value| value.boolean()).transpose()
    }

    pub fn integer<T: Number>(
        &self,
        name: &'static str,
        min: T,
        max: T,
    ) -> Result<Option<T>, ConfigError> {
        self.value(name)
            .map(|value| value.integer(min, max))
            .transpose()
    }

    /// A number that limits something, where 0 is no limit.
    pub fn limit(&self, name: &'static str) -> Result<Option<usize>, ConfigError> {
        let limit = self.integer(name, 0, u32::MAX as usize)?;
        Ok(limit.filter(|&limit| limit > 0))
    }

    /// A time in milliseconds, of at least `min` of them.
    pub fn milliseconds(
        &self,
        name: &'static str,
        min: u64,
    ) -> Result<Option<Duration>, ConfigError> {
        let max = LONGEST_TIME.as_secs() * 1000;
        Ok(self.integer(name, min, max)?.map(Duration::from_millis))
    }

    /// A time in milliseconds where 0 turns something off. The outer `None`: not set.
    pub fn timeout(&self, name: &'static str) -> Result<Option<Option<Duration>>, ConfigError> {
        let time = self.milliseconds(name, 0)?;
        Ok(time.map(|time| (!time.is_zero()).then_some(time)))
    }

    /// A time in seconds, of at least `min` of them.
    pub fn seconds(&self, name: &'static str, min: u64) -> Result<Option<Duration>, ConfigError> {
        let max = LONGEST_TIME.as_secs();
        Ok(self.integer(name, min, max)?.map(Duration::from_secs))
    }

    /// One of some names, in any case. The first spelling of each value is the one shown.
    pub fn choice<T: Copy + PartialEq>(
        &self,
        name: &'static str,
        names: &[(&str, T)],
    ) -> Result<Option<T>, ConfigError> {
        self.value(name)
            .map(|value| value.choice(names))
            .transpose()
    }

    /// An error about a key of this section, at its line if it is set, else at the section's.
    pub fn error(&self, name: &str, message: impl Into<String>) -> ConfigError {
        match self.table.iter().find(|(key, _)| key.get_ref() == name) {
            Some((key, _)) => self.place.part(name, name, key.span().start).error(message),
            None => self.place.missing(name).error(message),
        }
    }

    /// An error about the section as a whole.
    pub fn error_here(&self, message: impl Into<String>) -> ConfigError {
        self.place.error(message)
    }

    /// Notes every key that nobody has asked for.
    pub fn finish(&self) {
        for (key, _) in self.table {
            self.place.note_if_unknown(key.get_ref(), key.span().start);
        }
    }

    fn child(
        &self,
        key: &Spanned<impl AsRef<str>>,
        value: &'d Spanned<DeValue<'d>>,
        pattern: &str,
    ) -> Value<'d> {
        let name = key.get_ref().as_ref();
        let place = self.place.part(name, pattern, key.span().start);
        Value::new(place, value.get_ref())
    }
}
