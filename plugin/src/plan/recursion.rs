//! WITH RECURSIVE: which can be kept from changes, and what is made of it.
//!
//! The result `r` of `base UNION [ALL] step(r)` is a stage. The step must be linear in `r`: each row of its result comes of
//! one row of `r`, whatever the others are. ([`crate::delta::recursion`] says what follows from that.) PostgreSQL itself
//! refuses steps that read `r` twice, in a sub-select of an expression or on the nullable side of an outer join.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    Alias, CommonTableExpr, JoinType, Node, RangeVar, SelectStmt, SetOperation,
};

use super::ast::{self, each_table, output_names, sval};
use super::inline::Reason;
use super::scope::free;
use super::{Body, Column, Image, Recursive};

/// Why a recursion is recomputed as a whole whose step does more than to take row by row.
pub(super) const NOT_LINEAR: &str =
    "its recursive term depends on more than one row of the recursion at a time";

/// A recursive WITH query. What reads it, its own step included, reads a table of this name in schema pgtrickle, until the
/// stage has one.
#[derive(Debug, Clone)]
pub(crate) struct Recursion {
    pub name: String,
    pub columns: Vec<String>,
    pub base: SelectStmt,
    pub step: SelectStmt,
    pub all: bool,
}

impl Recursion {
    /// Takes a query apart that mentions itself.
    ///
    /// # Errors
    /// The reason why it can only be recomputed as a whole.
    pub(super) fn new(
        name: String,
        columns: Vec<String>,
        mut select: SelectStmt,
    ) -> Result<Self, Reason> {
        if !free(&select).is_empty() {
            return Err("its recursion depends on the query around it".to_owned());
        }
        let all = select.all;
        match (select.op, select.larg.take(), select.rarg.take()) {
            (op, Some(base), Some(step)) if op == SetOperation::SetopUnion as i32 => Ok(Self {
                name,
                columns,
                base: *base,
                step: *step,
                all,
            }),
            _ => Err("its recursion is no UNION".to_owned()),
        }
    }

    /// As a table with columns.
    pub(super) fn as_table(&self) -> ((String, String), Vec<String>) {
        (
            ("pgtrickle".to_owned(), self.name.clone()),
            self.columns.clone(),
        )
    }
}

/// A name that no other table has.
pub(super) fn placeholder(number: usize) -> String {
    format!("__pgt_recursion_{number}_")
}

/// The names of a WITH query's columns.
pub(super) fn columns(cte: &CommonTableExpr, select: &SelectStmt) -> Vec<String> {
    let mut names = output_names(select);
    for (name, given) in names.iter_mut().zip(&cte.aliascolnames) {
        if let Some(given) = sval(given) {
            given.clone_into(name);
        }
    }
    names
}

/// An item of FROM that reads the recursion.
pub(super) fn mention(name: &str, alias: &str, columns: &[String]) -> Node {
    ast::node(NodeEnum::RangeVar(RangeVar {
        schemaname: "pgtrickle".to_owned(),
        relname: name.to_owned(),
        inh: true,
        relpersistence: "p".to_owned(),
        alias: Some(Alias {
            aliasname: alias.to_owned(),
            colnames: columns.iter().map(|c| ast::string(c)).collect(),
        }),
        ..RangeVar::default()
    }))
}

pub(super) fn is_mention(relation: &RangeVar, name: &str) -> bool {
    relation.schemaname == "pgtrickle" && relation.relname == name
}

/// How often a query reads the recursion.
pub(super) fn mentions(select: &mut SelectStmt, name: &str) -> usize {
    let mut n = 0;
    each_table(select, &mut |r| n += usize::from(is_mention(r, name)));
    n
}

/// Gives the recursion another name in a query.
pub(super) fn rename(select: &mut SelectStmt, old: &str, new: &str) {
    each_table(select, &mut |relation| {
        if is_mention(relation, old) {
            new.clone_into(&mut relation.relname);
        }
    });
}

/// Has a query read the recursion as the WITH query of this name.
pub(super) fn unqualify(select: &mut SelectStmt, old: &str, new: &str) {
    each_table(select, &mut |relation| {
        if is_mention(relation, old) {
            relation.schemaname.clear();
            new.clone_into(&mut relation.relname);
        }
    });
}

