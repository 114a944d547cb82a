//! Between HTTP headers and the stored attributes of an object, and times between their forms.
//!
//! Values are kept as sent, byte for byte; what s3s parses of them is not used.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES, HeaderName,
};
use http::{HeaderMap, HeaderValue};
use quarry_object::api::{Attributes, ObjectInfo, Tags};
use quarry_object::lifecycle::{EXPIRES_ATTRIBUTE, own_expiry_ms};
use quarry_object::tier::{CLASS_DEFAULT, CLASSES, STORAGE_CLASS_HEADER};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::error::refuse;
use crate::tags;

const USER_PREFIX: &str = "x-amz-meta-";
/// What S3 answers for an object that was stored without a type.
const DEFAULT_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("binary/octet-stream");
const STORAGE_CLASS: HeaderName = HeaderName::from_static(STORAGE_CLASS_HEADER);
const TAGGING: HeaderName = HeaderName::from_static("x-amz-tagging");
const WEBSITE_REDIRECT: HeaderName = HeaderName::from_static("x-amz-website-redirect-location");

/// When the object is over: an HTTP date, or seconds from when it is written.
const OWN_EXPIRY: HeaderName = HeaderName::from_static(EXPIRES_ATTRIBUTE);

const SYSTEM: [HeaderName; 8] = [
    CONTENT_TYPE,
    CACHE_CONTROL,
    CONTENT_DISPOSITION,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    EXPIRES,
    WEBSITE_REDIRECT,
    STORAGE_CLASS,
];

/// The attributes that a request gives its object.
///
/// # Errors
/// `InvalidArgument` for values that are not UTF-8, `MetadataTooLarge` over the limit, `InvalidStorageClass`,
/// `InvalidTag`.
pub(crate) fn from_request(headers: &HeaderMap, user_bytes_max: usize) -> S3Result<Attributes> {
    let mut system = BTreeMap::new();
    for name in SYSTEM {
        let mut lines = headers.get_all(&name).iter();
        let Some(first) = lines.next() else { continue };
        let mut value = text(&name, first)?.to_owned();
        if name == CONTENT_ENCODING {
            for line in lines {
                value = format!("{value},{}", text(&name, line)?);
            }
            value = without_aws_chunked(&value);
        }
        if name == STORAGE_CLASS && !value.is_empty() && !CLASSES.contains(&value.as_str()) {
            return Err(refuse(
                S3ErrorCode::InvalidStorageClass,
                "the storage class is not one of this store",
            ));
        }
        if !value.is_empty() {
            system.insert(name.as_str().to_owned(), value);
        }
    }
    if let Some(value) = headers.get(&OWN_EXPIRY) {
        let stored = own_expiry(text(&OWN_EXPIRY, value)?)?;
        system.insert(OWN_EXPIRY.as_str().to_owned(), stored);
    }
    let mut user: BTreeMap<String, String> = BTreeMap::new();
    let mut user_bytes = 0;
    for (name, value) in headers {
        let Some(short) = name.as_str().strip_prefix(USER_PREFIX) else { continue };
        let value = text(name, value)?;
        user_bytes += short.len() + value.len();
        // A repeated header is one value, joined as HTTP says.
        user.entry(short.to_owned())
            .and_modify(|all| {
                all.push(',');
                all.push_str(value);
            })
            .or_insert_with(|| value.to_owned());
    }
    if user_bytes > user_bytes_max {
        return Err(refuse(
            S3ErrorCode::MetadataTooLarge,
            format!("the user metadata of {user_bytes} bytes is over the limit of {user_bytes_max}"),
        ));
    }
    let tags = match headers.get(TAGGING) {
        Some(value) => tags::from_header(text(&TAGGING, value)?)?,
        None => Tags::new(),
    };
    Ok(Attributes { headers: system, user, tags })
}

fn text<'a>(name: &HeaderName, value: &'a HeaderValue) -> Result<&'a str, S3Error> {
    std::str::from_utf8(value.as_bytes())
        .map_err(|_| refuse(S3ErrorCode::InvalidArgument, format!("the header {name} is not valid UTF-8")))
}

/// An object's own time as it is stored.
fn own_expiry(text: &str) -> S3Result<String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u32>().is_ok() {
        return Ok(format!("+{text}"));
    }
    let date = Timestamp::parse(TimestampFormat::HttpDate, text);
    date.map(|date| unix_ms(date).to_string()).map_err(|_| {
        let problem = format!("the header {OWN_EXPIRY} must be an HTTP date or a number of seconds");
        refuse(S3ErrorCode::InvalidArgument, problem)
    })
}

/// The header that returns an object's own time.
pub(crate) fn own_expiry_header(info: &ObjectInfo) -> Option<(HeaderName, HeaderValue)> {
    let stored = info.attributes.headers.get(OWN_EXPIRY.as_str()).map(String::as_str);
    Some((OWN_EXPIRY, http_date(own_expiry_ms(stored, info.last_modified_ms)?)))
}

/// The storage class of an object.
pub(crate) fn storage_class(attributes: &Attributes) -> &str {
    attributes.headers.get(STORAGE_CLASS.as_str()).map_or(CLASS_DEFAULT, String::as_str)
}

/// `aws-chunked` is framing of the request, not an encoding of the object.
fn without_aws_chunked(value: &str) -> String {
    let kept: Vec<&str> =
        value.split(',').map(str::trim).filter(|token| !token.eq_ignore_ascii_case("aws-chunked")).collect();
    kept.join(", ")
}

/// The headers that return the attributes. A value that is no legal header is left out.
pub(crate) fn to_response(attributes: &Attributes) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in SYSTEM {
        let Some(value) = attributes.headers.get(name.as_str()) else { continue };
        // S3 leaves the header out for its default class.
        if name == STORAGE_CLASS && value == CLASS_DEFAULT {
            continue;
        }
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.insert(name, value);
        }
    }
    headers.entry(CONTENT_TYPE).or_insert(DEFAULT_CONTENT_TYPE);
    for (short, value) in &attributes.user {
        let name = HeaderName::try_from(format!("{USER_PREFIX}{short}"));
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            headers.insert(name, value);
        }
    }
    headers
}

/// A time as s3s writes it: ISO 8601 with milliseconds in XML, RFC 7231 in headers.
pub(crate) fn timestamp(unix_ms: u64) -> Timestamp {
    Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms))
}

/// A time as an HTTP header, in whole seconds.
pub(crate) fn http_date(unix_ms: u64) -> HeaderValue {
    let mut text = Vec::new();
    match timestamp(unix_ms).format(TimestampFormat::HttpDate, &mut text) {
        Ok(()) => HeaderValue::from_bytes(&text).expect("a date is visible ASCII"),
        // Beyond the year 9999, which no clock of ours names.
        Err(_) => HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"),
    }
}

/// Unix milliseconds of a time that a client sent; times before 1970 count as 1970.
pub(crate) fn unix_ms(time: Timestamp) -> u64 {
    let mut text = Vec::new();
    if time.format(TimestampFormat::EpochSeconds, &mut text).is_err() {
        return 0;
    }
    let seconds =
        std::str::from_utf8(&text).ok().and_then(|text| text.split('.').next()?.parse::<u64>().ok());
    seconds.unwrap_or(0).saturating_mul(1000)
}
