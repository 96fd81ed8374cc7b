//! Stream tables that read one another: refreshed in one transaction and one snapshot, in the order in which they read.
//!
//! So each is its query over the tables below, and not only over what the stream tables between held. A change that
//! one of them takes in changes its table, which is captured like any other write, and those that read it see it by
//! [`Place::Among`](super::conclude::Place::Among).

use std::time::{Duration, Instant};

use super::memory::Memory;
use super::pending::pending_within;
use super::record::{self, Record, Seen};
use super::refresh::{
    Attempt, Trouble, Work, gone_is_drift, in_transaction, may_be_ours, refresh_among, remember,
    rollback,
};
use super::{How, Isolation, RefreshOutcome, StreamTableId, cycle, load, replan, settings, share};
use crate::conn::{Conn, Error, Statement};

/// What a common refresh did with one of the stream tables.
#[derive(Debug)]
pub struct Refreshed {
    pub id: StreamTableId,
    pub took: Duration,
    pub result: Result<RefreshOutcome, Error>,
}

/// Brings stream tables of one owner up to date together: those that have changes waiting or must be rebuilt, those that
/// can only be recomputed as a whole, and those that read what these change. One that fails is left as it is, and those that
/// read it go on. Those that read one that somebody else is busy with are left out of the answer: they are not refreshed
/// before that one is.
///
/// # Errors
/// [`Error::Conflict`], and those of the server as a whole: all of it again a little later.
pub async fn refresh_together<C: Conn>(
    c: &mut C,
    memory: &Memory,
    ids: &[StreamTableId],
) -> Result<Vec<Refreshed>, Error> {
    let mut members = Vec::new();
    let mut unread = Vec::new();
    let mut awaited = Vec::new();
    for &id in ids {
        match member(c, memory, id).await {
            Ok(member) => members.push(member),
            Err(error) if is_of_all(&error) => return Err(error),
            Err(error) => {
                if error.is_transient() {
                    awaited.extend(table(c, id).await?);
                }
                unread.push(Refreshed {
                    id,
                    took: Duration::ZERO,
                    result: Err(error),
                });
            }
        }
    }
    for member in &mut members {
        let mut tables = member.work.record.plan.tables.iter();
        member.held_back = tables.any(|table| awaited.contains(&table.relid));
    }
    let mut done = refresh_all(c, memory, members).await?;
    done.append(&mut unread);
    // Shared stages that have come along are nobody's business.
    done.retain(|refreshed| ids.contains(&refreshed.id));
    Ok(done)
}

/// Adds the shared stages that they read: without these they would not be their queries.
async fn add_shared<C: Conn>(
    c: &mut C,
    memory: &Memory,
    members: &mut Vec<Member>,
) -> Result<(), Error> {
    let mut next = 0;
    while next < members.len() {
        let reader = &members[next];
        let shared = reader
            .work
            .record
            .plan
            .shared()
            .filter(|_| !reader.is_out());
        let shared: Vec<_> = shared.collect();
        for id in shared.into_iter().map(StreamTableId) {
            if members.iter().any(|member| member.work.record.id == id) {
                continue;
            }
            match member(c, memory, id).await {
                Ok(member) => members.push(member),
                // It is gone: that shows in the fingerprint.
                Err(Error::Refused(_)) => {}
                Err(error) if is_of_all(&error) => return Err(error),
                Err(error) if error.is_transient() => members[next].held_back = true,
                Err(error) => members[next].error = Some(error),
            }
        }
        next += 1;
    }
    Ok(())
}

/// A stream table's table.
async fn table<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Option<u32>, Error> {
    let sql = "SELECT relid::bigint FROM pgtrickle.catalog WHERE id = $1::bigint";
    let rows = c.query_kept(sql.to_owned(), vec![id.to_string()]).await?;
    let relid = rows.first().and_then(|row| row.int(0));
    Ok(relid.and_then(|relid| u32::try_from(relid).ok()))
}

