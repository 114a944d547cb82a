//! Checkpoint: the overlay becomes part of the index, and the ring before it is free again.
//!
//! | step | durable state afterwards |
//! |---|---|
//! | freeze between two batches: overlay, free map, replay start; uncommitted entries go before all that waits | unchanged |
//! | write new index pages and values beside the old ones | unchanged: nothing names them |
//! | wait for the flush of the re-appended entries | unchanged |
//! | write the free map as of the freeze | unchanged |
//! | flush; write one pair of superblocks; flush | the new checkpoint, replayed from the freeze |
//! | install the root; drop the frozen overlay; advance the ring's tail; give back what was replaced | – |
//!
//! One that finds no room is given up before anything durable names it: its blocks go back, the frozen rows become
//! active again, and another begins when space has come back or somebody asks.
//!
//! A crash before the last flush leaves the former checkpoint, whose pages, free map and ring are untouched.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use futures::channel::oneshot;

use super::overlay::Layer;
use super::{Inner, SpaceUsage, StoreError, StoreState, failed};
use crate::device::{BLOCK_BYTES, Device, IoBuf};
use crate::extent::{Extent, FreeMap};
use crate::format::rows;
use crate::format::superblock::{
    FREE_MAP_EXTENTS_MAX, FreeMapPlace, ROOT_BYTES, ReplayStart, Superblock, slot_offset, slots_of,
};
use crate::index::{Applied, IndexError, PAGE_BYTES, TREE_ROOT_BYTES, TreeRoot};
use crate::journal::{Class, Pending, Subject};

/// The overlay stays below this part of the reserve, so that its pages fit into it.
const OVERLAY_PER_RESERVE: usize = 8;
/// Index pages that one changed row may cause to be written anew: its leaf, and its share of the pages above.
const PAGES_PER_ROW: u64 = 2;
/// What changed rows may cost is never taken for more than this part of the data area: the pages of the whole index.
const INDEX_PART_MAX: u64 = 16;
/// Bytes of one write of the free map.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// What one checkpoint starts from.
struct Frozen {
    layer: Rc<Layer>,
    replay: ReplayStart,
    tails: Vec<oneshot::Receiver<Result<(), StoreError>>>,
}

