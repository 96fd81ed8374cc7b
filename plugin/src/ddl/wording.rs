//! The server's dependency errors, told in terms of stream tables.
//!
//! What protects a source is an internal view; the user has never heard of it.

use pgcat::plugins::ErrorFields;

use crate::conn::Error;
use crate::engine::Dependent;

/// The names of definition views, but for a number.
const VIEW: &str = "pgtrickle.def_";

/// 2BP01 with PostgreSQL's DETAIL and HINT.
pub(crate) fn dependents(message: String, detail: &[String]) -> Error {
    Error::Refused(Box::new(
        ErrorFields::error("2BP01", message)
            .detail(detail.join("\n"))
            .hint("Use DROP ... CASCADE to drop the dependent objects too."),
    ))
}

/// Names the stream tables in an error that names their definition views.
pub(crate) fn explain(error: Error, known: &[Dependent]) -> Error {
    let rename = |mut fields: Box<ErrorFields>| {
        fields.message = rename(&fields.message, known);
        fields.detail = fields.detail.map(|detail| rename_lines(&detail, known));
        fields
    };
    match error {
        Error::Server(fields) => Error::Server(rename(fields)),
        other => other,
    }
}

fn rename_lines(detail: &str, known: &[Dependent]) -> String {
    // Who reads a shared stage depends on the same.
    let shared = known.iter().filter(|table| table.shared);
    let views: Vec<_> = shared.map(|table| format!("{VIEW}{} ", table.id)).collect();
    detail
        .lines()
        .filter(|line| !views.iter().any(|view| line.contains(view)))
        .map(|line| rename(line, known))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Replaces `view pgtrickle.def_7` by `stream table <name>`; a translated message keeps its own word
/// for "view" in front of the name.
fn rename(text: &str, known: &[Dependent]) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(VIEW) {
        let (before, view) = rest.split_at(at);
        let digits = &view[VIEW.len()..];
        let length = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        let (number, after) = digits.split_at(length);
        let name = known.iter().find(|table| table.id.to_string() == number);
        match (
            before.strip_suffix("rule _RETURN on view "),
            before.strip_suffix("view "),
        ) {
            (Some(start), _) | (None, Some(start)) => {
                result.push_str(start);
                result.push_str("stream table ");
            }
            (None, None) => result.push_str(before),
        }
        match name {
            Some(table) => result.push_str(&table.name),
            None => result.push_str(&view[..VIEW.len() + length]),
        }
        rest = after;
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::StreamTableId;

    #[test]
    fn views_are_named_as_stream_tables() {
        let known = [Dependent {
            id: StreamTableId(12),
            schema: "public".to_owned(),
            name: "totals".to_owned(),
            relid: 1,
            shared: false,
        }];
        for (text, expected) in [
            (
                "view pgtrickle.def_12 depends on table o",
                "stream table totals depends on table o",
            ),
            ("Sicht pgtrickle.def_12 hängt ab", "Sicht totals hängt ab"),
            (
                "view pgtrickle.def_1 depends on x",
                "stream table pgtrickle.def_1 depends on x",
            ),
            ("view v depends on table o", "view v depends on table o"),
        ] {
            assert_eq!(rename(text, &known), expected);
        }
    }
}
