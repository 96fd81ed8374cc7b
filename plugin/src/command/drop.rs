//! `DROP STREAM TABLE`.

use pgcat::plugins::{ErrorFields, Severity, TransactionContext};

use super::lookup::{Relation, find_or_unfinished, installed, stream_table};
use super::parse::Drop;
use super::patience::{OURS, patiently};
use crate::conn::Error;
use crate::ddl::wording;
use crate::engine::{self, StreamTableId};
use crate::session::Session;

/// Drops the stream tables, all or none.
///
/// # Errors
/// 42P01, 42809, 42501, 2BP01 with the dependent objects.
pub(crate) async fn run(session: &mut impl Session, drop: &Drop) -> Result<(), Error> {
    let notices = if session.transaction() == TransactionContext::None {
        patiently(session, &[OURS], async |session| {
            drop_all(session, drop).await
        })
        .await?
    } else {
        drop_all(session, drop).await?
    };
    for notice in notices {
        session.notice(notice);
    }
    Ok(())
}

/// Returns the notices to be sent once it is done.
async fn drop_all(session: &mut impl Session, drop: &Drop) -> Result<Vec<ErrorFields>, Error> {
    let mut notices = Vec::new();
    let mut found: Vec<(StreamTableId, Relation)> = Vec::new();
    for name in &drop.names {
        if drop.if_exists
            && (!installed(session).await? || find_or_unfinished(session, name).await?.is_none())
        {
            let message = format!("stream table \"{}\" does not exist, skipping", name.name);
            notices.push(ErrorFields::new(Severity::Notice, "00000", message));
            continue;
        }
        let (id, relation) = stream_table(session, name).await?;
        relation.require_owner()?;
        if found.iter().all(|(other, _)| *other != id) {
            found.push((id, relation));
        }
    }
    let ids: Vec<StreamTableId> = found.iter().map(|(id, _)| *id).collect();
    drop_in_order(session, &found, drop.cascade, &ids).await?;
    Ok(notices)
}

/// Drops stream tables after those that read them, so that `DROP STREAM TABLE a, b` works whichever
/// reads the other. Under CASCADE the readers not named go too.
pub(crate) async fn drop_in_order(
    session: &mut impl Session,
    found: &[(StreamTableId, Relation)],
    cascade: bool,
    named: &[StreamTableId],
) -> Result<(), Error> {
    let mut gone: Vec<StreamTableId> = Vec::new();
    // A reader has a higher number than what it reads: it was created later.
    let mut order: Vec<&(StreamTableId, Relation)> = found.iter().collect();
    order.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
    for (id, relation) in order {
        if gone.contains(id) {
            continue;
        }
        let mut readers = engine::dependents(session, &[relation.oid]).await?;
        // Shared stages go with those that read them, which are among the readers.
        readers.retain(|reader| reader.id != *id && !reader.shared && !gone.contains(&reader.id));
        readers.sort_by_key(|reader| std::cmp::Reverse(reader.id));
        let unnamed: Vec<String> = readers
            .iter()
            .filter(|reader| !named.contains(&reader.id))
            .map(|reader| {
                format!(
                    "stream table {} depends on stream table {}",
                    reader.name, relation.name
                )
            })
            .collect();
        if !cascade && !unnamed.is_empty() {
            let message = format!(
                "cannot drop stream table {} because other objects depend on it",
                relation.name
            );
            return Err(wording::dependents(message, &unnamed));
        }
        for reader in readers {
            engine::drop(session, reader.id, cascade).await?;
            gone.push(reader.id);
        }
        match engine::drop(session, *id, cascade).await {
            Ok(()) => gone.push(*id),
            Err(error) => return Err(wording::explain(error, &[])),
        }
    }
    Ok(())
}
