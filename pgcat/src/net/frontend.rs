//! The client's side of the relay: what each frontend message means for the ledger, and the rewriting
//! of statement names.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::task::Context;

use super::handled::HandledPortal;
use super::session::{Body, ClientStatement, Event, Session, UnnamedStatement};
use crate::error::Error;
use crate::plugins::{Action, Statement};
use crate::session::ledger::{Fate, Request, Undo};
use crate::session::prepared;
use crate::session::traits::{Traits, custom_settings, deallocated_name};
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{self, build, put_cstr, take_cstr};
use crate::wire::{HEADER, Header, TransactionStatus, backend, frontend};

/// A Query longer than this is looked at by plugins only up to here, and streamed.
const INSPECT_LIMIT: usize = 1 << 20;

const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";

/// What to do with a message, having accounted for it.
enum Step {
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
struct Walk<'a> {
    data: &'a [u8],
    at: usize,
    /// Bytes to pass on to the server that have not been written yet.
    run: Range<usize>,
    header: Header,
}

impl<'a> Walk<'a> {
    /// As much of the current message's body as is here.
    fn body(&self) -> &'a [u8] {
        let end = self.data.len().min(self.at + self.header.total());
        &self.data[self.at + HEADER..end]
    }

    fn is_complete(&self) -> bool {
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
            walk.header = match Header::read(&data[walk.at..]) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(_) => return Err(Error::protocol("invalid message length")),
            };
            match self.process_request(&mut walk)? {
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
                Step::Wait => break,
            }
        }
        if walk.at > 0 || event.is_some() {
            // The beginning of a message does not count, as in PostgreSQL.
            self.registration.handle.idle_in_transaction.set(None);
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
    fn inject(&mut self, walk: &mut Walk<'_>) -> &mut Vec<u8> {
        let run = mem::replace(&mut walk.run, 0..0);
        let Some(server) = &mut self.server else {
            unreachable!("only called with a server")
        };
        let out = server.out.tail();
        out.extend_from_slice(&walk.data[run]);
        out
    }

    /// Whether there is a server connection now.
    fn has_server(&mut self) -> bool {
        if self.server.is_none()
            && !self.thread.shutting_down.get()
            && self.checked_out.is_none()
            && let Some(server) = self.pool.try_checkout(&self.thread)
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
        match walk.header.tag {
            frontend::QUERY => self.query(walk),
            frontend::TERMINATE => Ok(Step::Event(Event::Terminated)),
            frontend::SYNC => Ok(self.sync()),
            frontend::FLUSH => Ok(match &mut self.server {
                Some(server) => {
                    server.unsynced |= !server.ledger.is_copying_in();
                    Step::Forward
                }
                None => Step::Done,
            }),
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => {
                // Outside of a COPY the server ignores them: late data of one that failed.
                Ok(match &mut self.server {
                    Some(server) => {
                        if walk.header.tag != frontend::COPY_DATA {
                            server.ledger.copy_in_ended();
                        }
                        Step::Forward
                    }
                    None => Step::Discard,
                })
            }
            frontend::FUNCTION_CALL => {
                if !self.has_server() {
                    return Ok(Step::NeedServer);
                }
                if let Some(server) = &mut self.server {
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
        if !walk.is_complete() && walk.body().len() < INSPECT_LIMIT {
            return Ok(Step::Wait);
        }
        let body = walk.body();
        let text = body.strip_suffix(&[0]).unwrap_or(body);
        if self.wanted_by_plugin(text) {
            if !walk.is_complete() {
                return Ok(Step::Wait);
            }
            if let Some(pieces) = self.inspect_query(text) {
                return Ok(Step::Event(Event::Query(pieces)));
            }
        }
        if !self.has_server() {
            return Ok(Step::NeedServer);
        }
        if let Some(name) = deallocated(text)
            && self.statements.contains_key(name.as_bytes())
            && let Some(server) = &self.server
        {
            if server.ledger.is_waiting() {
                // An error on its way would have the server skip this.
                return Ok(Step::Stop(Event::Settle));
            }
            if !server.ledger.is_skipping() && server.status != TransactionStatus::Failed {
                self.statements.remove(name.as_bytes());
                self.alias(walk, name.as_bytes());
            }
        }
        self.note_traits(Traits::of(text), text);
        self.unnamed.statement = UnnamedStatement::None;
        if let Some(server) = &mut self.server {
            // A simple Query destroys the unnamed statement.
            server.unnamed = None;
            // It ends an extended batch as a Sync does, unless it is skipped along with it.
            server.unsynced &= server.ledger.is_skipping();
            server
                .ledger
                .push(Request::Query, Fate::Forward, Undo::Nothing);
        }
        Ok(Step::Forward)
    }

    /// Takes account of what a statement that is about to run may leave behind.
    pub(super) fn note_traits(&mut self, traits: Traits, text: &[u8]) {
        if traits == Traits::default() || self.internal || !self.is_pooled() {
            return;
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
    fn alias(&mut self, walk: &mut Walk<'_>, name: &[u8]) {
        // It may be there already, from an earlier error about it.
        self.inject_expecting(walk, Request::Close, Undo::Nothing, |out| {
            message::close_statement(out, name);
        });
        // An empty text is parsed even in a failed transaction.
        self.inject_expecting(walk, Request::Parse, Undo::Nothing, |out| {
            message::parse(out, name, "");
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

    fn extended(&mut self, walk: &mut Walk<'_>) -> Result<Step, Error> {
        // Bind may be large, and only its names matter; the others are needed whole.
        if !walk.is_complete() && walk.header.tag != frontend::BIND {
            return Ok(Step::Wait);
        }
        if walk.header.tag == frontend::BIND && bind_names(walk.body()).is_none() {
            return if walk.is_complete() {
                Err(Error::protocol("invalid string in message"))
            } else {
                Ok(Step::Wait)
            };
        }
        if !self.has_server() {
            return Ok(Step::NeedServer);
        }
        let Some(server) = &mut self.server else {
            return Ok(Step::NeedServer);
        };
        server.unsynced = true;
        if server.ledger.is_skipping() {
            return Ok(Step::Forward);
        }
        match walk.header.tag {
            frontend::PARSE => self.parse(walk),
            frontend::BIND => self.bind(walk),
            frontend::DESCRIBE => self.describe(walk),
            frontend::EXECUTE => self.execute(walk),
            _ => self.close(walk),
        }
    }

    fn expect(&mut self, request: Request, undo: Undo) {
        self.batch_reached_server = true;
        if let Some(server) = &mut self.server {
            server.ledger.push(request, Fate::Forward, undo);
        }
    }

    fn synthesise(&mut self, reply: &[u8], undo: Undo) {
        if let Some(server) = &mut self.server {
            server.ledger.synthesise(reply, undo, self.out.tail());
        }
    }

    fn parse(&mut self, walk: &mut Walk<'_>) -> Result<Step, Error> {
        let (name, rest) = string(walk.body())?;
        let (text, types) = string(rest)?;
        let mut rewritten = None;
        if self.wanted_by_plugin(text) {
            match self.inspect_statement(text) {
                Action::Allow => (),
                Action::Deny(error) => return Ok(Step::Event(Event::FailBatch(error))),
                Action::Rewrite(text) => {
                    let mut rest = Vec::with_capacity(text.len() + 1 + types.len());
                    put_cstr(&mut rest, text.as_bytes());
                    rest.extend_from_slice(types);
                    rewritten = Some(rest);
                }
                Action::Handle(statement) => return Ok(self.parse_handled(name, statement)),
            }
        }
        let traits = Traits::of(text);
        if let Some(deallocated) = deallocated(text)
            && self.statements.remove(deallocated.as_bytes()).is_some()
        {
            self.alias(walk, deallocated.as_bytes());
        }
        let replaced = rewritten.is_some();
        let rest = rewritten.as_deref().unwrap_or(rest);
        let session = self.registration.id;
        if name.is_empty() {
            self.note_traits(traits, text);
            self.unnamed.version += 1;
            let version = self.unnamed.version;
            match &mut self.unnamed.statement {
                UnnamedStatement::Text(known) => {
                    known.clear();
                    known.extend_from_slice(rest);
                }
                other => *other = UnnamedStatement::Text(rest.to_vec()),
            }
            if let Some(server) = &mut self.server {
                server.unnamed = Some((session, version));
            }
            self.expect(Request::Parse, Undo::ParsedUnnamed);
            if replaced {
                message::parse_raw(self.inject(walk), b"", rest);
                return Ok(Step::Done);
            }
            return Ok(Step::Forward);
        }
        if self.may_vanish(name) {
            return Ok(Step::Stop(Event::Settle));
        }
        if self.statements.contains_key(name) {
            if self.is_in_doubt() {
                return Ok(Step::Stop(Event::Settle));
            }
            // The server is to say, in its own words and at the right place, that the name is taken.
            self.alias(walk, name);
            self.expect(Request::Parse, Undo::Nothing);
            if let Some(server) = &mut self.server {
                server.dirty = true;
            }
            return Ok(Step::Forward);
        }
        let search_path = self.settings.value("search_path").unwrap_or_default();
        let statement = self.thread.pooler.interner.intern(rest, search_path);
        let known = self
            .server
            .as_mut()
            .is_some_and(|server| server.statements.touch(statement.id));
        let undo = if known {
            Undo::Closed(statement.id)
        } else {
            self.make_room(walk, statement.id);
            Undo::Nothing
        };
        // Parsed anew, as it would be on a connection of the client's own: what the text means, or
        // whether it means anything, may have changed since another client had it parsed. And what is
        // known of the server's statements may be wrong, if a batch on its way fails.
        self.inject_expecting(walk, Request::Close, undo, |out| {
            message::close_statement(out, &statement.server_name);
        });
        self.expect(
            Request::Parse,
            Undo::Parsed {
                statement: statement.id,
                client_name: Some(name.into()),
            },
        );
        message::parse_raw(self.inject(walk), &statement.server_name, rest);
        self.statements
            .insert(name.into(), ClientStatement::Prepared { statement, traits });
        Ok(Step::Done)
    }

    /// Whether a reply is outstanding that may yet free a name the client has given.
    fn is_in_doubt(&self) -> bool {
        self.server
            .as_ref()
            .is_some_and(|server| server.ledger.is_waiting())
    }

    /// Whether the name may turn out to mean something else when this message reaches the server,
    /// without the message being skipped: its Parse or Close is skipped in an earlier batch, or it is
    /// deallocated.
    fn may_vanish(&mut self, name: &[u8]) -> bool {
        let Some(server) = &self.server else {
            return false;
        };
        self.deallocating &= server.ledger.is_waiting();
        let closed = self.dropped.iter().rposition(|dropped| {
            dropped
                .as_ref()
                .is_some_and(|(dropped, _)| **dropped == *name)
        });
        self.deallocating
            || server.ledger.is_parsing_before_sync(name)
            || closed.is_some_and(|number| server.ledger.is_dropping_before_sync(number))
    }

    /// Sends a message of the pooler's own, whose reply is swallowed.
    fn inject_expecting(
        &mut self,
        walk: &mut Walk<'_>,
        request: Request,
        undo: Undo,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        write(self.inject(walk));
        if let Some(server) = &mut self.server {
            server.ledger.push(request, Fate::Swallow, undo);
        }
    }

    /// Notes that the server gets the statement, and closes the one that must go for it.
    fn make_room(&mut self, walk: &mut Walk<'_>, statement: u64) {
        let evicted = self
            .server
            .as_mut()
            .and_then(|s| s.statements.insert(statement));
        if let Some(evicted) = evicted {
            self.inject_expecting(walk, Request::Close, Undo::Closed(evicted), |out| {
                message::close_statement(out, &prepared::server_name(evicted));
            });
        }
    }

    /// Makes sure that the server has the statement a message is about to use; returns its name there.
    /// `None`: the client's name means nothing to the pooler, and the server is to say so.
    fn provide(&mut self, walk: &mut Walk<'_>, name: &[u8]) -> Option<Box<[u8]>> {
        let session = self.registration.id;
        if name.is_empty() {
            let current = (session, self.unnamed.version);
            let server = self.server.as_mut()?;
            match &self.unnamed.statement {
                UnnamedStatement::Text(rest) if server.unnamed != Some(current) => {
                    server.unnamed = Some(current);
                    let rest = rest.clone();
                    self.inject_expecting(walk, Request::Parse, Undo::ParsedUnnamed, |out| {
                        message::parse_raw(out, b"", &rest);
                    });
                }
                UnnamedStatement::Text(_) => (),
                // Another client's unnamed statement must not be found there.
                _ if server.unnamed.take().is_some() => {
                    self.inject_expecting(walk, Request::Close, Undo::Nothing, |out| {
                        message::close_statement(out, b"");
                    });
                }
                _ => (),
            }
            return None;
        }
        let ClientStatement::Prepared { statement, traits } = self.statements.get(name)? else {
            return None;
        };
        let (statement, traits) = (statement.clone(), *traits);
        self.note_traits(traits, statement.text());
        let server = self.server.as_mut()?;
        let known = server.statements.touch(statement.id);
        if !known {
            self.make_room(walk, statement.id);
        }
        // A Parse of an earlier batch may be skipped, and then it takes this one.
        let server = self.server.as_ref()?;
        if !known || server.ledger.is_providing_before_sync(statement.id) {
            self.inject_expecting(walk, Request::Close, Undo::Nothing, |out| {
                message::close_statement(out, &statement.server_name);
            });
            let undo = Undo::Parsed {
                statement: statement.id,
                client_name: None,
            };
            self.inject_expecting(walk, Request::Parse, undo, |out| {
                message::parse_raw(out, &statement.server_name, &statement.rest);
            });
        }
        Some(statement.server_name.clone())
    }

    fn bind(&mut self, walk: &mut Walk<'_>) -> Result<Step, Error> {
        let Some((portal, name, _)) = bind_names(walk.body()) else {
            return Ok(Step::Wait);
        };
        if let Some(statement) = self.handled_statement(name) {
            if !walk.is_complete() {
                if let Some(server) = &mut self.server {
                    server.unsynced = server.ledger.is_waiting();
                }
                return Ok(Step::Wait);
            }
            let formats = result_formats(walk.body())?;
            self.portals.insert(
                portal.into(),
                HandledPortal {
                    statement,
                    formats,
                    offset: 0,
                },
            );
            self.synthesise(BIND_COMPLETE, Undo::Nothing);
            return Ok(Step::Done);
        }
        if self.may_vanish(name) {
            return Ok(Step::Stop(Event::Settle));
        }
        self.portals.remove(portal);
        let server_name = self.provide(walk, name);
        self.expect(Request::Bind, Undo::Nothing);
        let Some(server_name) = server_name else {
            return Ok(Step::Forward);
        };
        let names = portal.len() + name.len() + 2;
        let length = (walk.header.body + 4 - name.len() + server_name.len()) as u32;
        let out = self.inject(walk);
        out.push(frontend::BIND);
        out.extend_from_slice(&length.to_be_bytes());
        put_cstr(out, portal);
        put_cstr(out, &server_name);
        Ok(Step::ForwardAfter(HEADER + names))
    }

    fn describe(&mut self, walk: &mut Walk<'_>) -> Result<Step, Error> {
        let (kind, name) = kind_and_name(walk.body())?;
        if kind == b'P' {
            if let Some(portal) = self.portals.get(name) {
                let reply = portal.description();
                self.synthesise(&reply, Undo::Nothing);
                return Ok(Step::Done);
            }
            self.expect(Request::DescribePortal, Undo::Nothing);
            return Ok(Step::Forward);
        }
        if let Some(statement) = self.handled_statement(name) {
            let mut reply = Vec::new();
            build(&mut reply, backend::PARAMETER_DESCRIPTION, |out| {
                out.extend_from_slice(&[0, 0])
            });
            reply.extend(
                HandledPortal {
                    statement,
                    formats: Vec::new(),
                    offset: 0,
                }
                .description(),
            );
            self.synthesise(&reply, Undo::Nothing);
            return Ok(Step::Done);
        }
        if self.may_vanish(name) {
            return Ok(Step::Stop(Event::Settle));
        }
        let server_name = self.provide(walk, name);
        self.expect(Request::DescribeStatement, Undo::Nothing);
        let Some(server_name) = server_name else {
            return Ok(Step::Forward);
        };
        build(self.inject(walk), frontend::DESCRIBE, |out| {
            out.push(b'S');
            put_cstr(out, &server_name);
        });
        Ok(Step::Done)
    }

    fn execute(&mut self, walk: &mut Walk<'_>) -> Result<Step, Error> {
        let (portal, _) = string(walk.body())?;
        if self.portals.contains_key(portal) {
            return Ok(Step::Event(Event::Execute {
                portal: portal.into(),
            }));
        }
        self.expect(Request::Execute, Undo::Nothing);
        Ok(Step::Forward)
    }

    fn close(&mut self, walk: &mut Walk<'_>) -> Result<Step, Error> {
        let (kind, name) = kind_and_name(walk.body())?;
        if kind != b'P' && self.may_vanish(name) {
            return Ok(Step::Stop(Event::Settle));
        }
        let known = match kind {
            b'P' => self.portals.remove(name).is_some(),
            _ if name.is_empty() => {
                let handled = matches!(self.unnamed.statement, UnnamedStatement::Handled(_));
                self.unnamed.statement = UnnamedStatement::None;
                if let Some(server) = &mut self.server {
                    server.unnamed = None;
                }
                handled
            }
            _ => match self.statements.remove(name) {
                Some(statement) => return Ok(self.close_known(name, statement)),
                None => false,
            },
        };
        if known {
            self.synthesise(CLOSE_COMPLETE, Undo::Nothing);
            return Ok(Step::Done);
        }
        self.expect(Request::Close, Undo::Nothing);
        Ok(Step::Forward)
    }

    /// Forgets the client's name. The server keeps its statement: other clients may share it.
    fn close_known(&mut self, name: &[u8], statement: ClientStatement) -> Step {
        let undo = Undo::Dropped(self.dropped.len());
        self.dropped.push(Some((name.into(), statement)));
        if self.server.as_ref().is_some_and(|server| server.dirty) {
            // The name itself may be there too, from an error about it that the server was to report.
            self.expect(Request::Close, undo);
            return Step::Forward;
        }
        self.synthesise(CLOSE_COMPLETE, undo);
        Step::Done
    }

    fn parse_handled(&mut self, name: &[u8], statement: Arc<dyn Statement>) -> Step {
        let failed = self
            .server
            .as_ref()
            .is_some_and(|s| s.status == TransactionStatus::Failed);
        if failed {
            return Step::Event(Event::FailBatch(Box::new(in_failed_transaction())));
        }
        if name.is_empty() {
            self.unnamed.version += 1;
            self.unnamed.statement = UnnamedStatement::Handled(statement);
        } else if self.statements.contains_key(name) {
            let name = String::from_utf8_lossy(name);
            return Step::Event(Event::FailBatch(Box::new(ErrorFields::error(
                "42P05",
                format!("prepared statement \"{name}\" already exists"),
            ))));
        } else {
            self.statements
                .insert(name.into(), ClientStatement::Handled(statement));
        }
        let undo = if name.is_empty() {
            Undo::Nothing
        } else {
            Undo::Named(name.into())
        };
        self.synthesise(PARSE_COMPLETE, undo);
        Step::Done
    }

    fn handled_statement(&self, name: &[u8]) -> Option<Arc<dyn Statement>> {
        if name.is_empty() {
            match &self.unnamed.statement {
                UnnamedStatement::Handled(statement) => Some(statement.clone()),
                _ => None,
            }
        } else {
            match self.statements.get(name) {
                Some(ClientStatement::Handled(statement)) => Some(statement.clone()),
                _ => None,
            }
        }
    }
}

/// PostgreSQL's error for anything but ROLLBACK in a failed transaction.
pub(super) fn in_failed_transaction() -> ErrorFields {
    ErrorFields::error(
        "25P02",
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

/// The statement that a text deallocates by name. Most texts are told apart by their first letter.
fn deallocated(text: &[u8]) -> Option<String> {
    let first = text.trim_ascii_start().first()?;
    if !matches!(first, b'd' | b'D' | b'/' | b'-') {
        return None;
    }
    deallocated_name(std::str::from_utf8(text).ok()?)
}

fn string(body: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    take_cstr(body).ok_or_else(|| Error::protocol("invalid string in message"))
}

/// Portal, statement, and the rest of a Bind; `None` until both names have arrived.
fn bind_names(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (portal, rest) = take_cstr(body)?;
    let (name, rest) = take_cstr(rest)?;
    Some((portal, name, rest))
}

fn kind_and_name(body: &[u8]) -> Result<(u8, &[u8]), Error> {
    let (&kind, rest) = body
        .split_first()
        .ok_or_else(|| Error::protocol("invalid message format"))?;
    Ok((kind, string(rest)?.0))
}

/// The result format codes of a Bind.
fn result_formats(body: &[u8]) -> Result<Vec<u16>, Error> {
    let short = || Error::protocol("insufficient data left in message");
    let (_, _, rest) = bind_names(body).ok_or_else(short)?;
    let (_, rest) = codes(rest).ok_or_else(short)?;
    let (count, mut rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = i32::from_be_bytes(*length).max(0) as usize;
        rest = tail.get(length..).ok_or_else(short)?;
    }
    Ok(codes(rest).ok_or_else(short)?.0)
}

/// A counted list of 16-bit codes, and what follows it.
fn codes(bytes: &[u8]) -> Option<(Vec<u16>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let (codes, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*count)) * 2)?;
    let codes = codes
        .chunks_exact(2)
        .map(|code| u16::from_be_bytes([code[0], code[1]]));
    Some((codes.collect(), rest))
}
