//! The stream tables of an owner that hang together, because one reads the other: a task looks after them, and refreshes
//! them in one transaction. Most are alone. Groups know nothing of each other, so that a slow or failing one holds up nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::lane::Lane;
use super::pace;
use super::table::{self, Pace, Table};
use crate::conn::{Conn as _, Error};
use crate::engine::{self, How, Refreshed, StreamTableId};

pub(super) struct Group {
    members: Vec<Rc<Table>>,
    bell: Rc<Notify>,
}

/// Which of these hang together. `reads` gives, of each, those that it reads.
pub(super) fn groups(
    reads: &BTreeMap<StreamTableId, Vec<StreamTableId>>,
) -> BTreeSet<BTreeSet<StreamTableId>> {
    let mut neighbours: BTreeMap<_, Vec<_>> = reads.keys().map(|&id| (id, Vec::new())).collect();
    for (&id, read) in reads {
        for &read in read.iter().filter(|read| reads.contains_key(read)) {
            neighbours.entry(id).or_default().push(read);
            neighbours.entry(read).or_default().push(id);
        }
    }
    let mut groups = BTreeSet::new();
    while let Some((id, found)) = neighbours.pop_first() {
        let mut group = BTreeSet::from([id]);
        let mut open = found;
        while let Some(id) = open.pop() {
            if let Some(found) = neighbours.remove(&id) {
                group.insert(id);
                open.extend(found);
            }
        }
        groups.insert(group);
    }
    groups
}

impl Group {
    pub(super) fn new(members: Vec<Rc<Table>>) -> Self {
        let bell = Rc::default();
        for member in &members {
            member.join(&bell);
        }
        Self { members, bell }
    }

    /// Waits until there is something to do, and for whom.
    async fn ready(&self) -> Vec<Rc<Table>> {
        loop {
            let now = Instant::now();
            let times = self.members.iter().map(|table| (table.acts_at(now), table));
            let mut next = None;
            let mut ready = Vec::new();
            for (at, table) in times {
                match at {
                    Some(at) if at <= now => ready.push(Rc::clone(table)),
                    Some(at) => next = Some(next.map_or(at, |next: Instant| next.min(at))),
                    None => {}
                }
            }
            if !ready.is_empty() {
                return ready;
            }
            match next {
                Some(next) => {
                    tokio::select! {
                        () = self.bell.notified() => {}
                        () = tokio::time::sleep_until(next.into()) => {}
                    }
                }
                None => self.bell.notified().await,
            }
        }
    }

    /// Those to refresh when these are due: with all that are refreshed as often, or more often. So whatever a stream table
    /// shows of those it reads is of one moment, unless they are refreshed more seldom than itself.
    fn together(&self, due: &[Rc<Table>]) -> Vec<Rc<Table>> {
        let pace = due.iter().map(|table| self.pace(table)).max();
        let is_due = |table: &Rc<Table>| contains(due, table.id);
        let keeps_pace =
            |table: &Rc<Table>| table.keeps_company() && Some(self.pace(table)) <= pace;
        let waiting = self.waiting();
        let mut together: Vec<_> = self
            .members
            .iter()
            .filter(|table| is_due(table) || keeps_pace(table))
            .filter(|table| !contains(&waiting, table.id))
            .map(Rc::clone)
            .collect();
        // Shared stages whenever those that read them are.
        let mut next = 0;
        while let Some(reader) = together.get(next).map(Rc::clone) {
            let is_missing =
                |table: &&Rc<Table>| table.is_shared() && !contains(&together, table.id);
            let read = |table: &&Rc<Table>| reader.reads(table.id);
            let missing: Vec<_> = self
                .members
                .iter()
                .filter(is_missing)
                .filter(read)
                .collect();
            together.extend(missing.into_iter().map(Rc::clone));
            next += 1;
        }
        together
    }

    /// A live one that is slow does not keep the others waiting each time, where nobody reads it.
    fn pace(&self, table: &Table) -> Pace {
        match table.pace() {
            Pace::Live if table.is_slow() && !self.members.iter().any(|m| m.reads(table.id)) => {
                Pace::Slow
            }
            pace => pace,
        }
    }

    /// One that is slow and shares a stage with others does not hold these up for ever: nobody has asked for them to be refreshed
    /// together.
    async fn part_with(&self, table: &Table, lane: &Lane) {
        let is_read_by_others = |id| {
            self.members
                .iter()
                .any(|other| other.id != table.id && other.reads(id))
        };
        let shares = |stage: &Rc<Table>| {
            stage.is_shared() && table.reads(stage.id) && is_read_by_others(stage.id)
        };
        if !table.is_always_slow() || !self.members.iter().any(shares) {
            return;
        }
        let parted = lane.transaction(async |conn| {
            conn.query("SET LOCAL lock_timeout = '100ms'").await?;
            engine::go_alone(conn, table.id).await
        });
        if let Err(error) = parted.await {
            log::debug!("stream tables: a slow one still shares: {error}");
        }
    }

    /// Those that somebody else is busy with, until they are tried again, and those that read them.
    fn waiting(&self) -> Vec<Rc<Table>> {
        let is_awaited = |table: &&Rc<Table>| table.waits();
        let mut waiting: Vec<_> = self
            .members
            .iter()
            .filter(is_awaited)
            .map(Rc::clone)
            .collect();
        let mut next = 0;
        while let Some(awaited) = waiting.get(next).map(|table| table.id) {
            for table in self.members.iter().filter(|table| table.reads(awaited)) {
                if !contains(&waiting, table.id) {
                    waiting.push(Rc::clone(table));
                }
            }
            next += 1;
        }
        waiting
    }

