//! Random commands, and what is compared after each.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};
use quarry_clustermap::{BlobId, BucketId, Incarnation, NodeId, WriterCounter};

use super::{Model, Object, request_of, segments_of};
use crate::BlobRef;
use crate::command::tests::{MIB, Partition, blob, blob_id};
use crate::command::{
    BlobStatus, BlobSwap, Command, Complete, CompletePart, Conditions, Content, List, Listed, Lookup, Pairs,
    Position, Put, PutPart, Refusal, Reply, STORAGE_CLASS_HEADER, Segment, StoredAttributes, SwapBlobs,
    UploadId, VersionId, Versioning,
};

const KEYS: [&str; 9] = ["a", "a/", "a/b", "a/b/c", "a/c", "a\0", "a\0b", "b", "é/1"];

#[derive(Clone, Debug)]
enum Op {
    Put {
        at: (u8, usize),
        kind: u8,
        etag: u8,
        conditions: Conditions,
        writer: u32,
    },
    Delete {
        at: (u8, usize),
        version: Which,
        writer: u32,
        conditions: Conditions,
    },
    Get {
        at: (u8, usize),
        version: Which,
        conditions: Conditions,
    },
    Tag {
        at: (u8, usize),
        version: Which,
        tags: usize,
    },
    Versioning {
        bucket: u8,
        enabled: bool,
    },
    Create {
        at: (u8, usize),
    },
    PutPart {
        upload: prop::sample::Index,
        number: u16,
        kind: u8,
        writer: u32,
    },
    Complete {
        upload: prop::sample::Index,
        numbers: Vec<u16>,
        wrong: bool,
        conditions: Conditions,
    },
    Abort {
        upload: prop::sample::Index,
    },
    List {
        bucket: u8,
        listed: Listed,
        prefix: usize,
        delimiter: Option<usize>,
        after: Option<usize>,
        position: Which,
        max: u32,
    },
    Repeat {
        which: prop::sample::Index,
    },
    Revoke {
        writer: u32,
    },
    Freed {
        which: prop::sample::Index,
    },
    Repair {
        which: prop::sample::Index,
    },
    Swap {
        at: (u8, usize),
        version: prop::sample::Index,
        which: prop::sample::Index,
        kind: u8,
        writer: u32,
    },
}

/// Which version of a key.
#[derive(Clone, Debug)]
enum Which {
    Newest,
    Null,
    Nth(prop::sample::Index),
    Unknown,
}

fn which() -> impl Strategy<Value = Which> {
    let nth = proptest::arbitrary::any::<prop::sample::Index>().prop_map(Which::Nth);
    prop_oneof![4 => Just(Which::Newest), 1 => Just(Which::Null), 4 => nth, 1 => Just(Which::Unknown)]
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let etags = prop::option::weighted(
        0.3,
        prop::sample::select(vec!["*", "e0", "e1"]).prop_map(|e| vec![e.to_owned()]),
    );
    let time = || prop::option::weighted(0.2, 4000_u64..8000);
    let size = prop::option::weighted(0.1, prop::sample::select(vec![0, 30, 5 * MIB]));
    let any = (etags.clone(), etags, time(), time(), time(), size).prop_map(
        |(if_match, if_none_match, modified, unmodified, at, if_match_size_bytes)| Conditions {
            if_match,
            if_none_match,
            if_modified_since_ms: modified,
            if_unmodified_since_ms: unmodified,
            if_match_last_modified_ms: at,
            if_match_size_bytes,
        },
    );
    prop_oneof![2 => Just(Conditions::default()), 1 => any]
}

fn listed() -> impl Strategy<Value = Listed> {
    prop::sample::select(vec![Listed::Objects, Listed::Versions, Listed::Uploads])
}

