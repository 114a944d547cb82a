//! Single promises, one test each.

use super::{BUCKET, MIB, Partition, blob, blob_id, get, put, put_part};
use crate::command::{
    ANSWER_KEPT_MS, BlobStatus, Command, Complete, CompletePart, Conditions, Content, EvaluateError, Framed,
    Refusal, Reply, Segment, StoredAttributes, UploadId,
};
use crate::{BlobRef, Row};
use quarry_clustermap::{BlobId, Incarnation, NodeId};

/// What the rows of the largest commands may take in one log entry.
const ENTRY_BYTES_MAX: usize = 1024 * 1024;
pub(super) const UPLOAD: UploadId = UploadId([5; 16]);

fn bytes_of(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.key.len() + row.value.as_ref().map_or(0, Vec::len)).sum()
}

pub(super) fn create() -> Command {
    let attributes = StoredAttributes::default();
    let (key, tags) = ("k".to_owned(), Vec::new());
    Command::CreateUpload { bucket: BUCKET, key, upload: UPLOAD, attributes, tags, checksum: None }
}

pub(super) fn complete(numbers: impl IntoIterator<Item = u16>) -> Command {
    let etag = |number: u16| hex::encode([u8::try_from(number % 251).unwrap(); 16]);
    Command::Complete(Complete {
        bucket: BUCKET,
        key: "k".to_owned(),
        upload: UPLOAD,
        parts: numbers
            .into_iter()
            .map(|number| CompletePart { number, etag: etag(number), checksums: Vec::new() })
            .collect(),
        checksums: Vec::new(),
        full_object: None,
        size_bytes: None,
        conditions: Conditions::default(),
    })
}

pub(super) fn delete(key: &str) -> Command {
    let (key, conditions) = (key.to_owned(), Conditions::default());
    Command::Delete { bucket: BUCKET, key, version: None, request: blob_id(1 << 40), conditions }
}

fn blobs(of: &[BlobRef]) -> Content {
    Content::Blobs(of.to_vec())
}

#[test]
fn ten_thousand_parts_complete_read_repair_and_delete() {
    let mut partition = Partition { now_ms: 1000, ..Partition::default() };
    partition.run(&create()).unwrap();
    for number in 1..=10_000 {
        let missing_shards = u32::from(number == 7000) << 2;
        let part = BlobRef { missing_shards, ..blob(u64::from(number), 5 * MIB) };
        partition.run(&put_part(UPLOAD, number, blobs(&[part]))).unwrap();
    }
    let command = complete(1..=10_000);
    assert_eq!(Command::decode(&command.encode()).unwrap(), command);
    let (reply, rows) = partition.evaluate(&command).unwrap();
    assert!(bytes_of(&rows) < ENTRY_BYTES_MAX, "{}", bytes_of(&rows));
    let Reply::Stored(stored) = reply else { panic!("{reply:?}") };
    assert_eq!((stored.size_bytes, stored.parts), (50_000 * MIB, 10_000));
    assert!(stored.etag.ends_with("-10000"));
    let widest = partition.rows.0.values().map(Vec::len).max().unwrap();
    assert!(widest <= 48 * 1024, "{widest}");

    let (_, rows) =
        partition.evaluate(&Command::Repaired { blob: blob_id(7000), missing_shards: 0 }).unwrap();
    assert_eq!(rows.len(), 2, "one continuation row and the degraded row");
    let reply = partition.run(&get("k")).unwrap();
    assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
    let Reply::Object { manifest, .. } = reply else { panic!("{reply:?}") };
    let expected: Vec<Segment> = (1..=10_000).map(|n| Segment::Blob(blob(n, 5 * MIB))).collect();
    assert_eq!(manifest.segments, expected);

    let (_, rows) = partition.evaluate(&delete("k")).unwrap();
    assert!(bytes_of(&rows) < ENTRY_BYTES_MAX, "{}", bytes_of(&rows));
    for n in (1..=10_000).collect::<Vec<u64>>().chunks(1000) {
        assert_eq!(partition.free_list().len(), 1000);
        partition.run(&Command::Freed { blobs: n.iter().map(|n| blob_id(*n)).collect() }).unwrap();
    }
    partition.now_ms += ANSWER_KEPT_MS;
    assert_eq!(partition.run(&Command::Expire { limit: 10 }), Ok(Reply::More(false)));
    assert_eq!(partition.rows.0.len(), 0, "nothing leaks");
}

