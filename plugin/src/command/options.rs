//! The options of `WITH (…)`.

use std::time::Duration;

use pg_query::NodeEnum;
use pg_query::protobuf::DefElem;
use pgcat::plugins::ErrorFields;

use crate::engine::Mode;

/// When a stream table is refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// As soon as a commit is seen.
    Live,
    /// This long after the last refresh began.
    Every(Duration),
    /// Only by `REFRESH STREAM TABLE`.
    Manual,
}

/// The options given; what was not given is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// As the user wrote it; it has been parsed by [`Schedule::parse`].
    pub schedule: Option<String>,
    pub refresh_mode: Option<Mode>,
}

const VALID: &str = "Valid options are: schedule, refresh_mode.";

impl Options {
    pub(super) fn from_list(list: &[pg_query::protobuf::Node]) -> Result<Self, Box<ErrorFields>> {
        let mut options = Self::default();
        for node in list {
            let Some(NodeEnum::DefElem(option)) = &node.node else {
                continue;
            };
            options.set(option)?;
        }
        Ok(options)
    }

    /// The options that are named in a RESET.
    pub(super) fn names(
        list: &[pg_query::protobuf::Node],
    ) -> Result<Vec<&'static str>, Box<ErrorFields>> {
        let options = list.iter().filter_map(|node| match &node.node {
            Some(NodeEnum::DefElem(option)) => Some(option),
            _ => None,
        });
        let known = options.map(|option| match option.defname.as_str() {
            "schedule" => Ok("schedule"),
            "refresh_mode" => Ok("refresh_mode"),
            other => {
                let message = format!("unrecognized parameter \"{other}\"");
                Err(invalid(message).hint(VALID).into())
            }
        });
        known.collect()
    }

    fn set(&mut self, option: &DefElem) -> Result<(), Box<ErrorFields>> {
        if !option.defnamespace.is_empty() {
            let message = format!(
                "unrecognized parameter namespace \"{}\"",
                option.defnamespace
            );
            return Err(invalid(message).into());
        }
        let name = option.defname.as_str();
        let given_twice = match name {
            "schedule" => self.schedule.is_some(),
            "refresh_mode" => self.refresh_mode.is_some(),
            _ => {
                let message = format!("unrecognized parameter \"{name}\"");
                return Err(invalid(message).hint(VALID).into());
            }
        };
        if given_twice {
            return Err(invalid(format!("parameter \"{name}\" specified more than once")).into());
        }
        let value = value(option).ok_or_else(|| {
            Box::new(ErrorFields::error(
                "42601",
                format!("{name} requires a parameter"),
            ))
        })?;
        if name == "schedule" {
            Schedule::parse(&value)?;
            self.schedule = Some(value);
        } else {
            self.refresh_mode = Some(refresh_mode(&value)?);
        }
        Ok(())
    }
}

fn refresh_mode(value: &str) -> Result<Mode, Box<ErrorFields>> {
    match value.to_ascii_lowercase().as_str() {
        "auto" => Ok(Mode::Auto),
        "incremental" => Ok(Mode::Incremental),
        "full" => Ok(Mode::Full),
        _ => Err(invalid(format!(
            "invalid value for parameter \"refresh_mode\": \"{value}\""
        ))
        .hint("Valid values are: auto, incremental, full.")
        .into()),
    }
}

impl Schedule {
    /// Reads `live`, `manual` or a duration such as `5s` or `1h30m`.
    ///
    /// # Errors
    /// 22023 for what is none of these, 0A000 for cron lines.
    pub fn parse(text: &str) -> Result<Self, Box<ErrorFields>> {
        let trimmed = text.trim();
        if trimmed.eq_ignore_ascii_case("live") {
            return Ok(Self::Live);
        }
        if trimmed.eq_ignore_ascii_case("manual") {
            return Ok(Self::Manual);
        }
        if let Some(duration) = duration(trimmed) {
            return Ok(Self::Every(duration));
        }
        if trimmed.starts_with('@') || trimmed.split_whitespace().count() >= 5 {
            return Err(
                ErrorFields::error("0A000", "cron schedules are not supported yet")
                    .hint("Use a duration such as '5m', 'live' or 'manual'.")
                    .into(),
            );
        }
        Err(invalid(format!(
            "invalid value for parameter \"schedule\": \"{text}\""
        ))
        .hint("Valid values are 'live', 'manual' and durations such as '5s', '10m' or '1h30m'.")
        .into())
    }
}

/// A sum of numbers with units s, m, h, d and w, at least a second.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let unit = match rest.chars().next()?.to_ascii_lowercase() {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return None,
        };
        rest = rest[1..].trim_start();
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
    }
    // Ten years: past that a timer's arithmetic overflows before anybody would notice.
    (1..=315_360_000)
        .contains(&seconds)
        .then(|| Duration::from_secs(seconds))
}

fn invalid(message: String) -> ErrorFields {
    ErrorFields::error("22023", message)
}

/// An option's value as text: a string, a number, or a bare word (which the grammar takes for a type
/// name or a key word).
fn value(option: &DefElem) -> Option<String> {
    match option.arg.as_ref()?.node.as_ref()? {
        NodeEnum::String(value) => Some(value.sval.clone()),
        NodeEnum::Integer(value) => Some(value.ival.to_string()),
        NodeEnum::Float(value) => Some(value.fval.clone()),
        NodeEnum::TypeName(value) => match value.names.last()?.node.as_ref()? {
            NodeEnum::String(name) => Some(name.sval.clone()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let seconds = |text| duration(text).map(|duration| duration.as_secs());
        assert_eq!(seconds("5s"), Some(5));
        assert_eq!(seconds("1h30m"), Some(5400));
        assert_eq!(seconds("1W 2d"), Some(777_600));
        for bad in [
            "",
            "5",
            "s",
            "0s",
            "-5s",
            "5x",
            "99999999999999999999s",
            "5é",
            "1.5h",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn schedules() {
        assert_eq!(Schedule::parse("LIVE"), Ok(Schedule::Live));
        assert_eq!(Schedule::parse("manual"), Ok(Schedule::Manual));
        assert_eq!(Schedule::parse("@hourly").unwrap_err().code, "0A000");
        assert_eq!(Schedule::parse("*/5 * * * *").unwrap_err().code, "0A000");
        assert_eq!(Schedule::parse("often").unwrap_err().code, "22023");
    }
}
