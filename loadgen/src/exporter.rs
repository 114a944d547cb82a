//! The run as metrics for Prometheus, while it lasts: what the tally has, read at each scrape.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use quarry_meter::page::{Family, Page};
use quarry_meter::server::PageServer;
use quarry_meter::{BOUNDS_US, Reading, process};

use crate::engine::Shared;

const BUILD: Family = Family::gauge("quarry_loadgen_build_info", "1, with the version as a label");
const DURATIONS: Family = Family::histogram(
    "quarry_loadgen_operation_duration_seconds",
    "Successful operations of counted phases, from the intended start",
);
const BYTES: Family = Family::counter("quarry_loadgen_bytes_total", "Bytes of bodies of these operations");
const FAILED: Family =
    Family::counter("quarry_loadgen_failed_operations_total", "Operations that failed for good");
const ERRORS: Family =
    Family::counter("quarry_loadgen_failed_attempts_total", "Attempts that failed, by kind");
const ABANDONED: Family = Family::counter(
    "quarry_loadgen_abandoned_operations_total",
    "Operations of the open loop that were never begun",
);
const RETRIES: Family = Family::counter("quarry_loadgen_retries_total", "Attempts after a failed one");
const WRONG: Family =
    Family::counter("quarry_loadgen_wrong_contents_total", "Reads with other bytes than were written");
const IN_FLIGHT: Family = Family::gauge("quarry_loadgen_operations_in_flight", "Operations under way");
const PREPARED: Family =
    Family::gauge("quarry_loadgen_prepared_objects", "Objects written before the first phase");

#[cfg(test)]
const OWN: [Family; 10] =
    [BUILD, DURATIONS, BYTES, FAILED, ERRORS, ABANDONED, RETRIES, WRONG, IN_FLIGHT, PREPARED];

/// Kinds of errors with a series of their own; the rest is `_other`.
const KINDS_MAX: usize = 30;
/// Answers at an address until it is dropped.
///
/// # Errors
/// The address cannot be bound.
pub(crate) fn start(address: SocketAddr, shared: &Arc<Shared>) -> Result<PageServer> {
    let shared = Arc::clone(shared);
    PageServer::start(address, move || page(&shared))
        .with_context(|| format!("cannot show metrics at {address}"))
}

fn page(shared: &Shared) -> Result<Vec<u8>, prometheus::Error> {
    let mut page = Page::default();
    page.count(&BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.count(&IN_FLIGHT, &[], shared.in_flight());
    page.count(&PREPARED, &[], shared.prepared());
    {
        let tally = shared.tally();
        for (operation, timed) in &tally.by_operation {
            let labels = [("operation", operation.name())];
            page.histogram(&DURATIONS, &labels, &reading(&timed.latency_us));
            page.count(&BYTES, &labels, timed.bytes);
        }
        let mut other = 0;
        for (index, (kind, count)) in tally.errors.iter().enumerate() {
            match index < KINDS_MAX {
                true => page.count(&ERRORS, &[("kind", kind)], *count),
                false => other += count,
            }
        }
        page.count(&ERRORS, &[("kind", "_other")], other);
        for (family, count) in [
            (FAILED, tally.failed_operations),
            (ABANDONED, tally.abandoned_operations),
            (RETRIES, tally.retries),
            (WRONG, tally.mismatches_total),
        ] {
            page.count(&family, &[], count);
        }
    }
    process::add(&mut page);
    page.text(&[])
}

/// The same counts in the buckets that every program here shows.
fn reading(latency_us: &Histogram<u64>) -> Reading {
    let mut reading = Reading::default();
    for step in latency_us.iter_recorded() {
        let (value_us, count) = (step.value_iterated_to(), step.count_at_value());
        reading.buckets[BOUNDS_US.partition_point(|bound| *bound < value_us)] += count;
        reading.sum_ns += value_us.saturating_mul(1000).saturating_mul(count);
    }
    reading
}

#[cfg(test)]
mod tests {
    use quarry_meter::page::undocumented;

    use super::*;

    #[test]
    fn every_family_is_documented_and_every_documented_one_is_there() {
        let document =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
        let all: Vec<Family> = OWN.iter().chain(&process::FAMILIES).copied().collect();
        assert_eq!(undocumented(&all, &document, "Load generator"), [""; 0]);
    }

    #[test]
    fn latencies_keep_their_buckets() {
        let mut histogram = Histogram::new_with_max(3_600_000_000, 3).unwrap();
        for us in [5, 10, 11, 20_000_000] {
            histogram.record(us).unwrap();
        }
        let reading = reading(&histogram);
        assert_eq!((reading.buckets[0], reading.buckets[1], reading.buckets[16]), (2, 1, 1));
        assert_eq!(reading.count(), 4);
    }
}
