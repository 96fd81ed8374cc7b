//! Reaching a server: by TCP, with TLS as far as it is configured, or by a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::io::{Io, TcpOptions};
use super::tls::TlsStream;
use crate::config::model::ServerAddress;
use crate::error::Error;
use crate::tls::{Connector, Tls};
use crate::wire::error_fields::ErrorFields;
use crate::wire::startup::ssl_request;

/// How servers are reached at present.
#[derive(Debug, Clone)]
pub struct Dialler {
    pub tcp: TcpOptions,
    pub tls: Tls,
}

impl Dialler {
    /// Connects, encrypted as the settings say.
    ///
    /// # Errors
    /// [`Error::Server`], or [`Error::ServerRefused`] by a server without the TLS that is required.
    pub async fn dial(&self, address: &ServerAddress) -> Result<Io, Error> {
        let stream = self.dial_plain(address, None).await?;
        self.encrypt_if_wanted(stream, address).await
    }

    async fn encrypt_if_wanted(&self, stream: Io, address: &ServerAddress) -> Result<Io, Error> {
        match (stream, &self.tls.servers) {
            (Io::Tcp(stream), Some(connector)) => {
                encrypt(stream.into_inner(), connector, address).await
            }
            (stream, _) => Ok(stream),
        }
    }

    /// Connects with TLS or not at all. `at`: where the name of the host has led to before.
    ///
    /// # Errors
    /// As [`Dialler::dial`].
    pub async fn dial_encrypted(
        &self,
        address: &ServerAddress,
        at: Option<SocketAddr>,
    ) -> Result<Io, Error> {
        let stream = self.dial_plain(address, at).await?;
        match self.encrypt_if_wanted(stream, address).await? {
            stream @ Io::Tls(_) => Ok(stream),
            _ => Err(no_tls()),
        }
    }

    /// Connects in the clear. `at`: where the name of the host has led to before.
    ///
    /// # Errors
    /// [`Error::Server`].
    pub async fn dial_plain(
        &self,
        address: &ServerAddress,
        at: Option<SocketAddr>,
    ) -> Result<Io, Error> {
        if address.host.starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", address.host, address.port);
            let stream = UnixStream::connect(path).await.map_err(Error::Server)?;
            return Ok(Io::Unix(stream.into()));
        }
        let addresses = match at {
            Some(at) => vec![at],
            None => lookup_host((address.host.as_str(), address.port))
                .await
                .map_err(Error::Server)?
                .collect(),
        };
        let stream = connect_first(addresses, TcpStream::connect)
            .await
            .map_err(Error::Server)?;
        self.tcp.apply(&stream);
        Ok(Io::Tcp(stream.into()))
    }
}

/// An address that has not answered after so long does not keep the next from being tried (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// The first connection that can be made, addresses tried in their order: the resolver has put first
/// what it thinks is best.
async fn connect_first<C>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> C,
) -> io::Result<TcpStream>
where
    C: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    if let [only] = addresses[..] {
        return connect(only).await;
    }
    let mut addresses = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no addresses");
    loop {
        if let Some(address) = addresses.next() {
            attempts.spawn(connect(address));
        }
        let first = attempts.join_next();
        let first = if addresses.len() == 0 {
            first.await
        } else {
            match timeout(HEAD_START, first).await {
                Ok(first) => first,
                Err(_) => continue,
            }
        };
        match first {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => failure = error,
            Some(Err(panicked)) => failure = panicked.into(),
            None => return Err(failure),
        }
    }
}

async fn encrypt(
    mut stream: TcpStream,
    connector: &Connector,
    address: &ServerAddress,
) -> Result<Io, Error> {
    stream
        .write_all(&ssl_request())
        .await
        .map_err(Error::Server)?;
    // This one byte and no more: what follows it in the clear is not the server's, and has to fail as
    // a part of the handshake (CVE-2021-23222).
    match stream.read_u8().await.map_err(Error::Server)? {
        b'S' => {
            let name = connector.name(&address.host).map_err(invalid)?;
            let stream = TlsStream::connect(stream, connector.config.clone(), name).await;
            let stream = stream.map_err(|error| {
                Error::Server(io::Error::new(
                    error.kind(),
                    format!("TLS handshake: {error}"),
                ))
            })?;
            Ok(Io::Tls(stream))
        }
        b'N' if connector.required => Err(no_tls()),
        b'N' => Ok(Io::Tcp(stream.into())),
        // An ErrorResponse: the server could not start a process, or is another program.
        _ => Err(Error::ServerProtocol("no answer to the request for TLS")),
    }
}

fn invalid(message: String) -> Error {
    Error::Server(io::Error::new(io::ErrorKind::InvalidInput, message))
}

fn no_tls() -> Error {
    Error::ServerRefused(Box::new(ErrorFields::fatal(
        "08001",
        "server does not support SSL, but SSL was required",
    )))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    use super::*;

    /// A listener, and an address at which nobody listens.
    fn places() -> (TcpListener, SocketAddr, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let good = listener.local_addr().expect("its address");
        (
            listener,
            good,
            SocketAddr::from((Ipv6Addr::LOCALHOST, good.port())),
        )
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_followed_by_the_next() {
        let (_listener, good, refusing) = places();
        let stream = connect_first(vec![refusing, good], TcpStream::connect).await;
        assert_eq!(stream.expect("a stream").peer_addr().expect("a peer"), good);
        let failed = connect_first(vec![refusing, refusing], TcpStream::connect).await;
        assert!(failed.is_err());
        let nowhere = connect_first(Vec::new(), TcpStream::connect).await;
        assert_eq!(
            nowhere.expect_err("no address").kind(),
            io::ErrorKind::NotFound
        );
    }

    #[tokio::test]
    async fn an_address_that_is_silent_is_not_waited_for() {
        let (_listener, good, silent) = places();
        let connect = move |address| async move {
            if address == silent {
                std::future::pending::<()>().await;
            }
            TcpStream::connect(address).await
        };
        let stream = connect_first(vec![silent, silent, good], connect).await;
        assert_eq!(stream.expect("a stream").peer_addr().expect("a peer"), good);
    }
}
