//! Replication connections: each client gets a server connection of its own, beyond the pool, and after the login every byte
//! is passed on as it is. Their protocol (COPY both ways for hours, commands that are no SQL) has nothing to pool.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::io::Io;
use super::registration::Registration;
use super::server::Server;
use super::threads::ThreadContext;
use crate::error::Error;
use crate::pool::local::LocalPool;
use crate::pool::slots::Slot;
use crate::router::route::Route;
use crate::wire::startup::Startup;

/// Bytes on their way in one direction.
const BUFFER: usize = 64 * 1024;

/// Whether a startup message asks for replication, of either kind.
pub(super) fn is_wanted(startup: &Startup) -> bool {
    let wanted = startup.parameter("replication").unwrap_or_default();
    wanted == "database"
        || ["true", "on", "yes", "1"]
            .iter()
            .any(|yes| wanted.eq_ignore_ascii_case(yes))
}

/// Opens the client's server connection, to the primary, with everything the client asked for at its start.
///
/// # Errors
/// As [`Server::connect`].
pub(super) async fn connect(
    thread: &ThreadContext,
    pool: &LocalPool,
    startup: &Startup,
) -> Result<Box<Server>, Error> {
    let primary = Route::primary_of(&pool.shared.settings);
    let at = pool
        .shared
        .choose(primary, &[])
        .ok_or(Error::NoSuchServer)?;
    let slot = Slot::beyond(&pool.shared, at);
    let asked: Vec<_> = startup
        .parameters
        .iter()
        .filter(|(name, _)| name != "user" && name != "database")
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let dialler = thread.pooler.dialler();
    Server::connect_with(slot, &dialler, thread.now.get(), &asked).await
}

/// Passes bytes on until one side ends, or the session is to.
pub(super) async fn relay(
    thread: &Rc<ThreadContext>,
    registration: Registration,
    mut client: Io,
    mut server: Box<Server>,
    early: Vec<u8>,
) -> Result<(), Error> {
    *registration.handle.server.borrow_mut() = Some(server.key.clone());
    let mut to_server = Pipe::new(early);
    let mut to_client = Pipe::new(std::mem::take(&mut server.input));
    poll_fn(|cx| {
        *registration.handle.waker.borrow_mut() = Some(cx.waker().clone());
        if thread.shutting_down.get() || registration.handle.killed.get() {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(ended) = to_server.poll(cx, &mut client, &mut server.io) {
            return Poll::Ready(ended.map_err(Error::Client));
        }
        to_client
            .poll(cx, &mut server.io, &mut client)
            .map_err(Error::Server)
    })
    .await
}

struct Pipe {
    buffer: Vec<u8>,
    /// What of it is still to be written.
    waiting: std::ops::Range<usize>,
}

impl Pipe {
    fn new(early: Vec<u8>) -> Self {
        let waiting = 0..early.len();
        let mut buffer = early;
        buffer.resize(buffer.len().max(BUFFER), 0);
        Self { buffer, waiting }
    }

    /// `Ready` when `from` has ended, and all of it has been written.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Poll<io::Result<()>> {
        loop {
            while !self.waiting.is_empty() {
                let written = ready!(to.poll_write(cx, &self.buffer[self.waiting.clone()]))?;
                self.waiting.start += written;
            }
            let n = ready!(from.poll_read(cx, &mut self.buffer))?;
            if n == 0 {
                return Poll::Ready(Ok(()));
            }
            self.waiting = 0..n;
        }
    }
}
