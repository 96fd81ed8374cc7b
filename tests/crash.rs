//! kill -9 of the pooler and of PostgreSQL under load: after the restart every stream table
//! converges to its query, and nothing is left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use test_support::workload::{Disturbances, Load, SOURCES, stream_tables};
use test_support::{Stack, converges_as, majors, scalar, sessions};
use tokio_postgres::{Client, SimpleQueryMessage};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");

/// Every object of schema pgtrickle and every trigger on a user's table, one per line. A plan or a
/// trigger may be made anew with another number, so numbers are blanked; counts stay.
const OBJECTS: &str = "
    SELECT o FROM (
        SELECT 'relation ' || relkind::text || ' ' || regexp_replace(relname, '\\d+', 'N', 'g') AS o
        FROM pg_class WHERE relnamespace = to_regnamespace('pgtrickle')
        UNION ALL SELECT 'function ' || regexp_replace(proname, '\\d+', 'N', 'g')
        FROM pg_proc WHERE pronamespace = to_regnamespace('pgtrickle')
        UNION ALL SELECT 'type ' || typtype::text || ' ' || regexp_replace(typname, '\\d+', 'N', 'g')
        FROM pg_type WHERE typnamespace = to_regnamespace('pgtrickle')
        UNION ALL SELECT 'trigger on ' || tgrelid::regclass || ' ' || regexp_replace(tgname, '\\d+', 'N', 'g')
        FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
        WHERE NOT tgisinternal AND relnamespace = 'public'::regnamespace
        UNION ALL SELECT 'table ' || relname FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
    ) objects ORDER BY o";

async fn objects(client: &Client) -> Vec<String> {
    let messages = client.simple_query(OBJECTS).await.expect(OBJECTS);
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect()
}

/// What one list has more than the other, each way.
fn changes(before: &[String], after: &[String]) -> Vec<String> {
    let (mut lost, mut found) = (before.to_vec(), Vec::new());
    for object in after {
        match lost.iter().position(|known| known == object) {
            Some(index) => drop(lost.swap_remove(index)),
            None => found.push(format!("+ {object}")),
        }
    }
    found.extend(lost.into_iter().map(|object| format!("- {object}")));
    found
}

const CHURN: [&str; 7] = [
    "DROP STREAM TABLE IF EXISTS churn_rows, churn_groups, churn_days, churn_share",
    "CREATE STREAM TABLE churn_rows AS SELECT id, amount FROM orders WHERE note IS NOT NULL",
    "CREATE STREAM TABLE churn_groups AS
     SELECT placed::date AS d, count(*) AS n FROM orders, accounts GROUP BY 1",
    "DROP STREAM TABLE churn_rows",
    "BEGIN; CREATE STREAM TABLE churn_rows AS SELECT id FROM accounts; COMMIT",
    // They share the groups.
    "CREATE STREAM TABLE churn_days AS SELECT count(*) AS n FROM (SELECT placed::date AS d, sum(id) AS s FROM orders GROUP BY 1) g",
    "CREATE STREAM TABLE churn_share AS SELECT d, s FROM (SELECT placed::date AS d, sum(id) AS s FROM orders GROUP BY 1) g WHERE s > 9",
];

/// Creates and drops stream tables until it is stopped, so that crashes hit those too. Returns how
/// many statements succeeded.
fn churn(port: u16, stop: Arc<AtomicBool>) -> JoinHandle<u32> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut done = 0;
            while !stop.load(Ordering::Relaxed) {
                match test_support::try_connect(port, "app", "app").await {
                    Ok(client) => done += churn_once(&client).await,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
            done
        })
    })
}

/// One round, up to the first error.
async fn churn_once(client: &Client) -> u32 {
    let mut done = 0;
    for statement in CHURN {
        let limit = Duration::from_secs(40);
        let Ok(result) = tokio::time::timeout(limit, client.batch_execute(statement)).await else {
            panic!("hangs: {statement}");
        };
        if let Err(error) = result {
            let code = error.code().map_or("", |code| code.code());
            // Lost connections, locks that the load holds, and what a backend whose client has died
            // still committed, as it would for a plain CREATE TABLE AS.
            let expected = ["", "58000", "55P03", "40P01", "40001", "42P07", "42P01"];
            assert!(
                expected.contains(&code) || code.starts_with("57P") || code.starts_with("08"),
                "{statement}: {error:?}"
            );
            break;
        }
        done += 1;
    }
    done
}

