//! Buckets.

use crate::{api::BucketInfo, metadata::Bucket};

pub(super) fn info(bucket: Bucket) -> BucketInfo {
    let Bucket { id: _, name, created_ms, revision, config } = bucket;
    BucketInfo { name, created_ms, revision, config }
}
