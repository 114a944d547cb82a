//! Judges and serves a request of the fast way. What is done is in `object` and `multipart`, for s3s as for this.

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use quarry_meter::stage::Stage;
use quarry_object::api::{Conditions, ObjectStore};
use s3s::dto::StreamingBlob;
use s3s::{Body, HttpResponse, S3Result};

use super::Arrived;
use super::plan::{Reading, Wanted};
use super::signature::Signer;
use crate::access::{Asked, Caller};
use crate::backend::Core;
use crate::body::{BodyOrigin, RequestBody};
use crate::error::VERSION_ID;
use crate::object::{self, Described, Read, Written};
use crate::outbound::Content;
use crate::{multipart, reply};

/// The answer, whatever it is.
pub(super) async fn answer<S: ObjectStore>(
    core: &Core<S>,
    arrived: Arrived<'_>,
    wanted: Wanted,
    signer: Signer,
) -> HttpResponse {
    let Signer { principal, access_key, chain } = signer;
    let parts = arrived.parts;
    let asked = Asked {
        operation: wanted.operation(),
        is_signed: access_key.is_some(),
        bucket: Some(&arrived.place.bucket),
        key: Some(&arrived.place.key),
        headers: &parts.headers,
        query: parts.uri.query().unwrap_or(""),
    };
    let judged = core.judge(&asked, principal, arrived.exchange).await;
    arrived.exchange.stages.end(Stage::Auth);
    let answer = match judged {
        Err(refused) => Err(refused),
        Ok(caller) => {
            let headers = &parts.headers;
            let origin = BodyOrigin { headers, source: arrived.source, exchange: arrived.exchange, chain };
            match wanted {
                Wanted::Read(reading) => {
                    let answer = read(core, arrived, reading).await;
                    answer.map_err(|error| {
                        core.conceal(&caller, (&arrived.place.bucket, &arrived.place.key), error)
                    })
                }
                Wanted::Write { conditions } => write(core, &caller, arrived, conditions, origin).await,
                Wanted::Part { number, upload } => part(core, arrived, number, &upload, origin).await,
            }
        }
    };
    answer.unwrap_or_else(reply::from_error)
}

async fn read<S: ObjectStore>(
    core: &Core<S>,
    arrived: Arrived<'_>,
    reading: Reading,
) -> S3Result<HttpResponse> {
    let Reading { is_head, version, part, range, conditions, checksums, overrides } = reading;
    let selector = object::selector(version.as_deref(), part, range)?;
    let read = Read {
        bucket: &arrived.place.bucket,
        key: &arrived.place.key,
        selector,
        conditions,
        wants_checksums: checksums,
    };
    if is_head {
        return object::look(core, read).await.map(|described| described_response(described, Body::empty()));
    }
    let (mut described, stream) = object::open(core, read).await?;
    for (name, value) in overrides {
        described.headers.insert(name, value);
    }
    let content = StreamingBlob::new(Content::new(stream, described.len_bytes));
    Ok(described_response(described, Body::from(content)))
}

fn described_response(described: Described, body: Body) -> HttpResponse {
    let Described { mut headers, len_bytes, content_range, etag } = described;
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len_bytes));
    insert(&mut headers, ETAG, &format!("\"{etag}\""));
    if let Some(range) = &content_range {
        insert(&mut headers, CONTENT_RANGE, range);
    }
    let mut response = HttpResponse::new(body);
    *response.headers_mut() = headers;
    if content_range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

async fn write<S: ObjectStore>(
    core: &Core<S>,
    caller: &Caller,
    arrived: Arrived<'_>,
    conditions: Conditions,
    origin: BodyOrigin<'_>,
) -> S3Result<HttpResponse> {
    let headers = origin.headers;
    let body = RequestBody::of(origin, core.limits.put_bytes_max)?;
    let (bucket, key) = (&arrived.place.bucket, &arrived.place.key);
    let written = object::write(core, caller, bucket, key, headers, conditions, body).await?;
    Ok(written_response(written, true))
}

async fn part<S: ObjectStore>(
    core: &Core<S>,
    arrived: Arrived<'_>,
    number: i32,
    upload: &str,
    origin: BodyOrigin<'_>,
) -> S3Result<HttpResponse> {
    let number = multipart::part_number(number)?;
    let body = RequestBody::of(origin, core.limits.put_bytes_max)?;
    let (bucket, key) = (&arrived.place.bucket, &arrived.place.key);
    let written = multipart::write_part(core, bucket, key, upload, number, body).await?;
    Ok(written_response(written, false))
}

/// The kind of its checksum is told of an object, not of a part.
fn written_response(written: Written, is_object: bool) -> HttpResponse {
    let Written { etag, version, checksums, mut headers } = written;
    if is_object {
        object::add_checksums(&mut headers, &checksums);
    } else {
        object::add_checksum_values(&mut headers, &checksums);
    }
    insert(&mut headers, ETAG, &format!("\"{etag}\""));
    if let Some(version) = version {
        insert(&mut headers, VERSION_ID, &version);
    }
    let mut response = HttpResponse::new(Body::empty());
    *response.headers_mut() = headers;
    response
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // ETags, ranges and ids are of our making.
    headers.insert(name, HeaderValue::try_from(value).expect("the value is visible ASCII"));
}
