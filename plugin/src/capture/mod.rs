//! Change capture: buffers, and the triggers that fill them.
//!
//! One buffer per source table and owner holds, of the columns that owner's stream tables use, the old rows with weight
//! -1 and the new rows with weight +1. Columns are called by number, so a rename never touches the buffer, and have no
//! length or scale, so a widened varchar still fits. A row of weight 0 says that changes were lost: rebuild.

mod trigger;

use std::collections::BTreeMap;

use crate::catalog;
use crate::conn::{Conn, Error};
use crate::plan::{Column, Image, Plan, Table};

/// The table that is locked by those who read a buffer (ROW EXCLUSIVE) and those who delete from it (SHARE). The buffer itself would
/// not do: those who write to sources lock it.
pub(crate) fn turn(buffer: i64) -> String {
    format!("pgtrickle.turn_{buffer}")
}

/// OIDs as an SQL list; never empty, as `IN ()` is no SQL.
pub(crate) fn list(oids: &[u32]) -> String {
    if oids.is_empty() {
        return "0".to_owned();
    }
    oids.iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Sees to it that all tables that the incremental plan of stream table `id` follows are captured, and notes their buffers in it. The
/// locks on the sources (SHARE ROW EXCLUSIVE, by CREATE TRIGGER) are taken last of all work.
///
/// # Errors
/// Those of the server.
pub(crate) async fn attach<C: Conn>(c: &mut C, id: i64, plan: &mut Plan) -> Result<(), Error> {
    if plan.is_full() {
        for table in &mut plan.tables {
            table.buffer = None;
        }
        return Ok(());
    }
    let mut triggers = Vec::new();
    let followed = plan.followed(id)?;
    // In the order of OIDs, as everybody does: no deadlocks between two of us.
    for (i, table) in plan.tables.iter_mut().enumerate() {
        if !followed.contains(&i) {
            table.buffer = None;
            continue;
        }
        let (buffer, mut statements) = buffer(c, table).await?;
        table.buffer = Some(buffer);
        triggers.append(&mut statements);
    }
    c.batch(&triggers).await?;
    Ok(())
}

/// Finds or makes the table's buffer, and the statements that are left to do under the source's lock.
async fn buffer<C: Conn>(c: &mut C, table: &Table) -> Result<(i64, Vec<String>), Error> {
    let relid = table.relid;
    let (id, is_new) = number(c, relid).await?;
    let mut columns: BTreeMap<i32, Column> = table
        .columns
        .iter()
        .map(|c| (c.attnum, c.clone()))
        .collect();
    let mut statements = Vec::new();
    if !is_new {
        let have = existing(c, id).await?;
        // Columns only others use keep being captured, as long as the source has them.
        for column in crate::plan::source_columns(c, relid).await? {
            if have.contains_key(&column.attnum) {
                columns.entry(column.attnum).or_insert(column);
            }
        }
        let changed: Vec<_> = columns
            .values()
            .filter(|column| {
                have.get(&column.attnum)
                    .is_none_or(|type_name| *type_name != column.type_name)
            })
            .collect();
        let triggers = trigger::triggers(c, id, table).await?;
        let state = c
            .query(&format!(
                "SELECT (SELECT count(*) FROM pg_trigger t WHERE t.tgfoid = p.oid AND t.tgparentid = 0 AND t.tgenabled = 'O'),
                    p.prosrc, has_table_privilege({relid}::oid, 'UPDATE, DELETE, TRUNCATE'),
                    EXISTS (SELECT FROM pg_class k WHERE k.oid = to_regclass('pgtrickle.columns_{id}') AND k.relowner = p.proowner)
                 FROM pg_proc p WHERE p.oid = to_regprocedure('pgtrickle.capture_{id}()')"
            ))
            .await?;
        let state = state.first().cloned().unwrap_or_default();
        if state.int(0) != i64::try_from(triggers.len()).ok() {
            statements.extend(triggers);
        } else if !changed.is_empty() {
            // Writers must be out: one that runs would leave rows without the new columns. A new trigger would take the
            // same lock, but be a reason for all others on this source to rebuild.
            if state.is_true(2) {
                statements.push(format!(
                    "LOCK TABLE ONLY {} IN SHARE ROW EXCLUSIVE MODE",
                    table.qualified()
                ));
            } else {
                statements.extend(triggers);
            }
        }
        if !changed.is_empty() {
            let parts: Vec<_> = changed
                .iter()
                .map(|column| {
                    let n = column.attnum;
                    format!(
                        "DROP COLUMN IF EXISTS c{n}, ADD COLUMN c{n} {}",
                        column.typed()
                    )
                })
                .collect();
            statements.push(format!(
                "ALTER TABLE pgtrickle.changes_{id} {}",
                parts.join(", ")
            ));
        }
        let code = trigger::code(id, table, &columns);
        if state.text(1) != Some(&code) {
            // One that somebody else has put there would run his functions as the owner.
            let has_view = state.is_true(3);
            statements.extend(trigger::functions(id, table, &columns, &code, has_view));
        }
        return Ok((id, statements));
    }
    let typed: String = columns
        .values()
        .map(|column| format!(", c{} {}", column.attnum, column.typed()))
        .collect();
    c.batch(&[
        format!(
            "CREATE TABLE pgtrickle.changes_{id} (
                seq bigint NOT NULL DEFAULT nextval('pgtrickle.change_seq'),
                xid xid8 NOT NULL DEFAULT pg_current_xact_id(), w bigint NOT NULL{typed})"
        ),
        // A publication FOR ALL TABLES needs it to let us delete.
        format!("ALTER TABLE pgtrickle.changes_{id} REPLICA IDENTITY FULL"),
        format!("CREATE INDEX ON pgtrickle.changes_{id} (xid)"),
        format!("CREATE UNLOGGED TABLE {} ()", turn(id)),
    ])
    .await?;
    let code = trigger::code(id, table, &columns);
    c.batch(&trigger::functions(id, table, &columns, &code, false))
        .await?;
    statements.extend(trigger::triggers(c, id, table).await?);
    Ok((id, statements))
}

