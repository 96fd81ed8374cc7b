//! Where the statements of a Query message begin and end.

use std::ops::Range;

use super::lexer::{self, Kind, Token};

/// The byte ranges of the statements of a Query text, in order, without their semicolons. White
/// space and comments around a statement belong to it; a statement of nothing else is left out, as
/// the server does.
///
/// A semicolon ends a statement except inside quotes and comments, inside parentheses
/// (`CREATE RULE … DO (a; b)`), and inside the `BEGIN ATOMIC … END` body of a function.
#[must_use]
pub fn split(sql: &str) -> Vec<Range<usize>> {
    let mut statements = Vec::new();
    let mut current = Current::default();
    let mut start = 0;
    for token in lexer::tokens(sql) {
        if token.kind == Kind::Symbol(b';') && current.is_complete() {
            if !current.is_empty() {
                statements.push(start..token.span.start);
            }
            start = token.span.end;
            current = Current::default();
        } else {
            current.take(sql, &token);
        }
    }
    if !current.is_empty() {
        statements.push(start..sql.len());
    }
    statements
}

/// What must be known of a statement so far to tell whether a semicolon ends it.
#[derive(Default)]
struct Current<'a> {
    tokens: usize,
    parentheses: usize,
    /// Is it `CREATE [OR REPLACE] FUNCTION | PROCEDURE`, whose body may be SQL statements?
    routine: bool,
    /// Open `BEGIN ATOMIC` and `CASE`, which `END` closes.
    blocks: usize,
    previous: &'a str,
}

impl<'a> Current<'a> {
    fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    fn is_complete(&self) -> bool {
        self.parentheses == 0 && self.blocks == 0
    }

    fn take(&mut self, sql: &'a str, token: &Token) {
        let text = &sql[token.span.clone()];
        match token.kind {
            Kind::Symbol(b'(') => self.parentheses += 1,
            Kind::Symbol(b')') => self.parentheses = self.parentheses.saturating_sub(1),
            Kind::Word => self.word(text),
            _ => {}
        }
        self.tokens += 1;
        self.previous = text;
    }

    fn word(&mut self, word: &str) {
        let is = |name: &str| word.eq_ignore_ascii_case(name);
        let after = |name: &str| self.previous.eq_ignore_ascii_case(name);
        if is("function") || is("procedure") {
            self.routine |=
                (self.tokens == 1 && after("create")) || (self.tokens == 3 && after("replace"));
        }
        if !self.routine || self.parentheses > 0 {
            return;
        }
        // `SELECT 1 AS end` and `t.case`: key words may be labels and qualified names.
        let label = after("as") || after(".");
        if is("atomic") && after("begin") && self.blocks == 0 {
            self.blocks = 1;
        } else if self.blocks > 0 && is("case") && !label {
            self.blocks += 1;
        } else if self.blocks > 0 && is("end") && !label {
            self.blocks -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn table() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            (" ;; -- c\n ; /* ; */", &[]),
            ("select 1", &["select 1"]),
            ("select 1;", &["select 1"]),
            ("select 1; ", &["select 1"]),
            (" a ;b; c ", &[" a ", "b", " c "]),
            ("/* x */ a; -- y\n b -- z", &["/* x */ a", " -- y\n b -- z"]),
            ("select ';'; select 2", &["select ';'", " select 2"]),
            (r"select '\'; select 2", &[r"select '\'", " select 2"]),
            (r"select E'\';'; select 2", &[r"select E'\';'", " select 2"]),
            (r"select U&'\0061;'; b", &[r"select U&'\0061;'", " b"]),
            ("select 'a'';'; b", &["select 'a'';'", " b"]),
            (r#"select "a;""b"; c"#, &[r#"select "a;""b""#, " c"]),
            ("do $$ a; $$; b", &["do $$ a; $$", " b"]),
            ("do $x$ a; $$ ; $x$; b", &["do $x$ a; $$ ; $x$", " b"]),
            ("select a$x$; b$x$", &["select a$x$", " b$x$"]),
            ("select $1; b", &["select $1", " b"]),
            ("/* a /* ; */ ; */ b; c", &["/* a /* ; */ ; */ b", " c"]),
            ("a --;\n;b", &["a --;\n", "b"]),
            ("a --;\r;b", &["a --;\r", "b"]),
            (
                "create rule r as on insert to t do also (a; b); c",
                &["create rule r as on insert to t do also (a; b)", " c"],
            ),
            ("select 1); b", &["select 1)", " b"]),
            (
                "create or replace function f() returns int begin atomic select case when true \
                 then 1 end; select 2 as end; end; begin; end; c",
                &[
                    "create or replace function f() returns int begin atomic select case when \
                     true then 1 end; select 2 as end; end",
                    " begin",
                    " end",
                    " c",
                ],
            ),
            (
                "CREATE PROCEDURE p() BEGIN/**/ATOMIC ; END; b",
                &["CREATE PROCEDURE p() BEGIN/**/ATOMIC ; END", " b"],
            ),
            ("begin; atomic; end", &["begin", " atomic", " end"]),
            (
                "create table function(); begin atomic; b",
                &["create table function()", " begin atomic", " b"],
            ),
            ("select 'unterminated; b", &["select 'unterminated; b"]),
            ("select 'é'; é", &["select 'é'", " é"]),
        ];
        for (sql, expected) in cases {
            let found: Vec<&str> = split(sql).into_iter().map(|range| &sql[range]).collect();
            assert_eq!(found, *expected, "{sql}");
        }
    }
}
