//! Uploads by HTML forms (POST object): `fields` reads the form, `signature` says who allows it and `policy` what, and
//! `upload` stores the file.
//!
//! s3s is not used for these: it holds the file whole. Nothing of the file is stored before everything before it was
//! found right; what only its end shows (length, digests) is checked before the commit.

mod fields;
mod policy;
mod signature;
mod upload;

use std::rc::Rc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HOST, LOCATION};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use quarry_identity::Principal;
use quarry_object::api::{Attributes, ObjectInfo, ObjectStore};
use s3s::{Body, HttpResponse, S3Error, S3ErrorCode, S3Result};

use self::fields::{FieldReader, Fields, FileBegins, FormError};
use self::policy::{Policy, PolicyError};
use self::signature::{Signature, SignatureError};
use self::upload::{Destination, File};
use crate::access::{Caller, acl};
use crate::backend::Core;
use crate::error::{Fault, VERSION_ID, from_api, from_fault, refuse};
use crate::exchange::Exchange;
use crate::host::Place;
use crate::inbound::Source;
use crate::{attributes, reply, tags, versions};

const ACL: HeaderName = HeaderName::from_static("x-amz-acl");
const FILE_NAME: &str = "${filename}";

/// Whether a request is an upload by a form.
pub(crate) fn is_form(parts: &Parts) -> bool {
    parts.method == http::Method::POST && fields::boundary(content_type(parts)).is_some()
}

