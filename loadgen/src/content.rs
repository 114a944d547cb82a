//! Content of test objects: a function of (seed, key, version, offset), so that nothing has to be remembered.
//!
//! Every aligned 8-byte word at byte offset `8 * i` is `mix(start + i * GAMMA)`, little-endian, where
//! `start = hash(seed, key) + version * VERSION_STEP` (all modulo 2^64) and `mix` is four xor-shifts (no
//! multiplication: SSE2 has none for 64 bits, and without one the compiler vectorises both loops on any x86-64: 15
//! to 20 GB per CPU second). Consequences:
//! - any range can be generated or checked alone, without state, and no object is ever held whole;
//! - `mix` is a bijection, so two neighbouring words at a known offset give back `start` ([`recover_start`]), and from it
//!   the version: a stale, swapped or shifted body is not merely "different", it is named;
//! - the words pass for random, so neither compression nor deduplication can flatter a server.
//!
//! This guards against mistakes of a store, not against an adversary: it is not a cryptographic generator.

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
/// Spreads the bytes of a key over a word; xor-shifts alone would keep keys that differ by few bits similar.
const KEY_MULTIPLIER: u64 = 0xBF58_476D_1CE4_E5B9;
const VERSION_STEP: u64 = 0xD134_2543_DE82_EF95;
const WORD_BYTES: usize = 8;
/// Words compared between two looks at the accumulated difference: 4 KiB, so the loop stays free of branches.
const WORDS_PER_CHECK: usize = 512;

/// Versions stay below this, so that they are exact in JSON and a recovered one can be judged plausible.
pub(crate) const VERSION_MAX: u64 = 1 << 53;

/// The bytes of one version of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    start: u64,
}

impl Stream {
    pub(crate) fn new(seed: u64, key: &str, version: u64) -> Self {
        Self { start: key_hash(seed, key).wrapping_add(version.wrapping_mul(VERSION_STEP)) }
    }

    /// The stream whose words 0, 1, ... were cut from `start`; see [`recover_start`].
    pub(crate) fn version_for(start: u64, seed: u64, key: &str) -> Option<u64> {
        let version = start.wrapping_sub(key_hash(seed, key)).wrapping_mul(inverse(VERSION_STEP));
        (version < VERSION_MAX).then_some(version)
    }

    fn counter(self, word: u64) -> u64 {
        self.start.wrapping_add(word.wrapping_mul(GAMMA))
    }

    fn word(self, word: u64) -> [u8; WORD_BYTES] {
        mix(self.counter(word)).to_le_bytes()
    }

    /// Writes the bytes at `offset ..` into `out`.
    pub(crate) fn fill(self, offset: u64, out: &mut [u8]) {
        let (skip, head_len) = head(offset, out.len());
        let (head, rest) = out.split_at_mut(head_len);
        let mut word = offset / WORD_BYTES as u64;
        if head_len > 0 {
            head.copy_from_slice(&self.word(word)[skip..skip + head_len]);
            word += 1;
        }
        let (words, tail) = rest.as_chunks_mut::<WORD_BYTES>();
        let mut counter = self.counter(word);
        for out in words.iter_mut() {
            *out = mix(counter).to_le_bytes();
            counter = counter.wrapping_add(GAMMA);
        }
        let tail_len = tail.len();
        tail.copy_from_slice(&mix(counter).to_le_bytes()[..tail_len]);
    }

