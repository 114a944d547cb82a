//! Operations on one object, and the deletion of many.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::LocalBoxStream;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE,
    EXPIRES, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use quarry_object::api::{ApiError, Conditions, ObjectHead, ObjectInfo, ObjectStore, RangeRequest, Selector};
use s3s::dto::{
    ChecksumMode, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput,
    DeletedObject, ETagCondition, Error, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput,
    PutObjectInput, PutObjectOutput, Range, StreamingBlob,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use quarry_identity::Action;

use crate::access::{Caller, acl, caller};
use crate::attributes;
use crate::backend::Core;
use crate::body::RequestBody;
use crate::checksum::kind;
use crate::conditions::{etag, on_delete, on_read, on_write};
use crate::configuration::lifecycle::expiration;
use crate::error::{VERSION_ID, from_api, from_api_write, refuse};
use crate::multipart::part_number;
use crate::outbound::Content;
use crate::versions::{version, written};

/// Keys in one DeleteObjects, as in S3.
const DELETE_MANY_MAX: usize = 1000;
const CHECKSUM_TYPE: HeaderName = HeaderName::from_static("x-amz-checksum-type");
const TAGGING_COUNT: HeaderName = HeaderName::from_static("x-amz-tagging-count");
const PARTS_COUNT: HeaderName = HeaderName::from_static("x-amz-mp-parts-count");

/// What is told of an object or part that was written.
pub(crate) struct Written {
    /// Without quotes.
    pub(crate) etag: String,
    pub(crate) version: Option<String>,
    /// By the names of their algorithms.
    pub(crate) checksums: BTreeMap<String, String>,
    pub(crate) headers: HeaderMap,
}

/// Writes an object with the attributes that the request's headers name.
///
/// # Errors
/// Attributes that are refused, and what the object layer says.
pub(crate) async fn write<S: ObjectStore>(
    core: &Core<S>,
    caller: &Caller,
    bucket: &str,
    key: &str,
    headers: &HeaderMap,
    conditions: Conditions,
    body: RequestBody,
) -> S3Result<Written> {
    let mut attributes = attributes::from_request(headers, core.limits.user_metadata_bytes_max)?;
    acl::add_to_object(core, caller, bucket, headers, &mut attributes)?;
    let stored = core.store.put_object(bucket, key, attributes, conditions, body);
    let stored = stored.await.map_err(from_api_write)?;
    let headers = HeaderMap::from_iter(expiration(core, bucket, &stored));
    Ok(Written { etag: stored.etag, version: written(stored.version), checksums: stored.checksums, headers })
}

pub(crate) async fn put<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutObjectInput>,
) -> S3Result<S3Response<PutObjectOutput>> {
    let body = RequestBody::new(&request, core.limits.put_bytes_max)?;
    let caller = caller(&request.extensions);
    let S3Request { input, headers, .. } = request;
    let conditions = on_write(input.if_match, input.if_none_match);
    let mut written = write(core, &caller, &input.bucket, &input.key, &headers, conditions, body).await?;
    let checksum_type = kind(&written.checksums);
    let mut take = |name: &str| written.checksums.remove(name);
    let output = PutObjectOutput {
        checksum_crc32: take("crc32"),
        checksum_crc32c: take("crc32c"),
        checksum_crc64nvme: take("crc64nvme"),
        checksum_sha1: take("sha1"),
        checksum_sha256: take("sha256"),
        checksum_type,
        version_id: written.version,
        e_tag: Some(etag(written.etag)),
        ..PutObjectOutput::default()
    };
    Ok(S3Response::with_headers(output, written.headers))
}

/// What of which object is asked for.
pub(crate) struct Read<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) key: &'a str,
    pub(crate) selector: Selector,
    pub(crate) conditions: Conditions,
    pub(crate) wants_checksums: bool,
}

/// What is told of an object that is read.
pub(crate) struct Described {
    /// All but the other three.
    pub(crate) headers: HeaderMap,
    /// Of the content that follows, or would follow.
    pub(crate) len_bytes: u64,
    /// There if the answer is 206.
    pub(crate) content_range: Option<String>,
    /// Without quotes.
    pub(crate) etag: String,
}

