//! Frame of one rkyv archive, with an optional raw tail (bulk bytes that need no archive and no extra copy).
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | kind: which type |
//! | 2 | 2 | version of that type's schema |
//! | 4 | 4 | archive length `a` |
//! | 8 | 4 | tail length `t` |
//! | 12 | 4 | crc32c of bytes 0..12, archive and tail |
//! | 16 | a | rkyv archive, always accessed with validation |
//! | 16+a | t | raw tail |
//!
//! rkyv's own validation is no checksum and cannot tell swapped fields: hence kind, version and crc here.

use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor::Error,
    ser::allocator::ArenaHandle,
    util::AlignedVec,
};

use super::{FormatError, u32_at};

/// Length of a frame's header.
pub const HEADER_BYTES: usize = 16;
const CRC_AT: usize = 12;

/// A frame that was cut out of its surroundings and whose checksum matched.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Which type.
    pub kind: u16,
    /// Version of that type's schema.
    pub version: u16,
    /// rkyv archive.
    pub archive: &'a [u8],
    /// Raw bytes after it.
    pub tail: &'a [u8],
}

/// Appends header, archive and tail to `out`.
///
/// # Panics
/// If archive or tail exceed `u32` (every caller is bounded far below).
pub fn encode<T>(kind: u16, version: u16, value: &T, tail: &[u8], out: &mut Vec<u8>)
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
{
    let archive = rkyv::to_bytes::<Error>(value).expect("plain data always serialises");
    let archive_bytes = u32::try_from(archive.len()).expect("archives are bounded");
    let tail_bytes = u32::try_from(tail.len()).expect("tails are bounded");
    let mut header = [0; HEADER_BYTES];
    header[..2].copy_from_slice(&kind.to_le_bytes());
    header[2..4].copy_from_slice(&version.to_le_bytes());
    header[4..8].copy_from_slice(&archive_bytes.to_le_bytes());
    header[8..12].copy_from_slice(&tail_bytes.to_le_bytes());
    let crc = checksum(&header, &archive, tail);
    header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    out.reserve(HEADER_BYTES + archive.len() + tail.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(&archive);
    out.extend_from_slice(tail);
}

fn checksum(header: &[u8], archive: &[u8], tail: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header[..CRC_AT]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, archive), tail)
}

/// Cuts the first frame off `bytes`; returns it and what follows.
///
/// # Errors
/// [`FormatError::Length`], [`FormatError::Checksum`].
pub fn split(bytes: &[u8]) -> Result<(Frame<'_>, &[u8]), FormatError> {
    let length = FormatError::Length { what: "frame" };
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(length.clone())?;
    let (archive, rest) = rest.split_at_checked(u32_at(header, 4) as usize).ok_or(length.clone())?;
    let (tail, rest) = rest.split_at_checked(u32_at(header, 8) as usize).ok_or(length)?;
    if checksum(header, archive, tail) != u32_at(header, CRC_AT) {
        return Err(FormatError::Checksum { what: "frame" });
    }
    let kind = u16::from_le_bytes([header[0], header[1]]);
    let version = u16::from_le_bytes([header[2], header[3]]);
    Ok((Frame { kind, version, archive, tail }, rest))
}

/// Reads the archive of a frame as `T`, validated.
///
/// # Errors
/// [`FormatError::Field`] if the archive is not a `T`.
pub fn read<T>(frame: &Frame<'_>, what: &'static str) -> Result<T, FormatError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Error>> + Deserialize<T, HighDeserializer<Error>>,
{
    rkyv::from_bytes::<T, Error>(frame.archive).map_err(|_| FormatError::Field { what, field: "archive" })
}
