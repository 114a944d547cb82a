//! Removing one object, and all that is left of a removed bucket.

use quarry_clustermap::BucketId;

use super::{check_key, upload};
use crate::command::conditions::{self, Access};
use crate::command::manifest::Manifest;
use crate::command::message::{Conditions, Reply};
use crate::command::state::{State, damaged, decode};
use crate::command::{EvaluateError, RowProblem, View, rows};

/// Objects and uploads that one [`drop_bucket_state`] removes at most: each can have 10,000 blobs.
const DROPPED_MAX: u32 = 100;
/// Rows after which [`drop_bucket_state`] stops early, so that its log entry stays small.
const DROPPED_ROWS_MAX: usize = 10_000;

pub(super) async fn delete<V: View>(
    state: &mut State<'_, V>,
    bucket: BucketId,
    key: &str,
    conditions: &Conditions,
) -> Result<Reply, EvaluateError> {
    check_key(key)?;
    let current = state.current(bucket, key).await?;
    conditions::check(conditions, Access::Write, current.as_ref())?;
    if let Some(current) = current {
        let current = state.load_segments(bucket, key, current).await?;
        state.remove_version(bucket, key, &current);
    }
    Ok(Reply::Done)
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
