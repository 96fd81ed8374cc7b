//! Cuts a query into stages: what is not linear below the top becomes a hidden table of its own, which the rest reads like a
//! source.
//!
//! A stage is one keyed operator over a linear body: groups ([`Pieces`]), or partitions that are computed anew where they
//! are touched ([`Parts`]: window functions, DISTINCT ON, LIMIT). All else is written in terms of these, but for WITH RECURSIVE,
//! which is a stage of its own ([`super::recursion`]).

use std::collections::BTreeSet;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    JoinType, Node, RangeVar, SelectStmt, SetOperation, SubLink, SubLinkType, WindowDef,
};

use super::ast::{
    self, clauses, each_sublink, empty_select, expr_text, inner, output_names, parse_select,
    select_text, target, walk,
};
use super::fragment::{Digest, Fragment, Sharing, shared_name};
use super::inline::{self, Names, Reason, calls};
use super::keyed::{self, Pieces};
use super::levels;
use super::normalise::{is_plain, not, targets};
use super::recursion::{self, Recursion};
use super::scope::free;
use super::{Recursive, quote};

/// A stage whose types are not known yet.
#[derive(Debug)]
pub(crate) struct Spec {
    /// The whole query, with columns `c1…`.
    pub sql: String,
    /// The same with aliases by their order, so that equal queries have one text: a WITH query or view gets others wherever it is
    /// used.
    identity: String,
    pub kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// The rows themselves, where what is above reads all of them again and again.
    Linear(String),
    Keyed(Pieces),
    Partition(Parts),
    Recursive(Recursive),
}

/// An operator whose result for one value of the keys follows from the rows of its input with that value.
#[derive(Debug)]
pub(crate) struct Parts {
    /// A linear SELECT of `k1…` and what else the result depends on.
    pub body: String,
    /// The keys as expressions over FROM; they are the last columns of the result too.
    pub keys: Vec<String>,
    /// How many columns the body has besides the keys.
    pub args: usize,
}

/// The query above all stages.
#[derive(Debug)]
pub(crate) enum Top {
    Linear(String),
    Keyed(Pieces),
}

/// A query that has been cut.
#[derive(Debug)]
pub(crate) struct Pieced {
    pub stages: Vec<Spec>,
    pub top: Top,
    /// Those that are computed here, and not shared.
    pub fragments: Vec<Fragment>,
    /// The shared stages that are read.
    pub shared: BTreeSet<i64>,
    /// That of the query, were it a fragment of another.
    pub whole: Digest,
}

/// The name of the table of stage `n` (from 1) of a stream table.
pub(crate) fn stage_name(id: i64, n: usize) -> String {
    format!("stage_{id}_{n}")
}

/// Cuts a query whose names are resolved ([`Names::inline`], [`super::normalise::normalise`]). What is shared
/// is read, and not computed.
///
/// # Errors
/// The reason why it can only be recomputed as a whole.
pub(crate) fn cut(
    names: &Names,
    id: i64,
    mut select: SelectStmt,
    recursions: Vec<Recursion>,
    sharing: &Sharing,
) -> Result<Pieced, Reason> {
    let whole = match recursions.as_slice() {
        [recursion] if recursion::is_all_of(&select, recursion) => recursion_identity(recursion)?,
        _ => None,
    };
    let whole = match whole {
        Some(whole) => whole,
        None => identity(select.clone())?,
    };
    let whole = sharing.digest(&whole);
    let mut cut = Cut {
        names,
        id,
        sharing,
        shared: BTreeSet::new(),
        fragments: Vec::new(),
        recursions: recursions.into_iter().map(|r| (r, Place::None)).collect(),
        recursive: Vec::new(),
        stages: Vec::new(),
        depth: 0,
    };
    let shape = cut.shape(&select);
    let top = if matches!(shape, Shape::Grouped | Shape::Distinct) && cut.is_one_level(&select) {
        Top::Keyed(cut.keyed(select)?)
    } else {
        cut.linear(&mut select)?;
        Top::Linear(body(select)?)
    };
    Ok(Pieced {
        stages: cut.stages,
        top,
        fragments: cut.fragments,
        shared: cut.shared,
        whole,
    })
}

/// The text of a query with its columns called `c1…`, and its aliases by their order: a WITH query or view gets others wherever
/// it is used.
fn identity(mut select: SelectStmt) -> Result<String, Reason> {
    name_all_columns(&mut select);
    inline::rename(&mut select, "__pgt_s");
    select_text(&select).map_err(|e| e.to_string())
}

/// What has the last word in a SELECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Linear,
    Grouped,
    Windowed,
    Distinct,
    DistinctOn,
    SetOperation,
    Limited,
}

/// Levels that are taken apart. Each form is written in terms of a simpler one: should two ever be written in terms of each
/// other, a query is recomputed as a whole, and the process does not end with its stack.
const DEEPEST: usize = 50;

