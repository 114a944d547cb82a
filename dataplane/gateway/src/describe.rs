//! GetObjectAttributes: what an object is, without its bytes. Its ETag is bare in S3, unlike all others; s3s can only write
//! quoted ones, so `reply` takes the quotes off.

use quarry_object::api::{ObjectParts, ObjectStore, Selector};
use s3s::dto::{
    Checksum, GetObjectAttributesInput, GetObjectAttributesOutput, GetObjectAttributesParts,
    ObjectAttributes, ObjectPart, StorageClass,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use crate::attributes::{storage_class, timestamp};
use crate::backend::Core;
use crate::checksum::{Named, kind};
use crate::conditions::etag;
use crate::error::{from_api, refuse};
use crate::versions::version;

/// Parts in one page, as in S3.
const PAGE_MAX: usize = 1000;

/// The name of the operation in the exchange.
pub(crate) const OPERATION: &str = "GetObjectAttributes";

pub(crate) async fn attributes<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetObjectAttributesInput>,
) -> S3Result<S3Response<GetObjectAttributesOutput>> {
    let input = request.input;
    let known = [
        ObjectAttributes::ETAG,
        ObjectAttributes::CHECKSUM,
        ObjectAttributes::OBJECT_PARTS,
        ObjectAttributes::STORAGE_CLASS,
        ObjectAttributes::OBJECT_SIZE,
    ];
    // One header line can hold several names, which s3s does not take apart.
    let lines = input.object_attributes.iter().map(ObjectAttributes::as_str);
    let asked: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    if asked.is_empty() || !asked.iter().all(|name| known.contains(name)) {
        return Err(refuse(S3ErrorCode::InvalidArgument, "invalid attribute name specified"));
    }
    let asks = |name| asked.contains(&name);
    let refused = |name| refuse(S3ErrorCode::InvalidArgument, format!("{name} must be a number from 0"));
    let after =
        u16::try_from(input.part_number_marker.unwrap_or(0)).map_err(|_| refused("part-number-marker"))?;
    let limit = match input.max_parts {
        None => PAGE_MAX,
        Some(asked) => usize::try_from(asked).map_err(|_| refused("max-parts"))?.min(PAGE_MAX),
    };
    let version = version(input.version_id.as_deref())?;
    let (info, parts) = if asks(ObjectAttributes::OBJECT_PARTS) {
        let found = core.store.object_parts(&input.bucket, &input.key, version, after, limit);
        let found = found.await.map_err(from_api)?;
        (found.info.clone(), (found.info.parts > 0).then(|| described(found, after, limit)))
    } else {
        let selector = Selector { version, ..Selector::default() };
        let found = core.store.head_object(&input.bucket, &input.key, selector, Default::default());
        (found.await.map_err(from_api)?.info, None)
    };
    let checksum = (asks(ObjectAttributes::CHECKSUM) && !info.checksums.is_empty()).then(|| {
        let checksum_type = kind(&info.checksums);
        // Here S3 leaves out the number of parts.
        let plain = info
            .checksums
            .iter()
            .map(|(name, value)| (name.clone(), value.split('-').next().unwrap_or_default().to_owned()));
        let mut named = Named(plain.collect());
        Checksum {
            checksum_crc32: named.take("crc32"),
            checksum_crc32c: named.take("crc32c"),
            checksum_crc64nvme: named.take("crc64nvme"),
            checksum_sha1: named.take("sha1"),
            checksum_sha256: named.take("sha256"),
            checksum_type,
        }
    });
    Ok(S3Response::new(GetObjectAttributesOutput {
        checksum,
        e_tag: asks(ObjectAttributes::ETAG).then(|| etag(info.etag.clone())),
        last_modified: Some(timestamp(info.last_modified_ms)),
        object_parts: parts,
        object_size: i64::try_from(info.size_bytes).ok().filter(|_| asks(ObjectAttributes::OBJECT_SIZE)),
        storage_class: asks(ObjectAttributes::STORAGE_CLASS)
            .then(|| StorageClass::from(storage_class(&info.attributes).to_owned())),
        version_id: info.version.map(|version| version.to_string()),
        ..GetObjectAttributesOutput::default()
    }))
}

/// Parts are listed, as in S3, if they were uploaded with checksums of their own.
fn described(found: ObjectParts, after: u16, limit: usize) -> GetObjectAttributesParts {
    let total_parts_count = i32::try_from(found.info.parts).ok();
    let algorithm = found.info.checksums.keys().next().cloned().unwrap_or_default();
    if found.parts.iter().all(|part| part.checksum.is_none()) {
        return GetObjectAttributesParts { total_parts_count, ..Default::default() };
    }
    let next = found.parts.last().map_or(after, |part| part.number);
    let parts = found.parts.into_iter().map(|part| {
        let mut named = Named(part.checksum.map(|value| (algorithm.clone(), value)).into_iter().collect());
        ObjectPart {
            checksum_crc32: named.take("crc32"),
            checksum_crc32c: named.take("crc32c"),
            checksum_crc64nvme: named.take("crc64nvme"),
            checksum_sha1: named.take("sha1"),
            checksum_sha256: named.take("sha256"),
            part_number: Some(i32::from(part.number)),
            size: i64::try_from(part.size_bytes).ok(),
        }
    });
    GetObjectAttributesParts {
        is_truncated: Some(found.truncated),
        max_parts: i32::try_from(limit).ok(),
        next_part_number_marker: Some(i32::from(next)),
        part_number_marker: Some(i32::from(after)),
        parts: Some(parts.collect()),
        total_parts_count,
    }
}
