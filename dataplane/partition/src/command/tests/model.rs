//! Random commands against a store of plain maps that has the same promises, and an audit of every row: nothing is
//! lost, nothing leaks, every blob has one owner or is free.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, ProptestConfig, Strategy, prop, prop_assert_eq, prop_oneof, proptest};
use quarry_clustermap::{BlobId, BucketId, Incarnation, NodeId, WriterCounter};

use super::{MIB, Partition};
use crate::BlobRef;
use crate::command::{
    BlobStatus, Command, Complete, Conditions, Content, Entry, List, Pairs, Put, PutPart, Refusal, Reply,
    Segment, Stored, StoredAttributes, UploadId,
};

const KEYS: [&str; 9] = ["a", "a/", "a/b", "a/b/c", "a/c", "a\0", "a\0b", "b", "é/1"];

#[derive(Clone, Debug)]
struct Object {
    stored: Stored,
    request: Option<BlobId>,
    segments: Vec<Segment>,
    inline: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct ModelPart {
    md5: [u8; 16],
    last_modified_ms: u64,
    content: Content,
}

#[derive(Default)]
struct Model {
    objects: BTreeMap<(BucketId, String), Object>,
    uploads: BTreeMap<UploadId, (BucketId, String, BTreeMap<u16, ModelPart>)>,
    completed: BTreeMap<UploadId, Stored>,
    answers: BTreeMap<BlobId, u64>,
    free: BTreeMap<BlobId, BlobRef>,
    revoked: BTreeMap<NodeId, Incarnation>,
}

fn request_of(content: &Content) -> BlobId {
    match content {
        Content::Inline { request, .. } => *request,
        Content::Blobs(blobs) => blobs[0].blob,
    }
}

fn segments_of(content: &Content) -> (Vec<Segment>, Vec<Vec<u8>>) {
    match content {
        Content::Inline { bytes, .. } if bytes.is_empty() => (vec![], vec![]),
        Content::Inline { bytes, .. } => {
            (vec![Segment::Inline { size_bytes: u32::try_from(bytes.len()).unwrap() }], vec![bytes.clone()])
        }
        Content::Blobs(blobs) => (blobs.iter().copied().map(Segment::Blob).collect(), vec![]),
    }
}

fn size_of(segments: &[Segment]) -> u64 {
    segments.iter().map(Segment::size_bytes).sum()
}

fn holds(etags: &[String], object: &Object) -> bool {
    etags.contains(&"*".to_owned()) || etags.contains(&object.stored.etag)
}

impl Model {
    fn check(&self, at: &(BucketId, String), conditions: &Conditions, write: bool) -> Result<(), Refusal> {
        let Some(object) = self.objects.get(at) else {
            let fails = !write || conditions.if_match.is_some();
            return if fails { Err(Refusal::NoSuchKey) } else { Ok(()) };
        };
        let s = object.stored.last_modified_ms / 1000;
        let failed = match (&conditions.if_match, conditions.if_unmodified_since_ms) {
            (Some(etags), _) => !holds(etags, object),
            (None, Some(since)) => s > since / 1000,
            (None, None) => false,
        };
        if failed {
            return Err(Refusal::PreconditionFailed);
        }
        let same = match (&conditions.if_none_match, conditions.if_modified_since_ms) {
            (Some(etags), _) => holds(etags, object),
            (None, Some(since)) => !write && s <= since / 1000,
            (None, None) => false,
        };
        let Stored { etag, last_modified_ms, .. } = object.stored.clone();
        match (same, write) {
            (true, true) => Err(Refusal::PreconditionFailed),
            (true, false) => Err(Refusal::NotModified { etag, last_modified_ms }),
            (false, _) => Ok(()),
        }
    }

    fn free_segments(&mut self, segments: &[Segment]) {
        for segment in segments {
            if let Segment::Blob(blob) = segment {
                self.free.insert(blob.blob, *blob);
            }
        }
    }

