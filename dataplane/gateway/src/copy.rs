//! CopyObject and UploadPartCopy.

use quarry_object::api::{Conditions, CopySource as Source, ObjectStore, RangeRequest};
use s3s::dto::{
    ChecksumType, CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopyPartResult, CopySource,
    MetadataDirective, UploadPartCopyInput, UploadPartCopyOutput,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use crate::attributes;
use crate::backend::Core;
use crate::conditions::{etag, on_read};
use crate::error::{from_api_write, refuse};
use crate::multipart::part_number;

/// Where a copy reads from; empty for an access point, which there is none of.
pub(crate) fn source_bucket(source: &CopySource) -> String {
    match source {
        CopySource::Bucket { bucket, .. } => bucket.to_string(),
        _ => String::new(),
    }
}

pub(crate) async fn object<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<CopyObjectInput>,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let replaced = attributes::from_request(&request.headers, core.limits.user_metadata_bytes_max)?;
    let input = request.input;
    let attributes = match input.metadata_directive.as_ref().map(MetadataDirective::as_str) {
        None | Some(MetadataDirective::COPY) => None,
        Some(MetadataDirective::REPLACE) => Some(replaced),
        Some(_) => return Err(refuse(S3ErrorCode::InvalidArgument, "unknown metadata directive")),
    };
    let conditions = on_read(
        input.copy_source_if_match,
        input.copy_source_if_none_match,
        input.copy_source_if_modified_since,
        input.copy_source_if_unmodified_since,
    );
    let source = source(input.copy_source, conditions, None)?;
    if attributes.is_none() && source.bucket == input.bucket && source.key == input.key {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            "this copy request is illegal because it copies an object to itself without changing its metadata",
        ));
    }
    let copied = core.store.copy_object(source, &input.bucket, &input.key, attributes, Conditions::default());
    let mut copied = copied.await.map_err(from_api_write)?;
    let checksum_type =
        (!copied.checksums.is_empty()).then(|| ChecksumType::from_static(ChecksumType::FULL_OBJECT));
    let mut take = |name: &str| copied.checksums.remove(name);
    let result = CopyObjectResult {
        checksum_crc32: take("crc32"),
        checksum_crc32c: take("crc32c"),
        checksum_crc64nvme: take("crc64nvme"),
        checksum_sha1: take("sha1"),
        checksum_sha256: take("sha256"),
        checksum_type,
        e_tag: Some(etag(copied.etag)),
        last_modified: Some(attributes::timestamp(copied.last_modified_ms)),
    };
    Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() }))
}

pub(crate) async fn part<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<UploadPartCopyInput>,
) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let input = request.input;
    let number = part_number(input.part_number)?;
    let range = input.copy_source_range.as_deref().map(source_range).transpose()?;
    let conditions = on_read(
        input.copy_source_if_match,
        input.copy_source_if_none_match,
        input.copy_source_if_modified_since,
        input.copy_source_if_unmodified_since,
    );
    let source = source(input.copy_source, conditions, range)?;
    let copied = core.store.copy_part(source, &input.bucket, &input.key, &input.upload_id, number);
    let mut copied = copied.await.map_err(from_api_write)?;
    let mut take = |name: &str| copied.checksums.remove(name);
    let result = CopyPartResult {
        checksum_crc32: take("crc32"),
        checksum_crc32c: take("crc32c"),
        checksum_crc64nvme: take("crc64nvme"),
        checksum_sha1: take("sha1"),
        checksum_sha256: take("sha256"),
        e_tag: Some(etag(copied.etag)),
        last_modified: Some(attributes::timestamp(copied.last_modified_ms)),
    };
    Ok(S3Response::new(UploadPartCopyOutput {
        copy_part_result: Some(result),
        ..UploadPartCopyOutput::default()
    }))
}

fn source(header: CopySource, conditions: Conditions, range: Option<RangeRequest>) -> S3Result<Source> {
    match header {
        CopySource::Bucket { bucket, key, version_id } => {
            if version_id.is_some_and(|version| &*version != "null") {
                return Err(refuse(
                    S3ErrorCode::NoSuchVersion,
                    "versions are not kept; only the version null exists",
                ));
            }
            Ok(Source { bucket: bucket.into(), key: key.into(), conditions, range })
        }
        CopySource::AccessPoint { .. } | CopySource::Outpost { .. } => {
            Err(refuse(S3ErrorCode::InvalidArgument, "the copy source must be <bucket>/<key>"))
        }
    }
}

/// S3 takes only `bytes=first-last` here.
fn source_range(header: &str) -> Result<RangeRequest, S3Error> {
    let parsed = header.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let parsed = parsed.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match parsed {
        Some((first, last)) if first <= last => Ok(RangeRequest::Inclusive { first, last }),
        _ => Err(refuse(S3ErrorCode::InvalidArgument, "x-amz-copy-source-range must be bytes=first-last")),
    }
}
