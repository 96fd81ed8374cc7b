//! The relay: both directions at once, message by message, without copying what is only passed on.
//!
//! One future per session polls both sockets. Bytes are read into the thread's scratch buffer,
//! walked by message header, and written from there; only an incomplete message, or what the other
//! side does not take at once, is kept in a buffer of the connection.

use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::session::{Body, ClientStatement, Event, Session};
use crate::error::Error;
use crate::session::ledger::{Fate, Request, Undo};
use crate::session::settings::{Patience, capture};
use crate::wire::error_fields::{ErrorFields, Severity};
use crate::wire::message;
use crate::wire::{HEADER, Header, TransactionStatus, backend};

/// Rounds before other sessions of the thread get their turn.
const ROUNDS: usize = 8;

impl Session {
    /// Relays until something else has to be done. With `read_client` false only what the server
    /// still owes is relayed, and `Event::Closed` never comes.
    pub(super) fn poll_relay(
        &mut self,
        cx: &mut Context<'_>,
        read_client: bool,
    ) -> Poll<Result<Event, Error>> {
        self.note_waker(cx);
        let thread = self.thread.clone();
        let mut scratch = thread.scratch.borrow_mut();
        // A side that has nothing more wakes the task: it need not be asked again.
        let (mut client_waits, mut server_waits) = (false, false);
        for _ in 0..ROUNDS {
            let mut progress = false;
            if !self.out.is_empty() {
                match self.out.poll_flush(&mut self.io, cx) {
                    Poll::Ready(Ok(())) => progress = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::Client(error))),
                    Poll::Pending => (),
                }
            }
            if let Some(server) = &mut self.server
                && !server.out.is_empty()
            {
                match server.out.poll_flush(&mut server.io, cx) {
                    Poll::Ready(Ok(())) => progress = true,
                    // What the server said before it closed may still be readable.
                    Poll::Ready(Err(_)) => server.out = Default::default(),
                    Poll::Pending => (),
                }
            }
            if self.registration.handle.timed_out.get()
                && let Some(event) = self.time_out(read_client)?
            {
                return Poll::Ready(Ok(event));
            }
            if read_client && self.registration.handle.killed.get() {
                return Poll::Ready(Ok(Event::Shutdown));
            }
            if read_client && !self.registration.handle.inbox.is_empty() && self.out.is_empty() {
                self.hand_over_notifications()?;
                progress |= !self.out.is_empty();
            }
            // A client that does not read its replies is not read from either.
            if read_client
                && !client_waits
                && self.out.is_empty()
                && self.server_takes_more()
                && !self.registration.handle.cancelling.get()
            {
                match self.poll_client(cx, &mut scratch) {
                    Poll::Ready(Ok(Some(event))) => return Poll::Ready(Ok(event)),
                    Poll::Ready(Ok(None)) => {
                        progress = true;
                        // It may be another server by now.
                        server_waits = false;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => client_waits = true,
                }
            }
            if self.server.is_some() && !server_waits && self.out.is_empty() {
                match self.poll_server(cx, &mut scratch) {
                    Poll::Ready(Ok(())) => progress = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => server_waits = true,
                }
            }
            if self.thread.shutting_down.get() && self.may_end() {
                return Poll::Ready(Ok(Event::Shutdown));
            }
            // Mostly the server's last reply has just been passed on.
            let at_rest = client_waits
                && self.server.is_none()
                && self.out.is_empty()
                && self.registration.handle.inbox.is_empty();
            if !progress || at_rest {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits until the server owes nothing (or skips to a Sync), relaying what comes.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.is_owed()
            && let Poll::Ready(Err(error)) = self.poll_relay(cx, false)
        {
            return Poll::Ready(Err(error));
        }
        if self.is_owed() {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }

    fn is_owed(&self) -> bool {
        self.server
            .as_ref()
            .is_some_and(|s| s.ledger.is_waiting() || !s.out.is_empty() || !s.input.is_empty())
    }

    fn note_waker(&self, cx: &Context<'_>) {
        let mut waker = self.registration.handle.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Whether the session is between transactions, so that a shutdown may end it.
    fn may_end(&self) -> bool {
        !self.internal
            && self
                .server
                .as_ref()
                .is_none_or(|server| !self.is_pooled() && server.is_reusable())
    }

    /// Neither are bytes kept without limit that the server does not take, nor what is expected of it.
    fn server_takes_more(&self) -> bool {
        self.server.as_ref().is_none_or(|server| {
            let answers_first = server.ledger.is_long()
                && !server.ledger.is_copying_in()
                && self.client_body.left == 0;
            server.out.is_empty() && !answers_first
        })
    }

    /// Reads from the client once, and processes what came.
    fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<Option<Event>, Error>> {
        if self.input_ready {
            self.input_ready = false;
            return Poll::Ready(self.process_input(cx));
        }
        let n = match self.io.poll_read_unlimited(cx, scratch) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Some(Event::Closed))),
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::Client(error))),
            Poll::Pending => return Poll::Pending,
        };
        if !self.input.is_empty() {
            self.input.extend_from_slice(&scratch[..n]);
            if self.input.len() < self.input_wanted {
                return Poll::Ready(Ok(None));
            }
            return Poll::Ready(self.process_input(cx));
        }
        let data = &scratch[..n];
        Poll::Ready(self.process_client(data, cx).map(|(used, event)| {
            self.input.extend_from_slice(&data[used..]);
            self.input_ready = event.is_some() && used < n;
            event
        }))
    }

    fn process_input(&mut self, cx: &mut Context<'_>) -> Result<Option<Event>, Error> {
        let mut input = mem::take(&mut self.input);
        let (used, event) = self.process_client(&input, cx)?;
        if used == input.len() && input.capacity() > super::io::KEEP_CAPACITY {
            input = Vec::new();
        } else {
            input.drain(..used);
        }
        self.input_ready = event.is_some() && !input.is_empty();
        self.input = input;
        Ok(event)
    }

    /// Reads from the server once, and processes what came.
    fn poll_server(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<(), Error>> {
        let Some(server) = &mut self.server else {
            return Poll::Pending;
        };
        let n = match server.io.poll_read_unlimited(cx, scratch) {
            Poll::Ready(Ok(0)) => {
                return Poll::Ready(Err(Error::Server(io::ErrorKind::UnexpectedEof.into())));
            }
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::Server(error))),
            Poll::Pending => return Poll::Pending,
        };
        server.connection().received(n);
        let outcome = if server.input.is_empty() {
            let data = &scratch[..n];
            self.process_server(data, cx).map(|used| {
                if let Some(server) = &mut self.server {
                    server.input.extend_from_slice(&data[used..]);
                }
            })
        } else {
            server.input.extend_from_slice(&scratch[..n]);
            let mut input = mem::take(&mut server.input);
            self.process_server(&input, cx).map(|used| {
                input.drain(..used);
                if let Some(server) = &mut self.server {
                    server.input = input;
                }
            })
        };
        match &outcome {
            Ok(()) => self.release_if_idle(),
            // What follows in the data is lost.
            Err(_) => {
                if let Some(server) = &mut self.server {
                    server.unaccounted = true;
                }
            }
        }
        Poll::Ready(outcome)
    }

    /// Walks the server's messages in `data`; returns how many bytes were dealt with.
    fn process_server(&mut self, data: &[u8], cx: &mut Context<'_>) -> Result<usize, Error> {
        let mut run = 0..0;
        let walked = self.walk_messages(data, &mut run);
        if walked.is_err() {
            // It may be the end of a message whose beginning the client has: what it is told next must not be taken for it.
            self.out.tail().extend_from_slice(&data[run]);
        } else if !run.is_empty() {
            self.out
                .write(&mut self.io, cx, &data[run])
                .map_err(Error::Client)?;
        }
        walked
    }

    /// The same, but for what is at hand to be forwarded at last: `run`.
    fn walk_messages(&mut self, data: &[u8], run: &mut Range<usize>) -> Result<usize, Error> {
        let mut at = 0;
        while at < data.len() {
            if self.server_body.left > 0 {
                let n = self.server_body.left.min(data.len() - at);
                self.server_body.left -= n;
                if !self.server_body.discard {
                    self.forward_to_client(data, run, at..at + n);
                }
                at += n;
                continue;
            }
            let header = match Header::read(&data[at..]) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(_) => return Err(Error::ServerProtocol("bad message length")),
            };
            if !header.tag.is_ascii_alphanumeric() {
                return Err(Error::ServerProtocol("no type of message"));
            }
            let Some(server) = &mut self.server else {
                break;
            };
            let streamed = matches!(header.tag, backend::DATA_ROW | backend::COPY_DATA);
            if streamed && !server.ledger.is_waiting() {
                return Err(Error::ServerProtocol("a row that nobody has asked for"));
            }
            let fate = server.ledger.next_fate();
            if streamed && matches!(fate, Fate::Forward | Fate::Swallow) {
                let discard = fate == Fate::Swallow;
                let n = header.total().min(data.len() - at);
                self.server_body = Body {
                    left: header.total() - n,
                    discard,
                };
                if !discard {
                    self.forward_to_client(data, run, at..at + n);
                }
                at += n;
                continue;
            }
            let Some(message) = data.get(at..at + header.total()) else {
                break;
            };
            if self.process_reply(header.tag, &message[HEADER..])? == Fate::Forward {
                match self.reworded(header.tag, &message[HEADER..]) {
                    Some(error) => {
                        let before = &data[mem::replace(run, 0..0)];
                        self.out.tail().extend_from_slice(before);
                        self.out.tail().extend_from_slice(&error);
                    }
                    None => self.forward_to_client(data, run, at..at + header.total()),
                }
            }
            at += header.total();
            if let Some(server) = &mut self.server
                && server.ledger.has_due()
            {
                self.out
                    .tail()
                    .extend_from_slice(&data[mem::replace(run, 0..0)]);
                server.ledger.take_due(self.out.tail());
            }
        }
        Ok(at)
    }

    /// Marks `piece` for the client; adjacent pieces go out in one write.
    fn forward_to_client(&mut self, data: &[u8], run: &mut Range<usize>, piece: Range<usize>) {
        let pending = run.start < run.end;
        if pending && run.end == piece.start {
            run.end = piece.end;
        } else {
            if pending {
                self.out.tail().extend_from_slice(&data[run.clone()]);
            }
            *run = piece;
        }
    }

    /// An ErrorResponse, where the client is to see it in other words.
    fn reworded(&self, tag: u8, body: &[u8]) -> Option<Vec<u8>> {
        if tag != backend::ERROR_RESPONSE {
            return None;
        }
        self.with_reason(body)
            .or_else(|| self.in_client_names(body))
    }

    /// An ErrorResponse that names one of the client's statements, such as "bind message supplies 1
    /// parameters, but prepared statement … requires 2", with the client's name for it in the place of
    /// the server's.
    fn in_client_names(&self, body: &[u8]) -> Option<Vec<u8>> {
        let start = memchr::memmem::find(body, b"\"PGCAT_")? + 1;
        let end = start + memchr::memchr(b'"', &body[start..])?;
        let is_it = |known: &ClientStatement| {
            matches!(known, ClientStatement::Prepared { statement, .. }
                if *statement.server_name == body[start..end])
        };
        let dropped = self.dropped.iter().flatten();
        let (name, _) = dropped
            .map(|(name, known)| (name, known))
            .chain(&self.statements)
            .find(|(_, known)| is_it(known))?;
        let mut error = Vec::with_capacity(body.len() + name.len());
        message::build(&mut error, backend::ERROR_RESPONSE, |out| {
            out.extend_from_slice(&body[..start]);
            out.extend_from_slice(name);
            out.extend_from_slice(&body[end..]);
        });
        Some(error)
    }

    /// Accounts for one whole message of the server. Says whether the client gets it.
    fn process_reply(&mut self, tag: u8, body: &[u8]) -> Result<Fate, Error> {
        let Some(server) = &mut self.server else {
            return Ok(Fate::Swallow);
        };
        match tag {
            backend::PARAMETER_STATUS => {
                server.note_parameter(body);
                let fate = server.ledger.next_fate();
                if fate == Fate::Forward && !self.settings_changed && !self.internal {
                    // No SET has done it, but a reload of the server's configuration, or a function that the pooler does not
                    // know for one that sets something.
                    self.pool.shared.forget_greetings();
                    self.settings_changed = self.is_pooled();
                }
                return Ok(fate);
            }
            backend::NOTICE_RESPONSE => return Ok(server.ledger.next_fate()),
            backend::PARAMETER_DESCRIPTION | backend::ROW_DESCRIPTION | backend::NO_DATA
                if server.ledger.next_fate() == Fate::Learn =>
            {
                self.learn(tag, body);
            }
            // A pooled connection listens for nobody; should a function have left it listening, that is no client's affair.
            backend::NOTIFICATION_RESPONSE => {
                let pooled = self.is_pooled();
                return Ok(if pooled { Fate::Swallow } else { Fate::Forward });
            }
            backend::ERROR_RESPONSE if !server.ledger.is_waiting() => {
                // Unasked: the server ends the connection, and says why. Or it is about a Flush, which has no other reply, as
                // where a timeout has struck before it, or about a message that came too late for a COPY: then the server skips
                // to the Sync.
                if server.unsynced || server.unaccounted {
                    server.ledger.skip_to_sync();
                }
                self.failed(body, Fate::Forward)?;
                return Ok(Fate::Forward);
            }
            _ => (),
        }
        let Some(server) = &mut self.server else {
            return Ok(Fate::Swallow);
        };
        let fate = server
            .ledger
            .reply(tag)
            .map_err(|_| Error::ServerProtocol("a reply to nothing that was asked"))?;
        match tag {
            backend::READY_FOR_QUERY => self.ready(body.first().copied().unwrap_or(0), fate)?,
            backend::COMMAND_COMPLETE => self.completed(body, fate),
            backend::ERROR_RESPONSE => self.failed(body, fate)?,
            backend::DATA_ROW if fate == Fate::Capture => {
                if let Some([Some(name), Some(value)]) = message::data_row(body).as_deref() {
                    let value = String::from_utf8_lossy(value).into_owned();
                    self.captured.set(&String::from_utf8_lossy(name), value);
                }
            }
            backend::DATA_ROW if fate == Fate::Position => self.note_written(body),
            _ => (),
        }
        Ok(match fate {
            Fate::Forward => Fate::Forward,
            Fate::Capture | Fate::Learn | Fate::Position | Fate::Swallow => Fate::Swallow,
        })
    }

    fn ready(&mut self, status: u8, fate: Fate) -> Result<(), Error> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        server.status = TransactionStatus::from_byte(status);
        if fate == Fate::Capture {
            let captured = mem::take(&mut self.captured);
            if self.patience == Patience::Wanted {
                self.patience = Patience::Unlimited;
                self.ask_for_settings();
                return Ok(());
            }
            self.patience = Patience::AsSet;
            self.settings_changed = false;
            // A setting of the startup message that was RESET is back at the message's value.
            self.settings = Arc::new(captured.clone().over(&self.startup_settings));
            server.settings = if captured == *self.settings {
                self.settings.clone()
            } else {
                Arc::new(captured)
            };
            self.note_application_name();
            self.ask_for_position();
            return Ok(());
        }
        if fate == Fate::Position {
            self.own_writes.answered();
        }
        if fate != Fate::Forward {
            return Ok(());
        }
        self.count_ready();
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let quiet = server.ledger.is_empty();
        if quiet {
            self.dropped.clear();
        }
        if server.status == TransactionStatus::Idle {
            if mem::take(&mut self.wrote) && !self.internal {
                for plugin in &self.pool.plugins {
                    plugin.committed(&self.pool.shared.identity);
                }
            }
            self.settle_subscriptions();
            self.note_transaction();
            self.ask_for_settings();
        } else if quiet {
            self.registration
                .handle
                .idle_in_transaction
                .set(Some(self.thread.now.get()));
        }
        Ok(())
    }

    /// Asks the server for the session's settings if they may have changed: at the end of the
    /// transaction, when it is certain what has become of a SET in it. And for what it has written.
    pub(super) fn ask_for_settings(&mut self) {
        let pooled = self.is_pooled();
        if let Some(server) = &mut self.server
            && self.settings_changed
            && pooled
            && server.ledger.is_empty()
            // Not into the middle of a message: late data of a COPY that failed passes through at any time.
            && self.client_body.left == 0
            && server.status == TransactionStatus::Idle
            && !server.unsynced
        {
            server
                .ledger
                .push(Request::Query, Fate::Capture, Undo::Nothing);
            message::query(
                server.out.tail(),
                &capture(self.custom_settings.iter(), self.patience),
            );
            server.unnamed = None;
        }
        self.ask_for_position();
    }

    /// Looks at a command tag for what outlives the command.
    pub(super) fn completed(&mut self, body: &[u8], fate: Fate) {
        let Some(server) = &mut self.server else {
            return;
        };
        if fate != Fate::Forward {
            return;
        }
        if !server.ledger.is_copying_in() {
            server.ledger.copy_succeeded();
        }
        let tag = body.strip_suffix(&[0]).unwrap_or(body);
        match tag {
            // An in-process client sets LOCAL only.
            b"SET" | b"RESET" => self.settings_changed = !self.internal,
            // What they run may set something, too.
            b"DO" | b"CALL" => {
                self.settings_changed |= !self.internal;
                self.wrote = true;
            }
            b"DISCARD ALL" => {
                server.forget_session();
                self.statements.clear();
                self.settings_changed = true;
                if let Some(subscriptions) = &self.subscriptions {
                    subscriptions.unlisten(None, false);
                }
            }
            b"DEALLOCATE ALL" => {
                server.statements.clear();
                server.unnamed = None;
                self.statements.clear();
            }
            // They leave something behind in the session.
            b"PREPARE" | b"LISTEN" | b"DECLARE CURSOR" | b"LOAD" => server.dirty = true,
            // A ROLLBACK may be to a savepoint only; then a COMMIT follows.
            b"COMMIT" | b"ROLLBACK" => {
                if let Some(subscriptions) = &self.subscriptions {
                    subscriptions.note_rollback(tag == b"ROLLBACK");
                }
            }
            b"BEGIN" | b"SHOW" => (),
            _ if tag.starts_with(b"CREATE") => {
                // Of a view, a function, an operator ...: what calls it has to be known.
                self.pool.shared.functions.looks.note_change();
                if tag != b"CREATE TABLE" && tag != b"CREATE INDEX" {
                    self.pool.shared.stateful.looks.note_change();
                }
                self.wrote = true;
            }
            _ if !tag.starts_with(b"SELECT") && !tag.starts_with(b"FETCH") => self.wrote = true,
            // SELECT: of a CTE that writes, or into a new table. Rare; found by the plugins' polling.
            _ => (),
        }
    }

    fn failed(&mut self, body: &[u8], fate: Fate) -> Result<(), Error> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        if server.ledger.has_undone() {
            for undo in server.ledger.take_undone() {
                match undo {
                    Undo::Closed(statement) => server.statements.put_back(statement),
                    Undo::Described { statement, .. } => server.statements.doubt(statement.id),
                    Undo::Dropped(number) => {
                        let dropped = self.dropped.get_mut(number).and_then(Option::take);
                        self.statements.extend(dropped);
                    }
                    Undo::Named(name) => {
                        self.statements.remove(&name);
                    }
                    Undo::Nothing => (),
                    Undo::Parsed {
                        statement,
                        client_name,
                    } => {
                        server.statements.remove(statement);
                        if let Some(name) = client_name {
                            self.statements.remove(&name);
                        }
                    }
                    Undo::PlacedUnnamed => server.unnamed = None,
                    Undo::ReplacedUnnamed { by, before } => {
                        if self.unnamed.version == by {
                            server.unnamed = before.as_ref().and_then(|b| b.on_server);
                            self.unnamed.become_again(before);
                        } else {
                            server.ledger.correct_unnamed(by, &before);
                        }
                    }
                }
            }
        }
        if fate == Fate::Forward {
            server.connection().failed();
            self.registration
                .handle
                .count(|counters| counters.errors += 1);
        }
        let fields = ErrorFields::read(body);
        if fate == Fate::Position && fields.severity < Severity::Fatal {
            // It stays unknown what has been written: the primary has it.
            return Ok(());
        }
        if let Some(subscriptions) = &self.subscriptions {
            subscriptions.note_rollback(true);
        }
        if fate == Fate::Capture && fields.code == "57014" {
            // On a loaded machine even the suspension of the timeout may take too long.
            self.patience = Patience::Wanted;
            return Ok(());
        }
        if fate != Fate::Forward {
            // The client's settings could not be carried over, and its statement must not run, or be
            // seen to have run, under others.
            let fields = ErrorFields {
                severity: Severity::Fatal,
                ..fields
            };
            return Err(Error::Refused(Box::new(fields)));
        }
        self.told_fatal = fields.severity >= Severity::Fatal;
        if fields.code == "26000" && memchr::memmem::find(body, b"\"PGCAT_").is_some() {
            // A function has deallocated it unseen, and perhaps not only it. The next use parses anew.
            server.statements.doubt_all();
        }
        Ok(())
    }

    /// The client may have changed its application's name.
    fn note_application_name(&self) {
        let name = self.settings.value("application_name").unwrap_or_default();
        let mut known = self.registration.handle.who.application_name.borrow_mut();
        if **known != *name {
            *known = name.into();
        }
    }

    pub(super) fn is_pooled(&self) -> bool {
        // An in-process client leaves nothing behind in its session, and keeps no connection from the others.
        self.internal
            || self.pool.shared.user.pool_mode == crate::config::model::PoolMode::Transaction
    }
}
