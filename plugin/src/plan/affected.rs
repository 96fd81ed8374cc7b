//! Which rows of a SELECT a change of one of its captives can affect: a condition on the row. It may hold for more rows than
//! are affected, as those cancel out, but for none less. What it is not sure of it leaves out.

use std::collections::BTreeSet;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AExprKind, BoolTestType, BooleanTest, JoinType, Node, RangeVar, SelectStmt, SetOperation,
    SubLink, SubLinkType,
};

use super::Image;
use super::ast::{
    self, aliases, clauses, conjuncts, each_sublink, each_table, each_table_of_expr,
    each_table_of_item, empty_select, inner, output_names, reference, sval, target, walk,
};
use super::normalise::{comparison, distinct, is_plain, targets};
use super::scope::free;
use super::terms::{Input, Leaf, as_it_was, captives, changes, either, is_linear};
use crate::conn::Error;

/// Which rows.
#[derive(Debug)]
pub(crate) enum Reach {
    Never,
    Rows(Box<Rows>),
    /// Any row may be affected.
    Everything,
}

/// A condition on rows.
#[derive(Debug)]
pub(crate) struct Rows {
    /// An EXISTS, or one and what else is known.
    pub condition: Node,
    pub driver: Option<Driver>,
}

/// The same as a join (or a weaker condition), so that the rows are found first and what is costly is done for them only.
#[derive(Debug, Clone)]
pub(crate) struct Driver {
    /// A query without duplicates.
    pub values: SelectStmt,
    /// Expressions over the row, equal to the columns of `values`.
    pub keys: Vec<Node>,
}

impl Driver {
    /// For the rows the join has, as an EXISTS.
    pub(super) fn condition(&self) -> Node {
        const ALIAS: &str = "__pgt_d";
        let equal = self.keys.iter().enumerate().map(|(i, key)| {
            let value = ast::column(ALIAS, &format!("q{}", i + 1));
            super::normalise::equal(key.clone(), value)
        });
        let values = ast::range(self.values.clone(), ALIAS, &[]);
        ast::exists(vec![values], equal.collect())
    }

    /// The name of the table that has all keys as its columns.
    pub(super) fn table(&self) -> Option<&str> {
        let mut tables = self.keys.iter().map(|key| Some(reference(key)?.0));
        let first = tables.next()??;
        tables.all(|table| table == Some(first)).then_some(first)
    }

    /// Whether a row meets one of the values at most: their DISTINCT takes for equal what the join does. Not so where a
    /// collation of one side says that `a` is `A`, nor can values be told apart whose type has `=` but no order or hash.
    pub(super) fn is_exact(&self, inputs: &[Input<'_>]) -> bool {
        let columns = || inputs.iter().flat_map(|i| i.columns);
        if columns().any(|c| !c.collate.is_empty() && c.image != Image::Plain) {
            return false;
        }
        let values = targets(&self.values);
        let mut exact = true;
        for expr in values.iter().chain(&self.keys) {
            walk(&mut expr.clone(), &mut |e| {
                exact &= !matches!(e.node, Some(NodeEnum::CollateClause(_)));
                true
            });
        }
        for value in &values {
            walk(&mut value.clone(), &mut |e| {
                if let Some((_, name)) = reference(e) {
                    exact &= !columns()
                        .any(|c| c.name == name && !c.hashable && c.image != Image::Plain);
                }
                true
            });
        }
        exact
    }
}

/// The rows that a change of captive `leaf` can affect, of the linear SELECT of `body` it is a captive of.
///
/// # Errors
/// [`Error::Internal`] for a plan that cannot be read.
pub(crate) fn reach(
    body: &mut SelectStmt,
    leaf: usize,
    leaves: &[Leaf],
    inputs: &[Input<'_>],
) -> Result<Reach, Error> {
    let mut finder = Finder {
        leaves,
        inputs,
        leaf,
        next: 0,
    };
    Ok(finder.linear(body)?.unwrap_or(Reach::Everything))
}

/// Conditions on the columns of a sub-select, by its name and theirs.
struct Above<'a> {
    alias: &'a str,
    columns: Vec<String>,
    conditions: Vec<Node>,
}

struct Finder<'a> {
    leaves: &'a [Leaf],
    inputs: &'a [Input<'a>],
    leaf: usize,
    /// The number of the next leaf in order.
    next: usize,
}

