//! Is a query linear (every output row depends on one row of each input), and its text with views and CTEs inlined.

use std::collections::{BTreeMap, BTreeSet};

use pg_query::NodeEnum;
use pg_query::protobuf::{JoinType, Node, RangeSubselect, RangeVar, SelectStmt, SetOperation};

use super::ast::{children, describe, parse_select, qualified, sval};

/// Why a query can only be recomputed as a whole. Shown to the user.
pub(crate) type Reason = String;

/// What the inliner must know of the database.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Canonical text of each view, by (schema, name).
    pub views: BTreeMap<(String, String), String>,
    /// Aggregates the query uses, by (schema, name); those of pg_catalog have an empty schema.
    pub aggregates: BTreeSet<(String, String)>,
}

/// Names of CTEs in scope, the innermost last.
type Scope = Vec<(String, Node)>;

impl Names {
    /// Whether this node calls an aggregate.
    pub(crate) fn is_aggregate(&self, expr: &Node) -> bool {
        let Some(NodeEnum::FuncCall(f)) = &expr.node else {
            return false;
        };
        let (schema, name) = qualified(&f.funcname);
        let schema = if schema == "pg_catalog" { "" } else { schema };
        f.agg_star
            || self
                .aggregates
                .contains(&(schema.to_owned(), name.to_owned()))
    }

    /// Checks that `select` is linear, and inlines its views and CTEs in place.
    ///
    /// # Errors
    /// The reason why it is not.
    pub(crate) fn linearise(&self, select: &mut SelectStmt) -> Result<(), Reason> {
        self.select(select, &mut Scope::new(), true)
    }

    /// Inlines the FROM clause and checks all but the output of a SELECT under a keyed operator.
    ///
    /// # Errors
    /// As [`Names::linearise`].
    pub(crate) fn linearise_input(&self, select: &mut SelectStmt) -> Result<(), Reason> {
        self.select(select, &mut Scope::new(), false)
    }

    fn select(
        &self,
        select: &mut SelectStmt,
        scope: &mut Scope,
        whole: bool,
    ) -> Result<(), Reason> {
        let depth = scope.len();
        if let Some(with) = select.with_clause.take() {
            if with.recursive {
                return Err("it is recursive".to_owned());
            }
            for cte in with.ctes {
                let Some(NodeEnum::CommonTableExpr(cte)) = cte.node else {
                    continue;
                };
                let query = cte.ctequery.ok_or("a WITH query is empty")?;
                let subselect = RangeSubselect {
                    lateral: false,
                    subquery: Some(query),
                    alias: Some(pg_query::protobuf::Alias {
                        aliasname: cte.ctename.clone(),
                        colnames: cte.aliascolnames,
                    }),
                };
                // Inlined where it is used; there it sees the CTEs before it, as here.
                let mut node = super::ast::node(NodeEnum::RangeSubselect(subselect.into()));
                self.range_item(&mut node, scope)?;
                scope.push((cte.ctename, node));
            }
        }
        let result = self.body(select, scope, whole);
        scope.truncate(depth);
        result
    }

    fn body(&self, select: &mut SelectStmt, scope: &mut Scope, whole: bool) -> Result<(), Reason> {
        if select.limit_count.is_some() || select.limit_offset.is_some() {
            return Err("it has LIMIT or OFFSET".to_owned());
        }
        // The order of rows in a table means nothing.
        select.sort_clause.clear();
        match SetOperation::try_from(select.op) {
            Ok(SetOperation::SetopUnion) if select.all => {
                for side in [&mut select.larg, &mut select.rarg] {
                    self.select(
                        side.as_mut().ok_or("a UNION ALL has one side only")?,
                        scope,
                        true,
                    )?;
                }
                return Ok(());
            }
            Ok(SetOperation::SetopUnion) => {
                return Err("it has UNION without ALL below the top".to_owned());
            }
            Ok(SetOperation::SetopIntersect) => return Err("it has INTERSECT".to_owned()),
            Ok(SetOperation::SetopExcept) => return Err("it has EXCEPT".to_owned()),
            _ => {}
        }
        if !select.window_clause.is_empty() {
            return Err("it has window functions".to_owned());
        }
        if whole {
            if !select.distinct_clause.is_empty() {
                return Err("it has DISTINCT below the top".to_owned());
            }
            if !select.group_clause.is_empty() || select.having_clause.is_some() {
                return Err("it has GROUP BY below the top".to_owned());
            }
            for target in &mut select.target_list {
                if let Some(NodeEnum::ResTarget(target)) = &mut target.node
                    && let Some(value) = target.val.as_deref_mut()
                {
                    self.expr(value)?;
                }
            }
            for row in &mut select.values_lists {
                self.expr(row)?;
            }
        }
        for item in &mut select.from_clause {
            self.range_item(item, scope)?;
        }
        if let Some(condition) = select.where_clause.as_deref_mut() {
            self.expr(condition)?;
        }
        Ok(())
    }

