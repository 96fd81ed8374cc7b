//! Rows of `pgtrickle.catalog`.

use std::collections::HashMap;

use super::StreamTableId;
use super::at_once::Batch;
use super::fingerprint;
use super::habit::Habit;
use super::look::Now;
use super::settings;
use crate::capture;
use crate::conn::{Conn, Error, Row, Statement};
use crate::delta::apply::Target;
use crate::delta::stage::{Frontier, staging};
use crate::plan::fragment::Digest;
use crate::plan::terms::{self, Olds};
use crate::plan::{Body, Column, Plan};

/// All that a refresh needs.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub id: StreamTableId,
    pub view: u32,
    pub relid: Option<u32>,
    pub schema: String,
    pub name: String,
    pub refresh_mode: String,
    pub with_data: bool,
    pub plan: Plan,
    pub fingerprint: String,
    pub frontier: Option<Frontier>,
    /// The user's table as it is called now.
    pub target: Option<Target>,
    /// The first two values of [`TARGET`].
    pub target_seen: (String, String),
    /// What no snapshot holds still, as the last refresh found it.
    pub beyond: Option<String>,
    /// What the fingerprint is made of.
    pub undigested: Option<String>,
    /// It reads other stream tables of its owner's.
    pub reads_others: bool,
    /// Why the next refresh rebuilds it, where it has no frontier any more.
    pub rebuild: Option<String>,
    /// What it is a shared stage of.
    pub shares: Option<Digest>,
    pub habit: Habit,
    /// The last refresh in one round trip.
    pub batch: Option<Batch>,
    /// Changes whenever anything in the row does.
    pub version: String,
    /// The orders of magnitude of all tables a refresh reads.
    sizes: String,
    /// Changes taken in since those were looked at; `None` where they have just been.
    unsized_changes: Option<i64>,
    /// What was found to be the delta.
    deltas: HashMap<DeltaOf, Option<String>>,
}

/// The arguments of [`Record::delta`].
type DeltaOf = (usize, Vec<u32>, Vec<bool>, Olds);

/// What a refresh from changes has found.
pub(super) struct Seen {
    /// The tables that have changed.
    pub changed: Vec<u32>,
    pub now: Now,
}

/// Deltas remembered for each stage: of many sources, any set may change.
const DELTAS: usize = 16;

/// So many changes make no table one of another size.
pub(super) const SLACK: i64 = 1000;

