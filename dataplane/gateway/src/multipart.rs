//! Multipart uploads.

use http::HeaderMap;
use quarry_object::api::{
    ChecksumAlgorithm as Algorithm, CompletedPart, Completion, ListEntry, ListRequest, ObjectStore, PartInfo,
    PartsPage, UploadChecksum,
};
use quarry_object::tier::CLASS_DEFAULT;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, ChecksumType, CommonPrefix,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, Initiator, ListMultipartUploadsInput, ListMultipartUploadsOutput,
    ListPartsInput, ListPartsOutput, MultipartUpload, Owner, Part, StorageClass, UploadPartInput,
    UploadPartOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use crate::access::{acl, caller};
use crate::attributes;
use crate::backend::Core;
use crate::body::RequestBody;
use crate::checksum::{given, kind, type_name};
use crate::conditions::{etag, on_write};
use crate::error::{from_api, from_api_write, refuse};
use crate::list::{Encoding, given as non_empty, owner, page_size};
use crate::object::Written;
use crate::versions;

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
    let mut attributes = attributes::from_request(&request.headers, core.limits.user_metadata_bytes_max)?;
    let caller = caller(&request.extensions);
    acl::add_to_object(core, &caller, &request.input.bucket, &request.headers, &mut attributes)?;
    let input = request.input;
    let checksum = announced(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?;
    let upload = core.store.create_upload(&input.bucket, &input.key, attributes, checksum);
    let upload = upload.await.map_err(from_api)?;
    let (checksum_algorithm, checksum_type) = named(checksum);
    Ok(S3Response::new(CreateMultipartUploadOutput {
        checksum_algorithm,
        checksum_type,
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(upload),
        ..CreateMultipartUploadOutput::default()
    }))
}

/// The checksum that an upload announces.
fn announced(
    algorithm: Option<&ChecksumAlgorithm>,
    kind: Option<&ChecksumType>,
) -> S3Result<Option<UploadChecksum>> {
    let invalid = |problem: &'static str| Err(refuse(S3ErrorCode::InvalidRequest, problem));
    let Some(algorithm) = algorithm else {
        return match kind {
            None => Ok(None),
            Some(_) => invalid("x-amz-checksum-type can only be used with x-amz-checksum-algorithm"),
        };
    };
    let Some(algorithm) = Algorithm::by_name(algorithm.as_str()) else {
        return invalid("the checksum algorithm is not one of CRC32, CRC32C, CRC64NVME, SHA1, SHA256");
    };
    let full_object = match kind.map(ChecksumType::as_str) {
        None => algorithm == Algorithm::Crc64Nvme,
        Some(ChecksumType::FULL_OBJECT) => true,
        Some(ChecksumType::COMPOSITE) => false,
        Some(_) => return invalid("the checksum type must be COMPOSITE or FULL_OBJECT"),
    };
    if full_object && !algorithm.combines() || !full_object && algorithm == Algorithm::Crc64Nvme {
        return invalid("the checksum type cannot be used with the checksum algorithm");
    }
    Ok(Some(UploadChecksum { algorithm, full_object }))
}

fn named(checksum: Option<UploadChecksum>) -> (Option<ChecksumAlgorithm>, Option<ChecksumType>) {
    let algorithm = |checksum: UploadChecksum| checksum.algorithm.name().to_uppercase();
    (
        checksum.map(|checksum| ChecksumAlgorithm::from(algorithm(checksum))),
        checksum.map(|checksum| ChecksumType::from_static(type_name(checksum.full_object))),
    )
}

pub(crate) async fn upload_part<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
    let number = part_number(request.input.part_number)?;
    let body = RequestBody::new(&request, core.limits.put_bytes_max)?;
    let input = request.input;
    let mut written = write_part(core, &input.bucket, &input.key, &input.upload_id, number, body).await?;
    let mut take = |name: &str| written.checksums.remove(name);
    Ok(S3Response::new(UploadPartOutput {
        checksum_crc32: take("crc32"),
        checksum_crc32c: take("crc32c"),
        checksum_crc64nvme: take("crc64nvme"),
        checksum_sha1: take("sha1"),
        checksum_sha256: take("sha256"),
        e_tag: Some(etag(written.etag)),
        ..UploadPartOutput::default()
    }))
}

