//! Random commands against a store of plain maps that has the same promises, and an audit of every row: nothing is
//! lost, nothing leaks, every blob has one owner or is free.

mod driver;

use std::collections::BTreeMap;

use quarry_clustermap::{BlobId, BucketId, Incarnation, NodeId};

use super::MIB;
use crate::BlobRef;
use crate::command::{
    BlobSwap, Complete, CompletePart, Conditions, Content, Entry, List, Listed, Origin, Pairs, Position, Put,
    PutPart, Refusal, Reply, Segment, Stored, SwapBlobs, UploadId, VersionId, Versioning,
};

/// A version or delete marker.
#[derive(Clone, Debug)]
struct Object {
    stored: Stored,
    origin: Origin,
    is_null: bool,
    is_marker: bool,
    tags: Pairs,
    class: Option<String>,
    segments: Vec<Segment>,
    inline: Vec<Vec<u8>>,
    part_rows: usize,
}

impl Object {
    fn id(&self) -> VersionId {
        let unique = match self.origin {
            Origin::Put(request) => request.to_bytes(),
            Origin::Upload(upload) => upload.0,
        };
        match self.is_null {
            true => VersionId::Null,
            false => VersionId::Named { version_ms: self.stored.last_modified_ms, unique },
        }
    }
}

#[derive(Clone, Debug)]
struct ModelPart {
    md5: [u8; 16],
    last_modified_ms: u64,
    content: Content,
}

#[derive(Default)]
struct Model {
    /// Newest first, never empty.
    objects: BTreeMap<(BucketId, String), Vec<Object>>,
    uploads: BTreeMap<UploadId, (BucketId, String, BTreeMap<u16, ModelPart>)>,
    created_ms: BTreeMap<UploadId, u64>,
    completed: BTreeMap<UploadId, Stored>,
    /// Time of a version that is gone, and whether it was the null version.
    answers: BTreeMap<BlobId, (u64, bool)>,
    versioning: BTreeMap<BucketId, Versioning>,
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

fn plain(etag: String, size_bytes: u64, parts: usize) -> Stored {
    let (parts, checksums) = (u32::try_from(parts).unwrap(), Vec::new());
    Stored { size_bytes, etag, last_modified_ms: 0, parts, version: None, checksums }
}

fn object(
    origin: Origin,
    stored: Stored,
    tags: Pairs,
    (segments, inline): (Vec<Segment>, Vec<Vec<u8>>),
) -> Object {
    let (is_null, is_marker, class, part_rows) = (true, false, None, 0);
    Object { stored, origin, is_null, is_marker, tags, class, segments, inline, part_rows }
}

fn holds(etags: &[String], object: &Object) -> bool {
    etags.contains(&"*".to_owned()) || etags.contains(&object.stored.etag)
}

impl Model {
    fn stack(&self, at: &(BucketId, String)) -> &[Object] {
        self.objects.get(at).map_or(&[], Vec::as_slice)
    }

    fn versioning(&self, bucket: BucketId) -> Versioning {
        self.versioning.get(&bucket).copied().unwrap_or_default()
    }

    fn shown(&self, bucket: BucketId, version: VersionId) -> Option<VersionId> {
        (self.versioning(bucket) != Versioning::Unversioned).then_some(version)
    }

    /// The version that a reader gets.
    fn find(&self, at: &(BucketId, String), version: Option<VersionId>) -> Result<&Object, Refusal> {
        let stack = self.stack(at);
        let found = match version {
            None => stack.first().ok_or(Refusal::NoSuchKey)?,
            Some(id) => stack.iter().find(|object| object.id() == id).ok_or(Refusal::NoSuchVersion)?,
        };
        let (version_id, last_modified_ms) = (found.id(), found.stored.last_modified_ms);
        match (found.is_marker, version) {
            (false, _) => Ok(found),
            (true, None) => Err(Refusal::DeleteMarker { version: version_id }),
            (true, Some(_)) => Err(Refusal::VersionIsMarker { version: version_id, last_modified_ms }),
        }
    }

