//! `pgcat.toml`: from a file to a validated [`Config`].
//!
//! Every key PgCat knows is accepted. An unknown key is a [`Warning`] with the nearest known name (a
//! typing error must not stop a pooler that ran before an upgrade); a wrong value is a
//! [`ConfigError`] that says where it stands, what was expected and what was found.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use document::Document;
use model::{Config, PluginTables};

use crate::plugins::Plugin;

mod document;
mod error;
mod general;
pub mod model;
pub mod pgbouncer;
mod plugin_sections;
mod pool;
mod section;
mod shard;
#[cfg(test)]
mod tests;
mod tls;
mod user;
mod value;

pub use error::{ConfigError, Warning};

/// Reads and validates a configuration file, in which `plugins` may have sections of their own.
///
/// # Errors
/// The first thing that is wrong: the file cannot be read, is not TOML, or has a wrong value.
pub fn load(
    path: &Path,
    plugins: &[Arc<dyn Plugin>],
) -> Result<(Config, Vec<Warning>), ConfigError> {
    let bytes = std::fs::read(path).map_err(|source| ConfigError::Open {
        path: path.to_owned(),
        source,
    })?;
    let text = String::from_utf8(bytes).map_err(|error| ConfigError::NotUtf8 {
        path: path.to_owned(),
        source: error.utf8_error(),
    })?;
    parse(&text, path, plugins)
}

/// Validates the text of a configuration file. `path` is only for messages and [`Config::path`].
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(
    text: &str,
    path: &Path,
    plugins: &[Arc<dyn Plugin>],
) -> Result<(Config, Vec<Warning>), ConfigError> {
    let document = Document::new(text, path);
    let tree = document.tree()?;
    let root = document.root(tree.get_ref());

    // PgCat has a key of this name and overwrites it with the path it was started with.
    if let Some(value) = root.value("path") {
        value.string()?;
    }
    let (general, inherited) = general::read(&root.required_section("general")?)?;
    let tables = match root.section("plugins")? {
        Some(section) => plugin_sections::read(&section, plugins)?.tables,
        None => PluginTables::new(),
    };
    let mut pools = BTreeMap::new();
    let section = root.required_section("pools")?;
    for (name, value) in section.entries() {
        if let Some(dialect) = crate::admin::Dialect::of(&name) {
            let database = dialect.database();
            return Err(value.section()?.error_here(format!(
                "the name {database:?} is reserved for the admin database"
            )));
        }
        let pool = pool::read(&value.section()?, &name, &inherited, &tables, plugins)?;
        pools.insert(name, pool);
    }
    general::check_auth_query(&root, &inherited, &pools)?;
    root.finish();

    let config = Config {
        path: path.to_owned(),
        general,
        plugins: tables,
        pools,
    };
    Ok((config, document.into_warnings()))
}

/// The line of a key, from 1, in a configuration file that has been loaded: for what is found wrong
/// later, such as a file that it names.
pub(crate) fn line_of(path: &Path, keys: &[&str]) -> Option<usize> {
    let text = std::fs::read_to_string(path).ok()?;
    let document = Document::new(&text, path);
    let tree = document.tree().ok()?;
    document.line_of(tree.get_ref(), keys)
}
