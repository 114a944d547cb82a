//! What the gateway asks of the object layer: one trait, its requests and its errors.
//!
//! Promises (docs/consistency.md): a call that changes something returns `Ok` only after every copy that the
//! erasure profile asks for has been flushed; a read sees every change acknowledged before it began.
//! Nothing here knows HTTP, XML or signatures; the gateway knows nothing of shards.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::stream::LocalBoxStream;
pub use quarry_clustermap::{BucketConfig, DOCUMENT_BYTES_MAX, DocumentKind, Versioning};
pub use quarry_partition::{
    checksum::{ChecksumAlgorithm, ChecksumHasher, decode_checksum},
    command::{TAG_CHARS_MAX, TAGS_MAX, UploadChecksum, VersionId},
};

/// Attributes that S3 stores with an object and returns with it, unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attributes {
    /// System headers by lower-case name: content-type, cache-control, content-disposition, content-encoding,
    /// content-language, expires, x-amz-website-redirect-location, x-amz-storage-class.
    pub headers: BTreeMap<String, String>,
    /// User metadata by lower-case name, without the `x-amz-meta-` prefix.
    pub user: BTreeMap<String, String>,
    /// Tags of the object; they can be changed later.
    pub tags: Tags,
}

/// Tags by key.
pub type Tags = BTreeMap<String, String>;

/// What the gateway learnt from the bytes of a body, known only when the last byte has passed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BodyDigests {
    /// MD5 of the body: the ETag of a simple object or a part.
    pub md5: [u8; 16],
    /// Additional checksums to store, by lower-case algorithm (`crc32`, `crc32c`, `crc64nvme`, `sha1`, `sha256`),
    /// base64 as in the header.
    pub checksums: BTreeMap<String, String>,
}

/// A request body. Its length is known before it begins; it is read once, in order, and never held whole.
#[expect(async_fn_in_trait, reason = "single-threaded executors: futures need not be Send")]
pub trait Body {
    /// Bytes in the decoded body.
    fn len_bytes(&self) -> u64;
    /// The next piece, or `None` after the last. Digests and trailers are verified before `None`.
    async fn next(&mut self) -> Option<Result<Bytes, BodyError>>;
    /// Digests of the whole body; called once, after `next` returned `None`.
    fn digests(&mut self) -> BodyDigests;
}

/// Why a body ended early.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke or the body was shorter than announced.
    #[error("the request body ended before its announced length")]
    Incomplete,
    /// A checksum, digest or signature over the body does not match.
    #[error("the request body does not match its {what}")]
    Mismatch {
        /// For example `Content-MD5`.
        what: String,
    },
    /// The source of a copy could not be read on.
    #[error("the source of the copy cannot be read: {problem}")]
    Source {
        /// For the log and the message.
        problem: String,
    },
    /// Framing that cannot be decoded.
    #[error("the request body is malformed: {problem}")]
    Malformed {
        /// What is wrong.
        problem: String,
    },
}

/// A bucket as it is acted on now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BucketInfo {
    /// Name, unique in the cluster.
    pub name: String,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Grows with every change of it; what is derived from `config` may be kept for as long as this stays.
    pub revision: u64,
    /// What its owner has set.
    pub config: Arc<BucketConfig>,
}

/// Everything about one object version but its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectInfo {
    /// Key.
    pub key: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Without quotes: `hex(md5)`, or `hex(md5 of part md5s)-parts`.
    pub etag: String,
    /// Unix milliseconds; strictly grows per key.
    pub last_modified_ms: u64,
    /// Stored attributes. In listings only the storage class.
    pub attributes: Attributes,
    /// Stored checksums, as in [`BodyDigests`]. Empty in listings.
    pub checksums: BTreeMap<String, String>,
    /// Number of parts, 0 for an object that was not uploaded in parts.
    pub parts: u32,
    /// The version, if the bucket has or had versions.
    pub version: Option<VersionId>,
}

/// What of an object is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Selector {
    /// Which version; `None`: the newest.
    pub version: Option<VersionId>,
    /// Only this part; an object that was not uploaded in parts is its own part 1.
    pub part: Option<u16>,
    /// Only this range; not together with a part.
    pub range: Option<RangeRequest>,
}

/// Answer to a HEAD.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectHead {
    /// The version.
    pub info: ObjectInfo,
    /// First byte and number of bytes of the part that was asked for.
    pub part: Option<(u64, u64)>,
    /// Checksum of that part by the algorithm of the object's, base64.
    pub part_checksum: Option<String>,
}

/// Answer to a DELETE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deleted {
    /// The version removed, or the delete marker added.
    pub version: Option<VersionId>,
    /// Whether that is a delete marker.
    pub is_marker: bool,
}