    fn check(&self, object: Option<&Object>, conditions: &Conditions, write: bool) -> Result<(), Refusal> {
        let Some(object) = object.filter(|object| !object.is_marker) else {
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

    fn check_delete(&self, object: Option<&Object>, conditions: &Conditions) -> Result<(), Refusal> {
        self.check(object, conditions, true)?;
        let Some(object) = object else { return Ok(()) };
        let size = if object.is_marker { 0 } else { object.stored.size_bytes };
        let fits = |condition: Option<u64>, value: u64| condition.is_none_or(|wanted| wanted == value);
        let second = conditions.if_match_last_modified_ms.map(|time| time / 1000);
        let holds =
            fits(second, object.stored.last_modified_ms / 1000) && fits(conditions.if_match_size_bytes, size);
        if holds { Ok(()) } else { Err(Refusal::PreconditionFailed) }
    }

    fn free_segments(&mut self, segments: &[Segment]) {
        for segment in segments {
            if let Segment::Blob(blob) = segment {
                self.free.insert(blob.blob, *blob);
            }
        }
    }

    /// Removes a version for good.
    fn remove(&mut self, at: &(BucketId, String), version: VersionId) -> Option<Object> {
        let stack = self.objects.get_mut(at)?;
        let object = stack.remove(stack.iter().position(|object| object.id() == version)?);
        if stack.is_empty() {
            self.objects.remove(at);
        }
        self.free_segments(&object.segments);
        if let Origin::Put(request) = object.origin {
            self.answers.insert(request, (object.stored.last_modified_ms, object.is_null));
        }
        Some(object)
    }

    /// Puts a version on the stack, in place of the null version if it is one itself; its time is made here.
    fn push(&mut self, at: (BucketId, String), now_ms: u64, mut object: Object) -> Stored {
        let newest = self.stack(&at).first().map_or(0, |newest| newest.stored.last_modified_ms + 1);
        object.stored.last_modified_ms = now_ms.max(newest);
        object.is_null = self.versioning(at.0) != Versioning::Enabled;
        if object.is_null {
            self.remove(&at, VersionId::Null);
        }
        let version = self.shown(at.0, object.id());
        let stored = Stored { version, ..object.stored.clone() };
        self.objects.entry(at).or_default().insert(0, object);
        stored
    }

    /// What a put or delete that took effect before has made of a key.
    fn done(&self, at: &(BucketId, String), request: BlobId) -> Option<(u64, bool)> {
        let made = self.stack(at).iter().find(|object| object.origin == Origin::Put(request));
        let made = made.map(|object| (object.stored.last_modified_ms, object.is_null));
        made.or(self.answers.get(&request).copied())
    }

    fn delete(
        &mut self,
        at: (BucketId, String),
        (version, request): (Option<VersionId>, BlobId),
        conditions: &Conditions,
        now_ms: u64,
    ) -> Result<Reply, Refusal> {
        if let Some(version) = version {
            let found = self.stack(&at).iter().find(|object| object.id() == version).cloned();
            self.check_delete(found.as_ref(), conditions)?;
            self.remove(&at, version);
            let is_marker = found.is_some_and(|object| object.is_marker);
            return Ok(Reply::Deleted { version: Some(version), is_marker });
        }
        let versioned = self.versioning(at.0) != Versioning::Unversioned;
        if let Some((version_ms, is_null)) = self.done(&at, request).filter(|_| versioned) {
            let named = VersionId::Named { version_ms, unique: request.to_bytes() };
            let version = Some(if is_null { VersionId::Null } else { named });
            return Ok(Reply::Deleted { version, is_marker: true });
        }
        if versioned {
            self.writer_check(&Content::Inline { request, bytes: vec![] })?;
        }
        self.check_delete(self.stack(&at).first(), conditions)?;
        if !versioned {
            self.remove(&at, VersionId::Null);
            return Ok(Reply::Deleted { version: None, is_marker: false });
        }
        let marker = Object {
            is_marker: true,
            ..object(Origin::Put(request), plain(String::new(), 0, 0), Vec::new(), (vec![], vec![]))
        };
        Ok(Reply::Deleted { version: self.push(at, now_ms, marker).version, is_marker: true })
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
        let stored = plain(put.etag.clone(), size_of(&segments), 0);
        let mut made = object(Origin::Put(request), stored, put.tags.clone(), (segments, inline));
        if let Some((ms, is_null)) = self.done(&at, request) {
            made.stored.last_modified_ms = ms;
            made.is_null = is_null;
            let version = self.shown(at.0, made.id());
            return Ok(Stored { version, ..made.stored });
        }
        self.writer_check(&put.content)?;
        self.check(self.stack(&at).first(), &put.conditions, true)?;
        Ok(self.push(at, now_ms, made))
    }

    fn put_part(&mut self, put: &PutPart, now_ms: u64) -> Result<Stored, Refusal> {
        let known = self.uploads.get(&put.upload).filter(|(b, k, _)| (*b, k) == (put.bucket, &put.key));
        let (_, _, parts) = known.ok_or(Refusal::NoSuchUpload)?;
        let request = request_of(&put.content);
        let size_bytes = size_of(&segments_of(&put.content).0);
        let mut stored = plain(hex::encode(put.md5), size_bytes, 0);
        let old = parts.get(&put.number).cloned();
        let same = old.as_ref().filter(|part| request_of(&part.content) == request);
        if let Some(ms) = same.map(|part| part.last_modified_ms).or(self.answers.get(&request).map(|a| a.0)) {
            return Ok(Stored { last_modified_ms: ms, ..stored });
        }
        self.writer_check(&put.content)?;
        stored.last_modified_ms = now_ms.max(old.as_ref().map_or(0, |part| part.last_modified_ms + 1));
        if let Some(old) = old {
            self.free_segments(&segments_of(&old.content).0);
            self.answers.insert(request_of(&old.content), (old.last_modified_ms, true));
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
        if complete.parts.windows(2).any(|pair| pair[0].number >= pair[1].number) {
            return Err(Refusal::InvalidPartOrder);
        }
        let (mut chosen, mut md5s) = (Vec::new(), Vec::new());
        for CompletePart { number, etag, .. } in &complete.parts {
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
        self.check(self.stack(&at).first(), &complete.conditions, true)?;
        let segments: Vec<Segment> = chosen.iter().flat_map(|(_, (segments, _))| segments.clone()).collect();
        let inline = chosen.iter().flat_map(|(_, (_, inline))| inline.clone()).collect();
        let etag = format!("{}-{}", hex::encode(<md5::Md5 as md5::Digest>::digest(&md5s)), chosen.len());
        let stored = plain(etag, size_of(&segments), chosen.len());
        let numbered = (1..).zip(&chosen).all(|(n, (number, _))| n == *number);
        for part in parts.values() {
            self.free_segments(&segments_of(&part.content).0);
        }
        let made = object(Origin::Upload(complete.upload), stored, vec![], (segments, inline));
        let stored = self.push(at, now_ms, Object { part_rows: usize::from(!numbered), ..made });
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

    /// Everything that a listing could name, in order.
    fn listed(&self, list: &List) -> Vec<Entry> {
        let mut all = Vec::new();
        if list.listed == Listed::Uploads {
            for (upload, (_, key, _)) in self.uploads.iter().filter(|(_, (b, ..))| *b == list.bucket) {
                let (created_ms, key) = (self.created_ms[upload], key.clone());
                all.push(Entry::Upload { key, upload: *upload, created_ms, checksum: None, class: None });
            }
            all.sort_by_key(|entry| entry.name().to_owned());
            return all;
        }
        for ((_, key), stack) in self.objects.iter().filter(|((bucket, _), _)| *bucket == list.bucket) {
            for (n, object) in stack.iter().enumerate() {
                let (key, stored) = (key.clone(), object.stored.clone());
                let (version, is_marker, class) = (object.id(), object.is_marker, object.class.clone());
                match list.listed {
                    Listed::Objects if n > 0 || is_marker => {}
                    Listed::Objects => all.push(Entry::Object { key, stored, class }),
                    _ => {
                        all.push(Entry::Version { key, version, is_latest: n == 0, is_marker, stored, class })
                    }
                }
            }
        }
        all
    }

    /// Whether a listing has passed an entry.
    fn passed(&self, list: &List, entry: &Entry) -> bool {
        let Some(after) = &list.after else { return false };
        let null = self.stack(&(list.bucket, after.clone())).iter().find(|object| object.is_null);
        let null = null.map_or(0, |object| object.stored.last_modified_ms);
        entry.name() < after.as_str()
            || entry.name() == after
                && match (list.after_position, entry.position()) {
                    (Some(Position::Version(ms)), Some(Position::Version(other))) => other >= ms,
                    (Some(Position::NullVersion), Some(Position::Version(other))) => other >= null,
                    (Some(Position::Upload(id)), Some(Position::Upload(other))) => other <= id,
                    _ => true,
                }
    }

    /// Rolls up every key, then cuts the page out: no seeking.
    fn list(&self, list: &List) -> Reply {
        let mut entries: Vec<Entry> = Vec::new();
        let delimiter = list.delimiter.clone().unwrap_or_default();
        for entry in self.listed(list) {
            let Some(rest) = entry.name().strip_prefix(&list.prefix) else { continue };
            let rolled = rest.find(&delimiter).filter(|_| !delimiter.is_empty());
            let rolled = rolled.map(|at| entry.name()[..list.prefix.len() + at + delimiter.len()].to_owned());
            if self.passed(list, &entry) || rolled.is_some() && list.after == rolled {
                continue;
            }
            let entry = rolled.map_or(entry, Entry::Prefix);
            if !(matches!(entry, Entry::Prefix(_)) && entries.last() == Some(&entry)) {
                entries.push(entry);
            }
        }
        let max = list.max as usize;
        let truncated = max > 0 && entries.len() > max;
        entries.truncate(max);
        Reply::Page { entries, truncated }
    }

    fn swap(&mut self, swap: &SwapBlobs) -> Result<(), Refusal> {
        let at = (swap.bucket, swap.key.clone());
        let same = |o: &&Object| o.stored.last_modified_ms == swap.version_ms && o.origin == swap.origin;
        let found = self.stack(&at).iter().find(same).filter(|object| !object.is_marker);
        let mut object = found.ok_or(Refusal::VersionChanged)?.clone();
        let (mut freed, mut taken) = (Vec::new(), Vec::new());
        for BlobSwap { from, to } in &swap.swaps {
            let place = |id: BlobId| {
                let has = |segment: &Segment| matches!(segment, Segment::Blob(blob) if blob.blob == id);
                object.segments.iter().position(has)
            };
            if place(to.blob).is_some() {
                continue;
            }
            let place = place(*from).ok_or(Refusal::VersionChanged)?;
            let segment = &mut object.segments[place];
            if segment.size_bytes() != to.size_bytes {
                let problem = "a blob is swapped for one of another size".to_owned();
                return Err(Refusal::InvalidRequest { problem });
            }
            self.writer_check(&Content::Blobs(vec![*to]))?;
            freed.push(std::mem::replace(segment, Segment::Blob(*to)));
            taken.push(*from);
        }
        object.class.clone_from(&swap.headers[0].1);
        self.free_segments(&freed);
        if let Some(request) = object.origin.request().filter(|request| taken.contains(request)) {
            self.answers.insert(request, (object.stored.last_modified_ms, object.is_null));
        }
        let stack = self.objects.get_mut(&at).unwrap();
        *stack.iter_mut().find(|o| o.stored.last_modified_ms == swap.version_ms).unwrap() = object;
        Ok(())
    }

    fn repair(&mut self, id: BlobId) {
        let fix = |blob: &mut BlobRef| {
            if blob.blob == id {
                blob.missing_shards = 0;
            }
        };
        for segment in self.objects.values_mut().flatten().flat_map(|object| &mut object.segments) {
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
        let segments =
            self.objects.values().flatten().flat_map(|object| object.segments.clone()).chain(of_parts);
        segments
            .filter_map(|segment| match segment {
                Segment::Blob(blob) => Some((blob.blob, blob)),
                Segment::Inline { .. } => None,
            })
            .collect()
    }
}
