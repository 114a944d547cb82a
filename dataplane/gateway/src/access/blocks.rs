//! PublicAccessBlock: limits to what policies and lists may grant to everyone. A bucket without one has none of them.

use http::StatusCode;
use quarry_object::api::{BucketInfo, DocumentKind, ObjectStore};
use s3s::dto::{
    DeletePublicAccessBlockInput, DeletePublicAccessBlockOutput, GetPublicAccessBlockInput,
    GetPublicAccessBlockOutput, PublicAccessBlockConfiguration, PutPublicAccessBlockInput,
    PutPublicAccessBlockOutput,
};
use s3s::{S3Request, S3Response, S3Result};
use serde::{Deserialize, Serialize};

use crate::backend::Core;
use crate::configuration::{parse, read, remove, write};
use crate::error::custom;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Blocks {
    /// Public lists are refused.
    pub(crate) block_public_acls: bool,
    /// Public lists that exist grant nothing.
    pub(crate) ignore_public_acls: bool,
    /// Public policies are refused.
    pub(crate) block_public_policy: bool,
    /// A public policy that exists grants nothing to strangers.
    pub(crate) restrict_public_buckets: bool,
}

/// Those of a bucket. Ones that cannot be read block everything.
pub(crate) fn of(bucket: &BucketInfo) -> Blocks {
    let all = Blocks {
        block_public_acls: true,
        ignore_public_acls: true,
        block_public_policy: true,
        restrict_public_buckets: true,
    };
    parse(bucket, DocumentKind::PublicAccessBlock).map_or(all, Option::unwrap_or_default)
}

pub(crate) async fn get<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetPublicAccessBlockInput>,
) -> S3Result<S3Response<GetPublicAccessBlockOutput>> {
    let found: Option<Blocks> = read(core, &request.input.bucket, DocumentKind::PublicAccessBlock)?;
    let blocks = found.ok_or_else(|| {
        let problem = "the public access block configuration was not found";
        custom("NoSuchPublicAccessBlockConfiguration", StatusCode::NOT_FOUND, problem)
    })?;
    let public_access_block_configuration = Some(PublicAccessBlockConfiguration {
        block_public_acls: Some(blocks.block_public_acls),
        block_public_policy: Some(blocks.block_public_policy),
        ignore_public_acls: Some(blocks.ignore_public_acls),
        restrict_public_buckets: Some(blocks.restrict_public_buckets),
    });
    Ok(S3Response::new(GetPublicAccessBlockOutput { public_access_block_configuration }))
}

pub(crate) async fn put<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutPublicAccessBlockInput>,
) -> S3Result<S3Response<PutPublicAccessBlockOutput>> {
    let wanted = request.input.public_access_block_configuration;
    let blocks = Blocks {
        block_public_acls: wanted.block_public_acls.unwrap_or(false),
        ignore_public_acls: wanted.ignore_public_acls.unwrap_or(false),
        block_public_policy: wanted.block_public_policy.unwrap_or(false),
        restrict_public_buckets: wanted.restrict_public_buckets.unwrap_or(false),
    };
    write(core, &request.input.bucket, DocumentKind::PublicAccessBlock, &blocks).await?;
    Ok(S3Response::new(PutPublicAccessBlockOutput {}))
}

pub(crate) async fn delete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeletePublicAccessBlockInput>,
) -> S3Result<S3Response<DeletePublicAccessBlockOutput>> {
    remove(core, &request.input.bucket, DocumentKind::PublicAccessBlock).await?;
    Ok(S3Response::with_status(DeletePublicAccessBlockOutput {}, StatusCode::NO_CONTENT))
}
