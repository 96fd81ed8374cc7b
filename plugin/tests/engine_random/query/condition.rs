//! Conditions, with sub-selects in all their forms.

use super::{Feature, Generator, Scope, usable};
use crate::schema::Column;
use crate::sql::{Sql, sql};
use crate::types::Type;

impl Generator<'_> {
    /// None, one or two conditions of a WHERE.
    pub(super) fn conditions(&mut self, scope: &Scope, depth: usize) -> Vec<Sql> {
        let n = self.random.weighted(&[(4, 0), (4, 1), (2, 2)]);
        let mut conditions: Vec<_> = (0..n).map(|_| self.condition(scope, depth, 2)).collect();
        // What is around a query is mostly compared with something in it.
        if !scope.outer.is_empty() && self.random.chance(60) {
            let outer = self.random.pick(&scope.outer).clone();
            if let Some(own) = scope.own.iter().find(|c| c.ty == outer.ty) {
                conditions.push(format!("{} = {}", own.sql, outer.sql).into());
            }
        }
        conditions
    }

    pub(super) fn condition(&mut self, scope: &Scope, depth: usize, size: usize) -> Sql {
        let body = self.any_condition(scope, depth, size);
        Sql::part("bool", Some("true".to_owned()), body)
    }

    fn any_condition(&mut self, scope: &Scope, depth: usize, size: usize) -> Sql {
        let sub = if depth > 0 && self.budget > 0 {
            self.weight(6, Feature::Subquery)
        } else {
            0
        };
        let again = usize::from(size > 0);
        let lower = size.saturating_sub(1);
        match self.random.weighted(&[
            (8, 0),
            (again, 1),
            (2 * again, 2),
            (again, 3),
            (again, 4),
            (sub, 5),
        ]) {
            0 => self.comparison(scope, depth, lower),
            1 => sql!["NOT (", self.condition(scope, depth, lower), ")"],
            2 => {
                let (a, b) = (
                    self.condition(scope, depth, lower),
                    self.condition(scope, depth, lower),
                );
                sql!["(", a, " OR ", b, ")"]
            }
            3 => {
                let (a, b) = (
                    self.condition(scope, depth, lower),
                    self.condition(scope, depth, lower),
                );
                sql!["(", a, " AND ", b, ")"]
            }
            4 => {
                let c = self.condition(scope, depth, lower);
                let (a, b) = (
                    self.condition(scope, depth, lower),
                    self.condition(scope, depth, lower),
                );
                sql!["CASE WHEN ", c, " THEN ", a, " ELSE ", b, " END"]
            }
            _ => self.sub_select(scope, depth),
        }
    }

    fn comparison(&mut self, scope: &Scope, depth: usize, size: usize) -> Sql {
        let ty = self.type_for(scope, |_| true);
        let a = self.expression(ty, scope, depth, size);
        let b = |g: &mut Self| {
            if g.random.chance(50) {
                Sql::from(ty.constant(g.random))
            } else {
                g.expression(ty, scope, depth, size)
            }
        };
        match self.random.below(12) {
            0 => sql![a, " IS NULL"],
            1 => sql![a, " IS NOT NULL"],
            2 => sql![a, " IS NOT DISTINCT FROM ", b(self)],
            3 => sql![a, " IS DISTINCT FROM ", b(self)],
            4 => {
                let list: Vec<_> = (0..3).map(|_| ty.value(self.random, true)).collect();
                let not = self.random.pick(&["", "NOT "]);
                sql!["(", a, format!(") {not}IN ({})", list.join(", "))]
            }
            5 if ty == Type::Text => sql![a, " LIKE 'a%'"],
            5 if ty == Type::Bool => sql!["(", a, ") IS NOT TRUE"],
            5 => sql![a, " BETWEEN ", b(self), " AND ", b(self)],
            _ => {
                let operator = self.random.pick(&[" = ", " = ", " <> ", " < ", " >= "]);
                let b = b(self);
                sql![a, *operator, b]
            }
        }
    }

    fn sub_select(&mut self, scope: &Scope, depth: usize) -> Sql {
        self.budget -= 1;
        let outer = if self.random.chance(65) {
            scope.all()
        } else {
            Vec::new()
        };
        let query = self.query(depth - 1, &outer);
        let not = *self.random.pick(&["", "NOT "]);
        if self.random.chance(45) {
            return sql![not, "EXISTS (", query.sql, ")"];
        }
        let columns = query.columns.clone();
        let two = columns.len() > 1 && self.random.chance(25);
        if two {
            let (query, types) = self.narrowed(query.sql, &columns, 2);
            let a = self.expression(types[0], scope, 0, 1);
            let b = self.expression(types[1], scope, 0, 1);
            return sql!["(", a, ", ", b, ") ", not, "IN (", query, ")"];
        }
        let (query, types) = self.narrowed(query.sql, &columns, 1);
        let a = self.expression(types[0], scope, 0, 1);
        if self.random.chance(60) {
            return sql!["(", a, ") ", not, "IN (", query, ")"];
        }
        let operator = self.random.pick(&["=", "<>", "<", ">="]);
        let quantifier = self.random.pick(&["ANY", "ALL"]);
        sql!["(", a, format!(") {operator} {quantifier} ("), query, ")"]
    }

    /// Some columns of a query.
    fn narrowed(&mut self, query: Sql, columns: &[Column], n: usize) -> (Sql, Vec<Type>) {
        let alias = self.alias();
        let own = usable(&alias, columns);
        let chosen: Vec<_> = (0..n).map(|_| self.random.pick(&own).clone()).collect();
        let list: Vec<_> = chosen.iter().map(|c| c.sql.clone()).collect();
        let types = chosen.iter().map(|c| c.ty).collect();
        (
            sql![
                format!("SELECT {} FROM (", list.join(", ")),
                query,
                format!(") {alias}")
            ],
            types,
        )
    }
}
