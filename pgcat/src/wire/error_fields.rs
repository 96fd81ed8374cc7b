//! ErrorResponse and NoticeResponse as values.

use std::fmt;

use super::backend;
use super::message::{build, put_cstr, take_cstr};

/// The severity of an error or notice, as in field `V` (never localised).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Debug,
    Info,
    Log,
    Notice,
    Warning,
    Error,
    Fatal,
    Panic,
}

/// The fields of an ErrorResponse or NoticeResponse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorFields {
    pub severity: Severity,
    /// SQLSTATE, five characters.
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// Character position in the statement's text, from 1.
    pub position: Option<u32>,
    /// All other fields (context, schema, table, file, …) by their field byte, kept as they came.
    pub other: Vec<(u8, String)>,
}

impl ErrorFields {
    /// An ERROR with the given SQLSTATE and message.
    pub fn error(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    /// A FATAL with the given SQLSTATE and message.
    pub fn fatal(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Fatal, code, message)
    }

    /// A message of any severity.
    pub fn new(severity: Severity, code: &str, message: impl Into<String>) -> Self {
        Self {
            severity,
            code: code.to_owned(),
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            other: Vec::new(),
        }
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Where in its source PostgreSQL raises this error: drivers know some by the routine.
    #[must_use]
    pub fn raised_in(mut self, file: &str, routine: &str) -> Self {
        self.other = vec![(b'F', file.to_owned()), (b'R', routine.to_owned())];
        self
    }

    #[must_use]
    pub fn position(mut self, position: u32) -> Self {
        self.position = Some(position);
        self
    }
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Log => "LOG",
            Self::Notice => "NOTICE",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Panic => "PANIC",
        }
    }

    fn from_name(name: &str) -> Self {
        match name {
            "INFO" => Self::Info,
            "LOG" => Self::Log,
            "NOTICE" => Self::Notice,
            "WARNING" => Self::Warning,
            "FATAL" => Self::Fatal,
            "PANIC" => Self::Panic,
            _ if name.starts_with("DEBUG") => Self::Debug,
            _ => Self::Error,
        }
    }
}

impl ErrorFields {
    /// Reads the body of an ErrorResponse or NoticeResponse. Missing fields get harmless values: some
    /// poolers and old servers leave out even the SQLSTATE.
    pub fn read(body: &[u8]) -> Self {
        let mut fields = Self::error("XX000", "");
        let mut localised = None;
        let mut severity = None;
        let mut rest = body;
        while let Some((&field, tail)) = rest.split_first() {
            let Some((value, tail)) = take_cstr(tail).filter(|_| field != 0) else {
                break;
            };
            rest = tail;
            let value = String::from_utf8_lossy(value).into_owned();
            match field {
                b'S' => localised = Some(value),
                b'V' => severity = Some(value),
                b'C' => fields.code = value,
                b'M' => fields.message = value,
                b'D' => fields.detail = Some(value),
                b'H' => fields.hint = Some(value),
                b'P' => fields.position = value.parse().ok(),
                other => fields.other.push((other, value)),
            }
        }
        if let Some(name) = severity.or(localised) {
            fields.severity = Severity::from_name(&name);
        }
        fields
    }

    /// Appends an ErrorResponse, or a NoticeResponse for severities below ERROR.
    pub fn write(&self, out: &mut Vec<u8>) {
        let tag = if self.severity >= Severity::Error {
            backend::ERROR_RESPONSE
        } else {
            backend::NOTICE_RESPONSE
        };
        build(out, tag, |out| {
            let mut put = |field: u8, value: &str| {
                out.push(field);
                put_cstr(out, value.as_bytes());
            };
            put(b'S', self.severity.name());
            put(b'V', self.severity.name());
            put(b'C', &self.code);
            put(b'M', &self.message);
            if let Some(detail) = &self.detail {
                put(b'D', detail);
            }
            if let Some(hint) = &self.hint {
                put(b'H', hint);
            }
            if let Some(position) = self.position {
                put(b'P', &position.to_string());
            }
            for (field, value) in &self.other {
                put(*field, value);
            }
            out.push(0);
        });
    }

    /// Appends an ErrorResponse of the protocol before 3.0: a line of text.
    pub fn write_protocol_2(&self, out: &mut Vec<u8>) {
        out.push(backend::ERROR_RESPONSE);
        let line = format!("{}:  {}\n", self.severity.name(), self.message);
        put_cstr(out, line.as_bytes());
    }
}

impl fmt::Display for ErrorFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({})",
            self.severity.name(),
            self.message,
            self.code
        )
    }
}

impl std::error::Error for ErrorFields {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_survive_a_round_trip() {
        let error = ErrorFields::error("42P07", "relation \"t\" already exists")
            .detail("d")
            .hint("h")
            .position(7);
        let mut out = Vec::new();
        error.write(&mut out);
        assert_eq!(out[0], b'E');
        assert_eq!(ErrorFields::read(&out[5..]), error);
    }

    #[test]
    fn an_error_without_fields_is_no_crash() {
        assert_eq!(ErrorFields::read(&[]).code, "XX000");
        assert_eq!(ErrorFields::read(b"Sno terminator").message, "");
    }

    #[test]
    fn the_severity_is_the_one_that_is_never_translated() {
        let fields = ErrorFields::read(b"SFEHLER\0VFATAL\0C57P01\0Mm\0\0");
        assert_eq!(fields.severity, Severity::Fatal);
    }
}
