//! Whether a bucket keeps older versions.

use quarry_object::api::{ObjectStore, Versioning};
use s3s::dto::{
    BucketVersioningStatus, GetBucketVersioningInput, GetBucketVersioningOutput, MFADelete,
    PutBucketVersioningInput, PutBucketVersioningOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use crate::backend::Core;
use crate::error::{from_api, refuse};

pub(crate) async fn get<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketVersioningInput>,
) -> S3Result<S3Response<GetBucketVersioningOutput>> {
    let bucket = core.store.bucket(&request.input.bucket).map_err(from_api)?;
    let status = match bucket.config.versioning {
        // S3 says nothing of a bucket that never was versioned.
        Versioning::Unversioned => None,
        Versioning::Enabled => Some(BucketVersioningStatus::ENABLED),
        Versioning::Suspended => Some(BucketVersioningStatus::SUSPENDED),
    };
    Ok(S3Response::new(GetBucketVersioningOutput {
        status: status.map(BucketVersioningStatus::from_static),
        ..GetBucketVersioningOutput::default()
    }))
}

pub(crate) async fn put<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutBucketVersioningInput>,
) -> S3Result<S3Response<PutBucketVersioningOutput>> {
    let input = request.input;
    let wanted = input.versioning_configuration;
    if input.mfa.is_some() || wanted.mfa_delete.is_some_and(|mfa| mfa.as_str() != MFADelete::DISABLED) {
        return Err(refuse(S3ErrorCode::NotImplemented, "MFA delete is not implemented"));
    }
    let versioning = match wanted.status.as_ref().map(BucketVersioningStatus::as_str) {
        Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
        Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
        Some(_) => {
            return Err(refuse(S3ErrorCode::MalformedXML, "the status must be Enabled or Suspended"));
        }
        None => {
            return Err(refuse(
                S3ErrorCode::IllegalVersioningConfigurationException,
                "the versioning configuration must name a status",
            ));
        }
    };
    core.store.set_versioning(&input.bucket, versioning).await.map_err(from_api)?;
    Ok(S3Response::new(PutBucketVersioningOutput {}))
}
