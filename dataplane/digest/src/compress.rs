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
    ($step:ident, [$a:ident, $b:ident, $c:ident, $d:ident], $words:ident, $sines:ident) => {
        all_steps!($step, f, [$a, $b, $c, $d], $words, $sines, 0, [7, 12, 17, 22], |n: usize| n);
        all_steps!($step, g, [$a, $b, $c, $d], $words, $sines, 16, [5, 9, 14, 20], |n: usize| (5 * n + 1)
            % 16);
        all_steps!($step, h, [$a, $b, $c, $d], $words, $sines, 32, [4, 11, 16, 23], |n: usize| (3 * n + 5)
            % 16);
        all_steps!($step, i, [$a, $b, $c, $d], $words, $sines, 48, [6, 10, 15, 21], |n: usize| (7 * n) % 16);
    };
    (
        $step:ident, $mix:ident, [$a:ident, $b:ident, $c:ident, $d:ident], $words:ident, $sines:ident,
        $first:literal, [$r0:literal, $r1:literal, $r2:literal, $r3:literal], $word_of:expr
    ) => {
        for n in ($first..$first + 16).step_by(4) {
            $a = $step!($mix, $a, $b, $c, $d, $words[$word_of(n)], $sines[n], $r0);
            $d = $step!($mix, $d, $a, $b, $c, $words[$word_of(n + 1)], $sines[n + 1], $r1);
            $c = $step!($mix, $c, $d, $a, $b, $words[$word_of(n + 2)], $sines[n + 2], $r2);
            $b = $step!($mix, $b, $c, $d, $a, $words[$word_of(n + 3)], $sines[n + 3], $r3);
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
        all_steps!(step, [a, b, c, d], words, SINES);
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

/// How streams are hashed side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kernel {
    /// Not at all: one after the other.
    OneByOne,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX2 with the rotation and the functions of three operands that AVX-512VL has.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Kernel {
    /// What this processor has, the best first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let kernels = {
            let avx2 = std::arch::is_x86_feature_detected!("avx2");
            let avx512 = avx2
                && std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512vl");
            [avx512.then_some(Self::Avx512), avx2.then_some(Self::Avx2), Some(Self::OneByOne)]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let kernels = [Some(Self::OneByOne)];
        kernels.into_iter().flatten()
    }

    fn best() -> Self {
        Self::available().next().expect("there is always a way")
    }
}

/// Whether [`many`] is faster than one stream after the other.
pub(crate) fn has_lanes() -> bool {
    Kernel::best() != Kernel::OneByOne
}

/// Takes `blocks` blocks of each of [`LANES`] streams.
pub(crate) fn many(states: &mut [State; LANES], data: [&[u8]; LANES], blocks: usize) {
    many_by(Kernel::best(), states, data, blocks);
}

/// The same by one of the kernels that are available.
pub(crate) fn many_by(kernel: Kernel, states: &mut [State; LANES], data: [&[u8]; LANES], blocks: usize) {
    debug_assert!(Kernel::available().any(|available| available == kernel));
    match kernel {
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "code for a feature of the processor that was found")]
        // SAFETY: the processor has AVX2, which is all that the function needs beyond safe code.
        Kernel::Avx2 => unsafe { x86::avx2(states, data, blocks) },
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "code for features of the processor that were found")]
        // SAFETY: the processor has AVX2, AVX-512F and AVX-512VL, which is all that the function needs beyond safe code.
        Kernel::Avx512 => unsafe { x86::avx512(states, data, blocks) },
        Kernel::OneByOne => {
            for (state, data) in states.iter_mut().zip(data) {
                one(state, &data[..blocks * BLOCK_BYTES]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_extract_epi32, _mm256_loadu_si256,
        _mm256_or_si256, _mm256_permute2x128_si256, _mm256_rol_epi32, _mm256_set1_epi32, _mm256_setr_epi32,
        _mm256_slli_epi32, _mm256_srli_epi32, _mm256_ternarylogic_epi32, _mm256_unpackhi_epi32,
        _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
    };

    use super::{BLOCK_BYTES, LANES, SINES, State};

    #[target_feature(enable = "avx2")]
    fn vector(of: impl Fn(usize) -> u32) -> __m256i {
        let word = |lane| of(lane).cast_signed();
        _mm256_setr_epi32(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7))
    }

    /// Half a block: eight words.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(half: &[u8; BLOCK_BYTES / 2]) -> __m256i {
        #[allow(unsafe_code, reason = "a load of a vector takes a pointer")]
        // SAFETY: the pointer is that of 32 bytes, and the load needs no alignment.
        unsafe {
            _mm256_loadu_si256(half.as_ptr().cast())
        }
    }

    /// Eight words of each lane become eight vectors of the lanes' first, second, ... word.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transposed(r: [__m256i; LANES]) -> [__m256i; LANES] {
        let mut fours = [_mm256_set1_epi32(0); LANES];
        for at in [0, 4] {
            let low = [_mm256_unpacklo_epi32(r[at], r[at + 1]), _mm256_unpacklo_epi32(r[at + 2], r[at + 3])];
            let high = [_mm256_unpackhi_epi32(r[at], r[at + 1]), _mm256_unpackhi_epi32(r[at + 2], r[at + 3])];
            fours[at] = _mm256_unpacklo_epi64(low[0], low[1]);
            fours[at + 1] = _mm256_unpackhi_epi64(low[0], low[1]);
            fours[at + 2] = _mm256_unpacklo_epi64(high[0], high[1]);
            fours[at + 3] = _mm256_unpackhi_epi64(high[0], high[1]);
        }
        let mut eights = fours;
        for n in 0..4 {
            eights[n] = _mm256_permute2x128_si256::<0x20>(fours[n], fours[n + 4]);
            eights[n + 4] = _mm256_permute2x128_si256::<0x31>(fours[n], fours[n + 4]);
        }
        eights
    }

    /// The next block of every lane, word by word.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn message(data: [&[[u8; BLOCK_BYTES]]; LANES], block: usize) -> [__m256i; 16] {
        let mut words = [_mm256_set1_epi32(0); 16];
        for (half, words) in words.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            for (word, data) in words.iter_mut().zip(data) {
                *word = load(&data[block].as_chunks().0[half]);
            }
            *words = transposed(*words);
        }
        words
    }

    #[target_feature(enable = "avx2")]
    fn words_of(register: __m256i) -> [i32; LANES] {
        [
            _mm256_extract_epi32::<0>(register),
            _mm256_extract_epi32::<1>(register),
            _mm256_extract_epi32::<2>(register),
            _mm256_extract_epi32::<3>(register),
            _mm256_extract_epi32::<4>(register),
            _mm256_extract_epi32::<5>(register),
            _mm256_extract_epi32::<6>(register),
            _mm256_extract_epi32::<7>(register),
        ]
    }

    macro_rules! kernel {
        ($name:ident, $features:literal, $step:ident) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(states: &mut [State; LANES], data: [&[u8]; LANES], blocks: usize) {
                let data = data.map(|data| data[..blocks * BLOCK_BYTES].as_chunks::<BLOCK_BYTES>().0);
                let mut registers: [__m256i; 4] = [0, 1, 2, 3].map(|at| vector(|lane| states[lane][at]));
                // As constants the compiler would add them last, where the next step waits for the sum.
                let sines = std::hint::black_box(&SINES);
                for block in 0..blocks {
                    let words = message(data, block);
                    let [mut a, mut b, mut c, mut d] = registers;
                    all_steps!($step, [a, b, c, d], words, sines);
                    for (register, sum) in registers.iter_mut().zip([a, b, c, d]) {
                        *register = _mm256_add_epi32(*register, sum);
                    }
                }
                for (at, register) in registers.into_iter().enumerate() {
                    for (state, word) in states.iter_mut().zip(words_of(register)) {
                        state[at] = word.cast_unsigned();
                    }
                }
            }
        };
    }

    macro_rules! avx2_step {
        ($mix:ident, $a:ident, $b:ident, $c:ident, $d:ident, $word:expr, $sine:expr, $rotation:literal) => {{
            let word = _mm256_add_epi32($word, _mm256_set1_epi32($sine.cast_signed()));
            let sum = _mm256_add_epi32(_mm256_add_epi32($a, word), avx2_step!($mix, $b, $c, $d));
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

    // The constants are the truth tables of the functions, x as the highest bit of the index.
    macro_rules! avx512_step {
        ($mix:ident, $a:ident, $b:ident, $c:ident, $d:ident, $word:expr, $sine:expr, $rotation:literal) => {{
            let word = _mm256_add_epi32($word, _mm256_set1_epi32($sine.cast_signed()));
            let sum = _mm256_add_epi32(_mm256_add_epi32($a, word), avx512_step!($mix, $b, $c, $d));
            _mm256_add_epi32($b, _mm256_rol_epi32::<$rotation>(sum))
        }};
        (f, $x:ident, $y:ident, $z:ident) => {
            _mm256_ternarylogic_epi32::<0xca>($x, $y, $z)
        };
        (g, $x:ident, $y:ident, $z:ident) => {
            _mm256_ternarylogic_epi32::<0xe4>($x, $y, $z)
        };
        (h, $x:ident, $y:ident, $z:ident) => {
            _mm256_ternarylogic_epi32::<0x96>($x, $y, $z)
        };
        (i, $x:ident, $y:ident, $z:ident) => {
            _mm256_ternarylogic_epi32::<0x39>($x, $y, $z)
        };
    }

    kernel!(avx2, "avx2", avx2_step);
    kernel!(avx512, "avx2,avx512f,avx512vl", avx512_step);
}
