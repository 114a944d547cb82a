//! What one core or node asks of the owner of a device: the messages that travel over [`crate::transport`].
//!
//! Every message names its epoch (of the placement group, or inside the replication message), the blob and the
//! owner partition, so that a request of an older epoch is refused by the device, not by luck.
//!
//! The frame is that of `quarry_partition::frame`, family `QRPR`: kind 1 is a request, kind 2 a response. A change of any
//! message is a new schema version with its own decoder.

use quarry_clustermap::{BlobId, BucketId, DeviceId, Epoch, PartitionId, PgId, ShardIndex};
use quarry_partition::frame::{FrameError, FrameKind};
use rkyv::{Archive, Deserialize, Serialize};

use crate::transport::Class;

/// Longest frame: the checksums of a 5 GiB shard and a command with an inline body fit many times.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// A shard, as every message names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Archive, Serialize, Deserialize)]
pub struct ShardName {
    /// Placement group.
    pub pg: PgId,
    /// Blob.
    pub blob: BlobId,
    /// Position in the erasure set.
    pub shard: ShardIndex,
}

/// How long a pin of a reader on another node lasts after its last use, milliseconds.
pub const PIN_KEPT_MS: u64 = 60_000;

/// How long a reservation of a writer on another node lasts after its last use, milliseconds: longer than any pause of
/// a client that still sends a body.
pub const RESERVATION_KEPT_MS: u64 = 600_000;

/// Replication messages up to this size together are urgent; longer ones are pages of a backfill or catch-up.
pub const REPLICATE_BYTES_MAX: usize = 256 << 10;

/// Shards of one listing or look-up.
pub const LIST_SHARDS_MAX: u32 = 1000;

/// A shard in a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Blob.
    pub blob: BlobId,
    /// Position in the erasure set.
    pub shard: ShardIndex,
    /// Partition whose manifest owns the blob.
    pub owner: PartitionId,
}

/// A run of bytes on the device: start and length, both multiples of the block size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Run {
    /// First byte on the device.
    pub offset: u64,
    /// Bytes.
    pub len_bytes: u64,
}

