//! From a statement's text to a [`Command`].

use pg_query::NodeEnum;
use pg_query::protobuf::{CreateTableAsStmt, DropBehavior, DropStmt, RangeVar, RefreshMatViewStmt};
use pgcat::plugins::ErrorFields;

use super::alter::{self, Alter};
use super::options::Options;
use super::syntax::{Borrowed, QualifiedName, Words, characters};

/// A stream-table statement, syntactically right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Alter(Alter),
    Create(Create),
    Drop(Drop),
    Refresh {
        name: QualifiedName,
        full: bool,
    },
    Show,
    Verify(QualifiedName),
    Explain {
        name: QualifiedName,
        /// Refresh, and tell what that did.
        analyze: bool,
        /// With the SQL of the deltas.
        verbose: bool,
    },
    ExplainCreate(Create),
    /// Part of the grammar, not done yet: the statement's name, for the error.
    Unsupported(&'static str),
}

/// `CREATE STREAM TABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    pub name: QualifiedName,
    pub if_not_exists: bool,
    /// Column names given, maybe fewer than the query has.
    pub columns: Vec<String>,
    pub options: Options,
    /// The defining query as the user wrote it.
    pub query: String,
    /// Characters of the statement's text before the query.
    pub query_offset: u32,
    pub with_data: bool,
}

/// `DROP STREAM TABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drop {
    pub names: Vec<QualifiedName>,
    pub if_exists: bool,
    pub cascade: bool,
}

/// Reads one statement. `None`: not a stream-table statement, PostgreSQL shall judge it.
///
/// # Errors
/// PostgreSQL's error for the same mistake, with the position in `sql`.
pub fn parse(sql: &str) -> Option<Result<Command, Box<ErrorFields>>> {
    let words = Words::new(sql);
    let command = if words.starts_with(&["create", "stream", "table"]) {
        create(sql, &words).map(Command::Create)
    } else if words.starts_with(&["alter", "stream", "table"]) {
        alter::parse(sql, &words).map(Command::Alter)
    } else if words.starts_with(&["drop", "stream", "table"]) {
        drop_tables(sql, &words).map(Command::Drop)
    } else if words.starts_with(&["refresh", "stream", "table"]) {
        refresh(sql, &words)
    } else if words.starts_with(&["show", "stream", "tables"]) {
        match words.span(3) {
            None => Ok(Command::Show),
            Some(next) => Err(Borrowed::new(sql, 0..0, "").near(next.start)),
        }
    } else if words.starts_with(&["verify", "stream", "table"]) {
        named(sql, &words, 2).map(Command::Verify)
    } else if words.starts_with(&["explain"])
        && words.contain("stream", "table")
        && explains(&words)
    {
        explain(sql, &words)
    } else {
        Ok(Command::Unsupported(unsupported(&words)?))
    };
    Some(command)
}

