//! The stream-table statements: their grammar, and what each does.

mod options;
mod parse;
pub(crate) mod syntax;
mod wants;

pub use options::{Options, RefreshMode, Schedule};
pub use parse::{Command, Create, Drop, parse};
pub use syntax::{QualifiedName, identifier, literal};
pub use wants::wants;
