//! Shared stages: what several stream tables of an owner compute alike is computed once, by a hidden stream table that they read.
//!
//! The first stream table that has a fragment of a query computes it for itself, in a stage of its own. The second makes a shared
//! stage of it, and once that has its data the first one is planned anew ([`offer`]; so is one of two that have come to have a fragment
//! in common otherwise). A shared stage is a stream table like any other, but for this:
//! - it has no schedule: it is refreshed with those that read it, in one transaction and before them, as these are their queries
//!   only where it is of the same moment ([`super::group`]);
//! - where that cannot be, in a transaction block, those that read it are computed from their sources, and rebuilt after it;
//! - if it fails, those that read it go on without it: PostgreSQL may never have computed what fails;
//! - it goes with the last one that reads it.

use std::collections::BTreeMap;

use super::define::{self, NewRow};
use super::{Mode, StreamTableId, record, remove, stages};
use crate::capture;
use crate::catalog;
use crate::conn::{Conn, Error};
use crate::delta::apply::{self, Target};
use crate::plan::analyse::{self, Analysed};
use crate::plan::fragment::{Digest, Fragment, Sharing, shared_name};
use crate::plan::{Settings, literal};

/// The schedule of a shared stage, as in the catalog.
const SCHEDULE: &str = "shared";

/// Rows `c` of the catalog that are the current role's.
const OURS: &str = "pg_catalog.pg_get_userbyid(c.owner) = current_user";

/// An SQL array of digests.
pub(super) fn array<'a>(digests: impl Iterator<Item = &'a Digest>) -> String {
    let list: Vec<_> = digests.map(|digest| literal(&digest.0)).collect();
    format!("ARRAY[{}]::pg_catalog.text[]", list.join(", "))
}

/// The condition that shared stage `p` of the catalog may be read by more than now.
const SOUND: &str = "p.shares IS NOT NULL AND pg_catalog.pg_get_userbyid(p.owner) = current_user AND p.status = 'active'
    AND p.effective_mode = 'incremental' AND EXISTS (SELECT FROM pg_catalog.pg_class k
        JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace WHERE k.oid = p.relid AND k.relowner = p.owner
        AND n.nspname = 'pgtrickle' AND k.relname = pg_catalog.concat('shared_', p.id))";

/// [`SOUND`] shared stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which<'a> {
    /// Also those that have no data yet: they are filled before those that are created over them.
    All,
    /// Those that have data, but for the one that this is itself.
    Filled { but: Option<&'a Digest> },
}

/// The current role's shared stages, for a stream table of these settings.
///
/// # Errors
/// Those of the server.
pub(super) async fn available<C: Conn>(
    c: &mut C,
    settings: &Settings,
    mode: Mode,
    which: Which<'_>,
) -> Result<Sharing, Error> {
    let filled = if which == Which::All {
        ""
    } else {
        "AND p.last_refresh IS NOT NULL"
    };
    // Of several that are the same, made at once, everybody takes the first.
    let sql = format!(
        "SELECT p.shares, pg_catalog.min(p.id) FROM pgtrickle.catalog p WHERE {SOUND} {filled} GROUP BY p.shares"
    );
    let rows = c.query(&sql).await?;
    let tables = rows
        .iter()
        .filter_map(|row| Some((Digest(row.text(0)?.to_owned()), row.int(1)?)));
    let is_meant = |digest: &Digest| match which {
        Which::All => true,
        Which::Filled { but } => but != Some(digest),
    };
    let tables: BTreeMap<_, _> = tables.filter(|(digest, _)| is_meant(digest)).collect();
    Ok(Sharing::new(settings, mode.as_str(), tables))
}

