//! Checksums of shard bytes: one per unit, seeded with what the unit is.
//!
//! ```text
//! crc32c( blob id: 16, big-endian | shard: 1 | unit number in the shard: 8, big-endian | the unit's bytes )
//! ```
//!
//! The seed makes a unit that was written to, or read from, the wrong place fail, as well as a block that
//! still holds an older blob: its bytes are whole, but they are not these. The layout is an on-disk contract
//! (golden value in the tests). Units are counted from the start of the shard; the last one of a shard may be
//! short.

use crc_fast::{CrcAlgorithm, Digest};
use quarry_clustermap::{BlobId, SHARD_BLOCK_BYTES, ShardIndex};

/// Bytes of a shard under one checksum; also the least that a range read verifies.
pub const CHECKSUM_UNIT_BYTES: usize = 32 * 1024;

// Blocks of a stripe begin on a unit.
const _: () = assert!(SHARD_BLOCK_BYTES.is_multiple_of(CHECKSUM_UNIT_BYTES));

/// Checksums of consecutive units of one shard, the first of which starts at `offset_bytes` of the shard.
///
/// # Panics
/// If `offset_bytes` is not a multiple of [`CHECKSUM_UNIT_BYTES`].
pub fn unit_checksums(
    blob: BlobId,
    shard: ShardIndex,
    offset_bytes: u64,
    bytes: &[u8],
) -> impl Iterator<Item = u32> {
    assert!(
        offset_bytes.is_multiple_of(CHECKSUM_UNIT_BYTES as u64),
        "units begin at multiples of their size"
    );
    let first_unit = offset_bytes / CHECKSUM_UNIT_BYTES as u64;
    bytes
        .chunks(CHECKSUM_UNIT_BYTES)
        .zip(first_unit..)
        .map(move |(unit_bytes, unit)| unit_checksum(blob, shard, unit, unit_bytes))
}

/// Whether `bytes`, read at `offset_bytes` of the shard, are what `checksums` (of the whole shard) say.
pub fn verify(blob: BlobId, shard: ShardIndex, offset_bytes: u64, bytes: &[u8], checksums: &[u32]) -> bool {
    let Ok(first) = usize::try_from(offset_bytes / CHECKSUM_UNIT_BYTES as u64) else { return false };
    let Some(expected) = checksums.get(first..first + bytes.len().div_ceil(CHECKSUM_UNIT_BYTES)) else {
        return false;
    };
    unit_checksums(blob, shard, offset_bytes, bytes).eq(expected.iter().copied())
}

fn unit_checksum(blob: BlobId, shard: ShardIndex, unit: u64, bytes: &[u8]) -> u32 {
    let mut seed = [0; SEED_BYTES];
    seed[..16].copy_from_slice(&blob.to_bytes());
    seed[16] = shard.0;
    seed[17..].copy_from_slice(&unit.to_be_bytes());
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&seed);
    digest.update(bytes);
    u32::try_from(digest.finalize()).expect("a CRC-32 has 32 bits")
}

const SEED_BYTES: usize = BlobId::ENCODED_BYTES + 1 + 8;

#[cfg(test)]
mod tests {
    use quarry_clustermap::{Incarnation, NodeId, WriterCounter};

    use super::*;

    const BLOB: BlobId = BlobId { writer: NodeId(1), incarnation: Incarnation(2), counter: WriterCounter(3) };

    #[test]
    fn golden() {
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(CHECKSUM_UNIT_BYTES + 4096).collect();
        let checksums: Vec<u32> =
            unit_checksums(BLOB, ShardIndex(4), 2 * CHECKSUM_UNIT_BYTES as u64, &bytes).collect();
        assert_eq!(checksums, GOLDEN);
    }

    /// Worked out with another implementation.
    const GOLDEN: [u32; 2] = [0xe8b4_464c, 0x86ef_ad63];

    #[test]
    fn every_part_of_the_seed_counts() {
        let bytes = vec![7; 3 * CHECKSUM_UNIT_BYTES];
        let checksums: Vec<u32> = unit_checksums(BLOB, ShardIndex(1), 0, &bytes).collect();
        let unit = &bytes[..CHECKSUM_UNIT_BYTES];
        let second = CHECKSUM_UNIT_BYTES as u64;
        assert!(verify(BLOB, ShardIndex(1), second, unit, &checksums));
        let shuffled = [checksums[1], checksums[0], checksums[2]];
        assert!(!verify(BLOB, ShardIndex(1), 0, unit, &shuffled), "unit number");
        assert!(!verify(BLOB, ShardIndex(2), second, unit, &checksums), "shard");
        let other = BlobId { counter: WriterCounter(4), ..BLOB };
        assert!(!verify(other, ShardIndex(1), second, unit, &checksums), "blob");
        let mut flipped = unit.to_vec();
        flipped[12_345] ^= 4;
        assert!(!verify(BLOB, ShardIndex(1), second, &flipped, &checksums), "bytes");
        assert!(!verify(BLOB, ShardIndex(1), 3 * second, unit, &checksums), "beyond the list");
    }
}
