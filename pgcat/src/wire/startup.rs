//! The first packet of a connection: startup, SSL and GSS requests, cancel requests.

use super::backend;
use super::message::{build, put_cstr, take_cstr};

const CANCEL_REQUEST: u32 = 80877102;
const SSL_REQUEST: u32 = 80877103;
const GSSENC_REQUEST: u32 = 80877104;
const PROTOCOL_3_0: u32 = 3 << 16;

/// PostgreSQL's own limit for a startup packet.
pub const MAX_STARTUP: usize = 10_000;

/// A first packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    Cancel { pid: u32, key: Vec<u8> },
    GssEncRequest,
    SslRequest,
    Startup(Startup),
}

/// A StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Startup {
    pub minor_version: u16,
    /// In the order of the packet; later values of a name win, as in PostgreSQL.
    pub parameters: Vec<(String, String)>,
    /// Names of protocol options (`_pq_.…`), none of which is supported.
    pub protocol_options: Vec<String>,
}

/// Why a first packet is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadStartup {
    #[error("invalid length of startup packet")]
    Length,
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    #[error("unsupported frontend protocol {}.{}: server supports 3.0 to 3.0", .0 >> 16, .0 & 0xffff)]
    Protocol(u32),
}

impl FirstPacket {
    /// Checks the length field, which counts itself; returns how many bytes follow it.
    ///
    /// # Errors
    /// [`BadStartup::Length`] before anything is allocated for it.
    pub fn body_length(field: [u8; 4]) -> Result<usize, BadStartup> {
        let length = u32::from_be_bytes(field) as usize;
        if (8..=MAX_STARTUP).contains(&length) {
            Ok(length - 4)
        } else {
            Err(BadStartup::Length)
        }
    }

    /// Reads the packet after its length field.
    ///
    /// # Errors
    /// See [`BadStartup`].
    pub fn read(body: &[u8]) -> Result<Self, BadStartup> {
        let (code, rest) = body.split_first_chunk::<4>().ok_or(BadStartup::Length)?;
        match u32::from_be_bytes(*code) {
            SSL_REQUEST => Ok(Self::SslRequest),
            GSSENC_REQUEST => Ok(Self::GssEncRequest),
            CANCEL_REQUEST => {
                let (pid, key) = rest.split_first_chunk::<4>().ok_or(BadStartup::Length)?;
                Ok(Self::Cancel {
                    pid: u32::from_be_bytes(*pid),
                    key: key.to_vec(),
                })
            }
            version if version >> 16 == 3 => Startup::read(version, rest).map(Self::Startup),
            version => Err(BadStartup::Protocol(version)),
        }
    }
}

impl Startup {
    fn read(version: u32, mut rest: &[u8]) -> Result<Self, BadStartup> {
        let mut startup = Self {
            minor_version: (version & 0xffff) as u16,
            ..Self::default()
        };
        loop {
            let (name, tail) = take_cstr(rest).ok_or(BadStartup::Layout)?;
            if name.is_empty() {
                return if tail.is_empty() {
                    Ok(startup)
                } else {
                    Err(BadStartup::Layout)
                };
            }
            let (value, tail) = take_cstr(tail).ok_or(BadStartup::Layout)?;
            rest = tail;
            let name = String::from_utf8_lossy(name).into_owned();
            if name.starts_with("_pq_.") {
                startup.protocol_options.push(name);
            } else {
                startup
                    .parameters
                    .push((name, String::from_utf8_lossy(value).into_owned()));
            }
        }
    }

    /// The last value given for a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether the client must be told, by NegotiateProtocolVersion, that it gets plain 3.0.
    pub fn needs_negotiation(&self) -> bool {
        self.minor_version > 0 || !self.protocol_options.is_empty()
    }

    /// Appends the NegotiateProtocolVersion that offers 3.0 and lists the unknown options.
    pub fn negotiate(&self, out: &mut Vec<u8>) {
        build(out, backend::NEGOTIATE_PROTOCOL_VERSION, |out| {
            out.extend_from_slice(&PROTOCOL_3_0.to_be_bytes());
            out.extend_from_slice(&(self.protocol_options.len() as u32).to_be_bytes());
            for option in &self.protocol_options {
                put_cstr(out, option.as_bytes());
            }
        });
    }
}

/// The StartupMessage the pooler itself sends to a server; `more` parameters follow user and database.
pub fn startup_message(user: &str, database: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&PROTOCOL_3_0.to_be_bytes());
    let who = [("user", user), ("database", database)];
    for (name, value) in who.iter().chain(more) {
        put_cstr(&mut out, name.as_bytes());
        put_cstr(&mut out, value.as_bytes());
    }
    out.push(0);
    let length = (out.len() as u32).to_be_bytes();
    out[..4].copy_from_slice(&length);
    out
}

/// The SSLRequest.
pub fn ssl_request() -> [u8; 8] {
    let mut out = [0, 0, 0, 8, 0, 0, 0, 0];
    out[4..].copy_from_slice(&SSL_REQUEST.to_be_bytes());
    out
}

/// The CancelRequest for a server's process.
pub fn cancel_request(pid: u32, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(12 + key.len());
    out.extend_from_slice(&((12 + key.len()) as u32).to_be_bytes());
    out.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// Settings in the startup parameter `options`, as PostgreSQL's `-c name=value`, `-cname=value` and
/// `--name=value`, split at white space with backslash escapes. `None` if something else is in it.
pub fn parse_options(options: &str) -> Option<Vec<(String, String)>> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);

    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next()?
        } else {
            word.strip_prefix("--")
                .or_else(|| word.strip_prefix("-c"))?
                .to_owned()
        };
        let (name, value) = setting.split_once('=')?;
        // PostgreSQL's command line takes dashes for underscores in the name.
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_as_postgresql_does() {
        assert_eq!(
            parse_options(r"-c a=b --c-d=e  -cx=y\ z+"),
            Some(vec![
                ("a".into(), "b".into()),
                ("c_d".into(), "e".into()),
                ("x".into(), "y z+".into())
            ])
        );
        assert_eq!(parse_options("-d 3"), None);
    }

    #[test]
    fn an_empty_value_is_a_value() {
        let packet = b"\0\x03\0\0user\0u\0application_name\0\0\0";
        let FirstPacket::Startup(startup) = FirstPacket::read(packet).unwrap() else {
            panic!()
        };
        assert_eq!(startup.parameter("application_name"), Some(""));
    }

    #[test]
    fn a_packet_without_terminator_is_refused() {
        assert_eq!(
            FirstPacket::read(b"\0\x03\0\0user\0u\0"),
            Err(BadStartup::Layout)
        );
        assert_eq!(
            FirstPacket::body_length([0x7f, 255, 255, 255]),
            Err(BadStartup::Length)
        );
    }
}
