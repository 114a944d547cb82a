//! Reed-Solomon coding over the shards of a stripe: k data blocks give m parity blocks, and any k of the k+m
//! give back all the others.
//!
//! The code is systematic over GF(2^8) with the polynomial 0x11d. Parity row `i` is row `k+i` of the Cauchy
//! matrix `1 / (i xor j)`, of which every k rows are independent. **The parity bytes are an on-disk
//! contract**: the matrix and the polynomial never change (golden bytes in the tests). What a CPU derives
//! from them for speed, the tables, is computed when a [`Codec`] is made and never stored.
//!
//! Two kernels give the same bytes: ISA-L (`isal`, the only unsafe code) and a plain one (`portable`), the
//! oracle of the tests and the choice where ISA-L's assembly is not wanted.
//!
//! Failure model: none inside. The codec trusts the bytes it is given; checksums are the caller's. A wrong
//! block among the present ones gives wrong bytes, not an error.

mod gf;
mod isal;
mod portable;

use quarry_clustermap::{ErasureProfile, ProfileError, ShardIndex};

use crate::isal::Tables;

/// Why blocks cannot be coded. All but [`ErasureError::TooFewShards`] are mistakes of the caller.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ErasureError {
    /// The profile is outside its range.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// Not k data blocks, or not m parity blocks.
    #[error("expected {expected} blocks, got {actual}")]
    BlockCount {
        /// What the profile asks for.
        expected: usize,
        /// What was given.
        actual: usize,
    },
    /// Blocks of one call differ in length, or are longer than [`BLOCK_BYTES_MAX`].
    #[error("expected blocks of {expected} bytes, one has {actual}")]
    BlockLength {
        /// Length of the first block, or the limit.
        expected: usize,
        /// Length of the offending one.
        actual: usize,
    },
    /// A shard is named that the profile does not have.
    #[error("{shard} is not part of profile {profile}")]
    UnknownShard {
        /// Which.
        shard: ShardIndex,
        /// Of the codec.
        profile: ErasureProfile,
    },
    /// A shard is named twice, among the present or the wanted ones or in both.
    #[error("{shard} is named twice")]
    RepeatedShard {
        /// Which.
        shard: ShardIndex,
    },
    /// Fewer than k shards are present.
    #[error("decoding needs {needed} shards, {present} are present")]
    TooFewShards {
        /// k.
        needed: usize,
        /// How many were given.
        present: usize,
    },
}

/// Longest block of one call: ISA-L counts in C's `int`.
pub const BLOCK_BYTES_MAX: usize = 1 << 30;

/// Coder of one profile. Making one costs a few microseconds; keep it per profile.
#[derive(Debug)]
pub struct Codec {
    profile: ErasureProfile,
    /// m rows of k coefficients.
    parity_rows: Vec<u8>,
    encoder: Kernel,
}

/// One matrix, ready to be multiplied with blocks.
#[derive(Debug)]
enum Kernel {
    Isal(Tables),
    Portable(Vec<u8>),
}

impl Codec {
    /// A codec on ISA-L, which picks the fastest kernel of this CPU.
    ///
    /// # Errors
    /// [`ErasureError::Profile`] where k is 0 or k+m is over the limit.
    pub fn new(profile: ErasureProfile) -> Result<Self, ErasureError> {
        Self::with_kernel(profile, |rows, k| Kernel::Isal(Tables::new(rows, k)))
    }

    /// A codec in plain Rust with the same results; about twenty times slower.
    ///
    /// # Errors
    /// As [`Codec::new`].
    pub fn portable(profile: ErasureProfile) -> Result<Self, ErasureError> {
        Self::with_kernel(profile, |rows, _| Kernel::Portable(rows.to_vec()))
    }

    fn with_kernel(
        profile: ErasureProfile,
        kernel: impl Fn(&[u8], usize) -> Kernel,
    ) -> Result<Self, ErasureError> {
        let profile = ErasureProfile::new(profile.data_shards, profile.parity_shards)?;
        let parity_rows = gf::cauchy_parity_rows(profile.data(), profile.parity());
        let encoder = kernel(&parity_rows, profile.data());
        Ok(Self { profile, parity_rows, encoder })
    }

