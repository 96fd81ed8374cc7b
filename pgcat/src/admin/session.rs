//! A session of an admin database: the protocol, simple and extended. Tools speak either, and some
//! drivers nothing but the extended one.

use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;

use super::command::Command;
use super::execute::{self, Outcome};
use super::show::Row;
use super::{Dialect, Failure, Privilege};
use crate::error::Error;
use crate::net::io::{Io, OutBuffer};
use crate::net::registration::Registration;
use crate::net::rows;
use crate::net::threads::ThreadContext;
use crate::plugins::{AdminTable, Column};
use crate::router::statements;
use crate::wire::error_fields::{ErrorFields, Severity};
use crate::wire::message::{self, build, take_cstr};
use crate::wire::{HEADER, Header, TransactionStatus, backend, frontend};

/// See the module's text.
pub struct AdminSession {
    pub thread: Rc<ThreadContext>,
    pub registration: Registration,
    pub io: Io,
    pub dialect: Dialect,
    pub privilege: Privilege,
    input: Vec<u8>,
    out: OutBuffer,
    statements: HashMap<Vec<u8>, Option<Command>>,
    portals: HashMap<Vec<u8>, Portal>,
    /// An extended message failed: all others up to the Sync are ignored.
    skipping: bool,
    /// An error was FATAL.
    ended: bool,
}

struct Portal {
    command: Option<Command>,
    formats: Vec<u16>,
    /// What is left of the result; `None` before the first Execute.
    rest: Option<(std::vec::IntoIter<Row>, String)>,
}

/// No command is longer than this.
const LONGEST: usize = 1 << 20;

type Refused = Box<ErrorFields>;

impl AdminSession {
    pub fn new(
        thread: Rc<ThreadContext>,
        registration: Registration,
        io: Io,
        dialect: Dialect,
        privilege: Privilege,
    ) -> Self {
        Self {
            thread,
            registration,
            io,
            dialect,
            privilege,
            input: Vec::new(),
            out: OutBuffer::default(),
            statements: HashMap::new(),
            portals: HashMap::new(),
            skipping: false,
            ended: false,
        }
    }

    /// What a client of an admin database is told at login.
    pub fn greeting(dialect: Dialect) -> [(&'static str, &'static str); 8] {
        let (version, zone, date_style) = match dialect {
            Dialect::Pgbouncer => ("1.24.1/bouncer", "GMT", "ISO"),
            Dialect::Pgcat => ("1.3.0", "Etc/UTC", "ISO, MDY"),
        };
        [
            ("server_version", version),
            ("client_encoding", "UTF8"),
            ("server_encoding", "UTF8"),
            ("DateStyle", date_style),
            ("TimeZone", zone),
            ("standard_conforming_strings", "on"),
            ("integer_datetimes", "on"),
            ("is_superuser", "on"),
        ]
    }

