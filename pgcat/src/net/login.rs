//! How a client proves who it is.

use std::rc::Rc;
use std::sync::OnceLock;

use super::auth_query;
use super::client::Newcomer;
use super::io::Io;
use super::threads::ThreadContext;
use crate::config::model::{AuthType, User};
use crate::error::Error;
use crate::plugins::PoolIdentity;
use crate::pool::shared::{Credentials, PoolShared};
use crate::session::auth::hba::{Certificate, Hba, Visitor};
use crate::session::auth::scram::{Binding, MECHANISM, MECHANISM_PLUS};
use crate::session::auth::{AuthError, ScramKeys, ScramSecret, ScramServer, Secret, md5, scram};
use crate::tls::certificate::common_name;
use crate::wire::backend;
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{build, put_cstr, take_cstr};

/// Codes of authentication requests.
const CLEARTEXT: u32 = 3;
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
    let method = user.auth_type;
    if !asks_password(client, method, user)? {
        return Ok(());
    }
    let Some(password) = &user.password else {
        return Err(refused(&user.username));
    };
    verify(client, method, user, &Secret::parse(password), known)
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
    let method = match thread.pooler.hba() {
        None => user.auth_type,
        Some(rules) => method_by_rules(client, &rules, pool)?,
    };
    if !asks_password(client, method, user)? {
        if pool.of_other_user
            && let Some(auth_query) = &pool.settings.auth_query
        {
            // Whoever the rules let in without a password has to exist at least.
            let found = auth_query::secret(thread, pool, &auth_query.query).await?;
            let secret = found.ok_or_else(|| refused(&user.username))?;
            if !matches!(secret, Secret::Scram(_)) {
                pool.learn(Credentials::Secret(secret));
            }
        }
        return Ok(());
    }
    let proven = match (&user.password, &pool.settings.auth_query) {
        (Some(password), _) => {
            let secret = Secret::parse(password);
            verify(client, method, user, &secret, &pool.scram_secret).await?
        }
        (None, None) => return Err(refused(&user.username)),
        (None, Some(auth_query)) => {
            let found = auth_query::secret(thread, pool, &auth_query.query).await?;
            let secret = found.unwrap_or_else(|| {
                // Nobody fits it, and nobody can tell from the exchange.
                let mock = ScramSecret::mock(&user.username, &thread.pooler.mock_key);
                Secret::Scram(mock)
            });
            verify(client, method, user, &secret, &OnceLock::new()).await?
        }
    };
    pool.learn(proven);
    Ok(())
}

/// What the rules ask of this client; a certificate that they ask for beside it is looked at here.
fn method_by_rules(client: &Newcomer, rules: &Hba, pool: &PoolShared) -> Result<AuthType, Error> {
    let PoolIdentity { database, user } = &*pool.identity;
    let address = match client.io {
        Io::Unix(_) | Io::Memory(_) | Io::Mirrored(_) => None,
        Io::Tcp(_) | Io::Tls(_) => {
            // Without an address it would pass for a client on the Unix socket. It has left already.
            let gone = || Error::Client(std::io::ErrorKind::NotConnected.into());
            Some(client.io.ends().ok_or_else(gone)?.0.ip())
        }
    };
    let encrypted = client.io.tls().is_some();
    let demand = rules.demand(Visitor {
        address,
        encrypted,
        database,
        user,
    });
    // PostgreSQL's words.
    let from = address.map_or("[local]".to_owned(), |address| address.to_string());
    let how = if encrypted {
        "SSL encryption"
    } else {
        "no encryption"
    };
    let whom = format!("host \"{from}\", user \"{user}\", database \"{database}\", {how}");
    let Some(demand) = demand else {
        return Err(unauthorized(format!("no pg_hba.conf entry for {whom}")));
    };
    match demand.certificate {
        Certificate::NotAsked => (),
        Certificate::Any if certificate(client).is_some() => (),
        Certificate::Any => {
            return Err(unauthorized(
                "connection requires a valid client certificate".to_owned(),
            ));
        }
        Certificate::User => check_certificate(client, user)?,
    }
    demand
        .method
        .ok_or_else(|| unauthorized(format!("pg_hba.conf rejects connection for {whom}")))
}

/// Whether the method goes on with a password. Those without one are done with here.
fn asks_password(client: &Newcomer, method: AuthType, user: &User) -> Result<bool, Error> {
    match method {
        AuthType::Trust => Ok(false),
        AuthType::Cert => check_certificate(client, &user.username).map(|()| false),
        AuthType::Password if matches!(client.io, Io::Tcp(_)) => Err(unauthorized(
            "a password in the clear needs an SSL connection".to_owned(),
        )),
        AuthType::Password | AuthType::Md5 | AuthType::ScramSha256 => Ok(true),
    }
}

/// The certificate of the client, verified during the handshake.
fn certificate(client: &Newcomer) -> Option<&[u8]> {
    client.io.tls()?.peer_certificate()
}

fn check_certificate(client: &Newcomer, user: &str) -> Result<(), Error> {
    let name = certificate(client).and_then(common_name);
    if name.is_some_and(|name| name == user) {
        return Ok(());
    }
    Err(unauthorized(format!(
        "certificate authentication failed for user \"{user}\""
    )))
}

fn unauthorized(message: String) -> Error {
    Error::Refused(Box::new(ErrorFields::fatal("28000", message)))
}

/// Holds the exchange that fits method and secret. Returns what it has taught of the password.
async fn verify(
    client: &mut Newcomer,
    method: AuthType,
    user: &User,
    secret: &Secret,
    known: &OnceLock<Option<ScramSecret>>,
) -> Result<Credentials, Error> {
    if method == AuthType::Password {
        return by_password(client, user, secret).await;
    }
    // As PostgreSQL does for `md5` in pg_hba.conf: a stored SCRAM secret means a SCRAM exchange.
    let by_scram = method == AuthType::ScramSha256 || matches!(secret, Secret::Scram(_));
    if !by_scram {
        by_md5(client, user, secret).await?;
        return Ok(Credentials::Secret(secret.clone()));
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
    let keys = by_scram_exchange(client, user, scram).await?;
    Ok(match secret {
        Secret::Plain(_) => Credentials::Secret(secret.clone()),
        Secret::Md5(_) | Secret::Scram(_) => Credentials::Keys(keys),
    })
}

async fn by_password(
    client: &mut Newcomer,
    user: &User,
    secret: &Secret,
) -> Result<Credentials, Error> {
    request(client, CLEARTEXT, &[]).await?;
    let answer = client.read_password().await?;
    let password = String::from_utf8(answer.strip_suffix(&[0]).unwrap_or(&answer).to_vec());
    match password {
        Ok(password) if secret.is_password(&user.username, &password) => {
            Ok(Credentials::Secret(Secret::Plain(password)))
        }
        _ => Err(refused(&user.username)),
    }
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
