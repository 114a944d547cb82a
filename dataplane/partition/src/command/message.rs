//! Commands, replies and refusals, as they travel between cores and nodes.

use std::collections::BTreeMap;

use quarry_clustermap::{BlobId, BucketId, Incarnation, NodeId};
use rkyv::{Archive, Deserialize, Serialize};

use super::framed::framed;
use super::manifest::{
    Manifest, ObjectPart, Origin, Pairs, Stored, StoredAttributes, Upload, UploadChecksum, UploadId,
    check_segments,
};
use super::version::VersionId;
use crate::BlobRef;
use crate::checksum::ChecksumAlgorithm;

/// Conditions on the object that exists now.
#[derive(Clone, PartialEq, Eq, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Conditions {
    /// `If-Match`: one of these ETags (without quotes), or `*`.
    pub if_match: Option<Vec<String>>,
    /// `If-None-Match`: none of these ETags, or `*`.
    pub if_none_match: Option<Vec<String>>,
    /// `If-Modified-Since`, Unix milliseconds; reads only.
    pub if_modified_since_ms: Option<u64>,
    /// `If-Unmodified-Since`, Unix milliseconds.
    pub if_unmodified_since_ms: Option<u64>,
    /// `x-amz-if-match-last-modified-time`, Unix milliseconds of which the whole seconds count; deletes only.
    pub if_match_last_modified_ms: Option<u64>,
    /// `x-amz-if-match-size`, bytes; deletes only.
    pub if_match_size_bytes: Option<u64>,
}

/// The bytes of a put.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Content {
    /// In the command itself.
    Inline {
        /// Identifies the put, so that a repetition is answered, not executed.
        request: BlobId,
        /// At most [`super::INLINE_BYTES_MAX`]; may be empty.
        bytes: Vec<u8>,
    },
    /// Flushed to shards before; 1 to 1000. The first identifies the put.
    Blobs(Vec<BlobRef>),
}

/// Stores an object.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Put {
    /// Of the object.
    pub bucket: BucketId,
    /// Of the object.
    pub key: String,
    /// Without quotes.
    pub etag: String,
    /// To store.
    pub attributes: StoredAttributes,
    /// To store: at most [`super::TAGS_MAX`], each key once.
    pub tags: Pairs,
    /// To store.
    pub checksums: Pairs,
    /// The bytes.
    pub content: Content,
    /// On the object that exists now.
    pub conditions: Conditions,
}

/// Stores a part; an older one of the same number is replaced.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct PutPart {
    /// Of the object.
    pub bucket: BucketId,
    /// Of the object.
    pub key: String,
    /// The upload.
    pub upload: UploadId,
    /// 1..=10000.
    pub number: u16,
    /// Of the bytes.
    pub md5: [u8; 16],
    /// To store.
    pub checksums: Pairs,
    /// The bytes: inline or exactly one blob.
    pub content: Content,
}

/// Makes parts an object.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Complete {
    /// Of the object.
    pub bucket: BucketId,
    /// Of the object.
    pub key: String,
    /// The upload.
    pub upload: UploadId,
    /// By number, ascending.
    pub parts: Vec<CompletePart>,
    /// Checksums of the whole object, to compare; without the number of parts.
    pub checksums: Pairs,
    /// Whether those are of the object itself, where the caller says so.
    pub full_object: Option<bool>,
    /// Size of the whole object, to compare.
    pub size_bytes: Option<u64>,
    /// On the object that exists now.
    pub conditions: Conditions,
}

/// A part that [`Complete`] names.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct CompletePart {
    /// 1..=10000.
    pub number: u16,
    /// Without quotes.
    pub etag: String,
    /// Its checksums, to compare.
    pub checksums: Pairs,
}

