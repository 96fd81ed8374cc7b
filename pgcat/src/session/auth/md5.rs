//! The md5 exchange: the client sends `md5(md5(password ‖ user) ‖ salt)` in hexadecimal.

use md5::{Digest, Md5};

use super::{Secret, constant_time_eq};

/// The stored form: `md5` and the md5 sum of password and user name.
pub fn hash(password: &str, user: &str) -> String {
    format!("md5{}", hex_sum(password.as_bytes(), user.as_bytes()))
}

/// Whether a stored password is a hash, by PostgreSQL's rule: lower-case hexadecimal only.
pub fn is_hash(password: &str) -> bool {
    password.len() == 35
        && password.strip_prefix("md5").is_some_and(|digits| {
            digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
}

/// The answer to an AuthenticationMD5Password request with this salt, for a plain password or an md5
/// hash. `None` for a SCRAM secret, which cannot serve.
pub fn response(secret: &Secret, user: &str, salt: [u8; 4]) -> Option<String> {
    let stored = match secret {
        Secret::Plain(password) => hash(password, user),
        Secret::Md5(hash) => hash.clone(),
        Secret::Scram(_) => return None,
    };
    Some(format!("md5{}", hex_sum(&stored.as_bytes()[3..], &salt)))
}

/// Whether a client's answer (without the message's closing NUL) is the right one.
pub fn verify(secret: &Secret, user: &str, salt: [u8; 4], answer: &[u8]) -> bool {
    response(secret, user, salt).is_some_and(|right| constant_time_eq(right.as_bytes(), answer))
}

fn hex_sum(first: &[u8], second: &[u8]) -> String {
    let mut md5 = Md5::new();
    md5.update(first);
    md5.update(second);
    md5.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: [u8; 4] = [0x2a, 0x3d, 0x8f, 0xe0];

    #[test]
    fn the_hash_is_the_one_in_pg_authid() {
        // SELECT 'md5' || md5('password' || 'md5_user')
        assert_eq!(
            hash("password", "md5_user"),
            "md57cd2b9a92689eab2e58caf2da80afa15"
        );
        let secret = Secret::Plain("password".to_owned());
        let right = "md562af4dd09bbb41884907a838a3233294";
        assert_eq!(response(&secret, "md5_user", SALT).as_deref(), Some(right));
    }

    #[test]
    fn the_answer_is_the_one_of_the_reference_client() {
        let secret = Secret::Plain("password".to_owned());
        let right = postgres_protocol::authentication::md5_hash(b"md5_user", b"password", SALT);
        assert_eq!(response(&secret, "md5_user", SALT), Some(right.clone()));
        assert!(verify(&secret, "md5_user", SALT, right.as_bytes()));
        let stored = Secret::parse(&hash("password", "md5_user"));
        assert!(matches!(stored, Secret::Md5(_)));
        assert!(verify(&stored, "md5_user", SALT, right.as_bytes()));
    }

    #[test]
    fn anything_else_is_refused() {
        let secret = Secret::Plain("password".to_owned());
        let right = response(&secret, "md5_user", SALT).expect("plain passwords can answer");
        assert!(!verify(&secret, "other_user", SALT, right.as_bytes()));
        assert!(!verify(&secret, "md5_user", [0; 4], right.as_bytes()));
        assert!(!verify(
            &Secret::Plain("Password".to_owned()),
            "md5_user",
            SALT,
            right.as_bytes()
        ));
        assert!(!verify(&secret, "md5_user", SALT, &right.as_bytes()[..34]));
        assert!(!verify(&secret, "md5_user", SALT, b""));
        // The stored hash is not an answer.
        assert!(!verify(
            &secret,
            "md5_user",
            SALT,
            hash("password", "md5_user").as_bytes()
        ));
        let scram = Secret::Scram(crate::session::auth::ScramSecret::from_password("password"));
        assert!(!verify(&scram, "md5_user", SALT, right.as_bytes()));
    }
}
