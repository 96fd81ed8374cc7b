//! What a server keeps of a password for SCRAM-SHA-256 (RFC 5802, 7677).

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// `scram_iterations` of PostgreSQL as it is shipped.
pub(super) const DEFAULT_ITERATIONS: u32 = 4096;
/// PostgreSQL's length of a salt that it makes, in bytes.
const SALT_LEN: usize = 16;

pub(super) type Key = [u8; 32];

/// Salt, iteration count and the two keys: enough to verify a client, not to pose as one.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramSecret {
    pub(super) iterations: u32,
    pub(super) salt: Vec<u8>,
    pub(super) stored_key: Key,
    pub(super) server_key: Key,
}

impl ScramSecret {
    /// Makes a secret of a plain password, with a random salt. Takes milliseconds.
    pub fn from_password(password: &str) -> Self {
        Self::derive(
            password,
            rand::random::<[u8; SALT_LEN]>().to_vec(),
            DEFAULT_ITERATIONS,
        )
    }

    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, the form of `pg_authid`.
    pub fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let key = |text| Key::try_from(STANDARD.decode(text).ok()?).ok();
        Some(Self {
            iterations: iterations.parse().ok().filter(|&count| count > 0)?,
            salt: STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }

    /// A secret that no password fits, for a user that does not exist: the exchange then looks and
    /// lasts as for a wrong password. `process_key` is random, made once per process, so that the
    /// user's salt stays the same from try to try, as a real one would, and cannot be foretold.
    pub fn mock(user: &str, process_key: &[u8; 32]) -> Self {
        let part = |what: &[u8]| sign(process_key, &[what, user.as_bytes()]);
        Self {
            iterations: DEFAULT_ITERATIONS,
            salt: part(b"salt")[..SALT_LEN].to_vec(),
            stored_key: part(b"stored"),
            server_key: part(b"server"),
        }
    }

    /// Whether the secret was made of this password. Takes milliseconds.
    pub(super) fn is_password(&self, password: &str) -> bool {
        let other = Self::derive(password, self.salt.clone(), self.iterations);
        super::constant_time_eq(&self.stored_key, &other.stored_key)
    }

    pub(super) fn derive(password: &str, salt: Vec<u8>, iterations: u32) -> Self {
        let keys = ScramKeys::derive(password, &salt, iterations);
        Self {
            iterations,
            salt,
            stored_key: Sha256::digest(keys.client).into(),
            server_key: keys.server,
        }
    }
}

/// The two keys made of a password, a salt and an iteration count: enough to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    pub(super) client: Key,
    pub(super) server: Key,
}

impl ScramKeys {
    /// Takes milliseconds.
    pub(super) fn derive(password: &str, salt: &[u8], iterations: u32) -> Self {
        let mut salted = Key::default();
        let password = normalise(password);
        pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), salt, iterations, &mut salted);
        Self {
            client: sign(&salted, &[b"Client Key"]),
            server: sign(&salted, &[b"Server Key"]),
        }
    }
}

/// As for [`ScramSecret`].
impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKeys(..)")
    }
}

/// No part of it belongs in a log.
impl fmt::Debug for ScramSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramSecret(..)")
    }
}

