//! Takes a SELECT with GROUP BY, aggregates or DISTINCT apart: a linear body below, keys, aggregates, and the output above.

use pg_query::NodeEnum;
use pg_query::protobuf::{Node, SelectStmt};

use super::ast::{self, children, column, describe, expr_text, qualified, select_text};
use super::inline::{Names, Reason};

/// A keyed query in pieces; types are not known yet.
#[derive(Debug)]
pub(crate) struct Pieces {
    /// A linear SELECT of `k1…` and `a1…`.
    pub body: String,
    /// Per key, whether equal values of it have one image, whatever its type says.
    pub keys: Vec<bool>,
    pub args: usize,
    pub calls: Vec<Call>,
    pub grouped: bool,
    pub output: Vec<String>,
    pub having: Option<String>,
}

/// An aggregate call.
#[derive(Debug)]
pub(crate) struct Call {
    /// Over `b.a1…`.
    pub text: String,
    /// The function's name if it is pg_catalog's and the call has nothing special about it but a FILTER.
    pub simple: Option<String>,
    /// The only argument.
    pub arg: Option<usize>,
    pub filter: Option<usize>,
}

/// Whether a SELECT has GROUP BY, HAVING or aggregates.
pub(crate) fn is_grouped(names: &Names, select: &SelectStmt) -> bool {
    let mut select = select.clone();
    !select.group_clause.is_empty()
        || select.having_clause.is_some()
        || select
            .target_list
            .iter_mut()
            .chain(&mut select.sort_clause)
            .any(|t| has_aggregate(names, t))
}

/// Whether an expression calls an aggregate; those of its sub-selects do not count.
pub(crate) fn has_aggregate(names: &Names, expr: &mut Node) -> bool {
    names.is_aggregate(expr)
        || children(expr)
            .is_some_and(|children| children.into_iter().any(|c| has_aggregate(names, c)))
}

/// Takes a query whose input is linear apart.
///
/// # Errors
/// The reason why it cannot be kept incrementally.
pub(crate) fn split(names: &Names, mut select: SelectStmt) -> Result<Pieces, Reason> {
    let is_distinct = !std::mem::take(&mut select.distinct_clause).is_empty();
    let group = std::mem::take(&mut select.group_clause);
    let having = select.having_clause.take();
    let mut targets = Vec::new();
    for target in std::mem::take(&mut select.target_list) {
        if let Some(NodeEnum::ResTarget(target)) = target.node
            && let Some(value) = target.val
        {
            targets.push(*value);
        }
    }
    let mut pieces = Splitter {
        names,
        keys: Vec::new(),
        args: Vec::new(),
        calls: Vec::new(),
    };
    let grouped = !group.is_empty() || is_distinct;
    if is_distinct {
        for target in &mut targets {
            pieces.no_set_function(target)?;
            pieces.key(target)?;
        }
    }
    for mut key in group {
        if matches!(key.node, Some(NodeEnum::AConst(_))) {
            return Err("it groups by a constant".to_owned());
        }
        if matches!(key.node, Some(NodeEnum::RowExpr(_))) {
            return Err("it groups by a row".to_owned());
        }
        pieces.no_set_function(&mut key)?;
        pieces.key(&key)?;
    }
    let mut output = Vec::new();
    for mut target in targets {
        pieces.above(&mut target)?;
        output.push(expr_text(&target).map_err(|e| e.to_string())?);
    }
    let having = match having {
        Some(mut condition) => {
            pieces.above(&mut condition)?;
            Some(expr_text(&condition).map_err(|e| e.to_string())?)
        }
        None => None,
    };
    select.sort_clause.clear();
    for (i, (_, key)) in pieces.keys.iter().enumerate() {
        select
            .target_list
            .push(ast::target(&format!("k{}", i + 1), key.clone()));
    }
    for (i, (_, arg)) in pieces.args.iter().enumerate() {
        select
            .target_list
            .push(ast::target(&format!("a{}", i + 1), arg.clone()));
    }
    Ok(Pieces {
        body: select_text(&select).map_err(|e| e.to_string())?,
        keys: pieces
            .keys
            .iter()
            .map(|(_, key)| has_one_image(key, &select))
            .collect(),
        args: pieces.args.len(),
        calls: pieces.calls.into_iter().map(|(_, call)| call).collect(),
        grouped,
        output,
        having,
    })
}

