//! Session settings: what a client has SET for its session, carried over to each server connection
//! it gets.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The settings of a session that differ from the server's defaults, by lower-case name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Settings(BTreeMap<String, String>);

/// Asks the server which settings the session has. Exact whatever set them (SET, set_config, a
/// function, a statement that was rolled back), because it asks after the fact.
/// `role` is not in pg_settings; the transaction's own properties are no session settings.
const CAPTURE: &str = "SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session' \
    AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable') \
    UNION ALL SELECT 'role', r FROM pg_catalog.current_setting('role') r WHERE r <> 'none' \
    UNION ALL SELECT 'session_authorization', s FROM pg_catalog.current_setting('session_authorization') s \
    WHERE s <> (SELECT u.usename FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) a \
    JOIN pg_catalog.pg_user u ON u.usesysid = a.usesysid)";

/// The query for all settings of the session; `custom` are names with a dot that may have been set:
/// pg_settings does not show those that no extension has declared.
pub fn capture<'a>(custom: impl Iterator<Item = &'a String>) -> String {
    let mut sql = CAPTURE.to_owned();
    for name in custom {
        let name = literal(name);
        let _ = write!(
            sql,
            " UNION ALL SELECT {name}, s FROM pg_catalog.current_setting({name}, true) s \
             WHERE s IS NOT NULL"
        );
    }
    sql
}

impl Settings {
    pub fn set(&mut self, name: &str, value: String) {
        self.0.insert(name.to_ascii_lowercase(), value);
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// These settings, and `defaults` where they have no value of their own.
    pub fn over(mut self, defaults: &Self) -> Self {
        for (name, value) in &defaults.0 {
            self.0.entry(name.clone()).or_insert_with(|| value.clone());
        }
        self
    }

    /// Whether the server will take the transition to `wanted` for certain: values of these settings
    /// were accepted before, and do not depend on anything that can be dropped.
    pub fn is_certain(&self, wanted: &Self) -> bool {
        let differs = |name: &&String| self.0.get(*name) != wanted.0.get(*name);
        self.0
            .keys()
            .chain(wanted.0.keys())
            .filter(differs)
            .all(|name| {
                matches!(
                    name.as_str(),
                    "application_name"
                        | "bytea_output"
                        | "client_encoding"
                        | "client_min_messages"
                        | "datestyle"
                        | "extra_float_digits"
                        | "idle_in_transaction_session_timeout"
                        | "intervalstyle"
                        | "lock_timeout"
                        | "search_path"
                        | "standard_conforming_strings"
                        | "statement_timeout"
                        | "timezone"
                        | "work_mem"
                )
            })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The SQL that takes a session from these settings to `wanted`; empty if they are equal.
    ///
    /// By set_config, because it takes a value just as pg_settings shows it: lists, units and quotes
    /// included.
    pub fn transition(&self, wanted: &Self) -> String {
        let mut sql = String::new();
        // Changing the session's user resets its role, so it comes first, either way.
        let mut resets: Vec<_> = self
            .0
            .keys()
            .filter(|n| !wanted.0.contains_key(*n))
            .collect();
        resets.sort_by_key(|name| *name != "session_authorization");
        let user_changes =
            self.0.get("session_authorization") != wanted.0.get("session_authorization");
        for name in resets {
            sql.push_str("RESET ");
            push_name(&mut sql, name);
            sql.push(';');
        }
        let mut sets: Vec<_> = wanted
            .0
            .iter()
            .filter(|(name, value)| {
                self.0.get(*name) != Some(value) || (user_changes && *name == "role")
            })
            .collect();
        sets.sort_by_key(|(name, _)| *name != "session_authorization");
        for (name, value) in sets {
            let _ = write!(
                sql,
                "SELECT pg_catalog.set_config({}, {}, false);",
                literal(name),
                literal(value)
            );
        }
        sql
    }
}

/// Quotes each dotted part (`myapp.user`), but not the two names that are keywords, not settings.
fn push_name(sql: &mut String, name: &str) {
    match name {
        "role" => sql.push_str("ROLE"),
        "session_authorization" => sql.push_str("SESSION AUTHORIZATION"),
        _ => {
            let quoted: Vec<_> = name
                .split('.')
                .map(|part| format!("\"{}\"", part.replace('"', "\"\"")))
                .collect();
            sql.push_str(&quoted.join("."));
        }
    }
}

/// A string literal that means the same with standard_conforming_strings on and off.
pub fn literal(text: &str) -> String {
    let text: String = text.chars().filter(|c| *c != '\0').collect();
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::default();
        for (name, value) in pairs {
            settings.set(name, (*value).to_owned());
        }
        settings
    }

    #[test]
    fn equal_settings_need_nothing() {
        let a = settings(&[("DateStyle", "ISO")]);
        assert_eq!(a.transition(&settings(&[("datestyle", "ISO")])), "");
    }

    #[test]
    fn values_are_quoted() {
        let sql = Settings::default().transition(&settings(&[("application_name", r"O'B\x")]));
        assert_eq!(
            sql,
            r"SELECT pg_catalog.set_config('application_name',  E'O''B\\x', false);"
        );
    }

    #[test]
    fn what_the_other_session_set_is_reset() {
        let from = settings(&[("role", "a"), ("my.x", "1"), ("session_authorization", "b")]);
        assert_eq!(
            from.transition(&Settings::default()),
            "RESET SESSION AUTHORIZATION;RESET \"my\".\"x\";RESET ROLE;"
        );
    }
}
