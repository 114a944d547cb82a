//! The gateway over a pipe with requests signed by hand: faults in the middle of a body, panics, shutdown.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::rc::Rc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use support::{ACCESS_KEY, Log, SECRET_KEY, TokioStream, gateway};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// A request whose signature is right; s3s reads the clock itself, so it is dated now.
fn signed(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let now = s3s::dto::Timestamp::from(std::time::UNIX_EPOCH + std::time::UNIX_EPOCH.elapsed().unwrap());
    let mut text = Vec::new();
    now.format(s3s::dto::TimestampFormat::DateTime, &mut text).unwrap();
    let iso = String::from_utf8(text).unwrap().replace(['-', ':'], "");
    let date = format!("{}Z", &iso[..15]);
    let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
    let payload = hex::encode(Sha256::digest(body));
    let names = "host;x-amz-content-sha256;x-amz-date";
    let lines = format!("host:test\nx-amz-content-sha256:{payload}\nx-amz-date:{date}\n");
    let canonical = format!("{method}\n{path}\n\n{lines}\n{names}\n{payload}");
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let key = scope.split('/').fold(format!("AWS4{SECRET_KEY}").into_bytes(), |key, part| mac(&key, part));
    let signature = hex::encode(mac(&key, &to_sign));
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\n{}authorization: AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, \
         SignedHeaders={names}, Signature={signature}\r\ncontent-length: {}\r\n\r\n",
        lines.replace('\n', "\r\n"),
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Sends one request and reads until `end` of what follows the head, or until the connection closes.
async fn exchange(client: &mut DuplexStream, request: &[u8]) -> (String, usize, bool) {
    client.write_all(request).await.unwrap();
    let mut received = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&received).into_owned();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let body = received.len() - head.len() - 4;
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if request.starts_with(b"HEAD") || body >= length.unwrap_or(0) {
                return (text, body, true);
            }
        }
        if client.read_buf(&mut received).await.unwrap() == 0 {
            let body = text.split_once("\r\n\r\n").map_or(0, |(head, _)| received.len() - head.len() - 4);
            return (text, body, false);
        }
    }
}

fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn connect(gateway: &quarry_gateway::Gateway, shutdown: impl Future<Output = ()> + 'static) -> DuplexStream {
    let (client, server) = tokio::io::duplex(64 << 10);
    let gateway = gateway.clone();
    tokio::task::spawn_local(async move {
        drop(gateway.serve_connection(TokioStream(server), shutdown).await);
    });
    client
}

#[test]
fn failing_reads_break_the_connection_and_never_end_short() {
    run(async {
        let log = Rc::new(Log::default());
        let gateway = gateway(Rc::clone(&log));
        let mut client = connect(&gateway, std::future::pending());
        assert!(exchange(&mut client, &signed("PUT", "/bucket", b"")).await.0.contains(" 200 "));
        let body = vec![7; 300 << 10];
        for fault in ["error", "short", "long", "panic"] {
            let mut client = connect(&gateway, std::future::pending());
            let path = format!("/bucket/fault/{fault}");
            assert!(exchange(&mut client, &signed("PUT", &path, &body)).await.0.contains(" 200 "), "{fault}");
            let (_, received, whole) = exchange(&mut client, &signed("GET", &path, b"")).await;
            if fault == "long" {
                assert!(received <= body.len(), "{fault}");
                continue;
            }
            assert!(!whole && received < body.len(), "{fault}: {received} bytes");
            let line = log.lines.borrow().last().cloned().unwrap();
            assert!(line.starts_with("GetObject GET") && line.contains("complete=false"), "{line}");
        }
    });
}

#[test]
fn a_panic_costs_one_request() {
    run(async {
        let log = Rc::new(Log::default());
        let mut client = connect(&gateway(Rc::clone(&log)), std::future::pending());
        let (text, _, _) = exchange(&mut client, &signed("HEAD", "/panics", b"")).await;
        assert!(text.contains(" 500 ") && text.contains("x-amz-request-id"), "{text}");
        let mut client = connect(&gateway(Rc::clone(&log)), std::future::pending());
        let (text, _, _) = exchange(&mut client, &signed("GET", "/none/key", b"")).await;
        assert!(
            text.contains("<Code>NoSuchBucket</Code>") && text.contains("<Resource>/none/key</Resource>"),
            "{text}"
        );
        assert!(log.lines.borrow()[0].starts_with("HeadBucket HEAD /panics 500"));
    });
}

#[test]
fn shutdown_closes_an_idle_connection_after_its_request() {
    run(async {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut client = connect(&gateway(Rc::default()), async { drop(stopped.await) });
        assert!(exchange(&mut client, &signed("PUT", "/bucket", b"")).await.0.contains(" 200 "));
        assert!(exchange(&mut client, &signed("GET", "/bucket/x", b"")).await.0.contains(" 404 "));
        stop.send(()).unwrap();
        assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
    });
}

#[test]
fn malformed_http_is_refused() {
    run(async {
        let mut client = connect(&gateway(Rc::default()), std::future::pending());
        assert!(exchange(&mut client, b"NOT HTTP AT ALL\r\n\r\n").await.0.contains(" 400 "));
        let mut client = connect(&gateway(Rc::default()), std::future::pending());
        let many = "a: b\r\n".repeat(200);
        assert!(
            exchange(&mut client, format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes())
                .await
                .0
                .contains(" 431 ")
        );
    });
}
