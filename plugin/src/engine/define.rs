use super::{Definition, StreamTableId};
use crate::conn::{Conn, Error};
pub async fn define<C: Conn>(c: &mut C, definition: &Definition) -> Result<StreamTableId, Error> { let _ = (c, definition); todo!() }