/// A question to the owner of a device.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Set space aside for a shard; nothing is durable.
    ReserveShard {
        /// Which shard.
        name: ShardName,
        /// Epoch of its placement group.
        epoch: Epoch,
        /// Bytes, a multiple of the block size.
        len_bytes: u64,
        /// The writer is on another node and writes by messages: the reservation ends when it is not used for
        /// [`RESERVATION_KEPT_MS`], as the writer may be gone.
        remote: bool,
    },
    /// The data writes of a reserved shard have completed: record and flush it.
    CommitShard {
        /// Which shard.
        name: ShardName,
        /// Epoch of its placement group.
        epoch: Epoch,
        /// Partition whose manifest will own the blob.
        owner: PartitionId,
        /// Checksum of each unit.
        checksums: Vec<u32>,
    },
    /// Give back a reservation, or free a shard that was committed for a blob without manifest.
    AbortShard {
        /// Which shard.
        name: ShardName,
        /// Epoch of its placement group.
        epoch: Epoch,
    },
    /// Write a piece of a reserved shard. The bytes travel beside the message; a reservation is either written by such
    /// messages or by the writer itself, never both.
    WriteShard {
        /// Which shard.
        name: ShardName,
        /// Epoch of its placement group.
        epoch: Epoch,
        /// First byte in the shard, a multiple of the block size, as the number of bytes is.
        offset: u64,
    },
    /// Look a shard up and pin its extents.
    OpenShard {
        /// Which shard.
        name: ShardName,
        /// The reader is on another node and reads by messages: the pin ends when it is not used for
        /// [`PIN_KEPT_MS`], as the reader may be gone.
        remote: bool,
    },
    /// Read a piece of a pinned shard: answered with [`PeerResponse::Done`] and the bytes beside it, unverified.
    ReadShard {
        /// Which shard: a pin of another run of the owner is not taken for one of this run.
        name: ShardName,
        /// As returned by open.
        pin: u64,
        /// First byte in the shard, a multiple of the block size.
        offset: u64,
        /// Bytes, a multiple of the block size.
        len_bytes: u32,
    },
    /// Drop a pin.
    CloseShard {
        /// Which shard.
        name: ShardName,
        /// As returned by open.
        pin: u64,
    },
    /// Free a shard.
    FreeShard {
        /// Which shard.
        name: ShardName,
        /// Epoch of its placement group.
        epoch: Epoch,
    },
    /// Refuse every older epoch of a placement group from now on: what was committed under one is listed after this.
    FenceGroup {
        /// Which group.
        pg: PgId,
        /// The oldest epoch that still counts.
        epoch: Epoch,
    },
    /// Shards of a placement group, whether a manifest names them or not.
    ListShards {
        /// Which group.
        pg: PgId,
        /// Only later ones.
        after: Option<(BlobId, ShardIndex)>,
        /// At most so many, and at most [`LIST_SHARDS_MAX`].
        limit: u32,
    },
    /// Which of these shards are here, and how long they are.
    ShardLengths {
        /// At most [`LIST_SHARDS_MAX`].
        names: Vec<ShardName>,
    },
    /// The device failed to read a range (EIO): its blocks are not to be handed out again. Has no answer.
    Quarantine {
        /// Where it lies.
        run: Run,
    },
    /// Evaluate a command of the partition crate on its primary.
    Execute {
        /// Which partition.
        partition: PartitionId,
        /// Encoded command.
        command: Vec<u8>,
    },
    /// Messages to the replicas of a device from those of other devices; has no answer.
    Replicate {
        /// Encoded envelopes of the partition crate.
        messages: Vec<Vec<u8>>,
    },
    /// List what the primaries of one core or node hold.
    List {
        /// Encoded `Command::List` of the partition crate.
        list: Vec<u8>,
    },
    /// Whether the primaries of one core or node hold no version and no delete marker of a bucket.
    BucketIsEmpty {
        /// Which bucket.
        bucket: BucketId,
    },
    /// How full the devices of a node are, and which have only their reserve left.
    FullDevices,
    /// Which revision of the bucket table a core or node acts on.
    BucketRevision,
}

impl PeerRequest {
    /// How urgent it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Replicate { messages }
                if messages.iter().map(Vec::len).sum::<usize>() <= REPLICATE_BYTES_MAX =>
            {
                Class::Urgent
            }
            Self::WriteShard { .. } | Self::ReadShard { .. } => Class::Bulk,
            _ => Class::Ordinary,
        }
    }
}

/// How full a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct DeviceFill {
    /// Which one.
    pub device: DeviceId,
    /// Thousandths of its capacity that are used.
    pub permille: u16,
}

/// The answer to a [`PeerRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum PeerResponse {
    /// Where the shard's data goes.
    Reserved {
        /// In shard order.
        runs: Vec<Run>,
    },
    /// Done and, where the request changes something, durable.
    Done,
    /// A pinned shard.
    Opened {
        /// Drop it with `CloseShard`.
        pin: u64,
        /// Bytes of the shard; the last run may be longer.
        len_bytes: u64,
        /// In shard order.
        runs: Vec<Run>,
        /// Checksum of each unit.
        checksums: Vec<u32>,
        /// Partition whose manifest owns the blob.
        owner: PartitionId,
    },
    /// Answer to `ListShards`.
    Shards {
        /// In order of blob and position.
        shards: Vec<ShardEntry>,
    },
    /// Answer to `ShardLengths`: one per name, in order; `None`: not here.
    Lengths {
        /// Bytes of each shard.
        lengths: Vec<Option<u64>>,
    },
    /// Encoded reply or refusal of the partition crate.
    Executed {
        /// Reply.
        outcome: Vec<u8>,
    },
    /// A page over the primaries that were asked, and which partitions they are: the asker must hear of all.
    Listed {
        /// Encoded `Reply::Page` of the partition crate.
        page: Vec<u8>,
        /// Partitions that the page covers.
        partitions: Vec<PartitionId>,
    },
    /// Answer to `BucketIsEmpty`.
    Empty {
        /// No version of the bucket is in the partitions below.
        empty: bool,
        /// Partitions that were asked.
        partitions: Vec<PartitionId>,
    },
    /// Answer to `FullDevices`.
    Full {
        /// Those that a primary should not count on.
        devices: Vec<DeviceId>,
        /// All of them.
        fill: Vec<DeviceFill>,
    },
    /// Answer to `BucketRevision`.
    ActsOn {
        /// The oldest that any core of the node acts on.
        revision: u64,
        /// Partitions whose primaries serve there.
        partitions: Vec<PartitionId>,
    },
    /// Refused or failed.
    Failed(PeerFault),
}

