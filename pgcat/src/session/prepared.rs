//! Prepared statements that outlive a server connection.
//!
//! Each distinct statement (text and parameter types) has one process-wide number and so one name on
//! every server; a client's name maps to it, and each server connection knows which numbers it has.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::RandomState;

use crate::wire::message::take_cstr;

/// A statement as parsed by some client.
#[derive(Debug)]
pub struct PreparedStatement {
    pub id: u64,
    /// Its name on the servers. Never shown to clients.
    pub server_name: Box<[u8]>,
    /// The body of its Parse after the name: query text, NUL, parameter types.
    pub rest: Arc<[u8]>,
}

impl PreparedStatement {
    /// The statement's SQL.
    pub fn text(&self) -> &[u8] {
        take_cstr(&self.rest).map_or(&*self.rest, |(text, _)| text)
    }
}

/// What makes statements equal: the Parse body, and the search_path, because the same text means other
/// tables under another one.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    rest: Arc<[u8]>,
    search_path: Box<str>,
}

/// Gives equal statements the same number.
#[derive(Debug, Default)]
pub struct Interner {
    statements: Mutex<HashMap<Key, Arc<PreparedStatement>>>,
    next: AtomicU64,
}

/// Statements no client holds any more are looked for when there are this many.
const PURGE_AT: usize = 4096;

impl Interner {
    /// The statement with this Parse body under this search_path. Equality is by all of its bytes:
    /// types included, and no hash in their place.
    pub fn intern(&self, rest: &[u8], search_path: &str) -> Arc<PreparedStatement> {
        let key = Key {
            rest: rest.into(),
            search_path: search_path.into(),
        };
        let mut statements = self
            .statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(statement) = statements.get(&key) {
            return statement.clone();
        }
        if statements.len() >= PURGE_AT && statements.len().is_power_of_two() {
            statements.retain(|_, statement| Arc::strong_count(statement) > 1);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let rest = key.rest.clone();
        let statement = Arc::new(PreparedStatement {
            id,
            server_name: format!("PGCAT_{id}").into_bytes().into(),
            rest,
        });
        statements.insert(key, statement.clone());
        statement
    }
}

impl Interner {
    /// All statements, by the search_path that they were prepared under.
    pub fn by_search_path(&self) -> Vec<(Box<str>, Arc<PreparedStatement>)> {
        let statements = self
            .statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = statements
            .iter()
            .map(|(key, statement)| (key.search_path.clone(), statement.clone()))
            .collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }

    /// All statements, with how many clients' names stand for each.
    pub fn list(&self) -> Vec<(Arc<PreparedStatement>, usize)> {
        let statements = self
            .statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = statements
            .values()
            .map(|statement| (statement.clone(), Arc::strong_count(statement) - 1))
            .collect();
        list.sort_by_key(|(statement, _)| statement.id);
        list
    }
}

/// The statements a server connection has, least recently used out first.
#[derive(Debug)]
pub struct ServerStatements {
    /// Statement number → when it was last used.
    used: HashMap<u64, u64, RandomState>,
    clock: u64,
    limit: usize,
}

impl ServerStatements {
    pub fn new(limit: usize) -> Self {
        Self {
            used: HashMap::default(),
            clock: 0,
            limit: limit.max(1),
        }
    }

    /// Whether the server has the statement; it counts as used now.
    pub fn touch(&mut self, id: u64) -> bool {
        self.clock += 1;
        match self.used.get_mut(&id) {
            Some(used) => {
                *used = self.clock;
                true
            }
            None => false,
        }
    }

    /// Whether the server has the statement.
    pub fn has(&self, id: u64) -> bool {
        self.used.contains_key(&id)
    }

    /// Notes a statement the server is being sent. Returns the one to close for it, if full.
    pub fn insert(&mut self, id: u64) -> Option<u64> {
        self.clock += 1;
        let evicted = if self.used.len() >= self.limit && !self.used.contains_key(&id) {
            self.used
                .iter()
                .min_by_key(|(_, used)| **used)
                .map(|(id, _)| *id)
        } else {
            None
        };
        if let Some(evicted) = evicted {
            self.used.remove(&evicted);
        }
        self.used.insert(id, self.clock);
        evicted
    }

    pub fn remove(&mut self, id: u64) {
        self.used.remove(&id);
    }

    /// The server still has a statement that was to be closed.
    pub fn put_back(&mut self, id: u64) {
        self.used.insert(id, 0);
    }

    pub fn len(&self) -> usize {
        self.used.len()
    }

    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    pub fn clear(&mut self) {
        self.used.clear();
    }
}

/// The name on the servers of the statement with this number.
pub fn server_name(id: u64) -> Vec<u8> {
    format!("PGCAT_{id}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_equal_by_all_their_bytes() {
        let interner = Interner::default();
        // Concatenated without separators these two would collide: LIMIT 1 with one type of OID 0,
        // and LIMIT 11 … without types.
        let one = interner.intern(b"select 1\0\0\x01\0\0\0\0", "");
        let two = interner.intern(b"select 1\0\0\0", "");
        assert_ne!(one.id, two.id);
        assert_eq!(one.id, interner.intern(b"select 1\0\0\x01\0\0\0\0", "").id);
    }

    #[test]
    fn one_text_under_two_search_paths_is_two_statements() {
        let interner = Interner::default();
        let one = interner.intern(b"select * from t\0\0\0", "a");
        assert_ne!(one.id, interner.intern(b"select * from t\0\0\0", "b").id);
    }

    #[test]
    fn the_least_recently_used_statement_goes() {
        let mut server = ServerStatements::new(2);
        assert_eq!(server.insert(1), None);
        assert_eq!(server.insert(2), None);
        assert!(server.touch(1));
        assert_eq!(server.insert(3), Some(2));
        assert!(!server.touch(2));
    }
}
