//! Where a client's next statements go: by its commands, by comments, and by what the statements do.
//!
//! A route is chosen when a server connection is needed; while there is one, in a transaction or a
//! batch, nothing moves. A batch of extended messages is one transaction, so it is looked at up to its
//! Sync before it is sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::extended::{bind_names, codes};
use super::frontend::{Step, Walk};
use super::handled::Piece;
use super::session::{ClientStatement, Event, Session, UnnamedStatement};
use crate::config::model::{PoolMode, WantedRole};
use crate::error::Error;
use crate::plugins::{
    Column, Completion, LocalFuture, ServerHandle, Statement, TransactionContext,
};
use crate::pool::shared::PoolShared;
use crate::router::analysis::{Access, Analysis};
use crate::router::choice::Choice;
use crate::router::command::{Command, may_be_command};
use crate::router::comment::Found;
use crate::router::keys::Key;
use crate::router::route::Route;
use crate::router::statements;
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{self, build, put_cstr, take_cstr};
use crate::wire::{Header, TransactionStatus, backend, frontend};

/// A batch that is longer is not waited for: it goes to the primary.
const BATCH_LIMIT: usize = 64 * 1024;

/// A client's choice, which a command among its statements may change.
pub(super) type SharedChoice = Arc<Mutex<Choice>>;

/// What is known of the statements that will run together.
#[derive(Debug, Default)]
struct Unit {
    /// `None`: nothing that says so has been seen.
    access: Option<Access>,
    /// The shards their sharding keys belong to.
    shards: Vec<usize>,
    /// The shard named in a comment.
    comment: Option<usize>,
    updates_key: bool,
}

impl Unit {
    fn needs(&mut self, access: Access) {
        self.access = self.access.max(Some(access));
    }
}

