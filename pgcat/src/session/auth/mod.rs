//! Authentication of clients, without sockets: what the pooler knows of a password, and the md5 and
//! SCRAM-SHA-256 exchanges as PostgreSQL's `auth.c` and `auth-scram.c` hold them.

pub mod hba;
pub mod md5;
pub mod scram;
pub mod scram_client;
mod scram_messages;
mod scram_secret;

pub use scram::{AwaitingProof, ScramServer};
pub use scram_secret::{ScramKeys, ScramSecret};

/// What is known of a user's password.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    Plain(String),
    /// `md5` and 32 hexadecimal digits: the md5 sum of password and user name, as in `pg_authid`.
    Md5(String),
    Scram(ScramSecret),
}

impl Secret {
    /// Takes a password as it stands in a configuration or in `pg_authid` apart. As in PostgreSQL,
    /// what does not have exactly the form of a hash is a plain password.
    pub fn parse(password: &str) -> Self {
        if md5::is_hash(password) {
            Self::Md5(password.to_owned())
        } else if let Some(secret) = ScramSecret::parse(password) {
            Self::Scram(secret)
        } else {
            Self::Plain(password.to_owned())
        }
    }

    /// Whether a password in the clear is the right one. Takes milliseconds for a SCRAM secret.
    pub fn is_password(&self, user: &str, password: &str) -> bool {
        match self {
            Self::Plain(right) => constant_time_eq(right.as_bytes(), password.as_bytes()),
            Self::Md5(hash) => {
                constant_time_eq(hash.as_bytes(), md5::hash(password, user).as_bytes())
            }
            Self::Scram(secret) => secret.is_password(password),
        }
    }

    /// The secret to hold a SCRAM exchange with: the stored one, or one made of the plain password.
    /// That costs 4096 rounds of HMAC, and the salt is new each time: keep the result, or a client
    /// can tell a known user (slow, changing salt) from an unknown one. `None` for an md5 hash, which
    /// cannot serve.
    pub fn to_scram(&self) -> Option<ScramSecret> {
        match self {
            Self::Plain(password) => Some(ScramSecret::from_password(password)),
            Self::Md5(_) => None,
            Self::Scram(secret) => Some(secret.clone()),
        }
    }
}

/// Passwords must not reach a log by way of `{:?}`.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Secret::Plain(..)",
            Self::Md5(_) => "Secret::Md5(..)",
            Self::Scram(_) => "Secret::Scram(..)",
        })
    }
}

/// Why an exchange failed. All of them end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Also for an unknown user, so that nobody can tell.
    #[error("password authentication failed")]
    WrongPassword,
    #[error("malformed SCRAM message")]
    Malformed(&'static str),
    #[error("invalid SCRAM response")]
    InvalidResponse(&'static str),
    #[error("SCRAM channel binding check failed")]
    ChannelBinding,
    /// The client believes that channel binding was not offered: somebody in the middle has changed the
    /// offer.
    #[error("SCRAM channel binding negotiation error")]
    Downgraded,
    #[error("{0}")]
    Unsupported(&'static str),
    /// A server asks for more work than any setting of `scram_iterations` in earnest.
    #[error("the server asks for {0} SCRAM iterations, more than {max}", max = scram::MAX_ITERATIONS)]
    TooManyIterations(u64),
}

impl AuthError {
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::WrongPassword => "28P01",
            Self::ChannelBinding | Self::Downgraded => "28000",
            Self::Malformed(_) | Self::InvalidResponse(_) | Self::TooManyIterations(_) => "08P01",
            Self::Unsupported(_) => "0A000",
        }
    }

    /// The DETAIL of the message, if there is one.
    pub fn detail(&self) -> Option<&'static str> {
        match self {
            Self::Malformed(detail) | Self::InvalidResponse(detail) => Some(detail),
            Self::Downgraded => Some(
                "The client supports SCRAM channel binding but thinks the server does not.  However, this \
                 server does support channel binding.",
            ),
            _ => None,
        }
    }
}

/// Equality in a time that does not depend on where the first difference is.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && std::hint::black_box(
            a.iter()
                .zip(b)
                .fold(0, |differences, (a, b)| differences | (a ^ b)),
        ) == 0
}

/// A secret for the password `pencil`.
#[cfg(test)]
pub(crate) const TEST_SECRET: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_what_postgresql_takes_it_for() {
        let hash = "md5a3556571e93b0d20722ba62be61e8c2d";
        let scram = TEST_SECRET;
        assert!(matches!(Secret::parse(hash), Secret::Md5(_)));
        assert!(matches!(Secret::parse(scram), Secret::Scram(_)));
        for plain in [
            "",
            "secret",
            "md5",
            &hash[..34],
            &hash.to_uppercase(),
            &scram[..scram.len() - 4],
            &scram.replace("4096", "0"),
            &scram.replace("4096", "many"),
            &scram.replace("SHA-256", "SHA-1"),
            &scram.replace("==$", "$"),
        ] {
            assert_eq!(
                Secret::parse(plain),
                Secret::Plain(plain.to_owned()),
                "{plain}"
            );
        }
    }

    #[test]
    fn a_password_in_the_clear() {
        for secret in [
            "pencil".to_owned(),
            md5::hash("pencil", "joe"),
            TEST_SECRET.to_owned(),
        ] {
            let secret = Secret::parse(&secret);
            assert!(secret.is_password("joe", "pencil"));
            assert!(!secret.is_password("joe", "pen"));
            assert!(!secret.is_password("joe", ""));
        }
        let mock = Secret::Scram(ScramSecret::mock("joe", &[1; 32]));
        assert!(!mock.is_password("joe", "pencil"));
    }

    #[test]
    fn secrets_do_not_show() {
        assert_eq!(
            format!("{:?}", Secret::parse("hidden")),
            "Secret::Plain(..)"
        );
        let secret = ScramSecret::from_password("hidden");
        assert_eq!(format!("{secret:?}"), "ScramSecret(..)");
    }

    #[test]
    fn constant_time_eq_is_equality() {
        assert!(constant_time_eq(b"", b""));
        assert!(constant_time_eq(b"abc", b"abc"));
        assert!(!constant_time_eq(b"abc", b"abd"));
        assert!(!constant_time_eq(b"abc", b"ab"));
    }
}