impl Described {
    fn new<S: ObjectStore>(
        core: &Core<S>,
        read: &Read<'_>,
        info: ObjectInfo,
        (first, len_bytes): (u64, u64),
        part_checksum: Option<String>,
    ) -> Self {
        // A checksum of the whole would not match a range, and clients verify it.
        let partial = is_partial(&read.selector, len_bytes);
        let mut headers = described(&info, &read.selector, read.wants_checksums && !partial);
        if let (true, Some(sum), Some(algorithm)) =
            (read.wants_checksums, part_checksum, info.checksums.keys().next())
        {
            add_checksum_values(&mut headers, &BTreeMap::from([(algorithm.clone(), sum)]));
            headers.extend(checksum_type(&info.checksums));
        }
        headers.extend(expiration(core, read.bucket, &info));
        let content_range = partial.then(|| content_range(first, len_bytes, info.size_bytes));
        Self { headers, len_bytes, content_range, etag: info.etag }
    }
}

type ContentStream = LocalBoxStream<'static, Result<Bytes, ApiError>>;

/// Opens an object for reading.
///
/// # Errors
/// What the object layer says.
pub(crate) async fn open<S: ObjectStore>(
    core: &Core<S>,
    read: Read<'_>,
) -> S3Result<(Described, ContentStream)> {
    let conditions = read.conditions.clone();
    let content = core.store.get_object(read.bucket, read.key, read.selector, conditions);
    let content = content.await.map_err(from_api)?;
    let described = Described::new(core, &read, content.info, content.range, content.part_checksum);
    Ok((described, content.stream))
}

/// Describes an object.
///
/// # Errors
/// What the object layer says, and `InvalidRange`.
pub(crate) async fn look<S: ObjectStore>(core: &Core<S>, read: Read<'_>) -> S3Result<Described> {
    let conditions = read.conditions.clone();
    let head = core.store.head_object(read.bucket, read.key, read.selector, conditions);
    let ObjectHead { info, part, part_checksum } = head.await.map_err(from_api)?;
    let range = read.selector.range.map(|range| resolve(range, info.size_bytes));
    let range = part.or(range.transpose().map_err(from_api)?).unwrap_or((0, info.size_bytes));
    Ok(Described::new(core, &read, info, range, part_checksum))
}

pub(crate) async fn get<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetObjectInput>,
) -> S3Result<S3Response<GetObjectOutput>> {
    let input = request.input;
    let range = input.range.map(range_request);
    let selector = selector(input.version_id.as_deref(), input.part_number, range)?;
    let overrides = [
        (CACHE_CONTROL, input.response_cache_control.is_some()),
        (CONTENT_DISPOSITION, input.response_content_disposition.is_some()),
        (CONTENT_ENCODING, input.response_content_encoding.is_some()),
        (CONTENT_LANGUAGE, input.response_content_language.is_some()),
        (CONTENT_TYPE, input.response_content_type.is_some()),
        (EXPIRES, input.response_expires.is_some()),
    ];
    let conditions =
        on_read(input.if_match, input.if_none_match, input.if_modified_since, input.if_unmodified_since);
    let wants_checksums = wants_checksums(input.checksum_mode.as_ref());
    let read = Read { bucket: &input.bucket, key: &input.key, selector, conditions, wants_checksums };
    let (mut described, stream) = open(core, read).await?;
    for (name, overridden) in overrides {
        if overridden {
            described.headers.remove(name);
        }
    }
    let output = GetObjectOutput {
        content_length: Some(signed(described.len_bytes)?),
        content_range: described.content_range,
        e_tag: Some(etag(described.etag)),
        body: Some(StreamingBlob::new(Content::new(stream, described.len_bytes))),
        ..GetObjectOutput::default()
    };
    Ok(S3Response::with_headers(output, described.headers))
}