impl<D: Device + 'static> Inner<D> {
    pub(super) fn checkpoint_running(&self) -> bool {
        self.checkpoints_begun.get() != self.checkpoints_ended.get()
    }

    /// Asks for a checkpoint that begins from now on and waits for its end.
    pub(super) async fn run_checkpoint(&self) -> Result<(), StoreError> {
        let target = self.checkpoints_begun.get() + 1;
        self.checkpoint_wanted.set(true);
        self.work.notify(usize::MAX);
        let failure = |inner: &Self| match &*inner.state.borrow() {
            StoreState::Failed(error) => Some(failed(error)),
            _ => None,
        };
        self.wait_until(|inner| inner.checkpoints_ended.get() >= target || failure(inner).is_some()).await;
        failure(self).or_else(|| self.checkpoint_refused.borrow().clone()).map_or(Ok(()), Err)
    }

    /// Called by the writer between two batches.
    pub(super) fn begin_checkpoint_if_wanted(self: &Rc<Self>) {
        let overlay_bytes = self.core.borrow().active.bytes();
        let free_bytes = self.space.usage().free_bytes;
        let due = self.ring.borrow().wants_checkpoint()
            || overlay_bytes > self.overlay_bytes_max()
            || self.pages_wanted_bytes(self.core.borrow().active.rows().len()) > free_bytes / 2;
        let hopeless = self.free_when_refused.get().is_some_and(|then| free_bytes <= then);
        let wanted = self.checkpoint_wanted.get() || (due && !hopeless);
        if !wanted || self.checkpoint_running() {
            return;
        }
        self.checkpoint_wanted.set(false);
        self.checkpoints_begun.set(self.checkpoints_begun.get() + 1);
        let frozen = self.freeze();
        let inner = Rc::clone(self);
        (self.options.spawn)(Box::pin(async move {
            let written = inner.write_checkpoint(frozen).await;
            let refused = match written {
                Ok(()) => None,
                Err(full @ StoreError::Full { .. }) => Some(full),
                Err(error) => {
                    inner.fail(&error);
                    None
                }
            };
            *inner.checkpoint_refused.borrow_mut() = refused.clone();
            if let Some(refused) = refused {
                inner.give_up_checkpoint(&refused);
            }
            inner.checkpoints_ended.set(inner.checkpoints_ended.get() + 1);
            inner.work.notify(usize::MAX);
            inner.progress.notify(usize::MAX);
        }));
    }

    /// At worst, what the pages of a checkpoint of so many rows take before the old ones are given back.
    fn pages_wanted_bytes(&self, rows: usize) -> u64 {
        rows as u64 * PAGES_PER_ROW * PAGE_BYTES as u64
    }

    /// What the rows that are not in the index yet will take, at worst.
    pub(super) fn pending_bytes(&self) -> u64 {
        let core = self.core.borrow();
        let frozen = core.frozen.as_ref().map_or((0, 0), |layer| (layer.rows().len(), layer.bytes()));
        let (rows, bytes) = (core.active.rows().len() + frozen.0, core.active.bytes() + frozen.1);
        let pages_max = self.space.usage().capacity_bytes / INDEX_PART_MAX;
        // A value of its own is rounded up to blocks: at most doubled, as it is longer than a quarter of one.
        bytes as u64 * 2 + self.pages_wanted_bytes(rows).min(pages_max)
    }

    fn overlay_bytes_max(&self) -> usize {
        let reserve = usize::try_from(self.space.usage().reserve_bytes).unwrap_or(usize::MAX);
        self.options.overlay_bytes_max.min(reserve / OVERLAY_PER_RESERVE)
    }

    fn freeze(&self) -> Frozen {
        let mut core = self.core.borrow_mut();
        assert!(core.frozen.is_none(), "one checkpoint at a time");
        let next = core.active.next();
        let layer = Rc::new(std::mem::replace(&mut core.active, next));
        core.frozen = Some(Rc::clone(&layer));
        self.space.freeze();
        let mut tails = Vec::new();
        let mut first = Vec::new();
        for (partition, record) in core.tails() {
            let (done, receiver) = oneshot::channel();
            tails.push(receiver);
            first.push(Pending {
                subject: Subject::Partition(partition),
                bytes: record.encode(),
                record: None,
                class: Class::Tail,
                grows_tail: false,
                done,
                hold: None,
            });
        }
        self.queue.borrow_mut().push_front(first);
        Frozen { layer, replay: self.ring.borrow().head(), tails }
    }

    async fn write_checkpoint(&self, frozen: Frozen) -> Result<(), StoreError> {
        let changes = self.changes(&frozen.layer).await?;
        let applied = self.tree.apply(&changes, &self.space.free).await;
        let Applied { root, freed, taken, written_bytes } = applied.map_err(|error| match error {
            IndexError::NoSpace => self.full(self.pages_wanted_bytes(changes.len())),
            error => error.into(),
        })?;
        for tail in frozen.tails {
            tail.await.unwrap_or(Err(StoreError::Closed))?;
        }
        let mut replaced = freed;
        replaced.extend_from_slice(&self.superblock.borrow().free_map.extents);
        let placed = self.place_free_map(&replaced);
        let (free_map, image) = placed.inspect_err(|_| self.space.give_back(taken))?;
        write_spread(&*self.device, &free_map.extents, &image).await?;
        let superblock = {
            let old = self.superblock.borrow();
            let checkpoint = old.checkpoint + 1;
            Superblock {
                checkpoint,
                replay: frozen.replay,
                root: root.map(encode_root),
                free_map,
                ..old.clone()
            }
        };
        self.device.flush().await?;
        write_superblock(&*self.device, &superblock).await?;
        self.device.flush().await?;
        if let StoreState::Failed(error) = &*self.state.borrow() {
            return Err(error.clone());
        }
        self.stats.count_flush();
        self.stats.count_flush();
        self.stats.count_checkpoint(written_bytes);
        let old_root = self.tree.install(root);
        self.installs.set(self.installs.get() + 1);
        self.core.borrow_mut().frozen = None;
        self.ring.borrow_mut().advance_tail(superblock.replay.position);
        *self.superblock.borrow_mut() = superblock;
        self.space.thaw(old_root, replaced);
        self.free_when_refused.set(None);
        Ok(())
    }

    /// There was no room: the frozen rows become active again, everything else is as before the freeze.
    fn give_up_checkpoint(&self, refused: &StoreError) {
        tracing::warn!(event = "checkpoint_refused", device = %self.superblock.borrow().device, %refused);
        let mut core = self.core.borrow_mut();
        if let Some(frozen) = core.frozen.take() {
            core.active.absorb(&frozen);
        }
        drop(core);
        self.space.thaw_unchanged();
        self.free_when_refused.set(Some(self.space.usage().free_bytes));
    }

    fn full(&self, wanted_bytes: u64) -> StoreError {
        let SpaceUsage { free_bytes, reserve_bytes, .. } = self.space.usage();
        StoreError::Full { wanted_bytes, free_bytes, reserve_bytes }
    }

    /// The frozen rows, and a deletion for every row of the index in a wiped partition.
    async fn changes<'l>(
        &self,
        layer: &'l Layer,
    ) -> Result<Cow<'l, BTreeMap<Bytes, Option<Bytes>>>, StoreError> {
        let mut changes = Cow::Borrowed(layer.rows());
        for &partition in layer.wiped() {
            let end = rows::partition_end(partition);
            let mut cursor = self.tree.cursor(&rows::partition_key(partition, &[]));
            while cursor.next().await? && cursor.key() < &end[..] {
                let key = Bytes::copy_from_slice(cursor.key());
                changes.to_mut().entry(key).or_insert(None);
            }
        }
        Ok(changes)
    }

    /// Allocates room for the free map and encodes it as of the freeze, without that room.
    fn place_free_map(&self, replaced: &[Extent]) -> Result<(FreeMapPlace, Vec<u8>), StoreError> {
        let mut map = self.space.image(replaced);
        let place = allocate_for_map(&mut self.space.free.borrow_mut(), &map)?;
        for &extent in &place {
            map.reserve_exact(extent).expect("what is free in memory is free in the image");
        }
        Ok(encode_map(&map, place))
    }
}

