//! WITH RECURSIVE from changes. `r` is the stored result, `new` and `old` mark states of what else the step reads.
//!
//! UNION ALL: `Δr` are the rows of `d = (Δbase + Δstep(r_old)) UNION ALL step_new(d)`, weights multiplied. Nothing in `d` may
//! cancel out before its end: where the rows of `r` reach a circle that is new, `d` has no end then, and would have a wrong
//! one else. (A new circle is reached over a new edge from a row of `r_old`, so the rows of `Δstep` go round it.) So the walk
//! is given up after so many rows.
//!
//! UNION: first what may have gone, `D`: the rows of `r_old` that `Δbase` or `Δstep(r_old)` take a reason away from, and what
//! is `step_new` of them and in `r_old`, and so on. What is left, `S = r_old - D`, is in the new result for certain: if a row
//! of it had no reason left, the first such row on the way to it would have lost one by the change itself. Then what is new
//! or found again: `I`, the rows that gain more reasons from `Δbase` and `Δstep(S)` than they lose, those of `D` that are in
//! `base_new` or `step_new(S)`, and what is `step_new` of them and not in `S`, and so on. (A row that gains no more reasons
//! than it loses has lost one, so it is in `D` or new for another reason.) The result is `S ∪ I`.

use super::{apply, estimated_rows, hash, numbered};
use crate::conn::Error;
use crate::plan::terms::{self, Input, Olds};
use crate::plan::{Column, Recursive, ast};

/// The rows of a walk so far.
const WALK: &str = "__pgt_walk";

/// A walk is given up after as many rows as there are in the result, and this many: recomputing them costs no more. (That to
/// what may have gone after a quarter of them, as it costs more and another one follows.)
const LEAST: i64 = 10_000;

/// The rows of a walk that was not given up.
const FOUND: &str = "SELECT * FROM found WHERE NOT (SELECT it FROM far)";

/// A recursion and its tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recursion<'a> {
    pub slot: &'a str,
    /// The stage's name in schema pgtrickle.
    pub stage: &'a str,
    pub recursive: &'a Recursive,
    pub columns: &'a [Column],
}

/// The table of what may have gone.
pub(crate) fn gone_table(slot: &str, columns: &[Column]) -> Vec<String> {
    let index = hash(&identity(columns, "k"));
    let index = index.map(|hash| format!("CREATE INDEX ON pgtrickle.keys_{slot} ({hash})"));
    [super::state::keys_table(slot, columns)]
        .into_iter()
        .chain(index)
        .collect()
}

/// The columns that find a row.
fn identity(columns: &[Column], prefix: &str) -> Vec<String> {
    let all = numbered(prefix, columns.len());
    apply::hashed(columns)
        .into_iter()
        .map(|i| all[i].clone())
        .collect()
}