impl Finder<'_> {
    /// Whether the leaf is among the next `count`; else they are passed.
    fn is_here(&mut self, count: usize) -> bool {
        let here = (self.next..self.next + count).contains(&self.leaf);
        if !here {
            self.next += count;
        }
        here
    }

    /// Looks through the linear part of a query; `None` if the leaf is not in it.
    fn linear(&mut self, select: &mut SelectStmt) -> Result<Option<Reach>, Error> {
        for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
            if self.is_here(tables(side)) {
                return self.linear(side);
            }
        }
        for item in &mut select.from_clause {
            if self.is_here(tables_of_item(item)) {
                return self.linear_item(item).map(Some);
            }
        }
        let filtered = select.where_clause.is_some();
        for (i, clause) in clauses(select).into_iter().enumerate() {
            if self.is_here(tables_of_expr(clause)) {
                return self.expr(clause, filtered && i == 0).map(Some);
            }
        }
        Ok(None)
    }

    fn linear_item(&mut self, item: &mut Node) -> Result<Reach, Error> {
        match item.node.as_mut() {
            Some(NodeEnum::JoinExpr(join)) => {
                if let Some(side) = join.larg.as_deref_mut()
                    && self.is_here(tables_of_item(side))
                {
                    return self.linear_item(side);
                }
                let is_inner = join.jointype == JoinType::JoinInner as i32;
                if let Some(side) = join.rarg.as_deref_mut()
                    && self.is_here(tables_of_item(side))
                {
                    if is_inner {
                        return self.linear_item(side);
                    }
                    if join.jointype != JoinType::JoinLeft as i32 {
                        return Ok(Reach::Everything);
                    }
                    let quals = join.quals.as_deref().map(conjuncts).unwrap_or_default();
                    let conditions = quals.into_iter().cloned().collect();
                    return self.exists(std::slice::from_mut(side), conditions, None);
                }
                match join.quals.as_deref_mut() {
                    Some(quals) if is_inner => self.expr(quals, true),
                    _ => Ok(Reach::Everything),
                }
            }
            Some(NodeEnum::RangeSubselect(sub)) => match inner(sub.subquery.as_mut()) {
                Some(select) if is_linear(select) => {
                    Ok(self.linear(select)?.unwrap_or(Reach::Everything))
                }
                Some(select) => self.select(select, None),
                None => Ok(Reach::Everything),
            },
            _ => Ok(Reach::Everything),
        }
    }

    /// The leaf is in a sub-select of this expression, whose value counts only if it is true where `filter`.
    fn expr(&mut self, expr: &mut Node, filter: bool) -> Result<Reach, Error> {
        if let Some(NodeEnum::BoolExpr(and)) = &mut expr.node
            && and.boolop == pg_query::protobuf::BoolExprType::AndExpr as i32
            && filter
        {
            for arg in &mut and.args {
                if self.is_here(tables_of_expr(arg)) {
                    return self.expr(arg, filter);
                }
            }
            return Ok(Reach::Everything);
        }
        let alone = filter && matches!(expr.node, Some(NodeEnum::SubLink(_)));
        let (first, whole) = (self.next, expr.clone());
        let mut found = None;
        each_sublink(expr, &mut |sublink| {
            if found.is_some() {
                return;
            }
            let count = inner(sublink.subselect.as_mut()).map_or(0, tables);
            if self.is_here(count) {
                // Where it is an operand of another sub-select, it is not alone.
                found = Some(self.sublink(sublink, alone));
            }
        });
        let found = found.unwrap_or(Ok(Reach::Everything))?;
        if matches!(found, Reach::Never) || !filter || !is_of_values(&whole) {
            return Ok(found);
        }
        // Whether the change is of any of the rows that the value is made of is one question for all rows.
        let mut conditions = match found {
            Reach::Rows(rows) => vec![rows.condition],
            _ => Vec::new(),
        };
        // The values are known at once, and few rows are on another side of the new one than of the old one: of all customers
        // with more than the average, few when that has changed a little.
        let past = as_it_was(&whole, first, self.leaves, self.inputs)?;
        conditions.push(distinct(whole, past));
        Ok(
            ast::all_of(conditions).map_or(Reach::Everything, |condition| {
                Reach::Rows(Box::new(Rows {
                    condition,
                    driver: None,
                }))
            }),
        )
    }

    fn sublink(&mut self, sublink: &mut SubLink, filter: bool) -> Result<Reach, Error> {
        const ALIAS: &str = "__pgt_any";
        let mut conditions = Vec::new();
        let mut columns = Vec::new();
        let kind = SubLinkType::try_from(sublink.sub_link_type);
        if let Ok(kind @ (SubLinkType::AnySublink | SubLinkType::AllSublink)) = kind {
            if let Some(NodeEnum::SelectStmt(select)) =
                sublink.subselect.as_ref().and_then(|s| s.node.as_ref())
            {
                columns = (1..=output_names(select).len())
                    .map(|i| format!("c{i}"))
                    .collect();
            }
            let fields: Vec<_> = columns.iter().map(|c| ast::column(ALIAS, c)).collect();
            if let Some(condition) = comparison(sublink, &fields) {
                // A row counts where it decides: for ANY where the comparison is true, or unknown if that may show; for ALL
                // where it is not true.
                conditions.push(match kind {
                    SubLinkType::AllSublink => test(condition, BoolTestType::IsNotTrue),
                    _ if filter => condition,
                    _ => test(condition, BoolTestType::IsNotFalse),
                });
            }
        }
        let Some(select) = inner(sublink.subselect.as_mut()) else {
            return Ok(Reach::Everything);
        };
        self.select(
            select,
            Some(Above {
                alias: ALIAS,
                columns,
                conditions,
            }),
        )
    }

    /// The leaf is in this sub-select, which is evaluated as it is.
    fn select(
        &mut self,
        select: &mut SelectStmt,
        above: Option<Above<'_>>,
    ) -> Result<Reach, Error> {
        if select.larg.is_some() {
            let mut above = above;
            // What one arm of a UNION gives passes; that of an EXCEPT may make another row appear.
            let passes = select.op == SetOperation::SetopUnion as i32
                && select.limit_count.is_none()
                && select.limit_offset.is_none();
            for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
                if self.is_here(tables(side)) {
                    return self.select(side, above.take().filter(|_| passes));
                }
            }
            return Ok(Reach::Everything);
        }
        let mut conditions: Vec<_> = select
            .where_clause
            .as_deref()
            .map(conjuncts)
            .unwrap_or_default()
            .into_iter()
            .cloned()
            .collect();
        // DISTINCT passes what it is given; a group or a LIMIT does not, nor does DISTINCT ON, which another row may win.
        let is_distinct_on = select.distinct_clause.iter().any(|d| d.node.is_some());
        let has_calls = targets(select).iter_mut().any(|t| {
            let mut call = false;
            walk(t, &mut |e| {
                call |= matches!(e.node, Some(NodeEnum::FuncCall(_)));
                true
            });
            call
        });
        let passes = !has_calls
            && !is_distinct_on
            && is_plain(&SelectStmt {
                distinct_clause: Vec::new(),
                ..select.clone()
            });
        if let Some(above) = above.filter(|_| passes) {
            let targets = targets(select);
            conditions.extend(
                above
                    .conditions
                    .iter()
                    .filter_map(|c| through(c, above.alias, &above.columns, &targets)),
            );
        }
        let in_from: usize = select.from_clause.iter_mut().map(tables_of_item).sum();
        if (self.next..self.next + in_from).contains(&self.leaf) {
            return self.exists(&mut select.from_clause, conditions, None);
        }
        // In a sub-select of this one.
        let first = self.next;
        self.next += in_from;
        let mut nested = Reach::Everything;
        for clause in clauses(select) {
            if self.is_here(tables_of_expr(clause)) {
                nested = self.expr(clause, false)?;
                break;
            }
        }
        self.next = first;
        let nested = match nested {
            Reach::Never => return Ok(Reach::Never),
            Reach::Rows(rows) => Some(rows.condition),
            Reach::Everything => None,
        };
        self.exists(&mut select.from_clause, conditions, nested)
    }

    /// EXISTS over a FROM list with the leaf in it, or in `nested`.
    fn exists(
        &mut self,
        from: &mut [Node],
        conditions: Vec<Node>,
        nested: Option<Node>,
    ) -> Result<Reach, Error> {
        let mut scene = Scene {
            conditions,
            ..Scene::default()
        };
        scene.nested.extend(nested);
        let mut with_leaf = None;
        for item in from {
            if with_leaf.is_none() && self.is_here(tables_of_item(item)) {
                with_leaf = Some(item);
            } else {
                self.either(item, &mut scene)?;
            }
        }
        // Last, when it is known what is hidden.
        if let Some(item) = with_leaf {
            self.flatten(item, &mut scene)?;
        }
        Ok(scene.finish())
    }

    /// The item with the leaf in it.
    fn flatten(&mut self, item: &mut Node, scene: &mut Scene) -> Result<(), Error> {
        let names = aliases(item);
        match item.node.as_mut() {
            Some(NodeEnum::RangeVar(relation)) => {
                let input = &self.inputs[self.leaves[self.leaf].input];
                scene.from.push(changes(relation, input)?);
            }
            Some(NodeEnum::JoinExpr(join)) => {
                let kind = join.jointype;
                let in_left = join
                    .larg
                    .as_deref_mut()
                    .is_some_and(|side| self.is_here(tables_of_item(side)));
                let in_right = !in_left
                    && join
                        .rarg
                        .as_deref_mut()
                        .is_some_and(|side| self.is_here(tables_of_item(side)));
                let (with, other) = if in_left {
                    (&mut join.larg, &mut join.rarg)
                } else {
                    (&mut join.rarg, &mut join.larg)
                };
                let (Some(with), Some(other)) = (with.as_deref_mut(), other.as_deref_mut()) else {
                    return Ok(());
                };
                if !in_left && !in_right {
                    // In a sub-select of its condition: nothing is known.
                    scene.hidden.extend(names);
                    return Ok(());
                }
                let is_inner = kind == JoinType::JoinInner as i32;
                let is_left = kind == JoinType::JoinLeft as i32;
                // What is null-extended, or null-extends by way of the leaf, says nothing about other rows.
                if is_inner || is_left && in_right {
                    let own: BTreeSet<_> = aliases(with).into_iter().collect();
                    if is_left {
                        // Conditions above see NULLs where the row has no match any more. Before they are handed down.
                        scene.conditions.retain(|c| !mentions(c, &own));
                    }
                    self.either(other, scene)?;
                    self.flatten(with, scene)?;
                    let quals = join.quals.as_deref().map(conjuncts).unwrap_or_default();
                    let quals = quals.into_iter().filter(|q| !mentions(q, &scene.nulled));
                    let quals: Vec<_> = quals.cloned().collect();
                    if is_left {
                        // Those that came to be in there may be about a row of an outer join of its own.
                        scene.conditions.retain(|c| !mentions(c, &own));
                        scene.nulled.extend(own);
                    }
                    scene.conditions.extend(quals);
                } else {
                    scene.hidden.extend(aliases(other));
                    let own: BTreeSet<_> = aliases(with).into_iter().collect();
                    let is_full = kind == JoinType::JoinFull as i32;
                    if is_full {
                        // A row of the other side that loses its match has NULLs in place of the leaf's too.
                        scene.conditions.retain(|c| !mentions(c, &own));
                    }
                    self.flatten(with, scene)?;
                    if is_full {
                        scene.conditions.retain(|c| !mentions(c, &own));
                        scene.nulled.extend(own);
                    }
                }
            }
            Some(NodeEnum::RangeSubselect(sub)) => {
                let alias = names.first().cloned().unwrap_or_default();
                let renamed: Vec<_> = sub
                    .alias
                    .iter()
                    .flat_map(|a| &a.colnames)
                    .filter_map(sval)
                    .map(str::to_owned)
                    .collect();
                if let Some(select) = inner(sub.subquery.as_mut()) {
                    let mut columns = output_names(select);
                    for (column, renamed) in columns.iter_mut().zip(renamed) {
                        *column = renamed;
                    }
                    let above = Above {
                        alias: &alias,
                        columns,
                        conditions: scene.usable().cloned().collect(),
                    };
                    match self.select(select, Some(above))? {
                        Reach::Never => scene.never = true,
                        Reach::Rows(rows) => scene.nested.push(rows.condition),
                        Reach::Everything => {}
                    }
                }
                scene.hidden.insert(alias);
            }
            _ => scene.hidden.extend(names),
        }
        Ok(())
    }

    /// An item without the leaf: its rows of either state, where that can be said.
    fn either(&mut self, item: &mut Node, scene: &mut Scene) -> Result<(), Error> {
        let names = aliases(item);
        match item.node.as_mut() {
            Some(NodeEnum::RangeVar(relation)) => {
                let input = self
                    .inputs
                    .iter()
                    .find(|i| i.schema == relation.schemaname && i.name == relation.relname);
                match input {
                    Some(input) => scene.from.push(either(relation, input)?),
                    None => scene.hidden.extend(names),
                }
            }
            Some(NodeEnum::JoinExpr(join)) => {
                let kind = join.jointype;
                let (Some(left), Some(right)) =
                    (join.larg.as_deref_mut(), join.rarg.as_deref_mut())
                else {
                    return Ok(());
                };
                if kind == JoinType::JoinInner as i32 {
                    self.either(left, scene)?;
                    self.either(right, scene)?;
                    let quals = join.quals.as_deref().map(conjuncts).unwrap_or_default();
                    scene.conditions.extend(quals.into_iter().cloned());
                } else if kind == JoinType::JoinLeft as i32 {
                    scene.hidden.extend(aliases(right));
                    self.either(left, scene)?;
                } else {
                    scene.hidden.extend(names);
                }
            }
            _ => scene.hidden.extend(names),
        }
        Ok(())
    }
}