fn op() -> impl Strategy<Value = Op> {
    let at = || (0_u8..2, 0..KEYS.len());
    let index = proptest::arbitrary::any::<prop::sample::Index>;
    let prefixes = || 0..PREFIXES.len();
    prop_oneof![
        6 => (at(), 0_u8..5, 0_u8..3, conditions(), 1_u32..4)
            .prop_map(|(at, kind, etag, conditions, writer)| Op::Put { at, kind, etag, conditions, writer }),
        3 => (at(), which(), 1_u32..4, conditions())
            .prop_map(|(at, version, writer, conditions)| Op::Delete { at, version, writer, conditions }),
        2 => (at(), which(), conditions()).prop_map(|(at, version, conditions)| Op::Get { at, version, conditions }),
        1 => (at(), which(), 0_usize..3).prop_map(|(at, version, tags)| Op::Tag { at, version, tags }),
        1 => (0_u8..2, any::<bool>()).prop_map(|(bucket, enabled)| Op::Versioning { bucket, enabled }),
        2 => at().prop_map(|at| Op::Create { at }),
        6 => (index(), 1_u16..4, 0_u8..5, 1_u32..4)
            .prop_map(|(upload, number, kind, writer)| Op::PutPart { upload, number, kind, writer }),
        3 => (index(), prop::sample::subsequence(vec![1_u16, 2, 3], 0..=3), prop::bool::weighted(0.1), conditions())
            .prop_map(|(upload, numbers, wrong, conditions)| Op::Complete { upload, numbers, wrong, conditions }),
        1 => index().prop_map(|upload| Op::Abort { upload }),
        6 => (0_u8..2, listed(), prefixes(), prop::option::of(0_usize..3), prop::option::of(prefixes()), which(), 0_u32..6)
            .prop_map(|(bucket, listed, prefix, delimiter, after, position, max)| {
                Op::List { bucket, listed, prefix, delimiter, after, position, max }
            }),
        3 => index().prop_map(|which| Op::Repeat { which }),
        1 => (1_u32..4).prop_map(|writer| Op::Revoke { writer }),
        1 => index().prop_map(|which| Op::Freed { which }),
        2 => index().prop_map(|which| Op::Repair { which }),
        4 => (at(), index(), index(), 0_u8..8, 1_u32..4)
            .prop_map(|(at, version, which, kind, writer)| Op::Swap { at, version, which, kind, writer }),
    ]
}

const PREFIXES: [&str; 9] = ["", "a", "a/", "a/b", "a/b/", "a\0", "b", "é", "é/"];
const DELIMITERS: [&str; 3] = ["/", "\0", "b/"];

/// Both stores side by side.
#[derive(Default)]
struct Pair {
    partition: Partition,
    model: Model,
    sent: Vec<Command>,
    uploads: Vec<(UploadId, BucketId, String)>,
    counter: u64,
    incarnations: BTreeMap<u32, u32>,
}

impl Pair {
    fn content(&mut self, kind: u8, writer: u32) -> Content {
        let incarnation = Incarnation(*self.incarnations.get(&writer).unwrap_or(&1));
        let mut id = || {
            self.counter += 1;
            BlobId { writer: NodeId(writer), incarnation, counter: WriterCounter(self.counter) }
        };
        let blob =
            |id, size_bytes, missing_shards| BlobRef { blob: id, missing_shards, ..blob(0, size_bytes) };
        match kind {
            0 => Content::Inline { request: id(), bytes: Vec::new() },
            1 => Content::Inline { request: id(), bytes: vec![7; 30] },
            2 => Content::Blobs(vec![blob(id(), 5 * MIB, 0)]),
            3 => Content::Blobs(vec![blob(id(), 6 * MIB, 2)]),
            _ => Content::Blobs(vec![blob(id(), 5 * MIB - 1, 1), blob(id(), 9, 0)]),
        }
    }

    fn version(&self, at: &(BucketId, String), which: &Which) -> Option<VersionId> {
        match which {
            Which::Newest => None,
            Which::Null => Some(VersionId::Null),
            Which::Nth(n) if !self.model.stack(at).is_empty() => Some(n.get(self.model.stack(at)).id()),
            Which::Nth(_) | Which::Unknown => Some(VersionId::Named { version_ms: 5000, unique: [9; 16] }),
        }
    }

    fn position(&self, bucket: u8, after: &str, listed: Listed, which: &Which) -> Option<Position> {
        let at = (BucketId(u64::from(bucket)), after.to_owned());
        match (listed, self.version(&at, which)?) {
            (Listed::Versions, VersionId::Null) => {
                let has_null = self.model.stack(&at).iter().any(|object| object.is_null);
                has_null.then_some(Position::NullVersion)
            }
            (Listed::Versions, VersionId::Named { version_ms, .. }) => Some(Position::Version(version_ms)),
            (Listed::Uploads, _) => self.uploads.first().map(|(upload, ..)| Position::Upload(*upload)),
            (Listed::Objects, _) => None,
        }
    }

