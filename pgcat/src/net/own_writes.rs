//! What a client has written, for replicas to have it before they serve the client's reads
//! (`read_your_writes`).
//!
//! A transaction that may have written is followed by a question to its server for the end of the log,
//! whose answer the client does not see. The client need not wait for it; only the server connection
//! is not given back before.

use super::session::Session;
use crate::config::model::{Pool, Role, WantedRole};
use crate::pool::wal::{Position, WRITTEN};
use crate::router::route::Route;
use crate::session::ledger::{Fate, Request, Undo};
use crate::wire::{TransactionStatus, message};

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct OwnWrites {
    /// By shard: each has a log of its own.
    ends: Vec<(usize, End)>,
    /// Everything sent since the server connection was taken is known to read only.
    only_reads: bool,
    question: Question,
}

/// How far the log has to be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    At(Position),
    /// The server did not say: the primary serves.
    Unknown,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Question {
    #[default]
    None,
    /// To be asked when the server owes nothing.
    Due,
    Asked,
}

impl OwnWrites {
    /// What this route leads to for a client that has written this.
    pub fn bind(&self, route: Route) -> Route {
        if self.ends.is_empty() || route.role == WantedRole::Primary {
            return route;
        }
        let primary = Route {
            role: WantedRole::Primary,
            ..route
        };
        let Some(shard) = route.shard else {
            return primary;
        };
        match self.end(shard) {
            None => route,
            Some(End::Unknown) => primary,
            Some(End::At(position)) => Route {
                after: Some(position),
                ..route
            },
        }
    }

    /// Statements are about to run: the first on a connection, or more.
    pub fn note_access(&mut self, first: bool, reads: bool) {
        self.only_reads = reads && (first || self.only_reads);
    }

    /// The server connection is not to be given back yet.
    pub fn is_asked(&self) -> bool {
        self.question != Question::None
    }

    /// The answer has come, whatever it was.
    pub fn answered(&mut self) {
        self.question = Question::None;
    }

    /// The session is a client of another pool now, or of one with other settings.
    pub fn follow(&mut self, pool: &Pool) {
        self.only_reads = false;
        if !pool.read_your_writes {
            self.ends.clear();
        }
    }

    fn end(&self, shard: usize) -> Option<End> {
        let mut ends = self.ends.iter();
        ends.find(|(known, _)| *known == shard).map(|(_, end)| *end)
    }

    fn set(&mut self, shard: usize, end: End) {
        match self.ends.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, known)) => *known = end,
            None => self.ends.push((shard, end)),
        }
    }
}

impl Session {
    /// A transaction of the client's has ended on the server.
    pub(super) fn note_transaction(&mut self) {
        let shared = &self.pool.shared;
        if !shared.settings.read_your_writes {
            return;
        }
        let Some(server) = &self.server else {
            return;
        };
        let address = server.address();
        let shard = address.shard;
        let known = self.own_writes.end(shard) != Some(End::Unknown);
        if self.internal
            || !self.is_pooled()
            || address.role() == Role::Replica
            || !shared.has_replicas(shard)
            || self.own_writes.only_reads && known
        {
            return;
        }
        self.own_writes.set(shard, End::Unknown);
        self.own_writes.question = Question::Due;
    }

    /// Asks how far the log is written, if that is due and possible now.
    pub(super) fn ask_for_position(&mut self) {
        if self.own_writes.question == Question::Due
            && let Some(server) = &mut self.server
            && server.ledger.is_empty()
            // As with the question for the settings.
            && self.client_body.left == 0
            && server.status == TransactionStatus::Idle
            && !server.unsynced
        {
            server
                .ledger
                .push(Request::Query, Fate::Position, Undo::Nothing);
            message::query(server.out.tail(), WRITTEN);
            server.unnamed = None;
            self.own_writes.question = Question::Asked;
        }
    }

    /// Takes in the row of the answer.
    pub(super) fn note_written(&mut self, row: &[u8]) {
        if let Some([Some(segment), Some(lsn)]) = message::data_row(row).as_deref()
            && let Some(position) = Position::written(segment, lsn)
            && let Some(server) = &self.server
        {
            let shard = server.address().shard;
            self.own_writes.set(shard, End::At(position));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_bound_by_what_was_written_in_its_shard() {
        let route = |shard| Route {
            shard,
            role: WantedRole::Replica,
            after: None,
        };
        let position = Position {
            timeline: 1,
            lsn: 10,
        };
        let mut writes = OwnWrites::default();
        assert_eq!(writes.bind(route(Some(0))), route(Some(0)));
        writes.set(0, End::Unknown);
        assert_eq!(writes.bind(route(Some(0))).role, WantedRole::Primary);
        writes.set(0, End::At(position));
        let bound = writes.bind(route(Some(0)));
        assert_eq!(
            (bound.role, bound.after),
            (WantedRole::Replica, Some(position))
        );
        assert_eq!(writes.bind(route(Some(1))), route(Some(1)));
        assert_eq!(writes.bind(route(None)).role, WantedRole::Primary);
    }
}
