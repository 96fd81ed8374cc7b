//! The log, on standard output, in PgCat's formats.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use env_logger::fmt::Formatter;
use env_logger::{Builder, Target, WriteStyle};
use log::{Level, LevelFilter, Record};
use pgcat::calendar;
use serde_json::Value;

use crate::cli::{LogFormat, LogLevel};

/// Starts logging. `filters` is the value of `RUST_LOG` and wins over `level`; PgCat puts its level on
/// top of it, so that a plain `RUST_LOG=debug` does nothing.
pub fn init(level: LogLevel, format: LogFormat, color: bool, filters: Option<&str>) {
    let mut builder = Builder::new();
    match filters.filter(|filters| !filters.is_empty()) {
        Some(filters) => builder.parse_filters(filters),
        None => builder.filter_level(level_filter(level)),
    };
    builder.target(Target::Stdout);
    builder.write_style(if color {
        WriteStyle::Auto
    } else {
        WriteStyle::Never
    });
    match format {
        LogFormat::Text => builder.format(|out, record| text(out, record, false)),
        LogFormat::Debug => builder.format(|out, record| text(out, record, true)),
        LogFormat::Structured => builder.format(structured),
    };
    builder.init();
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::Trace,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Error => LevelFilter::Error,
    }
}

/// `2026-11-23T06:43:10.958345Z  INFO ThreadId(06) pgcat::pool: text`, as PgCat's logs are parsed.
fn text(out: &mut Formatter, record: &Record<'_>, position: bool) -> io::Result<()> {
    let style = out.default_level_style(record.level());
    let level = format!("{style}{:>5}{style:#}", record.level());
    let thread = std::thread::current().id();
    let target = record.target();
    write!(
        out,
        "{} {level} {thread:0>2?} {target}: ",
        timestamp(SystemTime::now())
    )?;
    if let (true, Some(file), Some(line)) = (position, record.file(), record.line()) {
        write!(out, "{file}:{line}: ")?;
    }
    // A line break in a message (a server's error text, a query) must not begin what looks like
    // another entry.
    let message = record.args().to_string();
    writeln!(out, "{}", message.replace('\n', "\n    "))
}

/// A JSON object with the members that PgCat's has.
fn structured(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let now = timestamp(SystemTime::now());
    let message = record.args().to_string();
    writeln!(
        out,
        "{}",
        json_line(&now, record.level(), &message, record.target())
    )
}

fn json_line(timestamp: &str, level: Level, message: &str, target: &str) -> String {
    let (message, target) = (Value::from(message), Value::from(target));
    let thread = std::thread::current().id();
    format!(
        r#"{{"timestamp":"{timestamp}","level":"{level}","fields":{{"message":{message}}},"target":{target},"threadId":"{thread:?}"}}"#
    )
}

/// RFC 3339 in UTC, to the microsecond.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (date_and_time, micros) = (calendar::utc(since.as_secs()), since.subsec_micros());
    format!("{}.{micros:06}Z", date_and_time.replace(' ', "T"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_the_calendars() {
        let at =
            |seconds, micros: u32| timestamp(UNIX_EPOCH + Duration::new(seconds, micros * 1000));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_399, 999_999), "2000-02-28T23:59:59.999999Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(951_868_800, 0), "2000-03-01T00:00:00.000000Z");
        assert_eq!(at(1_795_416_190, 958_345), "2026-11-23T06:43:10.958345Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn a_structured_line_is_one_json_object() {
        let line = json_line("now", Level::Warn, "two\nlines \"quoted\"", "pgcat::pool");
        assert!(!line.contains('\n'));
        let read: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(read["level"], "WARN");
        assert_eq!(read["target"], "pgcat::pool");
        assert_eq!(read["fields"]["message"], "two\nlines \"quoted\"");
        assert_eq!(read["timestamp"], "now");
    }
}
