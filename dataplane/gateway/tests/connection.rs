//! The gateway over a pipe with requests signed by hand: faults in the middle of a body, panics, shutdown.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::rc::Rc;

use support::client::{connect, exchange, run, signed};
use support::{Log, gateway};
use tokio::io::AsyncReadExt as _;

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
        let many = "a: b\r\n".repeat(2000);
        assert!(
            exchange(&mut client, format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes())
                .await
                .0
                .contains(" 431 ")
        );
    });
}
