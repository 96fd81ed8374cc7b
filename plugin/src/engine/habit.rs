//! Which sources of a stream table change from one refresh to the next.

/// What a prediction is made from.
#[derive(Debug, Clone)]
pub(super) struct Habit {
    /// The tables that had changed at the last refresh.
    changed: Vec<u32>,
    /// How many refreshes in a row it were these.
    times: u32,
    /// So many make a habit.
    needed: u32,
}

/// At first.
const NEEDED: u32 = 2;
/// However often a prediction was wrong.
const NEEDED_AT_MOST: u32 = 64;

impl Default for Habit {
    fn default() -> Self {
        Self {
            changed: Vec::new(),
            times: 0,
            needed: NEEDED,
        }
    }
}

impl Habit {
    /// These have changed.
    pub(super) fn saw(&mut self, changed: Vec<u32>) {
        if self.changed == changed {
            self.times = self.times.saturating_add(1);
        } else {
            self.changed = changed;
            self.times = 1;
        }
    }

    /// The tables that the next refresh will find changed.
    pub(super) fn predicts(&self) -> Option<&[u32]> {
        (self.times >= self.needed && !self.changed.is_empty()).then_some(&self.changed)
    }

    /// A prediction was wrong. That leaves an error in the server's log, so they are to be rare where they are wrong often.
    pub(super) fn surprised(&mut self) {
        self.times = 0;
        self.needed = (self.needed * 2).min(NEEDED_AT_MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicts_what_was_twice_the_same_and_less_often_after_a_surprise() {
        let mut habit = Habit::default();
        habit.saw(vec![1]);
        assert_eq!(habit.predicts(), None);
        habit.saw(vec![1]);
        assert_eq!(habit.predicts(), Some(&[1][..]));
        habit.surprised();
        for _ in 0..3 {
            habit.saw(vec![2]);
            assert_eq!(habit.predicts(), None);
        }
        habit.saw(vec![2]);
        assert_eq!(habit.predicts(), Some(&[2][..]));
        habit.saw(Vec::new());
        habit.saw(Vec::new());
        assert_eq!(habit.predicts(), None);
    }
}
