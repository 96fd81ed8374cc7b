//! PostgreSQL's own grammar, borrowed for our statements.
//!
//! `CREATE STREAM TABLE` has the syntax of `CREATE MATERIALIZED VIEW`, and so on: the two words that
//! differ are replaced and the result is given to PostgreSQL's parser. Identifiers, key words, options
//! and error messages are then PostgreSQL's in every corner.

use std::ops::Range;

use pg_query::NodeEnum;
use pgcat::plugins::ErrorFields;
use pgcat::router::lexer::{self, Kind};

/// A statement's text with one span replaced, so that PostgreSQL's parser takes it.
pub(super) struct Borrowed {
    text: String,
    replaced: Range<usize>,
    original: String,
}

impl Borrowed {
    /// Replaces the bytes `replaced` of `sql`.
    pub(super) fn new(sql: &str, replaced: Range<usize>, with: &str) -> Self {
        let text = [&sql[..replaced.start], with, &sql[replaced.end..]].concat();
        Self {
            text,
            replaced,
            original: sql.to_owned(),
        }
    }

    /// Parses the text as the one statement it must be.
    pub(super) fn parse(&self) -> Result<NodeEnum, Box<ErrorFields>> {
        let parsed = pg_query::parse(&self.text, 0).map_err(|error| self.explain(&error))?;
        let mut statements = parsed.protobuf.stmts.into_iter();
        match (
            statements
                .next()
                .and_then(|raw| raw.stmt)
                .and_then(|stmt| stmt.node),
            statements.next(),
        ) {
            (Some(node), None) => Ok(node),
            _ => Err(self.near(self.text.len())),
        }
    }

    /// A syntax error at the token that holds or follows byte `at` of the replaced text.
    pub(super) fn near(&self, at: usize) -> Box<ErrorFields> {
        let token = lexer::tokens(&self.text).find(|token| token.span.end > at);
        match token {
            None => self.at_end(),
            Some(token) => Box::new(
                ErrorFields::error(
                    "42601",
                    format!(
                        "syntax error at or near \"{}\"",
                        &self.text[token.span.clone()]
                    ),
                )
                .position(self.position(token.span.start)),
            ),
        }
    }

    fn at_end(&self) -> Box<ErrorFields> {
        Box::new(
            ErrorFields::error("42601", "syntax error at end of input")
                .position(characters(&self.original) + 1),
        )
    }

    /// PostgreSQL's message, with the position the parser does not give us.
    fn explain(&self, error: &pg_query::Error) -> Box<ErrorFields> {
        let pg_query::Error::Parse(message) = error else {
            return Box::new(ErrorFields::error("42601", error.to_string()));
        };
        if message.ends_with("at end of input") {
            return self.at_end();
        }
        let fields = ErrorFields::error("42601", message.clone());
        Box::new(match self.offender(message) {
            Some(at) => fields.position(self.position(at)),
            None => fields,
        })
    }

    /// Where the token is that `message` complains of: the first of that text at which the statement,
    /// cut off behind it, still fails there. (The parser is LR: what comes later changes nothing.)
    fn offender(&self, message: &str) -> Option<usize> {
        let quoted = message.split_once("at or near \"")?.1.strip_suffix('"')?;
        let candidates: Vec<Range<usize>> = lexer::tokens(&self.text)
            .map(|token| token.span)
            .filter(|span| self.text[span.start..].starts_with(quoted))
            .collect();
        let first = candidates.iter().find(|span| {
            let end = span.end.max(span.start + quoted.len());
            matches!(pg_query::parse(&self.text[..end], 0),
                Err(pg_query::Error::Parse(again)) if again == message)
        });
        first.or(candidates.last()).map(|span| span.start)
    }

    /// The character position, from 1, in the user's text of byte `at` of the replaced text.
    fn position(&self, at: usize) -> u32 {
        let grown = self.text.len() - self.original.len();
        let original = if at < self.replaced.end + grown {
            at.min(self.replaced.start)
        } else {
            at - grown
        };
        characters(&self.original[..original]) + 1
    }
}

/// The number of characters in `text`, as error positions count them.
pub(crate) fn characters(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX)
}

/// A qualified name as the user wrote it, folded as PostgreSQL folds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QualifiedName {
    pub schema: Option<String>,
    pub name: String,
}

impl QualifiedName {
    /// From the parts of an `any_name`; a third part would be a database, which must be dropped only
    /// after the server has compared it with the current one.
    pub(crate) fn from_parts(mut parts: Vec<String>) -> Result<Self, Box<ErrorFields>> {
        let improper = parts.len() > 2;
        match (parts.pop(), parts.pop()) {
            (Some(name), schema) if !improper => Ok(Self { schema, name }),
            _ => Err(Box::new(ErrorFields::error(
                "0A000",
                "cross-database references are not implemented",
            ))),
        }
    }

    /// The name as SQL, every part quoted.
    #[must_use]
    pub fn sql(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", identifier(schema), identifier(&self.name)),
            None => identifier(&self.name),
        }
    }
}

/// As PostgreSQL prints a name in messages: without quotes, parts joined by dots.
impl std::fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// `name` as a quoted SQL identifier.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `value` as an SQL string constant that means the same whatever `standard_conforming_strings` is.
#[must_use]
pub fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// The words and symbols of a statement's beginning, compared without regard to case.
pub(super) struct Words<'a> {
    sql: &'a str,
    tokens: Vec<lexer::Token>,
}

impl<'a> Words<'a> {
    /// Without the semicolons at the end.
    pub(super) fn new(sql: &'a str) -> Self {
        let mut tokens: Vec<_> = lexer::tokens(sql).collect();
        while tokens
            .pop_if(|last| last.kind == Kind::Symbol(b';'))
            .is_some()
        {}
        Self { sql, tokens }
    }

    pub(super) fn starts_with(&self, words: &[&str]) -> bool {
        self.tokens.len() >= words.len()
            && words
                .iter()
                .zip(&self.tokens)
                .all(|(word, token)| token.is_word(self.sql, word))
    }

    /// Do the statement's last tokens read `words`?
    pub(super) fn ends_with(&self, words: &[&str]) -> bool {
        self.tokens.len() >= words.len()
            && words
                .iter()
                .rev()
                .zip(self.tokens.iter().rev())
                .all(|(word, token)| token.is_word(self.sql, word))
    }

    /// Does the pair of words `first second` occur anywhere?
    pub(super) fn contain(&self, first: &str, second: &str) -> bool {
        self.tokens
            .windows(2)
            .any(|pair| pair[0].is_word(self.sql, first) && pair[1].is_word(self.sql, second))
    }

    /// The byte range of token `n`; counted from the end if `n` is negative.
    pub(super) fn span(&self, n: isize) -> Option<Range<usize>> {
        let index = if n < 0 {
            self.tokens.len().checked_add_signed(n)?
        } else {
            n.cast_unsigned()
        };
        self.tokens.get(index).map(|token| token.span.clone())
    }

    /// The index of the first token that is the word `word` outside parentheses.
    pub(super) fn outside_parentheses(&self, word: &str) -> Option<usize> {
        let mut depth = 0_usize;
        self.tokens.iter().position(|token| {
            match token.kind {
                Kind::Symbol(b'(') => depth += 1,
                Kind::Symbol(b')') => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && token.is_word(self.sql, word)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}
