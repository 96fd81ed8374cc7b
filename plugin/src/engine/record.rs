//! Rows of `pgtrickle.catalog`.

use super::StreamTableId;
use super::fingerprint;
use crate::conn::{Conn, Error, Statement};
use crate::delta::apply::Target;
use crate::delta::stage::Frontier;
use crate::plan::{Plan, literal, quote};

/// What the catalog says about a stream table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub id: StreamTableId,
    /// The user's table; `None` until it is loaded.
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
///
/// # Errors
/// Those of the server.
pub async fn by_name<C: Conn>(
    c: &mut C,
    schema: Option<&str>,
    name: &str,
) -> Result<Option<Summary>, Error> {
    let present = c
        .query(&format!(
            "SELECT {}",
            crate::catalog::present("refresh_history")
        ))
        .await?;
    if !present.first().is_some_and(|r| r.is_true(0)) {
        return Ok(None);
    }
    let qualified = schema.map(|s| format!("{}.", quote(s))).unwrap_or_default() + &quote(name);
    let pending = schema.map_or_else(
        || "c.target_schema = ANY (pg_catalog.current_schemas(false))".to_owned(),
        |s| format!("c.target_schema = {}", literal(s)),
    );
    let rows = c
        .query(&format!(
            "SELECT c.id, c.relid, coalesce(n.nspname, c.target_schema), coalesce(k.relname, c.target_name),
                pg_catalog.pg_get_userbyid(c.owner), c.schedule, c.refresh_mode, c.effective_mode, c.reason, c.status
             FROM pgtrickle.catalog c LEFT JOIN pg_catalog.pg_class k ON k.oid = c.relid
             LEFT JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace
             WHERE c.relid = pg_catalog.to_regclass({})::pg_catalog.oid AND pg_catalog.pg_has_role(c.owner, k.relowner, 'MEMBER')
                OR k.oid IS NULL AND c.target_name = {} AND {pending}",
            literal(&qualified),
            literal(name)
        ))
        .await?;
    Ok(rows.first().map(|row| {
        let text = |i| row.text(i).unwrap_or_default().to_owned();
        Summary {
            id: StreamTableId(row.int(0).unwrap_or_default()),
            relid: row.int(1).and_then(|n| u32::try_from(n).ok()),
            schema: text(2),
            name: text(3),
            owner: text(4),
            schedule: text(5),
            refresh_mode: text(6),
            effective_mode: text(7),
            reason: row.text(8).map(str::to_owned),
            status: text(9),
        }
    }))
}

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
    /// Rows of the result's staging table at its last ANALYZE.
    pub out_rows: Option<f64>,
    /// The user's table as it is called now.
    pub target: Option<Target>,
    /// The orders of magnitude of all tables a refresh reads.
    sizes: String,
}

const OF_SOURCE: &str = "pg_catalog.to_regclass(pg_catalog.concat('pgtrickle.";

/// The order of magnitude of a table's size, as an SQL expression.
fn magnitude(relation: &str) -> String {
    format!(
        "pg_catalog.round(pg_catalog.ln((pg_catalog.pg_relation_size({relation}) / 8192 + 1)::float8) / 1.5)"
    )
}

/// Reads a stream table's row.
///
/// # Errors
/// 42704 if there is no such stream table.
pub(super) async fn read<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Record, Error> {
    read_where(c, "c.id = $1::bigint", id.to_string())
        .await?
        .ok_or_else(|| Error::refused("42704", format!("stream table {id} does not exist")))
}

/// Reads the row of the stream table that a name stands for, if the current role owns both it and the user's table.
///
/// # Errors
/// Those of the server: 42P01 in a database without stream tables.
pub(super) async fn find<C: Conn>(c: &mut C, name: String) -> Result<Option<Record>, Error> {
    let condition = "c.relid = pg_catalog.to_regclass($1)::pg_catalog.oid
        AND pg_catalog.pg_get_userbyid(c.owner) = current_user AND pg_catalog.pg_has_role(k.relowner, 'USAGE')
        AND pg_catalog.pg_has_role(c.owner, k.relowner, 'MEMBER')";
    read_where(c, condition, name).await
}

async fn read_where<C: Conn>(
    c: &mut C,
    condition: &str,
    parameter: String,
) -> Result<Option<Record>, Error> {
    // What is cast here is of a type that [`crate::conn::Row`] does not read.
    let sizes = ["s.relid", &format!("{OF_SOURCE}changes_', s.buffer))::oid")].map(magnitude);
    let own = ["c.relid", &format!("{OF_SOURCE}state_', c.id))::oid")].map(magnitude);
    let sql = format!(
        "SELECT c.def_view::bigint, c.relid::bigint, c.target_schema, c.target_name, c.status, c.refresh_mode, c.with_data,
            c.plan, c.fingerprint, c.frontier_snapshot::text, c.frontier_xid::text, c.frontier_seq, c.frontier_cluster,
            pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(k.relname),
            (SELECT pg_catalog.json_agg(a.attname ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = c.relid AND a.attnum > 0 AND NOT a.attisdropped)::text,
            (SELECT o.reltuples FROM pg_catalog.pg_class o
             WHERE o.oid = pg_catalog.to_regclass(pg_catalog.concat('pgtrickle.out_', c.id))),
            pg_catalog.concat_ws(' ', {}, (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', {}), ' ' ORDER BY s.relid)
                FROM pgtrickle.source s WHERE s.stream_table = c.id)), c.id
         FROM pgtrickle.catalog c LEFT JOIN pg_catalog.pg_class k ON k.oid = c.relid
         LEFT JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace WHERE {condition}",
        own.join(", "),
        sizes.join(", "),
    );
    let rows = c.query_kept(sql, vec![parameter]).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
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
    let mut target = None;
    if let Some(name) = row.text(13) {
        let mut columns: Vec<String> =
            serde_json::from_str(row.text(14).unwrap_or("[]")).map_err(|_| broken("columns"))?;
        // Columns the user added come after ours.
        columns.truncate(plan.columns.len());
        target = Some(Target {
            name: name.to_owned(),
            columns,
        });
    }
    Ok(Some(Record {
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
        out_rows: row.text(15).and_then(|n| n.parse().ok()),
        target,
        sizes: text(16),
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

    /// `LOCK` statements for the sources and the staging tables; they take no snapshot. The lock on a staging table keeps
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
        let staging: Vec<_> = self
            .plan
            .tables
            .iter()
            .filter_map(|t| t.buffer)
            .map(|b| format!("pgtrickle.delta_{b}"))
            .collect();
        if !staging.is_empty() {
            statements.push(format!(
                "LOCK TABLE {} IN ROW EXCLUSIVE MODE",
                staging.join(", ")
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
