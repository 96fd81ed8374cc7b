//! A refresh in one round trip: everything is sent at once, COMMIT included, with what the last refreshes make likely taken
//! for granted. The server checks each of these assumptions, and the statement that finds one wrong fails the transaction.

use super::RefreshOutcome;
use super::conclude::{Done, Place, ending};
use super::look::{Changes, Now, look, opening};
use super::record::{Record, SLACK};
use super::settings;
use crate::conn::{Conn, Error, Statement};
use crate::delta::stage::{stage, staging};
use crate::delta::{apply, keyed, raise_unless};
use crate::plan::Body;
use crate::plan::terms::Olds;

/// The error's value when something is not as assumed.
const OTHERWISE: &str = "pgtrickle: not as at the last refresh";

/// The statements of a refresh.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    statements: Vec<Statement>,
    /// Where the result of [`look`] is; that of the settings is before, that of [`stage`] after.
    look: usize,
    /// The tables that are predicted to have changed.
    changed: Vec<u32>,
    named: bool,
}

/// The batch for a remembered stream table that `name`, if given, stands for. `None` where nothing can be predicted, or the
/// next statement depends on what the last one finds.
///
/// # Errors
/// [`Error::Internal`] for a plan that cannot be read.
pub(super) fn batch(record: &mut Record, name: Option<&str>) -> Result<Option<Batch>, Error> {
    let Some(changed) = record.habit.predicts().map(<[u32]>::to_vec) else {
        return Ok(None);
    };
    if record.is_outgrown() {
        return Ok(None);
    }
    let last = record.batch.take();
    let mut batch = match last.filter(|b| b.changed == changed && b.named == name.is_some()) {
        Some(batch) => batch,
        None => match compose(record, changed, name.is_some())? {
            Some(batch) => batch,
            None => return Ok(None),
        },
    };
    batch.fill_in(record, name);
    Ok(Some(batch))
}

/// The statements, without the values that change from one refresh to the next.
fn compose(record: &mut Record, changed: Vec<u32>, named: bool) -> Result<Option<Batch>, Error> {
    if !record.plan.stages.is_empty() {
        return Ok(None);
    }
    let slot = record.id.to_string();
    let Some(delta) = record.delta(0, &changed, &[], Olds::Within)? else {
        return Ok(None);
    };
    let record = &*record;
    let (Some(frontier), Some(relid)) = (&record.frontier, record.relid) else {
        return Ok(None);
    };
    let compute = match &record.plan.body {
        Body::Linear { .. } => apply::collect(&slot, &record.plan.columns, "", &delta),
        Body::Keyed(k) if k.by_weights && !k.has_extremes() => {
            keyed::by_weights(&slot, k, &record.plan.columns, &delta)
        }
        Body::Full { .. } | Body::Keyed(_) | Body::Partition(_) | Body::Recursive(_) => {
            return Ok(None);
        }
    };
    let is_named = format!(
        "pg_catalog.to_regclass($1)::pg_catalog.oid OPERATOR(pg_catalog.=) {relid}::pg_catalog.oid"
    );
    let is_named = named.then(|| raise_unless(&is_named, OTHERWISE));
    let mut statements = opening(record, is_named.as_deref(), None, true);
    let look = statements.len();
    statements.push(Statement::kept(confirmed(record, named), Vec::new()));
    let last = format!(
        "{}, {}",
        settings::planned(),
        raise_unless(&as_predicted(record, &changed), OTHERWISE)
    );
    let (sql, parameters) = stage(
        record.id.0,
        &record.captured(),
        frontier,
        &SLACK.to_string(),
        &last,
    );
    statements.push(record.kept(&sql, parameters));
    statements.push(record.kept(&compute, Vec::new()));
    let emptied: Vec<_> = record
        .buffers()
        .filter(|(relid, _)| changed.contains(relid))
        .map(|(_, buffer)| staging(record.id.0, buffer))
        .collect();
    statements.extend(ending(
        record,
        &frontier.cluster,
        record.beyond.as_deref(),
        &Done {
            mode: "incremental",
            reason: None,
            changes: None,
            emptied: &emptied,
        },
        &Place::Alone,
    )?);
    Ok(Some(Batch {
        statements,
        look,
        changed,
        named,
    }))
}