/// Brings one up to date with those that it reads.
///
/// # Errors
/// As [`super::refresh()`].
pub(super) async fn refresh_with_sources<C: Conn>(
    c: &mut C,
    memory: &Memory,
    record: Record,
    how: How,
) -> Result<RefreshOutcome, Error> {
    let id = record.id;
    let mut members = Vec::new();
    for source in sources(c, id).await? {
        members.push(member(c, memory, source).await?);
    }
    members.push(Member::new(Work::new(record, how), false));
    if how == How::Full {
        add_shared(c, memory, &mut members).await?;
        // They are a part of it.
        let shared = members.iter_mut().map(|member| &mut member.work);
        for work in shared.filter(|work| work.record.shares.is_some()) {
            *work = Work::new(work.record.clone(), how);
        }
    }
    let done = refresh_all(c, memory, members).await?;
    let own = done.into_iter().find(|refreshed| refreshed.id == id);
    own.map_or(Err(Error::Busy), |refreshed| refreshed.result)
}

/// [`super::load`] of a stream table that reads others, in a transaction of its own in which these are refreshed before.
/// False: it reads none.
///
/// # Errors
/// As [`super::refresh()`].
pub async fn load_with_sources<C: Conn>(
    c: &mut C,
    memory: &Memory,
    id: StreamTableId,
) -> Result<bool, Error> {
    let record = record::read(c, id).await?;
    if !record.reads_others {
        return Ok(false);
    }
    if record.relid.is_none() {
        let reads_shared = record.plan.reads_shared();
        refresh_with_sources(c, memory, record, How::Auto).await?;
        if reads_shared && let Err(error) = share::offer(c).await {
            // The clean-up does it again.
            log::debug!("stream tables: a shared stage is not offered to others: {error}");
        }
    }
    Ok(true)
}

/// The stream tables of the same owner that one reads, directly or by way of others, without the manual and the suspended.
async fn sources<C: Conn>(c: &mut C, id: StreamTableId) -> Result<Vec<StreamTableId>, Error> {
    let sql = "WITH RECURSIVE read(id) AS (SELECT $1::bigint UNION
            SELECT o.id FROM read JOIN pgtrickle.source s ON s.stream_table = read.id
            JOIN pgtrickle.catalog o ON o.relid = s.relid
            WHERE pg_catalog.pg_get_userbyid(o.owner) = current_user AND o.status IN ('active', 'error')
                AND o.schedule <> 'manual' AND o.last_refresh IS NOT NULL AND o.shares IS NULL
                OR pg_catalog.pg_get_userbyid(o.owner) = current_user AND o.shares IS NOT NULL)
         SELECT id FROM read WHERE id <> $1::bigint ORDER BY id";
    let rows = c.query_kept(sql.to_owned(), vec![id.to_string()]).await?;
    Ok(rows
        .iter()
        .filter_map(|r| r.int(0))
        .map(StreamTableId)
        .collect())
}

struct Member {
    work: Work,
    /// Nothing but changes in its buffers is a reason to refresh it.
    remembered: bool,
    /// Why it is not refreshed this time.
    error: Option<Error>,
    /// Not before one that it reads.
    held_back: bool,
    took: Duration,
    outcome: RefreshOutcome,
    seen: Option<Box<Seen>>,
}

async fn member<C: Conn>(c: &mut C, memory: &Memory, id: StreamTableId) -> Result<Member, Error> {
    Ok(match memory.take(id) {
        Some(record) => Member::new(Work::new(record, How::Auto), true),
        None => Member::new(
            Work::new(record::read_briefly(c, id).await?, How::Auto),
            false,
        ),
    })
}

impl Member {
    fn new(mut work: Work, remembered: bool) -> Self {
        if work.record.relid.is_none() {
            work.demand = Some("it has no data yet");
        }
        Self {
            work,
            remembered,
            error: None,
            held_back: false,
            took: Duration::ZERO,
            outcome: RefreshOutcome::nothing(),
            seen: None,
        }
    }

    /// Reads its row anew, now that it is locked, if that is not of this version any more: somebody else has refreshed it.
    async fn catch_up<C: Conn>(&mut self, c: &mut C, version: &str) -> Result<(), InTheWay> {
        if self.work.record.version == version {
            return Ok(());
        }
        self.remembered = false;
        let record = match record::read_sized(c, self.work.record.id).await {
            Ok(record) => record,
            Err(error) if is_of_all(&error) => return Err(InTheWay::OfAll(error)),
            // Dropped, say: that shows elsewhere.
            Err(_) => return Err(InTheWay::Contended),
        };
        let old = std::mem::replace(&mut self.work.record, record);
        // Else others would have to be locked, or it may have another place in the order.
        let now = &self.work.record;
        if old.relid == now.relid && old.locks() == now.locks() {
            Ok(())
        } else {
            Err(InTheWay::Contended)
        }
    }

