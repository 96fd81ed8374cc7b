//! What is counted over several pools: the clients and the server connections of a database, and those
//! of a user.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::shared::PoolShared;

/// How many clients, or server connections, there are of a kind.
#[derive(Debug, Default)]
pub struct Count(AtomicUsize);

/// A client, or a server connection, that is counted, while this value exists.
#[derive(Debug)]
pub struct Seat(Arc<Count>);

/// The counts of one database, or of one user over all databases.
#[derive(Debug, Default)]
pub struct Tally {
    pub clients: Arc<Count>,
    pub servers: Arc<Count>,
    /// A pool limits the server connections.
    is_limited: AtomicBool,
    /// Whose server connections are counted.
    pools: Mutex<Vec<Weak<PoolShared>>>,
}

/// The counts by name. They outlive a reload.
#[derive(Debug, Default)]
pub struct Tallies {
    databases: Named,
    users: Named,
}

#[derive(Debug, Default)]
struct Named(Mutex<HashMap<String, Weak<Tally>>>);

impl Count {
    /// A seat, if fewer than `limit` are taken.
    pub fn take(self: &Arc<Self>, limit: Option<usize>) -> Option<Seat> {
        let limit = limit.unwrap_or(usize::MAX);
        let taken = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
                (taken < limit).then_some(taken + 1)
            });
        taken.is_ok().then(|| Seat(self.clone()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }

    /// Whether a seat could be had now.
    pub fn has_room(&self, limit: Option<usize>) -> bool {
        limit.is_none_or(|limit| self.0.load(Ordering::SeqCst) < limit)
    }
}

impl Seat {
    pub fn is_of(&self, count: &Arc<Count>) -> bool {
        Arc::ptr_eq(&self.0, count)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Tally {
    /// A new pool counts its server connections here.
    pub fn join(&self, pool: &Arc<PoolShared>, limit: Option<usize>) {
        if limit.is_some() {
            self.is_limited.store(true, Ordering::Relaxed);
        }
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(pool));
    }

    pub fn is_limited(&self) -> bool {
        self.is_limited.load(Ordering::Relaxed)
    }

    /// The pools whose server connections are counted.
    pub fn pools(&self) -> Vec<Arc<PoolShared>> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Tallies {
    pub fn database(&self, name: &str) -> Arc<Tally> {
        self.databases.find(name)
    }

    pub fn user(&self, name: &str) -> Arc<Tally> {
        self.users.find(name)
    }
}

impl Named {
    fn find(&self, name: &str) -> Arc<Tally> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tally) = known.get(name).and_then(Weak::upgrade) {
            return tally;
        }
        // Those of pools that a reload has removed.
        known.retain(|_, tally| tally.strong_count() > 0);
        let tally = Arc::new(Tally::default());
        known.insert(name.to_owned(), Arc::downgrade(&tally));
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_free_again_when_its_client_has_left() {
        let tallies = Tallies::default();
        let tally = tallies.user("joe");
        let first = tally.clients.take(Some(2));
        let second = tallies.user("joe").clients.take(Some(2));
        assert!(first.is_some() && second.is_some());
        assert!(tally.clients.take(Some(2)).is_none());
        assert!(tallies.database("joe").clients.take(Some(1)).is_some());
        drop(first);
        assert!(tally.clients.take(Some(2)).is_some());
        assert!(tally.clients.take(None).is_some());
    }
}
