//! The terms of a delta: a linear query with one changed leaf replaced by its delta, and the others by a state of theirs.
//!
//! `Δ(R1 ⋈ … ⋈ Rn) = Σ over changed i of R1_new ⋈ … ⋈ ΔRi ⋈ R(i+1)_old ⋈ … ⋈ Rn_old`, and a UNION ALL of such joins is
//! linear in its leaves too; with `R_old = R_new - ΔR` multiplied out, it is a term for every choice of changed leaves
//! ([`Olds`]). Every replaced leaf carries a weight `__pgt_w`; the product is exported through each level.
//!
//! The query is not linear in the tables of sub-selects in expressions and of the nullable side of an outer join: the
//! *captives* of the SELECT (the *unit*) they are in. It is a function of each linear row and of them, and so
//! `Δ(L × f(C)) = ΔL × f(C_new) + L_old × (f(C_new) - f(C_old))`, where the second part is evaluated for those rows only that
//! a change of C can affect ([`super::affected`]). A captive's old state is a true multiset, not a weighted one.

use std::borrow::Cow;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    BoolExprType, JoinType, Node, RangeVar, SelectStmt, SetOperation, SubLinkType,
};

use super::affected::{self, Driver, Reach};
use super::ast::{self, clauses, each_sublink, inner, parse_expr, parse_select, select_text, sval};
use super::inline::calls;
use super::normalise::{is_plain, not};
use super::{Column, Image, quote};
use crate::conn::Error;

/// The name of the weight column: the last column of every term.
pub(crate) const WEIGHT: &str = "__pgt_w";

/// A table a linear query reads: a source or a stage.
#[derive(Debug, Clone)]
pub(crate) struct Input<'a> {
    pub schema: &'a str,
    pub name: Cow<'a, str>,
    /// The columns the query uses.
    pub columns: &'a [Column],
    /// The names of all its columns, in order: positions of alias lists refer to them.
    pub all_columns: Cow<'a, [String]>,
    /// The table its changes are staged in, if there are any; a column's name there is this letter and its number.
    pub delta: Option<(String, char)>,
}

impl Input<'_> {
    pub(crate) fn qualified(&self) -> String {
        format!("{}.{}", quote(self.schema), quote(&self.name))
    }

    pub(crate) fn changed(&self) -> bool {
        self.delta.is_some()
    }
}

/// What stands in for a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The table as it is.
    New,
    /// Its changes, with their weights.
    Delta,
    /// The table as it was, as weighted rows.
    Old,
    /// Its changes taken back: their weights negated. With [`State::New`] in another term, the same as [`State::Old`].
    Undone,
    /// The table as it was, as plain rows.
    Past,
}

/// A mention of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    /// Which of the inputs.
    pub input: usize,
    /// The number of the SELECT whose captive it is.
    unit: Option<usize>,
}

/// How the old state of a table gets into a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Olds {
    /// As the UNION ALL of the table and its changes, so there are few terms, which are soon planned. But PostgreSQL knows
    /// nothing of a UNION ALL's values, and takes a join with one for very large: among many changes it reads whole tables.
    Within,
    /// By terms of their own for the table and for its changes, of which it has statistics.
    Apart,
}

/// No more terms than these are made of others by [`Olds::Apart`]: each is planned.
const MOST_TERMS: usize = 64;

