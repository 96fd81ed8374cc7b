//! A query with GROUP BY whose groups are not the end of it (GROUPING SETS, window functions or sub-selects over groups):
//! queries for the groups, one per grouping set, and the query over them.

use std::collections::BTreeSet;

use pg_query::NodeEnum;
use pg_query::protobuf::{GroupingSetKind, Node, SelectStmt, SubLink, SubLinkType};

use super::ast::{
    self, aliases, children, clauses, column, describe, empty_select, expr_text, inner, reference,
    target, walk,
};
use super::inline::{Names, Reason};
use super::keyed::has_aggregate;
use super::normalise::targets;

/// What the outer query calls the groups.
pub(crate) const GROUPS: &str = "__pgt_g";

/// The pieces. The outer query reads columns `k1…` (keys), `a1…` (aggregates) and `r1…` (GROUPING) of [`GROUPS`], and has no
/// FROM yet.
pub(crate) struct Levels {
    /// One per grouping set: its keys and then the aggregates.
    pub inner: Vec<SelectStmt>,
    pub outer: SelectStmt,
    /// The columns the outer query reads.
    pub columns: Vec<String>,
    /// Per grouping set: the places of its keys among all.
    sets: Vec<Vec<usize>>,
    keys: usize,
    calls: usize,
    /// Per GROUPING(): the places of its arguments.
    groupings: Vec<Vec<usize>>,
}

/// Takes a query apart.
///
/// # Errors
/// The reason why it can only be recomputed as a whole.
pub(crate) fn split(names: &Names, mut select: SelectStmt) -> Result<Levels, Reason> {
    let mut above = Above {
        names,
        outer: select.from_clause.iter().flat_map(aliases).collect(),
        keys: Vec::new(),
        calls: Vec::new(),
        groupings: Vec::new(),
        fixed: false,
    };
    let group = std::mem::take(&mut select.group_clause);
    above.fixed = group
        .iter()
        .any(|g| matches!(g.node, Some(NodeEnum::GroupingSet(_))));
    let mut sets = vec![Vec::new()];
    for item in &group {
        let choices = expand(item)?;
        sets = sets
            .iter()
            .flat_map(|set| {
                choices
                    .iter()
                    .map(move |c| set.iter().chain(c).cloned().collect::<Vec<Node>>())
            })
            .collect();
        if sets.len() > 64 {
            return Err("it has more than 64 grouping sets".to_owned());
        }
    }
    let mut sets = sets
        .iter()
        .map(|set| {
            let places: Result<BTreeSet<_>, _> = set.iter().map(|k| above.key(k)).collect();
            places.map(|p| p.into_iter().collect::<Vec<_>>())
        })
        .collect::<Result<Vec<_>, _>>()?;
    if select.group_distinct {
        sets = BTreeSet::from_iter(sets).into_iter().collect();
        select.group_distinct = false;
    }
    let where_clause = select.where_clause.take();
    let from_clause = std::mem::take(&mut select.from_clause);
    let having = select.having_clause.take();
    let simple_having = having.as_deref().is_some_and(|having| {
        let mut simple = !above.fixed;
        walk(&mut having.clone(), &mut |e| {
            simple &= !matches!(e.node, Some(NodeEnum::SubLink(_)));
            true
        });
        simple
    });
    let (below, over) = if simple_having {
        (having, None)
    } else {
        (None, having)
    };
    select.where_clause = over;
    for clause in clauses(&mut select) {
        above.rewrite(clause)?;
    }
    if above.calls.is_empty() {
        let count = ast::parse_expr("count(*)").map_err(|e| e.to_string())?;
        above.calls.push((String::new(), count));
    }
    if !above.fixed {
        // What depends on a key has become one.
        sets = vec![(0..above.keys.len()).collect()];
    }
    let inner = sets
        .iter()
        .map(|set| {
            let keys: Vec<_> = set.iter().map(|&i| above.keys[i].1.clone()).collect();
            let calls = above.calls.iter().map(|(_, call)| call.clone());
            SelectStmt {
                target_list: keys
                    .iter()
                    .cloned()
                    .chain(calls)
                    .map(|e| target("", e))
                    .collect(),
                from_clause: from_clause.clone(),
                where_clause: where_clause.clone(),
                group_clause: keys,
                having_clause: below.clone(),
                ..empty_select()
            }
        })
        .collect();
    let numbered =
        |prefix: &str, n: usize| (1..=n).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
    let mut columns = numbered("k", above.keys.len());
    columns.extend(numbered("a", above.calls.len()));
    columns.extend(numbered("r", above.groupings.len()));
    Ok(Levels {
        inner,
        outer: select,
        columns,
        sets,
        keys: above.keys.len(),
        calls: above.calls.len(),
        groupings: above.groupings.into_iter().map(|(_, g)| g).collect(),
    })
}

