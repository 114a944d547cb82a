//! Journal records: one frame each inside a batch. Kinds and their frozen version 1 types:
//!
//! | kind | type | tail | means |
//! |---|---|---|---|
//! | 1 | [`ShardCommitV1`] | – | a shard's extents are allocated and its bytes are durable |
//! | 2 | [`ShardFreeV1`] | – | a shard is gone, its extents are free |
//! | 3 | [`LogAppendV1`] | payload | one entry of a partition's log |
//! | 4 | [`LogTruncateV1`] | – | entries after a sequence are rolled back |
//! | 5 | [`LogResetV1`] | – | a joiner's rows and log are wiped |
//! | 6 | [`PgEpochV1`] | – | highest epoch seen of a placement group |
//! | 7 | [`PartitionEpochV1`] | – | highest epoch seen of a partition |
//! | 8 | [`LocalPutV1`] | value | a device-local row |
//!
//! Fields are never reordered, added or removed: that is version 2 of the kind.

use bytes::Bytes;
use quarry_clustermap::{BlobId, Epoch, PartitionId, PgId, Sequence, ShardIndex};
use rkyv::{Archive, Deserialize, Serialize};

use super::{FormatError, frame, rows};
use crate::extent::{BlockIndex, Extent};
use crate::store::{LogEntry, ShardKey, ShardRow};

const VERSION: u16 = 1;
const WHAT: &str = "journal record";

/// An extent as records hold it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ExtentV1 {
    /// First block.
    pub start: u64,
    /// Blocks.
    pub blocks: u32,
}

impl From<Extent> for ExtentV1 {
    fn from(extent: Extent) -> Self {
        Self { start: extent.start.0, blocks: extent.blocks }
    }
}

impl From<ExtentV1> for Extent {
    fn from(extent: ExtentV1) -> Self {
        Self { start: BlockIndex(extent.start), blocks: extent.blocks }
    }
}

/// Kind 1.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ShardCommitV1 {
    /// Placement group.
    pub pg: PgId,
    /// Blob.
    pub blob: BlobId,
    /// Position in the stripe.
    pub shard: ShardIndex,
    /// One index row per extent.
    pub rows: Vec<rows::ShardRowV1>,
    /// Extents of the copy that this one replaces; freed by this record.
    pub replaced: Vec<ExtentV1>,
}

/// Kind 2.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ShardFreeV1 {
    /// Placement group.
    pub pg: PgId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Blob.
    pub blob: BlobId,
    /// Position in the stripe.
    pub shard: ShardIndex,
    /// What becomes free; as many index rows go.
    pub extents: Vec<ExtentV1>,
}

/// Kind 3; the payload is the frame's tail.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct LogAppendV1 {
    /// Partition.
    pub partition: PartitionId,
    /// Epoch in force when it was appended.
    pub in_force: Epoch,
    /// Epoch of the entry, never above the one in force.
    pub epoch: Epoch,
    /// Position in the log.
    pub sequence: Sequence,
    /// Committed when it was sent.
    pub committed: Sequence,
}

/// Kind 4.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct LogTruncateV1 {
    /// Partition.
    pub partition: PartitionId,
    /// Epoch of the primary that asked for it.
    pub epoch: Epoch,
    /// Last entry to keep.
    pub after: Sequence,
}

/// Kind 5.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct LogResetV1 {
    /// Partition.
    pub partition: PartitionId,
    /// Epoch of the primary that asked for it.
    pub epoch: Epoch,
    /// Where the log continues.
    pub base: Sequence,
}

/// Kind 6.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct PgEpochV1 {
    /// Placement group.
    pub pg: PgId,
    /// Highest seen.
    pub epoch: Epoch,
}

/// Kind 7.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct PartitionEpochV1 {
    /// Partition.
    pub partition: PartitionId,
    /// Highest seen.
    pub epoch: Epoch,
}

/// Kind 8; the value is the frame's tail.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct LocalPutV1 {
    /// Name of the row.
    pub name: String,
}

/// One record, whatever its version on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// A shard is stored; `replaced` are the extents of its former copy.
    ShardCommit {
        /// The shard.
        row: ShardRow,
        /// Freed by this record.
        replaced: Vec<Extent>,
    },
    /// A shard is gone.
    ShardFree {
        /// Which.
        key: ShardKey,
        /// Epoch of its placement group.
        epoch: Epoch,
        /// What becomes free.
        extents: Vec<Extent>,
    },
    /// An entry of a log.
    LogAppend {
        /// Epoch in force when it was appended.
        in_force: Epoch,
        /// The entry.
        entry: LogEntry,
    },
    /// Entries after `after` are gone.
    LogTruncate {
        /// Partition.
        partition: PartitionId,
        /// Epoch of the primary that asked.
        epoch: Epoch,
        /// Last entry to keep.
        after: Sequence,
    },
    /// All rows and entries of a partition are gone.
    LogReset {
        /// Partition.
        partition: PartitionId,
        /// Epoch of the primary that asked.
        epoch: Epoch,
        /// Where the log continues.
        base: Sequence,
    },
    /// Highest epoch seen.
    PgEpoch {
        /// Placement group.
        pg: PgId,
        /// Highest seen.
        epoch: Epoch,
    },
    /// Highest epoch seen.
    PartitionEpoch {
        /// Partition.
        partition: PartitionId,
        /// Highest seen.
        epoch: Epoch,
    },
    /// A device-local row.
    LocalPut {
        /// Name.
        name: String,
        /// Value.
        value: Bytes,
    },
}

impl Record {
    /// Names of the kinds, by kind number minus one.
    pub const KIND_NAMES: [&'static str; 8] = [
        "shard commit",
        "shard free",
        "log append",
        "log truncate",
        "log reset",
        "pg epoch",
        "partition epoch",
        "local put",
    ];

