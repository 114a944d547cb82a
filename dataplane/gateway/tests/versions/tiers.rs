//! Storage classes and moves between tiers.

use std::rc::Rc;

use futures::StreamExt;
use quarry_clustermap::{BlobId, PartitionId, Tier, Versioning};
use quarry_object::api::{Conditions, ObjectStore, Selector};
use quarry_object::metadata::Metadata;
use quarry_object::repair::Budget;
use quarry_object::tier::{MoveError, MoveJob, Moved, STORAGE_CLASS_HEADER, moved_ms};
use quarry_object::writer::free_blob;
use quarry_partition::BlobRef;
use quarry_partition::command::{Command, Lookup, Manifest, Reply, Segment};

use super::support::client::run;
use super::support::real::{COLD_GROUP, RealCluster};
use super::{Bench, PART_BYTES};

const OWNER: PartitionId = PartitionId(0);
/// Stored as a blob.
const LONG: usize = 100_000;

async fn manifest(cluster: &RealCluster, key: &str) -> Manifest {
    let bucket = cluster.bucket("bucket").unwrap().id;
    match cluster.execute(OWNER, Command::Get(Lookup::newest(bucket, key))).await {
        Ok(Reply::Object { manifest, .. }) => manifest,
        other => panic!("{key}: {other:?}"),
    }
}

fn blobs(manifest: &Manifest) -> Vec<BlobRef> {
    let blob = |segment: &Segment| match segment {
        Segment::Blob(blob) => Some(*blob),
        Segment::Inline { .. } => None,
    };
    manifest.segments.iter().filter_map(blob).collect()
}

/// The tier of every blob of the newest version.
async fn tiers(cluster: &RealCluster, key: &str) -> Vec<Tier> {
    let tier = |blob: &BlobRef| if blob.pg == COLD_GROUP { Tier::Cold } else { Tier::Hot };
    blobs(&manifest(cluster, key).await).iter().map(tier).collect()
}

async fn move_to(
    bench: &Bench,
    manifest: &Manifest,
    to: Tier,
    class: Option<&str>,
) -> Result<Moved, MoveError> {
    let budget = Rc::new(Budget::new(u64::MAX));
    let bucket = bench.cluster.bucket("bucket").unwrap().id;
    let (cluster, budget) = (&bench.cluster, &budget);
    MoveJob { cluster, budget, partition: OWNER, bucket, key: "k", manifest }.run(Some(to), class).await
}

/// What the freer does.
async fn free(cluster: &Rc<RealCluster>) -> Vec<BlobId> {
    let next = Command::FreeListNext { after: None, limit: 1000 };
    let Ok(Reply::Blobs { blobs, .. }) = cluster.execute(OWNER, next).await else { panic!("no free list") };
    for blob in &blobs {
        free_blob(cluster, blob).await.unwrap();
    }
    let blobs: Vec<BlobId> = blobs.iter().map(|blob| blob.blob).collect();
    cluster.execute(OWNER, Command::Freed { blobs: blobs.clone() }).await.unwrap();
    blobs
}

