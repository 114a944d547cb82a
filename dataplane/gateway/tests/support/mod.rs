//! An object layer in memory and an adapter from tokio's streams to hyper's, for tests and the example server.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary uses its own part"
)]

pub mod client;
pub mod draft;
pub mod real;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use md5::{Digest as _, Md5};
use quarry_gateway::{Domains, Gateway, GatewayOptions, Limits, ObjectOwnership, Observer, RequestRecord};
use quarry_object::api::{
    ApiError, Attributes, Body, BodyError, BucketConfig, BucketInfo, Completion, Conditions, CopyChanges,
    CopySource, Deleted, DocumentKind, ListEntry, ListPage, ListRequest, ObjectContent, ObjectHead,
    ObjectInfo, ObjectParts, ObjectStore, PartInfo, PartsPage, RangeRequest, Selector, Tags, UploadChecksum,
    VersionId, Versioning,
};
use quarry_object::objects::NEVER_COPIED;

#[derive(Clone)]
struct Stored {
    info: ObjectInfo,
    data: Bytes,
}

struct Upload {
    bucket: String,
    key: String,
    attributes: Attributes,
    parts: BTreeMap<u16, (PartInfo, Bytes)>,
}

#[derive(Default)]
struct State {
    buckets: BTreeMap<String, (BucketInfo, BTreeMap<String, Stored>)>,
    uploads: BTreeMap<String, Upload>,
}

/// Keeps everything in one map. For tests a key that begins with `fault/` misbehaves on GET, and PUT is slow on `slow/`,
/// reads nothing on `stuck/`, and forgets the bytes of `sink/`.
#[derive(Default)]
pub struct MemoryStore {
    /// Bytes of bodies that PUT has read.
    pub received_bytes: Cell<u64>,
    state: RefCell<State>,
    ticks_ms: Cell<u64>,
}

const PIECE_BYTES: usize = 128 << 10;
const PART_BYTES_MIN: u64 = 5 << 20;

impl MemoryStore {
    fn now_ms(&self) -> u64 {
        self.ticks_ms.set(self.ticks_ms.get() + 1);
        1_700_000_000_000 + self.ticks_ms.get()
    }

    fn find(&self, bucket: &str, key: &str, conditions: &Conditions) -> Result<Stored, ApiError> {
        let state = self.state.borrow();
        let (_, objects) = state.buckets.get(bucket).ok_or(ApiError::NoSuchBucket)?;
        let stored = objects.get(key).ok_or(ApiError::NoSuchKey)?;
        check(Some(&stored.info), conditions)?;
        Ok(stored.clone())
    }

    fn store(&self, bucket: &str, stored: Stored, conditions: &Conditions) -> Result<ObjectInfo, ApiError> {
        let mut state = self.state.borrow_mut();
        let (_, objects) = state.buckets.get_mut(bucket).ok_or(ApiError::NoSuchBucket)?;
        let current = objects.get(&stored.info.key).map(|stored| &stored.info);
        if conditions.if_match.is_some() && current.is_none() {
            return Err(ApiError::NoSuchKey);
        }
        check(current, conditions)?;
        let info = stored.info.clone();
        objects.insert(info.key.clone(), stored);
        Ok(info)
    }

    fn configure(&self, bucket: &str, change: impl FnOnce(&mut BucketConfig)) -> Result<(), ApiError> {
        let mut state = self.state.borrow_mut();
        let (info, _) = state.buckets.get_mut(bucket).ok_or(ApiError::NoSuchBucket)?;
        info.revision += 1;
        change(Arc::make_mut(&mut info.config));
        Ok(())
    }

    fn put_bytes(&self, key: &str, attributes: Attributes, data: Bytes) -> Stored {
        let info = ObjectInfo {
            key: key.to_owned(),
            size_bytes: data.len() as u64,
            etag: hex::encode(Md5::digest(&data)),
            last_modified_ms: self.now_ms(),
            attributes,
            checksums: BTreeMap::new(),
            parts: 0,
            version: None,
        };
        Stored { info, data }
    }

