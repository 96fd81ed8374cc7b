//! SCRAM-SHA-256, the client's side: how the pooler logs in to a server.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::scram::{MAX_ITERATIONS, MECHANISM, MECHANISM_PLUS, random_nonce};
use super::scram_secret::{Key, ScramKeys, sign};
use super::{AuthError, constant_time_eq};

/// What ties the exchange to the TLS connection to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerBinding {
    /// No TLS, or a certificate that cannot be bound to.
    Unsupported,
    /// Possible, but the server does not offer it: said in the exchange, so that a server that did
    /// offer it notices that somebody has changed its offer.
    NotOffered,
    /// `tls-server-end-point` of the server's certificate.
    To(Vec<u8>),
}

/// With what the client proves itself.
#[derive(Debug, Clone, Copy)]
pub enum Proof<'a> {
    Password(&'a str),
    /// Keys that somebody with the password has used here; they fit as long as the server's secret is
    /// the same.
    Keys(&'a ScramKeys),
}

/// An exchange that waits for `server-first-message`.
#[derive(Debug)]
pub struct ScramClient<'a> {
    proof: Proof<'a>,
    binding: ServerBinding,
    nonce: String,
}

/// An exchange that waits for `server-final-message`.
#[derive(Debug)]
pub struct AwaitingSignature {
    signature: Key,
}

impl ServerBinding {
    /// The binding for what a server offers, `mechanisms` being the list of AuthenticationSASL.
    ///
    /// # Errors
    /// [`AuthError::Unsupported`] if the server offers nothing known.
    pub fn choose(mechanisms: &[u8], end_point: Option<Vec<u8>>) -> Result<Self, AuthError> {
        let offers = |name: &str| mechanisms.split(|b| *b == 0).any(|m| m == name.as_bytes());
        match end_point {
            Some(hash) if offers(MECHANISM_PLUS) => Ok(Self::To(hash)),
            Some(_) if offers(MECHANISM) => Ok(Self::NotOffered),
            None if offers(MECHANISM) => Ok(Self::Unsupported),
            _ => Err(AuthError::Unsupported(
                "the server offers no supported SASL mechanism",
            )),
        }
    }

    /// The mechanism's name in SASLInitialResponse.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::To(_) => MECHANISM_PLUS,
            Self::Unsupported | Self::NotOffered => MECHANISM,
        }
    }

    fn gs2_header(&self) -> &'static str {
        match self {
            Self::Unsupported => "n,,",
            Self::NotOffered => "y,,",
            Self::To(_) => "p=tls-server-end-point,,",
        }
    }
}

impl<'a> ScramClient<'a> {
    pub fn new(proof: Proof<'a>, binding: ServerBinding) -> Self {
        Self {
            proof,
            binding,
            nonce: random_nonce(),
        }
    }

    /// `client-first-message`. PostgreSQL takes the user from the startup message.
    pub fn first(&self) -> String {
        format!("{}n=,r={}", self.binding.gs2_header(), self.nonce)
    }

    /// Takes `server-first-message`; returns `client-final-message` and what comes next.
    ///
    /// # Errors
    /// The message is malformed, belongs to another exchange, or asks for too much work.
    pub fn proof(self, message: &[u8]) -> Result<(String, AwaitingSignature), AuthError> {
        let malformed = || AuthError::Malformed("The server's first message is malformed.");
        let message = std::str::from_utf8(message).map_err(|_| malformed())?;
        let mut attributes = message.split(',');
        let mut attribute = |prefix| attributes.next().and_then(|a| a.strip_prefix(prefix));
        let nonce = attribute("r=").ok_or_else(malformed)?;
        let salt = attribute("s=").ok_or_else(malformed)?;
        let iterations = attribute("i=").ok_or_else(malformed)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(AuthError::InvalidResponse("Nonce does not match."));
        }
        let salt = STANDARD.decode(salt).map_err(|_| malformed())?;
        let iterations: u64 = iterations.parse().map_err(|_| malformed())?;
        let iterations = u32::try_from(iterations)
            .ok()
            .filter(|&count| count <= MAX_ITERATIONS)
            .ok_or(AuthError::TooManyIterations(iterations))?;
        if iterations == 0 {
            return Err(malformed());
        }
        let keys = match self.proof {
            Proof::Password(password) => ScramKeys::derive(password, &salt, iterations),
            Proof::Keys(keys) => keys.clone(),
        };
        let mut binding = self.binding.gs2_header().as_bytes().to_vec();
        if let ServerBinding::To(hash) = &self.binding {
            binding.extend_from_slice(hash);
        }
        let without_proof = format!("c={},r={nonce}", STANDARD.encode(binding));
        let signed = format!("n=,r={},{message},{without_proof}", self.nonce);
        let stored_key: Key = Sha256::digest(keys.client).into();
        let mut proof = sign(&stored_key, &[signed.as_bytes()]);
        for (byte, key) in proof.iter_mut().zip(keys.client) {
            *byte ^= key;
        }
        let reply = format!("{without_proof},p={}", STANDARD.encode(proof));
        let signature = sign(&keys.server, &[signed.as_bytes()]);
        Ok((reply, AwaitingSignature { signature }))
    }
}

