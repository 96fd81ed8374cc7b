//! DDL on a source, while it is written to: no write fails, and the stream tables equal their
//! (renamed, retyped) queries afterwards, or the server has refused as it would for a view.

mod cases;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use test_support::{Stack, catalog_row, converges, differences, scalar};
use tokio_postgres::Client;

use cases::Outcome::{Dropped, Follows, Refused};
use cases::{CASES, Case, GROUPED, ROWS, ROWS_OF_VIEW, SOURCE, VIEW, VIEW_CASES, WRITE};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");
const LIMIT: Duration = Duration::from_secs(20);

/// How the statement reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Simple,
    Extended,
    Block,
    RolledBack,
    Direct,
}

/// 100 writes a second, half of them beside the pooler. A statement that the DDL has made impossible
/// is replaced by its successor for good; any other error is a failure.
struct Writes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u32, Vec<String>)>,
}

impl Writes {
    fn start(stack: &Stack, before: String, after: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ports, stopped) = (
            [stack.pooler.port(), stack.postgres.port()],
            Arc::clone(&stop),
        );
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let clients = [
                    test_support::connect(ports[0], "app", "app").await,
                    test_support::connect(ports[1], "app", "app").await,
                ];
                let (mut written, mut failures, mut statement) = (0, Vec::new(), &before);
                while !stopped.load(Ordering::Relaxed) {
                    let client = &clients[written as usize % 2];
                    match client.batch_execute(statement).await {
                        Ok(()) => written += 1,
                        Err(error) => {
                            let code = error.code().map_or("", |code| code.code());
                            if statement == &before
                                && before != after
                                && ["42P01", "42703"].contains(&code)
                            {
                                statement = &after;
                            } else {
                                failures.push(format!("{statement}: {error:?}"));
                                break;
                            }
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                (written, failures)
            })
        });
        Self { stop, thread }
    }

    fn finish(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        let (written, failures) = self.thread.join().expect("the writer does not panic");
        assert_eq!(failures, Vec::<String>::new(), "a user's write failed");
        written
    }
}

