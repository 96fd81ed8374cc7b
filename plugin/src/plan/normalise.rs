//! Brings a query into the few forms the rest of the planner knows: every column qualified, joins with ON and no RIGHT JOIN,
//! `x IN (SELECT …)` that only filters as EXISTS.

use std::collections::BTreeMap;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AExprKind, BoolExprType, CoalesceExpr, JoinExpr, JoinType, Node, RangeVar, SelectStmt,
    SetOperation, SubLink, SubLinkType,
};

use super::ast::{self, aliases, clauses, conjuncts, inner, output_names, reference, sval, walk};
use super::inline::{Reason, calls};

/// Column names of tables, by (schema, name).
pub(crate) type Tables = BTreeMap<(String, String), Vec<String>>;

/// Normalises a query at any depth. Its views and WITH queries are inlined.
///
/// # Errors
/// The reason why the query can only be recomputed as a whole.
pub(crate) fn normalise(select: &mut SelectStmt, tables: &Tables) -> Result<(), Reason> {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        normalise(side, tables)?;
    }
    let mut from = std::mem::take(&mut select.from_clause);
    for item in &mut from {
        join(item, tables)?;
    }
    // A merged column is no column any more below.
    let names = output_names(select);
    for (t, name) in select.target_list.iter_mut().zip(names) {
        if let Some(NodeEnum::ResTarget(t)) = &mut t.node
            && t.name.is_empty()
            && matches!(
                t.val.as_ref().and_then(|v| v.node.as_ref()),
                Some(NodeEnum::ColumnRef(_))
            )
        {
            t.name = name;
        }
    }
    for clause in clauses(select) {
        sublinks(clause, tables)?;
        qualify(clause, &from, tables);
    }
    select.from_clause = from;
    if let Some(condition) = select.where_clause.take() {
        let conditions = conjuncts(&condition)
            .into_iter()
            .map(|c| in_as_exists(c).unwrap_or_else(|| c.clone()))
            .collect();
        select.where_clause = ast::all_of(conditions).map(Box::new);
    }
    Ok(())
}

/// The sub-selects of an expression.
fn sublinks(expr: &mut Node, tables: &Tables) -> Result<(), Reason> {
    let mut result = Ok(());
    ast::each_sublink(expr, &mut |sublink| {
        if let Some(select) = inner(sublink.subselect.as_mut())
            && result.is_ok()
        {
            result = normalise(select, tables);
        }
    });
    result
}

fn join(item: &mut Node, tables: &Tables) -> Result<(), Reason> {
    match item.node.as_mut() {
        Some(NodeEnum::RangeSubselect(sub)) => {
            inner(sub.subquery.as_mut()).map_or(Ok(()), |select| normalise(select, tables))
        }
        Some(NodeEnum::RangeFunction(function)) => {
            for call in calls(function) {
                sublinks(call, tables)?;
            }
            Ok(())
        }
        Some(NodeEnum::JoinExpr(expr)) => {
            for side in [&mut expr.larg, &mut expr.rarg].into_iter().flatten() {
                join(side, tables)?;
            }
            if let Some(quals) = expr.quals.as_deref_mut() {
                sublinks(quals, tables)?;
            }
            if expr.jointype == JoinType::JoinRight as i32 {
                std::mem::swap(&mut expr.larg, &mut expr.rarg);
                expr.jointype = JoinType::JoinLeft as i32;
            }
            using(expr, tables)
        }
        _ => Ok(()),
    }
}

/// Writes USING as ON.
fn using(join: &mut JoinExpr, tables: &Tables) -> Result<(), Reason> {
    let mut conditions = Vec::new();
    for name in std::mem::take(&mut join.using_clause) {
        let name = sval(&name).unwrap_or_default();
        let sides = [&join.larg, &join.rarg].map(|side| {
            side.as_deref()
                .and_then(|side| resolve(side, name, tables))
                .ok_or_else(|| "it has a USING whose columns are not found".to_owned())
        });
        let [left, right] = sides;
        conditions.push(equal(left?, right?));
    }
    if let Some(condition) = ast::all_of(conditions) {
        join.quals = Some(Box::new(condition));
    }
    Ok(())
}

/// `left = right`
pub(super) fn equal(left: Node, right: Node) -> Node {
    operator(vec![ast::string("=")], left, right)
}

/// `left IS DISTINCT FROM right`.
pub(super) fn distinct(left: Node, right: Node) -> Node {
    expression(
        AExprKind::AexprDistinct,
        vec![ast::string("=")],
        left,
        right,
    )
}

fn operator(name: Vec<Node>, left: Node, right: Node) -> Node {
    expression(AExprKind::AexprOp, name, left, right)
}

fn expression(kind: AExprKind, name: Vec<Node>, left: Node, right: Node) -> Node {
    ast::node(NodeEnum::AExpr(Box::new(pg_query::protobuf::AExpr {
        kind: kind as i32,
        name,
        lexpr: Some(Box::new(left)),
        rexpr: Some(Box::new(right)),
        location: 0,
        ..Default::default()
    })))
}

/// What an unqualified name means in an item of FROM.
fn resolve(item: &Node, name: &str, tables: &Tables) -> Option<Node> {
    match &item.node {
        Some(NodeEnum::RangeVar(relation)) => {
            let has = columns_of(relation, tables).iter().any(|c| c == name);
            has.then(|| ast::column(&aliases(item)[0], name))
        }
        Some(NodeEnum::RangeSubselect(sub)) => {
            let alias = sub.alias.as_ref()?;
            let inner = match sub.subquery.as_ref()?.node.as_ref()? {
                NodeEnum::SelectStmt(select) => output_names(select),
                _ => return None,
            };
            let names = renamed(inner, &alias.colnames);
            let has = names.iter().any(|c| c == name);
            has.then(|| ast::column(&alias.aliasname, name))
        }
        Some(NodeEnum::JoinExpr(join)) => {
            let [left, right] = [&join.larg, &join.rarg]
                .map(|side| side.as_deref().and_then(|s| resolve(s, name, tables)));
            match (left, right) {
                (Some(left), Some(right)) if join.jointype == JoinType::JoinFull as i32 => {
                    let merged = CoalesceExpr {
                        args: vec![left, right],
                        ..CoalesceExpr::default()
                    };
                    Some(ast::node(NodeEnum::CoalesceExpr(Box::new(merged))))
                }
                (left, right) => left.or(right),
            }
        }
        _ => None,
    }
}

