//! How long shard reads take on this core, and from that, when a read counts as late.
//!
//! An exponentially weighted mean of whole reads (128 KiB and less), clipped so that one stuck device cannot
//! teach everybody patience. Device classes are not told apart: a hedge costs little, and the floor keeps it
//! rare.

use std::{cell::Cell, time::Duration};

/// A read is never late before this: below it, a hedge costs more than it gains.
const HEDGE_DELAY_MIN: Duration = Duration::from_millis(20);
/// Nor is anybody more patient than this.
const HEDGE_DELAY_MAX: Duration = Duration::from_secs(2);
/// Late = this many times the usual.
const HEDGE_FACTOR: u32 = 4;
/// Weight of a new sample is one in this many.
const SAMPLE_WEIGHT: u32 = 16;

/// See the module.
#[derive(Debug, Default)]
pub struct ReadLatency {
    mean: Cell<Duration>,
}

impl ReadLatency {
    /// Nothing known yet: reads are late after the floor.
    pub fn new() -> Self {
        Self::default()
    }

    /// A read took so long.
    pub fn observe(&self, elapsed: Duration) {
        let sample = elapsed.min(HEDGE_DELAY_MAX);
        let mean = self.mean.get();
        self.mean.set(mean - mean / SAMPLE_WEIGHT + sample / SAMPLE_WEIGHT);
    }

    /// After how long a read counts as late.
    pub fn hedge_delay(&self) -> Duration {
        (self.mean.get() * HEDGE_FACTOR).clamp(HEDGE_DELAY_MIN, HEDGE_DELAY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_and_stays_in_bounds() {
        let latency = ReadLatency::new();
        assert_eq!(latency.hedge_delay(), HEDGE_DELAY_MIN);
        (0..200).for_each(|_| latency.observe(Duration::from_millis(30)));
        let learnt = latency.hedge_delay();
        assert!(learnt > Duration::from_millis(110) && learnt <= Duration::from_millis(120), "{learnt:?}");
        (0..200).for_each(|_| latency.observe(Duration::from_secs(100)));
        assert_eq!(latency.hedge_delay(), HEDGE_DELAY_MAX);
        (0..200).for_each(|_| latency.observe(Duration::from_millis(1)));
        assert_eq!(latency.hedge_delay(), HEDGE_DELAY_MIN);
    }
}
