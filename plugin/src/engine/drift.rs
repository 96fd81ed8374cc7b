use super::{Dependent, Drift, StreamTableId};
use crate::conn::{Conn, Error};
pub async fn check<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Drift, Error> { let _ = (c, id); todo!() }
/// Stream tables whose defining query reads any of these relations (tables or views, at any depth).
pub async fn dependents<C: Conn>(c: &mut C, relids: &[u32]) -> Result<Vec<Dependent>, Error> { let _ = (c, relids); todo!() }
