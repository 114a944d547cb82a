//! One keep-alive HTTP/1.1 connection to an S3 endpoint, and the few requests this tool sends over it.
//!
//! A request that the server certainly never saw (a kept connection that was closed before the first byte) is sent
//! again over a new one, once. Every other failure is the caller's to judge: [`Failure::outcome_unknown`] says whether a
//! write may have happened. After a failure or timeout the connection is closed at once, with whatever was in flight.

mod more;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::content::Stream;
use crate::expect::{Content, Difference, Expected, Verifier};
use crate::sigv4::{EMPTY_SHA256, Parts, Signer, UNSIGNED_PAYLOAD, canonical_query};

pub(crate) use more::Condition;

/// Bytes generated at a time: small enough for the second-level cache, large enough for few system calls.
const FRAME_BYTES: usize = 128 << 10;
/// Largest answer held in memory (listings, errors); anything longer is a protocol error.
const TEXT_BYTES_MAX: usize = 8 << 20;
/// Bytes hashed between two yields to the other workers of the thread.
const HASH_STEP_BYTES: usize = 1 << 20;

/// Where and how requests go; shared by all workers.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) bucket: String,
    pub(crate) seed: u64,
    pub(crate) verify: bool,
    pub(crate) sign_payload: bool,
    pub(crate) timeout: Duration,
}

/// Why a request did not succeed.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// cannot connect
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// the connection broke before the answer was complete
    #[error("connection lost: {0}")]
    Lost(hyper::Error),
    /// no complete answer in time
    #[error("no complete answer within {0:?}")]
    Timeout(Duration),
    /// the server refused
    #[error("HTTP {status} {code}")]
    Http {
        /// HTTP status
        status: StatusCode,
        /// S3 error code of the body, or empty
        code: String,
    },
    /// the answer is not S3
    #[error("not an S3 answer: {0}")]
    Protocol(&'static str),
}

impl Failure {
    /// Whether a write that ended so may still have happened.
    pub(crate) fn outcome_unknown(&self) -> bool {
        match self {
            Self::Connect(_) => false,
            Self::Http { status, .. } => status.is_server_error(),
            Self::Lost(_) | Self::Timeout(_) | Self::Protocol(_) => true,
        }
    }

    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Lost(_) | Self::Timeout(_) => true,
            Self::Http { status, .. } => status.is_server_error(),
            Self::Protocol(_) => false,
        }
    }

    /// Whether there was no HTTP answer at all.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Lost(_) | Self::Timeout(_))
    }

    /// The name under which it is counted.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Connect(_) => "connect".to_owned(),
            Self::Lost(_) => "connection lost".to_owned(),
            Self::Timeout(_) => "timeout".to_owned(),
            Self::Http { status, code } if code.is_empty() => format!("HTTP {}", status.as_u16()),
            Self::Http { status, code } => format!("HTTP {} {code}", status.as_u16()),
            Self::Protocol(_) => "protocol".to_owned(),
        }
    }
}

/// Outcome of reading an object.
pub(crate) enum Read {
    /// Content (its version is 0 when it was not verified) that may stand there; bytes received.
    Found(Content),
    Absent,
    Wrong(Difference),
}

/// One page of a listing.
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, u64)>,
    pub(crate) next: Option<String>,
}

/// A client with at most one connection.
pub(crate) struct Client {
    target: Arc<Target>,
    signer: Signer,
    connection: Option<Connection>,
}

struct Connection {
    sender: SendRequest<ContentBody>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

struct Call<'a> {
    method: Method,
    path: &'a str,
    query: String,
    payload_hash: &'a str,
    body: ContentBody,
    /// Not signed; names in lower case.
    headers: &'a [(&'static str, String)],
    copy_source: Option<&'a str>,
}

impl<'a> Call<'a> {
    /// A request without query, body and further headers.
    fn bare(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            query: String::new(),
            payload_hash: EMPTY_SHA256,
            body: ContentBody::empty(),
            headers: &[],
            copy_source: None,
        }
    }
}

impl Client {
    pub(crate) fn new(target: Arc<Target>, signer: Signer) -> Self {
        Self { target, signer, connection: None }
    }

    /// Connects unless connected.
    pub(crate) async fn connect(&mut self) -> Result<(), Failure> {
        let target = Arc::clone(&self.target);
        within(target.timeout, self.connected()).await.map(|_| ())
    }

