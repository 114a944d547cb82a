//! What callers of the store hand in and get back.

use std::rc::Rc;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use quarry_clustermap::{
    BlobId, ClusterId, DeviceId, Epoch, NodeId, PartitionId, PgId, Sequence, ShardIndex,
};

use crate::extent::Extent;
use crate::store::StoreError;

/// Longest extent of a shard: bounds one index row and one contiguous allocation.
pub const SHARD_EXTENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of a shard under one crc32c: the least a ranged read has to fetch and verify.
pub const CHECKSUM_UNIT_BYTES: u64 = 32 * 1024;
/// Ring size that [`FormatParams`] defaults to on devices that have room for it.
pub const JOURNAL_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;

/// How a device is formatted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormatParams {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its identity: random and never reused, for stale journal batches are told apart by it.
    pub device: DeviceId,
    /// Bytes of the journal ring, a multiple of the block; at most a quarter of the device.
    pub journal_bytes: u64,
}

impl FormatParams {
    /// Default ring: [`JOURNAL_BYTES_DEFAULT`], or an eighth of a small device.
    #[must_use]
    pub fn new(cluster: ClusterId, device: DeviceId, device_bytes: u64) -> Self {
        let block = crate::device::BLOCK_BYTES as u64;
        let journal_bytes = (device_bytes / 8 / block * block).min(JOURNAL_BYTES_DEFAULT);
        Self { cluster, device, journal_bytes }
    }
}

/// Starts a task on the executor of the core that owns the device.
pub type Spawn = Rc<dyn Fn(LocalBoxFuture<'static, ()>)>;
/// Called once, when the store fails for ever.
pub type OnFailed = Rc<dyn Fn(&StoreError)>;
/// Pure decoder of a log entry's payload, needed by replay. Keys come without the partition prefix.
pub type DecodeEntry = Rc<dyn Fn(&[u8]) -> Result<Vec<Mutation>, String>>;

/// How a device is opened.
#[derive(Clone)]
pub struct StoreOptions {
    /// Bytes of index pages kept in memory.
    pub cache_bytes: usize,
    /// A checkpoint starts when the rows that are not yet in the index exceed this.
    pub overlay_bytes_max: usize,
    /// Runs the store's background tasks.
    pub spawn: Spawn,
    /// Decodes payloads of replayed log entries.
    pub decode_entry: DecodeEntry,
    /// Told when the store fails.
    pub on_failed: Option<OnFailed>,
    /// Opens a device whose journal is damaged in the middle, dropping what follows the damage.
    pub salvage: bool,
    /// Whether a damaged device is opened with what is whole on it: [`crate::store::Store::losses`] says what is not.
    /// Without meaning for [`crate::store::Store::open_read_only`].
    pub mend: Mend,
}

/// When a device is mended at open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mend {
    /// Never: damage refuses the device.
    Never,
    /// When opening meets damage, and when [`crate::store::Store::mark_index_damaged`] was called since.
    WhenDamaged,
    /// As above, and the whole index is read first: takes as long as that takes.
    AfterSurvey,
}

impl StoreOptions {
    /// Defaults: 64 MiB of cache, 32 MiB of overlay, no callback, no salvage, no mending.
    #[must_use]
    pub fn new(spawn: Spawn, decode_entry: DecodeEntry) -> Self {
        Self {
            cache_bytes: 64 << 20,
            overlay_bytes_max: 32 << 20,
            spawn,
            decode_entry,
            on_failed: None,
            salvage: false,
            mend: Mend::Never,
        }
    }
}

/// Whether the store serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreState {
    /// Everything works.
    Serving,
    /// Opened by [`crate::store::Store::open_read_only`].
    ReadOnly,
    /// Shut down: nothing is accepted any more.
    Closed,
    /// A write or flush failed: nothing is accepted any more; only reopening can help.
    Failed(StoreError),
}

/// Space of the data area, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceUsage {
    /// Size of the data area.
    pub capacity_bytes: u64,
    /// Not allocated now.
    pub free_bytes: u64,
    /// Part of the free bytes that only deletes and checkpoints may use.
    pub reserve_bytes: u64,
    /// Part of the free bytes that the next checkpoint may take, at worst.
    pub pending_bytes: u64,
    /// Never handed out again: the medium failed to read them. Includes what a shard still uses.
    pub quarantined_bytes: u64,
}

/// Names one shard on a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardKey {
    /// Placement group.
    pub pg: PgId,
    /// Blob.
    pub blob: BlobId,
    /// Position in the stripe.
    pub shard: ShardIndex,
}

/// One contiguous piece of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardExtent {
    /// Where it lies.
    pub extent: Extent,
    /// Bytes of the shard in it; only the last extent may be partly filled.
    pub len_bytes: u32,
    /// One crc32c per [`CHECKSUM_UNIT_BYTES`] (the last unit may be short).
    pub checksums: Vec<u32>,
}

/// One shard as the device knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardRow {
    /// Placement group it was written to.
    pub pg: PgId,
    /// Blob it is a piece of.
    pub blob: BlobId,
    /// Position in the stripe.
    pub shard: ShardIndex,
    /// The partition that owns the blob's manifest.
    pub owner_partition: PartitionId,
    /// Epoch of the placement group it was written under.
    pub epoch: Epoch,
    /// The node that wrote this copy (a repairer is not the blob's first writer).
    pub writer: NodeId,
    /// Bytes of the shard: the sum over `extents`.
    pub len_bytes: u64,
    /// Its pieces in order.
    pub extents: Vec<ShardExtent>,
}

impl ShardRow {
    /// Its name.
    #[must_use]
    pub fn key(&self) -> ShardKey {
        ShardKey { pg: self.pg, blob: self.blob, shard: self.shard }
    }
}

/// One change of one row. `value: None` deletes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mutation {
    /// Row key chosen by the partition, without the `10 | partition` prefix: the store adds it.
    pub key: Bytes,
    /// New value.
    pub value: Option<Bytes>,
}

/// One entry of a partition's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// The partition.
    pub partition: PartitionId,
    /// Epoch it was proposed in.
    pub epoch: Epoch,
    /// Position in the log, dense.
    pub sequence: Sequence,
    /// Every entry up to here was committed when this one was sent.
    pub committed: Sequence,
    /// What it does; opaque here but for [`StoreOptions::decode_entry`].
    pub payload: Bytes,
}

/// What the device knows about a partition's log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveredLog {
    /// Highest epoch seen.
    pub epoch: Epoch,
    /// Entries up to here are in the rows.
    pub applied: Sequence,
    /// Later entries, dense from `applied + 1`.
    pub tail: Vec<LogEntry>,
}