/// Writes a part.
///
/// # Errors
/// What the object layer says.
pub(crate) async fn write_part<S: ObjectStore>(
    core: &Core<S>,
    bucket: &str,
    key: &str,
    upload: &str,
    number: u16,
    body: RequestBody,
) -> S3Result<Written> {
    let stored = core.store.put_part(bucket, key, upload, number, body).await.map_err(from_api)?;
    let (version, headers) = (None, HeaderMap::new());
    Ok(Written { etag: stored.etag, version, checksums: stored.checksums, headers })
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
    let PartsPage { parts, truncated, checksum, class } = listed.await.map_err(from_api)?;
    let (checksum_algorithm, checksum_type) = named(checksum);
    let next = parts.last().map(|part| i32::from(part.number));
    let Owner { display_name: name, id } = owner(core, &input.bucket)?;
    Ok(S3Response::new(ListPartsOutput {
        checksum_algorithm,
        checksum_type,
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
        storage_class: Some(StorageClass::from(class.unwrap_or_else(|| CLASS_DEFAULT.to_owned()))),
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
        let checksums = given([
            part.checksum_crc32,
            part.checksum_crc32c,
            part.checksum_crc64nvme,
            part.checksum_sha1,
            part.checksum_sha256,
        ]);
        parts.push(CompletedPart { number: part_number(number)?, etag: tag.into_value(), checksums });
    }
    // Refused here as well, so that a mistake of the client costs no call.
    if !parts.is_sorted_by(|a, b| a.number < b.number) {
        return Err(refuse(S3ErrorCode::InvalidPartOrder, "the parts are not in ascending order"));
    }
    let conditions = on_write(input.if_match, input.if_none_match);
    let completion = Completion {
        parts,
        checksums: given([
            input.checksum_crc32,
            input.checksum_crc32c,
            input.checksum_crc64nvme,
            input.checksum_sha1,
            input.checksum_sha256,
        ]),
        full_object: full_object(input.checksum_type.as_ref())?,
        size_bytes: input.mpu_object_size.map(object_size).transpose()?,
    };
    let done =
        core.store.complete_upload(&input.bucket, &input.key, &input.upload_id, completion, conditions);
    let mut done = done.await.map_err(from_api_write)?;
    let checksum_type = kind(&done.checksums);
    let mut take = |name: &str| done.checksums.remove(name);
    Ok(S3Response::new(CompleteMultipartUploadOutput {
        checksum_crc32: take("crc32"),
        checksum_crc32c: take("crc32c"),
        checksum_crc64nvme: take("crc64nvme"),
        checksum_sha1: take("sha1"),
        checksum_sha256: take("sha256"),
        checksum_type,
        version_id: versions::written(done.version),
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(etag(done.etag)),
        ..CompleteMultipartUploadOutput::default()
    }))
}

fn full_object(kind: Option<&ChecksumType>) -> S3Result<Option<bool>> {
    match kind.map(ChecksumType::as_str) {
        None => Ok(None),
        Some(ChecksumType::FULL_OBJECT) => Ok(Some(true)),
        Some(ChecksumType::COMPOSITE) => Ok(Some(false)),
        Some(_) => Err(refuse(S3ErrorCode::InvalidRequest, "the checksum type is not known")),
    }
}

fn object_size(size: i64) -> S3Result<u64> {
    u64::try_from(size)
        .map_err(|_| refuse(S3ErrorCode::InvalidRequest, "x-amz-mp-object-size must not be negative"))
}

pub(crate) async fn list_uploads<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<ListMultipartUploadsInput>,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    let input = request.input;
    let encoding = Encoding::new(input.encoding_type.as_ref())?;
    let (uploads, max_keys) = page_size(input.max_uploads)?;
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = non_empty(input.delimiter.as_ref());
    let after = non_empty(input.key_marker.as_ref());
    // Without a key it means nothing, and S3 does not look at it.
    let after_upload = non_empty(input.upload_id_marker.as_ref()).filter(|_| after.is_some());
    let list = ListRequest { prefix: prefix.clone(), delimiter: delimiter.clone(), after, max_keys };
    let owner = owner(core, &input.bucket)?;
    let page = core.store.list_uploads(&input.bucket, list, after_upload).await.map_err(from_api)?;
    let last = page.entries.last().filter(|_| page.truncated);
    let mut output = ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        prefix: Some(encoding.name(&prefix)),
        key_marker: Some(encoding.name(&input.key_marker.unwrap_or_default())),
        upload_id_marker: Some(input.upload_id_marker.unwrap_or_default()),
        max_uploads: Some(uploads),
        is_truncated: Some(page.truncated),
        next_key_marker: last.map(|entry| encoding.name(entry.name())),
        next_upload_id_marker: last.and_then(|entry| match entry {
            ListEntry::Upload { upload, .. } => Some(upload.clone()),
            _ => None,
        }),
        delimiter: delimiter.map(|delimiter| encoding.name(&delimiter)),
        encoding_type: input.encoding_type,
        ..ListMultipartUploadsOutput::default()
    };
    for entry in page.entries {
        match entry {
            ListEntry::Upload { key, upload, created_ms, checksum, class } => {
                let (checksum_algorithm, checksum_type) = named(checksum);
                output.uploads.get_or_insert_default().push(MultipartUpload {
                    checksum_algorithm,
                    checksum_type,
                    initiated: Some(attributes::timestamp(created_ms)),
                    initiator: Some(Initiator {
                        display_name: owner.display_name.clone(),
                        id: owner.id.clone(),
                    }),
                    key: Some(encoding.name(&key)),
                    owner: Some(owner.clone()),
                    storage_class: Some(StorageClass::from(
                        class.unwrap_or_else(|| CLASS_DEFAULT.to_owned()),
                    )),
                    upload_id: Some(upload),
                });
            }
            ListEntry::Prefix(prefix) => {
                let prefix = CommonPrefix { prefix: Some(encoding.name(&prefix)) };
                output.common_prefixes.get_or_insert_default().push(prefix);
            }
            ListEntry::Object(_) | ListEntry::Version { .. } => {}
        }
    }
    Ok(S3Response::new(output))
}

pub(crate) async fn abort<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let input = request.input;
    core.store.abort_upload(&input.bucket, &input.key, &input.upload_id).await.map_err(from_api)?;
    Ok(S3Response::with_status(AbortMultipartUploadOutput::default(), http::StatusCode::NO_CONTENT))
}