impl Session {
    fn choice(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the next statements where the client has chosen.
    pub(super) fn follow_choice(&mut self) {
        let settings = &self.pool.shared.settings;
        self.route = if self.internal {
            Route::primary_of(settings)
        } else {
            self.choice().route(settings)
        };
    }

    /// Chooses the route of a Query. `Some`: something else comes first.
    pub(super) fn route_query(&mut self, text: &[u8]) -> Option<Step> {
        if self.internal || self.pool.analyser.is_none() {
            return None;
        }
        let mut unit = Unit::default();
        self.add_comment(&mut unit, text);
        self.add_statement(&mut unit, text, None);
        match self.choose_route(&unit) {
            Ok(step) => step,
            Err(error) => Some(Step::Event(Event::Query(vec![Piece::denied(error)]))),
        }
    }

    /// The same for a batch of extended messages that begins here.
    pub(super) fn route_batch(&mut self, walk: &Walk<'_>) -> Option<Step> {
        if self.internal || self.pool.analyser.is_none() {
            return None;
        }
        if self.server.as_ref().is_some_and(|server| server.unsynced) {
            return None;
        }
        let ahead = &walk.data[walk.at..];
        let mut unit = Unit::default();
        if !self.look_ahead(&mut unit, ahead) {
            if ahead.len() < BATCH_LIMIT {
                return Some(Step::Wait);
            }
            unit.needs(Access::Write);
        }
        match self.choose_route(&unit) {
            Ok(step) => step,
            Err(error) => Some(Step::Event(Event::FailBatch(error))),
        }
    }

    /// Looks at the messages of a batch. False if its end has not arrived yet.
    fn look_ahead(&self, unit: &mut Unit, mut ahead: &[u8]) -> bool {
        // Statements parsed in this batch, by name.
        let mut parsed: Vec<(&[u8], &[u8])> = Vec::new();
        while let Ok(Some(header)) = Header::read(ahead) {
            let Some(message) = ahead.get(..header.total()) else {
                return false;
            };
            let body = &message[crate::wire::HEADER..];
            ahead = &ahead[header.total()..];
            match header.tag {
                frontend::PARSE => {
                    if let Some((name, rest)) = take_cstr(body)
                        && let Some((text, _)) = take_cstr(rest)
                    {
                        self.add_comment(unit, text);
                        // Its sharding keys come with the Bind, if it is to run now.
                        self.add_access(unit, self.analyse(text).as_deref());
                        parsed.push((name, text));
                    }
                }
                frontend::BIND => {
                    let Some((_, name, _)) = bind_names(body) else {
                        continue;
                    };
                    let here = parsed.iter().rev().find(|(known, _)| *known == name);
                    match here.map(|(_, text)| *text).or_else(|| self.text_of(name)) {
                        Some(text) => self.add_statement(unit, text, Some(body)),
                        None => unit.needs(Access::Write),
                    }
                }
                frontend::FUNCTION_CALL => {
                    unit.needs(Access::Write);
                    return true;
                }
                frontend::SYNC | frontend::FLUSH | frontend::QUERY | frontend::TERMINATE => {
                    return true;
                }
                _ => (),
            }
        }
        false
    }

    /// The text of a statement that the client has prepared before.
    fn text_of(&self, name: &[u8]) -> Option<&[u8]> {
        if name.is_empty() {
            return match &self.unnamed.statement {
                UnnamedStatement::Text(rest) => take_cstr(rest).map(|(text, _)| text),
                _ => None,
            };
        }
        match self.statements.get(name)? {
            ClientStatement::Prepared { statement, .. } => Some(statement.text()),
            ClientStatement::Handled(_) => None,
        }
    }

    fn analyse(&self, text: &[u8]) -> Option<std::rc::Rc<Analysis>> {
        self.pool.analyser.as_ref()?.analyse(text)
    }

    fn add_comment(&self, unit: &mut Unit, text: &[u8]) {
        let comments = self
            .pool
            .analyser
            .as_ref()
            .and_then(|a| a.comments.as_ref());
        let settings = &self.pool.shared.settings;
        let shard = comments.and_then(|comments| match comments.find(text)? {
            Found::Shard(shard) => Some(shard),
            Found::Key(key) => Some(settings.sharding_function.shard(key, settings.shards.len())),
        });
        unit.comment = unit.comment.or(shard);
    }

    /// Adds a statement that will run, with its Bind if it has one.
    fn add_statement(&self, unit: &mut Unit, text: &[u8], bind: Option<&[u8]>) {
        let analysis = self.analyse(text);
        self.add_access(unit, analysis.as_deref());
        let Some(analysis) = analysis else {
            return;
        };
        let settings = &self.pool.shared.settings;
        unit.updates_key |= analysis.keys.updated;
        for key in &analysis.keys.values {
            let value = match key {
                Key::Literal(value) => Some(*value),
                Key::Parameter(number) => bind.and_then(|bind| parameter(bind, *number)),
            };
            let Some(value) = value else { continue };
            let shard = settings
                .sharding_function
                .shard(value, settings.shards.len());
            if !unit.shards.contains(&shard) {
                unit.shards.push(shard);
            }
        }
    }

    fn add_access(&self, unit: &mut Unit, analysis: Option<&Analysis>) {
        let (Some(analysis), Some(analyser)) = (analysis, &self.pool.analyser) else {
            return unit.needs(Access::Write);
        };
        let shared = &self.pool.shared;
        let settings = &shared.settings;
        let mut access = analysis.access;
        if access == Access::Read
            && !shared.functions.only_read(
                &analyser.catalog,
                analysis,
                &settings.read_only_functions,
            )
        {
            access = Access::Write;
        }
        if settings.db_activity_based_routing {
            if access == Access::Write {
                shared.activity.wrote(&analysis.tables, settings);
            } else if !shared.activity.is_settled(&analysis.tables, settings) {
                access = Access::Write;
            }
        }
        unit.needs(access);
    }

    fn choose_route(&mut self, unit: &Unit) -> Result<Option<Step>, Box<ErrorFields>> {
        let settings = &self.pool.shared.settings;
        let choice = *self.choice();
        let mut route = choice.route(settings);
        if choice.parses(settings) && settings.query_parser_read_write_splitting {
            route.role = match unit.access {
                // A session keeps the server it begins on, so that must be one for everything.
                _ if !self.is_pooled() && route.role == WantedRole::Any => WantedRole::Primary,
                _ if !self.is_pooled() => route.role,
                Some(Access::Read) if choice.reads_primary(settings) => WantedRole::Any,
                Some(Access::Read) => WantedRole::Replica,
                _ => WantedRole::Primary,
            };
        }
        let several = settings.shards.len() > 1;
        if several {
            route.shard = match unit.shards[..] {
                _ if unit.comment.is_some() => unit.comment,
                [] => route.shard,
                [one] => Some(one),
                _ => route.shard,
            };
        }
        let reads = unit.access.is_some_and(|access| access <= Access::Read);
        self.own_writes.note_access(self.server.is_none(), reads);
        if let Some(server) = &self.server {
            let fits = self.pool.shared.fits(server.address(), route);
            // It may be about to become free: only when its replies have come is it certain whether the
            // client is in a transaction.
            let moves = !fits && self.is_pooled() && server.ledger.is_waiting();
            return Ok(moves.then_some(Step::Stop(Event::Settle)));
        }
        if several && unit.comment.is_none() {
            if unit.shards.len() > 1 {
                let message = "the statement names sharding keys of several shards";
                let error = ErrorFields::error("0A000", message);
                return Err(Box::new(error.hint("Send a statement for each shard.")));
            }
            if unit.updates_key {
                let message = "an UPDATE must not change the sharding key";
                let hint = "Delete the row and insert it into its new shard.";
                return Err(Box::new(ErrorFields::error("0A000", message).hint(hint)));
            }
        }
        if unit.comment.is_some() {
            // As in PgCat, it stays for statements without a comment.
            self.choice().shard = unit.comment;
        }
        self.route = route;
        Ok(None)
    }

    /// Does the routing commands that a Query begins with. `None`: it begins with none.
    pub(super) fn command_query(&mut self, text: &[u8]) -> Option<Step> {
        if self.internal || !may_be_command(text) {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        let ranges = statements::split(text);
        let first = ranges.first()?;
        Command::parse(&text[first.clone()])?;
        if let Some(server) = &self.server {
            if server.ledger.is_waiting() {
                return Some(Step::Stop(Event::Settle));
            }
            // In a transaction, or in session mode.
            let pieces = ranges.into_iter().map(|range| {
                let statement = &text[range.clone()];
                match self.command_statement(statement) {
                    Some(command) => Piece::handled(command, text, range.start),
                    None => Piece::plain(statement, text, range.start),
                }
            });
            return Some(Step::Event(Event::Query(pieces.collect())));
        }
        for range in ranges {
            let Some(command) = Command::parse(&text[range.clone()]) else {
                // The rest runs where the commands say.
                self.follow_choice();
                let rest = &text[range.start..];
                let refused = self.route_query(rest.as_bytes());
                return Some(refused.unwrap_or_else(|| {
                    Step::Event(Event::Query(self.pieces_from(text, range.start)))
                }));
            };
            let outcome = self.choice().apply(&command, &self.pool.shared.settings);
            let out = self.out.tail();
            match outcome {
                Ok(value) => {
                    if let (Some(column), Some(value)) = (command.column(), value) {
                        write_value(out, column, &value);
                    }
                    message::command_complete(out, command.tag());
                }
                Err(error) => {
                    error.write(out);
                    break;
                }
            }
        }
        self.follow_choice();
        message::ready_for_query(self.out.tail(), TransactionStatus::Idle);
        Some(Step::Done)
    }

    /// The statement that does a routing command, for where statements are prepared and executed.
    pub(super) fn command_statement(&self, text: &str) -> Option<Arc<dyn Statement>> {
        if self.internal {
            return None;
        }
        let command = Command::parse(text)?;
        let columns = command.column().map(Column::text);
        Some(Arc::new(CommandStatement {
            columns: columns.into_iter().collect(),
            command,
            choice: self.choice.clone(),
            pool: self.pool.shared.clone(),
        }))
    }
}

struct CommandStatement {
    command: Command,
    columns: Vec<Column>,
    choice: SharedChoice,
    pool: Arc<PoolShared>,
}

impl Statement for CommandStatement {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn execute<'a>(
        &'a self,
        server: &'a mut ServerHandle<'_>,
    ) -> LocalFuture<'a, Result<Completion, Box<ErrorFields>>> {
        let shows = !self.columns.is_empty();
        let session = self.pool.user.pool_mode == PoolMode::Session;
        let fixed = session || server.transaction() == TransactionContext::Block;
        let outcome = if fixed && !shows {
            let place = if session {
                "in session mode after the first statement"
            } else {
                "inside a transaction block"
            };
            let tag = self.command.tag();
            Err(Box::new(ErrorFields::error(
                "25001",
                format!("{tag} cannot run {place}"),
            )))
        } else {
            let mut choice = self.choice.lock().unwrap_or_else(PoisonError::into_inner);
            let value = choice.apply(&self.command, &self.pool.settings);
            value.map(|value| Completion {
                rows: value.into_iter().map(|value| vec![Some(value)]).collect(),
                tag: self.command.tag().to_owned(),
            })
        };
        Box::pin(std::future::ready(outcome))
    }
}

