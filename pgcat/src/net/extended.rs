//! The extended protocol on the client's side of the relay: statements, portals, and the rewriting of
//! their names.

use std::sync::Arc;

use super::frontend::{Step, Walk};
use super::handled::HandledPortal;
use super::session::{ClientStatement, Event, Session, Unnamed, UnnamedStatement};
use crate::error::Error;
use crate::plugins::{Action, Statement};
use crate::router::command::may_be_command;
use crate::session::ledger::{BeforeUnnamed, Fate, Ledger, Request, Undo};
use crate::session::prepared::{self, PreparedStatement, Scope, may_be_server_name};
use crate::session::traits::{PreparedUse, Traits, prepared_use};
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{self, build, put_cstr, take_cstr};
use crate::wire::{HEADER, TransactionStatus, backend, frontend};

const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";

/// How many statements are kept that replies to come may yet be about.
const DROPPED_LIMIT: usize = 256;

impl Session {
    pub(super) fn extended(&mut self, walk: &mut Walk<'_>) -> Result<Step, Error> {
        // Bind may be large, and only its names matter; the others are needed whole.
        if !walk.is_complete()
            && (walk.header.tag != frontend::BIND || bind_names(walk.body()).is_none())
        {
            return Ok(Step::Wait);
        }
        if let Some(step) = self.route_batch(walk) {
            return Ok(step);
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

    #[inline]
    pub(super) fn expect(&mut self, request: Request, undo: Undo) {
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
        if may_be_command(text)
            && let Ok(text) = std::str::from_utf8(text)
            && let Some(command) = self.command_statement(text)
        {
            return Ok(self.parse_handled(name, command));
        }
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
        let known = self.pool.shared.stateful.version();
        let traits = self.traits_of(text);
        if traits.may_listen
            && let Some(statement) = self.listen_statement(text)
        {
            return Ok(self.parse_handled(name, statement));
        }
        if traits.may_name_statement
            && let Ok(text) = std::str::from_utf8(text)
            && let Some((prepared_use, name)) = prepared_use(text)
            && self.is_foreign_use(prepared_use, &name)
        {
            return Ok(Step::Event(Event::FailBatch(Box::new(unknown(
                name.as_bytes(),
            )))));
        }
        let replaced = rewritten.is_some();
        let rest = rewritten.as_deref().unwrap_or(rest);
        let session = self.registration.id;
        if name.is_empty() {
            self.alias_named(walk, text, traits);
            self.note_traits(traits, text);
            let undo = self.replace_unnamed();
            self.unnamed.traits = traits;
            self.unnamed.known = known;
            match &mut self.unnamed.statement {
                UnnamedStatement::Text(known) => {
                    known.clear();
                    known.extend_from_slice(rest);
                }
                other => *other = UnnamedStatement::Text(rest.to_vec()),
            }
            let version = self.unnamed.version;
            if let Some(server) = &mut self.server {
                server.unnamed = Some((session, version));
            }
            self.expect(Request::Parse, undo);
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
            self.alias(walk, name, &empty_statement());
            self.expect(Request::Parse, Undo::Nothing);
            if let Some(server) = &mut self.server {
                server.dirty = true;
            }
            return Ok(Step::Forward);
        }
        let Some(server) = &self.server else {
            return Ok(Step::NeedServer);
        };
        if self.settings_changed && server.ledger.is_capturing() {
            // What the text means depends on them.
            return Ok(Step::Stop(Event::Settle));
        }
        let (pool, shard) = (self.pool.shared.index, server.address().shard);
        let scope = Scope::new(pool, shard, &self.settings);
        let statement = self.thread.pooler.interner.intern(rest, scope);
        let undo = if server.statements.contains(statement.id) {
            Undo::Closed(statement.id)
        } else {
            Undo::Nothing
        };
        // From here on the Parse is sent. What is sent for it before would be sent again each time it has to wait.
        self.alias_named(walk, text, traits);
        self.make_room(walk, statement.id);
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
        let out = self.inject(walk);
        message::parse_raw(out, &statement.server_name, rest);
        message::describe_statement(out, &statement.server_name);
        if let Some(server) = &mut self.server {
            let undo = Undo::Described {
                statement: statement.clone(),
                client_name: Some(name.into()),
            };
            server
                .ledger
                .push(Request::DescribeStatement, Fate::Learn, undo);
        }
        let prepared = ClientStatement::Prepared {
            statement,
            traits,
            known,
        };
        self.statements.insert(name.into(), prepared);
        Ok(Step::Done)
    }

    /// Lets the server know the statement that a text names, if it is one of the client's.
    fn alias_named(&mut self, walk: &mut Walk<'_>, text: &[u8], traits: Traits) {
        if !traits.may_name_statement {
            return;
        }
        let Ok(text) = std::str::from_utf8(text) else {
            return;
        };
        let Some((prepared_use, name)) = prepared_use(text) else {
            return;
        };
        let Some(known) = self.statements.get(name.as_bytes()) else {
            return;
        };
        let rest = match known {
            ClientStatement::Prepared { statement, .. } if prepared_use == PreparedUse::Execute => {
                self.note_executed(&statement.clone())
            }
            _ => empty_statement(),
        };
        self.alias(walk, name.as_bytes(), &rest);
        if prepared_use == PreparedUse::Deallocate {
            self.statements.remove(name.as_bytes());
        }
        if let Some(server) = &mut self.server {
            server.dirty = true;
        }
    }

    /// Takes account of a statement of the client's that SQL is about to execute by its name. Returns the Parse body after the
    /// name, for the server to know it by.
    pub(super) fn note_executed(&mut self, statement: &PreparedStatement) -> Vec<u8> {
        self.note_traits(self.traits_of(statement.text()), statement.text());
        statement.rest_with_types()
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
    pub(super) fn may_vanish(&mut self, name: &[u8]) -> bool {
        let Some(server) = &self.server else {
            return false;
        };
        let waiting = server.ledger.is_waiting();
        // Until the Sync the statement may only have been parsed or bound.
        self.deallocating &= waiting || server.unsynced;
        // A server that waits for COPY data gives no other reply before it has them.
        let deallocating = self.deallocating && waiting && !server.ledger.is_copying_in();
        let closed = self.dropped.iter().rposition(|dropped| {
            dropped
                .as_ref()
                .is_some_and(|(dropped, _)| **dropped == *name)
        });
        deallocating
            || server.ledger.is_parsing_before_sync(name)
            || closed.is_some_and(|number| server.ledger.is_dropping_before_sync(number))
    }

    /// Sends a message of the pooler's own, whose reply is swallowed.
    pub(super) fn inject_expecting(
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

    /// Notes that the server gets the statement, and closes the one that must go for it, if one must.
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

    /// The statement a message is about to use, which the server has. `None`: the client's name means
    /// nothing to the pooler, and the server is to say so.
    ///
    /// # Errors
    /// What has to be done before.
    fn use_statement(
        &mut self,
        walk: &mut Walk<'_>,
        name: &[u8],
    ) -> Result<Option<Arc<PreparedStatement>>, Event> {
        if name.is_empty() {
            let ledger = self.server.as_ref().map(|server| &server.ledger);
            if ledger.is_some_and(Ledger::is_parsing_unnamed_before_sync) {
                // Should the Parse be skipped, the server has another one.
                return Err(Event::Settle);
            }
            self.use_unnamed(walk);
            return Ok(None);
        }
        let Some(ClientStatement::Prepared {
            statement,
            traits,
            known,
        }) = self.statements.get_mut(name)
        else {
            return Ok(None);
        };
        let stateful = &self.pool.shared.stateful;
        if *known != stateful.version() {
            *known = stateful.version();
            traits.calls_stateful = stateful.are_called(statement.text());
        }
        let Some(server) = &mut self.server else {
            return Ok(None);
        };
        if server
            .ledger
            .is_learning_by_another_name(statement.id, name)
        {
            return Err(Event::Settle);
        }
        if !server.statements.touch(statement.id) {
            return Err(Event::Provide {
                name: name.into(),
                described: walk.header.tag == frontend::DESCRIBE,
            });
        }
        let (statement, traits) = (statement.clone(), *traits);
        if traits != Traits::default() {
            self.note_traits(traits, statement.text());
        }
        Ok(Some(statement))
    }

    /// What is about to be sent puts another unnamed statement in the place of the client's. Where the server may skip it, the
    /// one before is kept; else it is left where it is, for its buffer.
    fn replace_unnamed(&mut self) -> Undo {
        let Unnamed {
            statement,
            traits,
            known,
            version,
            last,
        } = &mut self.unnamed;
        *last += 1;
        let replaced = std::mem::replace(version, *last);
        let mut before = None;
        if let Some(server) = &mut self.server {
            let on_server = server.unnamed.take();
            if server.ledger.may_skip() {
                before = Some(BeforeUnnamed {
                    version: replaced,
                    on_server,
                    rest: match statement {
                        UnnamedStatement::Text(rest) => Some(std::mem::take(rest)),
                        UnnamedStatement::Handled(_) | UnnamedStatement::None => None,
                    },
                    traits: *traits,
                    known: *known,
                });
            }
        }
        let by = *version;
        Undo::ReplacedUnnamed { by, before }
    }

    /// What is about to be sent drops the client's unnamed statement.
    pub(super) fn drop_unnamed(&mut self) -> Undo {
        let undo = self.replace_unnamed();
        self.unnamed.statement = UnnamedStatement::None;
        match undo {
            // If it is not skipped, it does not fail to.
            Undo::ReplacedUnnamed { before: None, .. } => Undo::Nothing,
            undo => undo,
        }
    }

    /// Makes sure that the server's unnamed statement is the client's.
    fn use_unnamed(&mut self, walk: &mut Walk<'_>) {
        let stateful = &self.pool.shared.stateful;
        if self.unnamed.known != stateful.version()
            && let UnnamedStatement::Text(rest) = &self.unnamed.statement
        {
            self.unnamed.known = stateful.version();
            let text = take_cstr(rest).map_or(&[][..], |(text, _)| text);
            self.unnamed.traits.calls_stateful = stateful.are_called(text);
        }
        // It leaves something behind each time it is run, perhaps in a batch after that of its Parse.
        if self.unnamed.traits != Traits::default()
            && let UnnamedStatement::Text(rest) = &self.unnamed.statement
        {
            let text = take_cstr(rest).map_or_else(Vec::new, |(text, _)| text.to_vec());
            self.note_traits(self.unnamed.traits, &text);
        }
        let current = (self.registration.id, self.unnamed.version);
        let Some(server) = &mut self.server else {
            return;
        };
        match &self.unnamed.statement {
            UnnamedStatement::Text(rest) if server.unnamed != Some(current) => {
                server.unnamed = Some(current);
                let rest = rest.clone();
                self.inject_expecting(walk, Request::Parse, Undo::PlacedUnnamed, |out| {
                    message::parse_raw(out, b"", &rest);
                });
            }
            UnnamedStatement::Text(_) => (),
            // Another client's unnamed statement must not be found there. It may be where none is known: what would have
            // closed or replaced it may have been skipped.
            _ => {
                server.unnamed = None;
                self.inject_expecting(walk, Request::Close, Undo::Nothing, |out| {
                    message::close_statement(out, b"");
                });
            }
        }
    }

    fn bind(&mut self, walk: &mut Walk<'_>) -> Result<Step, Error> {
        let Some((portal, name, _)) = bind_names(walk.body()) else {
            return Err(Error::protocol("invalid string in message"));
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
        if self.is_foreign(name) {
            return Ok(Step::Event(Event::FailBatch(Box::new(unknown(name)))));
        }
        if self.may_vanish(name) {
            return Ok(Step::Stop(Event::Settle));
        }
        let statement = match self.use_statement(walk, name) {
            Ok(statement) => statement,
            // In a failed transaction the server cannot be given the statement, and what it would say of this comes
            // before that.
            Err(_) if self.is_in_doubt() => return Ok(Step::Stop(Event::Settle)),
            Err(_) if self.is_failed() && !walk.is_complete() => return Ok(Step::Wait),
            Err(event) => {
                let miscounted = self.miscounted(walk.body(), name);
                return Ok(match miscounted.filter(|_| self.is_failed()) {
                    Some(error) => Step::Event(Event::FailBatch(Box::new(error))),
                    None => Step::Stop(event),
                });
            }
        };
        if !self.portals.is_empty() {
            self.portals.remove(portal);
        }
        self.expect(Request::Bind, Undo::Nothing);
        let Some(statement) = statement else {
            return Ok(Step::Forward);
        };
        let names = portal.len() + name.len() + 2;
        let length = (walk.header.body + 4 - name.len() + statement.server_name.len()) as u32;
        let out = self.inject(walk);
        out.push(frontend::BIND);
        out.extend_from_slice(&length.to_be_bytes());
        for name in [portal, &*statement.server_name] {
            out.extend_from_slice(name);
            out.push(0);
        }
        Ok(Step::ForwardAfter(HEADER + names))
    }

    /// Whether a statement by this name would be that of other clients.
    fn is_foreign(&self, name: &[u8]) -> bool {
        may_be_server_name(name) && !self.statements.contains_key(name)
    }

    /// Whether SQL that does this with a name uses or closes a statement of other clients.
    pub(super) fn is_foreign_use(&self, prepared_use: PreparedUse, name: &str) -> bool {
        prepared_use != PreparedUse::Prepare && self.is_foreign(name.as_bytes())
    }

    fn is_failed(&self) -> bool {
        self.server
            .as_ref()
            .is_some_and(|server| server.status == TransactionStatus::Failed)
    }

    /// PostgreSQL's error for a Bind with another number of values than the client's statement has parameters.
    fn miscounted(&self, body: &[u8], name: &[u8]) -> Option<ErrorFields> {
        let Some(ClientStatement::Prepared { statement, .. }) = self.statements.get(name) else {
            return None;
        };
        let wanted = u16::from_be_bytes(*statement.parameters()?.first_chunk()?);
        let (_, _, rest) = bind_names(body)?;
        let given = u16::from_be_bytes(*codes(rest)?.1.first_chunk()?);
        let name = String::from_utf8_lossy(name);
        let text = format!(
            "bind message supplies {given} parameters, but prepared statement \"{name}\" requires {wanted}"
        );
        let error = ErrorFields::error("08P01", text).raised_in("postgres.c", "exec_bind_message");
        (given != wanted).then_some(error)
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
        if self.is_foreign(name) {
            return Ok(Step::Event(Event::FailBatch(Box::new(unknown(name)))));
        }
        if self.may_vanish(name) {
            return Ok(Step::Stop(Event::Settle));
        }
        let statement = match self.use_statement(walk, name) {
            Ok(statement) => statement,
            Err(event) => return Ok(Step::Stop(event)),
        };
        self.expect(Request::DescribeStatement, Undo::Nothing);
        let Some(statement) = statement else {
            return Ok(Step::Forward);
        };
        message::describe_statement(self.inject(walk), &statement.server_name);
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
        if self.dropped.len() >= DROPPED_LIMIT {
            // A client that never lets the server catch up, or sends no Sync, would have it grow for ever.
            if self.is_in_doubt() {
                return Ok(Step::Stop(Event::Settle));
            }
            self.dropped.clear();
        }
        let known = match kind {
            b'P' => self.portals.remove(name).is_some(),
            _ if name.is_empty() => {
                let handled = matches!(self.unnamed.statement, UnnamedStatement::Handled(_));
                let undo = self.drop_unnamed();
                if handled {
                    self.synthesise(CLOSE_COMPLETE, undo);
                    return Ok(Step::Done);
                }
                self.expect(Request::Close, undo);
                return Ok(Step::Forward);
            }
            _ => match self.statements.remove(name) {
                Some(statement) => return Ok(self.close_known(name, statement)),
                // Closing what is not there is no error.
                None => may_be_server_name(name),
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
        if self.is_failed() {
            return Step::Event(Event::FailBatch(Box::new(in_failed_transaction())));
        }
        let undo = if name.is_empty() {
            let undo = self.replace_unnamed();
            self.unnamed.statement = UnnamedStatement::Handled(statement);
            undo
        } else if self.statements.contains_key(name) {
            let name = String::from_utf8_lossy(name);
            return Step::Event(Event::FailBatch(Box::new(ErrorFields::error(
                "42P05",
                format!("prepared statement \"{name}\" already exists"),
            ))));
        } else {
            self.statements
                .insert(name.into(), ClientStatement::Handled(statement));
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

/// PostgreSQL's error for a statement that there is none of.
pub(super) fn unknown(name: &[u8]) -> ErrorFields {
    let name = String::from_utf8_lossy(name);
    let text = format!("prepared statement \"{name}\" does not exist");
    ErrorFields::error("26000", text).raised_in("prepare.c", "FetchPreparedStatement")
}

/// The end of a Parse of a text that is parsed even in a failed transaction.
pub(super) fn empty_statement() -> Vec<u8> {
    message::parse_rest("", 0)
}

fn string(body: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    take_cstr(body).ok_or_else(|| Error::protocol("invalid string in message"))
}

/// Portal, statement, and the rest of a Bind; `None` until both names have arrived.
pub(super) fn bind_names(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
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
pub(super) fn codes(bytes: &[u8]) -> Option<(Vec<u16>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let (codes, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*count)) * 2)?;
    let codes = codes
        .chunks_exact(2)
        .map(|code| u16::from_be_bytes([code[0], code[1]]));
    Some((codes.collect(), rest))
}
