//! What a run counts: latencies by operation, errors by kind, wrong content, gaps.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::expect::Mismatch;

/// Latencies are recorded in microseconds with three significant digits, up to an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Wrong reads described one by one; the others are only counted.
const MISMATCHES_KEPT: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    Put,
    Get,
    Range,
    Head,
    Delete,
    List,
    /// An upload in at least two parts.
    Multipart,
    /// A copy within the server.
    Copy,
    /// A PUT with If-None-Match or If-Match.
    Conditional,
}

impl Operation {
    pub(crate) const ALL: [Self; 9] = [
        Self::Put,
        Self::Get,
        Self::Range,
        Self::Head,
        Self::Delete,
        Self::List,
        Self::Multipart,
        Self::Copy,
        Self::Conditional,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Range => "range",
            Self::Head => "head",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Multipart => "multipart",
            Self::Copy => "copy",
            Self::Conditional => "conditional",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }

    /// Whether its bytes go to the server.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::Put | Self::Multipart | Self::Copy | Self::Conditional)
    }
}

/// Latencies and volume of successful operations.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Timed {
    pub(crate) bytes: u64,
    #[serde(with = "crate::engine::tally::pairs")]
    pub(crate) latency_us: Histogram<u64>,
}

impl Timed {
    pub(crate) fn new() -> Self {
        let latency_us = Histogram::new_with_max(LATENCY_US_MAX, 3).expect("bounds are valid");
        Self { bytes: 0, latency_us }
    }

    pub(crate) fn record(&mut self, bytes: u64, latency: Duration) {
        self.bytes += bytes;
        self.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }
}

impl Timed {
    pub(crate) fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.latency_us.add(&other.latency_us).expect("all histograms have the same bounds");
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
