//! Who has work waiting.

use std::collections::BTreeMap;

use super::StreamTableId;
use crate::conn::{Conn, Error, Row, Statement};
use crate::delta::stage::{Frontier, condition};

/// So many stream tables are looked at in a statement made for them. More are looked at by statements that come again, whose plans
/// the server keeps: to plan a look into a buffer takes many times as long as the look.
pub const FEW: usize = 8;

/// Stream tables that are looked at by one statement have ids that differ in these bits only, so that it comes again,
/// whichever of them are asked for.
const CHUNK_BITS: u32 = 6;

/// Chunks of one transaction, which holds two locks for each buffer until its end. The server has room for some 6400 of all its
/// sessions.
const CHUNKS_AT_ONCE: usize = 16;

/// The values of a frontier that nothing is after.
const NEVER: [&str; 4] = ["18446744073709551615", "{}", "0", "9223372036854775807"];

/// A buffer that a stream table takes its changes from.
struct Look {
    id: i64,
    buffer: i64,
    /// `None`: it is not asked for.
    frontier: Option<Frontier>,
}

/// Which of these stream tables have changes waiting (or must be rebuilt), in two cheap round trips; all are the current
/// role's. Those that can only be recomputed as a whole are never among them: nothing is captured for them.
///
/// # Errors
/// Those of the server.
pub async fn pending<C: Conn>(
    c: &mut C,
    ids: &[StreamTableId],
) -> Result<Vec<StreamTableId>, Error> {
    among(c, ids, ids.len() > FEW).await
}

/// [`pending`] within the transaction of a refresh, whose settings are left alone.
///
/// # Errors
/// Those of the server.
pub(super) async fn pending_within<C: Conn>(
    c: &mut C,
    ids: &[StreamTableId],
) -> Result<Vec<StreamTableId>, Error> {
    among(c, ids, false).await
}

async fn among<C: Conn>(
    c: &mut C,
    ids: &[StreamTableId],
    by_chunks: bool,
) -> Result<Vec<StreamTableId>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<_> = ids.iter().map(|id| id.to_string()).collect();
    let list = format!("{{{}}}", list.join(","));
    let which = if by_chunks {
        format!(
            "c.id >> {CHUNK_BITS} IN (SELECT a >> {CHUNK_BITS} FROM unnest($1::bigint[]) a)
             AND pg_catalog.pg_get_userbyid(c.owner) = current_user"
        )
    } else {
        "c.id = ANY ($1::bigint[])".to_owned()
    };
    let sql = format!(
        "SELECT c.id, c.frontier_snapshot::text, c.frontier_xid::text, c.frontier_seq, s.buffer, c.id = ANY ($1::bigint[])
         FROM pgtrickle.catalog c LEFT JOIN pgtrickle.source s ON s.stream_table = c.id AND s.buffer IS NOT NULL
         WHERE {which} AND (c.effective_mode = 'incremental' OR c.frontier_snapshot IS NULL)
         ORDER BY c.id, s.buffer"
    );
    let rows = c.query_kept(sql, vec![list]).await?;
    let mut found = Vec::new();
    let mut looks = Vec::new();
    for row in &rows {
        let Some(id) = row.int(0) else { continue };
        let asked = row.is_true(5);
        let frontier = frontier(row);
        if asked && frontier.is_none() {
            found.push(StreamTableId(id));
        }
        if let Some(buffer) = row.int(4) {
            let frontier = frontier.filter(|_| asked);
            looks.push(Look {
                id,
                buffer,
                frontier,
            });
        }
    }
    let rows = if looks.iter().all(|look| look.frontier.is_none()) {
        Vec::new()
    } else if by_chunks {
        let mut rows = Vec::new();
        for transaction in in_chunks(&looks) {
            rows.append(&mut c.run(&transaction).await?.concat());
        }
        rows
    } else {
        c.query(&at_once(&looks)).await?
    };
    found.extend(rows.iter().filter_map(|r| r.int(0)).map(StreamTableId));
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn frontier(row: &Row) -> Option<Frontier> {
    Some(Frontier {
        snapshot: row.text(1)?.to_owned(),
        xid: row.text(2)?.parse().ok()?,
        seq: row.int(3)?,
        cluster: String::new(),
    })
}

fn look(id: i64, buffer: i64, after: &str) -> String {
    format!("SELECT {id} WHERE EXISTS (SELECT FROM pgtrickle.changes_{buffer} WHERE {after})")
}

fn at_once(looks: &[Look]) -> String {
    let looks = looks.iter().filter_map(|l| {
        let frontier = l.frontier.as_ref()?;
        Some(look(l.id, l.buffer, &frontier.after()))
    });
    looks.collect::<Vec<_>>().join(" UNION ALL ")
}

/// The statements of some transactions.
fn in_chunks(looks: &[Look]) -> Vec<Vec<Statement>> {
    let mut chunks = BTreeMap::<i64, Vec<&Look>>::new();
    for look in looks {
        chunks.entry(look.id >> CHUNK_BITS).or_default().push(look);
    }
    // What is planned while a buffer is empty reads it whole, if it may, also when it is full; and a plan for certain values
    // is not kept.
    let begin = [
        "BEGIN",
        "SET LOCAL enable_seqscan = off",
        "SET LOCAL plan_cache_mode = force_generic_plan",
    ];
    let chunks: Vec<_> = chunks.into_values().collect();
    let transactions = chunks.chunks(CHUNKS_AT_ONCE).map(|chunks| {
        let begin = begin.map(|sql| sql.to_owned().into());
        let looks = chunks.iter().map(|chunk| in_chunk(chunk));
        let end = "COMMIT".to_owned().into();
        begin.into_iter().chain(looks).chain([end]).collect()
    });
    transactions.collect()
}

fn in_chunk(chunk: &[&Look]) -> Statement {
    let mut texts = Vec::new();
    let mut values = Vec::new();
    for l in chunk {
        let number = |i| format!("${}", values.len() + i);
        let after = condition(&number(1), &number(2), &number(3), &number(4));
        texts.push(look(l.id, l.buffer, &after));
        values.extend(match &l.frontier {
            Some(frontier) => frontier.parameters(),
            None => NEVER.map(str::to_owned).into(),
        });
    }
    Statement::kept(texts.join(" UNION ALL "), values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_the_same_whoever_is_asked_for() {
        let frontier = Frontier {
            snapshot: "10:20:".into(),
            xid: 12,
            seq: 7,
            cluster: String::new(),
        };
        let of = |id, asked| Look {
            id,
            buffer: id,
            frontier: (id == asked).then(|| frontier.clone()),
        };
        let looks = |asked| in_chunks(&[1, 2, 64].map(|id| of(id, asked))).remove(0);
        let (one, two) = (looks(1), looks(2));
        assert_eq!(one.len(), 3 + 2 + 1);
        for (one, two) in one.iter().zip(&two) {
            assert_eq!(one.sql, two.sql);
        }
        assert_ne!(one[3].parameters, two[3].parameters);
        assert!(one[3].sql.contains("$8"), "{}", one[3].sql);
        assert_eq!(one[4].parameters, NEVER);
    }

    #[test]
    fn no_transaction_looks_into_very_many() {
        let looks: Vec<_> = (0..2000)
            .map(|id| Look {
                id,
                buffer: id,
                frontier: None,
            })
            .collect();
        let transactions = in_chunks(&looks);
        let chunks = transactions.iter().map(|statements| statements.len() - 4);
        assert_eq!(chunks.collect::<Vec<_>>(), [16, 16]);
    }
}
