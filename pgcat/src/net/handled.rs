//! Statements that plugins answer, in both protocols: when they run, and how their results, errors
//! and transaction effects look to the client.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use super::extended::{empty_statement, in_failed_transaction, unknown};
use super::notify::{self, ListenStatement};
use super::pipeline::PipelineEnd;
use super::rows;
use super::server::Server;
use super::session::{ClientStatement, Session, UnnamedStatement, shutting_down};
use crate::error::Error;
use crate::plugins::{
    Action, Completion, PluginQuery, ServerHandle, SessionView, Statement, TransactionContext,
};
use crate::router::{lexer, statements};
use crate::session::ledger::{Fate, Request, Undo};
use crate::session::prepared;
use crate::session::traits::{PreparedUse, prepared_use};
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{self, build, put_cstr};
use crate::wire::{Header, TransactionStatus, backend, frontend};

/// A part of a Query that has a statement for a plugin in it.
pub(super) struct Piece {
    what: What,
    /// Characters of the Query before it: what positions in its errors are off by.
    offset: u32,
}

impl Piece {
    /// A statement that is refused.
    pub fn denied(error: Box<ErrorFields>) -> Self {
        Self {
            what: What::Denied(error),
            offset: 0,
        }
    }

    /// A statement at `start` of `text` that is answered here.
    pub fn handled(statement: Arc<dyn Statement>, text: &str, start: usize) -> Self {
        Self {
            what: What::Handled(statement),
            offset: text[..start].chars().count() as u32,
        }
    }

    /// Statements at `start` of `text` for the server.
    pub fn plain(statements: &str, text: &str, start: usize) -> Self {
        Self {
            what: What::Plain(statements.to_owned()),
            offset: text[..start].chars().count() as u32,
        }
    }
}

enum What {
    Denied(Box<ErrorFields>),
    Handled(Arc<dyn Statement>),
    /// For the server: one or several statements.
    Plain(String),
}

/// A portal bound to a statement that a plugin answers.
pub(super) struct HandledPortal {
    pub statement: Arc<dyn Statement>,
    /// As in Bind: none (all text), one for all, or one per column.
    pub formats: Vec<u16>,
    /// Characters of the Query before the statement.
    pub offset: u32,
}

/// What a plain piece of a Query is to the transaction around it.
enum Control {
    Begin,
    End,
    Other,
}

impl HandledPortal {
    /// RowDescription or NoData.
    pub fn description(&self) -> Vec<u8> {
        let mut out = Vec::new();
        rows::describe(self.statement.columns(), &self.formats, &mut out);
        out
    }

    /// The DataRows and CommandComplete.
    fn result(&self, completion: &Completion, out: &mut Vec<u8>) -> Result<(), Box<ErrorFields>> {
        for row in &completion.rows {
            rows::write(self.statement.columns(), &self.formats, row, out)?;
        }
        message::command_complete(out, &completion.tag);
        Ok(())
    }
}

