//! The options of `WITH (…)`.

use pg_query::NodeEnum;
use pg_query::protobuf::DefElem;
use pgcat::plugins::ErrorFields;

use super::schedule::Schedule;
use crate::engine::Mode;

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

pub(super) fn invalid(message: String) -> ErrorFields {
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
