//! The embedded store's file: one frame around JSON.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | magic `QRYMETA\n` |
//! | 8 | 4 | format version, big-endian: 1 |
//! | 12 | 4 | crc32c of bytes 0..12, 16..24 and the content, big-endian |
//! | 16 | 8 | length of the content in bytes, big-endian |
//! | 24 | length | content: [`ContentV1`] as JSON |
//!
//! Values are base64 inside the JSON. The file ends with the content.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::DamageError;

const MAGIC: [u8; 8] = *b"QRYMETA\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;

/// Everything that outlives the process. Frozen: a change is a new version with a type of its own.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContentV1 {
    /// Revision of the newest transaction.
    pub(crate) revision: i64,
    /// By key.
    pub(crate) entries: BTreeMap<String, EntryV1>,
}

/// One value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EntryV1 {
    /// When it was put.
    pub(crate) revision: i64,
    /// Base64.
    #[serde(with = "base64_text")]
    pub(crate) value: Vec<u8>,
}

mod base64_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::{Engine, STANDARD};

    pub(super) fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The file's bytes.
pub(crate) fn encode(content: &ContentV1) -> Vec<u8> {
    let json = serde_json::to_vec(content).expect("maps with string keys always serialise");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + json.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&u64::try_from(json.len()).expect("a length is at most 64 bits").to_be_bytes());
    bytes.extend_from_slice(&json);
    let checksum = checksum(&bytes);
    bytes[12..16].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// Reads and checks a file's bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<ContentV1, DamageError> {
    let length = |bytes: usize| u64::try_from(bytes).expect("a length is at most 64 bits");
    let Some((header, json)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(DamageError::Length { found: length(bytes.len()), expected: length(HEADER_BYTES) });
    };
    if header[..8] != MAGIC {
        return Err(DamageError::Magic);
    }
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (version, stored) = (word(8), word(12));
    if version != VERSION {
        return Err(DamageError::Version { found: version, known: VERSION });
    }
    let content_bytes = u64::from(word(16)) << 32 | u64::from(word(20));
    let expected = content_bytes.saturating_add(length(HEADER_BYTES));
    if expected != length(bytes.len()) {
        return Err(DamageError::Length { found: length(bytes.len()), expected });
    }
    let computed = checksum(bytes);
    if computed != stored {
        return Err(DamageError::Checksum { computed, stored });
    }
    serde_json::from_slice(json).map_err(|error| DamageError::Content { reason: error.to_string() })
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ContentV1 {
        let entry = EntryV1 { revision: 3, value: b"{}".to_vec() };
        ContentV1 { revision: 4, entries: BTreeMap::from([("map".to_owned(), entry)]) }
    }

    #[test]
    fn golden_image() {
        let bytes = encode(&sample());
        let (header, json) = bytes.split_at(HEADER_BYTES);
        assert_eq!(json, br#"{"revision":4,"entries":{"map":{"revision":3,"value":"e30="}}}"#);
        assert_eq!(&header[..12], b"QRYMETA\n\0\0\0\x01");
        assert_eq!(header[12..16], 0x5333_205e_u32.to_be_bytes());
        assert_eq!(decode(&bytes), Ok(sample()));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_found() {
        let bytes = encode(&sample());
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(decode(&bad).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = encode(&sample());
        bytes[11] = 2;
        assert_eq!(decode(&bytes), Err(DamageError::Version { found: 2, known: 1 }));
    }
}
