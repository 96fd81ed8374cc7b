//! When a stream table is refreshed: the option `schedule`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgcat::plugins::ErrorFields;

use super::options::invalid;

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// At the times of a cron line, in UTC.
    At(Arc<Cron>),
    /// This long after the last refresh began.
    Every(Duration),
    /// As soon as a commit is seen.
    Live,
    /// Only by `REFRESH STREAM TABLE`.
    Manual,
}

impl Schedule {
    /// Reads `live`, `manual`, a duration such as `5s` or `1h30m`, or a cron line.
    ///
    /// # Errors
    /// 22023 for what is none of these.
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
        let error = invalid(format!(
            "invalid value for parameter \"schedule\": \"{text}\""
        ));
        if trimmed.starts_with('@') || trimmed.split_whitespace().count() >= 5 {
            return match cron(trimmed) {
                Ok(cron) => Ok(Self::At(Arc::new(cron))),
                Err(detail) => Err(error
                    .detail(detail)
                    .hint("A cron line has the fields minute, hour, day of month, month and day of week, in UTC; or it is @hourly, @daily, @weekly, @monthly or @yearly.")
                    .into()),
            };
        }
        Err(error
            .hint("Valid values are 'live', 'manual', durations such as '5s', '10m' or '1h30m', and cron lines such as '*/5 * * * *' or '@hourly'.")
            .into())
    }
}

fn cron(line: &str) -> Result<Cron, String> {
    let cron: Cron = line
        .parse()
        .map_err(|error: croner::errors::CronError| error.to_string())?;
    match next(&cron, now().as_secs()) {
        Some(_) => Ok(cron),
        None => Err("There is no such time.".to_owned()),
    }
}

/// The first second of a cron line after `after`, both since 1970; `None` if there is none.
fn next(cron: &Cron, after: u64) -> Option<u64> {
    let after = Timestamp::from_second(after.try_into().ok()?).ok()?;
    let after = after.to_zoned(TimeZone::UTC);
    let next = cron.find_next_occurrence(&after, false).ok()?;
    next.timestamp().as_second().try_into().ok()
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// How long it is from the next time of a cron line to the one after it.
pub fn period(cron: &Cron) -> Duration {
    let first = next(cron, now().as_secs());
    let second = first.and_then(|first| next(cron, first));
    let seconds = first.zip(second).map(|(first, second)| second - first);
    seconds.map_or(Duration::MAX, Duration::from_secs)
}

/// How long it is to the first time of a cron line after a moment that is `since` ago: nothing, if that has come. `None` if
/// there is none.
pub fn due_in(cron: &Cron, since: Duration) -> Option<Duration> {
    let now = now();
    let next = next(cron, now.saturating_sub(since).as_secs())?;
    Some(Duration::from_secs(next).saturating_sub(now))
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
        for line in [
            "@hourly",
            "*/5 * * * *",
            " 0 3 * * MON-FRI ",
            "*/10 * * * * *",
        ] {
            let parsed = Schedule::parse(line).expect(line);
            assert!(matches!(parsed, Schedule::At(_)), "{line}");
        }
        for bad in [
            "often",
            "@never",
            "61 * * * *",
            "0 0 30 2 *",
            "* * * *",
            "a b c d e",
            "",
        ] {
            assert_eq!(Schedule::parse(bad).expect_err(bad).code, "22023");
        }
    }

    #[test]
    fn times_of_a_cron_line() {
        // 2001-09-09 01:46:40, a Sunday.
        const MOMENT: u64 = 1_000_000_000;
        let after = |line: &str| next(&line.parse().expect(line), MOMENT).map(|at| at - MOMENT);
        assert_eq!(after("* * * * *"), Some(20));
        assert_eq!(after("@hourly"), Some(13 * 60 + 20));
        assert_eq!(after("0 2 * * MON"), Some(24 * 3600 + 13 * 60 + 20));
        // The day of the month or the day of the week, as in every cron.
        assert_eq!(after("0 2 1 * SUN"), Some(13 * 60 + 20));
    }

    #[test]
    fn a_time_that_has_come_is_due() {
        let minutely: Cron = "* * * * *".parse().expect("a line");
        assert_eq!(
            due_in(&minutely, Duration::from_secs(61)),
            Some(Duration::ZERO)
        );
        let wait = due_in(&minutely, Duration::ZERO).expect("a time");
        assert!(wait <= Duration::from_secs(60), "{wait:?}");
    }
}
