//! SCRAM-SHA-256, the server's side: two messages in, two out.
//!
//! The client's side is [`super::scram_client`].

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::scram_messages::{ClientFinal, ClientFirst};
use super::scram_secret::{Key, ScramKeys, ScramSecret, sign};
use super::{AuthError, constant_time_eq};

/// The mechanism without channel binding.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding, offered on TLS.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// What ties an exchange to the TLS connection it is held on, so that nobody in the middle can pass it
/// on: `tls-server-end-point` of RFC 5929.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding<'a> {
    /// Not offered.
    None,
    /// Offered, and the client chose the other mechanism.
    Declined,
    /// The client chose it: the hash of our certificate.
    To(&'a [u8]),
}

/// The highest iteration count taken from a server: a few seconds of work. Without a bound a server,
/// or who poses as one, stops the thread for minutes (CVE-2026-6664 of another pooler).
pub const MAX_ITERATIONS: u32 = 10_000_000;

/// An exchange that waits for the client's first message.
#[derive(Debug)]
pub struct ScramServer<'a> {
    secret: &'a ScramSecret,
    nonce: &'a str,
    binding: Binding<'a>,
}

/// An exchange that waits for the client's proof.
#[derive(Debug)]
pub struct AwaitingProof {
    stored_key: Key,
    server_key: Key,
    /// Of both sides.
    nonce: String,
    /// What the client has to repeat: its header, and the channel's data.
    channel_binding: Vec<u8>,
    is_bound: bool,
    /// What has been signed so far: `client-first-message-bare,server-first-message`.
    transcript: String,
}

/// A server's part of the nonce: 18 random bytes as base64, PostgreSQL's length.
pub fn random_nonce() -> String {
    STANDARD.encode(rand::random::<[u8; 18]>())
}

impl<'a> ScramServer<'a> {
    /// `server_nonce` is [`random_nonce`], but in tests.
    pub fn new(secret: &'a ScramSecret, server_nonce: &'a str, binding: Binding<'a>) -> Self {
        Self {
            secret,
            nonce: server_nonce,
            binding,
        }
    }

    /// Takes the `client-first-message` of a SASLInitialResponse; returns the data of
    /// AuthenticationSASLContinue and what comes next.
    ///
    /// # Errors
    /// The message is malformed or asks for something unsupported.
    pub fn first(self, message: &[u8]) -> Result<(Vec<u8>, AwaitingProof), AuthError> {
        let client = ClientFirst::parse(message, self.binding)?;
        let nonce = format!("{}{}", client.nonce, self.nonce);
        let salt = STANDARD.encode(&self.secret.salt);
        let reply = format!("r={nonce},s={salt},i={}", self.secret.iterations);
        let mut channel_binding = client.gs2_header.as_bytes().to_vec();
        if let Binding::To(data) = self.binding {
            channel_binding.extend_from_slice(data);
        }
        let next = AwaitingProof {
            stored_key: self.secret.stored_key,
            server_key: self.secret.server_key,
            channel_binding,
            is_bound: matches!(self.binding, Binding::To(_)),
            transcript: format!("{},{reply}", client.bare),
            nonce,
        };
        Ok((reply.into_bytes(), next))
    }
}

impl AwaitingProof {
    /// Takes the `client-final-message` of a SASLResponse; returns the data of
    /// AuthenticationSASLFinal, and the keys the client has proved to know. It is authenticated then.
    ///
    /// # Errors
    /// [`AuthError::WrongPassword`], or the message does not fit the exchange.
    pub fn finish(self, message: &[u8]) -> Result<(Vec<u8>, ScramKeys), AuthError> {
        let client = ClientFinal::parse(message)?;
        if client.channel_binding != STANDARD.encode(&self.channel_binding) {
            return Err(if self.is_bound {
                AuthError::ChannelBinding
            } else {
                AuthError::Malformed(
                    "Unexpected SCRAM channel-binding attribute in client-final-message.",
                )
            });
        }
        if client.nonce != self.nonce {
            return Err(AuthError::InvalidResponse("Nonce does not match."));
        }
        let signed = [
            self.transcript.as_bytes(),
            b",",
            client.without_proof.as_bytes(),
        ];
        let signature = sign(&self.stored_key, &signed);
        let mut client_key = client.proof;
        for (byte, mask) in client_key.iter_mut().zip(signature) {
            *byte ^= mask;
        }
        let stored_key: Key = Sha256::digest(client_key).into();
        if !constant_time_eq(&stored_key, &self.stored_key) {
            return Err(AuthError::WrongPassword);
        }
        let verifier = STANDARD.encode(sign(&self.server_key, &signed));
        let keys = ScramKeys {
            client: client_key,
            server: self.server_key,
        };
        Ok((format!("v={verifier}").into_bytes(), keys))
    }
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

    use super::*;

    // RFC 7677, section 3.
    const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn rfc_secret() -> ScramSecret {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        ScramSecret::derive("pencil", salt, 4096)
    }

    fn rfc_exchange() -> AwaitingProof {
        let secret = rfc_secret();
        let (reply, next) = ScramServer::new(&secret, SERVER_NONCE, Binding::None)
            .first(CLIENT_FIRST.as_bytes())
            .expect("a first message");
        assert_eq!(String::from_utf8_lossy(&reply), SERVER_FIRST);
        next
    }

    #[test]
    fn the_exchange_of_rfc_7677() {
        let (reply, _) = rfc_exchange()
            .finish(CLIENT_FINAL.as_bytes())
            .expect("the right proof");
        assert_eq!(String::from_utf8_lossy(&reply), SERVER_FINAL);
    }

