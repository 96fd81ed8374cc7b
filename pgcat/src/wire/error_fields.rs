//! ErrorResponse and NoticeResponse as values.

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

    #[must_use]
    pub fn position(mut self, position: u32) -> Self {
        self.position = Some(position);
        self
    }
}
