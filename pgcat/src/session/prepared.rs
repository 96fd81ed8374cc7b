//! Prepared statements that outlive a server connection.
//!
//! Each distinct statement has one process-wide number and so one name on every server; a client's name
//! maps to it, and each server connection knows which numbers it has.
//!
//! What a text means may change: a table gets another column, a function another result. PostgreSQL
//! then refuses a statement that was prepared before ("cached plan must not change result type"), and
//! drivers that keep what they were told of its columns rely on that. So a statement here is a text
//! with what the server said of it, its [`Shape`]: with another shape it is another statement, and who
//! has prepared the old one never gets the new.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::fast::RandomState;

use super::settings::Settings;
use crate::wire::message::take_cstr;

/// A statement as parsed by some client.
#[derive(Debug)]
pub struct PreparedStatement {
    pub id: u64,
    /// Its name on the servers. Never shown to clients.
    pub server_name: Box<[u8]>,
    key: Arc<Key>,
    /// Unknown until the first answer of a server.
    shape: OnceLock<Shape>,
}

/// What a server says of a statement, as far as a client must be able to rely on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The types of the parameters, counted, as in ParameterDescription and in Parse.
    parameters: Box<[u8]>,
    /// The columns' number, and of each the name, type, length and modifier; empty without a result.
    columns: Box<[u8]>,
}

impl Shape {
    /// From the bodies of a ParameterDescription and, if there is a result, of a RowDescription. Which
    /// tables the columns come from is left out, as by PostgreSQL: a table may be made anew.
    pub fn new(parameters: &[u8], description: Option<&[u8]>) -> Self {
        let columns = description.map_or_else(Vec::new, |body| {
            column_types(body).unwrap_or_else(|| body.to_vec())
        });
        Self {
            parameters: parameters.into(),
            columns: columns.into(),
        }
    }
}

fn column_types(description: &[u8]) -> Option<Vec<u8>> {
    let (count, mut rest) = description.split_first_chunk::<2>()?;
    let mut columns = Vec::with_capacity(description.len());
    columns.extend_from_slice(count);
    while !rest.is_empty() {
        let (name, tail) = take_cstr(rest)?;
        // Table and column number; type, length and modifier; format.
        let (fields, tail) = tail.split_first_chunk::<18>()?;
        columns.extend_from_slice(name);
        columns.push(0);
        columns.extend_from_slice(&fields[6..16]);
        rest = tail;
    }
    Some(columns)
}

impl PreparedStatement {
    fn new(id: u64, key: Arc<Key>, shape: Option<Shape>) -> Arc<Self> {
        Arc::new(Self {
            id,
            server_name: server_name(id).into(),
            key,
            shape: shape.map_or_else(OnceLock::new, OnceLock::from),
        })
    }

    /// The statement's SQL.
    pub fn text(&self) -> &[u8] {
        take_cstr(self.rest()).map_or(self.rest(), |(text, _)| text)
    }

    /// The body of its Parse after the name: query text, NUL, parameter types.
    pub fn rest(&self) -> &[u8] {
        &self.key.rest
    }

    /// The types that the server has found for the parameters, as in ParameterDescription.
    pub fn parameters(&self) -> Option<&[u8]> {
        self.shape.get().map(|shape| &*shape.parameters)
    }

    /// The body of a Parse after the name, with these types, for the server not to find others now: the
    /// client sends values of those it was told.
    pub fn rest_with_types(&self) -> Vec<u8> {
        match self.parameters() {
            Some(types) => [self.text(), b"\0", types].concat(),
            None => self.rest().to_vec(),
        }
    }

    /// Whether a server's answer is what clients know of the statement; the first one is.
    pub fn agrees(&self, shape: &Shape) -> bool {
        self.shape.get_or_init(|| shape.clone()) == shape
    }

    /// Whether the servers of this shard may be expected to give the same answer. Shards are databases of their
    /// own, where types of users have other OIDs.
    pub fn is_of_shard(&self, shard: usize) -> bool {
        self.key.scope.shard == shard
    }
}

/// It is what its number says.
impl PartialEq for PreparedStatement {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for PreparedStatement {}

/// Where a text is parsed: elsewhere it may mean something else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    pool: usize,
    shard: usize,
    settings: Box<[Box<str>]>,
}

/// What decides how a text is read: which tables it names, and what its literals stand for, which
/// become values of their types as it is parsed.
const READ_UNDER: [&str; 13] = [
    "search_path",
    // A "$user" in the path is theirs.
    "role",
    "session_authorization",
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "lc_monetary",
    "standard_conforming_strings",
    "timezone",
    "transform_null_equals",
    "xmloption",
];

