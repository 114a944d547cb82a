//! What a run counts: latencies by operation, errors by kind, wrong content, gaps.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::expect::Mismatch;

/// Latencies are recorded in microseconds with three significant digits, up to an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Wrong reads described one by one; the others are only counted.
const MISMATCHES_KEPT: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    Put,
    Get,
    Delete,
    List,
}

/// Latencies and volume of successful operations.
pub(crate) struct Timed {
    pub(crate) bytes: u64,
    pub(crate) latency_us: Histogram<u64>,
}

impl Timed {
    pub(crate) fn new() -> Self {
        let latency_us = Histogram::new_with_max(LATENCY_US_MAX, 3).expect("bounds are valid");
        Self { bytes: 0, latency_us }
    }

    fn record(&mut self, bytes: u64, latency: Duration) {
        self.bytes += bytes;
        self.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }
}

/// Counters of one run.
pub(crate) struct Stats {
    pub(crate) all: Timed,
    pub(crate) by_operation: BTreeMap<Operation, Timed>,
    /// Failed attempts by kind, also those that a retry made good.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Operations that failed for good.
    pub(crate) failed_operations: u64,
    pub(crate) retries: u64,
    pub(crate) mismatches: Vec<Mismatch>,
    pub(crate) mismatches_total: u64,
    /// Longest time without any success.
    pub(crate) longest_gap: Duration,
    last_success: Instant,
}

impl Stats {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            all: Timed::new(),
            by_operation: BTreeMap::new(),
            errors: BTreeMap::new(),
            failed_operations: 0,
            retries: 0,
            mismatches: Vec::new(),
            mismatches_total: 0,
            longest_gap: Duration::ZERO,
            last_success: now,
        }
    }

    pub(crate) fn success(&mut self, operation: Operation, bytes: u64, latency: Duration, now: Instant) {
        self.all.record(bytes, latency);
        self.by_operation.entry(operation).or_insert_with(Timed::new).record(bytes, latency);
        self.note_gap(now);
        self.last_success = now;
    }

    pub(crate) fn error(&mut self, kind: String) {
        *self.errors.entry(kind).or_default() += 1;
    }

    pub(crate) fn mismatch(&mut self, mismatch: Mismatch) {
        self.mismatches_total += 1;
        if self.describes_more() {
            self.mismatches.push(mismatch);
        }
    }

    /// Whether the next mismatch is kept with its description.
    pub(crate) fn describes_more(&self) -> bool {
        self.mismatches.len() < MISMATCHES_KEPT
    }

    /// Counts a gap that lasts until `now`; also called at the end of the run.
    pub(crate) fn note_gap(&mut self, now: Instant) {
        self.longest_gap = self.longest_gap.max(now.saturating_duration_since(self.last_success));
    }
}