    /// Sees to it that the next attempt may succeed, or goes without it.
    async fn remedy<C: Conn>(&mut self, c: &mut C, trouble: Trouble) -> Result<(), Error> {
        self.remembered = false;
        let remedied = match trouble {
            // Not as remembered, or as just read.
            Trouble::Error(Error::Busy) => {
                let read = record::read_briefly(c, self.work.record.id).await;
                read.map(|record| self.work.record = record)
            }
            trouble => self.work.remedy(c, trouble).await,
        };
        match remedied {
            Err(error) if is_of_all(&error) => Err(error),
            remedied => {
                self.error = remedied.err();
                Ok(())
            }
        }
    }

    /// Whether it is refreshed only if changes wait for it.
    fn awaits_changes(&self) -> bool {
        let Work { record, demand, .. } = &self.work;
        self.remembered && demand.is_none() && record.frontier.is_some() && !record.plan.is_full()
    }

    fn is_out(&self) -> bool {
        self.held_back || self.error.is_some()
    }

    /// Whether those that read it have to wait for it.
    fn is_awaited(&self) -> bool {
        self.held_back || self.error.as_ref().is_some_and(Error::is_transient)
    }

    fn reads(&self, other: &Self) -> bool {
        let tables = &self.work.record.plan.tables;
        other
            .work
            .record
            .relid
            .is_some_and(|relid| tables.iter().any(|table| table.relid == relid))
    }
}

/// What has kept an attempt from its end.
enum InTheWay {
    /// Of this member.
    Of(usize, Trouble),
    OfAll(Error),
    /// Somebody else has begun with some of them at the same time.
    Contended,
}

/// How often to begin anew before going on without those that somebody else has locked.
const PATIENCE: u32 = 4;

async fn refresh_all<C: Conn>(
    c: &mut C,
    memory: &Memory,
    mut members: Vec<Member>,
) -> Result<Vec<Refreshed>, Error> {
    let mut patience = PATIENCE;
    loop {
        // One that has been planned anew may read others now.
        add_shared(c, memory, &mut members).await?;
        put_in_order(&mut members);
        let Err(obstacle) = transaction(c, &mut members, patience > 0).await else {
            break;
        };
        rollback(c).await;
        match obstacle {
            InTheWay::Of(_, Trouble::Error(error)) if is_of_session(&error) => return Err(error),
            InTheWay::Of(i, trouble) => {
                if matches!(trouble, Trouble::Error(Error::Busy)) {
                    patience = patience.checked_sub(1).ok_or(Error::Busy)?;
                }
                members[i].remedy(c, trouble).await?;
                go_without(c, &mut members, i).await?;
            }
            InTheWay::OfAll(error) if is_of_all(&error) => return Err(error),
            // Whoever is the cause meets it again in his own refresh.
            InTheWay::OfAll(_) if members.iter().any(|member| member.remembered) => {
                members
                    .iter_mut()
                    .for_each(|member| member.remembered = false);
            }
            InTheWay::OfAll(error) => return Err(error),
            InTheWay::Contended => {
                patience = patience.checked_sub(1).ok_or(Error::Busy)?;
                let pause = "SELECT pg_catalog.pg_sleep(0.002 + 0.02 * pg_catalog.random())";
                c.query(pause).await?;
            }
        }
    }
    let answered = members.into_iter().filter(|member| !member.held_back);
    Ok(answered.map(|member| done(memory, member)).collect())
}