async fn run(way: Way) {
    let stack = Stack::start(PGCAT, 15);
    let mut failed = Vec::new();
    let cases = CASES
        .iter()
        .map(|case| (case, ROWS))
        .chain(VIEW_CASES.iter().map(|case| (case, ROWS_OF_VIEW)));
    for (number, (case, rows)) in cases.enumerate() {
        let (source, stream) = (format!("t{number}"), format!("st{number}"));
        let fill = move |text: &str| text.replace("{t}", &source).replace("{s}", &stream);
        println!("{way:?}: {}", fill(case.ddl));
        // One broken case must not hide the others.
        let attempt = run_case(&stack, way, case, rows, &fill);
        if let Err(message) = attempt.await {
            println!("    FAILED: {message}");
            failed.push(format!("{}: {message}", fill(case.ddl)));
        }
    }
    assert!(
        failed.is_empty(),
        "{way:?}: {} cases failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

async fn run_case(
    stack: &Stack,
    way: Way,
    case: &Case,
    rows: &str,
    fill: &impl Fn(&str) -> String,
) -> Result<(), String> {
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    let described = |error: tokio_postgres::Error| format!("{error:?}");
    pooled
        .batch_execute(&fill(SOURCE))
        .await
        .map_err(described)?;
    if rows == ROWS_OF_VIEW {
        pooled.batch_execute(&fill(VIEW)).await.map_err(described)?;
    }
    for (name, query) in [("{s}", GROUPED), ("{s}_rows", rows)] {
        let create = fill(&format!("CREATE STREAM TABLE {name} AS {query}"));
        pooled.batch_execute(&create).await.map_err(described)?;
    }
    let writes = Writes::start(stack, fill(WRITE), fill(case.write_after));
    tokio::time::sleep(Duration::from_millis(250)).await;

    let ddl = fill(case.ddl);
    let result = match way {
        Way::Simple => pooled.batch_execute(&ddl).await,
        Way::Extended => pooled.execute(&ddl, &[]).await.map(drop),
        Way::Direct => direct.batch_execute(&ddl).await,
        Way::Block | Way::RolledBack => in_block(&pooled, &ddl, way == Way::Block).await,
    };
    tokio::time::sleep(Duration::from_millis(250)).await;
    let written = writes.finish();
    if written < 10 {
        return Err(format!("only {written} writes in half a second"));
    }

    if way == Way::Direct {
        return ended_repaired_or_explained(&direct, case, rows, fill, result.is_err()).await;
    }
    let refused = matches!(case.outcome, Refused);
    match (&result, refused) {
        (Ok(()), false) => {}
        (Ok(()), true) => return Err("was not refused".to_owned()),
        (Err(error), true) => names_the_stream_table(error, &fill("{s}"))?,
        (Err(error), false) => return Err(format!("failed: {error:?}")),
    }
    let undone = way == Way::RolledBack || refused;
    match case.outcome {
        Dropped if !undone => is_gone(&direct, fill).await,
        Follows(replacements) if !undone => follows(&direct, rows, replacements, fill).await,
        _ => follows(&direct, rows, &[], fill).await,
    }
}

async fn in_block(client: &Client, ddl: &str, commit: bool) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    if let Err(error) = client.batch_execute(ddl).await {
        client.batch_execute("ROLLBACK").await?;
        return Err(error);
    }
    client
        .batch_execute(if commit { "COMMIT" } else { "ROLLBACK" })
        .await
}

fn names_the_stream_table(error: &tokio_postgres::Error, stream: &str) -> Result<(), String> {
    let Some(error) = error.as_db_error() else {
        return Err(format!("{error:?}"));
    };
    let text = format!(
        "{} {} {}",
        error.message(),
        error.detail().unwrap_or(""),
        error.hint().unwrap_or("")
    );
    if error.code().code() != "2BP01" {
        return Err(format!(
            "refused with {} instead of 2BP01: {text}",
            error.code().code()
        ));
    }
    if !text.contains(stream) || text.contains("pgtrickle") {
        return Err(format!(
            "the error must name {stream} and nothing internal: {text}"
        ));
    }
    Ok(())
}

/// Both stream tables equal their queries, in their columns' types too, and are well.
async fn follows(
    client: &Client,
    rows: &str,
    replacements: &[(&str, &str)],
    fill: &impl Fn(&str) -> String,
) -> Result<(), String> {
    for (name, query) in [("{s}", GROUPED), ("{s}_rows", rows)] {
        let mut query = query.to_owned();
        for (from, to) in replacements {
            query = query.replace(from, to);
        }
        let (name, query) = (fill(name), fill(&query));
        equal_within(client, &name, &query, LIMIT).await?;
        let types = "SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
                     FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped AND attrelid = ";
        client
            .batch_execute(&format!("CREATE TEMP VIEW expected AS {query}"))
            .await
            .expect("a view");
        let expected = scalar(client, &format!("{types} 'expected'::regclass")).await;
        client
            .batch_execute("DROP VIEW expected")
            .await
            .expect("dropped");
        let stored = scalar(client, &format!("{types} '{name}'::regclass")).await;
        if stored != expected {
            return Err(format!(
                "{name} has the types {stored:?}, its query {expected:?}"
            ));
        }
        let status = format!("SELECT status FROM pgtrickle.stream_tables WHERE name = '{name}'");
        if scalar(client, &status).await.as_deref() != Some("active") {
            return Err(format!("not active: {}", catalog_row(client, &name).await));
        }
    }
    Ok(())
}

async fn equal_within(
    client: &Client,
    name: &str,
    query: &str,
    limit: Duration,
) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let different = match differences(client, &format!("SELECT * FROM {name}"), query).await {
            Ok(different) if different.is_empty() => return Ok(()),
            Ok(different) => different.join("; "),
            Err(error) => format!("{error:?}"),
        };
        if tokio::time::Instant::now() > deadline {
            return Err(format!(
                "{name}: {different}; catalog: {}",
                catalog_row(client, name).await
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn is_gone(client: &Client, fill: &impl Fn(&str) -> String) -> Result<(), String> {
    let left = scalar(
        client,
        &fill(
            "SELECT concat_ws(', ', to_regclass('{s}'), to_regclass('{s}_rows'),
                 (SELECT string_agg(name, ' ') FROM pgtrickle.stream_tables WHERE name IN ('{s}', '{s}_rows')),
                 (SELECT string_agg(tgname, ' ') FROM pg_trigger WHERE tgrelid = to_regclass('{t}') AND NOT tgisinternal))",
        ),
    )
    .await;
    match left.as_deref() {
        Some("") => Ok(()),
        other => Err(format!("still there: {other:?}")),
    }
}

/// Beside the pooler nobody reconciles in the same transaction: the server refuses, or the worker
/// repairs, or the catalog says what is wrong.
async fn ended_repaired_or_explained(
    client: &Client,
    case: &Case,
    rows: &str,
    fill: &impl Fn(&str) -> String,
    refused: bool,
) -> Result<(), String> {
    let replacements: &[(&str, &str)] = match case.outcome {
        Follows(replacements) if !refused => replacements,
        _ => &[],
    };
    let gone = matches!(case.outcome, Dropped) && !refused;
    let deadline = tokio::time::Instant::now() + LIMIT;
    for (name, query) in [("{s}", GROUPED), ("{s}_rows", rows)] {
        let mut query = query.to_owned();
        for (from, to) in replacements {
            query = query.replace(from, to);
        }
        let (name, query) = (fill(name), fill(&query));
        loop {
            let repaired = !gone
                && differences(client, &format!("SELECT * FROM {name}"), &query)
                    .await
                    .is_ok_and(|rows| rows.is_empty());
            let explained = scalar(
                client,
                &format!("SELECT last_error FROM pgtrickle.stream_tables WHERE name = '{name}' AND status = 'error'"),
            )
            .await;
            let dropped = gone
                && scalar(client, &format!("SELECT to_regclass('{name}')"))
                    .await
                    .is_none();
            if repaired || explained.is_some() || dropped {
                println!(
                    "    {name}: refused {refused}, repaired {repaired}, dropped {dropped}, explained {explained:?}"
                );
                break;
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!(
                    "{name} is neither repaired nor explained: {}",
                    catalog_row(client, &name).await
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

#[tokio::test]
async fn by_simple_query() {
    run(Way::Simple).await;
}

#[tokio::test]
async fn by_extended_protocol() {
    run(Way::Extended).await;
}

#[tokio::test]
async fn in_a_committed_block() {
    run(Way::Block).await;
}

#[tokio::test]
async fn in_a_rolled_back_block() {
    run(Way::RolledBack).await;
}

#[tokio::test]
async fn beside_the_pooler() {
    run(Way::Direct).await;
}

/// The stream table still follows after each kind of change, one after the other on one source.
#[tokio::test]
async fn one_after_the_other() {
    let stack = Stack::start(PGCAT, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    pooled
        .batch_execute("CREATE TABLE a (id int, v int, w int); INSERT INTO a SELECT i, i, i FROM generate_series(1, 50) i")
        .await
        .expect("source");
    pooled
        .batch_execute("CREATE STREAM TABLE s AS SELECT id, v FROM a WHERE v > 3")
        .await
        .expect("created");
    let steps = [
        (
            "ALTER TABLE a RENAME COLUMN v TO x",
            "SELECT id, x FROM a WHERE x > 3",
            "INSERT INTO a (id, x) VALUES (1, 4), (2, 4)",
        ),
        (
            "ALTER TABLE a RENAME TO b",
            "SELECT id, x FROM b WHERE x > 3",
            "UPDATE b SET x = x + 1 WHERE id < 9",
        ),
        (
            "ALTER TABLE b ALTER x TYPE numeric(10,1)",
            "SELECT id, x FROM b WHERE x > 3",
            "INSERT INTO b (id, x) VALUES (1, 7.5)",
        ),
        (
            "ALTER TABLE b ADD COLUMN y int",
            "SELECT id, x FROM b WHERE x > 3",
            "INSERT INTO b (id, x, y) VALUES (4, 4.4, 1)",
        ),
        (
            "ALTER TABLE b DROP COLUMN w",
            "SELECT id, x FROM b WHERE x > 3",
            "DELETE FROM b WHERE id % 3 = 0",
        ),
    ];
    for (ddl, query, write) in steps {
        pooled.batch_execute(ddl).await.expect(ddl);
        converges(&direct, "s", query, LIMIT).await;
        direct.batch_execute(write).await.expect(write);
        converges(&direct, "s", query, LIMIT).await;
        pooled.batch_execute(write).await.expect(write);
        converges(&direct, "s", query, LIMIT).await;
    }
}
