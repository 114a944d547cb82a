//! The frame around every persisted value and every message of this module.
//!
//! ```text
//! offset  bytes  field           all little-endian
//!      0      4  magic           "QPRT"
//!      4      2  type            which Rust type follows, never reused
//!      6      2  schema version  of that type; a change of layout is a new version and a new type
//!      8      4  length          bytes that follow the header
//!     12      4  crc32c          over bytes 0..12 and all that follows the header
//!     16      n  rkyv archive    features frozen in the workspace manifest
//! ```
//! Decoding checks all of it and validates the archive before use: bytes of a peer or a device never panic,
//! and cost no memory beyond a multiple of their own length.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

/// Bytes before the archive.
pub const FRAME_HEADER_BYTES: usize = 16;
/// Longest frame that is decoded: a listing of 1,000 keys of 1 KiB or a manifest of 10,000 segments is about
/// 1.2 MiB.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

const MAGIC: [u8; 4] = *b"QPRT";

/// Why bytes are not the frame that was expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Shorter than its header, or than the length in it, or longer.
    #[error("{len_bytes} bytes are not the whole frame")]
    Length {
        /// What there is.
        len_bytes: usize,
    },
    /// Over [`FRAME_BYTES_MAX`].
    #[error("a frame of {len_bytes} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong {
        /// What there is.
        len_bytes: usize,
    },
    /// Not one of our frames.
    #[error("not a frame: wrong magic")]
    Magic,
    /// A frame of something else.
    #[error("a frame of type {found} where {expected} was expected")]
    Type {
        /// What it says.
        found: u16,
        /// What was asked for.
        expected: u16,
    },
    /// Written by a newer release.
    #[error("schema version {found} of type {frame_type} is not known")]
    Version {
        /// Which type.
        frame_type: u16,
        /// What it says.
        found: u16,
    },
    /// The bytes changed since they were written.
    #[error("the checksum does not match")]
    Checksum,
    /// The checksum matches, but the archive breaks a rule of its type.
    #[error("the archive is not valid")]
    Archive,
}

/// A type with a frame of its own.
pub trait Framed: Sized {
    /// Identifies the type in the frame.
    const FRAME_TYPE: u16;
    /// Version of the layout.
    const SCHEMA_VERSION: u16 = 1;
    /// The framed bytes.
    fn encode(&self) -> Vec<u8>;
    /// Inverse of [`Framed::encode`].
    ///
    /// # Errors
    /// [`FrameError`]: whatever the bytes are, nothing panics.
    fn decode(bytes: &[u8]) -> Result<Self, FrameError>;
}

macro_rules! framed {
    ($type:ty, $frame_type:literal) => {
        impl $crate::command::frame::Framed for $type {
            const FRAME_TYPE: u16 = $frame_type;
            fn encode(&self) -> Vec<u8> {
                $crate::command::frame::encode(self, $frame_type, Self::SCHEMA_VERSION)
            }
            fn decode(bytes: &[u8]) -> Result<Self, $crate::command::frame::FrameError> {
                $crate::command::frame::decode(bytes, $frame_type, Self::SCHEMA_VERSION)
            }
        }
    };
}
pub(crate) use framed;

pub(crate) fn encode<T>(value: &T, frame_type: u16, version: u16) -> Vec<u8>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    let archive = rkyv::to_bytes::<rancor::Error>(value).expect("serialising to memory does not fail");
    let len = u32::try_from(archive.len()).expect("limits on every field keep frames far below 4 GiB");
    let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + archive.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&frame_type.to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &archive);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&archive);
    bytes
}

pub(crate) fn decode<T>(bytes: &[u8], frame_type: u16, version: u16) -> Result<T, FrameError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let len_bytes = bytes.len();
    if len_bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { len_bytes });
    }
    let Some((header, archive)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(FrameError::Length { len_bytes });
    };
    let [m0, m1, m2, m3, t0, t1, v0, v1, l0, l1, l2, l3, crc @ ..] = *header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(FrameError::Magic);
    }
    if u32::from_le_bytes([l0, l1, l2, l3]) as usize != archive.len() {
        return Err(FrameError::Length { len_bytes });
    }
    if crc32c::crc32c_append(crc32c::crc32c(&header[..12]), archive) != u32::from_le_bytes(crc) {
        return Err(FrameError::Checksum);
    }
    let found = u16::from_le_bytes([t0, t1]);
    if found != frame_type {
        return Err(FrameError::Type { found, expected: frame_type });
    }
    let found = u16::from_le_bytes([v0, v1]);
    if found != version {
        return Err(FrameError::Version { frame_type, found });
    }
    rkyv::from_bytes::<T, rancor::Error>(archive).map_err(|_| FrameError::Archive)
}