    /// Index of the first byte of `data` (which stands at `offset`) that is not this stream's; None when all match.
    pub(crate) fn first_difference(self, offset: u64, data: &[u8]) -> Option<usize> {
        let (skip, head_len) = head(offset, data.len());
        let (head, rest) = data.split_at(head_len);
        let mut word = offset / WORD_BYTES as u64;
        if head_len > 0 {
            let expected = self.word(word);
            if let Some(at) = differing(&expected[skip..skip + head_len], head) {
                return Some(at);
            }
            word += 1;
        }
        let (words, tail) = rest.as_chunks::<WORD_BYTES>();
        let mut counter = self.counter(word);
        for (group, chunk) in words.chunks(WORDS_PER_CHECK).enumerate() {
            let group_counter = counter;
            let mut difference = 0;
            for got in chunk {
                difference |= u64::from_le_bytes(*got) ^ mix(counter);
                counter = counter.wrapping_add(GAMMA);
            }
            if difference != 0 {
                let base = head_len + group * WORDS_PER_CHECK * WORD_BYTES;
                return Some(base + first_in_words(group_counter, chunk));
            }
        }
        let at = differing(&mix(counter).to_le_bytes()[..tail.len()], tail)?;
        Some(data.len() - tail.len() + at)
    }
}

/// The `start` of the stream that has `first` and `second` as its words number `word` and `word + 1`, if there is one
/// (random data passes with a chance of 2^-64).
pub(crate) fn recover_start(word: u64, first: [u8; 8], second: [u8; 8]) -> Option<u64> {
    let counter = unmix(u64::from_le_bytes(first));
    (unmix(u64::from_le_bytes(second)) == counter.wrapping_add(GAMMA))
        .then(|| counter.wrapping_sub(word.wrapping_mul(GAMMA)))
}

/// The version that a body of `key` claims by its word number `word` alone; None when it cannot be of this key.
pub(crate) fn version_of_word(word: u64, bytes: [u8; 8], seed: u64, key: &str) -> Option<u64> {
    let start = unmix(u64::from_le_bytes(bytes)).wrapping_sub(word.wrapping_mul(GAMMA));
    Stream::version_for(start, seed, key)
}

/// The number under which version `version` of `source` is a version of `key`: what a copy within the server holds. It is
/// any 64-bit number, mostly above [`VERSION_MAX`].
pub(crate) fn alias(seed: u64, source: &str, version: u64, key: &str) -> u64 {
    let start = Stream::new(seed, source, version).start;
    start.wrapping_sub(key_hash(seed, key)).wrapping_mul(inverse(VERSION_STEP))
}

/// By how many words `found` lies ahead of `expected` on one stream, if within `words_max` either way.
pub(crate) fn shift_words(found: u64, expected: Stream, words_max: u64) -> Option<i64> {
    let distance = found.wrapping_sub(expected.start).wrapping_mul(inverse(GAMMA)).cast_signed();
    (distance.unsigned_abs() <= words_max).then_some(distance)
}

/// A well mixed number for choices that need no independence from the content.
pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(GAMMA);
    mix(mix(*state).wrapping_mul(KEY_MULTIPLIER))
}

fn mix(counter: u64) -> u64 {
    let word = counter ^ (counter >> 32);
    let word = word ^ (word << 13);
    let word = word ^ (word >> 7);
    word ^ (word << 17)
}

fn unmix(word: u64) -> u64 {
    let word = word ^ (word << 17) ^ (word << 34) ^ (word << 51);
    let word = (0..64).step_by(7).fold(0, |sum, shift| sum ^ (word >> shift));
    let word = (0..64).step_by(13).fold(0, |sum, shift| sum ^ (word << shift));
    word ^ (word >> 32)
}

/// Inverse of an odd number modulo 2^64 by Newton's iteration (each round doubles the correct bits, 3 to begin with).
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut round = 0;
    while round < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
}

fn key_hash(seed: u64, key: &str) -> u64 {
    key.bytes().fold(mix(mix(seed ^ GAMMA)), |hash, byte| {
        mix((hash ^ u64::from(byte)).wrapping_mul(KEY_MULTIPLIER).wrapping_add(GAMMA))
    })
}

/// (bytes of the first word that lie before `offset`, bytes to handle until the next word begins)
fn head(offset: u64, len: usize) -> (usize, usize) {
    let skip = usize::try_from(offset % WORD_BYTES as u64).expect("below 8");
    (skip, if skip == 0 { 0 } else { (WORD_BYTES - skip).min(len) })
}

