//! Whether a pool hands out server connections: PAUSE and RESUME, DISABLE and ENABLE.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Gate {
    paused: AtomicBool,
    suspended: AtomicBool,
    disabled: AtomicBool,
    /// Whether it is paused or suspended, for one look per transaction.
    shut: AtomicBool,
    opened: Notify,
    /// Coarse milliseconds. Nobody is held to have waited before.
    opened_at: AtomicU64,
}

impl Gate {
    /// No connection is handed out.
    pub fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Acquire)
    }

    /// No client is let in.
    pub fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Acquire)
    }

    pub fn opened_at(&self) -> u64 {
        self.opened_at.load(Ordering::Relaxed)
    }

    pub fn pause(&self) {
        self.paused.store(true, Ordering::Release);
        self.shut.store(true, Ordering::Release);
    }

    pub fn suspend(&self) {
        self.suspended.store(true, Ordering::Release);
        self.shut.store(true, Ordering::Release);
    }

    /// Ends a pause and a suspension.
    pub fn resume(&self, now: u64) {
        self.opened_at.store(now, Ordering::Relaxed);
        self.paused.store(false, Ordering::Release);
        self.suspended.store(false, Ordering::Release);
        self.shut.store(false, Ordering::Release);
        self.opened.notify_one();
    }

    pub fn set_disabled(&self, disabled: bool) {
        self.disabled.store(disabled, Ordering::Release);
    }

    /// Waits until connections are handed out. Who has waited goes on in his turn, over all threads: when the one before
    /// him has dropped his [`Passage`].
    pub async fn pass(&self) -> Option<Passage<'_>> {
        while self.is_shut() {
            self.opened.notified().await;
            if !self.is_shut() {
                return Some(Passage(self));
            }
        }
        None
    }
}

/// The way through a gate that has been opened, for one at a time.
#[derive(Debug)]
pub struct Passage<'g>(&'g Gate);

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        // While it is shut those who wait would wake each other for ever.
        if !self.0.is_shut() {
            self.0.opened.notify_one();
        }
    }
}
