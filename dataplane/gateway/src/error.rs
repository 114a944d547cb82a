//! One S3 error code for every error of the object layer.

use std::borrow::Cow;

use http::header::{ALLOW, CONTENT_RANGE, ETAG, LAST_MODIFIED, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use quarry_object::api::{ApiError, BodyError, VersionId};
use s3s::{S3Error, S3ErrorCode};

use crate::attributes::http_date;
use crate::chunked::ChunkError;

pub(crate) const VERSION_ID: HeaderName = HeaderName::from_static("x-amz-version-id");
const DELETE_MARKER: HeaderName = HeaderName::from_static("x-amz-delete-marker");
/// `BodyError::Mismatch` of `x-amz-content-sha256`, which has an error code of its own.
pub(crate) const CONTENT_SHA256: &str = "x-amz-content-sha256";
/// `BodyError::Mismatch` of a chunk or trailer signature.
pub(crate) const CHUNK_SIGNATURE: &str = "chunk signature";

/// What is wrong with the body of a request, as far as the gateway knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// Its length, a digest or a checksum.
    Body(BodyError),
    /// Its aws-chunked framing.
    Chunked(ChunkError),
    /// The client did not send it.
    Timeout,
    /// It is a document, and the core holds too many.
    Overload,
}

impl From<&Fault> for BodyError {
    fn from(fault: &Fault) -> Self {
        match fault {
            Fault::Body(error) => error.clone(),
            Fault::Chunked(error) => error.into(),
            Fault::Timeout | Fault::Overload => Self::Incomplete,
        }
    }
}

/// An S3 error with a message.
pub(crate) fn refuse(code: S3ErrorCode, message: impl Into<Cow<'static, str>>) -> S3Error {
    S3Error::with_message(code, message)
}

/// A code that s3s does not know.
pub(crate) fn custom(
    code: &'static str,
    status: StatusCode,
    message: impl Into<Cow<'static, str>>,
) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message);
    error.set_status_code(status);
    error
}

/// The answer to a call that failed.
pub(crate) fn from_api(error: ApiError) -> S3Error {
    let message = error.to_string();
    match error {
        ApiError::NoSuchBucket => refuse(S3ErrorCode::NoSuchBucket, message),
        ApiError::BucketAlreadyOwnedByYou => refuse(S3ErrorCode::BucketAlreadyOwnedByYou, message),
        ApiError::BucketNotEmpty => refuse(S3ErrorCode::BucketNotEmpty, message),
        ApiError::InvalidBucketName => refuse(S3ErrorCode::InvalidBucketName, message),
        ApiError::NoSuchKey => refuse(S3ErrorCode::NoSuchKey, message),
        ApiError::DeleteMarker { version } => {
            let mut refused = refuse(S3ErrorCode::NoSuchKey, message);
            refused.set_headers(marker_headers(version));
            refused
        }
        ApiError::VersionIsMarker { version, last_modified_ms } => {
            let mut refused = refuse(S3ErrorCode::MethodNotAllowed, message);
            let mut headers = marker_headers(version);
            headers.insert(LAST_MODIFIED, http_date(last_modified_ms));
            headers.insert(ALLOW, HeaderValue::from_static("DELETE"));
            refused.set_headers(headers);
            refused
        }
        ApiError::NoSuchVersion => refuse(S3ErrorCode::NoSuchVersion, message),
        ApiError::NoSuchPart { .. } => {
            custom("InvalidPartNumber", StatusCode::RANGE_NOT_SATISFIABLE, message)
        }
        ApiError::NoSuchUpload => refuse(S3ErrorCode::NoSuchUpload, message),
        ApiError::InvalidPart { .. } => refuse(S3ErrorCode::InvalidPart, message),
        ApiError::InvalidPartOrder => refuse(S3ErrorCode::InvalidPartOrder, message),
        ApiError::EntityTooSmall { .. } => refuse(S3ErrorCode::EntityTooSmall, message),
        ApiError::EntityTooLarge { .. } => refuse(S3ErrorCode::EntityTooLarge, message),
        ApiError::KeyTooLong => refuse(S3ErrorCode::KeyTooLongError, message),
        ApiError::PreconditionFailed => refuse(S3ErrorCode::PreconditionFailed, message),
        ApiError::NotModified { etag, last_modified_ms } => not_modified(&etag, last_modified_ms),
        ApiError::InvalidRange { size_bytes } => {
            let mut refused = refuse(S3ErrorCode::InvalidRange, message);
            let total = HeaderValue::try_from(format!("bytes */{size_bytes}"));
            refused.set_headers(HeaderMap::from_iter([(
                CONTENT_RANGE,
                total.expect("digits are a header value"),
            )]));
            refused
        }
        ApiError::InvalidRequest { .. } => refuse(S3ErrorCode::InvalidRequest, message),
        ApiError::Body(broken) => from_body(&broken),
        ApiError::OutOfSpace => custom("InsufficientStorage", StatusCode::INSUFFICIENT_STORAGE, message),
        ApiError::Unavailable { .. } => {
            let mut refused = refuse(S3ErrorCode::ServiceUnavailable, message);
            refused.set_headers(HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("1"))]));
            refused
        }
        // The details are for our log, not for clients.
        ApiError::DataLoss { detail } => {
            tracing::error!(event = "object_data_loss", detail);
            refuse(S3ErrorCode::InternalError, "data of the object is lost or damaged")
        }
        ApiError::Internal { detail } => {
            tracing::error!(event = "request_internal_error", detail);
            refuse(S3ErrorCode::InternalError, "internal error; the outcome of the request is not known")
        }
    }
}

