//! How a client proves who it is.

use super::client::Newcomer;
use crate::config::model::{AuthType, User};
use crate::error::Error;
use crate::wire::error_fields::ErrorFields;

/// Asks the client for its proof, as the pool's user is configured.
///
/// # Errors
/// [`Error::Refused`] with 28P01, worded alike whatever was wrong.
pub(super) async fn prove(client: &mut Newcomer, user: &User) -> Result<(), Error> {
    let _ = client;
    match user.auth_type {
        AuthType::Trust => Ok(()),
        AuthType::Md5 | AuthType::ScramSha256 => Err(refused(user)),
    }
}

fn refused(user: &User) -> Error {
    Error::Refused(Box::new(ErrorFields::fatal(
        "28P01",
        format!("password authentication failed for user \"{}\"", user.username),
    )))
}
