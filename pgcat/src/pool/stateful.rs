//! Functions of the users' own that leave something in the session: settings, locks, temporary tables, prepared statements.
//!
//! A SELECT of such a function looks like any other, and its command tag tells nothing. So the server's catalog is asked
//! which functions do so by their sources, which functions call those, and which tables and views do by a trigger, a default,
//! a constraint, a policy or a rule. A text with one of these names is then treated as if it did itself what the function does.
//! What a function puts together only as it runs, C functions, operators, and what has been created a moment ago beside the
//! pooler are not seen.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::Error;
use crate::net::server::Server;
use crate::session::settings::literal;
use crate::session::traits::{Traits, custom_settings};

/// What a source has to match to be looked at for what it does itself, or have a `set_config`: words of [`Traits`], and SET at
/// the beginning of a statement, not that of an UPDATE, nor a SET LOCAL.
const LEAVES: &str = r"advisory_(un)?lock|pg_temp|pg_settings|\m(temp|temporary|deallocate|discard|listen|hold)\M|(^|[;'$]|--[^\n]*\n|\*/|\m(begin|then|else|loop)\M)\s*(re)?set\s(?!\s*local\M)";

/// Of names with a dot that one function, with all that it calls, may set.
const SETTINGS: usize = 256;

/// Functions that call functions that call ...
const DEPTH: usize = 64;

/// So many bytes of sources, as the server has stored them, are looked through for calls.
const SOURCES: u64 = 64 << 20;

/// Between two looks at the catalog, in milliseconds; and at least.
const REFRESH: u64 = 60_000;
const PAUSE: u64 = 2_000;

/// What there is to look at, in a few words that change with it.
const SIGNATURE: &str = "SELECT pg_catalog.concat_ws(' ', \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_proc WHERE oid >= 16384), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_trigger), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_rewrite WHERE oid >= 16384), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_policy), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_attrdef), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, xmin))) FROM pg_catalog.pg_constraint WHERE oid >= 16384), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', inhrelid, xmin))) FROM pg_catalog.pg_inherits), \
     (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', oid, relname))) FROM pg_catalog.pg_class WHERE oid >= 16384 AND relpersistence <> 't')), \
     (SELECT pg_catalog.sum(pg_catalog.pg_column_size(prosrc)) FROM pg_catalog.pg_proc WHERE oid >= 16384)";

/// The users' functions. OFFSET keeps a condition on the source from being tried on the server's own.
const FUNCTIONS: &str = "SELECT name, source FROM (SELECT p.proname AS name, \
     coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc) AS source \
     FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
     JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
     WHERE l.lanname NOT IN ('internal', 'c') AND p.prokind IN ('f', 'p') \
     AND n.nspname NOT IN ('pg_catalog', 'information_schema') OFFSET 0) f";