    /// These have not been refreshed, as they read one that somebody else is busy with. They are when that is.
    fn hold_back(&self, tables: impl Iterator<Item = Rc<Table>>) {
        let waiting = self.members.iter().filter(|table| table.waits());
        let until = waiting.map(|table| table.left_alone_until()).max();
        for table in tables {
            table.wake();
            table.leave_alone_until(until.unwrap_or_else(Instant::now));
        }
    }

    /// A common refresh of these, each of which took so long, took `took` as a whole.
    fn rest(&self, refreshed: &[(Rc<Table>, Duration)], took: Duration) {
        let is_slow = |table: &Table| self.pace(table) == Pace::Slow;
        let slow = refreshed.iter().filter(|(table, _)| is_slow(table));
        let quick = took.saturating_sub(slow.map(|(_, own)| *own).sum());
        for (table, _) in refreshed {
            let took = if is_slow(table) { took } else { quick };
            table.leave_alone_for(pace::gap_after(took));
        }
    }

    fn set_running(&self, running: bool) {
        for member in &self.members {
            member.set_running(running);
        }
    }
}

/// Serves a group for ever.
pub(super) async fn serve(group: Group, lane: Rc<Lane>) {
    loop {
        let ready = group.ready().await;
        group.set_running(true);
        act(&group, &lane, ready).await;
        group.set_running(false);
        // Changes that came meanwhile: while it was busy it was not asked about.
        lane.wake();
    }
}

/// Does what is to be done.
async fn act(group: &Group, lane: &Rc<Lane>, ready: Vec<Rc<Table>>) {
    let mut due = Vec::new();
    for table in ready {
        let started = Instant::now();
        match table::prepare(&table, lane).await {
            Ok(true) => due.push(table),
            Ok(false) => table::rested(&table),
            Err(error) => table::failed(&table, lane, started.elapsed(), error).await,
        }
    }
    if due.is_empty() {
        return;
    }
    let tables = match group.members.len() {
        1 => due,
        _ => {
            let tables = group.together(&due);
            group.hold_back(due.into_iter().filter(|due| !contains(&tables, due.id)));
            tables
        }
    };
    if tables.is_empty() {
        return;
    }
    let started = Instant::now();
    let refreshed = refresh(group, lane, &tables).await;
    let took = started.elapsed();
    let refreshed = match refreshed {
        Ok(refreshed) => refreshed,
        Err(error) => {
            for table in &tables {
                table::failed(table, lane, took, error.clone()).await;
            }
            leave_alone_alike(tables.iter());
            return;
        }
    };
    let mut held_back = tables;
    let mut succeeded = Vec::new();
    for Refreshed {
        id,
        took: own,
        result,
    } in refreshed
    {
        let Some(i) = held_back.iter().position(|table| table.id == id) else {
            continue;
        };
        let table = held_back.swap_remove(i);
        match result {
            Ok(outcome) => {
                table::succeeded(&table, lane, started, own, outcome).await;
                group.part_with(&table, lane).await;
                succeeded.push((table, own));
            }
            Err(error) => table::failed(&table, lane, took, error).await,
        }
    }
    leave_alone_alike(group.members.iter().filter(|table| table.waits()));
    group.hold_back(held_back.into_iter());
    group.rest(&succeeded, took);
}

/// What had to be put off together is tried again together: one alone would run ahead.
fn leave_alone_alike<'a>(tables: impl Iterator<Item = &'a Rc<Table>> + Clone) {
    let until = tables.clone().map(|table| table.left_alone_until()).max();
    for table in tables {
        table.leave_alone_until(until.unwrap_or_else(Instant::now));
    }
}

fn contains(tables: &[Rc<Table>], id: StreamTableId) -> bool {
    tables.iter().any(|table| table.id == id)
}

async fn refresh(
    group: &Group,
    lane: &Rc<Lane>,
    tables: &[Rc<Table>],
) -> Result<Vec<Refreshed>, Error> {
    let _turn = match tables.iter().any(|table| table.is_slow()) {
        true => lane.slow.acquire().await.ok(),
        false => None,
    };
    let mut lease = lane.lease().await?;
    let own = lane.own_writes.begin();
    for table in tables {
        table.begin();
    }
    let started = Instant::now();
    let refreshed = match (group.members.as_slice(), tables) {
        ([_], [table]) => {
            let outcome = engine::refresh(&mut *lease, lane.memory(), table.id, How::Auto).await?;
            own.end();
            vec![Refreshed {
                id: table.id,
                took: started.elapsed(),
                result: Ok(outcome),
            }]
        }
        _ => {
            let ids: Vec<_> = tables.iter().map(|table| table.id).collect();
            let refreshed = engine::refresh_together(&mut *lease, lane.memory(), &ids).await?;
            // Where nothing was waiting no transaction id was used.
            let has_written = |refreshed: &Refreshed| {
                let result = refreshed.result.as_ref();
                result.is_ok_and(|outcome| outcome.mode != "none")
            };
            if refreshed.iter().any(has_written) {
                own.end();
            }
            refreshed
        }
    };
    lease.returned();
    Ok(refreshed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_connected_hangs_together() {
        let id = StreamTableId;
        let reads = [(2, 1), (3, 1), (4, 2), (4, 3), (6, 5), (8, 9), (10, 11)];
        let of = |n: i64| {
            reads
                .iter()
                .filter(move |(a, _)| *a == n)
                .map(|(_, b)| id(*b))
        };
        // 11 is not among them.
        let all = (1..=10).map(|n| (id(n), of(n).collect())).collect();
        let expected: BTreeSet<BTreeSet<_>> = [&[1, 2, 3, 4][..], &[5, 6], &[7], &[8, 9], &[10]]
            .into_iter()
            .map(|group| group.iter().copied().map(id).collect())
            .collect();
        assert_eq!(groups(&all), expected);
    }
}
