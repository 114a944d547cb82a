//! What can go wrong with one device's store.

use quarry_clustermap::{Epoch, PartitionId, PgId, Sequence};

use crate::device::DeviceError;
use crate::index::IndexError;

/// Why the store refused or could not do something. Cloned to every waiter of a failed batch.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The device failed. On a write or flush the store is failed from then on.
    #[error("device: {0}")]
    Device(#[from] DeviceError),
    /// An index page or value is damaged or could not be read.
    #[error("index: {reason}")]
    Index {
        /// The index's own words: page and key range.
        reason: String,
    },
    /// An earlier write or flush failed; nothing is accepted until the device is reopened.
    #[error("the store failed earlier: {reason}")]
    Failed {
        /// The first error.
        reason: String,
    },
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
    /// The store was opened read-only.
    #[error("the store is open read-only")]
    ReadOnly,
    /// No room: `free_bytes` includes the reserve that only deletes and checkpoints may use.
    #[error(
        "device full: {wanted_bytes} bytes wanted, {free_bytes} free of which {reserve_bytes} are reserved"
    )]
    Full {
        /// Asked for.
        wanted_bytes: u64,
        /// Not allocated.
        free_bytes: u64,
        /// Reserve.
        reserve_bytes: u64,
    },
    /// The medium fails to read more blocks than a device may have: it is to be replaced.
    #[error("{quarantined_bytes} bytes cannot be read, at most {limit_bytes} may be")]
    QuarantineFull {
        /// In quarantine.
        quarantined_bytes: u64,
        /// Most of them; the number of runs is limited too.
        limit_bytes: u64,
    },
    /// Too many bytes wait for the journal.
    #[error("journal queue full: {queued_bytes} bytes wait")]
    Overloaded {
        /// Bytes that wait.
        queued_bytes: u64,
    },
    /// One record is larger than the ring can take.
    #[error("record of {record_bytes} bytes, at most {limit_bytes} fit")]
    RecordTooLarge {
        /// Its length.
        record_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The placement group was sealed by a later epoch.
    #[error("{pg}: stale epoch, {seen} was seen")]
    StalePgEpoch {
        /// Placement group.
        pg: PgId,
        /// Highest seen.
        seen: Epoch,
    },
    /// The partition has a later epoch.
    #[error("{partition}: stale epoch, {seen} was seen")]
    StaleEpoch {
        /// Partition.
        partition: PartitionId,
        /// Highest seen.
        seen: Epoch,
    },
    /// An entry does not continue the log.
    #[error("{partition}: entry {given} does not follow, {expected} is next")]
    OutOfSequence {
        /// Partition.
        partition: PartitionId,
        /// The sequence that would fit.
        expected: Sequence,
        /// The one given.
        given: Sequence,
    },
    /// A truncation would remove entries that are applied already.
    #[error("{partition}: cannot truncate after {after}, {applied} is applied")]
    TruncatesApplied {
        /// Partition.
        partition: PartitionId,
        /// Where to truncate.
        after: Sequence,
        /// Applied already.
        applied: Sequence,
    },
    /// Mending lost the partition's rows here: nothing continues its log before a reset.
    #[error("{partition}: its rows on this device were lost; it must be reset")]
    PartitionLost {
        /// Partition.
        partition: PartitionId,
    },
    /// A shard row's lengths, extents and checksums do not agree.
    #[error("shard row: {reason}")]
    InvalidShard {
        /// What does not agree.
        reason: &'static str,
    },
    /// No valid superblock: `reason` describes the best copy.
    #[error("no valid superblock: {reason}")]
    NoSuperblock {
        /// Why the last copy looked at was refused.
        reason: String,
    },
    /// The parameters given to format make no sense.
    #[error("cannot format: {reason}")]
    BadFormatParams {
        /// What is wrong.
        reason: &'static str,
    },
    /// The device is smaller than when it was formatted.
    #[error("device has {actual_bytes} bytes, was formatted with {formatted_bytes}")]
    DeviceShrunk {
        /// At format.
        formatted_bytes: u64,
        /// Now.
        actual_bytes: u64,
    },
    /// The journal is damaged in the middle: a valid later batch follows a bad one.
    #[error("journal damaged: batch {expected} is bad, but batch {found} follows it")]
    JournalDamaged {
        /// Sequence of the bad batch.
        expected: u64,
        /// Sequence of a valid later one (or the same, if it could not be read).
        found: u64,
    },
    /// A valid batch holds a record that cannot be decoded.
    #[error("journal batch {batch}: {reason}")]
    BadRecord {
        /// Sequence of the batch.
        batch: u64,
        /// Why.
        reason: String,
    },
    /// A committed log entry's payload cannot be decoded.
    #[error("{partition}: payload of {sequence}: {reason}")]
    BadEntry {
        /// Partition.
        partition: PartitionId,
        /// The entry.
        sequence: Sequence,
        /// Why.
        reason: String,
    },
    /// A row of one of the store's own tables cannot be decoded.
    #[error("row of table {table:#04x}: {reason}")]
    BadRow {
        /// First byte of the key.
        table: u8,
        /// Why.
        reason: String,
    },
    /// The free map is damaged, or contradicts the journal.
    #[error("free map: {reason}")]
    FreeMapDamaged {
        /// Why.
        reason: String,
    },
}

impl StoreError {
    /// Whether it is the caller who is behind (an older epoch), not the device.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::StaleEpoch { .. } | Self::StalePgEpoch { .. })
    }
}

impl From<IndexError> for StoreError {
    fn from(error: IndexError) -> Self {
        Self::Index { reason: error.to_string() }
    }
}
