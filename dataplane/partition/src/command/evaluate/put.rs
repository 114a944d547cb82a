//! Storing an object in one command, and changing its tags.

use quarry_clustermap::{BlobId, BucketId, ErasureProfile};

use super::{check_attributes, check_key, check_tags, get, invalid, visible};
use crate::BlobRef;
use crate::command::conditions::{self, Access};
use crate::command::framed::Framed;
use crate::command::manifest::{
    BlobOwner, Manifest, Origin, Pairs, Segment, Stored, VersionKind, version_id,
};
use crate::command::message::{Content, Lookup, Put, Refusal, Reply};
use crate::command::state::{State, manifest_rows};
use crate::command::{EvaluateError, INLINE_BYTES_MAX, VersionId, View, rows};

/// Far above any blob, and the sizes of 10,000 of them still fit 64 bits.
const BLOB_BYTES_MAX: u64 = 1 << 50;

/// Blobs of one put: with the longest key their owner rows take about 1 MiB of a log entry.
const BLOBS_MAX: usize = 1000;

/// The put's identity and its bytes, checked.
pub(super) struct Checked<'a> {
    pub(super) request: BlobId,
    pub(super) segments: Vec<Segment>,
    /// Of the only segment, if it is inline.
    pub(super) inline: Option<&'a [u8]>,
    pub(super) size_bytes: u64,
}

pub(super) fn check_content(content: &Content) -> Result<Checked<'_>, Refusal> {
    match content {
        Content::Inline { request, bytes } if bytes.len() <= INLINE_BYTES_MAX => {
            let size_bytes = u32::try_from(bytes.len()).expect("within the limit");
            let some = size_bytes > 0;
            Ok(Checked {
                request: *request,
                segments: some.then_some(Segment::Inline { size_bytes }).into_iter().collect(),
                inline: some.then_some(bytes.as_slice()),
                size_bytes: u64::from(size_bytes),
            })
        }
        Content::Inline { .. } => Err(invalid("the inline body is longer than 512 KiB")),
        Content::Blobs(blobs) => {
            let request = blobs.first().ok_or_else(|| invalid("there are no blobs"))?.blob;
            if blobs.len() > BLOBS_MAX {
                return Err(invalid("there are more than 1000 blobs"));
            }
            let mut ids: Vec<BlobId> = blobs.iter().map(|blob| blob.blob).collect();
            ids.sort_unstable();
            if ids.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(invalid("a blob is named twice"));
            }
            let mut size_bytes = 0_u64;
            for blob in blobs {
                check_blob(blob)?;
                size_bytes += blob.size_bytes;
            }
            let segments = blobs.iter().copied().map(Segment::Blob).collect();
            Ok(Checked { request, segments, inline: None, size_bytes })
        }
    }
}

/// Refuses a blob that cannot be.
pub(super) fn check_blob(blob: &BlobRef) -> Result<(), Refusal> {
    let profile = ErasureProfile::new(blob.profile.data_shards, blob.profile.parity_shards)
        .map_err(|_| invalid("a blob has an impossible profile"))?;
    if u64::from(blob.missing_shards) >> profile.total() != 0 {
        return Err(invalid("a blob misses shards that its profile does not have"));
    }
    if !(1..=BLOB_BYTES_MAX).contains(&blob.size_bytes) {
        return Err(invalid("a blob is empty, or larger than 1 PiB"));
    }
    Ok(())
}

impl Checked<'_> {
    /// Refuses blobs of revoked writers, and blobs (but the first, which the caller looked up) that are in use.
    pub(super) async fn check_blobs<V: View>(&self, state: &State<'_, V>) -> Result<(), EvaluateError> {
        state.check_writer(self.request).await?;
        for segment in self.segments.iter().skip(1) {
            if let Segment::Blob(blob) = segment {
                state.check_writer(blob.blob).await?;
                if state.owner(blob.blob).await?.is_some() {
                    return Err(Refusal::BlobInUse { blob: blob.blob }.into());
                }
            }
        }
        Ok(())
    }
}

