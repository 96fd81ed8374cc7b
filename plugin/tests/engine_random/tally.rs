//! What the cases came to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::check::Verdict;

#[derive(Debug, Default)]
pub struct Tally {
    /// Scripts of the cases that failed.
    pub failures: Vec<String>,
    exact: usize,
    incremental: usize,
    refreshes: BTreeMap<&'static str, usize>,
    writes: usize,
    refused_writes: usize,
    /// Cases with shared stages.
    shared: usize,
    full: BTreeMap<String, usize>,
    skipped: BTreeMap<String, usize>,
}

impl Tally {
    pub fn add(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Exact(run) => {
                self.exact += 1;
                self.writes += run.writes;
                self.shared += usize::from(run.shared > 0);
                self.refused_writes += run.refused_writes;
                for (mode, n) in &run.refreshes {
                    *self.refreshes.entry(mode).or_default() += n;
                }
                match &run.full {
                    Some(reason) => *self.full.entry(reason.clone()).or_default() += 1,
                    None => self.incremental += 1,
                }
            }
            Verdict::Skipped(reason) => *self.skipped.entry(reason.clone()).or_default() += 1,
            Verdict::Failed(_) => {}
        }
    }

    fn skips(&self) -> usize {
        self.skipped.values().sum()
    }

    /// Whether most cases were compared: a generator of nonsense would never fail.
    pub fn is_sound(&self) -> bool {
        self.skips() * 5 <= self.exact + 5 && self.refused_writes * 3 <= self.writes + 5
    }

    pub fn summary(&self, elapsed: Duration) -> String {
        let cases = self.exact + self.skips() + self.failures.len();
        let mut text = format!(
            "{cases} cases in {:.0} s ({:.1}/s): {} exact, {} skipped, {} failed; {} incremental ({} %), {} with shared stages, \
             refreshes {:?}, {} writes ({} refused)",
            elapsed.as_secs_f64(),
            cases as f64 / elapsed.as_secs_f64(),
            self.exact,
            self.skips(),
            self.failures.len(),
            self.incremental,
            self.incremental * 100 / self.exact.max(1),
            self.shared,
            self.refreshes,
            self.writes,
            self.refused_writes
        );
        for (title, reasons) in [
            ("full because", &self.full),
            ("skipped because", &self.skipped),
        ] {
            let mut reasons: Vec<_> = reasons.iter().map(|(reason, n)| (*n, reason)).collect();
            reasons.sort_by(|a, b| b.cmp(a));
            for (n, reason) in reasons.iter().take(12) {
                write!(text, "\n{title} {reason}: {n}").expect("a String");
            }
        }
        text
    }
}
