//! Entries of a partition's replicated log and what they carry.
//!
//! A payload is physical: rows to put or to delete. Applying entries in sequence order is all that a replica ever
//! does, so replicas with equal logs hold equal rows. Preconditions were evaluated before the payload was made.
//!
//! An entry is identified by (epoch, sequence): one primary made it, once. `Backfill` is the one payload that is
//! not equal on all replicas: a joiner holds the rows, the others hold `Noop` under the same identity. That is no
//! difference in meaning, because the rows of a page are what the others hold at that sequence anyway.

#[cfg(test)]
pub(crate) mod tests;

use bytes::Bytes;
use quarry_clustermap::{Epoch, Sequence};
use rkyv::{Archive, Deserialize, Serialize, rancor};

use crate::frame::{FrameError, FrameKind};
use crate::row::{ArchivedRow, Row};

/// Frame of a [`Payload`].
pub(crate) const PAYLOAD: FrameKind = log_frame(1, PAYLOAD_BYTES_MAX);

/// The family of frames of this crate's log: kind 1 is a payload, kind 2 an envelope.
pub(crate) const fn log_frame(kind: u16, bytes_max: usize) -> FrameKind {
    FrameKind { magic: *b"QRYP", kind, version: 1, bytes_max }
}

/// Longest encoded payload: a value is at most 1 MiB, and Complete of a multipart upload moves many small rows.
pub const PAYLOAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest row key; the index allows 2,048 bytes, three of which are its own prefix.
pub const ROW_KEY_BYTES_MAX: usize = 2045;
/// Most rows in one payload: bounds what decoding allocates.
pub const PAYLOAD_ROWS_MAX: usize = 65_536;

/// Values that are shared with the frame they came in, as most of it is they; shorter ones would keep it for little.
const SHARED_BYTES_MIN: usize = 1024;

/// What an entry does.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Payload {
    /// Rows to change, in order.
    Mutations(Vec<Row>),
    /// A page of whole rows for a joiner, in key order.
    Backfill(Vec<Row>),
    /// Nothing: a new primary's first entry, or a backfill page where it is not needed.
    Noop,
}

impl Payload {
    /// The rows, in the order in which they are to be applied.
    pub fn rows(&self) -> &[Row] {
        match self {
            Self::Mutations(rows) | Self::Backfill(rows) => rows,
            Self::Noop => &[],
        }
    }

    /// The same rows, owned.
    pub fn into_rows(self) -> Vec<Row> {
        match self {
            Self::Mutations(rows) | Self::Backfill(rows) => rows,
            Self::Noop => Vec::new(),
        }
    }

    /// The frame that is journaled and sent.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] or [`FrameError::Rule`]: over a limit of this module.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        check_rows(self.rows().len(), self.rows().iter().map(|row| row.key.len()))?;
        let frame = PAYLOAD.encode(self);
        check_length(frame.len())?;
        Ok(Bytes::from(frame))
    }

    /// Inverse of [`Payload::encode`].
    ///
    /// # Errors
    /// Anything but an intact payload frame within the limits.
    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let archived = Self::validate(frame)?;
        rkyv::deserialize::<Self, rancor::Error>(archived).map_err(|_| FrameError::Archive)
    }

    /// The rows of a frame, in order: key and value. Values of at least 1 KiB are views into the frame.
    ///
    /// # Errors
    /// As [`Payload::decode`].
    pub fn decode_rows(frame: &Bytes) -> Result<Vec<(Bytes, Option<Bytes>)>, FrameError> {
        let (ArchivedPayload::Mutations(rows) | ArchivedPayload::Backfill(rows)) = Self::validate(frame)?
        else {
            return Ok(Vec::new());
        };
        let value = |bytes: &[u8]| {
            if bytes.len() >= SHARED_BYTES_MIN {
                frame.slice_ref(bytes)
            } else {
                Bytes::copy_from_slice(bytes)
            }
        };
        let row = |row: &ArchivedRow| {
            (Bytes::copy_from_slice(&row.key), row.value.as_ref().map(|bytes| value(bytes)))
        };
        Ok(rows.iter().map(row).collect())
    }

    /// Whether [`Payload::decode`] would succeed, without allocating.
    ///
    /// # Errors
    /// As [`Payload::decode`].
    pub fn check(frame: &[u8]) -> Result<(), FrameError> {
        Self::validate(frame).map(|_| ())
    }

    fn validate(frame: &[u8]) -> Result<&ArchivedPayload, FrameError> {
        let archived = PAYLOAD.access::<ArchivedPayload>(frame)?;
        if let ArchivedPayload::Mutations(rows) | ArchivedPayload::Backfill(rows) = archived {
            check_rows(rows.len(), rows.iter().map(|row| row.key.len()))?;
        }
        Ok(archived)
    }
}

fn check_length(bytes: usize) -> Result<(), FrameError> {
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(FrameError::TooLong { actual: bytes as u64, limit: PAYLOAD_BYTES_MAX as u64 });
    }
    Ok(())
}

fn check_rows(count: usize, mut key_bytes: impl Iterator<Item = usize>) -> Result<(), FrameError> {
    if count > PAYLOAD_ROWS_MAX {
        return Err(FrameError::Rule { rule: "more rows than a payload may hold" });
    }
    if key_bytes.any(|bytes| bytes > ROW_KEY_BYTES_MAX) {
        return Err(FrameError::Rule { rule: "a row key is too long" });
    }
    Ok(())
}

/// One entry of a partition's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The epoch in which its primary made it; it keeps it when a later primary sends it again.
    pub epoch: Epoch,
    /// Position in the log, dense.
    pub sequence: Sequence,
    /// A [`Payload`] frame.
    pub payload: Bytes,
}

/// What a device's journal holds of one partition after a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveredLog {
    /// Highest epoch that was made durable, by an entry or by a raise.
    pub epoch: Epoch,
    /// Everything up to here is committed and in the rows.
    pub applied: Sequence,
    /// Entries `applied + 1 ..`, dense; some may be committed, some may have to be rolled back.
    pub tail: Vec<Entry>,
}
