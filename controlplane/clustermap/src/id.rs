//! Identifiers and counters. Each is its own type, so that one can never stand where another is meant.

use std::fmt;

use rkyv::{Archive, Deserialize, Serialize};

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident($int:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        #[rkyv(derive(Debug))]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id_type!(
    /// One data-plane process on one host, assigned once by the control plane.
    NodeId(u32),
    "node-{}"
);
id_type!(
    /// One raw device or preallocated file; random, written into its superblock when it is formatted.
    DeviceId(u64),
    "dev-{:016x}"
);
id_type!(
    /// A hash range of (bucket, key).
    PartitionId(u16),
    "partition-{}"
);
id_type!(
    /// A placement group.
    PgId(u32),
    "pg-{}"
);
id_type!(
    /// A bucket, unique for ever: a bucket that is deleted and created again gets another id.
    BucketId(u64),
    "bucket-{}"
);
id_type!(
    /// The map version at which ONE partition or placement group last changed; sent with every peer request.
    Epoch(u64),
    "epoch-{}"
);
id_type!(
    /// Version of the whole cluster map, for its distribution only.
    MapVersion(u64),
    "map-{}"
);
id_type!(
    /// Position of a record in one partition's log, dense from 1; 0 means "nothing yet".
    Sequence(u64),
    "seq-{}"
);
id_type!(
    /// How often a node has started; makes the blob ids of two runs distinct.
    Incarnation(u32),
    "incarnation-{}"
);
id_type!(
    /// Per-writer counter inside a [`BlobId`]: core in the highest byte, count below it.
    WriterCounter(u64),
    "{}"
);
id_type!(
    /// Position of a shard in its stripe: `0..k` data, `k..k+m` parity.
    ShardIndex(u8),
    "shard-{}"
);

impl Epoch {
    /// The next epoch.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl MapVersion {
    /// The next map version.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Sequence {
    /// The next sequence.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Identity of one cluster, random, in every superblock: devices of two clusters are never mixed.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The immutable bytes of one PUT or one part. Never reused: it is also the idempotency key of its commit.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct BlobId {
    /// The node that wrote it.
    pub writer: NodeId,
    /// The run of that node.
    pub incarnation: Incarnation,
    /// Counter within the run.
    pub counter: WriterCounter,
}

impl BlobId {
    /// Length of [`BlobId::to_bytes`].
    pub const ENCODED_BYTES: usize = 16;

    /// Big-endian, so that the order of bytes is the order of ids.
    pub fn to_bytes(self) -> [u8; Self::ENCODED_BYTES] {
        let mut bytes = [0; Self::ENCODED_BYTES];
        bytes[..4].copy_from_slice(&self.writer.0.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.incarnation.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.counter.0.to_be_bytes());
        bytes
    }

    /// Inverse of [`BlobId::to_bytes`].
    pub fn from_bytes(bytes: [u8; Self::ENCODED_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, counter @ ..] = bytes;
        Self {
            writer: NodeId(u32::from_be_bytes([a, b, c, d])),
            incarnation: Incarnation(u32::from_be_bytes([e, f, g, h])),
            counter: WriterCounter(u64::from_be_bytes(counter)),
        }
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}.{:x}", self.writer.0, self.incarnation.0, self.counter.0)
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blob-{self}")
    }
}
