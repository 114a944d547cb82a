//! A small S3 server in memory for the tests, which checks signatures by its own reading of Signature Version 4 and can
//! be told to misbehave in every way that the load generator must notice.

#![allow(dead_code, reason = "every test binary uses another part of it")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

pub(crate) const ACCESS_KEY: &str = "test-access";
pub(crate) const SECRET_KEY: &str = "test/secret+key";

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Answers a GET with another object.
    Swapped,
    /// Keeps the first version of each key for ever.
    Stale,
    /// Flips one bit at an odd place of a GET's body.
    Damaged,
    /// Ends a GET's body early, with a Content-Length to match.
    Truncated,
    /// Closes the connection within a GET's body.
    Cut,
    /// Answers with the right length, but moved by a block.
    Shifted,
    /// A block of zeros within the body.
    Zeroed,
    /// Adds a byte.
    Longer,
    /// Acknowledges, but forgets every PUT.
    Forgets,
    /// Keeps each PUT, but answers 500 to every second one.
    StoresThenFails,
    /// Refuses every second request with 503.
    SlowDown,
    /// Lists in the wrong order.
    Disordered,
    /// Refuses part 2 of every upload.
    RefusesSecondPart,
    /// Deletes nothing.
    KeepsDeleted,
    /// Answers nothing for a second, once, from its 100th request on.
    Stalls,
    /// Ignores If-None-Match and If-Match.
    Unconditional,
    /// Leaves the third object out of listings.
    ListsIncompletely,
    /// Says a wrong size in answers to HEAD.
    WrongSize,
    /// Answers ranges with what stands one byte later.
    ShiftsRanges,
    /// Copies from another object.
    CopiesAnother,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) buckets: Vec<String>,
    pub(crate) objects: BTreeMap<String, Bytes>,
    pub(crate) uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    pub(crate) requests: u64,
    pub(crate) puts: u64,
    /// Until when a stalling server answers nothing.
    pub(crate) stalled_until: Option<std::time::Instant>,
    /// Method, path with query, and length of the body of every request that was understood.
    pub(crate) log: Vec<String>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) fault: Arc<Mutex<Fault>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(fault: Fault) -> Self {
        Self::start_with(fault, Arc::default(), "127.0.0.1:0".parse().unwrap())
    }

    /// Starts on `address` with what `state` holds.
    pub(crate) fn start_with(fault: Fault, state: Arc<Mutex<State>>, address: SocketAddr) -> Self {
        let fault = Arc::new(Mutex::new(fault));
        let (stop, stopped) = oneshot::channel();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = (Arc::clone(&state), Arc::clone(&fault));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                tokio::select! {
                    () = serve(listener, shared.0, shared.1) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, state, fault, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn set_fault(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn serve(listener: std::net::TcpListener, state: Arc<Mutex<State>>, fault: Arc<Mutex<Fault>>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (state, fault) = (Arc::clone(&state), Arc::clone(&fault));
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), Arc::clone(&fault), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

async fn answer(
    state: Arc<Mutex<State>>,
    fault: Arc<Mutex<Fault>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(error(StatusCode::BAD_REQUEST, "IncompleteBody")),
    };
    let query = head.uri.query().unwrap_or("").to_owned();
    if !signature_is_right(&head.method, head.uri.path(), &query, &head.headers, &body) {
        return Ok(error(StatusCode::FORBIDDEN, "SignatureDoesNotMatch"));
    }
    let fault = *fault.lock().unwrap();
    if fault == Fault::Stalls {
        stall(&state).await;
    }
    let mut state = state.lock().unwrap();
    state.requests += 1;
    state.log.push(format!("{} {} {}", head.method, head.uri, body.len()));
    if fault == Fault::SlowDown && state.requests.is_multiple_of(2) {
        return Ok(error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"));
    }
    let path = head.uri.path().trim_start_matches('/').to_owned();
    let response = match path.split_once('/') {
        None => bucket(&mut state, fault, &head.method, &path, &query),
        Some((bucket, _)) if !state.buckets.iter().any(|known| known == bucket) => {
            error(StatusCode::NOT_FOUND, "NoSuchBucket")
        }
        Some((_, key)) => match special(&mut state, fault, &head.method, key, &query, &head.headers) {
            Some(response) => response,
            None => object(&mut state, fault, &head.method, key, &query, body),
        },
    };
    let mut response = response;
    response.headers_mut().insert("server", "test-server".parse().unwrap());
    Ok(response)
}

async fn stall(state: &Mutex<State>) {
    let until = {
        let mut state = state.lock().unwrap();
        if state.requests >= 100 && state.stalled_until.is_none() {
            state.stalled_until = Some(std::time::Instant::now() + std::time::Duration::from_secs(1));
        }
        state.stalled_until
    };
    if let Some(until) = until {
        tokio::time::sleep_until(until.into()).await;
    }
}

/// HEAD, ranges, copies, and conditions that do not hold.
fn special(
    state: &mut State,
    fault: Fault,
    method: &Method,
    key: &str,
    query: &str,
    headers: &HeaderMap,
) -> Option<Response<Body>> {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let stored = state.objects.get(key).cloned();
    if method == Method::HEAD {
        let Some(stored) = stored else { return Some(error(StatusCode::NOT_FOUND, "")) };
        let len = stored.len() + usize::from(fault == Fault::WrongSize);
        let response = Response::builder().header("content-length", len);
        return Some(response.body(full(Bytes::new())).unwrap());
    }
    if let Some(range) = header("range").filter(|_| method == Method::GET) {
        let Some(stored) = stored else { return Some(error(StatusCode::NOT_FOUND, "NoSuchKey")) };
        let (first, last) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        assert!(first <= last && last < stored.len(), "{range} of {} bytes", stored.len());
        let mut stored = stored.to_vec();
        if fault == Fault::ShiftsRanges {
            stored.rotate_left(1);
        }
        let body = Bytes::from(stored).slice(first..=last);
        return Some(Response::builder().status(206).body(full(body)).unwrap());
    }
    if let Some(source) = header("x-amz-copy-source") {
        let (_, mut source) = source.trim_start_matches('/').split_once('/').unwrap();
        if fault == Fault::CopiesAnother {
            source = state.objects.keys().find(|other| *other != source).unwrap();
        }
        let copy = state.objects[source].clone();
        let text = format!("<CopyObjectResult><ETag>&quot;{}&quot;</ETag></CopyObjectResult>", tag_of(&copy));
        state.objects.insert(key.to_owned(), copy);
        return Some(ok(text.into()));
    }
    let refused = match (header("if-none-match"), header("if-match")) {
        (Some(_), _) => stored.is_some(),
        (_, Some(tag)) => stored.is_none() || tag != format!("\"{}\"", tag_of(&stored.unwrap())),
        _ => false,
    };
    let condition = method == Method::PUT && query.is_empty() && fault != Fault::Unconditional;
    (condition && refused).then(|| error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"))
}

fn tag_of(body: &[u8]) -> String {
    hex::encode(&Sha256::digest(body)[..16])
}

fn bucket(state: &mut State, fault: Fault, method: &Method, name: &str, query: &str) -> Response<Body> {
    let exists = state.buckets.iter().any(|known| known == name);
    match *method {
        Method::PUT => {
            state.buckets.push(name.to_owned());
            ok(Bytes::new())
        }
        _ if !exists => error(StatusCode::NOT_FOUND, "NoSuchBucket"),
        Method::GET => ok(listing(state, fault, query).into()),
        _ => ok(Bytes::new()),
    }
}

fn listing(state: &State, fault: Fault, query: &str) -> String {
    let prefix = parameter(query, "prefix").unwrap_or_default();
    let max: usize = parameter(query, "max-keys").map_or(1000, |max| max.parse().unwrap());
    let after =
        parameter(query, "continuation-token").or(parameter(query, "start-after")).unwrap_or_default();
    let matching = state.objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after);
    let mut page: Vec<_> = matching.take(max + 1).collect();
    let more = page.len() > max;
    page.truncate(max);
    let next = page.last().filter(|_| more).map(|(key, _)| (*key).clone());
    if fault == Fault::Disordered {
        page.reverse();
    }
    if fault == Fault::ListsIncompletely && page.len() > 2 {
        page.remove(2);
    }
    let mut xml = String::from("<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.example/\">");
    for (key, body) in page {
        xml += &format!("<Contents><Key>{key}</Key><Size>{}</Size></Contents>", body.len());
    }
    xml +=
        &next.map_or(String::new(), |next| format!("<NextContinuationToken>{next}</NextContinuationToken>"));
    xml + "</ListBucketResult>"
}

fn object(
    state: &mut State,
    fault: Fault,
    method: &Method,
    key: &str,
    query: &str,
    body: Bytes,
) -> Response<Body> {
    match *method {
        Method::PUT if parameter(query, "uploadId").is_some() => {
            let number = parameter(query, "partNumber").unwrap().parse().unwrap();
            if fault == Fault::RefusesSecondPart && number == 2 {
                return error(StatusCode::BAD_REQUEST, "InvalidPart");
            }
            state.uploads.get_mut(&parameter(query, "uploadId").unwrap()).unwrap().insert(number, body);
            etag(&format!("part-{number}"))
        }
        Method::PUT => put(state, fault, key, body),
        Method::POST if query.starts_with("uploads") => {
            state.uploads.insert(format!("upload-of-{key}"), BTreeMap::new());
            ok(format!("<X><UploadId>upload-of-{key}</UploadId></X>").into())
        }
        Method::POST => {
            let upload = parameter(query, "uploadId").unwrap();
            let parts = state.uploads.remove(&upload).unwrap();
            let list = String::from_utf8(body.to_vec()).unwrap();
            assert_eq!(list.matches("<Part>").count(), parts.len());
            let whole: Vec<u8> = parts.into_values().flatten().collect();
            state.objects.insert(key.to_owned(), whole.into());
            ok("<CompleteMultipartUploadResult></CompleteMultipartUploadResult>".into())
        }
        Method::DELETE => {
            if let Some(upload) = parameter(query, "uploadId") {
                state.uploads.remove(&upload);
            } else if fault != Fault::KeepsDeleted {
                state.objects.remove(key);
            }
            Response::builder().status(StatusCode::NO_CONTENT).body(full(Bytes::new())).unwrap()
        }
        _ => get(state, fault, key),
    }
}

fn put(state: &mut State, fault: Fault, key: &str, body: Bytes) -> Response<Body> {
    state.puts += 1;
    let tag = tag_of(&body);
    match fault {
        Fault::Forgets => {}
        Fault::Stale if state.objects.contains_key(key) => {}
        _ => {
            state.objects.insert(key.to_owned(), body);
        }
    }
    if fault == Fault::StoresThenFails && state.puts.is_multiple_of(2) {
        return error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    }
    etag(&tag)
}

fn get(state: &State, fault: Fault, key: &str) -> Response<Body> {
    let Some(body) = state.objects.get(key) else { return error(StatusCode::NOT_FOUND, "NoSuchKey") };
    let mut bytes = body.to_vec();
    let middle = bytes.len() / 2 + 3;
    match fault {
        Fault::Swapped => bytes = state.objects.iter().find(|(other, _)| *other != key).unwrap().1.to_vec(),
        Fault::Damaged => bytes[middle] ^= 0x40,
        Fault::Truncated => bytes.truncate(middle),
        Fault::Shifted => bytes.rotate_left(4096),
        Fault::Zeroed => bytes[middle..].fill(0),
        Fault::Longer => bytes.push(7),
        Fault::Cut => {
            let len = bytes.len();
            bytes.truncate(middle);
            let frames = [Ok(Frame::data(bytes.into())), Err(std::io::Error::other("cut"))];
            let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
            return Response::builder().header("content-length", len).body(body).unwrap();
        }
        _ => {}
    }
    ok(bytes.into())
}

fn parameter(query: &str, name: &str) -> Option<String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|pair| pair.0 == name)
        .map(|pair| pair.1.replace("%2F", "/"))
}

fn full(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

fn ok(body: Bytes) -> Response<Body> {
    Response::new(full(body))
}

fn etag(tag: &str) -> Response<Body> {
    Response::builder().header("etag", format!("\"{tag}\"")).body(full(Bytes::new())).unwrap()
}

fn error(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
    Response::builder().status(status).body(full(text.into())).unwrap()
}

fn signature_is_right(method: &Method, path: &str, query: &str, headers: &HeaderMap, body: &[u8]) -> bool {
    let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap());
    let authorization = header("authorization");
    let field = |name: &str| {
        let rest = authorization.split_once(&format!("{name}=")).map_or("", |(_, rest)| rest);
        rest.split_once(',').map_or(rest, |(value, _)| value).to_owned()
    };
    let declared = header("x-amz-content-sha256");
    if declared != "UNSIGNED-PAYLOAD" && declared != hex::encode(Sha256::digest(body)) {
        return false;
    }
    let credential = field("Credential");
    let scope: Vec<&str> = credential.split('/').collect();
    if scope.len() != 5 || scope[0] != ACCESS_KEY || !header("x-amz-date").starts_with(scope[1]) {
        return false;
    }
    let signed = field("SignedHeaders");
    let mut canonical = format!("{method}\n{path}\n{query}\n");
    for name in signed.split(';') {
        canonical += &format!("{name}:{}\n", header(name).trim());
    }
    canonical += &format!("\n{signed}\n{declared}");
    let sign = |key: &[u8], text: &str| -> Vec<u8> {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().to_vec()
    };
    let mut key = format!("AWS4{SECRET_KEY}").into_bytes();
    for part in &scope[1..] {
        key = sign(&key, part);
    }
    let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
    let text = format!("AWS4-HMAC-SHA256\n{}\n{}\n{digest}", header("x-amz-date"), scope[1..].join("/"));
    hex::encode(sign(&key, &text)) == field("Signature") && signed.contains("x-amz-content-sha256")
}