/// The user's table as it is called now, the names of its columns, and the rows of the result's staging table at its last
/// ANALYZE, for row `c` of the catalog, `k` of the classes and `n` of the namespaces.
pub(super) const TARGET: &str =
    "pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(k.relname) AS target,
    (SELECT pg_catalog.json_agg(a.attname ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = c.relid AND a.attnum > 0 AND NOT a.attisdropped)::text AS columns,
    (SELECT o.reltuples FROM pg_catalog.pg_class o
     WHERE o.oid = pg_catalog.to_regclass(pg_catalog.concat('pgtrickle.out_', c.id)))";

/// Where [`TARGET`] and [`OWNED`] find their rows.
pub(super) const FROM: &str =
    "pgtrickle.catalog c LEFT JOIN pg_catalog.pg_class k ON k.oid = c.relid
    LEFT JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace";

/// Whether the current role owns both the stream table and the user's table.
pub(super) const OWNED: &str = "pg_catalog.pg_get_userbyid(c.owner) = current_user
    AND pg_catalog.pg_has_role(k.relowner, 'USAGE') AND pg_catalog.pg_has_role(c.owner, k.relowner, 'MEMBER')";

const OF_SOURCE: &str = "pg_catalog.to_regclass(pg_catalog.concat('pgtrickle.";

/// The order of magnitude of a table's size, as an SQL expression.
fn magnitude(relation: &str) -> String {
    format!(
        "pg_catalog.round(pg_catalog.ln((pg_catalog.pg_relation_size({relation}) / 8192 + 1)::float8) / 1.5)"
    )
}

/// Reads a stream table's row, for other purposes than a refresh: without the sizes of tables, and so without a wait for those who
/// have them locked.
///
/// # Errors
/// 42704 if there is no such stream table.
pub(super) async fn read<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Record, Error> {
    let sql = select("c.id = $1::bigint", "''");
    let rows = c.query_kept(sql, vec![id.to_string()]).await?;
    rows.first().map_or_else(|| Err(unknown(id)), from_row)
}

/// The same, locked until the end of the transaction: nobody refreshes it or plans it anew meanwhile.
///
/// # Errors
/// As [`read`].
pub(super) async fn locked<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Record, Error> {
    c.query(&format!(
        "SELECT 1 FROM pgtrickle.catalog WHERE id = {id} FOR UPDATE"
    ))
    .await?;
    read(c, id).await
}

/// The same for a refresh, in its transaction.
///
/// # Errors
/// As [`read`].
pub(super) async fn read_sized<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Record, Error> {
    read_where(c, "c.id = $1::bigint", id.to_string())
        .await?
        .ok_or_else(|| unknown(id))
}

/// The same in a transaction of its own, that does not wait for long.
///
/// # Errors
/// As [`read`], and [`Error::LockNotAvailable`].
pub(super) async fn read_briefly<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Record, Error> {
    let [begin, timeout] = settings::begin().map(|sql| Statement::kept(sql, Vec::new()));
    let row = Statement::kept(select("c.id = $1::bigint", &sizes()), vec![id.to_string()]);
    let commit = Statement::kept("COMMIT".to_owned(), Vec::new());
    match c.run(&[begin, timeout, row, commit]).await {
        Ok(results) => {
            let row = results.get(2).and_then(|rows| rows.first());
            row.map_or_else(|| Err(unknown(id)), from_row)
        }
        Err(error) => {
            // A lost connection shows in the next statement.
            let _ = c.query("ROLLBACK").await;
            Err(error)
        }
    }
}

fn unknown(id: StreamTableId) -> Error {
    Error::refused("42704", format!("stream table {id} does not exist"))
}

/// Reads the row of the stream table that a name stands for, if the current role owns both it and the user's table.
///
/// # Errors
/// Those of the server: 42P01 in a database without stream tables.
pub(super) async fn find<C: Conn>(c: &mut C, name: String) -> Result<Option<Record>, Error> {
    let condition = format!(
        "c.relid = pg_catalog.to_regclass($1)::pg_catalog.oid AND c.shares IS NULL AND {OWNED}"
    );
    read_where(c, &condition, name).await
}

/// The sizes of the tables of the catalog's row `c`, as an SQL expression.
fn sizes() -> String {
    // What is cast here is of a type that [`crate::conn::Row`] does not read.
    let of_source = ["s.relid", &format!("{OF_SOURCE}changes_', s.buffer))::oid")].map(magnitude);
    let own = ["c.relid", &format!("{OF_SOURCE}state_', c.id))::oid")].map(magnitude);
    format!(
        "pg_catalog.concat_ws(' ', {}, (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', {}), ' ' ORDER BY s.relid)
            FROM pgtrickle.source s WHERE s.stream_table = c.id))",
        own.join(", "),
        of_source.join(", "),
    )
}

async fn read_where<C: Conn>(
    c: &mut C,
    condition: &str,
    parameter: String,
) -> Result<Option<Record>, Error> {
    let sql = select(condition, &sizes());
    let rows = c.query_kept(sql, vec![parameter]).await?;
    rows.first().map(from_row).transpose()
}

/// The query for what [`from_row`] reads.
fn select(condition: &str, sizes: &str) -> String {
    format!(
        "SELECT c.def_view::bigint, c.relid::bigint, c.target_schema, c.target_name, c.status, c.refresh_mode, c.with_data,
            c.plan, c.fingerprint, c.frontier_snapshot::text, c.frontier_xid::text, c.frontier_seq, c.frontier_cluster,
            {TARGET}, {sizes}, c.id, c.xmin::text,
            EXISTS (SELECT FROM pgtrickle.source s JOIN pgtrickle.catalog o ON o.relid = s.relid AND o.owner = c.owner
                WHERE s.stream_table = c.id),
            c.shares, c.rebuild
         FROM {FROM} WHERE {condition}"
    )
}

fn from_row(row: &Row) -> Result<Record, Error> {
    let id = StreamTableId(row.int(17).unwrap_or_default());
    let text = |i: usize| row.text(i).unwrap_or_default().to_owned();
    let broken = |what: &str| {
        Error::Internal(format!(
            "the catalog row of stream table {id} has no valid {what}"
        ))
    };
    let plan: Plan = serde_json::from_str(&text(7)).map_err(|_| broken("plan"))?;
    let frontier = match (
        row.text(9),
        row.text(10).and_then(|x| x.parse().ok()),
        row.int(11),
    ) {
        (Some(snapshot), Some(xid), Some(seq)) => Some(Frontier {
            snapshot: snapshot.to_owned(),
            xid,
            seq,
            cluster: text(12),
        }),
        _ => None,
    };
    let target = target(&row.0[13..], &plan).map_err(|_| broken("columns"))?;
    Ok(Record {
        id,
        view: row
            .int(0)
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| broken("definition"))?,
        relid: row.int(1).and_then(|n| u32::try_from(n).ok()),
        schema: text(2),
        name: text(3),
        refresh_mode: text(5),
        with_data: row.is_true(6),
        plan,
        fingerprint: text(8),
        frontier,
        target,
        target_seen: (text(13), text(14)),
        reads_others: row.is_true(19),
        rebuild: row.text(21).map(str::to_owned),
        shares: row.text(20).map(|digest| Digest(digest.to_owned())),
        beyond: None,
        undigested: None,
        habit: Habit::default(),
        batch: None,
        version: text(18),
        sizes: text(16),
        unsized_changes: None,
        deltas: HashMap::new(),
    })
}