impl Levels {
    /// The rows of grouping set `n` from the query of its stage, with all columns.
    ///
    /// # Errors
    /// If a key is in no set.
    pub(crate) fn arm(
        &self,
        n: usize,
        stage: &SelectStmt,
        stages: &[SelectStmt],
    ) -> Result<SelectStmt, Reason> {
        let set = &self.sets[n];
        let own = targets(stage);
        let mut list = Vec::new();
        for key in 0..self.keys {
            list.push(match set.iter().position(|&k| k == key) {
                Some(i) => own[i].clone(),
                None => self.null(key, stages)?,
            });
        }
        list.extend_from_slice(&own[set.len()..set.len() + self.calls]);
        for grouping in &self.groupings {
            // A bit per argument, the last one the lowest: whether the set is without it.
            let bits = grouping
                .iter()
                .fold(0, |bits, key| bits << 1 | i32::from(!set.contains(key)));
            list.push(ast::parse_expr(&bits.to_string()).map_err(|e| e.to_string())?);
        }
        let mut arm = stage.clone();
        arm.target_list = list
            .into_iter()
            .zip(&self.columns)
            .map(|(e, name)| target(name, e))
            .collect();
        Ok(arm)
    }

    /// NULL of a key's type.
    fn null(&self, key: usize, stages: &[SelectStmt]) -> Result<Node, Reason> {
        let (set, stage) = self
            .sets
            .iter()
            .zip(stages)
            .find(|(set, _)| set.contains(&key))
            .ok_or("a key is in no grouping set")?;
        let place = set.iter().position(|&k| k == key).unwrap_or_default();
        let mut none = stage.clone();
        none.target_list = vec![none.target_list[place].clone()];
        none.where_clause = ast::parse_expr("false").ok().map(Box::new);
        Ok(ast::node(NodeEnum::SubLink(Box::new(SubLink {
            sub_link_type: SubLinkType::ExprSublink as i32,
            subselect: Some(Box::new(ast::node(NodeEnum::SelectStmt(Box::new(none))))),
            ..SubLink::default()
        }))))
    }
}

/// The sets of keys an item of GROUP BY stands for.
fn expand(item: &Node) -> Result<Vec<Vec<Node>>, Reason> {
    let Some(NodeEnum::GroupingSet(set)) = &item.node else {
        return match &item.node {
            Some(NodeEnum::AConst(_)) => Err("it groups by a constant".to_owned()),
            _ => Ok(vec![vec![item.clone()]]),
        };
    };
    // (a, b) within a set is two keys that come and go together.
    let together = |node: &Node| match &node.node {
        Some(NodeEnum::RowExpr(row)) => row.args.clone(),
        Some(NodeEnum::List(list)) => list.items.clone(),
        _ => vec![node.clone()],
    };
    let parts: Vec<_> = set.content.iter().map(together).collect();
    match GroupingSetKind::try_from(set.kind) {
        Ok(GroupingSetKind::GroupingSetEmpty) => Ok(vec![Vec::new()]),
        Ok(GroupingSetKind::GroupingSetRollup) => Ok((0..=parts.len())
            .rev()
            .map(|n| parts[..n].concat())
            .collect()),
        Ok(GroupingSetKind::GroupingSetCube) if parts.len() < 7 => Ok((0..1usize << parts.len())
            .map(|bits| {
                let chosen = parts.iter().enumerate();
                chosen
                    .filter(|(i, _)| bits & (1 << i) == 0)
                    .flat_map(|(_, p)| p.clone())
                    .collect()
            })
            .collect()),
        Ok(GroupingSetKind::GroupingSetSets) => {
            let mut all = Vec::new();
            for node in &set.content {
                match &node.node {
                    Some(NodeEnum::GroupingSet(_)) => all.extend(expand(node)?),
                    _ => all.push(together(node)),
                }
            }
            Ok(all)
        }
        _ => Err("it has grouping sets of an unknown kind".to_owned()),
    }
}

struct Above<'a> {
    names: &'a Names,
    /// The names in FROM.
    outer: BTreeSet<String>,
    keys: Vec<(String, Node)>,
    calls: Vec<(String, Node)>,
    groupings: Vec<(String, Vec<usize>)>,
    /// Whether there are GROUPING SETS: no key is added then.
    fixed: bool,
}

