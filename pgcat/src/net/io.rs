//! The byte streams under clients and servers.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::coop;

use super::mirror::{DetachedMirrored, MirroredIo};
use super::tls::{DetachedTls, TlsStream};
use crate::config::model::General;

/// A connected stream, registered with the thread that uses it.
#[derive(Debug)]
pub enum Io {
    /// The other end is a client inside this process.
    Memory(DuplexStream),
    /// To a server with mirrors.
    Mirrored(Box<MirroredIo>),
    Tcp(Watched<TcpStream>),
    /// Over TCP.
    Tls(TlsStream),
    Unix(Watched<UnixStream>),
}

/// The other end of a stream; `None`: nothing is known of it.
#[derive(Debug)]
pub struct Peer(Option<OwnedFd>);

impl Peer {
    /// Whether it has closed the connection, whatever there may be left to read.
    pub fn has_left(&self) -> bool {
        let Some(socket) = &self.0 else {
            return false;
        };
        let mut looked = [PollFd::new(socket, PollFlags::RDHUP)];
        let outcome = rustix::event::poll(&mut looked, Some(&Timespec::default()));
        outcome.is_ok_and(|n| n > 0)
    }
}

/// A stream on its way from one thread to another.
#[derive(Debug)]
pub enum DetachedIo {
    Memory(DuplexStream),
    Mirrored(Box<DetachedMirrored>),
    Tcp(StdTcpStream),
    Tls(DetachedTls),
    Unix(StdUnixStream),
}

impl Io {
    /// Deregisters the stream from this thread's reactor.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn detach(self) -> io::Result<DetachedIo> {
        Ok(match self {
            Self::Memory(stream) => DetachedIo::Memory(stream),
            Self::Mirrored(stream) => DetachedIo::Mirrored(Box::new(stream.detach()?)),
            Self::Tcp(stream) => DetachedIo::Tcp(stream.into_inner().into_std()?),
            Self::Tls(stream) => DetachedIo::Tls(stream.detach()?),
            Self::Unix(stream) => DetachedIo::Unix(stream.into_inner().into_std()?),
        })
    }

    /// Reads what is there, at most `buffer`'s length. `Ready(Ok(0))` is the end of the stream.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        // A stream that always has more must not keep the thread from its other tasks.
        let turn = ready!(coop::poll_proceed(cx));
        let read = ready!(self.poll_read_unlimited(cx, buffer));
        turn.made_progress();
        Poll::Ready(read)
    }

    /// As [`Io::poll_read`], where the caller itself sees to it that the thread's other tasks get their turn.
    pub fn poll_read_unlimited(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Memory(stream) => {
                let mut buffer = ReadBuf::new(buffer);
                Pin::new(stream)
                    .poll_read(cx, &mut buffer)
                    .map_ok(|()| buffer.filled().len())
            }
            Self::Mirrored(stream) => stream.io.poll_read_unlimited(cx, buffer),
            Self::Tcp(stream) => stream.poll_recv(cx, buffer),
            Self::Tls(stream) => stream.poll_read(cx, buffer),
            Self::Unix(stream) => stream.poll_recv(cx, buffer),
        }
    }

    /// As [`Io::poll_read`], to the end of `input`. The bytes land on the stack first: an array that a future holds while it
    /// waits is memory every idle client has to its name.
    pub fn poll_read_into(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        let mut chunk = [0; 8192];
        let n = ready!(self.poll_read(cx, &mut chunk))?;
        input.extend_from_slice(&chunk[..n]);
        Poll::Ready(Ok(n))
    }

    /// As [`Io::poll_read`], without waiting; `None` if there is nothing. Costs no system call where
    /// the reactor has seen nothing happen.
    pub fn try_read(&mut self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        match self {
            Self::Memory(_) | Self::Tls(_) => {
                let mut cx = Context::from_waker(Waker::noop());
                match self.poll_read_unlimited(&mut cx, buffer) {
                    Poll::Ready(outcome) => Some(outcome),
                    Poll::Pending => None,
                }
            }
            Self::Mirrored(stream) => stream.io.try_read(buffer),
            Self::Tcp(stream) => stream.try_recv(buffer),
            Self::Unix(stream) => stream.try_recv(buffer),
        }
    }

    /// Writes as much of `bytes` as the stream takes now. After `Pending` the next call has to begin
    /// with the same bytes: see [`TlsStream::poll_write`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Memory(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Mirrored(stream) => stream.poll_write(cx, bytes),
            Self::Tcp(stream) => stream.poll_send(cx, bytes),
            Self::Tls(stream) => stream.poll_write(cx, bytes),
            Self::Unix(stream) => stream.poll_send(cx, bytes),
        }
    }

    /// The peer's address and ours, of a TCP connection.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        match self {
            Self::Tcp(stream) => Some((stream.peer_addr().ok()?, stream.local_addr().ok()?)),
            Self::Mirrored(stream) => stream.io.ends(),
            Self::Tls(stream) => stream.ends(),
            Self::Memory(_) | Self::Unix(_) => None,
        }
    }

    /// The TLS session, if there is one.
    pub fn tls(&self) -> Option<&TlsStream> {
        match self {
            Self::Mirrored(stream) => stream.io.tls(),
            Self::Tls(stream) => Some(stream),
            Self::Memory(_) | Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// Shows whether the peer is still there, while the stream is in use.
    pub fn peer(&self) -> Peer {
        let socket = match self {
            Self::Memory(_) => None,
            Self::Mirrored(stream) => return stream.io.peer(),
            Self::Tcp(stream) => Some(stream.as_fd()),
            Self::Tls(stream) => Some(stream.as_fd()),
            Self::Unix(stream) => Some(stream.as_fd()),
        };
        Peer(socket.and_then(|socket| socket.try_clone_to_owned().ok()))
    }

    /// Whether the peer is another process (and not this one's own in-process client).
    pub fn is_external(&self) -> bool {
        !matches!(self, Self::Memory(_))
    }
}

impl DetachedIo {
    /// Registers the stream with this thread's reactor.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn attach(self) -> io::Result<Io> {
        Ok(match self {
            Self::Memory(stream) => Io::Memory(stream),
            Self::Mirrored(stream) => Io::Mirrored(Box::new(stream.attach()?)),
            Self::Tcp(stream) => Io::Tcp(TcpStream::from_std(stream)?.into()),
            Self::Tls(stream) => Io::Tls(stream.attach()?),
            Self::Unix(stream) => Io::Unix(UnixStream::from_std(stream)?.into()),
        })
    }
}

