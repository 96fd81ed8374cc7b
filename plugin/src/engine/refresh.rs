use super::{How, RefreshOutcome, StreamTableId};
use crate::conn::{Conn, Error};
pub async fn refresh<C: Conn>(c: &mut C, id: StreamTableId, how: How) -> Result<RefreshOutcome, Error> { let _ = (c, id, how); todo!() }
pub async fn refresh_in_transaction<C: Conn>(c: &mut C, id: StreamTableId, how: How) -> Result<RefreshOutcome, Error> { let _ = (c, id, how); todo!() }
