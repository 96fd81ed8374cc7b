//! Prepared statements brought to a server connection that does not have them.
//!
//! The text is parsed there as it was for the client, and it must still mean what it meant: the client
//! decodes rows, and sends values, by what it was told. So the server is asked to describe the
//! statement before anything of the client's uses it, which takes a round trip; a connection that has
//! the statement takes none. Where the answer has changed, the client gets the error that a connection
//! of its own would give it.

use std::sync::Arc;

use super::server::Server;
use super::session::{ClientStatement, Session};
use crate::error::Error;
use crate::session::ledger::{Fate, Request, Undo};
use crate::session::prepared::{self, PreparedStatement, Shape};
use crate::wire::error_fields::ErrorFields;
use crate::wire::{TransactionStatus, backend, message};

impl Session {
    /// Gives the server the statement that the client has by this name, and fails the client's next message if it is
    /// not any more what the client was told.
    pub(super) async fn provide(&mut self, name: &[u8], described: bool) -> Result<(), Error> {
        let Some(ClientStatement::Prepared { statement, .. }) = self.statements.get(name) else {
            return Ok(());
        };
        let statement = statement.clone();
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        server.give(&statement);
        self.settle().await?;
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        // If it could not even parse it, it has said so.
        if server.ledger.is_skipping() || server.statements.touch(statement.id) {
            return Ok(());
        }
        if described && let Some(types) = statement.parameters() {
            // PostgreSQL has described them when it looks at the result.
            message::build(self.out.tail(), backend::PARAMETER_DESCRIPTION, |out| {
                out.extend_from_slice(types);
            });
        }
        self.fail_batch(result_type_changed()).await
    }

    /// Notes what the server says of a statement.
    pub(super) fn learn(&mut self, tag: u8, body: &[u8]) {
        let Some(server) = &mut self.server else {
            return;
        };
        if tag == backend::PARAMETER_DESCRIPTION {
            server.described_parameters = body.to_vec();
            return;
        }
        let parameters = std::mem::take(&mut server.described_parameters);
        let Some(Undo::Described {
            statement,
            client_name,
        }) = server.ledger.next_undo().cloned()
        else {
            return;
        };
        let shape = Shape::new(
            &parameters,
            (tag == backend::ROW_DESCRIPTION).then_some(body),
        );
        let Some(name) = client_name else {
            if !statement.agrees(&shape) {
                server.statements.doubt(statement.id);
            }
            return;
        };
        let present = self.thread.pooler.interner.with_shape(&statement, shape);
        if present == statement {
            return;
        }
        // The text means something else than it did for those who had it parsed before. They keep their
        // statement; the client's is a new one.
        server.statements.doubt(statement.id);
        if let Some(ClientStatement::Prepared {
            statement: known,
            traits,
            known: version,
        }) = self.statements.get_mut(&name)
            && *known == statement
        {
            *known = present;
            // What has been sent already may yet get an error that names it.
            let (traits, known) = (*traits, *version);
            let replaced = ClientStatement::Prepared {
                statement,
                traits,
                known,
            };
            self.dropped.push(Some((name, replaced)));
        }
    }
}

impl Server {
    /// Sends a statement, and asks what it looks like.
    fn give(&mut self, statement: &Arc<PreparedStatement>) {
        if let Some(evicted) = self.statements.insert(statement.id) {
            message::close_statement(self.out.tail(), &prepared::server_name(evicted));
            self.ledger
                .push(Request::Close, Fate::Swallow, Undo::Closed(evicted));
        }
        let name = &statement.server_name;
        let comparable = statement.is_of_shard(self.address().shard);
        let out = self.out.tail();
        message::close_statement(out, name);
        if comparable {
            message::parse_raw(out, name, &statement.rest_with_types());
            message::describe_statement(out, name);
        } else {
            message::parse_raw(out, name, statement.rest());
        }
        self.ledger
            .push(Request::Close, Fate::Swallow, Undo::Nothing);
        let parsed = Undo::Parsed {
            statement: statement.id,
            client_name: None,
        };
        self.ledger.push(Request::Parse, Fate::Swallow, parsed);
        if comparable {
            let described = Undo::Described {
                statement: statement.clone(),
                client_name: None,
            };
            self.ledger
                .push(Request::DescribeStatement, Fate::Learn, described);
        }
    }
}

impl Server {
    /// Gives the server a statement by this name, in the place of what it may have by it, or takes the name away, while
    /// nothing else is outstanding.
    ///
    /// # Errors
    /// [`Error::ServerRefused`] with the server's error, or a failure of the connection.
    pub(super) async fn name_statement(
        &mut self,
        name: &str,
        rest: Option<&[u8]>,
    ) -> Result<(), Error> {
        self.unaccounted = true;
        let out = self.out.tail();
        message::close_statement(out, name.as_bytes());
        if let Some(rest) = rest {
            message::parse_raw(out, name.as_bytes(), rest);
        }
        message::sync(out);
        self.flush().await?;
        let mut outcome = Ok(());
        loop {
            let (tag, body) = self.read_message().await?;
            match tag {
                backend::READY_FOR_QUERY => {
                    self.status = TransactionStatus::from_byte(body.first().copied().unwrap_or(0));
                    self.unaccounted = false;
                    return outcome;
                }
                backend::PARAMETER_STATUS => self.note_parameter(&body),
                backend::ERROR_RESPONSE => {
                    outcome = Err(Error::ServerRefused(Box::new(ErrorFields::read(&body))));
                }
                _ => (),
            }
        }
    }
}

/// PostgreSQL's error for a prepared statement whose result has changed. Drivers know it by its code and
/// the routine, and prepare the statement again.
fn result_type_changed() -> ErrorFields {
    ErrorFields::error("0A000", "cached plan must not change result type")
        .raised_in("plancache.c", "RevalidateCachedQuery")
}
