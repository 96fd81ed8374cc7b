//! A thread's memory of what statements do.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::functions::KnownCatalog;
use crate::config::model::Pool;
use crate::router::analysis::Analysis;
use crate::router::comment::CommentRouting;

/// Looks into the statements of a pool that is configured to have them routed by their text.
#[derive(Debug)]
pub struct Analyser {
    pub comments: Option<CommentRouting>,
    parses: bool,
    sharding_key: Option<String>,
    max_length: usize,
    /// By text.
    known: RefCell<HashMap<Box<[u8]>, Rc<Analysis>>>,
    pub catalog: KnownCatalog,
}

/// Distinct texts that are remembered. Applications have fewer, unless they write values into them.
const REMEMBERED: usize = 4096;
/// Longer texts are parsed each time.
const LONGEST_REMEMBERED: usize = 16 * 1024;

impl Analyser {
    /// `None`: the pool's statements go where its clients go, whatever they say.
    pub fn of(pool: &Pool) -> Option<Self> {
        let comments = CommentRouting::of(pool);
        let sharding_key = pool.automatic_sharding_key.clone();
        let parses = pool.query_parser_enabled
            && (pool.query_parser_read_write_splitting || sharding_key.is_some());
        (comments.is_some() || parses).then(|| Self {
            comments,
            parses,
            sharding_key,
            max_length: pool.query_parser_max_length.unwrap_or(usize::MAX),
            known: RefCell::default(),
            catalog: KnownCatalog::default(),
        })
    }

    /// What a statement does; `None`: it is not to be looked into, or cannot be.
    pub fn analyse(&self, text: &[u8]) -> Option<Rc<Analysis>> {
        if !self.parses || text.len() > self.max_length {
            return None;
        }
        if let Some(known) = self.known.borrow().get(text) {
            return Some(known.clone());
        }
        // In another encoding, say; see `Session::inspect_statement`.
        let readable = std::str::from_utf8(text).ok()?;
        let analysis = Rc::new(Analysis::of(readable, self.sharding_key.as_deref()));
        if text.len() <= LONGEST_REMEMBERED {
            let mut known = self.known.borrow_mut();
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(text.into(), analysis.clone());
        }
        Some(analysis)
    }
}
