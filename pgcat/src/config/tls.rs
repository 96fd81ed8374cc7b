//! The keys of `[general]` about TLS. The certificates themselves are read by [`crate::tls`].

use std::path::PathBuf;

use super::error::ConfigError;
use super::model::{ClientTls, TlsMode};
use super::section::Section;

const MODES: &[(&str, TlsMode)] = &[
    ("disable", TlsMode::Disable),
    ("allow", TlsMode::Allow),
    ("prefer", TlsMode::Prefer),
    ("require", TlsMode::Require),
    ("verify-ca", TlsMode::VerifyCa),
    ("verify-full", TlsMode::VerifyFull),
];

/// `tls_certificate`, `tls_private_key` (PgCat's), `tls_mode` and `tls_ca`.
pub(super) fn client(section: &Section<'_>) -> Result<Option<ClientTls>, ConfigError> {
    let certificate = file(section, "tls_certificate")?;
    if certificate.is_some() && section.value("tls_private_key").is_none() {
        let message = "tls_certificate is set, but the tls_private_key is not";
        return Err(section.error("tls_certificate", message));
    }
    let private_key = file(section, "tls_private_key")?;
    let ca = file(section, "tls_ca")?;
    let mode = section.choice("tls_mode", MODES)?;
    let Some((certificate, private_key)) = certificate.zip(private_key) else {
        if mode.is_some_and(|mode| mode > TlsMode::Disable) {
            let message = "tls_mode is set, but tls_certificate and tls_private_key are not";
            return Err(section.error("tls_mode", message));
        }
        return Ok(None);
    };
    let mode = mode.unwrap_or(TlsMode::Prefer);
    if mode >= TlsMode::VerifyCa && ca.is_none() {
        let message =
            "tls_mode asks for clients' certificates, but tls_ca does not say who signs them";
        return Err(section.error("tls_mode", message));
    }
    let tls = ClientTls {
        mode,
        certificate,
        private_key,
        ca,
    };
    Ok((mode > TlsMode::Disable).then_some(tls))
}

fn file(section: &Section<'_>, name: &'static str) -> Result<Option<PathBuf>, ConfigError> {
    let Some(path) = section.string(name)?.map(PathBuf::from) else {
        return Ok(None);
    };
    std::fs::File::open(&path).map_err(|error| {
        section.error(name, format!("{name} is incorrectly configured: {error}"))
    })?;
    Ok(Some(path))
}
