//! The state of the groups: its table, how rows add up to it, and the result as a function of it.

use super::{computed, hash, numbered};
use crate::plan::{Aggregate, Column, Extreme, Keyed, WeightKind, Weights};

/// Name and type of the state's columns.
fn state_columns(keyed: &Keyed) -> Vec<(String, String)> {
    let mut columns: Vec<_> = keyed
        .keys
        .iter()
        .enumerate()
        .map(|(i, c)| (format!("k{}", i + 1), c.typed()))
        .collect();
    if keyed.by_weights {
        columns.push(("n".to_owned(), "bigint".to_owned()));
    }
    for (i, aggregate) in keyed.aggregates.iter().enumerate() {
        let i = i + 1;
        match &aggregate.weights {
            Some(weights) if keyed.by_weights => {
                for part in parts(weights) {
                    columns.push((format!("g{i}_{}", part.suffix), part.type_name.to_owned()));
                }
            }
            _ => columns.push((format!("g{i}"), aggregate.type_name.clone())),
        }
    }
    columns
}

/// A number that a group keeps, and how a row adds to it.
struct Part {
    suffix: &'static str,
    type_name: &'static str,
}

fn parts(weights: &Weights) -> Vec<Part> {
    let count = Part {
        suffix: "c",
        type_name: "bigint",
    };
    match weights.kind {
        WeightKind::Count => vec![count],
        kind => {
            let mut parts = vec![
                count,
                Part {
                    suffix: "s",
                    type_name: "numeric",
                },
            ];
            if kind.is_numeric() {
                parts.push(Part {
                    suffix: "z",
                    type_name: "bigint",
                });
            }
            if kind.is_free() {
                parts.push(Part {
                    suffix: "p",
                    type_name: "bigint",
                });
                parts.push(Part {
                    suffix: "q",
                    type_name: "bigint",
                });
                parts.push(Part {
                    suffix: "h",
                    type_name: "numeric",
                });
            }
            parts
        }
    }
}

/// The statements that create the state of stream table `id`.
pub(crate) fn create(slot: &str, keyed: &Keyed) -> Vec<String> {
    let columns: Vec<_> = state_columns(keyed)
        .into_iter()
        .map(|(name, t)| format!("{name} {t}"))
        .collect();
    let mut statements = vec![
        format!(
            "CREATE TABLE pgtrickle.state_{slot} ({})",
            columns.join(", ")
        ),
        format!("ALTER TABLE pgtrickle.state_{slot} REPLICA IDENTITY FULL"),
    ];
    let keys = numbered("k", keyed.keys.len());
    if let Some(hash) = hash(&keys) {
        statements.push(format!("CREATE INDEX ON pgtrickle.state_{slot} ({hash})"));
    }
    if !keyed.by_weights || keyed.has_extremes() {
        statements.push(keys_table(slot, &keyed.keys));
    }
    statements
}

/// The table of the keys that a change touches.
pub(crate) fn keys_table(slot: &str, keys: &[Column]) -> String {
    let keys: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(i, c)| format!("k{} {}", i + 1, c.typed()))
        .collect();
    format!(
        "CREATE UNLOGGED TABLE pgtrickle.keys_{slot} ({})",
        keys.join(", ")
    )
}

/// A query for the state of all groups, from the sources as they are. Its columns are those of the state, in order.
fn full_state(keyed: &Keyed, body: &str) -> String {
    let keys = numbered("b.k", keyed.keys.len());
    let group = if keyed.grouped {
        format!(" GROUP BY {}", keys.join(", "))
    } else {
        String::new()
    };
    let mut columns = keys;
    columns.extend(sums(keyed, "b", None));
    // DISTINCT of no columns and the like: PostgreSQL has no empty GROUP BY list.
    format!(
        "SELECT {} FROM ({}) b{group}",
        columns.join(", "),
        fenced(keyed, body, false)
    )
}

/// The rows that [`sums`] adds up, `w` with their weight. Without a fence PostgreSQL writes out the expression of an argument wherever
/// it is mentioned, and that of a number is, nine times. `OFFSET 0` would be one, but also to a parallel plan.
pub(super) fn fenced(keyed: &Keyed, rows: &str, w: bool) -> String {
    let numeric = |a: &Aggregate| a.weights.as_ref().is_some_and(|w| w.kind.is_numeric());
    if !keyed.by_weights || !keyed.aggregates.iter().any(numeric) {
        return rows.to_owned();
    }
    let columns = keyed.keys.iter().chain(&keyed.args);
    let mut none: Vec<_> = columns.map(|c| format!("NULL::{}", c.typed())).collect();
    none.extend(w.then(|| "NULL::bigint".to_owned()));
    format!(
        "SELECT * FROM ({rows}) f UNION ALL SELECT {} FROM pg_catalog.pg_class WHERE false",
        none.join(", ")
    )
}

