//! Schema `pgtrickle`: where everything the product knows is kept, in the user's own database.

mod schema;

use pgcat::plugins::ErrorFields;

use crate::conn::{Conn, Error};

/// Creates schema `pgtrickle` and its objects where they are missing, in the caller's transaction.
///
/// # Errors
/// 42501 with the one statement a DBA runs, where the role may not create them.
pub async fn bootstrap<C: Conn>(c: &mut C) -> Result<(), Error> {
    if state(c).await?.is_true(0) {
        return Ok(());
    }
    // Two sessions may find the schema missing at once: the second waits, and looks again.
    c.query("SELECT pg_catalog.pg_advisory_xact_lock(7074786, 1)")
        .await?;
    let row = state(c).await?;
    if row.is_true(0) {
        return Ok(());
    }
    let (exists, owns, may_create) = (row.is_true(1), row.is_true(2), row.is_true(3));
    let (role, database) = (
        row.text(4).unwrap_or_default(),
        row.text(5).unwrap_or_default(),
    );
    if exists && !owns || !exists && !may_create {
        let hint = if exists {
            "The owner of schema pgtrickle has to create the first stream table of this database."
                .to_owned()
        } else {
            format!(
                "Somebody who may create schemas in database {database} runs, once: CREATE SCHEMA pgtrickle AUTHORIZATION {role};"
            )
        };
        return Err(Error::Refused(Box::new(
            ErrorFields::error(
                "42501",
                "permission denied to set up stream tables in this database",
            )
            .detail(
                "Stream tables keep their catalog in schema pgtrickle, which is not set up yet.",
            )
            .hint(hint),
        )));
    }
    let mut statements = Vec::new();
    if !exists {
        statements.push("CREATE SCHEMA pgtrickle".to_owned());
    }
    statements.extend(schema::STATEMENTS.iter().map(|&s| s.to_owned()));
    c.batch(&statements).await?;
    Ok(())
}

/// Whether all is there, the schema exists, the role owns it, the role could create it; role and database quoted.
async fn state<C: Conn>(c: &mut C) -> Result<crate::conn::Row, Error> {
    let rows = c
        .query(&format!(
            "SELECT {}, n.oid IS NOT NULL, \
             coalesce(pg_catalog.pg_has_role(n.nspowner, 'USAGE'), false), \
             pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'), \
             pg_catalog.quote_ident(current_user), pg_catalog.quote_ident(pg_catalog.current_database()) \
             FROM (SELECT) one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'pgtrickle'",
            present("refresh_history")
        ))
        .await?;
    rows.into_iter()
        .next()
        .ok_or_else(|| Error::Internal("no row about schema pgtrickle".to_owned()))
}

/// An SQL condition: schema `pgtrickle` has this relation, and the role may look into the schema. Unlike to_regclass, it is
/// no error where a DBA has made the schema for another role, who has not set it up yet: every DDL asks.
pub(crate) fn present(relation: &str) -> String {
    format!(
        "EXISTS (SELECT FROM pg_catalog.pg_class p JOIN pg_catalog.pg_namespace ps ON ps.oid = p.relnamespace \
         WHERE ps.nspname = 'pgtrickle' AND p.relname = {} \
         AND pg_catalog.has_schema_privilege(ps.oid, 'USAGE'))",
        crate::plan::literal(relation)
    )
}

/// The OID of a relation by its SQL name.
///
/// # Errors
/// [`Error::Internal`] if there is none.
pub(crate) async fn regclass<C: Conn>(c: &mut C, name: &str) -> Result<u32, Error> {
    let sql = format!(
        "SELECT pg_catalog.to_regclass({})::pg_catalog.oid",
        crate::plan::literal(name)
    );
    let rows = c.query(&sql).await?;
    rows.first()
        .and_then(|r| r.int(0))
        .and_then(|oid| u32::try_from(oid).ok())
        .ok_or_else(|| Error::Internal(format!("{name} is gone")))
}

/// The next id of a stream table or buffer.
///
/// # Errors
/// Those of the server.
pub(crate) async fn next_id<C: Conn>(c: &mut C) -> Result<i64, Error> {
    let rows = c
        .query("SELECT pg_catalog.nextval('pgtrickle.id_seq')")
        .await?;
    rows.first()
        .and_then(|r| r.int(0))
        .ok_or_else(|| Error::Internal("no next id".to_owned()))
}
