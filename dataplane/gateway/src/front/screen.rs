//! What is refused before any work: requests that are too large, mechanisms of authentication that we do not
//! offer, headers outside the signature, and features whose silent omission would break a promise
//! (encryption, locks).
//!
//! The signature of the request is verified by s3s, in constant time, right after this; those of chunks by `chunked`.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use percent_encoding::percent_decode_str;
use quarry_object::lifecycle::EXPIRES_ATTRIBUTE;
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::body::is_aws_chunked;
use crate::error::{CONTENT_SHA256, custom, refuse};
use crate::options::Limits;

const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// A week, as in S3.
const PRESIGNED_SECONDS_MAX: u64 = 7 * 24 * 3600;

type RefusedHeader = (&'static str, fn(&str) -> bool);

/// Headers of features that are not there: prefix, and whether a value means "nothing asked".
const REFUSED_HEADERS: [RefusedHeader; 5] = [
    ("x-amz-server-side-encryption", |_| false),
    ("x-amz-copy-source-server-side-encryption", |_| false),
    ("x-amz-object-lock-", |_| false),
    ("x-amz-bucket-object-lock-enabled", |value| value.eq_ignore_ascii_case("false")),
    ("x-amz-write-offset-bytes", |_| false),
];

/// Names that stand in a query without a value; what is not offered of them is refused by s3s.
const SUB_RESOURCES: [&str; 33] = [
    "accelerate",
    "acl",
    "analytics",
    "attributes",
    "cors",
    "delete",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "location",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "partNumber",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "website",
];

/// Refuses what must not reach the rest.
///
/// # Errors
/// The S3 error to answer.
pub(crate) fn screen(parts: &Parts, limits: &Limits) -> S3Result<()> {
    screen_size(parts, limits)?;
    let query = query_pairs(parts.uri.query().unwrap_or(""))?;
    screen_authentication(&parts.headers, &query)?;
    if parts.method != http::Method::GET && parts.method != http::Method::HEAD {
        screen_sub_resources(&query)?;
    }
    screen_features(parts)
}

/// What is not known would be routed as if it were not there, so that, say, a request to rename an object would
/// replace it by an empty one.
fn screen_sub_resources(query: &[Pair<'_>]) -> S3Result<()> {
    let unknown = query.iter().find(|(name, value)| {
        value.is_empty()
            && !name.starts_with("x-")
            && !name.starts_with("X-")
            && !SUB_RESOURCES.contains(&name.as_ref())
    });
    unknown.map_or(Ok(()), |(name, _)| {
        let name: String = name.chars().take(32).collect();
        Err(refuse(S3ErrorCode::NotImplemented, format!("the sub-resource {name:?} is not implemented")))
    })
}

/// Refuses a head that is too large.
///
/// # Errors
/// The S3 error to answer.
pub(crate) fn screen_size(parts: &Parts, limits: &Limits) -> S3Result<()> {
    let header_bytes: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if header_bytes > limits.header_bytes_max {
        return Err(refuse(
            S3ErrorCode::RequestHeaderSectionTooLarge,
            format!("the headers of {header_bytes} bytes are over the limit of {}", limits.header_bytes_max),
        ));
    }
    if parts.headers.len() > limits.headers_max {
        return Err(refuse(
            S3ErrorCode::RequestHeaderSectionTooLarge,
            format!("there are more than {} header fields", limits.headers_max),
        ));
    }
    let uri_bytes = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if uri_bytes > limits.uri_bytes_max {
        let message = format!("the URI of {uri_bytes} bytes is over the limit of {}", limits.uri_bytes_max);
        return Err(custom("InvalidURI", StatusCode::URI_TOO_LONG, message));
    }
    Ok(())
}

type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Decoded as s3s decodes them, so that nothing passes here under another spelling.
fn query_pairs(query: &str) -> S3Result<Vec<Pair<'_>>> {
    let decode = |text| {
        percent_decode_str(text)
            .decode_utf8()
            .map_err(|_| refuse(S3ErrorCode::InvalidURI, "the query is not valid UTF-8"))
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

fn find<'a>(query: &'a [Pair<'_>], name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_ref())
}

fn screen_authentication(headers: &HeaderMap, query: &[Pair<'_>]) -> S3Result<()> {
    let header = headers.get(AUTHORIZATION);
    let presigned = find(query, "X-Amz-Signature").is_some();
    if headers.get_all(AMZ_DATE).iter().any(|value| is_date_of_other_signs(value.as_bytes())) {
        return Err(refuse(S3ErrorCode::InvalidRequest, "the header x-amz-date is malformed"));
    }
    if find(query, "Signature").is_some() || find(query, "AWSAccessKeyId").is_some() {
        return Err(unsupported_mechanism());
    }
    match (header, presigned) {
        (Some(_), true) => Err(refuse(
            S3ErrorCode::InvalidArgument,
            "only one of the Authorization header and a presigned query is allowed",
        )),
        // Judged by policies, as every other.
        (None, false) => Ok(()),
        (Some(value), false) => screen_header(headers, value.to_str().unwrap_or("")),
        (None, true) => screen_presigned(headers, query),
    }
}

fn unsupported_mechanism() -> S3Error {
    refuse(
        S3ErrorCode::InvalidRequest,
        "the authorization mechanism you have provided is not supported; please use AWS4-HMAC-SHA256",
    )
}

fn screen_header(headers: &HeaderMap, authorization: &str) -> S3Result<()> {
    let Some(fields) = authorization.strip_prefix(ALGORITHM) else { return Err(unsupported_mechanism()) };
    let field = |name: &str| {
        let mut fields = fields.split(',').filter_map(|field| field.trim().split_once('='));
        fields.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let (Some(credential), Some(signed)) = (field("Credential"), field("SignedHeaders")) else {
        return Err(refuse(
            S3ErrorCode::AuthorizationHeaderMalformed,
            "the Authorization header is malformed",
        ));
    };
    screen_scope(credential, S3ErrorCode::AuthorizationHeaderMalformed)?;
    screen_signed_headers(headers, signed, |_| false)
}

fn screen_presigned(headers: &HeaderMap, query: &[Pair<'_>]) -> S3Result<()> {
    let malformed = S3ErrorCode::AuthorizationQueryParametersError;
    let lacking = || {
        refuse(
            S3ErrorCode::AuthorizationQueryParametersError,
            "a query parameter of the signature is missing",
        )
    };
    screen_scope(find(query, "X-Amz-Credential").ok_or_else(lacking)?, malformed)?;
    if find(query, "X-Amz-Date").is_some_and(|date| is_date_of_other_signs(date.as_bytes())) {
        return Err(refuse(S3ErrorCode::AuthorizationQueryParametersError, "X-Amz-Date is malformed"));
    }
    let expires = find(query, "X-Amz-Expires").ok_or_else(lacking)?;
    if expires.parse::<i64>().is_ok_and(|seconds| seconds <= 0) {
        return Err(refuse(S3ErrorCode::AccessDenied, "Request has expired"));
    }
    if !matches!(expires.parse::<u64>(), Ok(1..=PRESIGNED_SECONDS_MAX)) {
        return Err(refuse(
            S3ErrorCode::AuthorizationQueryParametersError,
            "X-Amz-Expires must be a number of seconds from 1 to 604800",
        ));
    }
    let signed = find(query, "X-Amz-SignedHeaders").ok_or_else(lacking)?;
    // Sent unsigned by some clients of presigned URLs; it can only tighten what is accepted.
    screen_signed_headers(headers, signed, |name| name == CONTENT_SHA256)
}

/// A signed request may say its time in `Date` alone; s3s looks for `x-amz-date`. Which of them it is makes no difference
/// to what is signed: the time itself stands in the string to sign.
pub(crate) fn name_date(headers: &mut HeaderMap) {
    if headers.contains_key(AMZ_DATE) || !headers.contains_key(AUTHORIZATION) {
        return;
    }
    let text = headers.get(DATE).and_then(|value| value.to_str().ok());
    let Some(time) = text.and_then(|text| Timestamp::parse(TimestampFormat::HttpDate, text).ok()) else {
        return;
    };
    let mut iso = Vec::new();
    if time.format(TimestampFormat::DateTime, &mut iso).is_err() {
        return;
    }
    // 2026-01-02T03:04:05.000Z becomes 20260102T030405Z.
    let seconds = iso.split(|byte| *byte == b'.').next().unwrap_or_default();
    let mut basic: Vec<u8> = seconds.iter().copied().filter(|byte| !b"-:Z".contains(byte)).collect();
    basic.push(b'Z');
    headers.extend(HeaderValue::from_bytes(&basic).ok().map(|value| (AMZ_DATE, value)));
}

/// Whether something of the length of a date has other signs than digits where they belong: s3s computes with them before it
/// looks. What has another length it refuses itself.
fn is_date_of_other_signs(date: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    date.len() == 16 && !(digits(&date[..8]) && digits(&date[9..15]))
}

fn screen_scope(credential: &str, malformed: S3ErrorCode) -> S3Result<()> {
    // s3s takes what follows the first slash for the date, and computes with it before it looks.
    let is_date = |text: &str| text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit());
    let begins = credential.split('/').nth(1).is_some_and(is_date);
    // The access key id may itself hold slashes, so the scope is read from its end.
    match credential.rsplit('/').collect::<Vec<_>>().as_slice() {
        ["aws4_request", "s3", _region, _date, _, ..] if begins => Ok(()),
        _ => Err(refuse(malformed, "the credential scope must be <key>/<date>/<region>/s3/aws4_request")),
    }
}

/// Every `x-amz-*` header and the host must be under the signature: else whoever stands in between could add, say,
/// a copy source.
fn screen_signed_headers(headers: &HeaderMap, signed: &str, exempt: fn(&str) -> bool) -> S3Result<()> {
    let signed: Vec<String> = signed.split(';').map(str::to_ascii_lowercase).collect();
    let must = |name: &str| {
        name == "host" || ((name.starts_with("x-amz-") || name == EXPIRES_ATTRIBUTE) && !exempt(name))
    };
    let unsigned: Vec<&str> = headers
        .keys()
        .map(http::HeaderName::as_str)
        .filter(|name| must(name) && !signed.iter().any(|other| other == name))
        .collect();
    if unsigned.is_empty() && signed.iter().any(|name| name == "host") {
        return Ok(());
    }
    Err(refuse(
        S3ErrorCode::AccessDenied,
        format!("there were headers in the request which were not signed: {}", unsigned.join(", ")),
    ))
}

fn screen_features(parts: &Parts) -> S3Result<()> {
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    if parts.method == http::Method::POST && content_type.to_ascii_lowercase().starts_with("multipart/") {
        return Err(refuse(S3ErrorCode::NotImplemented, "uploads by HTML form are not implemented"));
    }
    let in_pieces = parts.headers.contains_key(TRANSFER_ENCODING) && !is_aws_chunked(&parts.headers);
    if parts.method == http::Method::PUT && in_pieces {
        let message = "a body in the chunks of Transfer-Encoding is not implemented";
        return Err(refuse(S3ErrorCode::NotImplemented, message));
    }
    for (name, value) in &parts.headers {
        let name = name.as_str();
        if name.starts_with("x-amz-meta-") && has_empty_encoded_word(value.as_bytes()) {
            return Err(refuse(S3ErrorCode::InvalidArgument, format!("the header {name} is malformed")));
        }
        let refused = REFUSED_HEADERS
            .iter()
            .any(|(prefix, harmless)| name.starts_with(prefix) && !value.to_str().is_ok_and(harmless));
        if refused {
            return Err(refuse(S3ErrorCode::NotImplemented, format!("the header {name} is not implemented")));
        }
    }
    Ok(())
}

/// Whether a value that s3s takes for encoded words (RFC 2047) has one whose begin is its end as well: s3s cuts it without a look.
fn has_empty_encoded_word(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    let is_encoded = value.starts_with(b"=?") && value.ends_with(b"?=");
    is_encoded && value.split(|byte| byte.is_ascii_whitespace() || *byte == 0x0b).any(|word| word == b"=?=")
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::name_date;

    #[test]
    fn a_date_stands_in_for_the_other() {
        let mut headers = HeaderMap::new();
        headers.insert("date", HeaderValue::from_static("Mon, 02 Nov 2026 03:04:05 GMT"));
        name_date(&mut headers);
        assert!(!headers.contains_key("x-amz-date"), "an anonymous request has no time");
        headers.insert("authorization", HeaderValue::from_static("AWS4-HMAC-SHA256 x"));
        name_date(&mut headers);
        assert_eq!(headers["x-amz-date"], "20261102T030405Z");
        headers.insert("x-amz-date", HeaderValue::from_static("20250101T000000Z"));
        name_date(&mut headers);
        assert_eq!(headers["x-amz-date"], "20250101T000000Z");
        headers.remove("x-amz-date");
        headers.insert("date", HeaderValue::from_static("yesterday"));
        name_date(&mut headers);
        assert!(!headers.contains_key("x-amz-date"));
    }
}
