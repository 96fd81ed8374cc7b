//! Parts of queries that are computed on their own, and so may be computed once for all stream tables that have them.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::Settings;

/// What two fragments have in common that are written alike, with all names resolved, mean the same by their settings, and are to be
/// kept in the same way. Of one moment, that is: names may come to stand for something else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Digest(pub String);

/// A part of a query.
#[derive(Debug, Clone)]
pub(crate) struct Fragment {
    pub digest: Digest,
    /// The whole query. Its columns are called `c1…`, but for those of set operations.
    pub sql: String,
    pub columns: usize,
    /// Those before it in their list, from this one on, are parts of it.
    pub parts: usize,
}

/// The shared stages that a query may read instead of computing the same.
#[derive(Debug, Clone)]
pub(crate) struct Sharing {
    /// What a text has its meaning from.
    context: String,
    tables: BTreeMap<Digest, i64>,
    /// Found not to be what they seem.
    refused: Vec<Digest>,
}

impl Sharing {
    /// `mode` is the stream table's `refresh_mode`.
    pub(crate) fn new(settings: &Settings, mode: &str, tables: BTreeMap<Digest, i64>) -> Self {
        let Settings {
            time_zone,
            search_path,
            text_search_config,
            knows_cluster: _,
        } = settings;
        Self {
            context: format!("{mode}\0{time_zone}\0{search_path}\0{text_search_config}\0"),
            tables,
            refused: Vec::new(),
        }
    }

    /// Does without these from now on, and does not ask for them again.
    pub(crate) fn refuse(&mut self, ids: &[i64]) {
        let wrong = self.tables.iter().filter(|(_, id)| ids.contains(id));
        self.refused.extend(wrong.map(|(digest, _)| digest.clone()));
        self.set_aside(ids);
    }

    /// The same of what cannot be shared.
    pub(crate) fn refuse_fragment(&mut self, digest: &Digest) {
        self.tables.remove(digest);
        self.refused.push(digest.clone());
    }

    /// There is one more.
    pub(crate) fn add(&mut self, digest: &Digest, id: i64) {
        self.tables.insert(digest.clone(), id);
    }

    /// Does without any.
    pub(crate) fn clear(&mut self) {
        self.tables.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Does without these this time.
    pub(crate) fn set_aside(&mut self, ids: &[i64]) {
        self.tables.retain(|_, id| !ids.contains(id));
    }

    /// Does without any but these.
    pub(crate) fn keep(&mut self, ids: &[i64]) {
        self.tables.retain(|_, id| ids.contains(id));
    }

    pub(crate) fn has_refused(&self, digest: &Digest) -> bool {
        self.refused.contains(digest)
    }

    /// Nothing is shared.
    pub(crate) fn none(settings: &Settings, mode: &str) -> Self {
        Self::new(settings, mode, BTreeMap::new())
    }

    pub(super) fn digest(&self, sql: &str) -> Digest {
        let hash = Sha256::new()
            .chain_update(&self.context)
            .chain_update(sql)
            .finalize();
        Digest(hash.iter().take(16).map(|b| format!("{b:02x}")).collect())
    }

    pub(super) fn table(&self, digest: &Digest) -> Option<i64> {
        self.tables.get(digest).copied()
    }
}

/// The name of a shared stage's table.
pub(crate) fn shared_name(id: i64) -> String {
    format!("shared_{id}")
}
