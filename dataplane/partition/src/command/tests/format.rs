//! Layout of keys and frames: order, golden bytes, damage.

use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};
use quarry_clustermap::{BlobId, BucketId, ErasureProfile, Incarnation};

use super::{BUCKET, blob, blob_id, get, put};
use crate::BlobRef;
use crate::checksum::ChecksumAlgorithm;
use crate::command::rows;
use crate::command::state::SEGMENTS_PER_ROW;
use crate::command::{
    BlobOwner, Command, CompletedUpload, Content, Framed, Manifest, NullVersion, ObjectPart, Origin, Outcome,
    PARTS_MAX, Part, PartRun, Refusal, Reply, RevokedWriter, RowProblem, Segment, SegmentRun, Stored,
    StoredAttributes, Upload, UploadChecksum, UploadId, VersionId, VersionKind, decode_row,
};
use crate::frame::{FrameError, FrameKind};

fn manifest() -> Manifest {
    Manifest {
        size_bytes: 12,
        etag: "ab".to_owned(),
        last_modified_ms: 5,
        attributes: StoredAttributes {
            headers: vec![("content-type".to_owned(), "text/plain".to_owned())],
            user: Vec::new(),
        },
        tags: vec![("a".to_owned(), "b".to_owned())],
        checksums: vec![("crc32c".to_owned(), "AAAAAA==".to_owned())],
        parts: 2,
        kind: VersionKind::Named,
        origin: Origin::Upload(UploadId([9; 16])),
        segments: vec![Segment::Blob(blob(1, 10)), Segment::Inline { size_bytes: 2 }],
        continuation_rows: 0,
        part_rows: 0,
    }
}

fn stored() -> Stored {
    let version = Some(VersionId::Named { version_ms: 2, unique: [3; 16] });
    let checksums = manifest().checksums;
    Stored { size_bytes: 1, etag: "ab".to_owned(), last_modified_ms: 2, parts: 3, version, checksums }
}

fn part() -> Part {
    Part {
        md5: [1; 16],
        last_modified_ms: 2,
        checksums: Vec::new(),
        request: blob_id(3),
        segment: Some(Segment::Inline { size_bytes: 4 }),
    }
}

/// The hex of a value, after a round trip.
fn hex_of<T: Framed + PartialEq + std::fmt::Debug>(value: &T) -> String {
    let bytes = value.encode();
    assert_eq!(&T::decode(&bytes).unwrap(), value);
    hex::encode(bytes)
}

/// A difference means that stored data can no longer be read: make a new schema version instead.
#[test]
fn persisted_values_keep_their_bytes() {
    let (bucket, key, upload) = (BUCKET, "k".to_owned(), UploadId([9; 16]));
    let values = [
        hex_of(&manifest()),
        hex_of(&SegmentRun { segments: manifest().segments }),
        hex_of(&Upload {
            created_ms: 1,
            attributes: manifest().attributes,
            tags: manifest().tags,
            checksum: Some(UploadChecksum { algorithm: ChecksumAlgorithm::Sha1, full_object: false }),
        }),
        hex_of(&part()),
        hex_of(&CompletedUpload { bucket, key: key.clone(), stored: stored() }),
        hex_of(&BlobOwner::Version { bucket, key: key.clone(), version_ms: 1, is_null: true }),
        hex_of(&BlobOwner::Part { bucket, key, upload, number: 2 }),
        hex_of(&BlobOwner::Superseded { last_modified_ms: 3, is_null: false }),
        hex_of(&blob(1, 10)),
        hex_of(&RevokedWriter { incarnation: Incarnation(4) }),
        hex_of(&PartRun { parts: vec![ObjectPart { number: 1, size_bytes: 2, checksum: vec![3] }] }),
        hex_of(&NullVersion { version_ms: 4 }),
    ];
    let golden: Vec<&str> = include_str!("golden.txt").lines().collect();
    assert_eq!(values.join("\n"), golden.join("\n"));
    assert_eq!(BlobRef::decode(&hex::decode(golden[8]).unwrap()), Ok(blob(1, 10)));
}

