//! GROUP BY, aggregates and DISTINCT: a state per group in a table of ours, and the output as a function of it.
//!
//! Where all aggregates can be, the state is kept from the weights of the change (counts and sums); else the affected
//! groups are computed anew from the sources and the state holds the results.

use super::state::{fenced, of_sign, output, state_names, sums};
use super::{hash, numbered};
use crate::plan::{Column, Keyed};

fn same_keys(keyed: &Keyed, left: &str, right: &str) -> String {
    same(
        &numbered(&format!("{left}.k"), keyed.keys.len()),
        &numbered(&format!("{right}.k"), keyed.keys.len()),
    )
}

/// Whether two lists of keys are those of one group.
pub(super) fn same(l: &[String], r: &[String]) -> String {
    let Some((left_hash, right_hash)) = hash(l).zip(hash(r)) else {
        return "true".to_owned();
    };
    // Not IS NOT DISTINCT FROM: it takes the `=` that the search path has, which for citext is that of text and for hstore
    // none at all. record_eq takes that of the type, as GROUP BY does, and NULL for equal to NULL.
    format!(
        "{left_hash} = {right_hash} AND record_eq(ROW({}), ROW({}))",
        l.join(", "),
        r.join(", ")
    )
}

/// The statement that brings a state by weights up to date and collects the change of the result. `delta` is the delta of
/// the body: its columns and then the weight.
pub(crate) fn by_weights(slot: &str, keyed: &Keyed, columns: &[Column], delta: &str) -> String {
    let keys = numbered("k", keyed.keys.len());
    let mut aliases = keys.clone();
    aliases.extend(numbered("a", keyed.args.len()));
    aliases.push("w".to_owned());
    let names: Vec<_> = state_names(keyed).split_off(keys.len());
    let sums: Vec<_> = sums(keyed, "d", Some("d.w"))
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
    let extremes: Vec<_> = keyed
        .aggregates
        .iter()
        .enumerate()
        .filter_map(|(i, a)| Some((format!("g{}", i + 1), a.extreme.as_ref()?)))
        .collect();
    let after: Vec<_> = names
        .iter()
        .map(|n| match extremes.iter().find(|(name, _)| name == n) {
            Some((_, e)) => format!(
                "{}(s.{n}, d.{n}) AS {n}",
                if e.largest { "greatest" } else { "least" }
            ),
            None => format!("coalesce(s.{n}, 0) + d.{n} AS {n}"),
        })
        .collect();
    // Where the extreme itself may have gone, only a look at the sources tells the next one.
    let lost: String = extremes
        .iter()
        .map(|(n, e)| format!(", {} AS lost_{n}", of_sign(e, "d", "d.w < 0")))
        .collect();
    let mut redo: Vec<_> = extremes
        .iter()
        .map(|(n, e)| {
            let beyond = if e.largest { "<" } else { ">" };
            format!("d.lost_{n} IS NOT NULL AND coalesce(NOT d.lost_{n} {beyond} s.{n}, true)")
        })
        .collect();
    redo.push("false".to_owned());
    let redo = redo.join(" OR ");
    let again = if extremes.is_empty() {
        String::new()
    } else {
        let list = numbered("k", keys.len()).join(", ");
        let into = if keyed.grouped {
            format!(" ({list})")
        } else {
            String::new()
        };
        format!(
            ", again AS (INSERT INTO pgtrickle.keys_{slot}{into} SELECT {list} FROM j WHERE j.redo)"
        )
    };
    let set: Vec<_> = names.iter().map(|n| format!("{n} = j.{n}")).collect();
    // Without GROUP BY the one group stays when it is empty.
    let (gone, alive) = if keyed.grouped {
        ("NOT j.redo AND j.n = 0", "NOT j.redo AND j.n <> 0")
    } else {
        ("false", "NOT j.redo")
    };
    let with = format!(
        "WITH d AS MATERIALIZED (SELECT {dk}{sums}{lost} FROM ({rows}) d({aliases}){group}),
         j AS MATERIALIZED (SELECT s.ctid AS tid, {dk}{before}, {after}, {redo} AS redo
            FROM d LEFT JOIN pgtrickle.state_{slot} s ON {same}),
         gone AS (DELETE FROM pgtrickle.state_{slot} s USING j WHERE s.ctid = j.tid AND {gone}),
         kept AS (UPDATE pgtrickle.state_{slot} s SET {set} FROM j WHERE s.ctid = j.tid AND {alive}),
         came AS (INSERT INTO pgtrickle.state_{slot} SELECT {jk}{jn} FROM j WHERE j.tid IS NULL AND {alive}){again}",
        rows = fenced(keyed, delta, true),
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
        "j WHERE NOT j.redo AND j.tid IS NOT NULL",
        "(-1)::int8",
        |c| match c.strip_prefix('k') {
            Some(_) => format!("j.{c}"),
            None => format!("j.old_{c}"),
        },
    );
    let new = output(keyed, &format!("j WHERE {alive}"), "1::int8", |c| {
        format!("j.{c}")
    });
    super::apply::collect(slot, columns, &with, &format!("{old} UNION ALL {new}"))
}

