//! Requests of one core: counted by operation in a table that is made at the start, so that a request allocates nothing.

use std::sync::OnceLock;

use quarry_gateway::{Front, RequestRecord};
use quarry_meter::{
    Counter, Histogram, Reading,
    page::Page,
    stage::{STAGES, Stage},
};

use super::families::{BYTES, FRONTS, REQUEST_SECONDS, REQUESTS, STAGE_SECONDS};

/// Operations with series of their own, sorted; every other name is counted as the last one.
const OPERATIONS: [&str; 55] = [
    "AbortMultipartUpload",
    "CompleteMultipartUpload",
    "CopyObject",
    "CreateBucket",
    "CreateMultipartUpload",
    "DeleteBucket",
    "DeleteBucketCors",
    "DeleteBucketLifecycle",
    "DeleteBucketOwnershipControls",
    "DeleteBucketPolicy",
    "DeleteBucketTagging",
    "DeleteBucketWebsite",
    "DeleteObject",
    "DeleteObjectTagging",
    "DeleteObjects",
    "DeletePublicAccessBlock",
    "GetBucketAcl",
    "GetBucketCors",
    "GetBucketLifecycleConfiguration",
    "GetBucketLocation",
    "GetBucketOwnershipControls",
    "GetBucketPolicy",
    "GetBucketPolicyStatus",
    "GetBucketTagging",
    "GetBucketVersioning",
    "GetBucketWebsite",
    "GetObject",
    "GetObjectAcl",
    "GetObjectAttributes",
    "GetObjectTagging",
    "GetPublicAccessBlock",
    "HeadBucket",
    "HeadObject",
    "ListBuckets",
    "ListMultipartUploads",
    "ListObjectVersions",
    "ListObjects",
    "ListObjectsV2",
    "ListParts",
    "PostObject",
    "Preflight",
    "PutBucketAcl",
    "PutBucketCors",
    "PutBucketLifecycleConfiguration",
    "PutBucketOwnershipControls",
    "PutBucketPolicy",
    "PutBucketTagging",
    "PutBucketVersioning",
    "PutBucketWebsite",
    "PutObject",
    "PutObjectTagging",
    "PutPublicAccessBlock",
    "UploadPart",
    "UploadPartCopy",
    "WebsiteGet",
];
const OTHER_OPERATION: &str = "Other";

/// Statuses with series of their own, sorted.
const STATUSES: [u16; 24] = [
    200, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 405, 408, 409, 411, 412, 413, 414, 416, 431, 500,
    501, 503, 507,
];

/// One operation on one core.
struct Operation {
    /// By status; the last one has every other.
    statuses: [Counter; STATUSES.len() + 1],
    took: Histogram,
    stages: [Histogram; STAGES],
    bytes_in: Counter,
    bytes_out: Counter,
}

impl Operation {
    fn new() -> Box<Self> {
        Box::new(Self {
            statuses: std::array::from_fn(|_| Counter::default()),
            took: Histogram::default(),
            stages: Default::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
        })
    }
}

/// All operations on one core; each takes memory from its first request on.
pub(crate) struct Requests {
    operations: [OnceLock<Box<Operation>>; OPERATIONS.len() + 1],
    /// By the way they took.
    fronts: [Counter; Front::ALL.len()],
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            operations: std::array::from_fn(|_| OnceLock::new()),
            fronts: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl Requests {
    /// A request has ended.
    pub(super) fn observe(&self, record: &RequestRecord<'_>) {
        let at = OPERATIONS.binary_search(&record.operation).unwrap_or(OPERATIONS.len());
        let operation = self.operations[at].get_or_init(Operation::new);
        if let Some(front) = Front::ALL.iter().position(|front| *front == record.front) {
            self.fronts[front].add(1);
        }
        operation.statuses[STATUSES.binary_search(&record.status).unwrap_or(STATUSES.len())].add(1);
        operation.took.observe(record.duration);
        for (stage, took) in operation.stages.iter().zip(record.stages) {
            if !took.is_zero() {
                stage.observe(took);
            }
        }
        operation.bytes_in.add(record.bytes_in);
        operation.bytes_out.add(record.bytes_out);
    }
}

/// Puts the sums over cores on the page.
pub(super) fn collect(cores: &[&Requests], page: &mut Page) {
    for (at, front) in Front::ALL.iter().enumerate() {
        let count = cores.iter().map(|core| core.fronts[at].get()).sum();
        page.count(&FRONTS, &[("front", front.label())], count);
    }
    for (at, name) in OPERATIONS.iter().copied().chain([OTHER_OPERATION]).enumerate() {
        let found: Vec<&Operation> =
            cores.iter().filter_map(|core| core.operations[at].get()).map(|found| &**found).collect();
        if found.is_empty() {
            continue;
        }
        let statuses = STATUSES.iter().map(u16::to_string).chain(["other".to_owned()]);
        for (index, status) in statuses.enumerate() {
            let count = found.iter().map(|operation| operation.statuses[index].get()).sum();
            if count > 0 {
                page.count(&REQUESTS, &[("operation", name), ("status", &status)], count);
            }
        }
        page.histogram(
            &REQUEST_SECONDS,
            &[("operation", name)],
            &sum(found.iter().map(|one| one.took.read())),
        );
        for (index, stage) in Stage::ALL.into_iter().enumerate() {
            let reading = sum(found.iter().map(|one| one.stages[index].read()));
            if reading.count() > 0 {
                page.histogram(&STAGE_SECONDS, &[("operation", name), ("stage", stage.name())], &reading);
            }
        }
        let both = [
            ("in", found.iter().map(|one| one.bytes_in.get()).sum::<u64>()),
            ("out", found.iter().map(|one| one.bytes_out.get()).sum()),
        ];
        for (direction, bytes) in both {
            page.count(&BYTES, &[("operation", name), ("direction", direction)], bytes);
        }
    }
}

/// Several histograms as one.
pub(super) fn sum(readings: impl Iterator<Item = Reading>) -> Reading {
    readings.fold(Reading::default(), |mut sum, reading| {
        sum.add(&reading);
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        assert!(OPERATIONS.is_sorted() && STATUSES.is_sorted());
    }
}
