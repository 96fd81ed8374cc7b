//! Mirrors: what a server connection is sent, a connection to a mirror is sent, too. Replies are dropped.
//!
//! Nothing the mirror does may be felt by clients. So bytes are copied into a bounded queue, which a task
//! of the mirror's empties. If the queue is full, or the mirror connection is lost, it is closed, so that
//! the transaction that was cut off is rolled back there, and a new one is made. The new one begins when the
//! server connection is next given to a client, with the settings and prepared statements that are in
//! force by then: everything on a mirror connection has the context that it had on the server's.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::io::{DetachedIo, Io};
use super::server::Server;
use super::threads::ThreadContext;
use crate::error::Error;
use crate::pool::shared::PoolShared;
use crate::pool::slots::Slot;
use crate::session::prepared::Interner;
use crate::session::settings::Settings;
use crate::wire::message;

/// A stream to a server that has mirrors.
#[derive(Debug)]
pub struct MirroredIo {
    pub io: Io,
    taps: Vec<Tap>,
}

/// The same on its way to another thread.
#[derive(Debug)]
pub struct DetachedMirrored {
    io: DetachedIo,
    taps: Vec<Tap>,
}

/// The end of a queue at which bytes are put in. The mirror connection ends with it.
#[derive(Debug)]
struct Tap(Arc<Queue>);

#[derive(Debug)]
struct Queue(Mutex<State>);

#[derive(Debug)]
struct State {
    stage: Stage,
    bytes: Vec<u8>,
    /// Bytes that the queue may hold.
    limit: usize,
    /// The server connection is closed.
    closed: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The queue was full, or the connection was lost: it is to be closed.
    Broken,
    /// There is no connection, and nothing is kept for one.
    Connecting,
    /// The mirror gets what the server gets; from the beginning, if it can be reached then.
    Following,
    /// Connected, and nothing has been sent.
    Ready,
}

/// What a queue has for its mirror.
enum Taken {
    Broken,
    Bytes(Vec<u8>),
    Closed,
    Nothing,
}

/// Bytes that wait for a mirror, per connection.
const LIMIT: usize = 1 << 20;
/// Before a connection is tried again: the first time, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(15);
/// For what is queued when the server connection is closed.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Begins to mirror a connection just made, if its server has mirrors.
pub fn begin(thread: &Rc<ThreadContext>, server: &mut Server) {
    let mirrors = &server.address().mirrors;
    if mirrors.is_empty() {
        return;
    }
    let pool = server.slot.pool();
    let mut taps = Vec::new();
    for mirror in mirrors {
        let queue = Arc::new(Queue::new());
        taps.push(Tap(queue.clone()));
        let follower = Follower {
            thread: thread.clone(),
            pool: pool.clone(),
            mirror: mirror.clone(),
            of: server.address().name.clone(),
            queue,
        };
        tokio::task::spawn_local(follower.run());
    }
    let (placeholder, _) = tokio::io::duplex(1);
    let io = std::mem::replace(&mut server.io, Io::Memory(placeholder));
    server.io = Io::Mirrored(Box::new(MirroredIo { io, taps }));
}

impl MirroredIo {
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = self.io.poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = outcome {
            self.taps.iter().for_each(|tap| tap.0.put(&bytes[..n]));
        }
        outcome
    }

    pub fn detach(self) -> io::Result<DetachedMirrored> {
        Ok(DetachedMirrored {
            io: self.io.detach()?,
            taps: self.taps,
        })
    }

    /// A client is about to use the connection, on which nothing is going on: mirrors that wait for that
    /// begin to follow. Says whether there are any.
    pub fn follow(
        &self,
        settings: &Settings,
        interner: &Interner,
        has: impl Fn(u64) -> bool,
    ) -> bool {
        let mut context = None;
        for Tap(queue) in &self.taps {
            let mut state = queue.lock();
            if state.stage == Stage::Ready {
                let context = context.get_or_insert_with(|| context_of(settings, interner, &has));
                state.stage = Stage::Following;
                state.limit = context.len() + LIMIT;
                state.bytes.clone_from(context);
                state.wake();
            }
        }
        context.is_some()
    }
}

impl DetachedMirrored {
    pub fn attach(self) -> io::Result<MirroredIo> {
        Ok(MirroredIo {
            io: self.io.attach()?,
            taps: self.taps,
        })
    }
}

/// What takes a new connection to the settings and statements of another. A statement is parsed under
/// the settings that it was prepared under.
fn context_of(settings: &Settings, interner: &Interner, has: &impl Fn(u64) -> bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut present = Settings::default();
    for (settings, statement) in interner.by_settings() {
        if !has(statement.id) {
            continue;
        }
        go_over(&mut out, &mut present, settings);
        message::parse_raw(
            &mut out,
            &statement.server_name,
            &statement.rest_with_types(),
        );
        message::sync(&mut out);
    }
    go_over(&mut out, &mut present, settings.clone());
    out
}

fn go_over(out: &mut Vec<u8>, present: &mut Settings, wanted: Settings) {
    if *present != wanted {
        message::query(out, &present.transition(&wanted));
        *present = wanted;
    }
}

impl Queue {
    /// Of a server connection on which nothing has been sent yet.
    fn new() -> Self {
        Self(Mutex::new(State {
            stage: Stage::Following,
            bytes: Vec::new(),
            limit: LIMIT,
            closed: false,
            waker: None,
        }))
    }

