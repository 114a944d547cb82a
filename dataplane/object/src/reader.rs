//! Reads a range of a blob as a stream of verified pieces, in order, straight from the I/O buffers.
//!
//! A stripe is read by one `stripe_job`; up to `STRIPES_AHEAD` of them run while the consumer takes the
//! pieces of an earlier one.
//!
//! Invariants:
//! - every byte handed out was covered by a verified checksum, or decoded from blocks that were;
//! - memory: only the stripe that the consumer waits for may queue at the pool, and while it does the reader
//!   holds nothing: stripes ahead are given up first, and are only ever started with memory that is free at
//!   once. So readers and writers cannot block each other however small the pool, and a consumer that stops
//!   polling blocks nobody;
//! - dropping the stream stops everything but the reads in flight, whose buffers come back when they end.
//!
//! A consumer holds pool memory as long as it holds pieces: one that collects them all, or waits for other
//! pool memory before letting go, must ask for [`ReadMemory::Heap`].
//!
//! Failure model: see `stripe_job`. After an error the stream ends. A blob that was deleted before its shards
//! were opened looks like one that is lost: look up the manifest again before believing it.

mod source;
mod stripe_job;

use std::{collections::VecDeque, ops::Range, rc::Rc};

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, future::LocalBoxFuture, stream, stream::FuturesOrdered};
use quarry_clustermap::BlobId;
use quarry_partition::BlobRef;
use quarry_storage::device::IoBuf;

use self::{
    source::Source,
    stripe_job::{Outcome, Start, StripeJob},
};
use crate::cluster::Cluster;

/// Stripes read ahead of the one that the consumer is given: with one in flight and one at hand a device
/// always has the next read queued.
const STRIPES_AHEAD: usize = 2;

/// Why a read ended early.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// More shards are lost or damaged than parity covers.
    #[error("{blob:?}, stripe {stripe}: too few good shards are left")]
    DataLoss {
        /// Which blob.
        blob: BlobId,
        /// Where in it.
        stripe: u64,
    },
    /// Too few shards answer now; as far as anybody knows the data is there.
    #[error("{blob:?}, stripe {stripe}: too few shards answer")]
    Unavailable {
        /// Which blob.
        blob: BlobId,
        /// Where in it.
        stripe: u64,
    },
}

/// Where a reader's memory comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadMemory {
    /// The core's pool: for clients.
    Pool,
    /// The heap, one stripe at a time: for a reader that feeds a writer, which holds pool memory while it
    /// waits.
    Heap,
}

/// Reads a range of a blob, in order. Shards are opened when the range first touches them.
///
/// # Panics
/// If the range reaches beyond the blob.
pub fn read_range<C: Cluster>(
    cluster: Rc<C>,
    blob: BlobRef,
    range: Range<u64>,
    memory: ReadMemory,
) -> impl Stream<Item = Result<Bytes, ReadError>> + 'static {
    let source = Rc::new(Source::new(cluster, blob, memory));
    let stripes = source.layout().stripes_of(&range);
    let reader = Reader {
        source,
        range,
        next: stripes.start,
        stripes,
        jobs: FuturesOrdered::new(),
        pieces: VecDeque::new(),
    };
    stream::unfold(reader, async |mut reader| reader.next_piece().await.map(|piece| (piece, reader)))
}

struct Reader<C: Cluster> {
    source: Rc<Source<C>>,
    range: Range<u64>,
    /// Not yet handed over: the first is the one that the consumer waits for.
    stripes: Range<u64>,
    /// The next to start; jobs run for `stripes.start..next`.
    next: u64,
    jobs: FuturesOrdered<LocalBoxFuture<'static, Outcome>>,
    /// The rest of the stripe before `stripes.start`.
    pieces: VecDeque<Bytes>,
}

impl<C: Cluster> Reader<C> {
    async fn next_piece(&mut self) -> Option<Result<Bytes, ReadError>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(Ok(piece));
            }
            if self.stripes.is_empty() {
                return None;
            }
            if self.jobs.is_empty() {
                let buffers = self.source.buffers_for(&self.source.layout().read(self.next, &self.range));
                let buffers = self.source.take(buffers).await;
                self.start(buffers, Start::Thrifty);
            }
            self.read_ahead();
            match self.jobs.next().await.expect("a job was started above") {
                Outcome::Pieces(pieces) => {
                    self.stripes.start += 1;
                    self.pieces = pieces.into();
                }
                Outcome::NeedsBuffers => self.start_over().await,
                Outcome::Failed(error) => {
                    self.jobs = FuturesOrdered::new();
                    self.stripes.start = self.stripes.end;
                    return Some(Err(error));
                }
            }
        }
    }

    /// The first stripe needs more memory than it was given: lets go of everything, then waits for all it can
    /// need.
    async fn start_over(&mut self) {
        self.jobs = FuturesOrdered::new();
        self.next = self.stripes.start;
        let buffers = self.source.take(self.source.layout().profile().total()).await;
        self.start(buffers, Start::Whole);
    }

    fn read_ahead(&mut self) {
        while self.next < self.stripes.end && self.next - self.stripes.start <= STRIPES_AHEAD as u64 {
            let count = self.source.buffers_for(&self.source.layout().read(self.next, &self.range));
            let Some(buffers) = self.source.take_ahead(count) else { return };
            self.start(buffers, Start::Thrifty);
        }
    }

    fn start(&mut self, buffers: Vec<IoBuf>, start: Start) {
        let plan = self.source.layout().read(self.next, &self.range);
        self.next += 1;
        let job = StripeJob::new(Rc::clone(&self.source), plan, buffers, start);
        self.jobs.push_back(job.run().boxed_local());
    }
}

#[cfg(test)]
mod tests;
