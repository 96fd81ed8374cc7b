//! The hidden tables between the sources and the result.

use crate::conn::{Conn, Error};
use crate::delta::apply::{self, Target};
use crate::delta::stage::staging;
use crate::delta::state::{self, Onto};
use crate::delta::{computed, rows_name};
use crate::plan::cut::{from_ctes, reads_any, stage_name, stage_table};
use crate::plan::{Body, Column, Keyed, Partition, Plan, Stage, literal, quote};

/// The table of stage `n` (from 1).
pub(super) fn target(id: i64, n: usize, stage: &Stage) -> Target {
    Target {
        name: stage_table(id, n),
        columns: stage.columns.iter().map(|c| c.name.clone()).collect(),
    }
}

/// An index by which the queries above reach a stage: they mostly ask for its keys.
pub(super) fn index(stage: &Stage, target: &Target) -> Option<String> {
    let keys = apply::keys(&stage.body, &stage.columns)?;
    let short = |i: &usize| stage.columns[*i].is_short();
    let names = || -> Vec<_> { keys.iter().map(|&i| quote(&target.columns[i])).collect() };
    if keys.iter().all(short) {
        return Some(format!(
            "CREATE INDEX ON {} ({})",
            target.name,
            names().join(", ")
        ));
    }
    match names().as_slice() {
        [name] if stage.columns[keys[0]].hashable => Some(format!(
            "CREATE INDEX ON {} USING hash ({name})",
            target.name
        )),
        _ => None,
    }
}

/// Drops what a stream table has in `pgtrickle` besides its definition view and its rows in the catalog; of these names what is the
/// current role's to drop: the plan tells more than there is, and somebody else may have put a table there.
///
/// # Errors
/// Those of the server.
pub(super) async fn drop_all<C: Conn>(c: &mut C, id: i64, plan: &Plan) -> Result<(), Error> {
    let names: Vec<_> = tables(id, plan).iter().map(|name| literal(name)).collect();
    let sql = format!(
        "SELECT pg_catalog.string_agg(t.name, ', ') FROM pg_catalog.unnest(ARRAY[{}]::pg_catalog.text[]) t(name)
         JOIN pg_catalog.pg_class k ON k.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(t.name)
         WHERE k.relkind OPERATOR(pg_catalog.=) 'r' AND pg_catalog.pg_has_role(k.relowner, 'USAGE')",
        names.join(", ")
    );
    let rows = c.query(&sql).await?;
    if let Some(found) = rows.first().and_then(|row| row.text(0)) {
        c.query(&format!("DROP TABLE {found}")).await?;
    }
    drop_function(c, id).await
}

/// The tables it may have.
fn tables(id: i64, plan: &Plan) -> Vec<String> {
    let mut names = vec![
        format!("pgtrickle.out_{id}"),
        format!("pgtrickle.state_{id}"),
        format!("pgtrickle.keys_{id}"),
    ];
    let buffers = plan.tables.iter().filter_map(|t| t.buffer);
    names.extend(buffers.map(|buffer| staging(id, buffer)));
    for n in 1..=plan.stages.len() {
        names.push(stage_table(id, n));
        for kind in ["out", "state", "keys"] {
            names.push(format!("pgtrickle.{kind}_{id}_{n}"));
        }
    }
    names
}

/// Statements that empty the stages and all states.
pub(super) fn emptied(id: i64, plan: &Plan) -> Vec<String> {
    let mut statements = Vec::new();
    if let Body::Keyed(_) = &plan.body {
        statements.push(format!("DELETE FROM pgtrickle.state_{id}"));
    }
    for (i, stage) in plan.stages.iter().enumerate() {
        let n = i + 1;
        statements.push(format!("DELETE FROM {}", stage_table(id, n)));
        if let Body::Keyed(_) = &stage.body {
            statements.push(format!("DELETE FROM pgtrickle.state_{id}_{n}"));
        }
    }
    statements
}

/// The stream table's [`rows_function`](crate::delta::rows_function), to be called by the current role. None if there is none, or
/// one of somebody else's by that name, which a call could be taken to mean.
///
/// # Errors
/// Those of the server.
pub(super) async fn function<C: Conn>(
    c: &mut C,
    id: i64,
    plan: &Plan,
) -> Result<Option<String>, Error> {
    if plan.is_full() {
        return Ok(None);
    }
    let name = rows_name(id);
    let sql = format!(
        "SELECT count(*) = 1 AND bool_and(p.proowner = c.owner AND p.pronargs = 1 AND p.proargtypes[0] = 'text'::regtype)
         FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pgtrickle.catalog c ON c.id = {id}
         WHERE n.nspname = 'pgtrickle' AND p.proname = {}",
        literal(&name)
    );
    let rows = c.query(&sql).await?;
    let usable = rows.first().is_some_and(|row| row.is_true(0));
    Ok(usable.then(|| format!("pgtrickle.{name}")))
}

