//! Buckets.

use crate::{api::BucketInfo, metadata::Bucket};

pub(super) fn info(bucket: Bucket) -> BucketInfo {
    BucketInfo { name: bucket.name, created_ms: bucket.created_ms }
}