/// Replaces blobs of a version by others with the same bytes, and headers of it; nothing else of it changes.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct SwapBlobs {
    /// Of the object.
    pub bucket: BucketId,
    /// Of the object.
    pub key: String,
    /// Which version: its manifest's `last_modified_ms`.
    pub version_ms: u64,
    /// What made the version: with it no other version is meant.
    pub origin: Origin,
    /// At most [`super::SWAPS_MAX`]; none: only headers change.
    pub swaps: Vec<BlobSwap>,
    /// Headers of the attributes by lower-case name, distinct; `None`: it goes.
    pub headers: Vec<(String, Option<String>)>,
}

/// One blob of [`SwapBlobs`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct BlobSwap {
    /// The version has it now, or has `to` already.
    pub from: BlobId,
    /// Flushed before; of the same size.
    pub to: BlobRef,
}

/// Names what to read.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Lookup {
    /// Of the object.
    pub bucket: BucketId,
    /// Of the object.
    pub key: String,
    /// Which version; `None`: the newest, if that is an object.
    pub version: Option<VersionId>,
    /// Where this part lies is answered, too.
    pub part: Option<u16>,
    /// On it.
    pub conditions: Conditions,
}

impl Lookup {
    /// The newest version of a key, whatever it is.
    pub fn newest(bucket: BucketId, key: impl Into<String>) -> Self {
        Self { bucket, key: key.into(), version: None, part: None, conditions: Conditions::default() }
    }
}

/// What a listing is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Listed {
    /// Keys whose newest version is an object.
    Objects,
    /// All versions and delete markers, newest first within a key.
    Versions,
    /// Uploads in progress, oldest first within a key (ids begin with their time).
    Uploads,
}

/// Within a key of a listing that can have many entries for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Position {
    /// A version, by its `last_modified_ms`; it may be gone.
    Version(u64),
    /// The null version; if it is gone, the end of the key.
    NullVersion,
    /// An upload; it may be gone.
    Upload(UploadId),
}

/// One page of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct List {
    /// Which bucket.
    pub bucket: BucketId,
    /// What is listed.
    pub listed: Listed,
    /// Keys must begin with it.
    pub prefix: String,
    /// Roll keys up to its first occurrence after the prefix; `None` or empty: do not.
    pub delimiter: Option<String>,
    /// Strictly after this key, or, where it is a rolled-up prefix, after everything below it.
    pub after: Option<String>,
    /// After this entry of the key `after`, not after all of that key.
    pub after_position: Option<Position>,
    /// Entries, at most [`super::LIST_ENTRIES_MAX`] (more is cut down to it).
    pub max: u32,
}

