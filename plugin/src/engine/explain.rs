//! How a stream table is kept, in words; which indexes it misses; and whether it is what its query says.

use super::record::{self, Record};
use super::{Definition, StreamTableId, define, settings};
use crate::catalog;
use crate::conn::{Conn, Error};
use crate::delta::{apply, net};
use crate::plan::analyse::Analysed;
use crate::plan::terms::{self, Olds};
use crate::plan::{Body, Plan, indexes, quote};

/// A table that refreshes would have to scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingIndex {
    pub table: String,
    /// The CREATE INDEX that helps.
    pub statement: String,
}

/// A comparison of a stream table with its query.
#[derive(Debug, Clone, Default)]
pub struct Differences {
    /// `missing` or `unexpected`, how many times, and the row as text.
    pub rows: Vec<Vec<Option<String>>>,
    /// Whether changes were waiting to be taken in.
    pub behind: bool,
}

/// How the stream table is kept, a line each.
///
/// # Errors
/// Those of the server.
pub async fn explain<C: Conn>(
    c: &mut C,
    id: StreamTableId,
    verbose: bool,
) -> Result<Vec<String>, Error> {
    let record = record::read(c, id).await?;
    let rows = c
        .query(&format!(
            "SELECT schedule, refresh_mode, status FROM pgtrickle.catalog WHERE id = {id}"
        ))
        .await?;
    let row = rows.first().cloned().unwrap_or_default();
    let mut lines = vec![format!(
        "Stream Table {}.{}  (schedule {}, refresh_mode {}, status {})",
        quote(&record.schema),
        quote(&record.name),
        row.text(0).unwrap_or_default(),
        row.text(1).unwrap_or_default(),
        row.text(2).unwrap_or_default()
    )];
    let group = group(c, id).await?;
    lines.extend(group.map(|names| format!("Refreshed together with: {names}")));
    lines.extend(describe(id.0, &record.plan, verbose)?);
    let mut shared: Vec<_> = record.plan.shared().collect();
    while let Some(id) = shared.pop() {
        let record = match record::read(c, StreamTableId(id)).await {
            // It has been dropped since.
            Err(Error::Refused(_)) => continue,
            record => record?,
        };
        let readers = readers(c, id).await?;
        lines.push(format!(
            "Shared stage: pgtrickle.{}, for {readers}",
            record.name
        ));
        let described = describe(id, &record.plan, verbose)?;
        lines.extend(
            described
                .into_iter()
                .skip(1)
                .map(|line| format!("  {line}")),
        );
        shared.extend(record.plan.shared());
    }
    lines.extend(advice(&indexes::missing(c, id.0, &record.plan).await?));
    Ok(lines)
}

/// The others of its group.
async fn group<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Option<String>, Error> {
    let rows = c
        .query(&format!(
            "WITH RECURSIVE pair(reader, read) AS MATERIALIZED (
                SELECT c.id, o.id FROM pgtrickle.source s JOIN pgtrickle.catalog c ON c.id = s.stream_table
                JOIN pgtrickle.catalog o ON o.relid = s.relid AND o.owner = c.owner),
             member(id) AS (SELECT {id}::bigint UNION
                SELECT CASE WHEN p.reader = m.id THEN p.read ELSE p.reader END
                FROM member m JOIN pair p ON m.id = p.reader OR m.id = p.read)
             SELECT pg_catalog.string_agg(c.relid::pg_catalog.regclass::text, ', ' ORDER BY c.id)
             FROM member m JOIN pgtrickle.catalog c ON c.id = m.id WHERE c.id <> {id} AND c.shares IS NULL"
        ))
        .await?;
    Ok(rows.first().and_then(|row| row.text(0)).map(str::to_owned))
}

