//! The compression function (RFC 1321, 3.4) of one stream, and of eight side by side where the processor has AVX2.

/// Bytes that one call of the function takes of each stream.
pub(crate) const BLOCK_BYTES: usize = 64;
/// Streams hashed together: words of a 256-bit vector.
pub(crate) const LANES: usize = 8;

/// Registers A, B, C, D of one stream.
pub(crate) type State = [u32; 4];

/// Of a stream without bytes.
pub(crate) const START: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The integer part of 2^32 * |sin(n + 1)|.
const SINES: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

/// The 64 steps over four registers in any representation: `$step!(mix, a, b, c, d, message word, sine, rotation)` gives the new a.
macro_rules! all_steps {
    ($step:ident, [$a:ident, $b:ident, $c:ident, $d:ident], $words:ident) => {
        all_steps!($step, f, [$a, $b, $c, $d], $words, 0, [7, 12, 17, 22], |n: usize| n);
        all_steps!($step, g, [$a, $b, $c, $d], $words, 16, [5, 9, 14, 20], |n: usize| (5 * n + 1) % 16);
        all_steps!($step, h, [$a, $b, $c, $d], $words, 32, [4, 11, 16, 23], |n: usize| (3 * n + 5) % 16);
        all_steps!($step, i, [$a, $b, $c, $d], $words, 48, [6, 10, 15, 21], |n: usize| (7 * n) % 16);
    };
    (
        $step:ident, $mix:ident, [$a:ident, $b:ident, $c:ident, $d:ident], $words:ident,
        $first:literal, [$r0:literal, $r1:literal, $r2:literal, $r3:literal], $word_of:expr
    ) => {
        for n in ($first..$first + 16).step_by(4) {
            $a = $step!($mix, $a, $b, $c, $d, $words[$word_of(n)], SINES[n], $r0);
            $d = $step!($mix, $d, $a, $b, $c, $words[$word_of(n + 1)], SINES[n + 1], $r1);
            $c = $step!($mix, $c, $d, $a, $b, $words[$word_of(n + 2)], SINES[n + 2], $r2);
            $b = $step!($mix, $b, $c, $d, $a, $words[$word_of(n + 3)], SINES[n + 3], $r3);
        }
    };
}

/// Takes whole blocks of one stream.
pub(crate) fn one(state: &mut State, data: &[u8]) {
    debug_assert!(data.len().is_multiple_of(BLOCK_BYTES));
    macro_rules! step {
        ($mix:ident, $a:ident, $b:ident, $c:ident, $d:ident, $word:expr, $sine:expr, $rotation:literal) => {
            $a.wrapping_add(step!($mix, $b, $c, $d))
                .wrapping_add($word)
                .wrapping_add($sine)
                .rotate_left($rotation)
                .wrapping_add($b)
        };
        (f, $x:ident, $y:ident, $z:ident) => {
            $z ^ ($x & ($y ^ $z))
        };
        (g, $x:ident, $y:ident, $z:ident) => {
            $y ^ ($z & ($x ^ $y))
        };
        (h, $x:ident, $y:ident, $z:ident) => {
            $x ^ $y ^ $z
        };
        (i, $x:ident, $y:ident, $z:ident) => {
            $y ^ ($x | !$z)
        };
    }
    for block in data.as_chunks::<BLOCK_BYTES>().0 {
        let words = message_words(block);
        let [mut a, mut b, mut c, mut d] = *state;
        all_steps!(step, [a, b, c, d], words);
        for (register, sum) in state.iter_mut().zip([a, b, c, d]) {
            *register = register.wrapping_add(sum);
        }
    }
}

fn message_words(block: &[u8; BLOCK_BYTES]) -> [u32; 16] {
    let mut words = [0; 16];
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// Whether [`many`] is faster than one stream after the other.
pub(crate) fn has_lanes() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Takes `blocks` blocks of each of [`LANES`] streams.
pub(crate) fn many(states: &mut [State; LANES], data: [&[u8]; LANES], blocks: usize) {
    #[cfg(target_arch = "x86_64")]
    if has_lanes() {
        #[allow(unsafe_code, reason = "code for a feature of the processor that was just found")]
        // SAFETY: the processor has AVX2, which is all that the function needs beyond safe code.
        return unsafe { avx2::many(states, data, blocks) };
    }
    for (state, data) in states.iter_mut().zip(data) {
        one(state, &data[..blocks * BLOCK_BYTES]);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_extract_epi32, _mm256_or_si256,
        _mm256_set1_epi32, _mm256_setr_epi32, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_xor_si256,
    };

    use super::{BLOCK_BYTES, LANES, SINES, State, message_words};

    #[target_feature(enable = "avx2")]
    fn gather(of: impl Fn(usize) -> u32) -> __m256i {
        let word = |lane| of(lane).cast_signed();
        _mm256_setr_epi32(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn many(states: &mut [State; LANES], data: [&[u8]; LANES], blocks: usize) {
        macro_rules! step {
            ($mix:ident, $a:ident, $b:ident, $c:ident, $d:ident, $word:expr, $sine:expr, $rotation:literal) => {{
                let word = _mm256_add_epi32($word, _mm256_set1_epi32($sine.cast_signed()));
                let sum = _mm256_add_epi32(_mm256_add_epi32($a, word), step!($mix, $b, $c, $d));
                let low = _mm256_srli_epi32::<{ 32 - $rotation }>(sum);
                _mm256_add_epi32($b, _mm256_or_si256(_mm256_slli_epi32::<$rotation>(sum), low))
            }};
            (f, $x:ident, $y:ident, $z:ident) => {
                _mm256_xor_si256($z, _mm256_and_si256($x, _mm256_xor_si256($y, $z)))
            };
            (g, $x:ident, $y:ident, $z:ident) => {
                _mm256_xor_si256($y, _mm256_and_si256($z, _mm256_xor_si256($x, $y)))
            };
            (h, $x:ident, $y:ident, $z:ident) => {
                _mm256_xor_si256($x, _mm256_xor_si256($y, $z))
            };
            (i, $x:ident, $y:ident, $z:ident) => {
                _mm256_xor_si256($y, _mm256_or_si256($x, _mm256_xor_si256($z, _mm256_set1_epi32(-1))))
            };
        }
        let data = data.map(|data| data[..blocks * BLOCK_BYTES].as_chunks::<BLOCK_BYTES>().0);
        let mut registers: [__m256i; 4] = [0, 1, 2, 3].map(|at| gather(|lane| states[lane][at]));
        for block in 0..blocks {
            let rows = data.map(|data| message_words(&data[block]));
            let mut words = [_mm256_set1_epi32(0); 16];
            for (n, word) in words.iter_mut().enumerate() {
                *word = gather(|lane| rows[lane][n]);
            }
            let [mut a, mut b, mut c, mut d] = registers;
            all_steps!(step, [a, b, c, d], words);
            for (register, sum) in registers.iter_mut().zip([a, b, c, d]) {
                *register = _mm256_add_epi32(*register, sum);
            }
        }
        for (at, register) in registers.into_iter().enumerate() {
            let words = [
                _mm256_extract_epi32::<0>(register),
                _mm256_extract_epi32::<1>(register),
                _mm256_extract_epi32::<2>(register),
                _mm256_extract_epi32::<3>(register),
                _mm256_extract_epi32::<4>(register),
                _mm256_extract_epi32::<5>(register),
                _mm256_extract_epi32::<6>(register),
                _mm256_extract_epi32::<7>(register),
            ];
            for (state, word) in states.iter_mut().zip(words) {
                state[at] = word.cast_unsigned();
            }
        }
    }
}
