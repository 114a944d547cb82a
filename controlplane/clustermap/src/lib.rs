//! Types that the data plane and the control plane share: ids, units, epochs, erasure profiles and the
//! cluster map.
//!
//! Everything here is pure data. The map is an explicit table, not a hash: "why is this object here" has an
//! answer, and one device can be added or drained at any time.
//!
//! Invariants:
//! - ids are never reused; an [`Epoch`] of one partition or placement group only grows;
//! - [`ClusterMap::version`] grows by one with every committed change;
//! - a placement group's `members` are ordered: position `i` holds shard `i` of every blob written to it,
//!   or is listed as to be rebuilt.

mod bucket;
mod id;
mod map;
mod operations;
mod placement;
mod profile;
mod tiering;

pub use bucket::{BucketConfig, DOCUMENT_BYTES_MAX, DocumentKind, Versioning};
pub use id::{
    BlobId, BucketId, ClusterId, DeviceId, Epoch, Incarnation, MapVersion, NodeId, PartitionId, PgId,
    Sequence, ShardIndex, WriterCounter,
};
pub use map::{
    ClusterMap, DeviceEntry, DeviceState, MapError, NodeEntry, PartitionConfig, PgState, PlacementGroup, Tier,
};
pub use operations::{JobKind, Operations, UnknownJob};
pub use placement::{PARTITIONS_CLUSTER, PARTITIONS_STANDALONE, partition_of};
pub use profile::{ErasureProfile, ProfileError, SHARD_BLOCK_BYTES};
pub use tiering::{TierPolicy, TierPolicyError, Tiering};
