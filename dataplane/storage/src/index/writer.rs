//! Where a batch puts its pages and values: runs of fresh blocks, written in big pieces.
//!
//! A run is allocated before it is known how much goes into it; what stays unused is given back. Runs start small
//! and double, so a small batch leaves small holes and a big one writes [`RUN_BLOCKS_MAX`] at a time. At most
//! [`WRITES_IN_FLIGHT_MAX`] writes are under way, which bounds memory too.

use std::cell::RefCell;

use futures::StreamExt as _;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;

use super::error::IndexError;
use crate::device::{BLOCK_BYTES, Device, DeviceError, IoBuf};
use crate::extent::{BlockIndex, Extent, FreeMap};

/// 64 KiB: the path of a lone row.
const RUN_BLOCKS_MIN: u32 = 16;
/// 1 MiB per write, and as long as the longest value.
const RUN_BLOCKS_MAX: u32 = 256;
const _: () = assert!(RUN_BLOCKS_MAX as usize * BLOCK_BYTES >= super::VALUE_BYTES_MAX);
const WRITES_IN_FLIGHT_MAX: usize = 8;

struct Run {
    extent: Extent,
    used: u32,
    buf: IoBuf,
}

/// Which end of the free space is used first. Pages and values keep apart, so that the holes that replaced pages leave
/// are filled by pages, and a nearly full device still has long runs for values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Where shards are.
    Low,
    High,
}

pub(super) struct Writer<'a, D> {
    device: &'a D,
    space: &'a RefCell<FreeMap>,
    end: End,
    run: Option<Run>,
    next_run_blocks: u32,
    in_flight: FuturesUnordered<LocalBoxFuture<'a, Result<(), DeviceError>>>,
    /// Every extent that holds something new.
    taken: Vec<Extent>,
    written_bytes: u64,
}

impl<'a, D: Device> Writer<'a, D> {
    pub(super) fn new(device: &'a D, space: &'a RefCell<FreeMap>, end: End) -> Self {
        Writer {
            device,
            space,
            end,
            run: None,
            next_run_blocks: RUN_BLOCKS_MIN,
            in_flight: FuturesUnordered::new(),
            taken: Vec::new(),
            written_bytes: 0,
        }
    }

    /// Finds room for `blocks` and lets `fill` write into it (all zero so far).
    pub(super) async fn place<T>(
        &mut self,
        blocks: u32,
        fill: impl FnOnce(BlockIndex, &mut [u8]) -> T,
    ) -> Result<T, IndexError> {
        if self.run.as_ref().is_none_or(|run| run.extent.blocks - run.used < blocks) {
            self.close_run().await?;
            self.run = Some(self.open_run(blocks)?);
        }
        let run = self.run.as_mut().expect("a run is open");
        let from = run.used as usize * BLOCK_BYTES;
        let start = BlockIndex(run.extent.start.0 + u64::from(run.used));
        run.used += blocks;
        Ok(fill(start, &mut run.buf[from..from + blocks as usize * BLOCK_BYTES]))
    }

    /// Waits until everything is written; returns the bytes written.
    pub(super) async fn finish(&mut self) -> Result<u64, IndexError> {
        self.close_run().await?;
        while let Some(result) = self.in_flight.next().await {
            result?;
        }
        Ok(self.written_bytes)
    }

    /// Every extent that holds something new, after [`Writer::finish`].
    pub(super) fn into_taken(self) -> Vec<Extent> {
        self.taken
    }

    /// Gives back everything, once no write can touch it any more.
    pub(super) async fn abort(mut self) {
        while self.in_flight.next().await.is_some() {}
        let mut space = self.space.borrow_mut();
        let open = self.run.take().map(|run| run.extent);
        for extent in self.taken.drain(..).chain(open) {
            space.free(extent);
        }
    }

    fn open_run(&mut self, blocks: u32) -> Result<Run, IndexError> {
        let mut wanted = self.next_run_blocks.max(blocks);
        self.next_run_blocks = (self.next_run_blocks * 2).min(RUN_BLOCKS_MAX);
        let extent = loop {
            let extent = match self.end {
                End::Low => self.space.borrow_mut().allocate_low(wanted),
                End::High => self.space.borrow_mut().allocate_high(wanted),
            };
            if let Some(extent) = extent {
                break extent;
            }
            if wanted == blocks {
                return Err(IndexError::NoSpace);
            }
            wanted = (wanted / 2).max(blocks);
        };
        Ok(Run { extent, used: 0, buf: IoBuf::zeroed(extent.blocks as usize * BLOCK_BYTES) })
    }

    /// Starts the write of the open run and gives its unused end back.
    async fn close_run(&mut self) -> Result<(), IndexError> {
        let Some(Run { extent, used, mut buf }) = self.run.take() else { return Ok(()) };
        let unused =
            Extent { start: BlockIndex(extent.start.0 + u64::from(used)), blocks: extent.blocks - used };
        if unused.blocks > 0 {
            self.space.borrow_mut().free(unused);
        }
        self.taken.push(Extent { start: extent.start, blocks: used });
        buf.set_len(used as usize * BLOCK_BYTES);
        self.written_bytes += buf.len() as u64;
        let device = self.device;
        self.in_flight.push(Box::pin(async move { device.write(extent.start.offset_bytes(), buf).await.0 }));
        // The first poll is what hands a write to the device.
        while let std::task::Poll::Ready(Some(result)) = futures::poll!(self.in_flight.next()) {
            result?;
        }
        while self.in_flight.len() >= WRITES_IN_FLIGHT_MAX {
            self.in_flight.next().await.expect("a write is in flight")?;
        }
        Ok(())
    }
}
