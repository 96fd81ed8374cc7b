//! Indexes that refreshes miss: a change of one table reaches another by the columns they are joined by. And whether a row of
//! a recursion without duplicates is still found is asked by the columns that are shown.

use super::{Plan, affected, quote};
use crate::conn::{Conn, Error};
use crate::engine::MissingIndex;

/// Rows below which a scan is no matter.
const BIG: i64 = 10_000;

/// The big sources that are joined by equality, and have no index that starts with such a column.
///
/// # Errors
/// Those of the server.
pub(crate) async fn missing<C: Conn>(
    c: &mut C,
    id: i64,
    plan: &Plan,
) -> Result<Vec<MissingIndex>, Error> {
    let inputs = plan.inputs(id, |_| true, &vec![true; plan.stages.len()]);
    let bodies = plan.stages.iter().map(|s| &s.body).chain([&plan.body]);
    let mut wanted: Vec<(usize, Vec<i32>)> = Vec::new();
    for body in bodies {
        let mut found = match body.linear() {
            Some(sql) => affected::joined(sql, &inputs)?,
            None => continue,
        };
        if let super::Body::Recursive(recursive) = body
            && !recursive.all
        {
            found.extend(affected::shown(&recursive.both, &inputs)?);
        }
        for (input, columns) in found {
            let numbers = columns.iter().filter_map(|name| {
                let column = inputs[input].columns.iter().find(|c| c.name == *name);
                column.map(|c| c.attnum)
            });
            let numbers: Vec<_> = numbers.collect();
            if input < plan.tables.len()
                && !numbers.is_empty()
                && !wanted.contains(&(input, numbers.clone()))
            {
                wanted.push((input, numbers));
            }
        }
    }
    // An index for fewer columns of the same table is one for all of them.
    let all = wanted.clone();
    wanted.retain(|(input, columns)| {
        let implies = |(i, c): &(usize, Vec<i32>)| {
            i == input && c.len() < columns.len() && c.iter().all(|n| columns.contains(n))
        };
        !all.iter().any(implies)
    });
    let mut missing = Vec::new();
    for (input, columns) in wanted {
        let table = &plan.tables[input];
        let list: Vec<_> = columns.iter().map(i32::to_string).collect();
        let rows = c
            .query(&format!(
                "SELECT k.reltuples >= {BIG} AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                    WHERE i.indrelid = k.oid AND i.indisvalid AND i.indkey[0] = ANY (ARRAY[{}]::pg_catalog.int2[]))
                 FROM pg_catalog.pg_class k WHERE k.oid = {}",
                list.join(", "),
                table.relid
            ))
            .await?;
        if !rows.first().is_some_and(|r| r.is_true(0)) {
            continue;
        }
        let names = columns.iter().filter_map(|n| {
            let column = table.columns.iter().find(|c| c.attnum == *n);
            column.map(|c| quote(&c.name))
        });
        let names: Vec<_> = names.collect();
        let found = MissingIndex {
            table: table.name.clone(),
            statement: format!(
                "CREATE INDEX ON {} ({})",
                table.qualified(),
                names.join(", ")
            ),
        };
        if !missing.contains(&found) {
            missing.push(found);
        }
    }
    Ok(missing)
}
