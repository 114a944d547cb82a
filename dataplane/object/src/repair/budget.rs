//! How fast background work may go: bytes per second of one core, so that clients come first.

use std::{cell::Cell, time::Duration};

use crate::cluster::Cluster;

/// What may be spent at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// A rate of bytes. Work that shares it shares the rate.
#[derive(Debug)]
pub struct Budget {
    configured: u64,
    bytes_per_second: Cell<u64>,
    /// When all that was spent so far has been paid for.
    paid_at: Cell<Duration>,
}

impl Budget {
    /// At most so many bytes per second; at least 1.
    pub fn new(bytes_per_second: u64) -> Self {
        let configured = bytes_per_second.max(1);
        Self { configured, bytes_per_second: Cell::new(configured), paid_at: Cell::default() }
    }

    /// From now on another rate, at least 1; `None`: the one it was made with.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        self.bytes_per_second.set(bytes_per_second.unwrap_or(self.configured).max(1));
    }

    /// Waits until so many bytes more fit the rate.
    pub async fn spend(&self, cluster: &impl Cluster, bytes: u64) {
        let now = cluster.monotonic();
        let paid_at = self.paid_at.get().max(now.saturating_sub(BURST));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid_at.set(paid_at + cost);
        if paid_at > now {
            cluster.sleep(paid_at - now).await;
        }
    }
}
