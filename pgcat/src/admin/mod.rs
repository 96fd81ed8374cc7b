//! The admin databases: `pgcat`, as PgCat has it, and `pgbouncer`, as PgBouncer has it, so that the
//! tools made for either go on working.
//!
//! - [`session`]: the protocol, simple and extended.
//! - [`command`]: what can be said; [`execute`]: what then happens.
//! - [`show`]: the tables, made from a [`state`] of the pooler.

mod command;
mod control;
mod execute;
pub mod session;
mod show;
pub mod state;

use crate::wire::error_fields::ErrorFields;

/// Which of the two databases is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Pgbouncer,
    Pgcat,
}

impl Dialect {
    /// The dialect of a database, if it is an admin database.
    pub fn of(database: &str) -> Option<Self> {
        match database {
            "pgbouncer" => Some(Self::Pgbouncer),
            "pgcat" => Some(Self::Pgcat),
            _ => None,
        }
    }

    /// The database's name.
    pub fn database(self) -> &'static str {
        match self {
            Self::Pgbouncer => "pgbouncer",
            Self::Pgcat => "pgcat",
        }
    }
}

/// Who is logged in to an admin database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    Admin,
    /// May look, but not touch.
    Stats,
}

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// A pool or database that does not exist.
    NoSuchPool(command::Target),
    NotAllowed,
    Other(String),
    /// The configuration is wrong; the old one stays.
    Reload(String),
    /// No command at all.
    Unknown(String),
    UnknownShow(String),
    Usage(&'static str),
}

impl Failure {
    /// In the words, and with the SQLSTATE, of the original.
    pub fn fields(&self, dialect: Dialect) -> ErrorFields {
        let message = match (self, dialect) {
            (Self::NotAllowed, _) => "admin access needed".to_owned(),
            (Self::Other(message) | Self::Reload(message), _) => message.clone(),
            (Self::Usage(message), _) => (*message).to_owned(),
            (Self::NoSuchPool(command::Target::Pool(database, user)), _) => {
                format!("No pool configured for database: {database}, user: {user}")
            }
            (Self::NoSuchPool(command::Target::Database(database)), _) => {
                format!("no such database: {database}")
            }
            (Self::NoSuchPool(command::Target::All), _) => "there are no pools".to_owned(),
            (Self::Unknown(text), Dialect::Pgbouncer) => {
                format!("invalid command '{text}', use SHOW HELP;")
            }
            (Self::UnknownShow(text), Dialect::Pgbouncer) => {
                format!("invalid command 'SHOW {text}', use SHOW HELP;")
            }
            (Self::Unknown(_), Dialect::Pgcat) => {
                "Unsupported query against the admin database".to_owned()
            }
            (Self::UnknownShow(_), Dialect::Pgcat) => {
                "Unsupported SHOW query against the admin database".to_owned()
            }
        };
        let code = match (self, dialect) {
            (Self::NotAllowed, _) => "42501",
            (_, Dialect::Pgbouncer) => "08P01",
            (_, Dialect::Pgcat) => "58000",
        };
        match (self, dialect) {
            // PgCat closes the connection, and scripts wait for that.
            (Self::Reload(_), Dialect::Pgcat) => ErrorFields::fatal(code, message),
            _ => ErrorFields::error(code, message),
        }
    }
}
