//! How long a primary waits for a member before it wants it evicted: learnt from how fast members usually are.

/// Never earlier than this, in milliseconds: a garbage pause of a device is no reason.
pub const SLOW_MS_MIN: u64 = 500;
/// At most one eviction by a learnt deadline per this, in milliseconds.
pub const EVICTION_WINDOW_MS: u64 = 30_000;
/// The deadline in units of the usual time with its spread.
const PATIENCE: u64 = 16;

/// Smoothed waiting times of a partition's members, as seen by its primary, and what was done about them.
#[derive(Debug, Default)]
pub(super) struct Latency {
    /// In 1/8 ms.
    mean_eighth_ms: u64,
    /// In 1/4 ms.
    spread_quarter_ms: u64,
    reported_ms: Option<u64>,
}

impl Latency {
    /// A member advanced after so long.
    pub(super) fn learn(&mut self, sample_ms: u64) {
        let mean_ms = self.mean_eighth_ms / 8;
        self.spread_quarter_ms += sample_ms.abs_diff(mean_ms);
        self.spread_quarter_ms -= self.spread_quarter_ms / 4;
        self.mean_eighth_ms += sample_ms;
        self.mean_eighth_ms -= self.mean_eighth_ms / 8;
    }

    /// How long a member may keep the partition waiting, in milliseconds.
    pub(super) fn deadline_ms(&self, max_ms: u64) -> u64 {
        let usual_ms = self.mean_eighth_ms / 8 + self.spread_quarter_ms;
        (usual_ms * PATIENCE).clamp(SLOW_MS_MIN, max_ms)
    }

    /// Whether a member that has kept us waiting so long is to be evicted; counts it if so.
    pub(super) fn is_too_slow(&mut self, now_ms: u64, waited_ms: u64, max_ms: u64) -> bool {
        let spent = self.reported_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) < EVICTION_WINDOW_MS);
        let deadline_ms = if spent { max_ms } else { self.deadline_ms(max_ms) };
        let too_slow = waited_ms >= deadline_ms;
        if too_slow {
            self.reported_ms = Some(now_ms);
        }
        too_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_learnt_between_its_bounds() {
        let mut latency = Latency::default();
        assert_eq!(latency.deadline_ms(3_000), SLOW_MS_MIN);
        (0..100).for_each(|_| latency.learn(60));
        let deadline_ms = latency.deadline_ms(3_000);
        assert!((900..1_300).contains(&deadline_ms), "{deadline_ms}");
        (0..100).for_each(|_| latency.learn(2_000));
        assert_eq!(latency.deadline_ms(3_000), 3_000);
    }

    #[test]
    fn one_eviction_per_window() {
        let mut latency = Latency::default();
        assert!(!latency.is_too_slow(1_000, SLOW_MS_MIN - 1, 3_000));
        assert!(latency.is_too_slow(1_000, SLOW_MS_MIN, 3_000));
        assert!(!latency.is_too_slow(2_000, SLOW_MS_MIN, 3_000));
        assert!(latency.is_too_slow(2_000, 3_000, 3_000), "the cap holds always");
        assert!(latency.is_too_slow(2_000 + EVICTION_WINDOW_MS, SLOW_MS_MIN, 3_000));
    }
}
