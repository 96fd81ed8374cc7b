//! Rules for who may log in from where, and how: a file in the format of `pg_hba.conf`.

use std::net::IpAddr;

use regex::Regex;

use crate::config::model::AuthType;

/// The rules, of which the first that fits a connection counts.
#[derive(Debug, Default)]
pub struct Hba(Vec<Rule>);

/// What is known of a connection when the rules are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Visitor<'a> {
    /// `None` on a Unix socket.
    pub address: Option<IpAddr>,
    pub encrypted: bool,
    pub database: &'a str,
    pub user: &'a str,
}

/// What a rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// `None`: whoever it is, not from there.
    pub method: Option<AuthType>,
    pub certificate: Certificate,
}

/// What a client's certificate has to be for, beside what the method asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certificate {
    NotAsked,
    /// `clientcert=verify-ca`.
    Any,
    /// `clientcert=verify-full`: for the user.
    User,
}

/// A line that is no rule, or one that is not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct BadRule {
    pub line: usize,
    pub message: String,
}

#[derive(Debug)]
struct Rule {
    kind: Kind,
    databases: Vec<Name>,
    users: Vec<Name>,
    /// `None`: every address.
    network: Option<Network>,
    demand: Demand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
    /// Encryption by GSSAPI, which there is none of.
    HostGss,
}

#[derive(Debug)]
enum Name {
    All,
    Exactly(String),
    Matching(Regex),
    /// Of replication connections, which the pooler does not take.
    Nothing,
    SameUser,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u8,
}

/// A word of a line; in quotes it stands for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    text: String,
    quoted: bool,
}

impl Hba {
    /// Reads the rules.
    ///
    /// # Errors
    /// The first line that is wrong. None is left out, because the next rule might let in whom this one
    /// was meant to keep out.
    pub fn parse(text: &str) -> Result<Self, BadRule> {
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let bad = |message: String| BadRule {
                line: index + 1,
                message,
            };
            let fields = fields(line).map_err(bad)?;
            if !fields.is_empty() {
                rules.push(Rule::read(&fields).map_err(bad)?);
            }
        }
        Ok(Self(rules))
    }

    /// What the first rule that fits asks for; `None` if none does.
    pub fn demand(&self, visitor: Visitor<'_>) -> Option<Demand> {
        let rule = self.0.iter().find(|rule| rule.fits(visitor))?;
        Some(rule.demand)
    }
}

impl Rule {
    fn read(fields: &[Vec<Word>]) -> Result<Self, String> {
        let mut fields = fields.iter();
        let mut field = |what: &str| fields.next().ok_or(format!("{what} is missing"));
        let kind = match single(field("the connection type")?)? {
            "local" => Kind::Local,
            "host" | "hostnogssenc" => Kind::Host,
            "hostssl" => Kind::HostSsl,
            "hostnossl" => Kind::HostNoSsl,
            "hostgssenc" => Kind::HostGss,
            other => return Err(format!("invalid connection type \"{other}\"")),
        };
        let names = |words: &[Word], read: fn(&Word) -> Result<Name, String>| {
            words.iter().map(read).collect::<Result<Vec<_>, _>>()
        };
        let databases = names(field("the database")?, Name::database)?;
        let users = names(field("the user")?, Name::user)?;
        let network = if kind == Kind::Local {
            None
        } else {
            match single(field("the address")?)? {
                "all" => None,
                text if text.contains('/') => Some(Network::parse(text)?),
                text => Some(Network::masked(text, single(field("the network mask")?)?)?),
            }
        };
        let method = match single(field("the method")?)? {
            "trust" => Some(AuthType::Trust),
            "reject" => None,
            "md5" => Some(AuthType::Md5),
            "scram-sha-256" => Some(AuthType::ScramSha256),
            "password" => Some(AuthType::Password),
            "cert" => Some(AuthType::Cert),
            other => {
                return Err(format!(
                    "authentication method \"{other}\" is not supported"
                ));
            }
        };
        let mut certificate = Certificate::NotAsked;
        for option in fields {
            certificate = match single(option)? {
                "clientcert=verify-ca" => Certificate::Any,
                "clientcert=verify-full" => Certificate::User,
                other => return Err(format!("option \"{other}\" is not supported")),
            };
        }
        let asks = certificate != Certificate::NotAsked || method == Some(AuthType::Cert);
        if asks && kind != Kind::HostSsl {
            return Err("clients have certificates on hostssl only".to_owned());
        }
        Ok(Self {
            kind,
            databases,
            users,
            network,
            demand: Demand {
                method,
                certificate,
            },
        })
    }

