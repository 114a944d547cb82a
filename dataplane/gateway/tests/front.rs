//! The fast way beside s3s: seeded requests, right, unusual and wrong, go to two gateways over two stores in lockstep, one
//! with the fast front and one without. Whatever they answer must be the same but for date and request id.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use quarry_clustermap::Versioning;
use quarry_gateway::{Gateway, Limits};
use quarry_identity::{AccessKey, Change, Secret, UserTable};
use quarry_object::metadata::Metadata as _;
use support::client::{run, send};
use support::draft::{Authentication, Draft, Framing, SPOILT, Spoilt, crc32c_base64};
use support::real::{RealCluster, real_store};
use support::{Log, USERS, gateway_by};

const REQUESTS: usize = 3000;
/// Whose key may read what begins with `plain`, and nothing else.
const READER: (&str, &str) = ("AKREADER", "reader-secret");

/// RFC 9110 tells to ignore them.
const MALFORMED_RANGES: [&str; 8] =
    ["bytes=4-2", "bytes=a-b", "bytes=", "lines=1-2", "bytes=0-1,4-5", "bytes=1", "bytes=-", "\u{fc}"];
/// In order, but not to s3s.
const UNUSUAL_RANGES: [(&str, &str); 4] = [
    ("Bytes=1-3", "206"),
    ("bytes=2-99999999999999999999", "206"),
    ("bytes=-99999999999999999999", "206"),
    ("bytes=99999999999999999999-", "416"),
];

struct Side {
    gateway: Gateway,
    cluster: Rc<RealCluster>,
    log: Rc<Log>,
}

impl Side {
    fn new(fast: bool) -> Self {
        let (cluster, store) = real_store();
        let log = Rc::<Log>::default();
        Self { gateway: gateway_by(Rc::clone(&log), Limits::default(), store, fast), cluster, log }
    }

    async fn send(&self, request: &[u8]) -> Vec<u8> {
        send(&self.gateway, request).await
    }
}

