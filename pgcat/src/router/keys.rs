//! The values of the sharding key that a statement names (`automatic_sharding_key`).
//!
//! Only what is certain counts: the key compared with `=` or `IN` to integers or parameters, in
//! conditions that must hold (AND), in INSERT's VALUES, with names and aliases resolved as the server
//! would. Otherwise the statement goes where the client's statements go.

use pg_query::protobuf::{AExprKind, BoolExprType};
use serde_json::Value;

use super::analysis::node;

/// The values found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    pub values: Vec<Key>,
    /// The statement would give rows another key, which can belong to another shard.
    pub updated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    Literal(i64),
    /// Number of a parameter, from 1.
    Parameter(usize),
}

struct Finder<'a> {
    /// `*` for any.
    table: &'a str,
    column: &'a str,
    found: Keys,
}

/// A table of a statement, by the name its columns are qualified with.
struct Table<'a> {
    name: &'a str,
    qualifier: &'a str,
}

impl Keys {
    /// The values in a list of statements. `key` is `table.column`.
    pub(super) fn of(tree: &Value, key: &str) -> Self {
        let (table, column) = key.split_once('.').unwrap_or(("*", key));
        let mut finder = Finder {
            table,
            column,
            found: Self::default(),
        };
        finder.look_through(tree);
        finder.found
    }
}

impl Finder<'_> {
    fn look_through(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.look_through(item)),
            Value::Object(fields) => {
                for (name, inner) in fields {
                    match name.as_str() {
                        "SelectStmt" | "larg" | "rarg" => self.query(inner, None, "from_clause"),
                        "UpdateStmt" => self.update(inner),
                        "DeleteStmt" => {
                            self.query(inner, inner.get("relation"), "using_clause");
                        }
                        "InsertStmt" => self.insert(inner),
                        _ => (),
                    }
                    self.look_through(inner);
                }
            }
            _ => (),
        }
    }

    fn query(&mut self, body: &Value, target: Option<&Value>, from: &str) {
        let mut tables = Vec::new();
        let mut conditions = Vec::new();
        if let Some(target) = target {
            tables.extend(table(target));
        }
        for item in body[from].as_array().into_iter().flatten() {
            self.add_item(item, &mut tables, &mut conditions);
        }
        if !body["where_clause"].is_null() {
            conditions.push(&body["where_clause"]);
        }
        for condition in conditions {
            let keys = self.required(condition, &tables);
            self.found.values.extend(keys.unwrap_or_default());
        }
    }

    fn add_item<'v>(
        &self,
        item: &'v Value,
        tables: &mut Vec<Table<'v>>,
        conditions: &mut Vec<&'v Value>,
    ) {
        match node(item) {
            Some(("RangeVar", range)) => tables.extend(table(range)),
            Some(("JoinExpr", join)) => {
                self.add_item(&join["larg"], tables, conditions);
                self.add_item(&join["rarg"], tables, conditions);
                let inner = pg_query::protobuf::JoinType::JoinInner as i32;
                // What an outer join asks for need not hold of all rows.
                if join["jointype"] == inner && !join["quals"].is_null() {
                    conditions.push(&join["quals"]);
                }
            }
            _ => (),
        }
    }

    fn update(&mut self, body: &Value) {
        self.query(body, body.get("relation"), "from_clause");
        let Some(table) = body.get("relation").and_then(table) else {
            return;
        };
        let targets = body["target_list"].as_array().into_iter().flatten();
        let mut names = targets.filter_map(|target| target["node"]["ResTarget"]["name"].as_str());
        if self.is_table(table.name) && names.any(|name| name == self.column) {
            self.found.updated = true;
        }
    }

    fn insert(&mut self, body: &Value) {
        let Some(table) = body.get("relation").and_then(table) else {
            return;
        };
        if !self.is_table(table.name) {
            return;
        }
        let columns = body["cols"].as_array().into_iter().flatten();
        let position = columns
            .map(|column| &column["node"]["ResTarget"]["name"])
            .position(|name| name == self.column);
        let Some(position) = position else {
            return;
        };
        let rows = &body["select_stmt"]["node"]["SelectStmt"]["values_lists"];
        for row in rows.as_array().into_iter().flatten() {
            let value = &row["node"]["List"]["items"][position];
            self.found.values.extend(constant(value));
        }
    }

    /// The keys of which one must be that of each row for the condition to hold.
    fn required(&self, condition: &Value, tables: &[Table<'_>]) -> Option<Vec<Key>> {
        let (kind, body) = node(condition)?;
        match kind {
            "BoolExpr" => {
                let arguments = body["args"].as_array()?.iter();
                let mut parts = arguments.map(|part| self.required(part, tables));
                if body["boolop"] == BoolExprType::AndExpr as i32 {
                    parts.flatten().reduce(|mut all, more| {
                        all.extend(more);
                        all
                    })
                } else if body["boolop"] == BoolExprType::OrExpr as i32 {
                    parts.try_fold(Vec::new(), |mut all, part| {
                        all.extend(part?);
                        Some(all)
                    })
                } else {
                    None
                }
            }
            "AExpr" => {
                let operator = body["name"].as_array()?.last()?;
                (operator["node"]["String"]["sval"] == "=").then_some(())?;
                let (left, right) = (&body["lexpr"], &body["rexpr"]);
                if body["kind"] == AExprKind::AexprIn as i32 {
                    self.is_key(left, tables).then_some(())?;
                    let items = right["node"]["List"]["items"].as_array()?;
                    return items.iter().map(constant).collect();
                }
                (body["kind"] == AExprKind::AexprOp as i32).then_some(())?;
                if self.is_key(left, tables) {
                    Some(vec![constant(right)?])
                } else if self.is_key(right, tables) {
                    Some(vec![constant(left)?])
                } else {
                    None
                }
            }
            _ => None,
        }
    }

    fn is_table(&self, name: &str) -> bool {
        self.table == "*" || self.table == name
    }

    fn is_key(&self, expression: &Value, tables: &[Table<'_>]) -> bool {
        let Some(("ColumnRef", column)) = node(expression) else {
            return false;
        };
        let fields = column["fields"].as_array().map_or(&[][..], Vec::as_slice);
        let mut names = fields
            .iter()
            .rev()
            .map(|field| field["node"]["String"]["sval"].as_str());
        if names.next() != Some(Some(self.column)) {
            return false;
        }
        match names.next() {
            // Of several tables the server alone knows which has the column.
            None => self.table == "*" || matches!(tables, [only] if only.name == self.table),
            Some(qualifier) => tables
                .iter()
                .any(|table| Some(table.qualifier) == qualifier && self.is_table(table.name)),
        }
    }
}

fn table(range: &Value) -> Option<Table<'_>> {
    let name = range["relname"].as_str()?;
    let qualifier = range["alias"]["aliasname"].as_str().unwrap_or(name);
    Some(Table { name, qualifier })
}

