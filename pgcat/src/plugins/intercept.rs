//! PgCat's `intercept`: certain queries are answered with fixed rows.
//!
//! A query is recognised by its tokens, without regard to case, white space and comments.

use std::sync::Arc;

use super::{
    Action, Column, Completion, ErrorFields, LocalFuture, Plugin, PoolIdentity, ServerHandle,
    SessionView, Statement,
};
use crate::router::lexer;

pub struct Intercept;

struct Answer {
    columns: Vec<Column>,
    rows: Vec<Vec<Option<String>>>,
}

impl Plugin for Intercept {
    fn name(&self) -> &'static str {
        "intercept"
    }

    fn wants(&self, _pool: &PoolIdentity, _sql: &[u8]) -> bool {
        true
    }

    fn statement(&self, session: &SessionView<'_>, sql: &str) -> Action {
        let queries = session.settings.and_then(|table| table.get("queries"));
        let queries = queries
            .and_then(toml::Value::as_table)
            .into_iter()
            .flatten();
        for (_, query) in queries {
            let text = query.get("query").and_then(toml::Value::as_str);
            if text.is_some_and(|text| is_same(text, sql)) {
                return Action::Handle(Arc::new(Answer::read(query, session.pool)));
            }
        }
        Action::Allow
    }
}

fn is_same(a: &str, b: &str) -> bool {
    let words = |text| {
        lexer::tokens(text)
            .map(|token| &text[token.span])
            .filter(|token| *token != ";")
    };
    let (mut a, mut b) = (words(a), words(b));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if a.eq_ignore_ascii_case(b) => (),
            _ => return false,
        }
    }
}

impl Answer {
    fn read(query: &toml::Value, pool: &PoolIdentity) -> Self {
        let columns = rows(query, "schema").map(|column| Column {
            name: column.first().copied().unwrap_or_default().to_owned(),
            type_oid: oid(column.get(1).copied().unwrap_or_default()),
        });
        let value = |value: &&str| {
            let value = value
                .replace("${USER}", &pool.user)
                .replace("${DATABASE}", &pool.database);
            (!value.is_empty()).then_some(value)
        };
        Self {
            columns: columns.collect(),
            rows: rows(query, "result")
                .map(|row| row.iter().map(value).collect())
                .collect(),
        }
    }
}

/// An array of arrays of strings; the configuration has been checked for that.
fn rows<'a>(query: &'a toml::Value, name: &str) -> impl Iterator<Item = Vec<&'a str>> {
    let rows = query.get(name).and_then(toml::Value::as_array);
    rows.into_iter().flatten().map(|row| {
        let values = row.as_array().into_iter().flatten();
        values.filter_map(toml::Value::as_str).collect()
    })
}

/// The types PgCat knows; all others are `any` there.
fn oid(name: &str) -> u32 {
    match name {
        "text" => 25,
        "anyarray" => 2277,
        "oid" => 26,
        "bool" => 16,
        "int4" => 23,
        _ => 2276,
    }
}

impl Statement for Answer {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn execute<'a>(
        &'a self,
        _server: &'a mut ServerHandle<'_>,
    ) -> LocalFuture<'a, Result<Completion, Box<ErrorFields>>> {
        Box::pin(async {
            Ok(Completion {
                rows: self.rows.clone(),
                tag: format!("SELECT {}", self.rows.len()),
            })
        })
    }
}
