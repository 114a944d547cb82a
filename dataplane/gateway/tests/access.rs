//! Who may do what, through the whole gateway: policies of buckets, anonymous requests, lists, blocks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;

use quarry_gateway::{Client, Gateway, Limits};
use quarry_identity::{AccessKey, Change, Secret, UserTable};
use support::client::{connect, exchange, run, signed, signed_at};
use support::{ACCESS_KEY, MemoryStore, SECRET_KEY, USERS, gateway_with};

struct Bench {
    gateway: Gateway,
}

impl Bench {
    async fn new() -> Self {
        let gateway = gateway_with(Rc::default(), Limits::default(), Rc::<MemoryStore>::default());
        let client = Client { address: Some("192.0.2.7".parse().unwrap()), tls: false };
        let bench = Self { gateway: gateway.of_client(client) };
        bench.root("PUT", "/bucket", "", 200).await;
        bench.root("PUT", "/bucket/key", "data", 200).await;
        bench
    }

    async fn send(&self, request: &[u8], what: &str, status: u16) -> String {
        let text = exchange(&mut connect(&self.gateway, pending()), request).await.0;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {text}");
        text
    }

    async fn root(&self, method: &str, target: &str, body: &str, status: u16) -> String {
        self.send(&signed(method, target, body.as_bytes()), &format!("{method} {target} {body}"), status)
            .await
    }

    async fn anyone(&self, method: &str, target: &str, lines: &str, status: u16) -> String {
        let request = format!("{method} {target} HTTP/1.1\r\nhost: test\r\n{lines}\r\n");
        self.send(request.as_bytes(), &format!("anonymous {method} {target} {lines}"), status).await
    }

    async fn policy(&self, statements: &str) {
        let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#);
        self.root("PUT", "/bucket?policy=", &policy, 204).await;
    }
}