    async fn connected(&mut self) -> Result<&mut Connection, Failure> {
        if let Some(connection) = &mut self.connection
            && connection.sender.ready().await.is_err()
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            let stream = TcpStream::connect(self.target.address).await.map_err(Failure::Connect)?;
            stream.set_nodelay(true).map_err(Failure::Connect)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(Failure::Lost)?;
            let driver = tokio::spawn(async move {
                // An error here also reaches the request in flight, which reports it.
                let _ = connection.await;
            });
            self.connection = Some(Connection { sender, driver });
        }
        Ok(self.connection.as_mut().expect("connected above"))
    }

    /// Payload hash for `body`: the time this takes with signed payloads is the caller's, not the server's.
    pub(crate) async fn payload_hash(&self, body: ContentBody) -> String {
        if !self.target.sign_payload {
            return UNSIGNED_PAYLOAD.to_owned();
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; HASH_STEP_BYTES];
        let mut offset = body.offset;
        while offset < body.end {
            let len = step(offset, body.end, HASH_STEP_BYTES);
            body.stream.expect("a body with bytes has a stream").fill(offset, &mut buffer[..len]);
            hash.update(&buffer[..len]);
            offset += len as u64;
            tokio::task::yield_now().await;
        }
        hex::encode(hash.finalize())
    }

    /// PUT of one object in one request.
    pub(crate) async fn put(
        &mut self,
        key: &str,
        body: ContentBody,
        payload_hash: &str,
    ) -> Result<(), Failure> {
        self.text(Method::PUT, Some(key), &[], body, payload_hash).await.map(|_| ())
    }

    /// PUT of one object as a multipart upload with parts of `part_bytes`.
    pub(crate) async fn put_parts(
        &mut self,
        key: &str,
        body: ContentBody,
        part_bytes: u64,
    ) -> Result<(), Failure> {
        let (_, text) = self
            .text(Method::POST, Some(key), &[("uploads", "")], ContentBody::empty(), EMPTY_SHA256)
            .await?;
        let upload = element(&text, "UploadId").ok_or(Failure::Protocol("no UploadId"))?.to_owned();
        let result = self.put_upload(key, &upload, body, part_bytes).await;
        if matches!(result, Err(Failure::Http { .. })) {
            // Parts of a refused upload would only occupy the server; the refusal is what is reported.
            let (query, empty) = ([("uploadId", &*upload)], ContentBody::empty());
            let _ = self.text(Method::DELETE, Some(key), &query, empty, EMPTY_SHA256).await;
        }
        result
    }

    async fn put_upload(
        &mut self,
        key: &str,
        upload: &str,
        body: ContentBody,
        part_bytes: u64,
    ) -> Result<(), Failure> {
        let mut list = String::from("<CompleteMultipartUpload>");
        let mut number = 1u32;
        let mut offset = body.offset;
        while offset < body.end {
            let part = ContentBody { offset, end: (offset + part_bytes).min(body.end), ..body.clone() };
            offset = part.end;
            let hash = self.payload_hash(part.clone()).await;
            let query = [("partNumber", &*number.to_string()), ("uploadId", upload)];
            let (etag, _) = self.text(Method::PUT, Some(key), &query, part, &hash).await?;
            let etag = etag.ok_or(Failure::Protocol("no ETag of a part"))?;
            list.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"));
            number += 1;
        }
        list.push_str("</CompleteMultipartUpload>");
        let hash = hex::encode(Sha256::digest(list.as_bytes()));
        let body = ContentBody::text(list);
        let (_, text) = self.text(Method::POST, Some(key), &[("uploadId", upload)], body, &hash).await?;
        // This one answer may carry an error in a body with status 200.
        if !text.contains("<CompleteMultipartUploadResult") {
            let code = element(&text, "Code").unwrap_or_default().to_owned();
            return Err(Failure::Http { status: StatusCode::INTERNAL_SERVER_ERROR, code });
        }
        Ok(())
    }

    pub(crate) async fn delete(&mut self, key: &str) -> Result<(), Failure> {
        self.text(Method::DELETE, Some(key), &[], ContentBody::empty(), EMPTY_SHA256).await.map(|_| ())
    }

    /// One page of ListObjectsV2.
    pub(crate) async fn list(
        &mut self,
        prefix: &str,
        keys_max: u32,
        token: Option<&str>,
    ) -> Result<Page, Failure> {
        self.page(prefix, keys_max, token.map(|token| ("continuation-token", token))).await
    }

    async fn page(
        &mut self,
        prefix: &str,
        keys_max: u32,
        from: Option<(&str, &str)>,
    ) -> Result<Page, Failure> {
        let keys_max = keys_max.to_string();
        let mut query = vec![("list-type", "2"), ("max-keys", &*keys_max), ("prefix", prefix)];
        query.extend(from);
        let (_, text) = self.text(Method::GET, None, &query, ContentBody::empty(), EMPTY_SHA256).await?;
        if !text.contains("<ListBucketResult") {
            return Err(Failure::Protocol("no ListBucketResult"));
        }
        let mut objects = Vec::new();
        for entry in text.split("<Contents>").skip(1) {
            let key = element(entry, "Key").ok_or(Failure::Protocol("no Key in a listing"))?;
            let size = element(entry, "Size").and_then(|size| size.parse().ok());
            objects.push((key.to_owned(), size.ok_or(Failure::Protocol("no Size in a listing"))?));
        }
        let next = element(&text, "NextContinuationToken").map(|token| token.replace("&amp;", "&"));
        Ok(Page { objects, next })
    }

    /// Creates the bucket unless it exists.
    pub(crate) async fn ensure_bucket(&mut self) -> Result<(), Failure> {
        match self.text(Method::HEAD, None, &[], ContentBody::empty(), EMPTY_SHA256).await {
            Err(Failure::Http { status: StatusCode::NOT_FOUND, .. }) => {}
            other => return other.map(|_| ()),
        }
        match self.text(Method::PUT, None, &[], ContentBody::empty(), EMPTY_SHA256).await {
            Err(Failure::Http { code, .. }) if code == "BucketAlreadyOwnedByYou" => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Reads an object and checks every byte of it as it arrives.
    pub(crate) async fn get(&mut self, key: &str, expected: &Expected) -> Result<Read, Failure> {
        self.get_part(key, expected, None).await
    }

    async fn get_part(
        &mut self,
        key: &str,
        expected: &Expected,
        range: Option<(u64, u64)>,
    ) -> Result<Read, Failure> {
        let target = Arc::clone(&self.target);
        let result = within(target.timeout, self.get_body(&target, key, expected, range)).await;
        if !matches!(result, Ok(Read::Found(_) | Read::Absent)) {
            self.connection = None;
        }
        result
    }

    async fn get_body(
        &mut self,
        target: &Target,
        key: &str,
        expected: &Expected,
        range: Option<(u64, u64)>,
    ) -> Result<Read, Failure> {
        let path = self.path(Some(key));
        let headers: Vec<_> = range
            .map(|(offset, len)| ("range", format!("bytes={offset}-{}", offset + len - 1)))
            .into_iter()
            .collect();
        let call = Call { headers: &headers, ..Call::bare(Method::GET, &path) };
        let response = self.send(call).await?;
        if !response.status().is_success() {
            return match read_text(response).await {
                Err(Failure::Http { status: StatusCode::NOT_FOUND, .. }) => Ok(Read::Absent),
                other => other.map(|_| Read::Absent),
            };
        }
        let announced = response.body().size_hint().exact();
        if let Some((_, len)) = range
            && (response.status() != StatusCode::PARTIAL_CONTENT || announced != Some(len))
        {
            return Err(Failure::Protocol("no 206 of the length of the range"));
        }
        let mut body = response.into_body();
        if !target.verify {
            let mut size_bytes = 0;
            while let Some(frame) = body.frame().await {
                size_bytes += frame.map_err(Failure::Lost)?.data_ref().map_or(0, Bytes::len) as u64;
            }
            return Ok(Read::Found(Content::Version { version: 0, size_bytes }));
        }
        let verifier = match range {
            Some(range) => Verifier::of_range(target.seed, key, expected, range),
            None => Verifier::new(target.seed, key, expected, announced),
        };
        let mut verifier = match verifier {
            Ok(verifier) => verifier,
            Err(difference) => return Ok(Read::Wrong(difference)),
        };
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Failure::Lost)?.into_data() else { continue };
            if let Err(difference) = verifier.feed(&data) {
                return Ok(Read::Wrong(difference));
            }
        }
        Ok(match verifier.finish() {
            Ok(content) => Read::Found(content),
            Err(difference) => Read::Wrong(difference),
        })
    }

    /// A request with a short answer: its ETag and its body.
    async fn text(
        &mut self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        body: ContentBody,
        payload_hash: &str,
    ) -> Result<(Option<String>, String), Failure> {
        let path = self.path(key);
        let query = canonical_query(query);
        let call = Call { query, payload_hash, body, ..Call::bare(method, &path) };
        self.answer(call).await
    }

    async fn answer(&mut self, call: Call<'_>) -> Result<(Option<String>, String), Failure> {
        let timeout = self.target.timeout;
        let result = within(timeout, async { read_text(self.send(call).await?).await }).await;
        if result.as_ref().is_err_and(|failure| !matches!(failure, Failure::Http { .. })) {
            self.connection = None;
        }
        result
    }

    fn path(&self, key: Option<&str>) -> String {
        match key {
            Some(key) => format!("/{}/{key}", self.target.bucket),
            None => format!("/{}", self.target.bucket),
        }
    }

    async fn send(&mut self, call: Call<'_>) -> Result<Response<Incoming>, Failure> {
        let mut request = self.request(call);
        let mut resent = false;
        loop {
            let connection = self.connected().await?;
            let mut error = match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            self.connection = None;
            match error.take_message() {
                Some(unsent) if !resent => request = unsent,
                _ => return Err(Failure::Lost(error.into_error())),
            }
            resent = true;
        }
    }

    fn request(&mut self, call: Call<'_>) -> Request<ContentBody> {
        let parts = Parts {
            method: call.method.as_str(),
            path: call.path,
            query: &call.query,
            host: &self.target.host,
            payload_hash: call.payload_hash,
            copy_source: call.copy_source,
        };
        let separator = if call.query.is_empty() { "" } else { "?" };
        let mut request = Request::builder()
            .uri(format!("{}{separator}{}", call.path, call.query))
            .header("host", &self.target.host);
        for (name, value) in self.signer.headers(&parts, unix_seconds()) {
            request = request.header(name, value);
        }
        for (name, value) in call.headers {
            request = request.header(*name, value);
        }
        if call.method == Method::PUT || call.method == Method::POST {
            request = request.header("content-length", call.body.len_bytes());
        }
        request.method(call.method).body(call.body).expect("args.rs admits only valid header characters")
    }
}

