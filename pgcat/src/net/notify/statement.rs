//! The statements LISTEN and UNLISTEN.

use std::sync::Arc;

use super::Subscriptions;
use crate::plugins::{
    Column, Completion, LocalFuture, ServerHandle, Statement, TransactionContext,
};
use crate::router::lexer::{self, Kind, Token};
use crate::wire::error_fields::ErrorFields;

/// What a statement wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) enum Command {
    Listen(Box<str>),
    Unlisten(Box<str>),
    UnlistenAll,
}

/// Names are cut here by PostgreSQL (NAMEDATALEN - 1).
const LONGEST_NAME: usize = 63;

/// The command that one statement is; `None` for any other, and for what the server would not understand either.
pub(in crate::net) fn parse(sql: &str) -> Option<Command> {
    let tokens: Vec<Token> = lexer::tokens(sql).take(4).collect();
    let (verb, name) = match &tokens[..] {
        [verb, name] => (verb, name),
        [verb, name, end] if end.kind == Kind::Symbol(b';') => (verb, name),
        _ => return None,
    };
    let listen = verb.is_word(sql, "listen");
    if !listen && !verb.is_word(sql, "unlisten") {
        return None;
    }
    let text = &sql[name.span.clone()];
    let mut channel = match name.kind {
        Kind::Symbol(b'*') if !listen => return Some(Command::UnlistenAll),
        Kind::Word => text.to_lowercase(),
        Kind::QuotedIdentifier
            if text.len() > 2 && text.starts_with('"') && text.ends_with('"') =>
        {
            text[1..text.len() - 1].replace("\"\"", "\"")
        }
        // Among them U&"…", whose escapes are the server's to read.
        _ => return None,
    };
    while channel.len() > LONGEST_NAME {
        channel.pop();
    }
    let channel = channel.into_boxed_str();
    Some(match listen {
        true => Command::Listen(channel),
        false => Command::Unlisten(channel),
    })
}

/// One of them in a client's session.
pub(in crate::net) struct ListenStatement {
    pub command: Command,
    pub subscriptions: Arc<Subscriptions>,
}

impl Statement for ListenStatement {
    fn columns(&self) -> &[Column] {
        &[]
    }

    fn execute<'a>(
        &'a self,
        server: &'a mut ServerHandle<'_>,
    ) -> LocalFuture<'a, Result<Completion, Box<ErrorFields>>> {
        Box::pin(async move {
            let in_transaction = server.transaction() != TransactionContext::None;
            let tag = match &self.command {
                Command::Listen(channel) => {
                    self.subscriptions.listen(channel, in_transaction).await?;
                    "LISTEN"
                }
                Command::Unlisten(channel) => {
                    self.subscriptions.unlisten(Some(channel), in_transaction);
                    "UNLISTEN"
                }
                Command::UnlistenAll => {
                    self.subscriptions.unlisten(None, in_transaction);
                    "UNLISTEN"
                }
            };
            Ok(Completion {
                rows: Vec::new(),
                tag: tag.to_owned(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_by_postgresql() {
        let listen = |name: &str| Some(Command::Listen(name.into()));
        assert_eq!(parse("LISTEN Jobs"), listen("jobs"));
        assert_eq!(
            parse("/* a */ listen \"My \"\"Jobs\" ;"),
            listen("My \"Jobs")
        );
        assert_eq!(
            parse(&format!("listen {}", "x".repeat(70))),
            listen(&"x".repeat(63))
        );
        assert_eq!(parse("unlisten *"), Some(Command::UnlistenAll));
        assert_eq!(parse("UNLISTEN a"), Some(Command::Unlisten("a".into())));
    }

    #[test]
    fn what_is_no_command_is_left_to_the_server() {
        for sql in [
            "LISTEN",
            "LISTEN *",
            "LISTEN 'a'",
            "LISTEN a b",
            "SELECT 'listen'",
            "LISTEN \"\"",
        ] {
            assert_eq!(parse(sql), None, "{sql}");
        }
    }
}