    /// What it codes.
    pub fn profile(&self) -> ErasureProfile {
        self.profile
    }

    /// Computes the m parity blocks of k data blocks, all of one length (any, also 0).
    ///
    /// # Errors
    /// [`ErasureError::BlockCount`], [`ErasureError::BlockLength`]; then nothing was written.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), ErasureError> {
        check_count(self.profile.data(), data.len())?;
        check_count(self.profile.parity(), parity.len())?;
        check_lengths(data.iter().map(|b| b.len()).chain(parity.iter().map(|b| b.len())))?;
        self.encoder.multiply(data, parity);
        Ok(())
    }

    /// Computes `wanted` shards, data or parity, from any k `present` ones (more may be given; the first k
    /// count).
    ///
    /// # Errors
    /// [`ErasureError::TooFewShards`], [`ErasureError::UnknownShard`], [`ErasureError::RepeatedShard`],
    /// [`ErasureError::BlockLength`]; then nothing was written.
    pub fn decode(
        &self,
        present: &[(ShardIndex, &[u8])],
        wanted: &mut [(ShardIndex, &mut [u8])],
    ) -> Result<(), ErasureError> {
        let k = self.profile.data();
        self.check_shards(present.iter().map(|(s, _)| *s).chain(wanted.iter().map(|(s, _)| *s)))?;
        check_lengths(present.iter().map(|(_, b)| b.len()).chain(wanted.iter().map(|(_, b)| b.len())))?;
        let Some(present) = present.get(..k) else {
            return Err(ErasureError::TooFewShards { needed: k, present: present.len() });
        };
        if wanted.is_empty() {
            return Ok(());
        }
        let sources: Vec<usize> = present.iter().map(|(shard, _)| usize::from(shard.0)).collect();
        let targets: Vec<usize> = wanted.iter().map(|(shard, _)| usize::from(shard.0)).collect();
        let rows = gf::decode_rows(&self.parity_rows, k, &sources, &targets);
        let kernel = match self.encoder {
            Kernel::Isal(_) => Kernel::Isal(Tables::new(&rows, k)),
            Kernel::Portable(_) => Kernel::Portable(rows),
        };
        let sources: Vec<&[u8]> = present.iter().map(|(_, block)| *block).collect();
        let mut targets: Vec<&mut [u8]> = wanted.iter_mut().map(|(_, block)| &mut **block).collect();
        kernel.multiply(&sources, &mut targets);
        Ok(())
    }

    fn check_shards(&self, shards: impl Iterator<Item = ShardIndex>) -> Result<(), ErasureError> {
        let mut seen = 0_u32;
        for shard in shards {
            if usize::from(shard.0) >= self.profile.total() {
                return Err(ErasureError::UnknownShard { shard, profile: self.profile });
            }
            if seen & (1 << shard.0) != 0 {
                return Err(ErasureError::RepeatedShard { shard });
            }
            seen |= 1 << shard.0;
        }
        Ok(())
    }
}

// `check_shards` keeps a set of shards in 32 bits.
const _: () = assert!(ErasureProfile::SHARDS_MAX <= 32);

impl Kernel {
    fn multiply(&self, sources: &[&[u8]], targets: &mut [&mut [u8]]) {
        match self {
            Self::Isal(tables) => tables.multiply(sources, targets),
            Self::Portable(rows) => portable::multiply(rows, sources, targets),
        }
    }
}

fn check_count(expected: usize, actual: usize) -> Result<(), ErasureError> {
    if expected == actual { Ok(()) } else { Err(ErasureError::BlockCount { expected, actual }) }
}

fn check_lengths(mut lengths: impl Iterator<Item = usize>) -> Result<(), ErasureError> {
    let Some(expected) = lengths.next() else { return Ok(()) };
    if expected > BLOCK_BYTES_MAX {
        return Err(ErasureError::BlockLength { expected: BLOCK_BYTES_MAX, actual: expected });
    }
    match lengths.find(|actual| *actual != expected) {
        Some(actual) => Err(ErasureError::BlockLength { expected, actual }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