#[test]
fn a_class_is_kept_shown_everywhere_and_decides_the_tier() {
    run(async {
        let bench = Bench::new(Versioning::Enabled).await;
        let body = vec![7; LONG];
        for (class, tier) in [
            ("STANDARD", Tier::Hot),
            ("REDUCED_REDUNDANCY", Tier::Hot),
            ("INTELLIGENT_TIERING", Tier::Hot),
            ("STANDARD_IA", Tier::Cold),
            ("ONEZONE_IA", Tier::Cold),
            ("GLACIER_IR", Tier::Cold),
        ] {
            let header = [(STORAGE_CLASS_HEADER, class)];
            bench.ask("PUT", "/bucket/k", &header, &body).await.is(200);
            assert_eq!(tiers(&bench.cluster, "k").await, [tier], "{class}");
            let shown = (class != "STANDARD").then(|| class.to_owned());
            for method in ["GET", "HEAD"] {
                let answer = bench.ask(method, "/bucket/k", &[], b"").await.is(200);
                assert_eq!(answer.header(STORAGE_CLASS_HEADER), shown, "{method} {class}");
            }
            let element = format!("<StorageClass>{class}<");
            for target in ["/bucket", "/bucket?list-type=2", "/bucket?versions="] {
                bench.get(target).await.is(200).has(&[&element]);
            }
            let asked = [("x-amz-object-attributes", "StorageClass")];
            bench.ask("GET", "/bucket/k?attributes=", &asked, b"").await.is(200).has(&[&element]);
            let upload =
                bench.ask("POST", "/bucket/up?uploads=", &header, b"").await.is(200).element("UploadId");
            bench.get("/bucket?uploads=").await.is(200).has(&[&element]);
            let part = format!("/bucket/up?partNumber=1&uploadId={upload}");
            bench.ask("PUT", &part, &[], &body).await.is(200);
            let parts = bench.get(&format!("/bucket/up?uploadId={upload}")).await.is(200).has(&[&element]);
            let etag = parts.element("ETag");
            let document = format!(
                "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
            );
            let target = format!("/bucket/up?uploadId={upload}");
            bench.ask("POST", &target, &[], document.as_bytes()).await.is(200);
            assert_eq!(tiers(&bench.cluster, "up").await, [tier], "a part of {class}");
            bench.ask("DELETE", "/bucket/up", &[], b"").await.is(204);
        }
        for class in ["GLACIER", "DEEP_ARCHIVE", "OUTPOSTS", "SNOW", "cold"] {
            let refused = bench.ask("PUT", "/bucket/k", &[(STORAGE_CLASS_HEADER, class)], &body).await;
            refused.is(400).has(&["<Code>InvalidStorageClass<"]);
            let refused =
                bench.ask("POST", "/bucket/k?uploads=", &[(STORAGE_CLASS_HEADER, class)], b"").await;
            refused.is(400).has(&["<Code>InvalidStorageClass<"]);
        }

        // A copy has the class that it asks for, or the default; onto itself too.
        bench.ask("PUT", "/bucket/k", &[(STORAGE_CLASS_HEADER, "STANDARD_IA")], &body).await.is(200);
        let copy = |class: &'static str| [("x-amz-copy-source", "/bucket/k"), (STORAGE_CLASS_HEADER, class)];
        bench.ask("PUT", "/bucket/copy", &copy("STANDARD")[..1], b"").await.is(200);
        assert_eq!(tiers(&bench.cluster, "copy").await, [Tier::Hot]);
        bench.ask("PUT", "/bucket/k", &copy("STANDARD"), b"").await.is(200);
        assert_eq!(tiers(&bench.cluster, "k").await, [Tier::Hot]);
        assert_eq!(bench.get("/bucket/k").await.header(STORAGE_CLASS_HEADER), None);
        bench.ask("PUT", "/bucket/k", &copy("GLACIER_IR"), b"").await.is(200);
        assert_eq!(tiers(&bench.cluster, "k").await, [Tier::Cold]);
        let small = [(STORAGE_CLASS_HEADER, "STANDARD_IA")];
        bench.ask("PUT", "/bucket/small", &small, b"x").await.is(200);
        assert_eq!(tiers(&bench.cluster, "small").await, [], "small bodies stay in the metadata");
        assert_eq!(bench.get("/bucket/small").await.header(STORAGE_CLASS_HEADER).unwrap(), "STANDARD_IA");
    });
}

/// Stores an object of two parts under `k`.
async fn two_parts(bench: &Bench) -> Vec<u8> {
    let upload = bench.ask("POST", "/bucket/k?uploads=", &[], b"").await.is(200).element("UploadId");
    let (mut parts, mut whole) = (String::new(), Vec::new());
    for (number, len) in [(1_u8, PART_BYTES), (2, LONG)] {
        let body: Vec<u8> = (0..len).map(|at| number.wrapping_mul(u8::try_from(at % 251).unwrap())).collect();
        let target = format!("/bucket/k?partNumber={number}&uploadId={upload}");
        let etag = bench.ask("PUT", &target, &[], &body).await.is(200).header("etag").unwrap();
        parts += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        whole.extend(body);
    }
    let document = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
    let target = format!("/bucket/k?uploadId={upload}");
    bench.ask("POST", &target, &[], document.as_bytes()).await.is(200);
    whole
}

