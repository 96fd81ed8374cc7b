//! Finding what a name in a statement stands for, as the server resolves it for this client.

use pgcat::plugins::ErrorFields;

use super::syntax::{QualifiedName, literal};
use crate::conn::{Conn, Error};
use crate::engine::StreamTableId;

/// A relation found by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation {
    pub oid: u32,
    pub name: String,
    /// `pg_class.relkind`.
    pub kind: char,
    /// Has the current role the rights of its owner?
    pub owned: bool,
    /// The stream table whose own table this is.
    pub stream_table: Option<StreamTableId>,
}

impl Relation {
    /// Refuses with 42501 unless the current role owns the stream table.
    pub(crate) fn require_owner(&self) -> Result<(), Error> {
        if self.owned {
            return Ok(());
        }
        let message = format!("must be owner of stream table {}", self.name);
        Err(refused(ErrorFields::error("42501", message)))
    }
}

/// Has this database a schema `pgtrickle` with its catalog? Without it there is no stream table.
pub(crate) async fn installed(conn: &mut impl Conn) -> Result<bool, Error> {
    let sql = format!("SELECT {}", crate::catalog::present("catalog"));
    let rows = conn.query_kept(sql, Vec::new()).await?;
    Ok(rows.first().is_some_and(|row| row.is_true(0)))
}

/// The relation `name` stands for under the client's search_path. Only where [`installed`].
pub(crate) async fn find(
    conn: &mut impl Conn,
    name: &QualifiedName,
) -> Result<Option<Relation>, Error> {
    // Everybody may write catalog rows that name himself as owner; they say nothing about tables that are not his.
    let sql = "SELECT c.oid::bigint, c.relname::text, c.relkind::text, pg_catalog.pg_has_role(c.relowner, 'USAGE'), \
         (SELECT s.id FROM pgtrickle.catalog s WHERE s.relid = c.oid AND s.shares IS NULL \
         AND pg_catalog.pg_has_role(s.owner, c.relowner, 'MEMBER') LIMIT 1) \
         FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1)";
    let rows = conn.query_kept(sql.to_owned(), vec![name.sql()]).await?;
    Ok(rows.first().and_then(|row| {
        Some(Relation {
            oid: row.text(0)?.parse().ok()?,
            name: row.text(1)?.to_owned(),
            kind: row.text(2)?.chars().next()?,
            owned: row.is_true(3),
            stream_table: row.int(4).map(StreamTableId),
        })
    }))
}

/// As [`find`], and a stream table whose CREATE has died before its table was made: the worker will
/// finish it, so to its name it exists. Its OID is 0.
pub(crate) async fn find_or_unfinished(
    conn: &mut impl Conn,
    name: &QualifiedName,
) -> Result<Option<Relation>, Error> {
    if let Some(relation) = find(conn, name).await? {
        return Ok(Some(relation));
    }
    let schema = match &name.schema {
        Some(schema) => format!("= {}", literal(schema)),
        None => "= ANY (pg_catalog.current_schemas(false))".to_owned(),
    };
    let sql = format!(
        "SELECT s.id, pg_catalog.pg_has_role(s.owner, 'USAGE') FROM pgtrickle.catalog s \
         WHERE s.relid IS NULL AND s.target_name = {} AND s.target_schema {schema}",
        literal(&name.name)
    );
    let rows = conn.query(&sql).await?;
    Ok(rows.first().map(|row| Relation {
        oid: 0,
        name: name.name.clone(),
        kind: 'r',
        owned: row.is_true(1),
        stream_table: row.int(0).map(StreamTableId),
    }))
}

/// The stream table `name` stands for.
///
/// # Errors
/// 42P01 if there is no such relation, 42809 with the statement to use if it is something else.
pub(crate) async fn stream_table(
    conn: &mut impl Conn,
    name: &QualifiedName,
) -> Result<(StreamTableId, Relation), Error> {
    let found = if installed(conn).await? {
        find_or_unfinished(conn, name).await?
    } else {
        None
    };
    match found {
        None if installed_elsewhere(conn, name).await? => Err(not_a_stream_table(name, 'r')),
        None => Err(unknown(name)),
        Some(relation) => match relation.stream_table {
            Some(id) => Ok((id, relation)),
            None => Err(not_a_stream_table(name, relation.kind)),
        },
    }
}

/// Does the name stand for an ordinary relation in a database that has no stream tables?
async fn installed_elsewhere(conn: &mut impl Conn, name: &QualifiedName) -> Result<bool, Error> {
    let sql = format!(
        "SELECT pg_catalog.to_regclass({}) IS NOT NULL",
        literal(&name.sql())
    );
    Ok(conn
        .query(&sql)
        .await?
        .first()
        .is_some_and(|row| row.is_true(0)))
}

pub(crate) fn unknown(name: &QualifiedName) -> Error {
    refused(ErrorFields::error(
        "42P01",
        format!("stream table \"{name}\" does not exist"),
    ))
}

pub(crate) fn not_a_stream_table(name: &QualifiedName, kind: char) -> Error {
    let error = ErrorFields::error("42809", format!("\"{}\" is not a stream table", name.name));
    let object = match kind {
        'v' => "view",
        'm' => "materialized view",
        'S' => "sequence",
        'f' => "foreign table",
        'i' | 'I' => "index",
        _ => "table",
    };
    refused(error.hint(format!(
        "Use DROP {} to remove a {object}.",
        object.to_uppercase()
    )))
}

/// An error of ours, to be shown as it is.
pub(crate) fn refused(error: ErrorFields) -> Error {
    Error::Refused(Box::new(error))
}
