//! What the gateway asks of the object layer: one trait, its requests and its errors.
//!
//! Promises (docs/consistency.md): a call that changes something returns `Ok` only after every copy that the
//! erasure profile asks for has been flushed; a read sees every change acknowledged before it began.
//! Nothing here knows HTTP, XML or signatures; the gateway knows nothing of shards.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::stream::LocalBoxStream;
pub use quarry_clustermap::{BucketConfig, DOCUMENT_BYTES_MAX, DocumentKind, Versioning};

/// Attributes that S3 stores with an object and returns with it, unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attributes {
    /// System headers by lower-case name: content-type, cache-control, content-disposition, content-encoding,
    /// content-language, expires, x-amz-website-redirect-location, x-amz-storage-class.
    pub headers: BTreeMap<String, String>,
    /// User metadata by lower-case name, without the `x-amz-meta-` prefix.
    pub user: BTreeMap<String, String>,
}

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
    /// Stored attributes. Empty in listings.
    pub attributes: Attributes,
    /// Stored checksums, as in [`BodyDigests`]. Empty in listings.
    pub checksums: BTreeMap<String, String>,
    /// Number of parts, 0 for an object that was not uploaded in parts.
    pub parts: u32,
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
    /// A rolled-up prefix, with its delimiter.
    Prefix(String),
}

impl ListEntry {
    /// What the listing is ordered by, bytewise.
    pub fn name(&self) -> &str {
        match self {
            Self::Object(info) => &info.key,
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
}

/// Source of a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopySource {
    /// Bucket of the source.
    pub bucket: String,
    /// Key of the source.
    pub key: String,
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
    /// The bucket still holds objects or uploads.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// The name breaks S3's rules.
    #[error("the bucket name is not valid")]
    InvalidBucketName,
    /// The object does not exist.
    #[error("the key does not exist")]
    NoSuchKey,
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
    /// Creates a bucket.
    async fn create_bucket(&self, name: &str) -> Result<(), ApiError>;
    /// Removes an empty bucket.
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
    /// Reads an object or a range of it.
    async fn get_object(
        &self,
        bucket: &str,
        key: &str,
        range: Option<RangeRequest>,
        conditions: Conditions,
    ) -> Result<ObjectContent, ApiError>;
    /// Reads an object's attributes.
    async fn head_object(
        &self,
        bucket: &str,
        key: &str,
        conditions: Conditions,
    ) -> Result<ObjectInfo, ApiError>;
    /// Deletes an object; a key that does not exist is no error.
    async fn delete_object(&self, bucket: &str, key: &str, conditions: Conditions) -> Result<(), ApiError>;
    /// Copies an object; `attributes: None` copies the source's.
    async fn copy_object(
        &self,
        source: CopySource,
        bucket: &str,
        key: &str,
        attributes: Option<Attributes>,
        conditions: Conditions,
    ) -> Result<ObjectInfo, ApiError>;
    /// One page of keys, ordered bytewise.
    async fn list_objects(&self, bucket: &str, request: ListRequest) -> Result<ListPage, ApiError>;
    /// Starts a multipart upload; returns its id (32 hex digits).
    async fn create_upload(
        &self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
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
    /// Stores a part from an existing object.
    async fn copy_part(
        &self,
        source: CopySource,
        bucket: &str,
        key: &str,
        upload: &str,
        number: u16,
    ) -> Result<PartInfo, ApiError>;
    /// Parts stored so far with a number above `after`, in order, at most `limit`; and whether more follow.
    async fn list_parts(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        after: u16,
        limit: usize,
    ) -> Result<(Vec<PartInfo>, bool), ApiError>;
    /// Makes the parts an object; repeated within a day it returns the same answer.
    async fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        parts: Vec<CompletedPart>,
        conditions: Conditions,
    ) -> Result<ObjectInfo, ApiError>;
    /// Drops an upload and its parts; late parts are refused.
    async fn abort_upload(&self, bucket: &str, key: &str, upload: &str) -> Result<(), ApiError>;
}
