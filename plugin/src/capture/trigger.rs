//! The trigger function of a buffer, and the triggers.
//!
//! User writes come first: after a rename or drop of a column on a connection we do not see, the function leaves a marker
//! instead of raising. It is SECURITY DEFINER, so: a fixed search path with `pg_temp` last (else a temporary type `text`
//! runs code as the owner), only qualified names, and a check of the table it fires for (else anyone attaches it to a table
//! of his own and forges changes).

use std::collections::BTreeMap;

use super::all_plain;
use crate::conn::{Conn, Error};
use crate::plan::{Column, Table, literal, quote};

/// The body of the trigger function of buffer `id`.
pub(super) fn code(id: i64, table: &Table, columns: &BTreeMap<i32, Column>) -> String {
    let target: String = columns.keys().map(|n| format!(", c{n}")).collect();
    let source = |prefix: &str| -> String {
        columns
            .values()
            .map(|c| format!(", {prefix}{}", quote(&c.name)))
            .collect()
    };
    let relid = table.relid;
    // Where the columns are not what the function was made for.
    let lost = |changed: &str| {
        format!(
            "IF {changed} THEN
                INSERT INTO pgtrickle.changes_{id} (w) VALUES (0);
                RETURN NULL;
            END IF;"
        )
    };
    let lost = if columns.is_empty() {
        String::new()
    } else if table.partitioned {
        lost(&format!("({}) IS NOT TRUE", same_columns(relid, columns)))
    } else {
        // The transition table is not read: it is there so that the server plans this anew after a change of the source.
        let changed = |of: &str| {
            lost(&format!(
                "NOT (SELECT c.same FROM pgtrickle.columns_{id} c LEFT JOIN {of} ON false)"
            ))
        };
        format!(
            "IF TG_OP = 'INSERT' THEN
                {}
            ELSE
                {}
            END IF;",
            changed("pgt_new"),
            changed("pgt_old")
        )
    };
    let insert = format!("INSERT INTO pgtrickle.changes_{id} (w{target})");
    let (guard, body) = if table.partitioned {
        let unchanged = if columns.is_empty() {
            "true".to_owned()
        } else {
            let (old, new) = (source("OLD."), source("NEW."));
            format!(
                "pg_catalog.record_image_eq(ROW({}), ROW({}))",
                &old[2..],
                &new[2..]
            )
        };
        (
            // Row triggers fire for the leaf.
            format!(
                "TG_RELID <> {relid} AND NOT EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(TG_RELID) a
                    WHERE a.relid = {relid})"
            ),
            format!(
                "IF TG_OP = 'UPDATE' AND {unchanged} THEN
                    RETURN NULL;
                END IF;
                IF TG_OP <> 'INSERT' THEN
                    {insert} VALUES (-1{});
                END IF;
                IF TG_OP <> 'DELETE' THEN
                    {insert} VALUES (1{});
                END IF;",
                source("OLD."),
                source("NEW.")
            ),
        )
    } else {
        // Both once for a statement, and not at all for one that has changed nothing: for each row they cost as much as all
        // the rest. A sub-select is not evaluated before the first row, and not again.
        let stamp = "(SELECT pg_catalog.nextval('pgtrickle.change_seq')), (SELECT pg_catalog.pg_current_xact_id())";
        let insert = format!("INSERT INTO pgtrickle.changes_{id} (seq, xid, w{target})");
        let both = format!(
            "SELECT (-1)::pg_catalog.int8{0} FROM pgt_old UNION ALL SELECT 1{0} FROM pgt_new",
            source("")
        );
        // Net, so that a change of a column nobody uses leaves nothing.
        let update = if all_plain(columns.values()) {
            // By names of our own: a source may have a column called w.
            let numbers: String = columns.keys().map(|n| format!(", b.c{n}")).collect();
            let group = if columns.is_empty() {
                String::new()
            } else {
                format!(" GROUP BY {}", &numbers[2..])
            };
            format!(
                "{insert} SELECT {stamp}, pg_catalog.sum(b.w){numbers} FROM ({both}) b(w{}){group} HAVING pg_catalog.sum(b.w) <> 0",
                numbers.replace("b.", "")
            )
        } else {
            format!("{insert} SELECT {stamp}, b.* FROM ({both}) b")
        };
        (
            format!("TG_RELID <> {relid}"),
            format!(
                "IF TG_OP = 'INSERT' THEN
                    {insert} SELECT {stamp}, 1{0} FROM pgt_new;
                ELSIF TG_OP = 'DELETE' THEN
                    {insert} SELECT {stamp}, -1{0} FROM pgt_old;
                ELSE
                    {update};
                END IF;",
                source("")
            ),
        )
    };
    format!(
        "#variable_conflict use_column
        BEGIN
            IF {guard} THEN
                RETURN NULL;
            END IF;
            IF TG_OP = 'TRUNCATE' THEN
                INSERT INTO pgtrickle.changes_{id} (w) VALUES (0);
                RETURN NULL;
            END IF;
            {lost}
            {body}
            RETURN NULL;
        END"
    )
}

