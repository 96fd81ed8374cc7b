//! Which relations a DDL statement is about, and how it must be treated.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AlterTableStmt, AlterTableType, DropBehavior, DropStmt, ObjectType, RangeVar,
};

use crate::command::QualifiedName;

/// DDL that may touch the source of a stream table, or a stream table's own table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceDdl {
    pub kind: Kind,
    pub names: Vec<QualifiedName>,
}

/// How a statement is treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Forwarded, then the plans are brought up to date: renames, SET SCHEMA, ADD COLUMN, constraints,
    /// CREATE OR REPLACE VIEW …
    Reconcile {
        /// Does it change the columns of its relation? A stream table's own are its query's.
        columns: bool,
    },
    /// ALTER COLUMN TYPE or DROP COLUMN, which the definition views would block.
    BehindViews {
        cascade: bool,
        /// The columns dropped.
        dropped: Vec<String>,
    },
    /// DROP TABLE, VIEW and the like.
    Drop(DropRelations),
}

/// `DROP TABLE`, kept so that it can be written again without the stream tables among its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropRelations {
    /// `TABLE`, `VIEW`, `MATERIALIZED VIEW` or `FOREIGN TABLE`.
    pub object: &'static str,
    pub if_exists: bool,
    pub cascade: bool,
}

impl DropRelations {
    /// The statement for some of its names.
    #[must_use]
    pub fn sql(&self, names: &[QualifiedName]) -> String {
        let names: Vec<String> = names.iter().map(QualifiedName::sql).collect();
        format!(
            "DROP {} {}{}{}",
            self.object,
            if self.if_exists { "IF EXISTS " } else { "" },
            names.join(", "),
            if self.cascade { " CASCADE" } else { "" }
        )
    }
}

/// Reads one statement; `None` if it cannot touch a stream table, or PostgreSQL would refuse it.
#[must_use]
pub fn parse(sql: &str) -> Option<SourceDdl> {
    let parsed = pg_query::parse(sql, 0).ok()?;
    let [statement] = parsed.protobuf.stmts.as_slice() else {
        return None;
    };
    let reconcile = |relation: Option<&RangeVar>, columns| {
        Some(SourceDdl {
            kind: Kind::Reconcile { columns },
            names: vec![name(relation?)?],
        })
    };
    match statement.stmt.as_ref()?.node.as_ref()? {
        NodeEnum::AlterTableStmt(alter) => alter_table(alter),
        NodeEnum::RenameStmt(rename) => match rename.rename_type() {
            ObjectType::ObjectTable
            | ObjectType::ObjectView
            | ObjectType::ObjectMatview
            | ObjectType::ObjectForeignTable => reconcile(rename.relation.as_ref(), false),
            ObjectType::ObjectColumn => reconcile(rename.relation.as_ref(), true),
            _ => None,
        },
        NodeEnum::AlterObjectSchemaStmt(alter) => reconcile(alter.relation.as_ref(), false),
        NodeEnum::ViewStmt(view) if view.replace => reconcile(view.view.as_ref(), true),
        NodeEnum::DropStmt(drop) => drop_relations(drop),
        _ => None,
    }
}

fn alter_table(alter: &AlterTableStmt) -> Option<SourceDdl> {
    let names = vec![name(alter.relation.as_ref()?)?];
    let (mut columns, mut behind_views, mut cascade, mut dropped) =
        (false, false, false, Vec::new());
    for command in &alter.cmds {
        let Some(NodeEnum::AlterTableCmd(command)) = &command.node else {
            continue;
        };
        match command.subtype() {
            AlterTableType::AtDropColumn => {
                behind_views = true;
                cascade |= command.behavior() == DropBehavior::DropCascade;
                dropped.push(command.name.clone());
            }
            AlterTableType::AtAlterColumnType => behind_views = true,
            AlterTableType::AtAddColumn => columns = true,
            // Cannot run in a transaction block, which reconciling would need.
            AlterTableType::AtDetachPartition if detaches_concurrently(command) => return None,
            AlterTableType::AtDetachPartitionFinalize => return None,
            _ => {}
        }
    }
    let kind = if behind_views {
        Kind::BehindViews { cascade, dropped }
    } else {
        Kind::Reconcile { columns }
    };
    Some(SourceDdl { kind, names })
}

fn detaches_concurrently(command: &pg_query::protobuf::AlterTableCmd) -> bool {
    let definition = command.def.as_ref().and_then(|node| node.node.as_ref());
    matches!(definition, Some(NodeEnum::PartitionCmd(partition)) if partition.concurrent)
}

fn drop_relations(drop: &DropStmt) -> Option<SourceDdl> {
    let object = match drop.remove_type() {
        ObjectType::ObjectTable => "TABLE",
        ObjectType::ObjectView => "VIEW",
        ObjectType::ObjectMatview => "MATERIALIZED VIEW",
        ObjectType::ObjectForeignTable => "FOREIGN TABLE",
        _ => return None,
    };
    let names = drop.objects.iter().map(|node| {
        let parts = crate::command::parts(node)?;
        QualifiedName::from_parts(parts).ok()
    });
    Some(SourceDdl {
        names: names.collect::<Option<_>>()?,
        kind: Kind::Drop(DropRelations {
            object,
            if_exists: drop.missing_ok,
            cascade: drop.behavior() == DropBehavior::DropCascade,
        }),
    })
}

/// `None` for a name with a database: the server shall judge it.
fn name(relation: &RangeVar) -> Option<QualifiedName> {
    if !relation.catalogname.is_empty() {
        return None;
    }
    let schema = Some(relation.schemaname.clone()).filter(|schema| !schema.is_empty());
    Some(QualifiedName {
        schema,
        name: relation.relname.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(sql: &str) -> Option<Kind> {
        parse(sql).map(|ddl| ddl.kind)
    }

    #[test]
    fn kinds() {
        let reconcile = |columns| Some(Kind::Reconcile { columns });
        for (sql, columns) in [
            ("alter table s.T rename to u", false),
            ("alter table t rename column a to b", true),
            ("alter table t rename a to b", true),
            ("alter view v rename to w", false),
            ("alter table t set schema s", false),
            ("alter table t add column c int", true),
            ("alter table t attach partition p for values in (1)", false),
            ("create or replace view v as select 1", true),
        ] {
            assert_eq!(kind(sql), reconcile(columns), "{sql}");
        }
        assert_eq!(
            kind("alter table t add c int, drop b cascade"),
            Some(Kind::BehindViews {
                cascade: true,
                dropped: vec!["b".to_owned()]
            })
        );
        assert_eq!(
            kind("alter table t alter a type bigint"),
            Some(Kind::BehindViews {
                cascade: false,
                dropped: vec![]
            })
        );
        for sql in [
            "alter table t detach partition p concurrently",
            "alter table t rename constraint a to b",
            "drop index i",
            "create view v as select 1",
            "create or replace function f() returns int language sql as 'select 1'",
            "drop table a.b.c.d",
            "alter table",
        ] {
            assert_eq!(kind(sql), None, "{sql}");
        }
    }

    #[test]
    fn drops_can_be_written_again() {
        let ddl = parse("drop table if exists a, \"B\".c cascade").expect("ddl");
        let Kind::Drop(drop) = ddl.kind else {
            panic!("{ddl:?}")
        };
        assert_eq!(
            drop.sql(&ddl.names[1..]),
            "DROP TABLE IF EXISTS \"B\".\"c\" CASCADE"
        );
    }
}