async fn within<T>(limit: Duration, future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(limit, future).await.unwrap_or(Err(Failure::Timeout(limit)))
}

/// Reads an answer that must be short; an unsuccessful status is a failure with its S3 code.
async fn read_text(response: Response<Incoming>) -> Result<(Option<String>, String), Failure> {
    let status = response.status();
    let etag = response.headers().get("etag").and_then(|etag| etag.to_str().ok()).map(str::to_owned);
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        bytes.extend_from_slice(frame.map_err(Failure::Lost)?.data_ref().map_or(&[], |data| &data[..]));
        if bytes.len() > TEXT_BYTES_MAX {
            return Err(Failure::Protocol("an answer that should be short is long"));
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if status.is_success() {
        return Ok((etag, text));
    }
    Err(Failure::Http { status, code: element(&text, "Code").unwrap_or_default().to_owned() })
}

/// Text of the first element with that name. Enough for S3's flat answers; nothing here needs entities.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// Seconds since 1970 by the system clock.
#[allow(
    clippy::disallowed_methods,
    reason = "signatures carry the time of day, and nothing here is simulated"
)]
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn step(offset: u64, end: u64, step_max: usize) -> usize {
    usize::try_from(end - offset).map_or(step_max, |left| left.min(step_max))
}

/// A request body: a range of a stream, generated as the connection takes it; or a short text.
#[derive(Clone)]
pub(crate) struct ContentBody {
    stream: Option<Stream>,
    offset: u64,
    end: u64,
    /// The frame buffer, reused as soon as the connection has written the last frame.
    buffer: BytesMut,
    text: Bytes,
}

impl ContentBody {
    fn empty() -> Self {
        Self { stream: None, offset: 0, end: 0, buffer: BytesMut::new(), text: Bytes::new() }
    }

    /// The first `size_bytes` of `stream`.
    pub(crate) fn new(stream: Stream, size_bytes: u64) -> Self {
        Self { stream: Some(stream), offset: 0, end: size_bytes, buffer: BytesMut::new(), text: Bytes::new() }
    }

    fn text(text: String) -> Self {
        Self { text: text.into(), ..Self::empty() }
    }

    fn len_bytes(&self) -> u64 {
        self.end - self.offset + self.text.len() as u64
    }
}

impl Body for ContentBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.text.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.text)))));
        }
        let this = &mut *self;
        let len = step(this.offset, this.end, FRAME_BYTES);
        let Some(stream) = this.stream.filter(|_| len > 0) else { return Poll::Ready(None) };
        this.buffer.resize(len, 0);
        stream.fill(this.offset, &mut this.buffer[..len]);
        this.offset += len as u64;
        Poll::Ready(Some(Ok(Frame::data(this.buffer.split().freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.len_bytes() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len_bytes())
    }
}
