//! A server that breaks the protocol, as no real one can be made to: it answers as a server does, and
//! then its answers are damaged.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use test_support::wire::Messages;

use crate::mutate::{damage, one_of};

/// What the server does to its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// Each byte comes by itself.
    Slow,
    /// It gives no key for cancel requests, as other poolers do not.
    Keyless,
    Bad,
    /// Behind the answer to a Query with [`MORE`] in it comes something else, in the same packet.
    Extra(&'static [u8]),
}

/// See [`Manners::Extra`].
pub const MORE: &str = "and more";

/// See the module's text.
pub struct Scripted {
    pub port: u16,
    seed: Arc<AtomicU64>,
    is_bad: Arc<AtomicBool>,
}

impl Scripted {
    /// Serves until the process ends.
    pub fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let seed = Arc::new(AtomicU64::new(0));
        let is_bad = Arc::new(AtomicBool::new(manners == Manners::Bad));
        let shared = (seed.clone(), is_bad.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seed, is_bad) = shared.clone();
                let connection = Connection {
                    stream: stream.expect("a connection"),
                    random: StdRng::seed_from_u64(seed.fetch_add(1, Ordering::SeqCst)),
                    manners,
                    is_bad,
                    input: Vec::new(),
                };
                // It ends with an error when the pooler closes the connection.
                thread::spawn(move || drop(connection.serve()));
            }
        });
        Self { port, seed, is_bad }
    }

    /// The seed of the next connection; each that follows has the next one.
    pub fn seed(&self, seed: u64) {
        self.seed.store(seed, Ordering::SeqCst);
    }

    /// From now on it does nothing wrong.
    pub fn mend(&self) {
        self.is_bad.store(false, Ordering::SeqCst);
    }
}

struct Connection {
    stream: TcpStream,
    random: StdRng,
    manners: Manners,
    is_bad: Arc<AtomicBool>,
    input: Vec<u8>,
}

/// What a server says that was not asked.
pub const UNASKED: &[&[u8]] = &[
    b"S\0\0\0\x11TimeZone\0UTC\0",
    b"N\0\0\0\x13SNOTICE\0Mhere\0\0",
    b"A\0\0\0\x0d\0\0\0\x01ch\0p\0",
    b"Z\0\0\0\x05I",
    b"Z\0\0\0\x05T",
    b"C\0\0\0\x0dSELECT 1\0",
    b"D\0\0\0\x0c\0\x01\0\0\0\x02hi",
    b"D\0\0\x10\0\0\x01",
    b"E\0\0\0\x05\0",
    b"G\0\0\0\x07\0\0\0",
    b"1\0\0\0\x04",
    b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0",
    b"?\0\0\0\x04",
];

impl Connection {
    fn serve(mut self) -> std::io::Result<()> {
        self.stream.set_nodelay(true)?;
        // What waits for an answer that was lost is not to wait for ever: a real server dies some time.
        self.stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let length = self.take(4)?;
        let startup = self.take(usize::from(length[3]) + 256 * usize::from(length[2]) - 4)?;
        if startup[..4] == [4, 210, 22, 46] {
            // A cancel request.
            return Ok(());
        }
        let mut greeting = Messages::new()
            .message(b'R', &[0; 4])
            .message(b'S', b"server_version\x0015.0\0")
            .message(b'S', b"client_encoding\0UTF8\0");
        if self.manners != Manners::Keyless {
            greeting = greeting.message(b'K', &[0, 0, 0, 9, 1, 2, 3, 4]);
        }
        // Most logins succeed: what comes afterwards is to be reached.
        let damaged = self.random.random_bool(0.2);
        self.answer(greeting.message(b'Z', b"I"), damaged)?;
        let mut batch = Vec::new();
        loop {
            let header = self.take(5)?;
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
            let body = self.take(length.saturating_sub(4))?;
            batch.push((header[0], body));
            if matches!(header[0], b'Q' | b'S' | b'H' | b'X') {
                let damaged = self.random.random_bool(0.3);
                let answers = batch
                    .drain(..)
                    .fold(Messages::new(), |answers, (tag, body)| {
                        answers.then(&reply(tag, &body))
                    });
                self.answer(answers, damaged)?;
            }
        }
    }

    fn take(&mut self, n: usize) -> std::io::Result<Vec<u8>> {
        while self.input.len() < n {
            let mut buffer = [0; 8192];
            match self.stream.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                got => self.input.extend_from_slice(&buffer[..got]),
            }
        }
        let rest = self.input.split_off(n);
        Ok(std::mem::replace(&mut self.input, rest))
    }

    fn answer(&mut self, answers: Messages, damaged: bool) -> std::io::Result<()> {
        let mut bytes = answers.as_ref().to_vec();
        let wants_more = String::from_utf8_lossy(&bytes).contains(MORE);
        if let Manners::Extra(more) = self.manners
            && wants_more
        {
            bytes.extend_from_slice(more);
        }
        if self.manners == Manners::Slow {
            for byte in bytes {
                self.stream.write_all(&[byte])?;
            }
            return Ok(());
        }
        if !damaged || !self.is_bad.load(Ordering::SeqCst) {
            return self.stream.write_all(&bytes);
        }
        match self.random.random_range(0..6) {
            0 => bytes.extend_from_slice(one_of(&mut self.random, UNASKED)),
            1 => {
                let unasked = one_of(&mut self.random, UNASKED);
                bytes.splice(0..0, unasked.iter().copied());
            }
            2 => {
                // Said again.
                let again = bytes.clone();
                bytes.extend(again);
            }
            3 => bytes.extend((0..50).map(|_| self.random.random::<u8>())),
            _ => damage(&mut self.random, &mut bytes),
        }
        if self.random.random_bool(0.2) {
            // What follows comes when nobody expects it any more.
            let at = self.random.random_range(0..=bytes.len());
            self.stream.write_all(&bytes[..at])?;
            thread::sleep(Duration::from_millis(self.random.random_range(0..5)));
            bytes.drain(..at);
        }
        self.stream.write_all(&bytes)?;
        if self.random.random_bool(0.2) {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

/// Answers a message; a Query and a Bind get their own text as a row.
fn reply(tag: u8, body: &[u8]) -> Messages {
    let row = |text: &[u8]| {
        let length = u32::try_from(text.len()).expect("short").to_be_bytes();
        [&[0, 1][..], &length, text].concat()
    };
    let column = b"\0\x01c\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\0\0\0\0\0\0";
    match tag {
        b'Q' => {
            let text = body.strip_suffix(&[0]).unwrap_or(body);
            let settings = text.starts_with(b"SELECT name, setting FROM");
            let messages = Messages::new().message(b'T', column);
            let messages = if settings || text.is_empty() {
                messages
            } else {
                messages.message(b'D', &row(text))
            };
            messages.message(b'C', b"SELECT 1\0").message(b'Z', b"I")
        }
        b'P' => Messages::new().message(b'1', b""),
        b'B' => Messages::new().message(b'2', b""),
        b'C' => Messages::new().message(b'3', b""),
        b'D' => Messages::new().message(b'T', column),
        b'E' => Messages::new()
            .message(b'D', &row(b"executed"))
            .message(b'C', b"SELECT 1\0"),
        b'S' => Messages::new().message(b'Z', b"I"),
        _ => Messages::new(),
    }
}
