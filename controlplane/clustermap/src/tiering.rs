//! How data is spread over tiers: part of the map, so that every node acts alike.

use serde::{Deserialize, Serialize};

use crate::ErasureProfile;

/// What the cluster says of its tiers beyond their devices.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tiering {
    /// Profile wanted for new blobs of the cold tier; `None`: that of the hot tier.
    pub cold_profile: Option<ErasureProfile>,
    /// What moves by itself.
    pub policy: TierPolicy,
}

/// The automatic policy: what is not read goes to cold when hot fills up, what is read often comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TierPolicy {
    /// Whether it acts; off by default.
    pub enabled: bool,
    /// Percent of the hot tier that may be used before versions are demoted.
    pub high_percent: u8,
    /// Demotion goes on down to so many percent.
    pub low_percent: u8,
    /// A version that was read or written in so many seconds is not demoted.
    pub idle_s: u64,
    /// Reads in an hour (decayed) that promote a version.
    pub promote_reads_per_hour: u32,
    /// Seconds in which no version moves twice.
    pub cool_down_s: u64,
    /// Smaller versions stay where they are: the move costs more than it saves.
    pub size_bytes_min: u64,
    /// Bytes per second that moves between tiers may read and write on each node: also those of lifecycle rules, and
    /// with the policy off.
    pub bytes_per_second: u64,
}

impl Default for TierPolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            high_percent: 80,
            low_percent: 70,
            idle_s: 24 * 3600,
            promote_reads_per_hour: 4,
            cool_down_s: 24 * 3600,
            size_bytes_min: 128 << 10,
            bytes_per_second: 64 << 20,
        }
    }
}

/// What is wrong with a policy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TierPolicyError {
    /// The watermarks are not in order.
    #[error(
        "the watermarks are {low} and {high} percent: the low one must be below the high one, and that at most 95"
    )]
    Watermarks {
        /// As given.
        low: u8,
        /// As given.
        high: u8,
    },
    /// A number that must not be 0 is 0.
    #[error("{0} must not be 0")]
    Zero(&'static str),
}

impl TierPolicy {
    /// Refuses what could not work.
    ///
    /// # Errors
    /// [`TierPolicyError`].
    pub fn check(&self) -> Result<(), TierPolicyError> {
        let (low, high) = (self.low_percent, self.high_percent);
        if low >= high || high > 95 {
            return Err(TierPolicyError::Watermarks { low, high });
        }
        for (name, value) in [
            ("promote-reads-per-hour", u64::from(self.promote_reads_per_hour)),
            ("cool-down-s", self.cool_down_s),
            ("bytes-per-second", self.bytes_per_second),
        ] {
            if value == 0 {
                return Err(TierPolicyError::Zero(name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_off_and_sound() {
        let policy = TierPolicy::default();
        assert!(!policy.enabled);
        assert_eq!(policy.check(), Ok(()));
        assert!(TierPolicy { low_percent: 80, ..policy }.check().is_err());
        assert!(TierPolicy { high_percent: 96, ..policy }.check().is_err());
        assert!(TierPolicy { cool_down_s: 0, ..policy }.check().is_err());
    }
}
