//! What users and commands ask of the catalog.

use super::StreamTableId;
use crate::conn::{Conn, Error};
use crate::plan::{literal, quote};

/// What the catalog says about a stream table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub id: StreamTableId,
    /// The user's table; `None` until it is loaded.
    pub relid: Option<u32>,
    pub schema: String,
    pub name: String,
    pub owner: String,
    pub schedule: String,
    pub refresh_mode: String,
    pub effective_mode: String,
    pub reason: Option<String>,
    pub status: String,
}

/// The stream table of this name (`schema` `None`: by the search path), if it is one.
///
/// # Errors
/// Those of the server.
pub async fn by_name<C: Conn>(
    c: &mut C,
    schema: Option<&str>,
    name: &str,
) -> Result<Option<Summary>, Error> {
    let present = c
        .query(&format!(
            "SELECT {}",
            crate::catalog::present("refresh_history")
        ))
        .await?;
    if !present.first().is_some_and(|r| r.is_true(0)) {
        return Ok(None);
    }
    let qualified = schema.map(|s| format!("{}.", quote(s))).unwrap_or_default() + &quote(name);
    let pending = schema.map_or_else(
        || "c.target_schema = ANY (pg_catalog.current_schemas(false))".to_owned(),
        |s| format!("c.target_schema = {}", literal(s)),
    );
    let rows = c
        .query(&format!(
            "SELECT c.id, c.relid, coalesce(n.nspname, c.target_schema), coalesce(k.relname, c.target_name),
                pg_catalog.pg_get_userbyid(c.owner), c.schedule, c.refresh_mode, c.effective_mode, c.reason, c.status
             FROM pgtrickle.catalog c LEFT JOIN pg_catalog.pg_class k ON k.oid = c.relid
             LEFT JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace
             WHERE c.shares IS NULL AND (c.relid = pg_catalog.to_regclass({})::pg_catalog.oid AND pg_catalog.pg_has_role(c.owner, k.relowner, 'MEMBER')
                OR k.oid IS NULL AND c.target_name = {} AND {pending})",
            literal(&qualified),
            literal(name)
        ))
        .await?;
    Ok(rows.first().map(|row| {
        let text = |i| row.text(i).unwrap_or_default().to_owned();
        Summary {
            id: StreamTableId(row.int(0).unwrap_or_default()),
            relid: row.int(1).and_then(|n| u32::try_from(n).ok()),
            schema: text(2),
            name: text(3),
            owner: text(4),
            schedule: text(5),
            refresh_mode: text(6),
            effective_mode: text(7),
            reason: row.text(8).map(str::to_owned),
            status: text(9),
        }
    }))
}