#[test]
fn a_version_moves_with_all_that_it_is_while_it_is_read() {
    run(async {
        let bench = Bench::new(Versioning::Unversioned).await;
        let whole = two_parts(&bench).await;
        let before = manifest(&bench.cluster, "k").await;
        let selector = Selector::default();
        let mut reader =
            bench.store.get_object("bucket", "k", selector, Conditions::default()).await.unwrap();
        let mut read = reader.stream.next().await.unwrap().unwrap().to_vec();

        let moved = move_to(&bench, &before, Tier::Cold, Some("STANDARD_IA")).await.unwrap();
        assert_eq!(moved, Moved { blobs: 2, bytes: whole.len() as u64 });
        assert_eq!(tiers(&bench.cluster, "k").await, [Tier::Cold, Tier::Cold]);
        let after = manifest(&bench.cluster, "k").await;
        assert!(moved_ms(&after).is_some());
        let mut same = after.clone();
        same.segments.clone_from(&before.segments);
        same.attributes = before.attributes.clone();
        assert_eq!(same, before, "nothing else of the version has changed");
        let late = move_to(&bench, &before, Tier::Cold, None).await;
        assert_eq!(late, Err(MoveError::Changed), "whoever saw it before the move moves nothing");
        assert_eq!(bench.cluster.shards(), 4, "what was written in vain was freed at once");
        let old: Vec<BlobId> = blobs(&before).iter().map(|blob| blob.blob).collect();
        assert_eq!(free(&bench.cluster).await, old);

        // The reader was in the first blob, which it holds; the second one is gone from where it looked.
        bench.cluster.may_miss_shards.set(true);
        while let Some(piece) = reader.stream.next().await {
            read.extend_from_slice(&piece.unwrap());
        }
        assert!(read == whole, "what was read is not what was stored");
        let answer = bench.get("/bucket/k").await.is(200);
        assert_eq!(answer.header(STORAGE_CLASS_HEADER).unwrap(), "STANDARD_IA");
        assert_eq!(answer.header("x-quarry-moved"), None);
        assert_eq!(answer.header("etag").unwrap(), format!("\"{}\"", before.etag));

        assert_eq!(move_to(&bench, &after, Tier::Cold, None).await.unwrap(), Moved::default());
        move_to(&bench, &after, Tier::Hot, Some("STANDARD")).await.unwrap();
        assert_eq!(tiers(&bench.cluster, "k").await, [Tier::Hot, Tier::Hot]);
    });
}

#[test]
fn a_version_that_was_replaced_is_not_moved() {
    run(async {
        for versioning in [Versioning::Unversioned, Versioning::Enabled] {
            let bench = Bench::new(versioning).await;
            let body = "a".repeat(LONG);
            bench.put("k", &body).await;
            let old = manifest(&bench.cluster, "k").await;
            bench.put("k", &"b".repeat(LONG)).await;
            let moved = move_to(&bench, &old, Tier::Cold, None).await;
            // An older version still moves, and only that.
            let expected = match versioning {
                Versioning::Enabled => Ok(Moved { blobs: 1, bytes: LONG as u64 }),
                _ => Err(MoveError::Changed),
            };
            assert_eq!(moved, expected);
            assert_eq!(tiers(&bench.cluster, "k").await, [Tier::Hot]);
            assert!(bench.get("/bucket/k").await.is(200).0.ends_with("bbb"));
        }
        let bench = Bench::new(Versioning::Unversioned).await;
        bench.put("k", "inline").await;
        let inline = manifest(&bench.cluster, "k").await;
        move_to(&bench, &inline, Tier::Cold, Some("GLACIER_IR")).await.unwrap();
        assert_eq!(bench.get("/bucket/k").await.header(STORAGE_CLASS_HEADER).unwrap(), "GLACIER_IR");
        bench.ask("DELETE", "/bucket/k", &[], b"").await.is(204);
        let gone = move_to(&bench, &inline, Tier::Cold, Some("GLACIER_IR")).await;
        assert!(matches!(gone, Err(MoveError::Changed)), "{gone:?}");
    });
}
