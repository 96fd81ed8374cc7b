//! The statements by which a client says where its next statements go, and asks where they would.
//!
//! They are recognised by their tokens, so white space, comments, case and a semicolon are as free as
//! in SQL, and values may be quoted or not.

use super::lexer::{self, Kind, Token};

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    SetShard(ShardArgument),
    /// Out of range if it is not an i64.
    SetShardingKey(Result<i64, String>),
    SetServerRole(RoleArgument),
    /// `None`: the pool's default.
    SetPrimaryReads(Option<bool>),
    ShowShard,
    ShowServerRole,
    ShowPrimaryReads,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardArgument {
    Any,
    /// Out of range if it is not a usize.
    Number(Result<usize, String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleArgument {
    Any,
    Auto,
    Default,
    Primary,
    Replica,
}

/// Whether a text can begin with a command: a test of a few bytes, for every statement of every client.
pub fn may_be_command(text: &[u8]) -> bool {
    let start = match text.first() {
        Some(b's' | b'S') => 0,
        Some(byte) if byte.is_ascii_alphabetic() => return false,
        _ => lexer::skip_blank(text, 0),
    };
    let Some([s, second, third, ..]) = text.get(start..) else {
        return false;
    };
    s.eq_ignore_ascii_case(&b's')
        && matches!(
            (second.to_ascii_lowercase(), third.to_ascii_lowercase()),
            (b'e', b't') | (b'h', b'o')
        )
}

impl Command {
    /// The command that a statement is.
    pub fn parse(statement: &str) -> Option<Self> {
        if !may_be_command(statement.as_bytes()) {
            return None;
        }
        let mut words = Words {
            text: statement,
            tokens: lexer::tokens(statement).collect(),
            at: 0,
        };
        let command = words.command()?;
        words.take_end().then_some(command)
    }

    /// The column of a SHOW's result.
    pub fn column(&self) -> Option<&'static str> {
        match self {
            Self::ShowShard => Some("shard"),
            Self::ShowServerRole => Some("server role"),
            Self::ShowPrimaryReads => Some("primary reads"),
            _ => None,
        }
    }

    pub fn tag(&self) -> &'static str {
        match self {
            Self::SetShard(_) => "SET SHARD",
            Self::SetShardingKey(_) => "SET SHARDING KEY",
            Self::SetServerRole(_) => "SET SERVER ROLE",
            Self::SetPrimaryReads(_) => "SET PRIMARY READS",
            Self::ShowShard | Self::ShowServerRole | Self::ShowPrimaryReads => "SELECT 1",
        }
    }
}

struct Words<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
}

impl<'a> Words<'a> {
    fn command(&mut self) -> Option<Command> {
        if self.take("show") {
            return if self.take("shard") {
                Some(Command::ShowShard)
            } else if self.take("server") {
                self.take("role").then_some(Command::ShowServerRole)
            } else {
                (self.take("primary") && self.take("reads")).then_some(Command::ShowPrimaryReads)
            };
        }
        if !self.take("set") {
            return None;
        }
        if self.take("shard") {
            let value = self.value()?;
            if value.eq_ignore_ascii_case("any") {
                return Some(Command::SetShard(ShardArgument::Any));
            }
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let number = value.parse().map_err(|_| value.clone());
            return digits.then_some(Command::SetShard(ShardArgument::Number(number)));
        }
        if self.take("sharding") {
            self.take("key").then_some(())?;
            let value = self.value()?;
            let digits = value.strip_prefix('-').unwrap_or(&value);
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let key = value.parse().map_err(|_| value.clone());
            return is_number.then_some(Command::SetShardingKey(key));
        }
        if self.take("server") {
            self.take("role").then_some(())?;
            let role = match self.value()?.to_ascii_lowercase().as_str() {
                "any" => RoleArgument::Any,
                "auto" => RoleArgument::Auto,
                "default" => RoleArgument::Default,
                "primary" => RoleArgument::Primary,
                "replica" => RoleArgument::Replica,
                _ => return None,
            };
            return Some(Command::SetServerRole(role));
        }
        (self.take("primary") && self.take("reads")).then_some(())?;
        match self.value()?.to_ascii_lowercase().as_str() {
            "on" => Some(Command::SetPrimaryReads(Some(true))),
            "off" => Some(Command::SetPrimaryReads(Some(false))),
            "default" => Some(Command::SetPrimaryReads(None)),
            _ => None,
        }
    }