/// Why the owner of a device refused.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, thiserror::Error)]
pub enum PeerFault {
    /// The device is out, or another core or node owns it.
    #[error("the device is not served here")]
    DeviceOut,
    /// No such shard.
    #[error("the shard is not on the device")]
    NotFound,
    /// No space.
    #[error("the device is full")]
    Full,
    /// The request is of an older epoch.
    #[error("the request is of an older epoch than {seen}")]
    StaleEpoch {
        /// Highest epoch that the device has seen.
        seen: Epoch,
    },
    /// Not the primary, or not serving yet.
    #[error("not the serving primary of the partition")]
    NotPrimary,
    /// The bucket is not there, or is being deleted.
    #[error("the bucket does not exist")]
    BucketGone,
    /// Fewer copies than a write needs.
    #[error("too few copies of the partition are left to accept writes")]
    TooFewCopies,
    /// Whether the change will take effect is not known.
    #[error("the outcome of the change is not known")]
    OutcomeUnknown,
    /// A queue is full.
    #[error("overloaded")]
    Busy,
    /// The device failed while it worked on the request.
    #[error("device error: {detail}")]
    Device {
        /// For the log.
        detail: String,
    },
    /// A stored row or a message is damaged.
    #[error("damaged: {detail}")]
    Damaged {
        /// For the log.
        detail: String,
    },
}

macro_rules! framed {
    ($message:ty, $kind:literal) => {
        impl $message {
            /// Its frame.
            pub const FRAME: FrameKind =
                FrameKind { magic: *b"QRPR", kind: $kind, version: 1, bytes_max: FRAME_BYTES_MAX };

            /// The frame of this message.
            ///
            /// # Panics
            /// If it is over [`FRAME_BYTES_MAX`]: what goes into a message is bounded.
            pub fn encode(&self) -> Vec<u8> {
                let frame = Self::FRAME.encode(self);
                assert!(
                    frame.len() <= FRAME_BYTES_MAX,
                    "a message of {} bytes is over the limit",
                    frame.len()
                );
                frame
            }

            /// The message in a frame.
            ///
            /// # Errors
            /// [`FrameError`]: the frame is not one of this message.
            pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
                Self::FRAME.decode(frame)
            }
        }
    };
}

framed!(PeerRequest, 1);
framed!(PeerResponse, 2);

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> PeerRequest {
        PeerRequest::CommitShard {
            name: ShardName { pg: PgId(3), blob: BlobId::default(), shard: ShardIndex(5) },
            epoch: Epoch(7),
            owner: PartitionId(200),
            checksums: vec![1, 2, 3],
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(PeerRequest::decode(&sample().encode()).unwrap(), sample());
        let response = PeerResponse::Failed(PeerFault::StaleEpoch { seen: Epoch(9) });
        assert_eq!(PeerResponse::decode(&response.encode()).unwrap(), response);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let frame = sample().encode();
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(PeerRequest::decode(&damaged).is_err(), "bit {bit}");
        }
        for len in 0..frame.len() {
            assert!(PeerRequest::decode(&frame[..len]).is_err(), "length {len}");
        }
    }
}
