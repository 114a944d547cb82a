//! Policies: documents that anybody who may set a bucket's policy sends, and the decisions made with them.

use quarry_identity::{Action, Context, Policy, Principal, Request, decide};

use crate::{Random, Target};

const WORDS: [&str; 12] =
    ["*", "?", "a", "b/", "${aws:username}", "${*}", "${aws:userid, 'x'}", "/", "a*", "0", "é", "b"];
const CONDITIONS: [&str; 8] = [
    r#"{"StringLike":{"s3:prefix":["a*","${aws:username}/*"]}}"#,
    r#"{"NumericLessThanEquals":{"s3:max-keys":"10"},"Null":{"aws:Referer":"true"}}"#,
    r#"{"DateLessThan":{"aws:CurrentTime":"2026-01-31T00:00:00Z"}}"#,
    r#"{"IpAddress":{"aws:SourceIp":["192.0.2.0/24","2001:db8::/32"]}}"#,
    r#"{"BoolIfExists":{"aws:SecureTransport":true}}"#,
    r#"{"ForAllValues:StringNotEquals":{"s3:RequestObjectTagKeys":["a","b"]}}"#,
    r#"{"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/*"}}"#,
    r#"{"StringEquals":{"s3:ExistingObjectTag/a":"b"}}"#,
];

/// The parser of policies; what it accepts is decided with and printed for being public.
pub(crate) const POLICY: Target = Target {
    name: "policy-json",
    sample: |random| {
        let statements = 1 + random.below(4);
        let statements: Vec<String> = (0..statements).map(|_| statement(random)).collect();
        format!(r#"{{"Version":"2012-10-17","Id":"x","Statement":[{}]}}"#, statements.join(",")).into_bytes()
    },
    seal: |_, _| {},
    decode: |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        if let Ok(policy) = Policy::of_user(text) {
            ask(&policy, None);
        }
        let Ok(policy) = Policy::of_bucket(text, "b") else { return false };
        ask(&policy, Some(&policy));
        true
    },
    factor: 256,
    constant: 64 << 10,
};

fn statement(random: &mut Random) -> String {
    let effect = if random.one_in(2) { "Allow" } else { "Deny" };
    let words: String = (0..random.below(6)).map(|_| WORDS[random.below(WORDS.len())]).collect();
    let condition = match random.below(CONDITIONS.len() + 1) {
        0 => String::new(),
        n => format!(r#","Condition":{}"#, CONDITIONS[n - 1]),
    };
    format!(
        r#"{{"Effect":"{effect}","Principal":{{"AWS":["*","000000000000"]}},"Action":["s3:Get*","s3:*Object"],"Resource":"arn:aws:s3:::b/{words}"{condition}}}"#
    )
}

fn ask(held: &Policy, bucket: Option<&Policy>) {
    let mut context = Context::default();
    for (key, value) in [
        ("aws:username", "a*"),
        ("s3:prefix", "a*/x"),
        ("s3:max-keys", "7"),
        ("aws:CurrentTime", "2026-01-01T00:00:00Z"),
        ("aws:SourceIp", "192.0.2.1"),
        ("s3:RequestObjectTagKeys", "a"),
    ] {
        context.set(key, value);
    }
    let everybody = [Principal::Root, Principal::User("a".into()), Principal::Anonymous];
    for principal in &everybody {
        for resource in ["arn:aws:s3:::b/a/b", "arn:aws:s3:::b", "arn:aws:s3:::*"] {
            let request = Request { principal, action: Action::GetObject, resource, context: &context };
            std::hint::black_box(decide([held], bucket, &request));
        }
    }
    std::hint::black_box((held.is_public(), held.asks_existing_tags()));
}
