//! Listings of objects, both versions of the protocol over one call.
//!
//! A continuation token is the last name of the page, in base64 behind a version: opaque to clients, and valid
//! whatever happens to the bucket in between.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use quarry_object::api::{ListEntry, ListPage, ListRequest, ObjectInfo, ObjectStore};
use s3s::dto::{
    CommonPrefix, EncodingType, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output,
    Object, ObjectStorageClass, Owner,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use crate::access::ownership;
use crate::attributes::{storage_class, timestamp};
use crate::backend::Core;
use crate::checksum::listed;
use crate::conditions::etag;
use crate::error::{from_api, refuse};

/// Keys and prefixes in one page, as in S3.
const MAX_KEYS: i32 = 1000;
const TOKEN_VERSION: &str = "1:";
/// What `encoding-type=url` leaves as it is. A space becomes %20 and a plus %2B, which every decoder reads right.
const URL_UNTOUCHED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'*').remove(b'/');

/// A continuation token for what follows `name`.
pub(crate) fn encode_token(name: &str) -> String {
    BASE64.encode(format!("{TOKEN_VERSION}{name}"))
}

/// The name in a continuation token.
///
/// # Errors
/// `InvalidArgument` for anything that we did not write.
pub(crate) fn decode_token(token: &str) -> S3Result<String> {
    let decoded = BASE64.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let name = decoded.as_deref().and_then(|text| text.strip_prefix(TOKEN_VERSION)).map(str::to_owned);
    name.ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "the continuation token provided is incorrect"))
}

/// How names are written in this answer.
#[derive(Clone, Copy)]
pub(crate) struct Encoding {
    url: bool,
}

impl Encoding {
    pub(crate) fn new(encoding_type: Option<&EncodingType>) -> S3Result<Self> {
        match encoding_type.map(EncodingType::as_str) {
            None => Ok(Self { url: false }),
            Some(EncodingType::URL) => Ok(Self { url: true }),
            Some(_) => Err(refuse(S3ErrorCode::InvalidArgument, "the encoding type must be url")),
        }
    }

    pub(crate) fn name(self, name: &str) -> String {
        if self.url { utf8_percent_encode(name, URL_UNTOUCHED).to_string() } else { name.to_owned() }
    }

    /// Clients of the first version of the protocol do not decode the prefix that they get back; it is encoded only where
    /// XML cannot hold it.
    fn prefix_of_v1(self, prefix: &str) -> String {
        let fits = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r');
        if prefix.chars().all(fits) { prefix.to_owned() } else { self.name(prefix) }
    }
}

/// As a client asked for it, and as it is: at most 1000.
///
/// # Errors
/// `InvalidArgument` below 0.
pub(crate) fn page_size(max_keys: Option<i32>) -> S3Result<(i32, usize)> {
    let keys = max_keys.unwrap_or(MAX_KEYS).min(MAX_KEYS);
    let size = usize::try_from(keys).map_err(|_| {
        refuse(S3ErrorCode::InvalidArgument, "max-keys must be a number from 0 to 2147483647")
    })?;
    Ok((keys, size))
}

/// An absent and an empty text mean the same: no delimiter, no marker.
pub(crate) fn given(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

async fn page<S: ObjectStore>(core: &Core<S>, bucket: &str, request: ListRequest) -> S3Result<ListPage> {
    core.store.list_objects(bucket, request).await.map_err(from_api)
}

pub(crate) async fn v2<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<ListObjectsV2Input>,
) -> S3Result<S3Response<ListObjectsV2Output>> {
    let input = request.input;
    let encoding = Encoding::new(input.encoding_type.as_ref())?;
    let (keys, max_keys) = page_size(input.max_keys)?;
    let after = match given(input.continuation_token.as_ref()) {
        Some(token) => Some(decode_token(&token)?),
        None => given(input.start_after.as_ref()),
    };
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = given(input.delimiter.as_ref());
    let list = ListRequest { prefix: prefix.clone(), delimiter: delimiter.clone(), after, max_keys };
    let page = page(core, &input.bucket, list).await?;
    let next = page.entries.last().filter(|_| page.truncated).map(|entry| encode_token(entry.name()));
    let key_count = i32::try_from(page.entries.len()).unwrap_or(MAX_KEYS);
    let owner = input.fetch_owner.unwrap_or(false).then(|| owner(core, &input.bucket)).transpose()?;
    let is_truncated = page.truncated;
    let (contents, common_prefixes) = split(page, encoding, owner.as_ref());
    Ok(S3Response::new(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encoding.name(&prefix)),
        max_keys: Some(keys),
        key_count: Some(key_count),
        continuation_token: input.continuation_token,
        is_truncated: Some(is_truncated),
        next_continuation_token: next,
        contents: Some(contents),
        common_prefixes: Some(common_prefixes),
        delimiter: delimiter.map(|delimiter| encoding.name(&delimiter)),
        encoding_type: input.encoding_type,
        start_after: input.start_after.map(|start| encoding.name(&start)),
        ..ListObjectsV2Output::default()
    }))
}

