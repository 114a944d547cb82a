//! Random numbers that follow from a seed (SplitMix64), and random content made of them.

/// A generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.any() % bound as u64).expect("below a usize")
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A number of the kind that formats hold: small, near a power of two, or anything.
    pub fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.any() % 16,
            1 => (1_u64 << self.below(64)).wrapping_sub(self.any() % 3),
            2 => self.any() >> self.below(64),
            _ => self.any(),
        }
    }

    /// A number that counts up: never the last.
    pub fn counter(&mut self) -> u64 {
        self.number().min(u64::MAX - 1)
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.any().to_le_bytes()[0]
    }

    /// Fewer than `bound` bytes.
    pub fn bytes(&mut self, bound: usize) -> Vec<u8> {
        (0..self.below(bound)).map(|_| self.byte()).collect()
    }

    /// An array.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// Fewer than `bound` characters.
    pub fn text(&mut self, bound: usize) -> String {
        const CHARACTERS: [char; 8] = ['a', 'b', '/', '\0', 'é', '\u{ff}', '"', '\u{1f600}'];
        (0..self.below(bound)).map(|_| CHARACTERS[self.below(CHARACTERS.len())]).collect()
    }

    /// Fewer than `bound` of what `make` makes.
    pub fn list<T>(&mut self, bound: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(bound)).map(|_| make(self)).collect()
    }

    /// Something or nothing.
    pub fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.one_in(2) { Some(make(self)) } else { None }
    }
}
