//! What the object layer needs of the metadata side: partitions by command, buckets by name.

use std::{collections::BTreeMap, sync::Arc};

use quarry_clustermap::{BucketConfig, BucketId, DocumentKind, PartitionId, Versioning};
use quarry_partition::command::{Command, Entry, List, Refusal, Reply};

use crate::{
    api::{ApiError, BodyError},
    peer::PeerFault,
};

/// A bucket as every core knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Unique for ever.
    pub id: BucketId,
    /// Unique now.
    pub name: String,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Grows with every change of it.
    pub revision: u64,
    /// What its owner has set.
    pub config: Arc<BucketConfig>,
}

/// Why a command has no reply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The partition refused: nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The partition could not be asked, or its outcome is not known.
    #[error(transparent)]
    Fault(#[from] PeerFault),
}

impl ExecuteError {
    /// Whether the change may have happened, or may yet happen: then nothing may be freed.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::Fault(PeerFault::OutcomeUnknown))
    }
}

impl From<ExecuteError> for ApiError {
    fn from(error: ExecuteError) -> Self {
        match error {
            ExecuteError::Refused(refusal) => refusal.into(),
            ExecuteError::Fault(fault) => fault.into(),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoSuchKey => Self::NoSuchKey,
            Refusal::DeleteMarker { version } => Self::DeleteMarker { version },
            Refusal::VersionIsMarker { version, last_modified_ms } => {
                Self::VersionIsMarker { version, last_modified_ms }
            }
            Refusal::NoSuchVersion => Self::NoSuchVersion,
            Refusal::NoSuchPart { number } => Self::NoSuchPart { number },
            Refusal::ChecksumMismatch { algorithm } => {
                Self::Body(BodyError::Mismatch { what: format!("x-amz-checksum-{}", algorithm.name()) })
            }
            Refusal::NoSuchUpload => Self::NoSuchUpload,
            Refusal::InvalidPart { number } => Self::InvalidPart { number },
            Refusal::InvalidPartOrder => Self::InvalidPartOrder,
            Refusal::EntityTooSmall { number } => Self::EntityTooSmall { number },
            Refusal::KeyTooLong => Self::KeyTooLong,
            Refusal::PreconditionFailed => Self::PreconditionFailed,
            Refusal::NotModified { etag, last_modified_ms } => Self::NotModified { etag, last_modified_ms },
            Refusal::WriterRevoked { .. } => Self::Unavailable { reason: refusal.to_string() },
            Refusal::BlobInUse { .. } | Refusal::VersionChanged => {
                Self::Internal { detail: refusal.to_string() }
            }
            Refusal::AttributesTooLarge | Refusal::InvalidRequest { .. } => {
                Self::InvalidRequest { problem: refusal.to_string() }
            }
        }
    }
}

impl From<PeerFault> for ApiError {
    fn from(fault: PeerFault) -> Self {
        match fault {
            PeerFault::Full => Self::OutOfSpace,
            PeerFault::BucketGone => Self::NoSuchBucket,
            PeerFault::OutcomeUnknown => Self::Internal { detail: fault.to_string() },
            PeerFault::Damaged { detail } => Self::DataLoss { detail },
            PeerFault::DeviceOut
            | PeerFault::NotFound
            | PeerFault::StaleEpoch { .. }
            | PeerFault::NotPrimary
            | PeerFault::TooFewCopies
            | PeerFault::Busy
            | PeerFault::Device { .. } => Self::Unavailable { reason: fault.to_string() },
        }
    }
}

/// Partitions and buckets, wherever they are.
#[expect(async_fn_in_trait, reason = "single-threaded executors: futures need not be Send")]
pub trait Metadata: 'static {
    /// Runs a command on the primary of a partition. Retried inside for as long as nothing can have changed and a
    /// new primary may yet answer; bounded by a few seconds.
    async fn execute(&self, partition: PartitionId, command: Command) -> Result<Reply, ExecuteError>;

    /// One page over all partitions, in order of name, and whether more follows.
    async fn list(&self, request: List) -> Result<(Vec<Entry>, bool), ExecuteError>;

    /// A bucket that takes requests.
    fn bucket(&self, name: &str) -> Option<Bucket>;
    /// All buckets, by name.
    fn buckets(&self) -> Vec<Bucket>;
    /// Creates a bucket; every primary knows it when this returns.
    async fn create_bucket(
        &self,
        name: &str,
        documents: BTreeMap<DocumentKind, String>,
    ) -> Result<(), ApiError>;
    /// Removes a bucket if it is empty: all primaries refuse writes first, then all are asked.
    async fn delete_bucket(&self, name: &str) -> Result<(), ApiError>;
    /// Sets or removes a document of a bucket; every primary and every core acts on it when this returns.
    async fn set_bucket_document(
        &self,
        name: &str,
        kind: DocumentKind,
        document: Option<String>,
    ) -> Result<(), ApiError>;
    /// Sets what a bucket keeps of older versions; every primary acts on it when this returns.
    async fn set_versioning(&self, name: &str, versioning: Versioning) -> Result<(), ApiError>;
}
