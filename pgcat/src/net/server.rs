//! A server connection: opening it, and driving it alone where no client's relay does.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::dial::Dialler;
use super::io::{DetachedIo, Io, OutBuffer};
use crate::config::model::ServerAddress;
use crate::error::Error;
use crate::plugins::QueryResult;
use crate::pool::address::Address;
use crate::pool::queue::Claim;
use crate::pool::slots::Slot;
use crate::pool::statistics::Connection;
use crate::pool::wal::{self, ServerState};
use crate::session::ledger::Ledger;
use crate::session::prepared::ServerStatements;
use crate::session::settings::Settings;
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{self, build, put_cstr, take_cstr};
use crate::wire::{Header, TransactionStatus, backend, frontend, startup};

/// What the server reports by ParameterStatus, by name.
pub type Parameters = BTreeMap<String, String>;

/// A server connection after a completed login.
#[derive(Debug)]
pub struct Server {
    pub io: Io,
    /// Received and not yet processed.
    pub input: Vec<u8>,
    pub out: OutBuffer,
    pub ledger: Ledger,
    pub status: TransactionStatus,
    pub statements: ServerStatements,
    /// The session settings in force.
    pub settings: Arc<Settings>,
    pub parameters: Parameters,
    /// The parameters of the statement that is being described, as in ParameterDescription.
    pub described_parameters: Vec<u8>,
    /// Whose unnamed statement the server has: session and version. `None` where that is not known, as it may have none.
    pub unnamed: Option<(u64, u64)>,
    pub key: Arc<ServerKey>,
    /// Session state other than settings was left behind: DISCARD ALL before reuse.
    pub dirty: bool,
    /// Extended messages were sent after the last Sync.
    pub unsynced: bool,
    /// Replies are on their way, or half read, that the ledger does not know of: to a statement of the
    /// pooler's or a plugin's, or after a failure. Set throughout, because the session may end, and
    /// its futures be dropped, at any await.
    pub unaccounted: bool,
    /// Of the server's address, when the connection was made.
    pub generation: u64,
    /// Coarse milliseconds.
    pub created_at: u64,
    /// By the pooler's clock and not a thread's, when the login was over; for connections of the pooler's own: never.
    pub connected_at: u64,
    pub idle_since: u64,
    /// Last, so that the connection is closed when the slot becomes free.
    pub(super) slot: Slot,
}

/// How to cancel what a server connection runs.
#[derive(Debug)]
pub struct ServerKey {
    pub address: ServerAddress,
    /// Where the name of the host led to: another of its addresses may be another server's.
    pub peer: Option<SocketAddr>,
    pub pid: u32,
    /// Empty where the server sent no BackendKeyData (other poolers): cancel is not possible.
    pub secret: Vec<u8>,
    /// The connection has TLS, and so has the cancel request.
    pub encrypted: bool,
    /// Cancel requests being delivered: until they are, the connection serves no other client.
    pub cancels: AtomicUsize,
}

/// A server connection on its way to another thread.
#[derive(Debug)]
pub struct DetachedServer {
    io: DetachedIo,
    server: Box<Server>,
}

/// How a connection taken from the pool looks.
#[derive(Debug, PartialEq, Eq)]
enum Liveness {
    Alive,
    Dead,
}

impl Server {
    /// Connects and logs in.
    ///
    /// # Errors
    /// [`Error::Server`] if the connection fails, [`Error::ServerRefused`] with the server's own words
    /// if it refuses the login.
    pub async fn connect(slot: Slot, dialler: &Dialler, now: u64) -> Result<Box<Self>, Error> {
        Self::connect_with(slot, dialler, now, &[]).await
    }

