//! Multipart uploads.

use quarry_object::api::{CompletedPart, ObjectStore, PartInfo};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, Initiator,
    ListPartsInput, ListPartsOutput, Owner, Part, StorageClass, UploadPartInput, UploadPartOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use crate::attributes;
use crate::backend::Core;
use crate::body::RequestBody;
use crate::conditions::{etag, on_write};
use crate::error::{from_api, from_api_write, refuse};

/// Parts in one upload, as in S3.
const PARTS_MAX: usize = 10_000;
/// Parts in one page of ListParts.
const PAGE_MAX: usize = 1000;

/// A part number that exists.
///
/// # Errors
/// `InvalidArgument` outside 1..=10000.
pub(crate) fn part_number(number: i32) -> S3Result<u16> {
    u16::try_from(number)
        .ok()
        .filter(|number| (1..=PARTS_MAX).contains(&usize::from(*number)))
        .ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "the part number must be from 1 to 10000"))
}

pub(crate) async fn create<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let attributes = attributes::from_request(&request.headers, core.limits.user_metadata_bytes_max)?;
    let input = request.input;
    let upload = core.store.create_upload(&input.bucket, &input.key, attributes).await.map_err(from_api)?;
    Ok(S3Response::new(CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(upload),
        ..CreateMultipartUploadOutput::default()
    }))
}

pub(crate) async fn upload_part<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
    let number = part_number(request.input.part_number)?;
    let body = RequestBody::new(&request, core.limits.put_bytes_max)?;
    let input = request.input;
    let stored = core.store.put_part(&input.bucket, &input.key, &input.upload_id, number, body);
    let mut stored = stored.await.map_err(from_api)?;
    let mut take = |name: &str| stored.checksums.remove(name);
    Ok(S3Response::new(UploadPartOutput {
        checksum_crc32: take("crc32"),
        checksum_crc32c: take("crc32c"),
        checksum_crc64nvme: take("crc64nvme"),
        checksum_sha1: take("sha1"),
        checksum_sha256: take("sha256"),
        e_tag: Some(etag(stored.etag)),
        ..UploadPartOutput::default()
    }))
}

pub(crate) async fn list_parts<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<ListPartsInput>,
) -> S3Result<S3Response<ListPartsOutput>> {
    let input = request.input;
    let refused =
        |name: &str| refuse(S3ErrorCode::InvalidArgument, format!("{name} must be a number from 0"));
    let after = input.part_number_marker.unwrap_or(0);
    let after = u16::try_from(after).map_err(|_| refused("part-number-marker"))?;
    let limit = match input.max_parts {
        None => PAGE_MAX,
        Some(asked) => usize::try_from(asked).map_err(|_| refused("max-parts"))?.min(PAGE_MAX),
    };
    let listed = core.store.list_parts(&input.bucket, &input.key, &input.upload_id, after, limit);
    let (parts, truncated) = listed.await.map_err(from_api)?;
    let next = parts.last().map(|part| i32::from(part.number));
    let id = Some(core.owner_id.clone());
    let name = Some(core.owner_name.clone());
    Ok(S3Response::new(ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        initiator: Some(Initiator { display_name: name.clone(), id: id.clone() }),
        owner: Some(Owner { display_name: name, id }),
        is_truncated: Some(truncated),
        max_parts: i32::try_from(limit).ok(),
        next_part_number_marker: next,
        part_number_marker: Some(i32::from(after)),
        parts: Some(parts.into_iter().map(described).collect()),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        ..ListPartsOutput::default()
    }))
}

fn described(mut part: PartInfo) -> Part {
    let mut take = |name: &str| part.checksums.remove(name);
    Part {
        checksum_crc32: take("crc32"),
        checksum_crc32c: take("crc32c"),
        checksum_crc64nvme: take("crc64nvme"),
        checksum_sha1: take("sha1"),
        checksum_sha256: take("sha256"),
        e_tag: Some(etag(part.etag)),
        last_modified: Some(attributes::timestamp(part.last_modified_ms)),
        part_number: Some(i32::from(part.number)),
        size: i64::try_from(part.size_bytes).ok(),
    }
}

pub(crate) async fn complete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let input = request.input;
    let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
    if named.is_empty() || named.len() > PARTS_MAX {
        return Err(refuse(S3ErrorCode::MalformedXML, "from 1 to 10000 parts must be named"));
    }
    let mut parts = Vec::with_capacity(named.len());
    for part in named {
        let (Some(number), Some(tag)) = (part.part_number, part.e_tag) else {
            return Err(refuse(S3ErrorCode::MalformedXML, "every part needs a PartNumber and an ETag"));
        };
        parts.push(CompletedPart { number: part_number(number)?, etag: tag.into_value() });
    }
    // Refused here as well, so that a mistake of the client costs no call.
    if !parts.is_sorted_by(|a, b| a.number < b.number) {
        return Err(refuse(S3ErrorCode::InvalidPartOrder, "the parts are not in ascending order"));
    }
    let conditions = on_write(input.if_match, input.if_none_match);
    let done = core.store.complete_upload(&input.bucket, &input.key, &input.upload_id, parts, conditions);
    let mut done = done.await.map_err(from_api_write)?;
    let mut take = |name: &str| done.checksums.remove(name);
    Ok(S3Response::new(CompleteMultipartUploadOutput {
        checksum_crc32: take("crc32"),
        checksum_crc32c: take("crc32c"),
        checksum_crc64nvme: take("crc64nvme"),
        checksum_sha1: take("sha1"),
        checksum_sha256: take("sha256"),
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(etag(done.etag)),
        ..CompleteMultipartUploadOutput::default()
    }))
}

pub(crate) async fn abort<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let input = request.input;
    core.store.abort_upload(&input.bucket, &input.key, &input.upload_id).await.map_err(from_api)?;
    Ok(S3Response::with_status(AbortMultipartUploadOutput::default(), http::StatusCode::NO_CONTENT))
}
