//! Telling others' writes from the worker's own, by counting transaction ids.
//!
//! The server's next transaction id moves with every write, refreshes included. If it has moved by no more
//! than the refreshes did for certain, nobody else has written, and a database at rest stays at rest.

use std::cell::Cell;
use std::rc::Rc;

/// The transaction ids that refreshes have used, between one look at the server and the next.
#[derive(Debug, Default)]
pub(super) struct OwnWrites {
    /// Goes up when a look begins and when it ends: odd during a look.
    looks: Cell<u64>,
    certain: Cell<u64>,
}

/// A refresh under way, which uses one transaction id at least.
pub(super) struct OwnWrite {
    writes: Rc<OwnWrites>,
    looks: u64,
}

impl OwnWrites {
    pub(super) fn begin(self: &Rc<Self>) -> OwnWrite {
        OwnWrite {
            writes: Rc::clone(self),
            looks: self.looks.get(),
        }
    }

    /// A look at the server begins: returns how many ids were used since the last one ended.
    pub(super) fn look(&self) -> u64 {
        self.looks.set(self.looks.get() | 1);
        self.certain.take()
    }

    /// The look has ended.
    pub(super) fn looked(&self) {
        self.looks.set((self.looks.get() | 1) + 1);
    }
}

impl OwnWrite {
    /// The refresh has committed. It counts only if it lies between two looks: of one that overlaps a look
    /// nobody knows on which side its id was taken.
    pub(super) fn end(self) {
        if self.looks.is_multiple_of(2) && self.writes.looks.get() == self.looks {
            self.writes.certain.set(self.writes.certain.get() + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_two_looks_is_certain() {
        let writes = Rc::new(OwnWrites::default());
        writes.begin().end();
        let overlapping = writes.begin();
        assert_eq!(writes.look(), 1);
        let during = writes.begin();
        overlapping.end();
        during.end();
        writes.looked();
        writes.begin().end();
        writes.begin().end();
        assert_eq!(writes.look(), 2);
        writes.looked();
        assert_eq!(writes.look(), 0);
    }
}
