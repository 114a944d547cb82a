//! A version moves to another tier: blob by blob, each written anew there and swapped in by one commit.
//!
//! Order per blob: the new blob is flushed on all its devices, then one command swaps it into the version if that still
//! has the old one, and puts the old one on the free list. So a crash leaves either the old blob in its version and a new
//! one that the collector frees, or the new one and an entry of the free list. Half of a long version may lie in either
//! tier for a while, which readers do not notice. What the command says of the version (class, time of the move) comes
//! with the last blob.
//!
//! A reader that looked the version up before the swap keeps its blobs (`Cluster::reading`), or looks again.

use std::rc::Rc;

use bytes::Bytes;
use futures::{StreamExt, stream::LocalBoxStream};
use quarry_clustermap::{BucketId, PartitionId, Tier};
use quarry_partition::{
    BlobRef,
    command::{BlobSwap, Command, Manifest, Refusal, SwapBlobs},
};

use super::{MOVED_ATTRIBUTE, STORAGE_CLASS_HEADER, elsewhere};
use crate::{
    api::{Body, BodyDigests, BodyError},
    cluster::Cluster,
    metadata::{ExecuteError, Metadata},
    reader::{ReadError, ReadMemory, read_range},
    repair::Budget,
    writer::{WriteError, free_blob, write_blob},
};

/// What a move came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    /// Blobs that were swapped.
    pub blobs: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Why a version was not moved, or not wholly; it is intact.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MoveError {
    /// It was replaced, deleted or moved meanwhile.
    #[error("the version has changed")]
    Changed,
    /// The old blob cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The new blob cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The partition cannot be asked.
    #[error(transparent)]
    Execute(ExecuteError),
}

/// One version on its way.
pub struct MoveJob<'j, C: Cluster> {
    /// Where it runs.
    pub cluster: &'j Rc<C>,
    /// What bytes cost: each is read and written.
    pub budget: &'j Rc<Budget>,
    /// The partition that owns the key.
    pub partition: PartitionId,
    /// Of the object.
    pub bucket: BucketId,
    /// Of the object.
    pub key: &'j str,
    /// The version, with all its segments.
    pub manifest: &'j Manifest,
}

impl<C: Cluster + Metadata> MoveJob<'_, C> {
    /// Moves what lies elsewhere to `tier` (`None`: nothing), and gives the version another class if one is named.
    ///
    /// # Errors
    /// [`MoveError`]. What was moved until then stays moved.
    pub async fn run(&self, tier: Option<Tier>, class: Option<&str>) -> Result<Moved, MoveError> {
        let map = self.cluster.map();
        let of_tier = |tier| elsewhere(&map, &self.manifest.segments, tier).map(move |blob| (tier, blob));
        let blobs: Vec<(Tier, BlobRef)> = tier.into_iter().flat_map(of_tier).collect();
        let mut headers: Vec<(String, Option<String>)> = Vec::new();
        if let Some(class) = class {
            headers.push((STORAGE_CLASS_HEADER.to_owned(), Some(class.to_owned())));
        }
        let mut moved = Moved::default();
        let Some(((tier, last), others)) = blobs.split_last() else {
            if !headers.is_empty() {
                self.swap(Vec::new(), headers).await?;
            }
            return Ok(moved);
        };
        headers.push((MOVED_ATTRIBUTE.to_owned(), Some(self.cluster.now_ms().to_string())));
        for (tier, blob) in others {
            self.move_blob(*tier, blob, Vec::new()).await?;
            moved.blobs += 1;
            moved.bytes += blob.size_bytes;
        }
        self.move_blob(*tier, last, headers).await?;
        Ok(Moved { blobs: moved.blobs + 1, bytes: moved.bytes + last.size_bytes })
    }

    async fn move_blob(
        &self,
        tier: Tier,
        from: &BlobRef,
        headers: Vec<(String, Option<String>)>,
    ) -> Result<(), MoveError> {
        let reading = self.cluster.reading(&[from.blob]);
        let mut body = BlobBody::new(Rc::clone(self.cluster), Rc::clone(self.budget), *from);
        let written = write_blob(self.cluster, tier, self.partition, &mut body).await;
        drop(reading);
        let to = written.map_err(|error| body.failed.take().map_or(error.into(), MoveError::Read))?;
        let swapped = self.swap(vec![BlobSwap { from: from.blob, to }], headers).await;
        let outcome_unknown =
            matches!(&swapped, Err(MoveError::Execute(error)) if error.is_outcome_unknown());
        if swapped.is_err()
            && !outcome_unknown
            && let Err(error) = free_blob(self.cluster, &to).await
        {
            tracing::warn!(event = "blob_left_to_the_collector", blob = %to.blob, %error);
        }
        swapped
    }

    async fn swap(
        &self,
        swaps: Vec<BlobSwap>,
        headers: Vec<(String, Option<String>)>,
    ) -> Result<(), MoveError> {
        let Manifest { last_modified_ms: version_ms, origin, .. } = *self.manifest;
        let (bucket, key) = (self.bucket, self.key.to_owned());
        let command = Command::SwapBlobs(SwapBlobs { bucket, key, version_ms, origin, swaps, headers });
        match self.cluster.execute(self.partition, command).await {
            Ok(_) => Ok(()),
            Err(ExecuteError::Refused(Refusal::VersionChanged)) => Err(MoveError::Changed),
            Err(error) => Err(MoveError::Execute(error)),
        }
    }
}

/// The bytes of a blob on their way to another one, verified by the reader.
struct BlobBody<C> {
    cluster: Rc<C>,
    budget: Rc<Budget>,
    len_bytes: u64,
    stream: LocalBoxStream<'static, Result<Bytes, ReadError>>,
    failed: Option<ReadError>,
}

impl<C: Cluster> BlobBody<C> {
    fn new(cluster: Rc<C>, budget: Rc<Budget>, blob: BlobRef) -> Self {
        let stream = read_range(Rc::clone(&cluster), blob, 0..blob.size_bytes, ReadMemory::Heap);
        let (stream, failed) = (stream.boxed_local(), None);
        Self { cluster, budget, len_bytes: blob.size_bytes, stream, failed }
    }
}

impl<C: Cluster> Body for BlobBody<C> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        match self.stream.next().await? {
            Ok(bytes) => {
                self.budget.spend(&*self.cluster, 2 * bytes.len() as u64).await;
                Some(Ok(bytes))
            }
            Err(error) => {
                let problem = error.to_string();
                self.failed = Some(error);
                Some(Err(BodyError::Source { problem }))
            }
        }
    }

    fn digests(&mut self) -> BodyDigests {
        BodyDigests::default()
    }
}
