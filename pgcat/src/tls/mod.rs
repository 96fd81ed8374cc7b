//! TLS without sockets: what the settings mean, and the certificates they name.
//!
//! The stream itself is [`crate::net::tls`].

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::model::General;

mod accept;
pub mod certificate;
mod connect;

pub use accept::Acceptor;
pub use connect::{Connector, end_point};

/// The protocol's name in ALPN.
const ALPN: &[u8] = b"postgresql";

/// A setting that does not lead to working TLS: a key of `[general]`, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("general.{key}: {message}")]
pub struct TlsError {
    pub key: &'static str,
    pub message: String,
}

impl TlsError {
    fn new(key: &'static str, message: impl std::fmt::Display) -> Self {
        Self {
            key,
            message: message.to_string(),
        }
    }

    fn file(key: &'static str, path: &Path, message: impl std::fmt::Display) -> Self {
        Self::new(key, format!("{}: {message}", path.display()))
    }
}

/// Everything that is read from the files the settings name: made at start, and anew on a reload.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Towards clients; `None`: they get no TLS.
    pub clients: Option<Arc<Acceptor>>,
    /// Towards servers; `None`: in the clear.
    pub servers: Option<Arc<Connector>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// The first setting that does not work.
    pub fn load(general: &General) -> Result<Self, TlsError> {
        let clients = match &general.client_tls {
            Some(settings) => Some(Arc::new(Acceptor::load(settings)?)),
            None => None,
        };
        let servers = Connector::load(&general.server_tls)?.map(Arc::new);
        Ok(Self { clients, servers })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(chain) if chain.is_empty() => Err(TlsError::file(key, path, "no certificate in it")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(TlsError::file(key, path, error)),
    }
}

fn private_key(key: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::file(key, path, error))
}

fn roots(key: &'static str, path: &Path) -> Result<Arc<rustls::RootCertStore>, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(key, path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::file(key, path, error))?;
    }
    Ok(Arc::new(roots))
}
