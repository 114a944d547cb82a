//! Multipart uploads. Parts live under the upload's id until Complete moves them into a manifest; which blobs an
//! upload owns is found through it even then, so that Complete does not rewrite 10,000 owner rows.

use std::collections::BTreeMap;

use quarry_clustermap::BucketId;

use super::put::check_content;
use super::{check_attributes, check_key, check_tags, completing, invalid, page_rows, visible};
use crate::command::conditions::{self, Access};
use crate::command::framed::Framed;
use crate::command::manifest::{
    BlobOwner, CompletedUpload, Manifest, Origin, Pairs, Part, PartRun, Segment, Stored, StoredAttributes,
    Upload, UploadChecksum, UploadId, VersionKind, version_id,
};
use crate::command::message::{Complete, PartEntry, PutPart, Refusal, Reply};
use crate::command::state::{PARTS_PER_ROW, State, manifest_rows};
use crate::command::{EvaluateError, PARTS_MAX, View, rows};

pub(super) async fn load<V: View>(
    state: &State<'_, V>,
    bucket: BucketId,
    key: &str,
    upload: UploadId,
) -> Result<Upload, EvaluateError> {
    check_key(key)?;
    let row: Option<Upload> = state.load(&rows::upload(bucket, key, upload)).await?;
    Ok(row.ok_or(Refusal::NoSuchUpload)?)
}

pub(super) async fn create<V: View>(
    state: &mut State<'_, V>,
    (bucket, key, upload): (BucketId, &str, UploadId),
    (attributes, tags): (&StoredAttributes, &Pairs),
    checksum: Option<UploadChecksum>,
) -> Result<Reply, EvaluateError> {
    check_key(key)?;
    check_attributes(attributes, &Vec::new())?;
    check_tags(tags)?;
    if checksum.is_some_and(|checksum| checksum.full_object && !checksum.algorithm.combines()) {
        return Err(invalid("a SHA of the whole object does not follow from those of its parts").into());
    }
    let row = rows::upload(bucket, key, upload);
    if state.load::<CompletedUpload>(&rows::completed(upload)).await?.is_some() {
        return Err(Refusal::NoSuchUpload.into());
    }
    if state.load::<Upload>(&row).await?.is_none() {
        let (attributes, tags) = (attributes.clone(), tags.clone());
        state.set(row, Upload { created_ms: state.now_ms, attributes, tags, checksum }.encode());
    }
    Ok(Reply::Done)
}

pub(super) async fn put_part<V: View>(
    state: &mut State<'_, V>,
    put: &PutPart,
) -> Result<Reply, EvaluateError> {
    let upload = load(state, put.bucket, &put.key, put.upload).await?;
    completing::check_part(upload.checksum, &put.checksums)?;
    check_attributes(&StoredAttributes::default(), &put.checksums)?;
    if !(1..=PARTS_MAX).contains(&put.number) {
        return Err(invalid("part numbers are 1 to 10000").into());
    }
    let content = check_content(&put.content)?;
    if content.segments.len() > 1 {
        return Err(invalid("a part has one blob").into());
    }
    let answer = |last_modified_ms| {
        Reply::Stored(Stored {
            size_bytes: content.size_bytes,
            etag: hex::encode(put.md5),
            last_modified_ms,
            parts: 0,
            version: None,
            checksums: Vec::new(),
        })
    };
    let row = rows::part(put.upload, put.number);
    let previous: Option<Part> = state.load(&row).await?;
    if let Some(previous) = previous.as_ref().filter(|part| part.request == content.request) {
        return Ok(answer(previous.last_modified_ms));
    }
    match state.owner(content.request).await? {
        None => {}
        Some(BlobOwner::Superseded { last_modified_ms, .. }) => return Ok(answer(last_modified_ms)),
        Some(_) => return Err(Refusal::BlobInUse { blob: content.request }.into()),
    }
    state.check_writer(content.request).await?;

    let last_modified_ms = state.next_ms(previous.as_ref().map(|part| part.last_modified_ms));
    if let Some(previous) = &previous {
        // The new part's rows replace those of the old one, so an inline body is removed only if none follows.
        let replaced = matches!(previous.segment, Some(Segment::Inline { .. })) && content.inline.is_some();
        let segment = if replaced { None } else { previous.segment };
        state.release_part(put.upload, put.number, &Part { segment, ..previous.clone() }, true);
    }
    let owner =
        BlobOwner::Part { bucket: put.bucket, key: put.key.clone(), upload: put.upload, number: put.number };
    state.own(content.request, &owner);
    let segment = content.segments.first().copied();
    match (&segment, content.inline) {
        (Some(Segment::Blob(blob)), _) => state.note_degraded(blob),
        (_, Some(bytes)) => state.set(rows::part_body(put.upload, put.number), bytes.to_vec()),
        (_, None) => {}
    }
    let part = Part {
        md5: put.md5,
        last_modified_ms,
        checksums: put.checksums.clone(),
        request: content.request,
        segment,
    };
    state.set(row, part.encode());
    Ok(answer(last_modified_ms))
}

