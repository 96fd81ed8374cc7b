//! Several statements of a plugin's on a server connection in one round trip.

use super::server::Server;
use crate::error::Error;
use crate::plugins::{PluginQuery, QueryResult};
use crate::session::prepared::{self, Interner, Scope};
use crate::wire::error_fields::ErrorFields;
use crate::wire::message;
use crate::wire::{TransactionStatus, backend};

/// How a pipeline ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipelineEnd {
    /// The statements are all there is: outside a block they are one transaction, which commits.
    Sync,
    /// They are part of a batch whose Sync is still to come. After an error the server skips to that.
    Flush,
}

impl Server {
    /// Runs statements by the extended protocol while nothing else is outstanding; the first that fails ends it. Notices and
    /// other unsolicited messages go to `unsolicited`, framed.
    ///
    /// # Errors
    /// [`Error::ServerRefused`] with the server's error, or a failure of the connection.
    pub async fn pipeline(
        &mut self,
        queries: &[PluginQuery],
        end: PipelineEnd,
        interner: &Interner,
        unsolicited: &mut Vec<u8>,
    ) -> Result<Vec<QueryResult>, Error> {
        self.unnamed = None;
        self.unaccounted = true;
        self.unsynced |= end == PipelineEnd::Flush;
        let mut used = Vec::new();
        for query in queries {
            self.send(query, interner, &mut used);
        }
        match end {
            PipelineEnd::Sync => message::sync(self.out.tail()),
            PipelineEnd::Flush => message::flush(self.out.tail()),
        }
        self.flush().await?;

        let mut results = Vec::with_capacity(queries.len());
        let mut result = QueryResult::default();
        let mut failure = None;
        loop {
            let ended = failure.is_some() || results.len() == queries.len();
            if end == PipelineEnd::Flush && ended {
                break;
            }
            let (tag, body) = self.read_message().await?;
            match tag {
                backend::READY_FOR_QUERY => {
                    self.status = TransactionStatus::from_byte(body.first().copied().unwrap_or(0));
                    break;
                }
                backend::ERROR_RESPONSE => {
                    failure = Some(Error::ServerRefused(Box::new(ErrorFields::read(&body))));
                }
                _ => {
                    self.collect(tag, &body, &mut result, unsolicited)?;
                    if matches!(
                        tag,
                        backend::COMMAND_COMPLETE | backend::EMPTY_QUERY_RESPONSE
                    ) {
                        results.push(std::mem::take(&mut result));
                    }
                }
            }
        }
        self.unaccounted = false;
        let Some(failure) = failure else {
            return Ok(results);
        };
        // Which of them the server has come to is not worth finding out, nor which will go on failing because a table
        // has changed: the next use parses anew.
        for statement in used {
            self.statements.doubt(statement);
        }
        Err(failure)
    }

    /// Appends what runs one statement; `used` collects the numbers of those that are kept.
    fn send(&mut self, query: &PluginQuery, interner: &Interner, used: &mut Vec<u64>) {
        let rest = message::parse_rest(&query.sql, query.parameters.len());
        if !query.kept {
            let out = self.out.tail();
            message::parse_raw(out, b"", &rest);
            message::bind(out, b"", &query.parameters);
            message::execute(out, b"");
            return;
        }
        // What the text means under the settings in force, the server finds out by itself.
        let statement = interner.intern(&rest, Scope::of_plugins());
        used.push(statement.id);
        if !self.statements.touch(statement.id) {
            if let Some(evicted) = self.statements.insert(statement.id) {
                let name = prepared::server_name(evicted);
                message::close_statement(self.out.tail(), &name);
            }
            let out = self.out.tail();
            message::close_statement(out, &statement.server_name);
            message::parse_raw(out, &statement.server_name, &rest);
        }
        let out = self.out.tail();
        message::bind(out, &statement.server_name, &query.parameters);
        message::execute(out, b"");
    }
}
