//! The plugins' own sections of the configuration.

use std::sync::Arc;

use super::Plugin;
use crate::config::line_of;
use crate::config::model::{Config, PluginTables};

/// Has every plugin look at its sections: a pooler that serves without what it was asked for is worse
/// than one that does not start.
///
/// # Errors
/// The first wrong value, with file, line and key.
pub fn check(config: &Config, plugins: &[Arc<dyn Plugin>]) -> Result<(), String> {
    for plugin in plugins {
        section(config, &**plugin, &["plugins"], &config.plugins)?;
        for (pool, settings) in &config.pools {
            // A pool without a section of its own has the global one.
            if settings.plugins != config.plugins {
                let path = ["pools", pool, "plugins"];
                section(config, &**plugin, &path, &settings.plugins)?;
            }
        }
    }
    Ok(())
}

fn section(
    config: &Config,
    plugin: &dyn Plugin,
    path: &[&str],
    tables: &PluginTables,
) -> Result<(), String> {
    let name = plugin.name();
    let Some(table) = tables.get(name) else {
        return Ok(());
    };
    plugin.check(table).map_err(|mistake| {
        let key = mistake.split(':').next().unwrap_or_default();
        let keys = [path, &[name, key]].concat();
        let position =
            line_of(&config.path, &keys).map_or_else(String::new, |line| format!(":{line}"));
        let section = [path, &[name]].concat().join(".");
        format!("{}{position}: {section}.{mistake}", config.path.display())
    })
}
