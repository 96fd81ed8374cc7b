//! Running a [`Command`].

use super::parse::Command;
use super::{alter, create, drop, explain, refresh, show, verify};
use crate::conn::Error;
use crate::session::Session;

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub rows: Vec<Vec<Option<String>>>,
    /// The command tag.
    pub tag: &'static str,
    /// Does the catalog differ from before, once the transaction has committed?
    pub changed: bool,
}

/// Runs `command` on the client's connection. `default_schedule` is that of a stream table created
/// without one.
///
/// # Errors
/// The error to show the client. A transaction begun here has been rolled back.
pub async fn run(
    session: &mut impl Session,
    command: &Command,
    default_schedule: &str,
) -> Result<Outcome, Error> {
    let done = |tag, changed| Outcome {
        rows: Vec::new(),
        tag,
        changed,
    };
    match command {
        Command::Alter(alter) => {
            alter::run(session, alter, default_schedule).await?;
            Ok(done("ALTER STREAM TABLE", true))
        }
        Command::Create(create) => {
            create::run(session, create, default_schedule).await?;
            Ok(done("CREATE STREAM TABLE", true))
        }
        Command::Drop(drop) => {
            drop::run(session, drop).await?;
            Ok(done("DROP STREAM TABLE", true))
        }
        Command::Refresh { name, full } => {
            refresh::run(session, name, *full).await?;
            // Stream tables that read it have something to do now.
            Ok(done("REFRESH STREAM TABLE", true))
        }
        Command::Show => {
            let rows = show::run(session).await?;
            Ok(Outcome {
                rows,
                tag: "SHOW",
                changed: false,
            })
        }
        Command::Verify(name) => Ok(Outcome {
            rows: verify::run(session, name).await?,
            tag: "VERIFY STREAM TABLE",
            changed: false,
        }),
        Command::Explain {
            name,
            analyze,
            verbose,
        } => Ok(Outcome {
            rows: explain::run(session, name, *analyze, *verbose).await?,
            tag: "EXPLAIN",
            changed: *analyze,
        }),
        Command::ExplainCreate(create) => Ok(Outcome {
            rows: explain::run_create(session, create, default_schedule).await?,
            tag: "EXPLAIN",
            changed: false,
        }),
        Command::Unsupported(name) => Err(Error::refused(
            "0A000",
            format!("{name} is not supported yet"),
        )),
    }
}