/// A part of a completed object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectPartInfo {
    /// 1..=10000.
    pub number: u16,
    /// Bytes.
    pub size_bytes: u64,
    /// By the algorithm of the object's checksum, base64.
    pub checksum: Option<String>,
}

/// An object and a page of its parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectParts {
    /// The version.
    pub info: ObjectInfo,
    /// By number.
    pub parts: Vec<ObjectPartInfo>,
    /// More follow.
    pub truncated: bool,
}

/// Conditions on the object that exists now, evaluated atomically with the operation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Conditions {
    /// `If-Match`: one of these ETags (without quotes), or `*`.
    pub if_match: Option<Vec<String>>,
    /// `If-None-Match`: none of these ETags, or `*`.
    pub if_none_match: Option<Vec<String>>,
    /// `If-Modified-Since`, Unix milliseconds.
    pub if_modified_since_ms: Option<u64>,
    /// `If-Unmodified-Since`, Unix milliseconds.
    pub if_unmodified_since_ms: Option<u64>,
    /// `x-amz-if-match-last-modified-time`, Unix milliseconds of which the whole seconds count; deletes only.
    pub if_match_last_modified_ms: Option<u64>,
    /// `x-amz-if-match-size`, bytes; deletes only.
    pub if_match_size_bytes: Option<u64>,
}

/// A byte range as asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeRequest {
    /// From first to last, both inclusive; last may lie beyond the end.
    Inclusive {
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
    },
    /// From first to the end.
    From {
        /// First byte.
        first: u64,
    },
    /// The last bytes.
    Suffix {
        /// How many.
        len: u64,
    },
}

/// Answer to a GET.
pub struct ObjectContent {
    /// The version that the bytes belong to.
    pub info: ObjectInfo,
    /// First byte and number of bytes that follow.
    pub range: (u64, u64),
    /// If they are a part that was uploaded with a checksum: that, by the algorithm of the object's, base64.
    pub part_checksum: Option<String>,
    /// The bytes. An error resets the connection: never padded, never silently short.
    pub stream: LocalBoxStream<'static, Result<Bytes, ApiError>>,
}

/// One page of a listing to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListRequest {
    /// Keys must begin with it.
    pub prefix: String,
    /// Roll keys up to the first occurrence after the prefix.
    pub delimiter: Option<String>,
    /// Strictly after this key, or, where it is a rolled-up prefix, after everything below it.
    pub after: Option<String>,
    /// Keys and prefixes together, 0..=1000.
    pub max_keys: usize,
}

/// One entry of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListEntry {
    /// An object.
    Object(ObjectInfo),
    /// A version or delete marker.
    Version {
        /// With its version.
        info: ObjectInfo,
        /// The newest of its key.
        is_latest: bool,
        /// A delete marker.
        is_marker: bool,
    },
    /// An upload in progress.
    Upload {
        /// Of the object to be.
        key: String,
        /// Its id.
        upload: String,
        /// Unix milliseconds.
        created_ms: u64,
        /// As announced.
        checksum: Option<UploadChecksum>,
        /// The storage class of the object to be, if it was given one.
        class: Option<String>,
    },
    /// A rolled-up prefix, with its delimiter.
    Prefix(String),
}

impl ListEntry {
    /// What the listing is ordered by, bytewise.
    pub fn name(&self) -> &str {
        match self {
            Self::Object(info) | Self::Version { info, .. } => &info.key,
            Self::Upload { key, .. } => key,
            Self::Prefix(prefix) => prefix,
        }
    }
}

/// One page of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ListPage {
    /// In order of [`ListEntry::name`].
    pub entries: Vec<ListEntry>,
    /// More follows after the last entry.
    pub truncated: bool,
}

/// A part that was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartInfo {
    /// 1..=10000.
    pub number: u16,
    /// Bytes.
    pub size_bytes: u64,
    /// `hex(md5)`.
    pub etag: String,
    /// Unix milliseconds.
    pub last_modified_ms: u64,
    /// Stored checksums.
    pub checksums: BTreeMap<String, String>,
}

/// A part named by CompleteMultipartUpload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CompletedPart {
    /// 1..=10000.
    pub number: u16,
    /// Without quotes.
    pub etag: String,
    /// To compare, by algorithm, base64.
    pub checksums: BTreeMap<String, String>,
}

/// What CompleteMultipartUpload says of the object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Completion {
    /// By number, ascending.
    pub parts: Vec<CompletedPart>,
    /// Of the whole object, to compare, by algorithm, base64.
    pub checksums: BTreeMap<String, String>,
    /// Whether those are of the object itself and not of the parts' checksums, if it was said.
    pub full_object: Option<bool>,
    /// Bytes of the object, to compare.
    pub size_bytes: Option<u64>,
}

