//! Blobs that are being read on this node, so that the freer leaves their shards until the reader is done.
//!
//! A pin protects a shard that is open; a reader of a long object opens its blobs one after the other, and this
//! protects those that are still to come. One short lock per GET, shared by the cores, sharded by blob.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use quarry_clustermap::BlobId;

const LOCKS: usize = 16;

type Counts = HashMap<BlobId, u32>;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Reads(Arc<[Mutex<Counts>; LOCKS]>);

impl Reads {
    fn lock(&self, blob: BlobId) -> MutexGuard<'_, Counts> {
        let index = usize::try_from(blob.counter.0 % LOCKS as u64).expect("below the number of locks");
        self.0[index].lock().expect("nothing panics under this lock")
    }

    /// Whether somebody reads the blob, or is about to.
    pub(crate) fn contains(&self, blob: BlobId) -> bool {
        self.lock(blob).contains_key(&blob)
    }

    pub(super) fn hold(&self, blobs: &[BlobId]) -> Reading {
        for blob in blobs {
            *self.lock(*blob).entry(*blob).or_default() += 1;
        }
        Reading { reads: self.clone(), blobs: blobs.to_vec() }
    }
}

/// Holds blobs until dropped.
pub(crate) struct Reading {
    reads: Reads,
    blobs: Vec<BlobId>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        for blob in &self.blobs {
            let mut counts = self.reads.lock(*blob);
            let count = counts.get_mut(blob).expect("held since hold()");
            *count -= 1;
            if *count == 0 {
                counts.remove(blob);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quarry_clustermap::WriterCounter;

    use super::*;

    #[test]
    fn held_until_the_last_reader_is_gone() {
        let reads = Reads::default();
        let blobs: Vec<_> =
            (0..40).map(|n| BlobId { counter: WriterCounter(n), ..BlobId::default() }).collect();
        let (first, second) = (reads.hold(&blobs), reads.hold(&blobs[..1]));
        drop(first);
        assert!(reads.contains(blobs[0]) && !reads.contains(blobs[1]));
        drop(second);
        assert!(!reads.contains(blobs[0]));
    }
}
