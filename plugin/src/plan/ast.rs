//! Small helpers over pg_query's syntax tree.

use pg_query::NodeEnum;
use pg_query::protobuf::{ColumnRef, Node, ResTarget, SelectStmt, SetOperation};

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
    let field = |sval: &str| {
        node(NodeEnum::String(pg_query::protobuf::String {
            sval: sval.to_owned(),
        }))
    };
    node(NodeEnum::ColumnRef(ColumnRef {
        fields: vec![field(qualifier), field(column)],
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

/// The sub-expressions of an expression; `None` for a kind of node this code does not know, which the caller must take
/// for a reason not to touch the query.
pub(crate) fn children(expr: &mut Node) -> Option<Vec<&mut Node>> {
    let mut out: Vec<&mut Node> = Vec::new();
    match expr.node.as_mut()? {
        NodeEnum::ColumnRef(_)
        | NodeEnum::AConst(_)
        | NodeEnum::SqlvalueFunction(_)
        | NodeEnum::Integer(_)
        | NodeEnum::String(_) => {}
        NodeEnum::FuncCall(f) => {
            if f.over.is_some() {
                return None;
            }
            out.extend(f.args.iter_mut());
            out.extend(f.agg_order.iter_mut());
            out.extend(f.agg_filter.as_deref_mut());
        }
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

/// What a node is called in a reason shown to the user.
pub(crate) fn describe(expr: &Node) -> &'static str {
    match &expr.node {
        Some(NodeEnum::SubLink(_)) => "a sub-select in an expression",
        Some(NodeEnum::GroupingFunc(_)) => "GROUPING()",
        Some(NodeEnum::FuncCall(f)) if f.over.is_some() => "a window function",
        _ => "an expression of a kind that is only recomputed as a whole",
    }
}
