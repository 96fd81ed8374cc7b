//! The client's side of the relay: what each frontend message means for the ledger.

use std::mem;
use std::ops::Range;
use std::task::Context;

use super::session::{Body, Event, Session};
use crate::error::Error;
use crate::session::ledger::{Fate, Request, Undo};
use crate::session::traits::{Traits, custom_settings};
use crate::wire::message::{self};
use crate::wire::{HEADER, Header, TransactionStatus, frontend};

/// A Query longer than this is looked at by plugins only up to here, and streamed.
const INSPECT_LIMIT: usize = 1 << 20;

/// What to do with a message, having accounted for it.
pub(super) enum Step {
    /// It is dealt with: nothing of it goes to the server as it came.
    Done,
    Event(Event),
    /// Pass it on as it is, the part that has not arrived yet included.
    Forward,
    /// Drop it, the part that has not arrived yet included.
    Discard,
    /// Its first bytes have been replaced; the rest is passed on.
    ForwardAfter(usize),
    NeedServer,
    /// Something has to be done first; then the message is looked at again.
    Stop(Event),
    /// More of it is needed.
    Wait,
}

/// The client's bytes being walked.
pub(super) struct Walk<'a> {
    pub data: &'a [u8],
    pub at: usize,
    /// Bytes to pass on to the server that have not been written yet.
    pub run: Range<usize>,
    pub header: Header,
}

/// Whether a server that waits for the data of a COPY takes this message.
fn may_come_in_copy(tag: u8) -> bool {
    matches!(
        tag,
        frontend::COPY_DATA
            | frontend::COPY_DONE
            | frontend::COPY_FAIL
            | frontend::FLUSH
            | frontend::SYNC
            | frontend::TERMINATE
    )
}

impl<'a> Walk<'a> {
    /// As much of the current message's body as is here.
    pub fn body(&self) -> &'a [u8] {
        let end = self.data.len().min(self.at + self.header.total());
        &self.data[self.at + HEADER..end]
    }

    pub fn is_complete(&self) -> bool {
        self.data.len() - self.at >= self.header.total()
    }
}