struct Cut<'a> {
    names: &'a Names,
    id: i64,
    sharing: &'a Sharing,
    /// Of these, what the query reads.
    shared: BTreeSet<i64>,
    fragments: Vec<Fragment>,
    recursions: Vec<(Recursion, Place)>,
    /// The numbers of the stages of recursions, by base, step and whether it is UNION ALL.
    recursive: Vec<((String, String, bool), usize)>,
    stages: Vec<Spec>,
    depth: usize,
}

/// Where a recursion is.
#[derive(Debug, Clone, Copy)]
enum Place {
    None,
    /// It is being cut: what mentions it now is its own step.
    Open,
    Stage(usize),
    Shared(i64),
}

impl Cut<'_> {
    fn shape(&self, select: &SelectStmt) -> Shape {
        if select.limit_count.is_some() || select.limit_offset.is_some() {
            Shape::Limited
        } else if select.op == SetOperation::SetopUnion as i32 && select.all {
            Shape::Linear
        } else if select.op != SetOperation::SetopNone as i32 {
            Shape::SetOperation
        } else if select.distinct_clause.iter().any(|d| d.node.is_some()) {
            Shape::DistinctOn
        } else if !select.distinct_clause.is_empty() {
            Shape::Distinct
        } else if !windows(select).is_empty() {
            Shape::Windowed
        } else if keyed::is_grouped(self.names, select) {
            Shape::Grouped
        } else {
            Shape::Linear
        }
    }

    /// Whether groups are all there is to it: no sub-select above them, no GROUPING SETS.
    fn is_one_level(&self, select: &SelectStmt) -> bool {
        let mut select = select.clone();
        let grouped = keyed::is_grouped(self.names, &select);
        if !select.distinct_clause.is_empty() {
            return !grouped && windows(&select).is_empty();
        }
        // A sub-select that is a key is below the groups.
        let mut keys = Vec::new();
        for key in &mut select.group_clause {
            let mut found = false;
            each_sublink(key, &mut |_| found = true);
            keys.extend(expr_text(key).ok().filter(|_| found));
        }
        let mut above = false;
        let having = select.having_clause.as_deref_mut();
        for expr in select.target_list.iter_mut().chain(having) {
            walk(expr, &mut |e| {
                if !keys.is_empty() && expr_text(e).is_ok_and(|text| keys.contains(&text)) {
                    return false;
                }
                above |= matches!(
                    e.node,
                    Some(NodeEnum::SubLink(_) | NodeEnum::GroupingFunc(_))
                );
                // Sub-selects in arguments of aggregates are below the groups.
                !self.names.is_aggregate(e)
            });
        }
        let sets = select
            .group_clause
            .iter()
            .any(|k| matches!(k.node, Some(NodeEnum::GroupingSet(_))));
        !above && !sets && windows(&select).is_empty()
    }

    /// Makes a query linear in place: cuts off its stages.
    fn linear(&mut self, select: &mut SelectStmt) -> Result<(), Reason> {
        if self.shape(select) != Shape::Linear {
            *select = self.reduce(std::mem::replace(select, empty_select()))?;
            return Ok(());
        }
        // The order of rows in a table means nothing.
        select.sort_clause.clear();
        for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
            self.linear(side)?;
        }
        self.input(select)
    }

    /// The same for what is below the targets' operator, if there is one: FROM, and the sub-selects in expressions.
    fn input(&mut self, select: &mut SelectStmt) -> Result<(), Reason> {
        for item in &mut select.from_clause {
            self.item(item, false)?;
        }
        for row in &mut select.values_lists {
            let mut found = false;
            each_sublink(row, &mut |_| found = true);
            if found {
                return Err("it has a sub-select in VALUES".to_owned());
            }
        }
        for clause in clauses(select) {
            self.expr(clause)?;
        }
        Ok(())
    }

    fn item(&mut self, item: &mut Node, captive: bool) -> Result<(), Reason> {
        match item.node.as_mut() {
            Some(NodeEnum::RangeVar(relation)) => self.mention(relation),
            Some(NodeEnum::RangeSubselect(sub)) => {
                let Some(select) = inner(sub.subquery.as_mut()) else {
                    return Ok(());
                };
                let linear = self.shape(select) == Shape::Linear;
                if linear && captive {
                    return self.captive(select);
                }
                if linear || free(select).is_empty() {
                    return self.linear(select);
                }
                if is_plain(select) {
                    // Aggregates or window functions: [`super::terms`] shall see that it is not linear.
                    select.limit_offset = ast::parse_expr("0").ok().map(Box::new);
                    select.limit_option = pg_query::protobuf::LimitOption::Count as i32;
                }
                self.captive(select)
            }
            Some(NodeEnum::JoinExpr(join)) => {
                let nullable = captive || join.jointype == JoinType::JoinLeft as i32;
                if let Some(side) = join.larg.as_deref_mut() {
                    self.item(side, captive)?;
                }
                if let Some(side) = join.rarg.as_deref_mut() {
                    self.item(side, nullable)?;
                }
                join.quals.as_deref_mut().map_or(Ok(()), |q| self.expr(q))
            }
            Some(NodeEnum::RangeFunction(function)) => {
                for call in calls(function) {
                    self.expr(call)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn expr(&mut self, expr: &mut Node) -> Result<(), Reason> {
        let mut result = Ok(());
        each_sublink(expr, &mut |sublink| {
            if result.is_ok() {
                result = self.sublink(sublink);
            }
        });
        result
    }

    fn sublink(&mut self, sublink: &mut SubLink) -> Result<(), Reason> {
        let Some(select) = inner(sublink.subselect.as_mut()) else {
            return Ok(());
        };
        // ARRAY(SELECT … ORDER BY) keeps the order.
        let ordered = sublink.sub_link_type == SubLinkType::ArraySublink as i32;
        if !ordered && self.shape(select) != Shape::Linear && free(select).is_empty() {
            self.linear(select)
        } else {
            self.captive(select)
        }
    }

    /// A sub-select that is evaluated as it is, for each row of the query it is in.
    fn captive(&mut self, select: &mut SelectStmt) -> Result<(), Reason> {
        let outer = free(select);
        if !outer.is_empty() {
            let mut above = false;
            for clause in clauses(select) {
                walk(clause, &mut |e| {
                    above |= self.names.is_aggregate(e) && levels::refers_only_to(e, &outer);
                    true
                });
            }
            if above {
                return Err("it has an aggregate of the query around a sub-select".to_owned());
            }
        }
        for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
            self.captive(side)?;
        }
        for item in &mut select.from_clause {
            self.item(item, true)?;
        }
        for clause in clauses(select) {
            self.expr(clause)?;
        }
        Ok(())
    }

    /// A linear query with the same result.
    fn reduce(&mut self, select: SelectStmt) -> Result<SelectStmt, Reason> {
        if self.depth == DEEPEST {
            return Err("it is nested too deeply".to_owned());
        }
        self.depth += 1;
        let reduced = self.reduce_once(select);
        self.depth -= 1;
        reduced
    }

    fn reduce_once(&mut self, select: SelectStmt) -> Result<SelectStmt, Reason> {
        if !free(&select).is_empty() {
            return Err("it has a sub-select that depends on the query around it".to_owned());
        }
        let names = output_names(&select);
        if names.is_empty() {
            return Err("it has a sub-select without columns".to_owned());
        }
        let shape = self.shape(&select);
        if shape == Shape::Linear {
            return self.taken_apart(select, shape, names.len());
        }
        let fragment = self.fragment(&select, names.len())?;
        let shared = fragment.as_ref().map(|fragment| &fragment.digest);
        let mut reduced = match shared.and_then(|digest| self.sharing.table(digest)) {
            Some(shared) => {
                self.shared.insert(shared);
                let alias = format!("__pgt_shared_{shared}");
                columns_of(&shared_name(shared), &alias, names.len())?
            }
            None => {
                let reduced = self.taken_apart(select, shape, names.len())?;
                self.fragments.extend(fragment);
                reduced
            }
        };
        // The keys of partitions come last.
        reduced.target_list.truncate(names.len());
        for (t, name) in reduced.target_list.iter_mut().zip(names) {
            if let Some(NodeEnum::ResTarget(t)) = &mut t.node {
                t.name = name;
            }
        }
        Ok(reduced)
    }

    /// A query as others may have it too: not if it reads tables of ours, whose names are this query's.
    fn fragment(&self, select: &SelectStmt, columns: usize) -> Result<Option<Fragment>, Reason> {
        if reads_ours(select) {
            return Ok(None);
        }
        let sql = identity(select.clone())?;
        Ok(Some(Fragment {
            digest: self.sharing.digest(&sql),
            sql,
            columns,
            parts: self.fragments.len(),
        }))
    }

    /// [`Cut::reduce_once`] of a query of `columns` that is not linear.
    fn taken_apart(
        &mut self,
        mut select: SelectStmt,
        shape: Shape,
        columns: usize,
    ) -> Result<SelectStmt, Reason> {
        let windowed = !windows(&select).is_empty();
        let grouped = keyed::is_grouped(self.names, &select);
        match shape {
            Shape::Linear => {
                self.linear(&mut select)?;
                Ok(select)
            }
            Shape::Limited if !is_plain(&without_limit(&select)) || windowed || grouped => {
                self.layer(select)
            }
            Shape::DistinctOn if windowed || grouped => self.layer(select),
            Shape::Limited if is_of_one(&select) => self.partition(select, |_| Vec::new()),
            Shape::Limited => self.layer(select),
            Shape::DistinctOn => self.partition(select, |s| s.distinct_clause.clone()),
            Shape::SetOperation => {
                let select = set_operation(select, columns)?;
                self.reduce(select)
            }
            Shape::Distinct if windowed || grouped => self.layer(select),
            Shape::Windowed | Shape::Grouped
                if grouped && (windowed || !self.is_one_level(&select)) =>
            {
                let select = self.levels(select)?;
                self.reduce(select)
            }
            Shape::Windowed => self.partition(select, common_keys),
            Shape::Distinct | Shape::Grouped => {
                name_columns(&mut select);
                let mut whole = select.clone();
                let pieces = self.keyed(select)?;
                self.input(&mut whole)?;
                self.stage(whole, Kind::Keyed(pieces))
            }
        }
    }

    fn keyed(&mut self, mut select: SelectStmt) -> Result<Pieces, Reason> {
        if is_ordered(&select) && collects(&select) {
            return Err("it aggregates in the order of a sub-select".to_owned());
        }
        self.input(&mut select)?;
        let mut pieces = keyed::split(self.names, select)?;
        let linear = parse_select(&pieces.body).map_err(|e| e.to_string())?;
        pieces.body = body(linear)?;
        Ok(pieces)
    }

    /// Adds a stage, if it is not there yet, and gives a query for its columns.
    fn stage(&mut self, whole: SelectStmt, kind: Kind) -> Result<SelectStmt, Reason> {
        let columns = output_names(&whole).len();
        let sql = select_text(&whole).map_err(|e| e.to_string())?;
        let identity = identity(whole)?;
        let n = match self.stages.iter().position(|s| s.identity == identity) {
            Some(n) => n + 1,
            None => {
                self.stages.push(Spec {
                    sql,
                    identity,
                    kind,
                });
                self.stages.len()
            }
        };
        columns_of(&stage_name(self.id, n), &format!("__pgt_{n}"), columns)
    }

    /// Where a recursion is read, its stage is.
    fn mention(&mut self, relation: &mut RangeVar) -> Result<(), Reason> {
        let is_it = |(r, _): &(Recursion, Place)| recursion::is_mention(relation, &r.name);
        let Some(which) = self.recursions.iter().position(is_it) else {
            return Ok(());
        };
        if matches!(self.recursions[which].1, Place::None) {
            self.recursions[which].1 = Place::Open;
            let recursion = self.recursions[which].0.clone();
            self.recursions[which].1 = self.placed(recursion)?;
        }
        match self.recursions[which].1 {
            Place::None | Place::Open => {}
            Place::Stage(n) => relation.relname = stage_name(self.id, n),
            Place::Shared(shared) => relation.relname = shared_name(shared),
        }
        Ok(())
    }

    /// Where a recursion is to be found.
    fn placed(&mut self, recursion: Recursion) -> Result<Place, Reason> {
        let fragment = recursion_identity(&recursion)?.map(|sql| Fragment {
            digest: self.sharing.digest(&sql),
            sql,
            columns: recursion.columns.len(),
            parts: self.fragments.len(),
        });
        let digest = fragment.as_ref().map(|fragment| &fragment.digest);
        if let Some(shared) = digest.and_then(|digest| self.sharing.table(digest)) {
            self.shared.insert(shared);
            return Ok(Place::Shared(shared));
        }
        let n = self.recursive(recursion)?;
        self.fragments.extend(fragment);
        Ok(Place::Stage(n))
    }

    /// The number of a recursion's stage.
    fn recursive(&mut self, recursion: Recursion) -> Result<usize, Reason> {
        let Recursion {
            name,
            columns,
            mut base,
            mut step,
            all,
        } = recursion;
        if !all {
            // Duplicates of either side go anyway.
            recursion::keep_duplicates(&mut base);
            recursion::keep_duplicates(&mut step);
        }
        self.linear(&mut base)?;
        let is_plain = |s: &SelectStmt| {
            is_plain(s) && !keyed::is_grouped(self.names, s) && windows(s).is_empty()
        };
        recursion::check(&step, &name, &is_plain)?;
        let first = self.stages.len();
        self.linear(&mut step)?;
        let base = body(base)?;
        let mut step = parse_select(&body(step)?).map_err(|e| e.to_string())?;
        if step.op != SetOperation::SetopNone as i32 {
            return Err("its recursive term has a FULL JOIN".to_owned());
        }
        if self.stages[first..].iter().any(|s| s.sql.contains(&name))
            || recursion::mentions(&mut step, &name) != 1
        {
            return Err(recursion::NOT_LINEAR.to_owned());
        }
        // Equal queries have equal texts but for the name.
        const ANY: &str = "__pgt_recursion";
        recursion::rename(&mut step, &name, ANY);
        let text = |select: &SelectStmt| select_text(select).map_err(|e| e.to_string());
        let key = (base, text(&step)?, all);
        let n = match self.recursive.iter().find(|(other, _)| *other == key) {
            Some((_, n)) => *n,
            None => {
                let n = self.stages.len() + 1;
                let own = stage_name(self.id, n);
                recursion::rename(&mut step, ANY, &own);
                let base = parse_select(&key.0).map_err(|e| e.to_string())?;
                let recursive = Recursive {
                    base: key.0.clone(),
                    step: text(&step)?,
                    both: text(&union_all(base, step))?,
                    all,
                };
                let step = from_ctes(&recursive.step, std::slice::from_ref(&own));
                let step = step.map_err(|e| e.to_string())?;
                let sql = recursive.query(&own, columns.len(), &recursive.base, &step);
                self.stages.push(Spec {
                    identity: sql.clone(),
                    sql,
                    kind: Kind::Recursive(recursive),
                });
                self.recursive.push((key, n));
                n
            }
        };
        Ok(n)
    }

    /// A stage of partitions; `keys` says by what, once the input is linear.
    fn partition(
        &mut self,
        mut select: SelectStmt,
        keys: impl Fn(&SelectStmt) -> Vec<Node>,
    ) -> Result<SelectStmt, Reason> {
        self.input(&mut select)?;
        let keys = keys(&select);
        let mut below = SelectStmt {
            from_clause: select.from_clause.clone(),
            where_clause: select.where_clause.clone(),
            ..empty_select()
        };
        for (i, key) in keys.iter().enumerate() {
            below
                .target_list
                .push(target(&format!("k{}", i + 1), key.clone()));
        }
        // Sub-selects count as part of the input.
        let mut found = Vec::new();
        for clause in clauses(&mut SelectStmt {
            where_clause: None,
            ..select.clone()
        }) {
            walk(clause, &mut |e| {
                let is_sublink = matches!(e.node, Some(NodeEnum::SubLink(_)));
                if is_sublink {
                    found.push(e.clone());
                }
                !is_sublink
            });
        }
        for (i, sublink) in found.into_iter().enumerate() {
            below
                .target_list
                .push(target(&format!("a{}", i + 1), sublink));
        }
        for key in &keys {
            select.target_list.push(target("", key.clone()));
        }
        name_columns(&mut select);
        let parts = Parts {
            args: below.target_list.len() - keys.len(),
            body: body(below)?,
            keys: keys
                .iter()
                .map(|k| expr_text(k).map_err(|e| e.to_string()))
                .collect::<Result<_, _>>()?,
        };
        self.stage(select, Kind::Partition(parts))
    }

    /// Puts all but ORDER BY, LIMIT and DISTINCT into a sub-select.
    fn layer(&mut self, mut select: SelectStmt) -> Result<SelectStmt, Reason> {
        let columns = output_names(&select).len();
        let limited = self.shape(&select) == Shape::Limited;
        let is_distinct_on = select.distinct_clause.iter().any(|d| d.node.is_some());
        let mut outer = SelectStmt {
            limit_count: select.limit_count.take(),
            limit_offset: select.limit_offset.take(),
            limit_option: std::mem::replace(&mut select.limit_option, 1),
            sort_clause: std::mem::take(&mut select.sort_clause),
            ..empty_select()
        };
        // A plain DISTINCT under LIMIT stays where it is.
        let fixed = select.op != SetOperation::SetopNone as i32
            || limited && !select.distinct_clause.is_empty() && !is_distinct_on;
        if !fixed {
            outer.distinct_clause = std::mem::take(&mut select.distinct_clause);
        }
        let mut place = |expr: &mut Node| -> Result<(), Reason> {
            let place = match positional(expr) {
                Some(place) => place,
                None => {
                    let text = expr_text(expr).map_err(|e| e.to_string())?;
                    let found = targets(&select)
                        .iter()
                        .position(|t| expr_text(t).is_ok_and(|t| t == text));
                    match found {
                        Some(i) => i + 1,
                        None if fixed => {
                            return Err("it orders by what is not among its columns".to_owned());
                        }
                        None => {
                            select.target_list.push(target("", expr.clone()));
                            select.target_list.len()
                        }
                    }
                }
            };
            *expr = ast::column("__pgt_l", &format!("c{place}"));
            Ok(())
        };
        for sort in &mut outer.sort_clause {
            if let Some(NodeEnum::SortBy(sort)) = &mut sort.node
                && let Some(by) = sort.node.as_deref_mut()
            {
                place(by)?;
            }
        }
        for on in outer
            .distinct_clause
            .iter_mut()
            .filter(|d| d.node.is_some())
        {
            place(on)?;
        }
        let all: Vec<_> = (1..=output_names(&select).len())
            .map(|i| format!("c{i}"))
            .collect();
        outer.target_list = all[..columns]
            .iter()
            .map(|c| target(c, ast::column("__pgt_l", c)))
            .collect();
        if limited
            && is_plain(&select)
            && !keyed::is_grouped(self.names, &select)
            && windows(&select).is_empty()
        {
            self.linear(&mut select)?;
            name_columns(&mut select);
            let kind = Kind::Linear(body(select.clone())?);
            select = self.stage(select, kind)?;
        }
        outer.from_clause = vec![ast::range(select, "__pgt_l", &all)];
        self.reduce(outer)
    }

    /// Puts the groups into stages of their own; what is left is a query over them.
    fn levels(&mut self, select: SelectStmt) -> Result<SelectStmt, Reason> {
        let levels = levels::split(self.names, select)?;
        let mut arms = Vec::new();
        let mut stages = Vec::new();
        for inner in &levels.inner {
            let mut inner = inner.clone();
            name_columns(&mut inner);
            stages.push(self.reduce(inner)?);
        }
        for (n, stage) in stages.iter().enumerate() {
            arms.push(levels.arm(n, stage, &stages)?);
        }
        let united = arms
            .into_iter()
            .reduce(union_all)
            .ok_or("it has no grouping set")?;
        let mut outer = levels.outer;
        outer.from_clause = vec![ast::range(united, levels::GROUPS, &levels.columns)];
        Ok(outer)
    }
}

/// A query for the columns `c1…` of a table of ours.
fn columns_of(table: &str, alias: &str, columns: usize) -> Result<SelectStmt, Reason> {
    let list: Vec<_> = (1..=columns).map(|i| format!("{alias}.c{i}")).collect();
    let text = format!("SELECT {} FROM pgtrickle.{table} {alias}", list.join(", "));
    parse_select(&text).map_err(|e| e.to_string())
}

/// Whether a SELECT reads one table or sub-select, and nothing else but for its LIMIT: a layer below would leave that as it
/// is, and so not come to an end.
fn is_of_one(select: &SelectStmt) -> bool {
    let mut sublinks = false;
    for clause in clauses(&mut without_limit(select)) {
        each_sublink(clause, &mut |_| sublinks = true);
    }
    let joined = |item: &Node| matches!(item.node, Some(NodeEnum::JoinExpr(_)));
    !sublinks && select.from_clause.len() < 2 && !select.from_clause.iter().any(joined)
}

/// Whether a sub-select in FROM has an ORDER BY.
fn is_ordered(select: &SelectStmt) -> bool {
    select.from_clause.iter().any(|item| {
        let Some(NodeEnum::RangeSubselect(sub)) = &item.node else {
            return false;
        };
        match sub.subquery.as_ref().and_then(|q| q.node.as_ref()) {
            Some(NodeEnum::SelectStmt(inner)) => !inner.sort_clause.is_empty() || is_ordered(inner),
            _ => false,
        }
    })
}

/// Whether an aggregate's result depends on the order of its input.
fn collects(select: &SelectStmt) -> bool {
    const BY_ORDER: [&str; 10] = [
        "array_agg",
        "string_agg",
        "json_agg",
        "jsonb_agg",
        "json_object_agg",
        "jsonb_object_agg",
        "xmlagg",
        "json_agg_strict",
        "jsonb_agg_strict",
        "range_agg",
    ];
    let mut found = false;
    for t in &mut select.target_list.clone() {
        walk(t, &mut |e| {
            if let Some(NodeEnum::FuncCall(f)) = &e.node {
                let (_, name) = ast::qualified(&f.funcname);
                found |= f.agg_order.is_empty() && BY_ORDER.contains(&name);
            }
            true
        });
    }
    found
}

fn without_limit(select: &SelectStmt) -> SelectStmt {
    SelectStmt {
        limit_count: None,
        limit_offset: None,
        ..select.clone()
    }
}

/// `ORDER BY 2`
fn positional(expr: &Node) -> Option<usize> {
    match &expr.node {
        Some(NodeEnum::AConst(c)) => match &c.val {
            Some(pg_query::protobuf::a_const::Val::Ival(i)) => usize::try_from(i.ival).ok(),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a query reads tables of ours.
fn reads_ours(select: &SelectStmt) -> bool {
    let mut found = false;
    ast::each_table(&mut select.clone(), &mut |relation| {
        found |= relation.schemaname == "pgtrickle";
    });
    found
}

/// The text of a recursion as a query: a WITH RECURSIVE of its own. `None` if it reads another one.
fn recursion_identity(recursion: &Recursion) -> Result<Option<String>, Reason> {
    const NAME: &str = "__pgt_recursion";
    let mut texts = Vec::new();
    for part in [&recursion.base, &recursion.step] {
        let mut part = part.clone();
        recursion::unqualify(&mut part, &recursion.name, NAME);
        if reads_ours(&part) {
            return Ok(None);
        }
        texts.push(identity(part)?);
    }
    let columns = recursion.columns.len();
    Ok(Some(recursion::query(
        NAME,
        columns,
        &texts[0],
        &texts[1],
        recursion.all,
    )))
}

/// Names the targets `c1…`.
fn name_columns(select: &mut SelectStmt) {
    for (i, t) in select.target_list.iter_mut().enumerate() {
        if let Some(NodeEnum::ResTarget(t)) = &mut t.node {
            t.name = format!("c{}", i + 1);
        }
    }
}

/// The same in all sides of a set operation.
fn name_all_columns(select: &mut SelectStmt) {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        name_all_columns(side);
    }
    name_columns(select);
}

/// The window definitions of a SELECT's calls.
fn windows(select: &SelectStmt) -> Vec<WindowDef> {
    let mut found = Vec::new();
    let mut select = select.clone();
    select.where_clause = None;
    for clause in clauses(&mut select) {
        walk(clause, &mut |e| {
            if let Some(NodeEnum::FuncCall(f)) = &e.node
                && let Some(over) = &f.over
            {
                found.push((**over).clone());
            }
            true
        });
    }
    found
}

/// The expressions by which all windows of a SELECT partition its rows.
fn common_keys(select: &SelectStmt) -> Vec<Node> {
    let named = |name: &str| {
        select.window_clause.iter().find_map(|w| match &w.node {
            Some(NodeEnum::WindowDef(w)) if w.name == name => Some(w.partition_clause.clone()),
            _ => None,
        })
    };
    let mut common: Option<Vec<Node>> = None;
    for window in windows(select) {
        let base = if window.refname.is_empty() {
            &window.name
        } else {
            &window.refname
        };
        let keys = match named(base) {
            Some(keys) if !base.is_empty() => keys,
            _ => window.partition_clause,
        };
        let keys = keys
            .into_iter()
            .filter(|k| !matches!(k.node, Some(NodeEnum::AConst(_) | NodeEnum::TypeCast(_))));
        let texts = |nodes: &[Node]| -> Vec<_> {
            nodes.iter().map(expr_text).filter_map(Result::ok).collect()
        };
        common = Some(match common {
            None => keys.collect(),
            Some(common) => {
                let have = texts(&common);
                keys.filter(|k| expr_text(k).is_ok_and(|k| have.contains(&k)))
                    .collect()
            }
        });
    }
    common.unwrap_or_default()
}

/// UNION, INTERSECT and EXCEPT as groups of equal rows with the side they come from.
fn set_operation(select: SelectStmt, columns: usize) -> Result<SelectStmt, Reason> {
    let (Some(left), Some(right)) = (&select.larg, &select.rarg) else {
        return Err("a set operation has one side only".to_owned());
    };
    let text = |side: &SelectStmt| select_text(side).map_err(|e| e.to_string());
    let names: Vec<_> = (1..=columns).map(|i| format!("c{i}")).collect();
    let list = names.join(", ");
    let qualified = |alias: &str| -> String {
        let all: Vec<_> = names.iter().map(|n| format!("{alias}.{n}")).collect();
        all.join(", ")
    };
    let u = qualified("__pgt_u");
    let (left, right) = (text(left)?, text(right)?);
    if select.op == SetOperation::SetopUnion as i32 {
        return parse_select(&format!(
            "SELECT DISTINCT {u} FROM (({left}) UNION ALL ({right})) __pgt_u({list})"
        ))
        .map_err(|e| e.to_string());
    }
    let sides = format!(
        "SELECT {}, true FROM ({left}) __pgt_a({list}) UNION ALL SELECT {}, false FROM ({right}) __pgt_b({list})",
        qualified("__pgt_a"),
        qualified("__pgt_b")
    );
    let (a, b) = (
        "count(*) FILTER (WHERE __pgt_u.side)",
        "count(*) FILTER (WHERE NOT __pgt_u.side)",
    );
    let from = format!("FROM ({sides}) __pgt_u({list}, side) GROUP BY {u}");
    let intersect = select.op == SetOperation::SetopIntersect as i32;
    let sql = match (intersect, select.all) {
        (true, false) => format!("SELECT {u} {from} HAVING {a} > 0 AND {b} > 0"),
        (false, false) => format!("SELECT {u} {from} HAVING {a} > 0 AND {b} = 0"),
        (_, true) => {
            let times = if intersect {
                "LEAST(__pgt_n.a, __pgt_n.b)"
            } else {
                "__pgt_n.a - __pgt_n.b"
            };
            format!(
                "SELECT {} FROM (SELECT {u}, {a}, {b} {from}) __pgt_n({list}, a, b),
                    LATERAL generate_series(1, {times}) __pgt_t(n)",
                qualified("__pgt_n")
            )
        }
    };
    parse_select(&sql).map_err(|e| e.to_string())
}

fn union_all(left: SelectStmt, right: SelectStmt) -> SelectStmt {
    SelectStmt {
        op: SetOperation::SetopUnion as i32,
        all: true,
        larg: Some(Box::new(left)),
        rarg: Some(Box::new(right)),
        ..empty_select()
    }
}

/// The text of a linear body. A FULL JOIN is written as the LEFT JOIN and the rows of the right side without a match: each
/// is linear in one side.
fn body(mut select: SelectStmt) -> Result<String, Reason> {
    let mut budget = 15;
    split_full(&mut select, &mut budget)?;
    select_text(&select).map_err(|e| e.to_string())
}

fn split_full(select: &mut SelectStmt, budget: &mut u32) -> Result<(), Reason> {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        split_full(side, budget)?;
    }
    let mut other = select.clone();
    let mut unmatched = None;
    let found = select
        .from_clause
        .iter_mut()
        .zip(&mut other.from_clause)
        .any(|(a, b)| full_join(a, b, &mut unmatched));
    if !found {
        for item in &mut select.from_clause {
            in_subselects(item, budget)?;
        }
        return Ok(());
    }
    *budget = budget.checked_sub(1).ok_or("it has too many full joins")?;
    if let Some(condition) = unmatched {
        ast::restrict(&mut other, condition);
    }
    let first = std::mem::replace(select, empty_select());
    *select = union_all(first, other);
    split_full(select, budget)
}

fn in_subselects(item: &mut Node, budget: &mut u32) -> Result<(), Reason> {
    match item.node.as_mut() {
        Some(NodeEnum::RangeSubselect(sub)) => inner(sub.subquery.as_mut())
            .filter(|s| is_plain(s) || s.op != SetOperation::SetopNone as i32)
            .map_or(Ok(()), |select| split_full(select, budget)),
        Some(NodeEnum::JoinExpr(join)) => {
            if let Some(side) = join.larg.as_deref_mut() {
                in_subselects(side, budget)?;
            }
            match join.rarg.as_deref_mut() {
                Some(side) if join.jointype == JoinType::JoinInner as i32 => {
                    in_subselects(side, budget)
                }
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Turns the first FULL JOIN that is not on the nullable side of another into a LEFT JOIN in `item`, and in its twin
/// `other` into the right side with NULLs, with the condition for having no match.
fn full_join(item: &mut Node, other: &mut Node, unmatched: &mut Option<Node>) -> bool {
    let (Some(NodeEnum::JoinExpr(join)), Some(NodeEnum::JoinExpr(twin))) =
        (item.node.as_mut(), other.node.as_mut())
    else {
        return false;
    };
    if join.jointype == JoinType::JoinFull as i32 {
        join.jointype = JoinType::JoinLeft as i32;
        twin.jointype = JoinType::JoinLeft as i32;
        let left = twin.larg.as_deref().cloned().into_iter().collect();
        let quals = twin.quals.take().map(|q| *q).into_iter().collect();
        *unmatched = Some(not(ast::exists(left, quals)));
        std::mem::swap(&mut twin.larg, &mut twin.rarg);
        twin.quals = ast::parse_expr("false").ok().map(Box::new);
        return true;
    }
    let mut sides = vec![(&mut join.larg, &mut twin.larg)];
    if join.jointype == JoinType::JoinInner as i32 {
        sides.push((&mut join.rarg, &mut twin.rarg));
    }
    sides.into_iter().any(|(a, b)| match (a, b) {
        (Some(a), Some(b)) => full_join(a, b, unmatched),
        _ => false,
    })
}

/// The query of a stage restricted to the keys in `keys_table`: those without NULL, by equality, and those with.
///
/// # Errors
/// Those of [`parse_select`].
pub(crate) fn restricted(
    sql: &str,
    keys: &[String],
    equalities: &[String],
    keys_table: &str,
) -> Result<(String, String), crate::conn::Error> {
    let from = parse_select(&format!("SELECT FROM {} __pgt_q", keys_table))?.from_clause;
    let q: Vec<_> = (1..=keys.len()).map(|i| format!("__pgt_q.k{i}")).collect();
    let null = format!("num_nulls({})", q.join(", "));
    let equal: Vec<_> = keys
        .iter()
        .zip(equalities.iter().zip(&q))
        .map(|(key, (equality, q))| format!("({key}) {equality} {q}"))
        .collect();
    let by_equality = format!("{} AND {null} = 0", equal.join(" AND "));
    let by_record = format!(
        "record_eq(ROW({}), ROW({})) AND {null} > 0",
        keys.join(", "),
        q.join(", ")
    );
    let with = |condition: &str| {
        let mut select = parse_select(sql)?;
        select.from_clause.extend(from.clone());
        ast::restrict(&mut select, ast::parse_expr(condition)?);
        select_text(&select)
    };
    Ok((with(&by_equality)?, with(&by_record)?))
}

/// Whether a query reads tables of these stages.
///
/// # Errors
/// Those of [`parse_select`].
pub(crate) fn reads_any(sql: &str, stages: &[String]) -> Result<bool, crate::conn::Error> {
    let mut found = false;
    if !stages.is_empty() {
        ast::each_table(&mut parse_select(sql)?, &mut |relation| {
            found |= relation.schemaname == "pgtrickle" && stages.contains(&relation.relname);
        });
    }
    Ok(found)
}

/// The query with the tables of stages read from WITH queries of the same names.
///
/// # Errors
/// Those of [`parse_select`].
pub(crate) fn from_ctes(sql: &str, stages: &[String]) -> Result<String, crate::conn::Error> {
    if stages.is_empty() {
        return Ok(sql.to_owned());
    }
    let mut select = parse_select(sql)?;
    ast::each_table(&mut select, &mut |relation| {
        if relation.schemaname == "pgtrickle" && stages.contains(&relation.relname) {
            relation.schemaname.clear();
        }
    });
    select_text(&select)
}

/// The table of stage `n` (from 1), qualified, as SQL text.
pub(crate) fn stage_table(id: i64, n: usize) -> String {
    format!("pgtrickle.{}", quote(&stage_name(id, n)))
}
