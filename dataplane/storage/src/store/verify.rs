//! Verification of what stands on the device beside shards, for scrub: it reads past every cache.
//!
//! | what | read by | healed by |
//! |---|---|---|
//! | index pages, out-of-line values | [`Store::verify_index`], in steps | opening the device anew with [`StoreOptions::mend`](super::StoreOptions) |
//! | superblock copies, free map image, live part of the ring | [`Store::verify_copies`] | [`Store::rewrite_copies`]: memory has all of it |
//!
//! Both go on beside writers and checkpoints. Nothing here writes but `rewrite_copies`.

use bytes::Bytes;

use super::{Inner, Store, StoreError, StoreState, read_free_map, read_slot};
use crate::device::{BLOCK_BYTES, Device};
use crate::format::superblock::{ReplayStart, SLOTS, Superblock, slot_offset, slots_of};
use crate::index::{Seen, WalkDepth};
use crate::journal::RingReader;

/// Where [`Store::verify_index`] goes on: a key, so it stays good however the index changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexCursor(Bytes);

/// A page or value that does not verify.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexDamage {
    /// Where it begins on the device.
    pub offset_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
    /// The index's own words: what is wrong, which keys are behind it.
    pub reason: String,
}

/// One step of a verification.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyStep {
    /// Bytes read from the device.
    pub read_bytes: u64,
    /// What did not verify.
    pub damage: Vec<IndexDamage>,
    /// Where to go on; `None`: the whole index was seen.
    pub next: Option<IndexCursor>,
}

/// What of the copies is damaged.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CopiesHealth {
    /// Slots of superblocks, and why they were refused.
    pub superblocks: Vec<(u64, String)>,
    /// Why the image of the free map was refused.
    pub free_map: Option<String>,
    /// What is wrong with the part of the ring that a replay would read.
    pub journal: Option<String>,
    /// Bytes read from the device.
    pub read_bytes: u64,
}

impl CopiesHealth {
    /// Whether all of them verify.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.superblocks.is_empty() && self.free_map.is_none() && self.journal.is_none()
    }
}

impl<D: Device + 'static> Store<D> {
    /// Reads index pages and out-of-line values from the device and verifies them, from `resume` (or the start) on,
    /// about `bytes_max` bytes: at least one page of rows, and the pages on the way to it.
    ///
    /// A step stays on the root that was in force when it began and holds it like any reader; the next step takes the
    /// root of its own time. So a step never takes a concurrent checkpoint for damage, and keys that moved meanwhile
    /// are seen under the newer root. What is written behind the cursor is left to the next round.
    ///
    /// A page or value that the device fails to read twice is damage too.
    ///
    /// # Errors
    /// The store failed or is closed.
    pub async fn verify_index(
        &self,
        resume: Option<IndexCursor>,
        bytes_max: usize,
    ) -> Result<VerifyStep, StoreError> {
        self.0.check_readable()?;
        let from = resume.map(|IndexCursor(from)| from).unwrap_or_default();
        let mut damage = Vec::new();
        let visit = |seen: Seen<'_>| {
            if let Seen::Damaged { extent, error, .. } = seen {
                let (offset_bytes, len_bytes) = (extent.start.offset_bytes(), extent.len_bytes());
                damage.push(IndexDamage { offset_bytes, len_bytes, reason: error.to_string() });
            }
        };
        let stepped = self.0.tree.walk_step(&from, WalkDepth::Values, bytes_max as u64, visit).await;
        Ok(VerifyStep { read_bytes: stepped.read_bytes, damage, next: stepped.next.map(IndexCursor) })
    }

    /// Reads superblock copies, free map image and the live part of the ring back and verifies them. It waits for a
    /// running checkpoint and starts over when one ran meanwhile.
    ///
    /// # Errors
    /// The store failed or is closed.
    pub async fn verify_copies(&self) -> Result<CopiesHealth, StoreError> {
        let inner = &self.0;
        loop {
            let failed = |inner: &Inner<D>| matches!(*inner.state.borrow(), StoreState::Failed(_));
            inner.wait_until(|inner| !inner.checkpoint_running() || failed(inner)).await;
            inner.check_readable()?;
            let begun = inner.checkpoints_begun.get();
            let health = inner.read_copies().await;
            if begun == inner.checkpoints_begun.get() {
                return Ok(health);
            }
        }
    }

    /// Heals what [`Store::verify_copies`] found, from memory: two checkpoints write both pairs of superblocks and the
    /// free map anew, and leave the part of the ring that was live behind its tail.
    ///
    /// # Errors
    /// As [`Store::checkpoint`].
    pub async fn rewrite_copies(&self) -> Result<(), StoreError> {
        self.checkpoint().await?;
        self.checkpoint().await
    }
}

impl<D: Device + 'static> Inner<D> {
    async fn read_copies(&self) -> CopiesHealth {
        let superblock = self.superblock.borrow().clone();
        let mut health = CopiesHealth::default();
        for slot in 0..SLOTS {
            if let Err(reason) = self.check_slot(slot, &superblock).await {
                health.superblocks.push((slot, reason));
            }
            health.read_bytes += BLOCK_BYTES as u64;
        }
        let map = read_free_map(&*self.device, &superblock).await;
        health.free_map = map.err().map(|error| error.to_string());
        let map_extents = superblock.free_map.extents.iter();
        health.read_bytes += map_extents.map(|extent| extent.len_bytes()).sum::<u64>();
        let head = self.ring.borrow().head();
        let mut reader =
            RingReader::new(&*self.device, superblock.journal, superblock.device, superblock.replay);
        while reader.next_start().sequence < head.sequence {
            if reader.next_batch().await.is_none() {
                let ReplayStart { position, sequence, .. } = reader.next_start();
                let blocks = head.position - position;
                health.journal =
                    Some(format!("batch {sequence} is damaged; {blocks} blocks from it on were not read"));
                break;
            }
        }
        let read_blocks = reader.next_start().position - superblock.replay.position;
        health.read_bytes += read_blocks * BLOCK_BYTES as u64;
        health
    }

    /// The newest checkpoint's pair holds exactly what memory does; the other pair holds the one before it, or what
    /// the format wrote there.
    async fn check_slot(&self, slot: u64, newest: &Superblock) -> Result<(), String> {
        let found = read_slot(&*self.device, slot).await.map_err(|error| error.to_string())?;
        let offset = slot_offset(slot, newest.device_bytes);
        if slots_of(newest.checkpoint).contains(&slot) && found != *newest {
            return Err(format!("the copy at {offset} holds checkpoint {}", found.checkpoint));
        }
        if found.checkpoint > newest.checkpoint {
            return Err(format!("the copy at {offset} is of a later checkpoint than the newest"));
        }
        if found.checkpoint + 1 < newest.checkpoint {
            return Err(format!("the copy at {offset} is of checkpoint {}", found.checkpoint));
        }
        Ok(())
    }
}
