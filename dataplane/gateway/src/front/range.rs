//! The `Range` of a request, as RFC 9110 and S3 read it.
//!
//! s3s refuses a Range that is to be left out (malformed, or of several ranges), and some that are in order (`Bytes=0-1`,
//! numbers that no object is large enough for). A signature may cover the header, so it cannot be mended before the
//! signature was verified. Such a request therefore goes to s3s twice: first as it was sent, when s3s verifies it and, instead of
//! serving it, gives it to [`Verifier`] together with who signed it; then unsigned, with the range that s3s would understand, if
//! any, and in its extensions who signed it ([`Verified`]), for `access` to judge by.
//!
//! Invariant: what goes on is what [`Verifier`] was given, so nothing is served whose signature s3s has not found right.

use std::cell::RefCell;
use std::rc::Rc;

use async_trait::async_trait;
use http::header::{AUTHORIZATION, RANGE};
use http::uri::PathAndQuery;
use http::{Extensions, HeaderMap, HeaderValue, Method, Uri};
use percent_encoding::percent_decode_str;
use quarry_object::api::RangeRequest;
use s3s::dto::Range;
use s3s::route::S3Route;
use s3s::service::S3Service;
use s3s::{Body, HttpError, HttpRequest, HttpResponse, S3Request, S3Response, S3Result};
use send_wrapper::SendWrapper;

use crate::object::range_request;

/// What makes s3s look for a signature in the query.
const SIGNATURE: &str = "X-Amz-Signature";

/// The range that a request asks for. Lines of the same name are one list, so several are several ranges.
pub(crate) fn of(headers: &HeaderMap) -> Option<RangeRequest> {
    let mut lines = headers.get_all(RANGE).iter();
    let line = lines.next().filter(|_| lines.next().is_none())?;
    parse(line.to_str().ok()?)
}

/// A single range of bytes; what is none, or more than one, is as if it were not there (RFC 9110, section 14.2).
pub(crate) fn parse(text: &str) -> Option<RangeRequest> {
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than a size can have mean "beyond every end".
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (unit, range) = text.split_once('=')?;
    let (first, last) = range.split_once('-').filter(|_| unit.eq_ignore_ascii_case("bytes"))?;
    match (first, last) {
        ("", last) => Some(RangeRequest::Suffix { len: number(last)? }),
        (first, "") => Some(RangeRequest::From { first: number(first)? }),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(RangeRequest::Inclusive { first, last })
        }
    }
}

/// What a request for which s3s was called the second time says of itself.
#[derive(Clone)]
pub(crate) struct Verified {
    /// `None`: nobody signed it.
    pub(crate) access_key: Option<String>,
    /// As they were sent.
    pub(crate) headers: Rc<HeaderMap>,
}

/// [`Verified`] in the extensions of a request.
pub(crate) type VerifiedHandle = SendWrapper<Verified>;

/// Where [`Verifier`] leaves a request.
#[derive(Clone)]
struct Given(SendWrapper<Rc<RefCell<Option<S3Request<Body>>>>>);

/// Takes requests that are to be verified only. s3s asks it when it has verified the signature, and has read nothing else.
pub(crate) struct Verifier;

#[async_trait]
impl S3Route for Verifier {
    fn is_match(&self, _: &Method, _: &Uri, _: &HeaderMap, extensions: &mut Extensions) -> bool {
        extensions.get::<Given>().is_some()
    }

    /// Judged when it comes again.
    async fn check_access(&self, _: &mut S3Request<Body>) -> S3Result<()> {
        Ok(())
    }

    async fn call(&self, mut request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let given = request.extensions.remove::<Given>().expect("only such requests match");
        given.0.replace(Some(request));
        Ok(S3Response::new(Body::empty()))
    }
}

/// Has s3s serve a request, whatever its range.
///
/// # Errors
/// s3s could not write an answer.
pub(crate) async fn serve(service: &S3Service, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
    if !is_misread(request.method(), request.headers()) {
        return service.call(request).await;
    }
    let given = Given(SendWrapper::new(Rc::default()));
    request.extensions_mut().insert(given.clone());
    let refusal = service.call(request).await?;
    let verified = given.0.borrow_mut().take();
    match verified {
        None => Ok(refusal),
        Some(request) => service.call(mended(request)).await,
    }
}

/// Whether s3s would refuse the range of a request, or take it for another. It looks at it in a GET or HEAD only.
fn is_misread(method: &Method, headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(RANGE).iter();
    let Some(line) = lines.next().filter(|_| method == Method::GET || method == Method::HEAD) else {
        return false;
    };
    let is_read = |text: &str| {
        // To s3s an empty one is none, and `bytes=-` one of no bytes.
        text.is_empty() || Range::parse(text).is_ok_and(|read| parse(text) == Some(range_request(read)))
    };
    lines.next().is_some() || !line.to_str().is_ok_and(is_read)
}

