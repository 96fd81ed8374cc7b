//! How far standbys have replayed, and how long they are behind.
//!
//! A standby is behind since the moment when the primary had first flushed something that the standby
//! has not replayed. So a standby of an idle primary is never behind, whatever the time of its last
//! transaction, and clocks need not agree.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::wal::{Position, ServerState};

/// What was last seen of one server.
#[derive(Debug, Default)]
pub struct Replay {
    /// Behind by more than the pool allows: reads go elsewhere.
    lagging: AtomicBool,
    seen: Mutex<Option<Seen>>,
}

/// Where a server stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Milliseconds since the pooler began, before the server was asked.
    pub at: u64,
    pub position: Position,
    /// How long it is behind, in milliseconds; `None`: there is nothing to compare it with.
    pub behind: Option<u64>,
}

/// Whether a server has replayed a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Has,
    /// It had not a moment ago, and is not worth asking yet.
    Lacks,
    Unknown,
}

/// After so many milliseconds a server that had not replayed a position may have.
const ASK_AGAIN: u64 = 100;

impl Replay {
    pub fn is_lagging(&self) -> bool {
        self.lagging.load(Ordering::Relaxed)
    }

    /// Notes whether it is behind by too much. Says whether that is news.
    pub fn note_lagging(&self, lagging: bool) -> bool {
        self.lagging.swap(lagging, Ordering::Relaxed) != lagging
    }

    pub fn seen(&self) -> Option<Seen> {
        *self.lock()
    }

    /// Notes where the server stood.
    pub fn note(&self, seen: Seen) {
        *self.lock() = Some(seen);
    }

    /// As [`Replay::note`], where nobody has looked how long it is behind.
    pub fn note_position(&self, at: u64, position: Position) {
        let mut seen = self.lock();
        let behind = seen.and_then(|seen| seen.behind);
        *seen = Some(Seen {
            at,
            position,
            behind,
        });
    }

    /// The connection that it was seen by is lost: it may be another server soon, or one that has
    /// recovered to an earlier point.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    /// Whether it has replayed `position`, for a connection made at `connected` (the same clock): a
    /// standby that was restarted since it was seen may be behind where it was.
    pub fn judge(&self, position: Position, connected: u64, now: u64) -> Verdict {
        match *self.lock() {
            Some(seen) if seen.position.includes(position) => {
                if connected < seen.at {
                    Verdict::Has
                } else {
                    Verdict::Unknown
                }
            }
            Some(seen) if now < seen.at + ASK_AGAIN => Verdict::Lacks,
            _ => Verdict::Unknown,
        }
    }

