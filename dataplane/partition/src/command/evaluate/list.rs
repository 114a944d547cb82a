//! Listing a bucket: a merge of rows in key order that seeks past every rolled-up prefix, and past what is not listed of a key.
//!
//! The same merge serves one partition ([`Command::List`](crate::command::Command::List)) and a node, which gives it the rows
//! of every partition that it is the primary of.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::collections::binary_heap::{BinaryHeap, PeekMut};

use bytes::Bytes;
use futures::future::join_all;
use quarry_clustermap::BucketId;

use super::page_rows;
use crate::command::framed::Framed;
use crate::command::manifest::{
    ArchivedManifest, ArchivedVersionKind, Manifest, STORAGE_CLASS_HEADER, Stored, Upload,
};
use crate::command::message::{Entry, List, Listed, Position, Reply};
use crate::command::state::{State, damaged, decode};
use crate::command::{EvaluateError, RowProblem, VersionId, Versioning, View, ViewError, rows};

/// Rows per scan: a manifest row can have 56 KiB, so this bounds a listing to about 4 MiB in memory.
const SCAN_ROWS: usize = 64;

type ArchivedPair = rkyv::tuple::ArchivedTuple2<rkyv::string::ArchivedString, rkyv::string::ArchivedString>;

/// A partition's rows from some key to some other, one after another.
#[allow(async_fn_in_trait, reason = "one core runs all of it")]
pub trait Walk {
    /// Goes on with the first row whose key is at least `key`, which does not lie behind.
    fn seek(&mut self, key: &[u8]);
    /// Steps to the next row; false at the end.
    async fn next(&mut self) -> Result<bool, ViewError>;
    /// The key of the row that the last step found.
    fn key(&self) -> &[u8];
    /// Its value.
    fn value(&self) -> &[u8];
}

/// The rows that a listing reads of a partition, from the first to the second.
///
/// # Errors
/// [`EvaluateError`]: the null version, after which it is to begin, cannot be read.
pub async fn listed_rows(view: &impl View, list: &List) -> Result<(Vec<u8>, Vec<u8>), EvaluateError> {
    let (bucket, kind) = (list.bucket, kind_of(list.listed));
    let (first, to) = rows::below(kind, bucket, &list.prefix);
    let Some(after) = &list.after else { return Ok((first, to)) };
    let behind = |mut row: Vec<u8>| {
        row.push(0);
        row
    };
    let next = match list.after_position {
        _ if rolled_up(list, after) == Some(after.as_str()) => rows::below(kind, bucket, after).1,
        Some(Position::Version(version_ms)) => behind(rows::version(bucket, after, version_ms)),
        Some(Position::Upload(upload)) => behind(rows::upload(bucket, after, upload)),
        Some(Position::NullVersion) => {
            let state = State { view, now_ms: 0, versioning: Versioning::Enabled, rows: Vec::new() };
            match state.find(bucket, after, VersionId::Null).await? {
                Some(null) => behind(rows::version(bucket, after, null.last_modified_ms)),
                None => rows::all_of(kind, bucket, after).1,
            }
        }
        None => rows::all_of(kind, bucket, after).1,
    };
    Ok((first.max(next), to))
}

/// One page of what some partitions hold, in order, and whether there is more. Each walk is over the [`listed_rows`] of its
/// partition.
///
/// # Errors
/// With the index of the walk that failed.
pub async fn list_merged<W: Walk>(
    walks: &mut [W],
    list: &List,
) -> Result<(Vec<Entry>, bool), (usize, EvaluateError)> {
    let (max, mut entries) = (page_rows(list.max), Vec::new());
    if max == 0 {
        return Ok((entries, false));
    }
    let mut heads = BinaryHeap::with_capacity(walks.len());
    // All at once: each may have to wait for its device.
    let first = join_all(walks.iter_mut().map(Walk::next)).await;
    for (index, found) in first.into_iter().enumerate() {
        if found.map_err(|error| (index, error.into()))? {
            heads.push(Reverse((walks[index].key().to_vec(), index)));
        }
    }
    // The key of the row before, if the listing begins within it.
    let mut previous = list.after.clone().filter(|_| list.after_position.is_some());
    // Rows before it are of no use.
    let mut past = Vec::new();
    while let Some(mut head) = heads.peek_mut() {
        let Reverse((row, index)) = &mut *head;
        let walk = &mut walks[*index];
        if *row < past {
            walk.seek(&past);
        } else if let Some(entry) =
            entry(list, row, walk.value(), previous.as_deref(), &mut past).map_err(|error| (*index, error))?
        {
            if entries.len() == max {
                return Ok((entries, true));
            }
            if let Some(prefix) = rolled_up(list, entry.name()) {
                past = rows::below(kind_of(list.listed), list.bucket, prefix).1;
                walk.seek(&past);
                entries.push(Entry::Prefix(prefix.to_owned()));
            } else {
                if list.listed == Listed::Versions {
                    previous = Some(entry.name().to_owned());
                }
                entries.push(entry);
            }
        }
        if walk.next().await.map_err(|error| (*index, error.into()))? {
            row.clear();
            row.extend_from_slice(walk.key());
        } else {
            PeekMut::pop(head);
        }
    }
    Ok((entries, false))
}

