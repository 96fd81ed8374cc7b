//! How stream tables are shown to those who run the pooler: `SHOW STREAM TABLES` in the admin databases,
//! metrics, and `/stream-tables`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use pgcat::calendar;
use pgcat::plugins::{AdminTable, Metric, MetricKind, Page, Sample};
use serde_json::json;

use crate::refresh::{Board, Counters, Entry};

const TEXT: u32 = 25;
const FLOAT8: u32 = 701;

pub(crate) const TABLES: &[AdminTable] = &[AdminTable {
    name: "STREAM TABLES",
    columns: &[
        ("database", TEXT),
        ("schema", TEXT),
        ("name", TEXT),
        ("owner", TEXT),
        ("status", TEXT),
        ("effective_mode", TEXT),
        ("last_refresh", TEXT),
        // In seconds.
        ("staleness", FLOAT8),
        ("last_error", TEXT),
    ],
}];

/// Only the first so many have metrics of their own: any role may create more than Prometheus can bear.
const MOST_SERIES: usize = 1000;

pub(crate) fn rows(board: &Board) -> Vec<Vec<Option<String>>> {
    let rows = board.all().into_iter().map(|(database, entry)| {
        let staleness = staleness(&entry).map(|seconds| format!("{seconds:.3}"));
        let (mode, last_refresh) = (mode(&entry).to_owned(), last_refresh(&entry));
        vec![
            Some(database),
            Some(entry.schema),
            Some(entry.name),
            Some(entry.owner),
            Some(entry.status),
            Some(mode),
            last_refresh,
            staleness,
            entry.error.map(|(_, message)| message),
        ]
    });
    rows.collect()
}

/// The same for everybody who reaches the port: of an error, which may quote data, only the SQLSTATE.
pub(crate) fn page(board: &Board) -> Page {
    let tables = board.all().into_iter().map(|(database, entry)| {
        json!({
            "database": database,
            "schema": entry.schema,
            "name": entry.name,
            "owner": entry.owner,
            "status": entry.status,
            "effective_mode": mode(&entry),
            "last_refresh": last_refresh(&entry),
            "staleness_seconds": staleness(&entry),
            "refreshes": entry.counters.refreshes,
            "refresh_seconds": entry.counters.refresh_time.as_secs_f64(),
            "rows_inserted": entry.counters.inserted,
            "rows_deleted": entry.counters.deleted,
            "errors": entry.counters.errors,
            "last_error_code": entry.error.map(|(code, _)| code),
        })
    });
    let tables: Vec<_> = tables.collect();
    Page {
        content_type: "application/json",
        body: format!("{}\n", json!(tables)),
    }
}

pub(crate) fn metrics(board: &Board) -> Vec<Metric> {
    use MetricKind::{Counter, Gauge};
    let mut all = board.all();
    let mut numbers: BTreeMap<(String, String), u32> = BTreeMap::new();
    for (database, entry) in &all {
        let key = (database.clone(), entry.status.clone());
        *numbers.entry(key).or_default() += 1;
    }
    let numbers = numbers
        .into_iter()
        .map(|((database, status), number)| Sample {
            labels: vec![("database", database), ("status", status)],
            value: number.into(),
        });
    let number = Metric {
        name: "stream_tables",
        kind: Gauge,
        help: "Stream tables by status",
        samples: numbers.collect(),
    };

    all.truncate(MOST_SERIES);
    let each = |name, kind, help, value: &dyn Fn(&Entry) -> Option<f64>| {
        let samples = all.iter().filter_map(|(database, entry)| {
            let value = value(entry)?;
            let labels = labels(database, entry);
            Some(Sample { labels, value })
        });
        Metric {
            name,
            kind,
            help,
            samples: samples.collect(),
        }
    };
    let count = |name, help, value: fn(&Counters) -> f64| {
        each(name, Counter, help, &|entry| Some(value(&entry.counters)))
    };
    vec![
        number,
        count(
            "stream_table_refreshes_total",
            "Refreshes by this process that found something to do",
            |counters| counters.refreshes as f64,
        ),
        count(
            "stream_table_refresh_seconds_total",
            "Time these refreshes took",
            |counters| counters.refresh_time.as_secs_f64(),
        ),
        count(
            "stream_table_rows_total",
            "Rows that these refreshes inserted and deleted; an update is both",
            |counters| (counters.inserted + counters.deleted) as f64,
        ),
        count(
            "stream_table_errors_total",
            "Refreshes by this process that failed",
            |counters| counters.errors as f64,
        ),
        each(
            "stream_table_staleness_seconds",
            Gauge,
            "Time since the last refresh that found something to do",
            &staleness,
        ),
    ]
}

fn labels(database: &str, entry: &Entry) -> Vec<(&'static str, String)> {
    vec![
        ("database", database.to_owned()),
        ("schema", entry.schema.clone()),
        ("name", entry.name.clone()),
    ]
}

fn mode(entry: &Entry) -> &'static str {
    if entry.full { "full" } else { "incremental" }
}

fn last_refresh(entry: &Entry) -> Option<String> {
    let since = entry.refreshed_at?.duration_since(SystemTime::UNIX_EPOCH);
    Some(format!("{} UTC", calendar::utc(since.ok()?.as_secs())))
}

fn staleness(entry: &Entry) -> Option<f64> {
    let age = SystemTime::now().duration_since(entry.refreshed_at?);
    Some(age.unwrap_or_default().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_series_per_stream_table_up_to_a_limit() {
        let entry = |name: usize| Entry {
            schema: "public".to_owned(),
            name: name.to_string(),
            owner: "o".to_owned(),
            status: "active".to_owned(),
            full: false,
            refreshed_at: None,
            error: None,
            counters: Counters::default(),
        };
        let board = Board::of((0..MOST_SERIES + 1).map(entry));
        let metrics = metrics(&board);
        assert_eq!(metrics[0].samples[0].value, MOST_SERIES as f64 + 1.0);
        assert_eq!(metrics[1].samples.len(), MOST_SERIES);
        // Never refreshed, they have no staleness.
        assert_eq!(metrics[5].samples.len(), 0);
        assert_eq!(rows(&board).len(), MOST_SERIES + 1);
    }
}
