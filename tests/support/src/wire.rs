//! A client that speaks the protocol message by message, so that a test can send what no driver
//! would, and compare every byte of what comes back.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Protocol 3.0, as a startup message has it.
pub const PROTOCOL_3_0: u32 = 0x0003_0000;

/// Longer than anything takes on a loaded machine, shorter than a developer's patience.
const READ_LIMIT: Duration = Duration::from_secs(20);

/// A message of the server.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an ErrorResponse or NoticeResponse: `C` is the SQLSTATE, `M` the message, `V` the
    /// severity.
    pub fn field(&self, code: u8) -> Option<String> {
        assert!(matches!(self.tag, b'E' | b'N'), "{self:?} has no fields");
        self.body
            .split(|&byte| byte == 0)
            .find(|field| field.first() == Some(&code))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    }

    /// The columns of a DataRow; NULL is `None`.
    pub fn row(&self) -> Vec<Option<String>> {
        assert_eq!(self.tag, b'D', "{self:?} is no row");
        let count = u16::from_be_bytes([self.body[0], self.body[1]]);
        let mut rest = &self.body[2..];
        let mut row = Vec::new();
        for _ in 0..count {
            let length = i32::from_be_bytes(rest[..4].try_into().expect("four bytes"));
            rest = &rest[4..];
            let Ok(length) = usize::try_from(length) else {
                row.push(None);
                continue;
            };
            row.push(Some(String::from_utf8_lossy(&rest[..length]).into_owned()));
            rest = &rest[length..];
        }
        row
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", char::from(self.tag))?;
        let text = String::from_utf8_lossy(&self.body).replace('\0', "·");
        match text.char_indices().nth(200) {
            Some((end, _)) => write!(f, " {}… ({} bytes)", &text[..end], self.body.len()),
            None => write!(f, " {text}"),
        }
    }
}

/// Messages of a client, to be sent in one write.
#[derive(Debug, Clone, Default)]
pub struct Messages(Vec<u8>);

impl AsRef<[u8]> for Messages {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Messages {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any message, with its length made up to fit.
    #[must_use]
    pub fn message(mut self, tag: u8, body: &[u8]) -> Self {
        self.0.push(tag);
        let length = u32::try_from(body.len() + 4).expect("a message of less than 4 GB");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(body);
        self
    }

    #[must_use]
    pub fn query(self, sql: &str) -> Self {
        self.message(b'Q', &[sql.as_bytes(), b"\0"].concat())
    }

    #[must_use]
    pub fn parse(self, statement: &str, sql: &str) -> Self {
        self.parse_typed(statement, sql, &[])
    }

    /// Parse with the OIDs of the parameters' types.
    #[must_use]
    pub fn parse_typed(self, statement: &str, sql: &str, types: &[u32]) -> Self {
        let mut body = [statement.as_bytes(), b"\0", sql.as_bytes(), b"\0"].concat();
        body.extend_from_slice(&count(types.len()));
        for oid in types {
            body.extend_from_slice(&oid.to_be_bytes());
        }
        self.message(b'P', &body)
    }

    /// Bind with parameters in text format; `None` is NULL.
    #[must_use]
    pub fn bind(self, portal: &str, statement: &str, parameters: &[Option<&str>]) -> Self {
        let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0"].concat();
        body.extend_from_slice(&count(parameters.len()));
        for parameter in parameters {
            match parameter {
                Some(value) => {
                    let length = u32::try_from(value.len()).expect("a value of less than 4 GB");
                    body.extend_from_slice(&length.to_be_bytes());
                    body.extend_from_slice(value.as_bytes());
                }
                None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
            }
        }
        body.extend_from_slice(b"\0\0");
        self.message(b'B', &body)
    }

    #[must_use]
    pub fn describe_statement(self, name: &str) -> Self {
        self.message(b'D', format!("S{name}\0").as_bytes())
    }

    #[must_use]
    pub fn describe_portal(self, name: &str) -> Self {
        self.message(b'D', format!("P{name}\0").as_bytes())
    }

    /// Execute without a row limit.
    #[must_use]
    pub fn execute(self, portal: &str) -> Self {
        self.execute_rows(portal, 0)
    }

    #[must_use]
    pub fn execute_rows(self, portal: &str, rows: u32) -> Self {
        self.message(
            b'E',
            &[portal.as_bytes(), b"\0", &rows.to_be_bytes()].concat(),
        )
    }

    #[must_use]
    pub fn close_statement(self, name: &str) -> Self {
        self.message(b'C', format!("S{name}\0").as_bytes())
    }

    #[must_use]
    pub fn close_portal(self, name: &str) -> Self {
        self.message(b'C', format!("P{name}\0").as_bytes())
    }

