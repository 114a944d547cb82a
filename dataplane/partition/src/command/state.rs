//! The rows one evaluation reads and changes: typed access, and what happens to blobs that lose their owner.

use quarry_clustermap::{BlobId, BucketId};

use super::framed::Framed;
use super::manifest::{BlobOwner, Manifest, Part, RevokedWriter, Segment, SegmentRun, UploadId};
use super::message::Refusal;
use super::{ANSWER_KEPT_MS, EvaluateError, RowProblem, View, rows};
use crate::{BlobRef, Row};

/// Archived bytes of one segment.
const SEGMENT_BYTES: usize = size_of::<rkyv::Archived<Segment>>();
/// Segments in the manifest's own row; a list above about 48 KiB moves to continuation rows.
pub(super) const SEGMENTS_IN_MANIFEST_MAX: usize = 48 * 1024 / SEGMENT_BYTES;
/// Segments of a full continuation row of about 32 KiB.
pub(super) const SEGMENTS_PER_ROW: usize = 32 * 1024 / SEGMENT_BYTES;

/// One evaluation: the view, the time, and the rows changed so far. Reads do not see the changes.
pub(super) struct State<'a, V> {
    pub(super) view: &'a V,
    pub(super) now_ms: u64,
    pub(super) rows: Vec<Row>,
}

pub(super) fn decode<T: Framed>(key: &[u8], value: &[u8]) -> Result<T, EvaluateError> {
    T::decode(value).map_err(|problem| damaged(key, problem.into()))
}

pub(super) fn damaged(key: &[u8], problem: RowProblem) -> EvaluateError {
    EvaluateError::Damaged { key: key.to_vec(), problem }
}

/// The rows of a version: its manifest and continuation rows.
pub(super) fn manifest_rows(bucket: BucketId, key: &str, manifest: &Manifest) -> Vec<Row> {
    let version_ms = manifest.last_modified_ms;
    let version = rows::version(bucket, key, version_ms);
    assert_eq!(manifest.continuation_rows, 0, "the segments are loaded");
    if manifest.segments.len() <= SEGMENTS_IN_MANIFEST_MAX {
        return vec![Row { key: version, value: Some(manifest.encode()) }];
    }
    let mut result = Vec::new();
    for (n, run) in (0..).zip(manifest.segments.chunks(SEGMENTS_PER_ROW)) {
        let value = SegmentRun { segments: run.to_vec() }.encode();
        result.push(Row { key: rows::continuation(bucket, key, version_ms, n), value: Some(value) });
    }
    let continuation_rows = u32::try_from(result.len()).expect("10,000 segments take 20 rows");
    let head = Manifest { segments: Vec::new(), continuation_rows, ..manifest.clone() };
    result.push(Row { key: version, value: Some(head.encode()) });
    result
}