pub(super) async fn list_parts<V: View>(
    state: &State<'_, V>,
    (bucket, key, upload): (BucketId, &str, UploadId),
    after: u16,
    limit: u32,
) -> Result<Reply, EvaluateError> {
    let Upload { checksum, attributes, .. } = load(state, bucket, key, upload).await?;
    let class = attributes.storage_class().map(str::to_owned);
    let limit = page_rows(limit);
    let mut page = state.parts_page(upload, after, limit + 1).await?;
    let truncated = limit > 0 && page.len() > limit;
    page.truncate(limit);
    let entry = |(number, part): (u16, Part)| PartEntry {
        number,
        size_bytes: part.size_bytes(),
        md5: part.md5,
        last_modified_ms: part.last_modified_ms,
        checksums: part.checksums,
    };
    Ok(Reply::Parts { parts: page.into_iter().map(entry).collect(), truncated, checksum, class })
}

pub(super) async fn complete<V: View>(
    state: &mut State<'_, V>,
    complete: &Complete,
) -> Result<Reply, EvaluateError> {
    let (bucket, key, id) = (complete.bucket, complete.key.as_str(), complete.upload);
    check_key(key)?;
    if let Some(done) = state.load::<CompletedUpload>(&rows::completed(id)).await? {
        let same = done.bucket == bucket && done.key == key;
        return if same { Ok(Reply::Stored(done.stored)) } else { Err(Refusal::NoSuchUpload.into()) };
    }
    let upload = load(state, bucket, key, id).await?;
    let mut left_out: BTreeMap<u16, Part> = state.all_parts(id).await?.into_iter().collect();
    let chosen = completing::choose(complete, upload.checksum, &mut left_out)?;
    let checksums = completing::checksums(complete, upload.checksum, &chosen)?;
    check_attributes(&upload.attributes, &checksums)?;
    let newest = state.newest(bucket, key).await?;
    conditions::check(&complete.conditions, Access::Write, visible(newest.as_ref()))?;

    let (version_ms, is_null) = state.make_way(bucket, key, newest.as_ref()).await?;
    let runs = completing::described(upload.checksum, &chosen);
    let runs: Vec<_> = runs.chunks(PARTS_PER_ROW).map(|parts| PartRun { parts: parts.to_vec() }).collect();
    for (n, run) in (0..).zip(&runs) {
        state.set(rows::part_run(bucket, key, version_ms, n), run.encode());
    }
    let mut manifest = Manifest {
        size_bytes: chosen.iter().map(|(_, part)| part.size_bytes()).sum(),
        etag: completing::etag(&chosen),
        last_modified_ms: version_ms,
        attributes: upload.attributes,
        tags: upload.tags,
        checksums: checksums.clone(),
        parts: u32::try_from(chosen.len()).expect("part numbers are 16 bits and distinct"),
        kind: VersionKind::new(is_null, false),
        origin: Origin::Upload(id),
        segments: Vec::with_capacity(chosen.len()),
        continuation_rows: 0,
        part_rows: u32::try_from(runs.len()).expect("10,000 parts take 17 rows"),
    };
    for (number, part) in &chosen {
        move_part(state, complete, *number, part, &mut manifest).await?;
    }
    for (number, part) in &left_out {
        state.remove(rows::part(id, *number));
        state.release_part(id, *number, part, false);
    }
    state.rows.extend(manifest_rows(bucket, key, &manifest));
    state.remove(rows::upload(bucket, key, id));
    let stored = Stored {
        size_bytes: manifest.size_bytes,
        etag: manifest.etag,
        last_modified_ms: version_ms,
        parts: manifest.parts,
        version: state.shown(version_id(is_null, version_ms, Origin::Upload(id))),
        checksums,
    };
    let done = CompletedUpload { bucket, key: key.to_owned(), stored: stored.clone() };
    state.set(rows::completed(id), done.encode());
    state.set(state.expiry_of(rows::COMPLETED, &id.0), Vec::new());
    Ok(Reply::Stored(stored))
}

/// Moves a part's bytes into the manifest. Only a last part can be inline: the others have 5 MiB.
async fn move_part<V: View>(
    state: &mut State<'_, V>,
    complete: &Complete,
    number: u16,
    part: &Part,
    manifest: &mut Manifest,
) -> Result<(), EvaluateError> {
    state.remove(rows::part(complete.upload, number));
    if !matches!(part.segment, Some(Segment::Blob(_))) {
        // It has no shards, and repetitions of its put are refused from now on: nobody asks who owns it.
        state.remove(rows::owner(part.request));
    }
    if let Some(Segment::Inline { size_bytes }) = part.segment {
        let from = rows::part_body(complete.upload, number);
        let body = state.load_body(&from, size_bytes).await?;
        let n = u32::try_from(manifest.segments.len()).expect("at most 10,000 segments");
        state.remove(from);
        state.set(rows::body(complete.bucket, &complete.key, manifest.last_modified_ms, n), body);
    }
    manifest.segments.extend(part.segment);
    Ok(())
}

pub(super) async fn abort<V: View>(
    state: &mut State<'_, V>,
    bucket: BucketId,
    key: &str,
    upload: UploadId,
) -> Result<Reply, EvaluateError> {
    load(state, bucket, key, upload).await?;
    drop_upload(state, bucket, key, upload).await?;
    Ok(Reply::Done)
}

/// Removes an upload and its parts, and frees their blobs.
pub(super) async fn drop_upload<V: View>(
    state: &mut State<'_, V>,
    bucket: BucketId,
    key: &str,
    upload: UploadId,
) -> Result<(), EvaluateError> {
    for (number, part) in state.all_parts(upload).await? {
        state.remove(rows::part(upload, number));
        state.release_part(upload, number, &part, false);
    }
    state.remove(rows::upload(bucket, key, upload));
    Ok(())
}