impl Session {
    fn view<T>(&self, plugin: &str, f: impl FnOnce(&SessionView<'_>) -> T) -> T {
        let shared = &self.pool.shared;
        f(&SessionView {
            pool: &shared.identity,
            settings: shared.settings.plugins.get(plugin),
        })
    }

    /// The plugins' decision about one statement: the first that does not allow it as it is.
    pub(super) fn inspect_statement(&mut self, sql: &[u8]) -> Action {
        // Text that is not UTF-8 is in another client encoding; keywords are ASCII in all of them, but
        // positions and names would be wrong. The server gets it as it is.
        let Ok(sql) = std::str::from_utf8(sql) else {
            return Action::Allow;
        };
        if let Some(statement) = self.listen_statement(sql.as_bytes()) {
            return Action::Handle(statement);
        }
        let identity = &self.pool.shared.identity;
        for plugin in &self.pool.plugins {
            if !plugin.wants(identity, sql.as_bytes()) {
                continue;
            }
            match self.view(plugin.name(), |view| plugin.statement(view, sql)) {
                Action::Allow => (),
                decided => return decided,
            }
        }
        Action::Allow
    }

    /// LISTEN and UNLISTEN, which the pooler answers in transaction mode.
    pub(super) fn listen_statement(&mut self, sql: &[u8]) -> Option<Arc<dyn Statement>> {
        if self.internal || !self.is_pooled() {
            return None;
        }
        let command = notify::parse(std::str::from_utf8(sql).ok()?)?;
        let failed = |server: &Server| server.status == TransactionStatus::Failed;
        if self.server.as_deref().is_some_and(failed) {
            // The server's own refusal.
            return None;
        }
        if self.subscriptions.is_none() && !matches!(command, notify::Command::Listen(_)) {
            // The server says as well that nothing is left.
            return None;
        }
        let subscriptions = self.subscriptions();
        Some(Arc::new(ListenStatement {
            command,
            subscriptions,
        }))
    }

    /// The pieces of a Query if a plugin has anything to say about it; `None`: forward it as it is.
    pub(super) fn inspect_query(&mut self, sql: &[u8]) -> Option<Vec<Piece>> {
        let sql = std::str::from_utf8(sql).ok()?;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut all_plain = true;
        let (mut counted, mut offset) = (0, 0);
        for range in statements::split(sql) {
            // Not from the start each time: there may be very many.
            offset += sql[counted..range.start].chars().count() as u32;
            counted = range.start;
            let text = &sql[range];
            let what = match self.inspect_statement(text.as_bytes()) {
                Action::Allow => What::Plain(text.to_owned()),
                Action::Deny(error) => What::Denied(error),
                Action::Rewrite(text) => {
                    all_plain = false;
                    What::Plain(text)
                }
                Action::Handle(statement) => What::Handled(statement),
            };
            all_plain &= matches!(what, What::Plain(_));
            pieces.push(Piece { what, offset });
        }
        (!all_plain).then_some(pieces)
    }

    /// The pieces of a Query in which SQL names a statement that the client has prepared by the protocol; `None`: there is
    /// no such name.
    pub(super) fn pieces_naming_statements(&self, sql: &[u8]) -> Option<Vec<Piece>> {
        let sql = std::str::from_utf8(sql).ok()?;
        let names_one = |text: &str| {
            prepared_use(text).is_some_and(|(prepared_use, name)| {
                self.statements.contains_key(name.as_bytes())
                    || self.is_foreign_use(prepared_use, &name)
            })
        };
        let ranges = statements::split(sql);
        if !ranges.iter().any(|range| names_one(&sql[range.clone()])) {
            return None;
        }
        let piece = |range: &Range<usize>| Piece::plain(&sql[range.clone()], sql, range.start);
        Some(ranges.iter().map(piece).collect())
    }

    /// Whether it depends on replies to come what a name of a statement in a Query stands for.
    pub(super) fn may_vanish_in(&mut self, sql: &[u8]) -> bool {
        let Ok(sql) = std::str::from_utf8(sql) else {
            return false;
        };
        let ranges = statements::split(sql).into_iter();
        let names = ranges.filter_map(|range| prepared_use(&sql[range]));
        names
            .map(|(_, name)| name)
            .any(|name| self.may_vanish(name.as_bytes()))
    }

    /// The pieces of a Query from `start` on.
    pub(super) fn pieces_from(&mut self, text: &str, start: usize) -> Vec<Piece> {
        let rest = &text[start..];
        match self.inspect_query(rest.as_bytes()) {
            Some(mut pieces) => {
                let before = text[..start].chars().count() as u32;
                pieces.iter_mut().for_each(|piece| piece.offset += before);
                pieces
            }
            None => vec![Piece::plain(rest, text, start)],
        }
    }

    /// Waits until the server owes nothing, and makes sure there is one, which stays until released.
    /// False: the server skips to a Sync, or there is none and the client has been told.
    async fn hold_server(&mut self, simple: bool) -> Result<bool, Error> {
        self.hold = true;
        loop {
            self.settle().await?;
            match &self.server {
                Some(server) => return Ok(!server.ledger.is_skipping()),
                None => match self.checkout().await {
                    Ok(server) => self.attach_safely(server).await?,
                    Err(error @ (Error::Client(_) | Error::Refused(_))) => {
                        self.hold = false;
                        return Err(error);
                    }
                    Err(error) => {
                        self.hold = false;
                        let fields = self.no_server_error(&error);
                        if simple {
                            fields.write(self.out.tail());
                            message::ready_for_query(self.out.tail(), TransactionStatus::Idle);
                        } else {
                            self.answer_without_server(&fields).await?;
                        }
                        return Ok(false);
                    }
                },
            }
        }
    }

    /// Replies to an unfinished batch come only when asked for; and a COPY has perhaps eaten the Sync that seemed to finish
    /// it.
    pub(super) fn ask_for_replies(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        if server.ledger.is_flushed() {
            // Should it have been answered by an error, this is skipped: no statement has the name.
            message::close_statement(server.out.tail(), &prepared::server_name(u64::MAX));
            let (request, fate) = (Request::Close, Fate::Swallow);
            server.ledger.push(request, fate, Undo::Nothing);
        }
        if server.ledger.is_waiting() {
            message::flush(server.out.tail());
        }
    }

    /// Waits until the server owes nothing.
    pub(super) async fn settle(&mut self) -> Result<(), Error> {
        self.ask_for_replies();
        poll_fn(|cx| {
            // The relay leaves it to its caller, where it does not read from the client.
            if self.registration.handle.killed.get() {
                return Poll::Ready(Err(Error::Refused(Box::new(shutting_down()))));
            }
            self.poll_drain(cx)
        })
        .await
    }

    fn status(&self) -> TransactionStatus {
        self.server
            .as_ref()
            .map_or(TransactionStatus::Idle, |server| server.status)
    }

    /// Runs a Query in pieces.
    pub(super) async fn query_handled(&mut self, pieces: Vec<Piece>) -> Result<(), Error> {
        let outcome = self.run_pieces(pieces).await;
        self.hold = false;
        outcome?;
        self.follow_choice();
        self.release_if_idle();
        self.flush_client().await
    }

    async fn run_pieces(&mut self, pieces: Vec<Piece>) -> Result<(), Error> {
        if !self.hold_server(true).await? {
            return Ok(());
        }
        self.count_request();
        // A simple Query destroys it.
        self.unnamed.statement = UnnamedStatement::None;
        // PostgreSQL runs a Query of several statements in one implicit transaction, which a BEGIN in
        // it turns into a block.
        let several = pieces.len() > 1;
        let mut implicit = false;
        let mut failed = false;
        for Piece { what, offset } in pieces {
            if several && !implicit && self.status() == TransactionStatus::Idle {
                self.own_query("BEGIN").await?;
                implicit = true;
            }
            let done = match what {
                What::Denied(error) => self.refuse(shifted(*error, offset)).await?,
                What::Handled(_) if self.status() == TransactionStatus::Failed => {
                    in_failed_transaction().write(self.out.tail());
                    false
                }
                What::Handled(statement) => {
                    let context = match self.status() {
                        TransactionStatus::Idle => TransactionContext::None,
                        _ if implicit => TransactionContext::Implicit,
                        _ => TransactionContext::Block,
                    };
                    let portal = HandledPortal {
                        statement,
                        formats: Vec::new(),
                        offset,
                    };
                    self.run_handled(&portal, context, false, true).await?
                }
                What::Plain(text) => match control(&text) {
                    Control::Begin if implicit => {
                        implicit = false;
                        message::command_complete(self.out.tail(), "BEGIN");
                        true
                    }
                    control => {
                        if matches!(control, Control::End) {
                            implicit = false;
                        }
                        self.run_naming(&text, offset).await?
                    }
                },
            };
            if !done {
                failed = true;
                break;
            }
        }
        if implicit {
            let end = if failed { "ROLLBACK" } else { "COMMIT" };
            if let Some(subscriptions) = &self.subscriptions {
                subscriptions.note_rollback(failed);
            }
            if let Err(error) = self.own_query(end).await {
                // A deferred constraint may fail at the end.
                match error {
                    Error::ServerRefused(fields) => fields.write(self.out.tail()),
                    other => return Err(other),
                }
            }
        }
        let status = self.status();
        message::ready_for_query(self.out.tail(), status);
        self.count_ready();
        if status == TransactionStatus::Idle {
            self.settle_subscriptions();
            self.wrote = false;
            for plugin in &self.pool.plugins {
                plugin.committed(&self.pool.shared.identity);
            }
            self.note_transaction();
            self.ask_for_settings();
        }
        Ok(())
    }

    /// A statement of the pooler's own.
    async fn own_query(&mut self, sql: &str) -> Result<(), Error> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        server.simple_query(sql, self.out.tail()).await.map(drop)
    }