impl Scope {
    pub fn new(pool: usize, shard: usize, settings: &Settings) -> Self {
        let mut values: Vec<Box<str>> = Vec::new();
        for name in READ_UNDER {
            if let Some(value) = settings.value(name) {
                values.extend([name.into(), value.into()]);
            }
        }
        Self {
            pool,
            shard,
            settings: values.into(),
        }
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        for pair in self.settings.chunks_exact(2) {
            settings.set(&pair[0], pair[1].to_string());
        }
        settings
    }

    /// For what no client prepares.
    pub fn of_plugins() -> Self {
        Self {
            pool: usize::MAX,
            ..Self::default()
        }
    }
}

/// What makes texts equal: the Parse body, and its scope.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    rest: Box<[u8]>,
    scope: Scope,
}

/// Gives equal statements the same number.
#[derive(Debug, Default)]
pub struct Interner {
    /// Of each text the statement that it is now, as far as is known.
    statements: Mutex<HashMap<Arc<Key>, Arc<PreparedStatement>>>,
    next: AtomicU64,
}

/// Statements no client holds any more are looked for when there are this many.
const PURGE_AT: usize = 4096;

impl Interner {
    /// The statement with this Parse body in this scope. Equality is by all of its bytes: types included, and
    /// no hash in their place.
    pub fn intern(&self, rest: &[u8], scope: Scope) -> Arc<PreparedStatement> {
        let key = Key {
            rest: rest.into(),
            scope,
        };
        let mut statements = self.statements();
        if let Some(statement) = statements.get(&key) {
            return statement.clone();
        }
        if statements.len() >= PURGE_AT && statements.len().is_power_of_two() {
            statements.retain(|_, statement| Arc::strong_count(statement) > 1);
        }
        let key = Arc::new(key);
        let statement = PreparedStatement::new(self.number(), key.clone(), None);
        statements.insert(key, statement.clone());
        statement
    }

    /// The statement that a text has turned out to be, having been parsed as `statement`: that one, or
    /// another with the same text.
    pub fn with_shape(
        &self,
        statement: &Arc<PreparedStatement>,
        shape: Shape,
    ) -> Arc<PreparedStatement> {
        if statement.agrees(&shape) {
            return statement.clone();
        }
        let mut statements = self.statements();
        if let Some(present) = statements.get(&statement.key)
            && present.agrees(&shape)
        {
            return present.clone();
        }
        let key = statement.key.clone();
        let present = PreparedStatement::new(self.number(), key.clone(), Some(shape));
        statements.insert(key, present.clone());
        present
    }

    fn statements(&self) -> MutexGuard<'_, HashMap<Arc<Key>, Arc<PreparedStatement>>> {
        self.statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// All statements, each with the settings that decide how its text is read, by these.
    pub fn by_settings(&self) -> Vec<(Settings, Arc<PreparedStatement>)> {
        let mut list: Vec<_> = self.statements().values().cloned().collect();
        list.sort_by(|a, b| a.key.scope.settings.cmp(&b.key.scope.settings));
        list.into_iter()
            .map(|statement| (statement.key.scope.settings(), statement))
            .collect()
    }

    /// All statements, with how many clients' names stand for each.
    pub fn list(&self) -> Vec<(Arc<PreparedStatement>, usize)> {
        let mut list: Vec<_> = self
            .statements()
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
    known: HashMap<u64, Known, RandomState>,
    clock: u64,
    limit: usize,
}

#[derive(Debug)]
struct Known {
    /// When it was last used.
    used: u64,
    /// By its name there may be something else, parsed when the text meant that.
    doubtful: bool,
}

impl ServerStatements {
    pub fn new(limit: usize) -> Self {
        Self {
            known: HashMap::default(),
            clock: 0,
            limit: limit.max(1),
        }
    }

    /// Whether the server has the statement; it counts as used now.
    pub fn touch(&mut self, id: u64) -> bool {
        self.clock += 1;
        match self.known.get_mut(&id) {
            Some(known) => {
                known.used = self.clock;
                !known.doubtful
            }
            None => false,
        }
    }

    /// Whether the server has anything by the statement's name.
    pub fn contains(&self, id: u64) -> bool {
        self.known.contains_key(&id)
    }

    /// Notes a statement the server is being sent. Returns the one to close for it, if full.
    pub fn insert(&mut self, id: u64) -> Option<u64> {
        self.clock += 1;
        let evicted = if self.known.len() >= self.limit && !self.contains(id) {
            self.known
                .iter()
                .min_by_key(|(_, known)| known.used)
                .map(|(id, _)| *id)
        } else {
            None
        };
        if let Some(evicted) = evicted {
            self.known.remove(&evicted);
        }
        let known = Known {
            used: self.clock,
            doubtful: false,
        };
        self.known.insert(id, known);
        evicted
    }

    pub fn remove(&mut self, id: u64) {
        self.known.remove(&id);
    }

    /// What the server has by the statement's name is not to be used.
    pub fn doubt(&mut self, id: u64) {
        if let Some(known) = self.known.get_mut(&id) {
            known.doubtful = true;
        }
    }

