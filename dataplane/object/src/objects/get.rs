//! GET and HEAD.

use std::{ops::Range, rc::Rc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::LocalBoxStream};
use quarry_clustermap::{BlobId, BucketId, PartitionId};
use quarry_partition::{
    BlobRef,
    checksum::encode_checksum,
    command::{Command, Lookup, Manifest, Origin, Reply, Segment},
};

use super::{Objects, convert};
use crate::{
    api::{
        ApiError, Conditions, ObjectContent, ObjectHead, ObjectPartInfo, ObjectParts, RangeRequest, Selector,
        VersionId,
    },
    cluster::Cluster,
    metadata::Metadata,
    reader::{ReadMemory, read_range},
};

fn checksum_text(digest: &[u8]) -> Option<String> {
    (!digest.is_empty()).then(|| encode_checksum(digest))
}

impl<C: Cluster + Metadata> Objects<C> {
    pub(super) async fn head(
        &self,
        bucket: &str,
        key: &str,
        selector: Selector,
        conditions: Conditions,
    ) -> Result<ObjectHead, ApiError> {
        let (lookup, partition) = self.lookup((bucket, key), selector, conditions)?;
        match self.cluster.execute(partition, Command::Head(lookup)).await? {
            Reply::Object { manifest, version, part, .. } => {
                self.refuse_expired(bucket, key, selector.version, &manifest)?;
                let info = convert::to_info(key, manifest, version);
                let part_checksum = part.as_ref().and_then(|part| checksum_text(&part.checksum));
                Ok(ObjectHead { info, part: part.map(|part| (part.first, part.len)), part_checksum })
            }
            other => Err(convert::unexpected(&other)),
        }
    }