/// A socket that tokio's reactor watches.
///
/// tokio's own reads and writes do the same, at a cost that a transaction notices: a short one clears
/// the readiness, so that no second system call has to find out that there is no more. Here the
/// readiness is looked at before anything is done for having to wait, and the system calls are made by
/// rustix, without libc's thread cancellation around them.
pub trait Socket: AsFd {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Makes a call if the socket is thought to be ready, which ends with a call that returns
    /// `WouldBlock`.
    fn if_ready(&self, interest: Interest, call: impl FnOnce() -> io::Result<()>);

    /// Makes a call that moves at most `limit` bytes; `None` if the socket is not ready.
    fn try_transfer(
        &self,
        interest: Interest,
        limit: usize,
        call: impl FnOnce() -> Result<usize, Errno>,
    ) -> Option<io::Result<usize>> {
        let mut outcome = None;
        self.if_ready(interest, || {
            let result = call();
            let exhausted = match result {
                // Less than asked for: the socket is empty, or full.
                Ok(n) => 0 < n && n < limit,
                Err(error) => error == Errno::AGAIN,
            };
            if result != Err(Errno::AGAIN) {
                outcome = Some(result.map_err(io::Error::from));
            }
            if exhausted {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(())
            }
        });
        outcome
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let sent = self.try_transfer(Interest::WRITABLE, bytes.len(), || {
                rustix::net::send(self, bytes, SendFlags::NOSIGNAL)
            });
            match sent {
                Some(outcome) => return Poll::Ready(outcome),
                None => ready!(self.poll_writable(cx))?,
            }
        }
    }
}

macro_rules! socket {
    ($stream:ty) => {
        impl Socket for $stream {
            fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_read_ready(cx)
            }

            fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_write_ready(cx)
            }

            fn if_ready(&self, interest: Interest, call: impl FnOnce() -> io::Result<()>) {
                // It fails as the call did.
                let _ = self.try_io(interest, call);
            }
        }
    };
}

socket!(TcpStream);
socket!(UnixStream);

/// A socket that remembers whether the reactor knows its reader. To tell it again, at every look that finds nothing, costs a
/// lock each.
#[derive(Debug)]
pub struct Watched<S> {
    socket: S,
    /// Whom the reactor wakes when there is something to read.
    reader: Option<Waker>,
    /// It has been told, and nothing has been read since. It forgets a reader when it wakes him, but then the socket is ready,
    /// and a read, which alone ends that, comes before the next wait.
    told: bool,
}

impl<S> Watched<S> {
    pub fn into_inner(self) -> S {
        self.socket
    }
}

