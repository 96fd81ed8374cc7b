//! What the last refreshes have learnt, so that the next ones need not ask.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::StreamTableId;
use super::record::Record;

/// Records remembered. Beyond, it starts anew: stream tables come and go.
const REMEMBERED: usize = 1000;

/// Stream tables as their last refreshes left them. Nothing of it is believed before the server has confirmed it, in the
/// transaction that relies on it, so it may be about another server, or stale: then it costs a round trip.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    records: HashMap<StreamTableId, Record>,
    /// By what names they were asked for.
    names: HashMap<String, StreamTableId>,
}

impl Memory {
    fn locked(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record out: whoever has it puts it back, if it still holds.
    pub(super) fn take(&self, id: StreamTableId) -> Option<Record> {
        self.locked().records.remove(&id)
    }

    /// The same by a name, which may stand for another one by now.
    pub(super) fn take_named(&self, name: &str) -> Option<Record> {
        let mut remembered = self.locked();
        let id = remembered.names.get(name).copied()?;
        remembered.records.remove(&id)
    }

    pub(super) fn keep(&self, mut record: Record, name: Option<String>) {
        record.grows_old();
        let mut remembered = self.locked();
        if remembered.records.len().max(remembered.names.len()) >= REMEMBERED {
            *remembered = Remembered::default();
        }
        if let Some(name) = name {
            remembered.names.insert(name, record.id);
        }
        remembered.records.insert(record.id, record);
    }
}
