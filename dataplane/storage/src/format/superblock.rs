//! Superblock: root record of a device, one block, in four copies.
//!
//! Slots 0 and 1 are the first two blocks of the device, slots 2 and 3 the last two. Checkpoint `c` writes the
//! pair {c mod 2, 2 + c mod 2}: the pair of the checkpoint before it stays intact, and each pair has a copy at
//! both ends. The newest valid copy wins. Each copy:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `QUARRYSB` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | crc32c of the block, this field as zero |
//! | 16 | 16 | cluster id |
//! | 32 | 8 | device id |
//! | 40 | 8 | device bytes when formatted |
//! | 48 | 8 | journal: first block |
//! | 56 | 8 | journal: blocks |
//! | 64 | 8 | data area: first block |
//! | 72 | 8 | data area: blocks |
//! | 80 | 8 | checkpoint sequence |
//! | 88 | 8 | slot this copy was written to (a misdirected copy is refused) |
//! | 96 | 8 | replay: position in blocks since the format; modulo journal blocks it is the place in the ring |
//! | 104 | 8 | replay: sequence of the batch expected there |
//! | 112 | 4 | replay: crc of the batch before it |
//! | 116 | 4 | 1 if the index has a root |
//! | 120 | 64 | root of the index, encoded by the index, zero-padded |
//! | 184 | 8 | free map: bytes |
//! | 192 | 4 | free map: crc32c |
//! | 196 | 4 | free map: number of extents `n`, at most 64 |
//! | 200 | 16 n | free map: extents, first block u64, blocks u32, zero u32 |
//! | 200+16n | – | zero |

use quarry_clustermap::{ClusterId, DeviceId};

use super::{FormatError, crc_without_itself, u32_at, u64_at};
use crate::device::BLOCK_BYTES;
use crate::extent::{BlockIndex, Extent};

/// First bytes of a Quarry device.
pub const MAGIC: [u8; 8] = *b"QUARRYSB";
/// Version written.
pub const VERSION: u32 = 1;
/// Copies on a device.
pub const SLOTS: u64 = 4;
/// Most extents the free map may be spread over.
pub const FREE_MAP_EXTENTS_MAX: usize = 64;
/// Room for the root of the index.
pub const ROOT_BYTES: usize = 64;

const CRC_AT: usize = 12;
const ROOT_AT: usize = 120;
const EXTENTS_AT: usize = 200;
const EXTENT_BYTES: usize = 16;
const WHAT: &str = "superblock";

const _: () = assert!(EXTENTS_AT + FREE_MAP_EXTENTS_MAX * EXTENT_BYTES <= BLOCK_BYTES);
const _: () = assert!(ROOT_AT + ROOT_BYTES == 184);

/// A contiguous range of blocks with one use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// First block.
    pub start: BlockIndex,
    /// Blocks.
    pub blocks: u64,
}

/// Where replay starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplayStart {
    /// Blocks written to the ring since the format.
    pub position: u64,
    /// Sequence of the batch expected there.
    pub sequence: u64,
    /// crc of the batch before it.
    pub previous_crc: u32,
}

/// Where the free map's image lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FreeMapPlace {
    /// Its extents in order.
    pub extents: Vec<Extent>,
    /// Bytes of the image.
    pub len_bytes: u64,
    /// crc32c of the image.
    pub crc: u32,
}

/// One copy, decoded; the slot is not part of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Cluster the device belongs to.
    pub cluster: ClusterId,
    /// The device.
    pub device: DeviceId,
    /// Its size when it was formatted.
    pub device_bytes: u64,
    /// The ring.
    pub journal: Area,
    /// Extents of shards, index and free map.
    pub data: Area,
    /// Number of this checkpoint.
    pub checkpoint: u64,
    /// Where replay starts.
    pub replay: ReplayStart,
    /// Root of the index in the index's own encoding; `None` for an empty one.
    pub root: Option<[u8; ROOT_BYTES]>,
    /// The free map at this checkpoint.
    pub free_map: FreeMapPlace,
}

/// Byte offset of a slot on a device of that size.
///
/// # Panics
/// If there is no such slot.
#[must_use]
pub fn slot_offset(slot: u64, device_bytes: u64) -> u64 {
    assert!(slot < SLOTS, "slots are numbered 0 to 3");
    let block = BLOCK_BYTES as u64;
    if slot < 2 { slot * block } else { device_bytes / block * block - (4 - slot) * block }
}

/// The two slots that a checkpoint writes.
#[must_use]
pub fn slots_of(checkpoint: u64) -> [u64; 2] {
    [checkpoint % 2, 2 + checkpoint % 2]
}