fn unsupported(words: &Words<'_>) -> Option<&'static str> {
    words
        .starts_with(&["create", "or", "replace", "stream", "table"])
        .then_some("CREATE OR REPLACE STREAM TABLE")
}

/// Tells `EXPLAIN … STREAM TABLE t` from `EXPLAIN SELECT … FROM stream TABLE …`, which PostgreSQL
/// refuses by itself: between `EXPLAIN` and `STREAM` there are only options and `CREATE`.
fn explains(words: &Words<'_>) -> bool {
    words.outside_parentheses("stream").is_some_and(|stream| {
        let others = [
            "select", "with", "values", "table", "insert", "update", "delete", "merge",
        ];
        others
            .iter()
            .all(|word| words.outside_parentheses(word).is_none_or(|at| at > stream))
    })
}

/// The only operand of a statement whose first words, up to number `last`, are key words.
fn named(sql: &str, words: &Words<'_>, last: isize) -> Result<QualifiedName, Box<ErrorFields>> {
    let (Some(first), Some(end)) = (words.span(0), words.span(last)) else {
        return Err(Borrowed::new(sql, 0..0, "").near(0));
    };
    let borrowed = Borrowed::new(sql, first.start..end.end, "REFRESH MATERIALIZED VIEW");
    let NodeEnum::RefreshMatViewStmt(statement) = borrowed.parse()? else {
        return Err(borrowed.near(0));
    };
    // What the borrowed grammar takes and ours does not.
    let next = words.span(last + 1).map_or(0, |word| word.start);
    let own = Words::new(sql);
    if statement.concurrent || own.ends_with(&["data"]) && own.contain("with", "data") {
        return Err(Borrowed::new(sql, 0..0, "").near(next));
    }
    if statement.skip_data {
        return Err(Borrowed::new(sql, 0..0, "").near(sql.len()));
    }
    relation(statement.relation.as_ref())
}

/// `EXPLAIN [options] STREAM TABLE name` and `EXPLAIN CREATE STREAM TABLE …`.
fn explain(sql: &str, words: &Words<'_>) -> Result<Command, Box<ErrorFields>> {
    let wrong = || Borrowed::new(sql, 0..0, "").near(0);
    let stream = words
        .outside_parentheses("stream")
        .ok_or_else(wrong)?
        .cast_signed();
    let creates = words
        .outside_parentheses("create")
        .filter(|at| at.cast_signed() < stream);
    let first = creates.map_or(stream, usize::cast_signed);
    let start = words.span(first).ok_or_else(wrong)?.start;
    // PostgreSQL reads the options.
    let head = Borrowed::new(sql, start..sql.len(), "SELECT 1");
    let NodeEnum::ExplainStmt(statement) = head.parse()? else {
        return Err(wrong());
    };
    let (mut analyze, mut verbose) = (false, false);
    for option in &statement.options {
        let Some(NodeEnum::DefElem(option)) = &option.node else {
            continue;
        };
        let on = match option.arg.as_ref().and_then(|a| a.node.as_ref()) {
            None => true,
            Some(NodeEnum::String(s)) => !matches!(s.sval.as_str(), "false" | "off"),
            Some(NodeEnum::Integer(i)) => i.ival != 0,
            Some(NodeEnum::Boolean(b)) => b.boolval,
            _ => true,
        };
        match option.defname.as_str() {
            "analyze" => analyze = on,
            "verbose" => verbose = on,
            other => {
                let message = format!("unrecognized EXPLAIN option \"{other}\"");
                let error = ErrorFields::error("42601", message);
                return Err(Box::new(
                    error.hint("Valid options are ANALYZE and VERBOSE."),
                ));
            }
        }
    }
    if creates.is_none() {
        let name = named(sql, words, stream + 1)?;
        return Ok(Command::Explain {
            name,
            analyze,
            verbose,
        });
    }
    if analyze {
        let message = "EXPLAIN ANALYZE CREATE STREAM TABLE is not supported";
        let error = ErrorFields::error("0A000", message);
        return Err(Box::new(error.hint(
            "Create the stream table, then use EXPLAIN (ANALYZE) STREAM TABLE.",
        )));
    }
    // Blanks keep the positions.
    let blanks = " ".repeat(characters(&sql[..start]) as usize);
    let text = blanks + &sql[start..];
    create(&text, &Words::new(&text)).map(Command::ExplainCreate)
}

fn create(sql: &str, words: &Words<'_>) -> Result<Create, Box<ErrorFields>> {
    let borrowed = borrow_as_view(sql, words);
    let NodeEnum::CreateTableAsStmt(statement) = borrowed.parse()? else {
        return Err(borrowed.near(0));
    };
    let CreateTableAsStmt {
        into,
        if_not_exists,
        ..
    } = *statement;
    let Some(into) = into else {
        return Err(borrowed.near(0));
    };
    for (given, clause) in [
        (&into.access_method, "USING"),
        (&into.table_space_name, "TABLESPACE"),
    ] {
        if !given.is_empty() {
            let message = format!("{clause} is not supported for stream tables");
            return Err(Box::new(ErrorFields::error("0A000", message)));
        }
    }
    let columns = into.col_names.iter().filter_map(string).collect();
    // The query reaches from the first AS outside parentheses (a name cannot be an unquoted AS, it is
    // reserved) to the trailing WITH [NO] DATA.
    let as_end = words
        .outside_parentheses("as")
        .and_then(|index| words.span(index.cast_signed()))
        .map_or(sql.len(), |span| span.end);
    let data = if words.ends_with(&["with", "no", "data"]) {
        words.span(-3)
    } else if words.ends_with(&["with", "data"]) {
        words.span(-2)
    } else {
        None
    };
    let query_end = data.map_or(sql.len(), |span| span.start);
    let query = sql.get(as_end..query_end).unwrap_or_default();
    let start = as_end + query.len() - query.trim_start().len();
    Ok(Create {
        name: relation(into.rel.as_ref())?,
        if_not_exists,
        columns,
        options: Options::from_list(&into.options)?,
        // A trailing line comment must not swallow what is put behind the query.
        query: format!("{}\n", query.trim()),
        query_offset: characters(&sql[..start]),
        with_data: !into.skip_data,
    })
}

fn drop_tables(sql: &str, words: &Words<'_>) -> Result<Drop, Box<ErrorFields>> {
    let borrowed = borrow_as_view(sql, words);
    let NodeEnum::DropStmt(statement) = borrowed.parse()? else {
        return Err(borrowed.near(0));
    };
    let DropStmt {
        objects,
        missing_ok,
        ..
    } = &statement;
    let names = objects
        .iter()
        .filter_map(parts)
        .map(QualifiedName::from_parts);
    Ok(Drop {
        names: names.collect::<Result<_, _>>()?,
        if_exists: *missing_ok,
        cascade: statement.behavior() == DropBehavior::DropCascade,
    })
}

fn refresh(sql: &str, words: &Words<'_>) -> Result<Command, Box<ErrorFields>> {
    let full = words.len() > 4 && words.ends_with(&["full"]);
    let text = match words.span(-1) {
        Some(last) if full => &sql[..last.start],
        _ => sql,
    };
    let borrowed = borrow_as_view(text, words);
    let NodeEnum::RefreshMatViewStmt(statement) = borrowed.parse()? else {
        return Err(borrowed.near(0));
    };
    let RefreshMatViewStmt {
        concurrent,
        relation: name,
        ..
    } = &statement;
    // What the borrowed grammar takes and ours does not.
    let original = Borrowed::new(sql, 0..0, "");
    if *concurrent && let Some(word) = words.span(3) {
        return Err(original.near(word.start));
    }
    for tail in [&["with", "no", "data"][..], &["with", "data"]] {
        let end = Words::new(text);
        if end.ends_with(tail)
            && let Some(word) = end.span(-(tail.len().cast_signed()))
        {
            return Err(original.near(word.start));
        }
    }
    Ok(Command::Refresh {
        name: relation(name.as_ref())?,
        full,
    })
}

/// The statement with `STREAM TABLE` (its second and third words) read as `MATERIALIZED VIEW`.
pub(super) fn borrow_as_view(sql: &str, words: &Words<'_>) -> Borrowed {
    let span = match (words.span(1), words.span(2)) {
        (Some(stream), Some(table)) => stream.start..table.end,
        _ => 0..0,
    };
    Borrowed::new(sql, span, "MATERIALIZED VIEW")
}

pub(super) fn relation(name: Option<&RangeVar>) -> Result<QualifiedName, Box<ErrorFields>> {
    let parts = name.map(|name| {
        [&name.catalogname, &name.schemaname, &name.relname]
            .into_iter()
            .filter(|part| !part.is_empty())
            .cloned()
            .collect()
    });
    QualifiedName::from_parts(parts.unwrap_or_default())
}

/// The parts of an `any_name` node.
pub(crate) fn parts(node: &pg_query::protobuf::Node) -> Option<Vec<String>> {
    match node.node.as_ref()? {
        NodeEnum::List(list) => list.items.iter().map(string).collect(),
        _ => None,
    }
}

fn string(node: &pg_query::protobuf::Node) -> Option<String> {
    match node.node.as_ref()? {
        NodeEnum::String(value) => Some(value.sval.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::alter::Action;
    use super::*;
    use crate::engine::Mode;

    fn created(sql: &str) -> Create {
        match parse(sql) {
            Some(Ok(Command::Create(create))) => create,
            other => panic!("{sql}: {other:?}"),
        }
    }

    fn error(sql: &str) -> (String, String, Option<u32>) {
        let error = parse(sql).expect("ours").expect_err(sql);
        (error.code, error.message, error.position)
    }

    #[test]
    fn create_in_full() {
        let sql = "/* é */ Create Stream\nTABLE If Not Exists \"S\".T (a, \"B\") \
                   WITH (schedule = '5s', Refresh_Mode = full) as -- é\n select '), as', 1 with no data";
        let create = created(sql);
        assert_eq!(
            create.name,
            QualifiedName {
                schema: Some("S".to_owned()),
                name: "t".to_owned()
            }
        );
        assert!(create.if_not_exists && !create.with_data);
        assert_eq!(create.columns, ["a", "B"]);
        assert_eq!(create.options.schedule.as_deref(), Some("5s"));
        assert_eq!(create.options.refresh_mode, Some(Mode::Full));
        assert_eq!(create.query, "-- é\n select '), as', 1\n");
        let from_query: String = sql.chars().skip(create.query_offset as usize).collect();
        assert!(from_query.starts_with("-- é\n select"), "{from_query}");
    }

    #[test]
    fn create_in_short() {
        let create = created("create stream table t as with x as (select 1) table x with data");
        assert_eq!(create.query, "with x as (select 1) table x\n");
        assert!(create.with_data && !create.if_not_exists);
        assert_eq!(create.options, Options::default());
        assert_eq!(
            created("create stream table t as select 1 -- x").query,
            "select 1 -- x\n"
        );
    }

    #[test]
    fn syntax_errors_point_into_the_users_text() {
        let at = |near: &str| format!("syntax error at or near \"{near}\"");
        let cases = [
            ("create stream table select as select 1", at("select"), 21),
            ("create stream  table t (a int) as select 1", at("int"), 27),
            ("create stream table é as selec 1", at("selec"), 26),
            (
                "create stream table t as select 1, , from t, t",
                at(","),
                36,
            ),
            ("create stream table t as select t t t from t", at("t"), 37),
            (
                "create stream table t as",
                "syntax error at end of input".to_owned(),
                25,
            ),
            (
                "create stream table t as select 1 with no",
                "syntax error at end of input".to_owned(),
                42,
            ),
            (
                "create stream table t as insert into x values (1)",
                at("insert"),
                26,
            ),
            (
                "create stream table t",
                "syntax error at end of input".to_owned(),
                22,
            ),
            ("drop stream table t u", at("u"), 21),
            (
                "drop stream table if exists",
                "syntax error at end of input".to_owned(),
                28,
            ),
            (
                "refresh stream table concurrently t",
                at("concurrently"),
                22,
            ),
            ("refresh stream table t with no data", at("with"), 24),
            ("refresh stream table t full full", at("full"), 24),
            ("refresh stream table full", at("full"), 22),
            (
                "refresh stream table",
                "syntax error at end of input".to_owned(),
                21,
            ),
            ("show stream tables like 'x'", at("like"), 20),
        ];
        for (sql, message, position) in cases {
            assert_eq!(
                error(sql),
                ("42601".to_owned(), message, Some(position)),
                "{sql}"
            );
        }
    }

    #[test]
    fn wrong_options() {
        for (options, code, text) in [
            ("speed = 1", "22023", "unrecognized parameter \"speed\""),
            (
                "schedule = 'live', schedule = '1s'",
                "22023",
                "parameter \"schedule\" specified more than once",
            ),
            ("schedule", "42601", "schedule requires a parameter"),
            (
                "x.schedule = '1s'",
                "22023",
                "unrecognized parameter namespace \"x\"",
            ),
            (
                "refresh_mode = 3",
                "22023",
                "invalid value for parameter \"refresh_mode\": \"3\"",
            ),
        ] {
            let (found, message, _) = error(&format!(
                "create stream table t with ({options}) as select 1"
            ));
            assert_eq!((found.as_str(), message.as_str()), (code, text));
        }
        assert_eq!(
            error("create stream table t tablespace x as select 1").0,
            "0A000"
        );
        assert_eq!(error("create stream table a.b.c as select 1").0, "0A000");
    }

    #[test]
    fn alter() {
        let altered = |sql: &str| match parse(sql) {
            Some(Ok(Command::Alter(alter))) => alter,
            other => panic!("{sql}: {other:?}"),
        };
        let action = |sql: &str| altered(sql).action;
        let live = Options {
            schedule: Some("live".to_owned()),
            refresh_mode: None,
        };
        let set = "alter stream table if exists \"S\".T set (schedule = live) -- x";
        let both = altered(set);
        assert_eq!(
            (both.name.to_string().as_str(), both.if_exists),
            ("S.t", true)
        );
        assert_eq!(both.action, Action::Set(live));
        assert_eq!(
            action("Alter Stream Table t Reset (refresh_mode);"),
            Action::Reset {
                schedule: false,
                refresh_mode: true
            }
        );
        assert_eq!(action("alter stream table t SUSPEND ;"), Action::Suspend);
        assert_eq!(action("alter stream table suspend resume"), Action::Resume);
        for (sql, table) in [
            (
                "alter /* é */ stream table t rename to resume",
                "alter /* é */        table t rename to resume",
            ),
            (
                "ALTER STREAM TABLE t SET SCHEMA s",
                "ALTER        TABLE t SET SCHEMA s",
            ),
        ] {
            assert_eq!(action(sql), Action::Table(table.to_owned()));
        }
        for (sql, code) in [
            ("alter stream table t", "42601"),
            ("alter stream table suspend", "42601"),
            ("alter stream table t set", "42601"),
            ("alter stream table t u suspend", "42601"),
            ("alter stream table t set (speed = 1)", "22023"),
            ("alter stream table t reset (speed)", "22023"),
            ("alter stream table t set (schedule = 'often')", "22023"),
            ("alter stream table t owner to x", "0A000"),
            ("alter stream table t as select 1", "0A000"),
            ("alter stream table t add column x int", "0A000"),
        ] {
            assert_eq!(error(sql).0, code, "{sql}");
        }
    }

    #[test]
    fn others() {
        assert_eq!(
            parse("DROP STREAM TABLE IF EXISTS a, b.\"C\" CASCADE"),
            Some(Ok(Command::Drop(Drop {
                names: vec![
                    QualifiedName {
                        schema: None,
                        name: "a".to_owned()
                    },
                    QualifiedName {
                        schema: Some("b".to_owned()),
                        name: "C".to_owned()
                    },
                ],
                if_exists: true,
                cascade: true,
            })))
        );
        let t = QualifiedName {
            schema: None,
            name: "t".to_owned(),
        };
        assert_eq!(
            parse("refresh stream table T /**/ FULL ; -- x"),
            Some(Ok(Command::Refresh {
                name: t.clone(),
                full: true
            }))
        );
        assert_eq!(
            parse("refresh stream table t"),
            Some(Ok(Command::Refresh {
                name: t,
                full: false
            }))
        );
        assert_eq!(parse(" Show Stream /* */ Tables "), Some(Ok(Command::Show)));
        assert_eq!(
            parse("create or replace stream table t as select 1"),
            Some(Ok(Command::Unsupported("CREATE OR REPLACE STREAM TABLE")))
        );
        let t = || QualifiedName {
            schema: Some("s".to_owned()),
            name: "t".to_owned(),
        };
        assert_eq!(
            parse("verify stream table s.t"),
            Some(Ok(Command::Verify(t())))
        );
        for (sql, analyze, verbose) in [
            ("explain stream table s.T", false, false),
            (
                "explain (analyze, verbose off) stream table s.t",
                true,
                false,
            ),
            ("Explain verbose Stream table s.t", false, true),
        ] {
            let name = t();
            let command = Command::Explain {
                name,
                analyze,
                verbose,
            };
            assert_eq!(parse(sql), Some(Ok(command)), "{sql}");
        }
        match parse("explain /* é */ create stream table t as select 1") {
            Some(Ok(Command::ExplainCreate(create))) => {
                assert_eq!(
                    (create.query.as_str(), create.query_offset),
                    ("select 1\n", 41)
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(error("explain (costs) stream table t").0, "42601");
        assert_eq!(error("verify stream table t full").0, "42601");
        assert_eq!(error("verify stream table t with data").0, "42601");
        for sql in [
            "select 1",
            "drop table t",
            "explain select * from stream table t",
            "show stream",
        ] {
            assert_eq!(parse(sql), None, "{sql}");
        }
    }
}
