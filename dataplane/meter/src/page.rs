//! The page that Prometheus scrapes, made anew for each scrape from what others have counted.
//!
//! Every family is declared with its name, kind and help in one list per process; docs/metrics.md has the same list,
//! which a test of that process compares ([`undocumented`]).

use std::collections::{BTreeMap, BTreeSet};

use prometheus::{
    Encoder, TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::{BOUNDS_US, Reading};

/// What Prometheus takes a family for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in seconds.
    Histogram,
}

/// One family of series.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Family {
    /// `quarry_SUBSYSTEM_NOUN_UNIT`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
}

impl Family {
    /// A counter.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Counter, help }
    }

    /// A gauge.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, help }
    }

    /// A histogram of durations.
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Histogram, help }
    }
}

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A page in the making.
#[derive(Debug, Default)]
pub struct Page {
    families: BTreeMap<&'static str, MetricFamily>,
}

impl Page {
    /// Adds a series of a counter or gauge.
    pub fn value(&mut self, family: &Family, labels: Labels<'_>, value: f64) {
        let mut metric = Metric::from_label(pairs(labels));
        if family.kind == Kind::Counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.add(family, metric);
    }

    /// Adds a series of a counter or gauge that is a whole number.
    #[allow(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
    pub fn count(&mut self, family: &Family, labels: Labels<'_>, value: u64) {
        self.value(family, labels, value as f64);
    }

    /// Adds a series of a histogram.
    #[allow(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
    pub fn histogram(&mut self, family: &Family, labels: Labels<'_>, reading: &Reading) {
        let mut below = 0;
        let bounds = BOUNDS_US.iter().map(|bound_us| *bound_us as f64 / 1e6).zip(reading.buckets);
        let buckets = bounds.map(|(bound, count)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(reading.count());
        histogram.set_sample_sum(reading.sum_ns as f64 / 1e9);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_histogram(histogram);
        self.add(family, metric);
    }

    fn add(&mut self, family: &Family, metric: Metric) {
        let entry = self.families.entry(family.name).or_insert_with(|| {
            let mut empty = MetricFamily::default();
            empty.set_name(family.name.to_owned());
            empty.set_help(family.help.to_owned());
            empty.set_field_type(match family.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
                Kind::Histogram => MetricType::HISTOGRAM,
            });
            empty
        });
        entry.mut_metric().push(metric);
    }

    /// The text, with families of a registry beside these.
    ///
    /// # Errors
    /// A family without a series or name: a mistake of whoever made it.
    pub fn text(self, registered: &[MetricFamily]) -> Result<Vec<u8>, prometheus::Error> {
        let families: Vec<MetricFamily> =
            self.families.into_values().chain(registered.iter().cloned()).collect();
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

fn pairs(labels: Labels<'_>) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}

/// Where a process's families and the chapter `## TITLE` of docs/metrics.md differ, and names that break the
/// conventions; for tests. A chapter's rows are ``| `name` | kind | ...``.
pub fn undocumented(families: &[Family], document: &str, title: &str) -> Vec<String> {
    let mut chapters = document.split("\n## ");
    let chapter = chapters.find(|chapter| chapter.lines().next() == Some(title)).unwrap_or_default();
    let rows = chapter.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let name = cells.next()?.trim().trim_end_matches('`').to_owned();
        Some((name, cells.next()?.trim().to_owned()))
    });
    let documented: BTreeSet<(String, String)> = rows.collect();
    let kind = |family: &Family| format!("{:?}", family.kind).to_lowercase();
    let exported: BTreeSet<(String, String)> =
        families.iter().map(|family| (family.name.to_owned(), kind(family))).collect();
    let lists = |one: &BTreeSet<(String, String)>, other: &BTreeSet<(String, String)>, what: &str| {
        one.difference(other).map(|(name, kind)| format!("{name} ({kind}) {what}")).collect::<Vec<_>>()
    };
    let mut problems = lists(&exported, &documented, "is not documented");
    problems.extend(lists(&documented, &exported, "is documented and not exported"));
    if exported.len() != families.len() {
        problems.push("a family is declared twice".to_owned());
    }
    problems.extend(
        families.iter().filter(|family| !is_conventional(family)).map(|family| {
            format!("{} breaks the conventions: its kind and its ending do not fit", family.name)
        }),
    );
    problems
}

fn is_conventional(family: &Family) -> bool {
    let allowed =
        family.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let other_unit = ["_ms", "_us", "_milliseconds", "_microseconds", "_mib", "_percent"];
    allowed
        && !other_unit.iter().any(|unit| family.name.ends_with(unit))
        && match family.kind {
            Kind::Counter => family.name.ends_with("_total"),
            Kind::Gauge => !family.name.ends_with("_total"),
            Kind::Histogram => family.name.ends_with("_seconds"),
        }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const REQUESTS: Family = Family::counter("x_requests_total", "Requests");
    const DELAY: Family = Family::histogram("x_delay_seconds", "Delay");

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let histogram = crate::Histogram::default();
        histogram.observe(Duration::from_micros(20));
        let mut page = Page::default();
        page.count(&REQUESTS, &[("bucket", "a\"b")], 3);
        page.count(&REQUESTS, &[("bucket", "c")], 4);
        page.histogram(&DELAY, &[], &histogram.read());
        let text = String::from_utf8(page.text(&[]).unwrap()).unwrap();
        for line in [
            "# TYPE x_requests_total counter",
            "x_requests_total{bucket=\"a\\\"b\"} 3",
            "x_delay_seconds_bucket{le=\"0.00001\"} 0",
            "x_delay_seconds_bucket{le=\"0.000025\"} 1",
            "x_delay_seconds_bucket{le=\"+Inf\"} 1",
            "x_delay_seconds_sum 0.00002",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE").count(), 2);
    }

    #[test]
    fn documentation_that_differs_is_noticed() {
        let document =
            "# M\n\n## a\n\n| `y_total` | counter |\n\n## b\n\n| `x_requests_total` | counter | | |\n";
        assert_eq!(undocumented(&[REQUESTS], document, "b"), [""; 0]);
        assert_eq!(undocumented(&[REQUESTS, DELAY], document, "b").len(), 1);
        assert_eq!(undocumented(&[REQUESTS], document, "a").len(), 2);
        let bad = Family::gauge("x_requests_total", "");
        assert_eq!(undocumented(&[bad], document, "b").len(), 3);
    }
}
