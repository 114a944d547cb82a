use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};
use quarry_clustermap::{ErasureProfile, ShardIndex};

use crate::{Codec, ErasureError, gf};

const PROFILES: [&str; 6] = ["4+2", "2+2", "3+2", "8+3", "1+1", "5+0"];

fn profile(text: &str) -> ErasureProfile {
    text.parse().unwrap()
}

/// xorshift64*: the tests' bytes, from a seed.
fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()[0]
        })
        .collect()
}

fn encoded(codec: &Codec, seed: u64, len: usize) -> Vec<Vec<u8>> {
    let (k, m) = (codec.profile().data(), codec.profile().parity());
    let data: Vec<Vec<u8>> = (0..k).map(|shard| random_bytes(seed + (shard as u64) * 97, len)).collect();
    let mut parity = vec![vec![0xaa; len]; m];
    let refs: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    codec.encode(&refs, &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>()).unwrap();
    data.into_iter().chain(parity).collect()
}

fn index(shard: usize) -> ShardIndex {
    ShardIndex(u8::try_from(shard).unwrap())
}

fn decoded(codec: &Codec, shards: &[Vec<u8>], present: &[usize], wanted: &[usize]) -> Vec<Vec<u8>> {
    let present: Vec<_> = present.iter().map(|s| (index(*s), shards[*s].as_slice())).collect();
    let mut out = vec![vec![0x55; shards[0].len()]; wanted.len()];
    let mut slots: Vec<_> =
        wanted.iter().zip(&mut out).map(|(s, block)| (index(*s), block.as_mut_slice())).collect();
    codec.decode(&present, &mut slots).unwrap();
    out
}

/// Every choice of k present shards gives back all the others, with both kernels.
#[test]
fn every_erasure_pattern_decodes() {
    for text in PROFILES {
        let (fast, plain) = (Codec::new(profile(text)).unwrap(), Codec::portable(profile(text)).unwrap());
        let (k, n) = (fast.profile().data(), fast.profile().total());
        for (round, pattern) in (0..1_u32 << n).filter(|p| p.count_ones() as usize == k).enumerate() {
            let len = 1 + (round * 61) % 777;
            let shards = encoded(&fast, u64::from(pattern), len);
            let (present, wanted): (Vec<usize>, Vec<usize>) = (0..n).partition(|s| pattern & (1 << s) != 0);
            let expected: Vec<Vec<u8>> = wanted.iter().map(|s| shards[*s].clone()).collect();
            assert_eq!(decoded(&fast, &shards, &present, &wanted), expected, "{text} {pattern:b} {len}");
            assert_eq!(decoded(&plain, &shards, &present, &wanted), expected, "{text} {pattern:b} {len}");
        }
    }
}

fn any_profile() -> impl Strategy<Value = ErasureProfile> {
    (1..=28_u8, 0..=4_u8).prop_map(|(k, m)| ErasureProfile::new(k, m).unwrap())
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn kernels_agree(profile in any_profile(), seed in any::<u64>(), len in prop::sample::select(
        vec![0_usize, 1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 4095, 4096, 32_768 + 5],
    )) {
        let seed = seed >> 1;
        let (fast, plain) = (Codec::new(profile).unwrap(), Codec::portable(profile).unwrap());
        prop_assert_eq!(encoded(&fast, seed, len), encoded(&plain, seed, len));
    }

    /// Present shards in any order, more than k of them, and only some of the missing ones wanted.
    #[test]
    fn order_and_surplus_do_not_matter(seed in any::<u64>(), len in 1..2000_usize,
            order in prop::sample::subsequence((0..11_usize).collect::<Vec<_>>(), 8..=10).prop_shuffle()) {
        let codec = Codec::new(profile("8+3")).unwrap();
        let shards = encoded(&codec, seed >> 1, len);
        let wanted: Vec<usize> = (0..11).filter(|s| !order.contains(s)).rev().take(2).collect();
        let expected: Vec<Vec<u8>> = wanted.iter().map(|s| shards[*s].clone()).collect();
        prop_assert_eq!(decoded(&codec, &shards, &order, &wanted), expected);
    }
}

#[test]
fn unaligned_blocks_code_alike() {
    let codec = Codec::new(profile("4+2")).unwrap();
    let bytes = random_bytes(5, 4 * 1000 + 4);
    for offset in 0..4 {
        let data: Vec<&[u8]> = (0..4).map(|s| &bytes[offset + s * 1000..offset + (s + 1) * 1000]).collect();
        let (mut fast, mut plain) = (vec![vec![0; 1001]; 2], vec![vec![0; 1000]; 2]);
        codec.encode(&data, &mut fast.iter_mut().map(|b| &mut b[1..]).collect::<Vec<_>>()).unwrap();
        let oracle = Codec::portable(profile("4+2")).unwrap();
        oracle.encode(&data, &mut plain.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>()).unwrap();
        assert!(fast.iter().zip(&plain).all(|(f, p)| f[1..] == p[..]));
    }
}