/// The user's table from [`TARGET`].
pub(super) fn target(
    values: &[Option<String>],
    plan: &Plan,
) -> Result<Option<Target>, serde_json::Error> {
    let value = |i: usize| values.get(i).and_then(Option::as_deref);
    let Some(name) = value(0) else {
        return Ok(None);
    };
    let mut columns: Vec<String> = serde_json::from_str(value(1).unwrap_or("[]"))?;
    // Columns the user added come after ours.
    columns.truncate(plan.columns.len());
    Ok(Some(Target {
        name: name.to_owned(),
        columns,
    }))
}

impl Record {
    /// A statement of a refresh whose plan the server may keep as long as the tables stay about as large: a plan made for
    /// an empty table is ruin for a full one, and nothing else would tell the server before the next ANALYZE.
    pub(super) fn kept(&self, sql: &str, parameters: Vec<String>) -> Statement {
        // The sizes of partitions and stages are not looked at.
        let kept = self.plan.stages.is_empty() && !self.plan.tables.iter().any(|t| t.partitioned);
        Statement {
            sql: format!("/* {} */ {sql}", self.sizes),
            parameters,
            kept,
        }
    }

    /// The delta of a stage's body (from 0; after the last one the result's) after a change of these tables and of the
    /// stages before it; `None` if it does not read them.
    ///
    /// # Errors
    /// [`Error::Internal`] for a plan that cannot be read.
    pub(super) fn delta(
        &mut self,
        stage: usize,
        changed: &[u32],
        stages: &[bool],
        olds: Olds,
    ) -> Result<Option<String>, Error> {
        let key = (stage, changed.to_vec(), stages.to_vec(), olds);
        if let Some(delta) = self.deltas.get(&key) {
            return Ok(delta.clone());
        }
        let body = self.plan.stages.get(stage).map(|s| &s.body);
        let body = body.unwrap_or(&self.plan.body).linear();
        let body = body.ok_or_else(|| Error::Internal("a full plan has no delta".to_owned()))?;
        let is_changed = |relid| changed.contains(&relid);
        let terms = terms::delta(body, &self.plan.inputs(self.id.0, is_changed, stages), olds)?;
        let delta = (!terms.is_empty()).then(|| terms.join(" UNION ALL "));
        if self.deltas.len() >= DELTAS * (self.plan.stages.len() + 1) {
            self.deltas.clear();
        }
        self.deltas.insert(key, delta.clone());
        Ok(delta)
    }

    /// Takes notice of so many changes of the sources: they may have made the tables of another size than remembered.
    pub(super) async fn resize<C: Conn>(&mut self, c: &mut C, changes: i64) -> Result<(), Error> {
        self.took_in(changes);
        if self.is_outgrown() {
            let sql = format!(
                "SELECT {} FROM pgtrickle.catalog c WHERE c.id = $1::bigint",
                sizes()
            );
            let rows = c.query_kept(sql, vec![self.id.to_string()]).await?;
            let sizes = rows.first().and_then(|row| row.text(0));
            self.sizes = sizes.unwrap_or_default().to_owned();
            self.unsized_changes = Some(0);
        }
        Ok(())
    }

    /// Whether it is of an earlier refresh.
    pub(super) fn is_remembered(&self) -> bool {
        self.unsized_changes.is_some()
    }

    /// Whether the tables may be of another size by now than remembered.
    pub(super) fn is_outgrown(&self) -> bool {
        self.unsized_changes.is_some_and(|changes| changes > SLACK)
    }

    /// Counts changes.
    pub(super) fn took_in(&mut self, changes: i64) {
        if let Some(unsized_changes) = &mut self.unsized_changes {
            *unsized_changes += changes;
        }
    }

    /// A refresh has found this, if it was from changes, and been committed.
    pub(super) fn saw(&mut self, seen: Option<Box<Seen>>) {
        let Some(seen) = seen else {
            return;
        };
        let Seen { changed, now } = *seen;
        self.habit.saw(changed);
        let text = |i: usize| now.target.text(i).unwrap_or_default().to_owned();
        self.target_seen = (text(0), text(1));
        self.beyond = now.beyond;
        self.undigested = now.undigested;
        self.moved(now.frontier);
    }

