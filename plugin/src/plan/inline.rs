//! Views and WITH queries, written out where they are used; and the check that nothing in a query is of a kind this code
//! does not know.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use pg_query::NodeEnum;
use pg_query::protobuf::{Alias, CommonTableExpr, Node, RangeSubselect, RangeVar, SelectStmt};

use super::ast::{self, children, clauses, describe, inner, parse_select, qualified, sval};
use super::recursion::{self, Recursion};

/// Why a query can only be recomputed as a whole. Shown to the user.
pub(crate) type Reason = String;

/// What must be known of the database to read a query.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Canonical text of each view, by (schema, name).
    pub views: BTreeMap<(String, String), String>,
    /// Aggregates the query uses, by (schema, name); those of pg_catalog have an empty schema.
    pub aggregates: BTreeSet<(String, String)>,
    /// How many queries have been inlined.
    pub inlined: Cell<usize>,
    /// The recursive WITH queries that have been met: what reads them reads a table in their place.
    pub recursions: RefCell<Vec<Recursion>>,
}

/// Names of WITH queries in scope, the innermost last.
type Scope = Vec<(String, Node)>;

impl Names {
    /// Whether this node calls an aggregate (not as a window function).
    pub(crate) fn is_aggregate(&self, expr: &Node) -> bool {
        let Some(NodeEnum::FuncCall(f)) = &expr.node else {
            return false;
        };
        if f.over.is_some() {
            return false;
        }
        let (schema, name) = qualified(&f.funcname);
        let schema = if schema == "pg_catalog" { "" } else { schema };
        f.agg_star
            || self
                .aggregates
                .contains(&(schema.to_owned(), name.to_owned()))
    }

    /// Inlines views and WITH queries in place, at any depth.
    ///
    /// # Errors
    /// The reason why the query can only be recomputed as a whole.
    pub(crate) fn inline(&self, select: &mut SelectStmt) -> Result<(), Reason> {
        self.select(select, &mut Scope::new())
    }

    fn select(&self, select: &mut SelectStmt, scope: &mut Scope) -> Result<(), Reason> {
        let depth = scope.len();
        if let Some(with) = select.with_clause.take() {
            for cte in with.ctes {
                let Some(NodeEnum::CommonTableExpr(cte)) = cte.node else {
                    continue;
                };
                if with.recursive
                    && let Some(mention) = self.recursive(&cte, scope)?
                {
                    scope.push((cte.ctename, mention));
                    continue;
                }
                let subselect = RangeSubselect {
                    lateral: false,
                    subquery: cte.ctequery,
                    alias: Some(Alias {
                        aliasname: cte.ctename.clone(),
                        colnames: cte.aliascolnames,
                    }),
                };
                // Inlined where it is used; there it sees those before it, as here.
                let mut node = ast::node(NodeEnum::RangeSubselect(subselect.into()));
                self.item(&mut node, scope)?;
                scope.push((cte.ctename, node));
            }
        }
        for side in [&mut select.larg, &mut select.rarg].into_iter().flatten() {
            self.select(side, scope)?;
        }
        for item in &mut select.from_clause {
            self.item(item, scope)?;
        }
        for clause in clauses(select) {
            self.expr(clause, scope)?;
        }
        scope.truncate(depth);
        Ok(())
    }

    /// Sets a WITH query that reads itself aside, and gives a mention of it; `None` if it does not.
    fn recursive(&self, cte: &CommonTableExpr, scope: &mut Scope) -> Result<Option<Node>, Reason> {
        let Some(NodeEnum::SelectStmt(select)) =
            cte.ctequery.as_ref().and_then(|q| q.node.as_ref())
        else {
            return Ok(None);
        };
        let mut select = (**select).clone();
        let name = recursion::placeholder(self.inlined.get());
        self.inlined.set(self.inlined.get() + 1);
        let columns = recursion::columns(cte, &select);
        let mention = recursion::mention(&name, &cte.ctename, &columns);
        scope.push((cte.ctename.clone(), mention.clone()));
        self.select(&mut select, scope)?;
        scope.pop();
        if recursion::mentions(&mut select, &name) == 0 {
            return Ok(None);
        }
        if cte.search_clause.is_some() || cte.cycle_clause.is_some() {
            return Err("its recursion has a SEARCH or CYCLE clause".to_owned());
        }
        let recursion = Recursion::new(name, columns, select)?;
        self.recursions.borrow_mut().push(recursion);
        Ok(Some(mention))
    }