    /// The mirror connection has been made.
    fn connected(&self) {
        let mut state = self.lock();
        if state.stage == Stage::Connecting {
            state.stage = Stage::Ready;
        }
    }

    /// It is lost, or could not be made.
    fn lost(&self) {
        let mut state = self.lock();
        state.stage = Stage::Connecting;
        state.bytes = Vec::new();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if state.stage != Stage::Following {
            return;
        }
        if state.bytes.len() + bytes.len() > state.limit {
            state.stage = Stage::Broken;
            state.bytes = Vec::new();
        } else {
            state.bytes.extend_from_slice(bytes);
        }
        state.wake();
    }

    /// What there is to be sent; if nothing, `cx` is woken when there is.
    fn take(&self, cx: &Context<'_>) -> Taken {
        let mut state = self.lock();
        state.waker = Some(cx.waker().clone());
        if state.stage == Stage::Broken {
            return Taken::Broken;
        }
        if !state.bytes.is_empty() {
            // A context is sent: from now on there is the usual room.
            state.limit = LIMIT;
            return Taken::Bytes(std::mem::take(&mut state.bytes));
        }
        if state.closed {
            return Taken::Closed;
        }
        Taken::Nothing
    }

    /// Whether this holds; if not, `cx` is woken when it may.
    fn is(&self, cx: &Context<'_>, it: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        state.waker = Some(cx.waker().clone());
        it(&state)
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.wake();
    }
}

/// The task of a mirror connection.
struct Follower {
    thread: Rc<ThreadContext>,
    /// The pool of the server connection.
    pool: Arc<PoolShared>,
    /// Another, of the mirror alone.
    mirror: Arc<PoolShared>,
    /// The name of the server.
    of: String,
    queue: Arc<Queue>,
}

/// How a mirror connection ended.
enum Outcome {
    /// The server connection is closed.
    Closed,
    Failed(Error),
    /// The mirror does not keep up.
    Full,
}

impl Follower {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        while !self.queue.lock().closed {
            match self.follow(&mut pause).await {
                Outcome::Closed => return,
                Outcome::Full => log::warn!(
                    "mirror {} of {} does not keep up: what it gets is cut off up to a new connection",
                    self.name(),
                    self.of
                ),
                Outcome::Failed(error) if pause == FIRST_PAUSE => {
                    log::warn!("mirror {} of {}: {error}", self.name(), self.of);
                }
                Outcome::Failed(error) => {
                    log::debug!("mirror {} of {}: {error}", self.name(), self.of);
                }
            }
            self.queue.lost();
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn name(&self) -> String {
        let server = &self.mirror.addresses[0].server;
        format!("{}:{}", server.host, server.port)
    }

    async fn follow(&self, pause: &mut Duration) -> Outcome {
        if let Some(credentials) = self.pool.credentials() {
            self.mirror.learn(credentials);
        }
        let slot = Slot::beyond(&self.mirror, 0);
        let dialler = self.thread.pooler.dialler();
        let connecting = Server::connect(slot, &dialler, self.thread.now.get());
        let connected = timeout(self.pool.user.connect_timeout, connecting).await;
        let mut server = match connected.unwrap_or(Err(Error::ConnectTimeout)) {
            Ok(server) => server,
            Err(error) => return Outcome::Failed(error),
        };
        *pause = FIRST_PAUSE;
        self.queue.connected();
        let closed = async {
            // One task, one waker: the queue keeps it for both.
            poll_fn(|cx| match self.queue.is(cx, |state| state.closed) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
            sleep(LAST_WORDS).await;
        };
        tokio::select! {
            outcome = poll_fn(|cx| self.poll(cx, &mut server)) => outcome,
            () = closed => Outcome::Closed,
        }
    }

    /// Sends what there is, and drops what comes.
    fn poll(&self, cx: &mut Context<'_>, server: &mut Server) -> Poll<Outcome> {
        let mut scratch = self.thread.scratch.borrow_mut();
        loop {
            let mut progress = false;
            if server.out.is_empty() {
                match self.queue.take(cx) {
                    Taken::Broken => return Poll::Ready(Outcome::Full),
                    Taken::Bytes(bytes) => server.out.tail().extend(bytes),
                    Taken::Closed => {
                        server.out.tail().extend(message::TERMINATE);
                        // It is over, whatever becomes of this.
                        let _ = server.out.poll_flush(&mut server.io, cx);
                        return Poll::Ready(Outcome::Closed);
                    }
                    Taken::Nothing => (),
                }
            } else if self.queue.is(cx, |state| state.stage == Stage::Broken) {
                return Poll::Ready(Outcome::Full);
            }
            if !server.out.is_empty() {
                match server.out.poll_flush(&mut server.io, cx) {
                    Poll::Ready(Ok(())) => progress = true,
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Outcome::Failed(Error::Server(error)));
                    }
                    Poll::Pending => (),
                }
            }
            match server.io.poll_read(cx, &mut scratch) {
                Poll::Ready(Ok(0)) => {
                    let ended = io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(Outcome::Failed(Error::Server(ended)));
                }
                Poll::Ready(Ok(_)) => progress = true,
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Outcome::Failed(Error::Server(error)));
                }
                Poll::Pending => (),
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }
}
