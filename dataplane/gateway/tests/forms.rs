//! Uploads by HTML forms through the whole gateway.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::future::pending;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use quarry_clustermap::Versioning;
use quarry_gateway::{Gateway, Limits};
use quarry_object::metadata::Metadata as _;
use sha2::Sha256;
use support::client::{connect, exchange, run, signed};
use support::real::real_store;
use support::{ACCESS_KEY, MemoryStore, SECRET_KEY, gateway_with};

const DATE: &str = "20260102";

struct Bench {
    gateway: Gateway,
}

impl Bench {
    async fn new() -> Self {
        let store = Rc::<MemoryStore>::default();
        let bench = Self { gateway: gateway_with(Rc::default(), Limits::default(), store) };
        assert!(bench.send(&signed("PUT", "/bucket", b"")).await.contains(" 200 "));
        bench
    }

    async fn send(&self, request: &[u8]) -> String {
        exchange(&mut connect(&self.gateway, pending()), request).await.0
    }

    async fn get(&self, key: &str) -> String {
        self.send(&signed("GET", &format!("/bucket/{key}"), b"")).await
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(text).finalize().into_bytes().to_vec()
}

/// A form whose policy allows the fields as they are, and `conditions`.
struct Form {
    fields: Vec<(String, String)>,
    conditions: String,
    file: Vec<u8>,
    secret: String,
    tail: &'static str,
}

impl Form {
    fn new(key: &str, file: &[u8]) -> Self {
        let scope = format!("{ACCESS_KEY}/{DATE}/us-east-1/s3/aws4_request");
        let fields = [
            ("key", key),
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", &scope),
            ("X-Amz-Date", "20260102T030405Z"),
        ];
        Self {
            fields: fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            conditions: r#"["starts-with", "$key", ""]"#.to_owned(),
            file: file.to_vec(),
            secret: SECRET_KEY.to_owned(),
            tail: "--XX--\r\n",
        }
    }

    fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    fn condition(mut self, condition: &str) -> Self {
        self.conditions = format!("{}, {condition}", self.conditions);
        self
    }