fn differing(expected: &[u8], got: &[u8]) -> Option<usize> {
    expected.iter().zip(got).position(|(expected, got)| expected != got)
}

fn first_in_words(mut counter: u64, words: &[[u8; WORD_BYTES]]) -> usize {
    for (index, got) in words.iter().enumerate() {
        if let Some(at) = differing(&mix(counter).to_le_bytes(), got) {
            return index * WORD_BYTES + at;
        }
        counter = counter.wrapping_add(GAMMA);
    }
    unreachable!("the caller saw a difference in these words")
}

#[cfg(test)]
mod tests {
    use super::{Stream, alias, inverse, mix, recover_start, shift_words, unmix, version_of_word};

    fn whole(stream: Stream, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        stream.fill(0, &mut bytes);
        bytes
    }

    #[test]
    fn any_cut_gives_the_same_bytes() {
        let stream = Stream::new(7, "p/a", 3);
        let bytes = whole(stream, 10_003);
        for from in [0, 1, 7, 8, 9, 4095, 4096, 9_990, 10_003] {
            for to in [from, from + 1, from + 3, from + 8, from + 21, 10_003] {
                let to = to.min(bytes.len());
                let mut part = vec![0; to - from];
                stream.fill(from as u64, &mut part);
                assert_eq!(part, bytes[from..to], "{from}..{to}");
                assert_eq!(stream.first_difference(from as u64, &part), None);
            }
        }
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        let stream = Stream::new(1, "k", 1);
        let good = whole(stream, 20_000);
        for at in [0, 1, 8, 4095, 4096, 4097, 12_345, 19_999] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            for from in [0, 1, 5, 8].into_iter().filter(|from| *from <= at) {
                assert_eq!(
                    stream.first_difference(from as u64, &bad[from..]),
                    Some(at - from),
                    "{at} {from}"
                );
            }
        }
    }

    #[test]
    fn streams_differ_by_seed_key_and_version_and_can_be_named() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..20 {
            for key in ["a", "b", "ab", "ba", ""] {
                for version in 0..20 {
                    let bytes = whole(Stream::new(seed, key, version), 64);
                    assert!(seen.insert(bytes[..8].to_vec()));
                    let word = |at: usize| bytes[at * 8..at * 8 + 8].try_into().unwrap();
                    let start = recover_start(5, word(5), word(6)).unwrap();
                    assert_eq!(Stream::version_for(start, seed, key), Some(version));
                    assert_eq!(version_of_word(0, word(0), seed, key), Some(version));
                    assert_eq!(version_of_word(3, word(3), seed, key), Some(version));
                    let copied = Stream::new(seed, "copy", alias(seed, key, version, "copy"));
                    assert_eq!(whole(copied, 64), bytes);
                    assert_eq!(shift_words(start, Stream::new(seed, key, version), 10), Some(0));
                    let shifted = recover_start(2, word(5), word(6)).unwrap();
                    assert_eq!(shift_words(shifted, Stream::new(seed, key, version), 10), Some(3));
                }
            }
        }
        assert_eq!(recover_start(0, [1; 8], [2; 8]), None);
    }

    #[test]
    fn mix_is_a_bijection_and_bytes_look_random() {
        for value in [0, 1, u64::MAX, 0x1234_5678_9ABC_DEF0] {
            assert_eq!(unmix(mix(value)), value);
        }
        assert_eq!(inverse(super::GAMMA).wrapping_mul(super::GAMMA), 1);
        let mut counts = [0u32; 256];
        whole(Stream::new(1, "k", 1), 1 << 18).iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        assert!(counts.iter().all(|count| (900..1150).contains(count)), "{counts:?}");
    }

    /// Golden bytes: journals and prepared buckets outlive a binary.
    #[test]
    fn content_never_changes() {
        assert_eq!(hex::encode(whole(Stream::new(1, "obj-00000000", 1), 16)), GOLDEN);
    }
    const GOLDEN: &str = "e02618b2a9326395c27d79af5b8adee6";
}
