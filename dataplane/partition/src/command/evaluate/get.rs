//! Reading one object.

use quarry_clustermap::BucketId;

use super::check_key;
use crate::command::conditions::{self, Access};
use crate::command::manifest::{Manifest, Segment};
use crate::command::message::{Conditions, Refusal, Reply};
use crate::command::state::State;
use crate::command::{EvaluateError, View, rows};

async fn find<V: View>(
    state: &State<'_, V>,
    bucket: BucketId,
    key: &str,
    conditions: &Conditions,
) -> Result<Manifest, EvaluateError> {
    check_key(key)?;
    let current = state.current(bucket, key).await?;
    conditions::check(conditions, Access::Read, current.as_ref())?;
    Ok(current.ok_or(Refusal::NoSuchKey)?)
}

pub(super) async fn head<V: View>(
    state: &State<'_, V>,
    bucket: BucketId,
    key: &str,
    conditions: &Conditions,
) -> Result<Reply, EvaluateError> {
    let manifest = find(state, bucket, key, conditions).await?;
    let manifest = Manifest { segments: Vec::new(), continuation_rows: 0, ..manifest };
    Ok(Reply::Object { manifest, inline: Vec::new() })
}

pub(super) async fn get<V: View>(
    state: &State<'_, V>,
    bucket: BucketId,
    key: &str,
    conditions: &Conditions,
) -> Result<Reply, EvaluateError> {
    let manifest = find(state, bucket, key, conditions).await?;
    let manifest = state.load_segments(bucket, key, manifest).await?;
    let mut inline = Vec::new();
    for (n, segment) in (0..).zip(&manifest.segments) {
        if let Segment::Inline { size_bytes } = segment {
            let row = rows::body(bucket, key, manifest.last_modified_ms, n);
            inline.push(state.load_body(&row, *size_bytes).await?);
        }
    }
    Ok(Reply::Object { manifest, inline })
}