/// Whether a query is the recursion and nothing else.
pub(super) fn is_all_of(select: &SelectStmt, recursion: &Recursion) -> bool {
    let is_simple = SelectStmt {
        target_list: Vec::new(),
        from_clause: Vec::new(),
        ..select.clone()
    } == ast::empty_select();
    let [item] = select.from_clause.as_slice() else {
        return false;
    };
    let Some(NodeEnum::RangeVar(relation)) = &item.node else {
        return false;
    };
    let alias = relation.alias.as_ref();
    let names = alias.map(|a| a.colnames.iter().filter_map(sval).collect::<Vec<_>>());
    let shown = select.target_list.iter().map(|target| match &target.node {
        Some(NodeEnum::ResTarget(target)) => {
            match target.val.as_ref().and_then(|v| v.node.as_ref()) {
                Some(NodeEnum::ColumnRef(column)) => column.fields.last().and_then(sval),
                _ => None,
            }
        }
        _ => None,
    });
    let shown: Option<Vec<_>> = shown.collect();
    is_simple && is_mention(relation, &recursion.name) && shown.is_some() && shown == names
}

/// The query of a recursion by the name of its WITH query, which its step reads.
pub(super) fn query(name: &str, columns: usize, base: &str, step: &str, all: bool) -> String {
    format!(
        "WITH RECURSIVE {name}({}) AS (({base}) UNION {}({step})) SELECT * FROM {name}",
        crate::delta::numbered("c", columns).join(", "),
        if all { "ALL " } else { "" }
    )
}

/// A query that may have more duplicates.
pub(super) fn keep_duplicates(select: &mut SelectStmt) {
    if select.limit_count.is_some() || select.limit_offset.is_some() {
        return;
    }
    if select.op == SetOperation::SetopUnion as i32 {
        select.all = true;
        for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
            keep_duplicates(side);
        }
    } else if select.distinct_clause.iter().all(|d| d.node.is_none()) {
        // DISTINCT without ON is a list of one empty node.
        select.distinct_clause.clear();
    }
}

/// Whether a step takes the rows of the recursion one by one. `is_plain`: whether a SELECT takes those of its FROM so.
///
/// # Errors
/// The reason why it can only be recomputed as a whole.
pub(super) fn check(
    step: &SelectStmt,
    name: &str,
    is_plain: &impl Fn(&SelectStmt) -> bool,
) -> Result<(), Reason> {
    if step.larg.is_some() {
        // An arm that does not read the recursion has rows only while that finds any.
        return Err("its recursive term is a set operation".to_owned());
    }
    if takes(step, name, is_plain) {
        Ok(())
    } else {
        Err(NOT_LINEAR.to_owned())
    }
}

fn takes(select: &SelectStmt, name: &str, is_plain: &impl Fn(&SelectStmt) -> bool) -> bool {
    is_plain(select)
        && select
            .from_clause
            .iter()
            .any(|item| item_takes(item, name, is_plain))
}

fn item_takes(item: &Node, name: &str, is_plain: &impl Fn(&SelectStmt) -> bool) -> bool {
    let side = |side: &Option<Box<Node>>| {
        side.as_deref()
            .is_some_and(|side| item_takes(side, name, is_plain))
    };
    match &item.node {
        Some(NodeEnum::RangeVar(relation)) => is_mention(relation, name),
        Some(NodeEnum::JoinExpr(join)) => {
            side(&join.larg) || join.jointype == JoinType::JoinInner as i32 && side(&join.rarg)
        }
        Some(NodeEnum::RangeSubselect(sub)) => match sub.subquery.as_ref().map(|q| &q.node) {
            Some(Some(NodeEnum::SelectStmt(select))) => takes(select, name, is_plain),
            _ => false,
        },
        _ => false,
    }
}

impl Recursive {
    /// The whole query; `step` reads the WITH query `name`.
    pub(crate) fn query(&self, name: &str, columns: usize, base: &str, step: &str) -> String {
        query(name, columns, base, step, self.all)
    }

    /// With the columns of its result.
    ///
    /// # Errors
    /// The reason why it can only be recomputed as a whole.
    pub(super) fn typed(self, columns: &[Column]) -> Result<Body, Reason> {
        let loose = columns.iter().find(|c| c.image != Image::Plain);
        match loose {
            // Which of them PostgreSQL keeps is a matter of chance, and all that is found from it depends on that.
            Some(loose) if !self.all => Err(format!(
                "its recursion removes duplicates by type {}, whose equal values may look different",
                loose.type_name
            )),
            _ => Ok(Body::Recursive(self)),
        }
    }
}
