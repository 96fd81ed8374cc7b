//! What a statement's text says about the session state it may leave behind, as far as no command tag
//! tells.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use crate::router::lexer::{self, Kind, Token};

/// Words that matter, in any case, anywhere in the text. Finding one in a string or a column's name
/// costs a clean-up, not correctness.
const WORDS: [&str; 10] = [
    "set_config",
    "advisory",
    "temp",
    "deallocate",
    "discard",
    "set",
    "listen",
    "execute",
    "prepare",
    "pg_settings",
];

static SEARCH: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .match_kind(aho_corasick::MatchKind::LeftmostFirst)
        .kind(Some(AhoCorasickKind::DFA))
        .build(WORDS)
        .ok()
});

/// See the module's text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traits {
    /// It calls functions that may leave something behind; see [`crate::pool::stateful`].
    pub calls_stateful: bool,
    /// It may drop prepared statements.
    pub deallocates: bool,
    /// It may change settings although its tag is not SET.
    pub sets_config: bool,
    /// It may leave temporary objects or session locks, or drop prepared statements unseen.
    pub leaves_state: bool,
    /// It may set settings with a dot in their name; see [`custom_settings`].
    pub may_set: bool,
    /// It may be LISTEN or UNLISTEN.
    pub may_listen: bool,
    /// It may name a prepared statement; see [`prepared_use`].
    pub may_name_statement: bool,
}

/// What SQL does with a prepared statement that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreparedUse {
    Deallocate,
    Execute,
    Prepare,
}

impl Traits {
    pub fn of(text: &[u8]) -> Self {
        if is_plain_select(text) {
            return Self::default();
        }
        let Some(search) = &*SEARCH else {
            return Self {
                deallocates: true,
                sets_config: true,
                leaves_state: true,
                may_set: true,
                may_listen: true,
                may_name_statement: true,
                ..Self::default()
            };
        };
        let mut traits = Self::default();
        let mut set_configs = 0;
        for found in search.find_iter(text) {
            match found.pattern().as_usize() {
                0 => set_configs += 1,
                // An UPDATE of it sets.
                9 => traits.sets_config = true,
                6 => traits.may_listen = true,
                5 => traits.may_set |= memchr::memchr(b'.', &text[found.end()..]).is_some(),
                7 | 8 => traits.may_name_statement = true,
                word => {
                    traits.leaves_state = true;
                    traits.deallocates |= matches!(word, 3 | 4);
                    traits.may_name_statement |= word == 3;
                }
            }
        }
        if set_configs > 0 && !sets_locally(text, set_configs) {
            traits.sets_config = true;
            traits.may_set = true;
        }
        traits
    }
}

/// Whether each of so many `set_config` in the text is a call that sets for the transaction only, as one can see: as row
/// level security is fed in every transaction. One in a string or a comment is none that one can see.
fn sets_locally(text: &[u8], set_configs: usize) -> bool {
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    let tokens: Vec<Token> = lexer::tokens(text).collect();
    let is_local = |at: usize| {
        let mut depth = 0;
        let mut commas = Vec::new();
        for (index, token) in tokens.iter().enumerate().skip(at + 1) {
            match token.kind {
                Kind::Symbol(b'(' | b'[') => depth += 1,
                Kind::Symbol(b')' | b']') if depth == 1 => {
                    return commas.len() == 2
                        && commas[1] + 2 == index
                        && tokens[index - 1].is_word(text, "true");
                }
                Kind::Symbol(b')' | b']') => depth -= 1,
                Kind::Symbol(b',') if depth == 1 => commas.push(index),
                _ => (),
            }
            // Else many that are not closed would each be read to the end.
            if depth == 0 || index > at + CALL_TOKENS {
                return false;
            }
        }
        false
    };
    let called = |token: &Token| token.is_word(text, "set_config");
    let calls = tokens.iter().enumerate().filter(|(_, t)| called(t));
    calls.filter(|(at, _)| is_local(*at)).count() == set_configs
}

/// Of a call of `set_config`, arguments included.
const CALL_TOKENS: usize = 64;

