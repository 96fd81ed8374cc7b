use super::StreamTableId;
use crate::conn::{Conn, Error};

/// Which of these stream tables have changes waiting (or must be rebuilt). Two cheap statements.
pub async fn pending<C: Conn>(c: &mut C, ids: &[StreamTableId]) -> Result<Vec<StreamTableId>, Error> { let _ = (c, ids); todo!() }
/// Deletes consumed changes of the caller's own buffers, and what dropped tables left behind. Returns how many rows.
/// Runs its own transactions.
pub async fn cleanup_buffers<C: Conn>(c: &mut C) -> Result<u64, Error> { let _ = c; todo!() }
