//! Who holds which blocks of the data area, and when freed ones may be reused.
//!
//! | freed by | reusable when |
//! |---|---|
//! | release of a reservation | at once: nothing durable names it |
//! | a shard's free or replacement | its record is flushed, its last pin is gone, and no checkpoint that still names it is being written |
//! | mending (what only the old tree used) | its first checkpoint's superblock is durable |
//! | a checkpoint (old index pages and values, old free map) | its superblock is durable and the last reader of the old root is gone |
//!
//! The third condition on shards keeps the free map of a checkpoint exact: a checkpoint frozen at batch N
//! stores the map as of N. A shard freed after N is allocated in it and is freed again by replay, so the
//! checkpoint itself must not have put a page there.
//!
//! Invariant: data area = free map + reserved + live shards + index + free map image + freed + retired + idle
//! (quarantined, see `quarantine`).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use crate::device::BLOCK_BYTES;
use crate::extent::{Extent, FreeMap};
use crate::index::OldRoot;
use crate::store::{CHECKSUM_UNIT_BYTES, SHARD_EXTENT_BYTES_MAX, ShardKey, SpaceUsage, StoreError};

/// One part in this many of the data area is kept for deletes and checkpoints.
const RESERVE_DIVISOR: u64 = 32;
/// The reserve of a small device: room for the pages of a small checkpoint.
const RESERVE_BLOCKS_MIN: u64 = 128;

/// A shard's extents between their free record and their reuse.
#[derive(Debug)]
struct Freed {
    key: ShardKey,
    extents: Vec<Extent>,
    after_freeze: bool,
}

#[derive(Default)]
struct Held {
    /// Handed out by `reserve`, named by nothing durable: first block -> blocks.
    reserved: BTreeMap<u64, u32>,
    pins: HashMap<ShardKey, u32>,
    freed: Vec<Freed>,
    retired: VecDeque<(OldRoot, Vec<Extent>)>,
    /// While a checkpoint is written: extents committed since it was frozen.
    committed_since_freeze: Option<Vec<Extent>>,
}

/// Space of one device.
pub(super) struct Space {
    /// The free map; the index allocates from it directly.
    pub(super) free: RefCell<FreeMap>,
    held: RefCell<Held>,
    reserve_blocks: u64,
    capacity_blocks: u64,
}

impl Space {
    pub(super) fn new(free: FreeMap) -> Self {
        let area = free.area();
        let capacity_blocks = area.end.0 - area.start.0;
        let reserve_blocks =
            (capacity_blocks / RESERVE_DIVISOR).max(RESERVE_BLOCKS_MIN).min(capacity_blocks / 4);
        Self { free: RefCell::new(free), held: RefCell::default(), reserve_blocks, capacity_blocks }
    }

    /// What mending found: the `retired` blocks become free when the first checkpoint is durable and `old_root` is not
    /// in use any more.
    pub(super) fn with_retired(free: FreeMap, old_root: OldRoot, retired: Vec<Extent>) -> Self {
        let space = Self::new(free);
        space.held.borrow_mut().retired.push_back((old_root, retired));
        space
    }

    pub(super) fn reserve_blocks(&self) -> u64 {
        self.reserve_blocks
    }

    pub(super) fn usage(&self) -> SpaceUsage {
        let block = BLOCK_BYTES as u64;
        SpaceUsage {
            capacity_bytes: self.capacity_blocks * block,
            free_bytes: self.free.borrow().free_blocks() * block,
            reserve_bytes: self.reserve_blocks * block,
            pending_bytes: 0,
            quarantined_bytes: self.free.borrow().quarantined_blocks() * block,
        }
    }

    /// Refuses if taking `len_bytes` would leave fewer than `keep_blocks` free.
    pub(super) fn check_room(&self, len_bytes: u64, keep_blocks: u64) -> Result<(), StoreError> {
        let blocks = len_bytes.div_ceil(BLOCK_BYTES as u64);
        if self.free.borrow().free_blocks() >= blocks.saturating_add(keep_blocks) {
            return Ok(());
        }
        let SpaceUsage { free_bytes, reserve_bytes, .. } = self.usage();
        Err(StoreError::Full { wanted_bytes: len_bytes, free_bytes, reserve_bytes })
    }

    pub(super) fn reserve(&self, len_bytes: u64) -> Result<Vec<Extent>, StoreError> {
        self.collect();
        self.check_room(len_bytes, self.reserve_blocks)?;
        let blocks = len_bytes.div_ceil(BLOCK_BYTES as u64);
        let extent_blocks_max =
            u32::try_from(SHARD_EXTENT_BYTES_MAX / BLOCK_BYTES as u64).expect("a small constant");
        let unit_blocks = u32::try_from(CHECKSUM_UNIT_BYTES / BLOCK_BYTES as u64).expect("a small constant");
        let extents = self.free.borrow_mut().allocate_fragmented(blocks, extent_blocks_max, unit_blocks);
        let Some(extents) = extents else {
            let SpaceUsage { free_bytes, reserve_bytes, .. } = self.usage();
            return Err(StoreError::Full { wanted_bytes: len_bytes, free_bytes, reserve_bytes });
        };
        let mut held = self.held.borrow_mut();
        held.reserved.extend(extents.iter().map(|extent| (extent.start.0, extent.blocks)));
        Ok(extents)
    }

    /// Whether every extent came from [`Space::reserve`] and was neither released nor committed.
    pub(super) fn is_reserved(&self, extents: &[Extent]) -> bool {
        let held = self.held.borrow();
        extents.iter().all(|extent| held.reserved.get(&extent.start.0) == Some(&extent.blocks))
    }