/// Puts the affected keys into `keys_<id>`. Returns their number, whether one has a NULL, and the rows at the last ANALYZE.
///
/// `keys` and `args` are the numbers of the body's columns; without keys it matters only whether anything changed.
pub(crate) fn affected(slot: &str, keys: usize, args: usize, delta: &str) -> String {
    let grouped = keys > 0;
    let keys = numbered("k", keys);
    let mut aliases = keys.clone();
    aliases.extend(numbered("a", args));
    aliases.push("w".to_owned());
    let select = if grouped {
        format!(
            "SELECT DISTINCT {} FROM ({delta}) d({})",
            numbered("d.k", keys.len()).join(", "),
            aliases.join(", ")
        )
    } else {
        format!("SELECT FROM ({delta}) d({}) LIMIT 1", aliases.join(", "))
    };
    let (into, returning) = if grouped {
        (
            format!(" ({})", keys.join(", ")),
            format!("num_nulls({}) > 0", keys.join(", ")),
        )
    } else {
        (String::new(), "false".to_owned())
    };
    format!(
        "WITH k AS (INSERT INTO pgtrickle.keys_{slot}{into} {select} RETURNING {returning} AS has_null)
         SELECT count(*), coalesce(bool_or(has_null), false), {} FROM k",
        super::estimated_rows(&format!("pgtrickle.keys_{slot}"))
    )
}

/// What [`by_weights`] has left to [`recompute`], as [`affected`] tells it; `None` where it leaves nothing ever.
pub(crate) fn left_over(slot: &str, keyed: &Keyed) -> Option<String> {
    let null = if keyed.grouped {
        format!(
            "num_nulls({}) > 0",
            numbered("k", keyed.keys.len()).join(", ")
        )
    } else {
        "false".to_owned()
    };
    keyed.has_extremes().then(|| {
        format!(
            "SELECT count(*), coalesce(bool_or({null}), false), {} FROM pgtrickle.keys_{slot}",
            super::estimated_rows(&format!("pgtrickle.keys_{slot}"))
        )
    })
}

/// Computes the affected groups anew, and collects the change of the result.
pub(crate) fn recompute(slot: &str, keyed: &Keyed, columns: &[Column], nulls: bool) -> Vec<String> {
    let names = state_names(keyed);
    let list = names.join(", ");
    let b = numbered("b.k", keyed.keys.len());
    let q = numbered("q.k", keyed.keys.len());
    let mut select = b.clone();
    select.extend(sums(keyed, "b", None));
    let branch = |on: &str, condition: &str| {
        format!(
            "SELECT {} FROM ({}) b JOIN pgtrickle.keys_{slot} q ON {on}{condition} GROUP BY {}",
            select.join(", "),
            keyed.body,
            b.join(", ")
        )
    };
    let equal: Vec<_> = keyed
        .keys
        .iter()
        .zip(b.iter().zip(&q))
        .map(|(key, (b, q))| format!("{b} {} {q}", key.equality()))
        .collect();
    let equal = equal.join(" AND ");
    let new = if !keyed.grouped {
        format!("SELECT {} FROM ({}) b", select.join(", "), keyed.body)
    } else if nulls {
        // Plain = reaches the indexes of the sources; keys with a NULL need a branch of their own.
        let null = format!(" AND num_nulls({})", q.join(", "));
        format!(
            "{} UNION ALL {}",
            branch(&equal, &format!("{null} = 0")),
            branch(&same_keys(keyed, "b", "q"), &format!("{null} > 0"))
        )
    } else {
        branch(&equal, "")
    };
    let with = format!(
        "WITH o AS MATERIALIZED (SELECT s.ctid AS tid, s.* FROM pgtrickle.keys_{slot} q JOIN pgtrickle.state_{slot} s ON {same}),
         n({list}) AS MATERIALIZED ({new}),
         gone AS (DELETE FROM pgtrickle.state_{slot} s USING o WHERE s.ctid = o.tid),
         came AS (INSERT INTO pgtrickle.state_{slot} ({list}) SELECT {list} FROM n)",
        same = same_keys(keyed, "q", "s"),
    );
    let old = output(keyed, "o", "(-1)::int8", |c| format!("o.{c}"));
    let new = output(keyed, "n", "1::int8", |c| format!("n.{c}"));
    vec![
        super::apply::collect(slot, columns, &with, &format!("{old} UNION ALL {new}")),
        format!("DELETE FROM pgtrickle.keys_{slot}"),
    ]
}
