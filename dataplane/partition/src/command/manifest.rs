//! Persisted values of a partition's rows: schema version 1 of each, frozen.
//!
//! A field is never added, moved or reinterpreted here: a change is a new type with the next schema version, and
//! the old one stays to be read. The bytes of one example of each stand in the tests.

use quarry_clustermap::{BlobId, BucketId, Incarnation};
use rkyv::{Archive, Deserialize, Serialize};

use super::framed::framed;
use super::version::VersionId;
use crate::BlobRef;
use crate::checksum::ChecksumAlgorithm;

/// Identity of a multipart upload: random, unique for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Archive, Serialize, Deserialize)]
pub struct UploadId(pub [u8; 16]);

/// The header of the attributes that holds the storage class.
pub const STORAGE_CLASS_HEADER: &str = "x-amz-storage-class";

/// Pairs of lower-case name and value, sorted by name.
pub type Pairs = Vec<(String, String)>;

/// What S3 stores with an object and returns with it, unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Default, Archive, Serialize, Deserialize)]
pub struct StoredAttributes {
    /// System headers.
    pub headers: Pairs,
    /// User metadata, without the `x-amz-meta-` prefix.
    pub user: Pairs,
}

impl StoredAttributes {
    /// The storage class, if one was given.
    #[must_use]
    pub fn storage_class(&self) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == STORAGE_CLASS_HEADER).map(|(_, value)| value.as_str())
    }

    /// Bytes of all names and values.
    pub fn size_bytes(&self) -> usize {
        self.headers.iter().chain(&self.user).map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// A run of an object's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Segment {
    /// In a body row of the partition itself.
    Inline {
        /// Bytes in it, never 0.
        size_bytes: u32,
    },
    /// In shards on the devices of a placement group.
    Blob(BlobRef),
}

impl Segment {
    /// Object bytes in it.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Inline { size_bytes } => u64::from(*size_bytes),
            Self::Blob(blob) => blob.size_bytes,
        }
    }
}

/// What a version is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum VersionKind {
    /// The null version: an object.
    Null,
    /// An object with a version id of its own.
    Named,
    /// The null version: a delete marker.
    NullMarker,
    /// A delete marker with a version id of its own.
    NamedMarker,
}

impl VersionKind {
    /// Of a new version.
    #[must_use]
    pub fn new(is_null: bool, is_marker: bool) -> Self {
        match (is_null, is_marker) {
            (true, false) => Self::Null,
            (false, false) => Self::Named,
            (true, true) => Self::NullMarker,
            (false, true) => Self::NamedMarker,
        }
    }

    /// Whether it is the null version.
    #[must_use]
    pub fn is_null(self) -> bool {
        matches!(self, Self::Null | Self::NullMarker)
    }

    /// Whether it is a delete marker.
    #[must_use]
    pub fn is_marker(self) -> bool {
        matches!(self, Self::NullMarker | Self::NamedMarker)
    }
}

/// What made a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Origin {
    /// A put (its first blob) or a delete.
    Put(BlobId),
    /// A multipart upload.
    Upload(UploadId),
}

impl Origin {
    /// The put, if it was one.
    #[must_use]
    pub fn request(self) -> Option<BlobId> {
        match self {
            Self::Put(request) => Some(request),
            Self::Upload(_) => None,
        }
    }

    fn unique(self) -> [u8; 16] {
        match self {
            Self::Put(request) => request.to_bytes(),
            Self::Upload(upload) => upload.0,
        }
    }
}

/// The name of a version.
pub(super) fn version_id(is_null: bool, version_ms: u64, origin: Origin) -> VersionId {
    if is_null { VersionId::Null } else { VersionId::Named { version_ms, unique: origin.unique() } }
}

/// One object version, or a delete marker: everything but its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Manifest {
    /// Bytes: the sum of the segments.
    pub size_bytes: u64,
    /// Without quotes.
    pub etag: String,
    /// Unix milliseconds; grows strictly per key, and orders the versions of it.
    pub last_modified_ms: u64,
    /// As given.
    pub attributes: StoredAttributes,
    /// Tags of the object by key.
    pub tags: Pairs,
    /// Additional checksums by algorithm, base64; one of the parts' checksums ends with `-parts`.
    pub checksums: Pairs,
    /// Number of parts, 0 for an object that was not uploaded in parts.
    pub parts: u32,
    /// Object or delete marker, null or named.
    pub kind: VersionKind,
    /// What made it.
    pub origin: Origin,
    /// The bytes, in order; one per part for an upload, except that parts of 0 bytes have none. Empty in the
    /// stored row when continuation rows hold the list.
    pub segments: Vec<Segment>,
    /// Number of continuation rows; 0 once the list has been loaded.
    pub continuation_rows: u32,
    /// Number of rows that describe the parts; 0 if they are numbered from 1 and have no checksums.
    pub part_rows: u32,
}