/// Whether all sub-selects of an expression are values that do not depend on the row.
fn is_of_values(expr: &Node) -> bool {
    let mut of_values = true;
    each_sublink(&mut expr.clone(), &mut |sublink| {
        let independent = inner(sublink.subselect.as_mut()).is_some_and(|s| free(s).is_empty());
        of_values &= independent && sublink.sub_link_type == SubLinkType::ExprSublink as i32;
    });
    of_values
}

/// What an EXISTS is made of.
#[derive(Default)]
struct Scene {
    from: Vec<Node>,
    conditions: Vec<Node>,
    nested: Vec<Node>,
    /// Names whose columns may be NULL in the rows that are affected: conditions from outside on them are left out.
    nulled: BTreeSet<String>,
    /// Names whose rows are not at hand: conditions on them are left out.
    hidden: BTreeSet<String>,
    never: bool,
}

impl Scene {
    /// The conditions on what is at hand.
    fn usable(&self) -> impl Iterator<Item = &Node> {
        let conditions = self.conditions.iter();
        conditions.filter(|c| is_certain(c) && !mentions(c, &self.hidden))
    }

    fn finish(self) -> Reach {
        let is_false = |c: &Node| {
            matches!(&c.node, Some(NodeEnum::AConst(c)) if matches!(&c.val,
                Some(pg_query::protobuf::a_const::Val::Boolval(b)) if !b.boolval))
        };
        if self.never || self.conditions.iter().any(is_false) {
            return Reach::Never;
        }
        let mut conditions: Vec<_> = self.usable().cloned().collect();
        let nested = self.nested.into_iter().filter(|nested| {
            let outer = free(&SelectStmt {
                where_clause: Some(Box::new(nested.clone())),
                ..empty_select()
            });
            outer.is_disjoint(&self.hidden)
        });
        let nested: Vec<_> = nested.collect();
        let driver = driver(&self.from, &conditions, &nested);
        conditions.extend(nested);
        if self.from.is_empty() && conditions.is_empty() {
            return Reach::Everything;
        }
        Reach::Rows(Box::new(Rows {
            condition: ast::exists(self.from, conditions),
            driver,
        }))
    }
}