    /// Most swaps take one blob of a version, some all of them; some name another version, blob or size.
    fn swap(
        &mut self,
        at: (BucketId, String),
        (version, which): (prop::sample::Index, prop::sample::Index),
        (kind, writer): (u8, u32),
    ) -> Option<Command> {
        let stack = self.model.stack(&at);
        let object = (!stack.is_empty()).then(|| version.get(stack).clone())?;
        let blobs = object.segments.iter().filter_map(|segment| match segment {
            Segment::Blob(blob) => Some(*blob),
            Segment::Inline { .. } => None,
        });
        let mut blobs: Vec<BlobRef> = blobs.collect();
        if kind < 6 && !blobs.is_empty() {
            blobs = vec![*which.get(&blobs)];
        }
        let mut swaps = Vec::new();
        for from in blobs {
            let Content::Blobs(to) = self.content(2 + kind % 2, writer) else { unreachable!() };
            let size_bytes = from.size_bytes + u64::from(kind == 5);
            swaps.push(BlobSwap { from: from.blob, to: BlobRef { size_bytes, ..to[0] } });
        }
        if let Some(swap) = swaps.first_mut().filter(|_| kind == 4) {
            swap.from = blob_id(0);
        }
        let (bucket, key) = at;
        let version_ms = object.stored.last_modified_ms + u64::from(kind == 3);
        let headers = vec![(STORAGE_CLASS_HEADER.to_owned(), (kind > 0).then(|| kind.to_string()))];
        Some(Command::SwapBlobs(SwapBlobs { bucket, key, version_ms, origin: object.origin, swaps, headers }))
    }

    fn command(&mut self, op: Op) -> Option<Command> {
        let place = |(bucket, key): (u8, usize)| (BucketId(u64::from(bucket)), KEYS[key].to_owned());
        Some(match op {
            Op::Put { at, kind, etag, conditions, writer } => {
                let (bucket, key) = place(at);
                let (attributes, checksums) = (StoredAttributes::default(), Pairs::new());
                let content = self.content(kind, writer);
                let etag = format!("e{etag}");
                let tags = Pairs::new();
                Command::Put(Put { bucket, key, etag, attributes, tags, checksums, content, conditions })
            }
            Op::Delete { at, version, writer, conditions } => {
                let (bucket, key) = place(at);
                let request = request_of(&self.content(0, writer));
                let version = self.version(&(bucket, key.clone()), &version);
                Command::Delete { bucket, key, version, request, conditions }
            }
            Op::Get { at, version, conditions } => {
                let (bucket, key) = place(at);
                let version = self.version(&(bucket, key.clone()), &version);
                Command::Get(Lookup { bucket, key, version, part: None, conditions })
            }
            Op::Tag { at, version, tags } => {
                let (bucket, key) = place(at);
                let version = self.version(&(bucket, key.clone()), &version);
                let tags = (0..tags).map(|n| (n.to_string(), "v".to_owned())).collect();
                Command::SetTags { bucket, key, version, tags }
            }
            Op::Versioning { bucket, enabled } => {
                let versioning = if enabled { Versioning::Enabled } else { Versioning::Suspended };
                self.model.versioning.insert(BucketId(u64::from(bucket)), versioning);
                return None;
            }
            Op::Create { at } => {
                let (bucket, key) = place(at);
                let upload = UploadId([u8::try_from(self.uploads.len()).unwrap(); 16]);
                self.uploads.push((upload, bucket, key.clone()));
                Command::CreateUpload {
                    bucket,
                    key,
                    upload,
                    attributes: StoredAttributes::default(),
                    tags: Pairs::new(),
                    checksum: None,
                }
            }
            Op::Swap { at, version, which, kind, writer } => {
                return self.swap(place(at), (version, which), (kind, writer));
            }
            _ if self.uploads.is_empty()
                && !matches!(op, Op::List { .. } | Op::Repeat { .. } | Op::Revoke { .. }) =>
            {
                return None;
            }
            Op::PutPart { upload, number, kind, writer } => {
                let (upload, bucket, key) = upload.get(&self.uploads).clone();
                let content = self.content(kind.min(3), writer);
                let md5 = [u8::try_from(self.counter % 256).unwrap(); 16];
                Command::PutPart(PutPart {
                    bucket,
                    key,
                    upload,
                    number,
                    md5,
                    checksums: Pairs::new(),
                    content,
                })
            }
            Op::Complete { upload, numbers, wrong, conditions } => {
                let (upload, bucket, key) = upload.get(&self.uploads).clone();
                let etag = |number: &u16| {
                    let part = self.model.uploads.get(&upload).and_then(|(_, _, parts)| parts.get(number));
                    part.filter(|_| !wrong).map_or("none".to_owned(), |part| hex::encode(part.md5))
                };
                let named =
                    |number: &u16| CompletePart { number: *number, etag: etag(number), checksums: vec![] };
                let parts = numbers.iter().map(named).collect();
                Command::Complete(Complete {
                    bucket,
                    key,
                    upload,
                    parts,
                    checksums: Pairs::new(),
                    full_object: None,
                    size_bytes: None,
                    conditions,
                })
            }
            Op::Abort { upload } => {
                let (upload, bucket, key) = upload.get(&self.uploads).clone();
                Command::Abort { bucket, key, upload }
            }
            Op::List { bucket, listed, prefix, delimiter, after, position, max } => Command::List(List {
                bucket: BucketId(u64::from(bucket)),
                listed,
                after_position: after.and_then(|n| self.position(bucket, PREFIXES[n], listed, &position)),
                prefix: PREFIXES[prefix].to_owned(),
                delimiter: delimiter.map(|n| DELIMITERS[n].to_owned()),
                after: after.map(|n| PREFIXES[n].to_owned()),
                max,
            }),
            Op::Repeat { which } if !self.sent.is_empty() => which.get(&self.sent).clone(),
            Op::Repeat { .. } => return None,
            Op::Revoke { writer } => {
                let incarnation = Incarnation(*self.incarnations.entry(writer).or_insert(1));
                *self.incarnations.get_mut(&writer).unwrap() += 1;
                Command::RevokeWriter { writer: NodeId(writer), incarnation }
            }
            Op::Freed { which } => {
                let free: Vec<BlobId> = self.model.free.keys().copied().collect();
                Command::Freed { blobs: if free.is_empty() { vec![] } else { vec![*which.get(&free)] } }
            }
            Op::Repair { which } => {
                let live: Vec<BlobId> = self.model.live().into_keys().collect();
                let blob = if live.is_empty() { blob_id(0) } else { *which.get(&live) };
                Command::Repaired { blob, missing_shards: 0 }
            }
        })
    }