/// The expressions that make a state after its keys, over rows `row` of the body with weight `w`; `None`: each counts once. An extreme
/// is that of the rows that come.
pub(super) fn sums(keyed: &Keyed, row: &str, w: Option<&str>) -> Vec<String> {
    if !keyed.by_weights {
        return keyed.aggregates.iter().map(|a| a.call.clone()).collect();
    }
    let comes = w.map_or_else(|| "true".to_owned(), |w| format!("{w} > 0"));
    let mut sums = vec![count(w, "true")];
    for aggregate in &keyed.aggregates {
        if let Some(extreme) = &aggregate.extreme {
            sums.push(of_sign(extreme, row, &comes));
        }
        let Some(weights) = &aggregate.weights else {
            continue;
        };
        let filter = weights.filter.map(|f| format!("{row}.a{}", f + 1));
        let filter = filter.unwrap_or_else(|| "true".to_owned());
        let Some(arg) = weights.arg else {
            sums.push(count(w, &filter));
            continue;
        };
        let arg = format!("{row}.a{}", arg + 1);
        let number = |condition: &str| count(w, &format!("{filter} AND {condition}"));
        let sum = |value: &str| {
            let value = w.map_or_else(|| value.to_owned(), |w| format!("{w} * {value}"));
            format!("coalesce(sum({value}) FILTER (WHERE {filter}), 0)::numeric")
        };
        sums.push(number(&format!("num_nonnulls({arg}) > 0")));
        match weights.kind {
            WeightKind::Count => {}
            kind if kind.is_numeric() => {
                sums.push(sum(&format!(
                    "CASE WHEN {arg} IN ('NaN', 'Infinity', '-Infinity') THEN 0 ELSE {arg} END"
                )));
                sums.push(number(&format!("{arg} = 'NaN'::numeric")));
                if kind.is_free() {
                    sums.push(number(&format!("{arg} = 'Infinity'::numeric")));
                    sums.push(number(&format!("{arg} = '-Infinity'::numeric")));
                    // How many values have each display scale, as the digits of one number: ten digits for a
                    // scale. NULL, NaN and infinities have none (least() would make them the largest).
                    sums.push(sum(&format!(
                        "CASE scale({arg}) {} ELSE ('1e' || {SCALE_DIGITS} * CASE WHEN scale({arg}) > {MAX_SCALE} THEN {MAX_SCALE} ELSE scale({arg}) END)::numeric END",
                        common_digits()
                    )));
                }
            }
            // Adding up numbers that are no numeric yet is faster, but a sum of rows with a weight may outgrow their type.
            _ if w.is_none() => sums.push(sum(&arg)),
            _ => sums.push(sum(&format!("{arg}::numeric"))),
        }
    }
    sums
}

/// How many rows a condition holds for.
fn count(w: Option<&str>, condition: &str) -> String {
    match w {
        Some(w) => format!("coalesce(sum({w}) FILTER (WHERE {condition}), 0)::bigint"),
        None => format!("count(*) FILTER (WHERE {condition})"),
    }
}

/// The digits of scales that are common, as constants: to make a number of a text takes longer than all else that is done with a row.
fn common_digits() -> String {
    let arm = |scale: u32| {
        let digits = scale * SCALE_DIGITS;
        format!("WHEN {scale} THEN '1e{digits}'::numeric")
    };
    (0..=COMMON_SCALE).map(arm).collect::<Vec<_>>().join(" ")
}

/// The extreme of the rows for which `condition` holds.
pub(super) fn of_sign(extreme: &Extreme, row: &str, condition: &str) -> String {
    let filter = extreme
        .filter
        .map(|f| format!(" AND {row}.a{}", f + 1))
        .unwrap_or_default();
    let function = if extreme.largest { "max" } else { "min" };
    format!(
        "{function}({row}.a{}) FILTER (WHERE {condition}{filter})",
        extreme.arg + 1
    )
}

/// The value of an aggregate from its state in row `s`.
fn value(
    index: usize,
    aggregate: &Aggregate,
    by_weights: bool,
    column: impl Fn(&str) -> String,
) -> String {
    let i = index + 1;
    let Some(weights) = aggregate.weights.as_ref().filter(|_| by_weights) else {
        return column(&format!("g{i}"));
    };
    let part = |suffix: &str| column(&format!("g{i}_{suffix}"));
    let (c, s, z) = (part("c"), part("s"), part("z"));
    let special = |sum: &str| {
        let (p, q) = (part("p"), part("q"));
        format!(
            "CASE WHEN {z} > 0 OR {p} > 0 AND {q} > 0 THEN 'NaN'::numeric WHEN {p} > 0 THEN 'Infinity'::numeric
             WHEN {q} > 0 THEN '-Infinity'::numeric WHEN {c} > 0 THEN {sum} END"
        )
    };
    // Rounding to the largest scale that is left: it takes away zeros only.
    let scale = format!("(length(trunc({})::text) - 1) / {SCALE_DIGITS}", part("h"));
    let free = format!("CASE WHEN {scale} < {MAX_SCALE} THEN round({s}, {scale}) ELSE {s} END");
    match weights.kind {
        WeightKind::Count => c,
        WeightKind::SumInt => format!("CASE WHEN {c} > 0 THEN ({s})::bigint END"),
        WeightKind::SumBig => format!("CASE WHEN {c} > 0 THEN {s} END"),
        WeightKind::SumNumeric => {
            format!("CASE WHEN {z} > 0 THEN 'NaN'::numeric WHEN {c} > 0 THEN {s} END")
        }
        WeightKind::AvgInt | WeightKind::AvgBig => format!("CASE WHEN {c} > 0 THEN {s} / {c} END"),
        WeightKind::AvgNumeric => {
            format!("CASE WHEN {z} > 0 THEN 'NaN'::numeric WHEN {c} > 0 THEN {s} / {c} END")
        }
        WeightKind::SumFree => special(&free),
        WeightKind::AvgFree => special(&format!("{free} / {c}")),
    }
}