    pub(super) fn release(&self, extents: &[Extent]) {
        let mut held = self.held.borrow_mut();
        for &extent in extents {
            let blocks = held.reserved.remove(&extent.start.0);
            assert_eq!(blocks, Some(extent.blocks), "{extent:?} was not reserved");
            self.free.borrow_mut().free(extent);
        }
    }

    /// A commit record naming these extents is durable.
    pub(super) fn commit(&self, extents: impl Iterator<Item = Extent>) {
        let mut held = self.held.borrow_mut();
        for extent in extents {
            let blocks = held.reserved.remove(&extent.start.0);
            assert_eq!(blocks, Some(extent.blocks), "{extent:?} was not reserved");
            held.committed_since_freeze.iter_mut().for_each(|since| since.push(extent));
        }
    }

    /// Replay of a commit record.
    pub(super) fn claim(&self, extents: impl Iterator<Item = Extent>) -> Result<(), StoreError> {
        for extent in extents {
            let reserved = self.free.borrow_mut().reserve_exact(extent);
            reserved.map_err(|overlap| StoreError::FreeMapDamaged { reason: overlap.to_string() })?;
        }
        Ok(())
    }

    /// Replay of a free record; nothing is pinned yet, and no checkpoint is being written.
    pub(super) fn unclaim(&self, extents: &[Extent]) -> Result<(), StoreError> {
        for &extent in extents {
            let freed = self.free.borrow_mut().try_free(extent);
            freed.map_err(|overlap| StoreError::FreeMapDamaged { reason: overlap.to_string() })?;
        }
        Ok(())
    }

    /// A free record is durable.
    pub(super) fn free_shard(&self, key: ShardKey, extents: Vec<Extent>) {
        if extents.is_empty() {
            return;
        }
        let mut held = self.held.borrow_mut();
        let after_freeze = held.committed_since_freeze.is_some();
        held.freed.push(Freed { key, extents, after_freeze });
        drop(held);
        self.collect();
    }

    pub(super) fn pin(self: &Rc<Self>, key: ShardKey) -> ShardPin {
        *self.held.borrow_mut().pins.entry(key).or_default() += 1;
        ShardPin { space: Rc::clone(self), key }
    }

    /// A checkpoint begins: the map as of now is what it will store.
    pub(super) fn freeze(&self) {
        let since = self.held.borrow_mut().committed_since_freeze.replace(Vec::new());
        assert!(since.is_none(), "one checkpoint at a time");
    }

    /// The free map as of the freeze, given what the checkpoint replaces. What the checkpoint has allocated
    /// since then is not free in it; what is in quarantine and in nobody's use is.
    pub(super) fn image(&self, replaced: &[Extent]) -> FreeMap {
        let held = self.held.borrow();
        let mut image = self.free.borrow().clone().without_quarantine();
        let reserved = held.reserved.iter();
        reserved.for_each(|(&start, &blocks)| {
            image.free(Extent { start: crate::extent::BlockIndex(start), blocks });
        });
        let before = held.freed.iter().filter(|freed| !freed.after_freeze);
        before.flat_map(|freed| &freed.extents).for_each(|&extent| image.free(extent));
        held.retired.iter().flat_map(|(_, extents)| extents).for_each(|&extent| image.free(extent));
        held.committed_since_freeze.iter().flatten().for_each(|&extent| image.free(extent));
        replaced.iter().for_each(|&extent| image.free(extent));
        image
    }

    /// The checkpoint is durable: what it replaced goes when the readers of the old root are gone.
    pub(super) fn thaw(&self, old_root: OldRoot, replaced: Vec<Extent>) {
        let mut held = self.held.borrow_mut();
        assert!(held.committed_since_freeze.take().is_some(), "thaw follows freeze");
        held.freed.iter_mut().for_each(|freed| freed.after_freeze = false);
        held.retired.push_back((old_root, replaced));
        drop(held);
        self.collect();
    }

    /// Frees what a checkpoint took and nothing names.
    pub(super) fn give_back(&self, extents: Vec<Extent>) {
        let mut free = self.free.borrow_mut();
        extents.into_iter().for_each(|extent| free.free(extent));
    }

    /// The checkpoint was given up; the caller has freed what it took.
    pub(super) fn thaw_unchanged(&self) {
        let mut held = self.held.borrow_mut();
        assert!(held.committed_since_freeze.take().is_some(), "thaw follows freeze");
        held.freed.iter_mut().for_each(|freed| freed.after_freeze = false);
        drop(held);
        self.collect();
    }

    /// Gives back what nobody holds any more. Retired roots go in order: a reader of an old root may also be
    /// reading what a later checkpoint replaced.
    pub(super) fn collect(&self) {
        let Held { pins, freed, retired, .. } = &mut *self.held.borrow_mut();
        let mut free = self.free.borrow_mut();
        while let Some((_, extents)) = retired.pop_front_if(|(root, _)| !root.in_use()) {
            extents.into_iter().for_each(|extent| free.free(extent));
        }
        let reusable = |freed: &mut Freed| !freed.after_freeze && !pins.contains_key(&freed.key);
        for freed in freed.extract_if(.., reusable) {
            freed.extents.into_iter().for_each(|extent| free.free(extent));
        }
    }
}

/// Keeps a shard's extents from being reused. Take it before looking the shard up; drop it to let go.
pub struct ShardPin {
    space: Rc<Space>,
    key: ShardKey,
}

impl ShardPin {
    /// The shard it holds.
    #[must_use]
    pub fn key(&self) -> ShardKey {
        self.key
    }
}

impl Drop for ShardPin {
    fn drop(&mut self) {
        let mut held = self.space.held.borrow_mut();
        let count = held.pins.get_mut(&self.key).expect("a pin is counted until it drops");
        *count -= 1;
        if *count == 0 {
            held.pins.remove(&self.key);
        }
        drop(held);
        self.space.collect();
    }
}
