//! Positions in the write-ahead log: what a server is asked for, and how positions compare.

use std::fmt;

use crate::plugins::QueryResult;

/// A place in the log of one timeline; a promotion begins a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub timeline: u32,
    pub lsn: u64,
}

/// Asks a primary up to where it has written. What committed before the question is in it, whether or
/// not it has been flushed.
pub const WRITTEN: &str = "SELECT pg_catalog.pg_walfile_name(l), l \
    FROM pg_catalog.pg_current_wal_insert_lsn() AS l";

/// Asks any server where it stands: whether it is a standby, how far it has written or replayed, up to
/// where a primary has flushed, the name of its segment (for the timeline), and the timeline of a
/// standby. Of the latter the control file lags behind a failover, and the receiver's is shown to
/// members of `pg_read_all_stats` only; neither is ever ahead.
pub const STATE: &str = "SELECT r, \
    CASE WHEN r THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END, \
    CASE WHEN NOT r THEN pg_catalog.pg_current_wal_flush_lsn() END, \
    CASE WHEN NOT r THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END, \
    CASE WHEN r THEN GREATEST(\
    (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()), \
    (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()), \
    (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver)) END \
    FROM pg_catalog.pg_is_in_recovery() AS r";

/// The answer to [`STATE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerState {
    pub in_recovery: bool,
    /// Up to where it has replayed or, a primary, written.
    pub position: Position,
    /// Up to where a primary has flushed: what standbys can have.
    pub flushed: u64,
}

const PAGE: u64 = 8192;
/// The headers of a page, and of the first page of a segment.
const HEADERS: [u64; 2] = [24, 40];

impl Position {
    /// Of the row that answers [`WRITTEN`].
    pub fn written(segment: &[u8], lsn: &[u8]) -> Option<Self> {
        Some(Self {
            timeline: timeline(std::str::from_utf8(segment).ok()?)?,
            lsn: inserted(std::str::from_utf8(lsn).ok()?)?,
        })
    }

    /// Whether a server that has replayed up to here has replayed `other`, too. One on an older timeline
    /// may have got further on it than where the new one has branched off.
    pub fn includes(self, other: Self) -> bool {
        self.timeline >= other.timeline && self.lsn >= other.lsn
    }
}

impl fmt::Display for Position {
    /// The place, as PostgreSQL writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.lsn >> 32, self.lsn & 0xFFFF_FFFF)
    }
}

impl ServerState {
    /// Reads the answer to [`STATE`].
    pub fn read(answer: &QueryResult) -> Option<Self> {
        let [r, position, flushed, segment, standby_timeline] = answer.rows.first()?.as_slice()
        else {
            return None;
        };
        let position = position.as_deref()?;
        if r.as_deref() == Some("t") {
            return Some(Self {
                in_recovery: true,
                position: Position {
                    timeline: standby_timeline.as_deref()?.parse().ok()?,
                    lsn: lsn(position)?,
                },
                flushed: 0,
            });
        }
        Some(Self {
            in_recovery: false,
            position: Position {
                timeline: timeline(segment.as_deref()?)?,
                lsn: inserted(position)?,
            },
            flushed: lsn(flushed.as_deref()?)?,
        })
    }
}

fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let high = u64::from(u32::from_str_radix(high, 16).ok()?);
    Some(high << 32 | u64::from(u32::from_str_radix(low, 16).ok()?))
}

/// An insert position. At the end of a page PostgreSQL counts the next page's header in, which the
/// replay position of a standby that has everything does not. No record ends so short behind a header
/// unless it began before it, so that nothing is lost by taking the page's beginning instead.
fn inserted(text: &str) -> Option<u64> {
    let lsn = lsn(text)?;
    let offset = lsn % PAGE;
    Some(if HEADERS.contains(&offset) {
        lsn - offset
    } else {
        lsn
    })
}

/// The timeline in the name of a segment.
fn timeline(segment: &str) -> Option<u32> {
    u32::from_str_radix(segment.get(..8)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_the_server_writes_them() {
        let at = |lsn: &[u8]| Position::written(b"0000000A0000000100000002", lsn);
        assert_eq!(
            at(b"1/2000ABC"),
            Some(Position {
                timeline: 10,
                lsn: 0x1_0200_0ABC
            })
        );
        assert_eq!(at(b"x"), None);
        // The end of a page, and of a segment.
        assert_eq!(at(b"0/2002018").map(|p| p.lsn), Some(0x200_2000));
        assert_eq!(at(b"0/3000028").map(|p| p.lsn), Some(0x300_0000));
        assert_eq!(at(b"0/2002020").map(|p| p.lsn), Some(0x200_2020));
    }

    #[test]
    fn an_older_timeline_includes_nothing_of_a_newer_one() {
        let position = |timeline, lsn| Position { timeline, lsn };
        assert!(position(1, 5).includes(position(1, 5)));
        assert!(!position(1, 4).includes(position(1, 5)));
        assert!(position(2, 5).includes(position(1, 5)));
        assert!(!position(1, 9).includes(position(2, 5)));
    }

    #[test]
    fn the_state_of_primaries_and_standbys() {
        let answer = |row: [Option<&str>; 5]| QueryResult {
            rows: vec![row.iter().map(|v| v.map(str::to_owned)).collect()],
            ..QueryResult::default()
        };
        let segment = Some("000000020000000000000003");
        let primary = answer([
            Some("f"),
            Some("0/3000100"),
            Some("0/30000F0"),
            segment,
            None,
        ]);
        let state = ServerState::read(&primary).expect("a primary");
        assert!(!state.in_recovery && state.flushed == 0x300_00F0);
        assert_eq!(
            (state.position.timeline, state.position.lsn),
            (2, 0x300_0100)
        );
        let standby = answer([Some("t"), Some("0/3000028"), None, None, Some("2")]);
        let state = ServerState::read(&standby).expect("a standby");
        assert_eq!(
            (state.position.timeline, state.position.lsn),
            (2, 0x300_0028)
        );
        // It has not replayed anything yet.
        assert_eq!(
            ServerState::read(&answer([Some("t"), None, None, None, None])),
            None
        );
    }
}
