//! Reading the ring: batch after batch from the replay start, then a look at what follows.

use quarry_clustermap::DeviceId;

use crate::device::{BLOCK_BYTES, Device, DeviceError, IoBuf};
use crate::format::batch::{self, BatchHeader};
use crate::format::superblock::{Area, ReplayStart};

/// Blocks read at once when looking for later batches.
const SCAN_BLOCKS: u64 = 256;
/// No batch is longer: bounds what a damaged header can make us read. Twice what any version wrote.
const BATCH_BYTES_READ_MAX: u64 = 8 << 20;

/// Why reading stopped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ScanEnd {
    /// Nothing later follows: the end of the journal.
    Tail,
    /// A batch with a later sequence stands in the ring.
    Damaged {
        /// Highest sequence found.
        found: u64,
    },
    /// The device could not read at the end.
    Unreadable(DeviceError),
}

/// Reads batches in order.
pub(crate) struct RingReader<'d, D> {
    device: &'d D,
    area: Area,
    id: DeviceId,
    start: u64,
    next: ReplayStart,
    unreadable: Option<DeviceError>,
}

impl<'d, D: Device> RingReader<'d, D> {
    pub(crate) fn new(device: &'d D, area: Area, id: DeviceId, start: ReplayStart) -> Self {
        Self { device, area, id, start: start.position, next: start, unreadable: None }
    }

    /// Where the next batch is expected.
    pub(crate) fn next_start(&self) -> ReplayStart {
        self.next
    }

    /// The next batch's header and payload; `None` where the chain ends.
    pub(crate) async fn next_batch(&mut self) -> Option<(BatchHeader, Vec<u8>)> {
        let used = self.next.position - self.start;
        if used >= self.area.blocks {
            return None;
        }
        let first = match self.read(self.next.position, 1).await {
            Ok(first) => first,
            Err(error) => {
                self.unreadable = Some(error);
                return None;
            }
        };
        let header = batch::read_header(&first).ok()?;
        let fits = header.blocks() <= self.area.blocks - used
            && header.blocks() * BLOCK_BYTES as u64 <= BATCH_BYTES_READ_MAX;
        let continues = header.device == self.id
            && header.sequence == self.next.sequence
            && header.previous_crc == self.next.previous_crc;
        if !fits || !continues {
            return None;
        }
        let bytes = match self.read(self.next.position, header.blocks()).await {
            Ok(bytes) => bytes,
            Err(error) => {
                self.unreadable = Some(error);
                return None;
            }
        };
        let (header, crc, payload) = batch::open(&bytes).ok()?;
        let payload = payload.to_vec();
        self.next = ReplayStart {
            position: self.next.position + header.blocks(),
            sequence: header.sequence + 1,
            previous_crc: crc,
        };
        Some((header, payload))
    }

    /// Looks through the rest of the ring for a batch that is later than the end. Its header is enough if it names
    /// this device and a sequence that may follow: it is written only after the flush of the batch before it.
    pub(crate) async fn end(&self) -> ScanEnd {
        if let Some(error) = &self.unreadable {
            return ScanEnd::Unreadable(error.clone());
        }
        let mut found = None;
        let end = self.start + self.area.blocks;
        let mut position = self.next.position;
        while position < end {
            let blocks = SCAN_BLOCKS.min(end - position);
            // Blocks that cannot be read cannot prove anything; the batch at the end itself could be read.
            let bytes = self.read(position, blocks).await.unwrap_or_default();
            for (block, at) in bytes.chunks_exact(BLOCK_BYTES).zip(position..) {
                if let Some(sequence) = self.later_batch(block, at, end).await {
                    found = found.max(Some(sequence));
                }
            }
            position += blocks;
        }
        found.map_or(ScanEnd::Tail, |found| ScanEnd::Damaged { found })
    }

    async fn later_batch(&self, block: &[u8], position: u64, end: u64) -> Option<u64> {
        let header = batch::read_header(block).ok()?;
        let bytes_max = header.blocks() * BLOCK_BYTES as u64;
        let later = header.device == self.id && header.sequence > self.next.sequence;
        if !later || bytes_max > BATCH_BYTES_READ_MAX || header.blocks() > end - position {
            return None;
        }
        let bytes = self.read(position, header.blocks()).await.ok()?;
        let whole = batch::open(&bytes).is_ok();
        let may_follow = header.sequence - self.next.sequence <= self.area.blocks;
        (whole || may_follow).then_some(header.sequence)
    }

    /// Reads blocks of the ring, around its end if need be.
    async fn read(&self, position: u64, blocks: u64) -> Result<Vec<u8>, DeviceError> {
        let index = position % self.area.blocks;
        let first = blocks.min(self.area.blocks - index);
        let mut bytes = self.read_at(index, first).await?;
        if first < blocks {
            bytes.extend_from_slice(&self.read_at(0, blocks - first).await?);
        }
        Ok(bytes)
    }

    async fn read_at(&self, index: u64, blocks: u64) -> Result<Vec<u8>, DeviceError> {
        let length = usize::try_from(blocks).expect("reads are bounded") * BLOCK_BYTES;
        let offset = (self.area.start.0 + index) * BLOCK_BYTES as u64;
        let (result, buf) = self.device.read(offset, IoBuf::zeroed(length)).await;
        result?;
        Ok(buf.to_vec())
    }
}
