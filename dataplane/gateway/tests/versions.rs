//! Versions, tags, multipart details and attributes from the wire down to the rows: the real s3s stack, object layer
//! and state machine, over devices in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;
#[path = "versions/tiers.rs"]
mod tiers;

use std::future::pending;
use std::rc::Rc;

use quarry_clustermap::Versioning;
use quarry_gateway::{Gateway, Limits};
use quarry_object::metadata::Metadata as _;
use quarry_object::objects::Objects;
use support::client::{connect, exchange, run, signed_with};
use support::gateway_with;
use support::real::{RealCluster, real_store};

struct Bench {
    gateway: Gateway,
    cluster: Rc<RealCluster>,
    store: Rc<Objects<RealCluster>>,
}

/// An answer, head and body.
struct Answer(String);

impl Answer {
    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert!(self.0.starts_with(&format!("HTTP/1.1 {status} ")), "{}", self.0);
        self
    }

    /// Contains each of these.
    #[track_caller]
    fn has(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.0.contains(text), "{text} is not in {}", self.0);
        }
        self
    }

    #[track_caller]
    fn has_not(self, text: &str) -> Self {
        assert!(!self.0.contains(text), "{text} is in {}", self.0);
        self
    }

    fn header(&self, name: &str) -> Option<String> {
        let prefix = format!("{name}: ");
        self.0.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
    }

    #[track_caller]
    fn version(&self) -> String {
        self.header("x-amz-version-id").expect("the answer names a version")
    }

    fn element(&self, name: &str) -> String {
        let (_, rest) = self.0.split_once(&format!("<{name}>")).expect("the element is there");
        rest.split_once("</").unwrap().0.to_owned()
    }
}

impl Bench {
    async fn new(versioning: Versioning) -> Self {
        let (cluster, store) = real_store();
        let gateway = gateway_with(Rc::default(), Limits::default(), Rc::clone(&store));
        let bench = Self { gateway, cluster, store };
        bench.ask("PUT", "/bucket", &[], b"").await.is(200);
        bench.cluster.set_versioning("bucket", versioning).await.unwrap();
        bench
    }

    async fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let request = signed_with(method, target, &headers, body);
        Answer(exchange(&mut connect(&self.gateway, pending()), &request).await.0)
    }

    async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[], b"").await
    }

    async fn put(&self, key: &str, body: &str) -> Answer {
        self.ask("PUT", &format!("/bucket/{key}"), &[], body.as_bytes()).await.is(200)
    }
}

#[test]
fn versions_from_put_to_delete() {
    run(async {
        let bench = Bench::new(Versioning::Unversioned).await;
        bench.put("k", "null").await.has_not("x-amz-version-id");
        bench.get("/bucket/k").await.is(200).has_not("x-amz-version-id");
        bench.cluster.set_versioning("bucket", Versioning::Enabled).await.unwrap();
        let first = bench.put("k", "first").await.version();
        assert_eq!(first.len(), 32);
        assert!(bench.get("/bucket/k").await.is(200).has(&[&first]).0.ends_with("\r\n\r\nfirst"));
        assert!(bench.get("/bucket/k?versionId=null").await.is(200).0.ends_with("\r\n\r\nnull"));

        let deleted = bench.ask("DELETE", "/bucket/k", &[], b"").await.is(204);
        let marker = deleted.has(&["x-amz-delete-marker: true"]).version();
        let gone =
            bench.get("/bucket/k").await.is(404).has(&["<Code>NoSuchKey<", "x-amz-delete-marker: true"]);
        assert_eq!(gone.version(), marker);
        bench.ask("HEAD", "/bucket/k", &[], b"").await.is(404).has(&["x-amz-delete-marker: true"]);
        let by_id = format!("/bucket/k?versionId={marker}");
        bench.get(&by_id).await.is(405).has(&["<Code>MethodNotAllowed<", "x-amz-delete-marker: true"]);
        bench.ask("HEAD", &by_id, &[], b"").await.is(405);
        let unknown = format!("/bucket/k?versionId={}B", &first[..31]);
        bench.get(&unknown).await.is(404).has(&["<Code>NoSuchVersion<"]);
        bench.ask("DELETE", &unknown, &[], b"").await.is(204);
        bench.get("/bucket/k?versionId=nonsense").await.is(400).has(&["<Code>InvalidArgument<"]);
        bench.get("/bucket?list-type=2").await.is(200).has(&["<KeyCount>0<"]);

        let listed = bench.get("/bucket?versions=").await.is(200);
        let listed =
            listed.has(&[&marker, &first, "<VersionId>null<", "<DeleteMarker>", "<IsTruncated>false<"]);
        assert_eq!(listed.0.matches("<IsLatest>true<").count(), 1);
        bench.ask("DELETE", "/bucket", &[], b"").await.is(409).has(&["BucketNotEmpty"]);

        let removed = bench.ask("DELETE", &by_id, &[], b"").await.is(204).has(&["x-amz-delete-marker: true"]);
        assert_eq!(removed.version(), marker);
        assert!(bench.get("/bucket/k").await.is(200).0.ends_with("first"));
        let target = format!("/bucket/k?versionId={first}");
        bench.ask("DELETE", &target, &[], b"").await.is(204).has_not("x-amz-delete-marker");
        assert!(bench.get("/bucket/k").await.is(200).has(&["x-amz-version-id: null"]).0.ends_with("null"));
    });
}

