//! Where the bytes of a blob lie: pure arithmetic.
//!
//! ```text
//! blob     | stripe 0: k x 128 KiB            | stripe 1 ... | last stripe, short     |
//! stripe 0 | shard 0's block | shard 1's block | ... k-1 |   + m parity blocks of the same length
//! shard s  | its block of stripe 0 | its block of stripe 1 | ... | its block of the last stripe, short |
//! ```
//!
//! A block of a full stripe has `SHARD_BLOCK_BYTES`. In the last stripe, of `len` bytes, it has `ceil(len /
//! k)` rounded up to the device block; the data fills shard 0's block first, then shard 1's, and zeros pad
//! the rest. So all shards of a blob have one length, every block begins on a checksum unit, and a byte's
//! place follows from the blob's size alone. **This layout is an on-disk contract.** An empty blob has no
//! stripes and no shards.

use std::ops::Range;

use quarry_clustermap::{ErasureProfile, SHARD_BLOCK_BYTES, ShardIndex};
use quarry_storage::device::BLOCK_BYTES;

use crate::checksum::CHECKSUM_UNIT_BYTES;

/// Layout of one blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    profile: ErasureProfile,
    size_bytes: u64,
}

/// One stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stripe {
    /// Where its block begins in every shard, bytes.
    pub shard_offset: u64,
    /// Length of its block in every shard.
    pub block_bytes: usize,
    /// Bytes of the blob in it; the rest of the k blocks is zeros.
    pub data_bytes: usize,
}

/// What a range needs of one stripe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StripeRead {
    /// Number of the stripe.
    pub index: u64,
    /// The stripe.
    pub stripe: Stripe,
    /// Per data shard touched, in order of the blob's bytes; never empty.
    pub pieces: Vec<Piece>,
}

/// What a range needs of one block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Whose block.
    pub shard: ShardIndex,
    /// The bytes asked for, within the block.
    pub bytes: Range<usize>,
    /// The checksum units that hold them, within the block, clipped to its end.
    pub units: Range<usize>,
}

impl Layout {
    /// Layout of a blob of so many bytes.
    pub fn new(profile: ErasureProfile, size_bytes: u64) -> Self {
        Self { profile, size_bytes }
    }

    /// How the blob was encoded.
    pub fn profile(&self) -> ErasureProfile {
        self.profile
    }

    /// Number of stripes.
    pub fn stripes(&self) -> u64 {
        self.size_bytes.div_ceil(self.stripe_data_bytes())
    }

    /// Length of every shard.
    pub fn shard_len_bytes(&self) -> u64 {
        self.stripes().checked_sub(1).map_or(0, |last| {
            let stripe = self.stripe(last);
            stripe.shard_offset + stripe.block_bytes as u64
        })
    }

    /// Number of checksums of every shard.
    pub fn shard_units(&self) -> usize {
        to_usize(self.shard_len_bytes().div_ceil(CHECKSUM_UNIT_BYTES as u64))
    }

    /// A stripe.
    ///
    /// # Panics
    /// If there is no such stripe.
    pub fn stripe(&self, index: u64) -> Stripe {
        let start = index * self.stripe_data_bytes();
        assert!(start < self.size_bytes, "stripe {index} of a blob of {} bytes", self.size_bytes);
        let data_bytes = to_usize((self.size_bytes - start).min(self.stripe_data_bytes()));
        let block_bytes = data_bytes.div_ceil(self.profile.data()).next_multiple_of(BLOCK_BYTES);
        Stripe { shard_offset: index * SHARD_BLOCK_BYTES as u64, block_bytes, data_bytes }
    }

    /// The stripes that a range of the blob touches; `0..0` for an empty range.
    ///
    /// # Panics
    /// If the range reaches beyond the blob.
    pub fn stripes_of(&self, range: &Range<u64>) -> Range<u64> {
        assert!(range.end <= self.size_bytes, "{range:?} of a blob of {} bytes", self.size_bytes);
        if range.is_empty() {
            return 0..0;
        }
        range.start / self.stripe_data_bytes()..range.end.div_ceil(self.stripe_data_bytes())
    }

    /// What a range needs of one of its stripes.
    ///
    /// # Panics
    /// If the range does not touch that stripe.
    pub fn read(&self, index: u64, range: &Range<u64>) -> StripeRead {
        assert!(self.stripes_of(range).contains(&index), "{range:?} does not touch stripe {index}");
        let stripe = self.stripe(index);
        let start = index * self.stripe_data_bytes();
        let first = to_usize(range.start.saturating_sub(start));
        let end = to_usize((range.end - start).min(stripe.data_bytes as u64));
        let block_bytes = stripe.block_bytes;
        let pieces = (first / block_bytes..end.div_ceil(block_bytes))
            .map(|shard| {
                let block_start = shard * block_bytes;
                let bytes = first.saturating_sub(block_start)..(end - block_start).min(block_bytes);
                let units = bytes.start / CHECKSUM_UNIT_BYTES * CHECKSUM_UNIT_BYTES
                    ..bytes.end.next_multiple_of(CHECKSUM_UNIT_BYTES).min(block_bytes);
                Piece { shard: shard_index(shard), bytes, units }
            })
            .collect();
        StripeRead { index, stripe, pieces }
    }

    fn stripe_data_bytes(&self) -> u64 {
        self.profile.stripe_data_bytes() as u64
    }
}

impl StripeRead {
    /// The smallest run of units that covers every piece: what decoding reads of each shard.
    pub fn hull(&self) -> Range<usize> {
        let start = self.pieces.iter().map(|piece| piece.units.start).min().unwrap_or(0);
        let end = self.pieces.iter().map(|piece| piece.units.end).max().unwrap_or(0);
        start..end
    }
}

/// The index of a shard as its own type.
///
/// # Panics
/// If it is over the limit of a profile.
pub fn shard_index(index: usize) -> ShardIndex {
    assert!(index < ErasureProfile::SHARDS_MAX, "shard {index} is over the limit");
    ShardIndex(u8::try_from(index).expect("the limit is below 256"))
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("addresses have 64 bits on every platform with io_uring")
}

#[cfg(test)]
mod tests;