/// The number of the current role's buffer for a table, and whether it is new, and so to be made.
async fn number<C: Conn>(c: &mut C, relid: u32) -> Result<(i64, bool), Error> {
    const OWNER: &str = "pg_catalog.quote_ident(current_user)::pg_catalog.regrole";
    // Locked, so that nobody takes it down who does not see yet that it is used.
    let find = format!(
        "SELECT id FROM pgtrickle.buffer WHERE relid = {relid} AND owner = {OWNER} FOR KEY SHARE"
    );
    loop {
        let rows = c.query(&find).await?;
        if let Some(id) = rows.first().and_then(|row| row.int(0)) {
            return Ok((id, false));
        }
        let id = catalog::next_id(c).await?;
        let made = c
            .query(&format!(
                "INSERT INTO pgtrickle.buffer (id, owner, relid) VALUES ({id}, {OWNER}, {relid})
                 ON CONFLICT (relid, owner) DO NOTHING RETURNING 1"
            ))
            .await?;
        if !made.is_empty() {
            return Ok((id, true));
        }
        // Somebody else has just made it.
    }
}

/// Column numbers and types a buffer has.
async fn existing<C: Conn>(c: &mut C, id: i64) -> Result<BTreeMap<i32, String>, Error> {
    let relid = catalog::regclass(c, &format!("pgtrickle.changes_{id}")).await?;
    Ok(crate::plan::source_columns(c, relid)
        .await?
        .into_iter()
        .filter_map(|column| {
            Some((
                column.name.strip_prefix('c')?.parse().ok()?,
                column.type_name,
            ))
        })
        .collect())
}

/// Takes down the buffers among `ids` that no stream table uses any more. Takes ACCESS EXCLUSIVE locks on the sources for
/// a moment, so it comes last in a transaction. One with an old snapshot leaves them to the clean-up.
///
/// # Errors
/// Those of the server.
pub(crate) async fn detach<C: Conn>(c: &mut C, ids: &[i64]) -> Result<(), Error> {
    if ids.is_empty() || !sees_others(c).await? {
        return Ok(());
    }
    for id in ids {
        let used = format!("SELECT 1 FROM pgtrickle.source WHERE buffer = {id} LIMIT 1");
        if !c.query(&used).await?.is_empty() {
            continue;
        }
        // Whoever is about to use it has locked it: only with the lock it is certain. The clean-up comes back.
        let lock = format!("SELECT 1 FROM pgtrickle.buffer WHERE id = {id} FOR UPDATE SKIP LOCKED");
        if c.query(&lock).await?.is_empty() || !c.query(&used).await?.is_empty() {
            continue;
        }
        c.batch(&[
            // The triggers go with the function: a role with TRIGGER may make a trigger, but only the table's owner may
            // drop it.
            format!(
                "DROP FUNCTION IF EXISTS pgtrickle.capture_{id}(), pgtrickle.columns_{id}() CASCADE"
            ),
            // In the order in which the clean-up locks them.
            format!("DROP TABLE IF EXISTS {}, pgtrickle.changes_{id}", turn(*id)),
            format!("DELETE FROM pgtrickle.buffer WHERE id = {id}"),
        ])
        .await?;
    }
    Ok(())
}

/// Whether the next statement sees what others have committed since the transaction began.
///
/// # Errors
/// Those of the server.
pub(crate) async fn sees_others<C: Conn>(c: &mut C) -> Result<bool, Error> {
    let rows = c.query("SHOW transaction_isolation").await?;
    let level = rows.first().and_then(|row| row.text(0));
    Ok(level.is_some_and(|level| level.starts_with("read ")))
}

/// Whether values can be grouped by image without a look at their text.
fn all_plain<'a>(mut columns: impl Iterator<Item = &'a Column>) -> bool {
    columns.all(|column| column.image == Image::Plain)
}
