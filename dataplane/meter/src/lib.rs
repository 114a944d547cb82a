//! What the hot path counts, and how a scrape reads it.
//!
//! A [`Counter`] has one writer (a core, which owns it) and any number of readers: counting is a plain load and store,
//! without a locked instruction, a shared cache line or an allocation; whoever scrapes adds the cores up. A second
//! writer would lose counts, nothing else. [`stage`] attributes time to the request that is being served.

#[cfg(feature = "page")]
pub mod page;
#[cfg(feature = "page")]
pub mod process;
#[cfg(feature = "page")]
pub mod server;
pub mod stage;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A number that one thread changes and every thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts. Only the owning thread may.
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Replaces the value, where it is a gauge. Only the owning thread may.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of every histogram, in microseconds: from a cached checksum to a request that is given up.
pub const BOUNDS_US: [u64; 16] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 250_000, 1_000_000, 2_500_000,
    10_000_000,
];
/// The last one has everything above the bounds.
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// How often something took how long; one writer, as a [`Counter`].
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum_ns: Counter,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| bound * 1_000 < took_ns);
        self.buckets[bucket].add(1);
        self.sum_ns.add(took_ns);
    }

    /// What was counted so far. Together the numbers may be off by what is being counted now.
    pub fn read(&self) -> Reading {
        Reading { buckets: std::array::from_fn(|at| self.buckets[at].get()), sum_ns: self.sum_ns.get() }
    }
}

/// A histogram at one moment, or several added up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// Not cumulative.
    pub buckets: [u64; BUCKETS],
    /// Nanoseconds.
    pub sum_ns: u64,
}

impl Reading {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum_ns += other.sum_ns;
    }

    /// Durations counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_below_their_bounds() {
        let histogram = Histogram::default();
        for took_us in [0, 10, 11, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(took_us));
        }
        let mut reading = histogram.read();
        assert_eq!(
            (reading.buckets[0], reading.buckets[1], reading.buckets[15], reading.buckets[16]),
            (2, 1, 1, 1)
        );
        assert_eq!((reading.count(), reading.sum_ns), (5, 20_000_022_000));
        reading.add(&histogram.read());
        assert_eq!((reading.count(), reading.buckets[0]), (10, 4));
    }
}
