//! Counters of one store, readable from any thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::journal::QUEUE_BYTES_ADMIT;

/// Values at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Flushes of journal batches and checkpoints.
    pub flushes: u64,
    /// Journal batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of journal batches, without padding.
    pub journal_bytes: u64,
    /// Checkpoints made durable.
    pub checkpoints: u64,
    /// Bytes of index pages and values written by them.
    pub checkpoint_bytes: u64,
    /// Bytes that wait for the journal now.
    pub queued_bytes: u64,
}

/// Handle to the counters; clones share them.
#[derive(Clone, Default, Debug)]
pub struct SharedStats(Arc<[AtomicU64; 7]>);

impl SharedStats {
    /// Values now; each is exact, together they are not one snapshot.
    #[must_use]
    pub fn load(&self) -> Stats {
        let [flushes, batches, records, journal_bytes, checkpoints, checkpoint_bytes, queued_bytes] =
            std::array::from_fn(|n| self.0[n].load(Ordering::Relaxed));
        Stats { flushes, batches, records, journal_bytes, checkpoints, checkpoint_bytes, queued_bytes }
    }

    /// Whether so much waits for the journal that nothing more should be begun which would add to it.
    #[must_use]
    pub fn queue_is_long(&self) -> bool {
        self.0[6].load(Ordering::Relaxed) > QUEUE_BYTES_ADMIT as u64
    }

    pub(super) fn set_queued(&self, bytes: usize) {
        self.0[6].store(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_flush(&self) {
        self.add(0, 1);
    }

    pub(super) fn count_batch(&self, records: u64, bytes: u64) {
        self.add(1, 1);
        self.add(2, records);
        self.add(3, bytes);
    }

    pub(super) fn count_checkpoint(&self, bytes: u64) {
        self.add(4, 1);
        self.add(5, bytes);
    }

    fn add(&self, counter: usize, value: u64) {
        self.0[counter].fetch_add(value, Ordering::Relaxed);
    }
}
