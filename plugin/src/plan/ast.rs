//! Small helpers over pg_query's syntax tree.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    Alias, BoolExpr, BoolExprType, ColumnRef, Node, RangeSubselect, RangeVar, ResTarget,
    SelectStmt, SetOperation, SubLink, SubLinkType, WindowDef,
};

use crate::conn::Error;

/// Parses text that is one SELECT (or VALUES, TABLE).
///
/// # Errors
/// [`Error::Internal`] if it is not: the caller gives text PostgreSQL has accepted.
pub(crate) fn parse_select(sql: &str) -> Result<SelectStmt, Error> {
    let parsed = pg_query::parse(sql, pg_query::ParserOptions::default())
        .map_err(|e| Error::Internal(format!("cannot parse {sql:?}: {e}")))?;
    let mut statements = parsed.protobuf.stmts;
    match (
        statements.pop().and_then(|s| s.stmt).and_then(|s| s.node),
        statements.is_empty(),
    ) {
        (Some(NodeEnum::SelectStmt(select)), true) => Ok(*select),
        _ => Err(Error::Internal(format!("not one SELECT: {sql:?}"))),
    }
}

/// The text of a SELECT.
///
/// # Errors
/// [`Error::Internal`] if the tree cannot be written.
pub(crate) fn select_text(select: &SelectStmt) -> Result<String, Error> {
    NodeEnum::SelectStmt(Box::new(select.clone()))
        .deparse(pg_query::DeparseOptions::default())
        .map_err(|e| Error::Internal(format!("cannot write a statement: {e}")))
}

/// The text of an expression: equal texts mean equal expressions (locations do not count).
///
/// # Errors
/// As [`select_text`].
pub(crate) fn expr_text(expr: &Node) -> Result<String, Error> {
    let select = SelectStmt {
        target_list: vec![target("", expr.clone())],
        ..empty_select()
    };
    let text = select_text(&select)?;
    Ok(text.strip_prefix("SELECT ").unwrap_or(&text).to_owned())
}

/// Parses an expression of ours.
///
/// # Errors
/// [`Error::Internal`] if the text is not an expression.
pub(crate) fn parse_expr(text: &str) -> Result<Node, Error> {
    let select = parse_select(&format!("SELECT {text}"))?;
    select
        .target_list
        .into_iter()
        .next()
        .and_then(|t| match t.node {
            Some(NodeEnum::ResTarget(target)) => target.val.map(|v| *v),
            _ => None,
        })
        .ok_or_else(|| Error::Internal(format!("not an expression: {text}")))
}

pub(crate) fn empty_select() -> SelectStmt {
    SelectStmt {
        op: SetOperation::SetopNone as i32,
        limit_option: 1,
        ..SelectStmt::default()
    }
}

/// An output column `val AS name` (no name if empty).
pub(crate) fn target(name: &str, val: Node) -> Node {
    node(NodeEnum::ResTarget(Box::new(ResTarget {
        name: name.to_owned(),
        indirection: Vec::new(),
        val: Some(Box::new(val)),
        location: 0,
    })))
}

/// A reference `qualifier.column`.
pub(crate) fn column(qualifier: &str, column: &str) -> Node {
    node(NodeEnum::ColumnRef(ColumnRef {
        fields: vec![string(qualifier), string(column)],
        location: 0,
    }))
}

pub(crate) fn node(node: NodeEnum) -> Node {
    Node { node: Some(node) }
}

/// The text of a String node, and nothing else's.
pub(crate) fn sval(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::String(s)) => Some(&s.sval),
        _ => None,
    }
}

/// Schema (empty: none written) and name of a possibly qualified name.
pub(crate) fn qualified(names: &[Node]) -> (&str, &str) {
    match names {
        [name] => ("", sval(name).unwrap_or_default()),
        [.., schema, name] => (
            sval(schema).unwrap_or_default(),
            sval(name).unwrap_or_default(),
        ),
        [] => ("", ""),
    }
}

