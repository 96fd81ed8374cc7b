//! How often a server's catalog is looked into for what clients' statements may come to: regularly, and sooner where
//! something is known to have changed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Between two looks, in milliseconds: where nothing is known to have changed, and at least.
const REFRESH: u64 = 60_000;
const PAUSE: u64 = 2_000;

/// See the module's text. Times are in coarse milliseconds.
#[derive(Debug, Default)]
pub struct Looks {
    /// Something has changed, or is missing.
    changed: AtomicBool,
    /// When the last look began, plus one; 0: never.
    began: AtomicU64,
    /// How long it took: one into a catalog of a hundred thousand relations comes less often.
    took: AtomicU64,
}

impl Looks {
    /// Something has changed, or is missing.
    pub fn note_change(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    pub fn note_duration(&self, took: Duration) {
        let took = took.as_millis() as u64;
        self.took.store(took, Ordering::Relaxed);
    }

    /// Whether to look (again); the caller does so.
    pub fn is_due(&self, now: u64) -> bool {
        let age = match self.began.load(Ordering::Relaxed) {
            0 => u64::MAX,
            began => (now + 1).saturating_sub(began),
        };
        let took = self.took.load(Ordering::Relaxed);
        let changed = self.changed.load(Ordering::Relaxed);
        let due = age >= REFRESH.max(1000 * took) || (changed && age >= PAUSE.max(50 * took));
        if due {
            self.began.store(now + 1, Ordering::Relaxed);
            self.changed.store(false, Ordering::Relaxed);
        }
        due
    }

    /// It is due, whenever the last look was.
    pub fn make_due(&self) {
        self.began.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_takes_long_comes_less_often() {
        let looks = Looks::default();
        assert!(looks.is_due(0));
        assert!(!looks.is_due(REFRESH - 1));
        assert!(looks.is_due(REFRESH));
        looks.note_duration(Duration::from_millis(100));
        assert!(!looks.is_due(REFRESH + 99_999));
        looks.note_change();
        assert!(!looks.is_due(REFRESH + 4_999));
        assert!(looks.is_due(REFRESH + 5_000));
        assert!(!looks.is_due(REFRESH + 104_999));
        assert!(looks.is_due(REFRESH + 105_000));
    }
}
