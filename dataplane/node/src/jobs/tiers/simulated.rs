//! Point 3 of what tiering must show: readers whose hot set shifts, the table of reads and the planner of moves, in
//! simulated time.
#![allow(clippy::cast_possible_truncation, reason = "the numbers of a test are small")]

use quarry_clustermap::{BucketId, Tier, TierPolicy};
use quarry_planner::{Candidate, Fill, plan_tiers};

use super::{
    access::{AccessTable, VersionHash},
    policy::ROUND_S,
};

const OBJECTS: usize = 2_000;
const SIZE_BYTES: u64 = 1 << 20;
/// The hot tier takes a fifth of the objects up to its high watermark.
const ROOM: u64 = 500;
/// The objects that are read most: half of all reads.
const HOT_SET: usize = 100;
const READS_PER_SECOND: f64 = 5.0;
const HOUR_S: u64 = 3600;
const T0_MS: u64 = 1_700_000_000_000;

/// Seeded: xorshift64*.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

struct Object {
    tier: Tier,
    moved_ms: Option<u64>,
    moves_ms: Vec<u64>,
}

struct Store {
    policy: TierPolicy,
    table: AccessTable,
    objects: Vec<Object>,
    random: Random,
    /// Up to and including each rank.
    cumulative: Vec<f64>,
    /// Object by rank.
    ranks: Vec<usize>,
    now_s: u64,
    bytes_moved: u64,
}

fn hash(object: usize) -> VersionHash {
    VersionHash::of(BucketId(1), &object.to_string(), 1)
}

impl Store {
    fn new(seed: u64) -> Self {
        let weight = |rank: usize| 1.0 / (rank + 1) as f64;
        let mut sum = 0.0;
        let cumulative = (0..OBJECTS).map(|rank| {
            sum += weight(rank);
            sum
        });
        let policy = TierPolicy {
            enabled: true,
            idle_s: 900,
            cool_down_s: HOUR_S,
            bytes_per_second: 8 << 20,
            ..TierPolicy::default()
        };
        let tier = |number| if number < 400 { Tier::Hot } else { Tier::Cold };
        Self {
            policy,
            table: AccessTable::new(),
            cumulative: cumulative.collect(),
            objects: (0..OBJECTS)
                .map(|number| Object { tier: tier(number), moved_ms: None, moves_ms: Vec::new() })
                .collect(),
            random: Random(2 * seed + 1),
            ranks: (0..OBJECTS).collect(),
            now_s: 0,
            bytes_moved: 0,
        }
    }

    fn now_ms(&self) -> u64 {
        T0_MS + self.now_s * 1000
    }

    /// Other objects are read most from now on.
    fn shift(&mut self) {
        for at in (1..OBJECTS).rev() {
            let other = (self.random.unit() * (at + 1) as f64) as usize;
            self.ranks.swap(at, other);
        }
    }

    fn run(&mut self, seconds: u64) {
        let total = *self.cumulative.last().unwrap();
        for _ in 0..seconds / ROUND_S {
            for _ in 0..(READS_PER_SECOND * ROUND_S as f64) as usize {
                let at = self.random.unit() * total;
                let rank = self.cumulative.partition_point(|sum| *sum < at).min(OBJECTS - 1);
                self.table.touch(hash(self.ranks[rank]), self.now_ms());
            }
            self.now_s += ROUND_S;
            self.round();
        }
    }

    fn round(&mut self) {
        let now_ms = self.now_ms();
        let candidate = |(id, object): (usize, &Object)| {
            let access = self.table.of(hash(id), now_ms);
            Candidate {
                id,
                tier: object.tier,
                size_bytes: SIZE_BYTES,
                reads_per_hour: access.map_or(0.0, |access| access.reads_per_hour),
                used_ms: access.map_or(T0_MS, |access| access.read_ms),
                moved_ms: object.moved_ms,
            }
        };
        let candidates: Vec<_> = self.objects.iter().enumerate().map(candidate).collect();
        let on_hot = self.objects.iter().filter(|object| object.tier == Tier::Hot).count() as u64;
        let fill = Fill { capacity_bytes: ROOM * SIZE_BYTES, used_bytes: on_hot * SIZE_BYTES, overhead: 1.0 };
        let bytes_max = self.policy.bytes_per_second / 2 * ROUND_S;
        for planned in plan_tiers(&candidates, &self.policy, fill, bytes_max, now_ms) {
            let object = &mut self.objects[planned.id];
            assert_ne!(object.tier, planned.to);
            object.tier = planned.to;
            object.moved_ms = Some(now_ms);
            object.moves_ms.push(now_ms);
            self.bytes_moved += planned.size_bytes;
        }
        let on_hot = self.objects.iter().filter(|object| object.tier == Tier::Hot).count() as u64;
        assert!(on_hot * 100 <= ROOM * 80, "{on_hot} objects are above the high watermark");
    }

    /// Of the objects that are read most, how many lie on hot: by number, and by the reads that they get.
    fn served_hot(&self) -> (f64, f64) {
        let is_hot = |rank: &usize| self.objects[self.ranks[*rank]].tier == Tier::Hot;
        let weight = |rank: usize| 1.0 / (rank + 1) as f64;
        let count = (0..HOT_SET).filter(is_hot).count() as f64 / HOT_SET as f64;
        let all: f64 = (0..HOT_SET).map(weight).sum();
        (count, (0..HOT_SET).filter(is_hot).map(weight).sum::<f64>() / all)
    }
}

#[test]
fn a_hot_set_that_shifts_is_on_hot_within_an_hour() {
    for seed in 1..=3 {
        let mut store = Store::new(seed);
        for shift in 0..4 {
            store.shift();
            let before = store.served_hot();
            store.run(HOUR_S);
            let (count, reads) = store.served_hot();
            println!(
                "seed {seed}, shift {shift}: {before:?} -> {count:.2} of the set, {reads:.3} of its reads"
            );
            assert!(count >= 0.9 && reads >= 0.9, "seed {seed}, shift {shift}: {count} {reads}");
            store.run(2 * HOUR_S);
        }
        for object in &store.objects {
            let too_soon = object.moves_ms.windows(2).any(|pair| pair[1] - pair[0] < HOUR_S * 1000);
            assert!(!too_soon, "an object moved twice within its cool-down: {:?}", object.moves_ms);
        }
        let gib = store.bytes_moved >> 30;
        println!("seed {seed}: {gib} GiB moved in {} hours", store.now_s / HOUR_S);
        assert!(store.bytes_moved < 4 * OBJECTS as u64 * SIZE_BYTES, "it moves more than it is worth");
    }
}
