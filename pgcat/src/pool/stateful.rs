//! Functions of the users' own that leave something in the session: settings, locks, temporary tables, prepared statements.
//!
//! A SELECT of such a function looks like any other, and its command tag tells nothing. So the server's catalog is asked
//! which functions do so by their sources, which functions call those, and which tables and views do by a trigger, a default,
//! a policy or a rule. A text with one of these names is then treated as if it did itself what the function does.
//! What a function puts together only as it runs, C functions, and what has been created a moment ago beside the pooler
//! are not seen.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::Error;
use crate::net::server::Server;
use crate::session::settings::literal;
use crate::session::traits::{Traits, custom_settings};

/// What a source has to match for its function to be looked at: words of [`Traits`], and SET at the beginning of a statement,
/// not that of an UPDATE.
const LEAVES: &str = r"set_config|advisory_(un)?lock|\m(temp|temporary|deallocate|discard|listen|hold)\M|(^|[;'$]|\m(begin|then|else|loop)\M)\s*(re)?set\s";

/// Functions that call functions that call ...
const DEPTH: usize = 8;

/// Between two looks at the catalog, in milliseconds; and at least.
const REFRESH: u64 = 60_000;
const PAUSE: u64 = 2_000;

/// See the module's text.
#[derive(Debug, Default)]
pub struct StatefulFunctions {
    /// There are some: most servers have none, and their clients' statements are not searched.
    any: AtomicBool,
    known: Mutex<Option<Arc<Known>>>,
    /// Something has been created.
    changed: AtomicBool,
    /// When the catalog was last asked, plus one; 0: never.
    asked: AtomicU64,
}

#[derive(Debug)]
struct Known {
    names: AhoCorasick,
    /// By the number of the name.
    effects: Vec<Effect>,
}

/// What is left by a call.
#[derive(Debug, Clone, Default)]
pub struct Effect {
    pub traits: Traits,
    /// Names with a dot that may have been set.
    pub settings: Vec<String>,
    /// The name is that of a table that has to be written to for it.
    by_writing: bool,
}

impl Effect {
    fn of(source: &str) -> Self {
        let found = Traits::of(source.as_bytes());
        let listens = found.may_listen || source.to_ascii_lowercase().contains("hold");
        Self {
            traits: Traits {
                deallocates: found.deallocates,
                // A SET has no word of its own among the traits: its tag tells.
                sets_config: true,
                leaves_state: found.leaves_state || listens,
                ..Traits::default()
            },
            settings: custom_settings(source),
            by_writing: false,
        }
    }

    fn add(&mut self, other: &Self) {
        let traits = &mut self.traits;
        traits.deallocates |= other.traits.deallocates;
        traits.sets_config |= other.traits.sets_config;
        traits.leaves_state |= other.traits.leaves_state;
        for name in &other.settings {
            if !self.settings.contains(name) {
                self.settings.push(name.clone());
            }
        }
    }
}

impl StatefulFunctions {
    /// Whether the text may call one.
    pub fn are_called(&self, text: &[u8]) -> bool {
        self.any.load(Ordering::Relaxed)
            && self
                .known()
                .is_some_and(|known| known.found(text).next().is_some())
    }

    /// What those that the text may call leave, all together.
    pub fn effect(&self, text: &[u8]) -> Effect {
        let mut effect = Effect::default();
        if let Some(known) = self.known() {
            known.found(text).for_each(|found| effect.add(found));
        }
        effect
    }

