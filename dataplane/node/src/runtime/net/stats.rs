//! What is counted of the traffic with one node in one class, over all cores.

use std::sync::atomic::{AtomicU64, Ordering};

/// See the module. Counters and gauges of [`crate::metrics`].
#[derive(Debug, Default)]
pub(crate) struct LinkStats {
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) frames_sent: AtomicU64,
    pub(crate) frames_received: AtomicU64,
    /// Connections made, the first ones too.
    pub(crate) connections: AtomicU64,
    /// Connections that broke or could not be made.
    pub(crate) failures: AtomicU64,
    /// Frames refused because a queue was full.
    pub(crate) overloads: AtomicU64,
    /// Frames that wait to be written, as of the last one queued.
    pub(crate) queued: AtomicU64,
    /// From the newest ping to its pong, microseconds.
    pub(crate) round_trip_us: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}