impl Superblock {
    /// The block to write into `slot`.
    ///
    /// # Panics
    /// If the free map has too many extents.
    #[must_use]
    pub fn encode(&self, slot: u64) -> Vec<u8> {
        assert!(self.free_map.extents.len() <= FREE_MAP_EXTENTS_MAX, "the caller bounds the extents");
        let mut block = vec![0; BLOCK_BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.cluster.0);
        put(32, &self.device.0.to_le_bytes());
        put(40, &self.device_bytes.to_le_bytes());
        put(48, &self.journal.start.0.to_le_bytes());
        put(56, &self.journal.blocks.to_le_bytes());
        put(64, &self.data.start.0.to_le_bytes());
        put(72, &self.data.blocks.to_le_bytes());
        put(80, &self.checkpoint.to_le_bytes());
        put(88, &slot.to_le_bytes());
        put(96, &self.replay.position.to_le_bytes());
        put(104, &self.replay.sequence.to_le_bytes());
        put(112, &self.replay.previous_crc.to_le_bytes());
        if let Some(root) = &self.root {
            put(116, &1u32.to_le_bytes());
            put(ROOT_AT, root);
        }
        put(184, &self.free_map.len_bytes.to_le_bytes());
        put(192, &self.free_map.crc.to_le_bytes());
        put(196, &u32::try_from(self.free_map.extents.len()).expect("at most 64").to_le_bytes());
        for (n, extent) in self.free_map.extents.iter().enumerate() {
            put(EXTENTS_AT + n * EXTENT_BYTES, &extent.start.0.to_le_bytes());
            put(EXTENTS_AT + n * EXTENT_BYTES + 8, &extent.blocks.to_le_bytes());
        }
        let crc = crc_without_itself(&block, CRC_AT);
        block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads and checks the copy found in `slot`.
    ///
    /// # Errors
    /// [`FormatError`] names the first thing wrong.
    pub fn decode(bytes: &[u8], slot: u64) -> Result<Self, FormatError> {
        if bytes.len() != BLOCK_BYTES {
            return Err(FormatError::Length { what: WHAT });
        }
        if bytes[..8] != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        match u32_at(bytes, 8) {
            VERSION => {}
            version => return Err(FormatError::Version { what: WHAT, version }),
        }
        if crc_without_itself(bytes, CRC_AT) != u32_at(bytes, CRC_AT) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let bad = |field| FormatError::Field { what: WHAT, field };
        if u64_at(bytes, 88) != slot {
            return Err(bad("slot"));
        }
        let area = |at| Area { start: BlockIndex(u64_at(bytes, at)), blocks: u64_at(bytes, at + 8) };
        let count = u32_at(bytes, 196) as usize;
        if count > FREE_MAP_EXTENTS_MAX {
            return Err(bad("free map extents"));
        }
        let extent = |n: usize| {
            let at = EXTENTS_AT + n * EXTENT_BYTES;
            Extent { start: BlockIndex(u64_at(bytes, at)), blocks: u32_at(bytes, at + 8) }
        };
        let root: [u8; ROOT_BYTES] = bytes[ROOT_AT..ROOT_AT + ROOT_BYTES].try_into().expect("64 bytes");
        let superblock = Self {
            cluster: ClusterId(bytes[16..32].try_into().expect("16 bytes")),
            device: DeviceId(u64_at(bytes, 32)),
            device_bytes: u64_at(bytes, 40),
            journal: area(48),
            data: area(64),
            checkpoint: u64_at(bytes, 80),
            replay: ReplayStart {
                position: u64_at(bytes, 96),
                sequence: u64_at(bytes, 104),
                previous_crc: u32_at(bytes, 112),
            },
            root: (u32_at(bytes, 116) == 1).then_some(root),
            free_map: FreeMapPlace {
                extents: (0..count).map(extent).collect(),
                len_bytes: u64_at(bytes, 184),
                crc: u32_at(bytes, 192),
            },
        };
        superblock.check_areas().map_err(bad)?;
        Ok(superblock)
    }

    /// The areas lie on the device in order and hold the free map.
    fn check_areas(&self) -> Result<(), &'static str> {
        let device_blocks = self.device_bytes / BLOCK_BYTES as u64;
        let journal_end = self.journal.start.0.checked_add(self.journal.blocks).ok_or("journal area")?;
        let data_end = self.data.start.0.checked_add(self.data.blocks).ok_or("data area")?;
        if self.journal.blocks == 0 || self.journal.start.0 < 2 || journal_end > self.data.start.0 {
            return Err("journal area");
        }
        if data_end.checked_add(2).is_none_or(|end| end > device_blocks) {
            return Err("data area");
        }
        // Positions and sequences only count up, by at most a ring's worth before the next checkpoint.
        let replayed = |from: u64| from.checked_add(self.journal.blocks);
        if replayed(self.replay.position).and(replayed(self.replay.sequence)).is_none() {
            return Err("replay start");
        }
        if self.checkpoint == u64::MAX {
            return Err("checkpoint");
        }
        let inside = |extent: &Extent| {
            let end = extent.start.0.checked_add(extent.blocks.into());
            extent.start >= self.data.start && end.is_some_and(|end| end <= data_end)
        };
        let room: u64 = self.free_map.extents.iter().map(|extent| extent.len_bytes()).sum();
        if !self.free_map.extents.iter().all(inside) || self.free_map.len_bytes > room {
            return Err("free map place");
        }
        Ok(())
    }
}
