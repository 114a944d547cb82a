use md5::Digest as _;
use proptest::prelude::*;

use super::*;

fn filler(len: usize, seed: u64) -> Bytes {
    let mut x = seed | 1;
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        x.to_le_bytes()[7]
    };
    (0..len).map(|_| next()).collect::<Vec<_>>().into()
}

fn expected(pieces: &[Bytes]) -> [u8; 16] {
    let mut hasher = md5::Md5::new();
    pieces.iter().for_each(|piece| hasher.update(piece));
    hasher.finalize().into()
}

fn kept() -> usize {
    let (counted, held) = LANES.with_borrow(Lanes::kept);
    assert_eq!(counted, held);
    counted
}

/// RFC 1321, A.5.
#[test]
fn the_test_suite_of_the_rfc() {
    for (text, digest) in [
        ("", "d41d8cd98f00b204e9800998ecf8427e"),
        ("a", "0cc175b9c0f1b6a831c399e269772661"),
        ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
        (
            "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
            "57edf4a22be3c955ac49da2e2107b67a",
        ),
    ] {
        let mut hash = Md5::new();
        hash.update(Bytes::from_static(text.as_bytes()));
        let hex: String = hash.finish().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, digest, "{text:?}");
    }
}

#[test]
fn every_kernel_gives_what_one_stream_gives() {
    use crate::compress::{BLOCK_BYTES, Kernel, LANES, START, many_by, one};
    let data: Vec<Bytes> = (0..LANES).map(|lane| filler(5 * BLOCK_BYTES, lane as u64)).collect();
    let mut expected = [START; LANES];
    for (state, data) in expected.iter_mut().zip(&data) {
        one(state, data);
    }
    for kernel in Kernel::available() {
        let mut states = [START; LANES];
        many_by(kernel, &mut states, std::array::from_fn(|lane| &data[lane][..]), 5);
        assert_eq!(states, expected, "{kernel:?}");
    }
}

#[test]
fn every_length_around_the_padding() {
    for len in 0..300 {
        let data = filler(len, len as u64);
        let mut hash = Md5::new();
        hash.update(data.clone());
        assert_eq!(hash.finish(), expected(&[data]), "{len} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Streams that are fed in any order, in pieces of any size, some of them given up.
    #[test]
    fn streams_do_not_disturb_each_other(
        steps in proptest::collection::vec((0..20usize, prop_oneof![0..200usize, 4000..9000usize, 60_000..300_000usize], 0..12u8), 1..120),
    ) {
        let mut streams: Vec<(Md5, Vec<Bytes>)> = (0..20).map(|_| (Md5::new(), Vec::new())).collect();
        for (n, (which, len, what)) in steps.into_iter().enumerate() {
            let (hash, pieces) = &mut streams[which];
            match what {
                0 => {
                    let whole = std::mem::take(hash).finish();
                    prop_assert_eq!(whole, expected(&std::mem::take(pieces)));
                }
                1 => {
                    *hash = Md5::new();
                    pieces.clear();
                }
                _ => {
                    let piece = filler(len, n as u64);
                    pieces.push(piece.clone());
                    hash.update(piece);
                }
            }
            prop_assert!(kept() <= THREAD_BYTES_MAX);
        }
        for (hash, pieces) in streams {
            prop_assert_eq!(hash.finish(), expected(&pieces));
        }
        prop_assert_eq!(kept(), 0);
    }
}

/// However many streams there are, what they keep back together is bounded, and nothing is kept of those that are gone.
#[test]
fn memory_is_bounded() {
    let piece = filler(16 * 1024, 1);
    let mut streams: Vec<Md5> = (0..2000).map(|_| Md5::new()).collect();
    for _ in 0..3 {
        for stream in &mut streams {
            stream.update(piece.clone());
            assert!(kept() <= THREAD_BYTES_MAX);
        }
    }
    assert!(kept() > 0);
    let last = streams.pop().unwrap().finish();
    assert_eq!(last, expected(&[piece.clone(), piece.clone(), piece]));
    drop(streams);
    assert_eq!(kept(), 0);
}
