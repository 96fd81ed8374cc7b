//! What becomes of a session in which something takes too long: see [`Overdue`].

use std::sync::atomic::Ordering;

use super::registration::Overdue;
use super::session::{Event, Session};
use crate::error::Error;
use crate::wire::error_fields::ErrorFields;

impl Session {
    /// A time is over, or was a moment ago.
    ///
    /// # Errors
    /// What the client is told as its session ends.
    pub(super) fn time_out(&self, read_client: bool) -> Result<Option<Event>, Error> {
        let handle = &self.registration.handle;
        handle.timed_out.set(false);
        let now = self.thread.clock.now();
        // PostgreSQL's words and codes for the same.
        let fatal =
            |code, message| Err(Error::Refused(Box::new(ErrorFields::fatal(code, message))));
        match handle.overdue(now) {
            Some(Overdue::IdleInTransaction) if read_client => {
                return Ok(Some(Event::IdleInTransaction));
            }
            Some(Overdue::Transaction) => {
                return fatal("25P04", "terminating connection due to transaction timeout");
            }
            Some(Overdue::Statement) if !self.is_running() => handle.resting.set(now),
            Some(Overdue::Statement) if handle.cancelled.get() => {
                return fatal(
                    "57014",
                    "terminating connection due to statement timeout, as the server does not end the statement",
                );
            }
            Some(Overdue::Statement) => self.cancel_statement(),
            Some(Overdue::Idle) if read_client && self.is_idle() => {
                return fatal(
                    "57P05",
                    "terminating connection due to idle-session timeout",
                );
            }
            Some(Overdue::IdleInTransaction | Overdue::Idle) | None => (),
        }
        Ok(None)
    }

    /// Whether the server has something of the client's to do.
    fn is_running(&self) -> bool {
        let server = self.server.as_ref();
        server.is_some_and(|server| server.ledger.is_waiting())
    }

    /// Whether the client is between transactions, and has not begun to say something.
    fn is_idle(&self) -> bool {
        self.input.is_empty()
            && self.client_body.left == 0
            && self
                .server
                .as_ref()
                .is_none_or(|server| server.is_reusable())
    }

    /// Has the server cancel the statement that runs, which it reports as an error.
    fn cancel_statement(&self) {
        let Some(server) = &self.server else {
            return;
        };
        let handle = self.registration.handle.clone();
        handle.cancelled.set(true);
        if server.key.secret.is_empty() {
            return;
        }
        handle.cancelling.set(true);
        let key = server.key.clone();
        key.cancels.fetch_add(1, Ordering::SeqCst);
        let dialler = self.thread.pooler.dialler();
        tokio::task::spawn_local(async move {
            key.cancel(&dialler).await;
            handle.cancelling.set(false);
            handle.wake();
        });
    }

    /// An ErrorResponse about a statement that the pooler has had cancelled, with the reason that the
    /// server does not know.
    pub(super) fn with_reason(&self, body: &[u8]) -> Option<Vec<u8>> {
        if !self.registration.handle.cancelled.get() {
            return None;
        }
        let mut fields = ErrorFields::read(body);
        if fields.code != "57014" {
            return None;
        }
        "canceling statement due to statement timeout".clone_into(&mut fields.message);
        let mut error = Vec::new();
        fields.write(&mut error);
        Some(error)
    }
}
