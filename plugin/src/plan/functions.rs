//! What a view calls, read from its stored tree: functions, operators and collations by OID, as names lie.

use std::collections::BTreeSet;

use super::inline::Reason;
use crate::conn::{Conn, Error};

/// What the stored tree of a view says.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// Operators, functions, aggregates and collations in order: two texts of one query agree in them.
    pub sequence: Vec<(&'static str, u32)>,
    pub whole_row: bool,
    pub system_column: bool,
    pub table_sample: bool,
    pub locking: bool,
    /// current_date, current_user and the like.
    pub value_function: bool,
}

/// A function, operator's function or aggregate that a view calls.
#[derive(Debug)]
pub(crate) struct Function {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub volatility: char,
    pub is_aggregate: bool,
}

const FIELDS: [&str; 5] = [
    ":opno ",
    ":funcid ",
    ":aggfnoid ",
    ":winfnoid ",
    ":inputcollid ",
];

/// Reads the stored tree of a view.
///
/// # Errors
/// Those of the server.
pub(crate) async fn tree<C: Conn>(c: &mut C, view: u32) -> Result<Tree, Error> {
    let rows = c
        .query(&format!(
            "SELECT ev_action FROM pg_rewrite WHERE ev_class = {view}"
        ))
        .await?;
    let text = rows.first().and_then(|r| r.text(0)).unwrap_or_default();
    let mut found = Vec::new();
    for field in FIELDS {
        for (at, _) in text.match_indices(field) {
            let digits: String = text[at + field.len()..]
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            if let Ok(oid) = digits.parse() {
                found.push((at, field, oid));
            }
        }
    }
    found.sort_unstable();
    Ok(Tree {
        sequence: found
            .into_iter()
            .map(|(_, field, oid)| (field, oid))
            .collect(),
        whole_row: text.contains(":varattno 0 "),
        system_column: text.contains(":varattno -"),
        table_sample: text.contains("{TABLESAMPLECLAUSE"),
        locking: text.contains("{ROWMARKCLAUSE"),
        value_function: text.contains("{SQLVALUEFUNCTION"),
    })
}

/// The functions behind these trees.
///
/// # Errors
/// Those of the server.
pub(crate) async fn called<C: Conn>(c: &mut C, trees: &[Tree]) -> Result<Vec<Function>, Error> {
    let (mut operators, mut functions) = (BTreeSet::from([0]), BTreeSet::from([0]));
    for (field, oid) in trees.iter().flat_map(|t| &t.sequence) {
        match *field {
            ":opno " => operators.insert(*oid),
            ":inputcollid " => false,
            _ => functions.insert(*oid),
        };
    }
    let list = |oids: BTreeSet<u32>| crate::capture::list(&oids.into_iter().collect::<Vec<_>>());
    let rows = c
        .query(&format!(
            "SELECT p.oid, n.nspname, p.proname, p.provolatile, p.prokind = 'a' FROM pg_proc p
             JOIN pg_namespace n ON n.oid = p.pronamespace
             WHERE p.oid IN ({}) OR p.oid IN (SELECT oprcode FROM pg_operator WHERE oid IN ({})) ORDER BY p.oid",
            list(functions),
            list(operators)
        ))
        .await?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            Some(Function {
                oid: u32::try_from(row.int(0)?).ok()?,
                schema: row.text(1)?.to_owned(),
                name: row.text(2)?.to_owned(),
                volatility: row.text(3)?.chars().next()?,
                is_aggregate: row.is_true(4),
            })
        })
        .collect())
}

impl Function {
    pub(crate) fn is_builtin(&self) -> bool {
        self.schema == "pg_catalog"
    }

    /// Why a result may change without a change of the sources, if it may.
    pub(crate) fn unsteady(&self) -> Option<Reason> {
        match self.volatility {
            'i' => None,
            's' if self.is_builtin() && is_settled(&self.name) => None,
            _ => Some(format!(
                "it calls the function {}(), whose result may change by itself",
                self.name
            )),
        }
    }
}

/// Whether a STABLE function of pg_catalog depends on nothing but settings we pin (time zone, date and interval style,
/// text search configuration, encoding).
fn is_settled(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "to_char",
        "to_date",
        "to_timestamp",
        "to_number",
        "date_trunc",
        "date_part",
        "extract",
        "timezone",
        "timestamptz",
        "timestamp",
        "date",
        "time",
        "timetz",
        "concat",
        "concat_ws",
        "format",
        "textanycat",
        "anytextcat",
        "make_timestamptz",
        "to_tsvector",
        "to_tsquery",
        "plainto_tsquery",
        "phraseto_tsquery",
        "websearch_to_tsquery",
        "ts_headline",
        "array_to_string",
        "string_to_array",
        "to_json",
        "to_jsonb",
        "row_to_json",
        "array_to_json",
        "json_build_object",
        "json_build_array",
        "jsonb_build_object",
        "jsonb_build_array",
        "json_agg",
        "jsonb_agg",
        "json_object_agg",
        "jsonb_object_agg",
        "generate_series",
        "date_add",
        "date_subtract",
        "text",
        "quote_literal",
        "quote_nullable",
        "overlaps",
        "date_bin",
        "concat_agg",
    ];
    // timestamptz_pl_interval, date_lt_timestamptz, timestamp_cmp_timestamptz: time zone only.
    let mixed = name.contains("timestamptz")
        && name.contains('_')
        && !name.ends_with("_in")
        && !name.ends_with("_recv");
    NAMES.contains(&name) || mixed
}