/// What S3 and the background jobs ask of one partition.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Command {
    /// The manifest without its segments: [`Reply::Object`].
    Head(Lookup),
    /// The manifest with all segments, and the inline bytes: [`Reply::Object`].
    Get(Lookup),
    /// The parts of a completed object above a number: [`Reply::ObjectParts`].
    ObjectParts {
        /// Which object; `part` is not looked at.
        lookup: Lookup,
        /// Only numbers above it.
        after: u16,
        /// At most so many, and at most [`super::LIST_ENTRIES_MAX`].
        limit: u32,
    },
    /// Replaces the tags of a version and nothing else: [`Reply::Tagged`].
    SetTags {
        /// Of the object.
        bucket: BucketId,
        /// Of the object.
        key: String,
        /// Which version; `None`: the newest.
        version: Option<VersionId>,
        /// At most [`super::TAGS_MAX`], each key once.
        tags: Pairs,
    },
    /// See [`Put`]: [`Reply::Stored`].
    Put(Put),
    /// Deletes an object or a version; one that does not exist is no error: [`Reply::Deleted`].
    Delete {
        /// Of the object.
        bucket: BucketId,
        /// Of the object.
        key: String,
        /// This version for good; `None`: the object, which in a bucket with versions adds a delete marker.
        version: Option<VersionId>,
        /// Identifies the delete, so that a marker is added once.
        request: BlobId,
        /// On it.
        conditions: Conditions,
    },
    /// Starts an upload under an id that the caller drew: [`Reply::Done`].
    CreateUpload {
        /// Of the object.
        bucket: BucketId,
        /// Of the object.
        key: String,
        /// Random.
        upload: UploadId,
        /// For the object to be.
        attributes: StoredAttributes,
        /// For the object to be.
        tags: Pairs,
        /// What every part must have.
        checksum: Option<UploadChecksum>,
    },
    /// See [`PutPart`]: [`Reply::Stored`].
    PutPart(PutPart),
    /// Parts above a number: [`Reply::Parts`].
    ListParts {
        /// Of the object.
        bucket: BucketId,
        /// Of the object.
        key: String,
        /// The upload.
        upload: UploadId,
        /// Only numbers above it.
        after: u16,
        /// At most so many, and at most [`super::LIST_ENTRIES_MAX`].
        limit: u32,
    },
    /// What CreateUpload stored: [`Reply::Upload`].
    GetUpload {
        /// Of the object.
        bucket: BucketId,
        /// Of the object.
        key: String,
        /// The upload.
        upload: UploadId,
    },
    /// See [`Complete`]: [`Reply::Stored`].
    Complete(Complete),
    /// Drops an upload and its parts: [`Reply::Done`].
    Abort {
        /// Of the object.
        bucket: BucketId,
        /// Of the object.
        key: String,
        /// The upload.
        upload: UploadId,
    },
    /// See [`List`]: [`Reply::Page`].
    List(List),
    /// Whether a bucket has neither versions nor delete markers here; uploads do not count: [`Reply::Empty`].
    BucketIsEmpty {
        /// Which bucket.
        bucket: BucketId,
    },
    /// Whether shards of a blob may go: [`Reply::Blob`].
    BlobStatus {
        /// Which blob.
        blob: BlobId,
    },
    /// From now on no blob of the writer's incarnations up to this one can be committed: [`Reply::Done`].
    RevokeWriter {
        /// The node.
        writer: NodeId,
        /// Up to and including it.
        incarnation: Incarnation,
    },
    /// Blobs whose shards are to be freed, by id: [`Reply::Blobs`].
    FreeListNext {
        /// Only ids above it.
        after: Option<BlobId>,
        /// At most so many, and at most [`super::LIST_ENTRIES_MAX`].
        limit: u32,
    },
    /// Every member of their placement groups has freed these: [`Reply::Done`].
    Freed {
        /// At most [`super::LIST_ENTRIES_MAX`].
        blobs: Vec<BlobId>,
    },
    /// Blobs with missing shards, by id: [`Reply::Blobs`].
    DegradedNext {
        /// Only ids above it.
        after: Option<BlobId>,
        /// At most so many, and at most [`super::LIST_ENTRIES_MAX`].
        limit: u32,
    },
    /// Shards of a blob were re-created and flushed: [`Reply::Done`], also if the blob is gone.
    Repaired {
        /// Which blob.
        blob: BlobId,
        /// Those that are still missing: bit `i` is shard `i`.
        missing_shards: u32,
    },
    /// Forgets answers kept for repetitions, once a day old: [`Reply::More`]. A background job runs it.
    Expire {
        /// At most so many, and at most [`super::LIST_ENTRIES_MAX`].
        limit: u32,
    },
    /// Drops all objects and uploads of a bucket that was removed, some at a time: [`Reply::More`].
    DropBucketState {
        /// Which bucket.
        bucket: BucketId,
        /// Objects and uploads per call, at least 1, at most 100.
        limit: u32,
    },
    /// Sets or removes one header of a version's attributes and nothing else: [`Reply::Tagged`].
    SetHeader {
        /// Of the object.
        bucket: BucketId,
        /// Of the object.
        key: String,
        /// Which version; `None`: the newest.
        version: Option<VersionId>,
        /// Lower case.
        name: String,
        /// `None`: it goes.
        value: Option<String>,
    },
    /// See [`SwapBlobs`]: [`Reply::Done`], also if it was done before.
    SwapBlobs(SwapBlobs),
}

