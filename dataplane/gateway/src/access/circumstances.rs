//! What conditions of policies may ask about a request: the values of the keys that `quarry_identity` knows.

use http::HeaderMap;
use http::header::{AUTHORIZATION, IF_MATCH, IF_NONE_MATCH, REFERER, USER_AGENT};
use percent_encoding::percent_decode_str;
use quarry_identity::{ACCOUNT, Context, Principal};
use s3s::dto::{Timestamp, TimestampFormat};

use super::Asked;
use crate::exchange::Exchange;

pub(super) const COPY_SOURCE: &str = "x-amz-copy-source";
/// The user who made the bucket that is asked about.
pub(super) const BUCKET_OWNER: &str = "quarry:BucketOwner";
const TAGGING: &str = "x-amz-tagging";
const LISTING_PARAMETERS: [&str; 3] = ["prefix", "delimiter", "max-keys"];
/// Headers whose key is their name behind `s3:`.
const HEADERS: [&str; 12] = [
    "x-amz-acl",
    "x-amz-content-sha256",
    COPY_SOURCE,
    "x-amz-grant-full-control",
    "x-amz-grant-read",
    "x-amz-grant-read-acp",
    "x-amz-grant-write",
    "x-amz-grant-write-acp",
    "x-amz-metadata-directive",
    "x-amz-object-ownership",
    "x-amz-server-side-encryption",
    "x-amz-storage-class",
];

pub(super) fn of(asked: &Asked<'_>, exchange: &Exchange, principal: &Principal, now_ms: u64) -> Context {
    let &Asked { headers, query, .. } = asked;
    let mut context = of_connection(headers, exchange, principal, now_ms);
    for name in HEADERS {
        if let Some(value) = text(headers, name) {
            context.set(&format!("s3:{name}"), value);
        }
    }
    for (name, key) in [(IF_MATCH, "s3:if-match"), (IF_NONE_MATCH, "s3:if-none-match")] {
        if let Some(value) = text(headers, name.as_str()) {
            context.set(key, value);
        }
    }
    for pair in text(headers, TAGGING).unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        add_tag(&mut context, &form_decoded(key), &form_decoded(value));
    }
    if asked.operation.starts_with("ListObject") {
        for name in LISTING_PARAMETERS {
            if let Some(value) = parameter(query, name) {
                context.set(&format!("s3:{name}"), value);
            }
        }
    }
    if let Some(version) = parameter(query, "versionId") {
        context.set("s3:VersionId", version);
    }
    if asked.is_signed {
        let header = headers.contains_key(AUTHORIZATION);
        context.set("s3:authType", if header { "REST-HEADER" } else { "REST-QUERY-STRING" });
        context.set("s3:signatureversion", "AWS4-HMAC-SHA256");
    }
    context
}

/// What is known of any request, also one for a page of a website.
pub(crate) fn of_connection(
    headers: &HeaderMap,
    exchange: &Exchange,
    principal: &Principal,
    now_ms: u64,
) -> Context {
    let mut context = Context::default();
    let client = exchange.client();
    if let Some(address) = client.address {
        context.set("aws:SourceIp", address.to_canonical().to_string());
    }
    context.set("aws:SecureTransport", client.tls.to_string());
    context.set("aws:EpochTime", (now_ms / 1000).to_string());
    context.set("aws:CurrentTime", iso(now_ms));
    for (header, key) in [(USER_AGENT, "aws:UserAgent"), (REFERER, "aws:Referer")] {
        if let Some(value) = text(headers, header.as_str()) {
            context.set(key, value);
        }
    }
    context.set("s3:ResourceAccount", ACCOUNT);
    let kind = match principal {
        Principal::Root => "Account",
        Principal::User(name) => {
            context.set("aws:username", name.as_str());
            context.set("aws:userid", name.as_str());
            "User"
        }
        Principal::Anonymous => "Anonymous",
    };
    context.set("aws:PrincipalType", kind);
    if let Some(arn) = principal.arn() {
        context.set("aws:PrincipalArn", arn);
        context.set("aws:PrincipalAccount", ACCOUNT);
    }
    context
}

/// A tag that the request gives to the object.
pub(super) fn add_tag(context: &mut Context, key: &str, value: &str) {
    context.set("s3:RequestObjectTagKeys", key);
    context.set(&format!("s3:RequestObjectTag/{key}"), value);
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The first value: the one that s3s uses.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(value))
    })
}

fn form_decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn iso(now_ms: u64) -> String {
    let now = std::time::UNIX_EPOCH + std::time::Duration::from_millis(now_ms);
    let mut text = Vec::new();
    let written = Timestamp::from(now).format(TimestampFormat::DateTime, &mut text);
    written.ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_default()
}
