//! Extents and the free map: which blocks of the data area are unallocated.
//!
//! The free map lives in RAM, owned by the one core that owns the device. It holds maximal runs, so memory
//! follows fragmentation and not capacity. Bulk data grows from the low end, index pages and out-of-line
//! values from the high end: short-lived small extents do not perforate the space of long-lived big ones.
//!
//! Invariants: runs lie inside the area, never touch or overlap (neighbours are coalesced), and their sum is
//! the free count. The result of every call depends only on the calls before it, never on hashing or time.
//! Failure model: a double free or a free outside the area is our mistake and panics; a damaged image is the
//! media's and comes back from [`FreeMap::decode`] as an error.

mod quarantine;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use self::quarantine::Runs;
use crate::device::BLOCK_BYTES;

/// A block, counted in [`BLOCK_BYTES`] from the start of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// Byte offset of the block on the device.
    pub fn offset_bytes(self) -> u64 {
        self.0 * BLOCK_BYTES as u64
    }
}

/// A contiguous run of blocks, the unit of allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// First block.
    pub start: BlockIndex,
    /// Length in blocks.
    pub blocks: u32,
}

impl Extent {
    /// The block after the last one.
    pub fn end(self) -> BlockIndex {
        BlockIndex(self.start.0 + u64::from(self.blocks))
    }

    /// Length in bytes.
    pub fn len_bytes(self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES as u64
    }
}

/// Why [`FreeMap::reserve_exact`] or [`FreeMap::try_free`] refused: a block of the extent has another owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("extent {extent:?} is empty, outside the area, or not wholly taken or free as it should be")]
pub struct Overlap {
    /// The extent asked for.
    pub extent: Extent,
}

/// Why an encoded free map was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FreeMapError {
    /// The image is shorter or longer than its header says.
    #[error("free map image has {found_bytes} bytes, expected {expected_bytes}")]
    Length {
        /// Bytes given.
        found_bytes: u64,
        /// Bytes its header asks for.
        expected_bytes: u64,
    },
    /// The image does not start with the magic number.
    #[error("free map image has no magic number")]
    Magic,
    /// The image has a version this build cannot read.
    #[error("free map version {found} is unknown")]
    Version {
        /// Version found.
        found: u32,
    },
    /// The checksum does not match.
    #[error("free map image is damaged: checksum mismatch")]
    Checksum,
    /// A run is empty, out of order, touches its neighbour or leaves the area.
    #[error("free map run {run} is out of order or out of the area")]
    Run {
        /// Position of the run in the image.
        run: u64,
    },
}

const MAGIC: [u8; 4] = *b"QFRM";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const RUN_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
/// Runs of the wanted size class examined before a bigger run is split: bounds the search, keeps low holes in use.
const FIRST_FIT_PROBES_MAX: usize = 32;

/// Which blocks of an area are unallocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeMap {
    area: Range<u64>,
    /// Start of a run -> its length.
    runs: BTreeMap<u64, u64>,
    /// (length, start): best fit and the largest run.
    by_length: BTreeSet<(u64, u64)>,
    /// (log2 of the length, start): first fit without a walk over all runs.
    by_class: BTreeSet<(u32, u64)>,
    free_blocks: u64,
    /// Not handed out again.
    quarantined: Runs,
    /// Part of it that nobody uses.
    idle: Runs,
}

impl FreeMap {
    /// A map of `area` in which every block is free.
    pub fn new(area: Range<BlockIndex>) -> Self {
        let mut map = FreeMap {
            area: area.start.0..area.end.0.max(area.start.0),
            runs: BTreeMap::new(),
            by_length: BTreeSet::new(),
            by_class: BTreeSet::new(),
            free_blocks: 0,
            quarantined: Runs::default(),
            idle: Runs::default(),
        };
        if !map.area.is_empty() {
            map.insert_run(map.area.start, map.area.end - map.area.start);
        }
        map
    }

