//! Listing a bucket: a scan that seeks past every rolled-up prefix, and past what is not listed of a key.

use super::page_rows;
use quarry_clustermap::BucketId;

use crate::command::manifest::{Manifest, Stored, Upload};
use crate::command::message::{Entry, List, Listed, Position, Reply};
use crate::command::state::{State, damaged, decode};
use crate::command::{EvaluateError, RowProblem, VersionId, View, rows};

/// Rows per scan: a manifest row can have 56 KiB, so this bounds a listing to about 4 MiB in memory.
const SCAN_ROWS: usize = 64;

/// The prefix that a key is rolled up into.
fn rolled_up<'a>(list: &List, key: &'a str) -> Option<&'a str> {
    let delimiter = list.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty())?;
    let rest = key.strip_prefix(list.prefix.as_str())?;
    let at = rest.find(delimiter)?;
    Some(&key[..list.prefix.len() + at + delimiter.len()])
}

fn kind_of(listed: Listed) -> u8 {
    match listed {
        Listed::Objects | Listed::Versions => rows::VERSION,
        Listed::Uploads => rows::UPLOAD,
    }
}

/// Where a listing begins.
async fn start<V: View>(state: &State<'_, V>, list: &List) -> Result<Vec<u8>, EvaluateError> {
    let (bucket, kind) = (list.bucket, kind_of(list.listed));
    let (first, _) = rows::below(kind, bucket, &list.prefix);
    let Some(after) = &list.after else { return Ok(first) };
    let behind = |mut row: Vec<u8>| {
        row.push(0);
        row
    };
    let next = match list.after_position {
        _ if rolled_up(list, after) == Some(after.as_str()) => rows::below(kind, bucket, after).1,
        Some(Position::Version(version_ms)) => behind(rows::version(bucket, after, version_ms)),
        Some(Position::Upload(upload)) => behind(rows::upload(bucket, after, upload)),
        Some(Position::NullVersion) => match state.find(bucket, after, VersionId::Null).await? {
            Some(null) => behind(rows::version(bucket, after, null.last_modified_ms)),
            None => rows::all_of(kind, bucket, after).1,
        },
        None => rows::all_of(kind, bucket, after).1,
    };
    Ok(first.max(next))
}

/// What a row is in a listing, and where the listing goes on; no entry: only that.
fn entry(
    list: &List,
    row: &[u8],
    value: &[u8],
    previous: Option<&str>,
) -> Result<(Option<Entry>, Vec<u8>), EvaluateError> {
    let next = || [row, &[0][..]].concat();
    let malformed = || damaged(row, RowProblem::Key);
    if list.listed == Listed::Uploads {
        let (_, key, upload) = rows::parse_upload(row).ok_or_else(malformed)?;
        let Upload { created_ms, checksum, attributes, .. } = decode(row, value)?;
        let class = attributes.storage_class().map(str::to_owned);
        return Ok((Some(Entry::Upload { key, upload, created_ms, checksum, class }), next()));
    }
    let (_, key, _) = rows::parse_version(row).ok_or_else(malformed)?;
    let manifest: Manifest = decode(row, value)?;
    let (version, is_marker) = (manifest.version_id(), manifest.kind.is_marker());
    let class = manifest.attributes.storage_class().map(str::to_owned);
    let stored = summary(manifest);
    if list.listed == Listed::Versions {
        let is_latest = previous != Some(&key);
        return Ok((Some(Entry::Version { key, version, is_latest, is_marker, stored, class }), next()));
    }
    // Past the older versions of the key.
    let past = rows::versions(list.bucket, &key).1;
    Ok(((!is_marker).then_some(Entry::Object { key, stored, class }), past))
}

pub(super) async fn list<V: View>(state: &State<'_, V>, list: &List) -> Result<Reply, EvaluateError> {
    let (max, kind) = (page_rows(list.max), kind_of(list.listed));
    let mut entries: Vec<Entry> = Vec::new();
    let (_, to) = rows::below(kind, list.bucket, &list.prefix);
    let mut from = start(state, list).await?;
    // The key of the row before, if the listing begins within it.
    let mut previous = list.after.clone().filter(|_| list.after_position.is_some());
    let mut limit_rows = 1;
    while max > 0 && from < to {
        // One more than fits shows whether the page is truncated; a delimiter makes most of a long scan useless, and
        // versions that are not listed make short ones useless.
        limit_rows = SCAN_ROWS.min((max - entries.len() + 1).max(limit_rows * 2));
        let page = state.view.scan(&from, &to, limit_rows).await?;
        let whole = page.len() == limit_rows;
        for (row, value) in page {
            if row < from {
                continue;
            }
            let (entry, next) = entry(list, &row, &value, previous.as_deref())?;
            from = next;
            let Some(entry) = entry else { continue };
            if entries.len() == max {
                return Ok(Reply::Page { entries, truncated: true });
            }
            if let Some(prefix) = rolled_up(list, entry.name()) {
                from = rows::below(kind, list.bucket, prefix).1;
                entries.push(Entry::Prefix(prefix.to_owned()));
            } else {
                previous = Some(entry.name().to_owned());
                entries.push(entry);
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
        version: None,
        checksums: manifest.checksums,
    }
}

pub(super) async fn bucket_is_empty<V: View>(
    state: &State<'_, V>,
    bucket: BucketId,
) -> Result<Reply, EvaluateError> {
    let (from, to) = rows::versions_below(bucket, "");
    Ok(Reply::Empty(state.view.scan(&from, &to, 1).await?.is_empty()))
}