/// Parts of an upload in progress.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PartsPage {
    /// By number.
    pub parts: Vec<PartInfo>,
    /// More follow.
    pub truncated: bool,
    /// As announced when the upload began.
    pub checksum: Option<UploadChecksum>,
    /// The storage class of the object to be, if it was given one.
    pub class: Option<String>,
}

/// What a copy changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CopyChanges {
    /// Headers and user metadata instead of the source's.
    pub attributes: Option<Attributes>,
    /// The storage class and website redirect: never those of the source.
    pub own_headers: BTreeMap<String, String>,
    /// Tags instead of the source's.
    pub tags: Option<Tags>,
    /// Which checksum to compute instead of the source's.
    pub checksum: Option<ChecksumAlgorithm>,
}

/// Source of a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopySource {
    /// Bucket of the source.
    pub bucket: String,
    /// Key of the source.
    pub key: String,
    /// Version of the source; `None`: the newest.
    pub version: Option<VersionId>,
    /// Conditions on the source.
    pub conditions: Conditions,
    /// Part of the source (UploadPartCopy); `None` is the whole object.
    pub range: Option<RangeRequest>,
}

/// Why a call failed; the gateway maps each to one S3 error code.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ApiError {
    /// The bucket does not exist.
    #[error("the bucket does not exist")]
    NoSuchBucket,
    /// A bucket of that name exists and is the caller's.
    #[error("the bucket exists already")]
    BucketAlreadyOwnedByYou,
    /// The bucket still holds objects, older versions or delete markers.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// The name breaks S3's rules.
    #[error("the bucket name is not valid")]
    InvalidBucketName,
    /// The object does not exist.
    #[error("the key does not exist")]
    NoSuchKey,
    /// The newest version is a delete marker: to a reader the object does not exist.
    #[error("the key does not exist")]
    DeleteMarker {
        /// The marker.
        version: VersionId,
    },
    /// The version that was named is a delete marker (405).
    #[error("the version is a delete marker")]
    VersionIsMarker {
        /// The marker.
        version: VersionId,
        /// Unix milliseconds.
        last_modified_ms: u64,
    },
    /// The version does not exist.
    #[error("the version does not exist")]
    NoSuchVersion,
    /// The object has no such part (416).
    #[error("the object has no part {number}")]
    NoSuchPart {
        /// As asked for.
        number: u16,
    },
    /// The upload does not exist, was completed or was aborted.
    #[error("the multipart upload does not exist")]
    NoSuchUpload,
    /// A part named in Complete is missing or its ETag differs.
    #[error("part {number} was not found, or its ETag differs")]
    InvalidPart {
        /// Which.
        number: u16,
    },
    /// Parts in Complete are not in ascending order.
    #[error("the parts are not in ascending order")]
    InvalidPartOrder,
    /// A part other than the last is under 5 MiB.
    #[error("part {number} is smaller than the minimum of 5 MiB")]
    EntityTooSmall {
        /// Which.
        number: u16,
    },
    /// Over the size limit.
    #[error("the body of {size_bytes} bytes is over the limit of {limit_bytes}")]
    EntityTooLarge {
        /// As announced.
        size_bytes: u64,
        /// What is allowed.
        limit_bytes: u64,
    },
    /// Key longer than 1,024 bytes.
    #[error("the key is longer than 1024 bytes")]
    KeyTooLong,
    /// A condition does not hold (412).
    #[error("a precondition does not hold")]
    PreconditionFailed,
    /// GET or HEAD whose condition says the caller's copy is current (304).
    #[error("not modified")]
    NotModified {
        /// ETag to return with the 304.
        etag: String,
        /// Unix milliseconds.
        last_modified_ms: u64,
    },
    /// The range lies outside the object (416).
    #[error("the range lies outside the object of {size_bytes} bytes")]
    InvalidRange {
        /// Size of the object.
        size_bytes: u64,
    },
    /// A request that makes no sense.
    #[error("{problem}")]
    InvalidRequest {
        /// What is wrong.
        problem: String,
    },
    /// The body broke.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// No space on the devices (507).
    #[error("the devices are full")]
    OutOfSpace,
    /// Too few devices, no primary, or overload: try again (503).
    #[error("the service cannot answer now: {reason}")]
    Unavailable {
        /// For the log and the message.
        reason: String,
    },
    /// More shards lost than parity covers, or damage with no copy left (500).
    #[error("data of the object is lost or damaged: {detail}")]
    DataLoss {
        /// For the log.
        detail: String,
    },
    /// The outcome is not known (500): the change may or may not be there.
    #[error("internal error: {detail}")]
    Internal {
        /// For the log.
        detail: String,
    },
}