/// [`look`], which fails unless all is as in the record: no row, as when another session has it locked, included.
fn confirmed(record: &Record, owned: bool) -> String {
    let owned = if owned { " AND s.owned" } else { "" };
    let same = format!(
        "(SELECT count(*) FROM seen s WHERE s.version = $1 AND s.snapshot = $2 AND s.seq = $3::bigint AND s.cluster = $4
            AND s.target = $5 AND s.columns = $6 AND s.same{owned}) = 1"
    );
    let sources = format!("{} = $7", record.undigested_now());
    format!(
        "WITH seen AS MATERIALIZED ({}) SELECT seen.*, {} FROM (SELECT) one LEFT JOIN seen ON true",
        look(record, &sources, "NULL::text"),
        raise_unless(&same, OTHERWISE),
    )
}

/// The condition, over what [`stage`] finds, for exactly these tables to have changed, by so little that the statements that
/// follow can be those of the last time.
fn as_predicted(record: &Record, changed: &[u32]) -> String {
    let mut conditions = Vec::new();
    let mut all = Vec::new();
    let mut net = Vec::new();
    for (relid, buffer) in record.buffers() {
        all.push(format!("due_{buffer}"));
        if changed.contains(&relid) {
            net.push(format!("net_{buffer}"));
            conditions.push(format!(
                "net_{buffer} > 0 AND NOT lost_{buffer} AND {}",
                is_known(&format!("net_{buffer}"), &format!("rows_{buffer}"))
            ));
        } else {
            conditions.push(format!("due_{buffer} = 0"));
        }
    }
    let out = format!(
        "(SELECT reltuples FROM pg_class WHERE oid = 'pgtrickle.out_{}'::regclass)",
        record.id
    );
    conditions.push(is_known(&format!("({})", net.join(" + ")), &out));
    conditions.push(format!("{} <= {SLACK}", all.join(" + ")));
    conditions.join(" AND ")
}

/// No ANALYZE is needed: [`super::incremental::analyze`] in SQL.
fn is_known(rows: &str, analysed: &str) -> String {
    format!(
        "{analysed} > 0 AND {rows} <= 4 * greatest({analysed}, 25) AND ({analysed} <= 100 OR {rows} * 4 >= {analysed})"
    )
}

impl Batch {
    /// Puts the values in.
    fn fill_in(&mut self, record: &Record, name: Option<&str>) {
        let Some(frontier) = &record.frontier else {
            return;
        };
        self.statements[self.look - 1].parameters = name.map(str::to_owned).into_iter().collect();
        self.statements[self.look].parameters = vec![
            record.version.clone(),
            frontier.snapshot.clone(),
            frontier.seq.to_string(),
            frontier.cluster.clone(),
            record.target_seen.0.clone(),
            record.target_seen.1.clone(),
            record.undigested.clone().unwrap_or_default(),
        ];
        self.statements[self.look + 1].parameters = frontier.parameters();
    }

    /// Runs it.
    ///
    /// # Errors
    /// Whatever is in the way, an assumption that was wrong included; the transaction has failed then.
    pub(super) async fn run<C: Conn>(
        self,
        c: &mut C,
        record: &mut Record,
    ) -> Result<RefreshOutcome, Error> {
        let results = c.run(&self.statements).await?;
        let now = Now::read(results.get(self.look), Place::Alone)?;
        let staged = results.get(self.look + 1).and_then(|rows| rows.first());
        let changes = staged.map(|row| Changes::of_all(record, row));
        record.took_in(changes.iter().flatten().map(|changes| changes.due).sum());
        record.moved(now.frontier);
        record.batch = Some(self);
        let counts = results.iter().rev().nth(1).and_then(|rows| rows.first());
        Ok(RefreshOutcome::new("incremental", None, counts))
    }
}
