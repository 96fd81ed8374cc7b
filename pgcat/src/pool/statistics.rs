//! What is counted: per server connection while it is open, per server when it is gone.
//!
//! A connection is used by one thread at a time, so that its counters are written without a locked
//! instruction; others read them when somebody asks. Times are taken from the thread's clock
//! ([`crate::net::clock`]), which is read once per turn of its event loop.

use std::net::SocketAddr;
use std::ops::{AddAssign, Sub};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How long a period is over which averages are formed: PgCat's.
pub const PERIOD: Duration = Duration::from_secs(15);

/// Counters of a server, or sums of such. Times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub transactions: u64,
    pub queries: u64,
    /// Bytes from the server.
    pub received: u64,
    /// Bytes of clients.
    pub sent: u64,
    /// Errors the server reported.
    pub errors: u64,
    pub transaction_time: u64,
    pub query_time: u64,
    pub wait_time: u64,
    /// Times that a client was given a connection.
    pub assignments: u64,
}

impl Totals {
    fn fields(&mut self, other: &Self, combine: impl Fn(u64, u64) -> u64) {
        for (mine, theirs) in [
            (&mut self.transactions, other.transactions),
            (&mut self.queries, other.queries),
            (&mut self.received, other.received),
            (&mut self.sent, other.sent),
            (&mut self.errors, other.errors),
            (&mut self.transaction_time, other.transaction_time),
            (&mut self.query_time, other.query_time),
            (&mut self.wait_time, other.wait_time),
            (&mut self.assignments, other.assignments),
        ] {
            *mine = combine(*mine, theirs);
        }
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.fields(&other, u64::wrapping_add);
    }
}

impl Sub for Totals {
    type Output = Self;

    fn sub(mut self, other: Self) -> Self {
        self.fields(&other, u64::saturating_sub);
        self
    }
}

/// Numbers for server connections and clients: unique in the process, so that one is enough to say which
/// is meant.
#[derive(Debug, Clone, Default)]
pub struct Ids(Arc<AtomicU64>);

impl Ids {
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What a client's session has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub transactions: u64,
    pub queries: u64,
    pub errors: u64,
}

/// What a server connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is being opened.
    Login,
    /// In the hands of a client.
    Active,
    Idle,
    /// Being cleaned or checked before it is used again.
    Tested,
}

/// A server connection as it can be looked at from everywhere. Exists from before the login to the end.
#[derive(Debug)]
pub struct Connection {
    pub id: u64,
    pub opened: SystemTime,
    /// See [`super::health::Health::renew`].
    pub generation: u64,
    /// The pooler's own, which serves no client by itself.
    pub own: bool,
    phase: AtomicU8,
    /// The client that has it; 0 for none.
    client: AtomicU64,
    /// The server's process.
    pid: AtomicU32,
    /// The two ends: the server's, and ours.
    ends: OnceLock<(SocketAddr, SocketAddr)>,
    /// Prepared statements it had when it was last given back.
    statements: AtomicU32,
    transactions: AtomicU64,
    queries: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    errors: AtomicU64,
    transaction_time: AtomicU64,
    query_time: AtomicU64,
    assignments: AtomicU64,
}

/// Adds to a counter that only this thread writes now.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(amount),
        Ordering::Relaxed,
    );
}

impl Connection {
    fn new(id: u64, generation: u64, own: bool) -> Self {
        Self {
            id,
            generation,
            own,
            opened: SystemTime::now(),
            phase: AtomicU8::new(Phase::Login as u8),
            client: AtomicU64::new(0),
            pid: AtomicU32::new(0),
            ends: OnceLock::new(),
            statements: AtomicU32::new(0),
            transactions: AtomicU64::new(0),
            queries: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            transaction_time: AtomicU64::new(0),
            query_time: AtomicU64::new(0),
            assignments: AtomicU64::new(0),
        }
    }

    /// The login is over.
    pub fn logged_in(&self, pid: u32, ends: Option<(SocketAddr, SocketAddr)>) {
        self.pid.store(pid, Ordering::Relaxed);
        if let Some(ends) = ends {
            // A second login on one connection there is not.
            let _ = self.ends.set(ends);
        }
        self.enter(Phase::Tested);
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// A client has been given the connection.
    pub fn assigned(&self, client: u64) {
        self.client.store(client, Ordering::Relaxed);
        self.enter(Phase::Active);
        add(&self.assignments, 1);
    }

    /// The client has given it back.
    pub fn returned(&self, statements: usize) {
        self.client.store(0, Ordering::Relaxed);
        self.statements.store(
            u32::try_from(statements).unwrap_or(u32::MAX),
            Ordering::Relaxed,
        );
        self.enter(Phase::Tested);
    }

    pub fn received(&self, bytes: usize) {
        add(&self.received, bytes as u64);
    }

    pub fn sent(&self, bytes: usize) {
        add(&self.sent, bytes as u64);
    }

    pub fn query_ended(&self, micros: u64) {
        add(&self.queries, 1);
        add(&self.query_time, micros);
    }

    pub fn transaction_ended(&self, micros: u64) {
        add(&self.transactions, 1);
        add(&self.transaction_time, micros);
    }

    pub fn failed(&self) {
        add(&self.errors, 1);
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            phase if phase == Phase::Active as u8 => Phase::Active,
            phase if phase == Phase::Idle as u8 => Phase::Idle,
            phase if phase == Phase::Tested as u8 => Phase::Tested,
            _ => Phase::Login,
        }
    }