/// Status line, sorted headers, body; without date and ids.
fn comparable(answer: &[u8]) -> (String, Vec<String>, String) {
    let text = String::from_utf8_lossy(answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap_or("").to_owned();
    let kept = |line: &&str| !line.starts_with("date:") && !line.starts_with("x-amz-request-id:");
    let mut headers: Vec<String> = lines.filter(kept).map(str::to_owned).collect();
    headers.sort();
    let body = match (body.split_once("<RequestId>"), body.split_once("</RequestId>")) {
        (Some((before, _)), Some((_, after))) => format!("{before}{after}"),
        _ => body.to_owned(),
    };
    (status, headers, body)
}

/// xorshift; the seed is the test's.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).unwrap()
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

const PATHS: [&str; 27] = [
    "/bucket/plain-none",
    "/bucket/plain",
    "/bucket/plain",
    "/bucket/plain2",
    "/versioned/plain",
    "/versioned/v",
    "/bucket/dir/a%20b",
    "/bucket/dir/a+b",
    "/bucket/%C3%BC",
    "/bucket/%c3%bc",
    "/bucket/a//b",
    "/bucket//a",
    "/bucket/../x",
    "/bucket/./x",
    "/bucket/p%2Fq",
    "/bucket/p%2fq",
    "/bucket/%70lain",
    "/bucket/~t*'()!$",
    "/bucket/a%zzb",
    "/bucket/%ff",
    "/bucket/nul%00",
    "/bucket/",
    "/bucket",
    "/missing/plain",
    "/Bad_Name/plain",
    "//plain",
    "/bucket/none",
];
const ETAGS: [&str; 8] = [
    "*",
    "\"e2fc714c4727ee9395f324cd2e7f331f\"",
    "e2fc714c4727ee9395f324cd2e7f331f",
    "W/\"e2fc714c4727ee9395f324cd2e7f331f\"",
    "\"00000000000000000000000000000000\"",
    "\"unclosed",
    "",
    "\"a\", \"b\"",
];
const DATES: [&str; 5] = [
    "Thu, 01 Jan 1970 00:00:00 GMT",
    "Tue, 14 Nov 2023 22:13:20 GMT",
    "Fri, 01 Jan 2100 00:00:00 GMT",
    "yesterday",
    "2023-11-14T22:13:20Z",
];
const RANGES: [&str; 14] = [
    "bytes=0-0",
    "bytes=1-3",
    "bytes=2-",
    "bytes=-2",
    "bytes=-0",
    "bytes=3-999999",
    "bytes=999999-",
    "bytes=0-4194304",
    "bytes=70000-70010",
    "bytes=-999999",
    "bytes=0-1,4-5",
    "bytes=4-2",
    "Bytes=1-3",
    "bytes=0-99999999999999999999",
];

fn body(dice: &mut Dice) -> Vec<u8> {
    match dice.below(8) {
        0 => Vec::new(),
        1 => vec![b'x'; 70_000],
        2 => (0..20_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect(),
        _ => b"abcde".to_vec(),
    }
}

fn read(dice: &mut Dice) -> Draft {
    let mut draft = Draft::new(dice.one(&["GET", "GET", "HEAD"]), dice.one(&PATHS), b"");
    if dice.chance(25) {
        draft.path = format!("/bucket/{}", "k".repeat(dice.one(&[1024, 1025])));
    }
    if dice.chance(25) {
        draft.body = b"a body".to_vec();
    }
    if dice.chance(3) {
        draft = draft.header("range", dice.one(&RANGES));
    }
    for (name, pool) in [
        ("if-match", &ETAGS[..]),
        ("if-none-match", &ETAGS),
        ("if-modified-since", &DATES),
        ("if-unmodified-since", &DATES),
        ("x-amz-checksum-mode", &["ENABLED", "enabled", ""]),
        ("x-amz-request-payer", &["requester"]),
        ("x-amz-expected-bucket-owner", &["somebody"]),
        ("x-amz-security-token", &["token"]),
        ("x-amz-nonsense", &["1"]),
        ("accept-encoding", &["identity", "gzip,  deflate "]),
        ("user-agent", &["a  b\tc", "curl"]),
        ("content-type", &["text/plain", "multipart/form-data; boundary=x"]),
    ] {
        if dice.chance(9) {
            draft = draft.header(name, dice.one(pool));
        }
    }
    for (name, pool) in [
        ("versionId", &["null", "nonsense", "", "00000000000000000000000000000000"][..]),
        ("partNumber", &["1", "2", "0", "abc", "10001", ""]),
        ("response-content-type", &["text/plain", "a%20b", "", "bad%0Aline", "a+b"]),
        ("response-expires", &["Thu,%2001%20Jan%202026%2000:00:00%20GMT", "soon"]),
        ("response-content-disposition", &["attachment%3B%20filename%3D%22x%22"]),
        ("response-nonsense", &["1"]),
        ("x-id", &["GetObject", "HeadObject", "PutObject"]),
        ("%76ersionId", &["null"]),
        ("tagging", &["\0", ""]),
        ("uploadId", &["1"]),
        ("whatever", &["1", "%ff"]),
    ] {
        if dice.chance(14) {
            draft = draft.query(name, dice.one(pool));
        }
    }
    draft
}

fn write(dice: &mut Dice, uploads: &[String]) -> Draft {
    let body = body(dice);
    let is_part = dice.chance(3);
    let path = if is_part {
        dice.one(&["/bucket/part", "/bucket/other"]).to_owned()
    } else {
        dice.one(&PATHS).to_owned()
    };
    let mut draft = Draft::new("PUT", &path, &body);
    if is_part {
        let upload = if dice.chance(5) { "nonsense".to_owned() } else { dice.one(uploads) };
        draft = draft.query("partNumber", dice.one(&["1", "2", "3", "0", "10001", "abc"]));
        draft = draft.query("uploadId", &upload);
    }
    draft.framing = dice.one(&[
        Framing::Whole,
        Framing::Unsigned,
        Framing::Chunks,
        Framing::ChunksTrailer,
        Framing::UnsignedTrailer,
    ]);
    draft.chunk_bytes = dice.one(&[8192, 65536]);
    if dice.chance(12) {
        let sum = crc32c_base64(b"something else");
        draft.trailer =
            Some(dice.one(&[("x-amz-checksum-crc32c", sum.clone()), ("x-amz-checksum-crc32", sum)]));
    }
    let sum = crc32c_base64(&body);
    for (name, pool) in [
        ("content-md5", &["q1a0NqPTU2UQ7LOZFSwX6w==", "q1Y3PAFuDzSbHdCFILuYTA==", "nonsense", ""][..]),
        ("x-amz-checksum-crc32c", &[sum.as_str(), "AAAAAA==", "nonsense"]),
        ("x-amz-sdk-checksum-algorithm", &["CRC32C", "NONE"]),
        ("x-amz-checksum-algorithm", &["CRC32C"]),
        ("x-amz-meta-a", &["1", "two  words ", "=?utf-8?Q?x?=", "=?broken"]),
        ("x-amz-meta-", &["empty"]),
        ("x-amz-tagging", &["a=b&c=d", "a=b&a=c", ""]),
        ("x-amz-storage-class", &["STANDARD", "GLACIER_IR", "NONE", ""]),
        ("x-amz-acl", &["private", "public-read", "nonsense", ""]),
        ("x-amz-website-redirect-location", &["/elsewhere"]),
        ("expires", &["Thu, 01 Jan 2026 00:00:00 GMT", "soon", ""]),
        ("cache-control", &["no-cache"]),
        ("content-encoding", &["gzip", "aws-chunked", "aws-chunked,gzip"]),
        ("content-type", &["text/plain", "multipart/form-data; boundary=x"]),
        ("if-none-match", &["*", "\"00000000000000000000000000000000\"", "\"unclosed"]),
        ("if-match", &ETAGS),
        ("x-amz-copy-source", &["/bucket/plain"]),
        ("x-amz-server-side-encryption", &["AES256"]),
        ("x-amz-grant-read", &["id=1"]),
        ("x-amz-nonsense", &["1"]),
        ("x-amz-security-token", &["token"]),
    ] {
        if dice.chance(22) {
            draft = draft.header(name, dice.one(pool));
        }
    }
    for (name, pool) in [
        ("x-id", &["PutObject", "UploadPart"][..]),
        ("versionId", &["null"]),
        ("partNumber", &["1"]),
        ("acl", &["\0"]),
        ("renameObject", &["\0"]),
        ("whatever", &["1"]),
    ] {
        if dice.chance(30) {
            draft = draft.query(name, dice.one(pool));
        }
    }
    draft
}

/// What may be odd about any request.
fn spoil(dice: &mut Dice, mut draft: Draft) -> Draft {
    draft.authentication = dice.one(&[
        Authentication::Header,
        Authentication::Header,
        Authentication::Header,
        Authentication::Query,
        Authentication::Query,
        Authentication::None,
    ]);
    if draft.authentication != Authentication::Header && !dice.chance(10) {
        draft.framing = Framing::Unsigned;
    }
    if dice.chance(4) {
        draft.spoilt = dice.one(&SPOILT);
    }
    if dice.chance(15) {
        draft.secret = "wrong";
    }
    if dice.chance(15) {
        draft.access_key = dice.one(&["nobody", "", "with/slash"]);
    } else if dice.chance(8) {
        (draft.access_key, draft.secret) = READER;
    }
    if dice.chance(8) {
        draft.ahead = dice.one(&[-86_400, -960, -840, -2, 840, 960, 86_400]);
    }
    if dice.chance(15) {
        draft.region = dice.one(&["eu-west-1", "", "UPPER", "a_b", "aws-global"]);
    }
    if dice.chance(30) {
        draft.service = dice.one(&["ec2", "sts", ""]);
    }
    if dice.chance(6) {
        draft.expires = dice.one(&["0", "1", "604800", "604801", "-1", "1e3", "%2B60", ""]);
    }
    if dice.chance(20) && !draft.headers.is_empty() {
        let again = dice.one(&draft.headers);
        draft.headers.push(again);
    }
    draft
}

fn users() {
    let document = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject",
        "Resource":"arn:aws:s3:::bucket/plain*"},{"Effect":"Allow","Action":"s3:GetObject",
        "Resource":"arn:aws:s3:::bucket/by-header","Condition":{"StringEquals":{"s3:authType":"REST-HEADER"}}}]}"#;
    let key = AccessKey {
        user: "reader".into(),
        secret: Secret::new(READER.1.into()),
        enabled: true,
        created_ms: 1,
    };
    let mut table = UserTable::default();
    for change in [
        Change::CreateUser { name: "reader".into(), now_ms: 1 },
        Change::CreateKey { id: READER.0.into(), key },
        Change::PutPolicy { name: "plain".into(), document: document.into(), now_ms: 1 },
        Change::Attach { policy: "plain".into(), user: "reader".into() },
    ] {
        table.apply(&change).unwrap();
    }
    USERS.set(Arc::new(table));
}

