//! Replacing blobs of a version by others with the same bytes: how a version moves between tiers.
//!
//! The version is named by its time and by what made it, and each blob by its id, which is never used again. So a
//! version that was replaced, deleted or moved meanwhile is refused, and the caller frees what it wrote in vain. Tags
//! and other headers may have changed meanwhile: they stay as they are.

use quarry_clustermap::BlobId;

use super::{check_key, invalid, put::check_blob};
use crate::BlobRef;
use crate::command::manifest::{BlobOwner, Manifest, Segment};
use crate::command::message::{BlobSwap, Refusal, Reply, SwapBlobs};
use crate::command::state::{State, damaged, manifest_rows};
use crate::command::{EvaluateError, RowProblem, SWAPS_MAX, View, rows};

pub(super) async fn swap<V: View>(
    state: &mut State<'_, V>,
    swap: &SwapBlobs,
) -> Result<Reply, EvaluateError> {
    let (bucket, key) = (swap.bucket, swap.key.as_str());
    check_key(key)?;
    if swap.swaps.len() > SWAPS_MAX {
        return Err(invalid("more than 500 blobs are swapped at once").into());
    }
    let found = state.version_at(bucket, key, swap.version_ms).await?;
    let found = found.filter(|found| found.origin == swap.origin && !found.kind.is_marker());
    let old = state.load_segments(bucket, key, found.ok_or(Refusal::VersionChanged)?).await?;
    let mut new: Manifest = old.clone();
    for one in &swap.swaps {
        swap_blob(state, one, &mut new).await?;
    }
    for (name, value) in &swap.headers {
        let headers = &mut new.attributes.headers;
        headers.retain(|(known, _)| known != name);
        headers.extend(value.iter().map(|value| (name.clone(), value.clone())));
        headers.sort();
    }
    // Of a manifest in many rows only those that change are written.
    let rows = manifest_rows(bucket, key, &old).into_iter().zip(manifest_rows(bucket, key, &new));
    state.rows.extend(rows.filter(|(old, new)| old != new).map(|(_, new)| new));
    Ok(Reply::Done)
}

fn segment_of(manifest: &mut Manifest, blob: BlobId) -> Option<&mut BlobRef> {
    manifest.segments.iter_mut().find_map(|segment| match segment {
        Segment::Blob(found) if found.blob == blob => Some(found),
        _ => None,
    })
}

async fn swap_blob<V: View>(
    state: &mut State<'_, V>,
    BlobSwap { from, to }: &BlobSwap,
    manifest: &mut Manifest,
) -> Result<(), EvaluateError> {
    if segment_of(manifest, to.blob).is_some() {
        return Ok(());
    }
    check_blob(to)?;
    let (origin, version_ms, is_null) = (manifest.origin, manifest.last_modified_ms, manifest.kind.is_null());
    let found = segment_of(manifest, *from).ok_or(Refusal::VersionChanged)?;
    if found.size_bytes != to.size_bytes {
        return Err(invalid("a blob is swapped for one of another size").into());
    }
    state.check_writer(to.blob).await?;
    let is_free = state.load::<BlobRef>(&rows::free(to.blob)).await?.is_some();
    if is_free || state.owner(to.blob).await?.is_some() {
        return Err(Refusal::BlobInUse { blob: to.blob }.into());
    }
    let owner = match state.owner(*from).await? {
        Some(owner @ (BlobOwner::Version { .. } | BlobOwner::Part { .. })) => owner,
        Some(BlobOwner::Superseded { .. }) | None => {
            return Err(damaged(&rows::owner(*from), RowProblem::Mismatch));
        }
    };
    let from = std::mem::replace(found, *to);
    state.own(to.blob, &owner);
    state.note_degraded(to);
    state.release_swapped(&from, origin.request(), (version_ms, is_null));
    Ok(())
}