    fn range_item(&self, item: &mut Node, scope: &mut Scope) -> Result<(), Reason> {
        match item.node.as_mut() {
            Some(NodeEnum::RangeVar(relation)) => {
                if let Some(mut inlined) = self.inline(relation, scope)? {
                    // A CTE is linearised where it is written, a view here, in a scope of its own.
                    if !relation.schemaname.is_empty() {
                        self.range_item(&mut inlined, &mut Scope::new())?;
                    }
                    *item = inlined;
                }
                Ok(())
            }
            Some(NodeEnum::RangeSubselect(sub)) => {
                match sub.subquery.as_mut().and_then(|q| q.node.as_mut()) {
                    Some(NodeEnum::SelectStmt(select)) => self.select(select, scope, true),
                    _ => Err("it has a sub-select of an unknown kind".to_owned()),
                }
            }
            Some(NodeEnum::JoinExpr(join)) => {
                match JoinType::try_from(join.jointype) {
                    Ok(JoinType::JoinInner) => {}
                    _ => return Err("it has an outer join".to_owned()),
                }
                if join.alias.is_some() || join.join_using_alias.is_some() {
                    return Err("it has an alias on a JOIN".to_owned());
                }
                for side in [&mut join.larg, &mut join.rarg] {
                    self.range_item(side.as_mut().ok_or("a JOIN has one side only")?, scope)?;
                }
                join.quals
                    .as_deref_mut()
                    .map_or(Ok(()), |quals| self.expr(quals))
            }
            Some(NodeEnum::RangeFunction(function)) => {
                for list in &mut function.functions {
                    let Some(NodeEnum::List(list)) = &mut list.node else {
                        continue;
                    };
                    // The second item is the column definition list.
                    if let Some(call) = list.items.first_mut() {
                        self.expr(call)?;
                    }
                }
                Ok(())
            }
            _ => Err("it has a FROM item of a kind that is only recomputed as a whole".to_owned()),
        }
    }

    /// The sub-select a name in FROM stands for; `None` for a table.
    fn inline(&self, relation: &RangeVar, scope: &Scope) -> Result<Option<Node>, Reason> {
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
            super::ast::node(NodeEnum::RangeSubselect(
                RangeSubselect {
                    lateral: false,
                    subquery: Some(Box::new(super::ast::node(NodeEnum::SelectStmt(Box::new(
                        select,
                    ))))),
                    alias: Some(pg_query::protobuf::Alias {
                        aliasname: relation.relname.clone(),
                        colnames: Vec::new(),
                    }),
                }
                .into(),
            ))
        };
        if let (Some(NodeEnum::RangeSubselect(sub)), Some(alias)) =
            (&mut node.node, &relation.alias)
        {
            let inner = sub.alias.get_or_insert_default();
            inner.aliasname.clone_from(&alias.aliasname);
            if !alias.colnames.is_empty() {
                inner.colnames.clone_from(&alias.colnames);
            }
        }
        Ok(Some(node))
    }

    /// Checks an expression of a linear query.
    fn expr(&self, expr: &mut Node) -> Result<(), Reason> {
        if self.is_aggregate(expr) {
            return Err("it has an aggregate below the top".to_owned());
        }
        if let Some(NodeEnum::ColumnRef(c)) = &expr.node
            && c.fields.last().is_some_and(|f| sval(f).is_none())
        {
            return Err("it refers to a whole row".to_owned());
        }
        let reason = describe(expr);
        for child in children(expr).ok_or_else(|| format!("it has {reason}"))? {
            self.expr(child)?;
        }
        Ok(())
    }
}
