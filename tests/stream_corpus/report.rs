//! What was run, and which of it is incremental.

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::time::Duration;

use test_support::scalar;
use tokio_postgres::{Client, SimpleQueryMessage};

#[derive(Default)]
pub struct Report {
    pub files: usize,
    pub records: usize,
    pub failures: Vec<String>,
    incremental: usize,
    /// Those that are not, by the reason.
    full: BTreeMap<String, Vec<String>>,
}

impl Report {
    pub fn add(&mut self, other: Self) {
        self.files += other.files;
        self.records += other.records;
        self.failures.extend(other.failures);
    }

    /// Asks EXPLAIN for the mode of every stream table there is.
    pub async fn stream_tables(&mut self, direct: &Client, pooled: &Client) {
        let tables = direct
            .simple_query(
                "SELECT format('%I.%I', schema, name) FROM pgtrickle.stream_tables ORDER BY 1",
            )
            .await
            .expect("the stream tables");
        for table in texts(&tables) {
            let lines = pooled
                .simple_query(&format!("EXPLAIN STREAM TABLE {table}"))
                .await
                .unwrap_or_else(|error| panic!("EXPLAIN of {table}: {error:?}"));
            let lines = texts(&lines);
            match lines.iter().find_map(|line| line.strip_prefix("Reason: ")) {
                None => {
                    assert!(
                        lines.iter().any(|line| line == "Mode: incremental"),
                        "{lines:?}"
                    );
                    self.incremental += 1;
                }
                Some(reason) => self.full.entry(reason.to_owned()).or_default().push(table),
            }
        }
        let failed = "SELECT string_agg(format('%s.%s: %s', schema, name, error), '; ') FROM pgtrickle.refresh_history
             WHERE error IS NOT NULL AND schema NOT LIKE '%fails'";
        if let Some(failed) = scalar(direct, failed).await {
            self.failures.push(format!("refreshes failed: {failed}"));
        }
        // A delta that fails is made up for by recomputing; in what is shared no file looks for that.
        let recomputed =
            "SELECT string_agg(format('%s: %s', name, reason), '; ') FROM pgtrickle.refresh_history
             WHERE schema = 'pgtrickle' AND mode = 'full' AND reason LIKE 'the change alone%'";
        if let Some(recomputed) = scalar(direct, recomputed).await {
            self.failures
                .push(format!("shared stages were recomputed: {recomputed}"));
        }
    }

    /// Past the capture of output: the figures are for those who read a run that passes, too.
    pub fn print(&self, major: u32, took: Duration) {
        let full: usize = self.full.values().map(Vec::len).sum();
        let tables = self.incremental + full;
        let mut text = format!(
            "\nCorpus of stream tables, PostgreSQL {major}: {} files, {} records, {tables} stream tables, \
             {} ({:.1} %) incremental, {:.0?}\n",
            self.files,
            self.records,
            self.incremental,
            100.0 * self.incremental as f64 / tables.max(1) as f64,
            took
        );
        for (reason, names) in &self.full {
            text.push_str(&format!("  full, {reason}: {}\n", names.join(", ")));
        }
        stdout()
            .write_all(text.as_bytes())
            .expect("standard output");
    }
}

fn texts(messages: &[SimpleQueryMessage]) -> Vec<String> {
    let texts = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    texts.collect()
}
