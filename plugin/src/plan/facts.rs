//! What PostgreSQL's catalogs say about a definition: relations, columns, privileges.

use super::{Column, Image};
use crate::conn::{Conn, Error, Row};

/// A relation in the closure of a definition.
#[derive(Debug, Clone)]
pub(crate) struct Relation {
    pub relid: u32,
    pub schema: String,
    pub name: String,
    /// `pg_class.relkind`.
    pub kind: char,
    pub temporary: bool,
    pub is_catalog: bool,
    /// A partition or an inheritance child: rows arrive by statements on its parent.
    pub is_child: bool,
    /// Has inheritance children (a partitioned table's partitions do not count).
    pub has_children: bool,
    pub row_security: bool,
    pub may_select: bool,
    pub may_trigger: bool,
    /// The text of a view.
    pub view_text: Option<String>,
}

/// The relations a view reads, at any depth.
///
/// # Errors
/// Those of the server.
pub(crate) async fn closure<C: Conn>(c: &mut C, view: u32) -> Result<Vec<Relation>, Error> {
    let rows = c
        .query(&format!(
            "WITH RECURSIVE closure(relid) AS (
                SELECT {view}::oid
                UNION
                SELECT d.refobjid FROM closure JOIN pg_rewrite r ON r.ev_class = closure.relid
                JOIN pg_class v ON v.oid = closure.relid AND v.relkind = 'v'
                JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class)
             SELECT k.oid, n.nspname, k.relname, k.relkind, k.relpersistence = 't', k.oid < 16384,
                EXISTS (SELECT FROM pg_inherits WHERE inhrelid = k.oid),
                k.relkind <> 'p' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = k.oid),
                row_security_active(k.oid), has_table_privilege(k.oid, 'SELECT'), has_table_privilege(k.oid, 'TRIGGER'),
                CASE k.relkind WHEN 'v' THEN pg_get_viewdef(k.oid) END
             FROM closure JOIN pg_class k ON k.oid = closure.relid JOIN pg_namespace n ON n.oid = k.relnamespace
             WHERE k.oid <> {view} AND k.relkind NOT IN ('S', 'c', 'i') ORDER BY k.oid"
        ))
        .await?;
    rows.iter().map(relation).collect()
}

fn relation(row: &Row) -> Result<Relation, Error> {
    let text = |i| row.text(i).map(str::to_owned);
    let missing = || Error::Internal("pg_class gave no name".to_owned());
    Ok(Relation {
        relid: row
            .int(0)
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(missing)?,
        schema: text(1).ok_or_else(missing)?,
        name: text(2).ok_or_else(missing)?,
        kind: row
            .text(3)
            .and_then(|k| k.chars().next())
            .ok_or_else(missing)?,
        temporary: row.is_true(4),
        is_catalog: row.is_true(5),
        is_child: row.is_true(6),
        has_children: row.is_true(7),
        row_security: row.is_true(8),
        may_select: row.is_true(9),
        may_trigger: row.is_true(10),
        view_text: text(11),
    })
}

