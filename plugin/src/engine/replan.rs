//! After a change of the sources: a new plan from the same definition.

use pgcat::plugins::ErrorFields;

use super::record::{self, Record};
use super::share::Which;
use super::{
    Drift, How, Mode, StreamTableId, cycle, define, drift, rebuild, settings, share, stages,
};
use crate::capture;
use crate::catalog;
use crate::conn::{Conn, Error};
use crate::plan::analyse::{self, Analysed};
use crate::plan::{Plan, literal, quote};

/// Makes the plan, capture and column types anew, in the caller's transaction. After mere renames the stream table goes on
/// where it was; else its frontier is dropped, and the next refresh rebuilds it (at once, where a column's type changed).
///
/// # Errors
/// 2BP01 if the definition is gone; 0A000 if it no longer allows what `refresh_mode` demands.
pub async fn replan<C: Conn>(c: &mut C, id: StreamTableId) -> Result<(), Error> {
    anew(c, id, Why::Sources { in_own: false }).await
}

/// The same in a transaction that ends with it, so that others do not wait for what it locks. Only so it comes to read shared stages
/// that it has not read before, and makes such of what others compute too.
///
/// # Errors
/// As [`replan`].
pub async fn replan_in_own<C: Conn>(c: &mut C, id: StreamTableId) -> Result<(), Error> {
    anew(c, id, Why::Sources { in_own: true }).await
}

async fn anew<C: Conn>(c: &mut C, id: StreamTableId, why: Why<'_>) -> Result<(), Error> {
    let record = record::locked(c, id).await?;
    let Some(now) = record.sources_now(c).await? else {
        return Err(gone(&record));
    };
    if now == record.fingerprint {
        return Ok(());
    }
    let renamed_only = drift::meaning(&now) == drift::meaning(&record.fingerprint);
    plan_anew(c, record, renamed_only, Anew::of(why)).await
}

/// Has the stream table compute for itself what it has shared with others by these shared stages, in the caller's transaction. The
/// next refresh rebuilds it.
///
/// # Errors
/// As [`replan`].
pub(super) async fn unshare<C: Conn>(
    c: &mut C,
    id: StreamTableId,
    shared: &[i64],
) -> Result<(), Error> {
    let record = record::locked(c, id).await?;
    plan_anew(c, record, false, Anew::of(Why::Unshared(shared))).await
}

/// Has the stream table compute all for itself, in the caller's transaction, if it shares anything. The next refresh rebuilds it.
///
/// # Errors
/// As [`replan`].
pub async fn go_alone<C: Conn>(c: &mut C, id: StreamTableId) -> Result<(), Error> {
    let shared: Vec<_> = record::read(c, id).await?.plan.shared().collect();
    if shared.is_empty() {
        return Ok(());
    }
    unshare(c, id, &shared).await
}

/// Has the stream table refreshed in this way from now on, in the caller's transaction. The next refresh rebuilds it.
///
/// # Errors
/// As [`replan`].
pub async fn set_mode<C: Conn>(c: &mut C, id: StreamTableId, mode: Mode) -> Result<(), Error> {
    let changed = c
        .query(&format!(
            "UPDATE pgtrickle.catalog SET refresh_mode = {0} WHERE id = {id} AND refresh_mode <> {0} RETURNING 1",
            literal(mode.as_str())
        ))
        .await?;
    if changed.is_empty() {
        return Ok(());
    }
    let record = record::read(c, id).await?;
    plan_anew(c, record, false, Anew::of(Why::Mode)).await
}

/// Has the stream table recomputed as a whole, until its plan is made anew, in the caller's transaction: a part of its query has
/// failed in this way. Every role may read the reason, and the error's message may quote data: its code stands for it.
///
/// # Errors
/// 0A000 if `refresh_mode` demands more; those of the server.
pub(super) async fn recompute<C: Conn>(
    c: &mut C,
    id: StreamTableId,
    failure: &ErrorFields,
) -> Result<(), Error> {
    let record = record::locked(c, id).await?;
    let anew = Anew {
        full: Some(format!("a part of it fails (SQLSTATE {})", failure.code)),
        ..Anew::of(Why::Sources { in_own: false })
    };
    plan_anew(c, record, false, anew).await
}

/// What a new plan is made for.
#[derive(Debug, Clone, Copy)]
enum Why<'a> {
    /// `in_own`: the transaction ends with it.
    Sources {
        in_own: bool,
    },
    Mode,
    /// It is to do without these shared stages.
    Unshared(&'a [i64]),
}

/// What a new plan is to be like.
struct Anew<'a> {
    why: Why<'a>,
    /// Why it is not to be incremental.
    full: Option<String>,
}

impl<'a> Anew<'a> {
    fn of(why: Why<'a>) -> Self {
        Self { why, full: None }
    }
}

