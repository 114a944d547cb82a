//! Configuration of buckets and what follows from it, through the whole gateway: documents, other origins, websites,
//! virtual hosts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::future::pending;
use std::rc::Rc;

use quarry_gateway::{Gateway, Limits};
use quarry_object::api::{DocumentKind, ObjectStore as _};
use support::client::{connect, exchange, head, run, signed, signed_at};
use support::{MemoryStore, gateway_with};

struct Bench {
    gateway: Gateway,
    store: Rc<MemoryStore>,
}

impl Bench {
    async fn new() -> Self {
        let store = Rc::<MemoryStore>::default();
        let gateway = gateway_with(Rc::default(), Limits::default(), Rc::clone(&store));
        let bench = Self { gateway, store };
        bench.expect("PUT", "/bucket", "", 200).await;
        bench
    }

    async fn send(&self, request: &[u8]) -> String {
        exchange(&mut connect(&self.gateway, pending()), request).await.0
    }

    /// A signed request; returns the answer if it has the status.
    async fn expect(&self, method: &str, target: &str, body: &str, status: u16) -> String {
        let text = self.send(&signed(method, target, body.as_bytes())).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {target} {body}: {text}");
        text
    }

    async fn expect_code(&self, method: &str, target: &str, body: &str, code: &str) {
        let text = self.send(&signed(method, target, body.as_bytes())).await;
        assert!(text.contains(&format!("<Code>{code}</Code>")), "{method} {target} {body}: {text}");
    }

    /// An unsigned request with these header lines.
    async fn plain(&self, method: &str, target: &str, lines: &str) -> String {
        self.send(format!("{method} {target} HTTP/1.1\r\n{lines}\r\n").as_bytes()).await
    }

    async fn make_public(&self) {
        let policy = r#"{"Statement":{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::bucket/*"}}"#;
        let policy = Some(policy.to_owned());
        self.store.set_bucket_document("bucket", DocumentKind::Policy, policy).await.unwrap();
    }
}

fn header<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (head, _) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn documents_are_set_read_and_removed() {
    run(async {
        let bench = Bench::new().await;
        let rule = "<Rule><ID>r</ID><Filter><Prefix>a</Prefix></Filter><Status>Enabled</Status><Expiration><Days>3</Days></Expiration></Rule>";
        for (query, document, kept, code) in [
            (
                "tagging",
                "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>".to_owned(),
                "<Tag><Key>a</Key><Value>b</Value></Tag>",
                "NoSuchTagSet",
            ),
            (
                "cors",
                "<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule></CORSConfiguration>".to_owned(),
                "<AllowedOrigin>*</AllowedOrigin>",
                "NoSuchCORSConfiguration",
            ),
            (
                "website",
                "<WebsiteConfiguration><IndexDocument><Suffix>i.html</Suffix></IndexDocument></WebsiteConfiguration>".to_owned(),
                "<Suffix>i.html</Suffix>",
                "NoSuchWebsiteConfiguration",
            ),
            (
                "lifecycle",
                format!("<LifecycleConfiguration>{rule}</LifecycleConfiguration>"),
                "<Days>3</Days>",
                "NoSuchLifecycleConfiguration",
            ),
        ] {
            let target = format!("/bucket?{query}=");
            bench.expect_code("GET", &target, "", code).await;
            let put = bench.send(&signed("PUT", &target, document.as_bytes())).await;
            assert!(put.starts_with("HTTP/1.1 20"), "{put}");
            has(&bench.expect("GET", &target, "", 200).await, &[kept]);
            bench.expect_code("PUT", &target, "<Wrong/>", "MalformedXML").await;
            has(&bench.expect("GET", &target, "", 200).await, &[kept]);
            bench.expect("DELETE", &target, "", 204).await;
            bench.expect("DELETE", &target, "", 204).await;
            bench.expect_code("GET", &target, "", code).await;
            bench.expect_code("GET", &format!("/other?{query}="), "", "NoSuchBucket").await;
        }
        // A document that is not what its digest says changes nothing.
        let body = "<Tagging><TagSet/></Tagging>";
        let (text, _) = head("PUT", "/bucket?tagging=", "UNSIGNED-PAYLOAD", &[], body.len() as u64);
        let text = text.replace("\r\n\r\n", "\r\ncontent-md5: 1B2M2Y8AsgTpgAmY7PhCfg==\r\n\r\n");
        has(&bench.send(format!("{text}{body}").as_bytes()).await, &["<Code>BadDigest</Code>"]);
        bench.expect_code("GET", "/bucket?tagging=", "", "NoSuchTagSet").await;
    });
}

