//! The terms of a delta: a linear query with one changed leaf replaced by its delta, and those after it by their old state.
//!
//! `Δ(R1 ⋈ … ⋈ Rn) = Σ over changed i of R1_new ⋈ … ⋈ ΔRi ⋈ R(i+1)_old ⋈ … ⋈ Rn_old`, and a UNION ALL of such joins is
//! linear in its leaves too. Every replaced leaf carries a weight `__pgt_w`; the product is exported through each level.

use pg_query::NodeEnum;
use pg_query::protobuf::{Node, RangeSubselect, RangeVar, SelectStmt, SetOperation};

use super::ast::{self, parse_expr, parse_select, select_text, sval};
use super::{Table, quote};
use crate::conn::Error;

/// The name of the weight column: the last column of every term.
pub(crate) const WEIGHT: &str = "__pgt_w";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaf {
    New,
    Delta,
    Old,
}

/// The tables (indexes into `tables`) a linear query reads, one per mention, in order.
///
/// # Errors
/// [`Error::Internal`] if it reads a table that is not in `tables`.
pub(crate) fn leaves(body: &SelectStmt, tables: &[Table]) -> Result<Vec<usize>, Error> {
    let mut found = Vec::new();
    let mut body = body.clone();
    visit(&mut body, &mut |relation| {
        found.push(
            tables
                .iter()
                .position(|t| t.schema == relation.schemaname && t.name == relation.relname),
        );
    });
    found
        .into_iter()
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::Internal("the plan reads a table it does not know".to_owned()))
}

/// One SELECT per changed mention of a table; their UNION ALL is the delta. The last column is the weight.
///
/// # Errors
/// [`Error::Internal`] for a plan that cannot be read.
pub(crate) fn delta(
    body: &str,
    tables: &[Table],
    changed: impl Fn(&Table) -> bool,
) -> Result<Vec<String>, Error> {
    let body = parse_select(body)?;
    let leaves = leaves(&body, tables)?;
    let mut terms = Vec::new();
    for (i, &table) in leaves.iter().enumerate() {
        if !changed(&tables[table]) {
            continue;
        }
        let modes = leaves
            .iter()
            .enumerate()
            .map(|(j, &t)| match j.cmp(&i) {
                std::cmp::Ordering::Less => Leaf::New,
                std::cmp::Ordering::Equal => Leaf::Delta,
                std::cmp::Ordering::Greater if changed(&tables[t]) => Leaf::Old,
                std::cmp::Ordering::Greater => Leaf::New,
            })
            .collect();
        let mut term = body.clone();
        let mut rewriter = Rewriter {
            leaves: &leaves,
            modes,
            tables,
            next: 0,
        };
        rewriter.select(&mut term, true)?;
        terms.push(select_text(&term)?);
    }
    Ok(terms)
}

/// Calls `f` for every table in FROM, depth first.
fn visit(select: &mut SelectStmt, f: &mut impl FnMut(&mut RangeVar)) {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        visit(side, f);
    }
    for item in &mut select.from_clause {
        visit_item(item, f);
    }
}

fn visit_item(item: &mut Node, f: &mut impl FnMut(&mut RangeVar)) {
    match item.node.as_mut() {
        Some(NodeEnum::RangeVar(relation)) => f(relation),
        Some(NodeEnum::JoinExpr(join)) => {
            for side in [&mut join.larg, &mut join.rarg].into_iter().flatten() {
                visit_item(side, f);
            }
        }
        Some(NodeEnum::RangeSubselect(sub)) => {
            if let Some(NodeEnum::SelectStmt(select)) =
                sub.subquery.as_mut().and_then(|q| q.node.as_mut())
            {
                visit(select, f);
            }
        }
        _ => {}
    }
}

fn count(select: &mut SelectStmt) -> usize {
    let mut n = 0;
    visit(select, &mut |_| n += 1);
    n
}

struct Rewriter<'a> {
    leaves: &'a [usize],
    modes: Vec<Leaf>,
    tables: &'a [Table],
    next: usize,
}