pub(super) async fn put<V: View>(state: &mut State<'_, V>, put: &Put) -> Result<Reply, EvaluateError> {
    check_key(&put.key)?;
    check_attributes(&put.attributes, &put.checksums)?;
    check_tags(&put.tags)?;
    let content = check_content(&put.content)?;
    let (bucket, key) = (put.bucket, put.key.as_str());
    let origin = Origin::Put(content.request);
    let answer = |state: &State<'_, V>, last_modified_ms, is_null| {
        Reply::Stored(Stored {
            size_bytes: content.size_bytes,
            etag: put.etag.clone(),
            last_modified_ms,
            parts: 0,
            version: state.shown(version_id(is_null, last_modified_ms, origin)),
            checksums: Vec::new(),
        })
    };
    match state.owner(content.request).await? {
        None => {}
        Some(BlobOwner::Version { bucket: b, key: k, version_ms, is_null }) if (b, &*k) == (bucket, key) => {
            return Ok(answer(state, version_ms, is_null));
        }
        Some(BlobOwner::Superseded { last_modified_ms, is_null }) => {
            return Ok(answer(state, last_modified_ms, is_null));
        }
        Some(_) => return Err(Refusal::BlobInUse { blob: content.request }.into()),
    }
    content.check_blobs(state).await?;
    let newest = state.newest(bucket, key).await?;
    conditions::check(&put.conditions, Access::Write, visible(newest.as_ref()))?;

    let (version_ms, is_null) = state.make_way(bucket, key, newest.as_ref()).await?;
    let reply = answer(state, version_ms, is_null);
    let owner = BlobOwner::Version { bucket, key: key.to_owned(), version_ms, is_null };
    state.own(content.request, &owner);
    for segment in &content.segments {
        if let Segment::Blob(blob) = segment {
            if blob.blob != content.request {
                state.own(blob.blob, &owner);
            }
            state.note_degraded(blob);
        }
    }
    if let Some(bytes) = content.inline {
        state.set(rows::body(bucket, key, version_ms, 0), bytes.to_vec());
    }
    let manifest = Manifest {
        size_bytes: content.size_bytes,
        etag: put.etag.clone(),
        last_modified_ms: version_ms,
        attributes: put.attributes.clone(),
        tags: put.tags.clone(),
        checksums: put.checksums.clone(),
        parts: 0,
        kind: VersionKind::new(is_null, false),
        origin,
        segments: content.segments,
        continuation_rows: 0,
        part_rows: 0,
    };
    state.rows.extend(manifest_rows(bucket, key, &manifest));
    Ok(reply)
}

/// Rewrites the manifest's own row with other tags.
pub(super) async fn set_tags<V: View>(
    state: &mut State<'_, V>,
    (bucket, key): (BucketId, &str),
    version: Option<VersionId>,
    tags: &Pairs,
) -> Result<Reply, EvaluateError> {
    check_tags(tags)?;
    let manifest = get::find(state, &Lookup { version, ..Lookup::newest(bucket, key) }).await?;
    let shown = state.shown(manifest.version_id());
    if manifest.tags != *tags {
        let row = rows::version(bucket, key, manifest.last_modified_ms);
        state.set(row, Manifest { tags: tags.clone(), ..manifest }.encode());
    }
    Ok(Reply::Tagged(shown))
}

/// Rewrites the manifest's own row with one header of its attributes set or removed.
pub(super) async fn set_header<V: View>(
    state: &mut State<'_, V>,
    (bucket, key): (BucketId, &str),
    version: Option<VersionId>,
    (name, value): (&str, Option<&str>),
) -> Result<Reply, EvaluateError> {
    let mut manifest = get::find(state, &Lookup { version, ..Lookup::newest(bucket, key) }).await?;
    let shown = state.shown(manifest.version_id());
    let before = manifest.attributes.clone();
    let headers = &mut manifest.attributes.headers;
    headers.retain(|(known, _)| known != name);
    headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    headers.sort();
    check_attributes(&manifest.attributes, &manifest.checksums)?;
    if manifest.attributes != before {
        let row = rows::version(bucket, key, manifest.last_modified_ms);
        state.set(row, manifest.encode());
    }
    Ok(Reply::Tagged(shown))
}
