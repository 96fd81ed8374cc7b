//! `[plugins.stream_tables]`.

use crate::command::Schedule;

/// The plugin's settings for a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Without it the plugin does nothing in the pool: its statements go to the server as they are.
    pub enabled: bool,
    /// Server connections per pool that refreshes may hold at once.
    pub max_connections: usize,
    /// The pool user that refreshes for owners without a pool of their own.
    pub refresh_user: Option<String>,
    /// The schedule of a stream table created without one.
    pub schedule: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            max_connections: 2,
            refresh_user: None,
            schedule: "live".to_owned(),
        }
    }
}

impl Settings {
    /// All keys but `enabled`.
    pub const KEYS: &[&str] = &["max_connections", "refresh_user", "schedule"];

    /// Reads the plugin's table of the configuration.
    ///
    /// # Errors
    /// What is wrong with which key.
    pub fn read(table: &toml::Table) -> Result<Self, String> {
        let mut settings = Self::default();
        for (key, value) in table {
            let wrong = |expected: &str| format!("{key}: expected {expected}, found {value}");
            match key.as_str() {
                "enabled" => {
                    settings.enabled = value.as_bool().ok_or_else(|| wrong("true or false"))?
                }
                "max_connections" => {
                    let number = value
                        .as_integer()
                        .and_then(|number| usize::try_from(number).ok());
                    settings.max_connections = number
                        .filter(|n| (1..=1000).contains(n))
                        .ok_or_else(|| wrong("1 to 1000"))?;
                }
                "refresh_user" => {
                    let user = value.as_str().ok_or_else(|| wrong("a user of the pool"))?;
                    settings.refresh_user = Some(user.to_owned());
                }
                "schedule" => {
                    let schedule = value.as_str().ok_or_else(|| wrong("a schedule"))?;
                    Schedule::parse(schedule)
                        .map_err(|error| format!("{key}: {}", error.message))?;
                    schedule.clone_into(&mut settings.schedule);
                }
                _ => {
                    let keys = Self::KEYS.join(", ");
                    return Err(format!(
                        "{key}: unknown key; valid keys are enabled, {keys}"
                    ));
                }
            }
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;

    fn read(text: &str) -> Result<Settings, String> {
        Settings::read(&text.parse().expect("toml"))
    }

    #[test]
    fn defaults_and_values() {
        assert_eq!(read("enabled = true"), Ok(Settings::default()));
        let settings =
            read("max_connections = 5\nschedule = '10s'\nrefresh_user = 'r'").expect("read");
        assert_eq!(
            (settings.max_connections, settings.schedule.as_str()),
            (5, "10s")
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("max_connections = 0", "1 to 1000"),
            ("schedule = 'often'", "invalid value"),
            ("enabled = 1", "true or false"),
            ("shedule = 'live'", "shedule: unknown key"),
        ] {
            assert!(read(text).expect_err(text).contains(part), "{text}");
        }
    }
}