pub(super) async fn list<V: View>(state: &State<'_, V>, list: &List) -> Result<Reply, EvaluateError> {
    let (from, to) = listed_rows(state.view, list).await?;
    let page = list_merged(&mut [Scan::new(state.view, from, to)], list).await;
    let (entries, truncated) = page.map_err(|(_, error)| error)?;
    Ok(Reply::Page { entries, truncated })
}

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

/// What a row is in a listing, if anything; what comes before `past` is of no use then.
fn entry(
    list: &List,
    row: &[u8],
    value: &[u8],
    previous: Option<&str>,
    past: &mut Vec<u8>,
) -> Result<Option<Entry>, EvaluateError> {
    let malformed = || damaged(row, RowProblem::Key);
    if list.listed == Listed::Uploads {
        let (_, key, upload) = rows::parse_upload(row).ok_or_else(malformed)?;
        let Upload { created_ms, checksum, attributes, .. } = decode(row, value)?;
        let class = attributes.storage_class().map(str::to_owned);
        return Ok(Some(Entry::Upload { key, upload, created_ms, checksum, class }));
    }
    let (_, key, _) = rows::parse_version(row).ok_or_else(malformed)?;
    let Summary { stored, class, is_marker } = summary(row, value)?;
    if list.listed == Listed::Versions {
        let manifest: Manifest = decode(row, value)?;
        let is_latest = previous != Some(&key);
        let version = manifest.version_id();
        return Ok(Some(Entry::Version { key, version, is_latest, is_marker, stored, class }));
    }
    rows::past_versions(row, past);
    Ok((!is_marker).then_some(Entry::Object { key, stored, class }))
}

/// What a listing shows of a manifest.
struct Summary {
    stored: Stored,
    class: Option<String>,
    is_marker: bool,
}

/// Reads only that: other attributes, tags and segments stay where they are.
fn summary(row: &[u8], value: &[u8]) -> Result<Summary, EvaluateError> {
    let manifest =
        Manifest::FRAME.access::<ArchivedManifest>(value).map_err(|problem| damaged(row, problem.into()))?;
    let pair = |pair: &ArchivedPair| (pair.0.as_str().to_owned(), pair.1.as_str().to_owned());
    let class = manifest.attributes.headers.iter().find(|header| header.0.as_str() == STORAGE_CLASS_HEADER);
    Ok(Summary {
        class: class.map(|header| header.1.as_str().to_owned()),
        stored: Stored {
            size_bytes: manifest.size_bytes.to_native(),
            etag: manifest.etag.as_str().to_owned(),
            last_modified_ms: manifest.last_modified_ms.to_native(),
            parts: manifest.parts.to_native(),
            version: None,
            checksums: manifest.checksums.iter().map(pair).collect(),
        },
        is_marker: matches!(
            manifest.kind,
            ArchivedVersionKind::NullMarker | ArchivedVersionKind::NamedMarker
        ),
    })
}

/// A walk by scans of a view.
struct Scan<'a, V> {
    view: &'a V,
    from: Vec<u8>,
    to: Vec<u8>,
    page: VecDeque<(Bytes, Bytes)>,
    /// The view has more rows than those of the page.
    whole: bool,
    limit_rows: usize,
    row: (Bytes, Bytes),
}

impl<'a, V> Scan<'a, V> {
    fn new(view: &'a V, from: Vec<u8>, to: Vec<u8>) -> Self {
        Self { view, from, to, page: VecDeque::new(), whole: true, limit_rows: 1, row: Default::default() }
    }
}

impl<V: View> Walk for Scan<'_, V> {
    fn seek(&mut self, key: &[u8]) {
        self.from.clear();
        self.from.extend_from_slice(key);
    }

    async fn next(&mut self) -> Result<bool, ViewError> {
        loop {
            while let Some(row) = self.page.pop_front() {
                if row.0[..] >= self.from[..] {
                    self.from = [&row.0, &[0][..]].concat();
                    self.row = row;
                    return Ok(true);
                }
            }
            if !self.whole || self.from >= self.to {
                return Ok(false);
            }
            self.page = self.view.scan(&self.from, &self.to, self.limit_rows).await?.into();
            self.whole = self.page.len() == self.limit_rows;
            self.limit_rows = SCAN_ROWS.min(self.limit_rows * 2);
        }
    }

    fn key(&self) -> &[u8] {
        &self.row.0
    }

    fn value(&self) -> &[u8] {
        &self.row.1
    }
}

pub(super) async fn bucket_is_empty<V: View>(
    state: &State<'_, V>,
    bucket: BucketId,
) -> Result<Reply, EvaluateError> {
    let (from, to) = rows::versions_below(bucket, "");
    Ok(Reply::Empty(state.view.scan(&from, &to, 1).await?.is_empty()))
}