fn content_type(parts: &Parts) -> &str {
    parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// Takes an upload.
///
/// # Errors
/// The S3 error to answer.
pub(crate) async fn receive<S: ObjectStore>(
    core: &Core<S>,
    parts: &Parts,
    place: &Place,
    source: Rc<Source>,
    exchange: &Rc<Exchange>,
) -> S3Result<HttpResponse> {
    exchange.operation.replace("PostObject".to_owned());
    if place.bucket.is_empty() || !place.key.is_empty() {
        return Err(refuse(S3ErrorCode::MethodNotAllowed, "a form is sent to a bucket"));
    }
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let length = length
        .ok_or_else(|| refuse(S3ErrorCode::MissingContentLength, "the length of the form must be given"))?;
    let boundary = fields::boundary(content_type(parts)).unwrap_or(Err(FormError::Boundary));
    let begins = read_fields(boundary.map_err(of_form)?, &source, exchange).await?;
    let FileBegins { mut fields, file, rest, before } = begins;
    let key = key(&fields)?;
    fields.values.insert("key".to_owned(), key.clone());
    let (length_range, sender) = admit(core, (parts, exchange), &place.bucket, &key, &fields).await?;
    let headers = headers(&fields)?;
    let mut attributes = described(&fields, &headers, core.limits.user_metadata_bytes_max)?;
    let found = core.store.bucket(&place.bucket).map_err(from_api)?;
    acl::check_headers(core, &found, &headers)?;
    acl::add_to_object(core, &sender, &place.bucket, &headers, &mut attributes)?;
    let file = File::new(source, Rc::clone(exchange), file, &rest, &headers)?;
    let left_bytes = length.saturating_sub(before as u64);
    let to = Destination { bucket: &place.bucket, key: &key, attributes, length_range };
    let stored = upload::store(core, to, file, left_bytes).await?;
    Ok(answer((parts, exchange.client().tls), place, &key, &fields, &stored))
}

/// Reads a whole form, its policy and its tags, for the fuzzer; whether it is one.
#[doc(hidden)]
pub fn reads_form(content_type: &str, body: &[u8]) -> bool {
    let Some(Ok(boundary)) = fields::boundary(content_type) else { return false };
    let mut reader = FieldReader::new(boundary);
    for (at, piece) in body.chunks(997).enumerate() {
        match reader.feed(piece) {
            Err(_) => return false,
            Ok(None) => {}
            Ok(Some(mut begins)) => {
                let policy = begins.fields.get("policy").and_then(|encoded| Policy::parse(encoded).ok());
                let met = policy.is_some_and(|policy| policy.check(&begins.fields, "bucket", 0).is_ok());
                let tags = begins.fields.get("tagging").is_none_or(|text| tags::from_document(text).is_ok());
                std::hint::black_box((met, tags, headers(&begins.fields).is_ok()));
                std::hint::black_box(begins.file.feed(&begins.rest));
                for piece in body.chunks(997).skip(at + 1) {
                    std::hint::black_box(begins.file.feed(piece));
                }
                return begins.file.has_ended();
            }
        }
    }
    false
}

async fn read_fields(boundary: &str, source: &Source, exchange: &Exchange) -> S3Result<FileBegins> {
    let mut reader = FieldReader::new(boundary);
    loop {
        let data = match source.next().await {
            None => return Err(of_form(FormError::NoFile)),
            Some(data) => data.map_err(|fault: Fault| from_fault(&fault))?,
        };
        exchange.count_in(&data);
        if let Some(begins) = reader.feed(&data).map_err(of_form)? {
            return Ok(begins);
        }
    }
}

fn of_form(error: FormError) -> S3Error {
    let code = match error {
        FormError::Boundary | FormError::Malformed => S3ErrorCode::MalformedPOSTRequest,
        FormError::TooLarge => S3ErrorCode::MaxPostPreDataLengthExceededError,
        FormError::NoFile => S3ErrorCode::IncorrectNumberOfFilesInPostRequest,
    };
    refuse(code, error.to_string())
}

fn invalid(problem: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    refuse(S3ErrorCode::InvalidArgument, problem)
}

fn key(fields: &Fields) -> S3Result<String> {
    let problem = "a form must have a field named key before its file";
    let key = fields.get("key").filter(|key| !key.is_empty()).ok_or_else(|| invalid(problem))?;
    Ok(key.replace(FILE_NAME, &fields.file_name))
}

/// Checks who allows the upload and what is allowed; returns how long the file may be, and who that is.
async fn admit<S: ObjectStore>(
    core: &Core<S>,
    (parts, exchange): (&Parts, &Exchange),
    bucket: &str,
    key: &str,
    fields: &Fields,
) -> S3Result<((u64, u64), Caller)> {
    let found = core.store.bucket(bucket).map_err(from_api)?;
    let signature = match (Signature::of(fields), fields.get("policy")) {
        (Ok(signature), Some(_)) => signature,
        (Err(SignatureError::Unsigned), None) => {
            let sent = core.require_form(Principal::Anonymous, &parts.headers, exchange, &found, key).await?;
            return Ok(((0, u64::MAX), sent));
        }
        (Err(SignatureError::Unsigned), Some(_)) => {
            return Err(invalid("a form with a policy must have a field named x-amz-signature"));
        }
        (Err(SignatureError::Missing(field)), _) => {
            return Err(invalid(format!("the form must have a field named {field} before its file")));
        }
        (Err(SignatureError::Invalid(field)), _) => {
            return Err(invalid(format!("the field {field} of the form is not valid")));
        }
        (Ok(_), None) => return Err(invalid("a signed form must have a field named policy")),
    };
    let encoded = fields.get("policy").unwrap_or("");
    let (principal, secret) = core.identities.find(signature.access_key)?;
    if !signature.verify(secret.expose(), encoded) {
        return Err(refuse(
            S3ErrorCode::SignatureDoesNotMatch,
            "the signature of the form does not match its policy; check your secret key",
        ));
    }
    let policy = Policy::parse(encoded).map_err(of_policy)?;
    policy.check(fields, bucket, (core.unix_ms)()).map_err(of_policy)?;
    let sent = core.require_form(principal, &parts.headers, exchange, &found, key).await?;
    Ok((policy.length_range(), sent))
}

fn of_policy(error: PolicyError) -> S3Error {
    let code = match error {
        PolicyError::Malformed { .. } => S3ErrorCode::InvalidPolicyDocument,
        PolicyError::Expired | PolicyError::NotMet { .. } | PolicyError::Extra { .. } => {
            S3ErrorCode::AccessDenied
        }
    };
    refuse(code, error.to_string())
}

/// The fields that are headers of a PUT.
fn headers(fields: &Fields) -> S3Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in &fields.values {
        let pair = (HeaderName::try_from(name.as_str()), HeaderValue::from_bytes(value.as_bytes()));
        match pair {
            (Ok(name), Ok(value)) => drop(headers.insert(name, value)),
            // Fields that are no headers mean something to pages and policies only.
            _ if !name.starts_with("x-amz-") => {}
            _ => return Err(invalid(format!("the field {name} of the form is not valid"))),
        }
    }
    if let Some(list) = fields.get("acl") {
        let list =
            HeaderValue::try_from(list).map_err(|_| invalid("the field acl of the form is not valid"))?;
        headers.insert(ACL, list);
    }
    Ok(headers)
}