    fn add_part(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        part: PartInfo,
        data: Bytes,
    ) -> Result<PartInfo, ApiError> {
        let mut state = self.state.borrow_mut();
        let found = state.uploads.get_mut(upload).filter(|found| found.bucket == bucket && found.key == key);
        found.ok_or(ApiError::NoSuchUpload)?.parts.insert(part.number, (part.clone(), data));
        Ok(part)
    }
}

fn check(current: Option<&ObjectInfo>, conditions: &Conditions) -> Result<(), ApiError> {
    let names =
        |tags: &Vec<String>, info: &ObjectInfo| tags.iter().any(|tag| tag == "*" || *tag == info.etag);
    if let Some(tags) = &conditions.if_match
        && !current.is_some_and(|info| names(tags, info))
    {
        return Err(ApiError::PreconditionFailed);
    }
    let Some(info) = current else { return Ok(()) };
    if conditions.if_unmodified_since_ms.is_some_and(|since| info.last_modified_ms > since) {
        return Err(ApiError::PreconditionFailed);
    }
    let unchanged = conditions.if_none_match.as_ref().is_some_and(|tags| names(tags, info))
        || conditions.if_modified_since_ms.is_some_and(|since| info.last_modified_ms <= since);
    if unchanged {
        return Err(ApiError::NotModified {
            etag: info.etag.clone(),
            last_modified_ms: info.last_modified_ms,
        });
    }
    Ok(())
}

fn cut(data: &Bytes, range: Option<RangeRequest>) -> Result<(u64, Bytes), ApiError> {
    let size = data.len() as u64;
    let (first, end) = match range {
        None => return Ok((0, data.clone())),
        Some(RangeRequest::Inclusive { first, last }) => (first, size.min(last.saturating_add(1))),
        Some(RangeRequest::From { first }) => (first, size),
        Some(RangeRequest::Suffix { len }) => (size.saturating_sub(len), size),
    };
    if first >= end {
        return Err(ApiError::InvalidRange { size_bytes: size });
    }
    Ok((first, data.slice(usize::try_from(first).unwrap()..usize::try_from(end).unwrap())))
}

async fn read_all<B: Body>(mut body: B) -> Result<(Bytes, quarry_object::api::BodyDigests), ApiError> {
    let mut data = BytesMut::new();
    while let Some(piece) = body.next().await {
        data.extend_from_slice(&piece?);
    }
    assert_eq!(data.len() as u64, body.len_bytes());
    Ok((data.freeze(), body.digests()))
}

/// Reads a body as slowly as its key asks for.
struct Paced<'a, B> {
    body: B,
    key: &'a str,
    received_bytes: &'a Cell<u64>,
}

impl<B: Body> Body for Paced<'_, B> {
    fn len_bytes(&self) -> u64 {
        if self.key.starts_with("sink/") { 0 } else { self.body.len_bytes() }
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        if self.key.starts_with("stuck/") {
            std::future::pending().await
        }
        if self.key.starts_with("slow/") {
            tokio::time::sleep(Duration::from_secs(100)).await;
        }
        let mut next = self.body.next().await;
        if let Some(Ok(data)) = &mut next {
            self.received_bytes.set(self.received_bytes.get() + data.len() as u64);
            if self.key.starts_with("sink/") {
                data.clear();
            }
        }
        next
    }

    fn digests(&mut self) -> quarry_object::api::BodyDigests {
        self.body.digests()
    }
}

