//! One database: which stream tables it has, and who looks after them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgcat::plugins::PoolHandle;

use super::board::Notes;
use super::clients::Clients;
use super::lane::{Lane, LaneHandle};
use super::own_writes::OwnWrites;
use super::signal::Signal;
use crate::command::Schedule;
use crate::conn::{Conn, Error, Row};
use crate::engine::StreamTableId;
use crate::settings::Settings;

/// How often to look for writes beside the pooler, and for changes of the catalog.
const POLL: Duration = Duration::from_millis(500);
/// The same where there is no stream table: one may be created through another pooler.
const IDLE_POLL: Duration = Duration::from_secs(5);
/// After CREATE STREAM TABLE in a transaction block, which of the coming commits is its own is not
/// known: for this long each is taken for it.
const WATCH: Duration = Duration::from_secs(60);
/// Between two looks of a watch.
const WATCH_GAP: Duration = Duration::from_millis(5);
const LONGEST_RECONNECT: Duration = Duration::from_secs(10);

/// The pools that lead to a database, with the plugin's settings for them.
pub(super) struct Pools {
    members: Vec<Member>,
    refresh_user: Option<String>,
}

struct Member {
    server_user: String,
    clients: Rc<Clients>,
}

impl Pools {
    pub(super) fn new(pools: Vec<(PoolHandle, Settings)>) -> Self {
        let refresh_user = pools
            .iter()
            .find_map(|(_, settings)| settings.refresh_user.clone());
        let members = pools
            .into_iter()
            .map(|(pool, settings)| Member {
                server_user: pool.server_user().to_owned(),
                clients: Clients::new(pool, settings.max_connections),
            })
            .collect();
        Self {
            members,
            refresh_user,
        }
    }

    /// How to work as the role `owner`: through its own pool, else as the refresh user with SET ROLE.
    fn of_owner(&self, owner: &str) -> Option<(Rc<Clients>, Option<String>)> {
        let own = self
            .members
            .iter()
            .find(|member| member.server_user == owner);
        match own {
            Some(member) => Some((Rc::clone(&member.clients), None)),
            None => Some((self.refresher()?, Some(owner.to_owned()))),
        }
    }

    fn refresher(&self) -> Option<Rc<Clients>> {
        let user = self.refresh_user.as_deref()?;
        let member = self
            .members
            .iter()
            .find(|member| member.clients.user() == user)?;
        Some(Rc::clone(&member.clients))
    }

    /// Whom to try for reading the catalog, which every role may: the refresh user first.
    fn readers(&self) -> Vec<Rc<Clients>> {
        let others = self.members.iter().map(|member| Rc::clone(&member.clients));
        self.refresher().into_iter().chain(others).collect()
    }
}

/// What the catalog says of a stream table, as far as the worker cares.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub id: StreamTableId,
    pub owner: String,
    /// Schema and table.
    pub name: String,
    pub schema: String,
    pub table: String,
    pub schedule: Schedule,
    pub status: String,
    /// No frontier: it must be rebuilt.
    pub stale: bool,
    /// Whether it has data, or is to have: not so after WITH NO DATA, until the first REFRESH.
    pub wanted: bool,
    /// It can only be recomputed as a whole.
    pub full: bool,
    /// It has never had a frontier.
    pub never_current: bool,
    /// The user's table has been dropped.
    pub gone: bool,
    pub failures: u32,
    pub since_refresh: Option<Duration>,
    pub age: Duration,
    /// The stream tables of the same owner that its query reads.
    pub reads: Vec<StreamTableId>,
    /// It is a shared stage.
    pub shared: bool,
}

/// Serves one database for ever.
pub(super) async fn serve(pools: Pools, signal: Arc<Signal>, notes: Notes) {
    let mut database = Database {
        pools,
        signal,
        notes,
        lanes: HashMap::new(),
        seen: None,
        own_writes: Rc::default(),
        reader: 0,
    };
    let mut watch_until = Instant::now();
    let mut failures = 0_u32;
    loop {
        let polled = database.poll(watch_until > Instant::now()).await;
        match polled {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                // The first may be a server's restart: that is not news.
                let level = if failures == 3 {
                    log::Level::Warn
                } else {
                    log::Level::Debug
                };
                log::log!(level, "stream tables: cannot read the catalog: {error}");
                database.reader += 1;
            }
        }
        let pause = match failures {
            0 if database.lanes.is_empty() => IDLE_POLL,
            0 => POLL,
            n => (POLL * n).min(LONGEST_RECONNECT),
        };
        let next_poll = tokio::time::sleep(pause);
        tokio::pin!(next_poll);
        loop {
            tokio::select! {
                () = &mut next_poll => break,
                () = database.signal.rung() => {}
            }
            for lane in database.lanes.values() {
                lane.wake();
            }
            if database.signal.take_catalog_changed() {
                watch_until = Instant::now() + WATCH;
                break;
            }
            if watch_until > Instant::now() {
                tokio::time::sleep(WATCH_GAP).await;
                break;
            }
        }
    }
}