/// Keeps others from dropping these shared stages until the end of the transaction. Returns one that is gone, or being refreshed for
/// longer than `lock_timeout`, as when it is filled.
///
/// # Errors
/// Those of the server.
async fn hold<C: Conn>(c: &mut C, ids: &[i64]) -> Result<Option<i64>, Error> {
    for &id in ids {
        c.query("SAVEPOINT pgtrickle_hold").await?;
        let sql = format!("SELECT 1 FROM pgtrickle.catalog WHERE id = {id} FOR KEY SHARE");
        let held = match c.query(&sql).await {
            Ok(rows) => !rows.is_empty(),
            Err(Error::LockNotAvailable(_)) => {
                c.query("ROLLBACK TO SAVEPOINT pgtrickle_hold").await?;
                false
            }
            Err(error) => return Err(error),
        };
        c.query("RELEASE SAVEPOINT pgtrickle_hold").await?;
        if !held {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// An analysis that reads only such shared stages as compute what the query has in their place; and whether it took more than one,
/// after each of which but the last the hidden tables were dropped. Others are refused in `sharing`. Those that are read, other than
/// `known` ones, are kept from being dropped until the end of the transaction; one that is busy is not read this time.
///
/// # Errors
/// As [`analyse::analyse`].
pub(super) async fn analysed<C: Conn>(
    c: &mut C,
    (id, view): (i64, u32),
    settings: &Settings,
    full: Option<&str>,
    sharing: &mut Sharing,
    known: &[i64],
) -> Result<(Analysed, bool), Error> {
    let mut again = false;
    loop {
        let Some(mut analysed) = attempt(c, (id, view), settings, full, sharing).await? else {
            sharing.clear();
            continue;
        };
        let shared: Vec<_> = analysed.plan.shared().collect();
        let new = shared.iter().copied().filter(|id| !known.contains(id));
        let busy = hold(c, &new.collect::<Vec<_>>()).await?;
        let mut wrong = Vec::new();
        if busy.is_none() {
            for shared in shared {
                if !means_the_same(c, shared, &analysed).await? {
                    wrong.push(shared);
                }
            }
            if wrong.is_empty() {
                // Else they would be offered again and again.
                let fragments = &mut analysed.fragments;
                fragments.retain(|part| !sharing.has_refused(&part.digest));
                return Ok((analysed, again));
            }
        }
        stages::drop_all(c, id, &analysed.plan).await?;
        // As while it is filled. It is offered again.
        sharing.set_aside(&Vec::from_iter(busy));
        sharing.refuse(&wrong);
        again = true;
    }
}

/// One analysis. `None`: a shared stage has been dropped meanwhile.
async fn attempt<C: Conn>(
    c: &mut C,
    (id, view): (i64, u32),
    settings: &Settings,
    full: Option<&str>,
    sharing: &Sharing,
) -> Result<Option<Analysed>, Error> {
    let full = full.map(str::to_owned);
    let analyse = analyse::analyse::<C>;
    if sharing.is_empty() {
        return analyse(c, id, view, settings.clone(), full, sharing)
            .await
            .map(Some);
    }
    c.query("SAVEPOINT pgtrickle_analyse").await?;
    let outcome = match analyse(c, id, view, settings.clone(), full, sharing).await {
        Ok(analysed) => Some(analysed),
        Err(Error::Internal(_)) => None,
        // The latter where it goes while it is looked at.
        Err(Error::Server(fields)) if matches!(fields.code.as_str(), "42P01" | "XX000") => None,
        Err(error) => return Err(error),
    };
    if outcome.is_none() {
        c.query("ROLLBACK TO SAVEPOINT pgtrickle_analyse").await?;
    }
    c.query("RELEASE SAVEPOINT pgtrickle_analyse").await?;
    Ok(outcome)
}

/// [`analysed`] that also makes shared stages of what others compute alike, in a transaction that ends with it. `own` is what the stream
/// table itself is shared as.
///
/// # Errors
/// As [`analysed`].
pub(super) async fn planned<C: Conn>(
    c: &mut C,
    place: (i64, u32),
    settings: &Settings,
    mode: Mode,
    sharing: &mut Sharing,
    known: &[i64],
    own: Option<&Digest>,
) -> Result<(Analysed, bool), Error> {
    let full = mode.full_reason();
    let full = full.as_deref();
    let (mut plan, again) = analysed(c, place, settings, full, sharing, known).await?;
    plan.fragments.retain(|part| Some(&part.digest) != own);
    if !make(c, place.0, &plan, mode, sharing).await? {
        return Ok((plan, again));
    }
    stages::drop_all(c, place.0, &plan.plan).await?;
    let (plan, _) = analysed(c, place, settings, full, sharing, known).await?;
    Ok((plan, true))
}

/// Whether a shared stage has its meaning from the same tables and functions as the query in which its text was found. Its view
/// follows them by whatever name they go; the query has them by those of this moment. So the view must still read as its text.
async fn means_the_same<C: Conn>(c: &mut C, id: i64, of: &Analysed) -> Result<bool, Error> {
    let stage = match record::read(c, StreamTableId(id)).await {
        Ok(stage) => stage,
        Err(Error::Refused(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    let text = match analyse::view_text(c, stage.view).await {
        Ok(text) => text,
        Err(Error::Drift(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    let is_read = |relid| of.plan.tables.iter().any(|table| table.relid == relid);
    let mut own = stage
        .plan
        .tables
        .iter()
        .filter(|table| table.shared.is_none());
    let functions = &of.plan.functions;
    Ok(text == stage.plan.canonical
        && own.all(|table| is_read(table.relid))
        && stage.plan.functions.iter().all(|f| functions.contains(f)))
}

/// Makes shared stages of what stream table `id` has in common with others that compute it for themselves, and returns whether there
/// are any. They are added to `sharing`.
async fn make<C: Conn>(
    c: &mut C,
    id: i64,
    analysed: &Analysed,
    mode: Mode,
    sharing: &mut Sharing,
) -> Result<bool, Error> {
    let fragments = &analysed.fragments;
    if fragments.is_empty() {
        return Ok(false);
    }
    let digests = array(fragments.iter().map(|fragment| &fragment.digest));
    let sql = format!(
        "SELECT DISTINCT f FROM pgtrickle.catalog c, pg_catalog.unnest(c.fragments) f
         WHERE {OURS} AND c.id <> {id} AND c.fragments && {digests} AND f = ANY ({digests}) AND {UNSHARED}"
    );
    let rows = c.query(&sql).await?;
    let found: Vec<_> = rows.iter().filter_map(|row| row.text(0)).collect();
    let mut made = Vec::new();
    // The largest first: what they are made of is shared with them.
    let mut end = fragments.len();
    for (i, fragment) in fragments.iter().enumerate().rev() {
        let is_new = !made.contains(&&fragment.digest);
        if i < end && is_new && found.contains(&fragment.digest.0.as_str()) {
            let settings = &analysed.plan.settings;
            match shared_stage(c, fragment, settings, mode).await? {
                Some(id) => {
                    sharing.add(&fragment.digest, id);
                    made.push(&fragment.digest);
                    end = fragment.parts;
                }
                None => sharing.refuse_fragment(&fragment.digest),
            }
        }
    }
    Ok(!made.is_empty())
}

/// The condition that the current role has no shared stage of fragment `f`, be it sound or not.
const UNSHARED: &str = "NOT EXISTS (SELECT FROM pgtrickle.catalog p WHERE p.shares = f
    AND pg_catalog.pg_get_userbyid(p.owner) = current_user)";

/// Makes a shared stage. `None`: that is not possible.
async fn shared_stage<C: Conn>(
    c: &mut C,
    fragment: &Fragment,
    settings: &Settings,
    mode: Mode,
) -> Result<Option<i64>, Error> {
    c.query("SAVEPOINT pgtrickle_share").await?;
    // Boxed, as what it reads may be shared too; that is not made here.
    let made = match Box::pin(defined(c, fragment, settings, mode)).await {
        Err(error) if error.is_transient() || error.is_the_servers() => return Err(error),
        Err(error) => {
            log::debug!("stream tables: a stage is not shared: {error}");
            None
        }
        Ok(made) => made,
    };
    if made.is_none() {
        c.query("ROLLBACK TO SAVEPOINT pgtrickle_share").await?;
    }
    c.query("RELEASE SAVEPOINT pgtrickle_share").await?;
    Ok(made)
}

async fn defined<C: Conn>(
    c: &mut C,
    fragment: &Fragment,
    settings: &Settings,
    mode: Mode,
) -> Result<Option<i64>, Error> {
    let id = catalog::next_id(c).await?;
    let columns: Vec<_> = (1..=fragment.columns).map(|i| format!("c{i}")).collect();
    c.query(&format!(
        "CREATE VIEW pgtrickle.def_{id} ({}) AS {}",
        columns.join(", "),
        fragment.sql
    ))
    .await?;
    let view = catalog::regclass(c, &format!("pgtrickle.def_{id}")).await?;
    let mut sharing = available(c, settings, mode, Which::All).await?;
    let (analysed, _) = analysed(c, (id, view), settings, None, &mut sharing, &[]).await?;
    // Should its text read otherwise as a query of its own, it would not be found again after a change of the sources.
    if analysed.whole.as_ref() != Some(&fragment.digest) {
        return Ok(None);
    }
    let Analysed {
        mut plan,
        mut fragments,
        ..
    } = analysed;
    fragments.retain(|part| part.digest != fragment.digest);
    define::make_tables(c, id, &plan).await?;
    let name = shared_name(id);
    let row = NewRow {
        id,
        schema: "pgtrickle",
        name: &name,
        view,
        schedule: SCHEDULE,
        refresh_mode: mode,
        status: "active",
        with_data: true,
        shares: Some(&fragment.digest),
    };
    row.insert(c).await?;
    let target = Target {
        name: format!("pgtrickle.{name}"),
        columns,
    };
    c.batch(&[
        format!(
            "CREATE TABLE {} AS SELECT * FROM pgtrickle.def_{id} WITH NO DATA",
            target.name
        ),
        // A publication FOR ALL TABLES needs it to let us delete.
        format!("ALTER TABLE {} REPLICA IDENTITY FULL", target.name),
    ])
    .await?;
    let index = apply::index(&plan.body, &plan.columns, &target);
    c.batch(&Vec::from_iter(index)).await?;
    let relid = catalog::regclass(c, &target.name).await?;
    c.query(&format!(
        "UPDATE pgtrickle.catalog SET relid = {relid}, rebuild = 'it had no data yet' WHERE id = {id}"
    ))
    .await?;
    capture::attach(c, id, &mut plan).await?;
    define::make_staging(c, id, &plan).await?;
    define::save_plan(c, StreamTableId(id), view, &plan, &fragments).await?;
    Ok(Some(id))
}

/// Has those that compute for themselves what there is a shared stage of planned anew by their next refresh; and one that has a
/// fragment in common with another, to make one of it. What somebody is busy with is left for the next time.
///
/// # Errors
/// Those of the server.
pub(super) async fn offer<C: Conn>(c: &mut C) -> Result<(), Error> {
    // What the plan is made of is found by `available` then, and so is not a fragment any more.
    let sql = format!(
        "UPDATE pgtrickle.catalog c SET fingerprint = '' WHERE c.id IN (
            SELECT c.id FROM pgtrickle.catalog c WHERE {OURS} AND c.fingerprint <> '' AND (c.fragments && (
                SELECT pg_catalog.array_agg(free.shares) FROM (SELECT p.shares FROM pgtrickle.catalog p
                    WHERE {SOUND} AND p.last_refresh IS NOT NULL FOR KEY SHARE SKIP LOCKED) free)
             OR c.id = (SELECT (pg_catalog.array_agg(DISTINCT c.id ORDER BY c.id))[2]
                FROM pgtrickle.catalog c, pg_catalog.unnest(c.fragments) f
                WHERE {OURS} AND c.fingerprint <> '' AND c.last_refresh IS NOT NULL AND {UNSHARED}
                GROUP BY f HAVING pg_catalog.count(DISTINCT c.id) > 1 LIMIT 1))
            FOR UPDATE SKIP LOCKED)"
    );
    c.query(&sql).await.map(|_| ())
}

/// Drops those of these shared stages that nobody reads any more, and those that only they have read. Returns the buffers they have
/// read. One that somebody is busy with is left for the clean-up.
///
/// # Errors
/// Those of the server.
pub(super) async fn release<C: Conn>(c: &mut C, ids: Vec<i64>) -> Result<Vec<i64>, Error> {
    let mut buffers = Vec::new();
    let mut candidates = ids;
    if candidates.is_empty() || !capture::sees_others(c).await? {
        // Who reads them now would not be seen.
        return Ok(buffers);
    }
    while let Some(id) = candidates.pop() {
        // A superuser may drop what others own.
        let condition = format!("c.id = {id} AND pg_catalog.pg_has_role(c.owner, 'USAGE')");
        if unread(c, &condition).await?.is_empty() {
            continue;
        }
        // Whoever is about to read it has locked it: only with the lock it is certain. Not before, as the lock keeps it from being
        // refreshed.
        let lock =
            format!("SELECT 1 FROM pgtrickle.catalog WHERE id = {id} FOR UPDATE SKIP LOCKED");
        if c.query(&lock).await?.is_empty() || unread(c, &condition).await?.is_empty() {
            continue;
        }
        let record = record::read(c, StreamTableId(id)).await?;
        remove::remove(c, &record, false).await?;
        buffers.extend(record.plan.tables.iter().filter_map(|table| table.buffer));
        candidates.extend(record.plan.shared());
    }
    Ok(buffers)
}

/// Sees to it that the current role's shared stages are read by all that can, and drops those that nobody reads. Returns the buffers
/// they have read.
///
/// # Errors
/// Those of the server.
pub(super) async fn tidy<C: Conn>(c: &mut C) -> Result<Vec<i64>, Error> {
    offer(c).await?;
    let unread = unread(c, OURS).await?;
    release(c, unread).await
}

/// Shared stages that nobody reads.
async fn unread<C: Conn>(c: &mut C, condition: &str) -> Result<Vec<i64>, Error> {
    let sql = format!(
        "SELECT c.id FROM pgtrickle.catalog c WHERE c.shares IS NOT NULL AND {condition}
            AND NOT EXISTS (SELECT FROM pgtrickle.source s WHERE s.relid = c.relid)
         ORDER BY c.id"
    );
    let rows = c.query(&sql).await?;
    Ok(rows.iter().filter_map(|row| row.int(0)).collect())
}