/// Both sides in lockstep.
struct Pair {
    fast: Side,
    general: Side,
}

impl Pair {
    async fn new() -> Self {
        users();
        let pair = Self { fast: Side::new(true), general: Side::new(false) };
        for bucket in ["bucket", "versioned"] {
            pair.both(&Draft::new("PUT", &format!("/{bucket}"), b"").finish()).await;
        }
        for side in [&pair.fast, &pair.general] {
            side.cluster.set_versioning("versioned", Versioning::Enabled).await.unwrap();
        }
        for path in
            ["/bucket/plain", "/versioned/plain", "/bucket/dir/a%20b", "/bucket/%C3%BC", "/bucket/by-header"]
        {
            pair.both(&Draft::new("PUT", path, b"0123456789").finish()).await;
        }
        pair
    }

    async fn both(&self, request: &[u8]) -> (Vec<u8>, Vec<u8>) {
        (self.fast.send(request).await, self.general.send(request).await)
    }

    async fn uploads(&self) -> Vec<String> {
        let mut uploads = Vec::new();
        for path in ["/bucket/part", "/bucket/other"] {
            let request = Draft::new("POST", path, b"").query("uploads", "").finish();
            let (answer, other) = self.both(&request).await;
            assert_eq!(comparable(&answer), comparable(&other));
            let text = String::from_utf8(answer).unwrap();
            let (_, rest) = text.split_once("<UploadId>").unwrap();
            uploads.push(rest.split_once('<').unwrap().0.to_owned());
        }
        uploads
    }