#[test]
fn a_write_names_a_version_of_its_own_only() {
    run(async {
        for versioning in [Versioning::Enabled, Versioning::Suspended] {
            let bench = Bench::new(versioning).await;
            let named = versioning == Versioning::Enabled;
            let put = bench.put("k", "data").await;
            let copy =
                bench.ask("PUT", "/bucket/copy", &[("x-amz-copy-source", "/bucket/k")], b"").await.is(200);
            let upload = bench.ask("POST", "/bucket/big?uploads=", &[], b"").await.element("UploadId");
            let part = format!("/bucket/big?partNumber=1&uploadId={upload}");
            let tag = bench.ask("PUT", &part, &[], b"part").await.is(200).header("etag").unwrap();
            let document = format!(
                "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part></CompleteMultipartUpload>"
            );
            let complete = format!("/bucket/big?uploadId={upload}");
            let done = bench.ask("POST", &complete, &[], document.as_bytes()).await.is(200);
            for (written, key) in [(put, "k"), (copy, "copy"), (done, "big")] {
                let version = if named { written.version() } else { "null".to_owned() };
                written.header("x-amz-version-id").map_or_else(|| assert!(!named), |_| assert!(named));
                // Whoever reads or deletes is told.
                assert_eq!(bench.get(&format!("/bucket/{key}")).await.is(200).version(), version);
                let target = format!("/bucket/{key}?versionId={version}");
                assert_eq!(bench.ask("DELETE", &target, &[], b"").await.is(204).version(), version);
            }
            let marker = bench.ask("DELETE", "/bucket/k", &[], b"").await.is(204);
            assert_eq!(marker.version() == "null", !named);
        }
    });
}