/// As [`from_api`] where 304 makes no sense: a copy source or a write.
pub(crate) fn from_api_write(error: ApiError) -> S3Error {
    match error {
        ApiError::NotModified { .. } => from_api(ApiError::PreconditionFailed),
        other => from_api(other),
    }
}

/// What tells of a delete marker in an error.
fn marker_headers(version: VersionId) -> HeaderMap {
    let version = HeaderValue::try_from(version.to_string()).expect("version ids are visible ASCII");
    HeaderMap::from_iter([(DELETE_MARKER, HeaderValue::from_static("true")), (VERSION_ID, version)])
}

fn not_modified(etag: &str, last_modified_ms: u64) -> S3Error {
    let mut refused = S3Error::new(S3ErrorCode::NotModified);
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("\"{etag}\"")) {
        headers.insert(ETAG, value);
    }
    headers.insert(LAST_MODIFIED, http_date(last_modified_ms));
    refused.set_headers(headers);
    refused.set_status_code(StatusCode::NOT_MODIFIED);
    refused
}

/// The answer to a request with a fault.
pub(crate) fn from_fault(fault: &Fault) -> S3Error {
    match fault {
        Fault::Chunked(error @ ChunkError::Trailer { .. }) => {
            custom("MalformedTrailerError", StatusCode::BAD_REQUEST, error.to_string())
        }
        Fault::Chunked(error) => from_body(&error.into()),
        Fault::Body(error) => from_body(error),
        Fault::Timeout => {
            let mut refused = refuse(
                S3ErrorCode::RequestTimeout,
                "the request body was not sent within the time a client is waited for",
            );
            refused.set_status_code(StatusCode::REQUEST_TIMEOUT);
            refused
        }
        Fault::Overload => slow_down(),
    }
}

/// The answer to a request that would be too much.
pub(crate) fn slow_down() -> S3Error {
    let mut refused = refuse(S3ErrorCode::SlowDown, "there are too many requests; reduce your request rate");
    refused.set_headers(HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("1"))]));
    refused
}

/// The answer to a request whose body is broken.
fn from_body(error: &BodyError) -> S3Error {
    let message = error.to_string();
    match error {
        BodyError::Incomplete => refuse(S3ErrorCode::IncompleteBody, message),
        BodyError::Mismatch { what } if what == CONTENT_SHA256 => {
            custom("XAmzContentSHA256Mismatch", StatusCode::BAD_REQUEST, message)
        }
        BodyError::Mismatch { what } if what == CHUNK_SIGNATURE => {
            refuse(S3ErrorCode::SignatureDoesNotMatch, message)
        }
        BodyError::Mismatch { .. } => refuse(S3ErrorCode::BadDigest, message),
        BodyError::Malformed { .. } => refuse(S3ErrorCode::InvalidRequest, message),
        BodyError::Source { .. } => refuse(S3ErrorCode::InternalError, message),
    }
}
