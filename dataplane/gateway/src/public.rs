//! What everybody may do, without credentials.
//!
//! The one place where pages of websites and forms without a signature are decided. A bucket is public by its canned
//! access control list alone; whatever else there is to decide by belongs here.

use quarry_object::api::{BucketInfo, DocumentKind};

const READABLE: [&str; 2] = ["public-read", "public-read-write"];
const WRITABLE: &str = "public-read-write";

fn canned(bucket: &BucketInfo) -> &str {
    bucket.config.document(DocumentKind::Acl).unwrap_or("").trim_matches('"')
}

/// Whether everybody may read an object.
pub(crate) fn may_read(bucket: &BucketInfo, _key: &str) -> bool {
    READABLE.contains(&canned(bucket))
}

/// Whether everybody may write an object.
pub(crate) fn may_write(bucket: &BucketInfo, _key: &str) -> bool {
    canned(bucket) == WRITABLE
}
