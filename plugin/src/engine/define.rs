//! CREATE STREAM TABLE, first step: everything but the data.

use pg_query::NodeEnum;
use pgcat::plugins::ErrorFields;

use super::share::Which;
use super::{Definition, Mode, StreamTableId, fingerprint, settings, share, stages};
use crate::capture;
use crate::catalog;
use crate::conn::{Conn, Error};
use crate::delta;
use crate::delta::stage::staging_table;
use crate::plan::analyse::Analysed;
use crate::plan::fragment::{Digest, Fragment, Sharing};
use crate::plan::{Body, Column, Plan, indexes, literal, quote};

/// Checks and analyses the query, makes its view, capture and catalog row (status `creating`), in the caller's transaction.
///
/// # Errors
/// PostgreSQL's own for a faulty query, with the position in the user's text; 42P07 if the name is taken; 0A000 for a query
/// that cannot be a stream table; [`Error::LockNotAvailable`] where a source's lock was not to be had in `lock_timeout`.
pub async fn define<C: Conn>(c: &mut C, definition: &Definition) -> Result<StreamTableId, Error> {
    catalog::bootstrap(c).await?;
    let Planned {
        schema,
        id,
        view,
        saved,
        analysed,
    } = plan(c, definition).await?;
    let mode = definition.refresh_mode;
    let Analysed {
        mut plan,
        fragments,
        ..
    } = analysed;
    make_tables(c, id, &plan).await?;
    let row = NewRow {
        id,
        schema: &schema,
        name: &definition.name,
        view,
        schedule: &definition.schedule,
        refresh_mode: mode,
        status: "creating",
        with_data: definition.with_data,
        shares: None,
    };
    row.insert(c).await?;
    // Last, as it takes the locks on the sources.
    capture::attach(c, id, &mut plan).await?;
    make_staging(c, id, &plan).await?;
    save_plan(c, StreamTableId(id), view, &plan, &fragments).await?;
    saved.restore(c).await?;
    Ok(StreamTableId(id))
}

/// A row of the catalog, but for the plan.
pub(super) struct NewRow<'a> {
    pub id: i64,
    pub schema: &'a str,
    pub name: &'a str,
    pub view: u32,
    pub schedule: &'a str,
    pub refresh_mode: Mode,
    pub status: &'a str,
    pub with_data: bool,
    pub shares: Option<&'a Digest>,
}

impl NewRow<'_> {
    pub(super) async fn insert<C: Conn>(&self, c: &mut C) -> Result<(), Error> {
        c.query(&format!(
            "INSERT INTO pgtrickle.catalog (id, owner, target_schema, target_name, def_view, schedule, refresh_mode,
                effective_mode, status, with_data, plan, fingerprint, shares)
             VALUES ({}, pg_catalog.quote_ident(current_user)::pg_catalog.regrole, {}, {}, {}, {}, {}, '', {}, {}, '', '', {})",
            self.id,
            literal(self.schema),
            literal(self.name),
            self.view,
            literal(self.schedule),
            literal(self.refresh_mode.as_str()),
            literal(self.status),
            self.with_data,
            self.shares.map_or_else(|| "NULL".to_owned(), |digest| literal(&digest.0)),
        ))
        .await
        .map(|_| ())
    }
}

/// What is known of a stream table before anything but its view is made.
pub(super) struct Planned {
    schema: String,
    pub id: i64,
    view: u32,
    /// The caller's settings: ours are in force.
    pub saved: settings::Saved,
    pub analysed: Analysed,
}

/// Makes the definition view and the plan.
///
/// # Errors
/// As [`define`].
pub(super) async fn plan<C: Conn>(c: &mut C, definition: &Definition) -> Result<Planned, Error> {
    check_statement(&definition.query)?;
    let (schema, role) = free_name(c, definition).await?;
    let id = catalog::next_id(c).await?;
    let view = create_view(c, id, definition, &role).await?;
    let (saved, settings) = settings::pin(c, None).await?;
    let mode = definition.refresh_mode;
    let place = (id, view);
    let (analysed, _) = if definition.may_share {
        let mut sharing = share::available(c, &settings, mode, Which::All).await?;
        share::planned(c, place, &settings, mode, &mut sharing, &[], None).await?
    } else {
        let full = mode.full_reason();
        let mut sharing = Sharing::none(&settings, mode.as_str());
        share::analysed(c, place, &settings, full.as_deref(), &mut sharing, &[]).await?
    };
    refuse_full(mode, &analysed.plan)?;
    Ok(Planned {
        schema,
        id,
        view,
        saved,
        analysed,
    })
}