/// The columns of a relation, in order.
///
/// # Errors
/// Those of the server.
pub(crate) async fn columns<C: Conn>(c: &mut C, relid: u32) -> Result<Vec<Column>, Error> {
    // Types: the base type counts under a domain; -1 as modifier, as NULL would write bpchar as character, which is
    // character(1) when read back.
    let rows = c
        .query(&format!(
            "SELECT a.attnum, a.attname, format_type(a.atttypid, -1),
                CASE WHEN a.attcollation <> t.typcollation AND a.attcollation <> 0
                    THEN ' COLLATE ' || quote_ident(cn.nspname) || '.' || quote_ident(co.collname) ELSE '' END,
                b.typtype = 'e' OR b.oid IN ({PLAIN})
                    OR b.oid IN (25, 1043) AND coalesce(co.collisdeterministic, true)
                    -- Padded to its length, which is part of the type.
                    OR b.oid = 1042 AND coalesce(co.collisdeterministic, true)
                        AND (CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END) >= 0
                    OR b.oid = 1700 AND (CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END) >= 0,
                b.typcategory = 'A',
                b.typtype = 'e' OR b.oid = 1043 OR b.typtype = 'b' AND EXISTS (
                    SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
                    WHERE m.amname = 'hash' AND o.opcdefault
                        AND o.opcintype = CASE WHEN b.typcategory = 'A' THEN b.typelem ELSE b.oid END),
                (SELECT 'OPERATOR(' || quote_ident(pn.nspname) || '.' || p.oprname || ')'
                 FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod AND m.amname = 'btree'
                 JOIN pg_amop s ON s.amopfamily = o.opcfamily AND s.amoplefttype = o.opcintype
                    AND s.amoprighttype = o.opcintype AND s.amopstrategy = 3
                 JOIN pg_operator p ON p.oid = s.amopopr JOIN pg_namespace pn ON pn.oid = p.oprnamespace
                 WHERE o.opcdefault AND o.opcintype = b.oid AND pn.nspname <> 'pg_catalog')
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
             LEFT JOIN pg_collation co ON co.oid = a.attcollation
             LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
             WHERE a.attrelid = {relid} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
        ))
        .await?;
    Ok(rows
        .iter()
        .map(|row| Column {
            attnum: row
                .int(0)
                .and_then(|n| i32::try_from(n).ok())
                .unwrap_or_default(),
            name: row.text(1).unwrap_or_default().to_owned(),
            type_name: row.text(2).unwrap_or_default().to_owned(),
            collate: row.text(3).unwrap_or_default().to_owned(),
            image: match (row.is_true(4), row.is_true(5)) {
                (true, _) => Image::Plain,
                (false, true) => Image::TextArray,
                (false, false) => Image::Text,
            },
            hashable: row.is_true(6),
            own_equality: row.text(7).unwrap_or_default().to_owned(),
        })
        .collect())
}

/// A used column that is generated when it is read (PostgreSQL 18): it is NULL in what triggers see.
///
/// # Errors
/// Those of the server.
pub(crate) async fn virtual_column<C: Conn>(
    c: &mut C,
    tables: &[super::Table],
) -> Result<Option<String>, Error> {
    let used: Vec<_> = tables
        .iter()
        .flat_map(|t| {
            t.columns
                .iter()
                .map(|c| format!("({}, {})", t.relid, c.attnum))
        })
        .collect();
    if used.is_empty() {
        return Ok(None);
    }
    let rows = c
        .query(&format!(
            "SELECT attname FROM pg_attribute WHERE (attrelid, attnum) IN ({}) AND attgenerated = 'v' LIMIT 1",
            used.join(", ")
        ))
        .await?;
    Ok(rows.first().and_then(|r| r.text(0)).map(str::to_owned))
}

/// bool, bytea, "char", name, int8, int2, int4, oid, xid, macaddr, date, time, timestamp, timestamptz, uuid, pg_lsn,
/// xid8: types whose `=` is equality of images.
const PLAIN: &str =
    "16, 17, 18, 19, 20, 21, 23, 26, 28, 829, 1082, 1083, 1114, 1184, 2950, 3220, 5069";

/// The (relation, column number) pairs these views use, by PostgreSQL's dependencies.
///
/// # Errors
/// Those of the server.
pub(crate) async fn used_columns<C: Conn>(
    c: &mut C,
    views: &[u32],
) -> Result<Vec<(u32, i32)>, Error> {
    let rows = c
        .query(&format!(
            "SELECT DISTINCT d.refobjid, d.refobjsubid FROM pg_rewrite r
             JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class
             WHERE r.ev_class IN ({}) AND d.refobjsubid > 0",
            crate::capture::list(views)
        ))
        .await?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            Some((
                u32::try_from(row.int(0)?).ok()?,
                i32::try_from(row.int(1)?).ok()?,
            ))
        })
        .collect())
}
