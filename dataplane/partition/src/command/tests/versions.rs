//! Versions, tags and what Complete compares: single promises.

use super::scenarios::{UPLOAD, complete, create, delete};
use super::{BUCKET, MIB, Partition, blob, blob_id, get, put, put_part};
use crate::checksum::ChecksumAlgorithm;
use crate::command::{
    Command, CompletePart, Conditions, Content, Entry, List, Listed, Lookup, Refusal, Reply, UploadChecksum,
    VersionId, Versioning,
};

fn body(request: u64) -> Content {
    Content::Inline { request: blob_id(request), bytes: vec![1; 10] }
}

fn enabled() -> Partition {
    Partition { now_ms: 1000, versioning: Versioning::Enabled, ..Partition::default() }
}

fn of_version(key: &str, version: VersionId) -> Command {
    Command::Get(Lookup { version: Some(version), ..Lookup::newest(BUCKET, key) })
}

fn delete_version(key: &str, version: VersionId) -> Command {
    let (key, conditions) = (key.to_owned(), Conditions::default());
    Command::Delete { bucket: BUCKET, key, version: Some(version), request: blob_id(0), conditions }
}

fn kinds(partition: &Partition) -> String {
    partition.rows.0.keys().map(|row| format!("{:02x} ", row[0])).collect()
}

/// The rows of a bucket that never kept versions are what they were: one version and its owner, no more.
#[test]
fn an_unversioned_bucket_pays_nothing() {
    let mut partition = Partition { now_ms: 1000, ..Partition::default() };
    for request in 1..3 {
        let (_, rows) = partition.evaluate(&put("k", Content::Blobs(vec![blob(request, 9)]))).unwrap();
        if request == 1 {
            let bytes: Vec<_> = rows.iter().map(|row| row.value.as_ref().map_or(0, Vec::len)).collect();
            println!(
                "a put of one blob sets rows of {bytes:?} bytes, keys {:?}",
                rows.iter().map(|row| row.key.len()).collect::<Vec<_>>()
            );
            assert_eq!(rows.len(), 2);
        }
    }
    assert_eq!(kinds(&partition), "01 20 20 21 30 ");
    assert_eq!(partition.run(&delete("k")), Ok(Reply::Deleted { version: None, is_marker: false }));
    assert_eq!(kinds(&partition), "20 20 21 21 30 30 ");
}

#[test]
fn a_stack_of_versions_and_markers() {
    let mut partition = Partition { now_ms: 1000, ..Partition::default() };
    assert_eq!(partition.stored(&put("k", body(1))).version, None);
    partition.versioning = Versioning::Enabled;
    let second = partition.stored(&put("k", body(2))).version.unwrap();
    assert_eq!(kinds(&partition), "01 01 02 02 04 20 20 ");
    let Ok(Reply::Deleted { version: Some(marker), is_marker: true }) = partition.run(&delete("k")) else {
        panic!()
    };
    assert_eq!(
        partition.run(&delete("k")),
        Ok(Reply::Deleted { version: Some(marker), is_marker: true }),
        "repeated"
    );
    assert_eq!(partition.run(&get("k")), Err(Refusal::DeleteMarker { version: marker }));
    let refused = partition.run(&of_version("k", marker));
    assert_eq!(refused, Err(Refusal::VersionIsMarker { version: marker, last_modified_ms: 1002 }));
    assert!(partition.run(&of_version("k", second)).is_ok());
    assert!(partition.run(&of_version("k", VersionId::Null)).is_ok());
    let VersionId::Named { version_ms, .. } = second else { panic!() };
    let other = VersionId::Named { version_ms, unique: [0; 16] };
    assert_eq!(partition.run(&of_version("k", other)), Err(Refusal::NoSuchVersion));
    // Removing the marker brings the version before back; removing that, the null version.
    let removed = Reply::Deleted { version: Some(marker), is_marker: true };
    assert_eq!(partition.run(&delete_version("k", marker)), Ok(removed));
    let Ok(Reply::Object { version, .. }) = partition.run(&get("k")) else { panic!() };
    assert_eq!(version, Some(second));
    partition.run(&delete_version("k", second)).unwrap();
    let Ok(Reply::Object { version, .. }) = partition.run(&get("k")) else { panic!() };
    assert_eq!(version, Some(VersionId::Null));
    assert!(!kinds(&partition).contains("04"), "the null version is the newest");
    partition.run(&delete_version("k", VersionId::Null)).unwrap();
    assert_eq!(partition.run(&get("k")), Err(Refusal::NoSuchKey));
    assert_eq!(partition.run(&Command::BucketIsEmpty { bucket: BUCKET }), Ok(Reply::Empty(true)));
}