/// One SELECT per term; their UNION ALL is the delta. The last column is the weight.
///
/// # Errors
/// [`Error::Internal`] for a plan that cannot be read.
pub(crate) fn delta(body: &str, inputs: &[Input<'_>], olds: Olds) -> Result<Vec<String>, Error> {
    let mut body = parse_select(body)?;
    let Survey {
        leaves,
        selects,
        unions,
        ..
    } = survey(&mut body, inputs)?;
    let changed = |leaf: &Leaf| inputs[leaf.input].changed();
    // Of a UNION ALL only the branch with the change counts: a term is no product of all its leaves.
    let is_apart = olds == Olds::Apart && !unions;
    let mut most = if is_apart { MOST_TERMS } else { 0 };
    let mut terms = Vec::new();
    let mut add = |states: Vec<State>, unit: Option<Unit>| -> Result<(), Error> {
        let mut term = body.clone();
        let mut rewriter = Rewriter {
            leaves: &leaves,
            states,
            inputs,
            unit,
            at_unit: false,
            next: 0,
            selects: 0,
        };
        rewriter.select(&mut term, true)?;
        terms.push(select_text(&term)?);
        Ok(())
    };
    for (i, leaf) in leaves.iter().enumerate() {
        if leaf.unit.is_some() || !changed(leaf) {
            continue;
        }
        let states = leaves.iter().enumerate().map(|(j, other)| {
            if j == i {
                State::Delta
            } else if j > i && other.unit.is_none() && changed(other) {
                State::Old
            } else {
                State::New
            }
        });
        for states in apart(states.collect(), &mut most) {
            add(states, None)?;
        }
    }
    for number in 0..selects {
        let mut before: Vec<Node> = Vec::new();
        for (i, leaf) in leaves.iter().enumerate() {
            if leaf.unit != Some(number) || !changed(leaf) {
                continue;
            }
            let reach = affected::reach(&mut body.clone(), i, &leaves, inputs)?;
            let mut conditions: Vec<_> = before.iter().cloned().map(not).collect();
            let mut driver = None;
            match &reach {
                Reach::Never => continue,
                Reach::Everything => {}
                Reach::Rows(rows) => match &rows.driver {
                    Some(found) if found.is_exact(inputs) => driver = Some(found.clone()),
                    _ => conditions.push(rows.condition.clone()),
                },
            }
            for sign in [1, -1] {
                let states = leaves.iter().map(|other| match other.unit {
                    _ if !changed(other) => State::New,
                    None => State::Old,
                    Some(unit) if unit > number || unit == number && sign < 0 => State::Past,
                    Some(_) => State::New,
                });
                for states in apart(states.collect(), &mut most) {
                    let unit = Unit {
                        number,
                        sign,
                        condition: ast::all_of(conditions.clone()),
                        driver: driver.clone(),
                        leads: olds == Olds::Apart,
                    };
                    add(states, Some(unit))?;
                }
            }
            match reach {
                // Nothing is left for the rest.
                Reach::Everything => break,
                // All of what the term was about: a driver may be of more rows than the condition holds for.
                Reach::Rows(rows) => before.push(match &driver {
                    Some(driver) => driver.condition(),
                    None => rows.condition,
                }),
                Reach::Never => {}
            }
        }
    }
    Ok(terms)
}

/// The states of the terms by which the old states of one are done without, as far as there may be so many more.
fn apart(states: Vec<State>, most: &mut usize) -> Vec<Vec<State>> {
    let mut terms = vec![states];
    for i in 0..terms[0].len() {
        if terms[0][i] == State::Old && terms.len() * 2 <= *most {
            let mut undone = terms.clone();
            terms.iter_mut().for_each(|term| term[i] = State::New);
            undone.iter_mut().for_each(|term| term[i] = State::Undone);
            terms.append(&mut undone);
        }
    }
    *most = most.saturating_sub(terms.len());
    terms
}

/// Whether a sub-select in FROM is part of the linear query around it. One that is not has at least an `OFFSET 0`
/// ([`super::cut`] sees to that).
pub(super) fn is_linear(select: &SelectStmt) -> bool {
    is_plain(select)
        || !select.values_lists.is_empty()
        || select.op == SetOperation::SetopUnion as i32
            && select.all
            && select.limit_count.is_none()
            && select.limit_offset.is_none()
}

struct Survey<'a> {
    inputs: &'a [Input<'a>],
    /// In order.
    leaves: Vec<Leaf>,
    /// Linear SELECTs met so far.
    selects: usize,
    /// Whether any of them is a UNION ALL.
    unions: bool,
    unknown: bool,
}

impl Survey<'_> {
    fn select(&mut self, select: &mut SelectStmt, unit: Option<usize>) {
        for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
            self.select(side, unit);
        }
        if select.larg.is_some() && unit.is_none() {
            self.unions = true;
            return;
        }
        let own = self.selects;
        if unit.is_none() {
            self.selects += 1;
        }
        for item in &mut select.from_clause {
            self.item(item, unit, own);
        }
        let captive = Some(unit.unwrap_or(own));
        for clause in clauses(select) {
            self.expr(clause, captive);
        }
    }

    fn item(&mut self, item: &mut Node, unit: Option<usize>, own: usize) {
        match item.node.as_mut() {
            Some(NodeEnum::RangeVar(relation)) => {
                let input = self
                    .inputs
                    .iter()
                    .position(|i| i.schema == relation.schemaname && i.name == relation.relname);
                self.unknown |= input.is_none();
                let input = input.unwrap_or_default();
                self.leaves.push(Leaf { input, unit });
            }
            Some(NodeEnum::RangeSubselect(sub)) => {
                if let Some(select) = inner(sub.subquery.as_mut()) {
                    let unit = match unit {
                        None if is_linear(select) => None,
                        _ => Some(unit.unwrap_or(own)),
                    };
                    self.select(select, unit);
                }
            }
            Some(NodeEnum::JoinExpr(join)) => {
                let nullable = match unit {
                    None if join.jointype == JoinType::JoinInner as i32 => None,
                    _ => Some(unit.unwrap_or(own)),
                };
                if let Some(side) = join.larg.as_deref_mut() {
                    self.item(side, unit, own);
                }
                if let Some(side) = join.rarg.as_deref_mut() {
                    self.item(side, nullable, own);
                }
                if let Some(quals) = join.quals.as_deref_mut() {
                    self.expr(quals, Some(unit.unwrap_or(own)));
                }
            }
            Some(NodeEnum::RangeFunction(function)) => {
                for call in calls(function) {
                    self.expr(call, Some(unit.unwrap_or(own)));
                }
            }
            _ => {}
        }
    }

    fn expr(&mut self, expr: &mut Node, unit: Option<usize>) {
        each_sublink(expr, &mut |sublink| {
            if let Some(select) = inner(sublink.subselect.as_mut()) {
                self.select(select, unit);
            }
        });
    }
}

