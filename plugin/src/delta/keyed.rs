//! GROUP BY, aggregates and DISTINCT: a state per group in a table of ours, and the output as a function of it.
//!
//! Where all aggregates can be, the state is kept from the weights of the change (counts and sums); else the affected
//! groups are computed anew from the sources and the state holds the results.

use super::{hash, numbered};
use crate::plan::{Aggregate, Column, Keyed, WeightKind, Weights};

/// Name and type of the state's columns.
fn state_columns(keyed: &Keyed) -> Vec<(String, String)> {
    let typed = |c: &Column| format!("{}{}", c.type_name, c.collate);
    let mut columns: Vec<_> = keyed
        .keys
        .iter()
        .enumerate()
        .map(|(i, c)| (format!("k{}", i + 1), typed(c)))
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
pub(crate) fn create(id: i64, keyed: &Keyed) -> Vec<String> {
    let columns: Vec<_> = state_columns(keyed)
        .into_iter()
        .map(|(name, t)| format!("{name} {t}"))
        .collect();
    let mut statements = vec![
        format!("CREATE TABLE pgtrickle.state_{id} ({})", columns.join(", ")),
        format!("ALTER TABLE pgtrickle.state_{id} REPLICA IDENTITY FULL"),
    ];
    let keys = numbered("k", keyed.keys.len());
    if let Some(hash) = hash(&keys) {
        statements.push(format!("CREATE INDEX ON pgtrickle.state_{id} ({hash})"));
    }
    if !keyed.by_weights {
        let keys: Vec<_> = keyed
            .keys
            .iter()
            .enumerate()
            .map(|(i, c)| format!("k{} {}{}", i + 1, c.type_name, c.collate))
            .collect();
        statements.push(format!(
            "CREATE UNLOGGED TABLE pgtrickle.keys_{id} ({})",
            keys.join(", ")
        ));
    }
    statements
}

/// A query for the state of all groups, from the sources as they are. Its columns are those of the state, in order.
pub(crate) fn full_state(keyed: &Keyed) -> String {
    let keys = numbered("b.k", keyed.keys.len());
    let group = if keyed.grouped {
        format!(" GROUP BY {}", keys.join(", "))
    } else {
        String::new()
    };
    let values = if keyed.by_weights {
        sums(keyed, "b", "1")
    } else {
        keyed.aggregates.iter().map(|a| a.call.clone()).collect()
    };
    let mut columns = keys;
    columns.extend(values);
    // DISTINCT of no columns and the like: PostgreSQL has no empty GROUP BY list.
    format!(
        "SELECT {} FROM ({}) b{group}",
        columns.join(", "),
        keyed.body
    )
}

/// The sums that make a state by weights, over rows `row` of the body with weight `w`: `n`, then the parts.
fn sums(keyed: &Keyed, row: &str, w: &str) -> Vec<String> {
    let mut sums = vec![format!("coalesce(sum({w}), 0)::bigint")];
    for weights in keyed.aggregates.iter().filter_map(|a| a.weights.as_ref()) {
        let filter = weights
            .filter
            .map(|f| format!(" FILTER (WHERE {row}.a{})", f + 1))
            .unwrap_or_default();
        let Some(arg) = weights.arg else {
            sums.push(format!("coalesce(sum({w}){filter}, 0)::bigint"));
            continue;
        };
        let arg = format!("{row}.a{}", arg + 1);
        sums.push(format!(
            "coalesce(sum({w} * num_nonnulls({arg})){filter}, 0)::bigint"
        ));
        match weights.kind {
            WeightKind::Count => {}
            kind if kind.is_numeric() => {
                let count = |value: &str| {
                    format!(
                        "coalesce(sum({w} * ({arg} = '{value}'::numeric)::int){filter}, 0)::bigint"
                    )
                };
                let finite = format!(
                    "CASE WHEN {arg} IN ('NaN', 'Infinity', '-Infinity') THEN 0 ELSE {arg} END"
                );
                sums.push(format!("coalesce(sum({w} * {finite}){filter}, 0)"));
                sums.push(count("NaN"));
                if kind.is_free() {
                    sums.push(count("Infinity"));
                    sums.push(count("-Infinity"));
                    // How many values have each display scale, as the digits of one number: ten digits for a scale.
                    let digit = format!(
                        "('1e' || {SCALE_DIGITS} * least(scale({arg}), {MAX_SCALE}))::numeric"
                    );
                    sums.push(format!("coalesce(sum({w} * {digit}){filter}, 0)"));
                }
            }
            _ => sums.push(format!("coalesce(sum({w} * {arg}::numeric){filter}, 0)")),
        }
    }
    sums
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

fn same_keys(keyed: &Keyed, left: &str, right: &str) -> String {
    let (l, r) = (
        numbered(&format!("{left}.k"), keyed.keys.len()),
        numbered(&format!("{right}.k"), keyed.keys.len()),
    );
    let Some((left_hash, right_hash)) = hash(&l).zip(hash(&r)) else {
        return "true".to_owned();
    };
    let mut sql = format!("{left_hash} = {right_hash}");
    for (l, r) in l.iter().zip(&r) {
        sql.push_str(&format!(" AND {l} IS NOT DISTINCT FROM {r}"));
    }
    sql
}

/// The statement that brings a state by weights up to date and collects the change of the result. `delta` is the delta of
/// the body: its columns and then the weight.
pub(crate) fn by_weights(id: i64, keyed: &Keyed, columns: &[Column], delta: &str) -> String {
    let keys = numbered("k", keyed.keys.len());
    let mut aliases = keys.clone();
    aliases.extend(numbered("a", keyed.args.len()));
    aliases.push("w".to_owned());
    let names: Vec<_> = state_names(keyed).split_off(keys.len());
    let sums: Vec<_> = sums(keyed, "d", "d.w")
        .into_iter()
        .zip(&names)
        .map(|(sum, name)| format!("{sum} AS {name}"))
        .collect();
    let group = if keyed.grouped {
        format!(" GROUP BY {}", numbered("d.k", keys.len()).join(", "))
    } else {
        String::new()
    };
    let keys_of = |row: &str| -> String { keys.iter().map(|k| format!("{row}.{k}, ")).collect() };
    let before: Vec<_> = names.iter().map(|n| format!("s.{n} AS old_{n}")).collect();
    let after: Vec<_> = names
        .iter()
        .map(|n| format!("coalesce(s.{n}, 0) + d.{n} AS {n}"))
        .collect();
    let set: Vec<_> = names.iter().map(|n| format!("{n} = j.{n}")).collect();
    // Without GROUP BY the one group stays when it is empty.
    let (gone, alive) = if keyed.grouped {
        ("j.n = 0", "j.n <> 0")
    } else {
        ("false", "true")
    };
    let with = format!(
        "WITH d AS MATERIALIZED (SELECT {dk}{sums} FROM ({delta}) d({aliases}){group}),
         j AS MATERIALIZED (SELECT s.ctid AS tid, {dk}{before}, {after}
            FROM d LEFT JOIN pgtrickle.state_{id} s ON {same}),
         gone AS (DELETE FROM pgtrickle.state_{id} s USING j WHERE s.ctid = j.tid AND {gone}),
         kept AS (UPDATE pgtrickle.state_{id} s SET {set} FROM j WHERE s.ctid = j.tid AND {alive}),
         came AS (INSERT INTO pgtrickle.state_{id} SELECT {jk}{jn} FROM j WHERE j.tid IS NULL AND {alive})",
        dk = keys_of("d"),
        jk = keys_of("j"),
        sums = sums.join(", "),
        aliases = aliases.join(", "),
        before = before.join(", "),
        after = after.join(", "),
        same = same_keys(keyed, "d", "s"),
        set = set.join(", "),
        jn = names.iter().map(|n| format!("j.{n}")).collect::<Vec<_>>().join(", "),
    );
    let old = output(
        keyed,
        "j WHERE j.tid IS NOT NULL",
        "(-1)::int8",
        |c| match c.strip_prefix('k') {
            Some(_) => format!("j.{c}"),
            None => format!("j.old_{c}"),
        },
    );
    let new = output(keyed, &format!("j WHERE {alive}"), "1::int8", |c| {
        format!("j.{c}")
    });
    super::apply::collect(id, columns, &with, &format!("{old} UNION ALL {new}"))
}

/// Puts the affected keys into `keys_<id>`. Returns their number, whether one has a NULL, and the rows at the last ANALYZE.
pub(crate) fn affected(id: i64, keyed: &Keyed, delta: &str) -> String {
    let keys = numbered("k", keyed.keys.len());
    let mut aliases = keys.clone();
    aliases.extend(numbered("a", keyed.args.len()));
    aliases.push("w".to_owned());
    let select = if keyed.grouped {
        format!(
            "SELECT DISTINCT {} FROM ({delta}) d({})",
            numbered("d.k", keys.len()).join(", "),
            aliases.join(", ")
        )
    } else {
        format!("SELECT FROM ({delta}) d({}) LIMIT 1", aliases.join(", "))
    };
    let null = if keyed.grouped {
        format!("num_nulls({}) > 0", keys.join(", "))
    } else {
        "false".to_owned()
    };
    let (into, returning) = if keyed.grouped {
        (format!(" ({})", keys.join(", ")), null)
    } else {
        (String::new(), "false".to_owned())
    };
    format!(
        "WITH k AS (INSERT INTO pgtrickle.keys_{id}{into} {select} RETURNING {returning} AS has_null)
         SELECT count(*), coalesce(bool_or(has_null), false),
            (SELECT reltuples FROM pg_class WHERE oid = 'pgtrickle.keys_{id}'::regclass) FROM k"
    )
}

/// Computes the affected groups anew, and collects the change of the result.
pub(crate) fn recompute(id: i64, keyed: &Keyed, columns: &[Column], nulls: bool) -> Vec<String> {
    let names = state_names(keyed);
    let list = names.join(", ");
    let calls: Vec<_> = keyed.aggregates.iter().map(|a| a.call.clone()).collect();
    let b = numbered("b.k", keyed.keys.len());
    let q = numbered("q.k", keyed.keys.len());
    let mut select = b.clone();
    select.extend(calls);
    let branch = |operator: &str, condition: &str| {
        let on: Vec<_> = b
            .iter()
            .zip(&q)
            .map(|(b, q)| format!("{b} {operator} {q}"))
            .collect();
        format!(
            "SELECT {} FROM ({}) b JOIN pgtrickle.keys_{id} q ON {}{condition} GROUP BY {}",
            select.join(", "),
            keyed.body,
            on.join(" AND "),
            b.join(", ")
        )
    };
    let new = if !keyed.grouped {
        format!("SELECT {} FROM ({}) b", select.join(", "), keyed.body)
    } else if nulls {
        // Plain = reaches the indexes of the sources; keys with a NULL need a branch of their own.
        let null = format!(" AND num_nulls({})", q.join(", "));
        format!(
            "{} UNION ALL {}",
            branch("=", &format!("{null} = 0")),
            branch("IS NOT DISTINCT FROM", &format!("{null} > 0"))
        )
    } else {
        branch("=", "")
    };
    let with = format!(
        "WITH o AS MATERIALIZED (SELECT s.ctid AS tid, s.* FROM pgtrickle.keys_{id} q JOIN pgtrickle.state_{id} s ON {same}),
         n({list}) AS MATERIALIZED ({new}),
         gone AS (DELETE FROM pgtrickle.state_{id} s USING o WHERE s.ctid = o.tid),
         came AS (INSERT INTO pgtrickle.state_{id} ({list}) SELECT {list} FROM n)",
        same = same_keys(keyed, "q", "s"),
    );
    let old = output(keyed, "o", "(-1)::int8", |c| format!("o.{c}"));
    let new = output(keyed, "n", "1::int8", |c| format!("n.{c}"));
    vec![
        super::apply::collect(id, columns, &with, &format!("{old} UNION ALL {new}")),
        format!("DELETE FROM pgtrickle.keys_{id}"),
    ]
}

/// The statement that computes the state anew into an empty state table, with the result's rows in CTE `result`.
pub(crate) fn rebuild(id: i64, keyed: &Keyed) -> String {
    let list = state_names(keyed).join(", ");
    let values = output(keyed, "state s", "", |c| format!("s.{c}"));
    format!(
        "state AS (INSERT INTO pgtrickle.state_{id} ({list}) {} RETURNING {list}), result{} AS ({values})",
        full_state(keyed),
        columns_of(keyed)
    )
}

fn columns_of(keyed: &Keyed) -> String {
    format!("({})", numbered("o", keyed.output.len()).join(", "))
}