pub(crate) async fn head<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<HeadObjectInput>,
) -> S3Result<S3Response<HeadObjectOutput>> {
    let input = request.input;
    let range = input.range.map(range_request);
    let selector = selector(input.version_id.as_deref(), input.part_number, range)?;
    let conditions =
        on_read(input.if_match, input.if_none_match, input.if_modified_since, input.if_unmodified_since);
    let wants_checksums = wants_checksums(input.checksum_mode.as_ref());
    let read = Read { bucket: &input.bucket, key: &input.key, selector, conditions, wants_checksums };
    let described = look(core, read).await?;
    let output = HeadObjectOutput {
        content_length: Some(signed(described.len_bytes)?),
        content_range: described.content_range,
        e_tag: Some(etag(described.etag)),
        ..HeadObjectOutput::default()
    };
    Ok(S3Response::with_headers(output, described.headers))
}

pub(crate) async fn delete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeleteObjectInput>,
) -> S3Result<S3Response<DeleteObjectOutput>> {
    let input = request.input;
    let conditions = on_delete(input.if_match, input.if_match_last_modified_time, input.if_match_size);
    let version = version(input.version_id.as_deref())?;
    let deleted = core.store.delete_object(&input.bucket, &input.key, version, conditions);
    let deleted = deleted.await.map_err(from_api_write)?;
    let output = DeleteObjectOutput {
        delete_marker: deleted.is_marker.then_some(true),
        version_id: deleted.version.map(|version| version.to_string()),
        ..DeleteObjectOutput::default()
    };
    Ok(S3Response::with_status(output, StatusCode::NO_CONTENT))
}

pub(crate) async fn delete_many<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeleteObjectsInput>,
) -> S3Result<S3Response<DeleteObjectsOutput>> {
    let input = request.input;
    if input.delete.objects.is_empty() || input.delete.objects.len() > DELETE_MANY_MAX {
        return Err(refuse(S3ErrorCode::MalformedXML, "from 1 to 1000 keys can be deleted at once"));
    }
    let bucket = core.store.bucket(&input.bucket).map_err(from_api)?;
    let caller = caller(&request.extensions);
    let quiet = input.delete.quiet.unwrap_or(false);
    let mut output = DeleteObjectsOutput::default();
    for object in input.delete.objects {
        let action = match object.version_id {
            Some(_) => Action::DeleteObjectVersion,
            None => Action::DeleteObject,
        };
        let allowed = core.require(&caller, action, &bucket, Some((&object.key, None))).await;
        let wanted = allowed.and_then(|()| version(object.version_id.as_deref()));
        let outcome = match wanted {
            Ok(version) => {
                let if_match = object.e_tag.map(ETagCondition::ETag);
                let conditions = on_delete(if_match, object.last_modified_time, object.size);
                let deleted = core.store.delete_object(&input.bucket, &object.key, version, conditions);
                deleted.await.map_err(from_api_write)
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(_) if quiet => {}
            Ok(deleted) => output.deleted.get_or_insert_default().push(DeletedObject {
                delete_marker: deleted.is_marker.then_some(true),
                delete_marker_version_id: deleted
                    .version
                    .filter(|_| deleted.is_marker)
                    .map(|version| version.to_string()),
                key: Some(object.key),
                version_id: object.version_id,
            }),
            Err(error) => output.errors.get_or_insert_default().push(Error {
                code: Some(error.code().as_str().to_owned()),
                key: Some(object.key),
                message: error.message().map(str::to_owned),
                version_id: object.version_id,
            }),
        }
    }
    Ok(S3Response::new(output))
}

/// Headers of an object beside its length, range and ETag.
fn described(info: &ObjectInfo, selector: &Selector, with_checksums: bool) -> HeaderMap {
    let mut headers = attributes::to_response(&info.attributes);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(LAST_MODIFIED, attributes::http_date(info.last_modified_ms));
    headers.extend(attributes::own_expiry_header(info));
    if let Some(version) = info.version {
        let name = HeaderValue::try_from(version.to_string()).expect("version ids are visible ASCII");
        headers.insert(VERSION_ID, name);
    }
    if !info.attributes.tags.is_empty() {
        headers.insert(TAGGING_COUNT, HeaderValue::from(info.attributes.tags.len()));
    }
    if info.parts > 0 && selector.part.is_some() {
        headers.insert(PARTS_COUNT, HeaderValue::from(info.parts));
    }
    if with_checksums {
        add_checksums(&mut headers, &info.checksums);
    }
    headers
}

pub(crate) fn add_checksums(headers: &mut HeaderMap, checksums: &BTreeMap<String, String>) {
    add_checksum_values(headers, checksums);
    headers.extend(checksum_type(checksums));
}

fn checksum_type(checksums: &BTreeMap<String, String>) -> Option<(HeaderName, HeaderValue)> {
    let value = HeaderValue::try_from(kind(checksums)?.as_str()).ok()?;
    Some((CHECKSUM_TYPE, value))
}

pub(crate) fn add_checksum_values(headers: &mut HeaderMap, checksums: &BTreeMap<String, String>) {
    for (algorithm, value) in checksums {
        let name = HeaderName::try_from(format!("x-amz-checksum-{algorithm}"));
        if let (Ok(name), Ok(text)) = (name, HeaderValue::try_from(value.as_str())) {
            headers.insert(name, text);
        }
    }
}

fn wants_checksums(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
}

/// What of an object a request is about.
pub(crate) fn selector(
    version_id: Option<&str>,
    part: Option<i32>,
    range: Option<RangeRequest>,
) -> S3Result<Selector> {
    let part = part.map(part_number).transpose()?;
    if part.is_some() && range.is_some() {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            "cannot specify both Range header and partNumber query parameter",
        ));
    }
    Ok(Selector { version: version(version_id)?, part, range })
}

