//! Which partition owns a key.

use crate::{BucketId, PartitionId};

/// Partitions of a standalone node.
pub const PARTITIONS_STANDALONE: u16 = 256;
/// Partitions of a cluster.
pub const PARTITIONS_CLUSTER: u16 = 4096;

/// The partition of (bucket, key): a hash range, so the ranges can be split later without moving other keys.
///
/// The hash is FNV-1a (64 bits) over the bucket id (big-endian) and the key, mixed once more by the finaliser of
/// MurmurHash3 so that its highest bits are even; it is part of the on-disk contract and never changes.
pub fn partition_of(bucket: BucketId, key: &[u8], partition_count: u16) -> PartitionId {
    assert!(partition_count > 0, "a map has at least one partition");
    let range = (u128::from(key_hash(bucket, key)) * u128::from(partition_count)) >> 64;
    PartitionId(u16::try_from(range).expect("the product's high half is below the partition count"))
}

fn key_hash(bucket: BucketId, key: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bucket.0.to_be_bytes().iter().chain(key) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        assert_eq!(key_hash(BucketId(1), b"a/b"), 0x91a8_d7bc_5899_16ab);
    }

    #[test]
    fn spreads_sequential_keys_within_a_tenth() {
        let mut counts = vec![0_u32; usize::from(PARTITIONS_STANDALONE)];
        let keys = 256 * 4096;
        for i in 0..keys {
            let key = format!("year=2026/month=11/part-{i:08}.parquet");
            counts[usize::from(partition_of(BucketId(7), key.as_bytes(), PARTITIONS_STANDALONE).0)] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least > 3686 && *most < 4506, "least {least}, most {most}, mean 4096");
    }
}