#[test]
fn row_keys_keep_their_bytes() {
    let id = UploadId([0xEE; 16]);
    let blob = BlobId::from_bytes([0xBB; 16]);
    let (e, b) = ("ee".repeat(16), "bb".repeat(16));
    let key = "0000000000000007 6100ff62 0001 fffffffffffffffe".replace(' ', "");
    let cases = [
        (rows::version(BUCKET, "a\0b", 1), format!("01{key}")),
        (rows::body(BUCKET, "a\0b", 1, 2), format!("02{key}00000002")),
        (rows::continuation(BUCKET, "a\0b", 1, 2), format!("03{key}00000002")),
        (rows::null_version(BUCKET, "k"), "0400000000000000076b0001".to_owned()),
        (rows::part_run(BUCKET, "a\0b", 1, 2), format!("05{key}00000002")),
        (rows::upload(BUCKET, "k", id), format!("1000000000000000076b0001{e}")),
        (rows::part(id, 3), format!("11{e}0003")),
        (rows::part_body(id, 3), format!("12{e}0003")),
        (rows::completed(id), format!("13{e}")),
        (rows::owner(blob), format!("20{b}")),
        (rows::free(blob), format!("21{b}")),
        (rows::degraded(blob), format!("22{b}")),
        (rows::revoked(quarry_clustermap::NodeId(5)), "2300000005".to_owned()),
        (rows::expiry(6, rows::OWNER, &blob.to_bytes()), format!("30000000000000000620{b}")),
    ];
    for (row, golden) in cases {
        assert_eq!(hex::encode(row), golden);
    }
}

#[test]
fn frames_of_another_type_or_version_are_told_apart() {
    let bytes = get("k").encode();
    assert!(matches!(Reply::decode(&bytes), Err(FrameError::Kind { found: 0x101, expected: 0x102 })));
    let newer = FrameKind { version: 2, ..BlobRef::FRAME }.encode(&blob(1, 1));
    assert_eq!(BlobRef::decode(&newer), Err(FrameError::Version { kind: 7, found: 2 }));
    assert_eq!(BlobRef::decode(&[]), Err(FrameError::Length { expected: 16, actual: 0 }));
    assert!(matches!(BlobRef::decode(&vec![0; 5 << 20]), Err(FrameError::TooLong { .. })));
}

/// A frame whose checksum is right, so that only the validation of the archive stands between us and its bytes.
fn sealed(frame_type: u16, archive: &[u8]) -> Vec<u8> {
    let mut bytes = b"QPRT".to_vec();
    bytes.extend_from_slice(&frame_type.to_le_bytes());
    bytes.extend_from_slice(&1_u16.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(archive.len()).unwrap().to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), archive);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(archive);
    bytes
}

fn decode_all(bytes: &[u8]) -> usize {
    [
        Manifest::decode(bytes).is_ok(),
        SegmentRun::decode(bytes).is_ok(),
        Upload::decode(bytes).is_ok(),
        Part::decode(bytes).is_ok(),
        CompletedUpload::decode(bytes).is_ok(),
        BlobOwner::decode(bytes).is_ok(),
        BlobRef::decode(bytes).is_ok(),
        RevokedWriter::decode(bytes).is_ok(),
        PartRun::decode(bytes).is_ok(),
        NullVersion::decode(bytes).is_ok(),
        Command::decode(bytes).is_ok(),
        Reply::decode(bytes).is_ok(),
        Refusal::decode(bytes).is_ok(),
        Outcome::decode(bytes).is_ok(),
    ]
    .into_iter()
    .filter(|ok| *ok)
    .count()
}

fn object(inline: Vec<Vec<u8>>) -> Reply {
    Reply::Object { manifest: manifest(), inline, version: None, part: None }
}

fn examples() -> Vec<Vec<u8>> {
    vec![
        manifest().encode(),
        SegmentRun { segments: manifest().segments }.encode(),
        part().encode(),
        put("key", Content::Blobs(vec![blob(1, 10)])).encode(),
        put("key", Content::Inline { request: blob_id(1), bytes: vec![1, 2, 3] }).encode(),
        object(vec![vec![1, 2]]).encode(),
        Refusal::NotModified { etag: "e".to_owned(), last_modified_ms: 1 }.encode(),
        Outcome::Done(Reply::Stored(stored())).encode(),
    ]
}