    pub fn client(&self) -> Option<u64> {
        Some(self.client.load(Ordering::Relaxed)).filter(|&client| client != 0)
    }

    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub fn statements(&self) -> u32 {
        self.statements.load(Ordering::Relaxed)
    }

    /// The server's end and ours, where it is a TCP connection.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.ends.get().copied()
    }

    pub fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            transactions: read(&self.transactions),
            queries: read(&self.queries),
            received: read(&self.received),
            sent: read(&self.sent),
            errors: read(&self.errors),
            transaction_time: read(&self.transaction_time),
            query_time: read(&self.query_time),
            wait_time: 0,
            assignments: read(&self.assignments),
        }
    }
}

/// The statistics of one server of a pool. They outlive a reload.
#[derive(Debug, Default)]
pub struct Statistics {
    inner: Mutex<Inner>,
    /// Microseconds that clients have waited.
    wait_time: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    /// Of connections that are gone.
    closed: Totals,
    open: Vec<Arc<Connection>>,
    /// At the ends of the last two periods, the older one first.
    periods: [Option<(Instant, Totals)>; 2],
}

impl Inner {
    fn totals(&self) -> Totals {
        let mut totals = self.closed;
        for connection in &self.open {
            totals += connection.totals();
        }
        totals
    }
}

impl Statistics {
    /// A connection that is about to be opened.
    pub fn opening(&self, id: u64, generation: u64, own: bool) -> Arc<Connection> {
        let connection = Arc::new(Connection::new(id, generation, own));
        self.lock().open.push(connection.clone());
        connection
    }

    /// A connection is gone.
    pub fn closed(&self, connection: &Arc<Connection>) {
        let mut inner = self.lock();
        inner.closed += connection.totals();
        inner.open.retain(|open| !Arc::ptr_eq(open, connection));
    }

    /// A client has waited for a connection.
    pub fn waited(&self, micros: u64) {
        self.wait_time.fetch_add(micros, Ordering::Relaxed);
    }

    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.lock().open.clone()
    }

    pub fn totals(&self) -> Totals {
        let mut totals = self.lock().totals();
        totals.wait_time = self.wait_time.load(Ordering::Relaxed);
        totals
    }

    /// What the counters have grown by in one to two [`PERIOD`]s, and in how long.
    pub fn recent(&self, now: Instant) -> (Totals, Duration) {
        let totals = self.totals();
        let inner = self.lock();
        match inner.periods.iter().flatten().next() {
            Some((since, then)) => (totals - *then, now.duration_since(*since)),
            None => (Totals::default(), Duration::ZERO),
        }
    }

    /// A period begins, at the pooler's start and every [`PERIOD`].
    pub fn begin_period(&self, now: Instant) {
        let totals = self.totals();
        let mut inner = self.lock();
        let [_, newer] = inner.periods;
        inner.periods = [newer, Some((now, totals))];
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every critical section leaves the sums whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_survive_their_connections() {
        let statistics = Statistics::default();
        let one = statistics.opening(1, 0, false);
        let two = statistics.opening(2, 0, false);
        one.query_ended(5);
        one.transaction_ended(7);
        two.query_ended(3);
        two.received(100);
        statistics.waited(11);
        let before = statistics.totals();
        assert_eq!((before.queries, before.query_time), (2, 8));
        assert_eq!((before.received, before.wait_time), (100, 11));
        statistics.closed(&one);
        assert_eq!(statistics.totals(), before);
        assert_eq!(statistics.connections().len(), 1);
    }

    #[test]
    fn averages_are_of_the_last_periods() {
        let statistics = Statistics::default();
        let begin = Instant::now();
        let connection = statistics.opening(1, 0, false);
        connection.query_ended(10);
        statistics.begin_period(begin);
        connection.query_ended(10);
        let at = |periods: u32| begin + periods * PERIOD;
        let (recent, period) = statistics.recent(at(1));
        assert_eq!((recent.queries, period), (1, PERIOD));
        statistics.begin_period(at(1));
        connection.query_ended(10);
        assert_eq!(statistics.recent(at(2)).0.queries, 2);
        statistics.begin_period(at(2));
        assert_eq!(statistics.recent(at(3)).0.queries, 1);
    }

    #[test]
    fn phases_are_what_was_entered() {
        let connection = Connection::new(1, 0, false);
        assert_eq!(connection.phase(), Phase::Login);
        for phase in [Phase::Active, Phase::Idle, Phase::Tested, Phase::Login] {
            connection.enter(phase);
            assert_eq!(connection.phase(), phase);
        }
    }
}