fn constant(expression: &Value) -> Option<Key> {
    let (kind, body) = node(expression)?;
    match kind {
        "ParamRef" => {
            let number = usize::try_from(body["number"].as_u64()?).ok()?;
            Some(Key::Parameter(number))
        }
        "TypeCast" => constant(&body["arg"]),
        "AConst" => {
            let (_, value) = body["val"].as_object()?.iter().next()?;
            if let Some(number) = value["ival"].as_i64() {
                return Some(Key::Literal(number));
            }
            // What does not fit an int4 is a Float there.
            let text = value["fval"].as_str().or(value["sval"].as_str())?;
            text.trim().parse().ok().map(Key::Literal)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::analysis::Analysis;
    use super::*;

    #[test]
    fn only_certain_keys_are_found() {
        let cases: [(&str, &[i64]); 26] = [
            ("SELECT * FROM t WHERE id = 5", &[5]),
            ("SELECT * FROM s.t WHERE 5 = t.id AND a > 3", &[5]),
            ("SELECT * FROM t AS x WHERE x.id = 5", &[5]),
            ("SELECT * FROM t WHERE id IN (5, 6)", &[5, 6]),
            ("SELECT * FROM t WHERE id = 5 OR id = 6", &[5, 6]),
            ("SELECT * FROM t WHERE id = '5'::bigint", &[5]),
            ("SELECT * FROM t WHERE id = -5000000000", &[-5_000_000_000]),
            ("SELECT * FROM t JOIN u ON t.id = 5 AND u.x = t.x", &[5]),
            ("SELECT * FROM (SELECT * FROM t WHERE id = 5) x", &[5]),
            (
                "WITH x AS (SELECT * FROM t WHERE id = 5) SELECT * FROM x",
                &[5],
            ),
            (
                "SELECT 1 FROM t WHERE id = 5 UNION SELECT 2 FROM t WHERE id = 6",
                &[5, 6],
            ),
            ("INSERT INTO t (a, id) VALUES (1, 5), (2, 6)", &[5, 6]),
            ("UPDATE t SET a = 1 WHERE id = 5", &[5]),
            ("DELETE FROM t WHERE id = 5", &[5]),
            ("SELECT * FROM t WHERE id = 5 OR a = 6", &[]),
            ("SELECT * FROM t WHERE NOT id = 5", &[]),
            ("SELECT * FROM t WHERE id > 5", &[]),
            ("SELECT * FROM t WHERE id = a", &[]),
            ("SELECT * FROM t WHERE id IN (5, a)", &[]),
            ("SELECT * FROM u WHERE id = 5", &[]),
            ("SELECT * FROM t AS x WHERE t.id = 5", &[]),
            ("SELECT * FROM t, u WHERE id = 5", &[]),
            ("SELECT * FROM t LEFT JOIN u ON t.id = 5", &[]),
            ("INSERT INTO t VALUES (5)", &[]),
            ("INSERT INTO u (id) VALUES (5)", &[]),
            ("SELECT 5", &[]),
        ];
        for (text, expected) in cases {
            let mut found: Vec<i64> = Analysis::of(text, Some("t.id"))
                .keys
                .values
                .into_iter()
                .map(|key| match key {
                    Key::Literal(value) => value,
                    Key::Parameter(number) => panic!("${number}"),
                })
                .collect();
            found.sort_unstable();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn parameters_and_updates_are_told() {
        let keys = Analysis::of("SELECT * FROM t WHERE a = $1 AND id = $2", Some("*.id")).keys;
        assert_eq!(keys.values, [Key::Parameter(2)]);
        assert!(
            Analysis::of("UPDATE t SET id = 6 WHERE id = 5", Some("t.id"))
                .keys
                .updated
        );
        assert!(
            !Analysis::of("UPDATE u SET id = 6", Some("t.id"))
                .keys
                .updated
        );
    }
}