#[tokio::test]
async fn crashes_lose_and_double_nothing() {
    let crashes: u32 =
        std::env::var("CRASHES").map_or(20, |text| text.parse().expect("CRASHES is a number"));
    let seed: u64 = std::env::var("CRASH_SEED").map_or_else(
        |_| rand::random_range(0..1_000_000),
        |text| text.parse().expect("a number"),
    );
    let major = *majors()
        .iter()
        .find(|&&major| major == 15)
        .unwrap_or(&majors()[0]);
    println!("CRASH_SEED={seed} CRASHES={crashes} PostgreSQL {major}");
    let mut random = StdRng::seed_from_u64(seed);

    let mut stack = Stack::start(PGCAT, major);
    let pooled = stack.pooled().await;
    pooled.batch_execute(SOURCES).await.expect("sources");
    let tables = stream_tables();
    for table in &tables {
        pooled
            .batch_execute(&table.create())
            .await
            .unwrap_or_else(|error| panic!("{}: {error:?}", table.create()));
    }
    drop(pooled);
    let baseline = objects(&stack.direct().await).await;

    let mut transactions = 0;
    let (mut slowest, mut churned) = (Duration::ZERO, 0);
    for crash in 1..=crashes {
        let ports: Vec<u16> = (0..8)
            .map(|number| {
                if number % 2 == 0 {
                    stack.pooler.port()
                } else {
                    stack.postgres.port()
                }
            })
            .collect();
        let load = Load::start(&ports, seed + u64::from(crash), Disturbances::Crashes);
        let stop = Arc::new(AtomicBool::new(false));
        let churn = churn(stack.pooler.port(), stop.clone());
        tokio::time::sleep(Duration::from_millis(random.random_range(100..2500))).await;
        let victim = ["the pooler", "PostgreSQL", "both"][random.random_range(0..3)];
        if victim != "PostgreSQL" {
            stack.pooler.kill9();
        }
        if victim != "the pooler" {
            stack.postgres.kill9();
            stack.postgres.restart();
        }
        if victim != "PostgreSQL" {
            stack.pooler.restart();
        }
        let restarted = Instant::now();
        // The load goes on for a moment: recovery has to cope with it.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1000))).await;
        stop.store(true, Ordering::Relaxed);
        let report = load.finish();
        churned += churn.join().expect("the churn meets only expected errors");
        transactions += report.transactions;
        if !report.failures.is_empty() {
            let active = sessions(&stack.direct().await).await;
            panic!(
                "after crash {crash} of {victim}: {:#?}\n{active}",
                report.failures
            );
        }

        let direct = stack.direct().await;
        end_prepared_transactions(&direct).await;
        for table in &tables {
            let (stored, query) = table.sides();
            converges_as(
                &direct,
                &stored,
                &query,
                table.name,
                Duration::from_secs(40),
            )
            .await;
        }
        slowest = slowest.max(restarted.elapsed());
        let pooled = stack.pooled().await;
        drop_churned(&pooled).await;
        nothing_left(&direct, &baseline).await;
        println!(
            "crash {crash} of {victim}: converged within {:?} of the restart",
            restarted.elapsed()
        );
    }
    println!(
        "{crashes} crashes, {} stream tables, {transactions} transactions, {churned} CREATE and DROP, slowest recovery {slowest:?}",
        tables.len()
    );
    assert!(transactions > 0 && churned > 0, "the load was no load");

    // Without stream tables nothing of them is left on the sources.
    let pooled = stack.pooled().await;
    for table in tables.iter().rev() {
        pooled
            .batch_execute(&format!("DROP STREAM TABLE {}", table.name))
            .await
            .expect(table.name);
    }
    let direct = stack.direct().await;
    let left = objects(&direct).await;
    let left: Vec<&String> = left
        .iter()
        .filter(|object| object.contains("_N") || object.starts_with("trigger"))
        .collect();
    assert_eq!(left, Vec::<&String>::new());
}

/// Writers that lost their connection between PREPARE and COMMIT PREPARED leave these; PostgreSQL
/// keeps them over the crash, as it must.
async fn end_prepared_transactions(client: &Client) {
    let messages = client
        .simple_query("SELECT gid FROM pg_prepared_xacts")
        .await
        .expect("pg_prepared_xacts");
    for (index, message) in messages.iter().enumerate() {
        if let SimpleQueryMessage::Row(row) = message {
            let end = if index % 2 == 0 { "COMMIT" } else { "ROLLBACK" };
            let sql = format!("{end} PREPARED '{}'", row.get(0).unwrap_or_default());
            client.batch_execute(&sql).await.expect(&sql);
        }
    }
}

/// Whatever state the crash left the churned tables in, they can be dropped. A half-made one may be
/// finished by the worker at this very moment, so a busy lock is worth another try.
async fn drop_churned(client: &Client) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match client.batch_execute(CHURN[0]).await {
            Ok(()) => return,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn nothing_left(client: &Client, baseline: &[String]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let now = objects(client).await;
        let changes = changes(baseline, &now);
        if changes.is_empty() {
            return;
        }
        let listed = scalar(
            client,
            "SELECT string_agg(name || ' ' || status, ', ') FROM pgtrickle.stream_tables",
        )
        .await;
        assert!(
            Instant::now() < deadline,
            "left behind or lost: {changes:#?}\nlisted: {listed:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
