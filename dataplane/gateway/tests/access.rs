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
        // Who may list what begins with a key may know that there is none.
        bench.anyone("GET", "/bucket/k", "", 404).await;
        bench.anyone("GET", "/bucket/none", "", 403).await;
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

/// Adds users with the policy `tenant`; the key of each is the name, and the secret the root's.
fn add_tenants(names: &[&str]) {
    let mut table = UserTable::default();
    for name in names {
        let user = (*name).to_owned();
        let key = AccessKey {
            user: user.clone(),
            secret: Secret::new(SECRET_KEY.into()),
            enabled: true,
            created_ms: 1,
        };
        let attach = Change::Attach { policy: "tenant".into(), user: user.clone() };
        for change in [
            Change::CreateUser { name: user.clone(), now_ms: 1 },
            Change::CreateKey { id: user, key },
            attach,
        ] {
            table.apply(&change).unwrap();
        }
    }
    USERS.set(Arc::new(table));
}

/// A request of a user that [`add_tenants`] added.
fn of_user(user: &str, method: &str, target: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let (text, _) = signed_at(method, target, "test", "UNSIGNED-PAYLOAD", &headers, 0);
    text.replace(&format!("Credential={ACCESS_KEY}/"), &format!("Credential={user}/")).into_bytes()
}

#[test]
fn tenants_have_their_own_buckets_and_nothing_else() {
    run(async {
        let bench = Bench::new().await;
        add_tenants(&["alice", "bobby"]);
        let send = async |user: &str, method: &str, target: &str, status: u16| {
            let what = format!("{user} {method} {target}");
            bench.send(&of_user(user, method, target, &[]), &what, status).await
        };
        send("alice", "PUT", "/hers", 200).await;
        send("bobby", "PUT", "/his", 200).await;
        send("alice", "PUT", "/hers/key", 200).await;
        assert!(send("alice", "PUT", "/his", 409).await.contains("BucketAlreadyExists"));
        assert!(send("alice", "PUT", "/bucket", 409).await.contains("BucketAlreadyExists"));
        send("alice", "PUT", "/hers", 200).await;
        let listed = send("alice", "GET", "/", 200).await;
        assert!(
            listed.contains("<Name>hers<") && !listed.contains("<Name>his<") && !listed.contains(">bucket<")
        );
        assert!(listed.contains("<DisplayName>alice</DisplayName>"), "{listed}");
        let all = bench.root("GET", "/", "", 200).await;
        assert!(all.contains("<Name>hers<") && all.contains("<Name>his<") && all.contains("<Name>bucket<"));
        for (method, target) in [
            ("GET", "/hers"),
            ("GET", "/hers/key"),
            ("PUT", "/hers/key"),
            ("DELETE", "/hers/key"),
            ("GET", "/hers?acl="),
            ("PUT", "/hers?policy="),
            ("DELETE", "/hers"),
            ("GET", "/bucket/key"),
        ] {
            send("bobby", method, target, 403).await;
        }
        let mut copy = of_user("bobby", "PUT", "/his/copy", &[("x-amz-copy-source", "/hers/key")]);
        bench.send(&copy, "a copy of what is not his", 403).await;
        copy = of_user("alice", "PUT", "/his/copy", &[("x-amz-copy-source", "/hers/key")]);
        bench.send(&copy, "a copy to where she may not write", 403).await;
        // Who owns it can be said, and must be right then.
        let acl = send("alice", "GET", "/hers?acl=", 200).await;
        let id = acl.split("<ID>").nth(1).unwrap().split('<').next().unwrap();
        let expects = |id: &str| of_user("alice", "GET", "/hers/key", &[("x-amz-expected-bucket-owner", id)]);
        bench.send(&expects(id), "the right owner", 200).await;
        bench.send(&expects(&"0".repeat(64)), "another owner", 403).await;
        send("alice", "DELETE", "/hers/key", 204).await;
        send("alice", "DELETE", "/hers", 204).await;
    });
}

