//! The removal of what nobody needs any more.

use super::{StreamTableId, remove, share};
use crate::capture;
use crate::conn::{Conn, Error};

/// Changes a buffer may hold for stream tables that do not take them in (suspended, failing); beyond, these are rebuilt.
const HELD_FOR_IDLE: u32 = 1_000_000;

/// Deletes the changes that all consumers have taken in, from the current role's buffers, what its dropped tables left behind,
/// and old history. Not those of roles it is a member of: what they have put in the place of a buffer would run as the caller. Runs transactions of its own; returns how many changes were deleted.
///
/// # Errors
/// Those of the server; a buffer in use is left for the next time.
pub async fn cleanup_buffers<C: Conn>(c: &mut C) -> Result<u64, Error> {
    let orphans = c
        .query(
            "SELECT c.id FROM pgtrickle.catalog c WHERE c.relid IS NOT NULL AND pg_catalog.pg_get_userbyid(c.owner) = current_user
             AND NOT EXISTS (SELECT FROM pg_catalog.pg_class k WHERE k.oid = c.relid)",
        )
        .await?;
    for id in orphans.iter().filter_map(|r| r.int(0)) {
        begin(c).await?;
        let result = remove::drop(c, StreamTableId(id), false).await;
        finish(c, result).await?;
    }
    begin(c).await?;
    let result = shared(c).await;
    finish(c, result).await?;
    c.query("DELETE FROM pgtrickle.history WHERE started_at < pg_catalog.now() - interval '1 day'")
        .await?;
    let buffers = c
        .query(
            "SELECT b.id, EXISTS (SELECT FROM pgtrickle.source s WHERE s.buffer = b.id) FROM pgtrickle.buffer b
             WHERE pg_catalog.pg_get_userbyid(b.owner) = current_user ORDER BY b.id",
        )
        .await?;
    let mut deleted = 0;
    for row in &buffers {
        let Some(id) = row.int(0) else { continue };
        if !row.is_true(1) {
            begin(c).await?;
            let result = capture::detach(c, &[id]).await;
            finish(c, result).await?;
            continue;
        }
        let full = c
            .query(&format!("SELECT 1 FROM pgtrickle.changes_{id} LIMIT 1"))
            .await;
        if full.is_ok_and(|rows| !rows.is_empty()) {
            c.query("BEGIN").await?;
            let result = clean(c, id).await;
            deleted += *result.as_ref().unwrap_or(&0);
            finish(c, result.map(|_| ())).await?;
        }
    }
    Ok(deleted)
}

/// Begins a transaction that does not wait for locks for long.
async fn begin<C: Conn>(c: &mut C) -> Result<(), Error> {
    c.batch(&[
        "BEGIN ISOLATION LEVEL READ COMMITTED".to_owned(),
        "SET LOCAL lock_timeout = '100ms'".to_owned(),
    ])
    .await
    .map(|_| ())
}

/// Sees to it that shared stages are read by all that can, and drops those that nobody reads any more.
async fn shared<C: Conn>(c: &mut C) -> Result<(), Error> {
    let mut buffers = share::tidy(c).await?;
    buffers.sort_unstable();
    buffers.dedup();
    capture::detach(c, &buffers).await
}

/// Ends the transaction; what was only locked is for the next time.
async fn finish<C: Conn>(c: &mut C, result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Ok(()) => c.query("COMMIT").await.map(|_| ()),
        Err(error) => {
            c.query("ROLLBACK").await?;
            if error.is_transient() {
                Ok(())
            } else {
                Err(error)
            }
        }
    }
}

async fn clean<C: Conn>(c: &mut C, id: i64) -> Result<u64, Error> {
    c.batch(&[
        "SET LOCAL lock_timeout = '50ms'".to_owned(),
        "SET LOCAL synchronous_commit = off".to_owned(),
        // Keeps refreshes out, which hold ROW EXCLUSIVE from before their snapshot until their commit: one that is under
        // way may need rows that all committed frontiers have passed.
        format!("LOCK TABLE {} IN SHARE MODE", capture::turn(id)),
        // Who does not take changes in must not hold them for ever.
        format!(
            "UPDATE pgtrickle.catalog c SET frontier_snapshot = NULL, rebuild = 'more changes waited than are kept' FROM pgtrickle.source s
             WHERE s.stream_table = c.id AND s.buffer = {id} AND c.frontier_snapshot IS NOT NULL
                AND (c.status IN ('suspended', 'error') OR c.schedule = 'manual' OR c.shares IS NOT NULL AND NOT EXISTS (
                    WITH RECURSIVE reader AS (SELECT c.relid UNION SELECT o.relid FROM reader
                        JOIN pgtrickle.source r ON r.relid = reader.relid
                        JOIN pgtrickle.catalog o ON o.id = r.stream_table AND o.owner = c.owner)
                    SELECT FROM reader JOIN pgtrickle.catalog o ON o.relid = reader.relid AND o.owner = c.owner
                    WHERE o.shares IS NULL AND o.schedule <> 'manual' AND o.status NOT IN ('suspended', 'error')))
                AND (SELECT pg_catalog.count(*) FROM (SELECT FROM pgtrickle.changes_{id} LIMIT {HELD_FOR_IDLE} + 1) x)
                    > {HELD_FOR_IDLE}"
        ),
    ])
    .await?;
    // Also what stream tables refreshed together have written for each other: their snapshots do not show that yet.
    let rows = c
        .query(&format!(
            "WITH taken AS MATERIALIZED (
                SELECT pg_catalog.pg_snapshot_xmin(c.frontier_snapshot) AS before, c.frontier_xid AS own, c.frontier_seq AS seq
                FROM pgtrickle.catalog c JOIN pgtrickle.source s ON s.stream_table = c.id
                WHERE s.buffer = {id} AND c.frontier_snapshot IS NOT NULL),
             gone AS (DELETE FROM pgtrickle.changes_{id} b WHERE b.xid < coalesce(
                    (SELECT t.before FROM taken t ORDER BY t.before LIMIT 1),
                    pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()))
                OR b.xid = ANY (ARRAY(SELECT t.own FROM taken t)) AND NOT EXISTS (SELECT FROM taken t
                    WHERE b.xid >= t.before AND (b.xid <> t.own OR b.seq > t.seq)) RETURNING 1)
             SELECT pg_catalog.count(*) FROM gone"
        ))
        .await?;
    Ok(rows
        .first()
        .and_then(|r| r.int(0))
        .unwrap_or_default()
        .unsigned_abs())
}
