//! The rows one evaluation reads and changes: typed access, and what happens to blobs that lose their owner.

use quarry_clustermap::{BlobId, BucketId};

use super::framed::Framed;
use super::manifest::{BlobOwner, Manifest, NullVersion, Part, RevokedWriter, Segment, SegmentRun, UploadId};
use super::message::Refusal;
use super::version::{VersionId, Versioning};
use super::{ANSWER_KEPT_MS, EvaluateError, RowProblem, View, rows};
use crate::{BlobRef, Row};

/// Archived bytes of one segment.
const SEGMENT_BYTES: usize = size_of::<rkyv::Archived<Segment>>();
/// Segments in the manifest's own row; a list above about 48 KiB moves to continuation rows.
pub(super) const SEGMENTS_IN_MANIFEST_MAX: usize = 48 * 1024 / SEGMENT_BYTES;
/// Segments of a full continuation row of about 32 KiB.
pub(super) const SEGMENTS_PER_ROW: usize = 32 * 1024 / SEGMENT_BYTES;

/// Parts in one row that describes parts: at most about 32 KiB.
pub(super) const PARTS_PER_ROW: usize = 600;

/// One evaluation: the view, the time, and the rows changed so far. Reads do not see the changes.
pub(super) struct State<'a, V> {
    pub(super) view: &'a V,
    pub(super) now_ms: u64,
    pub(super) versioning: Versioning,
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

    /// The name of a version, as far as the bucket knows of versions.
    pub(super) fn shown(&self, version: VersionId) -> Option<VersionId> {
        (self.versioning != Versioning::Unversioned).then_some(version)
    }

    /// A version by name, without the segments in continuation rows.
    pub(super) async fn find(
        &self,
        bucket: BucketId,
        key: &str,
        version: VersionId,
    ) -> Result<Option<Manifest>, EvaluateError> {
        match version {
            VersionId::Named { version_ms, .. } => {
                let found = self.version_at(bucket, key, version_ms).await?;
                Ok(found.filter(|manifest| manifest.version_id() == version))
            }
            VersionId::Null => {
                let newest = self.newest(bucket, key).await?;
                self.null_version(bucket, key, newest.as_ref()).await
            }
        }
    }

    pub(super) async fn version_at(
        &self,
        bucket: BucketId,
        key: &str,
        version_ms: u64,
    ) -> Result<Option<Manifest>, EvaluateError> {
        let row = rows::version(bucket, key, version_ms);
        let manifest: Option<Manifest> = self.load(&row).await?;
        match manifest {
            Some(manifest) if manifest.last_modified_ms != version_ms => Err(damaged(&row, RowProblem::Key)),
            manifest => Ok(manifest),
        }
    }

    /// The null version; `newest` is the newest of the key.
    pub(super) async fn null_version(
        &self,
        bucket: BucketId,
        key: &str,
        newest: Option<&Manifest>,
    ) -> Result<Option<Manifest>, EvaluateError> {
        let Some(newest) = newest else { return Ok(None) };
        if newest.kind.is_null() {
            return Ok(Some(newest.clone()));
        }
        let row = rows::null_version(bucket, key);
        let Some(NullVersion { version_ms }) = self.load(&row).await? else { return Ok(None) };
        let null = self.version_at(bucket, key, version_ms).await?.filter(|null| null.kind.is_null());
        null.map(Some).ok_or_else(|| damaged(&row, RowProblem::Mismatch))
    }

    /// Makes way for a new newest version: it takes the place of the null version if the bucket does not keep
    /// versions, and whether it is the null version is returned with its `last_modified_ms`.
    pub(super) async fn make_way(
        &mut self,
        bucket: BucketId,
        key: &str,
        newest: Option<&Manifest>,
    ) -> Result<(u64, bool), EvaluateError> {
        let version_ms = self.next_ms(newest.map(|newest| newest.last_modified_ms));
        let is_null = self.versioning != Versioning::Enabled;
        if is_null {
            if let Some(null) = self.null_version(bucket, key, newest).await? {
                self.remove_from_stack(bucket, key, newest, null).await?;
            }
        } else if let Some(newest) = newest.filter(|newest| newest.kind.is_null()) {
            let null = NullVersion { version_ms: newest.last_modified_ms };
            self.set(rows::null_version(bucket, key), null.encode());
        }
        Ok((version_ms, is_null))
    }

    /// Removes one version of a key, wherever it stands.
    pub(super) async fn remove_from_stack(
        &mut self,
        bucket: BucketId,
        key: &str,
        newest: Option<&Manifest>,
        version: Manifest,
    ) -> Result<(), EvaluateError> {
        let is_newest = newest.is_some_and(|newest| newest.last_modified_ms == version.last_modified_ms);
        let was_named = match (is_newest, version.kind.is_null()) {
            (false, is_null) => is_null,
            (true, true) => false,
            // The next one may be the null version, and is the newest from now on.
            (true, false) => {
                let (from, to) = rows::versions(bucket, key);
                let next = self.view.scan(&from, &to, 2).await?.into_iter().nth(1);
                let next = next.map(|(row, value)| decode::<Manifest>(&row, &value)).transpose()?;
                next.is_some_and(|next| next.kind.is_null())
            }
        };
        if was_named {
            self.remove(rows::null_version(bucket, key));
        }
        let version = self.load_segments(bucket, key, version).await?;
        self.remove_version(bucket, key, &version);
        Ok(())
    }

    /// The newest version of a key, without the segments in continuation rows.
    pub(super) async fn newest(
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
    fn supersede(&mut self, request: BlobId, last_modified_ms: u64, is_null: bool) {
        self.own(request, &BlobOwner::Superseded { last_modified_ms, is_null });
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

    /// Frees a blob that another one has taken the place of. The answer to the put that brought it is kept for a day,
    /// as of a put that was overwritten: it names the put no longer.
    pub(super) fn release_swapped(
        &mut self,
        blob: &BlobRef,
        request: Option<BlobId>,
        (version_ms, is_null): (u64, bool),
    ) {
        self.free(blob, request);
        if request == Some(blob.blob) {
            self.supersede(blob.blob, version_ms, is_null);
        }
    }

    /// Removes a version whose segments are loaded, and frees its blobs.
    pub(super) fn remove_version(&mut self, bucket: BucketId, key: &str, manifest: &Manifest) {
        for row in manifest_rows(bucket, key, manifest) {
            self.remove(row.key);
        }
        for n in 0..manifest.part_rows {
            self.remove(rows::part_run(bucket, key, manifest.last_modified_ms, n));
        }
        let request = manifest.origin.request();
        for (n, segment) in (0..).zip(&manifest.segments) {
            match segment {
                Segment::Inline { .. } => self.remove(rows::body(bucket, key, manifest.last_modified_ms, n)),
                Segment::Blob(blob) => self.free(blob, request),
            }
        }
        // The answer of a put whose first blob was swapped was put aside then.
        let is_blob = |segment: &Segment| matches!(segment, Segment::Blob(_));
        let is_request =
            |segment: &Segment| matches!(segment, Segment::Blob(blob) if Some(blob.blob) == request);
        let was_swapped = manifest.segments.iter().any(is_blob) && !manifest.segments.iter().any(is_request);
        if let Some(request) = request.filter(|_| !was_swapped) {
            self.supersede(request, manifest.last_modified_ms, manifest.kind.is_null());
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
            self.supersede(part.request, part.last_modified_ms, true);
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