    fn remove(&mut self, at: &(BucketId, String)) -> Option<u64> {
        let object = self.objects.remove(at)?;
        self.free_segments(&object.segments);
        if let Some(request) = object.request {
            self.answers.insert(request, object.stored.last_modified_ms);
        }
        Some(object.stored.last_modified_ms)
    }

    fn writer_check(&self, content: &Content) -> Result<(), Refusal> {
        let blobs = match content {
            Content::Inline { request, .. } => vec![*request],
            Content::Blobs(blobs) => blobs.iter().map(|blob| blob.blob).collect(),
        };
        match blobs
            .into_iter()
            .find(|blob| self.revoked.get(&blob.writer).is_some_and(|n| blob.incarnation <= *n))
        {
            Some(blob) => Err(Refusal::WriterRevoked { blob }),
            None => Ok(()),
        }
    }

    fn put(&mut self, put: &Put, now_ms: u64) -> Result<Stored, Refusal> {
        let at = (put.bucket, put.key.clone());
        let request = request_of(&put.content);
        let (segments, inline) = segments_of(&put.content);
        let mut stored =
            Stored { size_bytes: size_of(&segments), etag: put.etag.clone(), last_modified_ms: 0, parts: 0 };
        let current = self.objects.get(&at).filter(|object| object.request == Some(request));
        if let Some(ms) = current.map(|o| o.stored.last_modified_ms).or(self.answers.get(&request).copied()) {
            return Ok(Stored { last_modified_ms: ms, ..stored });
        }
        self.writer_check(&put.content)?;
        self.check(&at, &put.conditions, true)?;
        stored.last_modified_ms = now_ms.max(self.remove(&at).map_or(0, |ms| ms + 1));
        self.objects.insert(at, Object { stored: stored.clone(), request: Some(request), segments, inline });
        Ok(stored)
    }

    fn put_part(&mut self, put: &PutPart, now_ms: u64) -> Result<Stored, Refusal> {
        let known = self.uploads.get(&put.upload).filter(|(b, k, _)| (*b, k) == (put.bucket, &put.key));
        let (_, _, parts) = known.ok_or(Refusal::NoSuchUpload)?;
        let request = request_of(&put.content);
        let size_bytes = size_of(&segments_of(&put.content).0);
        let mut stored = Stored { size_bytes, etag: hex::encode(put.md5), last_modified_ms: 0, parts: 0 };
        let old = parts.get(&put.number).cloned();
        let same = old.as_ref().filter(|part| request_of(&part.content) == request);
        if let Some(ms) = same.map(|part| part.last_modified_ms).or(self.answers.get(&request).copied()) {
            return Ok(Stored { last_modified_ms: ms, ..stored });
        }
        self.writer_check(&put.content)?;
        stored.last_modified_ms = now_ms.max(old.as_ref().map_or(0, |part| part.last_modified_ms + 1));
        if let Some(old) = old {
            self.free_segments(&segments_of(&old.content).0);
            self.answers.insert(request_of(&old.content), old.last_modified_ms);
        }
        let last_modified_ms = stored.last_modified_ms;
        let part = ModelPart { md5: put.md5, last_modified_ms, content: put.content.clone() };
        self.uploads.get_mut(&put.upload).unwrap().2.insert(put.number, part);
        Ok(stored)
    }

