//! A thread's clock: real time, to the microsecond, read at most once per turn of the event loop.
//!
//! Statistics want the time twice per transaction, and reading it costs some 20 ns (several hundred
//! where the kernel has no vDSO clock): on a busy thread one turn serves many clients, who then share
//! one reading. All that happens in one turn happens at one moment.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A thread that never sleeps has no turns: its readings are good for so many uses.
const USES: u32 = 64;

/// See the module's text.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    /// Microseconds since `began`, as last read.
    now: Cell<u64>,
    uses: Cell<u32>,
    woken: Woken,
}

/// Set by the runtime when the thread wakes up.
#[derive(Debug, Clone, Default)]
pub struct Woken(Arc<AtomicBool>);

impl Woken {
    /// The thread has slept: for the runtime's `on_thread_unpark`.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Clock {
    pub fn new(began: Instant, woken: Woken) -> Self {
        Self {
            began,
            now: Cell::new(0),
            uses: Cell::new(USES),
            woken,
        }
    }

    /// Microseconds since the pooler began.
    pub fn now(&self) -> u64 {
        let uses = self.uses.get();
        if uses < USES && !self.woken.0.load(Ordering::Relaxed) {
            self.uses.set(uses + 1);
            return self.now.get();
        }
        self.woken.0.store(false, Ordering::Relaxed);
        self.uses.set(0);
        // Never 0, which stands for "not yet" where times are kept.
        let now = self.began.elapsed().as_micros() as u64 + 1;
        self.now.set(now);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_has_one_time() {
        let woken = Woken::default();
        let clock = Clock::new(Instant::now(), woken.clone());
        let first = clock.now();
        assert!(first > 0);
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(clock.now(), first);
        woken.set();
        let second = clock.now();
        assert!(second > first);
        std::thread::sleep(std::time::Duration::from_millis(2));
        let later = (0..=USES).map(|_| clock.now()).last();
        assert!(later > Some(second), "not even without a turn");
    }
}
