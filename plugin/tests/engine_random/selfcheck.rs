//! Tests of the test: it sees faults made by hand, makes them smaller, and meets all of SQL.

use std::time::Duration;

use test_support::Postgres;
use tokio::task::LocalSet;

use crate::case::Case;
use crate::check::{Sabotage, Verdict, run};
use crate::shrink::{shrink, size};
use crate::{database, server};

#[tokio::test(flavor = "current_thread")]
async fn faults_are_seen_and_made_smaller() {
    let server: Postgres = server();
    LocalSet::new()
        .run_until(async {
            let mut c = database(&server, "selfcheck").await;
            let mut seen = 0;
            for seed in 0..8 {
                let case = Case::generate(seed);
                if !matches!(run(&mut c, &case, Sabotage::None).await, Verdict::Exact(_)) {
                    continue;
                }
                match run(&mut c, &case, Sabotage::ExtraRow).await {
                    Verdict::Failed(failure) => {
                        assert_eq!(failure.kind, "mismatch");
                        assert_eq!(failure.batch, case.batches.len());
                        seen += 1;
                    }
                    other => panic!("seed {seed}: a row too many was not seen: {other:?}"),
                }
            }
            assert!(seen > 4, "most cases are exact without the fault");

            let mut missed = 0;
            for seed in 0..100 {
                let case = Case::generate(seed);
                let Verdict::Failed(failure) = run(&mut c, &case, Sabotage::MissBatch).await else {
                    continue;
                };
                let (kind, before) = (failure.kind.clone(), size(&case));
                let limit = Duration::from_secs(20);
                let (case, failure) =
                    shrink(&mut c, case, failure, Sabotage::MissBatch, limit).await;
                assert_eq!(failure.kind, kind);
                let small = case.script();
                assert!(size(&case) * 2 < before, "seed {seed}: {small}");
                let again = run(&mut c, &case, Sabotage::MissBatch).await;
                assert!(matches!(again, Verdict::Failed(_)), "{again:?}: {small}");
                let sound = run(&mut c, &case, Sabotage::None).await;
                assert!(matches!(sound, Verdict::Exact(_)), "{sound:?}: {small}");
                missed += 1;
                if missed == 2 {
                    return;
                }
            }
            panic!("missed changes were not seen");
        })
        .await;
}

#[test]
fn a_seed_gives_one_case() {
    for seed in 0..50 {
        assert_eq!(Case::generate(seed).script(), Case::generate(seed).script());
    }
    assert_ne!(Case::generate(1).script(), Case::generate(2).script());
}

/// What must come up in two thousand cases.
const OPERATORS: &[&str] = &[
    " JOIN ",
    " LEFT JOIN ",
    " RIGHT JOIN ",
    " FULL JOIN ",
    " CROSS JOIN ",
    " NATURAL ",
    " USING (",
    "LATERAL (",
    "EXISTS (",
    "NOT EXISTS (",
    " IN (SELECT",
    "NOT IN (SELECT",
    " ANY (",
    " ALL (SELECT",
    " OR ",
    "NOT (",
    "CASE WHEN",
    "COALESCE(",
    "NULLIF(",
    " GROUP BY ",
    " HAVING ",
    "ROLLUP",
    "CUBE",
    "GROUPING SETS",
    "GROUPING(",
    "count(DISTINCT",
    "string_agg(",
    "array_agg(",
    "bool_or(",
    "FILTER (WHERE",
    "SELECT DISTINCT ",
    "DISTINCT ON",
    ") UNION (",
    ") UNION ALL (",
    ") INTERSECT (",
    ") EXCEPT (",
    ") INTERSECT ALL (",
    ") EXCEPT ALL (",
    "VALUES (",
    "WITH w1",
    "WITH RECURSIVE",
    ") UNION SELECT ",
    ") UNION ALL SELECT ",
    "MATERIALIZED",
    " OVER (",
    "PARTITION BY",
    "ROWS BETWEEN",
    "GROUPS BETWEEN",
    "EXCLUDE",
    "count(*)) OVER",
    "percentile_disc",
    "AS series",
    "row_number()",
    "lag(",
    " LIMIT ",
    " OFFSET ",
    "WITH TIES",
    "generate_series(",
    "unnest(",
    "WITH ORDINALITY",
    "\"View\"",
    "PARTITION BY RANGE (",
    "FOREIGN KEY",
    "TRUNCATE",
    "ON CONFLICT",
    "MERGE",
    "SAVEPOINT",
    "BEGIN",
];

#[test]
fn all_operators_come_up() {
    let scripts: Vec<_> = (0..2000)
        .map(|seed| Case::generate(seed).script())
        .collect();
    let rare: Vec<_> = OPERATORS
        .iter()
        .filter(|o| scripts.iter().filter(|s| s.contains(**o)).count() < 5)
        .collect();
    assert!(rare.is_empty(), "hardly ever: {rare:?}");
}