/// The on-disk contract: coefficients worked out by hand from `1 / (i xor j)`, and parity of fixed bytes.
#[test]
fn golden_parity() {
    assert_eq!(gf::multiply(0x80, 2), 0x1d, "the polynomial is 0x11d");
    for value in 1..=u8::MAX {
        assert_eq!(gf::multiply(value, gf::inverse(value)), 1);
    }
    let inverses = [4, 5, 6, 7, 5, 4, 7, 6].map(gf::inverse);
    assert_eq!(gf::cauchy_parity_rows(4, 2), inverses);
    assert_eq!(inverses, [0x47, 0xa7, 0x7a, 0xba, 0xa7, 0x47, 0xba, 0x7a]);

    for make in [Codec::new, Codec::portable] {
        let codec = make(profile("4+2")).unwrap();
        let data: Vec<Vec<u8>> = (0..4_u8)
            .map(|s| (0..16_u8).map(|i| s.wrapping_mul(67) ^ i.wrapping_mul(29)).collect())
            .collect();
        let refs: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut parity = vec![vec![0; 16]; 2];
        codec.encode(&refs, &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>()).unwrap();
        assert_eq!(parity[0], GOLDEN_4_2_PARITY[0]);
        assert_eq!(parity[1], GOLDEN_4_2_PARITY[1]);
    }
}

/// Worked out by an independent bitwise multiplication.
const GOLDEN_4_2_PARITY: [[u8; 16]; 2] = [
    [0x71, 0xf6, 0x62, 0x43, 0x57, 0xa6, 0x15, 0x29, 0x3d, 0xd1, 0x45, 0xc2, 0x3e, 0xea, 0x46, 0x92],
    [0x90, 0x17, 0x83, 0xa2, 0xb6, 0x47, 0xf4, 0xc8, 0xdc, 0x30, 0xa4, 0x23, 0xdf, 0x0b, 0xa7, 0x73],
];

#[test]
fn wrong_blocks_are_refused() {
    let codec = Codec::new(profile("2+1")).unwrap();
    let (a, b, short) = ([1; 8], [2; 8], [3; 7]);
    let mut out = [0; 8];
    let mut encode = |data: &[&[u8]]| codec.encode(data, &mut [&mut out]);
    assert_eq!(encode(&[&a, &b]), Ok(()));
    assert_eq!(encode(&[&a]), Err(ErasureError::BlockCount { expected: 2, actual: 1 }));
    assert_eq!(encode(&[&a, &b, &b]), Err(ErasureError::BlockCount { expected: 2, actual: 3 }));
    assert_eq!(encode(&[&a, &short]), Err(ErasureError::BlockLength { expected: 8, actual: 7 }));
    assert_eq!(codec.encode(&[&a, &b], &mut []), Err(ErasureError::BlockCount { expected: 1, actual: 0 }));

    let decode = |present: &[(ShardIndex, &[u8])], wanted: u8, len: usize| {
        codec.decode(present, &mut [(ShardIndex(wanted), &mut vec![0; len])])
    };
    let (zero, one) = ((ShardIndex(0), a.as_slice()), (ShardIndex(1), b.as_slice()));
    assert_eq!(decode(&[zero], 1, 8), Err(ErasureError::TooFewShards { needed: 2, present: 1 }));
    assert_eq!(decode(&[zero, one], 2, 7), Err(ErasureError::BlockLength { expected: 8, actual: 7 }));
    assert_eq!(decode(&[zero, one], 1, 8), Err(ErasureError::RepeatedShard { shard: ShardIndex(1) }));
    assert_eq!(
        decode(&[zero, one], 3, 8),
        Err(ErasureError::UnknownShard { shard: ShardIndex(3), profile: profile("2+1") })
    );
    assert_eq!(
        decode(&[zero, (ShardIndex(1), &short)], 2, 8).unwrap_err(),
        ErasureError::BlockLength { expected: 8, actual: 7 }
    );
}

#[test]
fn profiles_out_of_range_are_refused() {
    for (data_shards, parity_shards) in [(0, 2), (31, 2), (255, 255)] {
        let profile = ErasureProfile { data_shards, parity_shards };
        assert!(matches!(Codec::new(profile), Err(ErasureError::Profile(_))));
        assert!(matches!(Codec::portable(profile), Err(ErasureError::Profile(_))));
    }
}

/// No parity: encoding writes nothing, and only whole data can be "decoded".
#[test]
fn no_parity() {
    let codec = Codec::new(profile("2+0")).unwrap();
    assert_eq!(codec.encode(&[&[1; 3], &[2; 3]], &mut []), Ok(()));
    assert_eq!(codec.decode(&[(ShardIndex(0), &[1; 3]), (ShardIndex(1), &[2; 3])], &mut []), Ok(()));
}
