//! Listing the keys of a bucket: a scan that seeks past every rolled-up prefix.

use quarry_clustermap::BucketId;

use super::page_rows;
use crate::command::manifest::{Manifest, Stored};
use crate::command::message::{Entry, List, Reply};
use crate::command::state::{State, damaged, decode};
use crate::command::{EvaluateError, RowProblem, View, rows};

/// Rows per scan: a manifest row can have 56 KiB, so this bounds a listing to about 4 MiB in memory.
const SCAN_ROWS: usize = 64;

/// The prefix that a key is rolled up into.
fn rolled_up<'a>(list: &List, key: &'a str) -> Option<&'a str> {
    let delimiter = list.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty())?;
    let rest = key.strip_prefix(list.prefix.as_str())?;
    let at = rest.find(delimiter)?;
    Some(&key[..list.prefix.len() + at + delimiter.len()])
}

/// Where a listing begins.
fn start(list: &List) -> Vec<u8> {
    let (first, _) = rows::versions_below(list.bucket, &list.prefix);
    let Some(after) = &list.after else { return first };
    let next = if rolled_up(list, after) == Some(after.as_str()) {
        rows::versions_below(list.bucket, after).1
    } else {
        rows::versions(list.bucket, after).1
    };
    first.max(next)
}

pub(super) async fn list<V: View>(state: &State<'_, V>, list: &List) -> Result<Reply, EvaluateError> {
    let max = page_rows(list.max);
    let mut entries: Vec<Entry> = Vec::new();
    let (_, to) = rows::versions_below(list.bucket, &list.prefix);
    let mut from = start(list);
    while max > 0 && from < to {
        // One more than fits shows whether the page is truncated; a delimiter makes most of a long scan useless.
        let limit_rows = SCAN_ROWS.min(max - entries.len() + 1);
        let page = state.view.scan(&from, &to, limit_rows).await?;
        let whole = page.len() == limit_rows;
        for (row, value) in page {
            if row < from {
                continue;
            }
            if entries.len() == max {
                return Ok(Reply::Page { entries, truncated: true });
            }
            let (_, key, _) = rows::parse_version(&row).ok_or_else(|| damaged(&row, RowProblem::Key))?;
            if let Some(prefix) = rolled_up(list, &key) {
                from = rows::versions_below(list.bucket, prefix).1;
                entries.push(Entry::Prefix(prefix.to_owned()));
            } else {
                // Past the older versions of the key.
                from = rows::versions(list.bucket, &key).1;
                let stored = summary(decode(&row, &value)?);
                entries.push(Entry::Object { key, stored });
            }
        }
        if !whole {
            break;
        }
    }
    Ok(Reply::Page { entries, truncated: false })
}

fn summary(manifest: Manifest) -> Stored {
    Stored {
        size_bytes: manifest.size_bytes,
        etag: manifest.etag,
        last_modified_ms: manifest.last_modified_ms,
        parts: manifest.parts,
    }
}

pub(super) async fn bucket_is_empty<V: View>(
    state: &State<'_, V>,
    bucket: BucketId,
) -> Result<Reply, EvaluateError> {
    for (from, to) in [rows::versions_below(bucket, ""), rows::uploads(bucket)] {
        if !state.view.scan(&from, &to, 1).await?.is_empty() {
            return Ok(Reply::Empty(false));
        }
    }
    Ok(Reply::Empty(true))
}