    /// The refresh up to `frontier` has been committed: this is the row it left.
    pub(super) fn moved(&mut self, frontier: Frontier) {
        // A transaction's number without its epoch is what the server marks its rows with.
        self.version = (frontier.xid & u64::from(u32::MAX)).to_string();
        self.frontier = Some(frontier);
    }

    /// It will be used again without another look at the sizes of tables.
    pub(super) fn grows_old(&mut self) {
        self.unsized_changes.get_or_insert(0);
    }

    /// What users call it.
    pub(super) fn shown_name(&self) -> String {
        let target = self.target.as_ref();
        target.map_or_else(|| self.name.clone(), |target| target.name.clone())
    }

    /// The user's table.
    ///
    /// # Errors
    /// 42P01 if it was dropped.
    pub(super) fn target(&self) -> Result<&Target, Error> {
        let target = self.target.as_ref().ok_or_else(|| {
            Error::refused(
                "42P01",
                format!("the table of stream table \"{}\" was dropped", self.name),
            )
        })?;
        if target.columns.len() < self.plan.columns.len() {
            return Err(Error::refused(
                "42703",
                format!("a column of stream table \"{}\" was dropped", self.name),
            ));
        }
        Ok(target)
    }

    /// The fingerprint as it is now, as an SQL expression.
    pub(super) fn fingerprint_now(&self) -> String {
        fingerprint::expression(self.view, &self.plan)
    }

    /// What the fingerprint is made of now, as an SQL expression.
    pub(super) fn undigested_now(&self) -> String {
        fingerprint::undigested(self.view, &self.plan)
    }

    /// The fingerprint as it is now; `None` if the definition view is gone.
    pub(super) async fn sources_now<C: Conn>(&self, c: &mut C) -> Result<Option<String>, Error> {
        let sql = format!(
            "SELECT {}, EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = {} AND relkind = 'v')",
            self.fingerprint_now(),
            self.view
        );
        let rows = c.query_kept(sql, Vec::new()).await?;
        let row = rows.first().cloned().unwrap_or_default();
        Ok(row
            .is_true(1)
            .then(|| row.text(0).unwrap_or_default().to_owned()))
    }

    /// The sources whose changes are captured, and their buffers.
    pub(super) fn buffers(&self) -> impl Iterator<Item = (u32, i64)> {
        let tables = self.plan.tables.iter();
        tables.filter_map(|table| Some((table.relid, table.buffer?)))
    }

    /// The tables in which their changes are staged.
    pub(super) fn staging(&self) -> impl Iterator<Item = String> {
        self.buffers().map(|(_, b)| staging(self.id.0, b))
    }

    /// The buffers, and the columns that are in them.
    pub(super) fn captured(&self) -> Vec<(i64, &[Column])> {
        let tables = self.plan.tables.iter();
        tables
            .filter_map(|table| Some((table.buffer?, table.columns.as_slice())))
            .collect()
    }

    /// Whether more is computed than the query itself, which may do without.
    pub(super) fn is_by_parts(&self) -> bool {
        match self.plan.body {
            Body::Full { .. } => false,
            Body::Linear { .. } => !self.plan.stages.is_empty() || self.plan.reads_shared(),
            _ => true,
        }
    }

    /// `LOCK` statements for the sources and for our turn with the buffers; they take no snapshot. The latter keep
    /// [`super::cleanup_buffers`] out from before our snapshot until our commit.
    pub(super) fn locks(&self) -> Vec<String> {
        let mut statements = Vec::new();
        let tables: Vec<_> = self
            .plan
            .tables
            .iter()
            .map(crate::plan::Table::qualified)
            .collect();
        if !tables.is_empty() {
            statements.push(format!(
                "LOCK TABLE {} IN ACCESS SHARE MODE",
                tables.join(", ")
            ));
        }
        let turns: Vec<_> = self.buffers().map(|(_, b)| capture::turn(b)).collect();
        if !turns.is_empty() {
            statements.push(format!(
                "LOCK TABLE {} IN ROW EXCLUSIVE MODE",
                turns.join(", ")
            ));
        }
        statements
    }
}

/// The identity of cluster and database, as an SQL expression: a frontier is worth nothing in another.
pub(super) fn cluster(plan: &Plan) -> String {
    let database = "(SELECT d.oid::text FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())";
    if plan.settings.knows_cluster {
        format!(
            "((SELECT system_identifier FROM pg_catalog.pg_control_system())::text || '/' || {database})"
        )
    } else {
        database.to_owned()
    }
}
