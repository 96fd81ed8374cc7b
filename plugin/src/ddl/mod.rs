//! DDL on the sources of stream tables, seen by the pooler and taken in within the same transaction.
//!
//! The text is forwarded as it is; what depends on it is looked up before and brought up to date
//! after. A database without stream tables pays one look-up, and only for DDL.

mod parse;
pub(crate) mod wording;

use pgcat::plugins::TransactionContext;

pub use parse::{DropRelations, Kind, SourceDdl, parse};

use crate::command::drop::drop_in_order;
use crate::command::lookup::{Relation, find, installed};
use crate::command::{QualifiedName, literal};
use crate::conn::Error;
use crate::engine::{self, Dependent, StreamTableId};
use crate::session::Session;

/// What a statement's names stand for.
struct Touched {
    /// The relations found, with the names they were found by.
    relations: Vec<(QualifiedName, Relation)>,
    /// The stream tables that read them, in the order of their creation, after the shared stages that do.
    readers: Vec<Dependent>,
}

impl Touched {
    fn own_tables(&self) -> impl Iterator<Item = (StreamTableId, &Relation)> {
        self.relations
            .iter()
            .filter_map(|(_, relation)| Some((relation.stream_table?, relation)))
    }

    fn is_nothing(&self) -> bool {
        self.readers.is_empty() && self.own_tables().next().is_none()
    }
}

/// What has been done with a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub tag: String,
    /// Did it concern a stream table?
    pub touched: bool,
}

/// Runs the statement `sql`, which [`parse`] has read as `ddl`.
///
/// # Errors
/// The server's own, with stream tables named instead of internal views.
pub async fn run(session: &mut impl Session, sql: &str, ddl: &SourceDdl) -> Result<Outcome, Error> {
    let touched = look_up(session, ddl).await?;
    let Some(touched) = touched.filter(|touched| !touched.is_nothing()) else {
        return Ok(Outcome {
            tag: session.forward(sql).await?,
            touched: false,
        });
    };
    let own_transaction = session.transaction() == TransactionContext::None;
    if own_transaction {
        session.begin().await?;
    }
    let done = match &ddl.kind {
        Kind::Reconcile { columns } => reconcile(session, sql, &touched, *columns).await,
        Kind::BehindViews { cascade, dropped } => {
            behind_views(session, sql, &touched, *cascade, dropped).await
        }
        Kind::Drop(drop) => drop_relations(session, sql, ddl, drop, &touched).await,
    };
    match done {
        Ok(tag) => {
            if own_transaction {
                session.commit().await?;
            }
            Ok(Outcome { tag, touched: true })
        }
        Err(error) => {
            if own_transaction {
                session.rollback().await?;
            }
            Err(wording::explain(error, &touched.readers))
        }
    }
}

async fn look_up(session: &mut impl Session, ddl: &SourceDdl) -> Result<Option<Touched>, Error> {
    if !installed(session).await? {
        return Ok(None);
    }
    let mut relations = Vec::with_capacity(ddl.names.len());
    for name in &ddl.names {
        if let Some(relation) = find(session, name).await? {
            relations.push((name.clone(), relation));
        }
    }
    let readers = readers_of(session, &relations).await?;
    Ok(Some(Touched { relations, readers }))
}

/// The stream tables that read any of these, shared stages first.
async fn readers_of(
    session: &mut impl Session,
    relations: &[(QualifiedName, Relation)],
) -> Result<Vec<Dependent>, Error> {
    let oids: Vec<u32> = relations.iter().map(|(_, relation)| relation.oid).collect();
    if oids.is_empty() {
        return Ok(Vec::new());
    }
    let mut readers = engine::dependents(session, &oids).await?;
    readers.sort_by_key(|reader| (!reader.shared, reader.id));
    readers.dedup_by_key(|reader| reader.id);
    Ok(readers)
}