    /// The status of the answer, and how the two differ.
    async fn compare(&self, draft: &Draft) -> (String, Option<String>) {
        let request = draft.clone().finish();
        let (fast, general) = self.both(&request).await;
        let (fast, general) = (comparable(&fast), comparable(&general));
        let request = String::from_utf8_lossy(&request[..request.len().min(2000)]).into_owned();
        let differ = (fast != general).then(|| format!("{draft:?}\n{request}\n{fast:?}\n{general:?}\n"));
        (fast.0, differ)
    }
}

#[test]
fn both_ways_answer_the_same() {
    run(async {
        let pair = Pair::new().await;
        let uploads = pair.uploads().await;
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        let mut differing = Vec::new();
        let mut seen: BTreeMap<(String, &str, &str), usize> = BTreeMap::new();
        for _ in 0..REQUESTS {
            let draft = if dice.chance(2) { read(&mut dice) } else { write(&mut dice, &uploads) };
            let draft = spoil(&mut dice, draft);
            let method = draft.method;
            let (status, differ) = pair.compare(&draft).await;
            differing.extend(differ);
            let front = pair.fast.log.fronts.borrow().last().copied().unwrap_or("-");
            *seen.entry((status, method, front)).or_default() += 1;
        }
        for ((status, method, front), count) in &seen {
            println!("{count:5} {method:4} {front:9} {status}");
        }
        let shown = differing.iter().take(5).map(String::as_str).collect::<String>();
        assert!(differing.is_empty(), "{} differ:\n{shown}", differing.len());
        // The comparison is worth something only if the fast way is taken, for good answers and for bad ones.
        for (status, method) in [
            ("200", "GET"),
            ("206", "GET"),
            ("304", "GET"),
            ("412", "GET"),
            ("416", "GET"),
            ("403", "GET"),
            ("404", "GET"),
            ("200", "HEAD"),
            ("206", "HEAD"),
            ("200", "PUT"),
            ("412", "PUT"),
            ("400", "PUT"),
            ("403", "PUT"),
            ("404", "PUT"),
        ] {
            let taken = seen
                .iter()
                .any(|((line, of, front), _)| line.contains(status) && *of == method && *front == "fast");
            assert!(taken, "no {method} with {status} went the fast way");
        }
        for front in ["operation", "query", "header", "signature"] {
            assert!(seen.keys().any(|(_, _, other)| *other == front), "no request fell back for its {front}");
        }
        let general = pair.general.log.fronts.borrow();
        assert!(general.iter().all(|front| matches!(*front, "off" | "neither")));
    });
}

