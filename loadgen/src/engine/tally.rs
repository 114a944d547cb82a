//! What a run counts, in a form that several load generators' counts can be added up in without loss: histograms, not
//! percentiles.
//!
//! Latencies are in microseconds, from the intended start: in the open loop that is when the schedule wanted the
//! operation, in the closed loop when its worker was ready. Only successful operations have a latency; totals leave
//! ramps out; the series and the errors have everything.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::expect::Mismatch;
use crate::stats::{Operation, Timed};

/// Histograms of one second keep two digits: there is one for every second.
const SECOND_DIGITS: u8 = 2;
const LATENCY_US_MAX: u64 = 3_600_000_000;
const MISMATCHES_KEPT: usize = 20;
/// Seconds of the series that are kept: a day.
const SECONDS_MAX: usize = 86_400;

/// A histogram as (value, count) pairs for JSON.
pub(crate) mod pairs {
    use hdrhistogram::Histogram;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::LATENCY_US_MAX;

    pub(crate) fn of(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
        histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    pub(crate) fn into(pairs: &[(u64, u64)]) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_max(LATENCY_US_MAX, 3).expect("bounds are valid");
        pairs.iter().for_each(|(value, count)| histogram.saturating_record_n(*value, *count));
        histogram
    }

    pub(crate) fn serialize<S: Serializer>(histogram: &Histogram<u64>, to: S) -> Result<S::Ok, S::Error> {
        of(histogram).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Histogram<u64>, D::Error> {
        let pairs = Vec::<(u64, u64)>::deserialize(from)?;
        if pairs.len() > 1 << 20 { Err(D::Error::custom("too many values")) } else { Ok(into(&pairs)) }
    }
}

/// One second of a run, by when operations ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Second {
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    /// Latencies in microseconds with their counts.
    pub(crate) latency_us: Vec<(u64, u64)>,
}

/// One phase, by when operations should have begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PhaseTally {
    pub(crate) name: String,
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) failed: u64,
    #[serde(with = "pairs")]
    pub(crate) latency_us: Histogram<u64>,
}

/// One finished operation.
pub(crate) struct Done {
    pub(crate) operation: Operation,
    pub(crate) phase: usize,
    /// Body bytes sent or received.
    pub(crate) bytes: u64,
    /// From the intended start.
    pub(crate) latency: Duration,
    /// From the first request.
    pub(crate) service: Duration,
    /// Since the start of the run.
    pub(crate) ended: Duration,
}

/// Counters of one client's run, or the sum of several.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) phases: Vec<PhaseTally>,
    /// Which phases are part of the totals.
    pub(crate) counted: Vec<bool>,
    pub(crate) all: Timed,
    pub(crate) by_operation: BTreeMap<Operation, Timed>,
    /// From the first request to the answer, as a closed loop would have measured it.
    #[serde(with = "pairs")]
    pub(crate) service_us: Histogram<u64>,
    /// From the intended start to the first request: time spent in the client because all its connections were busy.
    #[serde(with = "pairs")]
    pub(crate) delay_us: Histogram<u64>,
    /// Bodies transferred, by the power of two above their size.
    pub(crate) sizes: BTreeMap<u64, u64>,
    pub(crate) errors: BTreeMap<String, u64>,
    /// Successful writes, copies and deletions of all phases.
    pub(crate) changes: u64,
    pub(crate) failed_operations: u64,
    /// Operations of the open loop that were never begun, because the ones before them took too long.
    pub(crate) abandoned_operations: u64,
    pub(crate) retries: u64,
    pub(crate) mismatches: Vec<Mismatch>,
    pub(crate) mismatches_total: u64,
    pub(crate) series: Vec<Second>,
    #[serde(skip, default = "new_second")]
    current: Histogram<u64>,
}

fn new_second() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_US_MAX, SECOND_DIGITS).expect("bounds are valid")
}