/// Ten digits count ten thousand million values of one scale.
const SCALE_DIGITS: u32 = 10;
/// The product of an amount and two or three rates, with two digits each after the point.
const COMMON_SCALE: u32 = 8;
/// Scales above are not told apart: the number would outgrow numeric.
const MAX_SCALE: u32 = 1000;

/// The result's rows for states in `from` (which names its row `s`), as a query; `extra` is added as last columns.
/// `column` maps a state column to where it is in `from`.
pub(crate) fn output(
    keyed: &Keyed,
    from: &str,
    extra: &str,
    column: impl Fn(&str) -> String,
) -> String {
    let mut inner: Vec<_> = numbered("k", keyed.keys.len())
        .iter()
        .map(|k| format!("{} AS {k}", column(k)))
        .collect();
    for (i, aggregate) in keyed.aggregates.iter().enumerate() {
        inner.push(format!(
            "{} AS g{}",
            value(i, aggregate, keyed.by_weights, &column),
            i + 1
        ));
    }
    let having = keyed
        .having
        .as_ref()
        .map(|h| format!(" WHERE {h}"))
        .unwrap_or_default();
    let mut output = keyed.output.clone();
    if !extra.is_empty() {
        output.push(extra.to_owned());
    }
    format!(
        "SELECT {} FROM (SELECT {} FROM {from}) g{having}",
        output.join(", "),
        inner.join(", ")
    )
}

/// The state's columns, `s.`-qualified by the caller.
pub(crate) fn state_names(keyed: &Keyed) -> Vec<String> {
    state_columns(keyed)
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

/// Common table expressions that compute the state anew, and the result's rows: `result_<slot>`. `body` is the keyed query's, in
/// the form in which it is to be read here, by this function if it is given ([`computed`]). Of a state that is there already only
/// what differs is written: most of it is the same.
pub(crate) fn rebuild(
    slot: &str,
    keyed: &Keyed,
    body: &str,
    function: Option<&str>,
    onto: Onto,
) -> String {
    let list = state_names(keyed).join(", ");
    let columns = state_columns(keyed);
    let new = computed(&columns, &full_state(keyed, body), function);
    let state = match onto {
        Onto::Empty => format!(
            "state_{slot} AS (INSERT INTO pgtrickle.state_{slot} ({list}) {new} RETURNING {list})"
        ),
        Onto::Old => {
            let all = |row: &str| {
                let names = columns.iter().map(|(name, _)| format!("{row}.{name}"));
                names.collect::<Vec<_>>().join(", ")
            };
            let keys = |row: &str| hash(&numbered(&format!("{row}.k"), keyed.keys.len()));
            let same_keys = keys("t")
                .zip(keys("n"))
                .map(|(t, n)| format!("{t} = {n} AND "))
                .unwrap_or_default();
            let same = format!(
                "{same_keys}record_image_eq(ROW({}), ROW({}))",
                all("t"),
                all("n")
            );
            format!(
                "state_{slot} AS MATERIALIZED ({new}),
                 stale_{slot} AS (DELETE FROM pgtrickle.state_{slot} t WHERE NOT EXISTS (SELECT FROM state_{slot} n WHERE {same})),
                 fresh_{slot} AS (INSERT INTO pgtrickle.state_{slot} ({list}) SELECT {} FROM state_{slot} n
                    WHERE NOT EXISTS (SELECT FROM pgtrickle.state_{slot} t WHERE {same}))",
                all("n")
            )
        }
    };
    let values = output(keyed, &format!("state_{slot} s"), "", |c| format!("s.{c}"));
    format!("{state}, result_{slot}{} AS ({values})", columns_of(keyed))
}

/// What there is where a result is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    /// Nothing.
    Empty,
    /// An earlier one, which is taken to be sound.
    Old,
}

fn columns_of(keyed: &Keyed) -> String {
    format!("({})", numbered("o", keyed.output.len()).join(", "))
}