/// Requests that take the fast way in `Pair::fast`, and those that do not, for their query or a header that comes twice.
fn ways(method: &'static str) -> Vec<Draft> {
    let plain = |path| Draft::new(method, path, b"");
    let presigned = |path| Draft { authentication: Authentication::Query, ..plain(path) };
    let reader = |draft| Draft { access_key: READER.0, secret: READER.1, ..draft };
    let twice = |draft: Draft| draft.header("x-twice", "1").header("x-twice", "2");
    vec![
        plain("/bucket/plain"),
        presigned("/bucket/plain"),
        plain("/bucket/plain").query("versionId", "null").header("x-amz-request-payer", "requester"),
        twice(plain("/bucket/plain")),
        twice(presigned("/bucket/plain")),
        plain("/bucket/plain").query("%70artNumber", "1"),
        plain("/bucket/plain").query("versionI%64", "null"),
        reader(twice(plain("/bucket/plain"))),
        reader(twice(plain("/bucket/by-header"))),
        // Allowed by header only, and not at all.
        reader(twice(presigned("/bucket/by-header"))),
        reader(twice(plain("/bucket/dir/a%20b"))),
        Draft { authentication: Authentication::None, ..twice(plain("/bucket/plain")) },
        Draft { secret: "wrong", ..plain("/bucket/plain") },
        Draft { secret: "wrong", ..twice(presigned("/bucket/plain")) },
    ]
}

#[test]
fn a_malformed_range_is_left_out_on_every_way() {
    run(async {
        let pair = Pair::new().await;
        let (mut statuses, mut fronts) = (BTreeSet::new(), BTreeSet::new());
        for draft in ["GET", "HEAD"].into_iter().flat_map(ways) {
            let (whole, _) = pair.both(&draft.clone().finish()).await;
            let whole = comparable(&whole);
            statuses.insert(whole.0.clone());
            for range in MALFORMED_RANGES {
                // Signed with the rest; letters beyond ASCII cannot be.
                let ranged = if range.is_ascii() {
                    draft.clone().header("range", range).finish()
                } else {
                    unsigned(&draft, &[("range", range)])
                };
                let (fast, general) = pair.both(&ranged).await;
                assert_eq!(comparable(&fast), whole, "{range} {draft:?}");
                assert_eq!(comparable(&general), whole, "{range} {draft:?}");
                fronts.insert(pair.fast.log.fronts.borrow().last().copied().unwrap_or("-"));
            }
            let lines = draft.clone().header("range", "bytes=0-1").header("range", "bytes=4-5").finish();
            let (fast, general) = pair.both(&lines).await;
            assert_eq!(comparable(&fast), whole, "two lines, {draft:?}");
            assert_eq!(comparable(&general), whole, "two lines, {draft:?}");
        }
        assert_eq!(
            statuses.iter().map(String::as_str).collect::<Vec<_>>(),
            ["HTTP/1.1 200 OK", "HTTP/1.1 206 Partial Content", "HTTP/1.1 403 Forbidden"]
        );
        assert_eq!(fronts.into_iter().collect::<Vec<_>>(), ["fast", "header", "query", "signature"]);
    });
}