/// The sub-expressions of an expression, but not the sub-select of a SubLink; `None` for a kind of node this code does not
/// know, which the caller must take for a reason not to touch the query.
pub(crate) fn children(expr: &mut Node) -> Option<Vec<&mut Node>> {
    let mut out: Vec<&mut Node> = Vec::new();
    match expr.node.as_mut()? {
        NodeEnum::ColumnRef(_)
        | NodeEnum::AConst(_)
        | NodeEnum::SqlvalueFunction(_)
        | NodeEnum::Integer(_)
        | NodeEnum::String(_) => {}
        NodeEnum::ResTarget(t) => out.extend(t.val.as_deref_mut()),
        NodeEnum::FuncCall(f) => {
            out.extend(f.args.iter_mut());
            out.extend(f.agg_order.iter_mut());
            out.extend(f.agg_filter.as_deref_mut());
            if let Some(window) = f.over.as_deref_mut() {
                window_children(window, &mut out);
            }
        }
        NodeEnum::WindowDef(window) => window_children(window, &mut out),
        NodeEnum::SubLink(s) => out.extend(s.testexpr.as_deref_mut()),
        NodeEnum::GroupingSet(g) => out.extend(g.content.iter_mut()),
        NodeEnum::GroupingFunc(g) => out.extend(g.args.iter_mut()),
        NodeEnum::AExpr(e) => {
            out.extend(e.lexpr.as_deref_mut());
            out.extend(e.rexpr.as_deref_mut());
        }
        NodeEnum::BoolExpr(e) => out.extend(e.args.iter_mut()),
        NodeEnum::CaseExpr(e) => {
            out.extend(e.arg.as_deref_mut());
            out.extend(e.args.iter_mut());
            out.extend(e.defresult.as_deref_mut());
        }
        NodeEnum::CaseWhen(e) => {
            out.extend(e.expr.as_deref_mut());
            out.extend(e.result.as_deref_mut());
        }
        NodeEnum::TypeCast(e) => out.extend(e.arg.as_deref_mut()),
        NodeEnum::CoalesceExpr(e) => out.extend(e.args.iter_mut()),
        NodeEnum::XmlExpr(e) => {
            out.extend(e.named_args.iter_mut());
            out.extend(e.args.iter_mut());
        }
        NodeEnum::XmlSerialize(e) => out.extend(e.expr.as_deref_mut()),
        NodeEnum::MinMaxExpr(e) => out.extend(e.args.iter_mut()),
        NodeEnum::NullTest(e) => out.extend(e.arg.as_deref_mut()),
        NodeEnum::BooleanTest(e) => out.extend(e.arg.as_deref_mut()),
        NodeEnum::AArrayExpr(e) => out.extend(e.elements.iter_mut()),
        NodeEnum::RowExpr(e) => out.extend(e.args.iter_mut()),
        NodeEnum::List(e) => out.extend(e.items.iter_mut()),
        NodeEnum::CollateClause(e) => out.extend(e.arg.as_deref_mut()),
        NodeEnum::NamedArgExpr(e) => out.extend(e.arg.as_deref_mut()),
        NodeEnum::SortBy(e) => out.extend(e.node.as_deref_mut()),
        NodeEnum::AIndirection(e) => {
            out.extend(e.arg.as_deref_mut());
            out.extend(e.indirection.iter_mut());
        }
        NodeEnum::AIndices(e) => {
            out.extend(e.lidx.as_deref_mut());
            out.extend(e.uidx.as_deref_mut());
        }
        _ => return None,
    }
    Some(out)
}

/// Whether a node only holds expressions, and has no text of its own.
pub(crate) fn is_holder(node: &Node) -> bool {
    matches!(
        node.node,
        Some(
            NodeEnum::ResTarget(_)
                | NodeEnum::SortBy(_)
                | NodeEnum::WindowDef(_)
                | NodeEnum::List(_)
                | NodeEnum::CaseWhen(_)
                | NodeEnum::AIndices(_)
        )
    )
}

fn window_children<'a>(window: &'a mut WindowDef, out: &mut Vec<&'a mut Node>) {
    out.extend(window.partition_clause.iter_mut());
    out.extend(window.order_clause.iter_mut());
    out.extend(window.start_offset.as_deref_mut());
    out.extend(window.end_offset.as_deref_mut());
}