    fn take(&mut self, word: &str) -> bool {
        let taken = self
            .tokens
            .get(self.at)
            .is_some_and(|token| token.is_word(self.text, word));
        self.at += usize::from(taken);
        taken
    }

    /// What follows `TO` or `=`, without quotes.
    fn value(&mut self) -> Option<String> {
        let equals = self.tokens.get(self.at).map(|token| token.kind) == Some(Kind::Symbol(b'='));
        if equals {
            self.at += 1;
        } else if !self.take("to") {
            return None;
        }
        let mut token = self.tokens.get(self.at)?;
        let mut sign = "";
        if token.kind == Kind::Symbol(b'-') {
            sign = "-";
            self.at += 1;
            token = self.tokens.get(self.at)?;
        }
        self.at += 1;
        let text = &self.text[token.span.clone()];
        match token.kind {
            Kind::Word | Kind::Number => Some(format!("{sign}{text}")),
            Kind::String if sign.is_empty() => Some(text.trim_matches('\'').to_owned()),
            _ => None,
        }
    }

    fn take_end(&self) -> bool {
        let rest = self.tokens.get(self.at..).unwrap_or_default();
        rest.iter().all(|token| token.kind == Kind::Symbol(b';'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_as_freely_as_sql() {
        for text in [
            "SET SHARD TO '1'",
            "set shard to 1;",
            "  \n\tSet /* a */ Shard\nTo -- b\n 1 ; ",
            "/* first */ SET SHARD = 1",
        ] {
            let one = Command::SetShard(ShardArgument::Number(Ok(1)));
            assert_eq!(Command::parse(text), Some(one), "{text}");
        }
        let cases = [
            ("SET SHARD TO 'any'", Command::SetShard(ShardArgument::Any)),
            (
                "SET SHARDING KEY TO '1234'",
                Command::SetShardingKey(Ok(1234)),
            ),
            ("SET SHARDING KEY TO -5", Command::SetShardingKey(Ok(-5))),
            (
                "SET SHARDING KEY TO 99999999999999999999",
                Command::SetShardingKey(Err("99999999999999999999".to_owned())),
            ),
            (
                "SET SERVER ROLE TO 'Auto'",
                Command::SetServerRole(RoleArgument::Auto),
            ),
            (
                "SET PRIMARY READS TO 'OFF'",
                Command::SetPrimaryReads(Some(false)),
            ),
            (
                "SET PRIMARY READS TO default",
                Command::SetPrimaryReads(None),
            ),
            ("SHOW SHARD", Command::ShowShard),
            ("show server role;", Command::ShowServerRole),
            ("SHOW PRIMARY READS", Command::ShowPrimaryReads),
        ];
        for (text, command) in cases {
            assert_eq!(Command::parse(text), Some(command), "{text}");
        }
    }

    #[test]
    fn other_statements_are_the_servers() {
        for text in [
            "",
            "SELECT 1",
            "SET search_path TO shard",
            "SET SHARD",
            "SET SHARD TO 'x'",
            "SET SHARD TO 1, 2",
            "SET SERVER ROLE TO 'boss'",
            "SHOW shards",
            "SHOW ALL",
            "SHOW SHARD STATUS",
            "SELECT 'SET SHARD TO 1'",
        ] {
            assert_eq!(Command::parse(text), None, "{text}");
        }
    }
}
