//! Have the sources changed since the plan was made, and whose sources are these.

use super::record;
use super::{Dependent, Drift, StreamTableId};
use crate::capture::list;
use crate::conn::{Conn, Error};

/// Compares the sources with what the plan was made for.
///
/// # Errors
/// 42704 if there is no such stream table.
pub async fn check<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Drift, Error> {
    let record = record::read(c, id).await?;
    if record.relid.is_some() && record.target.is_none() {
        return Ok(Drift::TableGone);
    }
    let Some(now) = record.sources_now(c).await? else {
        return Ok(Drift::DefinitionGone);
    };
    if now == record.fingerprint {
        return Ok(Drift::None);
    }
    let what = if meaning(&now) == meaning(&record.fingerprint) {
        "a source was renamed"
    } else {
        "a source was altered"
    };
    Ok(Drift::Sources(what.to_owned()))
}

/// The half of a fingerprint that is not about names.
pub(super) fn meaning(fingerprint: &str) -> &str {
    fingerprint.split(':').nth(1).unwrap_or_default()
}

/// Whether the current role is the stream table's owner. A superuser or member of the owner's role is not: what the query
/// calls would run with his rights, and what is made would be his.
///
/// # Errors
/// Those of the server.
pub async fn is_owner<C: Conn>(c: &mut C, id: StreamTableId) -> Result<bool, Error> {
    let sql = "SELECT pg_catalog.pg_get_userbyid(owner) = current_user FROM pgtrickle.catalog WHERE id = $1::bigint";
    let rows = c.query_kept(sql.to_owned(), vec![id.to_string()]).await?;
    Ok(rows.first().is_some_and(|r| r.is_true(0)))
}

/// Stream tables whose defining query reads any of these relations (tables or views, at any depth), and shared stages of such
/// queries: these first, as they are to be planned anew before those that read them.
///
/// # Errors
/// Those of the server.
pub async fn dependents<C: Conn>(c: &mut C, relids: &[u32]) -> Result<Vec<Dependent>, Error> {
    let rows = c
        .query(&format!(
            "SELECT c.id, coalesce(n.nspname, c.target_schema), coalesce(k.relname, c.target_name), s.relid,
                c.shares IS NOT NULL
             FROM pgtrickle.source s JOIN pgtrickle.catalog c ON c.id = s.stream_table
             LEFT JOIN pg_catalog.pg_class k ON k.oid = c.relid
             LEFT JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace
             WHERE s.relid IN ({}) ORDER BY c.shares IS NULL, c.id, s.relid",
            list(relids)
        ))
        .await?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            Some(Dependent {
                id: StreamTableId(row.int(0)?),
                schema: row.text(1)?.to_owned(),
                name: row.text(2)?.to_owned(),
                relid: u32::try_from(row.int(3)?).ok()?,
                shared: row.is_true(4),
            })
        })
        .collect())
}