impl ObjectStore for MemoryStore {
    async fn create_bucket_with(
        &self,
        name: &str,
        documents: BTreeMap<DocumentKind, String>,
    ) -> Result<(), ApiError> {
        let created_ms = self.now_ms();
        let mut state = self.state.borrow_mut();
        if state.buckets.contains_key(name) {
            return Err(ApiError::BucketAlreadyOwnedByYou);
        }
        let config = Arc::new(BucketConfig { documents, ..BucketConfig::default() });
        let info = BucketInfo { name: name.to_owned(), created_ms, revision: 1, config };
        state.buckets.insert(name.to_owned(), (info, BTreeMap::new()));
        Ok(())
    }

    async fn delete_bucket(&self, name: &str) -> Result<(), ApiError> {
        let mut state = self.state.borrow_mut();
        let (_, objects) = state.buckets.get(name).ok_or(ApiError::NoSuchBucket)?;
        if !objects.is_empty() {
            return Err(ApiError::BucketNotEmpty);
        }
        state.buckets.remove(name);
        Ok(())
    }

    fn bucket(&self, name: &str) -> Result<BucketInfo, ApiError> {
        assert_ne!(name, "panics", "a panic that a test asks for");
        let state = self.state.borrow();
        state.buckets.get(name).map(|(info, _)| info.clone()).ok_or(ApiError::NoSuchBucket)
    }

    async fn set_bucket_document(
        &self,
        name: &str,
        kind: DocumentKind,
        document: Option<String>,
    ) -> Result<(), ApiError> {
        self.configure(name, |config| match document {
            Some(text) => drop(config.documents.insert(kind, text)),
            None => drop(config.documents.remove(&kind)),
        })
    }

    async fn set_versioning(&self, name: &str, versioning: Versioning) -> Result<(), ApiError> {
        self.configure(name, |config| config.versioning = versioning)
    }

    async fn list_buckets(&self) -> Result<Vec<BucketInfo>, ApiError> {
        Ok(self.state.borrow().buckets.values().map(|(info, _)| info.clone()).collect())
    }

    async fn put_object<B: Body>(
        &self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
        conditions: Conditions,
        body: B,
    ) -> Result<ObjectInfo, ApiError> {
        if !self.state.borrow().buckets.contains_key(bucket) {
            return Err(ApiError::NoSuchBucket);
        }
        let body = Paced { body, key, received_bytes: &self.received_bytes };
        let (data, digests) = read_all(body).await?;
        let mut stored = self.put_bytes(key, attributes, data);
        assert!(key.starts_with("sink/") || stored.info.etag == hex::encode(digests.md5));
        stored.info.checksums = digests.checksums;
        self.store(bucket, stored, &conditions)
    }

    async fn get_object(
        &self,
        bucket: &str,
        key: &str,
        selector: Selector,
        conditions: Conditions,
    ) -> Result<ObjectContent, ApiError> {
        let stored = self.find(bucket, key, &conditions)?;
        let (first, data) = cut(&stored.data, selector.range)?;
        let range = (first, data.len() as u64);
        let mut pieces: Vec<Result<Bytes, ApiError>> = (0..data.len())
            .step_by(PIECE_BYTES)
            .map(|at| Ok(data.slice(at..data.len().min(at + PIECE_BYTES))))
            .collect();
        match key {
            "fault/error" => {
                *pieces.last_mut().unwrap() = Err(ApiError::DataLoss { detail: "asked for".into() })
            }
            "fault/short" => drop(pieces.pop()),
            "fault/long" => pieces.push(Ok(Bytes::from_static(b"more"))),
            _ => {}
        }
        let stream = futures::stream::iter(pieces);
        let stream = if key == "fault/panic" {
            stream
                .map(|_| -> Result<Bytes, ApiError> { panic!("a panic that a test asks for") })
                .boxed_local()
        } else {
            stream.boxed_local()
        };
        Ok(ObjectContent { info: stored.info, range, part_checksum: None, stream })
    }

    async fn head_object(
        &self,
        bucket: &str,
        key: &str,
        _selector: Selector,
        conditions: Conditions,
    ) -> Result<ObjectHead, ApiError> {
        let info = self.find(bucket, key, &conditions)?.info;
        Ok(ObjectHead { info, part: None, part_checksum: None })
    }