    /// Parse, Bind and Execute of an unnamed statement.
    #[must_use]
    pub fn statement(self, sql: &str) -> Self {
        self.parse("", sql).bind("", "", &[]).execute("")
    }

    #[must_use]
    pub fn sync(self) -> Self {
        self.message(b'S', b"")
    }

    #[must_use]
    pub fn flush(self) -> Self {
        self.message(b'H', b"")
    }

    #[must_use]
    pub fn copy_data(self, data: &[u8]) -> Self {
        self.message(b'd', data)
    }

    #[must_use]
    pub fn copy_done(self) -> Self {
        self.message(b'c', b"")
    }

    #[must_use]
    pub fn copy_fail(self, reason: &str) -> Self {
        self.message(b'f', format!("{reason}\0").as_bytes())
    }

    #[must_use]
    pub fn terminate(self) -> Self {
        self.message(b'X', b"")
    }

    #[must_use]
    pub fn then(mut self, more: &Self) -> Self {
        self.0.extend_from_slice(&more.0);
        self
    }
}

fn count(n: usize) -> [u8; 2] {
    u16::try_from(n).expect("at most 65535").to_be_bytes()
}

/// A startup message.
pub fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(&[name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    with_length(&body)
}

/// SSLRequest.
pub fn ssl_request() -> Vec<u8> {
    with_length(&80_877_103_u32.to_be_bytes())
}

/// GSSENCRequest.
pub fn gss_request() -> Vec<u8> {
    with_length(&80_877_104_u32.to_be_bytes())
}

/// CancelRequest.
pub fn cancel_request(key: &[u8]) -> Vec<u8> {
    with_length(&[&80_877_102_u32.to_be_bytes(), key].concat())
}

fn with_length(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short");
    [&length.to_be_bytes(), body].concat()
}

/// A connection, and everything the server has said on it since the login.
pub struct Wire {
    port: u16,
    stream: TcpStream,
    /// Process id and secret, as in BackendKeyData.
    key: Vec<u8>,
    /// ParameterStatus and other messages of the login, without BackendKeyData.
    pub greeting: Vec<Message>,
    pub transcript: Vec<Message>,
}

impl Wire {
    /// A socket on which nothing has been sent yet.
    pub fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream
            .set_read_timeout(Some(READ_LIMIT))
            .expect("read timeout");
        Self {
            port,
            stream,
            key: Vec::new(),
            greeting: Vec::new(),
            transcript: Vec::new(),
        }
    }

    /// Logs in; the server must trust the user.
    pub fn connect(port: u16, user: &str, database: &str) -> Self {
        Self::connect_with(port, &[("user", user), ("database", database)])
    }

    pub fn connect_with(port: u16, parameters: &[(&str, &str)]) -> Self {
        let mut wire = Self::open(port);
        wire.send(startup(PROTOCOL_3_0, parameters));
        wire.greeted();
        wire
    }

    /// Reads the rest of the login.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn greeted(&mut self) {
        if let Err(messages) = self.try_greeted() {
            panic!("login: {messages:?}");
        }
    }

    /// Reads the rest of the login.
    ///
    /// # Errors
    /// What the server said instead of letting the client in.
    pub fn try_greeted(&mut self) -> Result<(), Vec<Message>> {
        let messages = self.replies();
        self.transcript.clear();
        if !tags(&messages).ends_with('Z') || tags(&messages).contains('E') {
            return Err(messages);
        }
        let (keys, greeting) = messages
            .into_iter()
            .partition(|message| message.tag == b'K');
        self.greeting = greeting;
        let keys: Vec<Message> = keys;
        self.key = keys.into_iter().next().map_or(Vec::new(), |key| key.body);
        Ok(())
    }

