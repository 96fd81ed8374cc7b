//! A TLS stream over a socket: rustls does the protocol, this moves the bytes.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A stream whose handshake is done. Says goodbye (close_notify) when dropped: without it a client
/// cannot tell the end from an attack, and libpq reports its cancel request as failed.
#[derive(Debug)]
pub struct TlsStream(Option<Parts>);

/// A stream on its way to another thread.
#[derive(Debug)]
pub struct DetachedTls {
    socket: StdTcpStream,
    state: Box<State>,
}

#[derive(Debug)]
struct Parts {
    socket: TcpStream,
    state: Box<State>,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    /// Bytes of the caller's that have been encrypted, but not yet been reported as written.
    claimed: usize,
}

impl AsFd for TlsStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.parts().socket.as_fd()
    }
}

impl TlsStream {
    /// Does the handshake with a client. `early` is what has been read of it already.
    ///
    /// # Errors
    /// Those of the socket, and [`io::ErrorKind::InvalidData`] for a failed handshake.
    pub async fn accept(
        socket: TcpStream,
        config: Arc<ServerConfig>,
        early: &[u8],
    ) -> io::Result<Self> {
        let connection = ServerConnection::new(config).map_err(invalid)?;
        Self::handshake(socket, connection.into(), early).await
    }

    /// Does the handshake with a server.
    ///
    /// # Errors
    /// As [`TlsStream::accept`].
    pub async fn connect(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let connection = ClientConnection::new(config, name).map_err(invalid)?;
        Self::handshake(socket, connection.into(), &[]).await
    }

    async fn handshake(
        socket: TcpStream,
        connection: Connection,
        mut early: &[u8],
    ) -> io::Result<Self> {
        let state = Box::new(State {
            connection,
            claimed: 0,
        });
        let mut parts = Parts { socket, state };
        while !early.is_empty() {
            parts.state.connection.read_tls(&mut early)?;
            parts.process()?;
        }
        std::future::poll_fn(|cx| parts.poll_handshake(cx)).await?;
        Ok(Self(Some(parts)))
    }

    /// The certificate the peer has proved to own.
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        let certificates = self.parts().state.connection.peer_certificates()?;
        Some(certificates.first()?.as_ref())
    }

    /// Whether the peer named the protocol by ALPN.
    pub fn has_protocol(&self) -> bool {
        self.parts().state.connection.alpn_protocol().is_some()
    }

    /// The peer's address and ours.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let socket = &self.parts().socket;
        Some((socket.peer_addr().ok()?, socket.local_addr().ok()?))
    }

    /// Protocol version and cipher suite.
    pub fn description(&self) -> String {
        let connection = &self.parts().state.connection;
        let version = connection.protocol_version();
        let version = version
            .and_then(|version| version.as_str())
            .unwrap_or("TLS");
        let suite = connection.negotiated_cipher_suite();
        let suite = suite
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or_default();
        format!("{}/{suite}", version.replace("TLSv1_", "TLSv1."))
    }

    /// See [`super::io::Io::poll_read`].
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.parts_mut().poll_read(cx, buffer)
    }

    /// Writes like a plain stream: `Ready` once the socket has what is reported as written. After
    /// `Pending` the next call has to begin with the same bytes, because they are encrypted already.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.parts_mut().poll_write(cx, bytes)
    }

    /// Deregisters the socket from this thread's reactor.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn detach(mut self) -> io::Result<DetachedTls> {
        let Some(Parts { socket, state }) = self.0.take() else {
            unreachable!("the parts are there until the stream is gone")
        };
        Ok(DetachedTls {
            socket: socket.into_std()?,
            state,
        })
    }

    fn parts(&self) -> &Parts {
        match &self.0 {
            Some(parts) => parts,
            None => unreachable!("the parts are there until the stream is gone"),
        }
    }

    fn parts_mut(&mut self) -> &mut Parts {
        match &mut self.0 {
            Some(parts) => parts,
            None => unreachable!("the parts are there until the stream is gone"),
        }
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        if let Some(parts) = &mut self.0 {
            parts.state.connection.send_close_notify();
            // As much as the socket takes: nobody waits for it.
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let _ = parts.poll_send(&mut cx);
        }
    }
}

impl DetachedTls {
    /// Registers the socket with this thread's reactor.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn attach(self) -> io::Result<TlsStream> {
        Ok(TlsStream(Some(Parts {
            socket: TcpStream::from_std(self.socket)?,
            state: self.state,
        })))
    }
}

impl Parts {
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_send(cx))?;
            if !self.state.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_receive(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.state.connection.reader().read(buffer) {
                Ok(n) => return Poll::Ready(Ok(n)),
                // The end without a goodbye. In this protocol nothing depends on the difference.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Ok(0));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(self.poll_receive(cx))?;
            // An answer to the peer's key update, for example. Not waited for: it goes out with what
            // is written next at the latest.
            let _ = self.poll_send(cx)?;
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.state.claimed == 0 {
            ready!(self.poll_send(cx))?;
            self.state.claimed = self.state.connection.writer().write(bytes)?;
        }
        ready!(self.poll_send(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.state.claimed)))
    }

    /// Reads from the socket once; 0 is the end of the stream.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut socket = Polled {
            socket: &mut self.socket,
            cx,
        };
        let n = ready!(blocking(self.state.connection.read_tls(&mut socket)))?;
        self.process()?;
        Poll::Ready(Ok(n))
    }

    /// Writes what is encrypted.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.state.connection.wants_write() {
            let mut socket = Polled {
                socket: &mut self.socket,
                cx,
            };
            if ready!(blocking(self.state.connection.write_tls(&mut socket)))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn process(&mut self) -> io::Result<()> {
        let outcome = self.state.connection.process_new_packets();
        if outcome.is_err() {
            // The alert that tells the peer why; if it does not go out now, then not at all.
            let _ = self.poll_send(&mut Context::from_waker(std::task::Waker::noop()));
        }
        outcome.map(|_| ()).map_err(invalid)
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn blocking<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        other => Poll::Ready(other),
    }
}

/// A socket as rustls wants it: `Pending` is `WouldBlock`.
struct Polled<'a, 'c, 'w> {
    socket: &'a mut TcpStream,
    cx: &'c mut Context<'w>,
}

impl io::Read for Polled<'_, '_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut *self.socket).poll_read(self.cx, &mut buffer) {
            Poll::Ready(Ok(())) => Ok(buffer.filled().len()),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl io::Write for Polled<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.poll(|socket, cx| socket.poll_write(cx, bytes))
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.poll(|socket, cx| socket.poll_write_vectored(cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Polled<'_, '_, '_> {
    fn poll(
        &mut self,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> io::Result<usize> {
        match write(Pin::new(&mut *self.socket), self.cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
