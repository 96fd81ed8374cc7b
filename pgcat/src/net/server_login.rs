//! Logging in to a server: startup and authentication, the client's side.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::server::{Server, ServerKey};
use crate::error::Error;
use crate::pool::shared::Credentials;
use crate::session::auth::scram_client::{AwaitingSignature, Proof, ScramClient, ServerBinding};
use crate::session::auth::{AuthError, Secret, md5};
use crate::tls;
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{build, put_cstr};
use crate::wire::{backend, frontend, startup};

/// How far a SCRAM exchange has come.
#[derive(Debug)]
enum Scram<'a> {
    None,
    First(ScramClient<'a>),
    Final(AwaitingSignature),
}

impl Server {
    /// Logs in on a connection just made.
    ///
    /// # Errors
    /// As [`Server::connect`].
    pub(super) async fn log_in(&mut self, parameters: &[(&str, &str)]) -> Result<(), Error> {
        let pool = self.slot.pool().clone();
        let user = &pool.user.server_username;
        let credentials = pool.credentials();
        self.out.tail().extend(startup::startup_message(
            user,
            &self.slot.address().database,
            parameters,
        ));
        self.flush().await?;
        let mut scram = Scram::None;
        loop {
            let (tag, body) = self.read_message().await?;
            match tag {
                backend::AUTHENTICATION => {
                    self.authenticate(&body, user, credentials.as_ref(), &mut scram)?;
                    self.flush().await?;
                }
                backend::BACKEND_KEY_DATA => {
                    let (pid, secret) = body
                        .split_first_chunk::<4>()
                        .ok_or(Error::ServerProtocol("short BackendKeyData"))?;
                    self.key = Arc::new(ServerKey {
                        address: self.key.address.clone(),
                        peer: self.key.peer,
                        pid: u32::from_be_bytes(*pid),
                        secret: secret.to_vec(),
                        encrypted: self.key.encrypted,
                        cancels: AtomicUsize::new(0),
                    });
                }
                backend::PARAMETER_STATUS => self.note_parameter(&body),
                backend::ERROR_RESPONSE => {
                    return Err(Error::ServerRefused(Box::new(ErrorFields::read(&body))));
                }
                backend::READY_FOR_QUERY => return Ok(()),
                // A NOTICE of a login event trigger concerns no client of ours.
                _ => (),
            }
        }
    }

    /// Answers an authentication request.
    fn authenticate<'a>(
        &mut self,
        body: &[u8],
        user: &str,
        credentials: Option<&'a Credentials>,
        scram: &mut Scram<'a>,
    ) -> Result<(), Error> {
        let (code, data) = body
            .split_first_chunk::<4>()
            .ok_or(Error::ServerProtocol("short authentication request"))?;
        let code = i32::from_be_bytes(*code);
        if code == 0 {
            return Ok(());
        }
        let without = |what: &str| {
            Error::ServerRefused(Box::new(ErrorFields::fatal(
                "28P01",
                format!("the server asks for {what}, which the pooler does not have for this user"),
            )))
        };
        let end_point = self.end_point();
        let out = self.out.tail();
        let invalid = |error: AuthError| {
            log::warn!("SCRAM exchange with the server: {error}");
            Error::ServerProtocol("SCRAM exchange failed")
        };
        let unexpected = || Error::ServerProtocol("unexpected SASL message");
        match code {
            3 => {
                let Some(Credentials::Secret(Secret::Plain(password))) = credentials else {
                    return Err(without("a password"));
                };
                build(out, frontend::PASSWORD, |out| {
                    put_cstr(out, password.as_bytes())
                });
            }
            5 => {
                let salt = data
                    .first_chunk::<4>()
                    .ok_or(Error::ServerProtocol("short md5 salt"))?;
                let answer = match credentials {
                    Some(Credentials::Secret(secret)) => md5::response(secret, user, *salt),
                    Some(Credentials::Keys(_)) | None => None,
                };
                let answer = answer.ok_or_else(|| without("a password or an md5 hash"))?;
                build(out, frontend::PASSWORD, |out| {
                    put_cstr(out, answer.as_bytes())
                });
            }
            10 => {
                let binding = ServerBinding::choose(data, end_point).map_err(invalid)?;
                let mechanism = binding.mechanism();
                let proof = match credentials {
                    Some(Credentials::Secret(Secret::Plain(password))) => Proof::Password(password),
                    Some(Credentials::Keys(keys)) => Proof::Keys(keys),
                    _ => return Err(without("a password or SCRAM keys")),
                };
                let exchange = ScramClient::new(proof, binding);
                let first = exchange.first();
                build(out, frontend::PASSWORD, |out| {
                    put_cstr(out, mechanism.as_bytes());
                    out.extend_from_slice(&(first.len() as u32).to_be_bytes());
                    out.extend_from_slice(first.as_bytes());
                });
                *scram = Scram::First(exchange);
            }
            11 => {
                let Scram::First(exchange) = mem::replace(scram, Scram::None) else {
                    return Err(unexpected());
                };
                let (proof, awaiting) = exchange.proof(data).map_err(invalid)?;
                build(out, frontend::PASSWORD, |out| {
                    out.extend_from_slice(proof.as_bytes())
                });
                *scram = Scram::Final(awaiting);
            }
            12 => {
                let Scram::Final(awaiting) = mem::replace(scram, Scram::None) else {
                    return Err(unexpected());
                };
                awaiting.finish(data).map_err(invalid)?;
            }
            _ => return Err(Error::ServerProtocol("unsupported authentication method")),
        }
        Ok(())
    }

    /// The channel binding of the connection.
    fn end_point(&self) -> Option<Vec<u8>> {
        tls::end_point(self.io.tls()?.peer_certificate()?)
    }
}
