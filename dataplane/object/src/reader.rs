//! Under construction: the signature is final.

use std::{ops::Range, rc::Rc};

use bytes::Bytes;
use futures::Stream;
use quarry_clustermap::BlobId;
use quarry_partition::BlobRef;

use crate::cluster::Cluster;

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
    /// Too few shards answer now; the data is there as far as anybody knows.
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
    /// The heap, one stripe ahead: for a reader that feeds a writer, which holds pool memory while it waits.
    Heap,
}

/// Reads a range of a blob, in order.
pub fn read_range<C: Cluster>(
    _cluster: Rc<C>,
    _blob: BlobRef,
    _range: Range<u64>,
    _memory: ReadMemory,
) -> impl Stream<Item = Result<Bytes, ReadError>> + 'static {
    futures::stream::empty()
}
