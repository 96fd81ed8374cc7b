//! What is counted over several pools: the clients of a database, and those of a user.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// How many clients there are of a kind.
#[derive(Debug, Default)]
pub struct Count(AtomicUsize);

/// A client that is counted, while this value exists.
#[derive(Debug)]
pub struct Seat(Arc<Count>);

/// The counts of one database, or of one user over all databases.
#[derive(Debug, Default)]
pub struct Tally {
    pub clients: Arc<Count>,
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
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < limit).then_some(taken + 1)
            });
        taken.is_ok().then(|| Seat(self.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
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