const READ: &str =
    r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::bucket/*"}"#;

#[test]
fn anyone_may_what_the_policy_says() {
    run(async {
        let bench = Bench::new().await;
        bench.anyone("GET", "/bucket/key", "", 403).await;
        bench.anyone("GET", "/", "", 403).await;
        bench.anyone("GET", "/nobody/key", "", 404).await;
        bench.root("GET", "/bucket?policy=", "", 404).await;
        bench.policy(READ).await;
        assert!(bench.root("GET", "/bucket?policy=", "", 200).await.contains("s3:GetObject"));
        assert!(
            bench.root("GET", "/bucket?policyStatus=", "", 200).await.contains("<IsPublic>true</IsPublic>")
        );
        assert!(bench.anyone("GET", "/bucket/key", "", 200).await.ends_with("data"));
        // That a key is missing is for those who may list.
        bench.anyone("GET", "/bucket/none", "", 403).await;
        bench.root("GET", "/bucket/none", "", 404).await;
        for (method, target) in [
            ("GET", "/bucket"),
            ("GET", "/bucket?policy="),
            ("GET", "/bucket/key?versionId=null"),
            ("DELETE", "/bucket/key"),
            ("PUT", "/bucket/new"),
            ("PUT", "/bucket/new?acl="),
            ("DELETE", "/bucket"),
        ] {
            bench.anyone(method, target, "content-length: 0\r\n", 403).await;
        }
        let list = r#"{"Effect":"Allow","Principal":"*","Action":"s3:ListBucket","Resource":"arn:aws:s3:::bucket","Condition":{"StringEquals":{"s3:prefix":"k"}}}"#;
        bench.policy(&format!("{READ},{list}")).await;
        assert!(bench.anyone("GET", "/bucket?prefix=k", "", 200).await.contains("<Key>key</Key>"));
        bench.anyone("GET", "/bucket", "", 403).await;
        bench.root("DELETE", "/bucket?policy=", "", 204).await;
        bench.anyone("GET", "/bucket/key", "", 403).await;
    });
}

#[test]
fn conditions_see_the_request_and_denials_bind_the_root_credential() {
    run(async {
        let bench = Bench::new().await;
        let read = |condition: &str| READ.replace("}", &format!(r#","Condition":{{{condition}}}}}"#));
        bench.policy(&read(r#""IpAddress":{"aws:SourceIp":"192.0.2.0/24"}"#)).await;
        bench.anyone("GET", "/bucket/key", "", 200).await;
        bench.policy(&read(r#""IpAddress":{"aws:SourceIp":"198.51.100.0/24"}"#)).await;
        bench.anyone("GET", "/bucket/key", "", 403).await;
        bench.policy(&read(r#""StringLike":{"aws:Referer":"https://a.example/*"}"#)).await;
        bench.anyone("GET", "/bucket/key", "", 403).await;
        bench.anyone("GET", "/bucket/key", "referer: https://a.example/x\r\n", 200).await;
        bench.policy(&read(r#""Bool":{"aws:SecureTransport":"true"}"#)).await;
        bench.anyone("GET", "/bucket/key", "", 403).await;
        let deny = r#"{"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::bucket","arn:aws:s3:::bucket/*"]}"#;
        bench.policy(&format!("{READ},{deny}")).await;
        bench.root("GET", "/bucket/key", "", 403).await;
        // The source of a copy is read, and each key of many is deleted, as if alone.
        bench.root("PUT", "/other", "", 200).await;
        let source = [("x-amz-copy-source", "/bucket/key".to_owned())];
        let (copy, _) = signed_at("PUT", "/other/copy", "test", "UNSIGNED-PAYLOAD", &source, 0);
        bench.send(copy.as_bytes(), "copy", 403).await;
        let many = "<Delete><Object><Key>key</Key></Object></Delete>";
        let answer = bench.root("POST", "/bucket?delete=", many, 200).await;
        assert!(answer.contains("<Code>AccessDenied</Code>"), "{answer}");
        bench.root("DELETE", "/bucket?policy=", "", 204).await;
        bench.root("GET", "/bucket/key", "", 200).await;
        bench.send(copy.as_bytes(), "copy", 200).await;
    });
}

#[test]
fn blocks_and_ownership_limit_what_is_public() {
    run(async {
        let bench = Bench::new().await;
        let blocks = |policy: bool, restrict: bool| {
            format!(
                "<PublicAccessBlockConfiguration><BlockPublicPolicy>{policy}</BlockPublicPolicy><RestrictPublicBuckets>{restrict}</RestrictPublicBuckets></PublicAccessBlockConfiguration>"
            )
        };
        bench.root("GET", "/bucket?publicAccessBlock=", "", 404).await;
        bench.root("PUT", "/bucket?publicAccessBlock=", &blocks(true, false), 200).await;
        let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{READ}]}}"#);
        bench.root("PUT", "/bucket?policy=", &policy, 403).await;
        bench.root("PUT", "/bucket?publicAccessBlock=", &blocks(false, true), 200).await;
        bench.policy(READ).await;
        bench.anyone("GET", "/bucket/key", "", 403).await;
        bench.root("DELETE", "/bucket?publicAccessBlock=", "", 204).await;
        bench.anyone("GET", "/bucket/key", "", 200).await;
        bench.root("DELETE", "/bucket?policy=", "", 204).await;
        let acl = |acl: &str| {
            let headers = [("x-amz-acl", acl.to_owned())];
            signed_at("PUT", "/bucket?acl=", "test", "UNSIGNED-PAYLOAD", &headers, 0).0
        };
        let refused = bench.send(acl("public-read").as_bytes(), "public list", 400).await;
        assert!(refused.contains("AccessControlListNotSupported"), "{refused}");
        bench.send(acl("private").as_bytes(), "private list", 200).await;
        let controls = "<OwnershipControls><Rule><ObjectOwnership>ObjectWriter</ObjectOwnership></Rule></OwnershipControls>";
        bench.root("PUT", "/bucket?ownershipControls=", controls, 200).await;
        bench.send(acl("public-read").as_bytes(), "public list", 200).await;
        assert!(bench.root("GET", "/bucket?acl=", "", 200).await.contains("AllUsers"));
        bench.anyone("GET", "/bucket", "", 200).await;
        bench.anyone("GET", "/bucket/key", "", 403).await;
        assert!(bench.root("GET", "/bucket/key?acl=", "", 200).await.contains("FULL_CONTROL"));
    });
}

#[test]
fn a_malformed_policy_is_refused_with_the_reason() {
    run(async {
        let bench = Bench::new().await;
        let policy = READ.replace("s3:GetObject", "s3:GetObjekt");
        let text = bench.root("PUT", "/bucket?policy=", &format!(r#"{{"Statement":{policy}}}"#), 400).await;
        assert!(text.contains("MalformedPolicy") && text.contains("s3:GetObjekt"), "{text}");
    });
}

#[test]
fn users_are_who_their_keys_say() {
    run(async {
        let bench = Bench::new().await;
        let request = signed("GET", "/bucket/key", b"");
        let text = String::from_utf8(request).unwrap();
        // The signature stays right: the key has the root's secret and an id of the same request's credential.
        let as_user = text.replace(&format!("Credential={ACCESS_KEY}/"), "Credential=USERKEY/");
        bench.send(as_user.as_bytes(), "unknown key", 403).await;
        let mut table = UserTable::default();
        let mut set = |change: Change| {
            table.apply(&change).unwrap();
            USERS.set(Arc::new(table.clone()));
        };
        set(Change::CreateUser { name: "alice".into(), now_ms: 1 });
        let key = AccessKey {
            user: "alice".into(),
            secret: Secret::new(SECRET_KEY.into()),
            enabled: true,
            created_ms: 1,
        };
        set(Change::CreateKey { id: "USERKEY".into(), key });
        let refused = bench.send(as_user.as_bytes(), "no policy", 403).await;
        assert!(refused.contains("AccessDenied"), "{refused}");
        set(Change::Attach { policy: "readonly".into(), user: "alice".into() });
        bench.send(as_user.as_bytes(), "readonly", 200).await;
        bench.policy(&READ.replace("Allow", "Deny")).await;
        bench.send(as_user.as_bytes(), "denied by the bucket", 403).await;
        bench.root("DELETE", "/bucket?policy=", "", 204).await;
        set(Change::SetKeyEnabled { id: "USERKEY".into(), enabled: false });
        let refused = bench.send(as_user.as_bytes(), "disabled", 403).await;
        assert!(refused.contains("InvalidAccessKeyId"), "{refused}");
    });
}