    fn fits(&self, visitor: Visitor<'_>) -> bool {
        let kind = match (self.kind, visitor.address) {
            (Kind::Local, address) => address.is_none(),
            (Kind::HostGss, _) | (_, None) => false,
            (Kind::Host, _) => true,
            (Kind::HostSsl, _) => visitor.encrypted,
            (Kind::HostNoSsl, _) => !visitor.encrypted,
        };
        let address = self.network.is_none_or(|network| {
            visitor
                .address
                .is_some_and(|address| network.contains(address))
        });
        let is_in = |names: &[Name], name| names.iter().any(|n| n.is(name, visitor.user));
        kind && address
            && is_in(&self.databases, visitor.database)
            && is_in(&self.users, visitor.user)
    }
}

impl Name {
    fn database(word: &Word) -> Result<Self, String> {
        match word.text.as_str() {
            "sameuser" if !word.quoted => Ok(Self::SameUser),
            "replication" if !word.quoted => Ok(Self::Nothing),
            "samerole" | "samegroup" if !word.quoted => {
                Err(format!("\"{}\": the pooler does not know roles", word.text))
            }
            _ => Self::user(word),
        }
    }

    fn user(word: &Word) -> Result<Self, String> {
        let text = word.text.as_str();
        if word.quoted {
            return Ok(Self::Exactly(text.to_owned()));
        }
        match (text, text.as_bytes().first()) {
            ("all", _) => Ok(Self::All),
            (_, Some(b'/')) => Regex::new(&text[1..])
                .map(Self::Matching)
                .map_err(|error| format!("invalid regular expression \"{text}\": {error}")),
            (_, Some(b'+')) => Err(format!("\"{text}\": the pooler does not know roles")),
            (_, Some(b'@')) => Err(format!("\"{text}\": files of names are not supported")),
            _ => Ok(Self::Exactly(text.to_owned())),
        }
    }

    fn is(&self, name: &str, user: &str) -> bool {
        match self {
            Self::All => true,
            Self::Exactly(text) => text == name,
            Self::Matching(pattern) => pattern.is_match(name),
            Self::Nothing => false,
            Self::SameUser => name == user,
        }
    }
}

