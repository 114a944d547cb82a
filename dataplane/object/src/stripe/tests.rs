use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

use super::*;

const UNIT: usize = CHECKSUM_UNIT_BYTES;
const BLOCK: usize = SHARD_BLOCK_BYTES;

fn profile(text: &str) -> ErasureProfile {
    text.parse().unwrap()
}

/// The contract in numbers: (size, stripes, shard length).
#[test]
fn golden_lengths() {
    let stripe = 4 * BLOCK as u64;
    for (size, stripes, len) in [
        (0, 0, 0),
        (1, 1, 4096),
        (4 * 4096, 1, 4096),
        (4 * 4096 + 1, 1, 8192),
        (stripe - 1, 1, BLOCK as u64),
        (stripe, 1, BLOCK as u64),
        (stripe + 1, 2, BLOCK as u64 + 4096),
        (10 * stripe + 100_000, 11, 10 * BLOCK as u64 + 28_672),
    ] {
        let layout = Layout::new(profile("4+2"), size);
        assert_eq!((layout.stripes(), layout.shard_len_bytes()), (stripes, len), "{size}");
    }
}

#[test]
fn a_small_range_touches_one_unit() {
    let layout = Layout::new(profile("4+2"), 64 << 20);
    let start = 3 * 4 * BLOCK as u64 + 2 * BLOCK as u64 + UNIT as u64 + 5;
    let range = start..start + 10;
    assert_eq!(layout.stripes_of(&range), 3..4);
    let read = layout.read(3, &range);
    assert_eq!(read.stripe.shard_offset, 3 * BLOCK as u64);
    assert_eq!(
        read.pieces,
        [Piece { shard: ShardIndex(2), bytes: UNIT + 5..UNIT + 15, units: UNIT..2 * UNIT }]
    );
    assert_eq!(read.hull(), UNIT..2 * UNIT);
}

#[test]
fn the_last_unit_is_clipped_to_the_block() {
    let layout = Layout::new(profile("2+1"), 2 * 40_960);
    let read = layout.read(0, &(40_950..40_970));
    assert_eq!(
        read.pieces,
        [
            Piece { shard: ShardIndex(0), bytes: 40_950..40_960, units: UNIT..40_960 },
            Piece { shard: ShardIndex(1), bytes: 0..10, units: 0..UNIT },
        ]
    );
    assert_eq!(read.hull(), 0..40_960);
}

#[test]
#[should_panic(expected = "of a blob of 10 bytes")]
fn a_range_beyond_the_blob_is_our_mistake() {
    Layout::new(profile("4+2"), 10).stripes_of(&(5..11));
}

/// Where each byte must be, by the definition: stripe by stripe, block by block.
fn place(layout: Layout, k: usize, position: u64) -> (usize, u64) {
    let stripe_bytes = (k * BLOCK) as u64;
    let index = position / stripe_bytes;
    let stripe = layout.stripe(index);
    let within = usize::try_from(position % stripe_bytes).unwrap();
    (within / stripe.block_bytes, stripe.shard_offset + (within % stripe.block_bytes) as u64)
}

fn blob_and_range() -> impl Strategy<Value = (u8, u64, u64, u64)> {
    (1..=9_u8, 0..=5 * BLOCK as u64 * 4, any::<u64>(), any::<u64>())
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 512, failure_persistence: None, ..Default::default() })]

    /// The pieces of a range are exactly its bytes, in order, and no unit more than needed.
    #[test]
    fn pieces_cover_the_range((k, size, a, b) in blob_and_range()) {
        let layout = Layout::new(ErasureProfile::new(k, 2).unwrap(), size);
        let (a, b) = (a % (size + 1), b % (size + 1));
        let range = a.min(b)..a.max(b);
        let mut position = range.start;
        for index in layout.stripes_of(&range) {
            let read = layout.read(index, &range);
            prop_assert!(!read.pieces.is_empty());
            for piece in &read.pieces {
                prop_assert!(!piece.bytes.is_empty());
                prop_assert!(piece.units.start <= piece.bytes.start && piece.bytes.end <= piece.units.end);
                prop_assert!(piece.bytes.start - piece.units.start < UNIT && piece.units.end - piece.bytes.end < UNIT);
                prop_assert!(piece.units.start.is_multiple_of(UNIT) && piece.units.end <= read.stripe.block_bytes);
                prop_assert!(piece.units.end.is_multiple_of(UNIT) || piece.units.end == read.stripe.block_bytes);
                prop_assert!(read.hull().start <= piece.units.start && piece.units.end <= read.hull().end);
                let first = (usize::from(piece.shard.0), read.stripe.shard_offset + piece.bytes.start as u64);
                prop_assert_eq!(place(layout, usize::from(k), position), first);
                position += piece.bytes.len() as u64;
                let last = (usize::from(piece.shard.0), read.stripe.shard_offset + piece.bytes.end as u64 - 1);
                prop_assert_eq!(place(layout, usize::from(k), position - 1), last);
            }
        }
        prop_assert_eq!(position, range.end);
    }

    #[test]
    fn shards_hold_the_blob_and_less_than_a_block_more((k, size, _, _) in blob_and_range()) {
        let layout = Layout::new(ErasureProfile::new(k, 1).unwrap(), size);
        let held = layout.shard_len_bytes() * u64::from(k);
        prop_assert!(held >= size && held < size + u64::from(k) * BLOCK_BYTES as u64 + u64::from(k));
        prop_assert!(layout.shard_len_bytes().is_multiple_of(BLOCK_BYTES as u64));
        prop_assert_eq!(layout.shard_units(), usize::try_from(layout.shard_len_bytes()).unwrap().div_ceil(UNIT));
        let total: u64 = (0..layout.stripes()).map(|index| layout.stripe(index).data_bytes as u64).sum();
        prop_assert_eq!(total, size);
    }
}
