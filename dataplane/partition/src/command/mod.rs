//! What S3 needs of one partition: commands evaluated to row mutations at the partition's primary.
//!
//! [`evaluate`] is pure but for the [`View`] it reads. The caller runs one evaluation at a time per partition, in
//! order of arrival, over committed and proposed rows; proposes the resulting rows as one log entry; and sends the
//! reply once that entry is committed. A command without rows is answered once all entries before it are committed.
//!
//! Invariants:
//! - a blob has exactly one owner (an object version or a part) or is on the free list, never both; the record that
//!   takes it from its owner puts it on the free list;
//! - the blobs of a version are replaced by others (a move between tiers) only if it still has them, in one record
//!   that puts the old ones on the free list; size, ETag, time, tags and checksums stay;
//! - a put (its first blob, or the request id of inline bytes) takes effect once: a repetition gets the first answer;
//! - no blob of a revoked writer incarnation gets an owner;
//! - `last_modified_ms` grows strictly per key while it has a version, and orders its versions;
//! - a key has at most one null version; a row names it exactly while another version is newer. Keys of buckets that
//!   never kept versions have no such row, and their newest version is found by one scan of one row.
//!
//! Failures: what the caller asked is a [`Refusal`], and nothing has changed; rows that cannot be read or decoded
//! are [`EvaluateError::View`] or [`EvaluateError::Damaged`], and the caller must answer "unavailable".

mod conditions;
mod decoded;
mod evaluate;
mod framed;
mod manifest;
mod message;
mod rows;
mod state;
#[cfg(test)]
mod tests;
mod version;

use bytes::Bytes;

pub use decoded::{DecodedRow, NamedRow, decode_row};
pub use evaluate::{Walk, evaluate, list_merged, listed_rows};
pub use framed::{FRAME_BYTES_MAX, Framed};
pub use manifest::{
    BlobOwner, CompletedUpload, Manifest, NullVersion, ObjectPart, Origin, Pairs, Part, PartRun,
    RevokedWriter, STORAGE_CLASS_HEADER, Segment, SegmentRun, Stored, StoredAttributes, Upload,
    UploadChecksum, UploadId, VersionKind,
};
pub use message::{
    BlobStatus, BlobSwap, Command, Complete, CompletePart, Conditions, Content, Entry, List, Listed, Lookup,
    Outcome, PartEntry, PartRange, Position, Put, PutPart, Refusal, Reply, SwapBlobs, pairs,
};

pub use rows::{UPLOAD_ROWS, VERSION_MS_BYTES, is_free_list_row, null_version_row};
pub use version::{EvaluationContext, VersionId, Versioning};

use crate::{FrameError, Row};

/// Longest key, as in S3.
pub const KEY_BYTES_MAX: usize = 1024;
/// Names and values of attributes and checksums together.
pub const ATTRIBUTES_BYTES_MAX: usize = 8 * 1024;
/// Longest inline body: half of what one row of the index may hold.
pub const INLINE_BYTES_MAX: usize = 512 * 1024;
/// Highest part number, as in S3.
pub const PARTS_MAX: u16 = 10_000;
/// Smallest part that is not the last, as in S3.
pub const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
/// Tags of one object, as in S3.
pub const TAGS_MAX: usize = 10;
/// Characters of the key and of the value of a tag, as in S3.
pub const TAG_CHARS_MAX: (usize, usize) = (128, 256);
/// Blobs of one [`SwapBlobs`]: with the longest key their owner rows take about 0.5 MiB of a log entry.
pub const SWAPS_MAX: usize = 500;
/// Most entries of one page of any kind.
pub const LIST_ENTRIES_MAX: u32 = 1000;
/// How long the answer to a put or Complete is kept for repetitions: 1 day. A gateway repeats for minutes.
pub const ANSWER_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// The rows of the partition: committed and proposed.
#[expect(async_fn_in_trait, reason = "single-threaded executors: futures need not be Send")]
pub trait View {
    /// The value of one row.
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError>;
    /// At most `limit_rows` rows with `from <= key < to`, in order.
    async fn scan(&self, from: &[u8], to: &[u8], limit_rows: usize)
    -> Result<Vec<(Bytes, Bytes)>, ViewError>;
}

/// Rows could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the partition's rows cannot be read: {detail}")]
pub struct ViewError {
    /// For the log.
    pub detail: String,
}

/// What a command does and answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evaluated {
    /// To propose as one log entry; empty: nothing changes. No key stands in it twice.
    pub rows: Vec<Row>,
    /// To send once the rows are committed.
    pub reply: Reply,
}

/// Why a command was not evaluated.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EvaluateError {
    /// Send it to the caller.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The device cannot answer.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A row is there but cannot be what it should be.
    #[error("row {} is damaged: {problem}", hex::encode(key))]
    Damaged {
        /// Its key.
        key: Vec<u8>,
        /// What is wrong.
        problem: RowProblem,
    },
}

/// What is wrong with a row.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RowProblem {
    /// Its value is not the frame it should be.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Its key is not of the layout.
    #[error("its key is malformed")]
    Key,
    /// It contradicts the row that names it.
    #[error("it is missing, or not of the length that its manifest says")]
    Mismatch,
}