#[test]
fn versions_are_listed_in_pages() {
    run(async {
        let bench = Bench::new(Versioning::Unversioned).await;
        bench.put("a", "0").await;
        bench.cluster.set_versioning("bucket", Versioning::Enabled).await.unwrap();
        let mut expected = vec!["a null".to_owned()];
        for _ in 0..2 {
            expected.insert(0, format!("a {}", bench.put("a", "x").await.version()));
        }
        expected.push(format!("b/c {}", bench.put("b/c", "x").await.version()));
        expected.push(format!("b/d {}", bench.put("b/d", "x").await.version()));
        let (mut seen, mut marker) = (Vec::new(), String::new());
        loop {
            let target = match marker.split_once(' ') {
                None => "/bucket?max-keys=1&versions=".to_owned(),
                Some((key, version)) => format!(
                    "/bucket?key-marker={}&max-keys=1&version-id-marker={version}&versions=",
                    key.replace('/', "%2F")
                ),
            };
            let page = bench.get(&target).await.is(200);
            seen.push(format!("{} {}", page.element("Key"), page.element("VersionId")));
            if page.0.contains("<IsTruncated>false<") {
                break;
            }
            marker = format!("{} {}", page.element("NextKeyMarker"), page.element("NextVersionIdMarker"));
            if page.element("VersionId") == "null" {
                // The place that the marker names stays when the version goes.
                bench.ask("DELETE", "/bucket/a?versionId=null", &[], b"").await.is(204);
            }
        }
        assert_eq!(seen, expected);
        let rolled = bench.get("/bucket?delimiter=%2F&versions=").await.is(200);
        assert_eq!(rolled.has(&["<Prefix>b/</Prefix>"]).0.matches("<Version>").count(), 2);
        let bad = bench.get("/bucket?version-id-marker=null&versions=").await;
        bad.is(400).has(&["<Code>InvalidArgument<"]);
    });
}

#[test]
fn many_deletes_name_versions() {
    run(async {
        let bench = Bench::new(Versioning::Enabled).await;
        let version = bench.put("k", "1").await.version();
        let document = |content: &str| format!("<Delete>{content}</Delete>").into_bytes();
        let object = |key: &str, version: &str| format!("<Object><Key>{key}</Key>{version}</Object>");
        let by_id = object("k", &format!("<VersionId>{version}</VersionId>"));
        let both = document(&format!("{}{by_id}", object("k", "")));
        let answer = bench.ask("POST", "/bucket?delete=", &[], &both).await.is(200);
        let marker = answer.has(&["<DeleteMarker>true<", &version]).element("DeleteMarkerVersionId");
        let bad = object("k", "<VersionId>nonsense</VersionId>");
        let marker = object("k", &format!("<VersionId>{marker}</VersionId>"));
        let quiet = document(&format!("<Quiet>true</Quiet>{marker}{bad}"));
        let answer = bench.ask("POST", "/bucket?delete=", &[], &quiet).await.is(200);
        answer.has(&["<Code>InvalidArgument<", "<VersionId>nonsense<"]).has_not("<Deleted>");
        bench.ask("DELETE", "/bucket", &[], b"").await.is(204);
    });
}

#[test]
fn tags_travel_with_versions_and_copies() {
    run(async {
        let bench = Bench::new(Versioning::Enabled).await;
        let tagged = [("x-amz-tagging", "a=1&b=%C3%A9")];
        let first = bench.ask("PUT", "/bucket/k", &tagged, b"x").await.is(200).version();
        let second = bench.put("k", "y").await.version();
        let of = |version: &str| format!("/bucket/k?tagging=&versionId={version}");
        let tags = bench.get(&of(&first)).await.is(200).has(&["<Key>a<", "<Value>é<"]);
        assert_eq!(tags.version(), first);
        bench.get("/bucket/k?tagging=").await.is(200).has_not("<Tag>");
        let head = bench.ask("HEAD", &format!("/bucket/k?versionId={first}"), &[], b"").await;
        head.is(200).has(&["x-amz-tagging-count: 2"]);
        let document = b"<Tagging><TagSet><Tag><Key>c</Key><Value>3</Value></Tag></TagSet></Tagging>";
        assert_eq!(bench.ask("PUT", "/bucket/k?tagging=", &[], document).await.is(200).version(), second);
        bench.get("/bucket/k?tagging=").await.has(&["<Key>c<"]);
        let twice = b"<Tagging><TagSet><Tag><Key>c</Key><Value>3</Value></Tag><Tag><Key>c</Key><Value>4</Value></Tag></TagSet></Tagging>";
        bench.ask("PUT", "/bucket/k?tagging=", &[], twice).await.is(400).has(&["<Code>InvalidTag<"]);
        bench.ask("PUT", "/bucket/k", &[("x-amz-tagging", "aws:x=1")], b"").await.is(400);

        let source = format!("/bucket/k?versionId={first}");
        let copy = [("x-amz-copy-source", source.as_str())];
        let copied = bench.ask("PUT", "/bucket/copy", &copy, b"").await.is(200);
        assert_eq!(copied.header("x-amz-copy-source-version-id"), Some(first.clone()));
        assert_ne!(copied.version(), first);
        bench.get("/bucket/copy?tagging=").await.has(&["<Key>a<"]);
        assert!(bench.get("/bucket/copy").await.is(200).0.ends_with("\r\n\r\nx"));
        let replace = [copy[0], ("x-amz-tagging", "z=9"), ("x-amz-tagging-directive", "REPLACE")];
        bench.ask("PUT", "/bucket/copy", &replace, b"").await.is(200);
        bench.get("/bucket/copy?tagging=").await.has(&["<Key>z<"]).has_not("<Key>a<");
        bench.ask("DELETE", "/bucket/copy?tagging=", &[], b"").await.is(204);
        bench.get("/bucket/copy?tagging=").await.is(200).has_not("<Tag>");

        let marker = bench.ask("DELETE", "/bucket/k", &[], b"").await.version();
        bench.get("/bucket/k?tagging=").await.is(404);
        bench.get(&of(&marker)).await.is(405);
        let source = format!("/bucket/k?versionId={marker}");
        let refused = bench.ask("PUT", "/bucket/copy", &[("x-amz-copy-source", &source)], b"").await;
        refused.is(400).has(&["<Code>InvalidRequest<"]);
        let class = bench.ask("PUT", "/bucket/k", &[("x-amz-storage-class", "COLDEST")], b"").await;
        class.is(400).has(&["<Code>InvalidStorageClass<"]);
    });
}