    /// Something that may call functions, or be called, has been created.
    pub fn note_change(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Whether the catalog is to be read (again); the caller does so.
    pub fn is_due(&self, now: u64) -> bool {
        let age = match self.asked.load(Ordering::Relaxed) {
            0 => u64::MAX,
            asked => (now + 1).saturating_sub(asked),
        };
        let due = age >= REFRESH || (age >= PAUSE && self.changed.load(Ordering::Relaxed));
        if due {
            self.asked.store(now + 1, Ordering::Relaxed);
            self.changed.store(false, Ordering::Relaxed);
        }
        due
    }

    /// The catalog was not read after all: it is still due.
    pub fn was_not_asked(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }

    /// Asks the server. One that does not understand, such as another pooler, leaves what is known.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn learn(&self, server: &mut Server) -> Result<(), Error> {
        match Known::ask(server).await {
            Ok(known) => {
                self.any.store(known.is_some(), Ordering::Relaxed);
                *self.lock() = known.map(Arc::new);
                Ok(())
            }
            Err(Error::ServerRefused(fields)) => {
                log::warn!("functions that leave something in the session: {fields}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn known(&self) -> Option<Arc<Known>> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    async fn ask(server: &mut Server) -> Result<Option<Self>, Error> {
        let mut effects = HashMap::new();
        let mut pattern = LEAVES.to_owned();
        for _ in 0..DEPTH {
            let fresh = functions(server, &pattern, &effects).await?;
            if fresh.is_empty() {
                break;
            }
            let names: Vec<String> = fresh.keys().map(|name| escaped(name)).collect();
            pattern = format!(r"\m({})\M", names.join("|"));
            effects.extend(fresh);
        }
        if effects.is_empty() {
            return Ok(None);
        }
        let of_relations = relations(server, &effects).await?;
        for (relation, effect) in of_relations {
            match effects.entry(relation) {
                Entry::Vacant(entry) => {
                    entry.insert(effect);
                }
                Entry::Occupied(mut entry) => {
                    entry.get_mut().by_writing &= effect.by_writing;
                    entry.get_mut().add(&effect);
                }
            }
        }
        Ok(Self::new(effects))
    }

    fn new(effects: HashMap<String, Effect>) -> Option<Self> {
        let (names, effects): (Vec<String>, Vec<Effect>) = effects.into_iter().unzip();
        let names = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .match_kind(MatchKind::LeftmostLongest)
            .build(names)
            .ok()?;
        Some(Self { names, effects })
    }

    fn found<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = &'a Effect> {
        let is_within_word = |at: Option<usize>| {
            at.and_then(|at| text.get(at))
                .is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$'))
        };
        let writes = !is_read(text);
        self.names
            .find_iter(text)
            .filter(move |found| {
                !is_within_word(found.start().checked_sub(1)) && !is_within_word(Some(found.end()))
            })
            .map(|found| &self.effects[found.pattern().as_usize()])
            .filter(move |effect| writes || !effect.by_writing)
    }
}

/// Whether the text begins with SELECT and holds no other statement, as far as a glance shows.
fn is_read(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    let selects = text
        .get(..6)
        .is_some_and(|word| word.eq_ignore_ascii_case(b"select"));
    let text = text.strip_suffix(b";").unwrap_or(text);
    selects && memchr::memchr(b';', text).is_none()
}

/// The functions whose sources match, without those that are known, with what they leave.
async fn functions(
    server: &mut Server,
    pattern: &str,
    known: &HashMap<String, Effect>,
) -> Result<HashMap<String, Effect>, Error> {
    // OFFSET keeps the pattern from being tried on the server's own functions.
    let sql = format!(
        "SELECT name, source FROM (SELECT p.proname AS name, \
         coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc) AS source \
         FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
         JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
         WHERE l.lanname NOT IN ('internal', 'c') AND p.prokind IN ('f', 'p') \
         AND n.nspname NOT IN ('pg_catalog', 'information_schema') OFFSET 0) f WHERE source OPERATOR(pg_catalog.~*) {}",
        literal(pattern)
    );
    // Else they match because they call those.
    let first = known.is_empty();
    let called = Known::new(known.clone());
    let mut fresh: HashMap<String, Effect> = HashMap::new();
    for row in server.simple_query(&sql, &mut Vec::new()).await?.rows {
        if let Ok([Some(name), Some(source)]) = <[Option<String>; 2]>::try_from(row)
            && !known.contains_key(&name)
        {
            let effect = fresh.entry(name).or_default();
            match &called {
                Some(called) if !first => called
                    .found(source.as_bytes())
                    .for_each(|callee| effect.add(callee)),
                _ => effect.add(&Effect::of(&source)),
            }
        }
    }
    Ok(fresh)
}

/// The tables and views whose use calls one of the functions.
async fn relations(
    server: &mut Server,
    functions: &HashMap<String, Effect>,
) -> Result<Vec<(String, Effect)>, Error> {
    let names: Vec<String> = functions.keys().map(|name| literal(name)).collect();
    let sql = format!(
        "WITH RECURSIVE uses(relation, name, written) AS (\
         SELECT coalesce(r.ev_class, y.polrelid, t.tgrelid, a.adrelid), p.proname, \
         r.oid IS NULL AND y.oid IS NULL \
         FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_depend d \
         ON d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.refobjid = p.oid \
         LEFT JOIN pg_catalog.pg_rewrite r \
         ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid \
         LEFT JOIN pg_catalog.pg_policy y \
         ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND y.oid = d.objid \
         LEFT JOIN pg_catalog.pg_trigger t \
         ON d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass AND t.oid = d.objid \
         LEFT JOIN pg_catalog.pg_attrdef a \
         ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND a.oid = d.objid \
         WHERE p.proname IN ({}) \
         UNION SELECT r.ev_class, u.name, u.written FROM uses u JOIN pg_catalog.pg_depend d \
         ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = u.relation \
         AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
         JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid) \
         SELECT c.relname, u.name, u.written FROM uses u JOIN pg_catalog.pg_class c ON c.oid = u.relation",
        names.join(", ")
    );
    let rows = server.simple_query(&sql, &mut Vec::new()).await?.rows;
    let read = |row| {
        let Ok([Some(relation), Some(name), Some(written)]) = <[Option<String>; 3]>::try_from(row)
        else {
            return None;
        };
        let effect = Effect {
            by_writing: written == "t",
            ..functions.get(&name)?.clone()
        };
        Some((relation, effect))
    };
    Ok(rows.into_iter().filter_map(read).collect())
}

