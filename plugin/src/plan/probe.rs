//! Asks PostgreSQL for the types of a query of ours: nobody else knows them for certain.

use super::Column;
use super::facts;
use crate::conn::{Conn, Error};

/// The columns of a query, through a view that lives for a moment in the caller's transaction.
///
/// # Errors
/// Those of the server.
pub(crate) async fn columns<C: Conn>(c: &mut C, id: i64, sql: &str) -> Result<Vec<Column>, Error> {
    let view = create(c, id, sql).await?;
    let columns = facts::columns(c, view).await?;
    drop(c, id).await?;
    Ok(columns)
}

/// Creates the view, and returns its OID.
///
/// # Errors
/// Those of the server.
pub(crate) async fn create<C: Conn>(c: &mut C, id: i64, sql: &str) -> Result<u32, Error> {
    c.query(&format!("CREATE VIEW pgtrickle.probe_{id} AS {sql}"))
        .await?;
    crate::catalog::regclass(c, &format!("pgtrickle.probe_{id}")).await
}

/// Drops the view.
///
/// # Errors
/// Those of the server.
pub(crate) async fn drop<C: Conn>(c: &mut C, id: i64) -> Result<(), Error> {
    c.query(&format!("DROP VIEW pgtrickle.probe_{id}"))
        .await
        .map(|_| ())
}
