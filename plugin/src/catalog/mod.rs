use crate::conn::{Conn, Error};
pub async fn bootstrap<C: Conn>(c: &mut C) -> Result<(), Error> { let _ = c; todo!() }