/// Whether the text is one SELECT that calls nothing and makes no temporary table: none of the words in it means anything
/// then. To see that costs a tenth of looking for them, and most statements of busy clients are such.
fn is_plain_select(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    let text = text.strip_suffix(b";").unwrap_or(text);
    let selects = text
        .get(..6)
        .is_some_and(|word| word.eq_ignore_ascii_case(b"select"));
    let is_temp = |end: usize| end >= 3 && text[end - 3..=end].eq_ignore_ascii_case(b"temp");
    selects
        && memchr::memchr2(b'(', b';', text).is_none()
        && !memchr::memchr2_iter(b'p', b'P', text).any(is_temp)
}

/// The dotted names that the text may set: of `SET [SESSION | LOCAL] a.b` and `set_config('a.b', …)`.
pub fn custom_settings(text: &str) -> Vec<String> {
    let tokens: Vec<Token> = lexer::tokens(text).collect();
    let mut names = Vec::new();
    // Each is the argument of one set_config at most, so that a text of nothing but these costs no more than others.
    let mut strings = tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| token.kind == Kind::String)
        .peekable();
    for (index, token) in tokens.iter().enumerate() {
        let rest = &tokens[index + 1..];
        if token.is_word(text, "set") {
            let skipped = rest
                .first()
                .is_some_and(|t| t.is_word(text, "session") || t.is_word(text, "local"));
            names.extend(dotted_name(text, &rest[usize::from(skipped)..]));
        } else if token.is_word(text, "set_config") {
            while strings.next_if(|(at, _)| *at < index).is_some() {}
            let argument = strings.next();
            let name = argument.map(|(_, t)| text[t.span.clone()].trim_matches('\''));
            names.extend(
                name.filter(|name| name.contains('.'))
                    .map(str::to_ascii_lowercase),
            );
        }
    }
    names
}

/// Of a setting's name, dots included. `set.set.set…` would else be as many names, each as long as the rest of the text.
const NAME_TOKENS: usize = 31;

fn dotted_name(text: &str, tokens: &[Token]) -> Option<String> {
    let mut name = String::new();
    for token in tokens.iter().take(NAME_TOKENS) {
        let part = &text[token.span.clone()];
        match token.kind {
            Kind::Word if name.is_empty() || name.ends_with('.') => {
                name.push_str(&part.to_ascii_lowercase());
            }
            Kind::QuotedIdentifier if name.is_empty() || name.ends_with('.') => {
                name.push_str(part.trim_matches('"'));
            }
            Kind::Symbol(b'.') => name.push('.'),
            _ => break,
        }
    }
    (name.contains('.') && !name.ends_with('.')).then_some(name)
}

