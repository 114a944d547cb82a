//! A client on one end of a pipe that signs its requests by hand.

use hmac::{Hmac, KeyInit as _, Mac as _};
use quarry_gateway::Gateway;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::{ACCESS_KEY, SECRET_KEY, TokioStream};

/// Bytes that the pipe holds in each direction.
pub const PIPE_BYTES: usize = 64 << 10;

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

/// What a request is signed with, and the newest signature.
pub struct Signer {
    date: String,
    scope: String,
    previous: String,
}

impl Signer {
    /// s3s reads the wall clock itself, so requests are dated now.
    fn new() -> Self {
        let now = std::time::UNIX_EPOCH + std::time::UNIX_EPOCH.elapsed().unwrap();
        let mut text = Vec::new();
        s3s::dto::Timestamp::from(now).format(s3s::dto::TimestampFormat::DateTime, &mut text).unwrap();
        let iso = String::from_utf8(text).unwrap().replace(['-', ':'], "");
        let date = format!("{}Z", &iso[..15]);
        let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
        Self { date, scope, previous: String::new() }
    }

    fn sign(&mut self, kind: &str, text: &str) -> String {
        let secret = format!("AWS4{SECRET_KEY}").into_bytes();
        let key = self.scope.split('/').fold(secret, |key, part| mac(&key, part));
        self.previous = hex::encode(mac(&key, &format!("{kind}\n{}\n{}\n{text}", self.date, self.scope)));
        self.previous.clone()
    }

    /// A signed chunk, without the CRLF after its data.
    pub fn chunk(&mut self, data: &[u8]) -> Vec<u8> {
        let text = format!("{}\n{}\n{}", self.previous, sha256_hex(b""), sha256_hex(data));
        let signature = self.sign("AWS4-HMAC-SHA256-PAYLOAD", &text);
        [format!("{:x};chunk-signature={signature}\r\n", data.len()).as_bytes(), data].concat()
    }
}

/// The head of a signed request; `payload` is `x-amz-content-sha256`, `headers` are signed `x-amz-*` headers in order.
pub fn head(
    method: &str,
    target: &str,
    payload: &str,
    headers: &[(&str, String)],
    len_bytes: u64,
) -> (String, Signer) {
    signed_at(method, target, "test", payload, headers, len_bytes)
}

/// As [`head`], for a host.
pub fn signed_at(
    method: &str,
    target: &str,
    host: &str,
    payload: &str,
    headers: &[(&str, String)],
    len_bytes: u64,
) -> (String, Signer) {
    let mut signer = Signer::new();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let fixed = [("host", host.to_owned()), ("x-amz-content-sha256", payload.to_owned())];
    let date = [("x-amz-date", signer.date.clone())];
    let mut all: Vec<_> = fixed.iter().chain(&date).chain(headers).collect();
    all.sort_by_key(|(name, _)| *name);
    let names = all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = all.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}");
    let signature = signer.sign("AWS4-HMAC-SHA256", &sha256_hex(canonical.as_bytes()));
    let head = format!(
        "{method} {target} HTTP/1.1\r\n{}authorization: AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{}, \
         SignedHeaders={names}, Signature={signature}\r\ncontent-length: {len_bytes}\r\n\r\n",
        lines.replace('\n', "\r\n"),
        signer.scope
    );
    (head, signer)
}

/// A signed request with `x-amz-*` headers and its body.
pub fn signed_with(method: &str, target: &str, headers: &[(&str, String)], body: &[u8]) -> Vec<u8> {
    let (head, _) = head(method, target, &sha256_hex(body), headers, body.len() as u64);
    [head.as_bytes(), body].concat()
}

/// A signed request with its body.
pub fn signed(method: &str, target: &str, body: &[u8]) -> Vec<u8> {
    let (head, _) = head(method, target, &sha256_hex(body), &[], body.len() as u64);
    [head.as_bytes(), body].concat()
}

/// The head of a PUT in an aws-chunked framing.
pub fn chunked_head(path: &str, framing: &str, decoded: u64, encoded: u64) -> (String, Signer) {
    let mut headers = vec![("x-amz-decoded-content-length", decoded.to_string())];
    if framing.ends_with("TRAILER") {
        headers.push(("x-amz-trailer", "x-amz-checksum-crc32".to_owned()));
    }
    head("PUT", path, framing, &headers, encoded)
}

/// A PUT in signed chunks of `chunk_bytes`.
pub fn signed_chunks(path: &str, data: &[u8], chunk_bytes: usize) -> Vec<u8> {
    let framed = |size: usize| format!("{size:x};chunk-signature=").len() + 64 + 2 + size + 2;
    let encoded: usize = data.chunks(chunk_bytes).map(|chunk| framed(chunk.len())).sum();
    let encoded = (encoded + framed(0)) as u64;
    let (head, mut signer) =
        chunked_head(path, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", data.len() as u64, encoded);
    let mut request = head.into_bytes();
    for chunk in data.chunks(chunk_bytes).chain([&b""[..]]) {
        request.extend(signer.chunk(chunk));
        request.extend(b"\r\n");
    }
    request
}

/// Sends one request and reads its response.
pub async fn exchange(client: &mut DuplexStream, request: &[u8]) -> (String, usize, bool) {
    client.write_all(request).await.unwrap();
    response(client, request.starts_with(b"HEAD")).await
}

/// Reads a response, its body up to the announced length or the end of the connection. Returns it as text, the length of
/// the body, and whether that is what was announced.
pub async fn response(client: &mut DuplexStream, without_body: bool) -> (String, usize, bool) {
    let mut received = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&received).into_owned();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let body = received.len() - head.len() - 4;
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if without_body || body >= length.unwrap_or(0) {
                return (text, body, true);
            }
        }
        if client.read_buf(&mut received).await.unwrap_or(0) == 0 {
            let body = text.split_once("\r\n\r\n").map_or(0, |(head, _)| received.len() - head.len() - 4);
            return (text, body, false);
        }
    }
}

/// Runs a test on a clock that jumps to the next deadline when there is nothing else to do.
pub fn run<F: Future<Output = ()>>(test: F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// A connection to the gateway.
pub fn connect(gateway: &Gateway, shutdown: impl Future<Output = ()> + 'static) -> DuplexStream {
    let (client, server) = tokio::io::duplex(PIPE_BYTES);
    let gateway = gateway.clone();
    tokio::task::spawn_local(async move {
        drop(gateway.serve_connection(TokioStream(server), shutdown).await);
    });
    client
}

/// Sends bytes on a connection of their own, ends it, and reads what comes back.
pub async fn send(gateway: &Gateway, request: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(connect(gateway, std::future::pending()));
    let mut answer = Vec::new();
    let write = async {
        // The gateway may answer and close before it has read everything.
        drop(writer.write_all(request).await);
        drop(writer.shutdown().await);
    };
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut answer));
    read.unwrap();
    answer
}
