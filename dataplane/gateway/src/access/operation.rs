//! Which actions an operation needs. All of one request are on the resource of its path.

use http::HeaderMap;
use quarry_identity::Action;

/// One action that must be allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Need {
    pub(crate) action: Action,
    /// Whoever may write by an access control list may this, too: it is about the object that is written.
    pub(crate) comes_with_writing: bool,
}

/// The actions; `None`: there is no such operation here.
pub(super) fn needs(operation: &str, headers: &HeaderMap, query: &str) -> Option<Vec<Need>> {
    let versioned = query.split('&').any(|pair| pair.starts_with("versionId="));
    let mut actions = vec![if versioned { of_version(operation) } else { None }.or_else(|| of(operation))?];
    let writes = matches!(operation, "PutObject" | "CreateMultipartUpload" | "CopyObject");
    let has = |name: &str| headers.get(name).is_some_and(|value| !value.is_empty());
    if writes && has("x-amz-tagging") {
        actions.push(Action::PutObjectTagging);
    }
    let has_list = has("x-amz-acl") || headers.keys().any(|name| name.as_str().starts_with("x-amz-grant-"));
    if writes && has_list {
        actions.push(Action::PutObjectAcl);
    }
    match operation {
        "CreateBucket" => {
            if has_list {
                actions.push(Action::PutBucketAcl);
            }
            if has("x-amz-object-ownership") {
                actions.push(Action::PutBucketOwnershipControls);
            }
        }
        "GetObjectAttributes" => {
            actions.push(if versioned { Action::GetObjectVersion } else { Action::GetObject });
        }
        _ => {}
    }
    let with_writing = |action| writes && matches!(action, Action::PutObjectAcl | Action::PutObjectTagging);
    let need = |action| Need { action, comes_with_writing: with_writing(action) };
    Some(actions.into_iter().map(need).collect())
}

fn of_version(operation: &str) -> Option<Action> {
    Some(match operation {
        "GetObject" | "HeadObject" => Action::GetObjectVersion,
        "DeleteObject" => Action::DeleteObjectVersion,
        "GetObjectAttributes" => Action::GetObjectVersionAttributes,
        "GetObjectAcl" => Action::GetObjectVersionAcl,
        "PutObjectAcl" => Action::PutObjectVersionAcl,
        "GetObjectTagging" => Action::GetObjectVersionTagging,
        "PutObjectTagging" => Action::PutObjectVersionTagging,
        "DeleteObjectTagging" => Action::DeleteObjectVersionTagging,
        _ => return None,
    })
}

fn of(operation: &str) -> Option<Action> {
    Some(match operation {
        "ListBuckets" => Action::ListAllMyBuckets,
        "CreateBucket" => Action::CreateBucket,
        "DeleteBucket" => Action::DeleteBucket,
        "HeadBucket" | "ListObjects" | "ListObjectsV2" => Action::ListBucket,
        "ListObjectVersions" => Action::ListBucketVersions,
        "ListMultipartUploads" => Action::ListBucketMultipartUploads,
        "GetBucketLocation" => Action::GetBucketLocation,
        "GetObject" | "HeadObject" => Action::GetObject,
        "GetObjectAttributes" => Action::GetObjectAttributes,
        "PutObject"
        | "PostObject"
        | "CopyObject"
        | "CreateMultipartUpload"
        | "UploadPart"
        | "UploadPartCopy"
        | "CompleteMultipartUpload" => Action::PutObject,
        "AbortMultipartUpload" => Action::AbortMultipartUpload,
        "ListParts" => Action::ListMultipartUploadParts,
        "DeleteObject" | "DeleteObjects" => Action::DeleteObject,
        "GetObjectAcl" => Action::GetObjectAcl,
        "PutObjectAcl" => Action::PutObjectAcl,
        "GetObjectTagging" => Action::GetObjectTagging,
        "PutObjectTagging" => Action::PutObjectTagging,
        "DeleteObjectTagging" => Action::DeleteObjectTagging,
        other => return of_bucket(other),
    })
}

fn of_bucket(operation: &str) -> Option<Action> {
    Some(match operation {
        "GetBucketPolicy" => Action::GetBucketPolicy,
        "PutBucketPolicy" => Action::PutBucketPolicy,
        "DeleteBucketPolicy" => Action::DeleteBucketPolicy,
        "GetBucketPolicyStatus" => Action::GetBucketPolicyStatus,
        "GetPublicAccessBlock" => Action::GetBucketPublicAccessBlock,
        "PutPublicAccessBlock" | "DeletePublicAccessBlock" => Action::PutBucketPublicAccessBlock,
        "GetBucketOwnershipControls" => Action::GetBucketOwnershipControls,
        "PutBucketOwnershipControls" | "DeleteBucketOwnershipControls" => Action::PutBucketOwnershipControls,
        "GetBucketAcl" => Action::GetBucketAcl,
        "PutBucketAcl" => Action::PutBucketAcl,
        "GetBucketVersioning" => Action::GetBucketVersioning,
        "PutBucketVersioning" => Action::PutBucketVersioning,
        "GetBucketTagging" => Action::GetBucketTagging,
        "PutBucketTagging" | "DeleteBucketTagging" => Action::PutBucketTagging,
        "GetBucketCors" => Action::GetBucketCORS,
        "PutBucketCors" | "DeleteBucketCors" => Action::PutBucketCORS,
        "GetBucketWebsite" => Action::GetBucketWebsite,
        "PutBucketWebsite" => Action::PutBucketWebsite,
        "DeleteBucketWebsite" => Action::DeleteBucketWebsite,
        "GetBucketLifecycleConfiguration" => Action::GetLifecycleConfiguration,
        "PutBucketLifecycleConfiguration" | "DeleteBucketLifecycle" => Action::PutLifecycleConfiguration,
        "GetBucketLogging" => Action::GetBucketLogging,
        "GetBucketNotificationConfiguration" => Action::GetBucketNotification,
        "GetBucketRequestPayment" => Action::GetBucketRequestPayment,
        "GetBucketEncryption" => Action::GetEncryptionConfiguration,
        "GetBucketReplication" => Action::GetReplicationConfiguration,
        "GetBucketAccelerateConfiguration" => Action::GetAccelerateConfiguration,
        "GetObjectLockConfiguration" => Action::GetBucketObjectLockConfiguration,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use quarry_identity::Action;

    use super::needs;

    #[test]
    fn versions_tags_and_lists_add_actions() {
        let mut headers = HeaderMap::new();
        let of = |operation: &str, headers: &HeaderMap, query: &str| {
            let needs = needs(operation, headers, query)?;
            Some(needs.into_iter().map(|need| need.action).collect::<Vec<_>>())
        };
        assert_eq!(of("GetObject", &headers, ""), Some(vec![Action::GetObject]));
        assert_eq!(of("GetObject", &headers, "a&versionId=null"), Some(vec![Action::GetObjectVersion]));
        assert_eq!(of("DeleteObject", &headers, "versionId=x"), Some(vec![Action::DeleteObjectVersion]));
        assert_eq!(of("HeadBucket", &headers, ""), Some(vec![Action::ListBucket]));
        assert_eq!(of("SelectObjectContent", &headers, ""), None);
        headers.insert("x-amz-tagging", HeaderValue::from_static("a=b"));
        headers.insert("x-amz-acl", HeaderValue::from_static("private"));
        let all = vec![Action::PutObject, Action::PutObjectTagging, Action::PutObjectAcl];
        assert_eq!(of("PutObject", &headers, ""), Some(all));
        assert_eq!(of("UploadPart", &headers, ""), Some(vec![Action::PutObject]));
    }
}
