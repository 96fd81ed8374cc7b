//! What the server is asked about its functions, and what calls them.

use std::time::Duration;

use crate::error::Error;
use crate::net::server::Server;

/// What a source has to match to be looked at for what it does itself, or have a `set_config`: words of [`Traits`], and SET at
/// the beginning of a statement, not that of an UPDATE, nor a SET LOCAL.
pub(super) const LEAVES: &str = r"advisory_(un)?lock|pg_temp|pg_settings|\m(temp|temporary|deallocate|discard|listen|hold)\M|(^|[;'$]|--[^\n]*\n|\*/|\m(begin|then|else|loop)\M)\s*(re)?set\s(?!\s*local\M)";

/// What there is to look at, in a few words that change with it.
pub(super) const SIGNATURE: &str = "SELECT pg_catalog.concat_ws(' ', \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_proc WHERE oid >= 16384), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_trigger), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_rewrite WHERE oid >= 16384), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_policy), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_attrdef), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_constraint WHERE oid >= 16384), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', inhrelid, xmin))) FROM pg_catalog.pg_inherits), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, relname))) FROM pg_catalog.pg_class WHERE oid >= 16384 AND relpersistence <> 't')), \
     (SELECT pg_catalog.sum(pg_catalog.pg_column_size(prosrc)) FROM pg_catalog.pg_proc WHERE oid >= 16384)";

/// The users' functions. OFFSET keeps a condition on the source from being tried on the server's own.
pub(super) const FUNCTIONS: &str = "SELECT name, source FROM (SELECT p.proname AS name, \
     coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc) AS source \
     FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
     JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
     WHERE l.lanname NOT IN ('internal', 'c') AND p.prokind IN ('f', 'p') \
     AND n.nspname NOT IN ('pg_catalog', 'information_schema') OFFSET 0) f";

/// What calls which function, or comes with which relation, other than by a source; and how: `w` when it is written to, `c`
/// whenever it is used, `s` as that relation does.
pub(super) const USES: &str = "SELECT c.relname, p.proname, CASE WHEN r.oid IS NULL AND y.oid IS NULL THEN 'w' ELSE 'c' END \
     FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_depend d \
     ON d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.refobjid = p.oid \
     LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid \
     LEFT JOIN pg_catalog.pg_policy y ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND y.oid = d.objid \
     LEFT JOIN pg_catalog.pg_trigger t ON d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass AND t.oid = d.objid \
     LEFT JOIN pg_catalog.pg_attrdef a ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND a.oid = d.objid \
     LEFT JOIN pg_catalog.pg_constraint k \
     ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND k.oid = d.objid \
     JOIN pg_catalog.pg_class c ON c.oid = coalesce(r.ev_class, y.polrelid, t.tgrelid, a.adrelid, k.conrelid) \
     WHERE p.oid >= 16384 \
     UNION SELECT v.relname, c.relname, 's' FROM pg_catalog.pg_rewrite r \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid \
     AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid <> r.ev_class \
     JOIN pg_catalog.pg_class v ON v.oid = r.ev_class JOIN pg_catalog.pg_class c ON c.oid = d.refobjid \
     WHERE r.oid >= 16384 \
     UNION SELECT p.relname, c.relname, 's' FROM pg_catalog.pg_inherits i \
     JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
     WHERE p.relkind IN ('r', 'p', 'f') \
     UNION SELECT p.relname, c.relname, 'w' FROM pg_catalog.pg_constraint k \
     JOIN pg_catalog.pg_class p ON p.oid = k.confrelid JOIN pg_catalog.pg_class c ON c.oid = k.conrelid \
     WHERE k.contype = 'f' AND (k.confupdtype NOT IN ('a', 'r') OR k.confdeltype NOT IN ('a', 'r')) \
     UNION SELECT p.proname, f.proname, 'c' FROM pg_catalog.pg_aggregate g JOIN pg_catalog.pg_proc p ON p.oid = g.aggfnoid \
     JOIN pg_catalog.pg_proc f ON f.oid IN (g.aggtransfn, g.aggfinalfn) WHERE p.oid >= 16384";

pub(super) type Row = Vec<Option<String>>;

/// The rows of more than one column, under a limit that is ours and not the role's.
pub(super) async fn rows(
    server: &mut Server,
    sql: &str,
    limit: Duration,
) -> Result<Vec<Row>, Error> {
    let limit = limit.as_millis().clamp(1, i32::MAX as u128);
    // A timeout that runs already is not made longer by another.
    let sql = format!(
        "SELECT pg_catalog.set_config('statement_timeout', '0', true);\
         SELECT pg_catalog.set_config('statement_timeout', '{limit}', true);{sql}"
    );
    let mut rows = server.simple_query(&sql, &mut Vec::new()).await?.rows;
    rows.retain(|row| row.len() > 1);
    Ok(rows)
}
