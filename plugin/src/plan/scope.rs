//! Which names a sub-select takes from outside.

use std::collections::BTreeSet;

use pg_query::NodeEnum;
use pg_query::protobuf::{Node, SelectStmt};

use super::ast::{aliases, clauses, inner, reference, walk};
use super::inline::calls;

/// The qualifiers a SELECT uses and does not define. Names are unique from level to level, as PostgreSQL writes a view.
pub(crate) fn free(select: &SelectStmt) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    in_select(&mut select.clone(), &mut Vec::new(), &mut found);
    found
}

type Defined = Vec<String>;

fn in_select(select: &mut SelectStmt, defined: &mut Defined, found: &mut BTreeSet<String>) {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        in_select(side, defined, found);
    }
    let depth = defined.len();
    defined.extend(select.from_clause.iter().flat_map(aliases));
    for item in &mut select.from_clause {
        in_item(item, defined, found);
    }
    for clause in clauses(select) {
        in_expr(clause, defined, found);
    }
    defined.truncate(depth);
}

fn in_item(item: &mut Node, defined: &mut Defined, found: &mut BTreeSet<String>) {
    match item.node.as_mut() {
        Some(NodeEnum::RangeSubselect(sub)) => {
            if let Some(select) = inner(sub.subquery.as_mut()) {
                in_select(select, defined, found);
            }
        }
        Some(NodeEnum::JoinExpr(join)) => {
            for side in [&mut join.larg, &mut join.rarg].into_iter().flatten() {
                in_item(side, defined, found);
            }
            if let Some(quals) = join.quals.as_deref_mut() {
                in_expr(quals, defined, found);
            }
        }
        Some(NodeEnum::RangeFunction(function)) => {
            for call in calls(function) {
                in_expr(call, defined, found);
            }
        }
        _ => {}
    }
}

fn in_expr(expr: &mut Node, defined: &mut Defined, found: &mut BTreeSet<String>) {
    walk(expr, &mut |e| {
        if let Some((alias, _)) = reference(e)
            && !defined.iter().any(|d| d == alias)
        {
            found.insert(alias.to_owned());
        }
        if let Some(NodeEnum::SubLink(sublink)) = &mut e.node
            && let Some(select) = inner(sublink.subselect.as_mut())
        {
            in_select(select, defined, found);
        }
        true
    });
}