/// `renamed_only`: what is there stays right.
async fn plan_anew<C: Conn>(
    c: &mut C,
    record: Record,
    mut renamed_only: bool,
    anew: Anew<'_>,
) -> Result<(), Error> {
    let id = record.id;
    let known: Vec<_> = record.plan.shared().collect();
    for &shared in &known {
        bring_up(c, StreamTableId(shared)).await?;
    }
    let (saved, _) = settings::pin(c, Some(&record.plan.settings)).await?;
    let mode = match record.refresh_mode.as_str() {
        "full" => Mode::Full,
        "incremental" => Mode::Incremental,
        _ => Mode::Auto,
    };
    if !renamed_only {
        begin_anew(c, id, &[&record.plan]).await?;
    }
    let settings = &record.plan.settings;
    let but = record.shares.as_ref();
    let mut sharing = share::available(c, settings, mode, Which::Filled { but }).await?;
    match anew.why {
        Why::Sources { in_own: true } => {}
        // Others would wait for what is locked here for as long as the transaction takes.
        Why::Sources { in_own: false } | Why::Mode => sharing.keep(&known),
        Why::Unshared(shared) => {
            sharing.keep(&known);
            sharing.refuse(shared);
        }
    }
    let place = (id.0, record.view);
    let may_make = matches!(anew.why, Why::Sources { in_own: true });
    let full = anew.full.or_else(|| mode.full_reason());
    let (mut analysed, again) = if may_make && full.is_none() {
        share::planned(c, place, settings, mode, &mut sharing, &known, but).await?
    } else {
        share::analysed(c, place, settings, full.as_deref(), &mut sharing, &known).await?
    };
    if renamed_only && (again || !is_alike(&record.plan, &analysed.plan)) {
        // It is built of other parts.
        begin_anew(c, id, &[&record.plan, &analysed.plan]).await?;
        renamed_only = false;
        (analysed, _) =
            share::analysed(c, place, settings, full.as_deref(), &mut sharing, &known).await?;
    }
    let shares_more = analysed.plan.shared().any(|id| !known.contains(&id));
    let Analysed {
        mut plan,
        mut fragments,
        whole,
    } = analysed;
    if record.shares.is_some() {
        fragments.retain(|part| Some(&part.digest) != whole.as_ref());
    }
    define::refuse_full(mode, &plan)?;
    cycle::refuse(c, &record, &plan).await?;
    let mut retyped = false;
    if !renamed_only {
        define::make_tables(c, id.0, &plan).await?;
        retyped = retype(c, &record).await?;
    }
    capture::attach(c, id.0, &mut plan).await?;
    if !renamed_only {
        let reason = match anew.why {
            Why::Sources { .. } if shares_more => "parts of it are shared with others now",
            Why::Sources { .. } if record.fingerprint.is_empty() => "what it shares was looked at",
            Why::Sources { .. } => "a source was altered",
            Why::Mode => "its refresh_mode was altered",
            Why::Unshared(_) => "parts of it are not shared any more",
        };
        let note = format!(
            "UPDATE pgtrickle.catalog SET rebuild = {} WHERE id = {id}",
            literal(reason)
        );
        c.query(&note).await?;
        define::make_staging(c, id.0, &plan).await?;
    }
    define::save_plan(c, id, record.view, &plan, &fragments).await?;
    if record.shares.is_some() && record.shares != whole {
        let digest = whole.map_or_else(|| "NULL".to_owned(), |digest| literal(&digest.0));
        c.query(&format!(
            "UPDATE pgtrickle.catalog SET shares = coalesce({digest}, shares) WHERE id = {id}"
        ))
        .await?;
    }
    let used: Vec<_> = plan.tables.iter().filter_map(|t| t.buffer).collect();
    let unused: Vec<_> = record
        .plan
        .tables
        .iter()
        .filter_map(|t| t.buffer)
        .filter(|b| !used.contains(b))
        .collect();
    capture::detach(c, &unused).await?;
    saved.restore(c).await?;
    if retyped {
        // Its old values are gone from sight with the type: nobody may see the table before the new ones are there.
        // Boxed, as the two may call each other (never twice).
        Box::pin(rebuild::refresh_in_transaction(c, id, How::Full)).await?;
    }
    Ok(())
}

/// Has a shared stage planned anew if its sources have changed: before those that read it, or it would not be found by what it is
/// now. One that cannot be is left as it is, and not read any more.
async fn bring_up<C: Conn>(c: &mut C, id: StreamTableId) -> Result<(), Error> {
    // Nobody waits for this, mostly.
    match drift::check(c, id).await {
        Ok(Drift::Sources(_)) => {}
        Ok(_) | Err(Error::Refused(_)) => return Ok(()),
        Err(error) => return Err(error),
    }
    c.query("SAVEPOINT pgtrickle_shared").await?;
    match Box::pin(replan(c, id)).await {
        Err(Error::Refused(_)) => c.query("ROLLBACK TO SAVEPOINT pgtrickle_shared").await?,
        outcome => outcome.map(|()| Vec::new())?,
    };
    c.query("RELEASE SAVEPOINT pgtrickle_shared")
        .await
        .map(|_| ())
}

