use super::StreamTableId;
use crate::conn::{Conn, Error};
/// What the catalog says about a stream table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub id: StreamTableId,
    pub relid: Option<u32>,
    pub schema: String,
    pub name: String,
    pub owner: String,
    pub schedule: String,
    pub refresh_mode: String,
    pub effective_mode: String,
    pub reason: Option<String>,
    pub status: String,
}
/// The stream table of this name (`schema` `None`: by the search path), if it is one.
pub async fn by_name<C: Conn>(c: &mut C, schema: Option<&str>, name: &str) -> Result<Option<Summary>, Error> { let _ = (c, schema, name); todo!() }
