//! The hidden tables between the sources and the result.

use crate::conn::Error;
use crate::delta::apply::{self, Target};
use crate::delta::state::{self, Onto};
use crate::delta::{computed, rows_name};
use crate::plan::cut::{from_ctes, reads_any, stage_name, stage_table};
use crate::plan::{Body, Column, Partition, Plan, Stage, quote};

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

/// What a stream table has in `pgtrickle` besides its definition view: a list for DROP TABLE IF EXISTS.
pub(super) fn tables(id: i64, plan: &Plan) -> String {
    let mut names = vec![
        format!("pgtrickle.out_{id}"),
        format!("pgtrickle.state_{id}"),
        format!("pgtrickle.keys_{id}"),
    ];
    for n in 1..=plan.stages.len() {
        names.push(stage_table(id, n));
        for kind in ["out", "state", "keys"] {
            names.push(format!("pgtrickle.{kind}_{id}_{n}"));
        }
    }
    names.join(", ")
}

/// Common table expressions that fill the stages and states, so that one statement, with one snapshot, does it all; and the query
/// for the result.
///
/// # Errors
/// [`Error::Internal`] for a plan that cannot be read.
pub(super) fn fill(id: i64, plan: &Plan, onto: Onto) -> Result<(Vec<String>, String), Error> {
    let names: Vec<_> = (1..=plan.stages.len()).map(|n| stage_name(id, n)).collect();
    let function = rows_name(id);
    // A query that reads what another part of the statement computes has to be part of it too.
    let function = |sql: &str| -> Result<_, Error> {
        let alone = plan.has_function && !reads_any(sql, &names)?;
        Ok(alone.then_some(function.as_str()))
    };
    let mut ctes = Vec::new();
    for (i, stage) in plan.stages.iter().enumerate() {
        let slot = format!("{id}_{}", i + 1);
        let columns = typed(&stage.columns, "c");
        let rows = match &stage.body {
            Body::Keyed(keyed) => {
                let body = from_ctes(&keyed.body, &names)?;
                let function = function(&keyed.body)?;
                ctes.push(state::rebuild(&slot, keyed, &body, function, onto));
                computed(&columns, &format!("SELECT * FROM result_{slot}"), None)
            }
            Body::Partition(Partition { query: sql, .. }) | Body::Linear { sql } => {
                computed(&columns, &from_ctes(sql, &names)?, function(sql)?)
            }
            Body::Recursive(recursive) => {
                let query = recursive.query(
                    &names[i],
                    stage.columns.len(),
                    &from_ctes(&recursive.base, &names)?,
                    &from_ctes(&recursive.step, &names)?,
                );
                computed(&columns, &query, None)
            }
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
                ctes.push(format!("{name} AS MATERIALIZED ({rows})"));
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
    let columns = typed(&plan.columns, "o");
    let result = match &plan.body {
        Body::Keyed(keyed) => {
            let slot = id.to_string();
            let body = from_ctes(&keyed.body, &names)?;
            let function = function(&keyed.body)?;
            ctes.push(state::rebuild(&slot, keyed, &body, function, onto));
            format!("SELECT * FROM result_{slot}")
        }
        Body::Linear { sql } if !names.is_empty() => {
            computed(&columns, &from_ctes(sql, &names)?, function(sql)?)
        }
        Body::Linear { .. } => {
            let query = format!("SELECT * FROM pgtrickle.def_{id}");
            computed(&columns, &query, function("")?)
        }
        // Under the creator's path, for which the name of no type is safe.
        _ => format!("SELECT * FROM pgtrickle.def_{id}"),
    };
    Ok((ctes, result))
}

/// Columns `prefix1…` of these types, down to their collations.
fn typed(columns: &[Column], prefix: &str) -> Vec<(String, String)> {
    let columns = columns.iter().zip(1..);
    columns
        .map(|(c, i)| {
            (
                format!("{prefix}{i}"),
                format!("{}{}", c.type_name, c.collate),
            )
        })
        .collect()
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