    /// Serves the client until it leaves.
    ///
    /// # Errors
    /// Why the session had to end.
    pub async fn run(mut self, input: Vec<u8>) -> Result<(), Error> {
        self.input = input;
        loop {
            let message = match self.read_message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(error) => {
                    if let Error::Refused(fields) = &error {
                        fields.write(self.out.tail());
                        self.flush().await?;
                    }
                    return Err(error);
                }
            };
            let (tag, body) = message;
            match tag {
                frontend::TERMINATE => return Ok(()),
                frontend::QUERY => {
                    let text = text_of(&body).map_err(Error::Refused)?;
                    self.query(text).await;
                    if !self.ended {
                        message::ready_for_query(self.out.tail(), TransactionStatus::Idle);
                    }
                }
                frontend::SYNC => {
                    self.skipping = false;
                    self.portals.clear();
                    message::ready_for_query(self.out.tail(), TransactionStatus::Idle);
                }
                frontend::FLUSH => (),
                _ if self.skipping => (),
                _ => {
                    if let Err(error) = self.extended(tag, &body).await {
                        error.write(self.out.tail());
                        self.skipping = true;
                    }
                }
            }
            if self.ended {
                return self.flush().await;
            }
            // What was asked in one packet is answered in one.
            if !self.has_message() {
                self.flush().await?;
            }
        }
    }

    fn has_message(&self) -> bool {
        matches!(Header::read(&self.input), Ok(Some(header)) if header.total() <= self.input.len())
    }

    async fn read_message(&mut self) -> Result<Option<(u8, Vec<u8>)>, Error> {
        loop {
            match Header::read(&self.input) {
                Ok(Some(header)) if header.body > LONGEST => {
                    return Err(Error::protocol("the message is too long"));
                }
                Ok(Some(header)) if header.total() <= self.input.len() => {
                    let body = self.input[HEADER..header.total()].to_vec();
                    self.input.drain(..header.total());
                    return Ok(Some((header.tag, body)));
                }
                Ok(_) => (),
                Err(_) => return Err(Error::protocol("invalid message length")),
            }
            let n = poll_fn(|cx| {
                let handle = &self.registration.handle;
                if handle.killed.get() {
                    return std::task::Poll::Ready(Ok(0));
                }
                *handle.waker.borrow_mut() = Some(cx.waker().clone());
                self.io.poll_read_into(cx, &mut self.input)
            })
            .await
            .map_err(Error::Client)?;
            if n == 0 {
                return Ok(None);
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.out.poll_flush(&mut self.io, cx))
            .await
            .map_err(Error::Client)
    }

    /// Runs a Query of any number of commands; what follows an error is not done.
    async fn query(&mut self, text: &str) {
        let ranges = statements::split(text);
        if ranges.is_empty() {
            build(self.out.tail(), backend::EMPTY_QUERY_RESPONSE, |_| ());
        }
        for range in ranges {
            if let Err(error) = self.statement(&text[range]).await {
                error.write(self.out.tail());
                return;
            }
        }
    }

    async fn statement(&mut self, text: &str) -> Result<(), Refused> {
        let command = self.parse(text)?;
        let outcome = self.execute(&command).await?;
        let columns = self.columns(&command);
        if !columns.is_empty() {
            rows::describe(&columns, &[], self.out.tail());
        }
        for row in &outcome.rows {
            rows::write(&columns, &[], row, self.out.tail())?;
        }
        message::command_complete(self.out.tail(), &outcome.tag);
        Ok(())
    }

    fn parse(&self, text: &str) -> Result<Command, Refused> {
        let parsed = Command::parse(text, self.dialect).or_else(|failure| {
            let table = match &failure {
                Failure::UnknownShow(name) => self.plugin_table(name),
                _ => None,
            };
            table.map(Command::ShowOfPlugin).ok_or(failure)
        });
        parsed.map_err(|failure| self.refused(&failure))
    }

    fn plugin_table(&self, name: &str) -> Option<&'static AdminTable> {
        let plugins = self.thread.pooler.plugins.iter();
        let mut tables = plugins.flat_map(|plugin| plugin.tables());
        tables.find(|table| table.name.eq_ignore_ascii_case(name))
    }

    fn refused(&self, failure: &Failure) -> Refused {
        Box::new(failure.fields(self.dialect))
    }

    fn columns(&self, command: &Command) -> Vec<Column> {
        execute::columns(command, self.dialect)
    }

    async fn execute(&mut self, command: &Command) -> Result<Outcome, Refused> {
        let handle = self.registration.handle.clone();
        handle.requested.set(self.thread.clock.now());
        let outcome = execute::run(&self.thread, command, self.dialect, self.privilege).await;
        let outcome = outcome.map_err(|failure| self.refused(&failure));
        self.ended = matches!(&outcome, Err(fields) if fields.severity == Severity::Fatal);
        handle.count(|counters| {
            counters.queries += 1;
            counters.transactions += 1;
            counters.errors += u64::from(outcome.is_err());
        });
        if let Ok(Outcome {
            notice: Some(notice),
            ..
        }) = &outcome
        {
            notice.write(self.out.tail());
        }
        outcome
    }

    async fn extended(&mut self, tag: u8, body: &[u8]) -> Result<(), Refused> {
        match tag {
            frontend::PARSE => {
                let (name, rest) = string(body)?;
                let text = text_of(rest)?;
                let command = match &*statements::split(text) {
                    [] => None,
                    [one] => Some(self.parse(&text[one.clone()])?),
                    _ => {
                        return Err(error(
                            "42601",
                            "cannot insert multiple commands into a prepared statement",
                        ));
                    }
                };
                if !name.is_empty() && self.statements.contains_key(name) {
                    let name = String::from_utf8_lossy(name);
                    return Err(error(
                        "42P05",
                        format!("prepared statement \"{name}\" already exists"),
                    ));
                }
                self.statements.insert(name.to_vec(), command);
                build(self.out.tail(), backend::PARSE_COMPLETE, |_| ());
            }
            frontend::BIND => {
                let (portal, rest) = string(body)?;
                let (name, rest) = string(rest)?;
                let command = self.known(name)?.clone();
                let formats = formats(rest)?;
                let bound = Portal {
                    command,
                    formats,
                    rest: None,
                };
                self.portals.insert(portal.to_vec(), bound);
                build(self.out.tail(), backend::BIND_COMPLETE, |_| ());
            }
            frontend::DESCRIBE => self.describe(body)?,
            frontend::EXECUTE => {
                let (portal, rest) = string(body)?;
                let limit = rest
                    .first_chunk()
                    .map_or(0, |limit| u32::from_be_bytes(*limit));
                self.execute_portal(portal, limit as usize).await?;
            }
            frontend::CLOSE => {
                let (kind, name) = body.split_first().ok_or_else(malformed)?;
                let (name, _) = string(name)?;
                match kind {
                    b'S' => drop(self.statements.remove(name)),
                    _ => drop(self.portals.remove(name)),
                }
                build(self.out.tail(), backend::CLOSE_COMPLETE, |_| ());
            }
            _ => {
                return Err(error(
                    "08P01",
                    "the admin database does not know this message",
                ));
            }
        }
        Ok(())
    }

    fn describe(&mut self, body: &[u8]) -> Result<(), Refused> {
        let (kind, name) = body.split_first().ok_or_else(malformed)?;
        let (name, _) = string(name)?;
        let (command, formats) = if *kind == b'S' {
            build(self.out.tail(), backend::PARAMETER_DESCRIPTION, |out| {
                out.extend_from_slice(&[0, 0]);
            });
            (self.known(name)?, &[][..])
        } else {
            let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
            (&portal.command, &portal.formats[..])
        };
        let columns = command
            .as_ref()
            .map(|command| self.columns(command))
            .unwrap_or_default();
        let mut described = Vec::new();
        rows::describe(&columns, formats, &mut described);
        self.out.tail().extend_from_slice(&described);
        Ok(())
    }

    async fn execute_portal(&mut self, name: &[u8], limit: usize) -> Result<(), Refused> {
        let portal = self.portals.get_mut(name).ok_or_else(|| no_portal(name))?;
        let Some(command) = portal.command.clone() else {
            build(self.out.tail(), backend::EMPTY_QUERY_RESPONSE, |_| ());
            return Ok(());
        };
        let (mut rest, tag) = match portal.rest.take() {
            Some(rest) => rest,
            None => {
                let outcome = self.execute(&command).await?;
                (outcome.rows.into_iter(), outcome.tag)
            }
        };
        let columns = self.columns(&command);
        let portal = self.portals.get_mut(name).ok_or_else(|| no_portal(name))?;
        let mut sent = 0;
        while (limit == 0 || sent < limit)
            && let Some(row) = rest.next()
        {
            rows::write(&columns, &portal.formats, &row, self.out.tail())?;
            sent += 1;
        }
        if rest.len() > 0 {
            portal.rest = Some((rest, tag));
            build(self.out.tail(), backend::PORTAL_SUSPENDED, |_| ());
        } else {
            message::command_complete(self.out.tail(), &tag);
            portal.rest = Some((rest, tag));
        }
        Ok(())
    }

    fn known(&self, name: &[u8]) -> Result<&Option<Command>, Refused> {
        self.statements.get(name).ok_or_else(|| {
            let shown = String::from_utf8_lossy(name);
            let message = if name.is_empty() {
                "unnamed prepared statement does not exist".to_owned()
            } else {
                format!("prepared statement \"{shown}\" does not exist")
            };
            error("26000", message)
        })
    }
}