    /// The same with startup parameters.
    ///
    /// # Errors
    /// As [`Server::connect`].
    pub async fn connect_with(
        slot: Slot,
        dialler: &Dialler,
        now: u64,
        parameters: &[(&str, &str)],
    ) -> Result<Box<Self>, Error> {
        let pool = slot.pool();
        let address = &slot.address().server;
        let io = dialler.dial(address).await?;
        let encrypted = matches!(io, Io::Tls(_));
        let peer = io.ends().map(|(peer, _)| peer);
        let mut server = Box::new(Self {
            io,
            input: Vec::new(),
            out: OutBuffer::default(),
            ledger: Ledger::default(),
            status: TransactionStatus::Idle,
            statements: ServerStatements::new(pool.settings.prepared_statements_cache_size),
            settings: Arc::default(),
            parameters: Parameters::new(),
            described_parameters: Vec::new(),
            unnamed: None,
            key: Arc::new(ServerKey {
                address: address.clone(),
                peer,
                pid: 0,
                secret: Vec::new(),
                encrypted,
                cancels: AtomicUsize::new(0),
            }),
            dirty: false,
            unsynced: false,
            unaccounted: false,
            generation: slot.address().health.generation(),
            created_at: now,
            connected_at: u64::MAX,
            idle_since: now,
            slot,
        });
        server.log_in(parameters).await?;
        let ends = server.io.ends();
        server.connection().logged_in(server.key.pid, ends);
        Ok(server)
    }

    /// The server of the pool that this is a connection to.
    pub fn address(&self) -> &Address {
        self.slot.address()
    }

    /// Leaves its place to another pool when it is closed.
    pub fn leave_to(&mut self, heir: Claim) {
        self.slot.leave_to(heir);
    }

    /// Notes whether the server is a standby.
    pub fn note_standby(&self, in_recovery: bool) {
        let slot = &self.slot;
        slot.pool().note_standby(slot.address(), in_recovery);
    }

    /// What is counted and shown of the connection.
    pub fn connection(&self) -> &Connection {
        self.slot.connection()
    }

    /// Notes a ParameterStatus.
    pub fn note_parameter(&mut self, body: &[u8]) {
        if let Some((name, rest)) = take_cstr(body)
            && let Some((value, _)) = take_cstr(rest)
        {
            if name == b"in_hot_standby" {
                self.note_standby(value == b"on");
            }
            self.parameters.insert(
                String::from_utf8_lossy(name).into_owned(),
                String::from_utf8_lossy(value).into_owned(),
            );
        }
    }

    /// Whether the connection, idle in the pool, can serve. Costs no system call where nothing has
    /// happened on the socket: the reactor knows.
    pub fn is_alive(&mut self) -> bool {
        // Small, because it is zeroed for every transaction, and nearly always stays empty.
        let mut buffer = [0; 64];
        loop {
            match self.io.try_read(&mut buffer) {
                None => return true,
                Some(Ok(n)) if n > 0 => {
                    self.input.extend_from_slice(&buffer[..n]);
                    if self.read_unsolicited() == Liveness::Dead {
                        return false;
                    }
                }
                Some(_) => return false,
            }
        }
    }

    /// What an idle server may say: parameter changes (a reload of its configuration) and notices.
    /// Anything else, such as FATAL 57P01, ends the connection, and reaches no client.
    fn read_unsolicited(&mut self) -> Liveness {
        let mut start = 0;
        while let Ok(Some(header)) = Header::read(&self.input[start..]) {
            let Some(message) = self.input.get(start..start + header.total()) else {
                break;
            };
            match header.tag {
                backend::PARAMETER_STATUS => {
                    let body = message[crate::wire::HEADER..].to_vec();
                    self.note_parameter(&body);
                    self.slot.pool().forget_greetings();
                }
                backend::NOTICE_RESPONSE | backend::NOTIFICATION_RESPONSE => (),
                backend::ERROR_RESPONSE => {
                    let error = ErrorFields::read(&message[crate::wire::HEADER..]);
                    log::info!("an idle server connection ended: {error}");
                    return Liveness::Dead;
                }
                _ => return Liveness::Dead,
            }
            start += header.total();
        }
        self.input.drain(..start);
        Liveness::Alive
    }

