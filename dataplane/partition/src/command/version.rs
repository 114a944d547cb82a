//! Versions of an object: how they are named, and what a bucket's versioning makes of a change.
//!
//! A key has a stack of versions, newest first. At most one of them is the null version: the one written while the
//! bucket did not keep versions. A delete marker is a version without bytes that hides the key while it is the newest.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
pub use quarry_clustermap::Versioning;
use rkyv::{Archive, Deserialize, Serialize};

/// What S3 calls the null version.
const NULL: &str = "null";
const TEXT_BYTES: usize = 32;

/// What an evaluation knows beside the rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EvaluationContext {
    /// Unix milliseconds.
    pub now_ms: u64,
    /// Of the bucket that the command is about.
    pub versioning: Versioning,
}

/// Names a version of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Archive, Serialize, Deserialize)]
pub enum VersionId {
    /// The null version.
    Null,
    /// Any other.
    Named {
        /// Its place in the stack.
        version_ms: u64,
        /// The put or upload that made it: no place is taken twice by the same one.
        unique: [u8; 16],
    },
}

impl VersionId {
    /// Inverse of its `Display`; `None` for what we never made.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text == NULL {
            return Some(Self::Null);
        }
        let bytes: [u8; 24] =
            BASE64.decode(text).ok().filter(|_| text.len() == TEXT_BYTES)?.try_into().ok()?;
        let (version_ms, unique) = bytes.split_first_chunk::<8>()?;
        Some(Self::Named { version_ms: u64::from_be_bytes(*version_ms), unique: unique.try_into().ok()? })
    }
}

impl std::fmt::Display for VersionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str(NULL),
            Self::Named { version_ms, unique } => {
                f.write_str(&BASE64.encode([&version_ms.to_be_bytes()[..], unique].concat()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::VersionId;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for id in [VersionId::Null, VersionId::Named { version_ms: 1_800_000_000_000, unique: [0xFB; 16] }] {
            assert_eq!(VersionId::parse(&id.to_string()), Some(id));
        }
        let text = VersionId::Named { version_ms: 1, unique: [1; 16] }.to_string();
        assert_eq!(text.len(), 32);
        for other in ["", "Null", "null ", &text[1..], &format!("{text}A"), &text.replace('A', "+")] {
            assert_eq!(VersionId::parse(other), None, "{other}");
        }
    }
}
