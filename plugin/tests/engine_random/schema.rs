//! The source tables and views of a case.

use crate::random::Random;
use crate::sql::{Sql, name, sql};
use crate::types::Type;

/// A column of anything that can stand in FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub ty: Type,
}

/// What can be read by name: a table, a view, a WITH query.
#[derive(Debug, Clone)]
pub struct Relation {
    pub name: String,
    pub columns: Vec<Column>,
    /// About how many rows it has.
    pub rows: usize,
}

#[derive(Debug, Clone)]
pub struct Table {
    pub relation: Relation,
    /// The primary key's columns.
    pub key: Vec<String>,
    /// Whether it has a foreign key.
    pub refers: bool,
    /// Partitions that can be written to by name.
    pub partitions: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub struct Schema {
    pub statements: Vec<Sql>,
    pub tables: Vec<Table>,
    pub views: Vec<Relation>,
}

/// A name has one type everywhere, so that NATURAL and USING always make sense.
const COLUMNS: [(usize, &str, Type, &str); 15] = [
    (6, "k", Type::Int, "int"),
    (5, "g", Type::Int, "int"),
    (3, "a b", Type::Int, "int"),
    (2, "Key", Type::Int, "smallint"),
    (2, "v", Type::Big, "bigint"),
    (5, "t", Type::Text, "text"),
    (2, "Name", Type::Text, "varchar(10)"),
    (4, "p", Type::Cents, "numeric(10,2)"),
    (2, "x", Type::Loose, "numeric"),
    (2, "ok", Type::Bool, "bool"),
    (2, "d", Type::Date, "date"),
    (2, "f", Type::Float, "float8"),
    (1, "arr", Type::Ints, "int[]"),
    (1, "j", Type::Json, "jsonb"),
    (1, "order", Type::Int, "int"),
];

const TABLES: [&str; 7] = ["a", "b", "c", "d", "T x", "Order", "q\"t"];

/// Makes two to four tables, filled.
pub fn generate(random: &mut Random) -> Schema {
    let mut schema = Schema::default();
    let mut names = TABLES.to_vec();
    for i in 0..random.between(2, 4) {
        let at = if i == 0 || random.chance(70) {
            0
        } else {
            random.below(names.len())
        };
        let table = names.remove(at);
        add_table(random, &mut schema, table);
    }
    for i in 0..schema.tables.len() {
        let rows = random.weighted(&[(1, 0), (2, 2), (4, 5), (3, 12)]);
        // One by one where some may refer to rows that are not there.
        let (inserts, each) = if schema.tables[i].refers {
            (rows, 1)
        } else {
            (rows.min(1), rows)
        };
        for _ in 0..inserts {
            let insert = insert(random, &schema.tables[i], each);
            schema
                .statements
                .push(sql![insert, " ON CONFLICT DO NOTHING"]);
        }
    }
    schema
}

fn add_table(random: &mut Random, schema: &mut Schema, table: &str) {
    let mut columns = Vec::new();
    let mut declarations = Vec::new();
    let has_id = random.chance(75);
    if has_id {
        columns.push(Column {
            name: "id".to_owned(),
            ty: Type::Int,
        });
        declarations.push("id int".to_owned());
    }
    let weights: Vec<_> = COLUMNS.iter().map(|c| (c.0, c)).collect();
    for _ in 0..random.between(2, 5) {
        let (_, column, ty, declared) = random.weighted(&weights);
        if columns.iter().all(|c: &Column| c.name != *column) {
            columns.push(Column {
                name: (*column).to_owned(),
                ty: *ty,
            });
            declarations.push(format!("{} {declared}", name(column)));
        }
    }
    let mut key = Vec::new();
    if has_id && random.chance(60) {
        key.push("id".to_owned());
        if columns.iter().any(|c| c.name == "k") && random.chance(15) {
            key.push("k".to_owned());
        }
        let list: Vec<_> = key.iter().map(|k| name(k)).collect();
        declarations.push(format!("PRIMARY KEY ({})", list.join(", ")));
    }
    let mut refers = false;
    // Only a table with a key of one column can be referred to.
    let parent = schema
        .tables
        .iter()
        .find(|t| t.key == ["id"] && t.partitions.is_empty());
    if let Some(parent) = parent
        && columns.iter().any(|c| c.name == "k")
        && !key.contains(&"k".to_owned())
        && random.chance(20)
    {
        refers = true;
        let action = random.pick(&["CASCADE", "SET NULL", "NO ACTION"]);
        declarations.push(format!(
            "FOREIGN KEY (k) REFERENCES {} ON DELETE {action} ON UPDATE CASCADE",
            name(&parent.relation.name)
        ));
    }
    let by = if key.is_empty() {
        columns[0].clone()
    } else {
        Column {
            name: "id".to_owned(),
            ty: Type::Int,
        }
    };
    let mut partitions = Vec::new();
    let sql_name = name(table);
    if matches!(by.ty, Type::Int) && random.chance(12) {
        schema.statements.push(
            format!(
                "CREATE TABLE {sql_name} ({}) PARTITION BY RANGE ({})",
                declarations.join(", "),
                name(&by.name)
            )
            .into(),
        );
        for (suffix, bounds) in [
            ("low", "FOR VALUES FROM (MINVALUE) TO (3)"),
            ("rest", "DEFAULT"),
        ] {
            let partition = format!("{}_{suffix}", table.to_lowercase().replace([' ', '"'], "_"));
            schema
                .statements
                .push(format!("CREATE TABLE {partition} PARTITION OF {sql_name} {bounds}").into());
            partitions.push(partition);
        }
    } else {
        schema
            .statements
            .push(format!("CREATE TABLE {sql_name} ({})", declarations.join(", ")).into());
    }
    if random.chance(40) {
        let column = random.pick(&columns);
        if column.ty != Type::Json {
            schema
                .statements
                .push(format!("CREATE INDEX ON {sql_name} ({})", name(&column.name)).into());
        }
    }
    schema.tables.push(Table {
        relation: Relation {
            name: table.to_owned(),
            columns,
            rows: 12,
        },
        key,
        refers,
        partitions,
    });
}

/// INSERT of so many rows.
pub fn insert(random: &mut Random, table: &Table, rows: usize) -> Sql {
    let rows = (0..rows).map(|_| row(random, table).into()).collect();
    let target = match table.partitions.first() {
        Some(partition) if random.chance(15) => partition.clone(),
        _ => name(&table.relation.name),
    };
    sql![format!("INSERT INTO {target} VALUES "), Sql::commas(rows)]
}

fn row(random: &mut Random, table: &Table) -> String {
    let values: Vec<_> = table
        .relation
        .columns
        .iter()
        .map(|column| {
            if column.name == "id" {
                random.between(1, 12).to_string()
            } else {
                column.ty.value(random, !table.key.contains(&column.name))
            }
        })
        .collect();
    format!("({})", values.join(", "))
}