impl<V: View> State<'_, V> {
    pub(super) fn set(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.rows.push(Row { key, value: Some(value) });
    }

    pub(super) fn remove(&mut self, key: Vec<u8>) {
        self.rows.push(Row { key, value: None });
    }

    pub(super) async fn load<T: Framed>(&self, key: &[u8]) -> Result<Option<T>, EvaluateError> {
        self.view.get(key).await?.map(|value| decode(key, &value)).transpose()
    }

    /// `last_modified_ms` of what replaces something.
    pub(super) fn next_ms(&self, previous_ms: Option<u64>) -> u64 {
        self.now_ms.max(previous_ms.map_or(0, |ms| ms.saturating_add(1)))
    }

    /// The newest version of a key, without the segments in continuation rows.
    pub(super) async fn current(
        &self,
        bucket: BucketId,
        key: &str,
    ) -> Result<Option<Manifest>, EvaluateError> {
        let (from, to) = rows::versions(bucket, key);
        let Some((row, value)) = self.view.scan(&from, &to, 1).await?.into_iter().next() else {
            return Ok(None);
        };
        let manifest: Manifest = decode(&row, &value)?;
        if rows::version(bucket, key, manifest.last_modified_ms) != row {
            return Err(damaged(&row, RowProblem::Key));
        }
        Ok(Some(manifest))
    }

    /// Loads the segments that stand in continuation rows.
    pub(super) async fn load_segments(
        &self,
        bucket: BucketId,
        key: &str,
        mut manifest: Manifest,
    ) -> Result<Manifest, EvaluateError> {
        for n in 0..manifest.continuation_rows {
            let row = rows::continuation(bucket, key, manifest.last_modified_ms, n);
            let run: Option<SegmentRun> = self.load(&row).await?;
            manifest.segments.extend(run.ok_or_else(|| damaged(&row, RowProblem::Mismatch))?.segments);
        }
        manifest.continuation_rows = 0;
        if manifest.segments.iter().map(|segment| u128::from(segment.size_bytes())).sum::<u128>()
            != u128::from(manifest.size_bytes)
        {
            let row = rows::version(bucket, key, manifest.last_modified_ms);
            return Err(damaged(&row, RowProblem::Mismatch));
        }
        Ok(manifest)
    }

    /// Bytes of an inline segment or part.
    pub(super) async fn load_body(&self, row: &[u8], size_bytes: u32) -> Result<Vec<u8>, EvaluateError> {
        match self.view.get(row).await? {
            Some(body) if body.len() == size_bytes as usize => Ok(body.to_vec()),
            _ => Err(damaged(row, RowProblem::Mismatch)),
        }
    }

    /// Refuses a blob whose writer was revoked.
    pub(super) async fn check_writer(&self, blob: BlobId) -> Result<(), EvaluateError> {
        if self.is_revoked(blob).await? { Err(Refusal::WriterRevoked { blob }.into()) } else { Ok(()) }
    }

    pub(super) async fn is_revoked(&self, blob: BlobId) -> Result<bool, EvaluateError> {
        let revoked: Option<RevokedWriter> = self.load(&rows::revoked(blob.writer)).await?;
        Ok(revoked.is_some_and(|writer| blob.incarnation <= writer.incarnation))
    }

    pub(super) async fn owner(&self, blob: BlobId) -> Result<Option<BlobOwner>, EvaluateError> {
        self.load(&rows::owner(blob)).await
    }

    /// Gives a blob that had no owner to a version or part.
    pub(super) fn own(&mut self, blob: BlobId, owner: &BlobOwner) {
        self.set(rows::owner(blob), owner.encode());
    }

    pub(super) fn note_degraded(&mut self, blob: &BlobRef) {
        if blob.missing_shards != 0 {
            self.set(rows::degraded(blob.blob), blob.encode());
        }
    }

    /// Remembers what a put answered, for a day.
    fn supersede(&mut self, request: BlobId, last_modified_ms: u64) {
        self.own(request, &BlobOwner::Superseded { last_modified_ms });
        self.set(self.expiry_of(rows::OWNER, &request.to_bytes()), Vec::new());
    }

    /// The expiry row of an answer that is kept from now on.
    pub(super) fn expiry_of(&self, kind: u8, id: &[u8; 16]) -> Vec<u8> {
        rows::expiry(self.now_ms.saturating_add(ANSWER_KEPT_MS), kind, id)
    }

    /// Puts a blob that lost its owner on the free list.
    fn free(&mut self, blob: &BlobRef, request: Option<BlobId>) {
        if request != Some(blob.blob) {
            self.remove(rows::owner(blob.blob));
        }
        if blob.missing_shards != 0 {
            self.remove(rows::degraded(blob.blob));
        }
        self.set(rows::free(blob.blob), blob.encode());
    }

    /// Removes a version whose segments are loaded, and frees its blobs.
    pub(super) fn remove_version(&mut self, bucket: BucketId, key: &str, manifest: &Manifest) {
        for row in manifest_rows(bucket, key, manifest) {
            self.remove(row.key);
        }
        for (n, segment) in (0..).zip(&manifest.segments) {
            match segment {
                Segment::Inline { .. } => self.remove(rows::body(bucket, key, manifest.last_modified_ms, n)),
                Segment::Blob(blob) => self.free(blob, manifest.request),
            }
        }
        if let Some(request) = manifest.request {
            self.supersede(request, manifest.last_modified_ms);
        }
    }

    /// Frees what a part holds, but leaves its row to the caller. `keep_answer`: its upload goes on, so that a
    /// repetition of its put can still arrive.
    pub(super) fn release_part(&mut self, upload: UploadId, number: u16, part: &Part, keep_answer: bool) {
        match &part.segment {
            Some(Segment::Inline { .. }) => self.remove(rows::part_body(upload, number)),
            Some(Segment::Blob(blob)) => self.free(blob, Some(part.request)),
            None => {}
        }
        if keep_answer {
            self.supersede(part.request, part.last_modified_ms);
        } else {
            self.remove(rows::owner(part.request));
        }
    }

    /// All parts of an upload, in order.
    pub(super) async fn all_parts(&self, upload: UploadId) -> Result<Vec<(u16, Part)>, EvaluateError> {
        const PAGE_ROWS: usize = 1000;
        let mut parts = Vec::new();
        let mut after = 0;
        loop {
            let page = self.parts_page(upload, after, PAGE_ROWS).await?;
            let whole = page.len() == PAGE_ROWS;
            parts.extend(page);
            match parts.last() {
                Some((number, _)) if whole => after = *number,
                _ => return Ok(parts),
            }
        }
    }

    pub(super) async fn parts_page(
        &self,
        upload: UploadId,
        after: u16,
        limit_rows: usize,
    ) -> Result<Vec<(u16, Part)>, EvaluateError> {
        let (from, to) = rows::parts(upload, after);
        let page = self.view.scan(&from, &to, limit_rows).await?;
        page.iter()
            .map(|(row, value)| {
                let number = rows::parse_part(row).ok_or_else(|| damaged(row, RowProblem::Key))?;
                Ok((number, decode(row, value)?))
            })
            .collect()
    }
}
