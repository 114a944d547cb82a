//! A bucket as a website: GET and HEAD without credentials, on hosts of a website domain. `rules` decides; here is what
//! it needs of the store, and the answer.
//!
//! Only what everybody may read is served ([`crate::public`]). Errors are HTML pages, with the status of the error.

pub(crate) mod rules;

use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HOST, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    LAST_MODIFIED, LOCATION,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use quarry_object::api::{BucketInfo, Conditions, ObjectContent, ObjectInfo, ObjectStore, Selector};
use s3s::dto::{StreamingBlob, Timestamp, TimestampFormat};
use s3s::{Body, HttpResponse, S3Error};

use self::rules::{Asked, Redirection, Website, error_page, of_object, with_slash};
use crate::attributes::{self, unix_ms};
use crate::backend::Core;
use crate::conditions;
use crate::error::{custom, from_api};
use crate::exchange::Exchange;
use crate::front::range;
use crate::host::Place;
use crate::outbound::Content;
use crate::reply::Verbatim;
use crate::{object, public};

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const REDIRECT_ATTRIBUTE: &str = "x-amz-website-redirect-location";

/// The answer to a request for a page.
pub(crate) async fn serve<S: ObjectStore>(
    core: &Core<S>,
    parts: &Parts,
    place: &Place,
    exchange: &Exchange,
) -> HttpResponse {
    exchange.operation.replace("WebsiteGet".to_owned());
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    // As the page was asked for: a proxy that ends TLS in front of us is not seen.
    let protocol = if exchange.client().tls { "https" } else { "http" };
    let asked = Asked { protocol, host, path: &place.key };
    match answer(core, (parts, exchange), place, &asked).await {
        Ok(response) => response,
        Err(error) => {
            exchange.error_code.replace(Some(error.code().as_str().to_owned()));
            page_of(&error, place, &exchange.request_id)
        }
    }
}

async fn answer<S: ObjectStore>(
    core: &Core<S>,
    (parts, exchange): (&Parts, &Exchange),
    place: &Place,
    asked: &Asked<'_>,
) -> Result<HttpResponse, S3Error> {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        let problem = "a website answers GET and HEAD only";
        return Err(custom("MethodNotAllowed", StatusCode::METHOD_NOT_ALLOWED, problem));
    }
    let bucket = core.store.bucket(&place.bucket).map_err(from_api)?;
    let website = core.websites.get(&bucket).ok_or_else(|| {
        let problem = "the bucket does not have a website configuration";
        custom("NoSuchWebsiteConfiguration", StatusCode::NOT_FOUND, problem)
    })?;
    if let Some(to) = website.redirect_early(asked) {
        return Ok(redirect(&to));
    }
    let page = Page { core, bucket: &bucket, parts, exchange };
    let error = match page.fetch(&website.key(asked.path), true).await {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    page.instead(&website, asked, error).await
}

/// What serves one request.
struct Page<'a, S> {
    core: &'a Core<S>,
    bucket: &'a BucketInfo,
    parts: &'a Parts,
    exchange: &'a Exchange,
}

impl<S: ObjectStore> Page<'_, S> {
    async fn check(&self, key: &str) -> Result<(), S3Error> {
        if public::may_read(self.core, self.bucket, key, &self.parts.headers, self.exchange).await {
            return Ok(());
        }
        Err(custom("AccessDenied", StatusCode::FORBIDDEN, "access denied"))
    }

    /// An object as a page. With `conditional` by the conditions and range of the request.
    async fn fetch(&self, key: &str, conditional: bool) -> Result<HttpResponse, S3Error> {
        self.check(key).await?;
        let (conditions, range) = if conditional {
            (on_page(&self.parts.headers), range::of(&self.parts.headers))
        } else {
            (Conditions::default(), None)
        };
        let (bucket, store) = (&self.bucket.name, &self.core.store);
        if self.parts.method == Method::HEAD {
            let head = store.head_object(bucket, key, Selector::default(), conditions);
            return Ok(described(&head.await.map_err(from_api)?.info, None, Body::empty()));
        }
        let selector = Selector { range, ..Selector::default() };
        let content = store.get_object(bucket, key, selector, conditions).await.map_err(from_api)?;
        let ObjectContent { info, range: (first, len_bytes), stream, .. } = content;
        let body = Body::from(StreamingBlob::new(Content::new(stream, len_bytes)));
        Ok(described(&info, range.map(|_| (first, len_bytes)), body))
    }

    /// What is answered in the place of an object that cannot be read.
    async fn instead(
        &self,
        website: &Website,
        asked: &Asked<'_>,
        error: S3Error,
    ) -> Result<HttpResponse, S3Error> {
        let status = error.status_code().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status == StatusCode::NOT_MODIFIED {
            return Ok(crate::reply::from_error(error));
        }
        if let Some(to) = website.redirect_error(asked, status.as_u16()) {
            return Ok(redirect(&to));
        }
        if status == StatusCode::NOT_FOUND
            && let Some(key) = website.index_below(asked.path)
            && self.exists(&key).await
        {
            return Ok(redirect(&with_slash(asked.path)));
        }
        if let Some(key) = &website.error_key
            && status.is_client_error()
            && let Ok(mut page) = self.fetch(key, false).await
        {
            *page.status_mut() = status;
            return Ok(page);
        }
        Err(error)
    }

    async fn exists(&self, key: &str) -> bool {
        let selector = Selector::default();
        let head = self.core.store.head_object(&self.bucket.name, key, selector, Conditions::default());
        self.check(key).await.is_ok() && head.await.is_ok()
    }
}