/// `extract(year FROM …)` and its kin: a numeric, but always without a fraction.
fn has_one_image(key: &Node, select: &SelectStmt) -> bool {
    if let Some((alias, name)) = ast::reference(key) {
        return select.from_clause.iter().any(|item| {
            let Some(NodeEnum::RangeSubselect(sub)) = &item.node else {
                return false;
            };
            let Some(NodeEnum::SelectStmt(inner)) =
                sub.subquery.as_ref().and_then(|q| q.node.as_ref())
            else {
                return false;
            };
            let named = sub
                .alias
                .as_ref()
                .filter(|a| a.aliasname == alias && a.colnames.is_empty());
            let place = ast::output_names(inner).iter().position(|n| n == name);
            match (
                named,
                place.and_then(|p| super::normalise::targets(inner).get(p).cloned()),
            ) {
                (Some(_), Some(target)) => has_one_image(&target, inner),
                _ => false,
            }
        });
    }
    const WHOLE: [&str; 13] = [
        "year", "month", "day", "hour", "minute", "quarter", "week", "dow", "doy", "isodow",
        "isoyear", "decade", "century",
    ];
    let Some(NodeEnum::FuncCall(f)) = &key.node else {
        return false;
    };
    let field = match f.args.first().and_then(|a| a.node.as_ref()) {
        Some(NodeEnum::AConst(c)) => match &c.val {
            Some(pg_query::protobuf::a_const::Val::Sval(s)) => s.sval.as_str(),
            _ => return false,
        },
        _ => return false,
    };
    matches!(qualified(&f.funcname), ("pg_catalog", "extract")) && WHOLE.contains(&field)
}

struct Splitter<'a> {
    names: &'a Names,
    /// Expressions with their text.
    keys: Vec<(String, Node)>,
    args: Vec<(String, Node)>,
    calls: Vec<(String, Call)>,
}