#[test]
fn versioning_has_three_states() {
    run(async {
        let bench = Bench::new().await;
        let set = |status: &str| {
            format!("<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>")
        };
        assert!(!bench.expect("GET", "/bucket?versioning=", "", 200).await.contains("Status"));
        for status in ["Enabled", "Suspended"] {
            bench.expect("PUT", "/bucket?versioning=", &set(status), 200).await;
            has(&bench.expect("GET", "/bucket?versioning=", "", 200).await, &[&format!("<Status>{status}<")]);
        }
        bench.expect_code("PUT", "/bucket?versioning=", &set("Off"), "MalformedXML").await;
        let mfa = "<VersioningConfiguration><Status>Enabled</Status><MfaDelete>Enabled</MfaDelete></VersioningConfiguration>";
        bench.expect_code("PUT", "/bucket?versioning=", mfa, "NotImplemented").await;
        let none = "<VersioningConfiguration/>";
        bench
            .expect_code("PUT", "/bucket?versioning=", none, "IllegalVersioningConfigurationException")
            .await;
    });
}

#[test]
fn what_is_not_there_reads_as_off_and_cannot_be_set() {
    run(async {
        let bench = Bench::new().await;
        for (query, code) in [
            ("encryption", "ServerSideEncryptionConfigurationNotFoundError"),
            ("object-lock", "ObjectLockConfigurationNotFoundError"),
            ("replication", "ReplicationConfigurationNotFoundError"),
        ] {
            let text = bench.expect("GET", &format!("/bucket?{query}="), "", 404).await;
            has(&text, &[&format!("<Code>{code}</Code>")]);
        }
        for query in ["logging", "notification", "accelerate"] {
            let text = bench.expect("GET", &format!("/bucket?{query}="), "", 200).await;
            assert!(!text.contains("<Status>"), "{text}");
            bench.expect_code("GET", &format!("/other?{query}="), "", "NoSuchBucket").await;
        }
        has(&bench.expect("GET", "/bucket?requestPayment=", "", 200).await, &["<Payer>BucketOwner</Payer>"]);
        let lock = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>";
        bench.expect_code("PUT", "/bucket?object-lock=", lock, "NotImplemented").await;
        bench.expect("PUT", "/bucket", "", 200).await;
        let place = "<CreateBucketConfiguration><LocationConstraint>mars</LocationConstraint></CreateBucketConfiguration>";
        bench.expect_code("PUT", "/third", place, "InvalidLocationConstraint").await;
        has(&bench.expect("GET", "/?bucket-region=us-east-1", "", 200).await, &["<Name>bucket</Name>"]);
        assert!(!bench.expect("GET", "/?bucket-region=mars", "", 200).await.contains("<Name>"));
    });
}