impl Manifest {
    /// The name of the version.
    #[must_use]
    pub fn version_id(&self) -> VersionId {
        version_id(self.kind.is_null(), self.last_modified_ms, self.origin)
    }
}

/// Which version is the null version of a key whose newest version is another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct NullVersion {
    /// Its manifest's `last_modified_ms`.
    pub version_ms: u64,
}

/// A part of a completed object.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ObjectPart {
    /// 1..=10000.
    pub number: u16,
    /// Bytes.
    pub size_bytes: u64,
    /// Digest by the algorithm of the upload; empty if there is none.
    pub checksum: Vec<u8>,
}

/// A row of parts of a completed object.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct PartRun {
    /// By number.
    pub parts: Vec<ObjectPart>,
}

/// What checksum an upload was announced to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct UploadChecksum {
    /// Of every part.
    pub algorithm: ChecksumAlgorithm,
    /// Of the object: its own checksum; otherwise the checksum of those of its parts.
    pub full_object: bool,
}

/// A continuation row of a manifest.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct SegmentRun {
    /// In order.
    pub segments: Vec<Segment>,
}

/// An upload in progress.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Upload {
    /// Unix milliseconds.
    pub created_ms: u64,
    /// For the object to be.
    pub attributes: StoredAttributes,
    /// For the object to be.
    pub tags: Pairs,
    /// As announced.
    pub checksum: Option<UploadChecksum>,
}

/// A part of an upload in progress.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Part {
    /// MD5 of its bytes; its ETag is the hex of it.
    pub md5: [u8; 16],
    /// Unix milliseconds.
    pub last_modified_ms: u64,
    /// Additional checksums by algorithm, base64.
    pub checksums: Pairs,
    /// The put that made it.
    pub request: BlobId,
    /// Its bytes; `None` if it has 0.
    pub segment: Option<Segment>,
}

impl Part {
    /// Bytes in it.
    pub fn size_bytes(&self) -> u64 {
        self.segment.map_or(0, |segment| segment.size_bytes())
    }
}

/// An upload that was completed: answers a repeated Complete.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct CompletedUpload {
    /// Of the object.
    pub bucket: BucketId,
    /// Of the object.
    pub key: String,
    /// The answer.
    pub stored: Stored,
}

/// The answer to a write.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Stored {
    /// Bytes.
    pub size_bytes: u64,
    /// Without quotes.
    pub etag: String,
    /// Unix milliseconds.
    pub last_modified_ms: u64,
    /// Number of parts, 0 for an object that was not uploaded in parts.
    pub parts: u32,
    /// The version written, if the bucket has or had versions.
    pub version: Option<VersionId>,
    /// Checksums of the object, where the caller does not know them.
    pub checksums: Pairs,
}

/// What became of a blob (or of the request id of an inline put, which has no shards).
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum BlobOwner {
    /// The object version that a put made.
    Version {
        /// Of the object.
        bucket: BucketId,
        /// Of the object.
        key: String,
        /// Which version: its manifest's `last_modified_ms`.
        version_ms: u64,
        /// Whether it is the null version.
        is_null: bool,
    },
    /// A part of an upload, or, once that is completed, the object version that came from the upload.
    Part {
        /// Of the object.
        bucket: BucketId,
        /// Of the object.
        key: String,
        /// The upload.
        upload: UploadId,
        /// Part number.
        number: u16,
    },
    /// It was committed, and has been overwritten or deleted since: a late repetition of the put gets its answer.
    Superseded {
        /// What the put answered, Unix milliseconds.
        last_modified_ms: u64,
        /// Whether it was the null version.
        is_null: bool,
    },
}

/// Writer incarnations up to and including this one can commit no blob any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct RevokedWriter {
    /// The highest one revoked.
    pub incarnation: Incarnation,
}

pub(super) fn check_segments(segments: &[Segment]) -> Result<(), &'static str> {
    segments.iter().try_for_each(|segment| match segment {
        Segment::Inline { .. } => Ok(()),
        Segment::Blob(blob) => blob.check(),
    })
}

framed!(Manifest, 1, |manifest| check_segments(&manifest.segments));
framed!(SegmentRun, 2, |run| check_segments(&run.segments));
framed!(Upload, 3);
framed!(Part, 4, |part| check_segments(part.segment.as_slice()));
framed!(CompletedUpload, 5);
framed!(BlobOwner, 6);
framed!(BlobRef, 7, BlobRef::check);
framed!(RevokedWriter, 8);
framed!(PartRun, 9);
framed!(NullVersion, 10);