#[test]
fn a_body_without_a_length_is_refused() {
    run(async {
        let pair = Pair::new().await;
        let draft = Draft { framing: Framing::Unsigned, ..Draft::new("PUT", "/bucket/k", b"body") };
        for (spoilt, code) in
            [(Spoilt::NoLength, "MissingContentLength"), (Spoilt::ChunkedTransfer, "NotImplemented")]
        {
            let (fast, general) = pair.both(&Draft { spoilt, ..draft.clone() }.finish()).await;
            assert_eq!(comparable(&fast), comparable(&general));
            assert!(
                comparable(&fast).2.contains(&format!("<Code>{code}</Code>")),
                "{}",
                String::from_utf8_lossy(&fast)
            );
        }
        // Its own chunks say how long it is.
        for framing in [Framing::Chunks, Framing::UnsignedTrailer] {
            let request = Draft { framing, spoilt: Spoilt::ChunkedTransfer, ..draft.clone() }.finish();
            let (fast, general) = pair.both(&request).await;
            assert_eq!(comparable(&fast), comparable(&general));
            assert!(fast.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&fast));
        }
    });
}

/// A request with header lines that are not under its signature.
fn unsigned(draft: &Draft, lines: &[(&str, &str)]) -> Vec<u8> {
    let request = draft.clone().finish();
    let end = request.windows(2).position(|two| two == b"\r\n").expect("a request line");
    let lines: String = lines.iter().map(|(name, value)| format!("\r\n{name}: {value}")).collect();
    [&request[..end], lines.as_bytes(), &request[end..]].concat()
}