/// The expressions of a SELECT but those in FROM, in a fixed order. WHERE is the first, if there is one.
pub(crate) fn clauses(select: &mut SelectStmt) -> Vec<&mut Node> {
    let mut out: Vec<&mut Node> = Vec::new();
    out.extend(select.where_clause.as_deref_mut());
    // DISTINCT without ON is a list of one empty node.
    out.extend(
        select
            .distinct_clause
            .iter_mut()
            .filter(|d| d.node.is_some()),
    );
    out.extend(select.target_list.iter_mut());
    out.extend(select.group_clause.iter_mut());
    out.extend(select.having_clause.as_deref_mut());
    out.extend(select.window_clause.iter_mut());
    out.extend(select.values_lists.iter_mut());
    out.extend(select.sort_clause.iter_mut());
    out.extend(select.limit_offset.as_deref_mut());
    out.extend(select.limit_count.as_deref_mut());
    out
}

/// Calls `f` for an expression and all below it, from above; below a node for which it says `false` it is not called.
pub(crate) fn walk(expr: &mut Node, f: &mut impl FnMut(&mut Node) -> bool) {
    if f(expr) {
        for child in children(expr).unwrap_or_default() {
            walk(child, f);
        }
    }
}

/// Calls `f` for each sub-select of an expression, those in an operand before the one it is an operand of; not for those
/// within a sub-select.
pub(crate) fn each_sublink(expr: &mut Node, f: &mut impl FnMut(&mut SubLink)) {
    for child in children(expr).unwrap_or_default() {
        each_sublink(child, f);
    }
    if let Some(NodeEnum::SubLink(sublink)) = &mut expr.node {
        f(sublink);
    }
}

/// The SELECT of a SubLink or of a sub-select in FROM.
pub(crate) fn inner(subquery: Option<&mut Box<Node>>) -> Option<&mut SelectStmt> {
    match subquery?.node.as_mut()? {
        NodeEnum::SelectStmt(select) => Some(select),
        _ => None,
    }
}

/// What AND connects, at any depth.
pub(crate) fn conjuncts(condition: &Node) -> Vec<&Node> {
    match &condition.node {
        Some(NodeEnum::BoolExpr(e)) if e.boolop == BoolExprType::AndExpr as i32 => {
            e.args.iter().flat_map(conjuncts).collect()
        }
        _ => vec![condition],
    }
}

/// `conditions` connected by AND; `None` if there are none.
pub(crate) fn all_of(mut conditions: Vec<Node>) -> Option<Node> {
    if conditions.len() < 2 {
        return conditions.pop();
    }
    Some(boolean(BoolExprType::AndExpr, conditions))
}

/// AND, OR or NOT.
pub(crate) fn boolean(operator: BoolExprType, args: Vec<Node>) -> Node {
    node(NodeEnum::BoolExpr(Box::new(BoolExpr {
        xpr: None,
        boolop: operator as i32,
        args,
        location: 0,
    })))
}

/// Adds a condition to WHERE.
pub(crate) fn restrict(select: &mut SelectStmt, condition: Node) {
    let mut conditions: Vec<_> = select.where_clause.take().map(|w| *w).into_iter().collect();
    conditions.push(condition);
    select.where_clause = all_of(conditions).map(Box::new);
}

/// `EXISTS (SELECT FROM from WHERE conditions)`
pub(crate) fn exists(from: Vec<Node>, conditions: Vec<Node>) -> Node {
    exists_select(SelectStmt {
        from_clause: from,
        where_clause: all_of(conditions).map(Box::new),
        ..empty_select()
    })
}

/// `EXISTS (select)`
pub(crate) fn exists_select(select: SelectStmt) -> Node {
    node(NodeEnum::SubLink(Box::new(SubLink {
        sub_link_type: SubLinkType::ExistsSublink as i32,
        subselect: Some(Box::new(node(NodeEnum::SelectStmt(Box::new(select))))),
        ..SubLink::default()
    })))
}