/// A snapshot of the server: which transactions it does not show yet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snapshot {
    /// The next transaction id.
    xmax: u64,
    /// Those below it that are in progress.
    in_progress: Vec<u64>,
}

impl Snapshot {
    /// Reads the text form `xmin:xmax:xid,…`.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':').skip(1);
        let xmax = parts.next()?.parse().ok()?;
        let in_progress = parts.next()?.split(',').filter(|xid| !xid.is_empty());
        let in_progress = in_progress.map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { xmax, in_progress })
    }

    /// Whether anybody has written since: ids have been used, other than `own` of the worker's, or a
    /// transaction that was in progress has ended. (Its id is old: the next id says nothing of it.)
    fn has_moved(&self, now: &Self, own: u64) -> bool {
        now.xmax.wrapping_sub(self.xmax) > own
            || self
                .in_progress
                .iter()
                .any(|xid| !now.in_progress.contains(xid))
    }
}

struct Database {
    pools: Pools,
    signal: Arc<Signal>,
    notes: Notes,
    /// By owner.
    lanes: HashMap<String, LaneHandle>,
    /// The server's snapshot when last looked.
    seen: Option<Snapshot>,
    own_writes: Rc<OwnWrites>,
    /// Which of the possible readers of the catalog to use.
    reader: usize,
}

impl Database {
    /// Looks whether anything has been written since the last time, and if so at the catalog.
    async fn poll(&mut self, watching: bool) -> Result<(), Error> {
        let readers = self.pools.readers();
        let Some(clients) = readers.get(self.reader % readers.len().max(1)) else {
            return Ok(());
        };
        if watching {
            // Before looking, so that a commit after the look rings.
            self.signal.arm();
        }
        let mut conn = clients.lease(None).await?;
        let sql = format!(
            "SELECT pg_catalog.pg_current_snapshot()::text, {}",
            crate::catalog::present("catalog")
        );
        let own = self.own_writes.look();
        let looked = conn.query_kept(sql, Vec::new()).await;
        self.own_writes.looked();
        let row = looked?.first().cloned().unwrap_or_default();
        let now = row.text(0).and_then(Snapshot::parse);
        let seen = self.seen.take();
        if let (Some(seen), Some(now)) = (&seen, &now)
            && !seen.has_moved(now, own)
        {
            self.seen = Some(now.clone());
            conn.returned();
            return Ok(());
        }
        let listed = if row.is_true(1) {
            list(&mut *conn).await?
        } else {
            Vec::new()
        };
        conn.returned();
        // Only now that it has been acted on: after an error the next look finds it again.
        self.seen = now;
        self.assign(listed);
        for lane in self.lanes.values() {
            lane.written_somewhere();
        }
        Ok(())
    }

    /// Gives every stream table to its owner's lane.
    fn assign(&mut self, listed: Vec<Listed>) {
        self.notes.listed(&listed);
        let mut by_owner: HashMap<String, Vec<Listed>> = HashMap::new();
        for table in listed {
            by_owner.entry(table.owner.clone()).or_default().push(table);
        }
        self.lanes.retain(|owner, _| by_owner.contains_key(owner));
        for (owner, tables) in by_owner {
            if !self.lanes.contains_key(&owner) {
                let Some((clients, role)) = self.pools.of_owner(&owner) else {
                    report_orphans(&owner, &tables);
                    continue;
                };
                let lane = Lane::start(
                    clients,
                    role,
                    Arc::clone(&self.signal),
                    Rc::clone(&self.own_writes),
                    self.notes.clone(),
                );
                self.lanes.insert(owner.clone(), lane);
            }
            if let Some(lane) = self.lanes.get(&owner) {
                lane.assign(tables);
            }
        }
    }
}

thread_local! {
    /// The owners already reported, so that the log says it once.
    static REPORTED: RefCell<std::collections::HashSet<String>> = RefCell::default();
}

