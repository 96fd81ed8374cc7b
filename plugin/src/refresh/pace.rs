//! When to try again, and how much of the time the worker may take. No clock in here but what is
//! passed in.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Consecutive failures after which a stream table's status is `error`.
pub(super) const FAILURES_TO_ERROR: u32 = 3;

const FIRST_RETRY: Duration = Duration::from_millis(250);
/// The pace once the status is `error`: rare enough to cost nothing, often enough that the stream table
/// has recovered before anybody looks.
const SLOWEST_RETRY: Duration = Duration::from_secs(30);
/// The least time between two refreshes of a stream table.
const LEAST_GAP: Duration = Duration::from_millis(2);
/// The longest pause a slow refresh earns: past it, freshness counts more.
const LONGEST_GAP: Duration = Duration::from_secs(60);

/// How long to leave a stream table alone after a refresh that took `took`, so that refreshing it
/// takes at most half of the time. After an idle time longer than that, nothing is left to wait for.
pub(super) fn gap_after(took: Duration) -> Duration {
    took.clamp(LEAST_GAP, LONGEST_GAP)
}

/// How long after one recomputation of a live stream table the next is due. With something written, soon,
/// but it costs what the tables cost, so it gets at most a twentieth of the time; else only because what
/// it reads may have changed without a write (a foreign table, the date).
pub(super) fn recompute_after(took: Duration, written: bool) -> Duration {
    const SOON: Duration = Duration::from_secs(1);
    const ANYWAY: Duration = Duration::from_secs(60);
    let bounded = took.saturating_mul(20);
    bounded.max(if written { SOON } else { ANYWAY })
}

/// The wait before the retry after `failures` consecutive failures: doubling, then steady.
pub(super) fn retry_after(failures: u32) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(1_u32 << failures.saturating_sub(1).min(10));
    jittered(doubled.min(SLOWEST_RETRY))
}

/// The wait after losing `times` in a row against another transaction.
pub(super) fn yield_after(times: u32) -> Duration {
    jittered(Duration::from_millis(10 << times.min(7)))
}

/// Between 75 % and 125 %, so that what failed together does not come back together.
fn jittered(duration: Duration) -> Duration {
    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    let share = 0.75 + 0.5 * (random % 1024) as f64 / 1024.0;
    duration.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_slow_down_and_stay_bounded() {
        assert!(retry_after(1) < Duration::from_millis(400));
        assert!(retry_after(3) > Duration::from_millis(700));
        assert!(retry_after(u32::MAX) <= SLOWEST_RETRY.mul_f64(1.25));
        assert!(yield_after(u32::MAX) < Duration::from_secs(2));
    }

    #[test]
    fn at_most_half_of_the_time() {
        assert_eq!(gap_after(Duration::ZERO), LEAST_GAP);
        assert_eq!(gap_after(Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(gap_after(Duration::from_secs(1000)), LONGEST_GAP);
    }
}