#[test]
fn pages_of_other_origins_are_told_what_they_may() {
    run(async {
        let bench = Bench::new().await;
        let preflight = "host: test\r\norigin: http://a.example\r\naccess-control-request-method: PUT\r\naccess-control-request-headers: X-One\r\n";
        has(&bench.plain("OPTIONS", "/bucket/x", preflight).await, &[" 403 ", "AccessForbidden"]);
        let cors = "<CORSConfiguration><CORSRule><AllowedOrigin>http://*.example</AllowedOrigin><AllowedMethod>PUT</AllowedMethod><AllowedMethod>GET</AllowedMethod><AllowedHeader>x-*</AllowedHeader><ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>60</MaxAgeSeconds></CORSRule></CORSConfiguration>";
        bench.expect("PUT", "/bucket?cors=", cors, 200).await;
        let answer = bench.plain("OPTIONS", "/bucket/x", preflight).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        for (name, value) in [
            ("access-control-allow-origin", "http://a.example"),
            ("access-control-allow-methods", "PUT, GET"),
            ("access-control-allow-headers", "x-one"),
            ("access-control-expose-headers", "ETag"),
            ("access-control-max-age", "60"),
        ] {
            assert_eq!(header(&answer, name), Some(value), "{answer}");
        }
        has(&bench.plain("OPTIONS", "/bucket/x", "host: test\r\n").await, &[" 400 ", "BadRequest"]);
        has(&bench.plain("OPTIONS", "/other/x", preflight).await, &[" 404 ", "NoSuchBucket"]);
        // The same by virtual host, and on answers of all kinds, errors and refusals too.
        let by_host = preflight.replace("host: test", "host: bucket.s3.test");
        has(&bench.plain("OPTIONS", "/x", &by_host).await, &["HTTP/1.1 200 "]);
        let origin = [("origin", "http://a.example".to_owned())];
        for (target, status) in [("/bucket?location=", 200), ("/bucket/none", 404)] {
            let (text, _) = signed_at("GET", target, "test", "UNSIGNED-PAYLOAD", &origin, 0);
            let answer = bench.send(text.as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert_eq!(header(&answer, "access-control-allow-origin"), Some("http://a.example"));
            assert!(header(&answer, "vary").is_some_and(|vary| vary.starts_with("Origin")), "{answer}");
        }
        let anonymous = bench.plain("GET", "/bucket/x", "host: test\r\norigin: http://a.example\r\n").await;
        assert!(anonymous.starts_with("HTTP/1.1 403 "), "{anonymous}");
        assert_eq!(header(&anonymous, "access-control-allow-origin"), Some("http://a.example"));
        let other = bench.plain("GET", "/bucket/x", "host: test\r\norigin: http://a.org\r\n").await;
        assert_eq!(header(&other, "access-control-allow-origin"), None);
    });
}

#[test]
fn virtual_hosts_name_the_bucket() {
    run(async {
        let bench = Bench::new().await;
        for host in ["bucket.s3.test", "BUCKET.s3.test:9000"] {
            let (text, _) = signed_at("PUT", "/a/b", host, "UNSIGNED-PAYLOAD", &[], 4);
            has(&bench.send(format!("{text}body").as_bytes()).await, &["HTTP/1.1 200 "]);
            assert!(bench.expect("GET", "/bucket/a/b", "", 200).await.ends_with("body"));
        }
        let (text, _) = signed_at("GET", "/", "bucket.s3.test", "UNSIGNED-PAYLOAD", &[], 0);
        has(&bench.send(text.as_bytes()).await, &["<ListBucketResult", "<Key>a/b</Key>"]);
        // The host is signed: another bucket's name does not do.
        let moved = text.replace("host:bucket.s3.test", "host:victim.s3.test");
        assert_ne!(moved, text);
        has(&bench.send(moved.as_bytes()).await, &["SignatureDoesNotMatch"]);
        let (text, _) = signed_at("GET", "/bucket", "any.name.example", "UNSIGNED-PAYLOAD", &[], 0);
        has(&bench.send(text.as_bytes()).await, &["<Key>a/b</Key>"]);
    });
}

const SITE: &str = "<WebsiteConfiguration><IndexDocument><Suffix>index.html</Suffix></IndexDocument><ErrorDocument><Key>error.html</Key></ErrorDocument><RoutingRules><RoutingRule><Condition><KeyPrefixEquals>old/</KeyPrefixEquals></Condition><Redirect><ReplaceKeyPrefixWith>new/</ReplaceKeyPrefixWith></Redirect></RoutingRule><RoutingRule><Condition><HttpErrorCodeReturnedEquals>404</HttpErrorCodeReturnedEquals><KeyPrefixEquals>docs/gone</KeyPrefixEquals></Condition><Redirect><HostName>archive.example</HostName><Protocol>https</Protocol><HttpRedirectCode>307</HttpRedirectCode></Redirect></RoutingRule></RoutingRules></WebsiteConfiguration>";

#[test]
fn websites_are_served() {
    run(async {
        let bench = Bench::new().await;
        let get = async |target: &str| bench.plain("GET", target, "host: bucket.site.test\r\n").await;
        has(&get("/").await, &["HTTP/1.1 404 ", "text/html", "NoSuchWebsiteConfiguration"]);
        bench.expect("PUT", "/bucket?website=", SITE, 200).await;
        for (key, body) in [("index.html", "home"), ("docs/index.html", "docs"), ("a%20b.html", "page")] {
            bench.expect("PUT", &format!("/bucket/{key}"), body, 200).await;
        }
        has(&get("/").await, &["HTTP/1.1 403 ", "AccessDenied"]);
        bench.make_public().await;
        assert!(get("/").await.ends_with("\r\n\r\nhome"));
        assert!(get("/docs/").await.ends_with("\r\n\r\ndocs"));
        assert!(get("/a%20b.html").await.ends_with("\r\n\r\npage"));
        let redirected = |text: &str, status: u16, to: &str| {
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
            assert_eq!(header(text, "location"), Some(to));
        };
        redirected(&get("/docs").await, 302, "/docs/");
        redirected(&get("/old/x%20y").await, 301, "http://bucket.site.test/new/x%20y");
        redirected(&get("/docs/gone/x").await, 307, "https://archive.example/docs/gone/x");
        let missing = get("/none").await;
        has(&missing, &["HTTP/1.1 404 ", "text/html", "<h1>404 Not Found</h1>", "NoSuchKey"]);
        bench.expect("PUT", "/bucket/error.html", "sorry", 200).await;
        let missing = get("/none").await;
        assert!(missing.starts_with("HTTP/1.1 404 ") && missing.ends_with("\r\n\r\nsorry"), "{missing}");
        let head = bench.plain("HEAD", "/", "host: bucket.site.test\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && header(&head, "content-length") == Some("4"), "{head}");
        has(&bench.plain("DELETE", "/index.html", "host: bucket.site.test\r\n").await, &["HTTP/1.1 405 "]);
        let part = bench.plain("GET", "/", "host: bucket.site.test\r\nrange: bytes=1-2\r\n").await;
        assert!(part.starts_with("HTTP/1.1 206 ") && part.ends_with("\r\n\r\nom"), "{part}");
        for ignored in ["bytes=2-1", "bytes=0-1,3-3", "bytes=0-1\r\nrange: bytes=1-2"] {
            let headers = format!("host: bucket.site.test\r\nrange: {ignored}\r\n");
            let whole = bench.plain("GET", "/", &headers).await;
            assert!(whole.starts_with("HTTP/1.1 200 ") && whole.ends_with("\r\n\r\nhome"), "{whole}");
        }
        let tag = header(&get("/").await, "etag").unwrap().to_owned();
        let again =
            bench.plain("GET", "/", &format!("host: bucket.site.test\r\nif-none-match: {tag}\r\n")).await;
        assert!(again.starts_with("HTTP/1.1 304 "), "{again}");
        has(&bench.plain("GET", "/", "host: nobody.site.test\r\n").await, &["HTTP/1.1 404 ", "NoSuchBucket"]);
        // An object may be a redirect.
        let to = [("x-amz-website-redirect-location", "/docs/".to_owned())];
        let (text, _) = signed_at("PUT", "/bucket/moved", "test", "UNSIGNED-PAYLOAD", &to, 0);
        has(&bench.send(text.as_bytes()).await, &["HTTP/1.1 200 "]);
        redirected(&get("/moved").await, 301, "/docs/");
        // Pages show what was asked for, escaped.
        bench.expect("DELETE", "/bucket/error.html", "", 204).await;
        let hostile = get("/%3Cscript%3E").await;
        assert!(hostile.contains("&lt;script&gt;") && !hostile.contains("<script>"), "{hostile}");
    });
}

#[test]
fn a_website_may_be_somewhere_else() {
    run(async {
        let bench = Bench::new().await;
        let all = "<WebsiteConfiguration><RedirectAllRequestsTo><HostName>www.example</HostName><Protocol>https</Protocol></RedirectAllRequestsTo></WebsiteConfiguration>";
        bench.expect("PUT", "/bucket?website=", all, 200).await;
        let text = bench.plain("GET", "/a/b", "host: bucket.site.test\r\n").await;
        assert_eq!(header(&text, "location"), Some("https://www.example/a/b"), "{text}");
    });
}