#[test]
fn suspended_replaces_the_null_version_wherever_it_stands() {
    let mut partition = Partition { now_ms: 1000, ..Partition::default() };
    partition.stored(&put("k", Content::Blobs(vec![blob(1, 9)])));
    partition.versioning = Versioning::Enabled;
    let kept = partition.stored(&put("k", Content::Blobs(vec![blob(2, 9)]))).version.unwrap();
    partition.versioning = Versioning::Suspended;
    assert_eq!(partition.stored(&put("k", Content::Blobs(vec![blob(3, 9)]))).version, Some(VersionId::Null));
    assert_eq!(partition.free_list(), [blob(1, 9)]);
    let Ok(Reply::Deleted { version, is_marker: true }) = partition.run(&delete("k")) else { panic!() };
    assert_eq!(version, Some(VersionId::Null));
    assert_eq!(partition.free_list(), [blob(1, 9), blob(3, 9)]);
    let Err(Refusal::VersionIsMarker { .. }) = partition.run(&of_version("k", VersionId::Null)) else {
        panic!()
    };
    assert!(partition.run(&of_version("k", kept)).is_ok());
    let list = |listed| {
        Command::List(List {
            bucket: BUCKET,
            listed,
            prefix: String::new(),
            delimiter: None,
            after: None,
            after_position: None,
            max: 10,
        })
    };
    assert_eq!(partition.run(&list(Listed::Objects)), Ok(Reply::Page { entries: vec![], truncated: false }));
    let Ok(Reply::Page { entries, .. }) = partition.run(&list(Listed::Versions)) else { panic!() };
    let shown: Vec<_> = entries
        .iter()
        .map(|entry| match entry {
            Entry::Version { version, is_latest, is_marker, .. } => (*version, *is_latest, *is_marker),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(shown, [(VersionId::Null, true, true), (kept, false, false)]);
    // A delete marker counts as absence.
    let Command::Put(mut create) = put("k", body(9)) else { panic!() };
    create.conditions.if_none_match = Some(vec!["*".to_owned()]);
    assert!(partition.run(&Command::Put(create)).is_ok());
}

#[test]
fn a_bucket_with_versions_is_dropped_in_steps() {
    let mut partition = Partition { now_ms: 1000, ..Partition::default() };
    for key in ["a", "b"] {
        partition.versioning = Versioning::Unversioned;
        partition.stored(&put(key, Content::Blobs(vec![blob(u64::from(key == "a"), 1)])));
        partition.versioning = Versioning::Enabled;
        for n in 0..3 {
            let request = 10 + n + 10 * u64::from(key == "a");
            partition.stored(&put(key, Content::Blobs(vec![blob(request, 1)])));
        }
    }
    while partition.run(&Command::DropBucketState { bucket: BUCKET, limit: 2 }) == Ok(Reply::More(true)) {}
    assert_eq!(partition.free_list().len(), 8);
    assert!(!kinds(&partition).contains("04"), "{}", kinds(&partition));
    assert_eq!(partition.run(&Command::BucketIsEmpty { bucket: BUCKET }), Ok(Reply::Empty(true)));
}

#[test]
fn a_repair_finds_a_version_that_is_not_the_newest() {
    let mut partition = enabled();
    let degraded = |n| crate::BlobRef { missing_shards: 1, ..blob(n, 5 * MIB) };
    partition.run(&create()).unwrap();
    partition.run(&put_part(UPLOAD, 1, Content::Blobs(vec![degraded(1)]))).unwrap();
    let completed = partition.stored(&complete([1])).version.unwrap();
    let second = partition.stored(&put("k", Content::Blobs(vec![degraded(2)]))).version.unwrap();
    partition.stored(&put("k", body(3)));
    for n in 1..3 {
        partition.run(&Command::Repaired { blob: blob_id(n), missing_shards: 0 }).unwrap();
    }
    for (version, n) in [(completed, 1), (second, 2)] {
        let Ok(Reply::Object { manifest, .. }) = partition.run(&of_version("k", version)) else { panic!() };
        assert_eq!(manifest.segments, [crate::command::Segment::Blob(blob(n, 5 * MIB))]);
    }
}

#[test]
fn tags_change_nothing_else() {
    let mut partition = enabled();
    let stored = partition.stored(&put("k", body(1)));
    let tags = vec![("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())];
    let set = |tags| Command::SetTags { bucket: BUCKET, key: "k".to_owned(), version: None, tags };
    let (reply, rows) = partition.evaluate(&set(tags.clone())).unwrap();
    assert_eq!((reply, rows.len()), (Reply::Tagged(stored.version), 1));
    let Ok(Reply::Object { manifest, .. }) = partition.run(&get("k")) else { panic!() };
    assert_eq!((manifest.tags, manifest.last_modified_ms), (tags.clone(), stored.last_modified_ms));
    let many = (0..11).map(|n| (format!("{n:02}"), String::new())).collect();
    let long = vec![("é".repeat(129), String::new())];
    let twice = vec![tags[0].clone(), tags[0].clone()];
    for refused in [many, long, twice] {
        assert!(matches!(partition.run(&set(refused)), Err(Refusal::InvalidRequest { .. })));
    }
}

#[test]
fn a_header_changes_nothing_else() {
    let mut partition = enabled();
    let stored = partition.stored(&put("k", body(1)));
    let Ok(Reply::Object { manifest: before, .. }) = partition.run(&get("k")) else { panic!() };
    let set = |value: Option<&str>| Command::SetHeader {
        bucket: BUCKET,
        key: "k".to_owned(),
        version: stored.version,
        name: "x".to_owned(),
        value: value.map(str::to_owned),
    };
    let (reply, rows) = partition.evaluate(&set(Some("1"))).unwrap();
    assert_eq!((reply, rows.len()), (Reply::Tagged(stored.version), 1));
    partition.run(&set(Some("2"))).unwrap();
    let Ok(Reply::Object { manifest, .. }) = partition.run(&get("k")) else { panic!() };
    let mut expected = before.attributes.clone();
    expected.headers.push(("x".to_owned(), "2".to_owned()));
    expected.headers.sort();
    assert_eq!((&manifest.attributes, manifest.last_modified_ms), (&expected, stored.last_modified_ms));
    assert_eq!(partition.evaluate(&set(Some("2"))).unwrap().1.len(), 0, "nothing to change");
    assert!(matches!(partition.run(&set(Some(&"v".repeat(1 << 20)))), Err(Refusal::AttributesTooLarge)));
    partition.run(&set(None)).unwrap();
    let Ok(Reply::Object { manifest, .. }) = partition.run(&get("k")) else { panic!() };
    assert_eq!(manifest, before);
}

fn create_with(algorithm: ChecksumAlgorithm, full_object: bool) -> Command {
    let Command::CreateUpload { bucket, key, upload, attributes, tags, .. } = create() else { panic!() };
    let checksum = Some(UploadChecksum { algorithm, full_object });
    Command::CreateUpload { bucket, key, upload, attributes, tags, checksum }
}

fn part_of(number: u16, algorithm: ChecksumAlgorithm, data: &[u8]) -> (Command, CompletePart) {
    let mut hasher = algorithm.hasher();
    hasher.update(data);
    let checksums = vec![(algorithm.name().to_owned(), hasher.finish())];
    let content = Content::Blobs(vec![blob(u64::from(number), data.len() as u64)]);
    let Command::PutPart(mut put) = put_part(UPLOAD, number, content) else { panic!() };
    put.checksums.clone_from(&checksums);
    let etag = hex::encode(put.md5);
    (Command::PutPart(put), CompletePart { number, etag, checksums })
}

#[test]
fn complete_compares_and_computes_checksums() {
    let data: Vec<u8> = (0..11 * MIB).map(|n| (n * 7 % 251) as u8).collect();
    let pieces = [&data[..5 << 20], &data[5 << 20..10 << 20], &data[10 << 20..]];
    for (algorithm, full_object) in [
        (ChecksumAlgorithm::Crc64Nvme, true),
        (ChecksumAlgorithm::Crc32, true),
        (ChecksumAlgorithm::Crc32, false),
        (ChecksumAlgorithm::Sha256, false),
    ] {
        let mut partition = enabled();
        partition.run(&create_with(algorithm, full_object)).unwrap();
        let Command::Complete(mut request) = complete([]) else { panic!() };
        // Numbers with gaps are kept.
        for (number, piece) in [2, 3, 7].into_iter().zip(pieces) {
            let (put, part) = part_of(number, algorithm, piece);
            partition.run(&put).unwrap();
            request.parts.push(part);
        }
        let other = put_part(UPLOAD, 4, Content::Blobs(vec![blob(99, 1)]));
        assert!(matches!(partition.run(&other), Err(Refusal::InvalidRequest { .. })), "no checksum");
        let wrong = |change: fn(&mut crate::command::Complete)| {
            let mut changed = request.clone();
            change(&mut changed);
            Command::Complete(changed)
        };
        let refused =
            partition.run(&wrong(|request| request.parts[1].checksums[0].1.replace_range(..1, "!")));
        assert_eq!(refused, Err(Refusal::InvalidPart { number: 3 }));
        assert!(partition.run(&wrong(|request| request.size_bytes = Some(1))).is_err());
        let mut given = request.clone();
        given.checksums = vec![(algorithm.name().to_owned(), "AAAA".to_owned())];
        assert_eq!(partition.run(&Command::Complete(given)), Err(Refusal::ChecksumMismatch { algorithm }));

        let mut hasher = algorithm.hasher();
        if full_object {
            hasher.update(&data);
        } else {
            for part in &request.parts {
                hasher.update(&crate::checksum::decode_checksum(algorithm, &part.checksums[0].1).unwrap());
            }
        }
        let expected = hasher.finish();
        request.checksums = vec![(algorithm.name().to_owned(), expected.clone())];
        request.size_bytes = Some(11 * MIB);
        let stored = partition.stored(&Command::Complete(request));
        let suffix = if full_object { "" } else { "-3" };
        assert_eq!(stored.checksums, [(algorithm.name().to_owned(), format!("{expected}{suffix}"))]);

        let lookup = Lookup { part: Some(7), ..Lookup::newest(BUCKET, "k") };
        let Ok(Reply::Object { part, .. }) = partition.run(&Command::Head(lookup.clone())) else { panic!() };
        let part = part.expect("there is a part 7");
        assert_eq!((part.first, part.len, part.checksum.len()), (10 * MIB, MIB, algorithm.len_bytes()));
        let none = Command::Get(Lookup { part: Some(1), ..lookup.clone() });
        assert_eq!(partition.run(&none), Err(Refusal::NoSuchPart { number: 1 }));
        let parts = Command::ObjectParts { lookup, after: 2, limit: 1 };
        let Ok(Reply::ObjectParts { parts, truncated, .. }) = partition.run(&parts) else { panic!() };
        assert_eq!((parts[0].number, parts[0].checksum.len(), truncated), (3, algorithm.len_bytes(), true));
    }
}
