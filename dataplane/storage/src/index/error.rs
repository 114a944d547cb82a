//! What can go wrong in the index.

use bytes::Bytes;

use super::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::device::DeviceError;
use crate::extent::BlockIndex;

/// A range of keys; `to` is exclusive, `None` means the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key of the range.
    pub from: Bytes,
    /// The key after the range, if it has an end.
    pub to: Option<Bytes>,
}

impl KeyRange {
    /// The range that holds one key.
    pub(crate) fn only(key: &[u8]) -> Self {
        Self { from: Bytes::copy_from_slice(key), to: Some(Bytes::from([key, &[0]].concat())) }
    }

    /// Whether a key of `from..to` lies in it.
    pub(crate) fn overlaps(&self, from: &[u8], to: &[u8]) -> bool {
        self.from[..] < *to && self.to.as_ref().is_none_or(|end| *from < end[..])
    }
}

/// What is wrong with a page or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The bytes of the page do not match the checksum in its parent.
    Checksum,
    /// The page says that it belongs to another address.
    Address,
    /// The page has the right checksum and a version that this program does not know.
    Version,
    /// The page breaks its format, or its level or keys do not fit its parent.
    Structure,
    /// The bytes of an out-of-line value do not match the checksum in its row.
    Value,
}

/// An error of the index.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IndexError {
    /// A page or value is damaged; the keys of the range cannot be read.
    #[error("index damage at block {}, level {level}: {what:?}, keys {key_range:?}", page.0)]
    Damaged {
        /// First block of the page, or of the value when `what` is [`Damage::Value`].
        page: BlockIndex,
        /// Level in the tree; 0 for leaves and values.
        level: u8,
        /// What is wrong.
        what: Damage,
        /// The keys that cannot be read.
        key_range: Box<KeyRange>,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The free map has no room for the batch.
    #[error("no space for new index pages or values")]
    NoSpace,
    /// A value is longer than [`VALUE_BYTES_MAX`].
    #[error("value of {len_bytes} bytes is longer than {VALUE_BYTES_MAX}")]
    ValueTooLarge {
        /// Its length.
        len_bytes: usize,
    },
    /// A key is longer than [`KEY_BYTES_MAX`].
    #[error("key of {len_bytes} bytes is longer than {KEY_BYTES_MAX}")]
    KeyTooLong {
        /// Its length.
        len_bytes: usize,
    },
}
