//! `VERIFY STREAM TABLE`.

use pgcat::plugins::{Column, TransactionContext};

use super::lookup::stream_table;
use super::refresh;
use super::syntax::QualifiedName;
use crate::conn::Error;
use crate::engine;
use crate::session::Session;

/// How often to refresh and compare again while others write.
const ATTEMPTS: u32 = 10;

/// The result's columns, all text.
pub(crate) fn columns() -> Vec<Column> {
    ["difference", "times", "row"]
        .into_iter()
        .map(Column::text)
        .collect()
}

/// The rows that the table lacks (`missing`) or has too much (`unexpected`), with how many times, compared with the query in one
/// snapshot. Outside of a transaction block the table is refreshed first.
///
/// # Errors
/// As REFRESH.
pub(crate) async fn run(
    session: &mut impl Session,
    name: &QualifiedName,
) -> Result<Vec<Vec<Option<String>>>, Error> {
    let (id, relation) = stream_table(session, name).await?;
    relation.require_owner()?;
    if session.transaction() != TransactionContext::None {
        return Ok(engine::differences(session, id).await?.rows);
    }
    let mut attempts = 0;
    loop {
        refresh::run(session, name, false).await?;
        session.begin().await?;
        let found = engine::differences(session, id).await;
        session.rollback().await?;
        let found = found?;
        attempts += 1;
        // What was written since the refresh is no difference.
        if found.rows.is_empty() || !found.behind || attempts == ATTEMPTS {
            return Ok(found.rows);
        }
    }
}
