//! Removing one object or version, and all that is left of a removed bucket.

use quarry_clustermap::{BlobId, BucketId};

use super::{check_key, upload};
use crate::command::conditions;
use crate::command::manifest::{
    BlobOwner, Manifest, NullVersion, Origin, StoredAttributes, VersionKind, version_id,
};
use crate::command::message::{Conditions, Refusal, Reply};
use crate::command::state::{State, damaged, decode, manifest_rows};
use crate::command::{EvaluateError, RowProblem, VersionId, Versioning, View, rows};

/// Objects and uploads that one [`drop_bucket_state`] removes at most: each can have 10,000 blobs.
const DROPPED_MAX: u32 = 100;
/// Rows after which [`drop_bucket_state`] stops early, so that its log entry stays small.
const DROPPED_ROWS_MAX: usize = 10_000;

/// Deletes the object: its null version if the bucket never kept versions, otherwise by a delete marker.
pub(super) async fn object<V: View>(
    state: &mut State<'_, V>,
    (bucket, key): (BucketId, &str),
    request: BlobId,
    conditions: &Conditions,
) -> Result<Reply, EvaluateError> {
    check_key(key)?;
    let answer = |version_ms, is_null| Reply::Deleted {
        version: Some(version_id(is_null, version_ms, Origin::Put(request))),
        is_marker: true,
    };
    if state.versioning != Versioning::Unversioned {
        match state.owner(request).await? {
            None => {}
            Some(BlobOwner::Version { bucket: b, key: k, version_ms, is_null })
                if (b, &*k) == (bucket, key) =>
            {
                return Ok(answer(version_ms, is_null));
            }
            Some(BlobOwner::Superseded { last_modified_ms, is_null }) => {
                return Ok(answer(last_modified_ms, is_null));
            }
            Some(_) => return Err(Refusal::BlobInUse { blob: request }.into()),
        }
        state.check_writer(request).await?;
    }
    let newest = state.newest(bucket, key).await?;
    conditions::check_delete(conditions, newest.as_ref())?;
    if state.versioning == Versioning::Unversioned {
        if let Some(null) = state.null_version(bucket, key, newest.as_ref()).await? {
            state.remove_from_stack(bucket, key, newest.as_ref(), null).await?;
        }
        return Ok(Reply::Deleted { version: None, is_marker: false });
    }
    let (version_ms, is_null) = state.make_way(bucket, key, newest.as_ref()).await?;
    state.own(request, &BlobOwner::Version { bucket, key: key.to_owned(), version_ms, is_null });
    let marker = Manifest {
        size_bytes: 0,
        etag: String::new(),
        last_modified_ms: version_ms,
        attributes: StoredAttributes::default(),
        tags: Vec::new(),
        checksums: Vec::new(),
        parts: 0,
        kind: VersionKind::new(is_null, true),
        origin: Origin::Put(request),
        segments: Vec::new(),
        continuation_rows: 0,
        part_rows: 0,
    };
    state.rows.extend(manifest_rows(bucket, key, &marker));
    Ok(answer(version_ms, is_null))
}

/// Deletes exactly one version for good.
pub(super) async fn version<V: View>(
    state: &mut State<'_, V>,
    (bucket, key): (BucketId, &str),
    version: VersionId,
    conditions: &Conditions,
) -> Result<Reply, EvaluateError> {
    check_key(key)?;
    let found = state.find(bucket, key, version).await?;
    conditions::check_delete(conditions, found.as_ref())?;
    let is_marker = found.as_ref().is_some_and(|found| found.kind.is_marker());
    if let Some(found) = found {
        let newest = state.newest(bucket, key).await?;
        state.remove_from_stack(bucket, key, newest.as_ref(), found).await?;
    }
    Ok(Reply::Deleted { version: Some(version), is_marker })
}

pub(super) async fn drop_bucket_state<V: View>(
    state: &mut State<'_, V>,
    bucket: BucketId,
    limit: u32,
) -> Result<Reply, EvaluateError> {
    let mut left = limit.clamp(1, DROPPED_MAX) as usize;
    let (from, to) = rows::versions_below(bucket, "");
    for (row, value) in state.view.scan(&from, &to, left).await? {
        let (_, key, _) = rows::parse_version(&row).ok_or_else(|| damaged(&row, RowProblem::Key))?;
        let manifest: Manifest = decode(&row, &value)?;
        if manifest.kind.is_null() {
            // Those above it may have gone before.
            let named = rows::null_version(bucket, &key);
            if state.load::<NullVersion>(&named).await?.is_some() {
                state.remove(named);
            }
        }
        let manifest = state.load_segments(bucket, &key, manifest).await?;
        state.remove_version(bucket, &key, &manifest);
        left -= 1;
        if state.rows.len() > DROPPED_ROWS_MAX {
            return Ok(Reply::More(true));
        }
    }
    let (from, to) = rows::uploads(bucket);
    for (row, _) in state.view.scan(&from, &to, left).await? {
        let (_, key, id) = rows::parse_upload(&row).ok_or_else(|| damaged(&row, RowProblem::Key))?;
        upload::drop_upload(state, bucket, &key, id).await?;
        left -= 1;
        if state.rows.len() > DROPPED_ROWS_MAX {
            return Ok(Reply::More(true));
        }
    }
    Ok(Reply::More(left == 0))
}