impl Command {
    /// The bucket whose versioning decides what the command does or answers.
    pub fn bucket(&self) -> Option<BucketId> {
        match self {
            Self::Head(lookup) | Self::Get(lookup) | Self::ObjectParts { lookup, .. } => Some(lookup.bucket),
            Self::Put(put) => Some(put.bucket),
            Self::Complete(complete) => Some(complete.bucket),
            Self::SwapBlobs(swap) => Some(swap.bucket),
            Self::Delete { bucket, .. } | Self::SetTags { bucket, .. } | Self::SetHeader { bucket, .. } => {
                Some(*bucket)
            }
            _ => None,
        }
    }
}

/// A stored part, as listed.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct PartEntry {
    /// 1..=10000.
    pub number: u16,
    /// Bytes.
    pub size_bytes: u64,
    /// Its ETag is the hex of it.
    pub md5: [u8; 16],
    /// Unix milliseconds.
    pub last_modified_ms: u64,
    /// As stored.
    pub checksums: Pairs,
}

/// One entry of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Entry {
    /// An object.
    Object {
        /// Its key.
        key: String,
        /// Its size, ETag, time and parts.
        stored: Stored,
        /// Its storage class, if it was given one.
        class: Option<String>,
    },
    /// A version or delete marker.
    Version {
        /// Its key.
        key: String,
        /// Its name.
        version: VersionId,
        /// The newest of its key.
        is_latest: bool,
        /// A delete marker.
        is_marker: bool,
        /// Its size, ETag, time and parts.
        stored: Stored,
        /// Its storage class, if it was given one.
        class: Option<String>,
    },
    /// An upload in progress.
    Upload {
        /// Of the object to be.
        key: String,
        /// Its id.
        upload: UploadId,
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

impl Entry {
    /// What the listing is ordered by, bytewise.
    pub fn name(&self) -> &str {
        match self {
            Self::Object { key, .. } | Self::Version { key, .. } | Self::Upload { key, .. } => key,
            Self::Prefix(prefix) => prefix,
        }
    }

    /// Where within its key it stands, if the listing can have more entries for it.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Version { stored, .. } => Some(Position::Version(stored.last_modified_ms)),
            Self::Upload { upload, .. } => Some(Position::Upload(*upload)),
            Self::Object { .. } | Self::Prefix(_) => None,
        }
    }
}

/// What the collector may do with shards of a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum BlobStatus {
    /// An object or a part has it: keep.
    Live,
    /// It was committed and has been freed since: its shards may go.
    Freed,
    /// It was never committed, and its writer is revoked: its shards may go.
    Revoked,
    /// It is not committed, and may still be: keep, and revoke the writer once it is known to be gone.
    Unknown,
}

/// Where a part lies in its object.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct PartRange {
    /// First byte.
    pub first: u64,
    /// Bytes.
    pub len: u64,
    /// Digest by the algorithm of the upload; empty if there is none.
    pub checksum: Vec<u8>,
}

/// The answer to a command that was carried out.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to say.
    Done,
    /// Of a write.
    Stored(Stored),
    /// An object.
    Object {
        /// With its segments (Get) or without (Head).
        manifest: Manifest,
        /// Bytes of the inline segments, in their order (Get).
        inline: Vec<Vec<u8>>,
        /// Its name, if the bucket has or had versions.
        version: Option<VersionId>,
        /// Where the part is that was asked for.
        part: Option<PartRange>,
    },
    /// Parts of a completed object, and whether more follow.
    ObjectParts {
        /// Without its segments.
        manifest: Manifest,
        /// Its name, if the bucket has or had versions.
        version: Option<VersionId>,
        /// In order.
        parts: Vec<ObjectPart>,
        /// More follow.
        truncated: bool,
    },
    /// The version whose tags were set, if the bucket has or had versions.
    Tagged(Option<VersionId>),
    /// What was deleted.
    Deleted {
        /// The version removed, or the delete marker added.
        version: Option<VersionId>,
        /// Whether that is a delete marker.
        is_marker: bool,
    },
    /// An upload.
    Upload(Upload),
    /// Parts by number, and whether more follow.
    Parts {
        /// In order.
        parts: Vec<PartEntry>,
        /// More follow.
        truncated: bool,
        /// As announced when the upload began.
        checksum: Option<UploadChecksum>,
        /// The storage class of the object to be, if it was given one.
        class: Option<String>,
    },
    /// A page of a listing.
    Page {
        /// In order of [`Entry::name`].
        entries: Vec<Entry>,
        /// More follow.
        truncated: bool,
    },
    /// Whether a bucket is empty here.
    Empty(bool),
    /// Whether shards may go.
    Blob(BlobStatus),
    /// Blobs by id, and whether more follow.
    Blobs {
        /// In order.
        blobs: Vec<BlobRef>,
        /// More follow.
        truncated: bool,
    },
    /// Whether to call again.
    More(bool),
}

