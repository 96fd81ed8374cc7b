//! `[plugins.<name>]`, in the file or in a pool.
//!
//! A plugin reads its own table; what is checked here is what would otherwise be noticed only when
//! it is first used, without a line to point at.

use super::error::ConfigError;
use super::model::PluginTables;
use super::section::Section;
use super::value::Value;

/// A `plugins` table.
#[derive(Debug)]
pub(super) struct Plugins {
    pub tables: PluginTables,
    /// One of PgCat's own plugins that look at parsed queries is in it.
    pub needs_query_parser: bool,
}

/// What a plugin's table may hold.
struct Schema {
    name: &'static str,
    /// One of PgCat's own.
    needs_query_parser: bool,
    /// The keys besides `enabled`, which PgCat's own plugins require.
    keys: &'static [(&'static str, Kind)],
}

enum Kind {
    String,
    Count,
    Strings,
    Intercepts,
}

const SCHEMAS: &[Schema] = &[
    Schema {
        name: "prewarmer",
        needs_query_parser: true,
        keys: &[("queries", Kind::Strings)],
    },
    Schema {
        name: "query_logger",
        needs_query_parser: true,
        keys: &[],
    },
    Schema {
        name: "table_access",
        needs_query_parser: true,
        keys: &[("tables", Kind::Strings)],
    },
    Schema {
        name: "intercept",
        needs_query_parser: true,
        keys: &[("queries", Kind::Intercepts)],
    },
    Schema {
        name: "stream_tables",
        needs_query_parser: false,
        keys: &[
            ("max_connections", Kind::Count),
            ("refresh_user", Kind::String),
            ("schedule", Kind::String),
        ],
    },
];

/// Checks the tables of a `plugins` section and returns them raw.
pub(super) fn read(section: &Section<'_>) -> Result<Plugins, ConfigError> {
    let mut plugins = Plugins {
        tables: PluginTables::new(),
        needs_query_parser: false,
    };
    for schema in SCHEMAS {
        if let Some(value) = section.value(schema.name) {
            check(&value, schema)?;
            plugins.needs_query_parser |= schema.needs_query_parser;
        }
    }
    section.finish();
    for (name, value) in section.entries() {
        let mut table = value.table()?;
        // What is said to be ignored must not reach the plugin, which would refuse it. The table of
        // a plugin unknown here is kept: the program around this library may know it.
        if let Some(schema) = SCHEMAS.iter().find(|schema| schema.name == name) {
            table.retain(|key, _| {
                key == "enabled" || schema.keys.iter().any(|(name, _)| key == *name)
            });
        }
        plugins.tables.insert(name, table);
    }
    Ok(plugins)
}

fn check(value: &Value<'_>, schema: &Schema) -> Result<(), ConfigError> {
    let section = value.section()?;
    let enabled = match section.boolean("enabled")? {
        Some(enabled) => enabled,
        None if schema.needs_query_parser => {
            return Err(section.error("enabled", "expected true or false, found nothing"));
        }
        None => true,
    };
    for (name, kind) in schema.keys {
        let Some(value) = section.value(name) else {
            // PgCat's plugins do nothing without their list.
            if enabled && matches!(kind, Kind::Strings | Kind::Intercepts) {
                return Err(section.error(name, "expected a value, found nothing"));
            }
            continue;
        };
        match kind {
            Kind::String => drop(value.string()?),
            Kind::Count => drop(value.integer(1, 1000)?),
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
