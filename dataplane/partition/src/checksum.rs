//! The additional checksums of S3: of a body, and of an object from those of its parts.
//!
//! A checksum of the whole object from CRCs of its parts needs no bytes: appending `n` bytes to a message multiplies
//! its CRC by `x^(8n)` modulo the polynomial, and CRCs of equal length add up. A checksum of checksums is the checksum
//! of the parts' digests one after another, and carries the number of parts behind a dash.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use md5::Digest as _;
use rkyv::{Archive, Deserialize, Serialize};
use sha1::Sha1;
use sha2::Sha256;

/// An additional checksum of S3.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum ChecksumAlgorithm {
    /// CRC-32 as in Ethernet.
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME, which S3 adds where a client sends none.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

impl ChecksumAlgorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// As stored with an object and at the end of a header's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "crc32",
            Self::Crc32c => "crc32c",
            Self::Crc64Nvme => "crc64nvme",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }

    /// By its name in any case.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a digest.
    #[must_use]
    pub fn len_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// Whether the checksum of a whole object follows from those of its parts.
    #[must_use]
    pub fn combines(self) -> bool {
        !matches!(self, Self::Sha1 | Self::Sha256)
    }

    /// To compute one.
    #[must_use]
    pub fn hasher(self) -> ChecksumHasher {
        let state = match self {
            Self::Crc32 => State::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc)),
            Self::Crc32c => State::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi)),
            Self::Crc64Nvme => State::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme)),
            Self::Sha1 => State::Sha1(Sha1::new()),
            Self::Sha256 => State::Sha256(Sha256::new()),
        };
        ChecksumHasher { algorithm: self, state }
    }

    /// The polynomial without its highest term, bits reflected, at the top of 64 bits.
    fn polynomial(self) -> u64 {
        match self {
            Self::Crc32 => 0xEDB8_8320,
            Self::Crc32c => 0x82F6_3B78,
            _ => 0x9A6C_9329_AC4B_C9B5,
        }
    }
}

enum State {
    Crc(crc_fast::Digest),
    Sha1(Sha1),
    Sha256(Sha256),
}

/// Computes one checksum.
pub struct ChecksumHasher {
    algorithm: ChecksumAlgorithm,
    state: State,
}

impl ChecksumHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.state {
            State::Crc(digest) => digest.update(data),
            State::Sha1(digest) => digest.update(data),
            State::Sha256(digest) => digest.update(data),
        }
    }

    /// Base64 as in the header.
    #[must_use]
    pub fn finish(self) -> String {
        match self.state {
            // Big-endian, in as many bytes as the checksum has.
            State::Crc(digest) => {
                BASE64.encode(&digest.finalize().to_be_bytes()[8 - self.algorithm.len_bytes()..])
            }
            State::Sha1(digest) => BASE64.encode(digest.finalize()),
            State::Sha256(digest) => BASE64.encode(digest.finalize()),
        }
    }
}

/// The digest in a base64 text, if it has the right length.
#[must_use]
pub fn decode_checksum(algorithm: ChecksumAlgorithm, text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok().filter(|digest| digest.len() == algorithm.len_bytes())
}

/// Base64 as in the header.
#[must_use]
pub fn encode_checksum(digest: &[u8]) -> String {
    BASE64.encode(digest)
}

/// The checksum of checksums: `base64-parts`.
#[must_use]
pub fn composite<'a>(
    algorithm: ChecksumAlgorithm,
    digests: impl ExactSizeIterator<Item = &'a [u8]>,
) -> String {
    let (mut hasher, parts) = (algorithm.hasher(), digests.len());
    digests.for_each(|digest| hasher.update(digest));
    format!("{}-{parts}", hasher.finish())
}

/// The checksum of a whole object from digests and sizes of its parts, in order.
///
/// # Panics
/// If the algorithm does not combine.
#[must_use]
pub fn combined<'a>(algorithm: ChecksumAlgorithm, parts: impl Iterator<Item = (&'a [u8], u64)>) -> String {
    assert!(algorithm.combines(), "only CRCs combine");
    let field = Field { polynomial: algorithm.polynomial(), bits: 8 * algorithm.len_bytes() };
    let mut whole = 0;
    // Nearly all parts have one size.
    let mut last = (0, field.one());
    for (digest, size_bytes) in parts {
        if last.0 != size_bytes {
            last = (size_bytes, field.power_of_x(u128::from(size_bytes) * 8));
        }
        let crc = digest.iter().fold(0_u64, |crc, byte| crc << 8 | u64::from(*byte));
        whole = field.multiply(whole, last.1) ^ crc;
    }
    BASE64.encode(&whole.to_be_bytes()[8 - algorithm.len_bytes()..])
}

/// Polynomials over two elements modulo that of a CRC, bits reflected: the highest bit is the constant term.
struct Field {
    polynomial: u64,
    bits: usize,
}

impl Field {
    fn one(&self) -> u64 {
        1 << (self.bits - 1)
    }

    fn times_x(&self, a: u64) -> u64 {
        if a & 1 == 1 { a >> 1 ^ self.polynomial } else { a >> 1 }
    }

    fn multiply(&self, mut a: u64, b: u64) -> u64 {
        let mut product = 0;
        for bit in (0..self.bits).rev() {
            if b >> bit & 1 == 1 {
                product ^= a;
            }
            a = self.times_x(a);
        }
        product
    }

    fn power_of_x(&self, mut exponent: u128) -> u64 {
        let (mut result, mut square) = (self.one(), self.times_x(self.one()));
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = self.multiply(result, square);
            }
            square = self.multiply(square, square);
            exponent >>= 1;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(algorithm: ChecksumAlgorithm, data: &[u8]) -> String {
        let mut hasher = algorithm.hasher();
        hasher.update(data);
        hasher.finish()
    }

    #[test]
    fn check_values() {
        let golden = ["y/Q5Jg==", "4waSgw==", "rosUhgp5mIg="];
        for (algorithm, golden) in ChecksumAlgorithm::ALL.into_iter().zip(golden) {
            assert_eq!(of(algorithm, b"123456789"), golden, "{algorithm:?}");
        }
    }

    #[test]
    fn crcs_of_parts_make_that_of_the_whole() {
        let data: Vec<u8> = (0..100_000_u64).map(|n| (n * n % 251) as u8).collect();
        for algorithm in ChecksumAlgorithm::ALL.into_iter().filter(|algorithm| algorithm.combines()) {
            for cuts in
                [vec![0, 100_000], vec![0, 1, 7, 7, 50_000, 100_000], vec![0, 40_000, 80_000, 100_000]]
            {
                let parts: Vec<_> = cuts
                    .windows(2)
                    .map(|cut| {
                        let digest =
                            decode_checksum(algorithm, &of(algorithm, &data[cut[0]..cut[1]])).unwrap();
                        (digest, (cut[1] - cut[0]) as u64)
                    })
                    .collect();
                let whole = combined(algorithm, parts.iter().map(|(digest, size)| (&digest[..], *size)));
                assert_eq!(whole, of(algorithm, &data), "{algorithm:?} {cuts:?}");
            }
        }
    }

    #[test]
    fn composite_is_of_the_digests() {
        let digests = [[1_u8; 32], [2; 32]];
        let whole = composite(ChecksumAlgorithm::Sha256, digests.iter().map(|digest| &digest[..]));
        assert_eq!(whole, format!("{}-2", of(ChecksumAlgorithm::Sha256, &digests.concat())));
    }
}
