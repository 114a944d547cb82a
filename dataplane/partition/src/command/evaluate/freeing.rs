//! What background jobs ask: the free list, degraded blobs, revoked writers, answers to forget.

use std::collections::BTreeSet;

use quarry_clustermap::{BlobId, BucketId, Incarnation, NodeId};

use super::{invalid, page_rows};
use crate::BlobRef;
use crate::command::framed::Framed;
use crate::command::manifest::{BlobOwner, Manifest, Origin, Part, RevokedWriter, Segment, UploadId};
use crate::command::message::{BlobStatus, Reply};
use crate::command::rows::KeyRange;
use crate::command::state::{State, damaged, decode, manifest_rows};
use crate::command::{EvaluateError, LIST_ENTRIES_MAX, RowProblem, View, rows};

pub(super) async fn blob_status<V: View>(state: &State<'_, V>, blob: BlobId) -> Result<Reply, EvaluateError> {
    let status = match state.owner(blob).await? {
        Some(BlobOwner::Version { .. } | BlobOwner::Part { .. }) => BlobStatus::Live,
        Some(BlobOwner::Superseded { .. }) => BlobStatus::Freed,
        None if state.load::<BlobRef>(&rows::free(blob)).await?.is_some() => BlobStatus::Freed,
        None if state.is_revoked(blob).await? => BlobStatus::Revoked,
        None => BlobStatus::Unknown,
    };
    Ok(Reply::Blob(status))
}

pub(super) async fn revoke_writer<V: View>(
    state: &mut State<'_, V>,
    writer: NodeId,
    incarnation: Incarnation,
) -> Result<Reply, EvaluateError> {
    let row = rows::revoked(writer);
    let known: Option<RevokedWriter> = state.load(&row).await?;
    if known.is_none_or(|known| known.incarnation < incarnation) {
        state.set(row, RevokedWriter { incarnation }.encode());
    }
    Ok(Reply::Done)
}

pub(super) async fn free_list_next<V: View>(
    state: &State<'_, V>,
    after: Option<BlobId>,
    limit: u32,
) -> Result<Reply, EvaluateError> {
    blobs_page(state, rows::free_after(after), limit).await
}

pub(super) async fn degraded_next<V: View>(
    state: &State<'_, V>,
    after: Option<BlobId>,
    limit: u32,
) -> Result<Reply, EvaluateError> {
    blobs_page(state, rows::degraded_after(after), limit).await
}

async fn blobs_page<V: View>(
    state: &State<'_, V>,
    (from, to): KeyRange,
    limit: u32,
) -> Result<Reply, EvaluateError> {
    let limit = page_rows(limit);
    let page = state.view.scan(&from, &to, limit + 1).await?;
    let truncated = limit > 0 && page.len() > limit;
    let blobs: Result<Vec<BlobRef>, EvaluateError> =
        page.iter().take(limit).map(|(row, value)| decode(row, value)).collect();
    Ok(Reply::Blobs { blobs: blobs?, truncated })
}

pub(super) async fn freed<V: View>(
    state: &mut State<'_, V>,
    blobs: &[BlobId],
) -> Result<Reply, EvaluateError> {
    if blobs.len() > LIST_ENTRIES_MAX as usize {
        return Err(invalid("more than 1000 blobs").into());
    }
    for blob in blobs.iter().collect::<BTreeSet<_>>() {
        let row = rows::free(*blob);
        if state.view.get(&row).await?.is_some() {
            state.remove(row);
        }
    }
    Ok(Reply::Done)
}