    /// Runs a plain piece, which may name one of the client's prepared statements: the server knows them by other names.
    /// False if it failed.
    async fn run_naming(&mut self, sql: &str, offset: u32) -> Result<bool, Error> {
        let named = prepared_use(sql).filter(|_| self.status() != TransactionStatus::Failed);
        let Some((prepared_use, name)) = named else {
            return self.run_plain(sql, offset).await;
        };
        let Some(known) = self.statements.get(name.as_bytes()) else {
            if self.is_foreign_use(prepared_use, &name) {
                return self.refuse(unknown(name.as_bytes())).await;
            }
            return self.run_plain(sql, offset).await;
        };
        let rest = match (prepared_use, known) {
            (PreparedUse::Deallocate, _) => {
                self.statements.remove(name.as_bytes());
                if self.server.as_ref().is_some_and(|server| server.unsynced) {
                    // A Query ends what a batch before it has begun, portals included.
                    self.own_query("").await?;
                    if let Some(server) = &mut self.server {
                        server.unsynced = false;
                    }
                }
                message::command_complete(self.out.tail(), "DEALLOCATE");
                return Ok(true);
            }
            (PreparedUse::Execute, ClientStatement::Prepared { statement, .. }) => {
                self.note_executed(&statement.clone())
            }
            // Its name is taken.
            _ => empty_statement(),
        };
        if let Some(server) = &mut self.server
            && let Err(error) = server.name_statement(&name, Some(&rest)).await
        {
            let Error::ServerRefused(fields) = error else {
                return Err(error);
            };
            fields.write(self.out.tail());
            return Ok(false);
        }
        let done = self.run_plain(sql, offset).await?;
        if let Some(server) = &mut self.server {
            server.name_statement(&name, None).await?;
        }
        Ok(done)
    }