#[test]
fn messages_round_trip() {
    let command = put("key", Content::Blobs(vec![blob(1, 10)]));
    assert_eq!(Command::decode(&command.encode()).unwrap(), command);
    let outcome = Outcome::Done(object(vec![vec![1, 2]]));
    assert_eq!(Outcome::decode(&outcome.encode()).unwrap(), outcome);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn row_order_is_key_order(
        a in (0_u64..3, "[\u{0}\u{1}a/é\u{FF}]{0,4}", 0_u64..3),
        b in (0_u64..3, "[\u{0}\u{1}a/é\u{FF}]{0,4}", 0_u64..3),
    ) {
        let row = |(bucket, key, ms): &(u64, String, u64)| rows::version(BucketId(*bucket), key, *ms);
        let order = (a.0, a.1.as_bytes()).cmp(&(b.0, b.1.as_bytes())).then(b.2.cmp(&a.2));
        prop_assert_eq!(row(&a).cmp(&row(&b)), order);
        prop_assert_eq!(rows::parse_version(&row(&a)), Some((BucketId(a.0), a.1.clone(), a.2)));
        let (from, to) = rows::versions_below(BucketId(a.0), &a.1);
        let below = b.0 == a.0 && b.1.starts_with(&a.1);
        prop_assert_eq!(from <= row(&b) && row(&b) < to, below);
        let (from, to) = rows::versions(BucketId(a.0), &a.1);
        prop_assert_eq!(from <= row(&b) && row(&b) < to, (a.0, &a.1) == (b.0, &b.1));
    }

    #[test]
    fn random_bytes_do_not_decode_and_do_not_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        frame_type in prop::sample::select(vec![1_u16, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0x101, 0x102, 0x103, 0x104]),
    ) {
        prop_assert_eq!(decode_all(&bytes), 0);
        prop_assert!(decode_all(&sealed(frame_type, &bytes)) <= 1);
        let _ = (rows::parse_version(&bytes), rows::parse_upload(&bytes), rows::parse_part(&bytes));
        let _ = rows::parse_expiry(&bytes);
    }

    #[test]
    fn flipped_bits_are_found(which in 0_usize..8, at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut bytes = examples().swap_remove(which);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(decode_all(&bytes), 0);
        // And with a checksum that was made after the flip: anything but a panic.
        let frame_type = u16::from_le_bytes([bytes[4], bytes[5]]);
        let _ = decode_all(&sealed(frame_type, &bytes[16..]));
        let _ = decode_all(&bytes[..at]);
    }
}

/// Found by the fuzzer: fsck asks for every row that another one names, so their number must have a limit.
#[test]
fn continuation_rows_beyond_any_object_are_refused() {
    let head =
        |continuation_rows| Manifest { segments: Vec::new(), continuation_rows, ..manifest() }.encode();
    let version = rows::version(BUCKET, "k", 5);
    // What 10,000 segments take.
    let rows_max = u32::try_from(usize::from(PARTS_MAX).div_ceil(SEGMENTS_PER_ROW)).unwrap();
    let row = decode_row(&version, &head(rows_max)).unwrap();
    assert_eq!(row.named_rows(&version).len(), rows_max as usize);
    for rows in [rows_max + 1, u32::MAX] {
        assert_eq!(decode_row(&version, &head(rows)), Err(RowProblem::Mismatch));
    }
    let run = SegmentRun { segments: manifest().segments }.encode();
    let continuation = |n| rows::continuation(BUCKET, "k", 5, n);
    let row = decode_row(&continuation(rows_max - 1), &run).unwrap();
    assert_eq!(row.named_rows(&continuation(rows_max - 1)).len(), 1);
    for n in [rows_max, u32::MAX] {
        assert_eq!(decode_row(&continuation(n), &run), Err(RowProblem::Key));
    }
}

/// Found by the fuzzer: a profile is not judged by the validation of archives, and readers compute with it. Those of
/// commands are refused by evaluation.
#[test]
fn profiles_out_of_range_are_refused_in_rows_and_replies() {
    let profile = ErasureProfile { data_shards: 0, parity_shards: 2 };
    let wide = ErasureProfile { data_shards: 200, parity_shards: 200 };
    let refused = |result: Option<FrameError>| matches!(result, Some(FrameError::Rule { .. }));
    for profile in [profile, wide] {
        let bad = BlobRef { profile, ..blob(1, 10) };
        let segments = vec![Segment::Inline { size_bytes: 2 }, Segment::Blob(bad)];
        let manifest = Manifest { segments: segments.clone(), ..manifest() };
        let part = Part { segment: Some(Segment::Blob(bad)), ..part() };
        let reply =
            Reply::Object { manifest: manifest.clone(), inline: Vec::new(), version: None, part: None };
        let list = Reply::Blobs { blobs: vec![bad], truncated: false };
        assert!(refused(BlobRef::decode(&bad.encode()).err()));
        assert!(refused(Manifest::decode(&manifest.encode()).err()));
        assert!(refused(SegmentRun::decode(&SegmentRun { segments }.encode()).err()));
        assert!(refused(Part::decode(&part.encode()).err()));
        assert!(refused(Reply::decode(&list.encode()).err()));
        assert!(refused(Outcome::decode(&Outcome::Done(reply).encode()).err()));
    }
}
