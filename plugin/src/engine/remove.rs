//! DROP STREAM TABLE.

use pgcat::plugins::ErrorFields;

use super::record::{self, Record};
use super::{StreamTableId, drift, share, stages};
use crate::capture;
use crate::conn::{Conn, Error};

/// Drops the user's table, and everything of ours that nobody else uses, in the caller's transaction. Also what is left of a
/// stream table whose table is gone. The locks on the sources come last.
///
/// # Errors
/// 2BP01 if something depends on it and `cascade` is not given; 42501 for those who do not own it.
pub async fn drop<C: Conn>(c: &mut C, id: StreamTableId, cascade: bool) -> Result<(), Error> {
    let mut all = vec![record::locked(c, id).await?];
    // Stream tables on this one, and on those: dropped first.
    let mut next = 0;
    while next < all.len() {
        let relids: Vec<_> = all[next].relid.into_iter().collect();
        for dependent in drift::dependents(c, &relids).await? {
            if all[0].shares.is_some() {
                // It is planned anew, without it.
                continue;
            }
            // Those that read a shared stage are among the dependents themselves.
            if !cascade && !dependent.shared {
                return Err(depends(&all[0], &dependent));
            }
            all.retain(|r| r.id != dependent.id);
            all.push(record::locked(c, dependent.id).await?);
        }
        next += 1;
    }
    let mut buffers = Vec::new();
    for record in all.iter().rev() {
        remove(c, record, cascade).await?;
        buffers.extend(record.plan.tables.iter().filter_map(|t| t.buffer));
    }
    let shared = all.iter().flat_map(|record| record.plan.shared());
    buffers.extend(share::release(c, shared.collect()).await?);
    buffers.sort_unstable();
    buffers.dedup();
    capture::detach(c, &buffers).await
}

fn depends(record: &Record, on: &super::Dependent) -> Error {
    Error::Refused(Box::new(
        ErrorFields::error(
            "2BP01",
            format!(
                "cannot drop stream table {} because other objects depend on it",
                record.name
            ),
        )
        .detail(format!(
            "stream table {}.{} depends on stream table {}",
            on.schema, on.name, record.name
        ))
        .hint("Use DROP ... CASCADE to drop the dependent objects too."),
    ))
}

/// Drops all of a stream table but for its part in the buffers.
pub(super) async fn remove<C: Conn>(
    c: &mut C,
    record: &Record,
    cascade: bool,
) -> Result<(), Error> {
    let id = record.id;
    let cascade = if cascade { " CASCADE" } else { "" };
    let mut statements = Vec::new();
    if let Some(target) = &record.target {
        statements.push(format!("DROP TABLE {}{cascade}", target.name));
    }
    statements.push(format!("DROP VIEW IF EXISTS pgtrickle.def_{id}"));
    statements.push(format!(
        "DELETE FROM pgtrickle.source WHERE stream_table = {id}"
    ));
    statements.push(format!("DELETE FROM pgtrickle.catalog WHERE id = {id}"));
    c.batch(&statements).await?;
    stages::drop_all(c, id.0, &record.plan).await
}