/// One SELECT, and nothing that is no query. What pg_query does not understand PostgreSQL itself shall judge.
fn check_statement(query: &str) -> Result<(), Error> {
    let Ok(parsed) = pg_query::parse(query, pg_query::ParserOptions::default()) else {
        return Ok(());
    };
    let mut statements = parsed
        .protobuf
        .stmts
        .iter()
        .filter_map(|s| s.stmt.as_ref().and_then(|s| s.node.as_ref()));
    match (statements.next(), statements.next()) {
        (Some(NodeEnum::SelectStmt(select)), None) if select.into_clause.is_none() => Ok(()),
        (Some(NodeEnum::SelectStmt(_)), None) => Err(Error::refused(
            "42601",
            "the query of a stream table must not contain SELECT INTO",
        )),
        _ => Err(Error::refused(
            "42601",
            "a stream table is defined by one SELECT, VALUES or TABLE statement",
        )),
    }
}

/// The schema the table goes to, and the role; the name must be free there.
async fn free_name<C: Conn>(c: &mut C, definition: &Definition) -> Result<(String, String), Error> {
    let schema = definition
        .schema
        .as_ref()
        .map_or_else(|| "pg_catalog.current_schema()".to_owned(), |s| literal(s));
    let rows = c
        .query(&format!(
            "SELECT s.name, n.oid IS NOT NULL, coalesce(pg_catalog.has_schema_privilege(n.oid, 'CREATE'), false),
                EXISTS (SELECT FROM pg_catalog.pg_class k WHERE k.relnamespace = n.oid AND k.relname = {0})
                OR EXISTS (SELECT FROM pgtrickle.catalog c WHERE c.relid IS NULL AND c.target_schema = s.name
                    AND c.target_name = {0}), pg_catalog.quote_ident(current_user)
             FROM (SELECT {schema}::text) s(name) LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = s.name",
            literal(&definition.name)
        ))
        .await?;
    let row = rows
        .first()
        .ok_or_else(|| Error::Internal("no row about the schema".to_owned()))?;
    let Some(name) = row.text(0) else {
        return Err(Error::refused(
            "3F000",
            "no schema has been selected to create in",
        ));
    };
    if !row.is_true(1) {
        return Err(Error::refused(
            "3F000",
            format!("schema \"{name}\" does not exist"),
        ));
    }
    if !row.is_true(2) {
        return Err(Error::refused(
            "42501",
            format!("permission denied for schema {name}"),
        ));
    }
    if row.is_true(3) {
        return Err(Error::refused(
            "42P07",
            format!("relation \"{}\" already exists", definition.name),
        ));
    }
    Ok((name.to_owned(), row.text(4).unwrap_or("<role>").to_owned()))
}

async fn create_view<C: Conn>(
    c: &mut C,
    id: i64,
    definition: &Definition,
    role: &str,
) -> Result<u32, Error> {
    let columns = if definition.columns.is_empty() {
        String::new()
    } else {
        format!(
            " ({})",
            definition
                .columns
                .iter()
                .map(|c| quote(c))
                .collect::<Vec<_>>()
                .join(", ")
        )
    };
    let prefix = format!("CREATE VIEW pgtrickle.def_{id}{columns} AS ");
    let made = c.query(&format!("{prefix}{}", definition.query)).await;
    made.map_err(|error| explain(error, prefix.chars().count(), definition, role))?;
    catalog::regclass(c, &format!("pgtrickle.def_{id}")).await
}

/// Translates an error about the view into one about the user's statement.
fn explain(error: Error, prefix: usize, definition: &Definition, role: &str) -> Error {
    let Error::Server(mut fields) = error else {
        return error;
    };
    fields.position = fields.position.and_then(|position| {
        let within = (position as usize).checked_sub(prefix)?;
        u32::try_from(within + definition.query_offset).ok()
    });
    let message = match (fields.code.as_str(), fields.message.as_str()) {
        ("42P16", m) if m.contains("temporary") => "stream tables must not use temporary tables",
        ("0A000", m) if m.contains("data-modifying") => {
            "stream tables must not use data-modifying statements in WITH"
        }
        ("42501", m) if m.contains("schema pgtrickle") => {
            return Error::Refused(Box::new(
                ErrorFields::error(
                    "42501",
                    "permission denied to create stream tables in this database",
                )
                .hint(format!(
                    "A database administrator runs: GRANT CREATE ON SCHEMA pgtrickle TO {role};"
                )),
            ));
        }
        _ => return Error::Server(fields),
    };
    message.clone_into(&mut fields.message);
    "0A000".clone_into(&mut fields.code);
    Error::Refused(fields)
}