impl Session {
    /// Walks the client's messages in `data`; returns how many bytes were dealt with, and why it
    /// stopped if not for want of data.
    pub(super) fn process_client(
        &mut self,
        data: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<(usize, Option<Event>), Error> {
        let mut walk = Walk {
            data,
            at: 0,
            run: 0..0,
            header: Header { tag: 0, body: 0 },
        };
        let mut event = None;
        self.input_wanted = 0;
        while walk.at < data.len() {
            if self.client_body.left > 0 {
                let n = self.client_body.left.min(data.len() - walk.at);
                self.client_body.left -= n;
                if !self.client_body.discard {
                    self.forward_to_server(&mut walk, n);
                }
                walk.at += n;
                continue;
            }
            let step = match Header::read(&data[walk.at..]) {
                Ok(Some(header)) => {
                    walk.header = header;
                    self.process_request(&mut walk)
                }
                Ok(None) => break,
                Err(_) => Err(Error::protocol("invalid message length")),
            };
            let step = match step {
                // What came before it is the server's to answer.
                Err(Error::Refused(fields)) => Step::Stop(Event::Refused(fields)),
                step => step?,
            };
            match step {
                Step::Done => self.pass_over(&mut walk),
                Step::Event(stop) => {
                    self.pass_over(&mut walk);
                    event = Some(stop);
                    break;
                }
                Step::Forward => {
                    self.client_body = Body {
                        left: walk.header.total(),
                        discard: false,
                    };
                }
                Step::Discard => {
                    self.client_body = Body {
                        left: walk.header.total(),
                        discard: true,
                    };
                }
                Step::ForwardAfter(n) => {
                    walk.at += n;
                    self.client_body = Body {
                        left: walk.header.total() - n,
                        discard: false,
                    };
                }
                Step::NeedServer => {
                    event = Some(Event::NeedServer);
                    break;
                }
                Step::Stop(stop) => {
                    event = Some(stop);
                    break;
                }
                Step::Wait => {
                    // To look at it with every read would take a time that grows with the square of its size.
                    let here = data.len() - walk.at;
                    self.input_wanted = walk.header.total().min(2 * here);
                    break;
                }
            }
        }
        if walk.at > 0 || event.is_some() {
            // The beginning of a message does not count, as in PostgreSQL.
            let handle = &self.registration.handle;
            handle.idle_in_transaction.set(None);
            handle.active.set(self.thread.now.get() * 1000);
        }
        if walk.at > 0
            && let Some(server) = &self.server
        {
            server.connection().sent(walk.at);
            if server.ledger.is_waiting() {
                self.count_request();
            }
        }
        if let Some(server) = &mut self.server
            && !walk.run.is_empty()
            && server
                .out
                .write(&mut server.io, cx, &data[walk.run])
                .is_err()
        {
            // The connection is lost. Reading from it says so, after the server's last words.
            server.out = Default::default();
        }
        if self.client_body.left == 0
            && let Some(server) = &mut self.server
            && server.ledger.is_long()
        {
            // Nothing more is read before some of it is answered, and replies to a batch may wait for its Sync.
            message::flush(server.out.tail());
        }
        if event.is_none() && self.client_body.left == 0 {
            // Late COPY data may have kept the server from being asked, or given back, at the end of the transaction.
            self.ask_for_settings();
            self.release_if_idle();
        }
        Ok((walk.at, event))
    }

    /// Leaves the current message behind, with what of it has yet to come: a Terminate or Sync may
    /// claim a body it has no use for.
    fn pass_over(&mut self, walk: &mut Walk<'_>) {
        let here = walk.header.total().min(walk.data.len() - walk.at);
        walk.at += here;
        self.client_body = Body {
            left: walk.header.total() - here,
            discard: true,
        };
    }

    fn forward_to_server(&mut self, walk: &mut Walk<'_>, n: usize) {
        if walk.run.end != walk.at || walk.run.is_empty() {
            self.inject(walk);
            walk.run = walk.at..walk.at;
        }
        walk.run.end += n;
    }

    /// The server's output, with everything before the current message in it: for a message of the
    /// pooler's own.
    pub(super) fn inject(&mut self, walk: &mut Walk<'_>) -> &mut Vec<u8> {
        let run = mem::replace(&mut walk.run, 0..0);
        let Some(server) = &mut self.server else {
            unreachable!("only called with a server")
        };
        let out = server.out.tail();
        out.extend_from_slice(&walk.data[run]);
        out
    }

    /// Whether there is a server connection now.
    pub(super) fn has_server(&mut self) -> bool {
        if self.server.is_none()
            && !self.thread.shutting_down.get()
            && self.checked_out.is_none()
            && let Some(server) = self
                .pool
                .try_checkout(&self.thread, self.own_writes.bind(self.route))
        {
            if server.settings.is_certain(&self.settings) {
                self.attach(server);
            } else {
                // What may fail is not sent ahead of the client's statement.
                self.checked_out = Some(server);
            }
        }
        self.server.is_some()
    }

    fn process_request(&mut self, walk: &mut Walk<'_>) -> Result<Step, Error> {
        if let Some(server) = &mut self.server
            && server.ledger.is_copying_in()
            && !may_come_in_copy(walk.header.tag)
        {
            // PostgreSQL ends the connection over it. Some of these wait for what is outstanding, and that would be the
            // data of the COPY, which come behind.
            server.unaccounted = true;
            return Ok(Step::Forward);
        }
        match walk.header.tag {
            frontend::QUERY => self.query(walk),
            frontend::TERMINATE => Ok(Step::Event(Event::Terminated)),
            frontend::SYNC => Ok(self.sync()),
            frontend::FLUSH => Ok(match &mut self.server {
                Some(server) => {
                    server.unsynced |= !server.ledger.is_copying_in();
                    server.ledger.flush();
                    Step::Forward
                }
                None => Step::Done,
            }),
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => {
                // Outside of a COPY the server ignores them: late data of one that failed. But should a timeout have struck in a
                // batch, it would say so now, and that it is ready.
                Ok(match &mut self.server {
                    Some(server) if server.ledger.may_copy_in() => {
                        server.ledger.note_copy_data();
                        if walk.header.tag != frontend::COPY_DATA {
                            server.ledger.copy_in_ended();
                        }
                        Step::Forward
                    }
                    _ => Step::Discard,
                })
            }
            frontend::FUNCTION_CALL => {
                if let Some(step) = self.route_batch(walk) {
                    return Ok(step);
                }
                if !self.has_server() {
                    return Ok(Step::NeedServer);
                }
                if let Some(server) = &mut self.server {
                    // It may be any function, and leave anything behind.
                    server.dirty = true;
                    // It ends an extended batch, unless it is skipped along with it.
                    server.unsynced &= server.ledger.is_skipping();
                    server
                        .ledger
                        .push(Request::FunctionCall, Fate::Forward, Undo::Nothing);
                }
                Ok(Step::Forward)
            }
            frontend::PARSE
            | frontend::BIND
            | frontend::DESCRIBE
            | frontend::EXECUTE
            | frontend::CLOSE => self.extended(walk),
            tag => Err(Error::protocol(format!(
                "invalid frontend message type {tag}"
            ))),
        }
    }

    fn query(&mut self, walk: &mut Walk<'_>) -> Result<Step, Error> {
        if self
            .server
            .as_ref()
            .is_some_and(|server| server.ledger.is_skipping())
        {
            // The server ignores it, as everything behind an error up to the Sync.
            return Ok(Step::Forward);
        }
        if !walk.is_complete() && walk.body().len() < INSPECT_LIMIT {
            return Ok(Step::Wait);
        }
        let body = walk.body();
        let text = body.strip_suffix(&[0]).unwrap_or(body);
        if walk.is_complete()
            && let Some(step) = self.command_query(text)
        {
            return Ok(step);
        }
        if let Some(step) = self.route_query(text) {
            return Ok(step);
        }
        let wanted = self.wanted_by_plugin(text);
        if wanted && !walk.is_complete() {
            return Ok(Step::Wait);
        }
        if !self.has_server() {
            return Ok(Step::NeedServer);
        }
        // After the wait for a server, so that plugins see a statement once.
        if wanted && let Some(pieces) = self.inspect_query(text) {
            return Ok(Step::Event(Event::Query(pieces)));
        }
        let traits = self.traits_of(text);
        if traits.may_name_statement && walk.is_complete() {
            if self.may_vanish_in(text) {
                return Ok(Step::Stop(Event::Settle));
            }
            if let Some(pieces) = self.pieces_naming_statements(text) {
                return Ok(Step::Event(Event::Query(pieces)));
            }
        }
        if traits.may_listen && self.is_pooled() && !self.internal {
            if !walk.is_complete() {
                return Ok(Step::Wait);
            }
            if let Some(pieces) = self.inspect_query(text) {
                return Ok(Step::Event(Event::Query(pieces)));
            }
        }
        self.note_traits(traits, text);
        // A simple Query destroys the unnamed statement.
        let undo = self.drop_unnamed();
        if let Some(server) = &mut self.server {
            // It ends an extended batch as a Sync does.
            server.unsynced = false;
            server.ledger.push(Request::Query, Fate::Forward, undo);
        }
        Ok(Step::Forward)
    }

    /// What the text, and the functions it calls, may leave behind.
    pub(super) fn traits_of(&self, text: &[u8]) -> Traits {
        Traits {
            calls_stateful: self.pool.shared.stateful.are_called(text),
            ..Traits::of(text)
        }
    }

    /// Takes account of what a statement that is about to run may leave behind.
    pub(super) fn note_traits(&mut self, mut traits: Traits, text: &[u8]) {
        if traits == Traits::default() || self.internal || !self.is_pooled() {
            return;
        }
        if traits.calls_stateful {
            let effect = self.pool.shared.stateful.effect(text);
            traits.deallocates |= effect.traits.deallocates;
            traits.sets_config |= effect.traits.sets_config;
            traits.leaves_state |= effect.traits.leaves_state;
            self.custom_settings.extend(effect.settings);
        }
        self.settings_changed |= traits.sets_config;
        self.deallocating |= traits.deallocates;
        if traits.may_set
            && let Ok(text) = std::str::from_utf8(text)
        {
            self.custom_settings.extend(custom_settings(text));
        }
        if let Some(server) = &mut self.server {
            server.dirty |= traits.leaves_state;
        }
    }

    /// Gives the server a statement by the client's own name, for it to be seen in SQL or by a Parse.
    pub(super) fn alias(&mut self, walk: &mut Walk<'_>, name: &[u8], rest: &[u8]) {
        // It may be there already, from an earlier error about it.
        self.inject_expecting(walk, Request::Close, Undo::Nothing, |out| {
            message::close_statement(out, name);
        });
        self.inject_expecting(walk, Request::Parse, Undo::Nothing, |out| {
            message::parse_raw(out, name, rest);
        });
    }

    pub(super) fn wanted_by_plugin(&self, text: &[u8]) -> bool {
        let identity = &self.pool.shared.identity;
        !self.internal
            && self
                .pool
                .plugins
                .iter()
                .any(|plugin| plugin.wants(identity, text))
    }

    fn sync(&mut self) -> Step {
        self.batch_reached_server = false;
        match &mut self.server {
            Some(server) => {
                if !server.ledger.is_copying_in() {
                    server.unsynced = false;
                }
                if server.status == TransactionStatus::Idle {
                    self.portals.clear();
                }
                server
                    .ledger
                    .push(Request::Sync, Fate::Forward, Undo::Nothing);
                Step::Forward
            }
            None => {
                // Outside of a transaction the answer is known.
                self.portals.clear();
                message::ready_for_query(self.out.tail(), TransactionStatus::Idle);
                Step::Done
            }
        }
    }
}