impl Recursion<'_> {
    /// The step of the rows of a walk: its columns and a weight.
    ///
    /// # Errors
    /// [`Error::Internal`] for a plan that cannot be read.
    pub(crate) fn step(&self, mut inputs: Vec<Input<'_>>) -> Result<String, Error> {
        for input in &mut inputs {
            input.delta = None;
            if input.schema == "pgtrickle" && input.name == self.stage {
                input.delta = Some((WALK.to_owned(), 'o'));
            }
        }
        let terms = terms::delta(&self.recursive.step, &inputs, Olds::Within)?;
        match <[String; 1]>::try_from(terms) {
            Ok([step]) => Ok(step),
            Err(_) => Err(Error::Internal("a step is not linear".to_owned())),
        }
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        numbered(prefix, self.columns.len())
    }

    fn list(&self, prefix: &str) -> String {
        self.names(prefix).join(", ")
    }

    /// Rows with weights, of the types of the result, without a length or scale: the columns of a walk would have those of
    /// its first rows.
    fn typed(&self, rows: &str) -> String {
        let nulls: String = self
            .columns
            .iter()
            .map(|c| format!("NULL::{}, ", c.typed()))
            .collect();
        format!(
            "(SELECT {nulls}NULL::int8 WHERE false UNION ALL {rows}) x({}, w)",
            self.list("o")
        )
    }

    /// WITH queries: the rows of a walk (`found`), and whether there are too many (`far`). `part`: of so many parts of the
    /// result one is as many as there may be.
    fn walk(&self, seeds: &str, union: &str, next: &str, part: u32) -> String {
        format!(
            "WITH RECURSIVE most(n) AS MATERIALIZED (SELECT greatest({} / {part}, 0)::int8 + {LEAST}),
             {WALK}({list}, w) AS ({seeds} {union} {next}),
             found AS MATERIALIZED (SELECT * FROM {WALK} LIMIT (SELECT n FROM most)),
             far(it) AS MATERIALIZED (SELECT (SELECT count(*) FROM found) >= n FROM most)",
            estimated_rows(&format!("pgtrickle.{}", self.stage)),
            list = self.list("o"),
        )
    }

    /// Whether a row is in a table of rows, as an SQL expression: looked up row by row (PostgreSQL makes no join of an EXISTS
    /// with an OFFSET).
    fn is_in(&self, row: &str, table: &str, prefix: &str) -> String {
        format!(
            "EXISTS (SELECT FROM pgtrickle.{table} t WHERE {} OFFSET 0)",
            self.same(row, &format!("t.{prefix}"))
        )
    }

    fn same(&self, left: &str, right: &str) -> String {
        let hashes = hash(&identity(self.columns, left)).zip(hash(&identity(self.columns, right)));
        let rows = format!(
            "record_eq(ROW({}), ROW({}))",
            self.list(left),
            self.list(right)
        );
        match hashes {
            Some((left, right)) => format!("{left} = {right} AND {rows}"),
            None => rows,
        }
    }

    /// UNION ALL: collects the change of the result. `delta` is that of base and step. Tells whether it was given up.
    pub(crate) fn all(&self, delta: &str, step: &str) -> String {
        let seeds = format!("SELECT * FROM {}", self.typed(delta));
        format!(
            "{}, put AS ({})
             SELECT it FROM far",
            self.walk(&seeds, "UNION ALL", step, 1),
            apply::collect(self.slot, self.columns, "", FOUND),
        )
    }

    /// UNION, first: puts what may have gone into the table for it. Tells whether that was given up, how many rows there are,
    /// the table's rows at its last ANALYZE, and of each column whether there are NULLs in it.
    pub(crate) fn gone(&self, delta: &str, step: &str) -> String {
        let was_there = self.is_in("x.o", self.stage, "c");
        let rows = format!("SELECT {}, 1::int8 FROM", self.list("x.o"));
        let seeds = format!("{rows} {} WHERE x.w < 0 AND {was_there}", self.typed(delta));
        let next = format!("{rows} ({step}) x({}, w) WHERE {was_there}", self.list("o"));
        let table = format!("pgtrickle.keys_{}", self.slot);
        let nulls: String = self
            .names("put.k")
            .iter()
            .map(|k| format!(", coalesce(bool_or({k} IS NULL), false)"))
            .collect();
        format!(
            "{}, put AS (INSERT INTO {table} ({}) SELECT {} FROM ({FOUND}) f RETURNING *)
             SELECT (SELECT it FROM far), count(*), {}{nulls} FROM put",
            self.walk(&seeds, "UNION", &next, 4),
            self.list("k"),
            self.list("f.o"),
            estimated_rows(&table),
        )
    }

    /// UNION, then: collects the change of the result, and empties that table. `nulls`: of each of its columns whether there
    /// are NULLs in it; nothing if it is empty. Tells whether it was given up.
    ///
    /// # Errors
    /// [`Error::Internal`] for a plan that cannot be read.
    pub(crate) fn come(
        &self,
        delta: &str,
        step: &str,
        nulls: Option<&[bool]>,
    ) -> Result<String, Error> {
        let list = self.list("o");
        let keys = format!("keys_{}", self.slot);
        let mut is_new = format!("NOT {}", self.is_in("x.o", self.stage, "c"));
        let mut delta = delta.to_owned();
        let mut again = String::new();
        let mut old = String::new();
        if let Some(nulls) = nulls {
            is_new = format!("({is_new} OR {})", self.is_in("x.o", &keys, "k"));
            delta = self.over_rest(&delta)?;
            let k = self.list("k.k");
            let equal = self.equal(nulls);
            for query in [
                self.recursive.base.clone(),
                self.over_rest(&self.recursive.step)?,
            ] {
                again.push_str(&format!(
                    " UNION ALL SELECT {k} FROM pgtrickle.{keys} k JOIN ({query}) b({list}) ON {equal}"
                ));
            }
            old = format!(" UNION ALL SELECT {k}, (-1)::int8 FROM pgtrickle.{keys} k");
        }
        let rows = format!("SELECT {}, 1::int8 FROM", self.list("x.o"));
        let seeds = format!(
            "{rows} (SELECT {list} FROM {} GROUP BY {list} HAVING sum(w) > 0{again}) x({list}) WHERE {is_new}",
            self.typed(&delta)
        );
        let next = format!("{rows} ({step}) x({list}, w) WHERE {is_new}");
        Ok(format!(
            "{}, put AS ({}), emptied AS (DELETE FROM pgtrickle.{keys})
             SELECT it FROM far",
            self.walk(&seeds, "UNION", &next, 1),
            apply::collect(self.slot, self.columns, "", &format!("{FOUND}{old}")),
        ))
    }

    /// A row of the table of what may have gone is this one: by `=`, which reaches indexes, where there are no NULLs.
    fn equal(&self, nulls: &[bool]) -> String {
        let equal = self.columns.iter().enumerate().map(|(i, column)| {
            let (k, b) = (format!("k.k{}", i + 1), format!("b.o{}", i + 1));
            let equal = format!("{k} {} {b}", column.equality());
            if nulls.get(i).copied().unwrap_or(true) {
                format!("({equal} OR {k} IS NULL AND {b} IS NULL)")
            } else {
                equal
            }
        });
        equal.collect::<Vec<_>>().join(" AND ")
    }

    /// A query with what is left of the stage in place of the stage.
    fn over_rest(&self, sql: &str) -> Result<String, Error> {
        let rest = format!(
            "SELECT {} FROM pgtrickle.{} s WHERE NOT EXISTS (SELECT FROM pgtrickle.keys_{} k WHERE {})",
            self.list("s.c"),
            self.stage,
            self.slot,
            self.same("s.c", "k.k")
        );
        let rest = ast::parse_select(&rest)?;
        let mut select = ast::parse_select(sql)?;
        ast::each_item(&mut select, &mut |item| {
            if let Some(pg_query::NodeEnum::RangeVar(relation)) = &item.node
                && relation.schemaname == "pgtrickle"
                && relation.relname == self.stage
            {
                let alias = relation.alias.clone().unwrap_or_default();
                let names: Vec<_> = (alias.colnames.iter())
                    .filter_map(ast::sval)
                    .map(str::to_owned)
                    .collect();
                *item = ast::range(rest.clone(), &alias.aliasname, &names);
            }
        });
        ast::select_text(&select)
    }
}
