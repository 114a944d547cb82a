//! Positions in the ring, and how much of it each class of records may fill.

use quarry_clustermap::DeviceId;

use super::Class;
use crate::device::{BLOCK_BYTES, Device, DeviceError, IoBuf};
use crate::format::batch::{self, BatchHeader};
use crate::format::superblock::{Area, ReplayStart};

/// Longest batch, before the ring's own limit: long enough to keep a device busy, short enough for latency.
const BATCH_BYTES_MAX: u64 = 4 << 20;
/// A batch takes at most one part in this many of the ring.
const BATCH_DIVISOR: u64 = 16;

/// The ring of one device.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    area: Area,
    device: DeviceId,
    /// Where the next batch goes.
    head: ReplayStart,
    /// Position from which replay would start: nothing from here to the head is overwritten.
    tail: u64,
}

impl Ring {
    pub(crate) fn new(area: Area, device: DeviceId, head: ReplayStart, tail: u64) -> Self {
        assert!(
            tail <= head.position && head.position - tail <= area.blocks,
            "the ring holds what replay needs"
        );
        Self { area, device, head, tail }
    }

    pub(crate) fn head(&self) -> ReplayStart {
        self.head
    }

    pub(crate) fn used_blocks(&self) -> u64 {
        self.head.position - self.tail
    }

    /// More than half full: time for a checkpoint.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.used_blocks() * 2 > self.area.blocks
    }

    /// A checkpoint that replays from `position` is durable.
    pub(crate) fn advance_tail(&mut self, position: u64) {
        assert!((self.tail..=self.head.position).contains(&position), "the tail only advances");
        self.tail = position;
    }

    /// Longest payload of a batch, hence of a record.
    pub(crate) fn payload_bytes_max(&self) -> usize {
        let blocks = (self.area.blocks / BATCH_DIVISOR).max(1);
        let bytes = (blocks * BLOCK_BYTES as u64).min(BATCH_BYTES_MAX);
        usize::try_from(bytes).expect("at most 4 MiB") - batch::HEADER_BYTES
    }

    /// Most bytes of uncommitted log entries: each checkpoint appends them anew.
    pub(crate) fn tail_bytes_max(&self) -> usize {
        usize::try_from(self.area.blocks * BLOCK_BYTES as u64 / 8).expect("a ring fits the address space")
    }

    /// Payload bytes that a batch of this class may have now. Sixteenths of the ring: ordinary records fill
    /// 12, records that free space 13; the rest takes the uncommitted entries (2) and their padding.
    pub(crate) fn room_bytes(&self, class: Class) -> usize {
        let sixteenths = match class {
            Class::Ordinary => 12,
            Class::Privileged => 13,
            Class::Tail => 16,
        };
        let limit = self.area.blocks * sixteenths / 16;
        let blocks = limit.saturating_sub(self.used_blocks());
        let bytes = usize::try_from(blocks * BLOCK_BYTES as u64).expect("a ring fits the address space");
        bytes.saturating_sub(batch::HEADER_BYTES)
    }

    /// Writes one batch at the head (two writes where it wraps around) without a flush; returns the new head,
    /// to be installed by [`Ring::advance_head`] after the flush. `buf` holds whole blocks: room for the header, the
    /// payload and zeros; its memory comes back.
    pub(crate) async fn write<D: Device>(
        ring: Ring,
        device: &D,
        mut buf: IoBuf,
        payload_bytes: usize,
        records: u32,
    ) -> (Result<ReplayStart, DeviceError>, IoBuf) {
        let header = BatchHeader {
            device: ring.device,
            sequence: ring.head.sequence,
            previous_crc: ring.head.previous_crc,
            payload_bytes: u32::try_from(payload_bytes).expect("batches are bounded"),
            records,
        };
        let crc = batch::seal(&header, &mut buf);
        let blocks = header.blocks();
        assert_eq!(buf.len() as u64, blocks * BLOCK_BYTES as u64, "a batch is whole blocks");
        assert!(ring.used_blocks() + blocks <= ring.area.blocks, "a batch never overtakes the tail");
        let index = ring.head.position % ring.area.blocks;
        let at = (ring.area.start.0 + index) * BLOCK_BYTES as u64;
        let (written, buf) = if index + blocks <= ring.area.blocks {
            device.write(at, buf).await
        } else {
            let until_end = usize::try_from(ring.area.blocks - index).expect("bounded") * BLOCK_BYTES;
            (ring.write_around(device, at, buf.split_at(until_end)).await, buf)
        };
        let head = ReplayStart {
            position: ring.head.position + blocks,
            sequence: ring.head.sequence + 1,
            previous_crc: crc,
        };
        (written.map(|()| head), buf)
    }

    async fn write_around<D: Device>(
        &self,
        device: &D,
        at: u64,
        (first, second): (&[u8], &[u8]),
    ) -> Result<(), DeviceError> {
        device.write(at, IoBuf::copy_of(first)).await.0?;
        device.write(self.area.start.offset_bytes(), IoBuf::copy_of(second)).await.0
    }

    /// The batch that ends at `head` is durable.
    pub(crate) fn advance_head(&mut self, head: ReplayStart) {
        assert!(
            head.position > self.head.position && head.sequence == self.head.sequence + 1,
            "batches are dense"
        );
        self.head = head;
    }
}