    async fn delete_object(
        &self,
        bucket: &str,
        key: &str,
        _version: Option<VersionId>,
        conditions: Conditions,
    ) -> Result<Deleted, ApiError> {
        let mut state = self.state.borrow_mut();
        let (_, objects) = state.buckets.get_mut(bucket).ok_or(ApiError::NoSuchBucket)?;
        check(objects.get(key).map(|stored| &stored.info), &conditions)?;
        objects.remove(key);
        Ok(Deleted::default())
    }

    async fn set_tags(
        &self,
        bucket: &str,
        key: &str,
        _version: Option<VersionId>,
        tags: Tags,
    ) -> Result<Option<VersionId>, ApiError> {
        let mut state = self.state.borrow_mut();
        let (_, objects) = state.buckets.get_mut(bucket).ok_or(ApiError::NoSuchBucket)?;
        objects.get_mut(key).ok_or(ApiError::NoSuchKey)?.info.attributes.tags = tags;
        Ok(None)
    }

    async fn set_header(
        &self,
        bucket: &str,
        key: &str,
        _version: Option<VersionId>,
        (name, value): (&str, Option<String>),
    ) -> Result<Option<VersionId>, ApiError> {
        let mut state = self.state.borrow_mut();
        let (_, objects) = state.buckets.get_mut(bucket).ok_or(ApiError::NoSuchBucket)?;
        let headers = &mut objects.get_mut(key).ok_or(ApiError::NoSuchKey)?.info.attributes.headers;
        headers.remove(name);
        headers.extend(value.map(|value| (name.to_owned(), value)));
        Ok(None)
    }

    async fn object_parts(
        &self,
        bucket: &str,
        key: &str,
        _version: Option<VersionId>,
        _after: u16,
        _limit: usize,
    ) -> Result<ObjectParts, ApiError> {
        let info = self.find(bucket, key, &Conditions::default())?.info;
        Ok(ObjectParts { info, parts: Vec::new(), truncated: false })
    }

    async fn list_versions(
        &self,
        _bucket: &str,
        _request: ListRequest,
        _after: Option<VersionId>,
    ) -> Result<ListPage, ApiError> {
        Ok(ListPage::default())
    }

    async fn list_uploads(
        &self,
        _bucket: &str,
        _request: ListRequest,
        _after: Option<String>,
    ) -> Result<ListPage, ApiError> {
        Ok(ListPage::default())
    }

    async fn copy_object(
        &self,
        source: CopySource,
        bucket: &str,
        key: &str,
        changes: CopyChanges,
        conditions: Conditions,
    ) -> Result<(ObjectInfo, Option<VersionId>), ApiError> {
        let found = self.find(&source.bucket, &source.key, &source.conditions)?;
        let mut attributes = found.info.attributes;
        attributes.headers.retain(|name, _| !NEVER_COPIED.contains(&name.as_str()));
        attributes.headers.extend(changes.own_headers);
        let attributes = changes.attributes.unwrap_or(attributes);
        let mut stored = self.put_bytes(key, attributes, found.data);
        stored.info.checksums = found.info.checksums;
        Ok((self.store(bucket, stored, &conditions)?, None))
    }

    async fn list_objects(&self, bucket: &str, request: ListRequest) -> Result<ListPage, ApiError> {
        let state = self.state.borrow();
        let (_, objects) = state.buckets.get(bucket).ok_or(ApiError::NoSuchBucket)?;
        let mut page = ListPage::default();
        let delimiter = request.delimiter.unwrap_or_default();
        for (key, stored) in objects.iter().filter(|(key, _)| key.starts_with(&request.prefix)) {
            let rest = &key[request.prefix.len()..];
            let rolled = rest.find(&delimiter).filter(|_| !delimiter.is_empty());
            let name =
                rolled.map_or(key.clone(), |at| format!("{}{}{delimiter}", request.prefix, &rest[..at]));
            if request.after.as_ref().is_some_and(|after| name <= *after)
                || page.entries.last().is_some_and(|entry| entry.name() == name)
            {
                continue;
            }
            if page.entries.len() == request.max_keys {
                page.truncated = request.max_keys > 0;
                break;
            }
            page.entries.push(match rolled {
                Some(_) => ListEntry::Prefix(name),
                None => ListEntry::Object(stored.info.clone()),
            });
        }
        Ok(page)
    }