    /// Runs a plain piece; its replies but for ReadyForQuery go to the client. False if it failed.
    async fn run_plain(&mut self, sql: &str, offset: u32) -> Result<bool, Error> {
        self.note_traits(self.traits_of(sql.as_bytes()), sql.as_bytes());
        let Some(server) = &mut self.server else {
            return Ok(false);
        };
        message::query(server.out.tail(), sql);
        server.unnamed = None;
        server.unaccounted = true;
        server.flush().await?;
        let mut done = true;
        loop {
            let Some(server) = &mut self.server else {
                return Ok(false);
            };
            let (tag, body) = server.read_message().await?;
            match tag {
                backend::READY_FOR_QUERY => {
                    let status = body.first().copied().unwrap_or(0);
                    server.status = TransactionStatus::from_byte(status);
                    server.unaccounted = false;
                    server.unsynced = false;
                    return Ok(done);
                }
                backend::PARAMETER_STATUS => server.note_parameter(&body),
                backend::ERROR_RESPONSE => {
                    done = false;
                    shifted(ErrorFields::read(&body), offset).write(self.out.tail());
                    continue;
                }
                backend::COPY_IN_RESPONSE => {
                    build(server.out.tail(), frontend::COPY_FAIL, |out| {
                        put_cstr(
                            out,
                            b"COPY FROM STDIN cannot share a query with this statement",
                        );
                    });
                    server.flush().await?;
                    continue;
                }
                backend::COMMAND_COMPLETE => self.completed(&body, Fate::Forward),
                _ => (),
            }
            build(self.out.tail(), tag, |out| out.extend_from_slice(&body));
            if self.out.len() > 64 * 1024 {
                self.flush_client().await?;
            }
        }
    }

