//! Under construction: the signature is final.

use std::rc::Rc;

use quarry_clustermap::{PartitionId, Tier};
use quarry_partition::BlobRef;

use crate::{
    api::{Body, BodyError},
    cluster::Cluster,
};

/// Why a blob was not written. Nothing of it is left, or will be soon.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WriteError {
    /// The body broke.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Devices are full.
    #[error("the devices are full")]
    OutOfSpace,
    /// Too few devices took it.
    #[error("{reason}")]
    Unavailable {
        /// What was missing.
        reason: String,
    },
}

/// Writes a body as one blob of a tier; `Ok` only when every shard is durable (or `missing_shards` says which are not).
///
/// # Errors
/// See [`WriteError`].
pub async fn write_blob<C: Cluster, B: Body>(
    _cluster: &Rc<C>,
    _tier: Tier,
    _owner: PartitionId,
    _body: &mut B,
) -> Result<BlobRef, WriteError> {
    Err(WriteError::OutOfSpace)
}

/// Frees every shard of a blob; `Ok` when every member of its placement group has confirmed.
///
/// # Errors
/// The first error met; the other shards were tried all the same.
pub async fn free_blob<C: Cluster>(
    _cluster: &Rc<C>,
    _blob: &BlobRef,
) -> Result<(), crate::cluster::PeerError> {
    Ok(())
}
