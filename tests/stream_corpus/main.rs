//! A corpus of queries and writes in the format of sqllogictest, `corpus/*.slt`, run through the pooler. After every batch of
//! writes a stream table must equal its query both ways (`VERIFY STREAM TABLE`). Every operator and every one of the pitfalls
//! of incremental maintenance has its records, by a comment `# Pitfall N`.
//!
//! `CORPUS=name` runs only the files whose name contains it.

mod pitfalls;
mod pooled;
mod report;

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::time::Instant;

use futures_util::{StreamExt, stream};
use pooled::Pooled;
use report::Report;
use sqllogictest::{DefaultColumnType, Record, Runner, parse_file};
use test_support::{Stack, majors};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");

/// Files that run at the same time.
const AT_ONCE: usize = 3;

#[tokio::test]
async fn corpus() {
    let begin = Instant::now();
    let major = major();
    let stack = Stack::start(PGCAT, major);
    let files = files();
    let reports: Vec<_> = stream::iter(&files)
        .map(|file| run(&stack, major, file))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut report = Report::default();
    reports.into_iter().for_each(|other| report.add(other));
    report
        .stream_tables(&stack.direct().await, &stack.pooled().await)
        .await;
    report.print(major, begin.elapsed());
    assert!(
        report.failures.is_empty(),
        "PostgreSQL {major}: {} records failed:\n\n{}",
        report.failures.len(),
        report.failures.join("\n\n")
    );
}

#[test]
fn covers_every_pitfall() {
    let mut covered = BTreeSet::new();
    for file in all_files() {
        covered.extend(pitfalls::named(&records(&file)));
    }
    let missing: Vec<_> = pitfalls::all().filter(|n| !covered.contains(n)).collect();
    assert!(
        missing.is_empty(),
        "no record names the pitfalls {missing:?}"
    );
}

/// 15, unless the environment says which.
fn major() -> u32 {
    match env::var_os("PGCAT_TEST_MAJORS") {
        Some(_) => majors()[0],
        None => 15,
    }
}

fn all_files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stream_corpus/corpus");
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .expect("the corpus")
        .map(|entry| entry.expect("an entry of the corpus").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "slt"))
        .collect();
    files.sort();
    files
}

fn files() -> Vec<PathBuf> {
    let mut files = all_files();
    if let Ok(chosen) = env::var("CORPUS") {
        files.retain(|path| stem(path).contains(&chosen));
    }
    files
}

fn stem(path: &Path) -> &str {
    path.file_stem()
        .and_then(|stem| stem.to_str())
        .expect("a file's name")
}

fn records(path: &Path) -> Vec<Record<DefaultColumnType>> {
    parse_file(path).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a file to its end, whatever fails: its cases have a schema each.
async fn run(stack: &Stack, major: u32, path: &Path) -> Report {
    let begin = Instant::now();
    let mut report = Report::default();
    report.files = 1;
    let mut runner = Runner::new(|| async { Ok(Pooled(stack.pooled().await)) });
    // For `onlyif since16`.
    for known in 14..=major {
        runner.add_label(&format!("since{known}"));
    }
    for record in records(path) {
        if matches!(record, Record::Statement { .. } | Record::Query { .. }) {
            report.records += 1;
        }
        if let Err(error) = runner.run_async(record).await {
            // At once, too: if the pooler goes away, nothing is told at the end.
            println!("{error}");
            report.failures.push(error.to_string());
        }
    }
    println!(
        "{}: {} records, {:.1?}",
        stem(path),
        report.records,
        begin.elapsed()
    );
    report
}
