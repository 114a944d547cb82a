use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof};

use super::{BlockIndex, Extent, FreeMap, FreeMapError, Overlap};

const AREA_START: u64 = 100;
const AREA_BLOCKS: usize = 700;

#[derive(Clone, Debug)]
enum Step {
    Low(u32),
    High(u32),
    Fragmented(u64, u32),
    Reserve(u64, u32),
    Free(usize),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u32..40).prop_map(Step::Low),
        (1u32..40).prop_map(Step::High),
        (1u64..120, 1u32..30).prop_map(|(blocks, max)| Step::Fragmented(blocks, max)),
        (0u64..900, 1u32..20).prop_map(|(start, blocks)| Step::Reserve(start, blocks)),
        any::<usize>().prop_map(Step::Free),
        any::<usize>().prop_map(Step::Free),
        proptest::strategy::Just(Step::Reopen),
    ]
}

/// One bit per block, true when free.
struct Model(Vec<bool>);

impl Model {
    fn set(&mut self, extent: Extent, free: bool) {
        for block in extent.start.0..extent.end().0 {
            let bit = &mut self.0[usize::try_from(block - AREA_START).unwrap()];
            assert_ne!(*bit, free, "{extent:?} overlaps");
            *bit = free;
        }
    }

    fn runs(&self) -> Vec<(BlockIndex, u64)> {
        let mut runs: Vec<(BlockIndex, u64)> = Vec::new();
        for (at, _) in self.0.iter().enumerate().filter(|(_, free)| **free) {
            let block = AREA_START + at as u64;
            match runs.last_mut() {
                Some((start, len)) if start.0 + *len == block => *len += 1,
                _ => runs.push((BlockIndex(block), 1)),
            }
        }
        runs
    }

    fn longest(&self) -> u64 {
        self.runs().iter().map(|run| run.1).max().unwrap_or(0)
    }

    fn is_free(&self, extent: Extent) -> bool {
        (extent.start.0..extent.end().0).all(|block| {
            let at = block.checked_sub(AREA_START).and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| self.0.get(at)).copied().unwrap_or(false)
        })
    }
}

fn run(steps: Vec<Step>) {
    let area = BlockIndex(AREA_START)..BlockIndex(AREA_START + AREA_BLOCKS as u64);
    let mut map = FreeMap::new(area);
    let mut model = Model(vec![true; AREA_BLOCKS]);
    let mut held: Vec<Extent> = Vec::new();
    for step in steps {
        match step {
            Step::Low(blocks) | Step::High(blocks) => {
                let high = matches!(step, Step::High(_));
                let got = if high { map.allocate_high(blocks) } else { map.allocate_low(blocks) };
                assert_eq!(got.is_some(), model.longest() >= u64::from(blocks));
                if let Some(extent) = got {
                    assert_eq!(extent.blocks, blocks);
                    model.set(extent, false);
                    held.push(extent);
                }
            }
            Step::Fragmented(blocks, max) => {
                let free = map.free_blocks();
                let got = map.allocate_fragmented(blocks, max, 1);
                assert_eq!(got.is_some(), free >= blocks);
                let got = got.unwrap_or_default();
                assert!(got.iter().all(|extent| extent.blocks <= max));
                let sum: u64 = got.iter().map(|extent| u64::from(extent.blocks)).sum();
                assert_eq!(sum, free - map.free_blocks());
                for extent in got {
                    model.set(extent, false);
                    held.push(extent);
                }
            }
            Step::Reserve(start, blocks) => {
                let extent = Extent { start: BlockIndex(start), blocks };
                assert_eq!(map.reserve_exact(extent).is_ok(), model.is_free(extent));
                if model.is_free(extent) {
                    model.set(extent, false);
                    held.push(extent);
                }
            }
            Step::Free(pick) if !held.is_empty() => {
                let extent = held.swap_remove(pick % held.len());
                map.free(extent);
                model.set(extent, true);
            }
            Step::Free(_) => {}
            Step::Reopen => map = FreeMap::decode(&map.encode()).unwrap(),
        }
        let runs: Vec<_> = map.runs().collect();
        assert_eq!(runs, model.runs());
        assert_eq!(map.free_blocks(), runs.iter().map(|run| run.1).sum::<u64>());
    }
}

proptest::proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_bitmap(steps in proptest::collection::vec(step(), 1..150)) {
        run(steps);
    }

    #[test]
    fn decode_survives_any_bytes(mut image in proptest::collection::vec(any::<u8>(), 0..120), frame in any::<bool>()) {
        if frame && image.len() >= 36 {
            let runs = (image.len() - 36) / 16;
            image.truncate(36 + runs * 16);
            image[..8].copy_from_slice(b"QFRM\x01\0\0\0");
            image[24..32].copy_from_slice(&(runs as u64).to_le_bytes());
            let body = image.len() - 4;
            let checksum = crc32c::crc32c(&image[..body]);
            image[body..].copy_from_slice(&checksum.to_le_bytes());
        }
        if let Ok(map) = FreeMap::decode(&image) {
            assert_eq!(map.encode(), image);
        }
    }
}

