//! Which pitfalls the comments of a file name.

use sqllogictest::{DefaultColumnType, Record};

const NUMBER: u32 = 111;

pub fn all() -> impl Iterator<Item = u32> {
    1..=NUMBER
}

/// The numbers in comments such as `# Pitfall 12: …` and `# Pitfalls 1, 2: …`.
pub fn named(records: &[Record<DefaultColumnType>]) -> Vec<u32> {
    let comments = records.iter().filter_map(|record| match record {
        Record::Comment(lines) => Some(lines),
        _ => None,
    });
    comments
        .flatten()
        .filter_map(|line| numbers(line))
        .flatten()
        .collect()
}

fn numbers(line: &str) -> Option<Vec<u32>> {
    let list = line.trim().strip_prefix("Pitfall")?;
    let (list, _) = list.trim_start_matches('s').split_once(':')?;
    let numbers = list
        .split(',')
        .map(|number| number.trim().parse().expect(line));
    Some(numbers.collect())
}