/// HMAC-SHA-256 over the parts.
pub(super) fn sign(key: &[u8], parts: &[&[u8]]) -> Key {
    // HMAC takes keys of any length; the error type is that of algorithms that do not.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// SASLprep. Where it forbids the password PostgreSQL and libpq use its bytes as they are, and so
/// do we, or a user with such a password could log in on one of the two ways only.
fn normalise(password: &str) -> Cow<'_, str> {
    match stringprep::saslprep(password) {
        Ok(prepared) if !prepared.is_empty() => prepared,
        _ => Cow::Borrowed(password),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The secrets of PostgreSQL 15 after `CREATE ROLE … PASSWORD …`.
    const FROM_POSTGRESQL: [(&str, &str); 5] = [
        // SASLprep leaves nothing of it, so it is used as it is.
        (
            "\u{ad}",
            "SCRAM-SHA-256$4096:NFcotx/BPCf6M+5xMWO22w==$SzqrvNj6lVBLWdJPTqsrDMmfyrVUj0SMKIw/NjXmdoI=:gXpkZHiHRM+e3zr/bqb6suSxhsL3h3GCeij2XBdqRls=",
        ),
        (
            "\u{2168}\u{ad}",
            "SCRAM-SHA-256$4096:74hkoUAnqea+oh47vPyS5Q==$MHqj7XMtgZ2yBz3OFc72nTHPM2P9Re9XCqzDVvB1iyc=:It0cHMM1aKWx+bqppImajxEsOcDQFXme9+8aicBcK7Y=",
        ),
        // SASLprep forbids the next two: a control character, an unassigned one.
        (
            "a\u{7}b",
            "SCRAM-SHA-256$4096:8vY0E4tzBCTHeRrtrdPkKQ==$8XzgTF2iqG8noJodZctRG+efL5sR1YhsueXqGnUKVlQ=:igxJ73RtRdqrdAex0DWLPlHU0pqdvpJB2nYeYzQGlEM=",
        ),
        (
            "x\u{221}",
            "SCRAM-SHA-256$4096:IXD3o1BwdJYmH+K8D5y9Xw==$oFqMcTOxBcBnxNLyAuecAridCAYttPoGqf3kHEBKSao=:jCqu19gyL0nfZ4BhrQn2IdXH1C2o//7mLevv0TjDwnA=",
        ),
        (
            "a\u{a0}b",
            "SCRAM-SHA-256$4096:FSYskTAz+tyk5TPvfaehhA==$LoSx2O0H9kd+HMAeoi4B5fOB5peKmiCW+drlUQvlP68=:48t9sSgakV05bdOvq1NmRwnf/trVvCAFCNUWJf1faxo=",
        ),
    ];

    #[test]
    fn a_secret_made_by_postgresql_is_the_one_made_here() {
        for (password, stored) in FROM_POSTGRESQL {
            let stored = ScramSecret::parse(stored).expect("a secret in PostgreSQL's form");
            let ours = ScramSecret::derive(password, stored.salt.clone(), stored.iterations);
            assert!(ours == stored, "{password:?}");
        }
    }

    #[test]
    fn a_secret_made_by_the_reference_client_is_the_one_made_here() {
        for password in ["pencil", "", "pässwörd", "a\u{7}b"] {
            let theirs = postgres_protocol::password::scram_sha_256(password.as_bytes());
            let theirs = ScramSecret::parse(&theirs).expect("a secret in PostgreSQL's form");
            let ours = ScramSecret::derive(password, theirs.salt.clone(), theirs.iterations);
            assert!(ours == theirs, "{password:?}");
        }
    }

    #[test]
    fn passwords_equal_after_saslprep_are_the_same_password() {
        let secret = |password| ScramSecret::derive(password, b"salt".to_vec(), 1);
        assert!(secret("IX") == secret("I\u{ad}X"));
        assert!(secret("IX") == secret("\u{2168}"));
        assert!(secret("a b") == secret("a\u{a0}b"));
        assert!(secret("ix") != secret("IX"));
    }

    #[test]
    fn a_mock_is_stable_and_of_the_shape_of_a_real_one() {
        let (first, again) = (
            ScramSecret::mock("u", &[7; 32]),
            ScramSecret::mock("u", &[7; 32]),
        );
        assert!(first == again);
        assert!(first.salt != ScramSecret::mock("v", &[7; 32]).salt);
        assert!(first.salt != ScramSecret::mock("u", &[8; 32]).salt);
        let real = ScramSecret::from_password("x");
        assert_eq!(
            (first.salt.len(), first.iterations),
            (real.salt.len(), real.iterations)
        );
    }
}
