//! Clients that are slow, hostile or cut off, on a clock that jumps: what they get, and that what is held for them is
//! bounded.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use quarry_gateway::{Gateway, Limits};
use support::client::{
    PIPE_BYTES, chunked_head, connect, exchange, head, response, run, signed, signed_chunks,
};
use support::{Log, MemoryStore, gateway_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

/// Read and write buffer of hyper (408 KiB each), the pipe, and a piece of an object.
const HELD_BYTES_MAX: usize = 2 * (408 << 10) + PIPE_BYTES + (128 << 10);
const SIGNED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const UNSIGNED: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

struct Bench {
    gateway: Gateway,
    store: Rc<MemoryStore>,
    log: Rc<Log>,
}

impl Bench {
    async fn new(limits: Limits) -> Self {
        let (store, log) = (Rc::<MemoryStore>::default(), Rc::<Log>::default());
        let gateway = gateway_with(Rc::clone(&log), limits, Rc::clone(&store));
        let bench = Self { gateway, store, log };
        assert!(bench.ask(&signed("PUT", "/bucket", b"")).await.contains(" 200 "));
        bench
    }

    fn connect(&self) -> DuplexStream {
        connect(&self.gateway, pending())
    }

    async fn ask(&self, request: &[u8]) -> String {
        exchange(&mut self.connect(), request).await.0
    }

    async fn assert_absent(&self, key: &str) {
        assert!(
            self.ask(&signed("GET", &format!("/bucket/{key}"), b"")).await.contains("NoSuchKey"),
            "{key}"
        );
    }
}

/// Writes for as long as the server takes anything; returns how much that was.
async fn flood(client: &mut DuplexStream, pattern: &[u8]) -> usize {
    let mut taken = 0;
    while let Ok(Ok(count)) = timeout(Duration::from_secs(1), client.write(pattern)).await {
        taken += count;
        assert!(taken < 64 << 20, "the server takes everything");
    }
    taken
}

/// Seconds until the server closes, all it sends being dropped.
async fn seconds_until_closed(client: &mut DuplexStream) -> u64 {
    let begun = Instant::now();
    while client.read(&mut [0; 4096]).await.unwrap_or(0) > 0 {}
    begun.elapsed().as_secs()
}

#[test]
fn bytes_that_come_one_by_one_make_an_object() {
    run(async {
        let bench = Bench::new(Limits::default()).await;
        let mut client = bench.connect();
        for byte in signed_chunks("/bucket/bytes", b"0123456789", 4) {
            client.write_all(&[byte]).await.unwrap();
            sleep(Duration::from_millis(1)).await;
        }
        assert!(response(&mut client, false).await.0.contains(" 200 "));
        let text = exchange(&mut client, &signed("GET", "/bucket/bytes", b"")).await.0;
        assert!(text.ends_with("\r\n\r\n0123456789"), "{text}");
    });
}

#[test]
fn a_body_that_stops_coming_is_answered_with_408() {
    run(async {
        let bench = Bench::new(Limits::default()).await;
        for (name, request) in [
            ("plain", signed("PUT", "/bucket/plain", &[7; 1000])),
            ("chunked", signed_chunks("/bucket/chunked", &[7; 1000], 100)),
        ] {
            let mut client = bench.connect();
            client.write_all(&request[..request.len() - 300]).await.unwrap();
            let begun = Instant::now();
            let (text, _, whole) = response(&mut client, false).await;
            assert!(whole && text.contains(" 408 ") && text.contains("<Code>RequestTimeout<"), "{text}");
            assert!(text.contains("connection: close"), "{text}");
            assert_eq!(begun.elapsed().as_secs(), 60);
            assert_eq!(seconds_until_closed(&mut client).await, 0);
            bench.assert_absent(name).await;
        }
    });
}

#[test]
fn a_body_that_trickles_is_given_up_after_the_window() {
    run(async {
        let bench = Bench::new(Limits::default()).await;
        let mut client = bench.connect();
        let (head, _) = head("PUT", "/bucket/slow", "UNSIGNED-PAYLOAD", &[], 1 << 20);
        client.write_all(head.as_bytes()).await.unwrap();
        let begun = Instant::now();
        while timeout(Duration::from_secs(10), client.read_u8()).await.is_err() {
            client.write_all(&[7; 5000]).await.unwrap();
            assert!(begun.elapsed().as_secs() < 400);
        }
        assert!((300..=310).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        assert!(response(&mut client, false).await.0.contains("RequestTimeout"));
        // A little over the rate goes on for as long as it takes.
        let mut client = bench.connect();
        client.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..64 {
            sleep(Duration::from_secs(15)).await;
            client.write_all(&[7; 16 << 10]).await.unwrap();
        }
        assert!(response(&mut client, false).await.0.contains(" 200 "));
    });
}

#[test]
fn a_slow_server_is_not_the_clients_fault() {
    run(async {
        let bench = Bench::new(Limits::default()).await;
        let mut client = bench.connect();
        let (head, _) = head("PUT", "/bucket/slow/x", "UNSIGNED-PAYLOAD", &[], 10);
        client.write_all(head.as_bytes()).await.unwrap();
        let begun = Instant::now();
        for _ in 0..10 {
            // The server takes 100 s before it asks for more, and then waits 10 s for it.
            sleep(Duration::from_secs(110)).await;
            client.write_all(b"x").await.unwrap();
        }
        let text = response(&mut client, false).await.0;
        assert!(text.contains(" 200 "), "{text}");
        assert!(begun.elapsed().as_secs() > 1000);
    });
}

#[test]
fn a_client_that_does_not_read_is_let_go() {
    run(async {
        let bench = Bench::new(Limits::default()).await;
        let body = vec![7; 8 << 20];
        assert!(bench.ask(&signed("PUT", "/bucket/big", &body)).await.contains(" 200 "));
        let mut client = bench.connect();
        client.write_all(&signed("GET", "/bucket/big", b"")).await.unwrap();
        let last = || bench.log.lines.borrow().last().cloned().unwrap();
        sleep(Duration::from_secs(59)).await;
        assert!(last().starts_with("PutObject"), "{}", last());
        sleep(Duration::from_secs(2)).await;
        let line = last();
        assert!(line.starts_with("GetObject") && line.ends_with("complete=false -"), "{line}");
        let sent: usize = line.split("out=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(sent <= HELD_BYTES_MAX, "{sent} bytes were taken from the object");
        // One that reads slowly gets everything.
        let mut client = bench.connect();
        client.write_all(&signed("GET", "/bucket/big", b"")).await.unwrap();
        let mut received = 0;
        while received < body.len() {
            sleep(Duration::from_secs(50)).await;
            let mut piece = vec![0; 1 << 20];
            received += client.read(&mut piece).await.unwrap();
        }
    });
}

#[test]
fn heads_and_idle_connections_have_their_time() {
    run(async {
        let bench = Bench::new(Limits::default()).await;
        let mut silent = bench.connect();
        assert_eq!(seconds_until_closed(&mut silent).await, 30);
        let mut slow = bench.connect();
        let begun = Instant::now();
        while slow.write_all(b"G").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
        assert!((30..=31).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        let mut idle = bench.connect();
        assert!(exchange(&mut idle, &signed("GET", "/bucket/x", b"")).await.0.contains(" 404 "));
        sleep(Duration::from_secs(70)).await;
        assert!(exchange(&mut idle, &signed("GET", "/bucket/x", b"")).await.0.contains(" 404 "));
        assert_eq!(seconds_until_closed(&mut idle).await, 75);
    });
}

#[test]
fn a_giant_chunk_streams_through() {
    run(async {
        let bench = Bench::new(Limits::default()).await;
        let size = 1_u64 << 30;
        for framing in [SIGNED, UNSIGNED] {
            let mut client = bench.connect();
            let before = bench.store.received_bytes.get();
            let (head, _) = chunked_head("/bucket/sink/giant", framing, size, size + 200);
            let extension = if framing == SIGNED {
                format!(";chunk-signature={}", "0".repeat(64))
            } else {
                String::new()
            };
            client.write_all(format!("{head}{size:x}{extension}\r\n").as_bytes()).await.unwrap();
            let piece = vec![7; 1 << 20];
            for sent in 1..=16_u64 {
                client.write_all(&piece).await.unwrap();
                let behind = (sent << 20) - (bench.store.received_bytes.get() - before);
                assert!(behind <= HELD_BYTES_MAX as u64, "{behind} bytes are held back");
            }
            drop(client);
            sleep(Duration::from_millis(1)).await;
        }
        // A store that takes nothing stops the client, whatever the chunk's size.
        let mut client = bench.connect();
        let (head, _) = chunked_head("/bucket/stuck/giant", UNSIGNED, size, size + 200);
        client.write_all(format!("{head}{size:x}\r\n").as_bytes()).await.unwrap();
        let taken = flood(&mut client, &[7; 64 << 10]).await;
        assert!(taken <= HELD_BYTES_MAX, "{taken} bytes were taken");
    });
}

#[test]
fn chunks_with_wrong_signatures_or_ends_store_nothing() {
    run(async {
        let bench = Bench::new(Limits::default()).await;
        let request = signed_chunks("/bucket/wrong", b"0123456789", 4);
        let at = request.windows(4).rposition(|window| window == b"4567").unwrap();
        for (at, code) in [(at, "SignatureDoesNotMatch"), (request.len() - 10, "SignatureDoesNotMatch")] {
            let mut changed = request.clone();
            changed[at] = b'x';
            let text = bench.ask(&changed).await;
            assert!(text.contains(" 403 ") && text.contains(code), "{text}");
        }
        let unsigned = |body: &str, decoded: u64| {
            let (head, _) = chunked_head("/bucket/wrong", UNSIGNED, decoded, body.len() as u64);
            format!("{head}{body}").into_bytes()
        };
        let good = "3\r\nabc\r\n0\r\nx-amz-checksum-crc32:NSRBwg==\r\n\r\n";
        for (body, decoded, code) in [
            ("3\r\nabc\r\n", 3, "IncompleteBody"),
            ("3\r\nab", 3, "IncompleteBody"),
            (good, 4, "IncompleteBody"),
            (good, 2, "InvalidRequest"),
            ("3\r\nabc\r\n0\r\n\r\n", 3, "MalformedTrailerError"),
            ("3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", 3, "BadDigest"),
        ] {
            let text = bench.ask(&unsigned(body, decoded)).await;
            assert!(text.contains(&format!("<Code>{code}<")), "{body:?}: {text}");
        }
        // Cut off by the connection itself.
        let mut client = bench.connect();
        client.write_all(&request[..request.len() - 20]).await.unwrap();
        drop(client);
        sleep(Duration::from_secs(1)).await;
        bench.assert_absent("wrong").await;
        assert!(bench.ask(&unsigned(good, 3)).await.contains(" 200 "));
        let (head, _) = chunked_head("/new-bucket", SIGNED, 0, 0);
        assert!(bench.ask(head.as_bytes()).await.contains("NotImplemented"));
    });
}

#[test]
fn large_heads_are_refused_with_a_document() {
    run(async {
        let bench = Bench::new(Limits::default()).await;
        let get = |lines: &str| format!("GET /bucket/x HTTP/1.1\r\nhost: test\r\n{lines}\r\n").into_bytes();
        let many = get(&"a: b\r\n".repeat(200));
        let large = get(&format!("x-amz-meta-a: {}\r\n", "b".repeat(20 << 10)));
        let uri = format!("GET /bucket/{} HTTP/1.1\r\nhost: test\r\n\r\n", "x".repeat(10 << 10)).into_bytes();
        for (request, code) in [
            (many, " 400 Bad Request|RequestHeaderSectionTooLarge"),
            (large, " 400 Bad Request|RequestHeaderSectionTooLarge"),
            (uri, " 414 URI Too Long|InvalidURI"),
        ] {
            let text = bench.ask(&request).await;
            let (status, code) = code.split_once('|').unwrap();
            assert!(text.contains(status) && text.contains(&format!("<Code>{code}<")), "{text}");
        }
        let mut endless = bench.connect();
        endless.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
        let taken = flood(&mut endless, &[b'x'; 4096]).await;
        assert!(taken <= (64 << 10) + (16 << 10) + PIPE_BYTES, "{taken} bytes were taken");
        assert!(response(&mut endless, false).await.0.contains(" 431 "));
    });
}

#[test]
fn requests_beyond_the_limit_are_told_to_slow_down() {
    run(async {
        let bench = Bench::new(Limits { requests_max: 2, ..Limits::default() }).await;
        let mut waiting = [bench.connect(), bench.connect()];
        for client in &mut waiting {
            client.write_all(signed("PUT", "/bucket/x", b"x").strip_suffix(b"x").unwrap()).await.unwrap();
        }
        sleep(Duration::from_millis(1)).await;
        let text = bench.ask(&signed("GET", "/bucket/x", b"")).await;
        assert!(text.contains(" 503 ") && text.contains("<Code>SlowDown<"), "{text}");
        assert!(text.to_lowercase().contains("retry-after: 1"), "{text}");
        drop(waiting);
        sleep(Duration::from_millis(1)).await;
        bench.assert_absent("x").await;
    });
}

#[test]
fn documents_beyond_the_limit_are_told_to_slow_down() {
    run(async {
        let bench = Bench::new(Limits { xml_bytes_held_max: 100, ..Limits::default() }).await;
        let document = |key: &str| format!("<Delete><Object><Key>{key}</Key></Object></Delete>");
        for _ in 0..3 {
            let text = bench.ask(&signed("POST", "/bucket?delete=", document("x").as_bytes())).await;
            assert!(text.contains(" 200 "), "{text}");
        }
        let long = document(&"x".repeat(100));
        let text = bench.ask(&signed("POST", "/bucket?delete=", long.as_bytes())).await;
        assert!(text.contains(" 503 ") && text.contains("<Code>SlowDown<"), "{text}");
    });
}

#[test]
fn the_longest_idle_connections_are_closed_first() {
    run(async {
        let bench = Bench::new(Limits { idle_connections_max: 3, ..Limits::default() }).await;
        let mut clients = Vec::new();
        for _ in 0..5 {
            let mut client = bench.connect();
            let text = exchange(&mut client, &signed("GET", "/bucket/x", b"")).await.0;
            assert!(text.contains(" 404 "), "{text}");
            clients.push(client);
        }
        sleep(Duration::from_millis(1)).await;
        for (at, client) in clients.iter_mut().enumerate() {
            let closed = timeout(Duration::from_millis(1), client.read(&mut [0; 16])).await;
            assert_eq!(closed.is_ok(), at < 2, "connection {at}");
        }
    });
}

#[test]
fn pipelined_requests_wait_unread() {
    run(async {
        let bench = Bench::new(Limits::default()).await;
        let mut client = bench.connect();
        client.write_all(&signed("PUT", "/bucket/stuck/x", b"x")).await.unwrap();
        let taken = flood(&mut client, &signed("GET", "/bucket/x", b"")).await;
        assert!(taken <= HELD_BYTES_MAX, "{taken} bytes were taken");
        // Responses that nobody reads stop the requests behind them.
        let mut client = bench.connect();
        let begun = Instant::now();
        let taken = flood(&mut client, &signed("GET", "/bucket/x", b"")).await;
        assert!(taken <= 4 * HELD_BYTES_MAX, "{taken} bytes were taken");
        assert!(begun.elapsed().as_secs() < 5);
        // Those that are read are all answered, in order.
        let mut client = bench.connect();
        let requests = [signed("GET", "/bucket/1", b""), signed("GET", "/bucket/2", b"")].concat();
        client.write_all(&requests).await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert!(text.find("/bucket/1<").unwrap() < text.find("/bucket/2<").unwrap(), "{text}");
    });
}
