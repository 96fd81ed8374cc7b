//! Indexes that refreshes miss: a change of one table reaches another by the columns they are joined by. And whether a row of
//! a recursion without duplicates is still found is asked by the columns that are shown.

use super::{Plan, Table, affected, quote};
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
    let wanted = wanted(id, plan)?.into_iter();
    let mut missing = Vec::new();
    for (input, columns) in wanted.filter(|(input, _)| plan.tables[*input].shared.is_none()) {
        let table = &plan.tables[input];
        let condition = format!("k.reltuples >= {BIG}");
        if is_indexed(c, table, &columns, &condition).await? {
            continue;
        }
        // In the order in which they are joined.
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

/// CREATE INDEX statements for the shared stages that are joined by equality and have no index for it.
///
/// # Errors
/// Those of the server.
pub(crate) async fn of_shared<C: Conn>(
    c: &mut C,
    id: i64,
    plan: &Plan,
) -> Result<Vec<String>, Error> {
    if !plan.reads_shared() {
        return Ok(Vec::new());
    }
    let mut statements = Vec::new();
    for (input, columns) in wanted(id, plan)? {
        let table = &plan.tables[input];
        let columns = table.columns.iter().filter(|c| columns.contains(&c.attnum));
        // One is enough to find few rows by; hash indexes have no more.
        let Some(column) = columns.into_iter().find(|c| c.hashable) else {
            continue;
        };
        if table.shared.is_some() && !is_indexed(c, table, &[column.attnum], "true").await? {
            let statement = format!(
                "CREATE INDEX ON {} USING {} ({})",
                table.qualified(),
                column.index_method(),
                quote(&column.name)
            );
            if !statements.contains(&statement) {
                statements.push(statement);
            }
        }
    }
    Ok(statements)
}

/// Whether a table has an index that starts with one of these columns, or does not need one, as it is not as the condition on its
/// `pg_class` row `k` says.
async fn is_indexed<C: Conn>(
    c: &mut C,
    table: &Table,
    columns: &[i32],
    condition: &str,
) -> Result<bool, Error> {
    let list: Vec<_> = columns.iter().map(i32::to_string).collect();
    let rows = c
        .query(&format!(
            "SELECT {condition} AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                WHERE i.indrelid = k.oid AND i.indisvalid AND i.indkey[0] = ANY (ARRAY[{}]::pg_catalog.int2[]))
             FROM pg_catalog.pg_class k WHERE k.oid = {}",
            list.join(", "),
            table.relid
        ))
        .await?;
    Ok(!rows.first().is_some_and(|r| r.is_true(0)))
}

/// The tables that are joined by equality, and the columns by which they are.
fn wanted(id: i64, plan: &Plan) -> Result<Vec<(usize, Vec<i32>)>, Error> {
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
    Ok(wanted)
}
