//! CopyObject and UploadPartCopy.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};
use quarry_object::api::{
    ApiError, Attributes, ChecksumAlgorithm, Conditions, CopyChanges, CopySource as Source, ObjectStore,
    RangeRequest,
};
use quarry_object::objects::NEVER_COPIED;
use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopyPartResult, CopySource, MetadataDirective,
    TaggingDirective, UploadPartCopyInput, UploadPartCopyOutput,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use crate::access::{acl, caller};
use crate::attributes;
use crate::backend::Core;
use crate::checksum::kind;
use crate::conditions::{etag, on_read};
use crate::error::{from_api_write, refuse};
use crate::front::range;
use crate::multipart::part_number;
use crate::versions::{self, version};

/// Bucket and key that a copy reads from; empty for an access point, which there is none of.
pub(crate) fn source_place(source: &CopySource) -> (String, String) {
    match source {
        CopySource::Bucket { bucket, key, .. } => (bucket.to_string(), key.to_string()),
        _ => Default::default(),
    }
}

pub(crate) async fn object<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<CopyObjectInput>,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let mut replaced = attributes::from_request(&request.headers, core.limits.user_metadata_bytes_max)?;
    let destination = on_destination(&request.headers)?;
    let mut owned = Attributes::default();
    let caller = caller(&request.extensions);
    acl::add_to_object(core, &caller, &request.input.bucket, &request.headers, &mut owned)?;
    let input = request.input;
    let attributes = match input.metadata_directive.as_ref().map(MetadataDirective::as_str) {
        None | Some(MetadataDirective::COPY) => None,
        Some(MetadataDirective::REPLACE) => Some(replaced.clone()),
        Some(_) => return Err(refuse(S3ErrorCode::InvalidArgument, "unknown metadata directive")),
    };
    let tags = match input.tagging_directive.as_ref().map(TaggingDirective::as_str) {
        None | Some(TaggingDirective::COPY) => None,
        Some(TaggingDirective::REPLACE) => Some(std::mem::take(&mut replaced.tags)),
        Some(_) => return Err(refuse(S3ErrorCode::InvalidArgument, "unknown tagging directive")),
    };
    let own_headers = replaced.headers.into_iter().filter(|(name, _)| NEVER_COPIED.contains(&name.as_str()));
    let own_headers: BTreeMap<String, String> = own_headers.collect();
    let checksum = match &input.checksum_algorithm {
        None => None,
        Some(name) => Some(
            ChecksumAlgorithm::by_name(name.as_str())
                .ok_or_else(|| refuse(S3ErrorCode::InvalidRequest, "the checksum algorithm is not known"))?,
        ),
    };
    let conditions = on_read(
        input.copy_source_if_match,
        input.copy_source_if_none_match,
        input.copy_source_if_modified_since,
        input.copy_source_if_unmodified_since,
    );
    let source = source(input.copy_source, conditions, None)?;
    let itself = source.version.is_none() && source.bucket == input.bucket && source.key == input.key;
    if attributes.is_none() && tags.is_none() && own_headers.is_empty() && itself {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            "this copy request is illegal because it copies an object to itself without changing its metadata",
        ));
    }
    let mut own_headers = own_headers;
    own_headers.extend(owned.headers.clone());
    let mut attributes = attributes;
    if let Some(attributes) = &mut attributes {
        attributes.headers.extend(owned.headers);
    }
    let changes = CopyChanges { attributes, own_headers, tags, checksum };
    let copied = core.store.copy_object(source, &input.bucket, &input.key, changes, destination);
    let (mut copied, source_version) = copied.await.map_err(from_source)?;
    let checksum_type = kind(&copied.checksums);
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
    Ok(S3Response::new(CopyObjectOutput {
        copy_object_result: Some(result),
        copy_source_version_id: source_version.map(|version| version.to_string()),
        version_id: versions::written(copied.version),
        ..CopyObjectOutput::default()
    }))
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
    let (mut copied, source_version) = copied.await.map_err(from_source)?;
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
        copy_source_version_id: source_version.map(|version| version.to_string()),
        ..UploadPartCopyOutput::default()
    }))
}

/// As for writes; the source may be a delete marker, which a copy answers in its own way.
fn from_source(error: ApiError) -> S3Error {
    match error {
        ApiError::VersionIsMarker { .. } => refuse(
            S3ErrorCode::InvalidRequest,
            "the source of a copy request may not specifically refer to a delete marker by version id",
        ),
        other => from_api_write(other),
    }
}

/// Conditions on the object that the copy replaces, which s3s does not read.
fn on_destination(headers: &HeaderMap) -> S3Result<Conditions> {
    let etags = |name: &HeaderName| {
        let text = headers.get(name).map(|value| value.to_str().map(str::trim)).transpose();
        let text =
            text.map_err(|_| refuse(S3ErrorCode::InvalidArgument, format!("the header {name} is not text")))?;
        Ok::<_, S3Error>(text.map(|text| vec![text.trim_matches('"').to_owned()]))
    };
    Ok(Conditions {
        if_match: etags(&IF_MATCH)?,
        if_none_match: etags(&IF_NONE_MATCH)?,
        ..Conditions::default()
    })
}

fn source(header: CopySource, conditions: Conditions, range: Option<RangeRequest>) -> S3Result<Source> {
    match header {
        CopySource::Bucket { bucket, key, version_id } => {
            let version = version(version_id.as_deref())?;
            Ok(Source { bucket: bucket.into(), key: key.into(), version, conditions, range })
        }
        CopySource::AccessPoint { .. } | CopySource::Outpost { .. } => {
            Err(refuse(S3ErrorCode::InvalidArgument, "the copy source must be <bucket>/<key>"))
        }
    }
}

/// S3 takes only `bytes=first-last` here.
fn source_range(header: &str) -> Result<RangeRequest, S3Error> {
    match range::parse(header) {
        Some(range @ RangeRequest::Inclusive { .. }) if header.starts_with("bytes=") => Ok(range),
        _ => Err(refuse(S3ErrorCode::InvalidArgument, "x-amz-copy-source-range must be bytes=first-last")),
    }
}
