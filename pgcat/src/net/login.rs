//! How a client proves who it is.

use std::rc::Rc;
use std::sync::OnceLock;

use super::auth_query;
use super::client::Newcomer;
use super::threads::ThreadContext;
use crate::config::model::{AuthType, User};
use crate::error::Error;
use crate::pool::shared::{Credentials, PoolShared};
use crate::session::auth::scram::{Binding, MECHANISM, MECHANISM_PLUS};
use crate::session::auth::{AuthError, ScramKeys, ScramSecret, ScramServer, Secret, md5, scram};
use crate::wire::backend;
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{build, put_cstr, take_cstr};

/// Codes of authentication requests.
const MD5: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// Asks the client for its proof, as the user is configured. What it is verified with by SCRAM is made
/// once, and then known.
///
/// # Errors
/// [`Error::Refused`]: 28P01, worded alike whatever was wrong, or 08P01 for a malformed exchange.
pub(super) async fn prove(
    client: &mut Newcomer,
    user: &User,
    known: &OnceLock<Option<ScramSecret>>,
) -> Result<(), Error> {
    if user.auth_type == AuthType::Trust {
        return Ok(());
    }
    let Some(password) = &user.password else {
        return Err(refused(&user.username));
    };
    verify(client, user, &Secret::parse(password), known)
        .await
        .map(|_| ())
}

/// Asks a client of a pool for its proof, by `auth_query` if the configuration has no password, and
/// keeps what the pool can log in to servers with.
///
/// # Errors
/// As [`prove`].
pub(super) async fn prove_to_pool(
    client: &mut Newcomer,
    thread: &Rc<ThreadContext>,
    pool: &PoolShared,
) -> Result<(), Error> {
    let user = &pool.user;
    if user.auth_type == AuthType::Trust {
        return Ok(());
    }
    let keys = match (&user.password, &pool.settings.auth_query) {
        (Some(password), _) => {
            verify(client, user, &Secret::parse(password), &pool.scram_secret).await?
        }
        (None, None) => return Err(refused(&user.username)),
        (None, Some(auth_query)) => {
            let found = auth_query::secret(thread, pool, &auth_query.query).await?;
            let secret = found.unwrap_or_else(|| {
                // Nobody fits it, and nobody can tell from the exchange.
                let mock = ScramSecret::mock(&user.username, &thread.pooler.mock_key);
                Secret::Scram(mock)
            });
            let keys = verify(client, user, &secret, &OnceLock::new()).await?;
            if keys.is_none() || matches!(secret, Secret::Plain(_)) {
                pool.learn(Credentials::Secret(secret));
                return Ok(());
            }
            keys
        }
    };
    if let Some(keys) = keys {
        pool.learn(Credentials::Keys(keys));
    }
    Ok(())
}

/// Holds the exchange that fits user and secret. Returns the keys of a SCRAM exchange.
async fn verify(
    client: &mut Newcomer,
    user: &User,
    secret: &Secret,
    known: &OnceLock<Option<ScramSecret>>,
) -> Result<Option<ScramKeys>, Error> {
    // As PostgreSQL does for `md5` in pg_hba.conf: a stored SCRAM secret means a SCRAM exchange.
    let by_scram = user.auth_type == AuthType::ScramSha256 || matches!(secret, Secret::Scram(_));
    if !by_scram {
        return by_md5(client, user, secret).await.map(|()| None);
    }
    // Made once: it costs milliseconds, and its salt must not change from try to try.
    let scram = known.get_or_init(|| secret.to_scram());
    let Some(scram) = scram else {
        log::error!(
            "user {}: an md5 hash cannot serve for scram-sha-256",
            user.username
        );
        return Err(refused(&user.username));
    };
    by_scram_exchange(client, user, scram).await.map(Some)
}

async fn by_md5(client: &mut Newcomer, user: &User, secret: &Secret) -> Result<(), Error> {
    let salt: [u8; 4] = rand::random();
    request(client, MD5, &salt).await?;
    let answer = client.read_password().await?;
    let answer = answer.strip_suffix(&[0]).unwrap_or(&answer);
    if md5::verify(secret, &user.username, salt, answer) {
        Ok(())
    } else {
        Err(refused(&user.username))
    }
}

async fn by_scram_exchange(
    client: &mut Newcomer,
    user: &User,
    secret: &ScramSecret,
) -> Result<ScramKeys, Error> {
    let failed = |error: AuthError| match error {
        AuthError::WrongPassword => refused(&user.username),
        error => {
            let mut fields = ErrorFields::fatal(error.sqlstate(), error.to_string());
            fields.detail = error.detail().map(str::to_owned);
            Error::Refused(Box::new(fields))
        }
    };
    let tls = client.tls.clone();
    let end_point = tls.as_ref().and_then(|tls| tls.end_point.as_deref());
    let mut mechanisms = Vec::new();
    if end_point.is_some() {
        put_cstr(&mut mechanisms, MECHANISM_PLUS.as_bytes());
    }
    put_cstr(&mut mechanisms, MECHANISM.as_bytes());
    mechanisms.push(0);
    request(client, SASL, &mechanisms).await?;

    let answer = client.read_password().await?;
    let malformed = || Error::protocol("malformed SASLInitialResponse message");
    let (mechanism, rest) = take_cstr(&answer).ok_or_else(malformed)?;
    let binding = match (mechanism, end_point) {
        (name, None) if name == MECHANISM.as_bytes() => Binding::None,
        (name, Some(_)) if name == MECHANISM.as_bytes() => Binding::Declined,
        (name, Some(hash)) if name == MECHANISM_PLUS.as_bytes() => Binding::To(hash),
        _ => {
            return Err(Error::protocol(
                "client selected an invalid SASL authentication mechanism",
            ));
        }
    };
    let (_, first) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    let nonce = scram::random_nonce();
    let (challenge, awaiting) = ScramServer::new(secret, &nonce, binding)
        .first(first)
        .map_err(failed)?;
    request(client, SASL_CONTINUE, &challenge).await?;
    let proof = client.read_password().await?;
    let (verification, keys) = awaiting.finish(&proof).map_err(failed)?;
    request(client, SASL_FINAL, &verification).await?;
    Ok(keys)
}

async fn request(client: &mut Newcomer, code: u32, data: &[u8]) -> Result<(), Error> {
    build(client.out.tail(), backend::AUTHENTICATION, |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(data);
    });
    client.flush().await
}

/// The answer to anybody who could not prove who he is.
pub(super) fn refused(user: &str) -> Error {
    Error::Refused(Box::new(ErrorFields::fatal(
        "28P01",
        format!("password authentication failed for user \"{user}\""),
    )))
}
