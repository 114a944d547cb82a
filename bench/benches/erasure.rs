//! Encoding and decoding of one stripe, by profile and block size. Throughput is of object data, not of shards.
#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quarry_clustermap::{ErasureProfile, SHARD_BLOCK_BYTES, ShardIndex};
use quarry_erasure::Codec;

const PROFILES: [(u8, u8); 3] = [(4, 2), (8, 3), (2, 1)];
const BLOCKS_BYTES: [usize; 3] = [32 * 1024, SHARD_BLOCK_BYTES, 1024 * 1024];

struct Stripe {
    codec: Codec,
    data: Vec<Vec<u8>>,
    parity: Vec<Vec<u8>>,
}

impl Stripe {
    fn new(profile: ErasureProfile, block_bytes: usize) -> Self {
        let block = |seed: usize| {
            (0..block_bytes).map(|i| (i.wrapping_mul(31) ^ (seed * 7)).to_le_bytes()[0]).collect()
        };
        Self {
            codec: Codec::new(profile).expect("the profile is in range"),
            data: (0..profile.data()).map(block).collect(),
            parity: vec![vec![0; block_bytes]; profile.parity()],
        }
    }

    fn encode(&mut self) {
        let data: Vec<&[u8]> = self.data.iter().map(Vec::as_slice).collect();
        let mut parity: Vec<&mut [u8]> = self.parity.iter_mut().map(Vec::as_mut_slice).collect();
        self.codec.encode(&data, &mut parity).expect("the blocks fit the profile");
    }

    /// Decodes the first m data blocks from all the others: the worst a profile survives.
    fn decode(&self, lost: &mut [Vec<u8>]) {
        let shards = self.data.iter().chain(&self.parity).map(Vec::as_slice);
        let present: Vec<_> = (0_u8..).map(ShardIndex).zip(shards).skip(lost.len()).collect();
        let mut wanted: Vec<_> =
            (0_u8..).map(ShardIndex).zip(lost.iter_mut().map(Vec::as_mut_slice)).collect();
        self.codec.decode(&present, &mut wanted).expect("k shards are present");
    }
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("erasure");
    for (data_shards, parity_shards) in PROFILES {
        let profile = ErasureProfile::new(data_shards, parity_shards).expect("the profile is in range");
        for block_bytes in BLOCKS_BYTES {
            let mut stripe = Stripe::new(profile, block_bytes);
            let parameter = format!("{profile}/{}KiB", block_bytes / 1024);
            group.throughput(Throughput::Bytes((profile.data() * block_bytes) as u64));
            group.bench_function(BenchmarkId::new("encode", &parameter), |b| {
                b.iter(|| {
                    stripe.encode();
                    black_box(&stripe.parity);
                });
            });
            let mut lost = vec![vec![0; block_bytes]; profile.parity()];
            group.bench_function(BenchmarkId::new("decode", &parameter), |b| {
                b.iter(|| {
                    stripe.decode(&mut lost);
                    black_box(&lost);
                });
            });
            assert_eq!(lost, stripe.data[..lost.len()], "decoding gives back what was encoded");
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500));
    targets = bench
}
criterion_main!(benches);