    /// Runs a plugin's statement; its result or error goes to the client. False if it failed.
    async fn run_handled(
        &mut self,
        portal: &HandledPortal,
        context: TransactionContext,
        batched: bool,
        describe: bool,
    ) -> Result<bool, Error> {
        let Some(server) = &mut self.server else {
            return Ok(false);
        };
        server.unnamed = None;
        let interner = &self.thread.pooler.interner;
        let mut handle = ServerHandle::new(server, interner, self.out.tail(), context, batched);
        let outcome = portal.statement.execute(&mut handle).await;
        let (skipping, lost) = handle.finish();
        if let Some(error) = lost {
            return Err(error);
        }
        let mut result = Vec::new();
        let outcome = outcome.and_then(|completion| {
            if describe && !portal.statement.columns().is_empty() {
                result.extend(portal.description());
            }
            portal.result(&completion, &mut result)
        });
        match outcome {
            Ok(()) => {
                self.out.tail().extend_from_slice(&result);
                Ok(true)
            }
            Err(error) => {
                if let Some(subscriptions) = &self.subscriptions {
                    subscriptions.note_rollback(true);
                }
                if context == TransactionContext::None && self.status() != TransactionStatus::Idle {
                    self.own_query("ROLLBACK").await?;
                }
                shifted(*error, portal.offset).write(self.out.tail());
                if batched {
                    self.fail_server_batch(skipping).await?;
                } else if context != TransactionContext::None {
                    self.fail_transaction().await?;
                }
                Ok(false)
            }
        }
    }

    /// Refuses a statement of a Query.
    async fn refuse(&mut self, error: ErrorFields) -> Result<bool, Error> {
        error.write(self.out.tail());
        self.fail_transaction().await?;
        Ok(false)
    }