/// Who reads a shared stage.
async fn readers<C: Conn>(c: &mut C, id: i64) -> Result<String, Error> {
    let rows = c
        .query(&format!(
            "SELECT pg_catalog.string_agg(r.relid::pg_catalog.regclass::text, ', ' ORDER BY r.id)
             FROM pgtrickle.catalog c JOIN pgtrickle.source s ON s.relid = c.relid
             JOIN pgtrickle.catalog r ON r.id = s.stream_table WHERE c.id = {id}"
        ))
        .await?;
    let readers = rows.first().and_then(|row| row.text(0));
    Ok(readers.unwrap_or_default().to_owned())
}

/// How a stream table of this definition would be kept. Leaves work for a rollback behind.
///
/// # Errors
/// As [`super::define`].
pub async fn explain_definition<C: Conn>(
    c: &mut C,
    definition: &Definition,
) -> Result<Vec<String>, Error> {
    catalog::bootstrap(c).await?;
    let define::Planned {
        id,
        saved,
        analysed: Analysed { plan, .. },
        ..
    } = define::plan(c, definition).await?;
    let mut lines = vec![format!("Stream Table {}", quote(&definition.name))];
    lines.extend(describe(id, &plan, false)?);
    lines.extend(advice(&indexes::missing(c, id, &plan).await?));
    saved.restore(c).await?;
    Ok(lines)
}

/// What the latest refreshes did, the last one first, a line each.
///
/// # Errors
/// Those of the server.
pub async fn last_refreshes<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Vec<String>, Error> {
    let rows = c
        .query(&format!(
            "SELECT mode, reason, rows_inserted, rows_deleted, pg_catalog.date_part('epoch', duration) * 1000
             FROM pgtrickle.history WHERE stream_table = {id} ORDER BY started_at DESC LIMIT 5"
        ))
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let text = |i| row.text(i).unwrap_or_default();
            let reason = row.text(1).map(|r| format!(" ({r})")).unwrap_or_default();
            let time = text(4).parse::<f64>().unwrap_or_default();
            format!(
                "Refresh: {}{reason}, {} rows inserted, {} deleted, {time:.3} ms",
                text(0),
                text(2),
                text(3)
            )
        })
        .collect())
}

/// The indexes that refreshes of a stream table miss.
///
/// # Errors
/// Those of the server.
pub async fn missing_indexes<C: Conn>(
    c: &mut C,
    id: StreamTableId,
) -> Result<Vec<MissingIndex>, Error> {
    let record = record::read(c, id).await?;
    indexes::missing(c, id.0, &record.plan).await
}

/// Compares table and query in the snapshot of one statement, in the caller's transaction.
///
/// # Errors
/// Those of the server.
pub async fn differences<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Differences, Error> {
    let record: Record = record::read(c, id).await?;
    let target = record.target()?;
    let columns = &record.plan.columns;
    let names: Vec<_> = (1..=columns.len()).map(|i| format!("o{i}")).collect();
    let mut list = names.clone();
    list.push("w".to_owned());
    let rows = apply::difference(target, &format!("SELECT * FROM pgtrickle.def_{id}"));
    let net = net(
        "d.w",
        &apply::cells(columns, "d."),
        &format!("({rows}) d({})", list.join(", ")),
    );
    let behind = match &record.frontier {
        // A shared stage may be.
        Some(_) if record.plan.reads_shared() => {
            format!("coalesce(pgtrickle.pending_changes({id}) > 0, true)")
        }
        Some(frontier) => {
            let looks = record.plan.tables.iter().filter_map(|t| t.buffer).map(|b| {
                format!(
                    "EXISTS (SELECT FROM pgtrickle.changes_{b} WHERE {})",
                    frontier.after()
                )
            });
            let looks: Vec<_> = looks.collect();
            if looks.is_empty() {
                "true".to_owned()
            } else {
                looks.join(" OR ")
            }
        }
        None => "true".to_owned(),
    };
    list.rotate_right(1);
    let sql =
        format!(
        "SELECT CASE WHEN n.w > 0 THEN 'missing' ELSE 'unexpected' END, pg_catalog.abs(n.w)::text,
            ROW({})::text, {behind} FROM ({net}) n({}) ORDER BY 3, 1",
        names.iter().map(|n| format!("n.{n}")).collect::<Vec<_>>().join(", "),
        list.join(", ")
    );
    let (saved, _) = settings::pin(c, Some(&record.plan.settings)).await?;
    let rows = c.query(&sql).await?;
    saved.restore(c).await?;
    let mut found = Differences::default();
    for mut row in rows {
        found.behind |= row.is_true(3);
        row.0.truncate(3);
        found.rows.push(row.0);
    }
    Ok(found)
}