/// Whether an answer is 206. A part without bytes has no range that could be named.
fn is_partial(selector: &Selector, len_bytes: u64) -> bool {
    selector.range.is_some() || selector.part.is_some() && len_bytes > 0
}

pub(crate) fn range_request(range: Range) -> RangeRequest {
    match range {
        Range::Int { first, last: Some(last) } => RangeRequest::Inclusive { first, last },
        Range::Int { first, last: None } => RangeRequest::From { first },
        Range::Suffix { length } => RangeRequest::Suffix { len: length },
    }
}

/// First byte and number of bytes of a range of an object.
fn resolve(range: RangeRequest, size_bytes: u64) -> Result<(u64, u64), ApiError> {
    let (first, end) = match range {
        RangeRequest::Inclusive { first, last } => (first, size_bytes.min(last.saturating_add(1))),
        RangeRequest::From { first } => (first, size_bytes),
        RangeRequest::Suffix { len } => (size_bytes.saturating_sub(len), size_bytes),
    };
    if first < end { Ok((first, end - first)) } else { Err(ApiError::InvalidRange { size_bytes }) }
}

pub(crate) fn content_range(first: u64, len_bytes: u64, size_bytes: u64) -> String {
    format!("bytes {first}-{}/{size_bytes}", (first + len_bytes).saturating_sub(1))
}

/// s3s counts in `i64`.
fn signed(len_bytes: u64) -> S3Result<i64> {
    i64::try_from(len_bytes)
        .map_err(|_| refuse(S3ErrorCode::InternalError, "the object is larger than any can be"))
}

#[cfg(test)]
mod tests {
    use super::{RangeRequest, resolve};

    #[test]
    fn ranges_resolve_within_the_object() {
        let inclusive = |first, last| resolve(RangeRequest::Inclusive { first, last }, 10).ok();
        assert_eq!(inclusive(0, 0), Some((0, 1)));
        assert_eq!(inclusive(3, u64::MAX), Some((3, 7)));
        assert_eq!(inclusive(10, 12), None);
        assert_eq!(resolve(RangeRequest::From { first: 9 }, 10).ok(), Some((9, 1)));
        assert_eq!(resolve(RangeRequest::Suffix { len: 3 }, 10).ok(), Some((7, 3)));
        assert_eq!(resolve(RangeRequest::Suffix { len: 30 }, 10).ok(), Some((0, 10)));
        assert_eq!(resolve(RangeRequest::Suffix { len: 0 }, 10).ok(), None);
        assert_eq!(resolve(RangeRequest::From { first: 0 }, 0).ok(), None);
    }
}