/// `(select) alias (columns)` for FROM.
pub(crate) fn range(select: SelectStmt, alias: &str, columns: &[String]) -> Node {
    node(NodeEnum::RangeSubselect(
        RangeSubselect {
            lateral: false,
            subquery: Some(Box::new(node(NodeEnum::SelectStmt(Box::new(select))))),
            alias: Some(Alias {
                aliasname: alias.to_owned(),
                colnames: columns.iter().map(|c| string(c)).collect(),
            }),
        }
        .into(),
    ))
}

/// A String node.
pub(crate) fn string(text: &str) -> Node {
    node(NodeEnum::String(pg_query::protobuf::String {
        sval: text.to_owned(),
    }))
}

/// The names an item of FROM can be referred to by.
pub(crate) fn aliases(item: &Node) -> Vec<String> {
    let named = |alias: &Option<Alias>| alias.as_ref().map(|a| a.aliasname.clone());
    match &item.node {
        Some(NodeEnum::RangeVar(r)) => {
            vec![named(&r.alias).unwrap_or_else(|| r.relname.clone())]
        }
        Some(NodeEnum::RangeSubselect(s)) => named(&s.alias).into_iter().collect(),
        Some(NodeEnum::RangeFunction(f)) => named(&f.alias).into_iter().collect(),
        Some(NodeEnum::JoinExpr(join)) => [&join.larg, &join.rarg]
            .into_iter()
            .flatten()
            .flat_map(|side| aliases(side))
            .collect(),
        _ => Vec::new(),
    }
}

/// The qualifier and the column of a reference; `None` for a reference without qualifier and for all that is none.
pub(crate) fn reference(expr: &Node) -> Option<(&str, &str)> {
    match &expr.node {
        Some(NodeEnum::ColumnRef(c)) => match c.fields.as_slice() {
            [.., qualifier, column] => Some((sval(qualifier)?, sval(column)?)),
            _ => None,
        },
        _ => None,
    }
}

/// The names of a query's columns, as PostgreSQL writes a view: an alias where the name is not that of the column.
pub(crate) fn output_names(select: &SelectStmt) -> Vec<String> {
    if let Some(left) = &select.larg {
        return output_names(left);
    }
    if let Some(Node {
        node: Some(NodeEnum::List(row)),
    }) = select.values_lists.first()
    {
        return (1..=row.items.len())
            .map(|i| format!("column{i}"))
            .collect();
    }
    select
        .target_list
        .iter()
        .map(|t| match &t.node {
            Some(NodeEnum::ResTarget(t)) if !t.name.is_empty() => t.name.clone(),
            Some(NodeEnum::ResTarget(t)) => t
                .val
                .as_deref()
                .and_then(|v| match &v.node {
                    Some(NodeEnum::ColumnRef(c)) => c.fields.last().and_then(sval),
                    _ => None,
                })
                .unwrap_or("?column?")
                .to_owned(),
            _ => "?column?".to_owned(),
        })
        .collect()
}

/// What a node is called in a reason shown to the user.
pub(crate) fn describe(expr: &Node) -> &'static str {
    match &expr.node {
        Some(NodeEnum::SubLink(_)) => "a sub-select in an expression",
        Some(NodeEnum::GroupingFunc(_)) => "GROUPING()",
        Some(NodeEnum::FuncCall(f)) if f.over.is_some() => "a window function",
        _ => "an expression of a kind that is only recomputed as a whole",
    }
}

/// Calls `f` for every table in a query, in a fixed order: those of FROM (of a join the left side, the right side, then
/// those in its condition), then those of the sub-selects in expressions.
pub(crate) fn each_table(select: &mut SelectStmt, f: &mut impl FnMut(&mut RangeVar)) {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        each_table(side, f);
    }
    for item in &mut select.from_clause {
        each_table_of_item(item, f);
    }
    for clause in clauses(select) {
        each_table_of_expr(clause, f);
    }
}