/// If this is a shared stage that has failed, those that read it compute the same for themselves from now on: it may be that
/// PostgreSQL does not compute what fails, or then it is they that fail.
async fn go_without<C: Conn>(
    c: &mut C,
    members: &mut [Member],
    failed: usize,
) -> Result<(), Error> {
    let shared = &members[failed];
    let failed_id = shared.work.record.id.0;
    if shared.work.record.shares.is_none() || shared.is_awaited() {
        return Ok(());
    }
    let Some(error) = shared.error.clone() else {
        return Ok(());
    };
    // Cancelled, say: nothing is known of the query.
    let of_others = matches!(&error, Error::Server(fields) if !may_be_ours(&fields.code))
        || matches!(&error, Error::Drift(_));
    let of_others = of_others.then_some(error);
    for i in 0..members.len() {
        if members[i].is_out() || !members[i].reads(&members[failed]) {
            continue;
        }
        if of_others.is_some() {
            members[i].error.clone_from(&of_others);
            continue;
        }
        let id = members[i].work.record.id;
        let planned = in_transaction(c, async |c| replan::unshare(c, id, &[failed_id]).await).await;
        let read = match planned {
            Ok(()) => record::read_briefly(c, id).await,
            Err(error) => {
                rollback(c).await;
                Err(error)
            }
        };
        match read {
            Ok(record) => {
                members[i].work.record = record;
                members[i].remembered = false;
            }
            Err(error) if is_of_all(&error) => return Err(error),
            Err(error) => members[i].error = Some(error),
        }
    }
    Ok(())
}

/// Whether nobody could go on after it. What the server lacks for one of them (memory, say) it may have for the others.
fn is_of_session(error: &Error) -> bool {
    let classes = ["08", "57P"];
    matches!(error, Error::Conflict(_))
        || classes.iter().any(|class| error.code().starts_with(class))
}

/// Whether no member is to blame.
fn is_of_all(error: &Error) -> bool {
    error.is_the_servers() || matches!(error, Error::Conflict(_))
}

/// After the commit.
fn done(memory: &Memory, member: Member) -> Refreshed {
    let mut record = member.work.record;
    let id = record.id;
    let result = match member.error {
        Some(error) => Err(error),
        None => {
            record.saw(member.seen);
            remember(memory, record, None, &member.outcome);
            Ok(member.outcome)
        }
    };
    Refreshed {
        id,
        took: member.took,
        result,
    }
}

/// Each after those that it reads. Those that read themselves, by way of others, fail.
fn put_in_order(members: &mut Vec<Member>) {
    let mut rest = std::mem::take(members);
    rest.sort_by_key(|member| member.work.record.id);
    while !rest.is_empty() {
        let first = (0..rest.len()).find(|&i| !rest.iter().any(|other| rest[i].reads(other)));
        match first {
            Some(first) => members.push(rest.remove(first)),
            None => {
                let path = circle(&rest);
                let name = |&i: &usize| rest[i].work.record.shown_name();
                let names: Vec<_> = path.iter().map(name).collect();
                for i in path {
                    rest[i].error = Some(cycle::error(&names));
                }
                // Any order will do for what is left.
                members.append(&mut rest);
            }
        }
    }
}

/// Members each of which reads the next, and the last the first. Each of them all reads another.
fn circle(members: &[Member]) -> Vec<usize> {
    let mut path = vec![0];
    loop {
        let last = path[path.len() - 1];
        let next = (0..members.len()).find(|&i| members[last].reads(&members[i]));
        let Some(next) = next else {
            return path;
        };
        if let Some(begin) = path.iter().position(|&i| i == next) {
            return path.split_off(begin);
        }
        path.push(next);
    }
}

/// One attempt. `patient`: rather none of them than without those that somebody else has locked.
async fn transaction<C: Conn>(
    c: &mut C,
    members: &mut [Member],
    patient: bool,
) -> Result<(), InTheWay> {
    for member in members.iter_mut() {
        member.outcome = RefreshOutcome::nothing();
        member.seen = None;
    }
    hold_back(members);
    let active: Vec<_> = (0..members.len())
        .filter(|&i| !members[i].is_out())
        .collect();
    let Some(&first) = active.first() else {
        return Ok(());
    };
    lock_sources(c, members, &active).await?;
    // The path of our SQL. The snapshot of it all is that of this statement.
    let settings = settings::of_refresh(&members[first].work.record.plan.settings, None, false);
    c.query_kept(settings, Vec::new())
        .await
        .map_err(InTheWay::OfAll)?;
    let due = due(c, members, &active).await?;
    take_turn(c, members, &due, patient).await?;
    for i in 0..members.len() {
        let read = &members[..i];
        let has_work = due[i]
            || read
                .iter()
                .any(|other| other.outcome.changed && members[i].reads(other));
        if has_work && !members[i].is_out() {
            let started = Instant::now();
            let refreshed = one(c, &mut members[i]).await;
            refreshed.map_err(|trouble| InTheWay::Of(i, trouble))?;
            members[i].took = started.elapsed();
        }
    }
    c.query("COMMIT").await.map_err(InTheWay::OfAll)?;
    Ok(())
}

