use super::StreamTableId;
use crate::conn::{Conn, Error};
pub async fn drop<C: Conn>(c: &mut C, id: StreamTableId, cascade: bool) -> Result<(), Error> { let _ = (c, id, cascade); todo!() }
