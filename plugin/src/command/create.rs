//! `CREATE STREAM TABLE`.

use pgcat::plugins::{ErrorFields, Severity, TransactionContext};

use super::lookup::refused;
use super::parse::Create;
use super::patience::{OURS, patiently, persistently};
use super::syntax::{QualifiedName, identifier, literal};
use crate::conn::{Conn, Error};
use crate::engine::{self, Definition, Isolation, StreamTableId};
use crate::session::Session;

/// Creates the stream table. `default_schedule` is the configured one.
///
/// # Errors
/// What PostgreSQL says of the query, 42P07, 42501, 3F000, 0A000 with the reason for a query that
/// cannot be a stream table, 55P03 if a source stays locked. Nothing is left behind.
pub(crate) async fn run(
    session: &mut impl Session,
    create: &Create,
    default_schedule: &str,
) -> Result<(), Error> {
    let Some(schema) = target(session, create).await? else {
        return Ok(());
    };
    let mut definition = definition(create, schema, default_schedule);
    if session.transaction() != TransactionContext::None {
        let id = engine::define(session, &definition).await?;
        let isolation = isolation(session).await?;
        engine::load(session, id, isolation).await?;
        return warn(session, id, &definition.name).await;
    }
    // In a block others would have to wait for its end.
    definition.may_share = true;
    let id = define_patiently(session, &definition).await?;
    match load(session, id, definition.with_data).await {
        Ok(()) => warn(session, id, &definition.name).await,
        Err(error) => {
            undo(session, id).await;
            Err(error)
        }
    }
}

/// The second transaction, which reads the data.
async fn load(session: &mut impl Session, id: StreamTableId, with_data: bool) -> Result<(), Error> {
    if with_data && load_together(session, id).await? {
        return Ok(());
    }
    session.begin().await?;
    if claim(session, id, "").await? {
        engine::load(session, id, Isolation::ReadCommitted).await?;
    }
    session.commit().await
}

/// The same for one that reads other stream tables, which are refreshed before: else they might be of different moments. False
/// if it reads none, or where that cannot be had, as somebody is busy with them for long: then it is as right as they are, and
/// its group's next refresh sees to the rest.
async fn load_together(session: &mut impl Session, id: StreamTableId) -> Result<bool, Error> {
    let memory = session.memory();
    let together = persistently(session, async |session| {
        engine::load_with_sources(session, &memory, id).await
    });
    match together.await {
        Err(Error::Busy | Error::LockNotAvailable(_) | Error::Conflict(_)) => {
            session.rollback().await?;
            Ok(false)
        }
        outcome => outcome,
    }
}

/// What the engine is to make.
pub(super) fn definition(create: &Create, schema: String, default_schedule: &str) -> Definition {
    Definition {
        schema: Some(schema),
        name: create.name.name.clone(),
        columns: create.columns.clone(),
        query: create.query.clone(),
        query_offset: create.query_offset as usize,
        schedule: create
            .options
            .schedule
            .clone()
            .unwrap_or_else(|| default_schedule.to_owned()),
        refresh_mode: create.options.refresh_mode.unwrap_or_default(),
        with_data: create.with_data,
        may_share: false,
    }
}

/// Tells of sources that every refresh would have to scan.
async fn warn(session: &mut impl Session, id: StreamTableId, name: &str) -> Result<(), Error> {
    for missing in engine::missing_indexes(session, id).await? {
        let message = format!(
            "refreshes of stream table \"{name}\" will have to scan table \"{}\"",
            missing.table
        );
        let warning = ErrorFields::new(Severity::Warning, "01000", message);
        session.notice(warning.hint(format!("An index would avoid that: {};", missing.statement)));
    }
    Ok(())
}

/// Locks a definition that waits for its data, so that only one session loads it: the client's, or a
/// worker that takes it for abandoned. False: there is nothing to load any more.
pub(crate) async fn claim(
    conn: &mut impl Conn,
    id: StreamTableId,
    wait: &str,
) -> Result<bool, Error> {
    let sql = format!("SELECT status FROM pgtrickle.catalog WHERE id = {id} FOR UPDATE {wait}");
    Ok(conn.query(&sql).await?.first().and_then(|row| row.text(0)) == Some("creating"))
}