#[test]
fn low_and_high_ends() {
    let mut map = FreeMap::new(BlockIndex(10)..BlockIndex(100));
    assert_eq!(map.allocate_low(5), Some(Extent { start: BlockIndex(10), blocks: 5 }));
    assert_eq!(map.allocate_high(5), Some(Extent { start: BlockIndex(95), blocks: 5 }));
    map.free(Extent { start: BlockIndex(10), blocks: 5 });
    assert_eq!(map.allocate_low(91), None);
    assert_eq!(map.allocate_low(85), Some(Extent { start: BlockIndex(10), blocks: 85 }));
    assert_eq!(map.free_blocks(), 0);
}

#[test]
fn golden_image() {
    let mut map = FreeMap::new(BlockIndex(1)..BlockIndex(9));
    map.reserve_exact(Extent { start: BlockIndex(3), blocks: 2 }).unwrap();
    let mut expected = b"QFRM\x01\0\0\0".to_vec();
    for word in [1u64, 9, 2, 1, 2, 5, 4] {
        expected.extend_from_slice(&word.to_le_bytes());
    }
    expected.extend_from_slice(&0xaf62_b299u32.to_le_bytes());
    assert_eq!(map.encode(), expected);
}

#[test]
fn every_flipped_bit_is_refused() {
    let image = FreeMap::new(BlockIndex(1)..BlockIndex(9)).encode();
    for bit in 0..image.len() * 8 {
        let mut damaged = image.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        FreeMap::decode(&damaged).unwrap_err();
    }
    assert!(matches!(FreeMap::decode(&image[..20]), Err(FreeMapError::Length { .. })));
}

#[test]
#[should_panic(expected = "free already")]
fn double_free_panics() {
    let mut map = FreeMap::new(BlockIndex(0)..BlockIndex(10));
    let extent = map.allocate_low(4).unwrap();
    map.free(extent);
    map.free(extent);
}

/// A shard's checksum units must not straddle extents: only the last extent may end within a granule.
#[test]
fn fragments_are_whole_granules() {
    let mut map = FreeMap::new(BlockIndex(0)..BlockIndex(64));
    for start in [11, 30, 52] {
        map.reserve_exact(Extent { start: BlockIndex(start), blocks: 1 }).unwrap();
    }
    // Runs of 11, 18, 21 and 11 blocks: whole granules in them are 8, 16, 16 and 8.
    let before = map.clone();
    let got = map.allocate_fragmented(45, 1024, 8).unwrap();
    assert_eq!(got.iter().map(|extent| u64::from(extent.blocks)).sum::<u64>(), 45);
    let (last, others) = got.split_last().unwrap();
    assert!(others.iter().all(|extent| extent.blocks.is_multiple_of(8)), "{got:?}");
    assert!(last.blocks > 0);
    // 61 blocks are free, but not in whole granules: nothing is taken.
    let mut map = before.clone();
    assert_eq!(map.allocate_fragmented(60, 1024, 8), None);
    assert_eq!(map, before);
}

/// What a record on a device names is the world's mistake, not ours.
#[test]
fn what_cannot_be_given_back_is_an_error() {
    let mut map = FreeMap::new(BlockIndex(10)..BlockIndex(110));
    let taken = map.allocate_low(8).unwrap();
    let before = map.clone();
    let extent = |start, blocks| Extent { start: BlockIndex(start), blocks };
    for wrong in
        [extent(17, 2), extent(18, 1), extent(9, 1), extent(10, 0), extent(110, 1), extent(u64::MAX, 2)]
    {
        assert_eq!(map.try_free(wrong), Err(Overlap { extent: wrong }));
        assert_eq!(map, before);
    }
    map.try_free(taken).unwrap();
    assert_eq!(map.free_blocks(), 100);
}

#[test]
fn quarantined_blocks_are_withheld() {
    let extent = |start: u64, blocks: u32| Extent { start: BlockIndex(start), blocks };
    let mut map = FreeMap::new(BlockIndex(10)..BlockIndex(110));
    map.reserve_exact(extent(20, 10)).unwrap();
    map.quarantine(extent(28, 4));
    map.quarantine(extent(26, 2));
    map.quarantine(extent(0, 11));
    map.quarantine(extent(109, 50));
    assert_eq!(map.quarantined(), [extent(10, 1), extent(26, 6), extent(109, 1)]);
    assert_eq!(map.idle(), [extent(10, 1), extent(30, 2), extent(109, 1)]);
    assert_eq!((map.free_blocks(), map.quarantined_blocks()), (86, 8));
    assert!(map.try_free(extent(30, 2)).is_err(), "idle is not in use");
    assert!(map.try_free(extent(25, 7)).is_err());
    map.free(extent(20, 10));
    assert_eq!(map.idle(), [extent(10, 1), extent(26, 6), extent(109, 1)]);
    assert_eq!(map.runs().collect::<Vec<_>>(), [(BlockIndex(11), 15), (BlockIndex(32), 77)]);
    assert!(map.reserve_exact(extent(25, 2)).is_err());
    assert_eq!(FreeMap::decode(&map.encode()).unwrap().free_blocks(), 92);
    assert_eq!(map.without_quarantine(), FreeMap::new(BlockIndex(10)..BlockIndex(110)));
}