fn described(info: &ObjectInfo, range: Option<(u64, u64)>, body: Body) -> HttpResponse {
    if let Some(location) = info.attributes.headers.get(REDIRECT_ATTRIBUTE) {
        return redirect(&of_object(location));
    }
    let mut response = HttpResponse::new(body);
    let mut headers = attributes::to_response(&info.attributes);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(LAST_MODIFIED, attributes::http_date(info.last_modified_ms));
    if let Ok(etag) = HeaderValue::try_from(format!("\"{}\"", info.etag)) {
        headers.insert(ETAG, etag);
    }
    let len_bytes = range.map_or(info.size_bytes, |(_, len_bytes)| len_bytes);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len_bytes));
    if let Some((first, len_bytes)) = range {
        let range = object::content_range(first, len_bytes, info.size_bytes);
        headers.insert(CONTENT_RANGE, HeaderValue::try_from(range).expect("digits are a header value"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    *response.headers_mut() = headers;
    response.extensions_mut().insert(Verbatim);
    response
}

fn redirect(to: &Redirection) -> HttpResponse {
    let mut response = HttpResponse::new(Body::empty());
    // The statuses were validated, and a location that a client has stored may be no legal header.
    *response.status_mut() = StatusCode::from_u16(to.status).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    if let Ok(location) = HeaderValue::try_from(to.location.as_str()) {
        response.headers_mut().insert(LOCATION, location);
    }
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
    response
}

fn page_of(error: &S3Error, place: &Place, request_id: &str) -> HttpResponse {
    let status = error.status_code().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let details = [
        ("Code", error.code().as_str()),
        ("Message", error.message().unwrap_or("")),
        ("BucketName", &place.bucket),
        ("Key", &place.key),
        ("RequestId", request_id),
    ];
    let mut response = HttpResponse::new(Body::from(error_page(status, &details)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HTML);
    response.extensions_mut().insert(Verbatim);
    response
}

/// Browsers ask with these two.
fn on_page(headers: &HeaderMap) -> Conditions {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let tags = text(IF_NONE_MATCH).map(|tags| {
        let tags =
            tags.split(',').map(|tag| tag.trim().trim_start_matches("W/").trim_matches('"').to_owned());
        tags.collect::<Vec<String>>()
    });
    let since = text(IF_MODIFIED_SINCE).filter(|_| tags.is_none());
    let since = since.and_then(|date| Timestamp::parse(TimestampFormat::HttpDate, date).ok());
    Conditions {
        if_none_match: tags,
        if_modified_since_ms: since.map(|date| unix_ms(date) + conditions::REST_OF_SECOND_MS),
        ..Conditions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_browsers() {
        let mut headers = HeaderMap::new();
        headers.insert(IF_MODIFIED_SINCE, HeaderValue::from_static("Thu, 01 Jan 1970 00:00:07 GMT"));
        assert_eq!(on_page(&headers).if_modified_since_ms, Some(7_999));
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("W/\"a\", \"b\""));
        let by_tag = on_page(&headers);
        assert_eq!(by_tag.if_none_match, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(by_tag.if_modified_since_ms, None);
    }
}
