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

use std::{collections::BTreeMap, rc::Rc};

use quarry_clustermap::{DocumentKind, PartitionId, Versioning, partition_of};
use quarry_partition::command::Listed;

use self::expired::RulesOfBuckets;
use crate::{
    api::{
        ApiError, Attributes, Body, BucketInfo, ChecksumAlgorithm, Completion, Conditions, CopyChanges,
        CopySource, Deleted, ListPage, ListRequest, ObjectContent, ObjectHead, ObjectInfo, ObjectParts,
        ObjectStore, PartInfo, PartsPage, Selector, Tags, UploadChecksum, VersionId,
    },
    cluster::Cluster,
    metadata::{Bucket, Metadata},
    reader::{ReadError, ReadMemory},
    tier::{MOVED_ATTRIBUTE, STORAGE_CLASS_HEADER},
    writer::WriteError,
};

/// Largest body of one PUT or part, as in S3: 5 GiB.
pub const BODY_BYTES_MAX: u64 = 5 << 30;
/// Largest object: 5 TiB.
pub const OBJECT_BYTES_MAX: u64 = 5 << 40;

/// The attribute with the access control list of an object, as the gateway writes it; absent: it is its owner's alone.
pub const ACL_ATTRIBUTE: &str = "x-quarry-acl";
/// The attribute with the user who owns an object; absent: the owner of its bucket.
pub const OWNER_ATTRIBUTE: &str = "x-quarry-owner";

/// Headers that a copy has of its own or not at all.
pub const NEVER_COPIED: [&str; 5] = [
    STORAGE_CLASS_HEADER,
    "x-amz-website-redirect-location",
    ACL_ATTRIBUTE,
    OWNER_ATTRIBUTE,
    MOVED_ATTRIBUTE,
];

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
            WriteError::NoGroup | WriteError::TooFewShards { .. } | WriteError::TooSlow => {
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
    async fn create_bucket_with(
        &self,
        name: &str,
        documents: BTreeMap<DocumentKind, String>,
    ) -> Result<(), ApiError> {
        self.cluster.create_bucket(name, documents).await
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
        selector: Selector,
        conditions: Conditions,
    ) -> Result<ObjectContent, ApiError> {
        self.get(bucket, key, selector, conditions, ReadMemory::Pool).await
    }

    async fn head_object(
        &self,
        bucket: &str,
        key: &str,
        selector: Selector,
        conditions: Conditions,
    ) -> Result<ObjectHead, ApiError> {
        self.head(bucket, key, selector, conditions).await
    }

    async fn delete_object(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        conditions: Conditions,
    ) -> Result<Deleted, ApiError> {
        self.delete(bucket, key, version, conditions).await
    }

    async fn set_tags(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        tags: Tags,
    ) -> Result<Option<VersionId>, ApiError> {
        self.tag(bucket, key, version, tags).await
    }

    async fn set_header(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        header: (&str, Option<String>),
    ) -> Result<Option<VersionId>, ApiError> {
        self.set_one_header(bucket, key, version, header).await
    }

    async fn object_parts(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        after: u16,
        limit: usize,
    ) -> Result<ObjectParts, ApiError> {
        self.parts_of(bucket, key, version, after, limit).await
    }

    async fn copy_object(
        &self,
        source: CopySource,
        bucket: &str,
        key: &str,
        changes: CopyChanges,
        conditions: Conditions,
    ) -> Result<(ObjectInfo, Option<VersionId>), ApiError> {
        let (found, body) = self.open_source(source, changes.checksum).await?;
        let mut attributes = found.attributes;
        attributes.headers.retain(|name, _| !NEVER_COPIED.contains(&name.as_str()));
        attributes.headers.extend(changes.own_headers);
        let tags = changes.tags.unwrap_or_else(|| std::mem::take(&mut attributes.tags));
        let attributes = Attributes { tags, ..changes.attributes.unwrap_or(attributes) };
        Ok((self.put(bucket, key, attributes, conditions, body).await?, found.version))
    }

    async fn list_objects(&self, bucket: &str, request: ListRequest) -> Result<ListPage, ApiError> {
        self.list(bucket, Listed::Objects, request, None).await
    }

    async fn list_versions(
        &self,
        bucket: &str,
        request: ListRequest,
        after: Option<VersionId>,
    ) -> Result<ListPage, ApiError> {
        self.list(bucket, Listed::Versions, request, after.map(list::after_version)).await
    }

    async fn list_uploads(
        &self,
        bucket: &str,
        request: ListRequest,
        after: Option<String>,
    ) -> Result<ListPage, ApiError> {
        let after = after.as_deref().map(list::after_upload).transpose()?;
        self.list(bucket, Listed::Uploads, request, after).await
    }

    async fn create_upload(
        &self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
        checksum: Option<UploadChecksum>,
    ) -> Result<String, ApiError> {
        self.begin_upload(bucket, key, attributes, checksum).await
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
    ) -> Result<(PartInfo, Option<VersionId>), ApiError> {
        let checksum = self.upload_checksum(bucket, key, upload).await?;
        // Parts of an upload without one all have the same, so that the object gets one, too.
        let algorithm = checksum.map_or(ChecksumAlgorithm::Crc64Nvme, |checksum| checksum.algorithm);
        let (found, body) = self.open_source(source, Some(algorithm)).await?;
        Ok((self.store_part(bucket, key, upload, number, body).await?, found.version))
    }

    async fn list_parts(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        after: u16,
        limit: usize,
    ) -> Result<PartsPage, ApiError> {
        self.parts(bucket, key, upload, after, limit).await
    }

    async fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        completion: Completion,
        conditions: Conditions,
    ) -> Result<ObjectInfo, ApiError> {
        self.complete(bucket, key, upload, completion, conditions).await
    }

    async fn abort_upload(&self, bucket: &str, key: &str, upload: &str) -> Result<(), ApiError> {
        self.abort(bucket, key, upload).await
    }
}