#[test]
fn multipart_etag_and_tiny_inline_last_part() {
    let mut partition = Partition { now_ms: 1000, ..Partition::default() };
    partition.run(&create()).unwrap();
    partition.run(&put_part(UPLOAD, 1, blobs(&[blob(1, 5 * MIB)]))).unwrap();
    let tail = Content::Inline { request: blob_id(2), bytes: b"tail".to_vec() };
    partition.run(&put_part(UPLOAD, 2, tail)).unwrap();
    let stored = partition.stored(&complete([1, 2]));
    // md5(01 x 16, 02 x 16), computed with another tool.
    assert_eq!(stored.etag, "a2178117d5e9ed5f7660ab3e6719c6a2-2");
    assert_eq!(partition.stored(&complete([1, 2])), stored, "a repetition gets the first answer");
    let Ok(Reply::Object { manifest, inline, .. }) = partition.run(&get("k")) else { panic!() };
    assert_eq!(manifest.segments, [Segment::Blob(blob(1, 5 * MIB)), Segment::Inline { size_bytes: 4 }]);
    assert_eq!((manifest.size_bytes, inline), (5 * MIB + 4, vec![b"tail".to_vec()]));
    let late = put_part(UPLOAD, 3, blobs(&[blob(3, 1)]));
    assert_eq!(partition.run(&late), Err(Refusal::NoSuchUpload));
}

#[test]
fn complete_refuses_what_s3_refuses() {
    let mut partition = Partition::default();
    assert_eq!(partition.run(&complete([1])), Err(Refusal::NoSuchUpload));
    partition.run(&create()).unwrap();
    partition.run(&put_part(UPLOAD, 1, blobs(&[blob(1, 5 * MIB - 1)]))).unwrap();
    partition.run(&put_part(UPLOAD, 2, blobs(&[blob(2, 5 * MIB)]))).unwrap();
    assert_eq!(partition.run(&complete([2, 1])), Err(Refusal::InvalidPartOrder));
    assert_eq!(partition.run(&complete([2, 2])), Err(Refusal::InvalidPartOrder));
    assert_eq!(partition.run(&complete([2, 3])), Err(Refusal::InvalidPart { number: 3 }));
    assert_eq!(partition.run(&complete([1, 2])), Err(Refusal::EntityTooSmall { number: 1 }));
    assert!(matches!(partition.run(&complete([])), Err(Refusal::InvalidRequest { .. })));
    assert_eq!(partition.free_list(), []);
    partition.stored(&complete([1]));
    assert_eq!(partition.free_list(), [blob(2, 5 * MIB)], "a part left out is freed");
}

#[test]
fn a_repeated_put_takes_effect_once() {
    let mut partition = Partition { now_ms: 10, ..Partition::default() };
    let first = put("k", blobs(&[blob(1, 9)]));
    let answer = partition.stored(&first);
    assert_eq!(partition.evaluate(&first).unwrap(), (Reply::Stored(answer.clone()), Vec::new()));
    let second = partition.stored(&put("k", Content::Inline { request: blob_id(2), bytes: vec![1] }));
    assert_eq!(second.last_modified_ms, 11, "time grows per key while the clock stands still");
    assert_eq!(partition.evaluate(&first).unwrap(), (Reply::Stored(answer.clone()), Vec::new()));
    partition.run(&Command::Freed { blobs: vec![blob_id(1)] }).unwrap();
    partition.run(&delete("k")).unwrap();
    assert_eq!(partition.evaluate(&first).unwrap(), (Reply::Stored(answer), Vec::new()), "no resurrection");
    assert_eq!(partition.run(&get("k")), Err(Refusal::NoSuchKey));
    let other = put("other", blobs(&[blob(3, 1), blob(4, 1)]));
    partition.stored(&other);
    let thief = put("thief", blobs(&[blob(5, 1), blob(4, 1)]));
    assert_eq!(partition.run(&thief), Err(Refusal::BlobInUse { blob: blob_id(4) }));
}

#[test]
fn a_revoked_writer_commits_nothing() {
    let mut partition = Partition::default();
    partition.stored(&put("k", blobs(&[blob(1, 9)])));
    let status = |counter| Command::BlobStatus { blob: blob_id(counter) };
    assert_eq!(partition.run(&status(2)), Ok(Reply::Blob(BlobStatus::Unknown)));
    partition.run(&Command::RevokeWriter { writer: NodeId(1), incarnation: Incarnation(1) }).unwrap();
    assert_eq!(partition.run(&status(1)), Ok(Reply::Blob(BlobStatus::Live)));
    assert_eq!(partition.run(&status(2)), Ok(Reply::Blob(BlobStatus::Revoked)));
    let late = put("k", blobs(&[blob(2, 9)]));
    assert_eq!(partition.run(&late), Err(Refusal::WriterRevoked { blob: blob_id(2) }));
    let trusted = BlobId { writer: NodeId(2), ..blob_id(3) };
    let mixed = [BlobRef { blob: trusted, ..blob(3, 9) }, blob(2, 9)];
    assert_eq!(partition.run(&put("k", blobs(&mixed))), Err(Refusal::WriterRevoked { blob: blob_id(2) }));
    partition.stored(&put("k", blobs(&[blob(1, 9)])));
    partition.run(&delete("k")).unwrap();
    assert_eq!(partition.run(&status(1)), Ok(Reply::Blob(BlobStatus::Freed)));
}

