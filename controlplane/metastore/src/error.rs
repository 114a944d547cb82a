//! What the metastore can refuse.

use std::{io, path::PathBuf};

use crate::{KEY_BYTES_MAX, TRANSACTION_BYTES_MAX, TRANSACTION_OPERATIONS_MAX, VALUE_BYTES_MAX};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum MetastoreError {
    /// A comparison failed; nothing was changed.
    #[error("the metastore changed meanwhile: a compared key is not as expected")]
    Conflict,
    /// The lease does not exist (any more).
    #[error("the lease has run out")]
    LeaseLost,
    /// A transaction over the limit.
    #[error("a transaction of {operations} operations is over the limit of {TRANSACTION_OPERATIONS_MAX}")]
    TooManyOperations {
        /// The larger of comparisons and changes.
        operations: usize,
    },
    /// A transaction with too many bytes.
    #[error("a transaction of {bytes} bytes is over the limit of {TRANSACTION_BYTES_MAX}")]
    TransactionTooLarge {
        /// Of its keys and values.
        bytes: usize,
    },
    /// A key that is empty or too long.
    #[error("a metastore key has 1 to {KEY_BYTES_MAX} bytes, not {bytes}")]
    KeyLength {
        /// Its length.
        bytes: usize,
    },
    /// A value over the limit.
    #[error("value of {key:?} has {bytes} bytes, over the limit of {VALUE_BYTES_MAX}")]
    ValueTooLarge {
        /// The key.
        key: String,
        /// Length of the value.
        bytes: usize,
    },
    /// One transaction changes a key twice.
    #[error("a transaction changes {key:?} twice")]
    ChangedTwice {
        /// The key.
        key: String,
    },
    /// The store cannot be reached or did not answer in time; a transaction may or may not have been applied.
    #[error("the metastore is unavailable during {operation}: {reason}")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// What the client library says.
        reason: String,
    },
    /// A key that is not UTF-8 stands under our prefix.
    #[error("the metastore holds a key that is not text: {key}")]
    ForeignKey {
        /// The key, lossily.
        key: String,
    },
    /// The embedded store's file cannot be read or written.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Another process has the embedded store open.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// Its directory.
        path: PathBuf,
    },
    /// The embedded store's file is damaged.
    #[error("{} is damaged: {damage}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: DamageError,
    },
    /// A replaced file could not be made durable; what is on the device is unknown until the store is opened again.
    #[error("the metastore failed to make a change durable; restart to read back what was written")]
    Failed,
}

/// What is wrong with an embedded store's file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DamageError {
    /// Shorter than its header says, or than a header is.
    #[error("{found} bytes where {expected} are expected")]
    Length {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// Not a metastore file.
    #[error("it does not start with the magic of a metastore file")]
    Magic,
    /// Written by a newer release.
    #[error("format version {found} is not known; this release reads {known}")]
    Version {
        /// In the file.
        found: u32,
        /// What this release reads.
        known: u32,
    },
    /// The content does not match its checksum.
    #[error("checksum {computed:08x}, the header says {stored:08x}")]
    Checksum {
        /// Of the content.
        computed: u32,
        /// In the header.
        stored: u32,
    },
    /// The checksum holds but the content makes no sense.
    #[error("its content is not valid: {reason}")]
    Content {
        /// What the parser says.
        reason: String,
    },
}