impl Splitter<'_> {
    fn key(&mut self, expr: &Node) -> Result<usize, Reason> {
        let text = expr_text(expr).map_err(|e| e.to_string())?;
        if let Some(i) = self.keys.iter().position(|(t, _)| *t == text) {
            return Ok(i);
        }
        self.keys.push((text, expr.clone()));
        Ok(self.keys.len() - 1)
    }

    fn arg(&mut self, expr: &Node) -> Result<usize, Reason> {
        let text = expr_text(expr).map_err(|e| e.to_string())?;
        if let Some(i) = self.args.iter().position(|(t, _)| *t == text) {
            return Ok(i);
        }
        self.args.push((text, expr.clone()));
        Ok(self.args.len() - 1)
    }

    /// Sub-selects and the like have no place in a key or argument.
    fn no_set_function(&self, expr: &mut Node) -> Result<(), Reason> {
        if self.names.is_aggregate(expr) {
            return Err("it has an aggregate within an aggregate or key".to_owned());
        }
        let reason = describe(expr);
        for child in children(expr).ok_or_else(|| format!("it has {reason}"))? {
            self.no_set_function(child)?;
        }
        Ok(())
    }

    /// Rewrites an expression of the output or of HAVING over the columns of the groups.
    fn above(&mut self, expr: &mut Node) -> Result<(), Reason> {
        let reason = describe(expr);
        if ast::is_holder(expr) {
            for child in children(expr).ok_or_else(|| format!("it has {reason}"))? {
                self.above(child)?;
            }
            return Ok(());
        }
        let text = expr_text(expr).map_err(|e| e.to_string())?;
        if let Some(i) = self.keys.iter().position(|(t, _)| *t == text) {
            *expr = column("g", &format!("k{}", i + 1));
            return Ok(());
        }
        if self.names.is_aggregate(expr) {
            let i = match self.calls.iter().position(|(t, _)| *t == text) {
                Some(i) => i,
                None => {
                    let call = self.call(expr)?;
                    self.calls.push((text, call));
                    self.calls.len() - 1
                }
            };
            *expr = column("g", &format!("g{}", i + 1));
            return Ok(());
        }
        if matches!(expr.node, Some(NodeEnum::ColumnRef(_))) {
            // Not a key, so it depends on one (PostgreSQL knows of a primary key): as good as a key.
            let i = self.key(expr)?;
            *expr = column("g", &format!("k{}", i + 1));
            return Ok(());
        }
        for child in children(expr).ok_or_else(|| format!("it has {reason}"))? {
            self.above(child)?;
        }
        Ok(())
    }

    /// Moves an operand of a call into the body. A row has no type a column could have: its fields move.
    fn operand(&mut self, expr: &mut Node) -> Result<Option<usize>, Reason> {
        if let Some(NodeEnum::RowExpr(row)) = &mut expr.node {
            for field in &mut row.args {
                self.operand(field)?;
            }
            return Ok(None);
        }
        let i = self.arg(expr)?;
        *expr = column("b", &format!("a{}", i + 1));
        Ok(Some(i))
    }

    /// Moves the arguments of a call into the body.
    fn call(&mut self, expr: &Node) -> Result<Call, Reason> {
        let mut expr = expr.clone();
        let Some(NodeEnum::FuncCall(f)) = &mut expr.node else {
            return Err("it has an aggregate of an unknown kind".to_owned());
        };
        let (schema, name) = qualified(&f.funcname);
        let simple = (schema.is_empty() || schema == "pg_catalog")
            && !f.agg_distinct
            && !f.agg_within_group
            && !f.func_variadic
            && f.agg_order.is_empty()
            && (f.agg_star || f.args.len() == 1);
        let simple = simple.then(|| name.to_owned());
        let star = f.agg_star;
        let mut only = None;
        // Direct arguments of ordered-set aggregates must stay constants.
        let keep_constants = f.agg_within_group || f.args.len() > 1;
        for arg in &mut f.args {
            self.no_set_function(arg)?;
            if !(keep_constants && is_constant(arg)) {
                only = self.operand(arg)?;
            }
        }
        for order in &mut f.agg_order {
            if let Some(NodeEnum::SortBy(sort)) = &mut order.node
                && let Some(by) = sort.node.as_deref_mut()
            {
                self.no_set_function(by)?;
                if !is_constant(by) {
                    self.operand(by)?;
                }
            }
        }
        let mut filter = None;
        if let Some(condition) = f.agg_filter.as_deref_mut() {
            self.no_set_function(condition)?;
            let i = self.arg(condition)?;
            filter = Some(i);
            *condition = column("b", &format!("a{}", i + 1));
        }
        Ok(Call {
            text: expr_text(&expr).map_err(|e| e.to_string())?,
            // The count of a row is not that of its first column.
            simple: simple.filter(|_| star || only.is_some()),
            arg: only,
            filter,
        })
    }
}

/// Constants stay where they are: direct arguments of ordered-set aggregates must not become columns.
fn is_constant(expr: &Node) -> bool {
    match &expr.node {
        Some(NodeEnum::AConst(_)) => true,
        Some(NodeEnum::TypeCast(cast)) => cast.arg.as_deref().is_some_and(is_constant),
        Some(NodeEnum::AArrayExpr(array)) => array.elements.iter().all(is_constant),
        Some(NodeEnum::NamedArgExpr(_)) => false,
        _ => false,
    }
}