/// A verified request, unsigned and with a range that s3s understands.
fn mended(request: S3Request<Body>) -> HttpRequest {
    let S3Request { input, method, uri, headers, mut extensions, credentials, .. } = request;
    let access_key = credentials.map(|found| found.access_key);
    let headers = Rc::new(headers);
    let mut changed = HeaderMap::clone(&headers);
    changed.remove(AUTHORIZATION);
    changed.remove(RANGE);
    changed.extend(of(&headers).map(|range| (RANGE, written(range))));
    extensions.insert::<VerifiedHandle>(SendWrapper::new(Verified { access_key, headers }));
    let mut mended = HttpRequest::new(input);
    *mended.method_mut() = method;
    *mended.uri_mut() = without_signature(uri);
    *mended.headers_mut() = changed;
    *mended.extensions_mut() = extensions;
    mended
}

/// A range as s3s writes it, which counts in `i64`: no object reaches further.
fn written(range: RangeRequest) -> HeaderValue {
    let bounded = |number: u64| number.min(i64::MAX.unsigned_abs());
    let range = match range {
        RangeRequest::Inclusive { first, last } => {
            Range::Int { first: bounded(first), last: Some(bounded(last)) }
        }
        RangeRequest::From { first } => Range::Int { first: bounded(first), last: None },
        RangeRequest::Suffix { len } => Range::Suffix { length: len },
    };
    HeaderValue::try_from(range.to_header_string()).expect("a range is visible ASCII")
}

/// A target whose query names no signature, however it is spelt.
fn without_signature(uri: Uri) -> Uri {
    let Some(query) = uri.query() else { return uri };
    let is_signature = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or(pair);
        percent_decode_str(name).decode_utf8_lossy() == SIGNATURE
    };
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_signature(pair)).collect();
    let target = format!("{}?{}", uri.path(), kept.join("&"));
    let mut parts = uri.into_parts();
    let target = PathAndQuery::try_from(target).expect("a target is one still with less of its query");
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).expect("a URI is one still with another target")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_range_is_none() {
        let inclusive = |first, last| Some(RangeRequest::Inclusive { first, last });
        for (text, expected) in [
            ("bytes=0-4", inclusive(0, 4)),
            ("Bytes=3-3", inclusive(3, 3)),
            ("bytes=0-99999999999999999999", inclusive(0, u64::MAX)),
            ("bytes=7-", Some(RangeRequest::From { first: 7 })),
            ("bytes=-0", Some(RangeRequest::Suffix { len: 0 })),
            ("bytes=-3", Some(RangeRequest::Suffix { len: 3 })),
            ("bytes=4-2", None),
            ("bytes=a-b", None),
            ("bytes=+1-2", None),
            ("bytes=", None),
            ("bytes=-", None),
            ("bytes=1", None),
            ("bytes= 1-2", None),
            ("lines=1-2", None),
            ("bytes=0-1,4-5", None),
            ("bytes=--1", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn lines_are_one_list() {
        let mut headers = HeaderMap::new();
        assert_eq!(of(&headers), None);
        headers.append(RANGE, HeaderValue::from_static("bytes=0-4"));
        assert_eq!(of(&headers), Some(RangeRequest::Inclusive { first: 0, last: 4 }));
        headers.append(RANGE, HeaderValue::from_static("bytes=0-4"));
        assert_eq!(of(&headers), None);
    }

    #[test]
    fn what_is_written_is_read_by_s3s_as_it_was_meant() {
        let far = i64::MAX.unsigned_abs();
        for (sent, expected) in [
            ("Bytes=3-4", Range::Int { first: 3, last: Some(4) }),
            ("bytes=7-99999999999999999999", Range::Int { first: 7, last: Some(far) }),
            ("bytes=99999999999999999999-", Range::Int { first: far, last: None }),
            ("bytes=-99999999999999999999", Range::Suffix { length: u64::MAX }),
        ] {
            assert!(Range::parse(sent).is_err(), "s3s reads {sent} by now");
            let written = written(parse(sent).expect("a range"));
            let read = Range::parse(written.to_str().expect("ASCII"));
            assert_eq!(read.ok(), Some(expected), "{sent}");
        }
    }

    #[test]
    fn no_signature_is_left_in_a_target() {
        for (sent, left) in [
            ("/b/k", "/b/k"),
            ("/b/k?versionId=1&X-Amz-Signature=2&a", "/b/k?versionId=1&a"),
            ("http://host/b/k?%58-Amz-Signature=2&X-Amz-Signature=3", "http://host/b/k?"),
        ] {
            assert_eq!(without_signature(Uri::from_static(sent)).to_string(), left, "{sent}");
        }
    }
}