    /// Whether it has been seen to have replayed `position`.
    pub fn has(&self, position: Position) -> bool {
        self.lock()
            .is_some_and(|seen| seen.position.includes(position))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the primary of a shard had flushed when.
#[derive(Debug, Default)]
pub struct History(Mutex<Samples>);

#[derive(Debug, Default)]
struct Samples {
    timeline: u32,
    /// Ends of records, and when they were first seen to be flushed: what standbys can have.
    flushed: VecDeque<(u64, u64)>,
    /// Ends of records that were not. (What has been flushed may end in the middle of a record, which
    /// no standby can replay.)
    written: VecDeque<u64>,
}

/// Samples that are kept. A standby that lacks even the oldest is behind for longer than that is old.
const KEPT: usize = 3600;
/// The same of those not flushed: a moment's worth.
const KEPT_UNFLUSHED: usize = 64;

impl History {
    /// Notes the state of the primary.
    pub fn note(&self, now: u64, state: &ServerState) {
        let mut samples = self.lock();
        let position = state.position;
        let last = samples.written.back().copied();
        let last = last.or(samples.flushed.back().map(|(lsn, _)| *lsn));
        if position.timeline != samples.timeline || last.is_some_and(|last| position.lsn < last) {
            // Another primary: what the old one had, and it has not, nobody will ever replay.
            *samples = Samples {
                timeline: position.timeline,
                ..Samples::default()
            };
        }
        if last != Some(position.lsn) || samples.flushed.is_empty() {
            samples.written.push_back(position.lsn);
        }
        while let Some(&lsn) = samples.written.front()
            && (lsn <= state.flushed || samples.written.len() > KEPT_UNFLUSHED)
        {
            samples.written.pop_front();
            if lsn <= state.flushed {
                samples.flushed.push_back((lsn, now));
            }
        }
        while samples.flushed.len() > KEPT {
            samples.flushed.pop_front();
        }
    }

    /// How long a server that has replayed `position` is behind, in milliseconds, and whether that is
    /// only the least that it can be; `None`: nothing is known of the primary.
    pub fn behind(&self, now: u64, position: Position) -> Option<(u64, bool)> {
        let samples = self.lock();
        let (oldest, _) = samples.flushed.front()?;
        // Not by the timeline, which standbys tell late. One that has gone astray on an older timeline is
        // found to be behind when the primary has written as far.
        let has = |lsn: u64| position.lsn >= lsn;
        let at_least = !has(*oldest);
        let lacking = samples.flushed.iter().find(|(lsn, _)| !has(*lsn));
        Some((
            lacking.map_or(0, |(_, at)| now.saturating_sub(*at)),
            at_least,
        ))
    }

    fn lock(&self) -> MutexGuard<'_, Samples> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(lsn: u64) -> Position {
        Position { timeline: 1, lsn }
    }

    fn primary(lsn: u64, flushed: u64) -> ServerState {
        ServerState {
            in_recovery: false,
            position: position(lsn),
            flushed,
        }
    }

    #[test]
    fn a_standby_of_an_idle_primary_is_not_behind() {
        let history = History::default();
        assert_eq!(history.behind(0, position(100)), None);
        history.note(0, &primary(100, 100));
        for now in [0, 1000, 1_000_000] {
            history.note(now, &primary(100, 100));
            assert_eq!(history.behind(now, position(100)), Some((0, false)));
        }
        // A transaction after a long rest: behind for as long as it has been there.
        history.note(1_000_000, &primary(200, 200));
        assert_eq!(history.behind(1_000_010, position(100)), Some((10, false)));
        assert_eq!(history.behind(1_000_020, position(200)), Some((0, false)));
    }

    #[test]
    fn what_is_not_flushed_is_lacked_by_nobody() {
        let history = History::default();
        history.note(0, &primary(100, 100));
        // A long transaction: flushed up to the middle of a record.
        for now in (1000..9000).step_by(1000) {
            history.note(now, &primary(300, 250));
            assert_eq!(history.behind(now, position(200)), Some((0, false)));
        }
        history.note(9000, &primary(300, 300));
        assert_eq!(history.behind(9500, position(200)), Some((500, false)));
    }

    #[test]
    fn the_first_thing_lacking_counts() {
        let history = History::default();
        for second in 0..10 {
            history.note(second * 1000, &primary(second * 100, second * 100));
        }
        assert_eq!(history.behind(9500, position(650)), Some((2500, false)));
        // Behind since before there was anybody to look.
        let history = History::default();
        history.note(0, &primary(100, 100));
        assert_eq!(history.behind(10, position(50)), Some((10, true)));
    }

    #[test]
    fn a_new_timeline_begins_anew() {
        let history = History::default();
        history.note(0, &primary(100, 100));
        history.note(1000, &primary(200, 200));
        let promoted = ServerState {
            position: Position {
                timeline: 2,
                lsn: 150,
            },
            ..primary(150, 150)
        };
        history.note(2000, &promoted);
        let behind = |timeline, lsn| history.behind(3000, Position { timeline, lsn });
        assert_eq!(behind(2, 150), Some((0, false)));
        assert_eq!(behind(1, 149), Some((1000, true)));
    }

    #[test]
    fn a_connection_made_since_is_asked() {
        let replay = Replay::default();
        assert_eq!(replay.judge(position(5), 0, 1), Verdict::Unknown);
        replay.note_position(1000, position(10));
        assert_eq!(replay.judge(position(5), 999, 5000), Verdict::Has);
        assert_eq!(replay.judge(position(5), 1000, 5000), Verdict::Unknown);
        assert_eq!(replay.judge(position(11), 0, 1050), Verdict::Lacks);
        assert_eq!(replay.judge(position(11), 0, 1100), Verdict::Unknown);
    }
}
