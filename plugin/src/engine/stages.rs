//! The hidden tables between the sources and the result.

use crate::conn::Error;
use crate::delta::apply::{self, Target};
use crate::delta::state::{self, Onto};
use crate::plan::cut::{from_ctes, stage_name, stage_table};
use crate::plan::{Body, Plan, Stage, quote};

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
    let mut ctes = Vec::new();
    for (i, stage) in plan.stages.iter().enumerate() {
        let slot = format!("{id}_{}", i + 1);
        let rows = match &stage.body {
            Body::Keyed(keyed) => {
                ctes.push(state::rebuild(
                    &slot,
                    keyed,
                    &from_ctes(&keyed.body, &names)?,
                    onto,
                ));
                format!("SELECT * FROM result_{slot}")
            }
            Body::Partition(partition) => from_ctes(&partition.query, &names)?,
            Body::Linear { sql } => from_ctes(sql, &names)?,
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
                ctes.push(format!("{name} AS MATERIALIZED ({})", typed(stage, &rows)));
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
            ctes.push(state::rebuild(
                &slot,
                keyed,
                &from_ctes(&keyed.body, &names)?,
                onto,
            ));
            format!("SELECT * FROM result_{slot}")
        }
        Body::Linear { sql } if !names.is_empty() => from_ctes(sql, &names)?,
        _ => format!("SELECT * FROM pgtrickle.def_{id}"),
    };
    Ok((ctes, result))
}

/// A query with the columns of a stage's table, down to their collations.
fn typed(stage: &Stage, rows: &str) -> String {
    let names: Vec<_> = stage.columns.iter().map(|c| quote(&c.name)).collect();
    let typed = stage.columns.iter().zip(&names);
    let typed = typed.map(|(c, name)| format!("n.{name}::{}{} AS {name}", c.type_name, c.collate));
    format!(
        "SELECT {} FROM ({rows}) n({})",
        typed.collect::<Vec<_>>().join(", "),
        names.join(", ")
    )
}

/// ANALYZE for the stages and states.
pub(super) fn analyze(id: i64, plan: &Plan) -> Vec<String> {
    let mut statements = Vec::new();
    if let Body::Keyed(_) = plan.body {
        statements.push(format!("ANALYZE pgtrickle.state_{id}"));
    }
    for (i, stage) in plan.stages.iter().enumerate() {
        let n = i + 1;
        statements.push(format!("ANALYZE {}", stage_table(id, n)));
        if let Body::Keyed(_) = &stage.body {
            statements.push(format!("ANALYZE pgtrickle.state_{id}_{n}"));
        }
    }
    statements
}