    fn complete(&mut self, complete: &Complete, now_ms: u64) -> Result<Stored, Refusal> {
        if let Some(stored) = self.completed.get(&complete.upload) {
            return Ok(stored.clone());
        }
        let (_, _, parts) = self.uploads.get(&complete.upload).ok_or(Refusal::NoSuchUpload)?;
        let mut parts = parts.clone();
        if complete.parts.is_empty() {
            return Err(Refusal::InvalidRequest { problem: "no parts are named".to_owned() });
        }
        if complete.parts.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(Refusal::InvalidPartOrder);
        }
        let (mut chosen, mut md5s) = (Vec::new(), Vec::new());
        for (number, etag) in &complete.parts {
            let part = parts.remove(number).filter(|part| hex::encode(part.md5) == *etag);
            let part = part.ok_or(Refusal::InvalidPart { number: *number })?;
            md5s.extend(part.md5);
            chosen.push((*number, segments_of(&part.content)));
        }
        for (number, (segments, _)) in &chosen[..chosen.len() - 1] {
            if size_of(segments) < 5 * MIB {
                return Err(Refusal::EntityTooSmall { number: *number });
            }
        }
        let at = (complete.bucket, complete.key.clone());
        self.check(&at, &complete.conditions, true)?;
        let last_modified_ms = now_ms.max(self.remove(&at).map_or(0, |ms| ms + 1));
        let segments: Vec<Segment> = chosen.iter().flat_map(|(_, (segments, _))| segments.clone()).collect();
        let inline = chosen.iter().flat_map(|(_, (_, inline))| inline.clone()).collect();
        let etag = format!("{}-{}", hex::encode(<md5::Md5 as md5::Digest>::digest(&md5s)), chosen.len());
        let parts_len = u32::try_from(chosen.len()).unwrap();
        let stored = Stored { size_bytes: size_of(&segments), etag, last_modified_ms, parts: parts_len };
        for part in parts.values() {
            self.free_segments(&segments_of(&part.content).0);
        }
        self.objects.insert(at, Object { stored: stored.clone(), request: None, segments, inline });
        self.uploads.remove(&complete.upload);
        self.completed.insert(complete.upload, stored.clone());
        Ok(stored)
    }

    fn abort(&mut self, upload: UploadId) -> Result<(), Refusal> {
        let (_, _, parts) = self.uploads.remove(&upload).ok_or(Refusal::NoSuchUpload)?;
        for part in parts.values() {
            self.free_segments(&segments_of(&part.content).0);
        }
        Ok(())
    }

    /// Rolls up every key, then cuts the page out: no seeking.
    fn list(&self, list: &List) -> Reply {
        let mut all: BTreeMap<String, Entry> = BTreeMap::new();
        let delimiter = list.delimiter.clone().unwrap_or_default();
        for ((_, key), object) in self.objects.iter().filter(|((bucket, _), _)| *bucket == list.bucket) {
            let Some(rest) = key.strip_prefix(&list.prefix) else { continue };
            if list.after.as_ref().is_some_and(|after| key <= after) {
                continue;
            }
            match rest.find(&delimiter).filter(|_| !delimiter.is_empty()) {
                Some(at) => {
                    let prefix = key[..list.prefix.len() + at + delimiter.len()].to_owned();
                    if list.after.as_ref() != Some(&prefix) {
                        all.insert(prefix.clone(), Entry::Prefix(prefix));
                    }
                }
                None => {
                    all.insert(
                        key.clone(),
                        Entry::Object { key: key.clone(), stored: object.stored.clone() },
                    );
                }
            }
        }
        let max = list.max as usize;
        let truncated = max > 0 && all.len() > max;
        Reply::Page { entries: all.into_values().take(max).collect(), truncated }
    }

    fn repair(&mut self, id: BlobId) {
        let fix = |blob: &mut BlobRef| {
            if blob.blob == id {
                blob.missing_shards = 0;
            }
        };
        for segment in self.objects.values_mut().flat_map(|object| &mut object.segments) {
            if let Segment::Blob(blob) = segment {
                fix(blob);
            }
        }
        for part in self.uploads.values_mut().flat_map(|(_, _, parts)| parts.values_mut()) {
            if let Content::Blobs(blobs) = &mut part.content {
                blobs.iter_mut().for_each(fix);
            }
        }
    }