pub(crate) async fn v1<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<ListObjectsInput>,
) -> S3Result<S3Response<ListObjectsOutput>> {
    let input = request.input;
    let encoding = Encoding::new(input.encoding_type.as_ref())?;
    let (keys, max_keys) = page_size(input.max_keys)?;
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = given(input.delimiter.as_ref());
    let after = given(input.marker.as_ref());
    let list = ListRequest { prefix: prefix.clone(), delimiter: delimiter.clone(), after, max_keys };
    let page = page(core, &input.bucket, list).await?;
    // Without a delimiter clients go on from the last key, as S3 has it.
    let next_marker = page
        .entries
        .last()
        .filter(|_| page.truncated && delimiter.is_some())
        .map(|entry| encoding.name(entry.name()));
    let is_truncated = page.truncated;
    let (contents, common_prefixes) = split(page, encoding, Some(&owner(core, &input.bucket)?));
    Ok(S3Response::new(ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(encoding.prefix_of_v1(&prefix)),
        marker: Some(encoding.name(&input.marker.unwrap_or_default())),
        max_keys: Some(keys),
        is_truncated: Some(is_truncated),
        contents: Some(contents),
        common_prefixes: Some(common_prefixes),
        delimiter: delimiter.map(|delimiter| encoding.name(&delimiter)),
        next_marker,
        encoding_type: input.encoding_type,
        ..ListObjectsOutput::default()
    }))
}

/// Who owns a bucket. Listings show it as the owner of everything in the bucket: they do not read attributes.
pub(crate) fn owner<S: ObjectStore>(core: &Core<S>, bucket: &str) -> S3Result<Owner> {
    let bucket = core.store.bucket(bucket).map_err(from_api)?;
    Ok(core.shown(&ownership::owner(&bucket)))
}

fn split(page: ListPage, encoding: Encoding, owner: Option<&Owner>) -> (Vec<Object>, Vec<CommonPrefix>) {
    let mut contents = Vec::new();
    let mut prefixes = Vec::new();
    for entry in page.entries {
        match entry {
            ListEntry::Object(info) => contents.push(described(info, encoding, owner)),
            ListEntry::Prefix(prefix) => prefixes.push(CommonPrefix { prefix: Some(encoding.name(&prefix)) }),
            ListEntry::Version { .. } | ListEntry::Upload { .. } => {}
        }
    }
    (contents, prefixes)
}

fn described(info: ObjectInfo, encoding: Encoding, owner: Option<&Owner>) -> Object {
    let (checksum_algorithm, checksum_type) = listed(&info.checksums);
    let class = storage_class(&info.attributes).to_owned();
    Object {
        checksum_algorithm,
        checksum_type,
        e_tag: Some(etag(info.etag)),
        key: Some(encoding.name(&info.key)),
        last_modified: Some(timestamp(info.last_modified_ms)),
        owner: owner.cloned(),
        size: i64::try_from(info.size_bytes).ok(),
        storage_class: Some(ObjectStorageClass::from(class)),
        ..Object::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{Encoding, decode_token, encode_token};

    #[test]
    fn tokens_round_trip_and_forgeries_are_refused() {
        for name in ["", "a/b", "ü \u{1f600}+%2F"] {
            assert_eq!(decode_token(&encode_token(name)).unwrap(), name);
        }
        for forged in ["a/b", "", "!!", "Mg"] {
            assert!(decode_token(forged).is_err(), "{forged}");
        }
    }

    #[test]
    fn names_are_encoded_only_on_request() {
        assert_eq!(Encoding { url: true }.name("a b+c/ü"), "a%20b%2Bc/%C3%BC");
        assert_eq!(Encoding { url: false }.name("a b+c/ü"), "a b+c/ü");
    }
}