/// The SELECT whose captives a term is about.
struct Unit {
    number: usize,
    sign: i8,
    condition: Option<Node>,
    driver: Option<Driver>,
    /// Whether the driver is to come before all joins, if it can, whatever PostgreSQL thinks of them: it may take a long way round
    /// for the shorter one.
    leads: bool,
}

struct Rewriter<'a> {
    leaves: &'a [Leaf],
    states: Vec<State>,
    inputs: &'a [Input<'a>],
    unit: Option<Unit>,
    /// Whether what is rewritten is WHERE or the targets of the unit.
    at_unit: bool,
    next: usize,
    selects: usize,
}

impl Rewriter<'_> {
    /// Replaces the leaves of a linear `select`, and adds the weight to its columns if `export`.
    fn select(&mut self, select: &mut SelectStmt, export: bool) -> Result<(), Error> {
        if select.larg.is_some() {
            let driven = self.is_driven(select);
            for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
                if driven && !self.is_driven(side) {
                    // Kept, as it has a say in the types of the columns, but empty.
                    let (leaves, selects) = count(side);
                    self.states[self.next..self.next + leaves].fill(State::New);
                    self.next += leaves;
                    self.selects += selects;
                    empty(side)?;
                    if export {
                        export_weight(side, &parse_expr("1::pg_catalog.int8")?)?;
                    }
                } else {
                    self.select(side, export)?;
                }
            }
            return Ok(());
        }
        let number = self.selects;
        self.selects += 1;
        let mut weights = Vec::new();
        for item in &mut select.from_clause {
            self.item(item, &mut weights)?;
        }
        self.at_unit = self.unit.as_ref().is_some_and(|u| u.number == number);
        for clause in clauses(select) {
            self.expr(clause)?;
        }
        self.at_unit = false;
        let unit = self.unit.as_ref().filter(|u| u.number == number);
        if let Some((driver, leads)) = unit.and_then(|u| Some((u.driver.clone()?, u.leads))) {
            drive(select, driver, leads, self.inputs)?;
        }
        if let Some(condition) = unit.and_then(|u| u.condition.clone()) {
            ast::restrict(select, condition);
        }
        if !export {
            return Ok(());
        }
        let sign = unit.map_or(1, |u| u.sign);
        let mut factors: Vec<_> = weights
            .iter()
            .map(|alias| format!("{}.{WEIGHT}", quote(alias)))
            .collect();
        if factors.is_empty() || sign < 0 {
            factors.push(format!("({sign})::pg_catalog.int8"));
        }
        export_weight(select, &parse_expr(&factors.join(" * "))?)
    }

    fn item(&mut self, item: &mut Node, weights: &mut Vec<String>) -> Result<(), Error> {
        match item.node.as_mut() {
            Some(NodeEnum::RangeVar(relation)) => {
                let (input, state) = self.take();
                if state == State::New {
                    return Ok(());
                }
                *item = stand_in(relation, input, state)?;
                if state != State::Past {
                    weights.extend(ast::aliases(item));
                }
            }
            Some(NodeEnum::JoinExpr(join)) => {
                if let Some(side) = join.larg.as_deref_mut() {
                    self.item(side, weights)?;
                }
                let past = self.next;
                if let Some(side) = join.rarg.as_deref_mut() {
                    if join.jointype == JoinType::JoinInner as i32 {
                        self.item(side, weights)?;
                    } else {
                        self.captive_item(side)?;
                    }
                }
                let past = self.states[past..self.next].contains(&State::Past);
                if let Some(quals) = join.quals.as_deref_mut() {
                    self.expr(quals)?;
                }
                if past && join.jointype == JoinType::JoinLeft as i32 {
                    laterally(join)?;
                }
            }
            Some(NodeEnum::RangeSubselect(sub)) => {
                let alias = sub.alias.as_ref().map(|a| a.aliasname.clone());
                if let Some(select) = inner(sub.subquery.as_mut()) {
                    if !is_linear(select) {
                        return self.captive(select);
                    }
                    let weighted = self.is_weighted(select);
                    if weighted {
                        weights.extend(alias);
                    }
                    self.select(select, weighted)?;
                }
            }
            Some(NodeEnum::RangeFunction(function)) => {
                for call in calls(function) {
                    self.expr(call)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn expr(&mut self, expr: &mut Node) -> Result<(), Error> {
        let mut result = Ok(());
        each_sublink(expr, &mut |sublink| {
            let first = self.next;
            if let Some(select) = inner(sublink.subselect.as_mut())
                && result.is_ok()
            {
                result = self.captive(select);
                let past = self.states[first..self.next].contains(&State::Past);
                // To be evaluated for the few rows at hand only: PostgreSQL makes no join of an EXISTS with an OFFSET.
                if (past || self.at_unit)
                    && sublink.sub_link_type == SubLinkType::ExistsSublink as i32
                    && select.limit_offset.is_none()
                {
                    select.limit_offset = parse_expr("0").ok().map(Box::new);
                    select.limit_option = pg_query::protobuf::LimitOption::Count as i32;
                }
            }
        });
        result
    }

    /// Replaces the leaves of what is evaluated as it is.
    fn captive(&mut self, select: &mut SelectStmt) -> Result<(), Error> {
        for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
            self.captive(side)?;
        }
        for item in &mut select.from_clause {
            self.captive_item(item)?;
        }
        for clause in clauses(select) {
            self.expr(clause)?;
        }
        Ok(())
    }

    fn captive_item(&mut self, item: &mut Node) -> Result<(), Error> {
        match item.node.as_mut() {
            Some(NodeEnum::RangeVar(relation)) => {
                let (input, state) = self.take();
                if state == State::Past {
                    *item = stand_in(relation, input, state)?;
                }
            }
            Some(NodeEnum::JoinExpr(join)) => {
                for side in [&mut join.larg, &mut join.rarg].into_iter().flatten() {
                    self.captive_item(side)?;
                }
                if let Some(quals) = join.quals.as_deref_mut() {
                    self.expr(quals)?;
                }
            }
            Some(NodeEnum::RangeSubselect(sub)) => {
                if let Some(select) = inner(sub.subquery.as_mut()) {
                    self.captive(select)?;
                }
            }
            Some(NodeEnum::RangeFunction(function)) => {
                for call in calls(function) {
                    self.expr(call)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn take(&mut self) -> (&Input<'_>, State) {
        let found = (
            &self.inputs[self.leaves[self.next].input],
            self.states[self.next],
        );
        self.next += 1;
        found
    }

    /// Whether a query that comes next has the changed leaf or the unit in it.
    fn is_driven(&self, select: &SelectStmt) -> bool {
        let (leaves, selects) = count(select);
        let unit = self.unit.as_ref().map(|u| u.number);
        self.states[self.next..self.next + leaves].contains(&State::Delta)
            || unit.is_some_and(|u| (self.selects..self.selects + selects).contains(&u))
    }

    /// Whether its rows have weights of their own.
    fn is_weighted(&self, select: &SelectStmt) -> bool {
        let (leaves, _) = count(select);
        let weighted = |state: &State| matches!(state, State::Old | State::Undone);
        self.is_driven(select)
            || self.states[self.next..self.next + leaves]
                .iter()
                .any(weighted)
    }
}

/// An expression with sub-selects as it was. The number of its first leaf is `first`.
///
/// # Errors
/// [`Error::Internal`] for a plan that cannot be read.
pub(super) fn as_it_was(
    expr: &Node,
    first: usize,
    leaves: &[Leaf],
    inputs: &[Input<'_>],
) -> Result<Node, Error> {
    let state = |leaf: &Leaf| match inputs[leaf.input].changed() {
        true => State::Past,
        false => State::New,
    };
    let mut rewriter = Rewriter {
        leaves,
        states: leaves.iter().map(state).collect(),
        inputs,
        unit: None,
        at_unit: false,
        next: first,
        selects: 0,
    };
    let mut expr = expr.clone();
    rewriter.expr(&mut expr)?;
    Ok(expr)
}

/// How many leaves and linear SELECTs a linear query has.
fn count(select: &SelectStmt) -> (usize, usize) {
    let mut survey = Survey {
        inputs: &[],
        leaves: Vec::new(),
        selects: 0,
        unions: false,
        unknown: false,
    };
    survey.select(&mut select.clone(), None);
    (survey.leaves.len(), survey.selects)
}

/// Joins a SELECT with the values that say which of its rows count. What has a sub-select in it is evaluated after that join,
/// as it has a column of it. If it `leads`, and its keys are columns of one table, that table is looked up first, and what has a
/// sub-select in it is evaluated after the inner joins with the others.
fn drive(
    select: &mut SelectStmt,
    driver: Driver,
    leads: bool,
    inputs: &[Input<'_>],
) -> Result<(), Error> {
    const ALIAS: &str = "__pgt_q";
    if let Some(leader) = driver.table().map(str::to_owned).filter(|_| leads) {
        let mut columns = Vec::new();
        for item in &select.from_clause {
            a_column_of_each(item, inputs, &mut columns);
        }
        columns.retain(|(table, _)| *table != leader);
        let mut items = select.from_clause.iter_mut();
        if let Some(table) = items.find_map(|item| table_called(item, &leader)) {
            drive_table(table, driver, ALIAS)?;
            return defer(select, &columns);
        }
    }
    defer(select, &[(ALIAS.to_owned(), "q1".to_owned())])?;
    let keys = driver.keys.into_iter().enumerate().map(|(i, key)| {
        let value = ast::column(ALIAS, &format!("q{}", i + 1));
        super::normalise::equal(key, value)
    });
    let own = select.where_clause.take().map(|own| *own);
    select.where_clause = ast::all_of(own.into_iter().chain(keys).collect()).map(Box::new);
    select
        .from_clause
        .push(ast::range(driver.values, ALIAS, &[]));
    Ok(())
}

/// Has the conditions with a sub-select in them evaluated where these columns of tables are at hand.
fn defer(select: &mut SelectStmt, columns: &[(String, String)]) -> Result<(), Error> {
    if columns.is_empty() {
        return Ok(());
    }
    let Some(condition) = select.where_clause.take() else {
        return Ok(());
    };
    let columns = columns
        .iter()
        .map(|(table, column)| format!("{}.{}", quote(table), quote(column)));
    let columns = columns.collect::<Vec<_>>().join(", ");
    let after = parse_expr(&format!("pg_catalog.num_nulls({columns}) < 0"))?;
    let mut conditions = Vec::new();
    for condition in ast::conjuncts(&condition) {
        let mut condition = condition.clone();
        let mut has_sublink = false;
        each_sublink(&mut condition, &mut |_| has_sublink = true);
        if has_sublink {
            condition = ast::boolean(BoolExprType::OrExpr, vec![condition, after.clone()]);
        }
        conditions.push(condition);
    }
    select.where_clause = ast::all_of(conditions).map(Box::new);
    Ok(())
}

/// A column of each table that an item of FROM joins.
fn a_column_of_each(item: &Node, inputs: &[Input<'_>], columns: &mut Vec<(String, String)>) {
    let (table, names) = match &item.node {
        Some(NodeEnum::RangeVar(relation)) => {
            let input = inputs
                .iter()
                .find(|i| i.schema == relation.schemaname && i.name == relation.relname);
            let names = input.iter().flat_map(|input| {
                let names = input.columns.iter();
                names.map(|column| shown_name(relation, input, &column.name))
            });
            (alias(relation), names.collect())
        }
        Some(NodeEnum::RangeSubselect(sub)) => {
            let Some(name) = &sub.alias else { return };
            let own = match sub.subquery.as_ref().and_then(|q| q.node.as_ref()) {
                Some(NodeEnum::SelectStmt(select)) => ast::output_names(select),
                _ => Vec::new(),
            };
            let renamed = name.colnames.iter().filter_map(sval).map(str::to_owned);
            (name.aliasname.clone(), Vec::from_iter(renamed.chain(own)))
        }
        Some(NodeEnum::JoinExpr(join)) => {
            let inner = join.jointype == JoinType::JoinInner as i32;
            let right = join.rarg.as_deref().filter(|_| inner);
            for side in join.larg.as_deref().into_iter().chain(right) {
                a_column_of_each(side, inputs, columns);
            }
            return;
        }
        _ => return,
    };
    columns.extend(names.into_iter().next().map(|name| (table, name)));
}

/// The table of this name among those that an item of FROM joins, if its columns have their own names.
fn table_called<'a>(item: &'a mut Node, name: &str) -> Option<&'a mut Node> {
    match &item.node {
        Some(NodeEnum::RangeVar(relation)) => {
            let renamed = relation.alias.iter().any(|a| !a.colnames.is_empty());
            (alias(relation) == name && !renamed).then_some(item)
        }
        Some(NodeEnum::RangeSubselect(sub)) => {
            let called =
                |a: &pg_query::protobuf::Alias| a.aliasname == name && a.colnames.is_empty();
            (sub.alias.as_ref().is_some_and(called) && !sub.lateral).then_some(item)
        }
        Some(NodeEnum::JoinExpr(join)) if join.jointype == JoinType::JoinInner as i32 => {
            let Some(NodeEnum::JoinExpr(join)) = &mut item.node else {
                return None;
            };
            let mut sides = [&mut join.larg, &mut join.rarg].into_iter().flatten();
            sides.find_map(|side| table_called(side, name))
        }
        _ => None,
    }
}

/// Puts in the place of a table those rows of it that count. By an OFFSET, so that they are looked up first, whatever PostgreSQL
/// thinks of the joins that follow: it knows little about them.
fn drive_table(table: &mut Node, driver: Driver, values: &str) -> Result<(), Error> {
    const ROWS: &str = "__pgt_r";
    let shown = ast::aliases(table).pop().unwrap_or_default();
    let mut rows = std::mem::take(table);
    let alias = match &mut rows.node {
        Some(NodeEnum::RangeVar(relation)) => &mut relation.alias,
        Some(NodeEnum::RangeSubselect(sub)) => &mut sub.alias,
        _ => return Err(Error::Internal("no table is driven".to_owned())),
    };
    *alias = Some(pg_query::protobuf::Alias {
        aliasname: ROWS.to_owned(),
        colnames: Vec::new(),
    });
    let keys = driver.keys.iter().enumerate().filter_map(|(i, key)| {
        let own = ast::column(ROWS, ast::reference(key)?.1);
        let value = ast::column(values, &format!("q{}", i + 1));
        Some(super::normalise::equal(own, value))
    });
    let mut select = parse_select(&format!("SELECT {ROWS}.* FROM x OFFSET 0"))?;
    select.where_clause = ast::all_of(keys.collect()).map(Box::new);
    select.from_clause = vec![ast::range(driver.values, values, &[]), rows];
    *table = ast::range(select, &shown, &[]);
    Ok(())
}

/// The inputs a query reads, one per mention, and whether it is a captive.
///
/// # Errors
/// [`Error::Internal`] if it reads a table that is not among the inputs.
pub(crate) fn read(body: &str, inputs: &[Input<'_>]) -> Result<Vec<(usize, bool)>, Error> {
    let Survey { leaves, .. } = survey(&mut parse_select(body)?, inputs)?;
    Ok(leaves.iter().map(|l| (l.input, l.unit.is_some())).collect())
}

fn survey<'a>(body: &mut SelectStmt, inputs: &'a [Input<'a>]) -> Result<Survey<'a>, Error> {
    let mut survey = Survey {
        inputs,
        leaves: Vec::new(),
        selects: 0,
        unions: false,
        unknown: false,
    };
    survey.select(body, None);
    if survey.unknown {
        return Err(Error::Internal(
            "the plan reads a table it does not know".to_owned(),
        ));
    }
    Ok(survey)
}

/// The captives of a query: which input, and the name it goes by.
///
/// # Errors
/// [`Error::Internal`] if it reads a table that is not among the inputs.
pub(super) fn captives(
    body: &mut SelectStmt,
    inputs: &[Input<'_>],
) -> Result<Vec<(usize, String)>, Error> {
    let Survey { leaves, .. } = survey(body, inputs)?;
    let mut names = Vec::new();
    ast::each_table(body, &mut |relation| names.push(alias(relation)));
    Ok(leaves
        .iter()
        .zip(names)
        .filter(|(leaf, _)| leaf.unit.is_some())
        .map(|(leaf, name)| (leaf.input, name))
        .collect())
}

fn export_weight(select: &mut SelectStmt, weight: &Node) -> Result<(), Error> {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        export_weight(side, weight)?;
    }
    if select.larg.is_none() {
        wrap_values(select)?;
        select.target_list.push(ast::target(WEIGHT, weight.clone()));
    }
    Ok(())
}

/// Makes VALUES a SELECT from it: it has no WHERE, and no names for its columns, which for a UNION ALL are those of its first arm.
fn wrap_values(select: &mut SelectStmt) -> Result<(), Error> {
    if select.values_lists.is_empty() {
        return Ok(());
    }
    let values = std::mem::replace(select, parse_select("SELECT * FROM (VALUES (1)) v")?);
    if let Some(NodeEnum::RangeSubselect(sub)) = select.from_clause[0].node.as_mut() {
        sub.subquery = Some(Box::new(ast::node(NodeEnum::SelectStmt(Box::new(values)))));
    }
    Ok(())
}

fn empty(select: &mut SelectStmt) -> Result<(), Error> {
    for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
        empty(side)?;
    }
    if select.larg.is_none() {
        wrap_values(select)?;
        select.where_clause = Some(Box::new(parse_expr("false")?));
    }
    Ok(())
}

/// A LEFT JOIN with a past state, evaluated for each row of the left side: PostgreSQL reaches no index through the grouping
/// of a past state from a join, but does so from a sub-select of its own.
fn laterally(join: &mut pg_query::protobuf::JoinExpr) -> Result<(), Error> {
    let Some(side) = join.rarg.as_deref_mut() else {
        return Ok(());
    };
    if matches!(side.node, Some(NodeEnum::JoinExpr(_))) {
        return Ok(());
    }
    let [alias] = ast::aliases(side).try_into().unwrap_or_default();
    if alias.is_empty() {
        return Ok(());
    }
    let mut select = parse_select("SELECT * FROM x OFFSET 0")?;
    select.where_clause = join.quals.take();
    select.from_clause = vec![std::mem::take(side)];
    *side = ast::range(select, &alias, &[]);
    if let Some(NodeEnum::RangeSubselect(sub)) = side.node.as_mut() {
        sub.lateral = true;
    }
    join.quals = Some(Box::new(parse_expr("true")?));
    Ok(())
}

/// The sub-select that stands for a changed table. The two branches of the old state have the same types and no WHERE,
/// and the delta is a real table: only then PostgreSQL reaches the table's indexes through the UNION ALL.
fn stand_in(relation: &RangeVar, input: &Input<'_>, state: State) -> Result<Node, Error> {
    let (delta, letter) = input
        .delta
        .as_ref()
        .ok_or_else(|| Error::Internal("a changed table has no staging table".to_owned()))?;
    let sign = if state == State::Delta { "" } else { "-" };
    let shown = shown(relation, input);
    let changes = format!(
        "SELECT {}{sign}w AS {WEIGHT} FROM {delta}",
        input
            .columns
            .iter()
            .zip(&shown)
            .map(|(c, shown)| format!("{letter}{} AS {shown}, ", c.attnum))
            .collect::<String>()
    );
    let rows = format!(
        "SELECT {}1::pg_catalog.int8 AS {WEIGHT} FROM {} UNION ALL {changes}",
        input
            .columns
            .iter()
            .zip(&shown)
            .map(|(c, shown)| format!("{} AS {shown}, ", quote(&c.name)))
            .collect::<String>(),
        input.qualified()
    );
    let sql = match state {
        State::Delta | State::Undone => changes,
        State::Past => past(input.columns, &shown, &rows),
        _ => rows,
    };
    Ok(ast::range(parse_select(&sql)?, &alias(relation), &[]))
}

pub(super) fn alias(relation: &RangeVar) -> String {
    relation
        .alias
        .as_ref()
        .map_or(&relation.relname, |a| &a.aliasname)
        .clone()
}

/// The names of an input's columns where it is mentioned, quoted.
fn shown(relation: &RangeVar, input: &Input<'_>) -> Vec<String> {
    let shown = |c: &Column| quote(&shown_name(relation, input, &c.name));
    input.columns.iter().map(shown).collect()
}

/// What a column of an input is called where the input is mentioned.
fn shown_name(relation: &RangeVar, input: &Input<'_>, name: &str) -> String {
    let renamed = relation
        .alias
        .as_ref()
        .map(|a| a.colnames.as_slice())
        .unwrap_or_default();
    let position = input.all_columns.iter().position(|c| c == name);
    let shown = position.and_then(|p| renamed.get(p)).and_then(sval);
    shown.unwrap_or(name).to_owned()
}

/// The name of an input's column that is called `shown` where it is mentioned.
pub(super) fn own_name(relation: &RangeVar, input: &Input<'_>, shown: &str) -> String {
    let renamed = relation.alias.iter().flat_map(|a| &a.colnames);
    let place = renamed.filter_map(sval).position(|name| name == shown);
    let own = place.and_then(|place| input.all_columns.get(place));
    own.map_or(shown, String::as_str).to_owned()
}

/// Both states at once, to tell what a change may affect: rows of a changed table are in one of them, or in both.
pub(super) fn either(relation: &RangeVar, input: &Input<'_>) -> Result<Node, Error> {
    if input.changed() {
        stand_in(relation, input, State::Old)
    } else {
        Ok(ast::node(NodeEnum::RangeVar(relation.clone())))
    }
}

/// The changes as rows.
pub(super) fn changes(relation: &RangeVar, input: &Input<'_>) -> Result<Node, Error> {
    stand_in(relation, input, State::Delta)
}

/// The rows of `rows` (weighted) as often as their weights add up to. Values are grouped by themselves as well as by their
/// image where that can be, so that conditions on them reach the table.
fn past(columns: &[Column], shown: &[String], rows: &str) -> String {
    let mut group = Vec::new();
    let mut values = String::new();
    for (column, shown) in columns.iter().zip(shown) {
        let name = format!("pgt_u.{shown}");
        if column.hashable || column.image == Image::Plain {
            group.push(name.clone());
        }
        if column.image != Image::Plain {
            group.push(crate::delta::image(&name));
        }
        let value = if column.hashable || column.image == Image::Plain {
            name
        } else {
            crate::delta::Cell::new(name, column).value()
        };
        values.push_str(&format!("{value} AS {shown}, "));
    }
    let group = if group.is_empty() {
        String::new()
    } else {
        format!(" GROUP BY {}", group.join(", "))
    };
    let list: Vec<_> = shown.iter().map(|n| format!("pgt_x.{n}")).collect();
    format!(
        "SELECT {} FROM (SELECT {values}pg_catalog.sum(pgt_u.{WEIGHT}) AS {WEIGHT} FROM ({rows}) pgt_u{group}
            HAVING pg_catalog.sum(pgt_u.{WEIGHT}) OPERATOR(pg_catalog.>) 0) pgt_x, pg_catalog.generate_series(1, pgt_x.{WEIGHT}::pg_catalog.int8)",
        list.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(body: &str, changed: &[&str], olds: Olds) -> Vec<String> {
        let columns = [Column {
            attnum: 1,
            name: "k".to_owned(),
            type_name: "pg_catalog.int4".to_owned(),
            collate: String::new(),
            image: Image::Plain,
            hashable: true,
            own_equality: String::new(),
        }];
        let inputs: Vec<_> = ["a", "b", "c", "d"]
            .iter()
            .map(|&name| Input {
                schema: "public",
                name: name.into(),
                columns: &columns,
                all_columns: vec!["k".to_owned()].into(),
                delta: changed.contains(&name).then(|| (format!("d_{name}"), 'c')),
            })
            .collect();
        delta(body, &inputs, olds).unwrap()
    }

    const JOIN: &str = "SELECT a.k FROM public.a, public.b, public.c WHERE a.k = b.k AND b.k = c.k";

    #[test]
    fn old_states_apart_are_every_choice_of_changes_with_the_sign_of_its_number() {
        let within = terms(JOIN, &["a", "b", "c"], Olds::Within);
        assert_eq!(within.len(), 3);
        assert_eq!(within.concat().matches("UNION ALL").count(), 3);
        let apart = terms(JOIN, &["a", "b", "c"], Olds::Apart);
        let mut counts: Vec<_> = apart
            .iter()
            .map(|term| {
                (
                    term.matches("FROM d_").count(),
                    term.matches("- w AS").count(),
                )
            })
            .collect();
        counts.sort_unstable();
        // Of n tables by their changes all but one are taken back.
        assert_eq!(
            counts,
            [(1, 0), (1, 0), (1, 0), (2, 1), (2, 1), (2, 1), (3, 2)]
        );
        assert!(!apart.concat().contains("UNION"), "{apart:?}");
    }

    #[test]
    fn there_are_not_too_many_terms_and_a_union_is_left_as_it_is() {
        let all = ["a", "b", "c", "d"];
        let wide = format!("SELECT 1 FROM {}", ["public.a"; 12].join(", "));
        let wide: String = (0..12).fold(wide, |sql, i| {
            sql.replacen("public.a,", &format!("public.a AS a{i} ,"), 1)
        });
        let apart = terms(&wide, &["a"], Olds::Apart);
        assert!(
            (12..=MOST_TERMS + 12).contains(&apart.len()),
            "{}",
            apart.len()
        );
        let union = format!("{JOIN} UNION ALL SELECT d.k FROM public.d");
        let within = terms(&union, &all, Olds::Within);
        assert_eq!(terms(&union, &all, Olds::Apart), within);
    }
}
