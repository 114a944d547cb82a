//! Operations on buckets.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use quarry_identity::{Acl, Principal};
use quarry_object::api::{ApiError, BucketInfo, DocumentKind, ObjectStore};
use s3s::dto::{
    Bucket, BucketLocationConstraint, CreateBucketInput, CreateBucketOutput, DeleteBucketInput,
    DeleteBucketOutput, GetBucketLocationInput, GetBucketLocationOutput, HeadBucketInput, HeadBucketOutput,
    ListBucketsInput, ListBucketsOutput, ObjectOwnership,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use crate::access::{acl, caller, ownership};
use crate::attributes::timestamp;
use crate::backend::Core;
use crate::configuration::{as_json, parse};
use crate::error::{from_api, refuse};
use crate::list::{decode_token, encode_token};

/// The region that S3 names by leaving its name out.
const UNNAMED_REGION: &str = "us-east-1";
const BUCKETS_MAX: usize = 1000;
const REGION: HeaderName = HeaderName::from_static("x-amz-bucket-region");

pub(crate) async fn create<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<CreateBucketInput>,
) -> S3Result<S3Response<CreateBucketOutput>> {
    let input = request.input;
    let constraint =
        input.create_bucket_configuration.and_then(|configuration| configuration.location_constraint);
    if let Some(constraint) = constraint
        && constraint.as_str() != core.region
    {
        return Err(refuse(
            S3ErrorCode::InvalidLocationConstraint,
            format!("the location constraint must be {} or be left out", core.region),
        ));
    }
    let owner = caller(&request.extensions).principal.clone();
    let asked = input.object_ownership.as_ref().map(ObjectOwnership::as_str);
    let object_ownership = asked.unwrap_or(ownership::name(core.object_ownership));
    let list = acl::of_new_bucket(core, &request.headers, &owner, object_ownership)?;
    let mut documents = BTreeMap::new();
    if asked.is_some() || core.object_ownership != Default::default() {
        documents.insert(DocumentKind::Ownership, as_json(&object_ownership));
    }
    documents.extend(list.as_ref().map(|list| (DocumentKind::Acl, as_json(list))));
    documents.extend(ownership::document(&owner).map(|owner| (DocumentKind::Owner, owner)));
    let created = match core.store.bucket(&input.bucket) {
        Ok(_) => Err(ApiError::BucketAlreadyOwnedByYou),
        Err(_) => core.store.create_bucket_with(&input.bucket, documents).await,
    };
    match created {
        Err(ApiError::BucketAlreadyOwnedByYou) => exists(core, &input.bucket, &owner, list.as_ref())?,
        other => other.map_err(from_api)?,
    }
    Ok(S3Response::new(CreateBucketOutput { location: Some(format!("/{}", input.bucket)) }))
}

/// The answer about a bucket that is there already. As in S3 its owner gets in the region without a name what it would have
/// got for a new one, if it asks for the same; nothing is changed.
fn exists<S: ObjectStore>(
    core: &Core<S>,
    bucket: &str,
    owner: &Principal,
    list: Option<&Acl>,
) -> S3Result<()> {
    let found = core.store.bucket(bucket).map_err(from_api)?;
    if ownership::owner(&found) != *owner {
        let problem = "the bucket name is taken; bucket names are shared by all users";
        return Err(refuse(S3ErrorCode::BucketAlreadyExists, problem));
    }
    if parse(&found, DocumentKind::Acl)?.as_ref() != list {
        let problem = "you own the bucket, and it has another access control list";
        return Err(refuse(S3ErrorCode::BucketAlreadyExists, problem));
    }
    if core.region == UNNAMED_REGION { Ok(()) } else { Err(from_api(ApiError::BucketAlreadyOwnedByYou)) }
}

pub(crate) async fn delete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeleteBucketInput>,
) -> S3Result<S3Response<DeleteBucketOutput>> {
    core.store.delete_bucket(&request.input.bucket).await.map_err(from_api)?;
    Ok(S3Response::with_status(DeleteBucketOutput {}, http::StatusCode::NO_CONTENT))
}

pub(crate) async fn head<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<HeadBucketInput>,
) -> S3Result<S3Response<HeadBucketOutput>> {
    core.store.bucket(&request.input.bucket).map_err(from_api)?;
    let region = HeaderValue::try_from(core.region.as_str()).ok().map(|region| (REGION, region));
    Ok(S3Response::with_headers(HeadBucketOutput::default(), HeaderMap::from_iter(region)))
}

pub(crate) async fn location<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketLocationInput>,
) -> S3Result<S3Response<GetBucketLocationOutput>> {
    core.store.bucket(&request.input.bucket).map_err(from_api)?;
    let location_constraint =
        (core.region != UNNAMED_REGION).then(|| BucketLocationConstraint::from(core.region.clone()));
    Ok(S3Response::new(GetBucketLocationOutput { location_constraint }))
}

pub(crate) async fn list<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<ListBucketsInput>,
) -> S3Result<S3Response<ListBucketsOutput>> {
    let input = request.input;
    let prefix = input.prefix.clone().unwrap_or_default();
    let after = input.continuation_token.as_deref().map(decode_token).transpose()?;
    let limit = match input.max_buckets {
        None => usize::MAX,
        Some(asked) => usize::try_from(asked)
            .ok()
            .filter(|asked| (1..=10 * BUCKETS_MAX).contains(asked))
            .ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "max-buckets must be from 1 to 10000"))?,
    };
    // All buckets are in the one region.
    let here = input.bucket_region.is_none_or(|region| region == core.region);
    let mut found: Vec<BucketInfo> = core.store.list_buckets().await.map_err(from_api)?;
    let caller = caller(&request.extensions);
    found.retain(|bucket| {
        here && core.shows(&caller, bucket)
            && bucket.name.starts_with(&prefix)
            && after.as_ref().is_none_or(|after| bucket.name > *after)
    });
    let truncated = found.len() > limit;
    found.truncate(limit);
    let continuation_token = found.last().filter(|_| truncated).map(|bucket| encode_token(&bucket.name));
    let described = |bucket: BucketInfo| Bucket {
        bucket_region: Some(core.region.clone()),
        creation_date: Some(timestamp(bucket.created_ms)),
        name: Some(bucket.name),
    };
    Ok(S3Response::new(ListBucketsOutput {
        buckets: Some(found.into_iter().map(described).collect()),
        continuation_token,
        owner: Some(core.shown(&caller.principal)),
        prefix: input.prefix,
    }))
}