    /// The map of `area` in which all blocks are free but these, which it sorts; they may overlap each other and leave
    /// the area.
    pub fn without(area: Range<BlockIndex>, used: &mut [Extent]) -> Self {
        let mut map = FreeMap::new(area.start..area.start);
        map.area = area.start.0..area.end.0.max(area.start.0);
        used.sort_unstable();
        let mut from = map.area.start;
        for extent in used {
            let start = extent.start.0.min(map.area.end);
            if start > from {
                map.insert_run(from, start - from);
            }
            from = from.max(start.saturating_add(extent.blocks.into()));
        }
        if from < map.area.end {
            map.insert_run(from, map.area.end - from);
        }
        map
    }

    /// The area the map covers.
    pub fn area(&self) -> Range<BlockIndex> {
        BlockIndex(self.area.start)..BlockIndex(self.area.end)
    }

    /// Number of free blocks.
    pub fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    /// The maximal free runs in order: first block and length in blocks.
    pub fn runs(&self) -> impl Iterator<Item = (BlockIndex, u64)> + '_ {
        self.runs.iter().map(|(&start, &len)| (BlockIndex(start), len))
    }

    /// Takes `blocks` contiguous blocks near the low end (bulk data); `None` when no run is long enough.
    ///
    /// # Panics
    /// When `blocks` is zero.
    pub fn allocate_low(&mut self, blocks: u32) -> Option<Extent> {
        let start = self.find(u64::from(blocks), false)?;
        Some(self.take(start, start, blocks))
    }

    /// Takes `blocks` contiguous blocks near the high end (index pages and values); `None` when no run is long
    /// enough.
    ///
    /// # Panics
    /// When `blocks` is zero.
    pub fn allocate_high(&mut self, blocks: u32) -> Option<Extent> {
        let start = self.find(u64::from(blocks), true)?;
        let end = start + self.runs[&start];
        Some(self.take(start, end - u64::from(blocks), blocks))
    }

    /// Takes `blocks` blocks in extents of at most `extent_blocks_max`, as few as the runs allow; `None` (and
    /// nothing taken) when fewer are free.
    ///
    /// All but the last extent are a number of granules long; `None` also when what is free lies in pieces shorter
    /// than that.
    ///
    /// # Panics
    /// When `extent_blocks_max` is not a positive number of granules.
    pub fn allocate_fragmented(
        &mut self,
        blocks: u64,
        extent_blocks_max: u32,
        granule_blocks: u32,
    ) -> Option<Vec<Extent>> {
        assert!(granule_blocks > 0, "a granule holds at least one block");
        assert!(
            extent_blocks_max > 0 && extent_blocks_max.is_multiple_of(granule_blocks),
            "the longest extent is a number of granules"
        );
        if blocks > self.free_blocks {
            return None;
        }
        let mut extents: Vec<Extent> = Vec::new();
        let mut left = blocks;
        while left > 0 {
            let want = u32::try_from(left).unwrap_or(u32::MAX).min(extent_blocks_max);
            let Some(extent) = self.allocate_low(want).or_else(|| self.take_longest(granule_blocks)) else {
                extents.into_iter().for_each(|extent| self.free(extent));
                return None;
            };
            left -= u64::from(extent.blocks);
            extents.push(extent);
        }
        Some(extents)
    }

    /// The whole granules of the longest run, which is shorter than what was wanted.
    fn take_longest(&mut self, granule_blocks: u32) -> Option<Extent> {
        let &(longest, start) = self.by_length.last()?;
        let longest = u32::try_from(longest).expect("shorter than what was asked for");
        let blocks = longest / granule_blocks * granule_blocks;
        (blocks > 0).then(|| self.take(start, start, blocks))
    }

    /// Takes exactly this extent.
    ///
    /// # Errors
    /// [`Overlap`] when a block of it is not free or lies outside the area; nothing is taken then.
    pub fn reserve_exact(&mut self, extent: Extent) -> Result<(), Overlap> {
        let overlap = Overlap { extent };
        let end = extent.start.0.checked_add(u64::from(extent.blocks)).ok_or(overlap)?;
        let (&start, &len) = self.runs.range(..=extent.start.0).next_back().ok_or(overlap)?;
        if extent.blocks == 0 || end > start + len {
            return Err(overlap);
        }
        self.take(start, extent.start.0, extent.blocks);
        Ok(())
    }

    /// Gives an extent back.
    ///
    /// # Panics
    /// When it is empty, leaves the area, or any block of it is free already: then two owners believed in it.
    pub fn free(&mut self, extent: Extent) {
        let freed = self.try_free(extent);
        assert!(freed.is_ok(), "{extent:?} is free already, empty, or outside the area");
    }

    /// Gives back an extent that a record on a device names.
    ///
    /// # Errors
    /// [`Overlap`] where [`FreeMap::free`] panics; nothing is given back then.
    pub fn try_free(&mut self, extent: Extent) -> Result<(), Overlap> {
        let overlap = Overlap { extent };
        let mut start = extent.start.0;
        let mut end = start.checked_add(extent.blocks.into()).ok_or(overlap)?;
        let is_idle = !self.idle.is_empty() && !self.idle.within(start, end).is_empty();
        if extent.blocks == 0 || start < self.area.start || end > self.area.end || is_idle {
            return Err(overlap);
        }
        let before = self.runs.range(..end).next_back().map(|(&start, &len)| (start, len));
        if let Some((run, len)) = before {
            if run + len > start {
                return Err(overlap);
            }
            if run + len == start {
                self.remove_run(run, len);
                start = run;
            }
        }
        if let Some(&len) = self.runs.get(&end) {
            self.remove_run(end, len);
            end += len;
        }
        self.insert_run(start, end - start);
        if !self.quarantined.is_empty() {
            self.withhold(extent.start.0, extent.end().0);
        }
        Ok(())
    }

    /// Length of the image of a map of so many runs.
    pub fn image_bytes(runs: u64) -> u64 {
        runs * RUN_BYTES as u64 + (HEADER_BYTES + CHECKSUM_BYTES) as u64
    }

    /// The persisted image.
    ///
    /// | offset | bytes | field |
    /// |---|---|---|
    /// | 0 | 4 | magic `QFRM` |
    /// | 4 | 4 | format version, 1 |
    /// | 8 | 8 | first block of the area |
    /// | 16 | 8 | block after the area |
    /// | 24 | 8 | number of runs `n` |
    /// | 32 | 16 n | runs in order: first block u64, length in blocks u64 |
    /// | 32 + 16 n | 4 | crc32c of all before |
    ///
    /// Integers are little-endian. Runs are maximal: a gap of at least one block lies between two of them.
    pub fn encode(&self) -> Vec<u8> {
        let bytes = Self::image_bytes(self.runs.len() as u64);
        let mut image = Vec::with_capacity(usize::try_from(bytes).expect("a free map fits memory"));
        image.extend_from_slice(&MAGIC);
        image.extend_from_slice(&VERSION.to_le_bytes());
        image.extend_from_slice(&self.area.start.to_le_bytes());
        image.extend_from_slice(&self.area.end.to_le_bytes());
        image.extend_from_slice(&(self.runs.len() as u64).to_le_bytes());
        for (start, len) in &self.runs {
            image.extend_from_slice(&start.to_le_bytes());
            image.extend_from_slice(&len.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&image);
        image.extend_from_slice(&checksum.to_le_bytes());
        image
    }

    /// Reads an image written by [`FreeMap::encode`]; memory is bounded by the length of `image`.
    ///
    /// # Errors
    /// [`FreeMapError`] names the first thing wrong with the image.
    pub fn decode(image: &[u8]) -> Result<Self, FreeMapError> {
        let found_bytes = image.len() as u64;
        let shortest = (HEADER_BYTES + CHECKSUM_BYTES) as u64;
        if found_bytes < shortest {
            return Err(FreeMapError::Length { found_bytes, expected_bytes: shortest });
        }
        if image[..4] != MAGIC {
            return Err(FreeMapError::Magic);
        }
        let version = u32::from_le_bytes(image[4..8].try_into().expect("four bytes"));
        if version != VERSION {
            return Err(FreeMapError::Version { found: version });
        }
        let count = read_u64(image, 24);
        let expected_bytes = count.saturating_mul(RUN_BYTES as u64).saturating_add(shortest);
        if found_bytes != expected_bytes {
            return Err(FreeMapError::Length { found_bytes, expected_bytes });
        }
        let (body, checksum) = image.split_at(image.len() - CHECKSUM_BYTES);
        if crc32c::crc32c(body).to_le_bytes() != checksum {
            return Err(FreeMapError::Checksum);
        }
        let mut map = FreeMap::new(BlockIndex(0)..BlockIndex(0));
        map.area = read_u64(body, 8)..read_u64(body, 16);
        let mut free_from = map.area.start;
        for (run, bytes) in (0u64..).zip(body[HEADER_BYTES..].chunks_exact(RUN_BYTES)) {
            let (start, len) = (read_u64(bytes, 0), read_u64(bytes, 8));
            let end = start.checked_add(len).filter(|&end| end <= map.area.end);
            let Some(end) = end.filter(|_| len > 0 && start >= free_from) else {
                return Err(FreeMapError::Run { run });
            };
            map.insert_run(start, len);
            free_from = end.saturating_add(1);
        }
        Ok(map)
    }

    /// Start of a run of at least `blocks`: the lowest (or highest) of those in a bigger size class or among
    /// the first few of its own class, else the shortest that fits.
    fn find(&self, blocks: u64, high: bool) -> Option<u64> {
        assert!(blocks > 0, "an extent holds at least one block");
        let class = blocks.ilog2();
        let better = |a: u64, b: u64| if high { a.max(b) } else { a.min(b) };
        let own = self.by_class.range((class, 0)..=(class, u64::MAX)).map(|&(_, start)| start);
        let fits = |start: &u64| self.runs[start] >= blocks;
        let mut best = if high {
            own.rev().take(FIRST_FIT_PROBES_MAX).find(fits)
        } else {
            own.take(FIRST_FIT_PROBES_MAX).find(fits)
        };
        for class in class + 1..u64::BITS {
            let mut of_class = self.by_class.range((class, 0)..=(class, u64::MAX));
            let edge = if high { of_class.next_back() } else { of_class.next() };
            if let Some(&(_, start)) = edge {
                best = Some(best.map_or(start, |best| better(best, start)));
            }
        }
        best.or_else(|| self.by_length.range((blocks, 0)..).next().map(|&(_, start)| start))
    }

    /// Cuts `blocks` from `at` out of the run that starts at `run`.
    fn take(&mut self, run: u64, at: u64, blocks: u32) -> Extent {
        let len = self.runs[&run];
        let (end, taken_end) = (run + len, at + u64::from(blocks));
        assert!(run <= at && taken_end <= end, "the run covers what is taken");
        self.remove_run(run, len);
        if run < at {
            self.insert_run(run, at - run);
        }
        if taken_end < end {
            self.insert_run(taken_end, end - taken_end);
        }
        Extent { start: BlockIndex(at), blocks }
    }

    fn insert_run(&mut self, start: u64, len: u64) {
        self.runs.insert(start, len);
        self.by_length.insert((len, start));
        self.by_class.insert((len.ilog2(), start));
        self.free_blocks += len;
    }

    fn remove_run(&mut self, start: u64, len: u64) {
        self.runs.remove(&start);
        self.by_length.remove(&(len, start));
        self.by_class.remove(&(len.ilog2(), start));
        self.free_blocks -= len;
    }
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests;
