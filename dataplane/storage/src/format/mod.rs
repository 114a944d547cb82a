//! What stands on a device, byte for byte. Each format has one definition: the byte table in its file.
//!
//! Everything persisted carries a magic or a kind, a version that can be read without parsing the rest, and a
//! crc32c. A version is frozen once released: a change is a new version with its own type and reader.
//! Integers are little-endian in headers and big-endian in row keys (so that byte order is key order).
//!
//! Failure model: any byte may be wrong. Decoders never panic, never allocate more than their input holds,
//! and say what is wrong.

pub mod batch;
pub mod frame;
pub mod record;
pub mod rows;
pub mod superblock;

/// Why bytes were refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// The magic or kind is not the one of this format.
    #[error("not a {what}: wrong magic")]
    Magic {
        /// Format.
        what: &'static str,
    },
    /// Written by a version this program does not know.
    #[error("{what} has version {version}, which this program cannot read")]
    Version {
        /// Format.
        what: &'static str,
        /// Version found.
        version: u32,
    },
    /// The bytes end too early, or a length makes no sense.
    #[error("{what} is cut short or its length is wrong")]
    Length {
        /// Format.
        what: &'static str,
    },
    /// The checksum does not match.
    #[error("{what}: checksum mismatch")]
    Checksum {
        /// Format.
        what: &'static str,
    },
    /// The checksum matches but a field makes no sense.
    #[error("{what}: bad field {field}")]
    Field {
        /// Format.
        what: &'static str,
        /// Field.
        field: &'static str,
    },
}

/// Reads a little-endian `u32` at `at`; the caller has checked the length.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes were sliced"))
}

/// Reads a little-endian `u64` at `at`; the caller has checked the length.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes were sliced"))
}

/// crc32c of `bytes` with the four bytes at `crc_at` taken as zero.
pub(crate) fn crc_without_itself(bytes: &[u8], crc_at: usize) -> u32 {
    let crc = crc32c::crc32c(&bytes[..crc_at]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[crc_at + 4..])
}

#[cfg(test)]
mod tests;
