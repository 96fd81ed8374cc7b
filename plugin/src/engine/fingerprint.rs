//! A digest of everything a plan relies on: names, and what the names stand for.

use crate::capture::list;
use crate::plan::{Plan, literal};

/// An SQL expression, text of the form `<names>:<meaning>`. Where only the first half differs, a new plan from the same
/// definition continues where the old one stopped.
pub(super) fn expression(view: u32, plan: &Plan) -> String {
    let tables: Vec<_> = plan.tables.iter().map(|t| t.relid).collect();
    let mut views = plan.views.clone();
    views.push(view);
    let mut used: Vec<_> = plan
        .tables
        .iter()
        .flat_map(|t| {
            t.columns
                .iter()
                .map(|c| format!("({}, {})", t.relid, c.attnum))
        })
        .collect();
    if used.is_empty() {
        used.push("(0, 0)".to_owned());
    }
    let used = used.join(", ");
    let captures: Vec<_> = plan
        .tables
        .iter()
        .filter_map(|t| t.buffer)
        .map(|b| {
            format!(
                "pg_catalog.to_regproc({})",
                literal(&format!("pgtrickle.capture_{b}"))
            )
        })
        .collect();
    let triggers = if captures.is_empty() {
        String::new()
    } else {
        format!(
            " UNION ALL SELECT pg_catalog.format('t%s %s %s %s', t.oid, t.xmin, t.tgenabled, t.tgrelid)
             FROM pg_catalog.pg_trigger t WHERE t.tgfoid IN ({})",
            captures.join(", ")
        )
    };
    let (tables, views, functions) = (list(&tables), list(&views), list(&plan.functions));
    // Partitions and children; pg_trigger is asked by function, as row triggers are cloned to the leaves.
    format!(
        "(SELECT pg_catalog.md5(coalesce(pg_catalog.string_agg(x, ' ' ORDER BY x), '')) FROM (
            SELECT pg_catalog.format('r%s %I.%I', k.oid, n.nspname, k.relname) FROM pg_catalog.pg_class k
                JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace WHERE k.oid IN ({tables})
            UNION ALL SELECT pg_catalog.format('a%s %s %I', attrelid, attnum, attname) FROM pg_catalog.pg_attribute
                WHERE (attrelid, attnum) IN ({used}) AND NOT attisdropped) names(x))
         || ':' ||
         (SELECT pg_catalog.md5(coalesce(pg_catalog.string_agg(x, ' ' ORDER BY x), '')) FROM (
            SELECT pg_catalog.format('r%s %s %s', k.oid, k.relkind, pg_catalog.row_security_active(k.oid))
                FROM pg_catalog.pg_class k WHERE k.oid IN ({tables})
            UNION ALL SELECT pg_catalog.format('a%s %s %s %s %s', attrelid, attnum, atttypid, atttypmod, attcollation)
                FROM pg_catalog.pg_attribute WHERE (attrelid, attnum) IN ({used}) AND NOT attisdropped
            UNION ALL SELECT pg_catalog.format('d%s %s', attrelid, attnum) FROM pg_catalog.pg_attribute
                WHERE attrelid IN ({tables}) AND attnum > 0 AND attisdropped
            UNION ALL SELECT pg_catalog.format('i%s %s', inhrelid, inhparent) FROM pg_catalog.pg_inherits
                WHERE inhparent IN (SELECT p.relid FROM pg_catalog.unnest(ARRAY[{tables}]::oid[]) o,
                    pg_catalog.pg_partition_tree(o) p UNION SELECT pg_catalog.unnest(ARRAY[{tables}]::oid[]))
            UNION ALL SELECT pg_catalog.format('v%s %s', r.ev_class, r.xmin) FROM pg_catalog.pg_rewrite r
                WHERE r.ev_class IN ({views})
            UNION ALL SELECT pg_catalog.format('f%s %s', p.oid, p.xmin) FROM pg_catalog.pg_proc p
                WHERE p.oid IN ({functions}){triggers}) meaning(x))"
    )
}