/// A result of one text value.
fn write_value(out: &mut Vec<u8>, column: &str, value: &str) {
    build(out, backend::ROW_DESCRIPTION, |out| {
        out.extend_from_slice(&1_u16.to_be_bytes());
        put_cstr(out, column.as_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&25_u32.to_be_bytes());
        out.extend_from_slice(&(-1_i16).to_be_bytes());
        out.extend_from_slice(&(-1_i32).to_be_bytes());
        out.extend_from_slice(&[0; 2]);
    });
    build(out, backend::DATA_ROW, |out| {
        out.extend_from_slice(&1_u16.to_be_bytes());
        out.extend_from_slice(&(value.len() as u32).to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    });
}

/// An integer parameter of a Bind, by its number from 1.
fn parameter(bind: &[u8], number: usize) -> Option<i64> {
    let (_, _, rest) = bind_names(bind)?;
    let (formats, rest) = codes(rest)?;
    let (count, mut rest) = rest.split_first_chunk::<2>()?;
    let index = number.checked_sub(1)?;
    (index < usize::from(u16::from_be_bytes(*count))).then_some(())?;
    for at in 0.. {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let (value, tail) = tail.split_at_checked(length.unwrap_or(0))?;
        rest = tail;
        if at < index {
            continue;
        }
        length?;
        let binary = match formats[..] {
            [] => false,
            [all] => all == 1,
            _ => formats.get(index) == Some(&1),
        };
        return match (binary, value) {
            (false, text) => std::str::from_utf8(text).ok()?.trim().parse().ok(),
            (true, &[a, b]) => Some(i64::from(i16::from_be_bytes([a, b]))),
            (true, &[a, b, c, d]) => Some(i64::from(i32::from_be_bytes([a, b, c, d]))),
            (true, value) => value.try_into().ok().map(i64::from_be_bytes),
        };
    }
    None
}

impl Session {
    /// What the client is told where its shard does not exist.
    pub(super) fn invalid_shard(error: &Error) -> Option<ErrorFields> {
        let Error::InvalidShard(shard) = error else {
            return None;
        };
        Some(ErrorFields::error(
            "58000",
            format!("could not get connection from the pool - InvalidShardId({shard})"),
        ))
    }
}
