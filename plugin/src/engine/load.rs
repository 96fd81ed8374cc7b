use super::{Isolation, StreamTableId};
use crate::conn::{Conn, Error};
pub async fn load<C: Conn>(c: &mut C, id: StreamTableId, isolation: Isolation) -> Result<(), Error> { let _ = (c, id, isolation); todo!() }