/// Those that read one that cannot be refreshed now wait for it.
fn hold_back(members: &mut [Member]) {
    for i in 0..members.len() {
        let read = &members[..i];
        let waits = read
            .iter()
            .any(|other| other.is_awaited() && members[i].reads(other));
        members[i].held_back |= waits && members[i].error.is_none();
    }
}

/// Begins the transaction. Nothing in it takes a snapshot.
async fn lock_sources<C: Conn>(
    c: &mut C,
    members: &[Member],
    active: &[usize],
) -> Result<(), InTheWay> {
    let statements = |of: &[usize]| -> Vec<_> {
        let locks = of.iter().flat_map(|&i| members[i].work.record.locks());
        let plain = settings::begin().into_iter().chain(locks);
        plain.map(|sql| Statement::kept(sql, Vec::new())).collect()
    };
    let Err(error) = c.run(&statements(active)).await else {
        return Ok(());
    };
    if !is_of_all(&error) {
        // Whose is it?
        for &i in active {
            rollback(c).await;
            if let Err(error) = c.run(&statements(&[i])).await {
                return Err(InTheWay::Of(i, Trouble::Error(gone_is_drift(error))));
            }
        }
    }
    Err(InTheWay::OfAll(error))
}

/// Which of them are to be refreshed for a reason of their own.
async fn due<C: Conn>(
    c: &mut C,
    members: &[Member],
    active: &[usize],
) -> Result<Vec<bool>, InTheWay> {
    let asked: Vec<_> = active
        .iter()
        .filter(|&&i| members[i].awaits_changes())
        .map(|&i| members[i].work.record.id)
        .collect();
    let found = pending_within(c, &asked).await.map_err(InTheWay::OfAll)?;
    let mut due = vec![false; members.len()];
    for &i in active {
        due[i] = !members[i].awaits_changes() || found.contains(&members[i].work.record.id);
    }
    Ok(due)
}

/// Locks the rows of those that are due, and of all that read them, at once: of several sessions that want the same, one gets
/// them all.
async fn take_turn<C: Conn>(
    c: &mut C,
    members: &mut [Member],
    due: &[bool],
    patient: bool,
) -> Result<(), InTheWay> {
    let mut wanted = due.to_vec();
    for i in 0..members.len() {
        wanted[i] |=
            !members[i].is_out() && (0..i).any(|j| wanted[j] && members[i].reads(&members[j]));
    }
    let wanted: Vec<_> = (0..members.len()).filter(|&i| wanted[i]).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let ids = wanted
        .iter()
        .map(|&i| members[i].work.record.id.to_string());
    let ids = ids.collect::<Vec<_>>().join(",");
    let sql = "SELECT id, xmin::text FROM pgtrickle.catalog WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE SKIP LOCKED";
    let rows = c
        .query_kept(sql.to_owned(), vec![format!("{{{ids}}}")])
        .await
        .map_err(InTheWay::OfAll)?;
    if patient && !rows.is_empty() && rows.len() < wanted.len() {
        return Err(InTheWay::Contended);
    }
    for i in wanted {
        let id = members[i].work.record.id;
        match rows.iter().find(|row| row.int(0) == Some(id.0)) {
            Some(row) => {
                let version = row.text(1).unwrap_or_default();
                members[i].catch_up(c, version).await?;
            }
            None => members[i].error = Some(Error::Busy),
        }
    }
    hold_back(members);
    Ok(())
}

/// The refresh of one that is due, among those before it.
async fn one<C: Conn>(c: &mut C, member: &mut Member) -> Result<(), Trouble> {
    let Work { record, demand, .. } = &mut member.work;
    if record.relid.is_none() {
        let loaded = load::load(c, record.id, Isolation::Together).await;
        loaded.map_err(Trouble::Error)?;
        member.outcome = RefreshOutcome::loaded();
        return Ok(());
    }
    match refresh_among(c, record, *demand).await {
        Ok(Attempt::Done(outcome, seen)) => {
            member.outcome = outcome;
            member.seen = seen;
            Ok(())
        }
        Ok(Attempt::Nothing) => Ok(()),
        Ok(Attempt::Rebuild) => Err(Trouble::OtherRows),
        Err(error) => Err(Trouble::Error(error)),
    }
}
