//! The policy of a bucket. It is kept as it was given, and given back byte for byte.

use http::StatusCode;
use quarry_identity::Policy;
use quarry_object::api::{DocumentKind, ObjectStore};
use s3s::dto::{
    DeleteBucketPolicyInput, DeleteBucketPolicyOutput, GetBucketPolicyInput, GetBucketPolicyOutput,
    GetBucketPolicyStatusInput, GetBucketPolicyStatusOutput, PolicyStatus, PutBucketPolicyInput,
    PutBucketPolicyOutput,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use super::blocks;
use crate::backend::Core;
use crate::configuration::remove;
use crate::error::{from_api, refuse};

fn no_policy() -> S3Error {
    refuse(S3ErrorCode::NoSuchBucketPolicy, "the bucket policy does not exist")
}

pub(crate) async fn get<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketPolicyInput>,
) -> S3Result<S3Response<GetBucketPolicyOutput>> {
    let bucket = core.store.bucket(&request.input.bucket).map_err(from_api)?;
    let policy = bucket.config.document(DocumentKind::Policy).ok_or_else(no_policy)?;
    Ok(S3Response::new(GetBucketPolicyOutput { policy: Some(policy.to_owned()) }))
}

pub(crate) async fn put<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutBucketPolicyInput>,
) -> S3Result<S3Response<PutBucketPolicyOutput>> {
    let input = request.input;
    let bucket = core.store.bucket(&input.bucket).map_err(from_api)?;
    let malformed = |problem: String| refuse(S3ErrorCode::MalformedPolicy, problem);
    let policy =
        Policy::of_bucket(&input.policy, &bucket.name).map_err(|error| malformed(error.to_string()))?;
    if policy.is_public() && blocks::of(&bucket).block_public_policy {
        let problem = "public policies are blocked by the public access block of the bucket";
        return Err(refuse(S3ErrorCode::AccessDenied, problem));
    }
    let set = core.store.set_bucket_document(&bucket.name, DocumentKind::Policy, Some(input.policy));
    set.await.map_err(from_api)?;
    Ok(S3Response::with_status(PutBucketPolicyOutput {}, StatusCode::NO_CONTENT))
}

pub(crate) async fn delete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeleteBucketPolicyInput>,
) -> S3Result<S3Response<DeleteBucketPolicyOutput>> {
    remove(core, &request.input.bucket, DocumentKind::Policy).await?;
    Ok(S3Response::with_status(DeleteBucketPolicyOutput {}, StatusCode::NO_CONTENT))
}

pub(crate) async fn status<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketPolicyStatusInput>,
) -> S3Result<S3Response<GetBucketPolicyStatusOutput>> {
    let bucket = core.store.bucket(&request.input.bucket).map_err(from_api)?;
    let policy = core.policies.of(&bucket).ok_or_else(no_policy)?;
    let policy_status = Some(PolicyStatus { is_public: Some(policy.is_public()) });
    Ok(S3Response::new(GetBucketPolicyStatusOutput { policy_status }))
}
