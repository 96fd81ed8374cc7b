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
    AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable'";

/// The rest of it.
const CAPTURE_ROLES: &str = ") \
    UNION ALL SELECT 'role', r FROM pg_catalog.current_setting('role') r WHERE r <> 'none' \
    UNION ALL SELECT 'session_authorization', s FROM pg_catalog.current_setting('session_authorization') s \
    WHERE s <> (SELECT u.usename FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) a \
    JOIN pg_catalog.pg_user u ON u.usesysid = a.usesysid)";

/// Whether the question for the settings runs under the client's own statement_timeout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Patience {
    /// Under the client's, which nearly always does.
    #[default]
    AsSet,
    /// It was too short: a statement_timeout of a millisecond is legitimate. To be asked again.
    Wanted,
    /// Without a limit: the timeout is read first, then suspended for the rest of the Query.
    Unlimited,
}

/// The query for all settings of the session; `custom` are names with a dot that may have been set:
/// pg_settings does not show those that no extension has declared.
pub fn capture<'a>(custom: impl Iterator<Item = &'a String>, patience: Patience) -> String {
    let mut sql = String::new();
    if patience == Patience::Unlimited {
        sql.push_str(
            "SELECT 'statement_timeout', pg_catalog.current_setting('statement_timeout');\
             SELECT pg_catalog.set_config('statement_timeout', '0', true);",
        );
    }
    sql.push_str(CAPTURE);
    if patience == Patience::Unlimited {
        sql.push_str(", 'statement_timeout'");
    }
    sql.push_str(CAPTURE_ROLES);
    let custom: Vec<String> = custom.map(|name| literal(name)).collect();
    if !custom.is_empty() {
        // As an array: there may be more of them than a query may have parts.
        let _ = write!(
            sql,
            " UNION ALL SELECT n, s FROM pg_catalog.unnest(ARRAY[{}]) n, pg_catalog.current_setting(n, true) s \
             WHERE s IS NOT NULL",
            custom.join(",")
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
        if std::ptr::eq(self, wanted) {
            return true;
        }
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
        // Another client's statement_timeout, which may be very short, must not end this one's SETs.
        resets.sort_by_key(|name| match name.as_str() {
            "statement_timeout" => 0,
            "session_authorization" => 1,
            _ => 2,
        });
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
        let limited = self.0.contains_key("statement_timeout");
        sets.sort_by_key(|(name, _)| match name.as_str() {
            "statement_timeout" if limited => 0,
            "session_authorization" => 1,
            "statement_timeout" => 3,
            _ => 2,
        });
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
    fn a_short_timeout_is_left_first_and_entered_last() {
        let short = settings(&[("statement_timeout", "1"), ("a", "1")]);
        let plain = settings(&[("a", "2")]);
        assert!(
            short
                .transition(&plain)
                .starts_with("RESET \"statement_timeout\";")
        );
        assert!(
            plain
                .transition(&short)
                .ends_with("set_config('statement_timeout', '1', false);")
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
