//! Logging in to a server: startup and authentication, the client's side.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use postgres_protocol::authentication::{md5_hash, sasl};

use super::server::{Server, ServerKey};
use crate::error::Error;
use crate::session::auth::scram::check_iterations;
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{build, put_cstr};
use crate::wire::{backend, frontend, startup};

impl Server {
    /// Logs in on a connection just made.
    ///
    /// # Errors
    /// As [`Server::connect`].
    pub(super) async fn log_in(&mut self) -> Result<(), Error> {
        let pool = self.slot.pool().clone();
        let user = &pool.user.server_username;
        let password = pool
            .user
            .server_password
            .as_deref()
            .or(pool.user.password.as_deref());
        self.out.tail().extend(startup::startup_message(
            user,
            &self.slot.address().database,
        ));
        self.flush().await?;
        let mut scram: Option<sasl::ScramSha256> = None;
        loop {
            let (tag, body) = self.read_message().await?;
            match tag {
                backend::AUTHENTICATION => {
                    self.authenticate(&body, user, password, &mut scram)?;
                    self.flush().await?;
                }
                backend::BACKEND_KEY_DATA => {
                    let (pid, secret) = body
                        .split_first_chunk::<4>()
                        .ok_or(Error::ServerProtocol("short BackendKeyData"))?;
                    self.key = Arc::new(ServerKey {
                        address: self.key.address.clone(),
                        pid: u32::from_be_bytes(*pid),
                        secret: secret.to_vec(),
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
    fn authenticate(
        &mut self,
        body: &[u8],
        user: &str,
        password: Option<&str>,
        scram: &mut Option<sasl::ScramSha256>,
    ) -> Result<(), Error> {
        let (code, data) = body
            .split_first_chunk::<4>()
            .ok_or(Error::ServerProtocol("short authentication request"))?;
        let code = i32::from_be_bytes(*code);
        if code == 0 {
            return Ok(());
        }
        let password = || {
            password.ok_or_else(|| {
                Error::ServerRefused(Box::new(ErrorFields::fatal(
                    "28P01",
                    "the server asks for a password and the configuration has none",
                )))
            })
        };
        let out = self.out.tail();
        let invalid = |error: io::Error| {
            log::warn!("SCRAM exchange with the server failed: {error}");
            Error::ServerProtocol("SCRAM exchange failed")
        };
        match code {
            3 => {
                let password = password()?;
                build(out, frontend::PASSWORD, |out| {
                    put_cstr(out, password.as_bytes())
                });
            }
            5 => {
                let salt = data
                    .first_chunk::<4>()
                    .ok_or(Error::ServerProtocol("short md5 salt"))?;
                let hash = md5_hash(user.as_bytes(), password()?.as_bytes(), *salt);
                build(out, frontend::PASSWORD, |out| {
                    put_cstr(out, hash.as_bytes())
                });
            }
            10 => {
                // The list may begin with SCRAM-SHA-256-PLUS; the plain one is what is possible here.
                if !data.split(|b| *b == 0).any(|name| name == b"SCRAM-SHA-256") {
                    return Err(Error::ServerProtocol("no supported SASL mechanism"));
                }
                let exchange = sasl::ScramSha256::new(
                    password()?.as_bytes(),
                    sasl::ChannelBinding::unsupported(),
                );
                let first = exchange.message();
                build(out, frontend::PASSWORD, |out| {
                    put_cstr(out, b"SCRAM-SHA-256");
                    out.extend_from_slice(&(first.len() as u32).to_be_bytes());
                    out.extend_from_slice(first);
                });
                *scram = Some(exchange);
            }
            11 => {
                let exchange = scram
                    .as_mut()
                    .ok_or(Error::ServerProtocol("unexpected SASL message"))?;
                check_iterations(data).map_err(|error| {
                    log::warn!("SCRAM exchange with the server: {error}");
                    Error::ServerProtocol("SCRAM exchange refused")
                })?;
                exchange.update(data).map_err(invalid)?;
                build(out, frontend::PASSWORD, |out| {
                    out.extend_from_slice(exchange.message())
                });
            }
            12 => {
                let exchange = scram
                    .as_mut()
                    .ok_or(Error::ServerProtocol("unexpected SASL message"))?;
                exchange.finish(data).map_err(invalid)?;
            }
            _ => return Err(Error::ServerProtocol("unsupported authentication method")),
        }
        Ok(())
    }
}
