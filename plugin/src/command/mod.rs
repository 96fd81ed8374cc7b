//! The stream-table statements: their grammar, and what each does.

pub(crate) mod alter;
pub(crate) mod create;
pub(crate) mod drop;
pub(crate) mod explain;
pub(crate) mod lookup;
mod options;
mod parse;
mod patience;
pub(crate) mod refresh;
mod run;
mod schedule;
pub(crate) mod show;
pub(crate) mod syntax;
pub(crate) mod verify;
mod wants;

pub use alter::{Action as AlterAction, Alter};
pub use options::Options;
pub(crate) use parse::parts;
pub use parse::{Command, Create, Drop, parse};
pub use run::{Outcome, run};
pub use schedule::{Schedule, due_in, period};
pub use syntax::{QualifiedName, identifier, literal};
pub use wants::wants;

use pgcat::plugins::Column;

/// The columns of a command's result, all text; none where it returns no rows.
pub(crate) fn columns(command: &Command) -> Vec<Column> {
    match command {
        Command::Show => show::columns(),
        Command::Verify(_) => verify::columns(),
        Command::Explain { .. } | Command::ExplainCreate(_) => explain::columns(),
        _ => Vec::new(),
    }
}
