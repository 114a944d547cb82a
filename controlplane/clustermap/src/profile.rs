//! Erasure profiles: how many data and parity shards a blob has.

use std::{fmt, str::FromStr};

use rkyv::{Archive, Deserialize, Serialize};

/// Bytes of one shard in one full stripe. 64-128 KiB keeps a stripe of any profile inside the cache while it
/// is encoded (20-33 GB/s per core against 12-14 with 1 MiB).
pub const SHARD_BLOCK_BYTES: usize = 128 * 1024;

/// k data shards and m parity shards. Belongs to a blob, never to a tier: fallback profiles coexist.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct ErasureProfile {
    /// k: shards that hold data, 1..=[`ErasureProfile::SHARDS_MAX`].
    pub data_shards: u8,
    /// m: shards that hold parity; 0 means no redundancy.
    pub parity_shards: u8,
}

/// Why a profile was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not of the form `k+m`.
    #[error("erasure profile {text:?} is not of the form k+m, for example 4+2")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// k is 0, or k+m is over the limit.
    #[error(
        "erasure profile {data_shards}+{parity_shards} needs 1 <= k and k+m <= {}",
        ErasureProfile::SHARDS_MAX
    )]
    OutOfRange {
        /// k as given.
        data_shards: u8,
        /// m as given.
        parity_shards: u8,
    },
}

impl ErasureProfile {
    /// Most shards in a stripe (k+m).
    pub const SHARDS_MAX: usize = 32;

    /// Checks the range.
    ///
    /// # Errors
    /// [`ProfileError::OutOfRange`].
    pub fn new(data_shards: u8, parity_shards: u8) -> Result<Self, ProfileError> {
        let total = usize::from(data_shards) + usize::from(parity_shards);
        if data_shards == 0 || total > Self::SHARDS_MAX {
            return Err(ProfileError::OutOfRange { data_shards, parity_shards });
        }
        Ok(Self { data_shards, parity_shards })
    }

    /// k as an index type.
    pub fn data(self) -> usize {
        usize::from(self.data_shards)
    }

    /// m as an index type.
    pub fn parity(self) -> usize {
        usize::from(self.parity_shards)
    }

    /// k+m.
    pub fn total(self) -> usize {
        self.data() + self.parity()
    }

    /// Object bytes in one full stripe.
    pub fn stripe_data_bytes(self) -> usize {
        self.data() * SHARD_BLOCK_BYTES
    }

    /// Replicas of a metadata partition under this profile: m+1, so that metadata survives what data survives.
    pub fn metadata_replicas(self) -> usize {
        self.parity() + 1
    }
}

impl fmt::Display for ErasureProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data_shards, self.parity_shards)
    }
}

impl FromStr for ErasureProfile {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ProfileError::Malformed { text: text.chars().take(32).collect() };
        let (data, parity) = text.split_once('+').ok_or_else(malformed)?;
        Self::new(data.parse().map_err(|_| malformed())?, parity.parse().map_err(|_| malformed())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        let profile: ErasureProfile = "4+2".parse().unwrap();
        assert_eq!((profile.data(), profile.parity(), profile.total()), (4, 2, 6));
        assert_eq!(profile.to_string(), "4+2");
        assert_eq!(profile.metadata_replicas(), 3);
        assert_eq!("1+0".parse::<ErasureProfile>().unwrap().total(), 1);
    }

    #[test]
    fn refuses_nonsense() {
        for text in ["", "4", "4+", "+2", "4+2+1", "x+y", "300+1", "-1+2"] {
            assert!(matches!(text.parse::<ErasureProfile>(), Err(ProfileError::Malformed { .. })), "{text}");
        }
        for text in ["0+2", "31+2", "255+255"] {
            assert!(matches!(text.parse::<ErasureProfile>(), Err(ProfileError::OutOfRange { .. })), "{text}");
        }
    }
}
