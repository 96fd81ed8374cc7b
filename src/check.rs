//! Whether a configuration is one that the pooler starts with.

use pgcat::config::model::Config;
use pgcat::config::{ConfigError, Warning};

/// Validates a configuration that has been read, with the files that it names.
///
/// # Errors
/// What a start would end with.
pub fn all(
    read: Result<(Config, Vec<Warning>), ConfigError>,
) -> Result<(Config, Vec<Warning>), String> {
    let (config, warnings) = read.map_err(|error| error.to_string())?;
    pgcat::check(&config).map_err(|error| error.to_string())?;
    Ok((config, warnings))
}
