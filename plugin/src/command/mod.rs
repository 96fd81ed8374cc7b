//! The stream-table statements: their grammar, and what each does.

pub(crate) mod create;
pub(crate) mod drop;
pub(crate) mod lookup;
mod options;
mod parse;
mod patience;
pub(crate) mod refresh;
mod run;
pub(crate) mod show;
pub(crate) mod syntax;
mod wants;

pub use options::{Options, RefreshMode, Schedule};
pub(crate) use parse::parts;
pub use parse::{Command, Create, Drop, parse};
pub use run::{Outcome, run};
pub use syntax::{QualifiedName, identifier, literal};
pub use wants::wants;
