//! `REFRESH STREAM TABLE`.

use std::time::{Duration, Instant};

use pgcat::plugins::{ErrorFields, TransactionContext};

use super::lookup::{refused, stream_table};
use super::patience;
use super::syntax::QualifiedName;
use crate::conn::Error;
use crate::engine::{self, How, StreamTableId};
use crate::session::Session;

/// How long to try while somebody else refreshes it or changes its sources' definitions.
const PATIENCE: Duration = Duration::from_secs(30);

/// Brings the stream table up to date, on the client's own connection.
///
/// # Errors
/// 42P01, 42809, 42501, 55P03 if it stays busy, and whatever the query raises.
pub(crate) async fn run(
    session: &mut impl Session,
    name: &QualifiedName,
    full: bool,
) -> Result<(), Error> {
    let how = if full { How::Full } else { How::Auto };
    let memory = session.memory();
    if session.transaction() == TransactionContext::None {
        // Nearly always it can be done at a glance; what is in the way otherwise, the long way finds out.
        match engine::refresh_by_name(session, &memory, name.sql(), how).await {
            Ok(Some(_)) => return Ok(()),
            Ok(None) | Err(Error::Drift(_)) => {}
            Err(error @ Error::Connection(_)) => return Err(error),
            Err(error) if error.is_transient() => {}
            // No stream tables here, or not the current role's.
            Err(error) if matches!(error.code(), "42P01" | "3F000" | "42501") => {}
            Err(error) => return Err(error),
        }
    }
    let (id, relation) = stream_table(session, name).await?;
    relation.require_owner()?;
    if !engine::is_owner(session, id).await? {
        let message = format!("must be owner of stream table {}", relation.name);
        return Err(refused(
            ErrorFields::error("42501", message)
                .detail("Its query would run with the rights of the current role instead of its owner's.")
                .hint("Become the owner with SET ROLE, if you trust the functions that the query calls."),
        ));
    }
    if session.transaction() != TransactionContext::None {
        return engine::refresh_in_transaction(session, id, how)
            .await
            .map(|_| ());
    }
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let late = started.elapsed() > PATIENCE;
        match engine::refresh(session, &memory, id, how).await {
            Ok(_) => return Ok(()),
            Err(Error::Busy) if late => {
                let message = format!(
                    "could not obtain lock on stream table \"{}\"",
                    relation.name
                );
                let error = ErrorFields::error("55P03", message);
                return Err(refused(error.detail("Another session is refreshing it.")));
            }
            Err(Error::Drift(_)) if !late => replan(session, id).await?,
            Err(error) if error.is_transient() && !late => {}
            Err(error) => return Err(error),
        }
        patience::sleep(session, pause).await?;
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}

/// Takes in a change of the sources' definitions that nobody told us of.
async fn replan(session: &mut impl Session, id: StreamTableId) -> Result<(), Error> {
    session.begin().await?;
    match engine::replan_in_own(session, id).await {
        Ok(()) => session.commit().await,
        Err(error) => {
            session.rollback().await?;
            Err(error)
        }
    }
}