/// Turns the EXISTS into a join, if it compares with something by equality.
fn driver(from: &[Node], conditions: &[Node], nested: &[Node]) -> Option<Driver> {
    let own: BTreeSet<_> = from.iter().flat_map(aliases).collect();
    let mut values = SelectStmt {
        from_clause: from.to_vec(),
        // DISTINCT without ON is a list of one empty node.
        distinct_clause: vec![Node { node: None }],
        ..empty_select()
    };
    let mut keys = Vec::new();
    let mut within = Vec::new();
    for condition in conditions {
        if !mentions_other(condition, &own) {
            within.push(condition.clone());
        } else if let Some((inner, outer)) = equality(condition, &own) {
            let name = format!("q{}", keys.len() + 1);
            values.target_list.push(target(&name, inner));
            keys.push(outer);
        }
    }
    for condition in nested {
        let outer = free(&SelectStmt {
            where_clause: Some(Box::new(condition.clone())),
            from_clause: from.to_vec(),
            ..empty_select()
        });
        if !outer.is_empty() {
            return None;
        }
        within.push(condition.clone());
    }
    values.where_clause = ast::all_of(within).map(Box::new);
    (!keys.is_empty()).then_some(Driver { values, keys })
}

/// The sides of an equation between these names and others: theirs first.
fn equality(condition: &Node, own: &BTreeSet<String>) -> Option<(Node, Node)> {
    let Some(NodeEnum::AExpr(e)) = &condition.node else {
        return None;
    };
    let is_equality = e.kind == AExprKind::AexprOp as i32
        && matches!(e.name.as_slice(), [name] if sval(name) == Some("="));
    let (left, right) = (e.lexpr.as_deref()?, e.rexpr.as_deref()?);
    let inner = |e: &Node| mentions(e, own) && !mentions_other(e, own);
    let outer = |e: &Node| !mentions(e, own) && mentions_other(e, own);
    match is_equality {
        true if inner(left) && outer(right) => Some((left.clone(), right.clone())),
        true if inner(right) && outer(left) => Some((right.clone(), left.clone())),
        _ => None,
    }
}