    /// Writes everything that waits.
    ///
    /// # Errors
    /// [`Error::Server`].
    pub async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.out.poll_flush(&mut self.io, cx))
            .await
            .map_err(Error::Server)
    }

    /// The next message, whole: for logins, and for statements the pooler or a plugin runs.
    ///
    /// # Errors
    /// [`Error::Server`] when the connection fails or ends.
    pub async fn read_message(&mut self) -> Result<(u8, Vec<u8>), Error> {
        loop {
            let header = Header::read(&self.input)
                .map_err(|_| Error::ServerProtocol("bad message length"))?;
            if let Some(header) = header
                && let Some(body) = self.input.get(crate::wire::HEADER..header.total())
            {
                let body = body.to_vec();
                self.input.drain(..header.total());
                return Ok((header.tag, body));
            }
            self.read_more().await?;
        }
    }

    async fn read_more(&mut self) -> Result<(), Error> {
        let n = poll_fn(|cx| self.io.poll_read_into(cx, &mut self.input))
            .await
            .map_err(Error::Server)?;
        if n == 0 {
            return Err(Error::Server(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    /// Reads and drops what the server still owes, to the end. `body` bytes of a message have yet to
    /// come.
    ///
    /// # Errors
    /// A failure of the connection, or of the protocol.
    pub async fn drain(&mut self, mut body: usize) -> Result<(), Error> {
        self.flush().await?;
        while body > 0 {
            if self.input.is_empty() {
                self.read_more().await?;
            }
            let n = self.input.len().min(body);
            self.input.drain(..n);
            body -= n;
        }
        while self.ledger.is_waiting() {
            let (tag, body) = self.read_message().await?;
            match tag {
                backend::PARAMETER_STATUS => self.note_parameter(&body),
                backend::NOTICE_RESPONSE | backend::NOTIFICATION_RESPONSE => (),
                _ => {
                    self.ledger
                        .reply(tag)
                        .map_err(|_| Error::ServerProtocol("a reply to nothing that was asked"))?;
                    self.ledger.take_due(&mut Vec::new());
                    if self.ledger.is_copying_in() {
                        // It waits for data that nobody will send.
                        return Err(Error::Client(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
            if tag == backend::READY_FOR_QUERY {
                self.status = TransactionStatus::from_byte(body.first().copied().unwrap_or(0));
            }
        }
        // Settings may have been changed, statements closed, on the client's behalf: start afresh.
        self.dirty = true;
        Ok(())
    }

    /// Runs SQL by the simple protocol while nothing else is outstanding. Notices and other
    /// unsolicited messages go to `unsolicited`, framed.
    ///
    /// # Errors
    /// [`Error::ServerRefused`] with the server's error (the connection is ready again then), or a
    /// failure of the connection.
    pub async fn simple_query(
        &mut self,
        sql: &str,
        unsolicited: &mut Vec<u8>,
    ) -> Result<QueryResult, Error> {
        self.unaccounted = true;
        message::query(self.out.tail(), sql);
        self.flush().await?;
        let mut result = QueryResult::default();
        let mut failure = None;
        loop {
            let (tag, body) = self.read_message().await?;
            match tag {
                backend::READY_FOR_QUERY => {
                    self.status = TransactionStatus::from_byte(body.first().copied().unwrap_or(0));
                    self.unaccounted = false;
                    return failure.map_or(Ok(result), Err);
                }
                backend::ERROR_RESPONSE => {
                    failure = Some(Error::ServerRefused(Box::new(ErrorFields::read(&body))));
                }
                _ => self.collect(tag, &body, &mut result, unsolicited)?,
            }
        }
    }

    /// Asks the server whether it is a standby, and notes the answer.
    ///
    /// # Errors
    /// As [`Server::simple_query`].
    pub async fn ask_standby(&mut self) -> Result<(), Error> {
        let sql = "SELECT pg_catalog.pg_is_in_recovery()";
        let result = self.simple_query(sql, &mut Vec::new()).await?;
        self.unnamed = None;
        let in_recovery = result.rows.first().and_then(|row| row.first()?.as_deref());
        self.note_standby(in_recovery == Some("t"));
        Ok(())
    }

    /// Asks the server how far it has come.
    ///
    /// # Errors
    /// As [`Server::simple_query`].
    pub async fn ask_state(&mut self) -> Result<ServerState, Error> {
        let answer = self.simple_query(wal::STATE, &mut Vec::new()).await?;
        self.unnamed = None;
        ServerState::read(&answer).ok_or(Error::ServerProtocol("no position in the log"))
    }

    pub(super) fn collect(
        &mut self,
        tag: u8,
        body: &[u8],
        result: &mut QueryResult,
        unsolicited: &mut Vec<u8>,
    ) -> Result<(), Error> {
        match tag {
            backend::DATA_ROW => {
                let row = message::data_row(body).ok_or(Error::ServerProtocol("bad DataRow"))?;
                result.rows.push(
                    row.into_iter()
                        .map(|v| v.map(|v| String::from_utf8_lossy(v).into_owned()))
                        .collect(),
                );
            }
            backend::COMMAND_COMPLETE => {
                result.tag = take_cstr(body)
                    .map(|(tag, _)| String::from_utf8_lossy(tag).into_owned())
                    .unwrap_or_default();
            }
            backend::PARAMETER_STATUS => self.note_parameter(body),
            backend::NOTICE_RESPONSE | backend::NOTIFICATION_RESPONSE => {
                build(unsolicited, tag, |out| out.extend_from_slice(body));
            }
            backend::COPY_IN_RESPONSE => {
                // Nobody is there to send data.
                build(self.out.tail(), frontend::COPY_FAIL, |out| {
                    put_cstr(out, b"no COPY here")
                });
            }
            _ => (),
        }
        Ok(())
    }

    /// The pool's invariant: nothing is owed, no transaction is open, no byte of an incomplete message
    /// is buffered either way. (Cancel requests on their way are looked at by the pool.)
    pub fn is_reusable(&self) -> bool {
        self.ledger.is_empty()
            && !self.ledger.is_ambiguous()
            && !self.unsynced
            && !self.unaccounted
            && self.status == TransactionStatus::Idle
            && self.input.is_empty()
            && self.out.is_empty()
    }

    /// Makes the session as good as new, if it is not.
    ///
    /// # Errors
    /// As [`Server::simple_query`].
    pub async fn discard_all(&mut self) -> Result<(), Error> {
        if self.dirty {
            self.simple_query("DISCARD ALL", &mut Vec::new()).await?;
            self.dirty = false;
            self.forget_session();
        }
        Ok(())
    }

    /// The session's statements and settings are gone (DISCARD ALL).
    pub fn forget_session(&mut self) {
        self.statements.clear();
        self.unnamed = None;
        self.settings = Arc::default();
    }

    /// Takes the connection off this thread.
    ///
    /// # Errors
    /// The slot, if the connection is lost by it.
    pub fn detach(mut self: Box<Self>) -> Result<DetachedServer, Slot> {
        // The boxed server keeps its place; only the stream changes hands.
        let (placeholder, _) = tokio::io::duplex(1);
        match std::mem::replace(&mut self.io, Io::Memory(placeholder)).detach() {
            Ok(io) => Ok(DetachedServer { io, server: self }),
            Err(_) => Err(self.slot),
        }
    }
}

impl DetachedServer {
    /// Brings the connection to this thread.
    ///
    /// # Errors
    /// The slot, if the connection is lost by it.
    pub fn attach(mut self) -> Result<Box<Server>, Slot> {
        match self.io.attach() {
            Ok(io) => self.server.io = io,
            Err(_) => return Err(self.server.slot),
        }
        Ok(self.server)
    }
}

impl ServerKey {
    /// Asks the server to cancel what the connection runs, and waits until the request is delivered:
    /// the server closes the connection after it has sent the signal.
    ///
    /// The caller has counted the request in `cancels`; it is uncounted here.
    pub async fn cancel(&self, dialler: &Dialler) {
        let delivery = async {
            let mut io = if self.encrypted {
                dialler.dial_encrypted(&self.address, self.peer).await?
            } else {
                dialler.dial_plain(&self.address, self.peer).await?
            };
            let mut out = OutBuffer::default();
            out.tail()
                .extend(startup::cancel_request(self.pid, &self.secret));
            poll_fn(|cx| out.poll_flush(&mut io, cx))
                .await
                .map_err(Error::Server)?;
            let mut end = [0; 1];
            while poll_fn(|cx| io.poll_read(cx, &mut end))
                .await
                .map_err(Error::Server)?
                > 0
            {}
            Ok::<_, Error>(())
        };
        match tokio::time::timeout(std::time::Duration::from_secs(10), delivery).await {
            Ok(Ok(())) => (),
            Ok(Err(error)) => log::warn!("cancel request to the server: {error}"),
            Err(_) => log::warn!("cancel request to the server: no answer"),
        }
        self.cancels.fetch_sub(1, Ordering::SeqCst);
    }
}