    #[test]
    fn the_reference_client_gets_in_with_the_password_only() {
        let stored = postgres_protocol::password::scram_sha_256("pässwörd".as_bytes());
        let stored = ScramSecret::parse(&stored).expect("a secret in PostgreSQL's form");
        for secret in [stored, ScramSecret::from_password("pässwörd")] {
            assert_eq!(log_in(&secret, "pässwörd"), Ok(()));
            assert_eq!(log_in(&secret, "password"), Err(AuthError::WrongPassword));
        }
        let mock = ScramSecret::mock("nobody", &[1; 32]);
        assert_eq!(log_in(&mock, "pässwörd"), Err(AuthError::WrongPassword));
    }

    fn log_in(secret: &ScramSecret, password: &str) -> Result<(), AuthError> {
        exchange(
            secret,
            password,
            ChannelBinding::unsupported(),
            Binding::None,
        )
    }

    fn exchange(
        secret: &ScramSecret,
        password: &str,
        clients: ChannelBinding,
        ours: Binding<'_>,
    ) -> Result<(), AuthError> {
        let nonce = random_nonce();
        let mut client = ScramSha256::new(password.as_bytes(), clients);
        let (reply, server) = ScramServer::new(secret, &nonce, ours).first(client.message())?;
        client
            .update(&reply)
            .expect("the client accepts server-first");
        let (reply, _) = server.finish(client.message())?;
        client
            .finish(&reply)
            .expect("the client accepts the server's signature");
        Ok(())
    }

    #[test]
    fn channel_binding_is_to_our_certificate() {
        let secret = rfc_secret();
        let theirs = || ChannelBinding::tls_server_end_point(b"certificate".to_vec());
        let log_in = |clients, ours| exchange(&secret, "pencil", clients, ours);
        assert_eq!(log_in(theirs(), Binding::To(b"certificate")), Ok(()));
        assert_eq!(
            log_in(theirs(), Binding::To(b"another one")),
            Err(AuthError::ChannelBinding)
        );
        // The client takes the mechanism without although it was offered the one with, by choice …
        assert_eq!(
            log_in(ChannelBinding::unsupported(), Binding::Declined),
            Ok(())
        );
        // … or because the offer was taken out on its way.
        assert_eq!(
            log_in(ChannelBinding::unrequested(), Binding::Declined),
            Err(AuthError::Downgraded)
        );
        assert_eq!(log_in(ChannelBinding::unrequested(), Binding::None), Ok(()));
        for (clients, ours) in [
            (theirs(), Binding::None),
            (theirs(), Binding::Declined),
            (
                ChannelBinding::unsupported(),
                Binding::To(b"certificate".as_slice()),
            ),
        ] {
            let error = log_in(clients, ours).expect_err("mechanism and message differ");
            assert_eq!(error.sqlstate(), "08P01");
        }
    }

    #[test]
    fn the_first_message_is_read_as_postgresql_reads_it() {
        let secret = rfc_secret();
        let first = |text: &str| {
            ScramServer::new(&secret, SERVER_NONCE, Binding::None)
                .first(text.as_bytes())
                .map(drop)
        };
        assert_eq!(first("n,,n=,r=abc"), Ok(()));
        assert_eq!(first("y,,n=,r=abc"), Ok(()));
        assert_eq!(first("n,,n=*,r=abc,x=ignored"), Ok(()));
        for (text, sqlstate) in [
            ("p=tls-server-end-point,,n=,r=abc", "08P01"),
            ("n,a=other,n=,r=abc", "0A000"),
            ("n,,m=x,n=,r=abc", "0A000"),
            ("", "08P01"),
            ("x,,n=,r=abc", "08P01"),
            ("n", "08P01"),
            ("n,", "08P01"),
            ("n,,", "08P01"),
            ("n,,n=", "08P01"),
            ("n,,r=abc", "08P01"),
            ("n,,n=,r=", "08P01"),
            ("n,,n=,r=a\u{e4}", "08P01"),
            ("n,,n=,r=a\0", "08P01"),
            ("n,,n=,r=a b", "08P01"),
        ] {
            assert_eq!(
                first(text).expect_err(text).sqlstate(),
                sqlstate,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_final_message_of_another_exchange_is_refused() {
        let finish = |text: String| {
            rfc_exchange()
                .finish(text.as_bytes())
                .expect_err("must be refused")
        };
        // "y,,", where the first message said "n,,".
        assert!(matches!(
            finish(CLIENT_FINAL.replace("biws", "eSws")),
            AuthError::Malformed(_)
        ));
        let other_nonce = CLIENT_FINAL.replace("%hv", "%hw");
        assert_eq!(
            finish(other_nonce),
            AuthError::InvalidResponse("Nonce does not match.")
        );
        assert_eq!(
            finish(CLIENT_FINAL.replace("p=dH", "p=eH")),
            AuthError::WrongPassword
        );
        // An extension is signed too.
        assert_eq!(
            finish(CLIENT_FINAL.replace(",p=", ",x=1,p=")),
            AuthError::WrongPassword
        );
        for text in [
            "",
            "c=biws",
            "p=",
            "c=biws,r=x,p=",
            "c=biws,r=x,p=AAAA",
            "r=x,c=biws,p=AAAA",
        ] {
            assert_eq!(finish(text.to_owned()).sqlstate(), "08P01", "{text}");
        }
    }
}
