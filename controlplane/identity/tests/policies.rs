//! The table of expected decisions, what the parser refuses, what is public, the life of users, and properties.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use quarry_identity::{
    AccessKey, Action, BUILT_IN, Change, Context, Decision, Policy, PolicyError, Principal, Request, Secret,
    UserError, UserTable, built_in, decide,
};

fn action(name: &str) -> Action {
    *Action::ALL.iter().find(|action| action.name() == name).unwrap_or_else(|| panic!("{name}"))
}

fn letter(decision: Decision) -> &'static str {
    match decision {
        Decision::Allow => "A",
        Decision::Deny => "D",
        Decision::ImplicitDeny => "-",
    }
}

#[derive(Default)]
struct Scene {
    users: BTreeMap<String, Arc<Policy>>,
    bucket: Option<Policy>,
    context: Context,
}

impl Scene {
    fn set(&mut self, what: &str, value: &str) {
        if let Some(user) = what.strip_prefix("user ") {
            self.users.remove(user);
            if !value.is_empty() {
                let parse = || Arc::new(Policy::of_user(value).unwrap_or_else(|e| panic!("{value}: {e}")));
                self.users.insert(user.to_owned(), built_in(value).unwrap_or_else(parse));
            }
        } else if what == "bucket" {
            let parse = |text| Policy::of_bucket(text, "b").unwrap_or_else(|e| panic!("{value}: {e}"));
            self.bucket = (!value.is_empty()).then(|| parse(value));
        } else {
            assert_eq!(what, "context");
            self.context = Context::default();
            for pair in value.split(", ").filter(|pair| !pair.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap();
                self.context.set(key, value);
            }
        }
    }

    fn decide(&self, who: &str, action_name: &str, resource: &str) -> Decision {
        let principal = match who {
            "root" => Principal::Root,
            "anonymous" => Principal::Anonymous,
            user => Principal::User(user.to_owned()),
        };
        let resource = format!("arn:aws:s3:::{resource}");
        let request = Request {
            principal: &principal,
            action: action(action_name),
            resource: &resource,
            context: &self.context,
        };
        decide(self.users.get(who).map(Arc::as_ref), self.bucket.as_ref(), &request)
    }
}

#[test]
fn decisions_are_as_the_table_says() {
    let (mut scene, mut decisions) = (Scene::default(), 0);
    for (number, line) in include_str!("decisions.txt").lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if !line.starts_with("s3:") {
            let (what, value) = line.split_once(':').unwrap();
            scene.set(what, value.trim());
            continue;
        }
        let fields: Vec<&str> = line.split_whitespace().collect();
        for (who, expected) in ["root", "alice", "bob", "anonymous"].into_iter().zip(&fields[2..]) {
            let decided = letter(scene.decide(who, fields[0], fields[1]));
            assert_eq!(decided, *expected, "line {}: {who}: {line}", number + 1);
            decisions += 1;
        }
    }
    assert!(decisions > 500, "only {decisions} decisions in the table");
}

fn refused(document: &str) -> PolicyError {
    Policy::of_bucket(document, "b").expect_err(document)
}