fn described(fields: &Fields, headers: &HeaderMap, user_bytes_max: usize) -> S3Result<Attributes> {
    let not_there =
        |what: &str| Err(refuse(S3ErrorCode::NotImplemented, format!("the field {what} is not implemented")));
    if let Some(name) = fields.values.keys().find(|name| name.starts_with("x-amz-server-side-encryption")) {
        return not_there(name);
    }
    let mut attributes = attributes::from_request(headers, user_bytes_max)?;
    if let Some(document) = fields.get("tagging").filter(|document| !document.trim().is_empty()) {
        attributes.tags = tags::from_document(document)?;
    }
    Ok(attributes)
}

/// What the form asks to be answered with.
fn answer(
    (parts, is_encrypted): (&Parts, bool),
    place: &Place,
    key: &str,
    fields: &Fields,
    stored: &ObjectInfo,
) -> HttpResponse {
    let etag = format!("\"{}\"", stored.etag);
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let asked = fields.get("success_action_redirect").or_else(|| fields.get("redirect"));
    let mut response = HttpResponse::new(Body::empty());
    if let Some(version) = versions::written(stored.version) {
        add(&mut response, VERSION_ID, &version);
    }
    if let Some(to) = asked.filter(|to| is_web_address(to)) {
        let sign = if to.contains('?') { '&' } else { '?' };
        let (bucket, key, tag) = (encode(&place.bucket), encode(key), encode(&etag));
        let to = format!("{to}{sign}bucket={bucket}&key={key}&etag={tag}");
        *response.status_mut() = StatusCode::SEE_OTHER;
        add(&mut response, LOCATION, &to);
        return response;
    }
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let path = key.split('/').map(encode).collect::<Vec<_>>().join("/");
    let protocol = if is_encrypted { "https" } else { "http" };
    let location = format!("{protocol}://{host}{}/{path}", parts.uri.path().trim_end_matches('/'));
    match fields.get("success_action_status") {
        Some("200") => {}
        Some("201") => {
            let [location, bucket, key, etag] =
                [&location, &place.bucket, key, &etag].map(|text: &str| reply::escape(text));
            let document = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<PostResponse><Location>{location}</Location>\
                 <Bucket>{bucket}</Bucket><Key>{key}</Key><ETag>{etag}</ETag></PostResponse>"
            );
            *response.body_mut() = Body::from(document);
            *response.status_mut() = StatusCode::CREATED;
            add(&mut response, CONTENT_TYPE, "application/xml");
        }
        _ => *response.status_mut() = StatusCode::NO_CONTENT,
    }
    add(&mut response, LOCATION, &location);
    add(&mut response, ETAG, &etag);
    response
}

fn add(response: &mut HttpResponse, name: HeaderName, value: &str) {
    // What is no legal header is left out.
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}

fn is_web_address(text: &str) -> bool {
    text.parse::<Uri>()
        .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some())
}
