//! The keys of `[general]` about TLS. The certificates themselves are read by [`crate::tls`].

use std::path::PathBuf;

use super::error::ConfigError;
use super::model::{ClientTls, ServerTls, TlsIdentity, TlsMode};
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
    let identity = identity(section, "tls_certificate", "tls_private_key")?;
    let ca = file(section, "tls_ca")?;
    let mode = section.choice("tls_mode", MODES)?;
    let Some(identity) = identity else {
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
    let tls = ClientTls { mode, identity, ca };
    Ok((mode > TlsMode::Disable).then_some(tls))
}

/// `server_tls` and `verify_server_certificate` (PgCat's), or instead of them `server_tls_mode`; with
/// `server_tls_ca`, `server_tls_certificate` and `server_tls_private_key`.
pub(super) fn server(section: &Section<'_>) -> Result<ServerTls, ConfigError> {
    let wanted = section.boolean("server_tls")?;
    let verify = section.boolean("verify_server_certificate")?;
    let mode = match (section.choice("server_tls_mode", MODES)?, wanted, verify) {
        (Some(mode), wanted, verify) => {
            let contradicts =
                |flag: Option<bool>, least| flag.is_some_and(|on| on != (mode >= least));
            if contradicts(wanted, TlsMode::Allow) {
                let message = "server_tls and server_tls_mode contradict each other";
                return Err(section.error("server_tls_mode", message));
            }
            if contradicts(verify, TlsMode::VerifyCa) {
                let message = "verify_server_certificate and server_tls_mode contradict each other";
                return Err(section.error("server_tls_mode", message));
            }
            mode
        }
        // PgCat goes on in the clear where the server has no TLS, which would make the check worthless.
        (None, Some(true), Some(true)) => TlsMode::VerifyFull,
        (None, Some(true), _) => TlsMode::Prefer,
        (None, _, _) => TlsMode::Disable,
    };
    Ok(ServerTls {
        mode,
        ca: file(section, "server_tls_ca")?,
        identity: identity(section, "server_tls_certificate", "server_tls_private_key")?,
    })
}

/// Both keys or neither.
fn identity(
    section: &Section<'_>,
    certificate: &'static str,
    private_key: &'static str,
) -> Result<Option<TlsIdentity>, ConfigError> {
    let identity = (file(section, certificate)?, file(section, private_key)?);
    match identity {
        (Some(certificate), Some(private_key)) => Ok(Some(TlsIdentity {
            certificate,
            private_key,
        })),
        (None, None) => Ok(None),
        // PgCat's words.
        (Some(_), None) => {
            let message = format!("{certificate} is set, but the {private_key} is not");
            Err(section.error(certificate, message))
        }
        (None, Some(_)) => {
            let message = format!("{private_key} is set, but the {certificate} is not");
            Err(section.error(private_key, message))
        }
    }
}

pub(super) fn file(
    section: &Section<'_>,
    name: &'static str,
) -> Result<Option<PathBuf>, ConfigError> {
    let Some(path) = section.string(name)?.map(PathBuf::from) else {
        return Ok(None);
    };
    std::fs::File::open(&path).map_err(|error| {
        section.error(name, format!("{name} is incorrectly configured: {error}"))
    })?;
    Ok(Some(path))
}
