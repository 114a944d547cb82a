//! What a request asks for, if it is one that the fast way understands to the last header.
//!
//! Rules that keep this simple: no name of a header or query parameter twice, header values of visible ASCII, query names
//! and `x-amz-*` headers from the lists here. What breaks one is not wrong, it is left to s3s.

use std::borrow::Cow;

use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE,
    EXPIRES, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use percent_encoding::percent_decode_str;
use quarry_object::api::{Conditions, RangeRequest};
use s3s::dto::{ETagCondition, Timestamp, TimestampFormat};

use super::range;
use crate::conditions::{on_read, on_write};
use crate::error::CONTENT_SHA256;
use crate::host::Place;
use crate::options::Fallback;

/// Bytes of a key, as in S3.
const KEY_BYTES_MAX: usize = 1024;
const META: &str = "x-amz-meta-";
pub(super) const AUTHENTICATION: &str = "X-Amz-";
/// `x-amz-*` headers that are understood, beside metadata.
const HEADERS: [&str; 19] = [
    "x-amz-acl",
    "x-amz-checksum-algorithm",
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-mode",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
    CONTENT_SHA256,
    "x-amz-date",
    "x-amz-decoded-content-length",
    "x-amz-expected-bucket-owner",
    "x-amz-request-payer",
    "x-amz-sdk-checksum-algorithm",
    "x-amz-storage-class",
    "x-amz-tagging",
    "x-amz-trailer",
    "x-amz-user-agent",
    "x-amz-website-redirect-location",
];

/// A query of distinct names, in order of their names; values as sent.
pub(super) struct Query<'a> {
    pub(super) pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Query<'a> {
    /// # Errors
    /// [`Fallback::Query`]: names that are encoded or come twice, or a `+`, which s3s takes for a space.
    pub(super) fn of(parts: &'a Parts) -> Result<Self, Fallback> {
        let query = parts.uri.query().unwrap_or("");
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let mut pairs: Vec<_> = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
        pairs.sort_unstable();
        let plain =
            |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        let distinct = pairs.windows(2).all(|pair| pair[0].0 != pair[1].0);
        if !distinct || query.contains('+') || !pairs.iter().all(|(name, _)| plain(name)) {
            return Err(Fallback::Query);
        }
        Ok(Self { pairs })
    }

    /// A value, decoded; one that is not UTF-8 was refused before.
    pub(super) fn get(&self, name: &str) -> Option<Cow<'a, str>> {
        let at = self.pairs.binary_search_by_key(&name, |(other, _)| other).ok()?;
        percent_decode_str(self.pairs[at].1).decode_utf8().ok()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.pairs.binary_search_by_key(&name, |(other, _)| other).is_ok()
    }
}

/// One of the operations that are served here.
pub(super) enum Wanted {
    Read(Reading),
    Write { conditions: Conditions },
    Part { number: i32, upload: String },
}

/// A GET or HEAD.
pub(super) struct Reading {
    pub(super) is_head: bool,
    pub(super) version: Option<String>,
    pub(super) part: Option<i32>,
    pub(super) range: Option<RangeRequest>,
    pub(super) conditions: Conditions,
    pub(super) checksums: bool,
    /// Headers of the answer that the query names.
    pub(super) overrides: Vec<(HeaderName, HeaderValue)>,
}

impl Wanted {
    /// # Errors
    /// Why this request is not understood.
    pub(super) fn of(parts: &Parts, place: &Place, query: &Query<'_>) -> Result<Self, Fallback> {
        let has_object = !place.is_website && !place.key.is_empty() && place.key.len() <= KEY_BYTES_MAX;
        if !has_object || !s3s::path::check_bucket_name(&place.bucket) {
            return Err(Fallback::Operation);
        }
        check_headers(&parts.headers)?;
        match parts.method {
            Method::GET => Reading::of(parts, query, false).map(Self::Read),
            Method::HEAD => Reading::of(parts, query, true).map(Self::Read),
            Method::PUT => Self::of_put(&parts.headers, query),
            _ => Err(Fallback::Operation),
        }
    }

    fn of_put(headers: &HeaderMap, query: &Query<'_>) -> Result<Self, Fallback> {
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        if !length.is_some_and(is_number) {
            return Err(Fallback::Header);
        }
        if let (Some(number), Some(upload)) = (query.get("partNumber"), query.get("uploadId")) {
            check_query(query, "UploadPart", |name| matches!(name, "partNumber" | "uploadId"))?;
            let number = number.parse().map_err(|_| Fallback::Query)?;
            return Ok(Self::Part { number, upload: upload.into_owned() });
        }
        check_query(query, "PutObject", |_| false)?;
        date(headers, &EXPIRES)?;
        let conditions = on_write(etags(headers, &IF_MATCH)?, etags(headers, &IF_NONE_MATCH)?);
        Ok(Self::Write { conditions })
    }

