//! Who calls whom.

use std::collections::{BTreeSet, HashMap};

use super::Effect;

/// Functions that call functions that call ...
const DEPTH: usize = 64;

/// How something comes to leave what another leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
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
pub(super) struct Graph {
    pub(super) numbers: HashMap<String, usize>,
    pub(super) effects: Vec<Option<Effect>>,
    /// Who, whom, how.
    pub(super) uses: Vec<(usize, usize, Use)>,
}

impl Graph {
    pub(super) fn number(&mut self, name: &str) -> usize {
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

    pub(super) fn add(&mut self, number: usize, effect: &Effect) -> bool {
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

    pub(super) fn note_source(&mut self, caller: usize, source: &str) {
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
    pub(super) fn spread(&mut self) {
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
