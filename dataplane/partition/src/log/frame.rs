//! The frame around every record and message of this crate.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `QRYP` |
//! | 4 | 2 | kind of the body, little-endian |
//! | 6 | 2 | schema version of the body, little-endian |
//! | 8 | 4 | length of the body, little-endian |
//! | 12 | 4 | crc32c of bytes 0..12 and the body, little-endian |
//! | 16 | length | body: one rkyv archive |
//!
//! The checksum comes first, validation of the archive second: rkyv's check proves that an archive is safe to
//! read, not that it is what was written. Nothing is allocated before the length has been checked.

use bytes::Bytes;

/// `QRYP`.
const MAGIC: [u8; 4] = *b"QRYP";
/// Bytes before the body.
pub const FRAME_HEADER_BYTES: usize = 16;

const _: () = assert!(FRAME_HEADER_BYTES == MAGIC.len() + 2 + 2 + 4 + 4);

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum FrameKind {
    /// [`crate::Payload`].
    Payload = 1,
    /// [`crate::Envelope`].
    Envelope = 2,
}

/// Why a frame was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Shorter than its header, or not as long as the header says.
    #[error("frame is {actual} bytes long, its header says {expected}")]
    Length {
        /// Header and body as the header says, or the header alone.
        expected: u64,
        /// What was given.
        actual: u64,
    },
    /// Longer than this kind of frame may be.
    #[error("frame of {actual} bytes is over the limit of {limit}")]
    TooLong {
        /// Bytes given.
        actual: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Does not begin with the magic.
    #[error("not a frame: begins with {found:02x?}")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// Another kind of frame, or a schema version that this build does not read.
    #[error(
        "frame of kind {kind} version {version}, expected kind {expected_kind} version {expected_version}"
    )]
    Kind {
        /// Kind found.
        kind: u16,
        /// Version found.
        version: u16,
        /// Kind wanted.
        expected_kind: u16,
        /// Newest version wanted.
        expected_version: u16,
    },
    /// The checksum does not match.
    #[error("frame checksum is {actual:08x}, its header says {expected:08x}")]
    Checksum {
        /// From the header.
        expected: u32,
        /// Of the bytes.
        actual: u32,
    },
    /// The body is no valid archive.
    #[error("frame body is not a valid archive of its kind")]
    Archive,
    /// The body breaks a rule of its kind.
    #[error("frame body: {rule}")]
    Rule {
        /// Which rule.
        rule: &'static str,
    },
}

/// Puts the header in front of a body.
pub(crate) fn seal(kind: FrameKind, version: u16, body: &[u8]) -> Bytes {
    let length = u32::try_from(body.len()).expect("bodies are bounded far below 4 GiB");
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&(kind as u16).to_le_bytes());
    frame.extend_from_slice(&version.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame), body);
    frame.extend_from_slice(&checksum.to_le_bytes());
    frame.extend_from_slice(body);
    Bytes::from(frame)
}

/// Checks the header and the checksum; returns the body.
///
/// # Errors
/// Anything but an intact frame of that kind and version within the limit.
pub(crate) fn open(kind: FrameKind, version: u16, frame: &[u8], limit: usize) -> Result<&[u8], FrameError> {
    if frame.len() > limit {
        return Err(FrameError::TooLong { actual: frame.len() as u64, limit: limit as u64 });
    }
    let Some((header, body)) = frame.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(FrameError::Length { expected: FRAME_HEADER_BYTES as u64, actual: frame.len() as u64 });
    };
    let [m0, m1, m2, m3, k0, k1, v0, v1, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(FrameError::Magic { found: [m0, m1, m2, m3] });
    }
    let length = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
    if length != body.len() as u64 {
        let expected = length + FRAME_HEADER_BYTES as u64;
        return Err(FrameError::Length { expected, actual: frame.len() as u64 });
    }
    let expected = u32::from_le_bytes([c0, c1, c2, c3]);
    let actual = crc32c::crc32c_append(crc32c::crc32c(&frame[..FRAME_HEADER_BYTES - 4]), body);
    if expected != actual {
        return Err(FrameError::Checksum { expected, actual });
    }
    let found = (u16::from_le_bytes([k0, k1]), u16::from_le_bytes([v0, v1]));
    if found != (kind as u16, version) {
        return Err(FrameError::Kind {
            kind: found.0,
            version: found.1,
            expected_kind: kind as u16,
            expected_version: version,
        });
    }
    Ok(body)
}
