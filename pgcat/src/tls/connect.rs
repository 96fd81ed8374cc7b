//! TLS towards servers.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::{ALPN, TlsError, certificate, certificates, private_key, provider};
use crate::config::model::{ServerTls, TlsMode};

/// What a TLS session with a server begins with.
#[derive(Debug)]
pub struct Connector {
    pub config: Arc<ClientConfig>,
    /// A server without TLS is not talked to.
    pub required: bool,
    /// The certificate has to be for the host's name.
    names_matter: bool,
}

impl Connector {
    /// Reads the files. `Ok(None)`: no TLS.
    ///
    /// # Errors
    /// The setting that is wrong.
    pub(super) fn load(settings: &ServerTls) -> Result<Option<Self>, TlsError> {
        if settings.mode == TlsMode::Disable {
            return Ok(None);
        }
        let provider = provider();
        let verifier = Verifier {
            algorithms: provider.signature_verification_algorithms,
            trust: if settings.mode >= TlsMode::VerifyCa {
                Some(Trust::load(settings)?)
            } else {
                None
            },
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new("server_tls_mode", error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &settings.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder
                .with_client_auth_cert(
                    certificates("server_tls_certificate", &identity.certificate)?,
                    private_key("server_tls_private_key", &identity.private_key)?,
                )
                .map_err(|error| {
                    TlsError::file("server_tls_private_key", &identity.private_key, error)
                })?,
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        // PostgreSQL does not resume sessions.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Some(Self {
            config: Arc::new(config),
            required: settings.mode >= TlsMode::Require,
            names_matter: settings.mode >= TlsMode::VerifyFull,
        }))
    }

    /// The name to ask a server for, and to find in its certificate.
    ///
    /// # Errors
    /// The host cannot be in a certificate, and has to be.
    pub fn name(&self, host: &str) -> Result<ServerName<'static>, String> {
        match ServerName::try_from(host.to_owned()) {
            Ok(name) => Ok(name),
            // Nobody compares it then, and an address is not sent.
            Err(_) if !self.names_matter => {
                Ok(ServerName::from(std::net::IpAddr::from([0, 0, 0, 0])))
            }
            Err(_) => Err(format!(
                "{host:?} is no name that a certificate could be for"
            )),
        }
    }
}

/// `tls-server-end-point` of a server's certificate. `None` also for a certificate that [`Verifier`] is
/// lenient with: its owner has not proved to have its key.
pub fn end_point(der: &[u8]) -> Option<Vec<u8>> {
    ParsedCertificate::try_from(&CertificateDer::from(der)).ok()?;
    certificate::end_point(der)
}

/// Whose certificates are taken, and how closely they are looked at.
#[derive(Debug)]
struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// `None`: everybody's.
    trust: Option<Trust>,
}

#[derive(Debug)]
struct Trust {
    chains: Arc<WebPkiServerVerifier>,
    /// Those of `server_tls_ca` themselves.
    known: Vec<CertificateDer<'static>>,
    host: bool,
}

impl Trust {
    fn load(settings: &ServerTls) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let (key, known) = match &settings.ca {
            Some(path) => ("server_tls_ca", certificates("server_tls_ca", path)?),
            None => {
                let system = rustls_native_certs::load_native_certs();
                for error in &system.errors {
                    log::warn!("the system's certificate authorities: {error}");
                }
                ("server_tls_mode", system.certs)
            }
        };
        // A system's store may have certificates that cannot be used; they are nobody's then.
        roots.add_parsable_certificates(known.iter().cloned());
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| TlsError::new(key, error))?;
        Ok(Self {
            chains,
            known: if settings.ca.is_some() {
                known
            } else {
                Vec::new()
            },
            host: settings.mode >= TlsMode::VerifyFull,
        })
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<(), Error> {
        // A self-signed certificate, as many servers have it, is an authority's and a server's at once,
        // which webpki refuses and OpenSSL does not.
        if self.known.iter().any(|known| known == certificate) {
            if !certificate::is_valid_at(certificate, now.as_secs()) {
                return Err(CertificateError::Expired.into());
            }
            if self.host {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            }
            return Ok(());
        }
        let chains = &self.chains;
        match chains.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Ok(_) => Ok(()),
            // The chain has been verified when the name is looked at.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.host => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Verifier {
    /// Where any certificate will do, one that cannot be read will do, too: PostgreSQL's manual makes
    /// certificates of X.509 version 1, which webpki does not read.
    fn lenient(
        &self,
        outcome: Result<HandshakeSignatureValid, Error>,
        certificate: &CertificateDer<'_>,
    ) -> Result<HandshakeSignatureValid, Error> {
        if outcome.is_err()
            && self.trust.is_none()
            && ParsedCertificate::try_from(certificate).is_err()
        {
            return Ok(HandshakeSignatureValid::assertion());
        }
        outcome
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trust) = &self.trust {
            trust.verify(certificate, intermediates, name, ocsp, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let outcome = verify_tls12_signature(message, certificate, signature, &self.algorithms);
        self.lenient(outcome, certificate)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let outcome = verify_tls13_signature(message, certificate, signature, &self.algorithms);
        self.lenient(outcome, certificate)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
