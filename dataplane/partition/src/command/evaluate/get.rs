//! Reading one version.

use super::{check_key, page_rows};
use crate::command::conditions::{self, Access};
use crate::command::manifest::{Manifest, ObjectPart, PartRun, Segment};
use crate::command::message::{Lookup, PartRange, Refusal, Reply};
use crate::command::state::{State, damaged};
use crate::command::{EvaluateError, RowProblem, View, rows};

/// The object version that a lookup names, its conditions checked.
pub(super) async fn find<V: View>(state: &State<'_, V>, lookup: &Lookup) -> Result<Manifest, EvaluateError> {
    let (bucket, key) = (lookup.bucket, lookup.key.as_str());
    check_key(key)?;
    let found = match lookup.version {
        None => state.newest(bucket, key).await?.ok_or(Refusal::NoSuchKey)?,
        Some(version) => state.find(bucket, key, version).await?.ok_or(Refusal::NoSuchVersion)?,
    };
    if found.kind.is_marker() {
        let (version, last_modified_ms) = (found.version_id(), found.last_modified_ms);
        return Err(match lookup.version {
            None => Refusal::DeleteMarker { version },
            Some(_) => Refusal::VersionIsMarker { version, last_modified_ms },
        }
        .into());
    }
    conditions::check(&lookup.conditions, Access::Read, Some(&found))?;
    Ok(found)
}

fn without_segments(manifest: Manifest) -> Manifest {
    Manifest { segments: Vec::new(), continuation_rows: 0, ..manifest }
}

pub(super) async fn head<V: View>(state: &State<'_, V>, lookup: &Lookup) -> Result<Reply, EvaluateError> {
    let mut manifest = find(state, lookup).await?;
    let mut part = None;
    if let Some(number) = lookup.part {
        manifest = state.load_segments(lookup.bucket, &lookup.key, manifest).await?;
        part = Some(part_range(state, lookup, &manifest, number).await?);
    }
    let version = state.shown(manifest.version_id());
    Ok(Reply::Object { manifest: without_segments(manifest), inline: Vec::new(), version, part })
}

pub(super) async fn get<V: View>(state: &State<'_, V>, lookup: &Lookup) -> Result<Reply, EvaluateError> {
    let (bucket, key) = (lookup.bucket, lookup.key.as_str());
    let manifest = find(state, lookup).await?;
    let manifest = state.load_segments(bucket, key, manifest).await?;
    let part = match lookup.part {
        Some(number) => Some(part_range(state, lookup, &manifest, number).await?),
        None => None,
    };
    let mut inline = Vec::new();
    for (n, segment) in (0..).zip(&manifest.segments) {
        if let Segment::Inline { size_bytes } = segment {
            let row = rows::body(bucket, key, manifest.last_modified_ms, n);
            inline.push(state.load_body(&row, *size_bytes).await?);
        }
    }
    let version = state.shown(manifest.version_id());
    Ok(Reply::Object { manifest, inline, version, part })
}

/// Where a part lies. An object that was not uploaded in parts is its own part 1.
async fn part_range<V: View>(
    state: &State<'_, V>,
    lookup: &Lookup,
    manifest: &Manifest,
    number: u16,
) -> Result<PartRange, EvaluateError> {
    if manifest.parts == 0 && number == 1 {
        return Ok(PartRange { first: 0, len: manifest.size_bytes, checksum: Vec::new() });
    }
    let mut first = 0;
    for part in all_parts(state, lookup, manifest).await? {
        if part.number == number {
            return Ok(PartRange { first, len: part.size_bytes, checksum: part.checksum });
        }
        first += part.size_bytes;
    }
    Err(Refusal::NoSuchPart { number }.into())
}

/// All parts of a manifest whose segments are loaded.
async fn all_parts<V: View>(
    state: &State<'_, V>,
    lookup: &Lookup,
    manifest: &Manifest,
) -> Result<Vec<ObjectPart>, EvaluateError> {
    if manifest.part_rows == 0 {
        // One segment per part, but for a last part without bytes.
        let sizes = manifest.segments.iter().map(Segment::size_bytes).chain(std::iter::repeat(0));
        let numbered = (1..).zip(sizes).take(manifest.parts as usize);
        let part = |(number, size_bytes)| ObjectPart { number, size_bytes, checksum: Vec::new() };
        return Ok(numbered.map(part).collect());
    }
    let mut parts = Vec::with_capacity(manifest.parts as usize);
    for n in 0..manifest.part_rows {
        let row = rows::part_run(lookup.bucket, &lookup.key, manifest.last_modified_ms, n);
        let run: Option<PartRun> = state.load(&row).await?;
        parts.extend(run.ok_or_else(|| damaged(&row, RowProblem::Mismatch))?.parts);
    }
    Ok(parts)
}

pub(super) async fn parts<V: View>(
    state: &State<'_, V>,
    lookup: &Lookup,
    after: u16,
    limit: u32,
) -> Result<Reply, EvaluateError> {
    let manifest = find(state, lookup).await?;
    let manifest = state.load_segments(lookup.bucket, &lookup.key, manifest).await?;
    let mut parts = all_parts(state, lookup, &manifest).await?;
    parts.retain(|part| part.number > after);
    let truncated = parts.len() > page_rows(limit);
    parts.truncate(page_rows(limit));
    let version = state.shown(manifest.version_id());
    Ok(Reply::ObjectParts { manifest: without_segments(manifest), version, parts, truncated })
}