impl Network {
    fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("invalid address \"{text}\"");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest {
            return Err(bad());
        }
        Ok(Self { address, prefix })
    }

    fn masked(address: &str, mask: &str) -> Result<Self, String> {
        let bad = || format!("invalid address \"{address}\" or network mask \"{mask}\"");
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let mask: IpAddr = mask.parse().map_err(|_| bad())?;
        let (ones, zeros, width) = match mask {
            IpAddr::V4(mask) => {
                let bits = u32::from(mask);
                (bits.leading_ones(), bits.trailing_zeros(), 32)
            }
            IpAddr::V6(mask) => {
                let bits = u128::from(mask);
                (bits.leading_ones(), bits.trailing_zeros(), 128)
            }
        };
        if address.is_ipv4() != mask.is_ipv4() || ones + zeros != width {
            return Err(bad());
        }
        let prefix = u8::try_from(ones).map_err(|_| bad())?;
        Ok(Self { address, prefix })
    }

    fn contains(self, address: IpAddr) -> bool {
        // A client by IPv4 on a socket for both is shown as ::ffff:a.b.c.d.
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let differs = u32::from(ours) ^ u32::from(theirs);
                differs.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differs = u128::from(ours) ^ u128::from(theirs);
                differs.leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

fn single(words: &[Word]) -> Result<&str, String> {
    match words {
        [word] => Ok(&word.text),
        _ => Err("a list where one word is expected".to_owned()),
    }
}

/// The fields of a line, each a list of words between commas.
fn fields(line: &str) -> Result<Vec<Vec<Word>>, String> {
    let mut fields: Vec<Vec<Word>> = Vec::new();
    let mut word: Option<Word> = None;
    // A comma, before or after blanks, goes on with the field.
    let mut more = false;
    let mut chars = line.chars();
    let finish = |word: &mut Option<Word>, more: &mut bool, fields: &mut Vec<Vec<Word>>| {
        if let Some(word) = word.take() {
            match fields.last_mut() {
                Some(field) if *more => field.push(word),
                _ => fields.push(vec![word]),
            }
            *more = false;
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '#' => break,
            ',' => {
                finish(&mut word, &mut more, &mut fields);
                more = true;
            }
            c if c.is_whitespace() => finish(&mut word, &mut more, &mut fields),
            '"' => {
                let word = word.get_or_insert(Word {
                    text: String::new(),
                    quoted: false,
                });
                word.quoted = true;
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some(c) => word.text.push(c),
                        None => return Err("a quote is not closed".to_owned()),
                    }
                }
            }
            c => word
                .get_or_insert(Word {
                    text: String::new(),
                    quoted: false,
                })
                .text
                .push(c),
        }
    }
    finish(&mut word, &mut more, &mut fields);
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(rules: &str, visitor: Visitor<'_>) -> Option<Option<AuthType>> {
        let rules = Hba::parse(rules).expect("rules");
        rules.demand(visitor).map(|demand| demand.method)
    }

    fn tcp(address: &str) -> Visitor<'static> {
        Visitor {
            address: Some(address.parse().expect("an address")),
            encrypted: false,
            database: "db",
            user: "joe",
        }
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let rules = "# comment\n\
            local all all trust\n\
            hostssl all all 0.0.0.0/0 scram-sha-256 # TLS\n\
            host db joe 10.1.0.0/16 reject\n\
            host db, other \"joe\",ann 10.0.0.0 255.0.0.0 md5\n\
            hostnossl all all ::/0 password\n";
        assert_eq!(method(rules, tcp("10.1.2.3")), Some(None));
        assert_eq!(method(rules, tcp("10.2.2.3")), Some(Some(AuthType::Md5)));
        assert_eq!(
            method(rules, tcp("::ffff:10.2.2.3")),
            Some(Some(AuthType::Md5))
        );
        assert_eq!(method(rules, tcp("11.0.0.1")), None);
        assert_eq!(
            method(rules, tcp("fe80::1")),
            Some(Some(AuthType::Password))
        );
        let encrypted = Visitor {
            encrypted: true,
            ..tcp("10.1.2.3")
        };
        assert_eq!(method(rules, encrypted), Some(Some(AuthType::ScramSha256)));
        let local = Visitor {
            address: None,
            ..tcp("10.1.2.3")
        };
        assert_eq!(method(rules, local), Some(Some(AuthType::Trust)));
        let ann = Visitor {
            user: "ann",
            database: "other",
            ..tcp("10.1.2.3")
        };
        assert_eq!(method(rules, ann), Some(Some(AuthType::Md5)));
    }

    #[test]
    fn names() {
        let fits = |names: &str, user, database| {
            let visitor = Visitor {
                user,
                database,
                ..tcp("1.2.3.4")
            };
            method(&format!("host {names} all trust"), visitor).is_some()
        };
        assert!(fits("sameuser all", "joe", "joe"));
        assert!(!fits("sameuser all", "joe", "db"));
        assert!(!fits("\"sameuser\" all", "joe", "joe"));
        assert!(!fits("all \"all\"", "joe", "db"));
        assert!(!fits("replication all", "joe", "replication"));
        assert!(fits("/^d[ab]$ all", "joe", "db"));
        assert!(!fits("/^d[ab]$ all", "joe", "dbx"));
        assert!(fits("\"two words\" all", "joe", "two words"));
    }

    #[test]
    fn a_bad_line_is_told() {
        for (line, reason) in [
            ("hosts all all all trust", "invalid connection type"),
            ("host all all", "the address is missing"),
            ("host all all 1.2.3.4 trust", "invalid address"),
            ("host all all 1.2.3.4/33 trust", "invalid address"),
            ("host all all 1.2.3.4 255.0.255.0 trust", "network mask"),
            (
                "host all all example.com 255.0.0.0 trust",
                "invalid address",
            ),
            ("host all all all", "the method is missing"),
            ("host all all all gss", "not supported"),
            ("host all +admins all trust", "does not know roles"),
            ("host samerole all all trust", "does not know roles"),
            ("host @file all all trust", "files of names"),
            ("host all all all cert", "hostssl only"),
            ("hostssl all all all cert map=x", "not supported"),
            ("host all \"joe all trust", "not closed"),
            ("host all /( all trust", "regular expression"),
        ] {
            let error = Hba::parse(&format!("\n{line}")).expect_err(line);
            assert_eq!(error.line, 2);
            assert!(error.message.contains(reason), "{line}: {error}");
        }
    }
}