#[test]
fn what_is_not_understood_is_refused_with_the_reason() {
    let with = |statement: &str| format!(r#"{{"Version":"2012-10-17","Statement":[{statement}]}}"#);
    let cases = [
        ("", "not valid JSON"),
        ("[]", "must be an object"),
        ("{}", "Statement must be a statement"),
        (r#"{"Version":"2012-10-17","Statement":[]}"#, "at least one statement"),
        (r#"{"Version":"2013-10-17","Statement":[]}"#, "Version must be 2012-10-17"),
        (r#"{"Version":"2012-10-17","Statement":[],"Version":"2012-10-17"}"#, "appears twice"),
        (r#"{"Statment":[]}"#, "Statement must be"),
        (
            &with(r#"{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"}"#),
            "exactly one of Principal",
        ),
        (
            &with(
                r#"{"Effect":"allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"}"#,
            ),
            "Effect must be",
        ),
        (
            &with(r#"{"Effect":"Allow","Principal":"*","Resource":"arn:aws:s3:::b/*"}"#),
            "exactly one of Action",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","NotAction":"s3:PutObject","Resource":"arn:aws:s3:::b/*"}"#,
            ),
            "exactly one of Action",
        ),
        (&with(r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject"}"#), "exactly one of Resource"),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObjekt","Resource":"arn:aws:s3:::b/*"}"#,
            ),
            "\"s3:GetObjekt\" is no action",
        ),
        (
            &with(r#"{"Effect":"Allow","Principal":"*","Action":"ec2:Run","Resource":"arn:aws:s3:::b/*"}"#),
            "no action of S3",
        ),
        (
            &with(r#"{"Effect":"Allow","Principal":"*","Action":[],"Resource":"arn:aws:s3:::b/*"}"#),
            "at least one text",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::c/*"}"#,
            ),
            "not in the bucket",
        ),
        (
            &with(r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"b/*"}"#),
            "no resource of S3",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:ListBucket","Resource":"arn:aws:s3:::b/*"}"#,
            ),
            "does not apply to any resource",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b"}"#,
            ),
            "does not apply to any resource",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:root"},"Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"}"#,
            ),
            "does not exist here",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":{"Service":"x"},"Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"}"#,
            ),
            "unknown element \"Service\"",
        ),
        (
            &with(
                r#"{"Effect":"Allow","NotPrincipal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"}"#,
            ),
            "in a statement that denies",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Conditions":{}}"#,
            ),
            "unknown element \"Conditions\"",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Condition":{"StringLikes":{"s3:prefix":"x"}}}"#,
            ),
            "operator \"StringLikes\" is not known",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Condition":{"NullIfExists":{"s3:prefix":"true"}}}"#,
            ),
            "is not known",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Condition":{"StringLike":{"s3:prefixes":"x"}}}"#,
            ),
            "key \"s3:prefixes\" is not known",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Condition":{"StringLike":{"s3:ExistingObjectTag/":"x"}}}"#,
            ),
            "is not known",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Condition":{"NumericEquals":{"aws:SourceIp":"1"}}}"#,
            ),
            "cannot be used",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Condition":{"StringEquals":{"s3:RequestObjectTagKeys":"x"}}}"#,
            ),
            "cannot be used",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/33"}}}"#,
            ),
            "not an address",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Condition":{"Bool":{"aws:SecureTransport":"maybe"}}}"#,
            ),
            "neither true nor false",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Condition":{"DateLessThan":{"aws:CurrentTime":"later"}}}"#,
            ),
            "not a date",
        ),
        (
            &with(
                r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/${aws:nobody}"}"#,
            ),
            "is not known",
        ),
        (
            &with(
                r#"{"Sid":"a","Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"},{"Sid":"a","Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"}"#,
            ),
            "appears twice",
        ),
        (&"[".repeat(100_000)[..20_000], "not valid JSON"),
        (&" ".repeat(20_481), "20481 bytes"),
    ];
    for (document, reason) in cases {
        let error = refused(document).to_string();
        assert!(error.contains(reason), "{document:.200}: {error}");
    }
    let principal = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}}"#;
    assert!(Policy::of_user(principal).unwrap_err().to_string().contains("left out"));
    assert!(Policy::of_user(&" ".repeat(6145)).is_err());
    assert!(BUILT_IN.iter().all(|(name, _)| built_in(name).is_some()));
}

#[test]
fn public_is_what_everyone_may_and_nothing_ties() {
    let with = |principal: &str, condition: &str| {
        let document = format!(
            r#"{{"Version":"2012-10-17","Statement":{{"Effect":"Allow","Principal":{principal},"Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*","Condition":{{{condition}}}}}}}"#
        );
        Policy::of_bucket(&document, "b").unwrap_or_else(|error| panic!("{document}: {error}")).is_public()
    };
    assert!(with("\"*\"", ""));
    assert!(with(r#"{"AWS":"*"}"#, ""));
    assert!(!with(r#"{"AWS":"arn:aws:iam::000000000000:user/alice"}"#, ""));
    assert!(!with("\"*\"", r#""IpAddress":{"aws:SourceIp":"192.0.2.0/24"}"#));
    assert!(!with("\"*\"", r#""IpAddress":{"aws:SourceIp":"10.0.0.0/8"}"#));
    assert!(with("\"*\"", r#""IpAddress":{"aws:SourceIp":"0.0.0.0/0"}"#));
    assert!(with("\"*\"", r#""IpAddress":{"aws:SourceIp":["192.0.2.0/24","::/0"]}"#));
    assert!(with("\"*\"", r#""NotIpAddress":{"aws:SourceIp":"192.0.2.0/24"}"#));
    assert!(with("\"*\"", r#""IpAddressIfExists":{"aws:SourceIp":"192.0.2.0/24"}"#));
    assert!(with("\"*\"", r#""StringLike":{"aws:Referer":"https://example.com/*"}"#));
    assert!(!with("\"*\"", r#""StringEquals":{"aws:username":"alice"}"#));
    assert!(with("\"*\"", r#""StringLike":{"aws:username":"a*"}"#));
    assert!(with("\"*\"", r#""StringEquals":{"aws:username":"${aws:username}"}"#));
    assert!(with("\"*\"", r#""Null":{"aws:SourceIp":"false"}"#));
    let deny = r#"{"Version":"2012-10-17","Statement":{"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::b/*"}}"#;
    assert!(!Policy::of_bucket(deny, "b").unwrap().is_public());
}

#[test]
fn the_life_of_users_keys_and_policies() {
    let mut table = UserTable::default();
    let create = |name: &str| Change::CreateUser { name: name.into(), now_ms: 1 };
    let key = |id: &str, user: &str| Change::CreateKey {
        id: id.into(),
        key: AccessKey {
            user: user.into(),
            secret: Secret::new("secretsecret".into()),
            enabled: true,
            created_ms: 2,
        },
    };
    let put = |document: &str| Change::PutPolicy { name: "p".into(), document: document.into(), now_ms: 3 };
    let attach = |policy: &str| Change::Attach { policy: policy.into(), user: "alice".into() };
    assert!(matches!(table.apply(&create("al/ice")), Err(UserError::Name { .. })));
    table.apply(&create("alice")).unwrap();
    assert!(matches!(table.apply(&create("alice")), Err(UserError::Exists { .. })));
    table.apply(&key("AK1", "alice")).unwrap();
    assert!(matches!(table.apply(&key("AK1", "alice")), Err(UserError::Exists { .. })));
    assert!(matches!(table.apply(&key("AK2", "bob")), Err(UserError::NotFound { .. })));
    assert!(matches!(table.apply(&key("A/2", "alice")), Err(UserError::KeyForm)));
    assert!(matches!(table.apply(&put("{}")), Err(UserError::Policy(_))));
    table.apply(&put(BUILT_IN[0].1)).unwrap();
    assert!(matches!(table.apply(&attach("q")), Err(UserError::NotFound { .. })));
    table.apply(&attach("p")).unwrap();
    table.apply(&attach("readonly")).unwrap();
    assert_eq!(table.policies_of("alice").count(), 2);
    let delete = Change::DeletePolicy { name: "p".into() };
    assert!(matches!(table.apply(&delete), Err(UserError::Attached { .. })));
    table.apply(&Change::Detach { policy: "p".into(), user: "alice".into() }).unwrap();
    table.apply(&delete).unwrap();
    let built_in = Change::DeletePolicy { name: "admin".into() };
    assert!(matches!(table.apply(&built_in), Err(UserError::BuiltIn { .. })));
    table.apply(&Change::SetKeyEnabled { id: "AK1".into(), enabled: false }).unwrap();
    assert!(!table.keys["AK1"].enabled);
    assert!(!format!("{table:?}").contains("secretsecret"), "secrets are not printed");
    table.apply(&Change::DeleteUser { name: "alice".into() }).unwrap();
    assert!(table.keys.is_empty() && table.users.is_empty());
}

#[test]
fn a_stored_policy_that_is_not_understood_denies_everything() {
    let stored = r#"{"document":"{\"Version\":\"2031-01-01\"}","updated_ms":1}"#;
    let mut table = UserTable::default();
    table.apply(&Change::CreateUser { name: "u".into(), now_ms: 1 }).unwrap();
    table.policies.insert("new".into(), serde_json::from_str(stored).unwrap());
    for policy in ["new", "admin"] {
        table.apply(&Change::Attach { policy: policy.into(), user: "u".into() }).unwrap();
    }
    let held: Vec<Arc<Policy>> = table.policies_of("u").collect();
    let (principal, context) = (Principal::User("u".into()), Context::default());
    let request = Request {
        principal: &principal,
        action: Action::GetObject,
        resource: "arn:aws:s3:::b/k",
        context: &context,
    };
    assert_eq!(decide(held.iter().map(Arc::as_ref), None, &request), Decision::Deny);
    assert_eq!(serde_json::to_string(&table.policies["new"]).unwrap(), stored, "it is kept as it was");
}

/// A statement of a bucket policy, as JSON.
fn statement(effects: &'static [&'static str]) -> impl Strategy<Value = String> {
    let principals = prop_oneof![
        Just(r#""Principal":"*""#),
        Just(r#""Principal":{"AWS":"arn:aws:iam::000000000000:user/alice"}"#),
        Just(r#""Principal":{"AWS":"000000000000"}"#),
    ];
    let actions = prop::sample::select(&["s3:*", "s3:GetObject", "s3:Put*", "s3:Get*"][..]);
    let resources = prop::sample::select(&["b/*", "b/a*", "b/?", "b/a/b"][..]);
    let conditions = prop::sample::select(
        &[
            "",
            r#","Condition":{"StringLike":{"aws:Referer":"a*"}}"#,
            r#","Condition":{"StringNotLike":{"aws:Referer":"a*"}}"#,
            r#","Condition":{"Bool":{"aws:SecureTransport":true}}"#,
        ][..],
    );
    let effect = prop::sample::select(effects);
    (effect, principals, actions, resources, conditions).prop_map(
        |(effect, principal, action, resource, condition)| {
            format!(
                r#"{{"Effect":"{effect}",{principal},"Action":"{action}","Resource":"arn:aws:s3:::{resource}"{condition}}}"#
            )
        },
    )
}

fn policy(statements: &[String]) -> Policy {
    let document = format!(r#"{{"Version":"2012-10-17","Statement":[{}]}}"#, statements.join(","));
    Policy::of_bucket(&document, "b").unwrap_or_else(|error| panic!("{document}: {error}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn order_does_not_matter_and_a_denial_never_allows_more(
        statements in prop::collection::vec(statement(&["Allow", "Deny"]), 1..6),
        denial in statement(&["Deny"]),
        seed in any::<u64>(),
        who in prop::sample::select(&[0_u8, 1, 2][..]),
        key in prop::sample::select(&["a", "ab", "a/b", "c"][..]),
        acts in prop::sample::select(&[Action::GetObject, Action::PutObject, Action::GetObjectAcl][..]),
        referer in prop::sample::select(&["", "ab", "b"][..]),
    ) {
        let principal =
            [Principal::Root, Principal::User("alice".into()), Principal::Anonymous][usize::from(who)].clone();
        let mut context = Context::default();
        context.set("aws:SecureTransport", (seed % 2 == 0).to_string());
        if !referer.is_empty() {
            context.set("aws:Referer", referer);
        }
        let resource = format!("arn:aws:s3:::b/{key}");
        let request = Request { principal: &principal, action: acts, resource: &resource, context: &context };
        let judge = |statements: &[String]| decide([], Some(&policy(statements)), &request);
        let before = judge(&statements);
        let mut turned = statements.clone();
        turned.reverse();
        let by = usize::try_from(seed % 5).unwrap() % turned.len();
        turned.rotate_left(by);
        prop_assert_eq!(judge(&turned), before);
        let mut more = statements.clone();
        more.push(denial);
        prop_assert!(judge(&more) != Decision::Allow || before == Decision::Allow);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC{0,200}") {
        let _ = Policy::of_bucket(&text, "b");
    }
}
