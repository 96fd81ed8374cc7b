//! The README's examples work as printed, and what is written about the tests is true.

use std::fs;
use std::path::Path;
use std::time::Duration;

use test_support::{Pooler, Postgres, Stack, converges};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");
const README: &str = include_str!("../README.md");
const PITFALLS: &str = include_str!("PITFALLS.md");

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
        let pooler = Pooler::start_text(PGCAT, |port| {
            text.replace("port = 6432", &format!("port = {port}"))
        });
        assert!(
            !pooler.log().to_lowercase().contains("unknown"),
            "{}",
            pooler.log()
        );
    }
}

/// The commands of "Coming from PgBouncer", line by line, on a configuration such as Debian's PgBouncer has; those that
/// serve are started.
#[test]
fn commands_for_those_who_come_from_pgbouncer_work() {
    let directory = std::env::temp_dir().join(format!("pgcat-readme-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory");
    let server = Postgres::start(15);
    let ini = directory.join("pgbouncer.ini");
    std::fs::write(
        directory.join("userlist.txt"),
        "\"postgres\" \"postgres\"\n",
    )
    .expect("userlist.txt");
    let toml = directory.join("pgcat.toml");
    for block in blocks("console") {
        let pooler = Pooler::start_text(PGCAT, |port| {
            let databases = format!(
                "[databases]\npostgres = host=127.0.0.1 port={0}\n* = host=127.0.0.1 port={0}\n",
                server.port()
            );
            let text = format!(
                "{databases}[pgbouncer]\nlisten_addr = localhost\nlisten_port = {port}\nauth_type = md5\n\
                 auth_file = userlist.txt\nunix_socket_dir = {}\nauth_user = postgres\n",
                directory.display()
            );
            std::fs::write(&ini, text).expect("pgbouncer.ini");
            let _ = std::fs::remove_file(&toml);
            for line in block.lines().filter(|line| *line != "pgcat pgcat.toml") {
                let line = line.replace("/etc/pgbouncer/pgbouncer.ini", &ini.display().to_string());
                let mut words = line.split(' ');
                assert_eq!(words.next(), Some("pgcat"));
                let mut command = std::process::Command::new(PGCAT);
                command.args(words).current_dir(&directory);
                let output = command.env_remove("CONFIG_FILE").output().expect(&line);
                assert!(output.status.success(), "{line}: {output:?}");
            }
            std::fs::read_to_string(&toml).expect("pgcat.toml")
        });
        let psql = pooler.psql("postgres", "postgres");
        assert_eq!(psql.run(&["SELECT 1"]), "1\n");
        let pools = pooler.psql("postgres", "shop");
        // A pool for each database that is named, although the server has none of the name.
        let named = block.contains("--database shop");
        let error = pools.try_run(&["SELECT 1"]).stderr;
        assert_eq!(
            named,
            error.contains("database \"shop\" does not exist"),
            "{error}"
        );
    }
    std::fs::remove_dir_all(&directory).expect("the directory is removed");
}

/// Whether there is a test `program::module::test`.
fn is_test(path: &str) -> bool {
    let names: Vec<&str> = path.split("::").collect();
    let [program, modules @ .., test] = &names[..] else {
        return false;
    };
    let directory = match *program {
        "pgcat" => "pgcat/src".to_owned(),
        program => format!("tests/{program}"),
    };
    let read = |modules: &[&str]| {
        let file = [&[&*directory], modules].concat().join("/");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::read_to_string(root.join(file + ".rs")).ok()
    };
    let text = read(modules).or_else(|| match modules {
        // In the file of what they test.
        [modules @ .., "tests"] => read(modules),
        _ => None,
    });
    let marked = [
        format!("#[test]fn {test}("),
        format!("#[tokio::test]async fn {test}("),
    ];
    // Without the white space between lines.
    let text: String = text
        .iter()
        .flat_map(|text| text.lines().map(str::trim))
        .collect();
    marked.iter().any(|test| text.contains(test))
}

#[test]
fn every_pitfall_has_its_tests_or_a_reason() {
    let own = "every_pitfall_has_its_tests_or_a_reason";
    assert!(is_test(&format!("readme::{own}")));
    for other in ["is_test", "every_pitfall", "sql_blocks_run"] {
        assert!(!is_test(&format!("readme::{other}")), "{other}");
    }
    let tables: Vec<&str> = PITFALLS.split("|---|---|---|\n").skip(1).collect();
    assert_eq!(tables.len(), 2);
    for (table, count) in tables.into_iter().zip([90, 43]) {
        let rows = table.lines().take_while(|line| line.starts_with('|'));
        let rows: Vec<Vec<&str>> = rows
            .map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let numbers: Vec<&str> = rows.iter().map(|row| row[0]).collect();
        let expected: Vec<String> = (1..=count).map(|number: u32| number.to_string()).collect();
        assert_eq!(numbers, expected);
        for row in rows {
            let [number, title, tests] = row[..] else {
                panic!("{row:?}");
            };
            assert!(!title.is_empty() && !tests.is_empty(), "{number}");
            let quoted = tests.split('`').skip(1).step_by(2);
            for test in quoted.filter(|quoted| quoted.contains("::")) {
                assert!(is_test(test), "{number}: there is no test {test}");
            }
        }
    }
}