impl AwaitingSignature {
    /// Takes `server-final-message`: the server's proof that it knows the secret, too.
    ///
    /// # Errors
    /// It does not.
    pub fn finish(self, message: &[u8]) -> Result<(), AuthError> {
        let signature = message
            .strip_prefix(b"v=")
            .and_then(|text| STANDARD.decode(text).ok());
        match signature {
            Some(signature) if constant_time_eq(&signature, &self.signature) => Ok(()),
            _ => Err(AuthError::InvalidResponse(
                "The server's signature is wrong.",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scram::{Binding, ScramServer};
    use super::super::scram_secret::ScramSecret;
    use super::*;

    fn exchange(secret: &ScramSecret, proof: Proof<'_>) -> Result<ScramKeys, AuthError> {
        let client = ScramClient::new(proof, ServerBinding::To(b"hash".to_vec()));
        let (challenge, server) = ScramServer::new(secret, "server", Binding::To(b"hash"))
            .first(client.first().as_bytes())?;
        let (proof, client) = client.proof(&challenge)?;
        let (signature, keys) = server.finish(proof.as_bytes())?;
        client.finish(&signature)?;
        Ok(keys)
    }

    #[test]
    fn what_a_client_proves_is_enough_to_log_in_again() {
        let secret = ScramSecret::from_password("pencil");
        let keys = exchange(&secret, Proof::Password("pencil")).expect("the right password");
        assert_eq!(
            exchange(&secret, Proof::Password("pen")).err(),
            Some(AuthError::WrongPassword)
        );
        exchange(&secret, Proof::Keys(&keys)).expect("the keys of the password");
        // The same password with another salt has other keys.
        let other = ScramSecret::from_password("pencil");
        assert_eq!(
            exchange(&other, Proof::Keys(&keys)).err(),
            Some(AuthError::WrongPassword)
        );
    }

    #[test]
    fn a_server_that_does_not_know_the_secret_is_found_out() {
        let secret = ScramSecret::from_password("pencil");
        let client = ScramClient::new(Proof::Password("pencil"), ServerBinding::Unsupported);
        let (challenge, _) = ScramServer::new(&secret, "server", Binding::None)
            .first(client.first().as_bytes())
            .expect("a first message");
        let (_, awaiting) = client.proof(&challenge).expect("a proof");
        assert!(awaiting.finish(b"v=AAAA").is_err());
    }

    #[test]
    fn a_server_may_not_ask_for_hours_of_work() {
        let answer = |rest: &str| {
            let client = ScramClient::new(Proof::Password("x"), ServerBinding::Unsupported);
            let message = format!("r={}more,{rest}", client.nonce);
            client.proof(message.as_bytes()).map(drop)
        };
        assert_eq!(answer("s=c2FsdA==,i=1"), Ok(()));
        for (count, told) in [("10000001", 10_000_001), ("4294967297", 4_294_967_297)] {
            assert_eq!(
                answer(&format!("s=c2FsdA==,i={count}")),
                Err(AuthError::TooManyIterations(told))
            );
        }
        for rest in [
            "",
            "s=c2FsdA==",
            "s=c2FsdA==,i=0",
            "s=c2FsdA==,i=99999999999999999999",
            "s=*,i=1",
        ] {
            assert!(
                matches!(answer(rest), Err(AuthError::Malformed(_))),
                "{rest}"
            );
        }
        let client = ScramClient::new(Proof::Password("x"), ServerBinding::Unsupported);
        assert!(client.proof(b"r=other,s=c2FsdA==,i=1").is_err());
    }

    #[test]
    fn the_mechanism_is_the_best_that_both_sides_have() {
        let plus = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
        let plain = b"SCRAM-SHA-256\0\0";
        let hash = Some(b"hash".to_vec());
        let choose = |list: &[u8], hash| ServerBinding::choose(list, hash);
        assert_eq!(
            choose(plus, hash.clone()),
            Ok(ServerBinding::To(b"hash".to_vec()))
        );
        assert_eq!(choose(plus, None), Ok(ServerBinding::Unsupported));
        assert_eq!(choose(plain, hash), Ok(ServerBinding::NotOffered));
        assert!(choose(b"OAUTHBEARER\0\0", None).is_err());
    }
}