    fn item(&self, item: &mut Node, scope: &mut Scope) -> Result<(), Reason> {
        match item.node.as_mut() {
            Some(NodeEnum::RangeVar(relation)) => {
                if let Some(mut inlined) = self.named(relation, scope)? {
                    // A WITH query is inlined where it is written, a view here, in a scope of its own.
                    if !relation.schemaname.is_empty() {
                        self.item(&mut inlined, &mut Scope::new())?;
                    }
                    *item = inlined;
                }
                Ok(())
            }
            Some(NodeEnum::RangeSubselect(sub)) => match inner(sub.subquery.as_mut()) {
                Some(select) => self.select(select, scope),
                None => Err("it has a sub-select of an unknown kind".to_owned()),
            },
            Some(NodeEnum::JoinExpr(join)) => {
                if join.alias.is_some() || join.join_using_alias.is_some() {
                    return Err("it has an alias on a JOIN".to_owned());
                }
                for side in [&mut join.larg, &mut join.rarg].into_iter().flatten() {
                    self.item(side, scope)?;
                }
                join.quals
                    .as_deref_mut()
                    .map_or(Ok(()), |quals| self.expr(quals, scope))
            }
            Some(NodeEnum::RangeFunction(function)) => {
                for call in calls(function) {
                    self.expr(call, scope)?;
                }
                Ok(())
            }
            _ => Err("it has a FROM item of a kind that is only recomputed as a whole".to_owned()),
        }
    }

    /// The sub-select a name in FROM stands for; `None` for a table.
    fn named(&self, relation: &RangeVar, scope: &Scope) -> Result<Option<Node>, Reason> {
        let mut node = if relation.schemaname.is_empty() {
            match scope
                .iter()
                .rev()
                .find(|(name, _)| *name == relation.relname)
            {
                Some((_, query)) => query.clone(),
                None => return Err("it reads a system catalog".to_owned()),
            }
        } else {
            let Some(text) = self
                .views
                .get(&(relation.schemaname.clone(), relation.relname.clone()))
            else {
                return Ok(None);
            };
            let select = parse_select(text).map_err(|e| e.to_string())?;
            ast::range(select, &relation.relname, &[])
        };
        if let Some(NodeEnum::RangeSubselect(sub)) = &mut node.node
            && let Some(select) = inner(sub.subquery.as_mut())
        {
            // PostgreSQL sees to it that no name hides that of a query around it; this must stay so.
            self.inlined.set(self.inlined.get() + 1);
            rename(select, &format!("__pgt_v{}_", self.inlined.get()));
        }
        let inner = match &mut node.node {
            Some(NodeEnum::RangeSubselect(sub)) => sub.alias.get_or_insert_default(),
            Some(NodeEnum::RangeVar(mention)) => mention.alias.get_or_insert_default(),
            _ => return Ok(Some(node)),
        };
        if let Some(alias) = &relation.alias {
            inner.aliasname.clone_from(&alias.aliasname);
            // A list of a sub-select's may be shorter than its columns, and so may that of a mention of it: those after it
            // keep the names they have.
            let kept = inner.colnames.iter().skip(alias.colnames.len()).cloned();
            inner.colnames = alias.colnames.iter().cloned().chain(kept).collect();
        }
        Ok(Some(node))
    }

    fn expr(&self, expr: &mut Node, scope: &mut Scope) -> Result<(), Reason> {
        if let Some(NodeEnum::ColumnRef(c)) = &expr.node
            && c.fields.last().is_some_and(|f| sval(f).is_none())
        {
            return Err("it refers to a whole row".to_owned());
        }
        if let Some(NodeEnum::SubLink(sublink)) = &mut expr.node {
            match inner(sublink.subselect.as_mut()) {
                Some(select) => self.select(select, scope)?,
                None => return Err("it has a sub-select of an unknown kind".to_owned()),
            }
        }
        let reason = describe(expr);
        for child in children(expr).ok_or_else(|| format!("it has {reason}"))? {
            self.expr(child, scope)?;
        }
        Ok(())
    }
}

/// Gives all items of FROM in a query, at any depth, new names: by their order, so that queries which differ by such names only
/// become the same.
pub(super) fn rename(select: &mut SelectStmt, prefix: &str) {
    let mut names = BTreeMap::new();
    ast::each_item(select, &mut |item| {
        for name in ast::aliases(item) {
            let number = names.len();
            names.entry(name).or_insert(format!("{prefix}{number}"));
        }
    });
    ast::each_item(select, &mut |item| {
        let old = ast::aliases(item).pop();
        let Some(new) = old.and_then(|old| names.get(&old)) else {
            return;
        };
        let alias = match &mut item.node {
            Some(NodeEnum::RangeVar(r)) => r.alias.get_or_insert_default(),
            Some(NodeEnum::RangeSubselect(s)) => s.alias.get_or_insert_default(),
            Some(NodeEnum::RangeFunction(f)) => f.alias.get_or_insert_default(),
            _ => return,
        };
        alias.aliasname.clone_from(new);
    });
    ast::each_expr(select, &mut |e| {
        if let Some(NodeEnum::ColumnRef(c)) = &mut e.node
            && let [qualifier, _] = c.fields.as_mut_slice()
            && let Some(new) = sval(qualifier).and_then(|old| names.get(old))
        {
            *qualifier = ast::string(new);
        }
    });
}

/// The calls of a function in FROM.
pub(crate) fn calls(function: &mut pg_query::protobuf::RangeFunction) -> Vec<&mut Node> {
    let mut out = Vec::new();
    for list in &mut function.functions {
        if let Some(NodeEnum::List(list)) = &mut list.node {
            // The second item is the column definition list.
            out.extend(list.items.first_mut());
        }
    }
    out
}