#[test]
fn deletes_under_conditions() {
    run(async {
        for versioning in [Versioning::Unversioned, Versioning::Enabled] {
            let bench = Bench::new(versioning).await;
            let delete = async |target: &str, name: &str, value: &str, status: u16| {
                let answer = bench.ask("DELETE", target, &[(name, value)], b"").await;
                let refused = if status == 412 { "<Code>PreconditionFailed<" } else { "" };
                answer.is(status).has(&[refused])
            };
            let (time, size) = ("x-amz-if-match-last-modified-time", "x-amz-if-match-size");
            let old = "Thu, 01 Jan 2015 00:00:00 GMT";
            // Nothing that is not there is of the wrong size or time, but If-Match asks for something.
            delete("/bucket/none", size, "5", 204).await;
            delete("/bucket/nothing", time, old, 204).await;
            delete("/bucket/never", "if-match", "*", 404).await;
            let stored = bench.put("k", "data").await;
            let modified = bench.get("/bucket/k").await.header("last-modified").unwrap();
            for (name, wrong) in [(size, "5"), (size, "-4"), (time, old), ("if-match", "\"0\"")] {
                delete("/bucket/k", name, wrong, 412).await;
            }
            let many = |extra: &str| format!("<Delete><Object><Key>k</Key>{extra}</Object></Delete>");
            for extra in [
                "<Size>5</Size>",
                "<LastModifiedTime>Thu, 01 Jan 2015 00:00:00 GMT</LastModifiedTime>",
                "<ETag>0</ETag>",
            ] {
                let answer = bench.ask("POST", "/bucket?delete=", &[], many(extra).as_bytes()).await.is(200);
                answer.has(&["<Error><Code>PreconditionFailed<"]);
            }
            if versioning == Versioning::Enabled {
                let version = format!("/bucket/k?versionId={}", stored.version());
                delete(&version, size, "5", 412).await;
                delete("/bucket/k", size, "4", 204).await;
                // A delete marker has no bytes, and is nothing to If-Match.
                delete("/bucket/k", size, "4", 412).await;
                delete("/bucket/k", size, "-4", 412).await;
                delete("/bucket/k", "if-match", "*", 404).await;
                delete("/bucket/k", "if-match", "\"0\"", 404).await;
                delete("/bucket/k", size, "0", 204).await;
                delete(&version, time, &modified, 204).await;
            } else {
                delete("/bucket/k", time, &modified, 204).await;
                bench.get("/bucket/k").await.is(404);
                bench.put("k", "data").await;
                bench.ask("POST", "/bucket?delete=", &[], many("<Size>4</Size>").as_bytes()).await.is(200);
                bench.get("/bucket/k").await.is(404);
            }
        }
    });
}