/// Whether it is another owner's: one that has been dropped meanwhile is nobody's.
async fn is_anothers(session: &mut impl Session, reader: &Dependent) -> Result<bool, Error> {
    Ok(!engine::is_owner(session, reader.id).await? && exists(session, reader.id).await?)
}

async fn reconcile(
    session: &mut impl Session,
    sql: &str,
    touched: &Touched,
    columns: bool,
) -> Result<String, Error> {
    if columns {
        refuse_own_tables(touched)?;
    }
    let tag = session.forward(sql).await?;
    // As they are now: shared stages come and go with what others create and drop.
    for reader in &readers_of(session, &touched.relations).await? {
        // Those of other owners are theirs to repair: their workers do.
        if engine::is_owner(session, reader.id).await? {
            match engine::replan(session, reader.id).await {
                // Somebody was about to drop it.
                Err(Error::Refused(fields)) if fields.code == "42704" => {}
                outcome => outcome?,
            }
        }
    }
    Ok(tag)
}

async fn behind_views(
    session: &mut impl Session,
    sql: &str,
    touched: &Touched,
    cascade: bool,
    dropped: &[String],
) -> Result<String, Error> {
    refuse_own_tables(touched)?;
    // Sources before views, as refreshes lock them: the other way round each would wait for the other,
    // and all writers for both. A role that may not take the lock may not alter the table either.
    for reader in &touched.readers {
        // Another's definition is not ours to make anew. The server refuses what it forbids.
        if is_anothers(session, reader).await? {
            return session.forward(sql).await;
        }
    }
    for (_, relation) in &touched.relations {
        if !relation.owned {
            return session.forward(sql).await;
        }
        // LOCK takes no foreign tables, which refreshes do not lock either.
        if !matches!(relation.kind, 'r' | 'p') {
            continue;
        }
        let name = session
            .query(&format!("SELECT {}::pg_catalog.regclass", relation.oid))
            .await?;
        if let Some(name) = name.first().and_then(|row| row.text(0)) {
            session
                .query(&format!("LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE"))
                .await?;
        }
    }
    // Shared stages come and go with what others create and drop, and so may the rest; not any more, now that the sources are locked.
    let mut readers = readers_of(session, &touched.relations).await?;
    if cascade {
        for column in dropped {
            drop_users_of_column(session, touched, &mut readers, column).await?;
        }
    }
    for reader in &readers {
        if is_anothers(session, reader).await? {
            return session.forward(sql).await;
        }
    }
    // What reads the outermost was created last.
    let mut without_view = Vec::new();
    for reader in readers.into_iter().rev() {
        match engine::drop_definition_view(session, reader.id).await {
            Ok(()) => without_view.insert(0, reader),
            // Somebody was about to drop it.
            Err(Error::Refused(fields)) if fields.code == "42704" => {}
            Err(error) => return Err(error),
        }
    }
    let readers = without_view;
    let tag = session.forward(sql).await?;
    for reader in &readers {
        match engine::recreate_definition_view(session, reader.id).await {
            Ok(()) => engine::replan(session, reader.id).await?,
            Err(error) => {
                let known = readers.iter().find(|other| !other.shared);
                let reader = if reader.shared {
                    known.unwrap_or(reader)
                } else {
                    reader
                };
                return Err(still_needed(error, touched, reader, dropped));
            }
        }
    }
    Ok(tag)
}