impl Rewriter<'_> {
    /// Replaces the leaves of `select`, and adds the weight to its columns if `export`.
    fn select(&mut self, select: &mut SelectStmt, export: bool) -> Result<(), Error> {
        if SetOperation::try_from(select.op) == Ok(SetOperation::SetopUnion) {
            let total = count(select);
            let driven = self.contains(self.next, total, Leaf::Delta);
            for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
                let leaves = count(side);
                if driven && !self.contains(self.next, leaves, Leaf::Delta) {
                    // Kept, as it has a say in the types of the columns, but empty.
                    let range = self.next..self.next + leaves;
                    self.modes[range].fill(Leaf::New);
                    empty(side)?;
                }
                self.select(side, export)?;
            }
            return Ok(());
        }
        let mut weights = Vec::new();
        for item in &mut select.from_clause {
            self.item(item, &mut weights)?;
        }
        if !export {
            return Ok(());
        }
        let product = if weights.is_empty() {
            "1::pg_catalog.int8".to_owned()
        } else {
            let factors: Vec<_> = weights
                .iter()
                .map(|alias| format!("{}.{WEIGHT}", quote(alias)))
                .collect();
            factors.join(" * ")
        };
        let product = parse_expr(&product)?;
        for row in &mut select.values_lists {
            if let Some(NodeEnum::List(list)) = &mut row.node {
                list.items.push(product.clone());
            }
        }
        if select.values_lists.is_empty() {
            select.target_list.push(ast::target(WEIGHT, product));
        }
        Ok(())
    }

    fn item(&mut self, item: &mut Node, weights: &mut Vec<String>) -> Result<(), Error> {
        match item.node.as_mut() {
            Some(NodeEnum::RangeVar(relation)) => {
                let (table, mode) = (self.leaves[self.next], self.modes[self.next]);
                self.next += 1;
                if mode == Leaf::New {
                    return Ok(());
                }
                let (sub, alias) = weighted(relation, &self.tables[table], mode)?;
                weights.push(alias);
                *item = sub;
            }
            Some(NodeEnum::JoinExpr(join)) => {
                for side in [&mut join.larg, &mut join.rarg].into_iter().flatten() {
                    self.item(side, weights)?;
                }
            }
            Some(NodeEnum::RangeSubselect(sub)) => {
                let alias = sub
                    .alias
                    .as_ref()
                    .map(|a| a.aliasname.clone())
                    .unwrap_or_default();
                if let Some(NodeEnum::SelectStmt(select)) =
                    sub.subquery.as_mut().and_then(|q| q.node.as_mut())
                {
                    let leaves = count(select);
                    let weighted = self.contains(self.next, leaves, Leaf::Delta)
                        || self.contains(self.next, leaves, Leaf::Old);
                    if weighted {
                        weights.push(alias);
                    }
                    self.select(select, weighted)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn contains(&self, from: usize, length: usize, mode: Leaf) -> bool {
        self.modes[from..from + length].contains(&mode)
    }
}

fn empty(select: &mut SelectStmt) -> Result<(), Error> {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        empty(side)?;
    }
    if select.larg.is_none() {
        if !select.values_lists.is_empty() {
            // VALUES has no WHERE.
            let values = std::mem::replace(
                select,
                parse_select("SELECT * FROM (VALUES (1)) v WHERE false")?,
            );
            if let Some(NodeEnum::RangeSubselect(sub)) = select.from_clause[0].node.as_mut() {
                sub.subquery = Some(Box::new(ast::node(NodeEnum::SelectStmt(Box::new(values)))));
            }
        }
        select.where_clause = Some(Box::new(parse_expr("false")?));
    }
    Ok(())
}

/// The sub-select that stands for a changed table. The two branches of the old state have the same types and no WHERE,
/// and the delta is a real table: only then PostgreSQL reaches the table's indexes through the UNION ALL.
fn weighted(relation: &RangeVar, table: &Table, mode: Leaf) -> Result<(Node, String), Error> {
    let renamed = relation
        .alias
        .as_ref()
        .map(|a| a.colnames.as_slice())
        .unwrap_or_default();
    let shown = |name: &str| {
        let position = table.all_columns.iter().position(|c| c == name);
        let alias = position
            .and_then(|p| renamed.get(p))
            .and_then(sval)
            .unwrap_or(name);
        quote(alias)
    };
    let buffer = table
        .buffer
        .ok_or_else(|| Error::Internal("a changed table has no buffer".to_owned()))?;
    let mut delta: Vec<_> = table
        .columns
        .iter()
        .map(|c| format!("c{} AS {}", c.attnum, shown(&c.name)))
        .collect();
    let sign = if mode == Leaf::Delta { "" } else { "-" };
    delta.push(format!("{sign}w AS {WEIGHT}"));
    let delta = format!("SELECT {} FROM pgtrickle.delta_{buffer}", delta.join(", "));
    let sql = if mode == Leaf::Delta {
        delta
    } else {
        let mut new: Vec<_> = table
            .columns
            .iter()
            .map(|c| format!("{} AS {}", quote(&c.name), shown(&c.name)))
            .collect();
        new.push(format!("1::pg_catalog.int8 AS {WEIGHT}"));
        format!(
            "SELECT {} FROM {} UNION ALL {delta}",
            new.join(", "),
            table.qualified()
        )
    };
    let alias = relation
        .alias
        .as_ref()
        .map_or(&relation.relname, |a| &a.aliasname)
        .clone();
    let sub = RangeSubselect {
        lateral: false,
        subquery: Some(Box::new(ast::node(NodeEnum::SelectStmt(Box::new(
            parse_select(&sql)?,
        ))))),
        alias: Some(pg_query::protobuf::Alias {
            aliasname: alias.clone(),
            colnames: Vec::new(),
        }),
    };
    Ok((ast::node(NodeEnum::RangeSubselect(sub.into())), alias))
}
