use super::StreamTableId;
use crate::conn::{Conn, Error};
pub async fn replan<C: Conn>(c: &mut C, id: StreamTableId) -> Result<(), Error> { let _ = (c, id); todo!() }
pub async fn drop_definition_view<C: Conn>(c: &mut C, id: StreamTableId) -> Result<(), Error> { let _ = (c, id); todo!() }
pub async fn recreate_definition_view<C: Conn>(c: &mut C, id: StreamTableId) -> Result<(), Error> { let _ = (c, id); todo!() }