/// The object layer as the gateway sees it.
#[expect(async_fn_in_trait, reason = "single-threaded executors: futures need not be Send")]
pub trait ObjectStore: 'static {
    /// Creates a bucket of the root, without documents.
    async fn create_bucket(&self, name: &str) -> Result<(), ApiError> {
        self.create_bucket_with(name, BTreeMap::new()).await
    }
    /// Creates a bucket that has documents from its first moment.
    async fn create_bucket_with(
        &self,
        name: &str,
        documents: BTreeMap<DocumentKind, String>,
    ) -> Result<(), ApiError>;
    /// Removes a bucket without objects. Uploads in progress end with it; none of them completes into a later bucket of
    /// that name.
    async fn delete_bucket(&self, name: &str) -> Result<(), ApiError>;
    /// A bucket, from the table that this core acts on: no I/O.
    fn bucket(&self, name: &str) -> Result<BucketInfo, ApiError>;
    /// Sets or removes a document of a bucket, at most [`DOCUMENT_BYTES_MAX`] long. Everybody acts on it when this
    /// returns.
    async fn set_bucket_document(
        &self,
        name: &str,
        kind: DocumentKind,
        document: Option<String>,
    ) -> Result<(), ApiError>;
    /// Sets what a bucket keeps of older versions. Every write that begins after this returned obeys it.
    async fn set_versioning(&self, name: &str, versioning: Versioning) -> Result<(), ApiError>;
    /// All buckets, by name.
    async fn list_buckets(&self) -> Result<Vec<BucketInfo>, ApiError>;
    /// Stores an object.
    async fn put_object<B: Body>(
        &self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
        conditions: Conditions,
        body: B,
    ) -> Result<ObjectInfo, ApiError>;
    /// Reads a version, or a part or range of it.
    async fn get_object(
        &self,
        bucket: &str,
        key: &str,
        selector: Selector,
        conditions: Conditions,
    ) -> Result<ObjectContent, ApiError>;
    /// Reads a version's attributes.
    async fn head_object(
        &self,
        bucket: &str,
        key: &str,
        selector: Selector,
        conditions: Conditions,
    ) -> Result<ObjectHead, ApiError>;
    /// Deletes an object, or one version of it for good; what does not exist is no error.
    async fn delete_object(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        conditions: Conditions,
    ) -> Result<Deleted, ApiError>;
    /// Replaces the tags of a version and nothing else; returns its name.
    async fn set_tags(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        tags: Tags,
    ) -> Result<Option<VersionId>, ApiError>;
    /// Sets or removes one header of a version's attributes and changes nothing else; returns its name.
    async fn set_header(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        header: (&str, Option<String>),
    ) -> Result<Option<VersionId>, ApiError>;
    /// A version's attributes and its parts with a number above `after`, at most `limit`.
    async fn object_parts(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        after: u16,
        limit: usize,
    ) -> Result<ObjectParts, ApiError>;
    /// Copies an object; the version of the source is returned, too.
    async fn copy_object(
        &self,
        source: CopySource,
        bucket: &str,
        key: &str,
        changes: CopyChanges,
        conditions: Conditions,
    ) -> Result<(ObjectInfo, Option<VersionId>), ApiError>;
    /// One page of keys, ordered bytewise.
    async fn list_objects(&self, bucket: &str, request: ListRequest) -> Result<ListPage, ApiError>;
    /// One page of versions and delete markers: by key, newest first; `after` is one of the key `request.after`.
    async fn list_versions(
        &self,
        bucket: &str,
        request: ListRequest,
        after: Option<VersionId>,
    ) -> Result<ListPage, ApiError>;
    /// One page of uploads in progress: by key, oldest first; `after` is one of the key `request.after`.
    async fn list_uploads(
        &self,
        bucket: &str,
        request: ListRequest,
        after: Option<String>,
    ) -> Result<ListPage, ApiError>;
    /// Starts a multipart upload; returns its id (32 hex digits).
    async fn create_upload(
        &self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
        checksum: Option<UploadChecksum>,
    ) -> Result<String, ApiError>;
    /// Stores a part; an older part of the same number is replaced.
    async fn put_part<B: Body>(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        number: u16,
        body: B,
    ) -> Result<PartInfo, ApiError>;
    /// Stores a part from an existing object; the version of the source is returned, too.
    async fn copy_part(
        &self,
        source: CopySource,
        bucket: &str,
        key: &str,
        upload: &str,
        number: u16,
    ) -> Result<(PartInfo, Option<VersionId>), ApiError>;
    /// Parts stored so far with a number above `after`, in order, at most `limit`.
    async fn list_parts(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        after: u16,
        limit: usize,
    ) -> Result<PartsPage, ApiError>;
    /// Makes the parts an object; repeated within a day it returns the same answer.
    async fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        completion: Completion,
        conditions: Conditions,
    ) -> Result<ObjectInfo, ApiError>;
    /// Drops an upload and its parts; late parts are refused.
    async fn abort_upload(&self, bucket: &str, key: &str, upload: &str) -> Result<(), ApiError>;
}