impl Above<'_> {
    fn key(&mut self, expr: &Node) -> Result<usize, Reason> {
        if has_aggregate(self.names, &mut expr.clone()) {
            return Err("it has an aggregate within a key".to_owned());
        }
        let text = expr_text(expr).map_err(|e| e.to_string())?;
        if let Some(i) = self.keys.iter().position(|(t, _)| *t == text) {
            return Ok(i);
        }
        self.keys.push((text, expr.clone()));
        Ok(self.keys.len() - 1)
    }

    /// Writes an expression over the columns of the groups.
    fn rewrite(&mut self, expr: &mut Node) -> Result<(), Reason> {
        if !ast::is_holder(expr) {
            let text = expr_text(expr).map_err(|e| e.to_string())?;
            if let Some(i) = self.keys.iter().position(|(t, _)| *t == text) {
                *expr = column(GROUPS, &format!("k{}", i + 1));
                return Ok(());
            }
            if self.names.is_aggregate(expr) {
                let i = match self.calls.iter().position(|(t, _)| *t == text) {
                    Some(i) => i,
                    None => {
                        self.calls.push((text, expr.clone()));
                        self.calls.len() - 1
                    }
                };
                *expr = column(GROUPS, &format!("a{}", i + 1));
                return Ok(());
            }
            if let Some(NodeEnum::GroupingFunc(f)) = &expr.node {
                let places: Result<Vec<_>, _> =
                    f.args.clone().iter().map(|a| self.key(a)).collect();
                self.groupings.push((text, places?));
                *expr = column(GROUPS, &format!("r{}", self.groupings.len()));
                return Ok(());
            }
        }
        if let Some((alias, _)) = reference(expr) {
            if self.outer.contains(alias) {
                if self.fixed {
                    return Err("it has a column that depends on a grouping set's keys".to_owned());
                }
                // Not a key, so it depends on one (PostgreSQL knows of a primary key): as good as a key.
                let i = self.key(&expr.clone())?;
                *expr = column(GROUPS, &format!("k{}", i + 1));
            }
            return Ok(());
        }
        if let Some(NodeEnum::SubLink(sublink)) = &mut expr.node
            && let Some(select) = inner(sublink.subselect.as_mut())
        {
            self.within(select)?;
        }
        let reason = describe(expr);
        for child in children(expr).ok_or_else(|| format!("it has {reason}"))? {
            self.rewrite(child)?;
        }
        Ok(())
    }

    /// The same for what a sub-select takes from the groups.
    fn within(&mut self, select: &mut SelectStmt) -> Result<(), Reason> {
        for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
            self.within(side)?;
        }
        for item in &mut select.from_clause {
            self.within_item(item)?;
        }
        for clause in clauses(select) {
            self.within_expr(clause)?;
        }
        Ok(())
    }

    fn within_item(&mut self, item: &mut Node) -> Result<(), Reason> {
        match item.node.as_mut() {
            Some(NodeEnum::RangeSubselect(sub)) => match inner(sub.subquery.as_mut()) {
                Some(select) => self.within(select),
                None => Ok(()),
            },
            Some(NodeEnum::JoinExpr(join)) => {
                for side in [&mut join.larg, &mut join.rarg].into_iter().flatten() {
                    self.within_item(side)?;
                }
                join.quals
                    .as_deref_mut()
                    .map_or(Ok(()), |q| self.within_expr(q))
            }
            Some(NodeEnum::RangeFunction(function)) => {
                for call in super::inline::calls(function) {
                    self.within_expr(call)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn within_expr(&mut self, expr: &mut Node) -> Result<(), Reason> {
        if refers_only_to(expr, &self.outer) {
            return self.rewrite(expr);
        }
        if let Some(NodeEnum::SubLink(sublink)) = &mut expr.node
            && let Some(select) = inner(sublink.subselect.as_mut())
        {
            self.within(select)?;
        }
        for child in children(expr).unwrap_or_default() {
            self.within_expr(child)?;
        }
        Ok(())
    }
}

/// Whether an expression has references, and all of them are to these names.
pub(crate) fn refers_only_to(expr: &Node, names: &BTreeSet<String>) -> bool {
    let (mut some, mut only) = (false, true);
    walk(&mut expr.clone(), &mut |e| {
        if let Some((alias, _)) = reference(e) {
            some = true;
            only &= names.contains(alias);
        }
        only &= !matches!(
            e.node,
            Some(NodeEnum::SubLink(_) | NodeEnum::ResTarget(_) | NodeEnum::SortBy(_))
        );
        true
    });
    some && only
}
