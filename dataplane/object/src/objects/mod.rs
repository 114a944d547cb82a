//! [`ObjectStore`] over a cluster: one file per family of operations.
//!
//! Order of a write (docs/architecture.md): shards flushed on every member, then the commit record flushed on every
//! in-sync replica, then the answer. What a failed write has put on devices is freed at once if the commit cannot
//! have happened; if that is not known nothing is freed, and the collector decides later.

mod bucket;
mod convert;
mod copy;
mod expired;
mod get;
mod list;
mod put;
mod upload;

use std::rc::Rc;

use quarry_clustermap::{DocumentKind, PartitionId, Versioning, partition_of};

use self::expired::RulesOfBuckets;
use crate::{
    api::{
        ApiError, Attributes, Body, BucketInfo, CompletedPart, Conditions, CopySource, ListPage, ListRequest,
        ObjectContent, ObjectInfo, ObjectStore, PartInfo, RangeRequest,
    },
    cluster::Cluster,
    metadata::{Bucket, Metadata},
    reader::{ReadError, ReadMemory},
    writer::WriteError,
};

/// Largest body of one PUT or part, as in S3: 5 GiB.
pub const BODY_BYTES_MAX: u64 = 5 << 30;
/// Largest object: 5 TiB.
pub const OBJECT_BYTES_MAX: u64 = 5 << 40;

/// Settings of the object layer.
#[derive(Clone, Copy, Debug)]
pub struct ObjectOptions {
    /// Bodies shorter than this ride inside the commit record; at most the partition's `INLINE_BYTES_MAX`.
    pub inline_below_bytes: u64,
}

/// The object layer of one core.
pub struct Objects<C> {
    cluster: Rc<C>,
    options: ObjectOptions,
    rules: Rc<RulesOfBuckets>,
}

impl<C> Clone for Objects<C> {
    fn clone(&self) -> Self {
        Self { cluster: Rc::clone(&self.cluster), options: self.options, rules: Rc::clone(&self.rules) }
    }
}

impl<C: Cluster + Metadata> Objects<C> {
    /// The object layer over a cluster.
    pub fn new(cluster: Rc<C>, options: ObjectOptions) -> Self {
        Self { cluster, options, rules: Rc::default() }
    }

    fn found(&self, name: &str) -> Result<Bucket, ApiError> {
        self.cluster.bucket(name).ok_or(ApiError::NoSuchBucket)
    }

    /// The bucket and the partition that owns a key.
    fn owner(&self, bucket: &str, key: &str) -> Result<(Bucket, PartitionId), ApiError> {
        let bucket = self.found(bucket)?;
        if key.is_empty() {
            return Err(ApiError::InvalidRequest { problem: "the key is empty".into() });
        }
        if key.len() > quarry_partition::command::KEY_BYTES_MAX {
            return Err(ApiError::KeyTooLong);
        }
        let partition = partition_of(bucket.id, key.as_bytes(), self.cluster.map().partition_count());
        Ok((bucket, partition))
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Body(error) => Self::Body(error),
            WriteError::OutOfSpace => Self::OutOfSpace,
            WriteError::NoGroup | WriteError::TooFewShards { .. } => {
                Self::Unavailable { reason: error.to_string() }
            }
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::DataLoss { .. } => Self::DataLoss { detail: error.to_string() },
            ReadError::Unavailable { .. } => Self::Unavailable { reason: error.to_string() },
        }
    }
}

impl<C: Cluster + Metadata> ObjectStore for Objects<C> {
    async fn create_bucket(&self, name: &str) -> Result<(), ApiError> {
        self.cluster.create_bucket(name).await
    }

    async fn delete_bucket(&self, name: &str) -> Result<(), ApiError> {
        self.found(name)?;
        self.cluster.delete_bucket(name).await
    }

    fn bucket(&self, name: &str) -> Result<BucketInfo, ApiError> {
        Ok(bucket::info(self.found(name)?))
    }

    async fn list_buckets(&self) -> Result<Vec<BucketInfo>, ApiError> {
        Ok(self.cluster.buckets().into_iter().map(bucket::info).collect())
    }

    async fn set_bucket_document(
        &self,
        name: &str,
        kind: DocumentKind,
        document: Option<String>,
    ) -> Result<(), ApiError> {
        self.cluster.set_bucket_document(name, kind, document).await
    }

    async fn set_versioning(&self, name: &str, versioning: Versioning) -> Result<(), ApiError> {
        self.cluster.set_versioning(name, versioning).await
    }

    async fn put_object<B: Body>(
        &self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
        conditions: Conditions,
        body: B,
    ) -> Result<ObjectInfo, ApiError> {
        self.put(bucket, key, attributes, conditions, body).await
    }

    async fn get_object(
        &self,
        bucket: &str,
        key: &str,
        range: Option<RangeRequest>,
        conditions: Conditions,
    ) -> Result<ObjectContent, ApiError> {
        self.get(bucket, key, range, conditions, ReadMemory::Pool).await
    }

    async fn head_object(
        &self,
        bucket: &str,
        key: &str,
        conditions: Conditions,
    ) -> Result<ObjectInfo, ApiError> {
        self.head(bucket, key, conditions).await
    }

    async fn delete_object(&self, bucket: &str, key: &str, conditions: Conditions) -> Result<(), ApiError> {
        self.delete(bucket, key, conditions).await
    }

    async fn copy_object(
        &self,
        source: CopySource,
        bucket: &str,
        key: &str,
        attributes: Option<Attributes>,
        conditions: Conditions,
    ) -> Result<ObjectInfo, ApiError> {
        let (content, body) = self.open_source(source).await?;
        let attributes = attributes.unwrap_or(content);
        self.put(bucket, key, attributes, conditions, body).await
    }

    async fn list_objects(&self, bucket: &str, request: ListRequest) -> Result<ListPage, ApiError> {
        self.list(bucket, request).await
    }

    async fn create_upload(
        &self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
    ) -> Result<String, ApiError> {
        self.begin_upload(bucket, key, attributes).await
    }

    async fn put_part<B: Body>(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        number: u16,
        body: B,
    ) -> Result<PartInfo, ApiError> {
        self.store_part(bucket, key, upload, number, body).await
    }

    async fn copy_part(
        &self,
        source: CopySource,
        bucket: &str,
        key: &str,
        upload: &str,
        number: u16,
    ) -> Result<PartInfo, ApiError> {
        let (_, body) = self.open_source(source).await?;
        self.store_part(bucket, key, upload, number, body).await
    }

    async fn list_parts(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        after: u16,
        limit: usize,
    ) -> Result<(Vec<PartInfo>, bool), ApiError> {
        self.parts(bucket, key, upload, after, limit).await
    }

    async fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        parts: Vec<CompletedPart>,
        conditions: Conditions,
    ) -> Result<ObjectInfo, ApiError> {
        self.complete(bucket, key, upload, parts, conditions).await
    }

    async fn abort_upload(&self, bucket: &str, key: &str, upload: &str) -> Result<(), ApiError> {
        self.abort(bucket, key, upload).await
    }
}