/// The schema to create in, as CREATE TABLE chooses it; `None` if the relation exists and
/// `IF NOT EXISTS` was given.
pub(super) async fn target(
    session: &mut impl Session,
    create: &Create,
) -> Result<Option<String>, Error> {
    let QualifiedName { schema, name } = &create.name;
    let schema_sql = match schema {
        Some(schema) => literal(schema),
        None => "pg_catalog.current_schema()".to_owned(),
    };
    let sql = format!(
        "SELECT s.name, n.oid IS NOT NULL, \
         CASE WHEN n.oid IS NOT NULL THEN pg_catalog.has_schema_privilege(n.oid, 'CREATE') END, \
         EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname = {}) \
         FROM (SELECT {schema_sql}::pg_catalog.text AS name) s \
         LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = s.name",
        literal(name)
    );
    let rows = session.query(&sql).await?;
    let row = rows.first();
    let column = |index| row.and_then(|row| row.text(index));
    let Some(schema) = column(0) else {
        return Err(refused(ErrorFields::error(
            "3F000",
            "no schema has been selected to create in",
        )));
    };
    if schema.starts_with("pg_temp") {
        let error = ErrorFields::error("42P16", "stream tables cannot be temporary");
        return Err(refused(error.hint(
            "Other sessions refresh it, and cannot see your temporary schema.",
        )));
    }
    if column(1) != Some("t") {
        return Err(refused(ErrorFields::error(
            "3F000",
            format!("schema \"{schema}\" does not exist"),
        )));
    }
    if schema == "pgtrickle" {
        let error = ErrorFields::error("42501", "permission denied for schema pgtrickle");
        return Err(refused(error.detail(
            "The schema is reserved for the bookkeeping of stream tables.",
        )));
    }
    if column(2) != Some("t") {
        let message = format!("permission denied for schema {schema}");
        return Err(refused(ErrorFields::error("42501", message)));
    }
    if column(3) == Some("t") {
        let message = format!("relation \"{name}\" already exists");
        if !create.if_not_exists {
            return Err(refused(ErrorFields::error("42P07", message)));
        }
        let message = format!("{message}, skipping");
        session.notice(ErrorFields::new(Severity::Notice, "42P07", message));
        return Ok(None);
    }
    Ok(Some(schema.to_owned()))
}

/// The first transaction, in which the sources' locks are taken.
async fn define_patiently(
    session: &mut impl Session,
    definition: &Definition,
) -> Result<StreamTableId, Error> {
    let sources = sources(definition);
    let tables = [OURS, &sources];
    let defined = patiently(session, &tables, async |session| {
        engine::define(session, definition).await
    });
    match defined.await {
        Err(Error::LockNotAvailable(error)) => Err(name_holder(session, definition, *error).await),
        other => other,
    }
}

/// The tables a definition names, as a query for OIDs.
fn sources(definition: &Definition) -> String {
    let tables = pg_query::parse(&definition.query, 0).map(|parsed| parsed.tables());
    let tables = tables.unwrap_or_default();
    let names = tables.iter().map(|table| {
        let quoted: Vec<String> = table.split('.').map(identifier).collect();
        literal(&quoted.join("."))
    });
    format!(
        "SELECT pg_catalog.to_regclass(name)::pg_catalog.oid FROM pg_catalog.unnest(ARRAY[{}]::pg_catalog.text[]) name",
        names.collect::<Vec<_>>().join(", ")
    )
}

/// Adds who holds the lock, as far as the client may see it.
async fn name_holder(
    session: &mut impl Session,
    definition: &Definition,
    mut error: ErrorFields,
) -> Error {
    "55P03".clone_into(&mut error.code);
    error.hint = Some("Try again when the transaction that holds the lock has ended.".to_owned());
    let sql = format!(
        "SELECT pid, mode, relation::pg_catalog.regclass FROM pg_catalog.pg_locks \
         WHERE relation IN ({}) AND granted AND pid <> pg_catalog.pg_backend_pid() \
         AND mode NOT IN ('AccessShareLock', 'RowShareLock') LIMIT 1",
        sources(definition)
    );
    if let Ok(rows) = session.query(&sql).await
        && let Some(row) = rows.first()
        && let (Some(pid), Some(mode), Some(table)) = (row.text(0), row.text(1), row.text(2))
    {
        error.detail = Some(format!("Process {pid} holds {mode} on relation {table}."));
    }
    refused(error)
}

/// Takes back a committed definition whose load has failed. Should this fail too (the connection is
/// gone), the worker finds the half-made stream table and finishes or removes it.
async fn undo(session: &mut impl Session, id: StreamTableId) {
    let undone = async {
        session.rollback().await?;
        session.begin().await?;
        engine::drop(session, id, false).await?;
        session.commit().await
    };
    if let Err(error) = undone.await {
        log::warn!("stream table {id} could not be taken back: {error}");
        let _ = session.rollback().await;
    }
}

async fn isolation(conn: &mut impl Conn) -> Result<Isolation, Error> {
    Ok(if crate::capture::sees_others(conn).await? {
        Isolation::ReadCommitted
    } else {
        Isolation::SnapshotTooOld
    })
}