/// Drops what hidden tables of these plans there are, and has the next refresh rebuild the stream table.
async fn begin_anew<C: Conn>(c: &mut C, id: StreamTableId, plans: &[&Plan]) -> Result<(), Error> {
    for plan in plans {
        stages::drop_all(c, id.0, plan).await?;
    }
    c.query(&format!(
        "UPDATE pgtrickle.catalog SET frontier_snapshot = NULL WHERE id = {id}"
    ))
    .await
    .map(|_| ())
}

/// Whether two plans have stages in the same places.
fn is_alike(old: &Plan, new: &Plan) -> bool {
    old.stages.len() == new.stages.len() && old.shared().eq(new.shared())
}

fn gone(record: &Record) -> Error {
    Error::Refused(Box::new(
        ErrorFields::error(
            "2BP01",
            format!(
                "the definition of stream table \"{}\" was dropped",
                record.name
            ),
        )
        .detail("A source, or a column of one, was dropped with CASCADE.")
        .hint("Drop the stream table and create it again."),
    ))
}

/// Gives the user's table the types the definition has now. Returns whether there was anything to do.
async fn retype<C: Conn>(c: &mut C, record: &Record) -> Result<bool, Error> {
    let (Some(relid), Some(target)) = (record.relid, &record.target) else {
        return Ok(false);
    };
    let types = |relid: u32| {
        format!(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute
             WHERE attrelid = {relid} AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        )
    };
    let wanted = c.query(&types(record.view)).await?;
    let have = c.query(&types(relid)).await?;
    let mut parts = Vec::new();
    for ((column, wanted), have) in target.columns.iter().zip(&wanted).zip(&have) {
        if let Some(wanted) = wanted.text(0).filter(|w| Some(*w) != have.text(0)) {
            parts.push(format!(
                "ALTER COLUMN {0} TYPE {wanted} USING NULL",
                quote(column)
            ));
        }
    }
    if parts.is_empty() {
        return Ok(false);
    }
    c.query(&format!("ALTER TABLE {} {}", target.name, parts.join(", ")))
        .await?;
    Ok(true)
}

/// Drops the definition view for a moment, as it would block the statement to come (ALTER COLUMN TYPE, DROP COLUMN).
///
/// # Errors
/// 42704 if there is no such stream table any more; those of the server.
pub async fn drop_definition_view<C: Conn>(c: &mut C, id: StreamTableId) -> Result<(), Error> {
    let record = record::locked(c, id).await?;
    let (saved, _) = settings::pin(c, Some(&record.plan.settings)).await?;
    // By the names of this moment: a rename may not have been taken in yet.
    let plan = Plan {
        canonical: analyse::view_text(c, record.view).await?,
        ..record.plan
    };
    let json = serde_json::to_string(&plan)
        .map_err(|e| Error::Internal(format!("cannot write a plan: {e}")))?;
    c.batch(&[
        format!(
            "UPDATE pgtrickle.catalog SET plan = {} WHERE id = {id}",
            literal(&json)
        ),
        format!("DROP VIEW pgtrickle.def_{id}"),
    ])
    .await?;
    saved.restore(c).await
}

/// Makes the definition view anew after [`drop_definition_view`]; [`replan`] has to follow.
///
/// # Errors
/// 2BP01 if the definition does not fit the sources any more.
pub async fn recreate_definition_view<C: Conn>(c: &mut C, id: StreamTableId) -> Result<(), Error> {
    let record = record::read(c, id).await?;
    let (saved, _) = settings::pin(c, Some(&record.plan.settings)).await?;
    let made = c
        .query(&format!(
            "CREATE VIEW pgtrickle.def_{id} AS {}",
            record.plan.canonical
        ))
        .await;
    if let Err(Error::Server(fields)) = made {
        return Err(Error::Refused(Box::new(
            ErrorFields::error(
                "2BP01",
                format!(
                    "stream table \"{}\" depends on what this statement changes",
                    record.name
                ),
            )
            .detail(format!(
                "Its defining query would fail: {}.",
                fields.message
            ))
            .hint("Drop the stream table first."),
        )));
    }
    made?;
    let view = catalog::regclass(c, &format!("pgtrickle.def_{id}")).await?;
    c.query(&format!(
        "UPDATE pgtrickle.catalog SET def_view = {view} WHERE id = {id}"
    ))
    .await?;
    saved.restore(c).await
}