    /// Process id and secret of BackendKeyData.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// A value the server reported at login.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let prefix = format!("{name}\0");
        self.greeting
            .iter()
            .find(|message| message.tag == b'S' && message.body.starts_with(prefix.as_bytes()))
            .map(|message| {
                String::from_utf8_lossy(&message.body[prefix.len()..])
                    .trim_end_matches('\0')
                    .to_owned()
            })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if let Err(error) = self.stream.write_all(bytes.as_ref()) {
            panic!("send: {error}; so far: {:#?}", self.transcript);
        }
    }

    /// As [`Self::send`], to a server that may close the connection meanwhile.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Sends in pieces of `size` bytes, each in a packet of its own.
    pub fn send_pieces(&mut self, bytes: impl AsRef<[u8]>, size: usize) {
        for piece in bytes.as_ref().chunks(size) {
            self.send(piece);
        }
    }

    /// One byte that is not a message, such as the answer to SSLRequest; `None` at the end.
    pub fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => None,
            Ok(_) => Some(byte[0]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) if error.kind() == ErrorKind::Interrupted => self.byte(),
            Err(error) => panic!("read: {error}"),
        }
    }

    /// The next message, noted in the transcript; `None` at the end of the connection.
    pub fn try_message(&mut self) -> Option<Message> {
        let tag = self.byte()?;
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).expect("64 bits");
        assert!(
            length >= 4,
            "message {} of length {length}",
            char::from(tag)
        );
        let mut body = vec![0; length - 4];
        self.fill(&mut body)?;
        let message = Message { tag, body };
        self.transcript.push(message.clone());
        Some(message)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(buffer) {
            Ok(()) => Some(()),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                None
            }
            Err(error) => panic!("read: {error}; so far: {:#?}", self.transcript),
        }
    }

    /// The next message.
    ///
    /// # Panics
    /// If the connection has ended, or nothing comes.
    pub fn message(&mut self) -> Message {
        let transcript_so_far = self.transcript.len();
        match self.try_message() {
            Some(message) => message,
            None => panic!(
                "the connection ended after {:#?}",
                &self.transcript[..transcript_so_far]
            ),
        }
    }

    /// Reads up to a message of this kind.
    pub fn until(&mut self, tag: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.message();
            let last = message.tag == tag;
            messages.push(message);
            if last {
                return messages;
            }
        }
    }

    /// Reads up to ReadyForQuery.
    pub fn ready(&mut self) -> Vec<Message> {
        self.until(b'Z')
    }

    /// Reads up to ReadyForQuery, or to the end of a connection that may end.
    pub fn replies(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.try_message() {
            let last = message.tag == b'Z';
            messages.push(message);
            if last {
                break;
            }
        }
        messages
    }

    /// Reads up to the end of the connection.
    pub fn end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.try_message() {
            messages.push(message);
        }
        messages
    }

    /// Whether nothing comes for this long.
    pub fn silent_for(&mut self, time: Duration) -> bool {
        self.stream
            .set_read_timeout(Some(time))
            .expect("read timeout");
        let result = self.stream.peek(&mut [0]);
        self.stream
            .set_read_timeout(Some(READ_LIMIT))
            .expect("read timeout");
        matches!(result, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }

    /// A simple query, and all of its replies.
    pub fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send(Messages::new().query(sql));
        self.ready()
    }

    /// A simple query whose replies may be the last of the connection.
    pub fn query_to_end(&mut self, sql: &str) -> Vec<Message> {
        self.send(Messages::new().query(sql));
        self.replies()
    }

    /// The first column of the first row.
    pub fn value(&mut self, sql: &str) -> String {
        let messages = self.query(sql);
        match messages.iter().find(|message| message.tag == b'D') {
            Some(row) => row.row()[0].clone().unwrap_or_else(|| "NULL".to_owned()),
            None => panic!("{sql}: {messages:?}"),
        }
    }

    /// A simple query that must succeed.
    pub fn run(&mut self, sql: &str) {
        let messages = self.query(sql);
        assert!(
            messages.iter().all(|message| message.tag != b'E'),
            "{sql}: {messages:?}"
        );
    }

    /// The SQLSTATE of a simple query that must fail.
    pub fn error(&mut self, sql: &str) -> String {
        sqlstate(&self.query(sql))
    }

    /// Asks for the running query to be cancelled, and waits until the server has taken it.
    pub fn cancel(&self) {
        cancel(self.port, &self.key);
    }

    /// A second handle of the connection, for sending while this one reads.
    pub fn sender(&self) -> TcpStream {
        self.stream.try_clone().expect("a second handle")
    }

    /// Closes the sending half.
    pub fn shut_down_sending(&self) {
        self.stream.shutdown(Shutdown::Write).expect("shutdown");
    }
}

/// Sends a CancelRequest and waits for the end of its connection.
pub fn cancel(port: u16, key: &[u8]) {
    let mut wire = Wire::open(port);
    wire.send(cancel_request(key));
    assert_eq!(wire.byte(), None, "a cancel request has no answer");
}

/// The SQLSTATE of the first error.
///
/// # Panics
/// If there is none.
pub fn sqlstate(messages: &[Message]) -> String {
    match messages.iter().find(|message| message.tag == b'E') {
        Some(error) => error.field(b'C').expect("an error has a SQLSTATE"),
        None => panic!("no error in {messages:?}"),
    }
}

/// The kinds of messages, as in `"TDCZ"`.
pub fn tags(messages: &[Message]) -> String {
    messages
        .iter()
        .map(|message| char::from(message.tag))
        .collect()
}
