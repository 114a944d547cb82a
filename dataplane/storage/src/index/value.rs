//! Out-of-line values: longer than [`super::INLINE_VALUE_BYTES_MAX`], block-aligned, in an extent of their own.
//!
//! The checksum is seeded with the first block, so the value of another row never verifies here.

use bytes::Bytes;

use super::error::{Damage, IndexError, KeyRange};
use super::page::ValuePointer;
use crate::device::{BLOCK_BYTES, Device, IoBuf};
use crate::extent::BlockIndex;

/// Blocks that a value of `len_bytes` takes.
pub(super) fn blocks(len_bytes: usize) -> u32 {
    u32::try_from(len_bytes.div_ceil(BLOCK_BYTES)).expect("values are short")
}

/// The checksum of `value` stored from block `start`.
pub(super) fn checksum(start: BlockIndex, value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&start.0.to_le_bytes()), value)
}

/// Reads and verifies the value of the row `key`.
///
/// # Errors
/// [`IndexError::Device`], or [`IndexError::Damaged`] with [`Damage::Value`].
pub(super) async fn load<D: Device>(
    device: &D,
    key: &[u8],
    pointer: ValuePointer,
) -> Result<Bytes, IndexError> {
    let len = pointer.len_bytes as usize;
    let buf = IoBuf::zeroed(pointer.extent.blocks as usize * BLOCK_BYTES);
    let (result, buf) = device.read(pointer.extent.start.offset_bytes(), buf).await;
    result?;
    if checksum(pointer.extent.start, &buf[..len]) != pointer.checksum {
        let key_range = Box::new(KeyRange::only(key));
        return Err(IndexError::Damaged {
            page: pointer.extent.start,
            level: 0,
            what: Damage::Value,
            key_range,
        });
    }
    Ok(buf.into_bytes().slice(..len))
}