fn mentions_other(condition: &Node, names: &BTreeSet<String>) -> bool {
    let mut found = false;
    walk(&mut condition.clone(), &mut |e| {
        found |= reference(e).is_some_and(|(alias, _)| !names.contains(alias));
        true
    });
    found
}

/// The columns of a query's captives (inputs by their place, columns by name) that are looked up by equality: their staging
/// tables need an index there, or each look would scan all changes.
///
/// # Errors
/// [`Error::Internal`] for a plan that cannot be read.
pub(crate) fn lookups(body: &str, inputs: &[Input<'_>]) -> Result<Vec<(usize, String)>, Error> {
    let mut body = ast::parse_select(body)?;
    let mut names = Vec::new();
    for (leaf, relation) in captives(&mut body, inputs)? {
        names.push((relation, leaf));
    }
    let mut found = Vec::new();
    ast::each_expr(&mut body, &mut |e| {
        if let Some(NodeEnum::AExpr(e)) = &e.node
            && matches!(e.name.as_slice(), [name] if sval(name) == Some("="))
        {
            for side in [&e.lexpr, &e.rexpr].into_iter().flatten() {
                if let Some((alias, column)) = reference(side)
                    && let Some((_, input)) = names.iter().find(|(name, _)| name == alias)
                    && !found.contains(&(*input, column.to_owned()))
                {
                    found.push((*input, column.to_owned()));
                }
            }
        }
    });
    Ok(found)
}

/// Per mention of a table, the columns (by their own names) by which it is joined with others by equality.
///
/// # Errors
/// [`Error::Internal`] for a plan that cannot be read.
pub(crate) fn joined(body: &str, inputs: &[Input<'_>]) -> Result<Vec<(usize, Vec<String>)>, Error> {
    let mut body = ast::parse_select(body)?;
    let mut tables: Vec<(RangeVar, usize, Vec<String>)> = Vec::new();
    each_table(&mut body, &mut |relation| {
        let input = inputs
            .iter()
            .position(|i| i.schema == relation.schemaname && i.name == relation.relname);
        if let Some(input) = input {
            tables.push((relation.clone(), input, Vec::new()));
        }
    });
    ast::each_expr(&mut body, &mut |e| {
        if let Some(NodeEnum::AExpr(e)) = &e.node
            && matches!(e.name.as_slice(), [name] if sval(name) == Some("="))
            && let (Some(left), Some(right)) = (e.lexpr.as_deref(), e.rexpr.as_deref())
        {
            for (side, other) in [(left, right), (right, left)] {
                if let Some((alias, column)) = reference(side)
                    && mentions_other(other, &BTreeSet::from([alias.to_owned()]))
                    && let Some((relation, input, columns)) = tables
                        .iter_mut()
                        .find(|(r, ..)| super::terms::alias(r) == alias)
                    && let column = super::terms::own_name(relation, &inputs[*input], column)
                    && !columns.contains(&column)
                {
                    columns.push(column);
                }
            }
        }
    });
    Ok(tables
        .into_iter()
        .map(|(_, input, columns)| (input, columns))
        .collect())
}

/// Per mention of a table in FROM, its columns (by their own names) that are columns of the result as they are.
///
/// # Errors
/// [`Error::Internal`] for a plan that cannot be read.
pub(crate) fn shown(body: &str, inputs: &[Input<'_>]) -> Result<Vec<(usize, Vec<String>)>, Error> {
    let mut found = Vec::new();
    let mut arms = vec![ast::parse_select(body)?];
    while let Some(mut arm) = arms.pop() {
        arms.extend(
            [arm.larg.take(), arm.rarg.take()]
                .into_iter()
                .flatten()
                .map(|a| *a),
        );
        let targets = targets(&arm);
        for item in &mut arm.from_clause {
            each_table_of_item(item, &mut |relation| {
                let alias = super::terms::alias(relation);
                let input = inputs
                    .iter()
                    .position(|i| i.schema == relation.schemaname && i.name == relation.relname);
                if let Some(input) = input {
                    let columns = targets.iter().filter_map(reference);
                    let columns = columns.filter(|(name, _)| *name == alias);
                    let own = |(_, c)| super::terms::own_name(relation, &inputs[input], c);
                    found.push((input, columns.map(own).collect()));
                }
            });
        }
    }
    Ok(found)
}

fn mentions(condition: &Node, names: &BTreeSet<String>) -> bool {
    let mut found = false;
    walk(&mut condition.clone(), &mut |e| {
        found |= reference(e).is_some_and(|(alias, _)| names.contains(alias));
        true
    });
    found
}

/// Whether a condition depends on nothing but qualified columns.
fn is_certain(condition: &Node) -> bool {
    let mut certain = true;
    walk(&mut condition.clone(), &mut |e| {
        certain &= match &e.node {
            Some(NodeEnum::SubLink(_)) => false,
            Some(NodeEnum::ColumnRef(_)) => reference(e).is_some(),
            _ => true,
        };
        true
    });
    certain
}

/// A condition on the columns of a sub-select as one on what they are made of.
fn through(condition: &Node, alias: &str, columns: &[String], targets: &[Node]) -> Option<Node> {
    let mut condition = condition.clone();
    let mut known = true;
    walk(&mut condition, &mut |e| {
        let place = match reference(e) {
            Some((a, column)) if a == alias => Some(columns.iter().position(|c| c == column)),
            _ => None,
        };
        match place {
            Some(place) => {
                match place.and_then(|p| targets.get(p)) {
                    Some(target) => *e = target.clone(),
                    None => known = false,
                }
                false
            }
            None => true,
        }
    });
    known.then_some(condition)
}

fn test(condition: Node, kind: BoolTestType) -> Node {
    ast::node(NodeEnum::BooleanTest(Box::new(BooleanTest {
        xpr: None,
        arg: Some(Box::new(condition)),
        booltesttype: kind as i32,
        location: 0,
    })))
}

fn tables(select: &mut SelectStmt) -> usize {
    let mut n = 0;
    each_table(select, &mut |_| n += 1);
    n
}

fn tables_of_item(item: &mut Node) -> usize {
    let mut n = 0;
    each_table_of_item(item, &mut |_| n += 1);
    n
}

fn tables_of_expr(expr: &mut Node) -> usize {
    let mut n = 0;
    each_table_of_expr(expr, &mut |_| n += 1);
    n
}