/// What calls which function, or comes with which relation, other than by a source; and how: `w` when it is written to, `c`
/// whenever it is used, `s` as that relation does.
const USES: &str = "SELECT c.relname, p.proname, CASE WHEN r.oid IS NULL AND y.oid IS NULL THEN 'w' ELSE 'c' END \
     FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_depend d \
     ON d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.refobjid = p.oid \
     LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid \
     LEFT JOIN pg_catalog.pg_policy y ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND y.oid = d.objid \
     LEFT JOIN pg_catalog.pg_trigger t ON d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass AND t.oid = d.objid \
     LEFT JOIN pg_catalog.pg_attrdef a ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND a.oid = d.objid \
     LEFT JOIN pg_catalog.pg_constraint k \
     ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND k.oid = d.objid \
     JOIN pg_catalog.pg_class c ON c.oid = coalesce(r.ev_class, y.polrelid, t.tgrelid, a.adrelid, k.conrelid) \
     WHERE p.oid >= 16384 \
     UNION SELECT v.relname, c.relname, 's' FROM pg_catalog.pg_rewrite r \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid \
     AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid <> r.ev_class \
     JOIN pg_catalog.pg_class v ON v.oid = r.ev_class JOIN pg_catalog.pg_class c ON c.oid = d.refobjid \
     WHERE r.oid >= 16384 \
     UNION SELECT p.relname, c.relname, 's' FROM pg_catalog.pg_inherits i \
     JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
     WHERE p.relkind IN ('r', 'p', 'f') \
     UNION SELECT p.relname, c.relname, 'w' FROM pg_catalog.pg_constraint k \
     JOIN pg_catalog.pg_class p ON p.oid = k.confrelid JOIN pg_catalog.pg_class c ON c.oid = k.conrelid \
     WHERE k.contype = 'f' AND (k.confupdtype NOT IN ('a', 'r') OR k.confdeltype NOT IN ('a', 'r')) \
     UNION SELECT p.proname, f.proname, 'c' FROM pg_catalog.pg_aggregate g JOIN pg_catalog.pg_proc p ON p.oid = g.aggfnoid \
     JOIN pg_catalog.pg_proc f ON f.oid IN (g.aggtransfn, g.aggfinalfn) WHERE p.oid >= 16384";

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
    /// Something has been created.
    changed: AtomicBool,
    /// When the catalog was last asked, plus one; 0: never.
    asked: AtomicU64,
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

    /// The same for a connection that is about to serve its first client, who is not to find that nothing is known yet.
    pub fn is_due_first(&self, now: u64) -> bool {
        self.is_due(now) || !self.answered.load(Ordering::Relaxed)
    }

    /// It is due, whatever was asked.
    pub fn make_due(&self) {
        self.asked.store(0, Ordering::Relaxed);
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
        let outcome = self.ask(server, limit).await;
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

type Row = Vec<Option<String>>;

/// The rows of more than one column, under a limit that is ours and not the role's.
async fn rows(server: &mut Server, sql: &str, limit: Duration) -> Result<Vec<Row>, Error> {
    let limit = limit.as_millis().clamp(1, i32::MAX as u128);
    // A timeout that runs already is not made longer by another.
    let sql = format!(
        "SELECT pg_catalog.set_config('statement_timeout', '0', true);\
         SELECT pg_catalog.set_config('statement_timeout', '{limit}', true);{sql}"
    );
    let mut rows = server.simple_query(&sql, &mut Vec::new()).await?.rows;
    rows.retain(|row| row.len() > 1);
    Ok(rows)
}

/// How something comes to leave what another leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Its source names that; does it write?
    Source {
        writes: bool,
    },
    Always,
    Writing,
    /// As that does.
    Same,
}

/// All functions and relations, by name.
#[derive(Default)]
struct Graph {
    numbers: HashMap<String, usize>,
    effects: Vec<Option<Effect>>,
    /// Who, whom, how.
    uses: Vec<(usize, usize, Use)>,
}

impl Graph {
    fn number(&mut self, name: &str) -> usize {
        let next = self.effects.len();
        let number = *self
            .numbers
            .entry(name.to_ascii_lowercase())
            .or_insert(next);
        if number == next {
            self.effects.push(None);
        }
        number
    }

    fn add(&mut self, number: usize, effect: &Effect) -> bool {
        match &mut self.effects[number] {
            Some(known) => {
                let less = known.by_writing && !effect.by_writing;
                known.by_writing &= effect.by_writing;
                known.add(effect) || less
            }
            none => {
                *none = Some(effect.clone());
                true
            }
        }
    }

    fn note_source(&mut self, caller: usize, source: &str) {
        let words: BTreeSet<usize> = names(source)
            .filter_map(|name| self.numbers.get(&name).copied())
            .collect();
        let writes = writes(source);
        let uses = words
            .into_iter()
            .filter(|word| *word != caller)
            .map(|word| (caller, word, Use::Source { writes }));
        self.uses.extend(uses);
    }

    /// What is left by those that use what leaves something.
    fn spread(&mut self) {
        for _ in 0..DEPTH {
            let mut more = false;
            for (user, used, how) in std::mem::take(&mut self.uses) {
                if let Some(effect) = &self.effects[used] {
                    let by_writing = match how {
                        Use::Source { writes } if effect.by_writing && !writes => None,
                        Use::Source { .. } | Use::Always => Some(false),
                        Use::Writing => Some(true),
                        Use::Same => Some(effect.by_writing),
                    };
                    if let Some(by_writing) = by_writing {
                        let effect = Effect {
                            by_writing,
                            ..effect.clone()
                        };
                        more |= self.add(user, &effect);
                    }
                }
                self.uses.push((user, used, how));
            }
            if !more {
                break;
            }
        }
    }
}

/// Words and quoted names of a source, in lower case.
fn names(source: &str) -> impl Iterator<Item = String> {
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    let words = source
        .split(move |c| !is_word(c))
        .filter(|word| !word.is_empty());
    let quoted = source.split('"').skip(1).filter(move |name| {
        let name: &str = name;
        !name.is_empty() && !name.chars().all(is_word)
    });
    words.chain(quoted).map(str::to_ascii_lowercase)
}

fn writes(source: &str) -> bool {
    let source = source.to_ascii_lowercase();
    ["insert", "update", "delete", "merge", "truncate", "copy"]
        .iter()
        .any(|word| source.contains(word))
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
