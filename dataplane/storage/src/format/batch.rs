//! Journal batch: what one flush makes durable. Starts at a block boundary, is padded with zeros to one.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `QUARRYJB` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | crc32c of header (this field as zero) and payload |
//! | 16 | 8 | device id: batches of an earlier format of the same device are never taken for ours |
//! | 24 | 8 | sequence, dense |
//! | 32 | 4 | crc32c of the previous batch: a chain, so that a stale batch never continues it |
//! | 36 | 4 | payload bytes |
//! | 40 | 4 | records |
//! | 44 | 20 | zero |
//! | 64 | payload | records, one frame each |

use quarry_clustermap::DeviceId;

use super::{FormatError, crc_without_itself, u32_at, u64_at};
use crate::device::BLOCK_BYTES;

/// First bytes of a batch.
pub const MAGIC: [u8; 8] = *b"QUARRYJB";
/// Version written.
pub const VERSION: u32 = 1;
/// Length of the header.
pub const HEADER_BYTES: usize = 64;
const CRC_AT: usize = 12;

/// Header of one batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// Device the batch was written to.
    pub device: DeviceId,
    /// Position in the chain.
    pub sequence: u64,
    /// crc of the batch before it.
    pub previous_crc: u32,
    /// Bytes of records after the header.
    pub payload_bytes: u32,
    /// Number of records.
    pub records: u32,
}

impl BatchHeader {
    /// Blocks the whole batch occupies.
    pub fn blocks(&self) -> u64 {
        blocks_of(self.payload_bytes as usize)
    }
}

/// Blocks of a batch with that much payload.
pub fn blocks_of(payload_bytes: usize) -> u64 {
    (HEADER_BYTES + payload_bytes).div_ceil(BLOCK_BYTES) as u64
}

/// Fills in the header at the front of `bytes`, whose payload is in place; returns the batch's crc.
///
/// # Panics
/// If `bytes` is shorter than header and payload.
pub fn seal(header: &BatchHeader, bytes: &mut [u8]) -> u32 {
    let total = HEADER_BYTES + header.payload_bytes as usize;
    let bytes = &mut bytes[..total];
    bytes[..HEADER_BYTES].fill(0);
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&header.device.0.to_le_bytes());
    bytes[24..32].copy_from_slice(&header.sequence.to_le_bytes());
    bytes[32..36].copy_from_slice(&header.previous_crc.to_le_bytes());
    bytes[36..40].copy_from_slice(&header.payload_bytes.to_le_bytes());
    bytes[40..44].copy_from_slice(&header.records.to_le_bytes());
    let crc = crc_without_itself(bytes, CRC_AT);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Reads the header alone; nothing is verified but magic and version.
///
/// # Errors
/// [`FormatError::Length`], [`FormatError::Magic`], [`FormatError::Version`], [`FormatError::Field`].
pub fn read_header(bytes: &[u8]) -> Result<BatchHeader, FormatError> {
    let what = "journal batch";
    if bytes.len() < HEADER_BYTES {
        return Err(FormatError::Length { what });
    }
    if bytes[..8] != MAGIC {
        return Err(FormatError::Magic { what });
    }
    match u32_at(bytes, 8) {
        VERSION => {}
        version => return Err(FormatError::Version { what, version }),
    }
    let sequence = u64_at(bytes, 24);
    if sequence == u64::MAX {
        // No batch could follow it.
        return Err(FormatError::Field { what, field: "sequence" });
    }
    Ok(BatchHeader {
        device: DeviceId(u64_at(bytes, 16)),
        sequence,
        previous_crc: u32_at(bytes, 32),
        payload_bytes: u32_at(bytes, 36),
        records: u32_at(bytes, 40),
    })
}

/// Verifies a whole batch; returns header, crc and payload.
///
/// # Errors
/// As [`read_header`], and [`FormatError::Checksum`].
pub fn open(bytes: &[u8]) -> Result<(BatchHeader, u32, &[u8]), FormatError> {
    let header = read_header(bytes)?;
    let total = HEADER_BYTES + header.payload_bytes as usize;
    let bytes = bytes.get(..total).ok_or(FormatError::Length { what: "journal batch" })?;
    let crc = u32_at(bytes, CRC_AT);
    if crc_without_itself(bytes, CRC_AT) != crc {
        return Err(FormatError::Checksum { what: "journal batch" });
    }
    Ok((header, crc, &bytes[HEADER_BYTES..]))
}
