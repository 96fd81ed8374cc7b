//! PgCat's `table_access`: statements that name certain tables are refused.
//!
//! The names are those the server would look up: folded, unquoted, wherever in the statement, in
//! whichever schema. A text that cannot be parsed is refused if the name stands in it at all, because
//! another plugin may understand it.

use super::{Action, ErrorFields, Plugin, PoolIdentity, SessionView};
use crate::router::analysis::Analysis;
use crate::router::lexer::{self, Kind};

pub struct TableAccess;

impl Plugin for TableAccess {
    fn name(&self) -> &'static str {
        "table_access"
    }

    fn wants(&self, _pool: &PoolIdentity, _sql: &[u8]) -> bool {
        true
    }

    fn statement(&self, session: &SessionView<'_>, sql: &str) -> Action {
        let tables = session.settings.and_then(|table| table.get("tables"));
        let tables = tables.and_then(toml::Value::as_array).into_iter().flatten();
        let denied: Vec<&str> = tables.filter_map(toml::Value::as_str).collect();
        // Most statements hold none of the names, and need no parser to say so.
        let suspect = |name: &&&str| {
            // Quoted names may be written with escapes.
            contains(sql, name) || sql.contains("U&\"") || sql.contains("u&\"")
        };
        if !denied.iter().any(|name| suspect(&name)) {
            return Action::Allow;
        }
        let named = names(sql);
        match denied
            .iter()
            .find(|name| named.iter().any(|known| known == *name))
        {
            Some(name) => Action::Deny(Box::new(ErrorFields::error(
                "58000",
                format!("permission for table \"{name}\" denied"),
            ))),
            None => Action::Allow,
        }
    }
}

/// Whether the text holds the name, in any case. A quote within it is doubled in SQL.
fn contains(sql: &str, name: &str) -> bool {
    let doubled = name.replace('"', "\"\"").to_ascii_lowercase();
    sql.to_ascii_lowercase().contains(&doubled)
}

fn names(sql: &str) -> Vec<String> {
    match Analysis::parse(sql, None) {
        Some(analysis) => analysis.tables.into_vec(),
        None => lexer::tokens(sql)
            .filter_map(|token| {
                let text = &sql[token.span.clone()];
                match token.kind {
                    Kind::Word => Some(text.to_ascii_lowercase()),
                    Kind::QuotedIdentifier => Some(text.trim_matches('"').replace("\"\"", "\"")),
                    _ => None,
                }
            })
            .collect(),
    }
}
