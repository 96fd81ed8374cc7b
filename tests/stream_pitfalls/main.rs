//! Cases that incremental view maintenance gets wrong, as data: `*.case` beside this file. Each case
//! is a schema, a query, and batches of writes with a refresh after each; the stream table must equal
//! its query after every refresh.

use test_support::{Stack, differences, majors};
use tokio_postgres::Client;

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");

struct Case<'a> {
    name: &'a str,
    setup: String,
    query: &'a str,
    /// What is written before each refresh.
    batches: Vec<String>,
}

fn parse(text: &str) -> Vec<Case<'_>> {
    text.split("\n## ")
        .skip(1)
        .map(|block| {
            let (name, body) = block.split_once('\n').expect("a case has a body");
            let mut case = Case {
                name,
                setup: String::new(),
                query: "",
                batches: Vec::new(),
            };
            let mut batch = String::new();
            for line in body.lines() {
                if let Some(query) = line.strip_prefix("=> ") {
                    assert!(case.query.is_empty(), "{name}: two queries");
                    case.query = query;
                } else if line == "refresh" {
                    case.batches.push(std::mem::take(&mut batch));
                } else if case.query.is_empty() {
                    case.setup.push_str(line);
                } else {
                    batch.push_str(line);
                }
            }
            assert!(
                !case.query.is_empty() && !case.batches.is_empty(),
                "{name}: no query or no refresh"
            );
            assert!(
                batch.trim().is_empty(),
                "{name}: writes after the last refresh"
            );
            case
        })
        .collect()
}

async fn run(text: &str) {
    for major in majors() {
        run_on(major, text).await;
    }
}

async fn run_on(major: u32, text: &str) {
    let stack = Stack::start(PGCAT, major);
    let cases = parse(text);
    let mut failed = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let (pooled, direct) = (stack.pooled().await, stack.direct().await);
        let schema = format!("case_{number}");
        direct
            .batch_execute(&format!("CREATE SCHEMA {schema}"))
            .await
            .expect("schema");
        for client in [&pooled, &direct] {
            client
                .batch_execute(&format!("SET search_path = {schema}"))
                .await
                .expect("search_path");
        }
        match run_case(case, &pooled, &direct).await {
            Ok(mode) => println!("ok ({major}, {mode}): {}", case.name),
            Err(message) => {
                println!("FAILED on {major}: {}: {message}", case.name);
                failed.push(format!("{}: {message}", case.name));
            }
        }
    }
    assert!(
        failed.is_empty(),
        "PostgreSQL {major}: {} of {} cases failed:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}

async fn run_case(case: &Case<'_>, pooled: &Client, direct: &Client) -> Result<String, String> {
    let failed = |what: &str, error: tokio_postgres::Error| format!("{what}: {error:?}");
    direct
        .batch_execute(&case.setup)
        .await
        .map_err(|error| failed(&case.setup, error))?;
    let create = format!(
        "CREATE STREAM TABLE s WITH (schedule = 'manual') AS {}",
        case.query
    );
    pooled
        .batch_execute(&create)
        .await
        .map_err(|error| failed(&create, error))?;
    compare(direct, case, "CREATE").await?;
    for (number, batch) in case.batches.iter().enumerate() {
        // By turns beside and through the pooler.
        let writer = if number % 2 == 0 { direct } else { pooled };
        writer
            .batch_execute(batch)
            .await
            .map_err(|error| failed(batch, error))?;
        pooled
            .batch_execute("REFRESH STREAM TABLE s")
            .await
            .map_err(|error| failed("refresh", error))?;
        compare(direct, case, batch).await?;
    }
    let mode = direct
        .query_one("SELECT effective_mode FROM pgtrickle.stream_tables WHERE name = 's' AND schema = current_schema", &[])
        .await
        .map_err(|error| failed("catalog", error))?
        .get(0);
    pooled
        .batch_execute("DROP STREAM TABLE s")
        .await
        .map_err(|error| failed("DROP", error))?;
    Ok(mode)
}

async fn compare(client: &Client, case: &Case<'_>, after: &str) -> Result<(), String> {
    match differences(client, "SELECT * FROM s", case.query).await {
        Ok(rows) if rows.is_empty() => Ok(()),
        Ok(rows) => Err(format!("after {after}\n    {}", rows.join("\n    "))),
        Err(error) => Err(format!("after {after}: {error:?}")),
    }
}

#[tokio::test]
async fn joins() {
    run(include_str!("joins.case")).await;
}

#[tokio::test]
async fn rows() {
    run(include_str!("rows.case")).await;
}

#[tokio::test]
async fn aggregates() {
    run(include_str!("aggregates.case")).await;
}

#[tokio::test]
async fn others() {
    run(include_str!("others.case")).await;
}