    fn live(&self) -> BTreeMap<BlobId, BlobRef> {
        let parts = self.uploads.values().flat_map(|(_, _, parts)| parts.values());
        let of_parts = parts.flat_map(|part| segments_of(&part.content).0);
        let segments = self.objects.values().flat_map(|object| object.segments.clone()).chain(of_parts);
        segments
            .filter_map(|segment| match segment {
                Segment::Blob(blob) => Some((blob.blob, blob)),
                Segment::Inline { .. } => None,
            })
            .collect()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put { at: (u8, usize), kind: u8, etag: u8, conditions: Conditions, writer: u32 },
    Delete { at: (u8, usize), conditions: Conditions },
    Get { at: (u8, usize), conditions: Conditions },
    Create { at: (u8, usize) },
    PutPart { upload: prop::sample::Index, number: u16, kind: u8, writer: u32 },
    Complete { upload: prop::sample::Index, numbers: Vec<u16>, wrong: bool, conditions: Conditions },
    Abort { upload: prop::sample::Index },
    List { bucket: u8, prefix: usize, delimiter: Option<usize>, after: Option<usize>, max: u32 },
    Repeat { which: prop::sample::Index },
    Revoke { writer: u32 },
    Freed { which: prop::sample::Index },
    Repair { which: prop::sample::Index },
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let etags = prop::option::weighted(
        0.3,
        prop::sample::select(vec!["*", "e0", "e1"]).prop_map(|e| vec![e.to_owned()]),
    );
    let time = || prop::option::weighted(0.2, 4000_u64..8000);
    let any =
        (etags.clone(), etags, time(), time()).prop_map(|(if_match, if_none_match, modified, unmodified)| {
            Conditions {
                if_match,
                if_none_match,
                if_modified_since_ms: modified,
                if_unmodified_since_ms: unmodified,
            }
        });
    prop_oneof![2 => Just(Conditions::default()), 1 => any]
}

fn op() -> impl Strategy<Value = Op> {
    let at = || (0_u8..2, 0..KEYS.len());
    let index = proptest::arbitrary::any::<prop::sample::Index>;
    let prefixes = || 0..PREFIXES.len();
    prop_oneof![
        6 => (at(), 0_u8..5, 0_u8..3, conditions(), 1_u32..4)
            .prop_map(|(at, kind, etag, conditions, writer)| Op::Put { at, kind, etag, conditions, writer }),
        2 => (at(), conditions()).prop_map(|(at, conditions)| Op::Delete { at, conditions }),
        2 => (at(), conditions()).prop_map(|(at, conditions)| Op::Get { at, conditions }),
        2 => at().prop_map(|at| Op::Create { at }),
        6 => (index(), 1_u16..4, 0_u8..5, 1_u32..4)
            .prop_map(|(upload, number, kind, writer)| Op::PutPart { upload, number, kind, writer }),
        3 => (index(), prop::sample::subsequence(vec![1_u16, 2, 3], 0..=3), prop::bool::weighted(0.1), conditions())
            .prop_map(|(upload, numbers, wrong, conditions)| Op::Complete { upload, numbers, wrong, conditions }),
        1 => index().prop_map(|upload| Op::Abort { upload }),
        4 => (0_u8..2, prefixes(), prop::option::of(0_usize..3), prop::option::of(prefixes()), 0_u32..6).prop_map(
            |(bucket, prefix, delimiter, after, max)| Op::List { bucket, prefix, delimiter, after, max }),
        3 => index().prop_map(|which| Op::Repeat { which }),
        1 => (1_u32..4).prop_map(|writer| Op::Revoke { writer }),
        1 => index().prop_map(|which| Op::Freed { which }),
        2 => index().prop_map(|which| Op::Repair { which }),
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
            |blob, size_bytes, missing_shards| BlobRef { blob, missing_shards, ..super::blob(0, size_bytes) };
        match kind {
            0 => Content::Inline { request: id(), bytes: Vec::new() },
            1 => Content::Inline { request: id(), bytes: vec![7; 30] },
            2 => Content::Blobs(vec![blob(id(), 5 * MIB, 0)]),
            3 => Content::Blobs(vec![blob(id(), 6 * MIB, 2)]),
            _ => Content::Blobs(vec![blob(id(), 5 * MIB - 1, 1), blob(id(), 9, 0)]),
        }
    }

    fn command(&mut self, op: Op) -> Option<Command> {
        let place = |(bucket, key): (u8, usize)| (BucketId(u64::from(bucket)), KEYS[key].to_owned());
        Some(match op {
            Op::Put { at, kind, etag, conditions, writer } => {
                let (bucket, key) = place(at);
                let (attributes, checksums) = (StoredAttributes::default(), Pairs::new());
                let content = self.content(kind, writer);
                let etag = format!("e{etag}");
                Command::Put(Put { bucket, key, etag, attributes, checksums, content, conditions })
            }
            Op::Delete { at, conditions } => {
                let (bucket, key) = place(at);
                Command::Delete { bucket, key, conditions }
            }
            Op::Get { at, conditions } => {
                let (bucket, key) = place(at);
                Command::Get { bucket, key, conditions }
            }
            Op::Create { at } => {
                let (bucket, key) = place(at);
                let upload = UploadId([u8::try_from(self.uploads.len()).unwrap(); 16]);
                self.uploads.push((upload, bucket, key.clone()));
                Command::CreateUpload { bucket, key, upload, attributes: StoredAttributes::default() }
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
                let parts = numbers.iter().map(|number| (*number, etag(number))).collect();
                Command::Complete(Complete {
                    bucket,
                    key,
                    upload,
                    parts,
                    checksums: Pairs::new(),
                    conditions,
                })
            }
            Op::Abort { upload } => {
                let (upload, bucket, key) = upload.get(&self.uploads).clone();
                Command::Abort { bucket, key, upload }
            }
            Op::List { bucket, prefix, delimiter, after, max } => Command::List(List {
                bucket: BucketId(u64::from(bucket)),
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
                let blob = if live.is_empty() { super::blob_id(0) } else { *which.get(&live) };
                Command::Repaired { blob, missing_shards: 0 }
            }
        })
    }

    fn expected(&mut self, command: &Command) -> Result<Reply, Refusal> {
        let now_ms = self.partition.now_ms;
        let model = &mut self.model;
        match command {
            Command::Put(put) => model.put(put, now_ms).map(Reply::Stored),
            Command::Delete { bucket, key, conditions } => {
                let at = (*bucket, key.clone());
                model.check(&at, conditions, true)?;
                model.remove(&at);
                Ok(Reply::Done)
            }
            Command::CreateUpload { bucket, key, upload, .. } => {
                model.uploads.insert(*upload, (*bucket, key.clone(), BTreeMap::new()));
                Ok(Reply::Done)
            }
            Command::PutPart(put) => model.put_part(put, now_ms).map(Reply::Stored),
            Command::Complete(complete) => model.complete(complete, now_ms).map(Reply::Stored),
            Command::Abort { upload, .. } => model.abort(*upload).map(|()| Reply::Done),
            Command::List(list) => Ok(model.list(list)),
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
        let reply = self.partition.run(&command);
        if let Command::Get { bucket, key, conditions } = &command {
            let at = (*bucket, key.clone());
            let expected = self.model.check(&at, conditions, false).map(|()| &self.model.objects[&at]);
            match (reply, expected) {
                (Ok(Reply::Object { manifest, inline }), Ok(object)) => {
                    prop_assert_eq!(
                        (manifest.segments, inline),
                        (object.segments.clone(), object.inline.clone())
                    );
                    prop_assert_eq!(&manifest.etag, &object.stored.etag);
                }
                (reply, expected) => prop_assert_eq!(reply.err(), expected.err()),
            }
            return Ok(());
        }
        prop_assert_eq!(reply, self.expected(&command), "{:?}", command);
        if matches!(command, Command::Put(_) | Command::PutPart(_) | Command::Complete(_)) {
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
        owned.extend(model.objects.values().filter_map(|object| object.request));
        owned.extend(all_parts().map(|part| request_of(&part.content)));
        owned.extend(model.answers.keys());
        let degraded = live.values().filter(|blob| blob.missing_shards != 0).count();
        let expected = BTreeMap::from([
            (0x01, model.objects.len()),
            (0x02, model.objects.values().filter(|object| inline(&object.segments)).count()),
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
