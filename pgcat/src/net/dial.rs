//! Reaching a server: by TCP, with TLS as far as it is configured, or by a Unix socket.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

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
        let stream = self.dial_plain(address).await?;
        match (stream, &self.tls.servers) {
            (Io::Tcp(stream), Some(connector)) => {
                encrypt(stream.into_inner(), connector, address).await
            }
            (stream, _) => Ok(stream),
        }
    }

    /// Connects with TLS or not at all.
    ///
    /// # Errors
    /// As [`Dialler::dial`].
    pub async fn dial_encrypted(&self, address: &ServerAddress) -> Result<Io, Error> {
        match self.dial(address).await? {
            stream @ Io::Tls(_) => Ok(stream),
            _ => Err(no_tls()),
        }
    }

    /// Connects in the clear.
    ///
    /// # Errors
    /// [`Error::Server`].
    pub async fn dial_plain(&self, address: &ServerAddress) -> Result<Io, Error> {
        if address.host.starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", address.host, address.port);
            let stream = UnixStream::connect(path).await.map_err(Error::Server)?;
            return Ok(Io::Unix(stream.into()));
        }
        let stream = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(Error::Server)?;
        self.tcp.apply(&stream);
        Ok(Io::Tcp(stream.into()))
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