/// DROP COLUMN … CASCADE drops the stream tables that use the column, directly or through views. The
/// server knows which they are as long as their definition views exist.
async fn drop_users_of_column(
    session: &mut impl Session,
    touched: &Touched,
    readers: &mut Vec<Dependent>,
    column: &str,
) -> Result<(), Error> {
    let Some((_, table)) = touched.relations.first() else {
        return Ok(());
    };
    let sql = format!(
        "WITH RECURSIVE user_of(oid) AS (\
         SELECT r.ev_class FROM pg_catalog.pg_attribute a \
         JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
         AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum \
         AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
         JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid \
         WHERE a.attrelid = {} AND a.attname = {} \
         UNION SELECT r.ev_class FROM user_of u \
         JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
         AND d.refobjid = u.oid \
         AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
         JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid) \
         SELECT s.id FROM pgtrickle.catalog s JOIN user_of u ON u.oid = s.def_view WHERE s.shares IS NULL",
        table.oid,
        literal(column)
    );
    let users: Vec<i64> = session
        .query(&sql)
        .await?
        .iter()
        .filter_map(|row| row.int(0))
        .collect();
    for id in users.into_iter().map(StreamTableId) {
        if exists(session, id).await? {
            engine::drop(session, id, true).await?;
        }
        readers.retain(|reader| reader.id != id);
    }
    // Shared stages go with the last that reads them.
    let mut left = Vec::new();
    for reader in readers.drain(..) {
        if !reader.shared || exists(session, reader.id).await? {
            left.push(reader);
        }
    }
    *readers = left;
    Ok(())
}

/// The error for a change under which a stream table's query no longer works.
fn still_needed(error: Error, touched: &Touched, reader: &Dependent, dropped: &[String]) -> Error {
    let (Error::Server(fields) | Error::Refused(fields)) = error else {
        return error;
    };
    let table = touched
        .relations
        .iter()
        .find(|(_, relation)| relation.oid == reader.relid)
        .or(touched.relations.first())
        .map_or("", |(_, relation)| relation.name.as_str());
    if let ("2BP01", [column]) = (fields.code.as_str(), dropped) {
        return wording::dependents(
            format!(
                "cannot drop column {column} of table {table} because other objects depend on it"
            ),
            &[format!(
                "stream table {} depends on column {column} of table {table}",
                reader.name
            )],
        );
    }
    Error::Refused(fields)
}

async fn drop_relations(
    session: &mut impl Session,
    sql: &str,
    ddl: &SourceDdl,
    drop: &DropRelations,
    touched: &Touched,
) -> Result<String, Error> {
    let mut own: Vec<(StreamTableId, Relation)> = Vec::new();
    for (id, relation) in touched.own_tables() {
        relation.require_owner()?;
        own.push((id, relation.clone()));
    }
    let mut gone: Vec<StreamTableId> = own.iter().map(|(id, _)| *id).collect();
    drop_in_order(session, &own, drop.cascade, &gone.clone()).await?;
    if drop.cascade {
        for reader in touched
            .readers
            .iter()
            .rev()
            .filter(|reader| !gone.contains(&reader.id))
        {
            // Dropping one may have taken those that read it along.
            if exists(session, reader.id).await? {
                engine::drop(session, reader.id, true).await?;
            }
        }
        gone.extend(touched.readers.iter().map(|reader| reader.id));
    }
    if own.is_empty() {
        return session.forward(sql).await;
    }
    let own_names = |name: &QualifiedName| {
        touched
            .relations
            .iter()
            .any(|(known, r)| known == name && r.stream_table.is_some())
    };
    let rest: Vec<QualifiedName> = ddl
        .names
        .iter()
        .filter(|name| !own_names(name))
        .cloned()
        .collect();
    if rest.is_empty() {
        return Ok(format!("DROP {}", drop.object));
    }
    session.forward(&drop.sql(&rest)).await
}

async fn exists(session: &mut impl Session, id: StreamTableId) -> Result<bool, Error> {
    let sql = format!("SELECT 1 FROM pgtrickle.catalog WHERE id = {id}");
    Ok(!session.query(&sql).await?.is_empty())
}

fn refuse_own_tables(touched: &Touched) -> Result<(), Error> {
    match touched.own_tables().next() {
        None => Ok(()),
        Some((_, relation)) => Err(Error::Refused(Box::new(
            pgcat::plugins::ErrorFields::error(
                "42809",
                format!(
                    "cannot alter the columns of stream table \"{}\"",
                    relation.name
                ),
            )
            .hint("Its columns are those of its query. Drop it and create it again."),
        ))),
    }
}