impl Tally {
    /// For phases given as (name, seconds, part of the totals).
    pub(crate) fn new(phases: impl Iterator<Item = (String, f64, bool)>) -> Self {
        let (phases, counted) = phases
            .map(|(name, seconds, counts)| {
                let latency_us = pairs::into(&[]);
                (PhaseTally { name, seconds, bytes: 0, failed: 0, latency_us }, counts)
            })
            .unzip();
        Self {
            phases,
            counted,
            all: Timed::new(),
            by_operation: BTreeMap::new(),
            service_us: pairs::into(&[]),
            delay_us: pairs::into(&[]),
            sizes: BTreeMap::new(),
            errors: BTreeMap::new(),
            changes: 0,
            failed_operations: 0,
            abandoned_operations: 0,
            retries: 0,
            mismatches: Vec::new(),
            mismatches_total: 0,
            series: Vec::new(),
            current: new_second(),
        }
    }

    /// Seconds of the phases that are part of the totals.
    pub(crate) fn counted_seconds(&self) -> f64 {
        self.phases
            .iter()
            .zip(&self.counted)
            .filter(|(_, counts)| **counts)
            .map(|(phase, _)| phase.seconds)
            .sum()
    }

    pub(crate) fn success(&mut self, done: &Done) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let latency_us = micros(done.latency);
        self.changes += u64::from(done.operation.writes() || done.operation == Operation::Delete);
        let phase = &mut self.phases[done.phase];
        phase.bytes += done.bytes;
        phase.latency_us.saturating_record(latency_us);
        if self.counted[done.phase] {
            self.all.record(done.bytes, done.latency);
            self.by_operation
                .entry(done.operation)
                .or_insert_with(Timed::new)
                .record(done.bytes, done.latency);
            self.service_us.saturating_record(micros(done.service));
            self.delay_us.saturating_record(micros(done.latency.saturating_sub(done.service)));
            if done.bytes > 0 {
                *self.sizes.entry(done.bytes.next_power_of_two()).or_default() += 1;
            }
        }
        if let Some(second) = self.second(done.ended) {
            second.operations += 1;
            second.bytes += done.bytes;
            self.current.saturating_record(latency_us);
        }
    }

    /// A failed attempt.
    pub(crate) fn error(&mut self, kind: String, ended: Duration) {
        *self.errors.entry(kind).or_default() += 1;
        if let Some(second) = self.second(ended) {
            second.errors += 1;
        }
    }

    /// An operation that failed for good.
    pub(crate) fn failed(&mut self, phase: usize) {
        self.failed_operations += 1;
        self.phases[phase].failed += 1;
    }

    pub(crate) fn mismatch(&mut self, mismatch: Mismatch) {
        self.mismatches_total += 1;
        if self.describes_more() {
            self.mismatches.push(mismatch);
        }
    }

    pub(crate) fn describes_more(&self) -> bool {
        self.mismatches.len() < MISMATCHES_KEPT
    }

    /// The second at `elapsed`. Callers come in the order of their locks, which may differ from that of their clocks: what
    /// comes late across the edge of a second is counted in its own, and its latency in the newest.
    fn second(&mut self, elapsed: Duration) -> Option<&mut Second> {
        let index = usize::try_from(elapsed.as_secs()).unwrap_or(usize::MAX);
        if index >= SECONDS_MAX {
            return None;
        }
        while self.series.len() <= index {
            self.close_second();
            self.series.push(Second::default());
        }
        self.series.get_mut(index)
    }

    /// Writes the latencies of the newest second down.
    pub(crate) fn close_second(&mut self) {
        if let Some(last) = self.series.last_mut()
            && !self.current.is_empty()
        {
            last.latency_us = pairs::of(&self.current);
            self.current.reset();
        }
    }

    /// Latencies of the newest second so far.
    pub(crate) fn newest_second(&self) -> (&Second, &Histogram<u64>) {
        const NONE: &Second = &Second { operations: 0, bytes: 0, errors: 0, latency_us: Vec::new() };
        (self.series.last().unwrap_or(NONE), &self.current)
    }

    /// Adds the counts of another client of the same run.
    pub(crate) fn add(&mut self, other: &Self) {
        for (phase, more) in self.phases.iter_mut().zip(&other.phases) {
            phase.bytes += more.bytes;
            phase.failed += more.failed;
            join(&mut phase.latency_us, &more.latency_us);
        }
        self.all.add(&other.all);
        for (operation, timed) in &other.by_operation {
            self.by_operation.entry(*operation).or_insert_with(Timed::new).add(timed);
        }
        join(&mut self.service_us, &other.service_us);
        join(&mut self.delay_us, &other.delay_us);
        other.sizes.iter().for_each(|(size, count)| *self.sizes.entry(*size).or_default() += count);
        other.errors.iter().for_each(|(kind, count)| *self.errors.entry(kind.clone()).or_default() += count);
        self.changes += other.changes;
        self.failed_operations += other.failed_operations;
        self.abandoned_operations += other.abandoned_operations;
        self.retries += other.retries;
        self.mismatches_total += other.mismatches_total;
        let room = MISMATCHES_KEPT - self.mismatches.len();
        self.mismatches.extend(other.mismatches.iter().take(room).cloned());
        let seconds = self.series.len().max(other.series.len());
        self.series.resize(seconds, Second::default());
        for (second, more) in self.series.iter_mut().zip(&other.series) {
            second.operations += more.operations;
            second.bytes += more.bytes;
            second.errors += more.errors;
            let mut sum = pairs::into(&second.latency_us);
            join(&mut sum, &pairs::into(&more.latency_us));
            second.latency_us = pairs::of(&sum);
        }
    }
}

