//! What a statement does, as far as it matters to where it may go, by PostgreSQL's own grammar.
//!
//! The syntax tree is looked through whole, as untyped JSON: a write counts wherever it hides, and a
//! node that is new in a PostgreSQL version is looked through, too. What cannot be parsed is taken for
//! a write.

use serde_json::Value;

use super::keys::Keys;

/// What is known of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Analysis {
    pub access: Access,
    /// The names of all functions it calls, as the server folds them, without schemas.
    pub functions: Box<[String]>,
    /// The same of operators.
    pub operators: Box<[String]>,
    /// The names of all types that something is cast to.
    pub casts: Box<[String]>,
    /// The names of all tables in it, without schemas.
    pub tables: Box<[String]>,
    pub keys: Keys,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Ends a transaction: runs wherever that is.
    None,
    /// Reads, if all the functions it calls do.
    Read,
    Write,
}

/// Nodes that write, wherever they stand.
const WRITES: [&str; 4] = ["InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"];

impl Analysis {
    /// Of a Query or Parse text. `sharding_key` is `table.column`, if shards are found by it.
    pub fn of(text: &str, sharding_key: Option<&str>) -> Self {
        Self::parse(text, sharding_key).unwrap_or_else(|| Self {
            access: Access::Write,
            functions: Box::default(),
            operators: Box::default(),
            casts: Box::default(),
            tables: Box::default(),
            keys: Keys::default(),
        })
    }

    /// The same; `None` if the text cannot be parsed.
    pub fn parse(text: &str, sharding_key: Option<&str>) -> Option<Self> {
        let parsed = pg_query::parse(text, pg_query::ParserOptions::default()).ok()?;
        let tree = serde_json::to_value(&parsed.protobuf.stmts).ok()?;
        let statements = tree.as_array().map_or(&[][..], Vec::as_slice);
        let mut seen = Seen::default();
        // A text without a statement is answered by any server, but PgCat asks the primary.
        let mut access = if statements.is_empty() {
            Access::Write
        } else {
            Access::None
        };
        for statement in statements {
            access = access.max(access_of(&statement["stmt"]));
            seen.look_through(statement);
        }
        if seen.writes {
            access = Access::Write;
        }
        let keys = sharding_key.map_or_else(Keys::default, |key| Keys::of(&tree, key));
        Some(Self {
            access,
            functions: seen.functions.into(),
            operators: seen.operators.into(),
            casts: seen.casts.into(),
            tables: seen.tables.into(),
            keys,
        })
    }
}

/// The kind of a node, and the node itself.
pub(super) fn node(value: &Value) -> Option<(&str, &Value)> {
    let (kind, inner) = value.get("node")?.as_object()?.iter().next()?;
    Some((kind, inner))
}

fn access_of(statement: &Value) -> Access {
    let Some((kind, body)) = node(statement) else {
        return Access::Write;
    };
    match kind {
        "SelectStmt" => Access::Read,
        // Without ANALYZE, too, what it explains may be refused by a standby.
        "ExplainStmt" => access_of(&body["query"]),
        "CopyStmt" => {
            let to_client = body["is_from"] == false
                && body["is_program"] == false
                && body["filename"].as_str().is_none_or(str::is_empty);
            match (to_client, body["query"].is_null()) {
                (false, _) => Access::Write,
                (true, true) => Access::Read,
                (true, false) => access_of(&body["query"]),
            }
        }
        "TransactionStmt" => transaction(body),
        _ => Access::Write,
    }
}

/// BEGIN READ ONLY is a read, unless it is serializable, which standbys refuse.
fn transaction(body: &Value) -> Access {
    use pg_query::protobuf::TransactionStmtKind as Kind;
    let kind = body["kind"].as_i64().unwrap_or(0);
    let is = |wanted: Kind| kind == i64::from(wanted as i32);
    if is(Kind::TransStmtCommit) || is(Kind::TransStmtRollback) {
        return Access::None;
    }
    if !is(Kind::TransStmtBegin) && !is(Kind::TransStmtStart) {
        return Access::Write;
    }
    let mut read_only = false;
    for option in body["options"].as_array().into_iter().flatten() {
        let Some(("DefElem", option)) = node(option) else {
            return Access::Write;
        };
        let value = option["arg"]["node"]["AConst"]["val"].as_object();
        let value = value.and_then(|value| value.values().next());
        match option["defname"].as_str() {
            Some("transaction_read_only") => {
                read_only = value.is_some_and(|value| value["ival"] == 1);
            }
            Some("transaction_isolation")
                if value.is_some_and(|value| value["sval"] == "serializable") =>
            {
                return Access::Write;
            }
            _ => (),
        }
    }
    if read_only {
        Access::Read
    } else {
        Access::Write
    }
}

#[derive(Default)]
struct Seen {
    writes: bool,
    functions: Vec<String>,
    operators: Vec<String>,
    casts: Vec<String>,
    tables: Vec<String>,
}

