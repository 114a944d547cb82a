//! The one frame around what this crate persists and sends, and around the messages of `quarry-object`.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic: which family of frames |
//! | 4 | 2 | kind within the family, never reused |
//! | 6 | 2 | schema version of that kind: another layout is another version and another Rust type |
//! | 8 | 4 | length of the body |
//! | 12 | 4 | crc32c of bytes 0..12 and the body |
//! | 16 | length | body: one rkyv archive, features frozen in the workspace manifest |
//!
//! Integers are little-endian. The checksum comes first, validation of the archive second: rkyv's check proves that an
//! archive is safe to read, not that it is what was written. Whatever the bytes are, opening a frame does not panic, and
//! costs no memory beyond a small multiple of their length.

use std::cell::Cell;

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::{Archive, Deserialize, Portable, Serialize, rancor};

/// Bytes before the body.
pub const FRAME_HEADER_BYTES: usize = 16;
const CHECKSUM_AT: usize = 12;
/// Memory of an archive up to this size is kept for the next one: growing anew each time costs more than the copy.
const ARCHIVE_BYTES_KEPT: usize = 64 << 10;

thread_local! {
    /// Where the next archive is made.
    static ARCHIVE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Why bytes are not the frame that was expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
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
    /// Of another family, or no frame at all.
    #[error("not a frame: begins with {found:02x?}")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The checksum does not match.
    #[error("frame checksum is {actual:08x}, its header says {expected:08x}")]
    Checksum {
        /// From the header.
        expected: u32,
        /// Of the bytes.
        actual: u32,
    },
    /// A frame of something else.
    #[error("a frame of kind {found} where {expected} was expected")]
    Kind {
        /// What it says.
        found: u16,
        /// What was asked for.
        expected: u16,
    },
    /// Written by another release.
    #[error("schema version {found} of kind {kind} is not known")]
    Version {
        /// Which kind.
        kind: u16,
        /// What it says.
        found: u16,
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

/// One kind of frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameKind {
    /// Of the family.
    pub magic: [u8; 4],
    /// Number within the family.
    pub kind: u16,
    /// Schema version that is written and read.
    pub version: u16,
    /// Longest frame that is opened, header included.
    pub bytes_max: usize,
}

impl FrameKind {
    /// Puts the header in front of a body.
    ///
    /// # Panics
    /// If the body is 4 GiB long or longer: every caller bounds what it frames.
    pub fn seal(&self, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).expect("bodies are bounded far below 4 GiB");
        let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
        frame.extend_from_slice(&self.magic);
        frame.extend_from_slice(&self.kind.to_le_bytes());
        frame.extend_from_slice(&self.version.to_le_bytes());
        frame.extend_from_slice(&length.to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame), body);
        frame.extend_from_slice(&checksum.to_le_bytes());
        frame.extend_from_slice(body);
        frame
    }

    /// Checks header and checksum; returns the body.
    ///
    /// # Errors
    /// Anything but an intact frame of this kind and version within the limit.
    pub fn open<'f>(&self, frame: &'f [u8]) -> Result<&'f [u8], FrameError> {
        let actual = frame.len() as u64;
        if frame.len() > self.bytes_max {
            return Err(FrameError::TooLong { actual, limit: self.bytes_max as u64 });
        }
        let Some((header, body)) = frame.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Err(FrameError::Length { expected: FRAME_HEADER_BYTES as u64, actual });
        };
        let [m0, m1, m2, m3, k0, k1, v0, v1, l0, l1, l2, l3, checksum @ ..] = *header;
        if [m0, m1, m2, m3] != self.magic {
            return Err(FrameError::Magic { found: [m0, m1, m2, m3] });
        }
        let expected = u64::from(u32::from_le_bytes([l0, l1, l2, l3])) + FRAME_HEADER_BYTES as u64;
        if expected != actual {
            return Err(FrameError::Length { expected, actual });
        }
        let expected = u32::from_le_bytes(checksum);
        let actual = crc32c::crc32c_append(crc32c::crc32c(&header[..CHECKSUM_AT]), body);
        if expected != actual {
            return Err(FrameError::Checksum { expected, actual });
        }
        let found = u16::from_le_bytes([k0, k1]);
        if found != self.kind {
            return Err(FrameError::Kind { found, expected: self.kind });
        }
        let found = u16::from_le_bytes([v0, v1]);
        if found != self.version {
            return Err(FrameError::Version { kind: self.kind, found });
        }
        Ok(body)
    }

    /// The frame of a value.
    pub fn encode<T>(&self, value: &T) -> Vec<u8>
    where
        T: for<'a> Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, rancor::Error>>,
    {
        let mut memory = ARCHIVE.take();
        memory.clear();
        let archive = rkyv::api::high::to_bytes_in::<_, rancor::Error>(value, memory);
        let archive = archive.expect("plain data always serialises to memory");
        let frame = self.seal(&archive);
        if archive.capacity() <= ARCHIVE_BYTES_KEPT {
            ARCHIVE.set(archive);
        }
        frame
    }

    /// The archived value in a frame, validated.
    ///
    /// # Errors
    /// As [`FrameKind::open`], and [`FrameError::Archive`].
    pub fn access<'f, A>(&self, frame: &'f [u8]) -> Result<&'f A, FrameError>
    where
        A: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
    {
        rkyv::access::<A, rancor::Error>(self.open(frame)?).map_err(|_| FrameError::Archive)
    }

    /// The value in a frame.
    ///
    /// # Errors
    /// As [`FrameKind::access`].
    pub fn decode<T>(&self, frame: &[u8]) -> Result<T, FrameError>
    where
        T: Archive,
        T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
            + Deserialize<T, HighDeserializer<rancor::Error>>,
    {
        let archived = self.access::<T::Archived>(frame)?;
        rkyv::deserialize::<T, rancor::Error>(archived).map_err(|_| FrameError::Archive)
    }
}
