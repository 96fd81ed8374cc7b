//! The two messages a SCRAM client sends, taken apart as PostgreSQL's `auth-scram.c` does.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::AuthError;
use super::scram::Binding;
use super::scram_secret::Key;

/// `client-first-message`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientFirst<'a> {
    /// `n,,`, `y,,` or `p=…,,`, repeated by the client in its last message.
    pub gs2_header: &'a str,
    /// All behind the header; part of what is signed.
    pub bare: &'a str,
    pub nonce: &'a str,
}

/// `client-final-message`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientFinal<'a> {
    pub channel_binding: &'a str,
    pub nonce: &'a str,
    pub proof: Key,
    /// All before the proof; part of what is signed.
    pub without_proof: &'a str,
}

impl<'a> ClientFirst<'a> {
    pub fn parse(message: &'a [u8], binding: Binding<'_>) -> Result<Self, AuthError> {
        let message = text(message)?;
        let (flag, rest) = message.split_once(',').ok_or(AuthError::Malformed(
            "Comma expected after the channel-binding flag.",
        ))?;
        match (flag, binding) {
            ("n", Binding::None | Binding::Declined) | ("y", Binding::None) => {}
            // It would have bound, had it seen the offer.
            ("y", Binding::Declined) => return Err(AuthError::Downgraded),
            ("p=tls-server-end-point", Binding::To(_)) => {}
            ("n" | "y", Binding::To(_)) => {
                return Err(AuthError::Malformed(
                    "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel \
                     binding data.",
                ));
            }
            (flag, Binding::To(_)) if flag.starts_with("p=") => {
                return Err(AuthError::Unsupported(
                    "unsupported SCRAM channel-binding type",
                ));
            }
            (flag, _) if flag.starts_with("p=") => {
                return Err(AuthError::Malformed(
                    "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message \
                     includes channel binding data.",
                ));
            }
            _ => return Err(AuthError::Malformed("Unexpected channel-binding flag.")),
        }
        match rest.as_bytes().first() {
            Some(b',') => {}
            Some(b'a') => {
                return Err(AuthError::Unsupported(
                    "client uses authorization identity, but it is not supported",
                ));
            }
            _ => {
                return Err(AuthError::Malformed(
                    "Unexpected attribute in client-first-message.",
                ));
            }
        }
        let (gs2_header, bare) = message.split_at(flag.len() + 2);
        if bare.starts_with("m=") {
            return Err(AuthError::Unsupported(
                "client requires an unsupported SCRAM extension",
            ));
        }
        let mut attributes = bare.split(',');
        // The name is not looked at: the user is the startup packet's. libpq sends an empty one.
        attribute(attributes.next(), "n=")?;
        let nonce = attribute(attributes.next(), "r=")?;
        if nonce.is_empty() || !nonce.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
            return Err(AuthError::Malformed(
                "Non-printable characters in SCRAM nonce.",
            ));
        }
        Ok(Self {
            gs2_header,
            bare,
            nonce,
        })
    }
}

impl<'a> ClientFinal<'a> {
    pub fn parse(message: &'a [u8]) -> Result<Self, AuthError> {
        let message = text(message)?;
        // The proof is the last attribute; extensions may stand before it.
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or(AuthError::Malformed("Attribute \"p\" expected."))?;
        let mut attributes = without_proof.split(',');
        let channel_binding = attribute(attributes.next(), "c=")?;
        let nonce = attribute(attributes.next(), "r=")?;
        let proof = STANDARD
            .decode(proof)
            .ok()
            .and_then(|proof| Key::try_from(proof).ok())
            .ok_or(AuthError::Malformed(
                "Malformed proof in client-final-message.",
            ))?;
        Ok(Self {
            channel_binding,
            nonce,
            proof,
            without_proof,
        })
    }
}

fn text(message: &[u8]) -> Result<&str, AuthError> {
    match std::str::from_utf8(message) {
        Ok("") => Err(AuthError::Malformed("The message is empty.")),
        Ok(text) if text.contains('\0') => Err(AuthError::Malformed(
            "Message length does not match input length.",
        )),
        Ok(text) => Ok(text),
        Err(_) => Err(AuthError::Malformed("The message is not valid UTF-8.")),
    }
}

fn attribute<'a>(attribute: Option<&'a str>, prefix: &str) -> Result<&'a str, AuthError> {
    attribute
        .and_then(|attribute| attribute.strip_prefix(prefix))
        .ok_or(match prefix {
            "n=" => AuthError::Malformed("Attribute \"n\" expected."),
            "c=" => AuthError::Malformed("Attribute \"c\" expected."),
            _ => AuthError::Malformed("Attribute \"r\" expected."),
        })
}