    fn lookup(
        &self,
        (bucket, key): (&str, &str),
        Selector { version, part, .. }: Selector,
        conditions: Conditions,
    ) -> Result<(Lookup, PartitionId), ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        let conditions = convert::to_conditions(conditions);
        Ok((Lookup { bucket: bucket.id, key: key.to_owned(), version, part, conditions }, partition))
    }

    pub(super) async fn parts_of(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        after: u16,
        limit: usize,
    ) -> Result<ObjectParts, ApiError> {
        let selector = Selector { version, ..Selector::default() };
        let (lookup, partition) = self.lookup((bucket, key), selector, Conditions::default())?;
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        match self.cluster.execute(partition, Command::ObjectParts { lookup, after, limit }).await? {
            Reply::ObjectParts { manifest, version: name, parts, truncated } => {
                self.refuse_expired(bucket, key, version, &manifest)?;
                let parts = parts.into_iter().map(|part| ObjectPartInfo {
                    number: part.number,
                    size_bytes: part.size_bytes,
                    checksum: checksum_text(&part.checksum),
                });
                let parts = parts.collect();
                Ok(ObjectParts { info: convert::to_info(key, manifest, name), parts, truncated })
            }
            other => Err(convert::unexpected(&other)),
        }
    }

    pub(super) async fn get(
        &self,
        bucket: &str,
        key: &str,
        selector: Selector,
        conditions: Conditions,
        memory: ReadMemory,
    ) -> Result<ObjectContent, ApiError> {
        let (lookup, partition) = self.lookup((bucket, key), selector, conditions)?;
        let (bucket_id, command) = (lookup.bucket, Command::Get(lookup));
        let mut before = None;
        loop {
            let (manifest, inline, name, part) =
                match self.cluster.execute(partition, command.clone()).await? {
                    Reply::Object { manifest, inline, version, part } => (manifest, inline, version, part),
                    other => return Err(convert::unexpected(&other)),
                };
            self.refuse_expired(bucket, key, selector.version, &manifest)?;
            let part_checksum = part.as_ref().and_then(|part| checksum_text(&part.checksum));
            let (first, len) = match part {
                Some(part) => (part.first, part.len),
                None => resolve(selector.range, manifest.size_bytes)?,
            };
            let version = VersionAt { partition, bucket: bucket_id, key: key.to_owned() };
            let mut stream = self.stream(version, &manifest, inline, first..first + len, memory)?;
            let head = stream.next().await;
            if let Some(Err(error)) = head {
                // Between the look-up and the first byte the version may have been replaced or moved, and freed: look
                // again. The same version failing twice in the same place is a failure.
                let version = (manifest.last_modified_ms, manifest.etag, manifest.segments);
                if before.as_ref() == Some(&version) {
                    return Err(error);
                }
                before = Some(version);
                continue;
            }
            let stream = stream::iter(head).chain(stream).boxed_local();
            let info = convert::to_info(key, manifest, name);
            return Ok(ObjectContent { info, range: (first, len), part_checksum, stream });
        }
    }

    /// The bytes of a range of an object, segment after segment.
    fn stream(
        &self,
        version: VersionAt,
        manifest: &Manifest,
        inline: Vec<Vec<u8>>,
        range: Range<u64>,
        memory: ReadMemory,
    ) -> Result<LocalBoxStream<'static, Result<Bytes, ApiError>>, ApiError> {
        let mut inline = inline.into_iter();
        let mut pieces = Vec::new();
        let mut position = 0;
        for (index, segment) in manifest.segments.iter().enumerate() {
            let (begin, end) = (position, position + segment.size_bytes());
            position = end;
            let body = match segment {
                Segment::Inline { .. } => {
                    Some(Bytes::from(inline.next().ok_or_else(|| missing_inline(manifest))?))
                }
                Segment::Blob(_) => None,
            };
            let (from, to) = (range.start.max(begin), range.end.min(end));
            if from < to {
                pieces.push((index, *segment, body, from - begin, to - from));
            }
        }
        let cluster = Rc::clone(&self.cluster);
        let blobs: Vec<BlobId> = pieces.iter().filter_map(|(_, segment, ..)| segment_blob(segment)).collect();
        let reading = cluster.reading(&blobs);
        let later = Rc::new(Later { version, id: manifest.version_id(), origin: manifest.origin });
        let mut is_first = true;
        let stream = stream::iter(pieces).flat_map(move |(index, segment, body, from, len)| {
            let was_first = std::mem::replace(&mut is_first, false);
            match (segment, body) {
                (Segment::Blob(blob), _) => {
                    let bytes = read_range(Rc::clone(&cluster), blob, from..from + len, memory);
                    let bytes = bytes.map_err(ApiError::from).boxed_local();
                    if was_first {
                        return bytes;
                    }
                    later.stream(Rc::clone(&cluster), bytes, (index, blob), (from..from + len, memory))
                }
                (Segment::Inline { .. }, Some(body)) => {
                    stream::once(async move { slice(&body, from, len) }).boxed_local()
                }
                (Segment::Inline { .. }, None) => stream::empty().boxed_local(),
            }
        });
        // The guard goes with the stream, and is dropped with it.
        Ok(stream.inspect(move |_| _ = &reading).boxed_local())
    }
}

/// A key and the partition that owns it.
struct VersionAt {
    partition: PartitionId,
    bucket: BucketId,
    key: String,
}

/// The later blobs of a version that is being read: they may move to another tier before the reader comes to them.
struct Later {
    version: VersionAt,
    id: VersionId,
    origin: Origin,
}

