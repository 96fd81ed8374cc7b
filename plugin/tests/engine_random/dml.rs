//! Batches of writes between refreshes.

use crate::random::Random;
use crate::schema::{Schema, Table, insert};
use crate::sql::{Sql, name, sql};
use crate::types::Type;

/// What happens between two refreshes.
#[derive(Debug, Clone)]
pub struct Batch {
    pub statements: Vec<Sql>,
    /// All of them in one transaction, else each in its own.
    pub together: bool,
    /// Consumed changes are cleaned up before.
    pub cleanup: bool,
    /// Taken in by recomputing: what the refreshes after it go by is then what that has left.
    pub full: bool,
}

/// Makes three to six batches.
pub fn generate(random: &mut Random, schema: &Schema) -> Vec<Batch> {
    let batches = random.between(3, 6);
    (1..=batches)
        .map(|n_th| {
            let together = random.chance(40);
            let n = random.between(1, 4);
            let statements = (0..n)
                .flat_map(|_| statement(random, schema, together))
                .collect();
            Batch {
                statements,
                together,
                cleanup: random.chance(25),
                full: random.chance(15) && n_th < batches,
            }
        })
        .collect()
}

fn statement(random: &mut Random, schema: &Schema, together: bool) -> Vec<Sql> {
    let at = random.below(schema.tables.len());
    let table = &schema.tables[at];
    let sql_name = match table.partitions.first() {
        Some(partition) if random.chance(20) => partition.clone(),
        _ => name(&table.relation.name),
    };
    let column = random.pick(&table.relation.columns).clone();
    let assigned = name(&column.name);
    let value = column.ty.value(random, !table.key.contains(&column.name));
    let kind = random.weighted(&[
        (8, 0),
        (6, 1),
        (4, 2),
        (5, 3),
        (2, 4),
        (1, 5),
        (2, 6),
        (1, 7),
        (2, 8),
        (2, 9),
        (2, 10),
        (1, 11),
        (1, 12),
        (1, 13),
    ]);
    match kind {
        0 => {
            let rows = random.between(1, 3);
            vec![sql![insert(random, table, rows), conflict(random, table)]]
        }
        1 => vec![sql![
            format!("UPDATE {sql_name} SET {assigned} = {value}"),
            condition(random, table)
        ]],
        2 => {
            // Shifts of numbers: keys overlap, groups move.
            let set = match column.ty {
                Type::Int | Type::Big | Type::Cents | Type::Loose => format!("{assigned} + 1"),
                Type::Text => format!("left({assigned} || 'b', 3)"),
                Type::Date => format!("{assigned} + 1"),
                Type::Bool => format!("NOT {assigned}"),
                _ => value,
            };
            let condition = if random.chance(40) { String::new() } else { condition(random, table) };
            vec![format!("UPDATE {sql_name} SET {assigned} = {set}{condition}").into()]
        }
        3 => vec![format!("DELETE FROM {sql_name}{}", condition(random, table)).into()],
        // One of several duplicates.
        4 => vec![
            format!(
                "DELETE FROM {sql_name} WHERE (tableoid, ctid) IN (SELECT tableoid, ctid FROM {sql_name} ORDER BY tableoid, ctid LIMIT 1)"
            )
            .into(),
        ],
        5 => vec![format!("DELETE FROM {sql_name}").into()],
        // Nothing changes.
        6 => vec![format!("UPDATE {sql_name} SET {assigned} = {assigned}").into()],
        7 => vec![format!("TRUNCATE {sql_name} CASCADE").into()],
        // Duplicates of what is there.
        8 => vec![
            format!("INSERT INTO {sql_name} SELECT * FROM {sql_name} ORDER BY tableoid, ctid LIMIT 2 ON CONFLICT DO NOTHING").into(),
        ],
        // One change undoes the other.
        9 => {
            let other = column.ty.value(random, false);
            let undo = match random.below(2) {
                0 => format!("UPDATE {sql_name} SET {assigned} = {value} WHERE {assigned} = {other}"),
                _ => format!("DELETE FROM {sql_name} WHERE {assigned} = {other}"),
            };
            let rows = random.between(1, 2);
            vec![
                insert(random, table, rows),
                format!("UPDATE {sql_name} SET {assigned} = {other} WHERE {assigned} = {value}").into(),
                undo.into(),
            ]
        }
        // By what another table holds.
        10 => {
            let other = random.pick(&schema.tables);
            let common = other.relation.columns.iter().find(|c| table.relation.columns.contains(c));
            let Some(common) = common else {
                return vec![format!("DELETE FROM {sql_name}{}", condition(random, table)).into()];
            };
            let (common, other) = (name(&common.name), name(&other.relation.name));
            vec![match random.below(2) {
                0 => format!("DELETE FROM {sql_name} x USING {other} y WHERE x.{common} = y.{common}").into(),
                _ => format!("UPDATE {sql_name} x SET {assigned} = {value} FROM {other} y WHERE x.{common} = y.{common}").into(),
            }]
        }
        // Moved and back in by one statement.
        11 => vec![
            format!(
                "WITH gone AS (DELETE FROM {sql_name}{} RETURNING *) INSERT INTO {sql_name} SELECT * FROM gone",
                condition(random, table)
            )
            .into(),
        ],
        12 if together => {
            let rows = random.between(1, 2);
            vec![
                "SAVEPOINT s".into(),
                insert(random, table, rows),
                format!("DELETE FROM {sql_name}{}", condition(random, table)).into(),
                "ROLLBACK TO s".into(),
            ]
        }
        _ => {
            let key = table.relation.columns[0].clone();
            let key_name = name(&key.name);
            let by = key.ty.value(random, false);
            vec![
                format!(
                    "MERGE INTO {sql_name} m USING (SELECT {by} AS by) s ON m.{key_name} = s.by
                     WHEN MATCHED THEN UPDATE SET {assigned} = {value} WHEN NOT MATCHED THEN INSERT ({key_name}) VALUES ({by})"
                )
                .into(),
            ]
        }
    }
}

fn conflict(random: &mut Random, table: &Table) -> String {
    let free = table
        .relation
        .columns
        .iter()
        .find(|c| !table.key.contains(&c.name));
    match free {
        Some(column) if !table.key.is_empty() && random.chance(40) => {
            let key: Vec<_> = table.key.iter().map(|k| name(k)).collect();
            let column = name(&column.name);
            format!(
                " ON CONFLICT ({}) DO UPDATE SET {column} = excluded.{column}",
                key.join(", ")
            )
        }
        _ if table.key.is_empty() || random.chance(20) => String::new(),
        _ => " ON CONFLICT DO NOTHING".to_owned(),
    }
}

/// A condition that some rows meet.
fn condition(random: &mut Random, table: &Table) -> String {
    let column = random.pick(&table.relation.columns);
    let sql = name(&column.name);
    let value = if column.name == "id" {
        random.between(1, 12).to_string()
    } else {
        column.ty.value(random, false)
    };
    match random.below(6) {
        0 => format!(" WHERE {sql} IS NULL"),
        1 => format!(" WHERE {sql} > {value}"),
        2 => format!(" WHERE {sql} < {value}"),
        3 => format!(" WHERE {sql} IS DISTINCT FROM {value}"),
        _ => format!(" WHERE {sql} = {value}"),
    }
}
