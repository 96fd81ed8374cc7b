//! The crate's error: who is to blame, and what to tell the client.

use std::io;

use crate::wire::error_fields::ErrorFields;

/// Why a session or a server connection ended or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client went away or its connection failed.
    #[error("client connection: {0}")]
    Client(io::Error),
    /// The client broke the protocol, failed to authenticate, or asked for something unknown; it is
    /// told so and disconnected.
    #[error("client: {0}")]
    Refused(Box<ErrorFields>),
    /// The server connection failed. The client is told so; another server connection may work.
    #[error("server connection: {0}")]
    Server(io::Error),
    /// The server sent something that fits no request.
    #[error("server broke the protocol: {0}")]
    ServerProtocol(&'static str),
    /// The server refused the login or reported an error instead of serving.
    #[error("server: {0}")]
    ServerRefused(Box<ErrorFields>),
    /// No server connection within `connect_timeout`.
    #[error("no server connection became free in time")]
    Timeout,
    /// A server did not answer within `connect_timeout` when a connection was to be opened.
    #[error("the server did not answer within connect_timeout")]
    ConnectTimeout,
    /// An idle server connection did not answer within `healthcheck_timeout`.
    #[error("the server did not answer the health check")]
    FailedHealthCheck,
    /// The pool has no shard of this number.
    #[error("the pool has no shard {0}")]
    InvalidShard(usize),
    /// No server of the wanted role is configured.
    #[error("no server of the pool can serve this")]
    NoSuchServer,
    /// The pool has been replaced or removed by a reload.
    #[error("the pool's configuration has been changed")]
    Retired,
    /// The pooler could not begin to serve.
    #[error("{0}")]
    Start(String),
}

impl Error {
    /// A protocol violation by the client.
    pub fn protocol(message: impl Into<String>) -> Self {
        Self::Refused(Box::new(ErrorFields::fatal("08P01", message)))
    }
}
