//! The end of the log that is in memory: entries after the committed sequence, and some before it for members that were
//! away for a while.
//!
//! Invariants: entries are dense from `committed + 1`, kept ones dense up to `committed`. Nothing at or below `committed`
//! is ever removed from the log.

use std::collections::VecDeque;

use quarry_clustermap::{Epoch, Sequence};

use super::message::{APPEND_BYTES_MAX, APPEND_ENTRIES_MAX};
use crate::Entry;

/// How many committed entries, and payload bytes, are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Keep {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

impl Keep {
    /// Always: a member that leaves may not know yet of the last commits.
    pub(super) const FEW: Self = Self { entries: 64, bytes: 32 << 10 };
    /// While a member that had the whole history is away.
    pub(super) const MANY: Self = Self { entries: 4_096, bytes: 1 << 20 };
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    committed: Sequence,
    entries: VecDeque<Entry>,
    payload_bytes: usize,
    kept: VecDeque<Entry>,
    kept_bytes: usize,
}

impl Tail {
    /// A tail after `committed`.
    ///
    /// # Panics
    /// If the entries are not dense: the journal returned something that was never appended.
    pub(super) fn new(committed: Sequence, entries: Vec<Entry>) -> Self {
        let mut tail = Self { committed, ..Self::default() };
        for entry in entries {
            tail.push(entry);
        }
        tail
    }

    pub(super) fn committed(&self) -> Sequence {
        self.committed
    }

    pub(super) fn last(&self) -> Sequence {
        Sequence(self.committed.0 + self.entries.len() as u64)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Every entry after this one is in memory.
    pub(super) fn kept_after(&self) -> Sequence {
        Sequence(self.committed.0 - self.kept.len() as u64)
    }

    /// Forgets the oldest committed entries beyond a limit.
    pub(super) fn keep(&mut self, limit: Keep) {
        while self.kept.len() > limit.entries || self.kept_bytes > limit.bytes {
            let Some(entry) = self.kept.pop_front() else { return };
            self.kept_bytes -= entry.payload.len();
        }
    }

    /// `None` at or below the committed sequence, and beyond the end.
    pub(super) fn epoch_at(&self, sequence: Sequence) -> Option<Epoch> {
        self.index_of(sequence).and_then(|index| self.entries.get(index)).map(|entry| entry.epoch)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        assert_eq!(entry.sequence, self.last().next(), "a log is dense");
        self.payload_bytes += entry.payload.len();
        self.entries.push_back(entry);
    }

    /// Removes the entries after a sequence.
    pub(super) fn truncate(&mut self, after: Sequence) {
        assert!(after >= self.committed, "committed entries are never removed");
        while self.last() > after {
            let entry = self.entries.pop_back().expect("there are entries after the committed sequence");
            self.payload_bytes -= entry.payload.len();
        }
    }

    /// Advances the committed sequence by one; returns the entry.
    pub(super) fn commit_next(&mut self) -> Entry {
        let entry = self.entries.pop_front().expect("only what was appended is committed");
        self.payload_bytes -= entry.payload.len();
        self.committed = entry.sequence;
        self.kept_bytes += entry.payload.len();
        self.kept.push_back(entry.clone());
        entry
    }

    /// As many entries from `previous + 1` on as fit one `Append`. Asking for what is not kept is a mistake.
    pub(super) fn batch_after(&self, previous: Sequence) -> Vec<Entry> {
        assert!(previous >= self.kept_after(), "members hold everything that is not kept");
        let mut bytes = 0;
        let skip = usize::try_from(previous.0 - self.kept_after().0).expect("the tail is in memory");
        let fits = |entry: &&Entry| {
            let fits = bytes < APPEND_BYTES_MAX;
            bytes += entry.payload.len();
            fits
        };
        self.kept
            .iter()
            .chain(&self.entries)
            .skip(skip)
            .take(APPEND_ENTRIES_MAX)
            .take_while(fits)
            .cloned()
            .collect()
    }

    fn index_of(&self, sequence: Sequence) -> Option<usize> {
        sequence.0.checked_sub(self.committed.0 + 1).and_then(|index| usize::try_from(index).ok())
    }
}