/// Why a command was not carried out; nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Archive, Serialize, Deserialize)]
pub enum Refusal {
    /// The object does not exist.
    #[error("the key does not exist")]
    NoSuchKey,
    /// The newest version is a delete marker: to a reader the object does not exist.
    #[error("the key does not exist: its newest version is a delete marker")]
    DeleteMarker {
        /// The marker.
        version: VersionId,
    },
    /// The version that was named is a delete marker, which cannot be read.
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
    /// The object has no such part.
    #[error("the object has no part {number}")]
    NoSuchPart {
        /// As asked for.
        number: u16,
    },
    /// A checksum given for the whole object is not what its parts make.
    #[error("the {algorithm:?} that was given does not match the calculated checksum")]
    ChecksumMismatch {
        /// Of which algorithm.
        algorithm: ChecksumAlgorithm,
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
    /// Key longer than 1,024 bytes.
    #[error("the key is longer than 1024 bytes")]
    KeyTooLong,
    /// Attributes and checksums over their limit.
    #[error("the attributes are larger than 8 KiB")]
    AttributesTooLarge,
    /// A condition does not hold (412).
    #[error("a precondition does not hold")]
    PreconditionFailed,
    /// The caller's copy is current (304).
    #[error("not modified")]
    NotModified {
        /// ETag to return with the 304.
        etag: String,
        /// Unix milliseconds.
        last_modified_ms: u64,
    },
    /// The writer's incarnation was revoked: the bytes may be gone, write them again.
    #[error("the writer of {blob} was revoked")]
    WriterRevoked {
        /// Which blob.
        blob: BlobId,
    },
    /// A blob has exactly one owner, and another one has it.
    #[error("{blob} belongs to another object or part")]
    BlobInUse {
        /// Which blob.
        blob: BlobId,
    },
    /// The version whose blobs were to be swapped is gone, or has other blobs by now.
    #[error("the version has changed")]
    VersionChanged,
    /// A command that makes no sense.
    #[error("{problem}")]
    InvalidRequest {
        /// What is wrong.
        problem: String,
    },
}

/// What a primary answers to a command that it could evaluate.
#[expect(clippy::large_enum_variant, reason = "one lives per command, and not for long")]
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Outcome {
    /// Carried out, and committed if it changed something.
    Done(Reply),
    /// Not carried out.
    Refused(Refusal),
}

fn check_reply(reply: &Reply) -> Result<(), &'static str> {
    match reply {
        Reply::Object { manifest, .. } | Reply::ObjectParts { manifest, .. } => {
            check_segments(&manifest.segments)
        }
        Reply::Blobs { blobs, .. } => blobs.iter().try_for_each(BlobRef::check),
        _ => Ok(()),
    }
}

framed!(Command, 0x101);
framed!(Reply, 0x102, check_reply);
framed!(Refusal, 0x103);
framed!(Outcome, 0x104, |outcome| match outcome {
    Outcome::Done(reply) => check_reply(reply),
    Outcome::Refused(_) => Ok(()),
});

/// Sorted pairs from a map, as the gateway holds them.
pub fn pairs(map: &BTreeMap<String, String>) -> Pairs {
    map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}
