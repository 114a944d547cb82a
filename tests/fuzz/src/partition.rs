//! Frames of `quarry-partition`: log payloads and envelopes, commands and their answers, values of rows.

use bytes::Bytes;
use quarry_clustermap::{
    BlobId, BucketId, DeviceId, Epoch, ErasureProfile, Incarnation, NodeId, PartitionId, PgId, Sequence,
    WriterCounter,
};
use quarry_partition::{
    BlobRef, Entry, Envelope, FRAME_HEADER_BYTES, Message, Payload, Row,
    checksum::ChecksumAlgorithm,
    command::{
        BlobOwner, BlobSwap, Command, Complete, CompletePart, CompletedUpload, Conditions, Content, Framed,
        List, Listed, Lookup, Manifest, NullVersion, ObjectPart, Origin, Outcome, Pairs, Part, PartEntry,
        PartRange, PartRun, Position, Put, PutPart, Refusal, Reply, RevokedWriter, Segment, SegmentRun,
        Stored, StoredAttributes, SwapBlobs, Upload, UploadChecksum, UploadId, VersionId, VersionKind,
        decode_row,
    },
};

use crate::{Random, Target};

pub(crate) const PAYLOAD: Target = Target {
    name: "log-payload",
    sample: |random| payload(random).into(),
    seal: seal_frame,
    decode: |bytes| {
        let decoded = Payload::decode(bytes);
        assert_eq!(decoded.is_ok(), Payload::check(bytes).is_ok(), "both judge alike");
        decoded.is_ok_and(|payload| payload.encode().is_ok())
    },
    factor: 12,
    constant: 4 << 10,
};

pub(crate) const ENVELOPE: Target = Target {
    name: "log-envelope",
    sample: |random| envelope(random).encode().expect("a short message").into(),
    seal: seal_frame,
    decode: |bytes| {
        let frame = Bytes::copy_from_slice(bytes);
        Envelope::decode(&frame).is_ok_and(|envelope| envelope.encode().is_ok())
    },
    factor: 16,
    constant: 4 << 10,
};

pub(crate) const MESSAGE: Target = Target {
    name: "command-message",
    sample: |random| match random.below(5) {
        0..=1 => command(random).encode(),
        2 => reply(random).encode(),
        3 => refusal(random).encode(),
        _ => Outcome::Done(reply(random)).encode(),
    },
    seal: seal_frame,
    decode: |bytes| {
        same::<Command>(bytes) | same::<Reply>(bytes) | same::<Refusal>(bytes) | same::<Outcome>(bytes)
    },
    factor: 24,
    constant: 8 << 10,
};

/// A row: length of the key, key, value.
pub(crate) const ROW: Target = Target {
    name: "partition-row",
    sample: |random| {
        let (key, value) = row(random);
        let mut bytes = vec![u8::try_from(key.len()).expect("a short key")];
        bytes.extend_from_slice(&key);
        bytes.extend_from_slice(&value);
        bytes
    },
    seal: |bytes, whole| {
        let at = 1 + usize::from(whole[0]);
        if bytes.len() < at || whole.len() < at + FRAME_HEADER_BYTES {
            return;
        }
        let mut value = bytes.split_off(at);
        seal_frame(&mut value, &whole[at..]);
        bytes.append(&mut value);
    },
    decode: |bytes| {
        let Some((key_bytes, rest)) = bytes.split_first() else { return false };
        let Some((key, value)) = rest.split_at_checked(usize::from(*key_bytes)) else { return false };
        let Ok(row) = decode_row(key, value) else { return false };
        // What fsck asks of every row.
        let named = row.named_rows(key);
        let sum: u128 = row.segments().iter().map(|segment| u128::from(segment.size_bytes())).sum();
        for segment in row.segments() {
            check_segment(segment);
        }
        std::hint::black_box((named, sum, row.kind()));
        true
    },
    factor: 64,
    constant: 8 << 10,
};

/// What readers rely on when they compute with a blob.
fn check_segment(segment: &Segment) {
    if let Segment::Blob(blob) = segment {
        let ErasureProfile { data_shards, parity_shards } = blob.profile;
        assert!(
            ErasureProfile::new(data_shards, parity_shards).is_ok(),
            "a profile out of range was accepted"
        );
    }
}

fn same<T: Framed + PartialEq>(bytes: &[u8]) -> bool {
    match T::decode(bytes) {
        Ok(value) => {
            assert!(
                T::decode(&value.encode()).is_ok_and(|again| again == value),
                "decoded, encoded, decoded"
            );
            true
        }
        Err(_) => false,
    }
}