fn report_orphans(owner: &str, tables: &[Listed]) {
    if REPORTED.with_borrow_mut(|reported| reported.insert(owner.to_owned())) {
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        log::warn!(
            "stream tables of role {owner} are not refreshed: it has no pool here, and no refresh_user is \
             configured ({})",
            names.join(", ")
        );
    }
}

async fn list(conn: &mut impl Conn) -> Result<Vec<Listed>, Error> {
    let sql = "SELECT c.id, pg_catalog.pg_get_userbyid(c.owner)::text, \
        coalesce(n.nspname, c.target_schema)::text, coalesce(r.relname, c.target_name)::text, \
        c.schedule, c.status, c.frontier_snapshot IS NULL, \
        c.with_data OR c.last_refresh IS NOT NULL, \
        c.relid IS NOT NULL AND r.oid IS NULL, c.failures, \
        extract(epoch FROM pg_catalog.clock_timestamp() - c.last_refresh)::float8, \
        extract(epoch FROM pg_catalog.clock_timestamp() - c.created_at)::float8, \
        c.effective_mode = 'full', c.frontier_xid IS NULL, \
        (SELECT pg_catalog.string_agg(o.id::text, ' ') FROM pgtrickle.source s \
            JOIN pgtrickle.catalog o ON o.relid = s.relid AND o.owner = c.owner WHERE s.stream_table = c.id), \
        c.shares IS NOT NULL \
        FROM pgtrickle.catalog c \
        LEFT JOIN pg_catalog.pg_class r ON r.oid = c.relid \
        LEFT JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace ORDER BY c.id";
    let rows = conn.query_kept(sql.to_owned(), Vec::new()).await?;
    let mut listed: Vec<_> = rows.iter().filter_map(listed).collect();
    wake_shared(&mut listed);
    Ok(listed)
}

/// A shared stage has no schedule. It is live as long as one of those that read it is, and else refreshed with these.
fn wake_shared(listed: &mut [Listed]) {
    let is_live = |table: &Listed| table.schedule == Schedule::Live && table.status != "suspended";
    let mut live: Vec<_> = listed
        .iter()
        .filter(|table| is_live(table))
        .map(|table| table.id)
        .collect();
    let mut next = 0;
    while let Some(reader) = live.get(next) {
        let of_reader = listed.iter().find(|table| table.id == *reader);
        let read = of_reader
            .map(|table| table.reads.clone())
            .unwrap_or_default();
        for table in listed
            .iter_mut()
            .filter(|table| table.shared && read.contains(&table.id))
        {
            if table.schedule != Schedule::Live {
                table.schedule = Schedule::Live;
                live.push(table.id);
            }
        }
        next += 1;
    }
}

fn listed(row: &Row) -> Option<Listed> {
    let seconds = |index| {
        let seconds: f64 = row.text(index)?.parse().ok()?;
        Duration::try_from_secs_f64(seconds.max(0.0)).ok()
    };
    let (schema, table) = (row.text(2)?, row.text(3)?);
    Some(Listed {
        id: StreamTableId(row.int(0)?),
        owner: row.text(1)?.to_owned(),
        name: format!("{schema}.{table}"),
        schema: schema.to_owned(),
        table: table.to_owned(),
        // A schedule of a later version: leave it to those who understand it.
        schedule: Schedule::parse(row.text(4)?).unwrap_or(Schedule::Manual),
        status: row.text(5)?.to_owned(),
        stale: row.is_true(6),
        wanted: row.is_true(7),
        gone: row.is_true(8),
        failures: row.int(9).and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        since_refresh: seconds(10),
        age: seconds(11).unwrap_or_default(),
        full: row.is_true(12),
        never_current: row.is_true(13),
        reads: row
            .text(14)
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|id| id.parse().ok().map(StreamTableId))
            .collect(),
        shared: row.is_true(15),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::parse(text).expect("a snapshot")
    }

    #[test]
    fn a_commit_of_an_old_transaction_is_noticed() {
        let before = snapshot("7:10:7,9");
        assert!(!before.has_moved(&snapshot("7:10:7,9"), 0));
        assert!(before.has_moved(&snapshot("7:10:7"), 0));
        assert!(before.has_moved(&snapshot("10:10:"), 5));
    }

    #[test]
    fn ids_of_the_worker_do_not_count() {
        let before = snapshot("10:10:");
        assert!(!before.has_moved(&snapshot("12:12:"), 2));
        assert!(before.has_moved(&snapshot("13:13:"), 2));
    }
}