/// `refresh_mode = 'incremental'` is a demand.
pub(super) fn refuse_full(mode: Mode, plan: &Plan) -> Result<(), Error> {
    match plan.full_reason() {
        Some(reason) if mode == Mode::Incremental => Err(Error::Refused(Box::new(
            ErrorFields::error("0A000", "the query cannot be refreshed incrementally")
                .detail(format!("It can only be recomputed as a whole: {reason}."))
                .hint("Use refresh_mode 'auto' or 'full'."),
        ))),
        _ => Ok(()),
    }
}

/// Makes the staging tables of the result and of the stages, and the states of their groups. The stages' own tables are there.
pub(super) async fn make_tables<C: Conn>(c: &mut C, id: i64, plan: &Plan) -> Result<(), Error> {
    let mut statements = tables(&id.to_string(), &plan.body, &plan.columns);
    if !plan.is_full() && !stages::is_function_taken(c, id).await? {
        statements.extend(delta::rows_function(id));
    }
    for (i, stage) in plan.stages.iter().enumerate() {
        statements.extend(tables(
            &format!("{id}_{}", i + 1),
            &stage.body,
            &stage.columns,
        ));
        let target = stages::target(id, i + 1, stage);
        statements.push(format!("ALTER TABLE {} REPLICA IDENTITY FULL", target.name));
        statements.extend(delta::apply::index(&stage.body, &stage.columns, &target));
        statements.extend(stages::index(stage, &target));
    }
    statements.extend(plan.joined_stages(id)?);
    c.batch(&statements).await.map(|_| ())
}

fn tables(slot: &str, body: &Body, columns: &[Column]) -> Vec<String> {
    let mut statements = vec![delta::apply::out_table(slot, columns)];
    match body {
        Body::Keyed(keyed) => statements.extend(delta::state::create(slot, keyed)),
        Body::Partition(partition) => {
            statements.push(delta::state::keys_table(slot, &partition.keys));
        }
        Body::Recursive(recursive) if !recursive.all => {
            statements.extend(delta::recursion::gone_table(slot, columns));
        }
        Body::Full { .. } | Body::Linear { .. } | Body::Recursive(_) => {}
    }
    statements
}

/// Makes the tables in which changes are staged, once they are captured.
pub(super) async fn make_staging<C: Conn>(c: &mut C, id: i64, plan: &Plan) -> Result<(), Error> {
    let tables = plan.tables.iter();
    let staging = tables.filter_map(|t| Some(staging_table(id, t.buffer?, &t.columns)));
    c.batch(&staging.collect::<Vec<_>>()).await.map(|_| ())
}

/// Writes the plan, its fragments, its sources and its fingerprint to the catalog.
pub(super) async fn save_plan<C: Conn>(
    c: &mut C,
    id: StreamTableId,
    view: u32,
    plan: &Plan,
    fragments: &[Fragment],
) -> Result<(), Error> {
    c.batch(&plan.lookups(id.0)?).await?;
    let shared = indexes::of_shared(c, id.0, plan).await?;
    c.batch(&shared).await?;
    let json = serde_json::to_string(plan)
        .map_err(|e| Error::Internal(format!("cannot write a plan: {e}")))?;
    let mut statements = vec![
        format!("DELETE FROM pgtrickle.source WHERE stream_table = {id}"),
        format!(
            "UPDATE pgtrickle.catalog SET plan = {}, effective_mode = {}, reason = {}, fingerprint = {}, def_view = {view},
                fragments = {}
             WHERE id = {id}",
            literal(&json),
            literal(if plan.is_full() { "full" } else { "incremental" }),
            plan.full_reason().map_or_else(|| "NULL".to_owned(), literal),
            fingerprint::expression(view, plan),
            share::array(fragments.iter().map(|fragment| &fragment.digest))
        ),
    ];
    let views = plan.views.iter().map(|v| (*v, None));
    for (relid, buffer) in plan.tables.iter().map(|t| (t.relid, t.buffer)).chain(views) {
        statements.push(format!(
            "INSERT INTO pgtrickle.source (stream_table, owner, relid, buffer) VALUES ({id}, pg_catalog.quote_ident(current_user)::pg_catalog.regrole, {relid}, {})",
            buffer.map_or_else(|| "NULL".to_owned(), |b| b.to_string())
        ));
    }
    c.batch(&statements).await.map(|_| ())
}