pub(super) async fn repaired<V: View>(
    state: &mut State<'_, V>,
    blob: BlobId,
    missing_shards: u32,
) -> Result<Reply, EvaluateError> {
    let row = rows::degraded(blob);
    let Some(degraded) = state.load::<BlobRef>(&row).await? else { return Ok(Reply::Done) };
    if missing_shards & !degraded.missing_shards != 0 {
        return Err(invalid("a repair cannot lose shards").into());
    }
    if missing_shards == degraded.missing_shards {
        return Ok(Reply::Done);
    }
    let repaired = BlobRef { missing_shards, ..degraded };
    match state.owner(blob).await? {
        Some(BlobOwner::Version { bucket, key, version_ms, .. }) => {
            let version = state.version_at(bucket, &key, version_ms).await?;
            let version = version.ok_or_else(|| damaged(&row, RowProblem::Mismatch))?;
            update_version(state, bucket, &key, version, &repaired).await?
        }
        Some(BlobOwner::Part { bucket, key, upload, number }) => {
            let found = update_part(state, upload, number, &repaired).await?;
            if !found {
                let version = version_of_upload(state, bucket, &key, upload).await?;
                let version = version.ok_or_else(|| damaged(&row, RowProblem::Mismatch))?;
                update_version(state, bucket, &key, version, &repaired).await?;
            }
        }
        Some(BlobOwner::Superseded { .. }) | None => return Err(damaged(&row, RowProblem::Mismatch)),
    }
    if missing_shards == 0 {
        state.remove(row);
    } else {
        state.set(row, repaired.encode());
    }
    Ok(Reply::Done)
}

/// Whether the blob is still in the part; if not, Complete has moved it into a version.
async fn update_part<V: View>(
    state: &mut State<'_, V>,
    upload: UploadId,
    number: u16,
    repaired: &BlobRef,
) -> Result<bool, EvaluateError> {
    let row = rows::part(upload, number);
    let Some(mut part) = state.load::<Part>(&row).await? else { return Ok(false) };
    let found = part.segment.iter_mut().any(|segment| replace(segment, repaired));
    if found {
        state.set(row, part.encode());
    }
    Ok(found)
}

/// The version that an upload was completed to: the newest, unless the key has been written since.
async fn version_of_upload<V: View>(
    state: &State<'_, V>,
    bucket: BucketId,
    key: &str,
    upload: UploadId,
) -> Result<Option<Manifest>, EvaluateError> {
    const PAGE_ROWS: usize = 16;
    let (mut from, to) = rows::versions(bucket, key);
    loop {
        let page = state.view.scan(&from, &to, PAGE_ROWS).await?;
        for (row, value) in &page {
            let version: Manifest = decode(row, value)?;
            if version.origin == Origin::Upload(upload) {
                return Ok(Some(version));
            }
        }
        match page.last() {
            Some((row, _)) if page.len() == PAGE_ROWS => from = [row, &[0][..]].concat(),
            _ => return Ok(None),
        }
    }
}

async fn update_version<V: View>(
    state: &mut State<'_, V>,
    bucket: BucketId,
    key: &str,
    version: Manifest,
    repaired: &BlobRef,
) -> Result<(), EvaluateError> {
    let missing = || damaged(&rows::owner(repaired.blob), RowProblem::Mismatch);
    let old = state.load_segments(bucket, key, version).await?;
    let mut new: Manifest = old.clone();
    if !new.segments.iter_mut().any(|segment| replace(segment, repaired)) {
        return Err(missing());
    }
    // Of a manifest in many rows only the one that names the blob changes.
    let changed = manifest_rows(bucket, key, &old).into_iter().zip(manifest_rows(bucket, key, &new));
    state.rows.extend(changed.filter(|(old, new)| old != new).map(|(_, new)| new));
    Ok(())
}

fn replace(segment: &mut Segment, repaired: &BlobRef) -> bool {
    let found = matches!(segment, Segment::Blob(blob) if blob.blob == repaired.blob);
    if found {
        *segment = Segment::Blob(*repaired);
    }
    found
}

pub(super) async fn expire<V: View>(state: &mut State<'_, V>, limit: u32) -> Result<Reply, EvaluateError> {
    let limit = page_rows(limit).max(1);
    let (from, to) = rows::expiries_due(state.now_ms);
    let page = state.view.scan(&from, &to, limit).await?;
    let more = page.len() == limit;
    for (row, _) in page {
        let target = rows::parse_expiry(&row).ok_or_else(|| damaged(&row, RowProblem::Key))?;
        state.remove(target);
        state.remove(row.to_vec());
    }
    Ok(Reply::More(more))
}
