//! How a refresh begins: locks, settings, and whether all is as remembered.

use super::conclude::Place;
use super::record::{self, FROM, OWNED, Record, TARGET};
use super::{fingerprint, settings};
use crate::conn::{Error, Row, Statement};
use crate::delta::stage::{Frontier, STAGED};

/// What comes before [`look`] where the refresh is alone in its transaction. `named` is an expression over the name as the
/// first parameter, which the caller's path gives its meaning: so it is evaluated before that is pinned.
pub(super) fn opening(
    record: &Record,
    named: Option<&str>,
    name: Option<&str>,
    stages: bool,
) -> Vec<Statement> {
    let plain = settings::begin().into_iter().chain(record.locks());
    let mut statements: Vec<_> = plain.map(|sql| Statement::kept(sql, Vec::new())).collect();
    let settings = settings::of_refresh(&record.plan.settings, named, stages);
    let parameters = name.map(str::to_owned).into_iter().collect();
    statements.push(Statement::kept(settings, parameters));
    statements
}

/// The statement that locks the stream table's row against other refreshes, and tells whether all is as `record` has it:
/// `same` is an expression for whether the sources are, and `undigested` for [`Now::undigested`].
pub(super) fn look(record: &Record, same: &str, undigested: &str) -> String {
    format!(
        "SELECT pg_catalog.pg_current_snapshot()::text, pg_catalog.pg_current_xact_id()::text,
            c.frontier_snapshot::text AS snapshot, c.frontier_seq AS seq, {} AS cluster, {same} AS same, {},
            c.xmin::text AS version, {OWNED} AS owned, {undigested}, {TARGET}
         FROM {FROM} WHERE c.id = {} FOR UPDATE OF c SKIP LOCKED",
        record::cluster(&record.plan),
        beyond(record),
        record.id,
    )
}

/// Partitions and function bodies change in mid-snapshot.
fn beyond(record: &Record) -> String {
    fingerprint::beyond_snapshot(&record.plan).unwrap_or_else(|| "NULL::text".to_owned())
}

/// What [`look`] found.
pub(super) struct Now {
    pub place: Place,
    /// The one that this refresh will leave.
    pub frontier: Frontier,
    stored: Option<(String, i64)>,
    pub same_fingerprint: bool,
    /// What a snapshot does not hold still.
    pub beyond: Option<String>,
    version: String,
    pub owned: bool,
    /// What the fingerprint is made of.
    pub undigested: Option<String>,
    pub target: Row,
}

impl Now {
    pub(super) fn read(rows: Option<&Vec<Row>>, place: Place) -> Result<Self, Error> {
        let row = rows.and_then(|r| r.first()).ok_or(Error::Busy)?;
        let text = |i: usize| row.text(i).unwrap_or_default().to_owned();
        Ok(Self {
            frontier: Frontier {
                snapshot: text(0),
                xid: text(1).parse().unwrap_or_default(),
                seq: place.seq(),
                cluster: text(4),
            },
            place,
            stored: row.text(2).map(str::to_owned).zip(row.int(3)),
            same_fingerprint: row.is_true(5),
            beyond: row.text(6).map(str::to_owned),
            version: text(7),
            owned: row.is_true(8),
            undigested: row.text(9).map(str::to_owned),
            target: Row(row.0.get(10..).unwrap_or_default().to_vec()),
        })
    }

    /// Whether the row and the user's table are still those of the record.
    pub(super) fn confirms(&self, record: &Record) -> bool {
        let frontier = record.frontier.as_ref();
        // What is remembered may be about a twin of this database, down to the versions of its rows.
        let of_a_twin =
            record.is_remembered() && frontier.is_some_and(|f| f.cluster != self.frontier.cluster);
        !of_a_twin
            && self.version == record.version
            && frontier.is_none_or(|f| self.stored == Some((f.snapshot.clone(), f.seq)))
            && record::target(&self.target.0, &record.plan).is_ok_and(|now| now == record.target)
    }

    /// Rows of the result's staging table at its last ANALYZE.
    pub(super) fn out_rows(&self) -> Option<f64> {
        self.target.text(2).and_then(|n| n.parse().ok())
    }
}

/// The changes of a source.
pub(super) struct Changes {
    pub relid: u32,
    pub buffer: i64,
    /// Rows staged: the net.
    pub net: i64,
    pub lost: bool,
    pub due: i64,
    /// Rows of the staging table at its last ANALYZE.
    pub analysed: Option<f64>,
}

impl Changes {
    /// From the row that [`stage()`](crate::delta::stage::stage) returns.
    pub(super) fn of_all(record: &Record, row: &Row) -> Vec<Self> {
        record
            .buffers()
            .zip(row.0.chunks(STAGED))
            .map(|((relid, buffer), values)| {
                let row = Row(values.to_vec());
                Self {
                    relid,
                    buffer,
                    net: row.int(0).unwrap_or_default(),
                    lost: row.is_true(1),
                    due: row.int(2).unwrap_or_default(),
                    analysed: row.text(3).and_then(|n| n.parse().ok()),
                }
            })
            .collect()
    }
}
