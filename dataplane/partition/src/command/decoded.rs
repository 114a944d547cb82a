//! A partition's rows one by one, for fsck and inspection: what a row is, which blobs it names, and which other rows
//! must stand beside it. Evaluation never comes here.
//!
//! Failure model: a row that is not what its key says is a [`RowProblem`], never a panic.

use quarry_clustermap::{BlobId, BucketId};

use super::framed::Framed;
use super::manifest::{
    BlobOwner, CompletedUpload, Manifest, NullVersion, Part, PartRun, RevokedWriter, Segment, SegmentRun,
    Upload, UploadId,
};
use super::rows;
use super::state::{PARTS_PER_ROW, SEGMENTS_PER_ROW};
use super::{PARTS_MAX, RowProblem};
use crate::BlobRef;

/// A row, decoded and checked against its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DecodedRow {
    /// An object version.
    Version {
        /// Of the object.
        bucket: BucketId,
        /// Of the object.
        key: String,
        /// Its manifest, as stored: without the segments in continuation rows.
        manifest: Manifest,
    },
    /// Bytes of an inline segment.
    Body {
        /// How many.
        size_bytes: usize,
    },
    /// Segments that do not fit the manifest's own row.
    Continuation(SegmentRun),
    /// Which version is the null version.
    NullVersion(NullVersion),
    /// Parts of a completed object.
    PartRun,
    /// An upload in progress.
    Upload {
        /// Of the object to be.
        bucket: BucketId,
        /// Of the object to be.
        key: String,
        /// Its id.
        upload: UploadId,
        /// Unix milliseconds.
        created_ms: u64,
    },
    /// A part of an upload in progress.
    Part(Part),
    /// Bytes of an inline part.
    PartBody {
        /// How many.
        size_bytes: usize,
    },
    /// An upload that was completed.
    Completed,
    /// Who owns a blob or a request.
    Owner {
        /// The blob or request.
        blob: BlobId,
        /// Its owner.
        owner: BlobOwner,
    },
    /// An entry of the free list.
    Free(BlobRef),
    /// A blob that awaits repair.
    Degraded(BlobRef),
    /// A writer whose blobs can be committed no more.
    Revoked,
    /// A row to forget later.
    Expiry,
}

/// A row that another row says must be there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedRow {
    /// Its key.
    pub key: Vec<u8>,
    /// Length of its value, where it is fixed.
    pub size_bytes: Option<u32>,
}

impl DecodedRow {
    /// Names of the kinds, for people.
    pub const KIND_NAMES: [&'static str; 14] = [
        "versions",
        "bodies",
        "continuations",
        "uploads",
        "parts",
        "part bodies",
        "completed uploads",
        "owners",
        "free list",
        "degraded",
        "revoked writers",
        "expiries",
        "null versions",
        "part lists",
    ];

    /// Index of its kind in [`DecodedRow::KIND_NAMES`].
    pub fn kind(&self) -> usize {
        match self {
            Self::Version { .. } => 0,
            Self::Body { .. } => 1,
            Self::Continuation(_) => 2,
            Self::Upload { .. } => 3,
            Self::Part(_) => 4,
            Self::PartBody { .. } => 5,
            Self::Completed => 6,
            Self::Owner { .. } => 7,
            Self::Free(_) => 8,
            Self::Degraded(_) => 9,
            Self::Revoked => 10,
            Self::Expiry => 11,
            Self::NullVersion(_) => 12,
            Self::PartRun => 13,
        }
    }

    /// The segments that the row itself lists.
    pub fn segments(&self) -> &[Segment] {
        match self {
            Self::Version { manifest, .. } => &manifest.segments,
            Self::Continuation(run) => &run.segments,
            Self::Part(part) => part.segment.as_slice(),
            _ => &[],
        }
    }

