//! Blocks that the medium failed to read (EIO), kept out of the free map for ever.
//!
//! | step | state |
//! |---|---|
//! | a read of a shard answers EIO | the reader still holds its pin, so the blocks are nobody else's |
//! | [`Store::quarantine`] | in memory at once; a local row with the whole list is journalled |
//! | the shard is repaired to new extents, or freed | its old extents come back, the quarantined ones among them stay idle |
//! | opening, mending | the list is taken up after replay, before anything is allocated |
//!
//! Only EIO counts. A checksum that does not match says that bytes were lost or went astray on some way, not that the
//! medium cannot hold them: those blocks are used again, however often it happens; each time they are found and repaired.
//! A list that was not durable before a power cut is found again by the next read.

use std::ops::Range;

use super::core::Core;
use super::{Inner, Store, StoreError};
use crate::device::{BLOCK_BYTES, Device};
use crate::extent::{BlockIndex, Extent, FreeMap};
use crate::format::record::Record;
use crate::format::rows;
use crate::index::Tree;
use crate::journal::{Class, Subject};

/// One part in this many of the data area may be in quarantine; a device with more is failing.
const QUARANTINE_DIVISOR: u64 = 100;
/// The same for a small device.
const QUARANTINE_BLOCKS_MIN: u64 = 256;
/// Most runs of the list: bounds its row.
const QUARANTINE_RUNS_MAX: usize = 4096;
/// Bytes that one run takes in the row, at most.
const RUN_BYTES: usize = 16;

impl<D: Device + 'static> Store<D> {
    /// Keeps the blocks of a range of the device from being handed out again; durable when Ok, in force at once. Who
    /// uses them goes on to do so.
    ///
    /// # Errors
    /// [`StoreError::QuarantineFull`]: the device has too many such blocks and is to be replaced.
    /// [`StoreError::Overloaded`], or the store is not serving.
    pub async fn quarantine(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        let inner = &self.0;
        inner.check_serving()?;
        let block = BLOCK_BYTES as u64;
        let (start, end) = (offset_bytes / block, offset_bytes.saturating_add(len_bytes).div_ceil(block));
        let blocks = u32::try_from(end - start).unwrap_or(u32::MAX);
        inner.space.free.borrow_mut().quarantine(Extent { start: BlockIndex(start), blocks });
        let runs = inner.space.free.borrow().quarantined();
        inner.check_quarantine(&runs)?;
        let value = rows::encode_quarantine(&runs);
        let record = Record::LocalPut { name: rows::QUARANTINE.to_owned(), value };
        inner.journal(record, Subject::Local, Class::Privileged, None)?.wait().await
    }
}

impl<D: Device + 'static> Inner<D> {
    fn check_quarantine(&self, runs: &[Extent]) -> Result<(), StoreError> {
        let capacity_blocks = self.space.usage().capacity_bytes / BLOCK_BYTES as u64;
        let limit_blocks = (capacity_blocks / QUARANTINE_DIVISOR).max(QUARANTINE_BLOCKS_MIN);
        let quarantined_bytes: u64 = runs.iter().map(|run| run.len_bytes()).sum();
        let limit_bytes = limit_blocks * BLOCK_BYTES as u64;
        let runs_max = QUARANTINE_RUNS_MAX.min(self.ring.borrow().payload_bytes_max() / 2 / RUN_BYTES);
        if quarantined_bytes > limit_bytes || runs.len() > runs_max {
            return Err(StoreError::QuarantineFull { quarantined_bytes, limit_bytes });
        }
        Ok(())
    }
}

/// Mending found index pages that the medium does not read: they join the list, which the next checkpoint writes.
pub(super) fn add_unreadable(
    core: &mut Core,
    recorded: Vec<Extent>,
    unreadable: &[Extent],
    area: Range<BlockIndex>,
) {
    if unreadable.is_empty() {
        return;
    }
    let mut map = FreeMap::new(area);
    recorded.iter().chain(unreadable).for_each(|&extent| map.quarantine(extent));
    let mut runs = map.quarantined();
    runs.truncate(QUARANTINE_RUNS_MAX);
    core.active.put(rows::local_key(rows::QUARANTINE), Some(rows::encode_quarantine(&runs)));
}

/// The list as replay left it.
pub(super) async fn recorded<D: Device>(core: &Core, tree: &Tree<D>) -> Result<Vec<Extent>, StoreError> {
    let key = rows::local_key(rows::QUARANTINE);
    let row = match core.overlay_get(&key) {
        Some(row) => row,
        None => tree.get(&key).await?,
    };
    let Some(row) = row else { return Ok(Vec::new()) };
    rows::decode_quarantine(&row)
        .map_err(|error| StoreError::BadRow { table: rows::TABLE_LOCAL, reason: error.to_string() })
}