    fn expected(&mut self, command: &Command) -> Result<Reply, Refusal> {
        let now_ms = self.partition.now_ms;
        let model = &mut self.model;
        match command {
            Command::Put(put) => model.put(put, now_ms).map(Reply::Stored),
            Command::Delete { bucket, key, version, request, conditions } => {
                model.delete((*bucket, key.clone()), (*version, *request), conditions, now_ms)
            }
            Command::SetTags { bucket, key, version, tags } => {
                let at = (*bucket, key.clone());
                let id = model.find(&at, *version)?.id();
                let mut stack = model.objects.get_mut(&at).into_iter().flatten();
                stack.find(|object| object.id() == id).unwrap().tags.clone_from(tags);
                Ok(Reply::Tagged(model.shown(*bucket, id)))
            }
            Command::CreateUpload { bucket, key, upload, .. } => {
                model.created_ms.insert(*upload, now_ms);
                model.uploads.insert(*upload, (*bucket, key.clone(), BTreeMap::new()));
                Ok(Reply::Done)
            }
            Command::PutPart(put) => model.put_part(put, now_ms).map(Reply::Stored),
            Command::Complete(complete) => model.complete(complete, now_ms).map(Reply::Stored),
            Command::Abort { upload, .. } => model.abort(*upload).map(|()| Reply::Done),
            Command::List(list) => Ok(model.list(list)),
            Command::SwapBlobs(swap) => model.swap(swap).map(|()| Reply::Done),
            Command::RevokeWriter { writer, incarnation } => {
                model.revoked.insert(*writer, *incarnation);
                Ok(Reply::Done)
            }
            Command::Freed { blobs } => {
                model.free.retain(|blob, _| !blobs.contains(blob));
                Ok(Reply::Done)
            }
            Command::Repaired { blob, .. } => {
                model.repair(*blob);
                Ok(Reply::Done)
            }
            other => panic!("not generated: {other:?}"),
        }
    }