    /// The rows that must stand beside this one, whose key is `row`.
    pub fn named_rows(&self, row: &[u8]) -> Vec<NamedRow> {
        let body = |base: &[u8], segment: usize, size_bytes: u32| {
            let segment = u32::try_from(segment).expect("rows and their number are bounded");
            let key = [&[rows::BODY], base, &segment.to_be_bytes()[..]].concat();
            NamedRow { key, size_bytes: Some(size_bytes) }
        };
        let inline = |(index, segment): (usize, &Segment)| match segment {
            Segment::Inline { size_bytes } => Some((index, *size_bytes)),
            Segment::Blob(_) => None,
        };
        match self {
            Self::Version { manifest, .. } => {
                let base = &row[1..];
                let bodies = manifest.segments.iter().enumerate().filter_map(inline);
                let mut named: Vec<_> = bodies.map(|(index, size)| body(base, index, size)).collect();
                named.extend((0..manifest.continuation_rows).map(|n| {
                    let key = [&[rows::CONTINUATION], base, &n.to_be_bytes()[..]].concat();
                    NamedRow { key, size_bytes: None }
                }));
                named.extend((0..manifest.part_rows).map(|n| {
                    let key = [&[rows::PART_RUN], base, &n.to_be_bytes()[..]].concat();
                    NamedRow { key, size_bytes: None }
                }));
                named
            }
            Self::Continuation(run) => {
                let base = &row[1..row.len() - 4];
                let first = continuation_number(row) * SEGMENTS_PER_ROW;
                let bodies = run.segments.iter().enumerate().filter_map(inline);
                bodies.map(|(index, size)| body(base, first + index, size)).collect()
            }
            Self::Part(part) => match part.segment {
                Some(Segment::Inline { size_bytes }) => {
                    let key = [&[rows::PART_BODY], &row[1..]].concat();
                    vec![NamedRow { key, size_bytes: Some(size_bytes) }]
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

/// Decodes a row by its key.
///
/// # Errors
/// [`RowProblem`]: the key is of no known kind, the value is not what belongs there, or the two contradict each other.
pub fn decode_row(key: &[u8], value: &[u8]) -> Result<DecodedRow, RowProblem> {
    match key.first().copied().ok_or(RowProblem::Key)? {
        rows::VERSION => {
            let (bucket, name, version_ms) = rows::parse_version(key).ok_or(RowProblem::Key)?;
            let manifest = Manifest::decode(value)?;
            check_manifest(&manifest, version_ms)?;
            Ok(DecodedRow::Version { bucket, key: name, manifest })
        }
        rows::BODY => {
            key_fields(rows::BODY, key, 12)?;
            Ok(DecodedRow::Body { size_bytes: value.len() })
        }
        rows::CONTINUATION => {
            key_fields(rows::CONTINUATION, key, 12)?;
            if continuation_number(key) >= CONTINUATION_ROWS_MAX {
                return Err(RowProblem::Key);
            }
            Ok(DecodedRow::Continuation(SegmentRun::decode(value)?))
        }
        rows::NULL_VERSION => {
            key_fields(rows::NULL_VERSION, key, 0)?;
            Ok(DecodedRow::NullVersion(NullVersion::decode(value)?))
        }
        rows::PART_RUN => {
            key_fields(rows::PART_RUN, key, 12)?;
            if continuation_number(key) >= PART_ROWS_MAX {
                return Err(RowProblem::Key);
            }
            PartRun::decode(value)?;
            Ok(DecodedRow::PartRun)
        }
        rows::UPLOAD => {
            let (bucket, name, upload) = rows::parse_upload(key).ok_or(RowProblem::Key)?;
            let created_ms = Upload::decode(value)?.created_ms;
            Ok(DecodedRow::Upload { bucket, key: name, upload, created_ms })
        }
        rows::PART => {
            check_length(key, 1 + 16 + 2)?;
            Ok(DecodedRow::Part(Part::decode(value)?))
        }
        rows::PART_BODY => {
            check_length(key, 1 + 16 + 2)?;
            Ok(DecodedRow::PartBody { size_bytes: value.len() })
        }
        rows::COMPLETED => {
            check_length(key, 1 + 16)?;
            CompletedUpload::decode(value)?;
            Ok(DecodedRow::Completed)
        }
        rows::OWNER => Ok(DecodedRow::Owner { blob: blob_of(key)?, owner: BlobOwner::decode(value)? }),
        rows::FREE => blob_ref(key, value).map(DecodedRow::Free),
        rows::DEGRADED => blob_ref(key, value).map(DecodedRow::Degraded),
        rows::REVOKED => {
            check_length(key, 1 + 4)?;
            RevokedWriter::decode(value)?;
            Ok(DecodedRow::Revoked)
        }
        rows::EXPIRY => rows::parse_expiry(key).map(|_| DecodedRow::Expiry).ok_or(RowProblem::Key),
        _ => Err(RowProblem::Key),
    }
}

/// Most continuation rows of a manifest: an object has at most a segment per part.
const CONTINUATION_ROWS_MAX: usize = (PARTS_MAX as usize).div_ceil(SEGMENTS_PER_ROW);

/// Most rows that describe the parts of a manifest.
const PART_ROWS_MAX: usize = (PARTS_MAX as usize).div_ceil(PARTS_PER_ROW);

/// Position of a continuation row, or of one that describes parts, whose key has its fields.
fn continuation_number(key: &[u8]) -> usize {
    let n = key.last_chunk::<4>().expect("a continuation key has its fields");
    u32::from_be_bytes(*n) as usize
}

fn check_manifest(manifest: &Manifest, version_ms: u64) -> Result<(), RowProblem> {
    let too_many = manifest.continuation_rows as usize > CONTINUATION_ROWS_MAX
        || manifest.part_rows as usize > PART_ROWS_MAX;
    if manifest.last_modified_ms != version_ms || too_many {
        return Err(RowProblem::Mismatch);
    }
    let sum: u128 = manifest.segments.iter().map(|segment| u128::from(segment.size_bytes())).sum();
    let whole = manifest.continuation_rows == 0;
    if whole && sum != u128::from(manifest.size_bytes) { Err(RowProblem::Mismatch) } else { Ok(()) }
}

fn key_fields(kind: u8, key: &[u8], bytes: usize) -> Result<(), RowProblem> {
    let (_, _, rest) = rows::parse_key(kind, key).ok_or(RowProblem::Key)?;
    if rest.len() == bytes { Ok(()) } else { Err(RowProblem::Key) }
}

fn check_length(key: &[u8], bytes: usize) -> Result<(), RowProblem> {
    if key.len() == bytes { Ok(()) } else { Err(RowProblem::Key) }
}

fn blob_of(key: &[u8]) -> Result<BlobId, RowProblem> {
    key[1..].try_into().map(BlobId::from_bytes).map_err(|_| RowProblem::Key)
}

fn blob_ref(key: &[u8], value: &[u8]) -> Result<BlobRef, RowProblem> {
    let blob = BlobRef::decode(value)?;
    if blob_of(key)? == blob.blob { Ok(blob) } else { Err(RowProblem::Mismatch) }
}
