//! Functions of the users' own that leave something in the session: settings, locks, temporary tables, prepared statements.
//!
//! A SELECT of such a function looks like any other, and its command tag tells nothing. So the server's catalog is asked
//! which functions do so by their sources, which functions call those, and which tables and views do by a trigger, a default,
//! a constraint, a policy or a rule. A text with one of these names is then treated as if it did itself what the function does.
//! What a function puts together only as it runs, C functions, operators, and what has been created a moment ago beside the
//! pooler are not seen.

mod catalog;
mod graph;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aho_corasick::{AhoCorasick, MatchKind};

use self::catalog::{FUNCTIONS, LEAVES, Row, SIGNATURE, USES, rows};
use self::graph::{Graph, Use};
use super::looks::Looks;
use crate::error::Error;
use crate::net::server::Server;
use crate::session::settings::literal;
use crate::session::traits::{Traits, custom_settings};

/// Of names with a dot that one function, with all that it calls, may set.
const SETTINGS: usize = 256;

/// So many bytes of sources, as the server has stored them, are looked through for calls.
const SOURCES: u64 = 64 << 20;

/// See the module's text.
#[derive(Debug, Default)]
pub struct StatefulFunctions {
    /// There are some: most servers have none, and their clients' statements are not searched.
    any: AtomicBool,
    known: Mutex<Option<Arc<Known>>>,
    /// What [`SIGNATURE`] said of what is known.
    signature: Mutex<Option<Row>>,
    /// Counts what has been known.
    version: AtomicU64,
    /// At the server's catalog.
    pub looks: Looks,
    /// Some server has answered, if only by an error.
    answered: AtomicBool,
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
    pub settings: BTreeSet<String>,
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
            settings: custom_settings(source).into_iter().take(SETTINGS).collect(),
            by_writing: false,
        }
    }

    /// Says whether that is more than before.
    fn add(&mut self, other: &Self) -> bool {
        let before = (self.traits, self.settings.len());
        let traits = &mut self.traits;
        traits.deallocates |= other.traits.deallocates;
        traits.sets_config |= other.traits.sets_config;
        traits.leaves_state |= other.traits.leaves_state;
        for name in &other.settings {
            if self.settings.len() < SETTINGS && !self.settings.contains(name) {
                self.settings.insert(name.clone());
            }
        }
        before != (self.traits, self.settings.len())
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
            for found in known.found(text) {
                effect.add(found);
            }
        }
        effect
    }

    /// Changes with what is known: what was found out about a text by an earlier version may not hold any more.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Whether to ask by a connection that is about to serve its first client, who is not to find that nothing is known yet.
    pub fn is_due_first(&self, now: u64) -> bool {
        self.looks.is_due(now) || !self.answered.load(Ordering::Relaxed)
    }

    /// Asks the server, for each of four answers as long as the limit. One that does not understand, such as another pooler,
    /// leaves what is known.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn learn(
        self: &Arc<Self>,
        server: &mut Server,
        limit: Duration,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let outcome = self.ask(server, limit).await;
        self.looks.note_duration(began.elapsed());
        self.answered.store(true, Ordering::Relaxed);
        match outcome {
            Err(Error::ServerRefused(fields)) => {
                log::warn!("functions that leave something in the session: {fields}");
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn ask(self: &Arc<Self>, server: &mut Server, limit: Duration) -> Result<(), Error> {
        // Reading before a change comes, and the signature then, would hide it.
        let signature = rows(server, SIGNATURE, limit).await?.pop();
        if signature.is_some() && *lock(&self.signature) == signature {
            return Ok(());
        }
        let sql = format!(
            "SELECT name, source, leaves FROM (SELECT name, source, source OPERATOR(pg_catalog.~*) {} AS leaves \
             FROM ({FUNCTIONS}) g) h WHERE leaves OR source OPERATOR(pg_catalog.~*) 'set_config'",
            literal(LEAVES)
        );
        let leaving = rows(server, &sql, limit).await?;
        if !leaving.is_empty() {
            let size = signature.as_ref().and_then(|row| row.get(1)?.as_deref());
            let sources = if size.and_then(|size| size.parse().ok()) < Some(SOURCES) {
                rows(server, FUNCTIONS, limit).await?
            } else {
                log::warn!(
                    "too many functions to see which call those that leave something in the session"
                );
                Vec::new()
            };
            let uses = rows(server, USES, limit).await?;
            let stateful = self.clone();
            let finding = tokio::task::spawn_blocking(move || {
                stateful.note(Known::find(leaving, &sources, uses), signature);
            });
            // Should it take longer, it goes on beside.
            let _ = tokio::time::timeout(limit, finding).await;
        } else {
            self.note(None, signature);
        }
        Ok(())
    }

    fn note(&self, known: Option<Known>, signature: Option<Row>) {
        self.any.store(known.is_some(), Ordering::Relaxed);
        *lock(&self.known) = known.map(Arc::new);
        *lock(&self.signature) = signature;
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    fn known(&self) -> Option<Arc<Known>> {
        lock(&self.known).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    fn find(leaving: Vec<Row>, sources: &[Row], uses: Vec<Row>) -> Option<Self> {
        let mut graph = Graph::default();
        for row in leaving {
            if let [Some(name), Some(source), Some(leaves)] = &row[..]
                && (leaves == "t" || Traits::of(source.as_bytes()).sets_config)
            {
                let number = graph.number(name);
                graph.add(number, &Effect::of(source));
            }
        }
        for row in sources {
            if let Some(Some(name)) = row.first() {
                graph.number(name);
            }
        }
        for row in uses {
            if let [Some(user), Some(used), Some(how)] = &row[..] {
                let how = match how.as_str() {
                    "w" => Use::Writing,
                    "s" => Use::Same,
                    _ => Use::Always,
                };
                let of = (graph.number(user), graph.number(used), how);
                graph.uses.push(of);
            }
        }
        for row in sources {
            if let [Some(name), Some(source)] = &row[..] {
                let caller = graph.number(name);
                graph.note_source(caller, source);
            }
        }
        graph.spread();
        let Graph {
            numbers,
            mut effects,
            ..
        } = graph;
        let effects = numbers
            .into_iter()
            .filter_map(|(name, number)| Some((name, effects[number].take()?)));
        Self::new(effects.collect())
    }

    fn new(effects: HashMap<String, Effect>) -> Option<Self> {
        // As they are written in a text: `"` is doubled between quotes.
        let (names, effects): (Vec<String>, Vec<Effect>) = effects
            .into_iter()
            .map(|(name, effect)| (name.replace('"', "\"\""), effect))
            .unzip();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn stateful(effects: &[(&str, Effect)]) -> StatefulFunctions {
        let effects = effects
            .iter()
            .map(|(name, effect)| ((*name).to_owned(), effect.clone()));
        let stateful = StatefulFunctions::default();
        stateful.any.store(true, Ordering::Relaxed);
        *lock(&stateful.known) = Known::new(effects.collect()).map(Arc::new);
        stateful
    }

    #[test]
    fn names_are_whole_words() {
        let effect = Effect::of("SELECT set_config('app.tenant', $1, false)");
        assert!(effect.settings.contains("app.tenant"));
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
    fn what_is_called_adds_to_what_a_function_does_itself() {
        let row = |cells: &[&str]| cells.iter().map(|cell| Some((*cell).to_owned())).collect();
        let tenant = ["tenant", "PERFORM set_config('app.tenant', '1', false)"];
        let locks = ["Lock \"it\"", "PERFORM pg_advisory_lock(1)"];
        let both = [
            "both",
            "PERFORM set_config('app.user', '1', false); PERFORM tenant();",
        ];
        let local = ["local", "PERFORM set_config('app.local', '1', true)"];
        let all = ["all", "PERFORM BOTH(); INSERT INTO t VALUES (1)"];
        let reads = ["reads", "PERFORM * FROM t"];
        let sources = [tenant, locks, both, local, all, reads].map(|source| row(&source));
        let leaving = [(tenant, "f"), (locks, "t"), (both, "f"), (local, "f")]
            .map(|([name, source], leaves)| row(&[name, source, leaves]))
            .to_vec();
        let uses = vec![row(&["t", "Lock \"it\"", "w"]), row(&["v", "t", "s"])];
        let stateful = StatefulFunctions::default();
        stateful.any.store(true, Ordering::Relaxed);
        *lock(&stateful.known) = Known::find(leaving, &sources, uses).map(Arc::new);
        let settings = |text: &[u8]| Vec::from_iter(stateful.effect(text).settings);
        assert_eq!(settings(b"SELECT both()"), ["app.tenant", "app.user"]);
        let all = stateful.effect(b"SELECT all()");
        assert_eq!(all.settings.len(), 2);
        assert!(all.traits.leaves_state);
        assert!(stateful.are_called(b"SELECT \"Lock \"\"it\"\"\"()"));
        assert!(stateful.are_called(b"DELETE FROM v"));
        assert!(!stateful.are_called(b"SELECT reads(), local() FROM v"));
    }
}
