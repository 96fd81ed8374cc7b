//! One value of the document, on its way to a type.

use std::fmt::Display;

use toml::Spanned;
use toml::de::DeValue;

use super::document::Place;
use super::error::ConfigError;
use super::section::Section;

/// A key's value, not yet known to be of the right type.
pub(super) struct Value<'d> {
    pub place: Place<'d>,
    value: &'d DeValue<'d>,
}

/// An integer type that settings come in.
pub(super) trait Number: Copy + PartialOrd + Display + TryFrom<i64> {}
impl<T: Copy + PartialOrd + Display + TryFrom<i64>> Number for T {}

impl<'d> Value<'d> {
    pub fn new(place: Place<'d>, value: &'d DeValue<'d>) -> Self {
        Self { place, value }
    }

    pub fn string(&self) -> Result<String, ConfigError> {
        let text = self
            .value
            .as_str()
            .ok_or_else(|| self.expected("a string"))?;
        Ok(text.to_owned())
    }

    pub fn boolean(&self) -> Result<bool, ConfigError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.expected("true or false"))
    }

    pub fn integer<T: Number>(&self, min: T, max: T) -> Result<T, ConfigError> {
        self.as_integer()
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| *number >= min && *number <= max)
            .ok_or_else(|| self.expected(&format!("an integer from {min} to {max}")))
    }

    pub fn choice<T: Copy + PartialEq>(&self, names: &[(&str, T)]) -> Result<T, ConfigError> {
        let found = self.value.as_str();
        let hit = names
            .iter()
            .find(|(name, _)| found.is_some_and(|found| found.eq_ignore_ascii_case(name)));
        if let Some(&(_, value)) = hit {
            return Ok(value);
        }
        let mut shown: Vec<(&str, T)> = Vec::new();
        for &(name, value) in names {
            if shown.iter().all(|(_, other)| *other != value) {
                shown.push((name, value));
            }
        }
        let list: Vec<_> = shown.iter().map(|(name, _)| format!("{name:?}")).collect();
        Err(self.expected(&list.join(" or ")))
    }

    /// The elements of an array.
    pub fn array(&self, expected: &str) -> Result<Vec<Value<'d>>, ConfigError> {
        let array = self
            .value
            .as_array()
            .ok_or_else(|| self.expected(expected))?;
        let element = |(index, value): (usize, &'d Spanned<DeValue<'d>>)| {
            let place = self.place.part(&index.to_string(), "*", value.span().start);
            Value::new(place, value.get_ref())
        };
        Ok(array.iter().enumerate().map(element).collect())
    }

    pub fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub fn section(&self) -> Result<Section<'d>, ConfigError> {
        let table = self
            .value
            .as_table()
            .ok_or_else(|| self.expected("a table"))?;
        Ok(Section::new(self.place.clone(), table))
    }

    /// A complaint about this value's type or range.
    pub fn expected(&self, expected: &str) -> ConfigError {
        self.error(format!("expected {expected}, found {}", self.shown()))
    }

    pub fn error(&self, message: impl Into<String>) -> ConfigError {
        self.place.error(message)
    }

    /// The same value under the name of what it means, for an array's elements.
    pub fn named(self, name: &str) -> Self {
        Self {
            place: self.place.named(name),
            ..self
        }
    }

    /// The value as it stands, for those who read it by themselves.
    pub fn table(&self) -> Result<toml::Table, ConfigError> {
        let mut table = toml::Table::new();
        for (name, value) in self.section()?.entries() {
            table.insert(name, value.raw()?);
        }
        Ok(table)
    }

    fn raw(&self) -> Result<toml::Value, ConfigError> {
        Ok(match self.value {
            DeValue::String(text) => toml::Value::String(text.to_string()),
            DeValue::Integer(_) => toml::Value::Integer(self.integer(i64::MIN, i64::MAX)?),
            DeValue::Float(number) => toml::Value::Float(
                number
                    .as_str()
                    .parse()
                    .map_err(|_| self.expected("a number"))?,
            ),
            DeValue::Boolean(value) => toml::Value::Boolean(*value),
            DeValue::Datetime(time) => toml::Value::Datetime(*time),
            DeValue::Array(_) => {
                let elements = self.array("an array")?;
                toml::Value::Array(elements.iter().map(Value::raw).collect::<Result<_, _>>()?)
            }
            DeValue::Table(_) => toml::Value::Table(self.table()?),
        })
    }

    fn as_integer(&self) -> Option<i64> {
        let number = self.value.as_integer()?;
        i64::from_str_radix(number.as_str(), number.radix()).ok()
    }

    fn shown(&self) -> String {
        let secret = self.place.is_secret();
        match self.value {
            DeValue::String(_) if secret => "a string".to_owned(),
            DeValue::Integer(_) if secret => "an integer".to_owned(),
            DeValue::String(text) if text.chars().count() > 60 => "a long string".to_owned(),
            DeValue::String(text) => format!("{text:?}"),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Float(_) => "a float".to_owned(),
            DeValue::Datetime(_) => "a date or time".to_owned(),
            DeValue::Array(_) => "an array".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        }
    }
}
