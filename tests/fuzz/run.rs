//! Cases by seed, for a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Names the seed of a case that panics.
struct Case<'a> {
    target: &'a str,
    seed: u64,
}

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}: FUZZ_SEED={}", self.target, self.seed);
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value:?}")))
}

/// How long a target runs.
pub fn length() -> Duration {
    Duration::from_secs(from_environment("FUZZ_SECONDS").unwrap_or(3))
}

/// Runs cases until the time is over, and says how many there were.
pub fn cases(target: &str, mut case: impl FnMut(&mut StdRng)) {
    if let Some(seed) = from_environment("FUZZ_SEED") {
        let _case = Case { target, seed };
        return case(&mut StdRng::seed_from_u64(seed));
    }
    let first: u64 = rand::random_range(0..1_000_000_000);
    let end = Instant::now() + length();
    let mut seed = first;
    while Instant::now() < end {
        let _case = Case { target, seed };
        case(&mut StdRng::seed_from_u64(seed));
        seed += 1;
    }
    println!(
        "{target}: {} cases, seeds {first} to {}",
        seed - first,
        seed - 1
    );
}

/// The inputs that are tried first.
pub fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let entries = fs::read_dir(directory).expect("the corpus");
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(target)
        })
        .map(|path| (path.clone(), fs::read(path).expect("an input")))
        .collect();
    inputs.sort();
    inputs
}
