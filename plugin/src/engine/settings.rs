//! The settings our SQL runs with: pinned where they would change its meaning or its text forms.

use crate::conn::{Conn, Error};
use crate::plan::{Plan, Settings, literal};

/// Names and values that hold for all our work.
const PINNED: [(&str, &str); 5] = [
    // pg_temp last: else a temporary type or table shadows a name of pg_catalog.
    ("search_path", "pg_catalog, pg_temp"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "1"),
    ("standard_conforming_strings", "on"),
];

/// The caller's settings, to be put back.
#[derive(Debug)]
pub(super) struct Saved(Vec<(String, String)>);

/// Pins the settings for a while within the caller's transaction, and reads the creator's.
///
/// # Errors
/// Those of the server.
pub(super) async fn pin<C: Conn>(
    c: &mut C,
    plan: Option<&Settings>,
) -> Result<(Saved, Settings), Error> {
    let rows = c
        .query(
            "SELECT current_setting('TimeZone'), current_setting('search_path'),
                current_setting('default_text_search_config'), current_setting('DateStyle'),
                current_setting('IntervalStyle'), current_setting('extra_float_digits'),
                current_setting('standard_conforming_strings'),
                has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')",
        )
        .await?;
    let row = rows
        .first()
        .ok_or_else(|| Error::Internal("no settings".to_owned()))?;
    let text = |i: usize| row.text(i).unwrap_or_default().to_owned();
    let settings = Settings {
        time_zone: text(0),
        search_path: text(1),
        text_search_config: text(2),
        knows_cluster: row.is_true(7),
    };
    let saved = Saved(vec![
        ("search_path".to_owned(), text(1)),
        ("TimeZone".to_owned(), text(0)),
        ("default_text_search_config".to_owned(), text(2)),
        ("DateStyle".to_owned(), text(3)),
        ("IntervalStyle".to_owned(), text(4)),
        ("extra_float_digits".to_owned(), text(5)),
        ("standard_conforming_strings".to_owned(), text(6)),
    ]);
    let mut values: Vec<_> = PINNED
        .iter()
        .map(|&(n, v)| (n.to_owned(), v.to_owned()))
        .collect();
    if let Some(plan) = plan {
        values.push(("TimeZone".to_owned(), plan.time_zone.clone()));
        values.push((
            "default_text_search_config".to_owned(),
            plan.text_search_config.clone(),
        ));
    }
    set(c, &values).await?;
    Ok((saved, settings))
}

impl Saved {
    /// Puts the caller's settings back.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn restore<C: Conn>(self, c: &mut C) -> Result<(), Error> {
        set(c, &self.0).await
    }
}

/// Sets local settings.
///
/// # Errors
/// Those of the server.
pub(super) async fn set<C: Conn>(c: &mut C, values: &[(String, String)]) -> Result<(), Error> {
    let values: Vec<_> = values
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    c.query(&format!("SELECT {}", calls(&values)))
        .await
        .map(|_| ())
}

/// The first statements of a refresh: none of them takes a snapshot.
pub(super) fn begin() -> [String; 2] {
    [
        "BEGIN ISOLATION LEVEL REPEATABLE READ".to_owned(),
        // Below deadlock_timeout: against a user's DDL the refresh loses, not the user.
        "SET LOCAL lock_timeout = '500ms'".to_owned(),
    ]
}

/// The settings of a refresh, as one statement, with a value of the caller's before. It takes a snapshot, and is parsed under
/// the caller's path: all names in it have schemas.
///
/// Where changes are staged, [`planned`] is to follow: those statements have the frontier as parameters, so that a plan serves
/// every frontier, and a planner that does not know how few changes are after it would scan the whole buffer.
pub(super) fn of_refresh(plan: &Settings, before: Option<&str>, stages: bool) -> String {
    let mut values: Vec<(&str, &str)> = PINNED.to_vec();
    values.extend([
        ("TimeZone", plan.time_zone.as_str()),
        ("default_text_search_config", &plan.text_search_config),
        // Estimates over UNION ALL are huge; compiling costs a hundred times the run.
        ("jit", "off"),
        // Data and frontier are lost together in a crash, and computed again.
        ("synchronous_commit", "off"),
    ]);
    if stages {
        values.extend([
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
        ]);
    }
    let before = before.map(|value| format!("{value}, ")).unwrap_or_default();
    format!("SELECT {before}{}", calls(&values))
}

/// Expressions that set local settings.
fn calls(values: &[(&str, &str)]) -> String {
    values
        .iter()
        .map(|(name, value)| {
            format!(
                "pg_catalog.set_config({}, {}, true)",
                literal(name),
                literal(value)
            )
        })
        .collect::<Vec<_>>()
        .join(", ")
}

/// Expressions that end the settings for staging.
pub(super) fn planned() -> String {
    calls(&[("plan_cache_mode", "auto"), ("enable_seqscan", "on")])
}

/// For the statements of a refresh from many changes: what these are joined with is most likely in memory, as they are, and is to be
/// found by an index. PostgreSQL's default takes it to be on a disk, and reads a whole table rather than a hundredth of its rows.
pub(super) const IN_MEMORY: &str = "SELECT pg_catalog.set_config('random_page_cost', least(
    pg_catalog.current_setting('random_page_cost')::float8, 1.1 * pg_catalog.current_setting('seq_page_cost')::float8)::text, true)";

/// Ends that.
pub(super) const ANYWHERE: &str = "SET LOCAL random_page_cost TO DEFAULT";

/// The path of our own SQL.
const PINNED_PATH: &str = "SET LOCAL search_path = pg_catalog, pg_temp";

/// Wraps the statement that runs the query of a full plan: user functions it calls may rely on the creator's path. That
/// statement must name schemas throughout, and no other may run under that path: in `public`, say, anybody may have put
/// functions that fit our calls better than pg_catalog's do.
pub(super) fn under_creators_path(plan: &Plan, statement: String) -> Vec<String> {
    let path = plan.settings.search_path.trim();
    if !plan.is_full() || path.is_empty() {
        return vec![statement];
    }
    vec![
        format!("SET LOCAL search_path = {path}"),
        statement,
        PINNED_PATH.to_owned(),
    ]
}