    /// As s3s names it.
    pub(super) fn operation(&self) -> &'static str {
        match self {
            Self::Read(reading) if reading.is_head => "HeadObject",
            Self::Read(_) => "GetObject",
            Self::Write { .. } => "PutObject",
            Self::Part { .. } => "UploadPart",
        }
    }
}

impl Reading {
    fn of(parts: &Parts, query: &Query<'_>, is_head: bool) -> Result<Self, Fallback> {
        let headers = &parts.headers;
        let operation = if is_head { "HeadObject" } else { "GetObject" };
        check_query(query, operation, |name| {
            matches!(name, "versionId" | "partNumber") || name.starts_with("response-")
        })?;
        if headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
            return Err(Fallback::Header);
        }
        let conditions = on_read(
            etags(headers, &IF_MATCH)?,
            etags(headers, &IF_NONE_MATCH)?,
            date(headers, &IF_MODIFIED_SINCE)?,
            date(headers, &IF_UNMODIFIED_SINCE)?,
        );
        let part = query.get("partNumber").map(|part| part.parse()).transpose();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Ok(Self {
            is_head,
            version: query.get("versionId").map(Cow::into_owned),
            part: part.map_err(|_| Fallback::Query)?,
            range: range::of(headers),
            conditions,
            checksums: text("x-amz-checksum-mode") == Some("ENABLED"),
            overrides: overrides(query)?,
        })
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn check_headers(headers: &HeaderMap) -> Result<(), Fallback> {
    if headers.len() != headers.keys_len() || headers.contains_key(TRANSFER_ENCODING) {
        return Err(Fallback::Header);
    }
    for (name, value) in headers {
        let Ok(text) = value.to_str() else { return Err(Fallback::Header) };
        let understood = match name.as_str() {
            "x-amz-decoded-content-length" => is_number(text),
            // s3s decodes encoded words.
            name if name.starts_with(META) => !text.contains("=?"),
            name if name.starts_with("x-amz-") => HEADERS.binary_search(&name).is_ok(),
            _ => true,
        };
        if !understood {
            return Err(Fallback::Header);
        }
    }
    Ok(())
}

fn check_query(query: &Query<'_>, operation: &str, known: fn(&str) -> bool) -> Result<(), Fallback> {
    let understood = |(name, value): &(&str, &str)| {
        known(name) || name.starts_with(AUTHENTICATION) || *name == "x-id" && *value == operation
    };
    if query.pairs.iter().all(understood) { Ok(()) } else { Err(Fallback::Query) }
}

/// An empty condition is none, to s3s too.
fn etags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<ETagCondition>, Fallback> {
    let value = headers.get(name).filter(|value| !value.is_empty());
    let parsed = value.map(|value| ETagCondition::parse_http_header(value.as_bytes()));
    parsed.transpose().map_err(|_| Fallback::Header)
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Timestamp>, Fallback> {
    let value = headers.get(name).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty());
    let parsed = value.map(|value| Timestamp::parse(TimestampFormat::HttpDate, value));
    parsed.transpose().map_err(|_| Fallback::Header)
}

fn overrides(query: &Query<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, Fallback> {
    let mut found = Vec::new();
    for (name, _) in query.pairs.iter().filter(|(name, _)| name.starts_with("response-")) {
        let header = match *name {
            "response-cache-control" => CACHE_CONTROL,
            "response-content-disposition" => CONTENT_DISPOSITION,
            "response-content-encoding" => CONTENT_ENCODING,
            "response-content-language" => CONTENT_LANGUAGE,
            "response-content-type" => CONTENT_TYPE,
            "response-expires" => EXPIRES,
            _ => return Err(Fallback::Query),
        };
        let value = query.get(name).unwrap_or_default();
        let value = if header == EXPIRES {
            let date = Timestamp::parse(TimestampFormat::HttpDate, &value).map_err(|_| Fallback::Query)?;
            let mut text = Vec::new();
            date.format(TimestampFormat::HttpDate, &mut text).map_err(|_| Fallback::Query)?;
            HeaderValue::from_bytes(&text)
        } else {
            HeaderValue::from_str(&value)
        };
        found.push((header, value.map_err(|_| Fallback::Query)?));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Fallback, HEADERS, Query};

    #[test]
    fn what_is_unusual_in_a_query_is_left_to_s3s() {
        let of = |target: &str| {
            let (parts, ()) = http::Request::get(target).body(()).expect("a target").into_parts();
            Query::of(&parts).map(|query| query.has("a"))
        };
        assert_eq!(of("/b/k?b=1&a=%2B"), Ok(true));
        for unusual in ["/b/k?a=1&a=2", "/b/k?a=1+2", "/b/k?%61=1"] {
            assert_eq!(of(unusual), Err(Fallback::Query), "{unusual}");
        }
    }

    #[test]
    fn the_list_of_headers_can_be_searched() {
        assert!(HEADERS.is_sorted());
    }
}
