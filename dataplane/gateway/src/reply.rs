//! The last step of every response: common headers and a complete error document.
//!
//! s3s writes `Code` and sometimes `Message`; S3's document also has `Resource` and `RequestId`, and clients show
//! the message to people, so a missing one is filled in.

use std::rc::Rc;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, SERVER};
use http::{HeaderValue, Response, StatusCode};
use s3s::{Body, HttpResponse, S3Error, S3ErrorCode};

use crate::describe;
use crate::error::from_fault;
use crate::exchange::Exchange;
use crate::outbound::Outbound;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
const PRODUCT: HeaderValue = HeaderValue::from_static("Quarry");
const XML: HeaderValue = HeaderValue::from_static("application/xml");

/// In the extensions of a response: an error that is a page, to be sent as it is.
#[derive(Clone, Copy)]
pub(crate) struct Verbatim;

/// The response to an error that arose before or around s3s.
pub(crate) fn from_error(error: S3Error) -> HttpResponse {
    error.to_http_response().unwrap_or_else(|_| {
        let mut plain = HttpResponse::new(Body::empty());
        *plain.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        plain
    })
}

/// An internal error without details.
pub(crate) fn internal_error() -> HttpResponse {
    from_error(S3Error::with_message(
        S3ErrorCode::InternalError,
        "an internal error occurred; please try again",
    ))
}

/// Completes a response.
pub(crate) fn complete(mut response: HttpResponse, exchange: &Rc<Exchange>) -> Response<Outbound> {
    let is_error = |response: &HttpResponse| response.status().as_u16() >= 400;
    // What was found wrong with the body is the cause of whatever was answered.
    if is_error(&response)
        && let Some(fault) = exchange.fault.take()
    {
        response = from_error(from_fault(&fault));
    }
    // s3s knows no other status for HEAD, also where only a part or range was asked for.
    if response.status() == StatusCode::OK && response.headers().contains_key(CONTENT_RANGE) {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    exchange.status.set(response.status().as_u16());
    if response.status() == StatusCode::NOT_MODIFIED {
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(CONTENT_TYPE);
    } else if is_error(&response) && response.extensions().get::<Verbatim>().is_none() {
        let written = response.body().bytes().unwrap_or_default();
        let document = error_document(&String::from_utf8_lossy(&written), exchange);
        *response.body_mut() = Body::from(document);
        response.headers_mut().insert(CONTENT_TYPE, XML);
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    if response.status() == StatusCode::OK && *exchange.operation.borrow() == describe::OPERATION {
        bare_etag(&mut response);
    }
    if response.status() == StatusCode::REQUEST_TIMEOUT {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let headers = response.headers_mut();
    headers.insert(SERVER, PRODUCT);
    if let Ok(id) = HeaderValue::try_from(exchange.request_id.as_str()) {
        headers.insert(REQUEST_ID, id);
    }
    response.map(|body| Outbound::new(body, Rc::clone(exchange)))
}

/// Takes the quotes off the one ETag of a document.
fn bare_etag(response: &mut HttpResponse) {
    let document = response.body().bytes().unwrap_or_default();
    let document = String::from_utf8_lossy(&document);
    let Some(written) = element(&document, "ETag") else { return };
    let bare = written.replace("&quot;", "").replace('"', "");
    let document = document.replacen(written, &bare, 1);
    response.headers_mut().remove(CONTENT_LENGTH);
    *response.body_mut() = Body::from(document);
}

fn error_document(written: &str, exchange: &Exchange) -> String {
    let code = element(written, "Code").unwrap_or("InternalError");
    let message = element(written, "Message").unwrap_or_else(|| default_message(code));
    exchange.error_code.replace(Some(code.to_owned()));
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
         <Resource>{}</Resource><RequestId>{}</RequestId></Error>",
        escape(&exchange.path),
        escape(&exchange.request_id),
    )
}

/// Content of an element that s3s wrote, still escaped.
fn element<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = document.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(content, _)| content)
}

/// For text inside an element.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn default_message(code: &str) -> &'static str {
    match code {
        "SignatureDoesNotMatch" => {
            "the request signature we calculated does not match the one you sent; check your secret key and signing method"
        }
        "InvalidAccessKeyId" => "the access key id does not exist",
        "NotImplemented" => "the operation is not implemented",
        "InvalidBucketName" => "the bucket name is not valid",
        "KeyTooLongError" => "the key is longer than 1024 bytes",
        "InvalidURI" => "the path cannot be parsed",
        "MethodNotAllowed" => "the method is not allowed on this resource",
        "MissingContentLength" => "the Content-Length header is missing",
        "MalformedXML" => "the XML document is not well-formed or not what the operation expects",
        "MaxMessageLengthExceeded" => "the request is too large",
        "IncompleteBody" => "the request body does not have its announced length",
        "InternalError" => "an internal error occurred; please try again",
        _ => "the request was refused",
    }
}