/// Takes extents for the image of `map` from `free`.
fn allocate_for_map(free: &mut FreeMap, map: &FreeMap) -> Result<Vec<Extent>, StoreError> {
    // Each extent taken out of the map splits at most one of its runs.
    let image_bytes = map.encode().len() + FREE_MAP_EXTENTS_MAX * 16;
    let blocks = u32::try_from(image_bytes.div_ceil(BLOCK_BYTES)).expect("a free map fits memory");
    if let Some(extent) = free.allocate_high(blocks) {
        return Ok(vec![extent]);
    }
    let extents = free.allocate_fragmented(blocks.into(), u32::MAX, 1);
    extents.filter(|extents| extents.len() <= FREE_MAP_EXTENTS_MAX).ok_or_else(|| StoreError::Full {
        wanted_bytes: image_bytes as u64,
        free_bytes: free.free_blocks() * BLOCK_BYTES as u64,
        reserve_bytes: 0,
    })
}

fn encode_map(map: &FreeMap, extents: Vec<Extent>) -> (FreeMapPlace, Vec<u8>) {
    let image = map.encode();
    let crc = crc32c::crc32c(&image);
    (FreeMapPlace { extents, len_bytes: image.len() as u64, crc }, image)
}

/// Takes room for the image of a map in the map itself and encodes it: the first checkpoint of a device.
pub(super) fn place_first_map(mut map: FreeMap) -> Result<(FreeMapPlace, Vec<u8>), StoreError> {
    let before = map.clone();
    let extents = allocate_for_map(&mut map, &before)?;
    Ok(encode_map(&map, extents))
}

/// Writes `image` over the extents in order, without a flush.
pub(super) async fn write_spread<D: Device>(
    device: &D,
    extents: &[Extent],
    image: &[u8],
) -> Result<(), StoreError> {
    let mut rest = image;
    for extent in extents {
        let length = usize::try_from(extent.len_bytes()).expect("a free map fits memory").min(rest.len());
        let (here, after) = rest.split_at(length);
        for (chunk, at) in here.chunks(WRITE_BYTES_MAX).zip((0..).step_by(WRITE_BYTES_MAX)) {
            let mut buf = IoBuf::zeroed(chunk.len().next_multiple_of(BLOCK_BYTES));
            buf[..chunk.len()].copy_from_slice(chunk);
            device.write(extent.start.offset_bytes() + at, buf).await.0?;
        }
        rest = after;
    }
    assert!(rest.is_empty(), "the extents were sized for the image");
    Ok(())
}

/// Writes both copies of one checkpoint, without a flush.
pub(super) async fn write_superblock<D: Device>(
    device: &D,
    superblock: &Superblock,
) -> Result<(), StoreError> {
    for slot in slots_of(superblock.checkpoint) {
        let offset = slot_offset(slot, superblock.device_bytes);
        device.write(offset, IoBuf::copy_of(&superblock.encode(slot))).await.0?;
    }
    Ok(())
}

fn encode_root(root: TreeRoot) -> [u8; ROOT_BYTES] {
    let mut bytes = [0; ROOT_BYTES];
    bytes[..TREE_ROOT_BYTES].copy_from_slice(&root.encode());
    bytes
}