impl Later {
    /// `bytes`, or if they do not even begin and the blob has moved, those of the blob in its place.
    fn stream<C: Cluster + Metadata>(
        self: &Rc<Self>,
        cluster: Rc<C>,
        mut bytes: LocalBoxStream<'static, Result<Bytes, ApiError>>,
        (index, blob): (usize, BlobRef),
        (range, memory): (Range<u64>, ReadMemory),
    ) -> LocalBoxStream<'static, Result<Bytes, ApiError>> {
        let later = Rc::clone(self);
        let begun = async move {
            let head = bytes.next().await;
            if let Some(Err(_)) = head
                && let Some(moved) = later.moved(&*cluster, index, blob.blob).await
            {
                return read_range(cluster, moved, range, memory).map_err(ApiError::from).boxed_local();
            }
            stream::iter(head).chain(bytes).boxed_local()
        };
        stream::once(begun).flatten().boxed_local()
    }

    /// The blob that has taken the place of another one.
    async fn moved<C: Metadata>(&self, cluster: &C, index: usize, blob: BlobId) -> Option<BlobRef> {
        let VersionAt { partition, bucket, ref key } = self.version;
        let lookup = Lookup { version: Some(self.id), ..Lookup::newest(bucket, key.clone()) };
        let Ok(Reply::Object { manifest, .. }) = cluster.execute(partition, Command::Get(lookup)).await
        else {
            return None;
        };
        match manifest.segments.get(index) {
            Some(Segment::Blob(moved)) if manifest.origin == self.origin && moved.blob != blob => {
                Some(*moved)
            }
            _ => None,
        }
    }
}

fn segment_blob(segment: &Segment) -> Option<BlobId> {
    match segment {
        Segment::Blob(blob) => Some(blob.blob),
        Segment::Inline { .. } => None,
    }
}

fn missing_inline(manifest: &Manifest) -> ApiError {
    ApiError::DataLoss { detail: format!("an inline segment of version {} has no bytes", manifest.etag) }
}

fn slice(body: &Bytes, from: u64, len: u64) -> Result<Bytes, ApiError> {
    let range = usize::try_from(from).ok().zip(usize::try_from(from + len).ok());
    match range {
        Some((from, to)) if to <= body.len() => Ok(body.slice(from..to)),
        _ => Err(ApiError::DataLoss { detail: "an inline segment is shorter than its manifest says".into() }),
    }
}

/// First byte and length of what was asked for.
pub(super) fn resolve(range: Option<RangeRequest>, size_bytes: u64) -> Result<(u64, u64), ApiError> {
    let outside = ApiError::InvalidRange { size_bytes };
    match range {
        None => Ok((0, size_bytes)),
        Some(RangeRequest::Inclusive { first, last }) if first <= last && first < size_bytes => {
            Ok((first, last.min(size_bytes - 1) - first + 1))
        }
        Some(RangeRequest::From { first }) if first < size_bytes => Ok((first, size_bytes - first)),
        Some(RangeRequest::Suffix { len }) if len > 0 && size_bytes > 0 => {
            let len = len.min(size_bytes);
            Ok((size_bytes - len, len))
        }
        Some(_) => Err(outside),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_rfc_9110() {
        let inclusive = |first, last| Some(RangeRequest::Inclusive { first, last });
        assert_eq!(resolve(None, 10), Ok((0, 10)));
        assert_eq!(resolve(None, 0), Ok((0, 0)));
        assert_eq!(resolve(inclusive(0, 0), 10), Ok((0, 1)));
        assert_eq!(resolve(inclusive(3, 99), 10), Ok((3, 7)));
        assert_eq!(resolve(Some(RangeRequest::From { first: 9 }), 10), Ok((9, 1)));
        assert_eq!(resolve(Some(RangeRequest::Suffix { len: 4 }), 10), Ok((6, 4)));
        assert_eq!(resolve(Some(RangeRequest::Suffix { len: 40 }), 10), Ok((0, 10)));
        for range in [inclusive(10, 10), inclusive(5, 4), Some(RangeRequest::Suffix { len: 0 })] {
            assert_eq!(resolve(range, 10), Err(ApiError::InvalidRange { size_bytes: 10 }));
        }
        assert_eq!(resolve(inclusive(0, 0), 0), Err(ApiError::InvalidRange { size_bytes: 0 }));
        assert_eq!(
            resolve(Some(RangeRequest::Suffix { len: 1 }), 0),
            Err(ApiError::InvalidRange { size_bytes: 0 })
        );
    }
}