/// Every family of frames has one layout: magic, kind, version, length, checksum.
pub(crate) fn seal_frame(bytes: &mut Vec<u8>, whole: &[u8]) {
    bytes.resize(bytes.len().max(FRAME_HEADER_BYTES), 0);
    bytes[..8].copy_from_slice(&whole[..8]);
    let body = u32::try_from(bytes.len() - FRAME_HEADER_BYTES).expect("inputs are short");
    bytes[8..12].copy_from_slice(&body.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[FRAME_HEADER_BYTES..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
}

fn payload(random: &mut Random) -> Bytes {
    let rows = random
        .list(6, |random| Row { key: random.bytes(40), value: random.maybe(|random| random.bytes(200)) });
    let payload = match random.below(5) {
        0 => Payload::Noop,
        1 => Payload::Backfill(rows),
        _ => Payload::Mutations(rows),
    };
    payload.encode().expect("short rows")
}

pub(crate) fn envelope(random: &mut Random) -> Envelope {
    let (epoch, sequence) = (Epoch(random.number()), Sequence(random.any() >> 8));
    let asked_ms = random.number();
    let message = match random.below(9) {
        0 => Message::Join { epoch, base: sequence, kept_after: sequence },
        1 => Message::Commit { epoch, committed: sequence, asked_ms },
        2 => Message::Ack {
            epoch,
            flushed: sequence,
            applied: sequence,
            lease_ms: asked_ms,
            resumed: asked_ms % 2 == 1,
        },
        3 => Message::Rejected { epoch },
        4 => Message::Release { epoch, asked_ms },
        _ => {
            let payloads = random.list(5, payload);
            let entry =
                |(payload, n): (Bytes, u64)| Entry { epoch, sequence: Sequence(sequence.0 + n), payload };
            let entries = payloads.into_iter().zip(1..).map(entry).collect();
            let (previous, committed) = (sequence, sequence);
            Message::Append { epoch, previous, previous_epoch: epoch, entries, committed, asked_ms }
        }
    };
    Envelope { partition: PartitionId(3), from: DeviceId(random.any()), to: DeviceId(5), message }
}

pub(crate) fn blob_id(random: &mut Random) -> BlobId {
    BlobId { writer: NodeId(3), incarnation: Incarnation(4), counter: WriterCounter(random.any() >> 8) }
}

fn blob(random: &mut Random) -> BlobRef {
    BlobRef {
        blob: blob_id(random),
        pg: PgId(7),
        profile: ErasureProfile::new(4, 2).expect("a profile"),
        size_bytes: random.number(),
        missing_shards: 1 << random.below(6),
    }
}

fn pairs(random: &mut Random) -> Pairs {
    random.list(4, |random| (random.text(12), random.text(30)))
}

fn attributes(random: &mut Random) -> StoredAttributes {
    StoredAttributes { headers: pairs(random), user: pairs(random) }
}

fn segment(random: &mut Random) -> Segment {
    match random.below(3) {
        0 => Segment::Inline { size_bytes: u32::try_from(random.below(100)).expect("small") },
        _ => Segment::Blob(blob(random)),
    }
}

fn manifest(random: &mut Random) -> Manifest {
    let segments = random.list(6, segment);
    let sum: u128 = segments.iter().map(|segment| u128::from(segment.size_bytes())).sum();
    Manifest {
        // Sums over 64 bits occur only here; the row is refused then.
        size_bytes: u64::try_from(sum).unwrap_or(u64::MAX),
        etag: random.text(10),
        last_modified_ms: 5,
        attributes: attributes(random),
        tags: pairs(random),
        checksums: pairs(random),
        parts: 2,
        kind: VersionKind::new(random.below(2) == 0, random.below(2) == 0),
        origin: match random.below(2) {
            0 => Origin::Put(blob_id(random)),
            _ => Origin::Upload(UploadId(random.array())),
        },
        segments,
        continuation_rows: 0,
        part_rows: u32::try_from(random.below(3)).expect("small"),
    }
}

fn stored(random: &mut Random) -> Stored {
    Stored {
        size_bytes: random.number(),
        etag: random.text(20),
        last_modified_ms: random.number(),
        parts: 1,
        version: random.maybe(version),
        checksums: pairs(random),
    }
}

fn version(random: &mut Random) -> VersionId {
    match random.below(3) {
        0 => VersionId::Null,
        _ => VersionId::Named { version_ms: random.number(), unique: random.array() },
    }
}

fn checksum(random: &mut Random) -> UploadChecksum {
    let algorithm = ChecksumAlgorithm::ALL[random.below(5)];
    UploadChecksum { algorithm, full_object: random.below(2) == 0 }
}

fn lookup(random: &mut Random) -> Lookup {
    Lookup {
        bucket: BucketId(random.number()),
        key: random.text(30),
        version: random.maybe(version),
        part: random.maybe(|_| 7),
        conditions: conditions(random),
    }
}

fn conditions(random: &mut Random) -> Conditions {
    Conditions {
        if_match: random.maybe(|random| random.list(3, |random| random.text(9))),
        if_none_match: None,
        if_modified_since_ms: random.maybe(Random::number),
        if_unmodified_since_ms: None,
        if_match_last_modified_ms: random.maybe(Random::number),
        if_match_size_bytes: random.maybe(Random::number),
    }
}

fn content(random: &mut Random) -> Content {
    match random.below(2) {
        0 => Content::Inline { request: blob_id(random), bytes: random.bytes(200) },
        _ => Content::Blobs(random.list(4, blob)),
    }
}

pub(crate) fn command(random: &mut Random) -> Command {
    let (bucket, key, upload) = (BucketId(random.number()), random.text(30), UploadId(random.array()));
    match random.below(10) {
        0 => match random.below(5) {
            0 => Command::Head(lookup(random)),
            3 => Command::SwapBlobs(SwapBlobs {
                bucket,
                key,
                version_ms: random.number(),
                origin: Origin::Upload(upload),
                swaps: random.list(4, |random| BlobSwap { from: blob_id(random), to: blob(random) }),
                headers: random.list(3, |random| (random.text(9), random.maybe(|random| random.text(9)))),
            }),
            1 => Command::ObjectParts { lookup: lookup(random), after: 3, limit: 9 },
            2 => Command::SetHeader {
                bucket,
                key,
                version: random.maybe(version),
                name: random.text(9),
                value: Some(random.text(9)),
            },
            _ => Command::SetTags { bucket, key, version: random.maybe(version), tags: pairs(random) },
        },
        1 => {
            let (version, request) = (random.maybe(version), blob_id(random));
            Command::Delete { bucket, key, version, request, conditions: conditions(random) }
        }
        2 => {
            let (attributes, tags) = (attributes(random), pairs(random));
            let checksum = random.maybe(checksum);
            Command::CreateUpload { bucket, key, upload, attributes, tags, checksum }
        }
        3 => {
            let (md5, checksums, content) = (random.array(), pairs(random), content(random));
            Command::PutPart(PutPart { bucket, key, upload, number: 3, md5, checksums, content })
        }
        4 => {
            let part = |random: &mut Random| CompletePart {
                number: 1,
                etag: random.text(20),
                checksums: pairs(random),
            };
            let parts = random.list(6, part);
            let (checksums, conditions) = (pairs(random), conditions(random));
            let (full_object, size_bytes) = (random.maybe(|_| true), random.maybe(Random::number));
            Command::Complete(Complete {
                bucket,
                key,
                upload,
                parts,
                checksums,
                full_object,
                size_bytes,
                conditions,
            })
        }
        5 => {
            let (delimiter, after) =
                (random.maybe(|random| random.text(3)), random.maybe(|random| random.text(9)));
            let (listed, after_position) = match random.below(3) {
                0 => (Listed::Objects, None),
                1 => (Listed::Versions, Some(Position::Version(random.number()))),
                _ => (Listed::Uploads, Some(Position::Upload(upload))),
            };
            Command::List(List { bucket, listed, prefix: key, delimiter, after, after_position, max: 7 })
        }
        6 => Command::Freed { blobs: random.list(9, blob_id) },
        7 => Command::FreeListNext { after: random.maybe(blob_id), limit: 9 },
        _ => {
            let (etag, attributes, checksums) = (random.text(20), attributes(random), pairs(random));
            let (tags, content, conditions) = (pairs(random), content(random), conditions(random));
            Command::Put(Put { bucket, key, etag, attributes, tags, checksums, content, conditions })
        }
    }
}

fn upload(random: &mut Random) -> Upload {
    Upload {
        created_ms: random.number(),
        attributes: attributes(random),
        tags: pairs(random),
        checksum: random.maybe(checksum),
    }
}

fn part_run(random: &mut Random) -> PartRun {
    let part = |random: &mut Random| ObjectPart {
        number: 5,
        size_bytes: random.number(),
        checksum: random.bytes(32),
    };
    PartRun { parts: random.list(9, part) }
}

fn reply(random: &mut Random) -> Reply {
    match random.below(7) {
        0 => Reply::Stored(stored(random)),
        1 => Reply::Object {
            manifest: manifest(random),
            inline: random.list(3, |random| random.bytes(60)),
            version: random.maybe(version),
            part: random.maybe(|random| PartRange {
                first: random.number(),
                len: 9,
                checksum: random.bytes(32),
            }),
        },
        2 => Reply::Upload(upload(random)),
        3 => {
            let part = |random: &mut Random| PartEntry {
                number: 4,
                size_bytes: random.number(),
                md5: random.array(),
                last_modified_ms: 5,
                checksums: pairs(random),
            };
            let (parts, checksum) = (random.list(5, part), random.maybe(checksum));
            Reply::Parts { parts, truncated: true, checksum, class: random.maybe(|random| random.text(9)) }
        }
        4 => Reply::Blobs { blobs: random.list(9, blob), truncated: false },
        5 => Reply::Page {
            entries: random.list(6, |random| match random.below(3) {
                0 => quarry_partition::command::Entry::Object {
                    key: random.text(20),
                    stored: stored(random),
                    class: random.maybe(|random| random.text(9)),
                },
                1 => quarry_partition::command::Entry::Upload {
                    key: random.text(20),
                    upload: UploadId(random.array()),
                    created_ms: random.number(),
                    checksum: random.maybe(checksum),
                    class: None,
                },
                _ => quarry_partition::command::Entry::Version {
                    key: random.text(20),
                    version: version(random),
                    is_latest: random.below(2) == 0,
                    is_marker: random.below(2) == 0,
                    stored: stored(random),
                    class: None,
                },
            }),
            truncated: true,
        },
        _ => Reply::Done,
    }
}

fn refusal(random: &mut Random) -> Refusal {
    match random.below(3) {
        0 => Refusal::NotModified { etag: random.text(20), last_modified_ms: random.number() },
        1 => Refusal::BlobInUse { blob: blob_id(random) },
        _ => Refusal::InvalidRequest { problem: random.text(40) },
    }
}

/// A row of any kind that has a frame as value; the layout of keys is in `command::rows`.
fn row(random: &mut Random) -> (Vec<u8>, Vec<u8>) {
    let of_key =
        |kind: u8, rest: &[u8]| [&[kind], &7_u64.to_be_bytes()[..], b"a\0\xffb\0\x01", rest].concat();
    let (upload_id, id) = (random.array::<16>(), blob_id(random));
    match random.below(11) {
        0 | 1 => loop {
            let manifest = manifest(random);
            if manifest.size_bytes != u64::MAX {
                return (of_key(0x01, &(!5_u64).to_be_bytes()), manifest.encode());
            }
        },
        2 => {
            let key = of_key(0x03, &[&(!5_u64).to_be_bytes()[..], &2_u32.to_be_bytes()].concat());
            (key, SegmentRun { segments: random.list(9, segment) }.encode())
        }
        3 => (of_key(0x10, &upload_id), upload(random).encode()),
        4 => {
            let part = Part {
                md5: random.array(),
                last_modified_ms: random.number(),
                checksums: pairs(random),
                request: blob_id(random),
                segment: random.maybe(segment),
            };
            ([&[0x11], &upload_id[..], &[0, 3]].concat(), part.encode())
        }
        5 => {
            let (key, stored) = (random.text(20), stored(random));
            (
                [&[0x13], &upload_id[..]].concat(),
                CompletedUpload { bucket: BucketId(7), key, stored }.encode(),
            )
        }
        6 => {
            let owner = match random.below(2) {
                0 => BlobOwner::Version {
                    bucket: BucketId(7),
                    key: random.text(20),
                    version_ms: 5,
                    is_null: true,
                },
                _ => BlobOwner::Superseded { last_modified_ms: random.number(), is_null: false },
            };
            ([&[0x20], &id.to_bytes()[..]].concat(), owner.encode())
        }
        7 => {
            let blob = blob(random);
            ([&[0x21], &blob.blob.to_bytes()[..]].concat(), blob.encode())
        }
        8 => (of_key(0x04, &[]), NullVersion { version_ms: random.number() }.encode()),
        9 => {
            let key = of_key(0x05, &[&(!5_u64).to_be_bytes()[..], &2_u32.to_be_bytes()].concat());
            (key, part_run(random).encode())
        }
        _ => (vec![0x23, 0, 0, 0, 3], RevokedWriter { incarnation: Incarnation(4) }.encode()),
    }
}
