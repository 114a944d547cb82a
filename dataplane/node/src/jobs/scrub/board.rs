//! How many passes were asked for, and how far each core is.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Shared by the cores and the admin listener.
#[derive(Clone)]
pub(crate) struct ScrubBoard(Arc<Counts>);

struct Counts {
    wanted: AtomicU64,
    done: Vec<AtomicU64>,
}

impl ScrubBoard {
    pub(crate) fn new(cores: usize) -> Self {
        let done = (0..cores).map(|_| AtomicU64::default()).collect();
        Self(Arc::new(Counts { wanted: AtomicU64::default(), done }))
    }

    /// Asks for a pass that begins from now on; its number. One that was asked for before may be under way by now.
    pub(crate) fn ask(&self) -> u64 {
        let next = self.finished() + 1;
        let newest = self.0.wanted.fetch_max(next, Ordering::AcqRel);
        if newest < next {
            return next;
        }
        self.0.wanted.fetch_max(next + 1, Ordering::AcqRel);
        next + 1
    }

    /// A pass is due: one that is under way is enough.
    pub(super) fn due(&self) {
        self.0.wanted.fetch_max(self.finished() + 1, Ordering::AcqRel);
    }

    /// The newest pass asked for.
    pub(crate) fn wanted(&self) -> u64 {
        self.0.wanted.load(Ordering::Acquire)
    }

    /// A core has finished a pass.
    pub(super) fn finish(&self, core: usize, pass: u64) {
        self.0.done[core].fetch_max(pass, Ordering::AcqRel);
    }

    /// The newest pass that every core has finished.
    pub(crate) fn finished(&self) -> u64 {
        self.0.done.iter().map(|done| done.load(Ordering::Acquire)).min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_finished_when_every_core_has_finished_it() {
        let board = ScrubBoard::new(2);
        assert_eq!((board.ask(), board.wanted(), board.finished()), (1, 1, 0));
        // The first may be under way: the second comes after it, however often it is asked for.
        assert_eq!((board.ask(), board.ask(), board.wanted()), (2, 2, 2));
        board.finish(0, 1);
        assert_eq!(board.finished(), 0);
        board.finish(1, 2);
        assert_eq!(board.finished(), 1);
        board.finish(0, 2);
        assert_eq!((board.finished(), board.ask()), (2, 3));
    }
}
