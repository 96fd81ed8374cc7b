//! Makes a failing case smaller while it fails for the same reason.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::case::Case;
use crate::check::{Failure, Sabotage, Verdict, run};
use crate::sql::{QUERY, Sql, without};

/// The smallest failing case found in `limit`, and its failure.
pub async fn shrink(
    c: &mut Client,
    case: Case,
    failure: Failure,
    sabotage: Sabotage,
    limit: Duration,
) -> (Case, Failure) {
    let deadline = Instant::now() + limit;
    let (mut case, mut failure) = (case, failure);
    let mut tried = HashSet::new();
    'again: loop {
        for candidate in candidates(&case, &failure) {
            if Instant::now() > deadline {
                break 'again;
            }
            if !tried.insert(candidate.script()) {
                continue;
            }
            if let Verdict::Failed(found) = run(c, &candidate, sabotage).await
                && found.kind == failure.kind
            {
                (case, failure) = (candidate, found);
                continue 'again;
            }
        }
        break;
    }
    (case, failure)
}

/// How large a case is: its script without the query that compares.
pub fn size(case: &Case) -> usize {
    case.script().len()
}

/// All cases that are one step smaller, the smallest first.
fn candidates(case: &Case, failure: &Failure) -> Vec<Case> {
    let mut all = Vec::new();
    let with_batches = |batches| Case {
        batches,
        ..case.clone()
    };
    if failure.batch > 0 && failure.batch < case.batches.len() {
        all.push(with_batches(case.batches[..failure.batch].to_vec()));
    }
    all.extend(without(&case.batches, 0).into_iter().map(with_batches));
    for (i, batch) in case.batches.iter().enumerate() {
        let mut smaller = lists(&batch.statements);
        smaller.retain(|statements| !statements.is_empty());
        for statements in smaller {
            let mut batches = case.batches.clone();
            batches[i].statements = statements;
            all.push(with_batches(batches));
        }
        if batch.together {
            let mut batches = case.batches.clone();
            batches[i].together = false;
            all.push(with_batches(batches));
        }
    }
    all.extend(lists(&case.setup).into_iter().map(|setup| Case {
        setup,
        ..case.clone()
    }));
    all.push(Case {
        others: &[],
        ..case.clone()
    });
    // At the top any query within will do, whatever its columns.
    let within = case.query.parts(&|sort| sort.starts_with(QUERY));
    for query in within.into_iter().chain(case.query.smaller()) {
        all.push(Case {
            query,
            ..case.clone()
        });
    }
    let before = size(case);
    all.retain(|c| size(c) < before);
    all.sort_by_cached_key(size);
    all
}

/// Lists with a statement less, or with one that is smaller.
fn lists(statements: &[Sql]) -> Vec<Vec<Sql>> {
    let mut all = without(statements, 0);
    for (i, statement) in statements.iter().enumerate() {
        for smaller in statement.smaller() {
            let mut statements = statements.to_vec();
            statements[i] = smaller;
            all.push(statements);
        }
    }
    all
}