/// The same for an item of FROM.
pub(crate) fn each_table_of_item(item: &mut Node, f: &mut impl FnMut(&mut RangeVar)) {
    match item.node.as_mut() {
        Some(NodeEnum::RangeVar(relation)) => f(relation),
        Some(NodeEnum::RangeSubselect(sub)) => {
            if let Some(select) = inner(sub.subquery.as_mut()) {
                each_table(select, f);
            }
        }
        Some(NodeEnum::JoinExpr(join)) => {
            for side in [&mut join.larg, &mut join.rarg].into_iter().flatten() {
                each_table_of_item(side, f);
            }
            if let Some(quals) = join.quals.as_deref_mut() {
                each_table_of_expr(quals, f);
            }
        }
        Some(NodeEnum::RangeFunction(function)) => {
            for call in super::inline::calls(function) {
                each_table_of_expr(call, f);
            }
        }
        _ => {}
    }
}

/// The same for an expression.
pub(crate) fn each_table_of_expr(expr: &mut Node, f: &mut impl FnMut(&mut RangeVar)) {
    each_sublink(expr, &mut |sublink| {
        if let Some(select) = inner(sublink.subselect.as_mut()) {
            each_table(select, f);
        }
    });
}

/// Calls `f` for every expression of a query, at any depth.
pub(crate) fn each_expr(select: &mut SelectStmt, f: &mut impl FnMut(&mut Node)) {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        each_expr(side, f);
    }
    for item in &mut select.from_clause {
        each_expr_of_item(item, f);
    }
    for clause in clauses(select) {
        each_expr_below(clause, f);
    }
}

fn each_expr_of_item(item: &mut Node, f: &mut impl FnMut(&mut Node)) {
    match item.node.as_mut() {
        Some(NodeEnum::RangeSubselect(sub)) => {
            if let Some(select) = inner(sub.subquery.as_mut()) {
                each_expr(select, f);
            }
        }
        Some(NodeEnum::JoinExpr(join)) => {
            for side in [&mut join.larg, &mut join.rarg].into_iter().flatten() {
                each_expr_of_item(side, f);
            }
            if let Some(quals) = join.quals.as_deref_mut() {
                each_expr_below(quals, f);
            }
        }
        Some(NodeEnum::RangeFunction(function)) => {
            for call in super::inline::calls(function) {
                each_expr_below(call, f);
            }
        }
        _ => {}
    }
}

fn each_expr_below(expr: &mut Node, f: &mut impl FnMut(&mut Node)) {
    walk(expr, &mut |e| {
        f(e);
        if let Some(NodeEnum::SubLink(sublink)) = &mut e.node
            && let Some(select) = inner(sublink.subselect.as_mut())
        {
            each_expr(select, f);
        }
        true
    });
}

/// Calls `f` for every item of FROM that is not a join, at any depth.
pub(crate) fn each_item(select: &mut SelectStmt, f: &mut impl FnMut(&mut Node)) {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        each_item(side, f);
    }
    for item in &mut select.from_clause {
        each_item_of(item, f);
    }
    for clause in clauses(select) {
        each_item_below(clause, f);
    }
}

fn each_item_of(item: &mut Node, f: &mut impl FnMut(&mut Node)) {
    match item.node.as_mut() {
        Some(NodeEnum::JoinExpr(join)) => {
            for side in [&mut join.larg, &mut join.rarg].into_iter().flatten() {
                each_item_of(side, f);
            }
            if let Some(quals) = join.quals.as_deref_mut() {
                each_item_below(quals, f);
            }
            return;
        }
        Some(NodeEnum::RangeSubselect(sub)) => {
            if let Some(select) = inner(sub.subquery.as_mut()) {
                each_item(select, f);
            }
        }
        Some(NodeEnum::RangeFunction(function)) => {
            for call in super::inline::calls(function) {
                each_item_below(call, f);
            }
        }
        _ => {}
    }
    f(item);
}

fn each_item_below(expr: &mut Node, f: &mut impl FnMut(&mut Node)) {
    each_sublink(expr, &mut |sublink| {
        if let Some(select) = inner(sublink.subselect.as_mut()) {
            each_item(select, f);
        }
    });
}