    async fn create_upload(
        &self,
        bucket: &str,
        key: &str,
        attributes: Attributes,
        _checksum: Option<UploadChecksum>,
    ) -> Result<String, ApiError> {
        let id = format!("{:032x}", self.now_ms());
        let mut state = self.state.borrow_mut();
        if !state.buckets.contains_key(bucket) {
            return Err(ApiError::NoSuchBucket);
        }
        let upload = Upload { bucket: bucket.into(), key: key.into(), attributes, parts: BTreeMap::new() };
        state.uploads.insert(id.clone(), upload);
        Ok(id)
    }

    async fn put_part<B: Body>(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        number: u16,
        body: B,
    ) -> Result<PartInfo, ApiError> {
        let (data, digests) = read_all(body).await?;
        let part = PartInfo {
            number,
            size_bytes: data.len() as u64,
            etag: hex::encode(digests.md5),
            last_modified_ms: self.now_ms(),
            checksums: digests.checksums,
        };
        self.add_part(bucket, key, upload, part, data)
    }

    async fn copy_part(
        &self,
        source: CopySource,
        bucket: &str,
        key: &str,
        upload: &str,
        number: u16,
    ) -> Result<(PartInfo, Option<VersionId>), ApiError> {
        let found = self.find(&source.bucket, &source.key, &source.conditions)?;
        let (_, data) = cut(&found.data, source.range)?;
        let part = PartInfo {
            number,
            size_bytes: data.len() as u64,
            etag: hex::encode(Md5::digest(&data)),
            last_modified_ms: self.now_ms(),
            checksums: BTreeMap::new(),
        };
        Ok((self.add_part(bucket, key, upload, part, data)?, None))
    }

    async fn list_parts(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        after: u16,
        limit: usize,
    ) -> Result<PartsPage, ApiError> {
        let state = self.state.borrow();
        let found = state.uploads.get(upload).filter(|found| found.bucket == bucket && found.key == key);
        let parts = &found.ok_or(ApiError::NoSuchUpload)?.parts;
        let later: Vec<PartInfo> = parts.range(after + 1..).map(|(_, (part, _))| part.clone()).collect();
        let truncated = later.len() > limit;
        Ok(PartsPage {
            parts: later.into_iter().take(limit).collect(),
            truncated,
            checksum: None,
            class: None,
        })
    }

    async fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        completion: Completion,
        conditions: Conditions,
    ) -> Result<ObjectInfo, ApiError> {
        let parts = completion.parts;
        let (data, digests, attributes) = {
            let state = self.state.borrow();
            let found = state.uploads.get(upload).ok_or(ApiError::NoSuchUpload)?;
            let (mut data, mut digests) = (BytesMut::new(), Vec::new());
            for (at, part) in parts.iter().enumerate() {
                let missing = ApiError::InvalidPart { number: part.number };
                let (info, bytes) = found.parts.get(&part.number).ok_or(missing.clone())?;
                if info.etag != part.etag {
                    return Err(missing);
                }
                if at + 1 < parts.len() && info.size_bytes < PART_BYTES_MIN {
                    return Err(ApiError::EntityTooSmall { number: part.number });
                }
                data.extend_from_slice(bytes);
                digests.extend(hex::decode(&info.etag).unwrap());
            }
            (data.freeze(), digests, found.attributes.clone())
        };
        let mut stored = self.put_bytes(key, attributes, data);
        stored.info.etag = format!("{}-{}", hex::encode(Md5::digest(&digests)), parts.len());
        stored.info.parts = u32::try_from(parts.len()).unwrap();
        let info = self.store(bucket, stored, &conditions)?;
        self.state.borrow_mut().uploads.remove(upload);
        Ok(info)
    }

    async fn abort_upload(&self, bucket: &str, key: &str, upload: &str) -> Result<(), ApiError> {
        let mut state = self.state.borrow_mut();
        let found = state.uploads.get(upload).filter(|found| found.bucket == bucket && found.key == key);
        found.ok_or(ApiError::NoSuchUpload)?;
        state.uploads.remove(upload);
        Ok(())
    }
}

