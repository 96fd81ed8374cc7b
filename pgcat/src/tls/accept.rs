//! TLS towards clients.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use super::{ALPN, TlsError, certificate, certificates, private_key, provider, roots};
use crate::config::model::{ClientTls, TlsMode};

/// What a client's TLS session begins with.
#[derive(Debug)]
pub struct Acceptor {
    pub config: Arc<ServerConfig>,
    /// Clients on TCP have to use TLS.
    pub required: bool,
    /// `tls-server-end-point` of our certificate (RFC 5929), for SCRAM's channel binding. `None` where
    /// the certificate's signature has no hash that the RFC names.
    pub end_point: Option<Vec<u8>>,
}

impl Acceptor {
    /// Reads the certificate and what belongs to it.
    ///
    /// # Errors
    /// The setting that is wrong.
    pub(super) fn load(settings: &ClientTls) -> Result<Self, TlsError> {
        let chain = certificates("tls_certificate", &settings.identity.certificate)?;
        let key = private_key("tls_private_key", &settings.identity.private_key)?;
        let end_point = certificate::end_point(&chain[0]);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new("tls_certificate", error))?;
        let builder = match &settings.ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots("tls_ca", ca)?, provider());
                // As PostgreSQL does with `ssl_ca_file`: a certificate is asked for, and has to be
                // good if one comes; only the verifying modes insist on it.
                let verifier = if settings.mode < TlsMode::VerifyCa {
                    verifier.allow_unauthenticated()
                } else {
                    verifier
                };
                let verifier = verifier
                    .build()
                    .map_err(|error| TlsError::file("tls_ca", ca, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            TlsError::file("tls_private_key", &settings.identity.private_key, error)
        })?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No driver of PostgreSQL resumes sessions, and PostgreSQL itself does not let them.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            required: settings.mode >= TlsMode::Require,
            end_point,
        })
    }
}