#[test]
fn lists_grant_what_policies_do_not() {
    run(async {
        let bench = Bench::new().await;
        add_tenants(&["alice", "bobby"]);
        let send = async |user: &str, method: &str, target: &str, headers: &[(&str, &str)], status: u16| {
            let what = format!("{user} {method} {target} {headers:?}");
            bench.send(&of_user(user, method, target, headers), &what, status).await
        };
        let owner = ("x-amz-object-ownership", "ObjectWriter");
        send("alice", "PUT", "/hers", &[("x-amz-acl", "public-read-write")], 400).await;
        send("alice", "PUT", "/hers", &[("x-amz-acl", "public-read-write"), owner], 200).await;
        send("alice", "PUT", "/hers/closed", &[], 200).await;
        send("alice", "PUT", "/hers/open", &[("x-amz-acl", "public-read")], 200).await;
        send("alice", "PUT", "/hers/signed", &[("x-amz-acl", "authenticated-read")], 200).await;
        bench.anyone("GET", "/hers", "", 200).await;
        bench.anyone("GET", "/hers/open", "", 200).await;
        bench.anyone("GET", "/hers/closed", "", 403).await;
        bench.anyone("GET", "/hers/signed", "", 403).await;
        // Who may list is told that there is no such key.
        bench.anyone("GET", "/hers/none", "", 404).await;
        bench.anyone("PUT", "/hers/open?acl=", "content-length: 0\r\nx-amz-acl: public-read\r\n", 403).await;
        send("bobby", "GET", "/hers/signed", &[], 200).await;
        send("bobby", "GET", "/hers/closed", &[], 403).await;
        // He writes and owns it: he may change its list, and the bucket's owner may read it all the same.
        send("bobby", "PUT", "/hers/gift", &[("x-amz-acl", "private")], 200).await;
        let acl = send("bobby", "GET", "/hers/gift?acl=", &[], 200).await;
        assert!(acl.contains("<DisplayName>bobby</DisplayName>") && !acl.contains("alice"), "{acl}");
        let id = acl.split("<ID>").nth(1).unwrap().split('<').next().unwrap().to_owned();
        send("alice", "GET", "/hers/gift", &[], 200).await;
        bench.anyone("GET", "/hers/gift", "", 403).await;
        send("bobby", "PUT", "/hers/gift?acl=", &[("x-amz-acl", "public-read")], 200).await;
        bench.anyone("GET", "/hers/gift", "", 200).await;
        // Grants by id, and their limits.
        let grant = format!("id=\"{id}\"");
        send("alice", "PUT", "/hers/closed?acl=", &[("x-amz-grant-read", &grant)], 200).await;
        send("bobby", "GET", "/hers/closed", &[], 200).await;
        send("bobby", "GET", "/hers/closed?acl=", &[], 403).await;
        let unknown = format!("id={}", "0".repeat(64));
        send("alice", "PUT", "/hers/closed?acl=", &[("x-amz-grant-read", &unknown)], 400).await;
        let both = [("x-amz-grant-read", grant.as_str()), ("x-amz-acl", "private")];
        send("alice", "PUT", "/hers/closed?acl=", &both, 400).await;
        // A copy has no list of its source.
        send("alice", "PUT", "/hers/copy", &[("x-amz-copy-source", "/hers/open")], 200).await;
        bench.anyone("GET", "/hers/copy", "", 403).await;
        // Blocks take back what is public, and nothing else.
        let ignore = "<PublicAccessBlockConfiguration><IgnorePublicAcls>true</IgnorePublicAcls></PublicAccessBlockConfiguration>";
        bench.root("PUT", "/hers?publicAccessBlock=", ignore, 200).await;
        bench.anyone("GET", "/hers/open", "", 403).await;
        bench.anyone("GET", "/hers", "", 403).await;
        bench.root("DELETE", "/hers?publicAccessBlock=", "", 204).await;
        bench.anyone("GET", "/hers/open", "", 200).await;
        // With the bucket's owner enforced no list counts any more.
        send("alice", "DELETE", "/hers?ownershipControls=", &[], 204).await;
        bench.anyone("GET", "/hers/open", "", 403).await;
        send("bobby", "GET", "/hers/signed", &[], 403).await;
        send("bobby", "GET", "/hers/gift", &[], 403).await;
    });
}

#[test]
fn policies_ask_for_the_tags_of_an_object() {
    run(async {
        let bench = Bench::new().await;
        let tagged = [("x-amz-tagging", "level=public".to_owned())];
        let (put, _) = signed_at("PUT", "/bucket/tagged", "test", "UNSIGNED-PAYLOAD", &tagged, 0);
        bench.send(put.as_bytes(), "put", 200).await;
        let condition = r#","Condition":{"StringEquals":{"s3:ExistingObjectTag/level":"public"}}}"#;
        bench.policy(&READ.replace('}', condition)).await;
        bench.anyone("GET", "/bucket/tagged", "", 200).await;
        bench.anyone("GET", "/bucket/key", "", 403).await;
        bench.anyone("GET", "/bucket/none", "", 403).await;
        bench.root("DELETE", "/bucket/tagged?tagging=", "", 204).await;
        bench.anyone("GET", "/bucket/tagged", "", 403).await;
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
