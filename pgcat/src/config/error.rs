//! What can be wrong with a configuration file.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::Utf8Error;

/// Why a configuration cannot be used. The texts after the position are PgCat's where PgCat has one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("Could not open '{}': {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("Could not read config file: {}: {source}", path.display())]
    NotUtf8 { path: PathBuf, source: Utf8Error },
    #[error("{}:{line}: Could not parse config file: {message}", path.display())]
    Syntax {
        path: PathBuf,
        /// From 1.
        line: usize,
        message: String,
    },
    #[error("{}:{line}: {key}: {message}", path.display())]
    Value {
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The dotted path of the key, e.g. `pools.db.users.0.pool_size`.
        key: String,
        message: String,
    },
}

/// Something in the file that has no effect, or not the one its author may expect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.message)
    }
}