    /// The same of all statements.
    pub fn doubt_all(&mut self) {
        self.known
            .values_mut()
            .for_each(|known| known.doubtful = true);
    }

    /// The server still has a statement that was to be closed.
    pub fn put_back(&mut self, id: u64) {
        let known = Known {
            used: 0,
            doubtful: true,
        };
        self.known.insert(id, known);
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub fn clear(&mut self) {
        self.known.clear();
    }
}

/// What all names on the servers begin with.
const PREFIX: &str = "PGCAT_";

/// The name on the servers of the statement with this number.
pub fn server_name(id: u64) -> Vec<u8> {
    format!("{PREFIX}{id}").into_bytes()
}

/// Whether a server may know a statement by this name that is not the client's who says it.
pub fn may_be_server_name(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(name: &str, value: &str) -> Scope {
        let mut settings = Settings::default();
        settings.set(name, value.to_owned());
        Scope::new(0, 0, &settings)
    }

    /// A RowDescription of one column.
    fn description(name: &str, table: u32, oid: u32) -> Vec<u8> {
        let mut body = vec![0, 1];
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(&table.to_be_bytes());
        body.extend_from_slice(&[0, 1]);
        body.extend_from_slice(&oid.to_be_bytes());
        body.extend_from_slice(&[0, 4, 255, 255, 255, 255, 0, 0]);
        body
    }

    fn shape(name: &str, table: u32, oid: u32) -> Shape {
        Shape::new(&[0, 0], Some(&description(name, table, oid)))
    }

    #[test]
    fn statements_are_equal_by_all_their_bytes() {
        let interner = Interner::default();
        // Concatenated without separators these two would collide: LIMIT 1 with one type of OID 0,
        // and LIMIT 11 … without types.
        let scope = Scope::default;
        let one = interner.intern(b"select 1\0\0\x01\0\0\0\0", scope());
        let two = interner.intern(b"select 1\0\0\0", scope());
        assert_ne!(one.id, two.id);
        let again = interner.intern(b"select 1\0\0\x01\0\0\0\0", scope());
        assert_eq!(one.id, again.id);
    }

    #[test]
    fn one_text_read_in_two_ways_is_two_statements() {
        let interner = Interner::default();
        let text = b"select * from t\0\0\0";
        let one = interner.intern(text, scope("search_path", "a"));
        for other in [
            scope("search_path", "b"),
            scope("TimeZone", "a"),
            Scope::new(1, 0, &Settings::default()),
            Scope::new(0, 1, &Settings::default()),
        ] {
            assert_ne!(one.id, interner.intern(text, other).id);
        }
        let same = interner.intern(text, scope("search_path", "a"));
        assert_eq!(one.id, same.id);
        let named = interner.intern(text, scope("application_name", "a"));
        assert_eq!(named.id, interner.intern(text, scope("work_mem", "1")).id);
    }

    #[test]
    fn a_text_with_another_shape_is_another_statement() {
        let interner = Interner::default();
        let text = b"select * from t\0\0\0";
        let old = interner.intern(text, Scope::default());
        assert_eq!(interner.with_shape(&old, shape("a", 1, 23)).id, old.id);
        // A table made anew with the same columns.
        assert_eq!(interner.with_shape(&old, shape("a", 2, 23)).id, old.id);
        for changed in [
            shape("b", 1, 23),
            shape("a", 1, 20),
            Shape::new(&[0, 0], None),
            Shape::new(&[0, 1, 0, 0, 0, 23], Some(&description("a", 1, 23))),
        ] {
            let new = interner.with_shape(&old, changed.clone());
            assert_ne!(new.id, old.id);
            // Who prepares it next shares that.
            let next = interner.intern(text, Scope::default());
            assert_eq!(next.id, new.id);
            assert_eq!(interner.with_shape(&old, changed).id, new.id);
            assert!(old.agrees(&shape("a", 3, 23)));
        }
    }

    #[test]
    fn parameters_keep_the_types_they_were_given() {
        let interner = Interner::default();
        let statement = interner.intern(b"select $1\0\0\0", Scope::default());
        assert_eq!(statement.rest_with_types(), b"select $1\0\0\0");
        assert!(statement.agrees(&Shape::new(&[0, 1, 0, 0, 0, 25], None)));
        assert_eq!(statement.rest_with_types(), b"select $1\0\0\x01\0\0\0\x19");
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

    #[test]
    fn a_doubtful_statement_is_there_but_of_no_use() {
        let mut server = ServerStatements::new(1);
        server.insert(1);
        server.doubt(1);
        assert!(server.contains(1) && !server.touch(1));
        assert_eq!(server.insert(1), None);
        assert!(server.touch(1));
        server.doubt(1);
        assert_eq!(server.insert(2), Some(1));
    }
}