#[test]
fn limits_are_checked() {
    let mut partition = Partition::default();
    assert_eq!(partition.run(&put(&"k".repeat(1025), blobs(&[blob(1, 1)]))), Err(Refusal::KeyTooLong));
    let zeros = "\0".repeat(1024);
    assert!(matches!(partition.run(&put(&zeros, blobs(&[blob(1, 1)]))), Err(Refusal::InvalidRequest { .. })));
    partition.stored(&put(&zeros[..980], blobs(&[blob(1, 1)])));
    let longest = partition.rows.0.keys().map(Vec::len).max().unwrap();
    assert!(longest + 3 <= 2048, "{longest} and the prefix of the index");
    let mut large = put("k", blobs(&[blob(2, 1)]));
    if let Command::Put(put) = &mut large {
        put.attributes.user.push(("a".to_owned(), "b".repeat(8192)));
    }
    assert_eq!(partition.run(&large), Err(Refusal::AttributesTooLarge));
    let body = Content::Inline { request: blob_id(2), bytes: vec![0; 512 * 1024 + 1] };
    assert!(matches!(partition.run(&put("k", body)), Err(Refusal::InvalidRequest { .. })));
    assert!(matches!(partition.run(&put("k", blobs(&[]))), Err(Refusal::InvalidRequest { .. })));
}

#[test]
fn a_damaged_row_is_an_error_not_a_panic() {
    let mut partition = Partition::default();
    partition.stored(&put("k", Content::Inline { request: blob_id(1), bytes: b"body".to_vec() }));
    let keys: Vec<Vec<u8>> = partition.rows.0.keys().cloned().collect();
    let mut damaged = 0;
    for key in keys {
        let value = partition.rows.0[&key].clone();
        partition.rows.0.get_mut(&key).unwrap().pop();
        let error = partition.evaluate(&get("k")).err();
        damaged += u32::from(matches!(error, Some(EvaluateError::Damaged { .. })));
        partition.rows.0.insert(key, value);
    }
    assert_eq!(damaged, 2, "the manifest and the body");
}

#[test]
fn flipped_bits_in_any_row_never_panic() {
    let mut original = Partition::default();
    let degraded = BlobRef { missing_shards: 1, ..blob(1, 9) };
    original.stored(&put("a", blobs(&[degraded])));
    original.stored(&put("b", blobs(&[blob(2, 9)])));
    original.run(&delete("b")).unwrap();
    original.run(&Command::RevokeWriter { writer: NodeId(1), incarnation: Incarnation(0) }).unwrap();
    original.run(&create()).unwrap();
    original.run(&put_part(UPLOAD, 1, blobs(&[blob(3, 5 * MIB)]))).unwrap();
    let commands = [
        get("a"),
        put("a", blobs(&[blob(1, 9)])),
        put("a", blobs(&[blob(9, 9)])),
        delete("a"),
        create(),
        put_part(UPLOAD, 1, blobs(&[blob(8, 5 * MIB)])),
        complete([1]),
        Command::Abort { bucket: BUCKET, key: "k".to_owned(), upload: UPLOAD },
        Command::BlobStatus { blob: blob_id(2) },
        Command::FreeListNext { after: None, limit: 10 },
        Command::Repaired { blob: blob_id(1), missing_shards: 0 },
        Command::DropBucketState { bucket: BUCKET, limit: 10 },
    ];
    let mut damaged = 0;
    for (key, value) in &original.rows.0 {
        for (at, command) in (0..value.len()).flat_map(|at| commands.iter().map(move |command| (at, command)))
        {
            let mut partition = Partition::default();
            partition.rows.0.clone_from(&original.rows.0);
            partition.rows.0.get_mut(key).unwrap()[at] ^= 1 << (at % 8);
            damaged += u32::from(matches!(partition.evaluate(command), Err(EvaluateError::Damaged { .. })));
        }
    }
    assert!(damaged > 500, "{damaged}");
}

#[test]
fn a_bucket_is_dropped_in_steps() {
    let mut partition = Partition::default();
    for n in 0..5 {
        partition.stored(&put(&format!("k{n}"), blobs(&[blob(n, 1)])));
    }
    partition.run(&create()).unwrap();
    partition.run(&put_part(UPLOAD, 1, blobs(&[blob(9, 1)]))).unwrap();
    let drop = Command::DropBucketState { bucket: BUCKET, limit: 2 };
    let mut calls = 1;
    while partition.run(&drop) == Ok(Reply::More(true)) {
        calls += 1;
    }
    assert_eq!(calls, 4);
    assert_eq!(partition.run(&Command::BucketIsEmpty { bucket: BUCKET }), Ok(Reply::Empty(true)));
    assert_eq!(partition.free_list().len(), 6);
}
