//! The net change of the result, and its application to the user's table.

use pgcat::plugins::ErrorFields;

use super::{Cell, hash, image, net, numbered};
use crate::plan::{Body, Column, Image, quote};

/// The user's table and its columns, by the names they have now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Qualified.
    pub name: String,
    pub columns: Vec<String>,
}

/// The columns of a result that are its keys, where all are there.
pub(crate) fn keys(body: &Body, columns: &[Column]) -> Option<Vec<usize>> {
    match body {
        Body::Keyed(keyed) if keyed.grouped => numbered("g.k", keyed.keys.len())
            .iter()
            .map(|key| keyed.output.iter().position(|o| o == key))
            .collect(),
        Body::Partition(p) if !p.keys.is_empty() => {
            Some((columns.len() - p.keys.len()..columns.len()).collect())
        }
        _ => None,
    }
}

/// The columns of a result that find a row of it: its keys, else all that can be hashed.
fn identity(body: &Body, columns: &[Column]) -> Vec<usize> {
    keys(body, columns).unwrap_or_else(|| hashed(columns))
}

/// The columns whose hash finds a row.
pub(super) fn hashed(columns: &[Column]) -> Vec<usize> {
    columns
        .iter()
        .enumerate()
        .filter(|(_, c)| c.hashable)
        .map(|(i, _)| i)
        .take(32)
        .collect()
}

/// The CREATE INDEX by which rows of a table are found.
pub(crate) fn index(body: &Body, columns: &[Column], target: &Target) -> Option<String> {
    let columns: Vec<_> = identity(body, columns)
        .into_iter()
        .map(|i| quote(&target.columns[i]))
        .collect();
    Some(format!(
        "CREATE INDEX ON {} ({})",
        target.name,
        hash(&columns)?
    ))
}

/// The definition of the staging table of the result.
pub(crate) fn out_table(slot: &str, columns: &[Column]) -> String {
    let typed: String = columns
        .iter()
        .enumerate()
        .map(|(i, c)| format!(", o{} {}", i + 1, c.typed()))
        .collect();
    format!("CREATE UNLOGGED TABLE pgtrickle.out_{slot} (w bigint NOT NULL{typed})")
}

/// Cells `prefix.o1…` of the result.
pub(crate) fn cells(columns: &[Column], prefix: &str) -> Vec<Cell> {
    columns
        .iter()
        .enumerate()
        .map(|(i, c)| Cell::new(format!("{prefix}o{}", i + 1), c))
        .collect()
}

/// `INSERT INTO out` of the net of weighted rows. `rows` is a query whose columns are those of the result and then the
/// weight; `with` goes before.
pub(crate) fn collect(slot: &str, columns: &[Column], with: &str, rows: &str) -> String {
    let names = numbered("o", columns.len());
    let net = net_of(columns, rows);
    format!(
        "{with} INSERT INTO pgtrickle.out_{slot} (w{}) {net}",
        super::comma(&names)
    )
}

/// The net of weighted rows, a query whose columns are those of the result and then the weight.
fn net_of(columns: &[Column], rows: &str) -> String {
    let mut aliases = numbered("o", columns.len());
    aliases.push("w".to_owned());
    net(
        "d.w",
        &cells(columns, "d."),
        &format!("({rows}) d({})", aliases.join(", ")),
    )
}

/// A query for the difference between what `new` gives (columns of the result) and the user's table: weighted rows.
pub(crate) fn difference(target: &Target, new: &str) -> String {
    let quoted: Vec<_> = target.columns.iter().map(|c| quote(c)).collect();
    let names = numbered("o", target.columns.len());
    let list = if names.is_empty() {
        String::new()
    } else {
        format!("({})", names.join(", "))
    };
    format!(
        "SELECT n.*, 1::int8 FROM ({new}) n{list} UNION ALL SELECT {}(-1)::int8 FROM {} t",
        quoted
            .iter()
            .map(|c| format!("t.{c}, "))
            .collect::<String>(),
        target.name
    )
}

/// The error's value when the user's table does not hold the rows that are to go.
const OTHER_ROWS: &str = "pgtrickle: other rows";

/// Whether an error of the server is [`apply`]'s: the table holds other rows than the last refresh left.
pub(crate) fn is_about_other_rows(fields: &ErrorFields) -> bool {
    super::is_raised(fields, OTHER_ROWS)
}

/// Common table expressions that apply what is staged: the rows with a negative weight go from a table, and those with a
/// positive one come. An error if the rows that are to go are not all there ([`is_about_other_rows`]), so that a COMMIT may
/// follow without a look at the result; for that the statement must read `checked(ok)`.
pub(crate) fn replace(slot: &str, body: &Body, columns: &[Column], target: &Target) -> String {
    let out = format!("pgtrickle.out_{slot}");
    format!(
        "due AS MATERIALIZED (SELECT o.ctid AS tid, o.* FROM {out} o WHERE o.w < 0),
         gone AS ({gone} RETURNING 1),
         checked(ok) AS MATERIALIZED (SELECT {check}),
         came AS ({came} AND (SELECT ok FROM checked) = 0)",
        gone = take(body, columns, target, "due"),
        came = put(target, &out),
        // Read before any row comes: those that go may have the same key.
        check = super::raise_unless(
            "(SELECT count(*) FROM gone) = (SELECT coalesce(sum(-w), 0) FROM due)",
            OTHER_ROWS
        ),
    )
}

