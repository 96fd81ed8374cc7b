//! The SQL of a refresh, from a plan.
//!
//! The tables it works with are named by a *slot*: `12` for the result of stream table 12, `12_1` for its first stage.

pub(crate) mod apply;
pub(crate) mod keyed;
pub(crate) mod partition;
pub(crate) mod recursion;
pub(crate) mod stage;
pub(crate) mod state;

use pgcat::plugins::ErrorFields;

use crate::plan::{Column, Image, literal};

/// A column's place in SQL: an expression, and how its values are told apart.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    pub expr: String,
    pub image: Image,
    pub type_name: String,
}

impl Cell {
    pub(crate) fn new(expr: impl Into<String>, column: &Column) -> Self {
        Self {
            expr: expr.into(),
            image: column.image,
            type_name: column.type_name.clone(),
        }
    }

    /// The value of a group of rows of one image.
    pub(crate) fn value(&self) -> String {
        let expr = &self.expr;
        match self.image {
            Image::Plain => expr.clone(),
            Image::Text => format!("(pg_catalog.array_agg({expr}))[1]"),
            // array_agg would make one array of more dimensions of them. The text form under the pinned settings is exact.
            Image::TextArray => format!(
                "pg_catalog.min(CASE WHEN pg_catalog.num_nulls({expr}) = 0 THEN pg_catalog.format('%s', {expr}) END)::{}",
                self.type_name
            ),
        }
    }

    fn group(&self) -> String {
        match self.image {
            Image::Plain => self.expr.clone(),
            _ => image(&self.expr),
        }
    }
}

/// The text form of a value, to tell images apart; %L tells NULL from the empty text. Under a collation of its own: it would
/// have that of the value, for which `a` and `A` may be equal.
pub(crate) fn image(expr: &str) -> String {
    format!("(pg_catalog.format('%L', {expr}) COLLATE pg_catalog.\"C\")")
}

/// `SELECT sum(w), values … FROM from GROUP BY images HAVING sum(w) <> 0`. Schemas are named: for a full plan it runs under
/// the creator's search path.
pub(crate) fn net(weight: &str, cells: &[Cell], from: &str) -> String {
    let values: String = cells.iter().map(|c| format!(", {}", c.value())).collect();
    let group = if cells.is_empty() {
        String::new()
    } else {
        format!(
            " GROUP BY {}",
            cells.iter().map(Cell::group).collect::<Vec<_>>().join(", ")
        )
    };
    format!(
        "SELECT pg_catalog.sum({weight}){values} FROM {from}{group}
         HAVING pg_catalog.sum({weight}) OPERATOR(pg_catalog.<>) 0"
    )
}

/// A query with columns of these names and types, collations included, computed by `function` if there is one: see
/// [`rows_function`].
pub(crate) fn computed(
    columns: &[(String, String)],
    query: &str,
    function: Option<&str>,
) -> String {
    if columns.is_empty() {
        return query.to_owned();
    }
    let list = |item: &dyn Fn(&(String, String)) -> String| {
        columns.iter().map(item).collect::<Vec<_>>().join(", ")
    };
    let query = format!(
        "SELECT {} FROM ({query}) n({})",
        list(&|(name, typed)| format!("n.{name}::{typed} AS {name}")),
        list(&|(name, _)| name.clone())
    );
    match function {
        Some(function) => format!(
            "SELECT * FROM {function}({}) n({})",
            literal(&query),
            list(&|(name, typed)| format!("{name} {typed}"))
        ),
        None => query,
    }
}

/// The function of a stream table that runs a query and returns its rows. PostgreSQL computes nothing in parallel within a statement
/// that writes, but for this; under the statement's own snapshot, as it is STABLE. It may do no more than its caller. (Its rows are
/// taken to be many: where they are, a nested loop over them would never end.) Not OR REPLACE: a function that is there already stays
/// its owner's, whoever replaces its body.
pub(crate) fn rows_function(id: i64) -> [String; 2] {
    let name = format!("pgtrickle.{}", rows_name(id));
    [
        format!(
            "CREATE FUNCTION {name}(query text) RETURNS SETOF record LANGUAGE plpgsql STABLE ROWS 100000
                AS 'BEGIN RETURN QUERY EXECUTE query; END'"
        ),
        format!("REVOKE ALL ON FUNCTION {name}(text) FROM PUBLIC"),
    ]
}

/// The name of [`rows_function`] in `pgtrickle`.
pub(crate) fn rows_name(id: i64) -> String {
    format!("rows_{id}")
}

/// `prefix1, prefix2, …`
pub(crate) fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (1..=count).map(|i| format!("{prefix}{i}")).collect()
}

/// An index-friendly hash of columns: of `None` if none of them can be hashed.
pub(crate) fn hash(exprs: &[String]) -> Option<String> {
    (!exprs.is_empty()).then(|| format!("hash_record_extended(ROW({}), 0)", exprs.join(", ")))
}

/// `, a, b` or nothing.
pub(crate) fn comma(names: &[String]) -> String {
    names.iter().map(|n| format!(", {n}")).collect()
}

/// An integer that cannot be had unless the condition holds: the statement fails then, and so does all after it in its
/// transaction. (PostgreSQL has no function that raises an error.) The value names the reason: see [`is_raised`].
pub(crate) fn raise_unless(condition: &str, reason: &str) -> String {
    // Of a CASE, not of a constant, which would be cast, and fail, when the statement is planned.
    format!(
        "(CASE WHEN {condition} THEN '0' ELSE {} END)::pg_catalog.int4",
        literal(reason)
    )
}

/// Whether an error is that of [`raise_unless`] for this reason.
pub(crate) fn is_raised(fields: &ErrorFields, reason: &str) -> bool {
    // invalid_text_representation; the message may be in any language, but quotes the value.
    fields.code == "22P02" && fields.message.contains(reason)
}

/// How many rows the planner takes a table to have, as an SQL expression; negative if it was never analysed. It goes by the
/// table's size now: rows that are dead since the last ANALYZE count.
pub(crate) fn estimated_rows(table: &str) -> String {
    format!(
        "(SELECT CASE WHEN relpages > 0 THEN reltuples * (pg_relation_size(oid) / 8192) / relpages ELSE reltuples END
          FROM pg_class WHERE oid = '{table}'::regclass)"
    )
}