fn join(sum: &mut Histogram<u64>, more: &Histogram<u64>) {
    sum.add(more).expect("all histograms have the same bounds");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Done, Tally, pairs};
    use crate::stats::Operation;

    fn tally(latencies_ms: &[(u64, usize)]) -> Tally {
        let phases = [("ramp", false), ("steady", true)];
        let mut tally = Tally::new(phases.into_iter().map(|(name, counts)| (name.to_owned(), 5.0, counts)));
        for (ms, phase) in latencies_ms {
            tally.success(&Done {
                operation: Operation::Get,
                phase: *phase,
                bytes: 100,
                latency: Duration::from_millis(*ms),
                service: Duration::from_millis(ms / 2),
                ended: Duration::from_millis(ms * 10),
            });
        }
        tally.close_second();
        tally
    }

    #[test]
    fn ramps_are_not_part_of_the_totals() {
        let tally = tally(&[(1, 0), (900, 0), (10, 1), (20, 1)]);
        assert_eq!((tally.all.latency_us.len(), tally.all.bytes), (2, 200));
        assert_eq!(tally.phases[0].latency_us.len(), 2);
        assert_eq!((tally.counted_seconds(), tally.sizes[&128]), (5.0, 2));
        assert_eq!(tally.series.iter().map(|second| second.operations).sum::<u64>(), 4);
        assert!((tally.delay_us.max() as i64 - 10_000).abs() < 20, "{}", tally.delay_us.max());
    }

    #[test]
    fn a_sum_over_json_is_what_one_client_would_have_counted() {
        let (first, second) = ([(1, 1), (50, 1), (7, 1)], [(2, 1), (500, 1), (900, 1), (3, 0)]);
        let mut sum = tally(&first);
        let json = serde_json::to_string(&tally(&second)).unwrap();
        sum.add(&serde_json::from_str(&json).unwrap());
        let one = tally(&[&first[..], &second[..]].concat());
        for quantile in [0.0, 0.3, 0.5, 0.9, 0.999, 1.0] {
            let at = |tally: &Tally| tally.all.latency_us.value_at_quantile(quantile);
            assert_eq!(at(&sum), at(&one));
        }
        assert_eq!(sum.all.bytes, one.all.bytes);
        assert_eq!((sum.series.len(), sum.changes), (10, 0));
        let seconds = |tally: &Tally| -> Vec<u64> { tally.series.iter().map(|s| s.operations).collect() };
        assert_eq!(seconds(&sum).iter().sum::<u64>(), 7);
        assert_eq!(seconds(&sum), [5, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(sum.by_operation[&Operation::Get].latency_us.len(), 6);
    }

    #[test]
    fn pairs_keep_what_was_recorded() {
        let tally = tally(&[(1, 1), (1, 1), (3_599_999, 1)]);
        let back = pairs::into(&pairs::of(&tally.all.latency_us));
        assert_eq!(back, tally.all.latency_us);
    }
}