    /// Puts an open transaction into the failed state, as an error of the server would.
    async fn fail_transaction(&mut self) -> Result<(), Error> {
        if self.status() != TransactionStatus::InTransaction {
            return Ok(());
        }
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        // A syntax error is the cheapest statement that fails for certain.
        match server.simple_query("!", &mut Vec::new()).await {
            Ok(_) | Err(Error::ServerRefused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes the server skip to the next Sync, as after an error of its own.
    async fn fail_server_batch(&mut self, skipping: bool) -> Result<(), Error> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        if !skipping {
            let failing = [PluginQuery::new("!")];
            let end = PipelineEnd::Flush;
            match server
                .pipeline(&failing, end, &self.thread.pooler.interner, &mut Vec::new())
                .await
            {
                Ok(_) | Err(Error::ServerRefused(_)) => (),
                Err(error) => return Err(error),
            }
        }
        server.unsynced = true;
        server.ledger.skip_to_sync();
        Ok(())
    }

    /// Executes a portal of a plugin's statement.
    pub(super) async fn execute_handled(&mut self, portal: &[u8]) -> Result<(), Error> {
        let outcome = self.run_portal(portal).await;
        self.hold = false;
        outcome?;
        self.follow_choice();
        self.flush_client().await
    }

    async fn run_portal(&mut self, portal: &[u8]) -> Result<(), Error> {
        if !self.hold_server(false).await? {
            return Ok(());
        }
        let Some(portal) = self.portals.get(portal) else {
            return Ok(());
        };
        let portal = HandledPortal {
            statement: portal.statement.clone(),
            formats: portal.formats.clone(),
            offset: 0,
        };
        let Some(server) = &self.server else {
            return Ok(());
        };
        let sync_follows = self.input.first() == Some(&frontend::SYNC);
        let context = match server.status {
            TransactionStatus::Failed => {
                in_failed_transaction().write(self.out.tail());
                return self.fail_server_batch(false).await;
            }
            TransactionStatus::InTransaction => TransactionContext::Block,
            // Alone in its batch, it may use transactions of its own. (`unsynced` is set by the
            // messages the pooler answered itself, too; what counts is what the server has seen.)
            TransactionStatus::Idle if sync_follows && !self.batch_reached_server => {
                TransactionContext::None
            }
            TransactionStatus::Idle => TransactionContext::Implicit,
        };
        let batched = context == TransactionContext::Implicit;
        let done = self.run_handled(&portal, context, batched, false).await?;
        if !done && !batched {
            self.fail_server_batch(false).await?;
        }
        if done && context == TransactionContext::None {
            for plugin in &self.pool.plugins {
                plugin.committed(&self.pool.shared.identity);
            }
        }
        Ok(())
    }

    /// Refuses an extended message.
    pub(super) async fn fail_batch(&mut self, error: ErrorFields) -> Result<(), Error> {
        let held = self.hold_server(false).await;
        self.hold = false;
        if held? {
            error.write(self.out.tail());
            self.fail_server_batch(false).await?;
        }
        self.flush_client().await
    }

    /// Answers the client's next request with an error, there being no server. The rest of an extended
    /// batch is skipped up to its Sync; the error comes before, because who sends Flush waits for it.
    pub(super) async fn answer_without_server(&mut self, error: &ErrorFields) -> Result<(), Error> {
        error.write(self.out.tail());
        let simple = matches!(
            self.input.first(),
            Some(&(frontend::QUERY | frontend::FUNCTION_CALL))
        );
        if !simple {
            self.flush_client().await?;
        }
        // Of the message being dropped, which may be as large as any.
        let mut left = 0;
        let mut last = false;
        loop {
            let here = left.min(self.input.len());
            self.input.drain(..here);
            left -= here;
            if left == 0 {
                if last {
                    break;
                }
                let header = Header::read(&self.input)
                    .map_err(|_| Error::protocol("invalid message length"))?;
                if let Some(header) = header {
                    if header.tag == frontend::TERMINATE {
                        return Err(Error::Client(ErrorKind::UnexpectedEof.into()));
                    }
                    left = header.total();
                    last = match header.tag {
                        frontend::QUERY | frontend::FUNCTION_CALL => simple,
                        tag => tag == frontend::SYNC,
                    };
                    continue;
                }
            }
            self.read_or_killed().await?;
        }
        self.input_ready = !self.input.is_empty();
        message::ready_for_query(self.out.tail(), TransactionStatus::Idle);
        self.flush_client().await
    }

    /// Reads what more the client sends.
    async fn read_or_killed(&mut self) -> Result<(), Error> {
        let handle = self.registration.handle.clone();
        tokio::select! {
            read = poll_fn(|cx| self.io.poll_read_into(cx, &mut self.input)) => match read {
                Ok(0) => Err(Error::Client(ErrorKind::UnexpectedEof.into())),
                Ok(_) => Ok(()),
                Err(error) => Err(Error::Client(error)),
            },
            () = handle.killing.notified() => Err(Error::Refused(Box::new(shutting_down()))),
        }
    }
}

/// The error of a piece, with its position in the whole Query.
fn shifted(mut error: ErrorFields, offset: u32) -> ErrorFields {
    error.position = error.position.map(|position| position + offset);
    error
}

/// What a plain statement does to the transaction, by its words.
fn control(sql: &str) -> Control {
    let mut words = lexer::tokens(sql);
    let Some(first) = words.next() else {
        return Control::Other;
    };
    let is = |word| first.is_word(sql, word);
    if is("begin") || is("start") {
        return Control::Begin;
    }
    if !(is("commit") || is("end") || is("rollback") || is("abort")) {
        return Control::Other;
    }
    // ROLLBACK TO a savepoint, and what concerns prepared transactions, leave this one as it is.
    let inside = words.any(|word| word.is_word(sql, "to") || word.is_word(sql, "prepared"));
    if inside { Control::Other } else { Control::End }
}