fn error(code: &str, message: impl Into<String>) -> Refused {
    Box::new(ErrorFields::new(Severity::Error, code, message))
}

fn no_portal(name: &[u8]) -> Refused {
    let name = String::from_utf8_lossy(name);
    error("34000", format!("portal \"{name}\" does not exist"))
}

fn malformed() -> Refused {
    error("08P01", "invalid message format")
}

fn string(bytes: &[u8]) -> Result<(&[u8], &[u8]), Refused> {
    take_cstr(bytes).ok_or_else(malformed)
}

fn text_of(bytes: &[u8]) -> Result<&str, Refused> {
    let (text, _) = string(bytes)?;
    std::str::from_utf8(text).map_err(|_| error("22021", "invalid byte sequence for UTF8"))
}

/// The result formats of a Bind, after the names. No command has parameters.
fn formats(bytes: &[u8]) -> Result<Vec<u16>, Refused> {
    let mut words = bytes.chunks(2).map(|word| {
        word.first_chunk::<2>()
            .map(|word| u16::from_be_bytes(*word))
    });
    let mut next = || words.next().flatten().ok_or_else(malformed);
    let parameter_formats = next()?;
    for _ in 0..parameter_formats {
        next()?;
    }
    let parameters = next()?;
    if parameters > 0 {
        return Err(error(
            "08P01",
            format!("bind message supplies {parameters} parameters, but the command has none"),
        ));
    }
    (0..next()?).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::formats;

    #[test]
    fn result_formats_come_after_the_parameters() {
        assert_eq!(formats(&[0, 0, 0, 0, 0, 0]).ok(), Some(vec![]));
        assert_eq!(
            formats(&[0, 1, 0, 1, 0, 0, 0, 2, 0, 1, 0, 0]).ok(),
            Some(vec![1, 0])
        );
        assert!(formats(&[0, 0, 0, 1, 0, 0, 0, 1, 7, 0, 0]).is_err());
        assert!(formats(&[0, 0, 0, 0, 0, 1]).is_err());
        assert!(formats(&[0]).is_err());
    }
}
