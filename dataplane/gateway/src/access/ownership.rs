//! Ownership: who made a bucket, who owns its objects, and whether access control lists count. Without ownership controls
//! a bucket is BucketOwnerEnforced: they do not.

use http::StatusCode;
use quarry_identity::Principal;
use quarry_object::api::{BucketInfo, DocumentKind, ObjectStore};
use s3s::dto::{
    DeleteBucketOwnershipControlsInput, DeleteBucketOwnershipControlsOutput, GetBucketOwnershipControlsInput,
    GetBucketOwnershipControlsOutput, ObjectOwnership, OwnershipControls, OwnershipControlsRule,
    PutBucketOwnershipControlsInput, PutBucketOwnershipControlsOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::acl;
use crate::backend::Core;
use crate::configuration::{parse, read, remove, write};
use crate::error::{custom, from_api, refuse};
use crate::options;

/// Who owns a bucket: the user who made it.
pub(crate) fn owner(bucket: &BucketInfo) -> Principal {
    match bucket.config.document(DocumentKind::Owner) {
        Some(user) => Principal::User(user.to_owned()),
        None => Principal::Root,
    }
}

/// What stands for the owner in the documents of a new bucket.
pub(crate) fn document(owner: &Principal) -> Option<String> {
    match owner {
        Principal::User(name) => Some(name.clone()),
        Principal::Root | Principal::Anonymous => None,
    }
}

/// What an option of the node is called in S3.
pub(crate) fn name(ownership: options::ObjectOwnership) -> &'static str {
    match ownership {
        options::ObjectOwnership::BucketOwnerEnforced => ObjectOwnership::BUCKET_OWNER_ENFORCED,
        options::ObjectOwnership::BucketOwnerPreferred => ObjectOwnership::BUCKET_OWNER_PREFERRED,
        options::ObjectOwnership::ObjectWriter => ObjectOwnership::OBJECT_WRITER,
    }
}

/// Whether an object that its writer gives the bucket's owner full control of becomes the bucket owner's.
pub(crate) fn prefers_bucket_owner(bucket: &BucketInfo) -> bool {
    let found: Option<String> = parse(bucket, DocumentKind::Ownership).ok().flatten();
    found.as_deref() == Some(ObjectOwnership::BUCKET_OWNER_PREFERRED)
}

const WITH_LISTS: [&str; 2] = [ObjectOwnership::BUCKET_OWNER_PREFERRED, ObjectOwnership::OBJECT_WRITER];

/// Whether lists count.
pub(crate) fn has_lists(bucket: &BucketInfo) -> bool {
    let found: Option<String> = parse(bucket, DocumentKind::Ownership).ok().flatten();
    found.is_some_and(|ownership| WITH_LISTS.contains(&ownership.as_str()))
}

/// Checks a value; whether lists count with it.
///
/// # Errors
/// `InvalidArgument`.
pub(crate) fn checked(ownership: &str) -> S3Result<bool> {
    let lists = WITH_LISTS.contains(&ownership);
    if lists || ownership == ObjectOwnership::BUCKET_OWNER_ENFORCED {
        return Ok(lists);
    }
    Err(refuse(S3ErrorCode::InvalidArgument, "unknown object ownership"))
}

pub(crate) async fn get<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketOwnershipControlsInput>,
) -> S3Result<S3Response<GetBucketOwnershipControlsOutput>> {
    let found: Option<String> = read(core, &request.input.bucket, DocumentKind::Ownership)?;
    let ownership = found.ok_or_else(|| {
        refuse(S3ErrorCode::OwnershipControlsNotFoundError, "the bucket ownership controls were not found")
    })?;
    let rules = vec![OwnershipControlsRule { object_ownership: ObjectOwnership::from(ownership) }];
    let ownership_controls = Some(OwnershipControls { rules });
    Ok(S3Response::new(GetBucketOwnershipControlsOutput { ownership_controls }))
}

pub(crate) async fn put<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutBucketOwnershipControlsInput>,
) -> S3Result<S3Response<PutBucketOwnershipControlsOutput>> {
    let input = request.input;
    let [rule] = input.ownership_controls.rules.as_slice() else {
        return Err(refuse(S3ErrorCode::MalformedXML, "ownership controls have exactly one rule"));
    };
    let ownership = rule.object_ownership.as_str();
    let bucket = core.store.bucket(&input.bucket).map_err(from_api)?;
    if !checked(ownership)? && acl::is_shared(core, &bucket) {
        return Err(custom(
            "InvalidBucketAclWithObjectOwnership",
            StatusCode::BAD_REQUEST,
            "the bucket has an access control list that BucketOwnerEnforced does not allow",
        ));
    }
    write(core, &input.bucket, DocumentKind::Ownership, &ownership).await?;
    Ok(S3Response::new(PutBucketOwnershipControlsOutput {}))
}

pub(crate) async fn delete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeleteBucketOwnershipControlsInput>,
) -> S3Result<S3Response<DeleteBucketOwnershipControlsOutput>> {
    remove(core, &request.input.bucket, DocumentKind::Ownership).await?;
    Ok(S3Response::with_status(DeleteBucketOwnershipControlsOutput {}, StatusCode::NO_CONTENT))
}