    /// Kind number.
    #[must_use]
    pub fn kind(&self) -> u16 {
        match self {
            Self::ShardCommit { .. } => 1,
            Self::ShardFree { .. } => 2,
            Self::LogAppend { .. } => 3,
            Self::LogTruncate { .. } => 4,
            Self::LogReset { .. } => 5,
            Self::PgEpoch { .. } => 6,
            Self::PartitionEpoch { .. } => 7,
            Self::LocalPut { .. } => 8,
        }
    }

    /// Its frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (kind, to) = (self.kind(), &mut out);
        match self {
            Self::ShardCommit { row, replaced } => {
                let archived = ShardCommitV1 {
                    pg: row.pg,
                    blob: row.blob,
                    shard: row.shard,
                    rows: rows::ShardRowV1::from_row(row),
                    replaced: replaced.iter().map(|&extent| extent.into()).collect(),
                };
                frame::encode(kind, VERSION, &archived, &[], to);
            }
            Self::ShardFree { key, epoch, extents } => {
                let extents = extents.iter().map(|&extent| extent.into()).collect();
                let archived =
                    ShardFreeV1 { pg: key.pg, epoch: *epoch, blob: key.blob, shard: key.shard, extents };
                frame::encode(kind, VERSION, &archived, &[], to);
            }
            Self::LogAppend { in_force, entry } => {
                let LogEntry { partition, epoch, sequence, committed, ref payload } = *entry;
                let archived = LogAppendV1 { partition, in_force: *in_force, epoch, sequence, committed };
                frame::encode(kind, VERSION, &archived, payload, to);
            }
            &Self::LogTruncate { partition, epoch, after } => {
                frame::encode(kind, VERSION, &LogTruncateV1 { partition, epoch, after }, &[], to);
            }
            &Self::LogReset { partition, epoch, base } => {
                frame::encode(kind, VERSION, &LogResetV1 { partition, epoch, base }, &[], to);
            }
            &Self::PgEpoch { pg, epoch } => {
                frame::encode(kind, VERSION, &PgEpochV1 { pg, epoch }, &[], to);
            }
            &Self::PartitionEpoch { partition, epoch } => {
                frame::encode(kind, VERSION, &PartitionEpochV1 { partition, epoch }, &[], to);
            }
            Self::LocalPut { name, value } => {
                frame::encode(kind, VERSION, &LocalPutV1 { name: name.clone() }, value, to);
            }
        }
        out
    }

    /// Cuts the first record off a batch's payload; returns it and what follows.
    ///
    /// # Errors
    /// [`FormatError`], precise about what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), FormatError> {
        let (frame, rest) = frame::split(bytes)?;
        if frame.version != VERSION {
            return Err(FormatError::Version { what: WHAT, version: frame.version.into() });
        }
        let record = match frame.kind {
            1 => {
                let ShardCommitV1 { pg, blob, shard, rows, replaced } = frame::read(&frame, WHAT)?;
                let row = rows::ShardRowV1::into_row(ShardKey { pg, blob, shard }, rows)?;
                Self::ShardCommit { row, replaced: replaced.into_iter().map(Extent::from).collect() }
            }
            2 => {
                let ShardFreeV1 { pg, epoch, blob, shard, extents } = frame::read(&frame, WHAT)?;
                let extents = extents.into_iter().map(Extent::from).collect();
                Self::ShardFree { key: ShardKey { pg, blob, shard }, epoch, extents }
            }
            3 => {
                let LogAppendV1 { partition, in_force, epoch, sequence, committed } =
                    frame::read(&frame, WHAT)?;
                let payload = Bytes::copy_from_slice(frame.tail);
                Self::LogAppend {
                    in_force,
                    entry: LogEntry { partition, epoch, sequence, committed, payload },
                }
            }
            4 => {
                let LogTruncateV1 { partition, epoch, after } = frame::read(&frame, WHAT)?;
                Self::LogTruncate { partition, epoch, after }
            }
            5 => {
                let LogResetV1 { partition, epoch, base } = frame::read(&frame, WHAT)?;
                Self::LogReset { partition, epoch, base }
            }
            6 => {
                let PgEpochV1 { pg, epoch } = frame::read(&frame, WHAT)?;
                Self::PgEpoch { pg, epoch }
            }
            7 => {
                let PartitionEpochV1 { partition, epoch } = frame::read(&frame, WHAT)?;
                Self::PartitionEpoch { partition, epoch }
            }
            8 => {
                let LocalPutV1 { name } = frame::read(&frame, WHAT)?;
                Self::LocalPut { name, value: Bytes::copy_from_slice(frame.tail) }
            }
            _ => return Err(FormatError::Magic { what: WHAT }),
        };
        if record.counters().contains(&u64::MAX) {
            return Err(FormatError::Field { what: WHAT, field: "epoch or sequence" });
        }
        Ok((record, rest))
    }

    /// Its epochs and sequences: all count up by one, so none is ever the last number.
    fn counters(&self) -> [u64; 4] {
        match self {
            Self::ShardCommit { row, .. } => [row.epoch.0, 0, 0, 0],
            Self::LogAppend { in_force, entry } => {
                [in_force.0, entry.epoch.0, entry.sequence.0, entry.committed.0]
            }
            Self::LogTruncate { epoch, after: sequence, .. }
            | Self::LogReset { epoch, base: sequence, .. } => [epoch.0, sequence.0, 0, 0],
            Self::ShardFree { epoch, .. }
            | Self::PgEpoch { epoch, .. }
            | Self::PartitionEpoch { epoch, .. } => [epoch.0, 0, 0, 0],
            Self::LocalPut { .. } => [0; 4],
        }
    }
}
