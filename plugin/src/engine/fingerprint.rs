//! A digest of everything a plan relies on: names, and what the names stand for.

use crate::capture::list;
use crate::plan::{Plan, literal};

/// An SQL expression, text of the form `<names>:<meaning>`. Where only the first half differs, a new plan from the same
/// definition continues where the old one stopped. Evaluated in every refresh: parts that do not apply are left out.
pub(super) fn expression(view: u32, plan: &Plan) -> String {
    format!(
        "(SELECT pg_catalog.md5(coalesce(pg_catalog.string_agg(n, ' ' ORDER BY n), '')) || ':'
            || pg_catalog.md5(coalesce(pg_catalog.string_agg(m, ' ' ORDER BY m), '')) FROM ({}) x(n, m))",
        parts(view, plan)
    )
}

/// All that goes into [`expression`], as it is: where it is the same, so is that. Half the work, as nothing is digested, nor
/// sorted by the rules of a language.
pub(super) fn undigested(view: u32, plan: &Plan) -> String {
    let part = "pg_catalog.concat_ws(' ', n, m) COLLATE pg_catalog.\"C\"";
    format!(
        "(SELECT pg_catalog.string_agg({part}, ' ' ORDER BY {part}) FROM ({}) x(n, m))",
        parts(view, plan)
    )
}

/// A query for the names and the meaning of everything.
fn parts(view: u32, plan: &Plan) -> String {
    let oids: Vec<_> = plan.tables.iter().map(|t| t.relid).collect();
    let tables = list(&oids);
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
    // Each part gives its share of the names and of the meaning.
    let mut parts = vec![
        format!(
            "SELECT pg_catalog.format('r%s %I.%I', k.oid, n.nspname, k.relname),
                pg_catalog.format('r%s %s %s', k.oid, k.relkind, pg_catalog.row_security_active(k.oid))
             FROM pg_catalog.pg_class k JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace WHERE k.oid IN ({tables})"
        ),
        // Of columns nobody uses only the place counts: alias lists go by it.
        format!(
            "SELECT CASE WHEN NOT attisdropped THEN pg_catalog.format('a%s %s %I', attrelid, attnum, attname) END,
                pg_catalog.format('a%s %s %s %s %s', attrelid, attnum, atttypid, atttypmod, attcollation)
             FROM pg_catalog.pg_attribute WHERE attrelid IN ({tables}) AND attnum > 0
                AND ((attrelid, attnum) IN ({}) OR attisdropped)",
            used.join(", ")
        ),
        format!(
            "SELECT NULL, pg_catalog.format('v%s %s', r.ev_class, r.xmin) FROM pg_catalog.pg_rewrite r
             WHERE r.ev_class IN ({})",
            list(&views)
        ),
    ];
    let partitioned: Vec<_> = plan
        .tables
        .iter()
        .filter(|t| t.partitioned)
        .map(|t| t.relid)
        .collect();
    let tree = if partitioned.is_empty() {
        String::new()
    } else {
        format!(
            " UNION SELECT p.relid FROM pg_catalog.unnest(ARRAY[{}]::oid[]) o, pg_catalog.pg_partition_tree(o) p",
            list(&partitioned)
        )
    };
    let all = if tree.is_empty() {
        tables
    } else {
        format!("SELECT pg_catalog.unnest(ARRAY[{tables}]::oid[]){tree}")
    };
    parts.push(format!(
        "SELECT NULL, pg_catalog.format('i%s %s', inhrelid, inhparent) FROM pg_catalog.pg_inherits
         WHERE inhparent IN ({all})"
    ));
    let buffers: Vec<_> = plan.tables.iter().filter_map(|t| t.buffer).collect();
    if !buffers.is_empty() {
        let names: Vec<_> = buffers
            .iter()
            .flat_map(|b| {
                ["insert", "update", "delete", "truncate"]
                    .map(|o| literal(&format!("pgtrickle_{b}_{o}")))
            })
            .collect();
        // xmin: a trigger that was off for a while has missed changes.
        parts.push(format!(
            "SELECT NULL, pg_catalog.format('t%s %s %s %s %s', t.oid, t.xmin, t.tgenabled, t.tgrelid, t.tgfoid)
             FROM pg_catalog.pg_trigger t WHERE t.tgrelid IN ({all}) AND t.tgname IN ({})",
            names.join(", ")
        ));
    }
    if !plan.functions.is_empty() {
        parts.push(format!(
            "SELECT NULL, pg_catalog.format('f%s %s', p.oid, p.xmin) FROM pg_catalog.pg_proc p WHERE p.oid IN ({})",
            list(&plan.functions)
        ));
    }
    parts.join(" UNION ALL ")
}

/// What PostgreSQL may change within our snapshot, as an SQL expression that sees beyond the snapshot: partitions attached
/// (the functions that list them read the newest catalog) and function bodies. `None` where the plan has neither.
pub(super) fn beyond_snapshot(plan: &Plan) -> Option<String> {
    let trees = plan.tables.iter().filter(|t| t.partitioned).map(|t| {
        format!(
            "(SELECT pg_catalog.string_agg(p.relid::pg_catalog.oid::text, ' ') FROM pg_catalog.pg_partition_tree({}) p)",
            t.relid
        )
    });
    let functions = plan.functions.iter().map(|f| format!("(SELECT pg_catalog.pg_get_functiondef(p.oid) FROM pg_catalog.pg_proc p WHERE p.oid = {f} AND p.prokind <> 'a')"));
    let parts: Vec<_> = trees.chain(functions).collect();
    (!parts.is_empty()).then(|| {
        format!(
            "pg_catalog.md5(pg_catalog.concat_ws(' ', {}))",
            parts.join(", ")
        )
    })
}
