//! `[plugins.<name>]`, in the file or in a pool.
//!
//! A plugin reads its own table; what is checked here is what would otherwise be noticed only when
//! it is first used, without a line to point at. PgCat's own plugins are known here, others are asked.

use std::sync::Arc;

use super::error::ConfigError;
use super::model::PluginTables;
use super::section::Section;
use super::value::Value;
use crate::plugins::Plugin;

/// A `plugins` table.
#[derive(Debug)]
pub(super) struct Plugins {
    pub tables: PluginTables,
    /// One of PgCat's own plugins that look at parsed queries is in it.
    pub needs_query_parser: bool,
}

/// What the table of one of PgCat's own plugins may hold.
struct Schema {
    name: &'static str,
    /// The keys besides `enabled`, which they require.
    keys: &'static [(&'static str, Kind)],
}

enum Kind {
    Strings,
    Intercepts,
}

const SCHEMAS: &[Schema] = &[
    Schema {
        name: "prewarmer",
        keys: &[("queries", Kind::Strings)],
    },
    Schema {
        name: "query_logger",
        keys: &[],
    },
    Schema {
        name: "table_access",
        keys: &[("tables", Kind::Strings)],
    },
    Schema {
        name: "intercept",
        keys: &[("queries", Kind::Intercepts)],
    },
];

/// Checks the tables of a `plugins` section and returns them raw.
pub(super) fn read(
    section: &Section<'_>,
    known: &[Arc<dyn Plugin>],
) -> Result<Plugins, ConfigError> {
    let mut plugins = Plugins {
        tables: PluginTables::new(),
        needs_query_parser: false,
    };
    for schema in SCHEMAS {
        if let Some(value) = section.value(schema.name) {
            check(&value, schema)?;
            plugins.needs_query_parser = true;
        }
    }
    for plugin in known {
        if let Some(value) = section.value(plugin.name()) {
            let own = value.section()?;
            own.value("enabled");
            plugin.keys().iter().for_each(|key| drop(own.value(key)));
            own.finish();
        }
    }
    section.finish();
    for (name, value) in section.entries() {
        let mut table = value.table()?;
        // What is said to be ignored must not reach the plugin, which would refuse it.
        if let Some(schema) = SCHEMAS.iter().find(|schema| schema.name == name) {
            table.retain(|key, _| {
                key == "enabled" || schema.keys.iter().any(|(name, _)| key == *name)
            });
        }
        if let Some(plugin) = known.iter().find(|plugin| plugin.name() == name) {
            table.retain(|key, _| key == "enabled" || plugin.keys().contains(&key));
            if let Err(mistake) = plugin.check(&table) {
                let own = value.section()?;
                return Err(match mistake.split_once(": ") {
                    Some((key, message)) => own.error(key, message),
                    None => own.error_here(mistake),
                });
            }
        }
        plugins.tables.insert(name, table);
    }
    Ok(plugins)
}

fn check(value: &Value<'_>, schema: &Schema) -> Result<(), ConfigError> {
    let section = value.section()?;
    let enabled = section.required("enabled", "true or false")?.boolean()?;
    for (name, kind) in schema.keys {
        let Some(value) = section.value(name) else {
            // PgCat's plugins do nothing without their list.
            if enabled {
                return Err(section.error(name, "expected a value, found nothing"));
            }
            continue;
        };
        match kind {
            Kind::Strings => strings(&value)?,
            Kind::Intercepts => intercepts(&value)?,
        }
    }
    section.finish();
    Ok(())
}

fn strings(value: &Value<'_>) -> Result<(), ConfigError> {
    for element in value.array("an array of strings")? {
        element.string()?;
    }
    Ok(())
}

/// `queries."<id>"`: a query and the rows to answer it with.
fn intercepts(value: &Value<'_>) -> Result<(), ConfigError> {
    for (_, value) in value.section()?.entries() {
        let section = value.section()?;
        section.required("query", "a string")?.string()?;
        for name in ["schema", "result"] {
            let rows = section.required(name, "an array of arrays of strings")?;
            for row in rows.array("an array of arrays of strings")? {
                strings(&row)?;
            }
        }
        section.finish();
    }
    Ok(())
}
