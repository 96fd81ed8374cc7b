//! How a refresh ends: what is staged is applied, noted and committed.

use super::look::Now;
use super::record::Record;
use super::refresh::Attempt;
use super::{RefreshOutcome, cost, fingerprint};
use crate::conn::{Conn, Error, Row, Statement};
use crate::delta::{apply, is_raised, raise_unless};
use crate::plan::literal;

/// The error's value when partitions or functions have changed within our snapshot.
const CHANGED: &str = "pgtrickle: other sources";

/// Applies what is staged, empties the staging tables of these buffers, writes frontier and history, checks the fingerprint
/// a last time, and commits if it is [`Place::Alone`]: in one go, as a check that fails fails the transaction.
pub(super) async fn finish<C: Conn>(
    c: &mut C,
    record: &Record,
    now: &Now,
    mut statements: Vec<Statement>,
    done: Done<'_>,
) -> Result<Attempt, Error> {
    let beyond = now.beyond.as_deref();
    let cluster = &now.frontier.cluster;
    statements.extend(ending(record, cluster, beyond, &done, &now.place)?);
    let concluded = statements.len() - 1 - usize::from(now.place == Place::Alone);
    let results = match c.run(&statements).await {
        Err(Error::Server(fields)) if apply::is_about_other_rows(&fields) => {
            return Ok(Attempt::Rebuild);
        }
        Err(Error::Server(fields)) if is_raised(&fields, CHANGED) => {
            return Err(Error::Drift(
                "the sources changed during the refresh".to_owned(),
            ));
        }
        results => results?,
    };
    let counts = results.get(concluded).and_then(|rows| rows.first());
    let reason = done.reason.map(str::to_owned);
    let outcome = RefreshOutcome::new(done.mode, reason, counts);
    Ok(Attempt::Done(outcome, None))
}

/// The last statements of a refresh. `beyond` is what a snapshot does not hold still, as it was found first.
pub(super) fn ending(
    record: &Record,
    cluster: &str,
    beyond: Option<&str>,
    done: &Done<'_>,
    place: &Place,
) -> Result<Vec<Statement>, Error> {
    let check = match fingerprint::beyond_snapshot(&record.plan) {
        Some(now) => {
            let seen = beyond.map_or_else(|| "NULL".to_owned(), literal);
            raise_unless(&format!("{now} IS NOT DISTINCT FROM {seen}"), CHANGED)
        }
        None => "0".to_owned(),
    };
    // Values that differ from one refresh to the next are parameters: the server keeps its plan.
    let (started_at, seq) = match place {
        Place::Alone => ("transaction_timestamp()", "0"),
        Place::Among { .. } => ("$2", "$3::bigint"),
    };
    let set = format!(
        ", frontier_snapshot = pg_current_snapshot(), frontier_xid = pg_current_xact_id(), frontier_seq = {seq},
            frontier_cluster = {}",
        literal(cluster)
    );
    let conclusion = Conclusion {
        started_at,
        done,
        set: &set,
        check: &check,
    };
    let mut statement = conclusion.statement(record, record.target()?);
    match place {
        Place::Alone => {
            let commit = Statement::kept("COMMIT".to_owned(), Vec::new());
            Ok(vec![statement, commit])
        }
        Place::Among { started_at, seq } => {
            statement
                .parameters
                .extend([started_at.clone(), seq.to_string()]);
            Ok(vec![statement])
        }
    }
}

/// A refresh's place in its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// It is all that the transaction does: what that writes comes after the refresh's own look at the changes.
    Alone,
    /// One of several. Of what the transaction itself writes, it takes in all up to `seq`.
    Among {
        /// By the server's clock.
        started_at: String,
        seq: i64,
    },
}

impl Place {
    /// The statement that tells the place of one of several, when all before it have written what they write.
    pub(super) const NEXT: &str =
        "SELECT pg_catalog.clock_timestamp()::text, pg_catalog.nextval('pgtrickle.change_seq')";

    /// What [`Place::NEXT`] told.
    pub(super) fn read(row: Option<&Row>) -> Result<Self, Error> {
        let told = row.and_then(|row| Some((row.text(0)?.to_owned(), row.int(1)?)));
        let (started_at, seq) =
            told.ok_or_else(|| Error::Internal("no place in the transaction".to_owned()))?;
        Ok(Self::Among { started_at, seq })
    }

    /// Up to where the refresh takes in what its own transaction has written.
    pub(super) fn seq(&self) -> i64 {
        match self {
            Self::Alone => 0,
            Self::Among { seq, .. } => *seq,
        }
    }
}

/// What a refresh has done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done<'a> {
    pub mode: &'static str,
    pub reason: Option<&'a str>,
    /// How many changes were taken in, if they were many.
    pub changes: Option<i64>,
    /// Staging tables that have been read.
    pub emptied: &'a [String],
}

/// What the last statement of a refresh writes besides the rows themselves.
pub(super) struct Conclusion<'a> {
    /// By the server's clock: an SQL expression.
    pub started_at: &'a str,
    pub done: &'a Done<'a>,
    /// Further columns of the catalog's row, after a comma.
    pub set: &'a str,
    /// An expression that fails if the refresh is not to be.
    pub check: &'a str,
}

impl Conclusion<'_> {
    /// Applies the staged rows to the user's table, empties the staging tables, and notes the refresh in the catalog and the
    /// history. Returns the rows inserted and deleted. Fails as [`apply::apply`] does.
    pub(super) fn statement(&self, record: &Record, target: &apply::Target) -> Statement {
        let emptied: String = self
            .done
            .emptied
            .iter()
            .enumerate()
            .map(|(i, table)| format!("used_{i} AS (DELETE FROM {table}), "))
            .collect();
        let changes = "nullif($1, '')::bigint";
        let seconds = format!(
            "date_part('epoch', clock_timestamp() - {}::timestamptz)",
            self.started_at
        );
        let sql = format!(
            "WITH {emptied}{},
             moved AS (UPDATE pgtrickle.catalog SET last_refresh = clock_timestamp(), failures = 0, last_error = NULL,
                status = CASE WHEN status = 'suspended' AND last_refresh IS NOT NULL THEN status ELSE 'active' END{}{lesson}
                WHERE id = {id}),
             noted AS (INSERT INTO pgtrickle.history (stream_table, owner, started_at, duration, mode, reason, rows_inserted,
                    rows_deleted, changes)
                SELECT c.id, c.owner, t.started_at, clock_timestamp() - t.started_at, {}, {}, a.inserted, a.deleted, {changes}
                FROM pgtrickle.catalog c, applied a, (SELECT {}::timestamptz) t(started_at) WHERE c.id = {id})
             SELECT inserted, deleted, (SELECT ok FROM checked), {} FROM applied",
            apply::apply(
                &record.id.to_string(),
                &record.plan.body,
                &record.plan.columns,
                target
            ),
            self.set,
            literal(self.done.mode),
            self.done.reason.map_or_else(|| "NULL".to_owned(), literal),
            self.started_at,
            self.check,
            id = record.id,
            lesson = cost::lesson(self.done.mode, &seconds, changes),
        );
        let changes = self.done.changes.map(|n| n.to_string()).unwrap_or_default();
        record.kept(&sql, vec![changes])
    }
}