    fn request(&self, target: &str) -> Vec<u8> {
        let named: String = self.fields[1..]
            .iter()
            .filter(|(name, _)| name != "extra")
            .map(|(name, value)| format!(r#", {{"{name}": "{value}"}}"#))
            .collect();
        let policy = format!(
            r#"{{"expiration": "2030-01-01T00:00:00Z", "conditions": [{{"bucket": "bucket"}}, {}{named}]}}"#,
            self.conditions
        );
        let policy = BASE64.encode(policy);
        let secret = format!("AWS4{}", self.secret).into_bytes();
        let key = [DATE, "us-east-1", "s3", "aws4_request"].iter().fold(secret, |key, part| mac(&key, part));
        let signature = hex::encode(mac(&key, &policy));
        let more = [("policy".to_owned(), policy), ("x-amz-signature".to_owned(), signature)];
        let mut body = String::new();
        for (name, value) in self.fields.iter().chain(&more) {
            body += &format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        }
        body += "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\n";
        let body = [body.as_bytes(), &self.file, b"\r\n", self.tail.as_bytes()].concat();
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: test\r\ncontent-type: multipart/form-data; boundary=XX\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), &body].concat()
    }
}

#[test]
fn a_signed_form_stores_its_file() {
    run(async {
        let bench = Bench::new().await;
        let form = Form::new("up/${filename}", b"hello")
            .field("x-amz-meta-who", "me")
            .field("Content-Type", "text/x");
        let text = bench.send(&form.request("/bucket")).await;
        assert!(text.starts_with("HTTP/1.1 204 ") && text.contains("etag: \"5d41402a"), "{text}");
        let text = bench.get("up/a.txt").await;
        assert!(text.ends_with("\r\n\r\nhello") && text.contains("x-amz-meta-who: me"), "{text}");
        assert!(text.contains("content-type: text/x"), "{text}");
        let form = Form::new("b&c", b"").field("success_action_status", "201");
        let text = bench.send(&form.request("/bucket/")).await;
        assert!(text.starts_with("HTTP/1.1 201 ") && text.contains("<Key>b&amp;c</Key>"), "{text}");
        let form = Form::new("d", b"x").field("success_action_redirect", "http://a.example/done?x=1");
        let text = bench.send(&form.request("/bucket")).await;
        let to = "location: http://a.example/done?x=1&bucket=bucket&key=d&etag=%22";
        assert!(text.starts_with("HTTP/1.1 303 ") && text.contains(to), "{text}");
        // Browsers may send a button after the file.
        let mut form = Form::new("e", b"--XX is no end\r\n--X");
        form.tail = "--XX\r\nContent-Disposition: form-data; name=\"submit\"\r\n\r\nGo\r\n--XX--\r\n";
        assert!(bench.send(&form.request("/bucket")).await.starts_with("HTTP/1.1 204 "));
        assert!(bench.get("e").await.ends_with("\r\n\r\n--XX is no end\r\n--X"));
    });
}

#[test]
fn the_version_of_an_upload_is_told() {
    run(async {
        for (versioning, tells) in
            [(Versioning::Unversioned, false), (Versioning::Enabled, true), (Versioning::Suspended, false)]
        {
            let (cluster, store) = real_store();
            let bench = Bench { gateway: gateway_with(Rc::default(), Limits::default(), store) };
            assert!(bench.send(&signed("PUT", "/bucket", b"")).await.contains(" 200 "));
            cluster.set_versioning("bucket", versioning).await.unwrap();
            let redirected = Form::new("k", b"x").field("success_action_redirect", "http://a.example/");
            for (form, status) in [(Form::new("k", b"x"), "204"), (redirected, "303")] {
                let text = bench.send(&form.request("/bucket")).await;
                assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
                assert_eq!(text.contains("\r\nx-amz-version-id: "), tells, "{versioning:?}: {text}");
            }
        }
    });
}

#[test]
fn a_long_file_streams() {
    run(async {
        let bench = Bench::new().await;
        let file: Vec<u8> = (0..6_000_000_u32).map(|i| (i % 251) as u8).collect();
        let text = bench.send(&Form::new("long", &file).request("/bucket")).await;
        assert!(text.starts_with("HTTP/1.1 204 "), "{text}");
        let (_, bytes, whole) =
            exchange(&mut connect(&bench.gateway, pending()), &signed("GET", "/bucket/long", b"")).await;
        assert!(whole && bytes == file.len());
        // Too long for the policy, or cut off: nothing is stored.
        let limited = Form::new("limited", &file).condition(r#"["content-length-range", 0, 5999999]"#);
        let text = bench.send(&limited.request("/bucket")).await;
        assert!(text.contains("<Code>EntityTooLarge</Code>"), "{text}");
        let mut cut = Form::new("cut", &file);
        cut.tail = "--XY--\r\n";
        let text = bench.send(&cut.request("/bucket")).await;
        assert!(text.contains("<Code>IncompleteBody</Code>"), "{text}");
        for key in ["limited", "cut"] {
            assert!(bench.get(key).await.contains("NoSuchKey"));
        }
    });
}

#[test]
fn what_the_policy_does_not_allow_is_refused() {
    run(async {
        let bench = Bench::new().await;
        let mut forged = Form::new("x", b"x");
        forged.secret = "wrong".to_owned();
        let mut stranger = Form::new("x", b"x");
        stranger.fields[2].1 = stranger.fields[2].1.replace(ACCESS_KEY, "nobody");
        let digest = Form::new("x", b"x").field("x-amz-checksum-crc32", "AAAAAA==");
        for (form, code) in [
            (forged, "SignatureDoesNotMatch"),
            (stranger, "InvalidAccessKeyId"),
            (Form::new("x", b"x").field("extra", "1"), "AccessDenied"),
            (Form::new("x", b"x").condition(r#"["eq", "$key", "y"]"#), "AccessDenied"),
            (Form::new("x", b"x").condition(r#"["content-length-range", 2, 9]"#), "EntityTooSmall"),
            (Form::new("x", b"0123456789").condition(r#"["content-length-range", 2, 9]"#), "EntityTooLarge"),
            (Form::new("x", b"x").condition("[]"), "InvalidPolicyDocument"),
            (Form::new("", b"x"), "InvalidArgument"),
            (Form::new("x", b"x").field("acl", "public-read"), "AccessControlListNotSupported"),
            (Form::new("x", b"x").field("tagging", "<Tagging"), "MalformedXML"),
            (digest, "BadDigest"),
        ] {
            let text = bench.send(&form.request("/bucket")).await;
            assert!(text.contains(&format!("<Code>{code}</Code>")), "{code}: {text}");
        }
        let tags = "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>";
        let text = bench.send(&Form::new("tagged", b"x").field("tagging", tags).request("/bucket")).await;
        assert!(text.contains(" 204 "), "{text}");
        assert!(bench.get("tagged?tagging=").await.contains("<Key>a</Key><Value>1</Value>"));
        let good = Form::new("x", b"x");
        for (target, code) in [("/other", "NoSuchBucket"), ("/bucket/key", "MethodNotAllowed")] {
            let text = bench.send(&good.request(target)).await;
            assert!(text.contains(&format!("<Code>{code}</Code>")), "{text}");
        }
        let unsigned = "--XX\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nx\r\n--XX\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--XX--\r\n";
        let head =
            "POST /bucket HTTP/1.1\r\nhost: test\r\ncontent-type: multipart/form-data; boundary=XX\r\n";
        let request = format!("{head}content-length: {}\r\n\r\n{unsigned}", unsigned.len());
        assert!(bench.send(request.as_bytes()).await.contains("<Code>AccessDenied</Code>"));
        assert!(bench.get("x").await.contains("NoSuchKey"));
        assert!(bench.send(&good.request("/bucket")).await.contains(" 204 "));
    });
}