impl<S> From<S> for Watched<S> {
    fn from(socket: S) -> Self {
        Self {
            socket,
            reader: None,
            told: false,
        }
    }
}

impl<S> Deref for Watched<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.socket
    }
}

impl<S: Socket> Watched<S> {
    fn try_recv(&mut self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        let told = &mut self.told;
        let socket = &self.socket;
        socket.try_transfer(Interest::READABLE, buffer.len(), || {
            // Also where it finds nothing: the socket was ready, so the reader has been woken and forgotten.
            *told = false;
            rustix::net::recv(socket, buffer, RecvFlags::empty()).map(|(n, _)| n)
        })
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(outcome) = self.try_recv(buffer) {
                return Poll::Ready(outcome);
            }
            // Another task may have used the socket before.
            let known = self
                .reader
                .as_ref()
                .is_some_and(|reader| reader.will_wake(cx.waker()));
            if self.told && known {
                return Poll::Pending;
            }
            if !known {
                self.reader = Some(cx.waker().clone());
            }
            // A task that is to give way to others is woken again at once, and the reactor is not told.
            self.told = coop::has_budget_remaining();
            ready!(self.socket.poll_readable(cx))?;
            self.told = false;
        }
    }
}

/// Socket options of client and server connections.
#[derive(Debug, Clone, Copy)]
pub struct TcpOptions {
    keepalive_idle: Duration,
    keepalive_interval: Duration,
    keepalive_count: u32,
    user_timeout: Duration,
}

impl TcpOptions {
    pub fn new(general: &General) -> Self {
        Self {
            keepalive_idle: general.tcp_keepalives_idle,
            keepalive_interval: general.tcp_keepalives_interval,
            keepalive_count: general.tcp_keepalives_count,
            user_timeout: general.tcp_user_timeout,
        }
    }

    /// Applies the options. A kernel that refuses one is no reason to refuse the connection.
    pub fn apply(&self, stream: &impl std::os::fd::AsFd) {
        let socket = SockRef::from(stream);
        let mut keepalive = TcpKeepalive::new();
        if !self.keepalive_idle.is_zero() {
            keepalive = keepalive.with_time(self.keepalive_idle);
        }
        if !self.keepalive_interval.is_zero() {
            keepalive = keepalive.with_interval(self.keepalive_interval);
        }
        if self.keepalive_count > 0 {
            keepalive = keepalive.with_retries(self.keepalive_count);
        }
        let outcome = socket
            .set_tcp_nodelay(true)
            .and_then(|()| socket.set_tcp_keepalive(&keepalive))
            .and_then(|()| socket.set_tcp_user_timeout(Some(self.user_timeout)));
        if let Err(error) = outcome {
            log::debug!("could not set socket options: {error}");
        }
    }
}

/// Bytes that wait for a slow reader.
#[derive(Debug, Default)]
pub struct OutBuffer {
    bytes: Vec<u8>,
    written: usize,
}

/// An emptied buffer larger than this is given back to the allocator.
pub const KEEP_CAPACITY: usize = 16 * 1024;

impl OutBuffer {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// The buffer to append messages to.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Writes `bytes` now if nothing waits before them, and keeps what the stream does not take.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn write(&mut self, io: &mut Io, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        if self.is_empty() {
            while !rest.is_empty() {
                match io.poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => rest = &rest[n..],
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
        }
        self.bytes.extend_from_slice(rest);
        Ok(())
    }

    /// Writes what waits. `Ready` when nothing is left.
    pub fn poll_flush(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            match io.poll_write(cx, &self.bytes[self.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => self.written += n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.written = 0;
        if self.bytes.capacity() > KEEP_CAPACITY {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// A task that has done a lot at once is made to give way, before the reactor has heard of it.
    #[tokio::test]
    async fn a_reader_that_has_done_a_lot_at_once_is_woken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut peer = TcpStream::connect(address).await.expect("a connection");
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut io = Io::Tcp(stream.into());
        let reading = tokio::spawn(async move {
            let mut busy = true;
            poll_fn(|cx| {
                while busy {
                    match coop::poll_proceed(cx) {
                        Poll::Ready(turn) => turn.made_progress(),
                        Poll::Pending => busy = false,
                    }
                }
                io.poll_read_unlimited(cx, &mut [0; 10])
            })
            .await
        });
        sleep(Duration::from_millis(50)).await;
        peer.write_all(b"x").await.expect("sent");
        let read = timeout(Duration::from_secs(5), reading).await;
        assert!(matches!(read, Ok(Ok(Ok(1)))), "{read:?}");
    }
}