/// The prepared statement that a DEALLOCATE, EXECUTE or PREPARE names, and which of these it is; `None` for
/// anything else, DEALLOCATE ALL included.
pub fn prepared_use(text: &str) -> Option<(PreparedUse, String)> {
    let mut tokens = lexer::tokens(text).peekable();
    let verb = tokens.next()?;
    let prepared_use = [
        ("deallocate", PreparedUse::Deallocate),
        ("execute", PreparedUse::Execute),
        ("prepare", PreparedUse::Prepare),
    ]
    .into_iter()
    .find_map(|(word, prepared_use)| verb.is_word(text, word).then_some(prepared_use))?;
    let deallocate = prepared_use == PreparedUse::Deallocate;
    let mut name = tokens.next()?;
    if deallocate
        && name.is_word(text, "prepare")
        && tokens.peek().is_some_and(|t| t.kind != Kind::Symbol(b';'))
    {
        name = tokens.next()?;
    }
    let part = &text[name.span.clone()];
    let name = match name.kind {
        Kind::Word if deallocate && name.is_word(text, "all") => return None,
        Kind::Word => part.to_ascii_lowercase(),
        Kind::QuotedIdentifier => part.trim_matches('"').replace("\"\"", "\""),
        _ => return None,
    };
    Some((prepared_use, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_statements_have_none() {
        assert_eq!(
            Traits::of(b"SELECT abalance FROM pgbench_accounts"),
            Traits::default()
        );
        assert_eq!(Traits::of(b"UPDATE t SET a = 1"), Traits::default());
        assert_eq!(
            Traits::of(b" select \"discard\", 'listen' from up;"),
            Traits::default()
        );
    }

    #[test]
    fn a_select_may_leave_something_behind() {
        assert!(Traits::of(b"SELECT 1 INTO TEMP t").leaves_state);
        assert!(Traits::of(b"select 1 into Temporary t;").leaves_state);
        assert!(Traits::of(b"SELECT 1; DISCARD ALL").deallocates);
        assert!(Traits::of(b"SELECT 1;LISTEN c;").may_listen);
        assert!(Traits::of(b"SELECT pg_advisory_lock (1)").leaves_state);
        assert_eq!(Traits::of(b"SELECT"), Traits::default());
        assert_eq!(Traits::of(b"select p"), Traits::default());
    }

    #[test]
    fn words_are_found_in_any_case() {
        assert!(Traits::of(b"select SET_CONFIG('a.b', '1', false)").sets_config);
        assert!(Traits::of(b"create TEMPORARY table t (a int)").leaves_state);
        assert!(Traits::of(b"SELECT pg_try_advisory_lock(1)").leaves_state);
        assert!(Traits::of(b"set my.x = 1").may_set);
        assert!(Traits::of(b"update PG_SETTINGS set setting = 1").sets_config);
    }

    #[test]
    fn what_is_set_for_the_transaction_is_left_to_nobody() {
        let sets = |text: &[u8]| Traits::of(text).sets_config;
        assert!(!sets(b"SELECT set_config('a.b', $1, true)"));
        assert!(!sets(
            b"select pg_catalog.SET_CONFIG(f(1, 2), (a[1, 2]), TRUE), set_config('c', '', true)"
        ));
        for text in [
            "SELECT set_config('a.b', '1', false)",
            "SELECT set_config('a.b', '1', true), set_config('a.b', '1', false)",
            "SELECT set_config('a.b', '1', $1)",
            "SELECT set_config('a.b', '1', a = true)",
            "SELECT set_config('a.b', '1', not true)",
            "SELECT set_config(is_local => true, setting_name => 'a', new_value => 'b')",
            "SELECT set_config(setting_name => 'a', is_local => false, new_value => true)",
            "DO $$ BEGIN PERFORM set_config('a.b', '1', true); END $$",
            "SELECT \"set_config\"('a.b', '1', false), 'set_config', true",
            "SELECT set_config('a.b', '1', true",
        ] {
            assert!(sets(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn custom_settings_are_named() {
        assert_eq!(custom_settings("BEGIN; SET LOCAL My.x TO 1"), ["my.x"]);
        assert_eq!(
            custom_settings("select set_config('a.B', '1', false)"),
            ["a.b"]
        );
        assert!(custom_settings("SET search_path = a.b").is_empty());
        assert_eq!(
            custom_settings("SELECT set_config('a.b', set_config('c.d', '1', true), true)"),
            ["a.b", "c.d"]
        );
    }

    #[test]
    fn what_a_text_may_set_is_not_much_longer_than_the_text() {
        for text in [
            "set.".repeat(5000) + "x",
            format!("{}'{}.a'", "set_config ".repeat(5000), "x".repeat(50000)),
        ] {
            let length: usize = custom_settings(&text).iter().map(String::len).sum();
            assert!(length < 32 * text.len(), "{length}");
        }
    }

    #[test]
    fn sql_names_prepared_statements() {
        use PreparedUse::{Deallocate, Execute, Prepare};
        let named = |verb, name: &str| Some((verb, name.to_owned()));
        for (sql, expected) in [
            ("DEALLOCATE PREPARE \"S\"", named(Deallocate, "S")),
            (" deallocate Foo;", named(Deallocate, "foo")),
            ("DEALLOCATE prepare", named(Deallocate, "prepare")),
            ("DEALLOCATE ALL", None),
            ("/* a */ Execute s(1, 2)", named(Execute, "s")),
            ("prepare s (int) AS SELECT $1", named(Prepare, "s")),
            ("SELECT 1", None),
        ] {
            assert_eq!(prepared_use(sql), expected, "{sql}");
            assert!(expected.is_none() || Traits::of(sql.as_bytes()).may_name_statement);
        }
    }
}