/// Common table expressions that make a table's rows those of the query `new`: only what differs is written.
pub(crate) fn become_rows(
    slot: &str,
    body: &Body,
    columns: &[Column],
    target: &Target,
    new: &str,
) -> String {
    let names = super::comma(&numbered("o", columns.len()));
    let net = net_of(columns, &difference(target, new));
    format!(
        "net_{slot}(w{names}) AS MATERIALIZED ({net}),
         due_{slot} AS MATERIALIZED (SELECT row_number() OVER () AS tid, o.* FROM net_{slot} o WHERE o.w < 0),
         gone_{slot} AS ({}),
         came_{slot} AS ({})",
        take(body, columns, target, &format!("due_{slot}")),
        put(target, &format!("net_{slot}")),
    )
}

/// The DELETE of rows of a table: for each row of `due`, which are told apart by `tid`, so many with its values as its weight says,
/// which is negative.
fn take(body: &Body, columns: &[Column], target: &Target, due: &str) -> String {
    let t: Vec<_> = target
        .columns
        .iter()
        .map(|c| format!("t.{}", quote(c)))
        .collect();
    let o: Vec<_> = numbered("o.o", t.len());
    let identity = identity(body, columns);
    let pick = |of: &[String]| identity.iter().map(|&i| of[i].clone()).collect::<Vec<_>>();
    let mut conditions = Vec::new();
    if let (Some(left), Some(right)) = (hash(&pick(&t)), hash(&pick(&o))) {
        conditions.push(format!("{left} = {right}"));
    }
    if !t.is_empty() {
        conditions.push(same_image(columns, &t, &o));
    }
    let condition = if conditions.is_empty() {
        "true".to_owned()
    } else {
        conditions.join(" AND ")
    };
    format!(
        "DELETE FROM {table} t USING (
            SELECT f.tid FROM (SELECT t.ctid AS tid, o.w, row_number() OVER (PARTITION BY o.tid) AS n
                FROM {due} o JOIN {table} t ON {condition}) f WHERE f.n <= -f.w) d
            WHERE t.ctid = d.tid",
        table = target.name,
    )
}

/// Whether two rows look the same. Equal bytes do, and others may: a slice of an array keeps a bitmap of NULLs that its values have no
/// use for, until it is read from its text again, as [`net`] does.
fn same_image(columns: &[Column], t: &[String], o: &[String]) -> String {
    let rows = columns.iter().zip(t.iter().zip(o));
    let (plain, other): (Vec<_>, Vec<_>) = rows.partition(|(c, _)| c.image == Image::Plain);
    let bytes = |of: &[(&Column, (&String, &String))]| {
        let side = |pick: fn(&(&String, &String)) -> String| {
            let cells: Vec<_> = of.iter().map(|(_, pair)| pick(pair)).collect();
            cells.join(", ")
        };
        let (t, o) = (side(|pair| pair.0.clone()), side(|pair| pair.1.clone()));
        (!of.is_empty()).then(|| format!("record_image_eq(ROW({t}), ROW({o}))"))
    };
    let texts = other
        .iter()
        .map(|(_, (t, o))| format!("{} = {}", image(t), image(o)));
    let texts = texts.collect::<Vec<_>>().join(" AND ");
    let other = bytes(&other).map(|same| format!("({same} OR {texts})"));
    // Those first that cost less.
    let all: Vec<_> = bytes(&plain).into_iter().chain(other).collect();
    all.join(" AND ")
}

/// The INSERT of the rows of `from` with a positive weight into a table. A further condition may follow.
fn put(target: &Target, from: &str) -> String {
    let quoted: Vec<_> = target.columns.iter().map(|c| quote(c)).collect();
    let into = if quoted.is_empty() {
        String::new()
    } else {
        format!(" ({})", quoted.join(", "))
    };
    format!(
        "INSERT INTO {}{into} SELECT {} FROM {from} o, generate_series(1, o.w) WHERE o.w > 0",
        target.name,
        numbered("o.o", quoted.len()).join(", "),
    )
}

/// [`replace`] for the user's table, and the staging table is emptied; `applied(inserted, deleted)` counts the rows.
pub(crate) fn apply(slot: &str, body: &Body, columns: &[Column], target: &Target) -> String {
    format!(
        "{},
         emptied AS (DELETE FROM pgtrickle.out_{slot} RETURNING w),
         applied(inserted, deleted) AS (SELECT coalesce(sum(w) FILTER (WHERE w > 0), 0)::bigint,
            coalesce(-sum(w) FILTER (WHERE w < 0), 0)::bigint FROM emptied)",
        replace(slot, body, columns, target)
    )
}