impl Seen {
    fn look_through(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.look_through(item)),
            Value::Object(fields) => {
                for (name, inner) in fields {
                    self.look_at(name, inner);
                    self.look_through(inner);
                }
            }
            _ => (),
        }
    }

    /// `name` is a node's kind or a field's name.
    fn look_at(&mut self, name: &str, inner: &Value) {
        match name {
            _ if WRITES.contains(&name) => self.writes = true,
            // SELECT … INTO, and FOR UPDATE and its like.
            "into_clause" => self.writes |= !inner.is_null(),
            "locking_clause" => self.writes |= inner.as_array().is_some_and(|l| !l.is_empty()),
            "FuncCall" => note(&mut self.functions, last_name(&inner["funcname"])),
            "AExpr" => match last_name(&inner["name"]) {
                "BETWEEN" | "NOT BETWEEN" | "BETWEEN SYMMETRIC" | "NOT BETWEEN SYMMETRIC" => {
                    note(&mut self.operators, "<");
                    note(&mut self.operators, "<=");
                    note(&mut self.operators, ">");
                    note(&mut self.operators, ">=");
                }
                name => note(&mut self.operators, name),
            },
            "CaseExpr" if !inner["arg"].is_null() => note(&mut self.operators, "="),
            // x op ANY (SELECT …); without a name it is IN.
            "SubLink" => {
                let name = last_name(&inner["oper_name"]);
                note(
                    &mut self.operators,
                    if name.is_empty() { "=" } else { name },
                );
            }
            "SortBy" => note(&mut self.operators, last_name(&inner["use_op"])),
            "TypeCast" => note(&mut self.casts, last_name(&inner["type_name"]["names"])),
            "RangeVar" | "relation" => {
                if let Some(table) = inner["relname"].as_str() {
                    note(&mut self.tables, table);
                }
            }
            // DROP names tables as lists of strings.
            "DropStmt" => {
                for object in inner["objects"].as_array().into_iter().flatten() {
                    note(
                        &mut self.tables,
                        last_name(&object["node"]["List"]["items"]),
                    );
                }
            }
            _ => (),
        }
    }
}

/// The last of a list of names, which is the one without its schema; empty if there is none.
fn last_name(names: &Value) -> &str {
    let last = names.as_array().and_then(|names| names.last());
    let name = last.and_then(|last| last["node"]["String"]["sval"].as_str());
    name.unwrap_or_default()
}

fn note(names: &mut Vec<String>, name: &str) {
    if !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_are_told_apart() {
        use Access::{None, Read, Write};
        let cases = [
            ("SELECT 1", Read),
            ("TABLE t", Read),
            ("VALUES (1)", Read),
            ("WITH x AS (SELECT 1) SELECT * FROM x UNION SELECT 2", Read),
            ("SELECT 1; SELECT 2", Read),
            ("EXPLAIN SELECT 1", Read),
            ("COPY t TO STDOUT", Read),
            ("COPY (SELECT 1) TO STDOUT", Read),
            ("BEGIN READ ONLY", Read),
            (
                "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
                Read,
            ),
            ("BEGIN READ ONLY; SELECT 1; COMMIT", Read),
            ("COMMIT", None),
            ("", Write),
            ("BEGIN", Write),
            ("BEGIN READ WRITE", Write),
            ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", Write),
            ("INSERT INTO t VALUES (1)", Write),
            ("SELECT 1; DELETE FROM t", Write),
            (
                "WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM x",
                Write,
            ),
            (
                "SELECT * FROM (WITH x AS (DELETE FROM t RETURNING a) SELECT * FROM x) y",
                Write,
            ),
            (
                "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE",
                Write,
            ),
            ("SELECT * FROM t FOR UPDATE", Write),
            ("SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED", Write),
            ("SELECT * FROM (SELECT * FROM t FOR SHARE) x", Write),
            ("SELECT * INTO u FROM t", Write),
            ("EXPLAIN ANALYZE INSERT INTO t VALUES (1)", Write),
            ("COPY t FROM STDIN", Write),
            ("COPY t TO '/tmp/x'", Write),
            ("COPY (DELETE FROM t RETURNING a) TO STDOUT", Write),
            ("SHOW search_path", Write),
            ("SET a.b = 1", Write),
            ("DO $$ BEGIN END $$", Write),
            ("CALL p()", Write),
            ("LISTEN x", Write),
            ("CREATE STREAM TABLE t AS SELECT 1", Write),
            ("SELECT 1 FROM", Write),
        ];
        for (text, access) in cases {
            assert_eq!(Analysis::of(text, Option::None).access, access, "{text}");
        }
    }

    #[test]
    fn functions_and_tables_are_found_anywhere() {
        let text = "WITH a AS (SELECT f1()) SELECT \"F2\"(x), count(*) FILTER (WHERE s.f3(1) > 0) FROM s.t1
                    JOIN LATERAL f4() ON f5() LEFT JOIN t2 USING (a) WHERE EXISTS (SELECT f6() FROM t3)
                    GROUP BY f7() HAVING f8() ORDER BY f9() LIMIT f10() OFFSET f11()";
        let analysis = Analysis::of(text, None);
        let mut functions = analysis.functions.to_vec();
        functions.sort_unstable();
        let expected = [
            "F2", "count", "f1", "f10", "f11", "f3", "f4", "f5", "f6", "f7", "f8", "f9",
        ];
        assert_eq!(functions, expected);
        assert_eq!(*analysis.tables, ["t1", "t2", "t3"]);
        let operators = "SELECT a + 1, b OPERATOR(s.###) 2 FROM t WHERE x IN (SELECT 1) AND y ~~ ANY (SELECT '')
                    AND z BETWEEN 1 AND 2 ORDER BY a USING <<<, c::s.money_like, CAST(d AS text)";
        let analysis = Analysis::of(operators, None);
        for name in ["+", "###", "=", "~~", "<=", "<<<"] {
            assert!(
                analysis.operators.iter().any(|n| n == name),
                "{name}: {analysis:?}"
            );
        }
        assert_eq!(*analysis.casts, ["money_like", "text"]);
        let update = Analysis::of("UPDATE s.t SET a = 1 FROM u", None);
        assert_eq!(*update.tables, ["u", "t"]);
    }
}
