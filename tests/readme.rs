//! The README's examples work as printed.

use std::time::Duration;

use test_support::{Stack, converges};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");
const README: &str = include_str!("../README.md");

/// The code blocks of a language, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    README
        .split(opening.as_str())
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect()
}

#[tokio::test]
async fn sql_blocks_run_in_order() {
    let stack = Stack::start(PGCAT, 15);
    let blocks = blocks("sql");
    assert!(blocks.len() >= 4);
    for block in blocks {
        // Block by block, as somebody would paste them; psql stops at the first error.
        let file = std::env::temp_dir().join(format!("pgcat-readme-{}.sql", std::process::id()));
        std::fs::write(&file, block).expect("the block is written");
        let path = file.display().to_string();
        let output = stack
            .psql()
            .program("psql", &["-X", "-v", "ON_ERROR_STOP=1", "-f", &path]);
        std::fs::remove_file(&file).expect("the block is removed");
        assert!(
            output.success,
            "{block}\n{}{}",
            output.stdout, output.stderr
        );
    }
    let query = "SELECT c.region, count(*) AS orders, sum(o.amount) AS revenue
        FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region";
    converges(
        &stack.direct().await,
        "revenue_by_region",
        query,
        Duration::from_secs(5),
    )
    .await;
}

/// The configuration block is accepted together with the example file, which loads as it is.
#[test]
fn configuration_is_accepted() {
    let example = include_str!("../pgcat.toml");
    let block = blocks("toml")[0];
    let section = example
        .find("[plugins.stream_tables]")
        .expect("the example has the section");
    let end = section
        + example[section..]
            .find("\n[pools")
            .expect("pools follow it");
    let merged = format!("{}{block}{}", &example[..section], &example[end..]);
    for text in [example, merged.as_str()] {
        let pooler = test_support::Pooler::start_text(PGCAT, |port| {
            text.replace("port = 6432", &format!("port = {port}"))
        });
        assert!(
            !pooler.log().to_lowercase().contains("unknown"),
            "{}",
            pooler.log()
        );
    }
}