/// Requests that the fast way does not understand, and why it says so.
fn declined() -> Vec<(Vec<u8>, &'static str)> {
    let get = || Draft::new("GET", "/bucket/plain", b"");
    let put = || Draft::new("PUT", "/bucket/plain", b"body");
    let framed = |framing| Draft { framing, ..put() };
    let presigned = |draft: Draft| Draft { authentication: Authentication::Query, ..draft };
    let in_chunks = |draft: Draft| {
        draft
            .header("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
            .header("x-amz-decoded-content-length", "0")
            .header("x-amz-trailer", "x-amz-checksum-crc32c")
    };
    let spoilt = |draft: Draft, spoilt| Draft { spoilt, ..draft };
    let read_in_chunks = Draft { body: b"body".to_vec(), framing: Framing::Chunks, ..get() };
    vec![
        (presigned(in_chunks(put())).finish(), "signature"),
        (Draft { authentication: Authentication::None, ..in_chunks(put()) }.finish(), "signature"),
        (spoilt(framed(Framing::Chunks), Spoilt::NoDecodedLength).finish(), "signature"),
        (spoilt(framed(Framing::UnsignedTrailer), Spoilt::NoTrailerHeader).finish(), "signature"),
        (read_in_chunks.finish(), "header"),
        (Draft { authentication: Authentication::None, ..in_chunks(get()) }.finish(), "signature"),
        (spoilt(put(), Spoilt::AbsentHeader).finish(), "signature"),
        (spoilt(put(), Spoilt::UnsortedHeaders).finish(), "signature"),
        (spoilt(put(), Spoilt::UpperHeaders).finish(), "signature"),
        (Draft { body: b"body".to_vec(), ..get() }.finish(), "header"),
        (spoilt(put(), Spoilt::NoLength).finish(), "header"),
        (spoilt(put(), Spoilt::ChunkedTransfer).finish(), "header"),
        (unsigned(&get(), &[("if-match", "*"), ("if-match", "\"0\"")]), "header"),
        (put().header("x-amz-meta-word", "=?utf-8?X?eA==?=").finish(), "header"),
        (put().header("x-amz-nonsense", "1").finish(), "header"),
        (get().query("x-id", "PutObject").finish(), "query"),
        (get().query("response-nonsense", "1").finish(), "query"),
        (get().query("versionId", "null").query("versionId", "null").finish(), "query"),
        (get().query("%76ersionId", "null").finish(), "query"),
        (Draft::new("GET", "/bucket/", b"").finish(), "operation"),
        (Draft::new("DELETE", "/bucket/none", b"").finish(), "operation"),
    ]
}

#[test]
fn what_the_fast_way_does_not_understand_it_leaves() {
    run(async {
        let pair = Pair::new().await;
        for (request, why) in declined() {
            let (fast, general) = pair.both(&request).await;
            let request = String::from_utf8_lossy(&request);
            assert_eq!(comparable(&fast), comparable(&general), "{request}");
            let refused = pair.fast.log.fronts.borrow().last().copied();
            // What is refused before either takes no way.
            assert!(refused == Some(why) || refused == Some("neither"), "{refused:?} {request}");
        }
    });
}

#[test]
fn signatures_that_cover_too_little_or_live_too_long_are_refused() {
    run(async {
        let pair = Pair::new().await;
        let put = || Draft::new("PUT", "/bucket/k", b"body");
        let presigned =
            || Draft { authentication: Authentication::Query, framing: Framing::Unsigned, ..put() };
        let meta = [("x-amz-meta-hidden", "1")];
        let expiry = [("x-quarry-expires", "+60")];
        let spoilt = |draft: Draft, spoilt| Draft { spoilt, ..draft }.finish();
        for (request, expected) in [
            (put().finish(), "200 OK"),
            (presigned().finish(), "200 OK"),
            (unsigned(&put(), &meta), "<Code>AccessDenied</Code>"),
            (unsigned(&presigned(), &meta), "<Code>AccessDenied</Code>"),
            (unsigned(&put(), &expiry), "<Code>AccessDenied</Code>"),
            // What only tightens a presigned request may be added.
            (unsigned(&presigned(), &[("x-amz-content-sha256", "UNSIGNED-PAYLOAD")]), "200 OK"),
            (spoilt(presigned(), Spoilt::Both), "<Code>InvalidArgument</Code>"),
            (Draft { expires: "604800", ..presigned() }.finish(), "200 OK"),
            (
                Draft { expires: "604801", ..presigned() }.finish(),
                "<Code>AuthorizationQueryParametersError</Code>",
            ),
            (Draft { expires: "60", ahead: -70, ..presigned() }.finish(), "<Code>AccessDenied</Code>"),
            (Draft { ahead: 960, ..presigned() }.finish(), "<Code>RequestTimeTooSkewed</Code>"),
            (Draft { ahead: -960, ..put() }.finish(), "<Code>RequestTimeTooSkewed</Code>"),
            (Draft { ahead: -840, ..put() }.finish(), "200 OK"),
            (Draft { secret: "wrong", ..put() }.finish(), "<Code>SignatureDoesNotMatch</Code>"),
            (Draft { access_key: "nobody", ..put() }.finish(), "<Code>InvalidAccessKeyId</Code>"),
        ] {
            let (fast, general) = pair.both(&request).await;
            let request = String::from_utf8_lossy(&request);
            assert_eq!(comparable(&fast), comparable(&general), "{request}");
            let text = String::from_utf8_lossy(&fast);
            assert!(text.contains(expected), "{expected}: {text}\n{request}");
        }
    });
}

#[test]
fn ranges_that_only_s3s_refuses_are_served_on_every_way() {
    run(async {
        let pair = Pair::new().await;
        for (range, status) in UNUSUAL_RANGES {
            for method in ["GET", "HEAD"] {
                for name in ["versionId", "versionI%64"] {
                    let draft = Draft::new(method, "/bucket/plain", b"").query(name, "null");
                    let (fast, general) = pair.both(&draft.header("range", range).finish()).await;
                    let fast = comparable(&fast);
                    assert_eq!(fast, comparable(&general), "{range}");
                    assert!(fast.0.contains(status), "{range}: {fast:?}");
                }
            }
        }
    });
}