fn columns_of(relation: &RangeVar, tables: &Tables) -> Vec<String> {
    let columns = tables
        .get(&(relation.schemaname.clone(), relation.relname.clone()))
        .cloned()
        .unwrap_or_default();
    let aliases = relation.alias.as_ref().map(|a| a.colnames.as_slice());
    renamed(columns, aliases.unwrap_or_default())
}

fn renamed(mut names: Vec<String>, aliases: &[Node]) -> Vec<String> {
    for (name, alias) in names.iter_mut().zip(aliases) {
        if let Some(alias) = sval(alias) {
            alias.clone_into(name);
        }
    }
    names
}

/// PostgreSQL writes a column without its table where there is one table only, and the merged columns of a FULL JOIN.
fn qualify(clause: &mut Node, from: &[Node], tables: &Tables) {
    let alone = match from {
        [item] if !matches!(item.node, Some(NodeEnum::JoinExpr(_))) => aliases(item).pop(),
        _ => None,
    };
    walk(clause, &mut |expr| {
        if let Some(NodeEnum::ColumnRef(c)) = &expr.node
            && let [name] = c.fields.as_slice()
            && let Some(name) = sval(name)
        {
            let found = match &alone {
                Some(alias) => Some(ast::column(alias, name)),
                None => from.iter().find_map(|item| resolve(item, name, tables)),
            };
            if let Some(found) = found {
                *expr = found;
            }
            return false;
        }
        true
    });
}

/// The condition by which a row of the sub-select counts for an ANY or ALL: the operand compared with `targets`. `None`
/// where it is not one operator's.
pub(crate) fn comparison(sublink: &SubLink, targets: &[Node]) -> Option<Node> {
    let operand = sublink.testexpr.as_deref()?;
    let name = if sublink.oper_name.is_empty() {
        vec![ast::string("=")]
    } else {
        sublink.oper_name.clone()
    };
    match &operand.node {
        Some(NodeEnum::RowExpr(row)) => {
            let is_equality = matches!(name.as_slice(), [n] if sval(n) == Some("="));
            if !is_equality || row.args.len() != targets.len() {
                return None;
            }
            let pairs = row.args.iter().zip(targets);
            ast::all_of(pairs.map(|(l, r)| equal(l.clone(), r.clone())).collect())
        }
        _ => match targets {
            [target] => Some(operator(name, operand.clone(), target.clone())),
            _ => None,
        },
    }
}

/// The expressions of the target list.
pub(crate) fn targets(select: &SelectStmt) -> Vec<Node> {
    let value = |t: &Node| match &t.node {
        Some(NodeEnum::ResTarget(t)) => t.val.as_deref().cloned(),
        _ => None,
    };
    select.target_list.iter().filter_map(value).collect()
}

/// Whether a SELECT is nothing but targets, FROM and WHERE.
pub(crate) fn is_plain(select: &SelectStmt) -> bool {
    select.op == SetOperation::SetopNone as i32
        && select.values_lists.is_empty()
        && select.distinct_clause.is_empty()
        && select.group_clause.is_empty()
        && select.having_clause.is_none()
        && select.window_clause.is_empty()
        && select.limit_count.is_none()
        && select.limit_offset.is_none()
}

/// A condition that is `x IN (SELECT y FROM …)` as EXISTS, which stays index-friendly in every state of its tables. Only
/// where NULL means the same as false.
fn in_as_exists(condition: &Node) -> Option<Node> {
    let Some(NodeEnum::SubLink(sublink)) = &condition.node else {
        return None;
    };
    if sublink.sub_link_type != SubLinkType::AnySublink as i32 {
        return None;
    }
    let Some(NodeEnum::SelectStmt(select)) = &sublink.subselect.as_ref()?.node else {
        return None;
    };
    let mut select = (**select).clone();
    // Aggregates and window functions show in the targets only: any function call there is left alone.
    let mut targets = targets(&select);
    let mut calls = false;
    for target in &mut targets {
        walk(target, &mut |e| {
            calls |= matches!(e.node, Some(NodeEnum::FuncCall(_) | NodeEnum::SubLink(_)));
            true
        });
    }
    if calls || !is_plain(&select) || select.from_clause.is_empty() {
        return None;
    }
    let own: Vec<_> = select.from_clause.iter().flat_map(aliases).collect();
    let mut captured = false;
    walk(&mut sublink.testexpr.as_deref()?.clone(), &mut |e| {
        let is_reference = matches!(e.node, Some(NodeEnum::ColumnRef(_)));
        captured |= matches!(e.node, Some(NodeEnum::SubLink(_)))
            || is_reference && reference(e).is_none_or(|(alias, _)| own.iter().any(|o| o == alias));
        true
    });
    if captured {
        return None;
    }
    ast::restrict(&mut select, comparison(sublink, &targets)?);
    select.sort_clause.clear();
    select.target_list.clear();
    Some(ast::exists_select(select))
}

/// NOT a condition.
pub(crate) fn not(condition: Node) -> Node {
    ast::boolean(BoolExprType::NotExpr, vec![condition])
}