const PART_BYTES: usize = 5 << 20;

/// Uploads two parts with a CRC-32C each; returns the upload and the document that completes it.
async fn two_parts(bench: &Bench, kind: &str) -> (String, String) {
    let announced = [("x-amz-checksum-algorithm", "CRC32C"), ("x-amz-checksum-type", kind)];
    let created = bench.ask("POST", "/bucket/big?uploads=", &announced, b"").await.is(200);
    assert_eq!(created.header("x-amz-checksum-type").as_deref(), Some(kind));
    let upload = created.element("UploadId");
    let mut parts = String::new();
    for (number, body) in [(1, vec![7; PART_BYTES]), (2, b"123456789".to_vec())] {
        let target = format!("/bucket/big?partNumber={number}&uploadId={upload}");
        let plain = bench.ask("PUT", &target, &[], &body).await;
        plain.is(400).has(&["<Code>InvalidRequest<", "expected checksum type: crc32c"]);
        let mut hasher = quarry_object::api::ChecksumAlgorithm::Crc32c.hasher();
        hasher.update(&body);
        let sum = hasher.finish();
        let stored = bench.ask("PUT", &target, &[("x-amz-checksum-crc32c", &sum)], &body).await.is(200);
        let etag = stored.header("etag").unwrap();
        parts += &format!(
            "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag><ChecksumCRC32C>{sum}</ChecksumCRC32C></Part>"
        );
    }
    (upload, format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"))
}

#[test]
fn the_range_of_a_copied_part_is_taken_by_the_letter() {
    run(async {
        let bench = Bench::new(Versioning::Enabled).await;
        bench.put("source", "0123456789").await.is(200);
        let created = bench.ask("POST", "/bucket/big?uploads=", &[], b"").await.is(200);
        let target = format!("/bucket/big?partNumber=1&uploadId={}", created.element("UploadId"));
        let copy = async |range: &str| {
            let headers = [("x-amz-copy-source", "/bucket/source"), ("x-amz-copy-source-range", range)];
            bench.ask("PUT", &target, &headers, b"").await
        };
        copy("bytes=2-5").await.is(200).has(&["<ETag>\"81b073de9370ea873f548e31b8adc081\"<"]);
        // Other than a Range, one that is malformed is an error.
        for wrong in ["bytes=5-2", "bytes=2-", "bytes=-2", "bytes=+2-+5", "2-5", "Bytes=2-5", "bytes=0-1,3-4"]
        {
            copy(wrong).await.is(400).has(&["<Code>InvalidArgument<"]);
        }
        for beyond in ["bytes=2-10", "bytes=10-12", "bytes=2-99999999999999999999"] {
            copy(beyond).await.is(416).has(&["<Code>InvalidRange<"]);
        }
    });
}

#[test]
fn parts_are_compared_listed_and_read_one_by_one() {
    run(async {
        let bench = Bench::new(Versioning::Enabled).await;
        for kind in ["FULL_OBJECT", "COMPOSITE"] {
            let (upload, document) = two_parts(&bench, kind).await;
            let listed = bench.get("/bucket?uploads=").await.is(200);
            listed.has(&[
                "<Key>big<",
                &upload,
                "<ChecksumAlgorithm>CRC32C<",
                &format!("<ChecksumType>{kind}<"),
            ]);
            let after = format!("/bucket?key-marker=big&upload-id-marker={upload}&uploads=");
            bench.get(&after).await.is(200).has_not("<Upload>");

            let complete = format!("/bucket/big?uploadId={upload}");
            let wrong = document.replace("4waSgw==", "AAAAAA==");
            bench.ask("POST", &complete, &[], wrong.as_bytes()).await.has(&["<Code>InvalidPart<"]);
            let size = [("x-amz-mp-object-size", "5")];
            bench.ask("POST", &complete, &size, document.as_bytes()).await.has(&["<Code>InvalidRequest<"]);
            let sum = [("x-amz-checksum-crc32c", "AAAAAA==")];
            bench.ask("POST", &complete, &sum, document.as_bytes()).await.has(&["<Code>BadDigest<"]);
            let done = bench.ask("POST", &complete, &[], document.as_bytes()).await.is(200);
            let whole = done.element("ChecksumCRC32C");
            assert_eq!(whole.ends_with("-2"), kind == "COMPOSITE", "{whole}");
            let version = done.version();

            let mode = [("x-amz-checksum-mode", "ENABLED")];
            let head = bench.ask("HEAD", "/bucket/big", &mode, b"").await.is(200);
            head.has(&[&format!("x-amz-checksum-crc32c: {whole}"), &format!("x-amz-checksum-type: {kind}")])
                .has_not("x-amz-mp-parts-count");
            bench.ask("HEAD", "/bucket/big", &[], b"").await.has_not("x-amz-checksum");
            // A part has a checksum of its own, which is told where the client wants it.
            let part = bench.ask("GET", "/bucket/big?partNumber=2", &mode, b"").await.is(206);
            part.has(&["x-amz-checksum-crc32c: 4waSgw==", &format!("x-amz-checksum-type: {kind}")]);
            bench.ask("HEAD", "/bucket/big?partNumber=2", &mode, b"").await.has(&["c: 4waSgw=="]);
            let range = [("x-amz-checksum-mode", "ENABLED"), ("range", "bytes=0-3")];
            bench.ask("GET", "/bucket/big", &range, b"").await.is(206).has_not("x-amz-checksum");
            let part = bench.get(&format!("/bucket/big?partNumber=2&versionId={version}")).await.is(206);
            let part = part.has_not("x-amz-checksum");
            let range = format!("content-range: bytes {PART_BYTES}-{}/{}", PART_BYTES + 8, PART_BYTES + 9);
            let part = part.has(&["x-amz-mp-parts-count: 2", &range]);
            assert!(part.0.ends_with("\r\n\r\n123456789"));
            let head = bench.ask("HEAD", "/bucket/big?partNumber=1", &[], b"").await.is(206);
            head.has(&[&format!("content-length: {PART_BYTES}")]);
            bench.get("/bucket/big?partNumber=3").await.is(416).has(&["<Code>InvalidPartNumber<"]);
            bench.get("/bucket/big?partNumber=0").await.is(400);

            let asked = [
                ("x-amz-max-parts", "1"),
                ("x-amz-object-attributes", "Checksum,ObjectParts,ObjectSize,ETag"),
            ];
            let answer = bench.ask("GET", "/bucket/big?attributes=", &asked, b"").await.is(200);
            let answer = answer.has(&[
                "<PartsCount>2<",
                "<IsTruncated>true<",
                "<NextPartNumberMarker>1<",
                &format!("<ObjectSize>{}<", PART_BYTES + 9),
            ]);
            assert_eq!(answer.element("ChecksumCRC32C"), whole.split('-').next().unwrap());
            assert_eq!(answer.version(), version);
            assert!(answer.element("ETag").ends_with("-2"), "an ETag without quotes");
        }
        bench.put("small", "123456789").await.has(&["x-amz-checksum-crc64nvme: rosUhgp5mIg="]);
        bench.get("/bucket/small?partNumber=1").await.is(206).has_not("x-amz-mp-parts-count");
        for (algorithm, kind) in [("SHA256", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE"), ("MD4", "COMPOSITE")]
        {
            let announced = [("x-amz-checksum-algorithm", algorithm), ("x-amz-checksum-type", kind)];
            bench.ask("POST", "/bucket/big?uploads=", &announced, b"").await.is(400);
        }
    });
}
