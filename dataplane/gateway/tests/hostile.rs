//! Hostile requests: seeded ones of every kind, damaged before they are signed (so that paths, queries, documents and chunks reach
//! what takes them apart) or after (so that heads, signatures and framings do), go through the whole gateway over the real
//! object layer. Whatever is sent, the connection ends, the answer is no internal error, and no request is held for ever.
//!
//! `QUARRY_HOSTILE=N` sends so many (4,000 by default), `QUARRY_HOSTILE_SEED=S` begins at that request: a failure names the
//! seed of its request, and S with N = 1 replays it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::rc::Rc;
use std::time::Duration;

use quarry_clustermap::Versioning;
use quarry_gateway::Limits;
use quarry_object::metadata::Metadata as _;
use support::client::{run, send};
use support::draft::{Authentication, Draft, Framing, Spoilt};
use support::gateway_by;
use support::real::real_store;

const REQUESTS: u64 = 4000;
/// On the clock of the test, which jumps: longer than any deadline of the gateway.
const ANSWER_WITHIN: Duration = Duration::from_secs(3600);
/// The largest answer to anything here.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.any() % n as u64).unwrap()
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

const POLICY: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":["s3:GetObject","s3:Put*"],"Resource":"arn:aws:s3:::bucket/*","Condition":{"IpAddress":{"aws:SourceIp":"192.0.2.0/24"},"StringLikeIfExists":{"aws:Referer":["*.example/${aws:username}"]},"NumericLessThan":{"s3:max-keys":"10"},"DateGreaterThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"}}}]}"#;
const LIFECYCLE: &str = "<LifecycleConfiguration><Rule><ID>r</ID><Status>Enabled</Status><Filter><And><Prefix>logs/</Prefix><Tag><Key>a</Key><Value>b</Value></Tag><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></And></Filter><Expiration><Days>3</Days></Expiration><NoncurrentVersionExpiration><NoncurrentDays>2</NoncurrentDays><NewerNoncurrentVersions>3</NewerNoncurrentVersions></NoncurrentVersionExpiration><Transition><Days>30</Days><StorageClass>STANDARD_IA</StorageClass></Transition></Rule></LifecycleConfiguration>";
const DELETE: &str = "<Delete><Quiet>false</Quiet><Object><Key>a&amp;b</Key></Object><Object><Key>v</Key><VersionId>null</VersionId><ETag>\"0\"</ETag><Size>5</Size></Object></Delete>";
const COMPLETE: &str = "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"e2fc714c4727ee9395f324cd2e7f331f\"</ETag><ChecksumCRC32C>4waSgw==</ChecksumCRC32C></Part></CompleteMultipartUpload>";
const CORS: &str = "<CORSConfiguration><CORSRule><AllowedOrigin>https://*.example</AllowedOrigin><AllowedMethod>GET</AllowedMethod><AllowedHeader>x-*</AllowedHeader><ExposeHeader>etag</ExposeHeader><MaxAgeSeconds>60</MaxAgeSeconds></CORSRule></CORSConfiguration>";
const WEBSITE: &str = "<WebsiteConfiguration><IndexDocument><Suffix>index.html</Suffix></IndexDocument><ErrorDocument><Key>error.html</Key></ErrorDocument><RoutingRules><RoutingRule><Condition><KeyPrefixEquals>old/</KeyPrefixEquals></Condition><Redirect><ReplaceKeyPrefixWith>new/</ReplaceKeyPrefixWith><HttpRedirectCode>302</HttpRedirectCode></Redirect></RoutingRule></RoutingRules></WebsiteConfiguration>";
const TAGGING: &str = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>";
const VERSIONING: &str = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";
const OWNERSHIP: &str =
    "<OwnershipControls><Rule><ObjectOwnership>ObjectWriter</ObjectOwnership></Rule></OwnershipControls>";
const ACL: &str = "<AccessControlPolicy><Owner><ID>x</ID></Owner><AccessControlList><Grant><Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"Group\"><URI>http://acs.amazonaws.com/groups/global/AllUsers</URI></Grantee><Permission>READ</Permission></Grant></AccessControlList></AccessControlPolicy>";
const BLOCK: &str = "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls></PublicAccessBlockConfiguration>";

/// Method, path, query, and the document that goes with it.
type Shape = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

const SHAPES: [Shape; 34] = [
    ("GET", "/", &[], ""),
    (
        "GET",
        "/bucket",
        &[("list-type", "2"), ("prefix", "a%2Fb"), ("delimiter", "%2F"), ("max-keys", "3")],
        "",
    ),
    ("GET", "/bucket", &[("list-type", "2"), ("continuation-token", "abc"), ("encoding-type", "url")], ""),
    ("GET", "/bucket", &[("marker", "a"), ("max-keys", "1000")], ""),
    ("GET", "/bucket", &[("versions", ""), ("key-marker", "a"), ("version-id-marker", "null")], ""),
    ("GET", "/bucket", &[("uploads", ""), ("key-marker", "a"), ("upload-id-marker", "0123")], ""),
    ("GET", "/bucket", &[("policy", "")], ""),
    ("GET", "/bucket/plain", &[("partNumber", "1"), ("versionId", "null")], ""),
    ("GET", "/bucket/plain", &[("response-content-type", "text%2Fplain"), ("response-expires", "soon")], ""),
    ("GET", "/bucket/plain", &[("attributes", "")], ""),
    ("GET", "/bucket/dir/a%20b%C3%BC", &[("tagging", "")], ""),
    ("HEAD", "/versioned/plain", &[], ""),
    ("PUT", "/bucket/new%2Fkey", &[], "some bytes"),
    ("PUT", "/bucket/copy", &[], ""),
    ("PUT", "/versioned/plain", &[], "other bytes"),
    (
        "PUT",
        "/bucket/part",
        &[("partNumber", "1"), ("uploadId", "0123456789abcdef0123456789abcdef")],
        "bytes",
    ),
    ("PUT", "/bucket", &[("policy", "")], POLICY),
    ("PUT", "/bucket", &[("lifecycle", "")], LIFECYCLE),
    ("PUT", "/bucket", &[("cors", "")], CORS),
    ("PUT", "/bucket", &[("website", "")], WEBSITE),
    ("PUT", "/bucket", &[("tagging", "")], TAGGING),
    ("PUT", "/bucket/plain", &[("tagging", "")], TAGGING),
    ("PUT", "/versioned", &[("versioning", "")], VERSIONING),
    ("PUT", "/bucket", &[("ownershipControls", "")], OWNERSHIP),
    ("PUT", "/bucket", &[("acl", "")], ACL),
    ("PUT", "/bucket/plain", &[("acl", "")], ACL),
    ("PUT", "/bucket", &[("publicAccessBlock", "")], BLOCK),
    ("PUT", "/another", &[], ""),
    ("POST", "/bucket", &[("delete", "")], DELETE),
    ("POST", "/bucket/big", &[("uploads", "")], ""),
    ("POST", "/bucket/big", &[("uploadId", "0123456789abcdef0123456789abcdef")], COMPLETE),
    ("DELETE", "/bucket/plain2", &[("versionId", "null")], ""),
    ("DELETE", "/bucket", &[("cors", "")], ""),
    ("OPTIONS", "/bucket/plain", &[], ""),
];

const HEADERS: [(&str, &str); 18] = [
    ("range", "bytes=1-3"),
    ("if-match", "\"e2fc714c4727ee9395f324cd2e7f331f\""),
    ("if-modified-since", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ("content-md5", "XrY7u+Ae7tCTyyK7j1rNww=="),
    ("x-amz-checksum-crc32c", "4waSgw=="),
    ("x-amz-checksum-sha256", "arcu6553sHVAiX4MjW0j7I7vD4w6R+Gz9Ok0Q9lTa+0="),
    ("x-amz-copy-source", "/bucket/plain?versionId=null"),
    ("x-amz-copy-source-range", "bytes=0-4"),
    ("x-amz-metadata-directive", "REPLACE"),
    ("x-amz-meta-name", "=?UTF-8?B?w7w=?="),
    ("x-amz-tagging", "a=b&c=d%20e"),
    ("x-amz-acl", "public-read"),
    ("x-amz-storage-class", "STANDARD_IA"),
    ("x-amz-object-attributes", "ETag,Checksum,ObjectParts"),
    ("x-amz-if-match-size", "10"),
    ("x-quarry-expires", "+60"),
    ("origin", "https://www.example"),
    ("access-control-request-method", "GET"),
];

/// Text that parsers stumble over.
const TRAPS: [&str; 16] = [
    "%",
    "%zz",
    "%00",
    "..",
    "//",
    "\u{fffd}",
    "&#x0;",
    "]]>",
    "<!DOCTYPE a [<!ENTITY b \"b\">]>&b;",
    "<a>",
    "-1",
    "99999999999999999999",
    "\\u0000",
    "\"",
    "{}",
    "=",
];

/// Changes a text in a few places and keeps it one.
fn spoil(text: &str, dice: &mut Dice) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    for _ in 0..=dice.below(3) {
        let at = dice.below(letters.len() + 1);
        let end = (at + dice.below(12)).min(letters.len());
        match dice.below(6) {
            0 => drop(letters.drain(at..end)),
            1 => {
                let run = letters[at..end].to_vec();
                letters.splice(at..at, run);
            }
            2 => letters.insert(at, char::from(b' ' + u8::try_from(dice.below(95)).unwrap())),
            3 => letters.truncate(at),
            4 => {
                let from = dice.below(letters.len() + 1);
                let run = letters[from..(from + 40).min(letters.len())].to_vec();
                letters.splice(at..at, run);
            }
            _ => drop(letters.splice(at..end, dice.one(&TRAPS).chars())),
        }
    }
    letters.into_iter().collect()
}

/// Text that may stand in the head of a request.
fn in_head(text: &str) -> String {
    text.chars().filter(|letter| letter.is_ascii_graphic()).collect()
}

fn draft(dice: &mut Dice) -> Draft {
    let (method, path, query, document) = *dice.one(&SHAPES);
    let mut draft = Draft::new(method, path, document.as_bytes());
    draft.query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    for (name, value) in HEADERS {
        if dice.chance(20) {
            let value = if dice.chance(2) { in_head(&spoil(value, dice)) } else { value.to_owned() };
            draft = draft.header(name, &value);
        }
    }
    if dice.chance(3) {
        // The bucket stays mostly.
        let kept = path[1..].find('/').filter(|_| !dice.chance(5)).map_or(1, |at| at + 2);
        draft.path =
            format!("{}{}", &path[..kept], in_head(&spoil(&path[kept..], dice)).replace(['?', '#'], ""));
    }
    if dice.chance(3) && !draft.query.is_empty() {
        let at = dice.below(draft.query.len());
        draft.query[at].1 = in_head(&spoil(&draft.query[at].1, dice)).replace(['&', '=', '#'], "");
    }
    if dice.chance(2) {
        draft.body = spoil(document, dice).into_bytes();
        if dice.chance(8) && !draft.body.is_empty() {
            let at = dice.below(draft.body.len());
            draft.body[at] = u8::try_from(dice.below(256)).unwrap();
        }
    }
    draft.authentication =
        *dice.one(&[Authentication::Header, Authentication::Header, Authentication::Query]);
    if method == "PUT" && query.is_empty() {
        let framings = [Framing::Whole, Framing::Chunks, Framing::ChunksTrailer, Framing::UnsignedTrailer];
        draft.framing = *dice.one(&framings);
        draft.chunk_bytes = *dice.one(&[1, 7, 8192]);
    }
    draft
}

/// Changes bytes that are on the wire.
fn damage(request: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        if request.is_empty() {
            return;
        }
        let at = dice.below(request.len());
        let end = (at + 1 + dice.below(20)).min(request.len());
        match dice.below(5) {
            0 => request[at] ^= 1 << dice.below(8),
            1 => request[at] = u8::try_from(dice.below(256)).unwrap(),
            2 => drop(request.drain(at..end)),
            3 => {
                let run = request[at..end].to_vec();
                request.splice(at..at, run);
            }
            _ => request.truncate(at.max(1)),
        }
    }
}

/// What made s3s fail within itself: their fixed forms, from campaigns of this test.
fn found() -> Vec<Draft> {
    let put = |name, value| Draft::new("PUT", "/bucket/found", b"x").header(name, value);
    let mut dated = Draft::new("PUT", "/bucket/found", b"x");
    dated.authentication = Authentication::None;
    let malformed = "AWS4-HMAC-SHA256 Credential=quarrytest/2026!123/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=00";
    vec![
        put("x-amz-meta-name", "=?="),
        put("x-amz-meta-name", "=?UTF-8?B?w7w=?= =?= =?UTF-8?B?w7w=?="),
        dated
            .clone()
            .header("x-amz-date", "20261123T18!120Z")
            .header("authorization", &malformed.replace('!', "1")),
        dated.header("x-amz-date", "20261123T181200Z").header("authorization", malformed),
    ]
}

fn request(seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut request = draft(&mut dice).finish();
    if dice.chance(2) {
        damage(&mut request, &mut dice);
    }
    request
}

#[test]
fn whatever_is_sent_is_answered_or_refused() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("QUARRY_HOSTILE_SEED").unwrap_or(1);
    let count = number("QUARRY_HOSTILE").unwrap_or(REQUESTS);
    run(async {
        let mut answered = std::collections::BTreeMap::<String, u64>::new();
        for fast in [true, false] {
            let (cluster, store) = real_store();
            let gateway = gateway_by(Rc::default(), Limits::default(), store, fast);
            for path in ["/bucket", "/versioned", "/bucket/plain", "/versioned/plain", "/bucket/plain2"] {
                let body = if path.matches('/').count() > 1 { &b"0123456789"[..] } else { b"" };
                send(&gateway, &Draft::new("PUT", path, body).finish()).await;
            }
            cluster.set_versioning("versioned", Versioning::Enabled).await.unwrap();
            for draft in found() {
                let text = String::from_utf8(send(&gateway, &draft.clone().finish()).await).unwrap();
                assert!(text.starts_with("HTTP/1.1 400 "), "{draft:?}\n{text}");
            }
            // A document that is announced and does not come.
            let mut cut = Draft::new("POST", "/bucket", DELETE.as_bytes()).query("delete", "");
            cut.spoilt = Spoilt::NoLength;
            let text = String::from_utf8(send(&gateway, &cut.finish()).await).unwrap();
            assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
            for seed in first..first.saturating_add(count) {
                let request = request(seed);
                let shown = String::from_utf8_lossy(&request[..request.len().min(3000)]).into_owned();
                let answer = tokio::time::timeout(ANSWER_WITHIN, send(&gateway, &request)).await;
                let answer = answer.unwrap_or_else(|_| panic!("seed {seed}: no answer to {shown}"));
                let text = String::from_utf8_lossy(&answer).into_owned();
                let status = text.get(9..12).unwrap_or("none").to_owned();
                assert!(answer.len() <= ANSWER_BYTES_MAX, "seed {seed}: {} bytes for {shown}", answer.len());
                // What is no head of a request at all gets no answer.
                let is_http = answer.is_empty() || text.starts_with("HTTP/1.");
                assert!(is_http && status != "500", "seed {seed}: {shown}\n{text}");
                *answered.entry(status).or_default() += 1;
            }
        }
        if count >= REQUESTS {
            for status in ["200", "204", "206", "400", "403", "404", "412", "501"] {
                assert!(answered.contains_key(status), "no answer was {status}: {answered:?}");
            }
        }
        println!("{answered:?}");
    });
}