fn advice(missing: &[MissingIndex]) -> Vec<String> {
    missing
        .iter()
        .map(|m| format!("Missing index on {}: {};", m.table, m.statement))
        .collect()
}

fn describe(id: i64, plan: &Plan, verbose: bool) -> Result<Vec<String>, Error> {
    if let Some(reason) = plan.full_reason() {
        return Ok(vec![
            "Mode: full".to_owned(),
            format!("Reason: {reason}"),
            "Result: recomputed as a whole, the difference is written".to_owned(),
        ]);
    }
    let mut lines = vec!["Mode: incremental".to_owned()];
    for (i, stage) in plan.stages.iter().enumerate() {
        let name = crate::plan::cut::stage_name(id, i + 1);
        lines.push(format!("Stage {}: pgtrickle.{name}", i + 1));
        body(id, plan, &stage.body, i, verbose, &mut lines)?;
    }
    lines.push("Result:".to_owned());
    body(id, plan, &plan.body, plan.stages.len(), verbose, &mut lines)?;
    Ok(lines)
}

fn body(
    id: i64,
    plan: &Plan,
    body: &Body,
    stages: usize,
    verbose: bool,
    lines: &mut Vec<String>,
) -> Result<(), Error> {
    let strategy = match body {
        Body::Full { .. } => "recomputed as a whole",
        Body::Linear { .. } => "row by row: each changed row of an input gives rows of the output",
        Body::Keyed(k) if k.by_weights && k.has_extremes() => {
            "groups, kept from the weights of changed rows; a group whose min or max leaves is computed anew"
        }
        Body::Keyed(k) if k.by_weights => "groups, kept from the weights of changed rows",
        Body::Keyed(k) if k.grouped => "groups, computed anew where a changed row belongs to them",
        Body::Keyed(_) => "one group, computed anew on any change",
        Body::Partition(p) if p.keys.is_empty() => "computed anew on any change of its input",
        Body::Recursive(r) if r.all => {
            "recursion: what comes of a changed row is followed, row by row, to its end"
        }
        Body::Recursive(_) => {
            "recursion: what may come of a changed row only is taken away, and what is found anew or another way is put back"
        }
        Body::Partition(_) => "partitions, computed anew where a changed row belongs to them",
    };
    lines.push(format!("  Strategy: {strategy}"));
    let Some(sql) = body.linear() else {
        return Ok(());
    };
    let all = plan.inputs(id, |_| true, &vec![true; stages]);
    let read = terms::read(sql, &all)?;
    let names = |captive: bool| -> Vec<String> {
        let chosen = read.iter().filter(|(_, c)| *c == captive);
        let mut names: Vec<_> = chosen.map(|(i, _)| all[*i].qualified()).collect();
        names.sort();
        names.dedup();
        names
    };
    let (linear, captive) = (names(false), names(true));
    if !linear.is_empty() {
        lines.push(format!("  Reads: {}", linear.join(", ")));
    }
    if !captive.is_empty() {
        lines.push(format!(
            "  Evaluated again where a change can affect it (sub-select or nullable side of a join): {}",
            captive.join(", ")
        ));
    }
    lines.push(format!("  Input: {sql}"));
    if let Body::Partition(p) = body {
        lines.push(format!("  Query: {}", p.query));
    }
    if verbose {
        for table in &plan.tables {
            let inputs = plan.inputs(id, |relid| relid == table.relid, &vec![false; stages]);
            for term in terms::delta(sql, &inputs, Olds::Within)? {
                lines.push(format!("  Delta of {}: {term}", table.qualified()));
            }
        }
    }
    Ok(())
}