/// The name for a regular expression.
fn escaped(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_ascii() && !character.is_ascii_alphanumeric() && character != '_' {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stateful(effects: &[(&str, Effect)]) -> StatefulFunctions {
        let effects = effects
            .iter()
            .map(|(name, effect)| ((*name).to_owned(), effect.clone()));
        let stateful = StatefulFunctions::default();
        stateful.any.store(true, Ordering::Relaxed);
        *stateful.lock() = Known::new(effects.collect()).map(Arc::new);
        stateful
    }

    #[test]
    fn names_are_whole_words() {
        let effect = Effect::of("SELECT set_config('app.tenant', $1, false)");
        assert_eq!(effect.settings, ["app.tenant"]);
        let stateful = stateful(&[("enter", effect)]);
        assert!(stateful.are_called(b"SELECT Enter(1)"));
        assert!(stateful.are_called(b"SELECT public.\"enter\"(1)"));
        assert!(!stateful.are_called(b"SELECT reenter(1), enter_now(), enter$()"));
        assert!(stateful.effect(b"SELECT enter(1)").traits.sets_config);
        assert!(!stateful.effect(b"SELECT enter(1)").traits.leaves_state);
    }

    #[test]
    fn tables_with_triggers_are_written_to() {
        let effect = Effect {
            by_writing: true,
            ..Effect::of("PERFORM pg_advisory_lock(1);")
        };
        let stateful = stateful(&[("orders", effect)]);
        assert!(!stateful.are_called(b"SELECT * FROM orders;"));
        assert!(stateful.are_called(b"INSERT INTO orders VALUES (1)"));
        assert!(stateful.are_called(b"SELECT 1; DELETE FROM orders"));
        assert!(
            stateful
                .effect(b"UPDATE orders SET a = 1")
                .traits
                .leaves_state
        );
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("a_b.c d"), r"a_b\.c\ d");
    }
}