/// Whether there is a function of that name, whosever it is: it is done without one then.
///
/// # Errors
/// Those of the server.
pub(super) async fn is_function_taken<C: Conn>(c: &mut C, id: i64) -> Result<bool, Error> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
            WHERE n.nspname OPERATOR(pg_catalog.=) 'pgtrickle' AND p.proname OPERATOR(pg_catalog.=) {})",
        literal(&rows_name(id))
    );
    let rows = c.query(&sql).await?;
    Ok(rows.first().is_some_and(|row| row.is_true(0)))
}

async fn drop_function<C: Conn>(c: &mut C, id: i64) -> Result<(), Error> {
    let sql = format!(
        "SELECT p.oid::pg_catalog.regprocedure::pg_catalog.text FROM pg_catalog.pg_proc p
         WHERE p.oid OPERATOR(pg_catalog.=) pg_catalog.to_regprocedure({}) AND pg_catalog.pg_has_role(p.proowner, 'USAGE')",
        literal(&format!("pgtrickle.{}(pg_catalog.text)", rows_name(id)))
    );
    let rows = c.query(&sql).await?;
    if let Some(function) = rows.first().and_then(|row| row.text(0)) {
        c.query(&format!("DROP FUNCTION {function}")).await?;
    }
    Ok(())
}

/// Common table expressions that fill the stages and states, by this [`function`] where that makes a difference, so that one
/// statement, with one snapshot, does it all; and the query for the result.
///
/// # Errors
/// [`Error::Internal`] for a plan that cannot be read.
pub(super) fn fill(
    id: i64,
    plan: &Plan,
    function: Option<&str>,
    onto: Onto,
) -> Result<(Vec<String>, String), Error> {
    let names: Vec<_> = (1..=plan.stages.len()).map(|n| stage_name(id, n)).collect();
    let grouped = |slot: &str, keyed: &Keyed| -> Result<String, Error> {
        // What reads another part of the statement has to be a part of it too.
        let function = function.filter(|_| !reads_any(&keyed.body, &names).unwrap_or(true));
        let body = from_ctes(&keyed.body, &names)?;
        Ok(state::rebuild(slot, keyed, &body, function, onto))
    };
    let mut ctes = Vec::new();
    for (i, stage) in plan.stages.iter().enumerate() {
        let slot = format!("{id}_{}", i + 1);
        let rows = match &stage.body {
            Body::Keyed(keyed) => {
                ctes.push(grouped(&slot, keyed)?);
                format!("SELECT * FROM result_{slot}")
            }
            Body::Partition(Partition { query: sql, .. }) | Body::Linear { sql } => {
                from_ctes(sql, &names)?
            }
            Body::Recursive(recursive) => recursive.query(
                &names[i],
                stage.columns.len(),
                &from_ctes(&recursive.base, &names)?,
                &from_ctes(&recursive.step, &names)?,
            ),
            Body::Full { .. } => {
                return Err(Error::Internal("a stage cannot be full".to_owned()));
            }
        };
        let name = &names[i];
        match onto {
            Onto::Empty => ctes.push(format!(
                "{name} AS (INSERT INTO {} {rows} RETURNING *)",
                stage_table(id, i + 1)
            )),
            Onto::Old => {
                let target = target(id, i + 1, stage);
                let typed = computed(&typed(&stage.columns), &rows, None);
                ctes.push(format!("{name} AS MATERIALIZED ({typed})"));
                let new = format!("SELECT * FROM {name}");
                ctes.push(apply::become_rows(
                    &slot,
                    &stage.body,
                    &stage.columns,
                    &target,
                    &new,
                ));
            }
        }
    }
    let result = match &plan.body {
        Body::Keyed(keyed) => {
            let slot = id.to_string();
            ctes.push(grouped(&slot, keyed)?);
            format!("SELECT * FROM result_{slot}")
        }
        Body::Linear { sql } if !names.is_empty() || plan.reads_shared() => from_ctes(sql, &names)?,
        _ => format!("SELECT * FROM pgtrickle.def_{id}"),
    };
    Ok((ctes, result))
}

/// Names and types of a stage's columns, down to their collations.
fn typed(columns: &[Column]) -> Vec<(String, String)> {
    let columns = columns.iter();
    columns.map(|c| (c.name.clone(), c.typed())).collect()
}

/// ANALYZE for the stages and states.
pub(super) fn analyze(id: i64, plan: &Plan) -> Vec<String> {
    let mut statements = Vec::new();
    if let Body::Keyed(_) = plan.body {
        statements.push(format!("ANALYZE (SKIP_LOCKED) pgtrickle.state_{id}"));
    }
    for (i, stage) in plan.stages.iter().enumerate() {
        let n = i + 1;
        statements.push(format!("ANALYZE (SKIP_LOCKED) {}", stage_table(id, n)));
        if let Body::Keyed(_) = &stage.body {
            statements.push(format!("ANALYZE (SKIP_LOCKED) pgtrickle.state_{id}_{n}"));
        }
    }
    statements
}
