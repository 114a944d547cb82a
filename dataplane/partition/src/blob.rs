//! How a manifest names the bytes of a blob.

use quarry_clustermap::{BlobId, ErasureProfile, PgId};
use rkyv::{Archive, Deserialize, Serialize};

/// One blob of an object version. Its shards are found by (placement group, blob, shard), never by offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct BlobRef {
    /// Identity.
    pub blob: BlobId,
    /// The placement group it was written to; the map says which devices that is today.
    pub pg: PgId,
    /// How it was encoded.
    pub profile: ErasureProfile,
    /// Object bytes in it.
    pub size_bytes: u64,
    /// Bit `i` set: shard `i` was not stored when the blob was committed, and awaits repair.
    pub missing_shards: u32,
}

impl BlobRef {
    /// What readers rely on when they compute with a profile.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let ErasureProfile { data_shards, parity_shards } = self.profile;
        match ErasureProfile::new(data_shards, parity_shards) {
            Ok(_) => Ok(()),
            Err(_) => Err("the erasure profile of a blob is out of range"),
        }
    }
}
