//! Messages with file descriptors between two processes of this program, over a Unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::{UnixDatagram, UnixStream};

/// Descriptors in one message; Linux allows 253.
pub(super) const MOST: usize = 64;

/// No message is longer.
const LONGEST: usize = 64 * 1024;

/// One end of a connection.
#[derive(Debug)]
pub enum Channel {
    /// Its messages are lines.
    Stream(UnixStream),
    Datagram(UnixDatagram),
}

impl Channel {
    /// A datagram socket that another process has given.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn datagram(socket: OwnedFd) -> io::Result<Self> {
        let socket = StdUnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self::Datagram(UnixDatagram::from_std(socket)?))
    }

    fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(socket) => socket.as_fd(),
            Self::Datagram(socket) => socket.as_fd(),
        }
    }

    async fn when<R>(&self, ready: Interest, act: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        match self {
            Self::Stream(socket) => socket.async_io(ready, act).await,
            Self::Datagram(socket) => socket.async_io(ready, act).await,
        }
    }

    /// The socket, for another process.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.socket().try_clone_to_owned()
    }

    /// Sends a message.
    ///
    /// # Errors
    /// As the operating system reports them: nobody is at the other end, for one.
    pub async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let send = || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(io::ErrorKind::ArgumentListTooLong.into());
            }
            let data = [IoSlice::new(bytes)];
            let sent =
                rustix::net::sendmsg(self.socket(), &data, &mut control, SendFlags::NOSIGNAL)?;
            Ok(sent)
        };
        let sent = self.when(Interest::WRITABLE, send).await?;
        // They are short, and no more than two are ever on their way.
        if sent < bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// What has come: a part of a stream, or a datagram. Nothing is the end of the stream.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub async fn receive(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let receive = || {
            let mut bytes = vec![0; 4096];
            let mut descriptors = Vec::new();
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut data = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = rustix::net::recvmsg(self.socket(), &mut data, &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            bytes.truncate(received.bytes);
            Ok((bytes, descriptors))
        };
        self.when(Interest::READABLE, receive).await
    }

    /// A line of a stream, without its end, and the descriptors that came with it.
    ///
    /// # Errors
    /// `UnexpectedEof` if the other end has gone; `TimedOut` if it is silent for `limit`.
    pub async fn line(&self, limit: Duration) -> io::Result<(String, Vec<OwnedFd>)> {
        let read = async {
            let (mut line, mut descriptors) = (Vec::new(), Vec::new());
            loop {
                let (bytes, more) = self.receive().await?;
                if bytes.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                line.extend(bytes);
                descriptors.extend(more);
                // Each side waits for the other's answer, so that nothing follows a line.
                if line.ends_with(b"\n") {
                    line.pop();
                    let line = String::from_utf8(line);
                    let line = line.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                    return Ok((line, descriptors));
                }
                if line.len() > LONGEST {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        };
        match tokio::time::timeout(limit, read).await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Sends a line of a stream.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub async fn say(&self, line: &str) -> io::Result<()> {
        self.send(format!("{line}\n").as_bytes(), &[]).await
    }
}

/// The descriptors of a list, borrowed.
pub(super) fn borrowed(descriptors: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    descriptors.iter().map(AsFd::as_fd).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream as StdUnixStream;

    use super::*;

    #[tokio::test]
    async fn a_descriptor_goes_over() {
        let (one, two) = UnixStream::pair().expect("a pair");
        let (one, two) = (Channel::Stream(one), Channel::Stream(two));
        let (mut kept, given) = StdUnixStream::pair().expect("a pair");
        one.send(b"here\n", &[given.as_fd()]).await.expect("sent");
        drop(given);
        let (line, descriptors) = two.line(Duration::from_secs(9)).await.expect("a line");
        assert_eq!((line.as_str(), descriptors.len()), ("here", 1));
        for descriptor in descriptors {
            StdUnixStream::from(descriptor)
                .write_all(b"hello")
                .expect("written");
        }
        let mut text = String::new();
        kept.read_to_string(&mut text).expect("read");
        assert_eq!(text, "hello");
        drop(one);
        let ended = two.line(Duration::from_secs(9)).await.expect_err("the end");
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }
}
