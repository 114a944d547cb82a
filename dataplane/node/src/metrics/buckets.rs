//! Requests by bucket, for a bounded number of buckets: the first that are asked for have series of their own, the rest
//! are `_other`. Only names of buckets that exist count, so that nobody can make labels.
//!
//! A core finds a bucket that it has met before by a look in a map of its own; the list of the node is locked once per
//! bucket and core.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use quarry_gateway::RequestRecord;
use quarry_meter::{Counter, page::Page};

use super::families::{BUCKET_BYTES, BUCKET_REQUESTS};

/// Buckets with series of their own.
const BUCKETS_MAX: usize = 100;
const OTHER: &str = "_other";
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// One bucket on one core.
#[derive(Default)]
struct Bucket {
    classes: [Counter; CLASSES.len()],
    bytes_in: Counter,
    bytes_out: Counter,
}

/// The node's list: a bucket with its counters on every core that met it.
#[derive(Default)]
pub(super) struct Buckets(Mutex<BTreeMap<String, Vec<Arc<Bucket>>>>);

impl Buckets {
    /// Counters of a bucket for one more core; `None`: there are enough buckets.
    fn join(&self, name: &str) -> Option<Arc<Bucket>> {
        let mut buckets = self.0.lock().expect("nothing panics under this lock");
        if buckets.len() > BUCKETS_MAX && !buckets.contains_key(name) {
            return None;
        }
        let bucket = Arc::new(Bucket::default());
        buckets.entry(name.to_owned()).or_default().push(Arc::clone(&bucket));
        Some(bucket)
    }

    pub(super) fn collect(&self, page: &mut Page) {
        for (name, cores) in &*self.0.lock().expect("nothing panics under this lock") {
            for (index, class) in CLASSES.into_iter().enumerate() {
                let count = cores.iter().map(|core| core.classes[index].get()).sum();
                if count > 0 {
                    page.count(&BUCKET_REQUESTS, &[("bucket", name), ("class", class)], count);
                }
            }
            let both = [
                ("in", cores.iter().map(|core| core.bytes_in.get()).sum::<u64>()),
                ("out", cores.iter().map(|core| core.bytes_out.get()).sum()),
            ];
            for (direction, bytes) in both {
                page.count(&BUCKET_BYTES, &[("bucket", name), ("direction", direction)], bytes);
            }
        }
    }
}

/// What one core knows of it.
pub(crate) struct CoreBuckets {
    all: Arc<Buckets>,
    known: RefCell<BTreeMap<String, Arc<Bucket>>>,
    other: Arc<Bucket>,
}

impl CoreBuckets {
    pub(super) fn new(all: &Arc<Buckets>) -> Self {
        let other = all.join(OTHER).expect("the first ones fit");
        Self { all: Arc::clone(all), known: RefCell::default(), other }
    }

    /// A request has ended.
    pub(super) fn observe(&self, record: &RequestRecord<'_>) {
        if !record.bucket_exists {
            return;
        }
        let mut known = self.known.borrow_mut();
        let bucket = match known.get(record.bucket) {
            Some(bucket) => bucket,
            None if known.len() >= BUCKETS_MAX => &self.other,
            None => {
                let joined = self.all.join(record.bucket).unwrap_or_else(|| Arc::clone(&self.other));
                known.entry(record.bucket.to_owned()).or_insert(joined)
            }
        };
        let class = usize::from(record.status / 100).clamp(1, CLASSES.len()) - 1;
        bucket.classes[class].add(1);
        bucket.bytes_in.add(record.bytes_in);
        bucket.bytes_out.add(record.bytes_out);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(bucket: &str, bucket_exists: bool) -> RequestRecord<'_> {
        RequestRecord {
            request_id: "1",
            operation: "GetObject",
            method: "GET",
            path: "/",
            bucket,
            bucket_exists,
            key: "",
            principal: None,
            client: None,
            stages: Default::default(),
            status: 200,
            error_code: None,
            bytes_in: 1,
            bytes_out: 2,
            duration: Duration::ZERO,
            complete: true,
            front: quarry_gateway::Front::Fast,
        }
    }

    #[test]
    fn buckets_are_bounded_and_invented_ones_do_not_count() {
        let all = Arc::new(Buckets::default());
        let cores = [CoreBuckets::new(&all), CoreBuckets::new(&all)];
        for core in &cores {
            core.observe(&record("invented", false));
            for _ in 0..2 {
                (0..BUCKETS_MAX + 10)
                    .for_each(|number| core.observe(&record(&format!("b{number:03}"), true)));
            }
        }
        let mut page = Page::default();
        all.collect(&mut page);
        let text = String::from_utf8(page.text(&[]).unwrap()).unwrap();
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        has("quarry_bucket_requests_total{bucket=\"b000\",class=\"2xx\"} 4");
        has("quarry_bucket_bytes_total{bucket=\"b099\",direction=\"out\"} 8");
        has("quarry_bucket_requests_total{bucket=\"_other\",class=\"2xx\"} 40");
        assert!(!text.contains("invented") && !text.contains("b100"));
    }
}