    fn step(&mut self, op: Op) -> Result<(), proptest::test_runner::TestCaseError> {
        let Some(command) = self.command(op) else { return Ok(()) };
        self.partition.versioning =
            command.bucket().map_or(Versioning::Enabled, |bucket| self.model.versioning(bucket));
        let reply = self.partition.run(&command);
        if let Command::Get(lookup) = &command {
            let at = (lookup.bucket, lookup.key.clone());
            let found = self.model.find(&at, lookup.version);
            let expected = found.and_then(|object| {
                self.model.check(Some(object), &lookup.conditions, false).map(|()| object)
            });
            match (reply, expected) {
                (Ok(Reply::Object { manifest, inline, version, .. }), Ok(object)) => {
                    prop_assert_eq!(
                        (manifest.segments, inline),
                        (object.segments.clone(), object.inline.clone())
                    );
                    prop_assert_eq!(&manifest.etag, &object.stored.etag);
                    prop_assert_eq!(&manifest.tags, &object.tags);
                    prop_assert_eq!(manifest.attributes.storage_class(), object.class.as_deref());
                    prop_assert_eq!(manifest.last_modified_ms, object.stored.last_modified_ms);
                    prop_assert_eq!(version, self.model.shown(lookup.bucket, object.id()));
                }
                (reply, expected) => prop_assert_eq!(reply.err(), expected.err()),
            }
            return Ok(());
        }
        prop_assert_eq!(reply, self.expected(&command), "{:?}", command);
        let repeats = matches!(command, Command::Delete { version: None, .. });
        if repeats
            || matches!(
                command,
                Command::Put(_) | Command::PutPart(_) | Command::Complete(_) | Command::SwapBlobs(_)
            )
        {
            self.sent.push(command);
        }
        self.audit()
    }

    /// Every row is accounted for.
    fn audit(&mut self) -> Result<(), proptest::test_runner::TestCaseError> {
        let model = &self.model;
        let live = model.live();
        let inline = |segments: &[Segment]| segments.iter().any(|s| matches!(s, Segment::Inline { .. }));
        let all_parts = || model.uploads.values().flat_map(|(_, _, parts)| parts.values());
        let mut owned: BTreeSet<BlobId> = live.keys().copied().collect();
        let versions = || model.objects.values().flatten();
        // A put whose first blob was swapped has its answer only.
        let own = |object: &&Object| !object.segments.iter().any(|s| matches!(s, Segment::Blob(_)));
        owned.extend(versions().filter(own).filter_map(|object| object.origin.request()));
        owned.extend(all_parts().map(|part| request_of(&part.content)));
        owned.extend(model.answers.keys());
        let degraded = live.values().filter(|blob| blob.missing_shards != 0).count();
        let expected = BTreeMap::from([
            (0x01, versions().count()),
            (0x02, versions().filter(|object| inline(&object.segments)).count()),
            (0x04, model.objects.values().filter(|stack| stack[1..].iter().any(|o| o.is_null)).count()),
            (0x05, versions().map(|object| object.part_rows).sum()),
            (0x10, model.uploads.len()),
            (0x11, all_parts().count()),
            (0x12, all_parts().filter(|part| inline(&segments_of(&part.content).0)).count()),
            (0x13, model.completed.len()),
            (0x20, owned.len()),
            (0x21, model.free.len()),
            (0x22, degraded),
            (0x23, model.revoked.len()),
            (0x30, model.completed.len() + model.answers.len()),
        ]);
        let mut found: BTreeMap<u8, usize> = expected.keys().map(|kind| (*kind, 0)).collect();
        for row in self.partition.rows.0.keys() {
            *found.entry(row[0]).or_default() += 1;
        }
        prop_assert_eq!(found, expected);
        prop_assert_eq!(self.partition.free_list(), self.model.free.values().copied().collect::<Vec<_>>());
        for blob in model.free.keys() {
            let status = self.partition.run(&Command::BlobStatus { blob: *blob });
            prop_assert_eq!(status, Ok(Reply::Blob(BlobStatus::Freed)));
        }
        for blob in live.keys() {
            let status = self.partition.run(&Command::BlobStatus { blob: *blob });
            prop_assert_eq!(status, Ok(Reply::Blob(BlobStatus::Live)));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(ops in prop::collection::vec((op(), 0_u64..40), 1..80)) {
        let mut pair = Pair::default();
        for (op, at) in ops {
            // The clock stands still and steps back at times, as it does when the primary changes.
            pair.partition.now_ms = 5000 + at * 50;
            pair.step(op)?;
        }
    }
}
