//! Features that no bucket has, as clients expect to read that: an empty configuration, or the error that says so. Tools
//! such as Terraform read all of them of every bucket. To configure one answers `NotImplemented`, as s3s does by itself.

use quarry_object::api::ObjectStore;
use s3s::dto::{
    GetBucketAccelerateConfigurationInput, GetBucketAccelerateConfigurationOutput, GetBucketEncryptionInput,
    GetBucketEncryptionOutput, GetBucketLoggingInput, GetBucketLoggingOutput,
    GetBucketNotificationConfigurationInput, GetBucketNotificationConfigurationOutput,
    GetBucketReplicationInput, GetBucketReplicationOutput, GetBucketRequestPaymentInput,
    GetBucketRequestPaymentOutput, GetObjectLockConfigurationInput, GetObjectLockConfigurationOutput, Payer,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use crate::backend::Core;
use crate::error::{from_api, refuse};

type Answer<T> = S3Result<S3Response<T>>;

fn exists<S: ObjectStore>(core: &Core<S>, bucket: &str) -> S3Result<()> {
    core.store.bucket(bucket).map(|_| ()).map_err(from_api)
}

fn not_found(code: S3ErrorCode, message: &'static str) -> S3Error {
    let mut error = refuse(code, message);
    error.set_status_code(http::StatusCode::NOT_FOUND);
    error
}

pub(crate) async fn encryption<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketEncryptionInput>,
) -> Answer<GetBucketEncryptionOutput> {
    exists(core, &request.input.bucket)?;
    Err(not_found(
        S3ErrorCode::ServerSideEncryptionConfigurationNotFoundError,
        "the server side encryption configuration was not found",
    ))
}

pub(crate) async fn object_lock<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetObjectLockConfigurationInput>,
) -> Answer<GetObjectLockConfigurationOutput> {
    exists(core, &request.input.bucket)?;
    Err(not_found(
        S3ErrorCode::ObjectLockConfigurationNotFoundError,
        "object lock configuration does not exist for this bucket",
    ))
}

pub(crate) async fn replication<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketReplicationInput>,
) -> Answer<GetBucketReplicationOutput> {
    exists(core, &request.input.bucket)?;
    Err(not_found(
        S3ErrorCode::ReplicationConfigurationNotFoundError,
        "the replication configuration was not found",
    ))
}

pub(crate) async fn logging<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketLoggingInput>,
) -> Answer<GetBucketLoggingOutput> {
    exists(core, &request.input.bucket)?;
    Ok(S3Response::new(GetBucketLoggingOutput::default()))
}

pub(crate) async fn notification<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketNotificationConfigurationInput>,
) -> Answer<GetBucketNotificationConfigurationOutput> {
    exists(core, &request.input.bucket)?;
    Ok(S3Response::new(GetBucketNotificationConfigurationOutput::default()))
}

pub(crate) async fn acceleration<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketAccelerateConfigurationInput>,
) -> Answer<GetBucketAccelerateConfigurationOutput> {
    exists(core, &request.input.bucket)?;
    Ok(S3Response::new(GetBucketAccelerateConfigurationOutput::default()))
}

pub(crate) async fn request_payment<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketRequestPaymentInput>,
) -> Answer<GetBucketRequestPaymentOutput> {
    exists(core, &request.input.bucket)?;
    let payer = Some(Payer::from_static(Payer::BUCKET_OWNER));
    Ok(S3Response::new(GetBucketRequestPaymentOutput { payer }))
}
