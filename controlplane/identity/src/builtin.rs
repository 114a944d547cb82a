//! Policies that are there without being stored: what most users need.

use std::sync::{Arc, OnceLock};

use crate::policy::Policy;

/// Name and document of every built-in policy. Their names cannot be taken by stored ones.
pub const BUILT_IN: [(&str, &str); 5] = [
    (
        "readonly",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:Get*","s3:List*"],"Resource":"*"}]}"#,
    ),
    (
        "readwrite",
        r#"{"Version":"2012-10-17","Statement":[
            {"Effect":"Allow","Action":["s3:Get*","s3:List*","s3:CreateBucket","s3:PutObject","s3:PutObjectTagging",
             "s3:PutObjectVersionTagging","s3:DeleteObject","s3:DeleteObjectVersion","s3:DeleteObjectTagging",
             "s3:DeleteObjectVersionTagging","s3:AbortMultipartUpload"],"Resource":"*"}]}"#,
    ),
    (
        "writeonly",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:PutObject","s3:AbortMultipartUpload",
            "s3:ListMultipartUploadParts"],"Resource":"*"}]}"#,
    ),
    (
        "tenant",
        r#"{"Version":"2012-10-17","Statement":[
            {"Effect":"Allow","Action":"s3:CreateBucket","Resource":"*"},
            {"Effect":"Allow","Action":"s3:*","Resource":"*",
             "Condition":{"StringEquals":{"quarry:BucketOwner":"${aws:username}"}}}]}"#,
    ),
    ("admin", r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#),
];

/// A built-in policy by name.
pub fn built_in(name: &str) -> Option<Arc<Policy>> {
    static PARSED: OnceLock<Vec<Arc<Policy>>> = OnceLock::new();
    let parsed = PARSED.get_or_init(|| {
        let parse = |(_, document): &(&str, &str)| {
            Arc::new(Policy::of_user(document).expect("built-in policies are valid"))
        };
        BUILT_IN.iter().map(parse).collect()
    });
    let position = BUILT_IN.iter().position(|(known, _)| *known == name)?;
    Some(Arc::clone(&parsed[position]))
}