/// Keeps one line per request.
#[derive(Default)]
pub struct Log {
    pub lines: RefCell<Vec<String>>,
    /// The ways that requests took.
    pub fronts: RefCell<Vec<&'static str>>,
    pub print: bool,
}

impl Observer for Log {
    fn request(&self, record: &RequestRecord<'_>) {
        let line = format!(
            "{} {} {} {} in={} out={} complete={} {}",
            record.operation,
            record.method,
            record.path,
            record.status,
            record.bytes_in,
            record.bytes_out,
            record.complete,
            record.error_code.unwrap_or("-"),
        );
        if self.print {
            println!("{line}");
        }
        self.lines.borrow_mut().push(line);
        self.fronts.borrow_mut().push(record.front.label());
    }
}

thread_local! {
    /// The users that gateways of this test know.
    pub static USERS: RefCell<Arc<quarry_identity::UserTable>> = RefCell::default();
}

fn users() -> Arc<quarry_identity::UserTable> {
    USERS.with_borrow(Arc::clone)
}

pub const ACCESS_KEY: &str = "quarrytest";
pub const SECRET_KEY: &str = "quarrysecret";

pub fn gateway(log: Rc<Log>) -> Gateway {
    gateway_with(log, Limits::default(), Rc::<MemoryStore>::default())
}

/// Milliseconds since 1970.
pub fn wall_ms() -> u64 {
    u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

/// A gateway on tokio's clock, which a test may have paused.
pub fn gateway_with<S: ObjectStore>(log: Rc<Log>, limits: Limits, store: Rc<S>) -> Gateway {
    gateway_by(log, limits, store, true)
}

/// As [`gateway_with`], with or without the fast front.
pub fn gateway_by<S: ObjectStore>(log: Rc<Log>, limits: Limits, store: Rc<S>, fast_front: bool) -> Gateway {
    let begin = tokio::time::Instant::now();
    let count = Cell::new(0_u64);
    let options = GatewayOptions {
        access_key: ACCESS_KEY.into(),
        secret_key: SECRET_KEY.into(),
        region: "us-east-1".into(),
        object_ownership: ObjectOwnership::default(),
        domains: Domains { api: vec!["s3.test".into()], website: vec!["site.test".into()] },
        limits,
        unix_ms: Rc::new(wall_ms),
        users: Rc::new(users),
        clock: Rc::new(move || -> Duration { begin.elapsed() }),
        sleep: Rc::new(|duration| Box::pin(tokio::time::sleep(duration))),
        request_ids: Rc::new(move || {
            count.set(count.get() + 1);
            format!("{:016X}", count.get())
        }),
        observer: log,
        fast_front,
    };
    Gateway::new(store, options)
}

/// tokio's stream as hyper wants it.
pub struct TokioStream<T>(pub T);

impl<T: tokio::io::AsyncRead + Unpin> hyper::rt::Read for TokioStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut space = [0_u8; 16 << 10];
        let room = cursor.remaining().min(space.len());
        let mut buffer = tokio::io::ReadBuf::new(&mut space[..room]);
        std::task::ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
        cursor.put_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: tokio::io::AsyncWrite + Unpin> hyper::rt::Write for TokioStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