/// Whether the columns are still called as they were, as an SQL expression. Not by a query: that would ask the snapshot, which
/// in a REPEATABLE READ transaction may be older than a rename.
fn same_columns(relid: u32, columns: &BTreeMap<i32, Column>) -> String {
    let same = columns.values().map(|column| {
        format!(
            "(pg_catalog.pg_identify_object_as_address({PG_CLASS}, {relid}, {})).object_names[3] = {}",
            column.attnum,
            literal(&column.name)
        )
    });
    same.collect::<Vec<_>>().join(" AND ")
}

/// The OID of `pg_class`.
const PG_CLASS: u32 = 1259;

/// The statements that make the trigger function of buffer `id`, whose body is `code`, or bring it up to date.
///
/// With it comes `columns_<id>()`, which tells whether the columns are what `code` was made for. It is called IMMUTABLE though it is
/// not, so the server asks it when it plans the statement that does, and not for each statement that writes, of which it
/// would be the dearest part (25 of 66 µs). To replace it makes no plan void, but that changes `code` too. The trigger reaches it by
/// a view: whoever may create in the schema could add a function of that name with an optional parameter, and no call would be
/// without doubt any more; and every write would fail. The view is made once, for the same reason.
pub(super) fn functions(
    id: i64,
    table: &Table,
    columns: &BTreeMap<i32, Column>,
    code: &str,
    has_view: bool,
) -> Vec<String> {
    let path = "SET search_path = pg_catalog, pg_temp";
    let mut statements = Vec::new();
    if !table.partitioned && !columns.is_empty() {
        let same = same_columns(table.relid, columns);
        let body = literal(&format!("SELECT ({same}) IS TRUE"));
        statements.extend([
            format!(
                "CREATE OR REPLACE FUNCTION pgtrickle.columns_{id}() RETURNS boolean LANGUAGE sql IMMUTABLE {path} AS {body}"
            ),
            format!("REVOKE ALL ON FUNCTION pgtrickle.columns_{id}() FROM PUBLIC"),
        ]);
        statements.extend((!has_view).then(|| {
            format!("CREATE VIEW pgtrickle.columns_{id} AS SELECT pgtrickle.columns_{id}() AS same")
        }));
    }
    statements.extend([
        format!(
            "CREATE OR REPLACE FUNCTION pgtrickle.capture_{id}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
            {path} AS {}",
            literal(code)
        ),
        format!("REVOKE ALL ON FUNCTION pgtrickle.capture_{id}() FROM PUBLIC"),
    ]);
    statements
}

/// The statements that attach the function. CREATE OR REPLACE TRIGGER takes the lock that keeps writers out also where the
/// trigger is there already: widening a buffer needs that.
///
/// # Errors
/// Those of the server.
pub(super) async fn triggers<C: Conn>(
    c: &mut C,
    id: i64,
    table: &Table,
) -> Result<Vec<String>, Error> {
    let name = table.qualified();
    let call = format!("EXECUTE FUNCTION pgtrickle.capture_{id}()");
    let create = |operation: &str, on: &str, how: &str| {
        format!(
            "CREATE OR REPLACE TRIGGER pgtrickle_{id}_{} AFTER {operation} ON {on} {how} {call}",
            operation
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_lowercase()
        )
    };
    if !table.partitioned {
        return Ok(vec![
            create(
                "INSERT",
                &name,
                "REFERENCING NEW TABLE AS pgt_new FOR EACH STATEMENT",
            ),
            create(
                "UPDATE",
                &name,
                "REFERENCING OLD TABLE AS pgt_old NEW TABLE AS pgt_new FOR EACH STATEMENT",
            ),
            create(
                "DELETE",
                &name,
                "REFERENCING OLD TABLE AS pgt_old FOR EACH STATEMENT",
            ),
            create("TRUNCATE", &name, "FOR EACH STATEMENT"),
        ]);
    }
    let mut statements = vec![create("INSERT OR UPDATE OR DELETE", &name, "FOR EACH ROW")];
    let rows = c
        .query(&format!(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(k.relname)
             FROM (SELECT relid FROM pg_partition_tree({0}) UNION SELECT {0}) t JOIN pg_class k ON k.oid = t.relid
             JOIN pg_namespace n ON n.oid = k.relnamespace WHERE k.relkind IN ('r', 'p') ORDER BY k.oid",
            table.relid
        ))
        .await?;
    statements.extend(
        rows.iter()
            .filter_map(|r| r.text(0))
            .map(|on| create("TRUNCATE", on, "FOR EACH STATEMENT")),
    );
    Ok(statements)
}
