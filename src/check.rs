//! Whether a configuration is one that the pooler starts with.

use pgcat::config::model::{Config, PluginTables};
use pgcat::config::{ConfigError, Warning, line_of};
use stream_tables::Settings;

const NAME: &str = "stream_tables";

/// Validates a configuration that has been read, with the files that it names.
///
/// # Errors
/// What a start would end with.
pub fn all(
    read: Result<(Config, Vec<Warning>), ConfigError>,
) -> Result<(Config, Vec<Warning>), String> {
    let (config, warnings) = read.map_err(|error| error.to_string())?;
    stream_tables(&config)?;
    pgcat::check(&config).map_err(|error| error.to_string())?;
    Ok((config, warnings))
}

/// Refuses values that the plugin would refuse: a pooler that serves without the stream tables it was
/// asked for is worse than one that does not start.
///
/// # Errors
/// The first wrong value, with file, line and key.
pub fn stream_tables(config: &Config) -> Result<(), String> {
    section(config, &["plugins"], &config.plugins)?;
    for (pool, settings) in &config.pools {
        // A pool without a section of its own has the global one.
        if settings.plugins != config.plugins {
            section(config, &["pools", pool, "plugins"], &settings.plugins)?;
        }
    }
    Ok(())
}

fn section(config: &Config, path: &[&str], plugins: &PluginTables) -> Result<(), String> {
    let Some(table) = plugins.get(NAME) else {
        return Ok(());
    };
    Settings::read(table).map(drop).map_err(|mistake| {
        let key = mistake.split(':').next().unwrap_or_default();
        let keys = [path, &[NAME, key]].concat();
        let position =
            line_of(&config.path, &keys).map_or_else(String::new, |line| format!(":{line}"));
        let section = [path, &[NAME]].concat().join(".");
        format!("{}{position}: {section}.{mistake}", config.path.display())
    })
}
