//! The rows of one partition, one by one: which blobs they name, and whether they are what they should be. Pure.
//!
//! Memory, for one partition at a time: 16 bytes per inline body or continuation row, twice, and 72 bytes per blob.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use quarry_clustermap::{BlobId, PartitionId, partition_of};
use quarry_partition::{
    BlobRef,
    command::{BlobOwner, DecodedRow, Segment, VERSION_MS_BYTES, decode_row, null_version_row},
};

use super::{
    blobs::Claim,
    report::{Class, Findings},
};

/// Stands for a row key.
type KeyHash = u64;

/// What one walk over a partition's rows found.
pub(super) struct Owners {
    partition: PartitionId,
    partition_count: u16,
    /// Blobs that versions and parts name, and those on the free list.
    pub(super) blobs: Vec<(BlobRef, Claim)>,
    pub(super) objects: u64,
    /// The row key of the version before, without its time.
    newer: Vec<u8>,
    /// Blobs and requests with an owner row.
    owned: Vec<BlobId>,
    /// Rows that others name, with the length they must have.
    named: Vec<(KeyHash, Option<u32>)>,
    /// Rows that others must name.
    beside: Vec<(KeyHash, u32)>,
}

impl Owners {
    pub(super) fn new(partition: PartitionId, partition_count: u16) -> Self {
        let (blobs, owned, named, beside, newer) = Default::default();
        Self { partition, partition_count, blobs, objects: 0, newer, owned, named, beside }
    }

    /// Takes the next row.
    pub(super) fn row(&mut self, key: &[u8], value: &[u8], findings: &mut Findings) {
        let row = match decode_row(key, value) {
            Ok(row) => row,
            Err(problem) => return self.damaged(key, problem, findings),
        };
        for segment in row.segments() {
            if let Segment::Blob(blob) = segment {
                self.blobs.push((*blob, Claim::Live));
            }
        }
        self.named.extend(row.named_rows(key).into_iter().map(|named| (hash(&named.key), named.size_bytes)));
        match row {
            DecodedRow::Version { bucket, key: name, manifest } => {
                self.objects += u64::from(!manifest.kind.is_marker());
                self.null_version(key, manifest.kind.is_null());
                if partition_of(bucket, name.as_bytes(), self.partition_count) != self.partition {
                    self.damaged(key, "its key belongs to another partition", findings);
                }
            }
            DecodedRow::Body { size_bytes } | DecodedRow::PartBody { size_bytes } => {
                self.beside.push((hash(key), u32::try_from(size_bytes).unwrap_or(u32::MAX)));
            }
            DecodedRow::Continuation(_) | DecodedRow::PartRun | DecodedRow::NullVersion(_) => {
                self.beside.push((hash(key), 0));
            }
            DecodedRow::Owner { blob, owner: BlobOwner::Version { .. } | BlobOwner::Part { .. } } => {
                self.owned.push(blob);
            }
            DecodedRow::Free(blob) => self.blobs.push((blob, Claim::Freed)),
            _ => {}
        }
    }

    /// A null version below another one is named by a row. Versions come in order, newest first within a key.
    fn null_version(&mut self, row: &[u8], is_null: bool) {
        let of_key = &row[..row.len() - VERSION_MS_BYTES];
        if is_null && self.newer == of_key {
            self.named.push((hash(&null_version_row(row)), None));
        }
        self.newer.clear();
        self.newer.extend_from_slice(of_key);
    }

    fn damaged(&self, key: &[u8], what: impl std::fmt::Display, findings: &mut Findings) {
        findings.add(Class::DamagedRow, || format!("{} row {}: {what}", self.partition, hex::encode(key)));
    }

    /// Call it after the last row. What rows say about each other and do not keep: by key, for [`Owners::explain`].
    pub(super) fn finish(&mut self, findings: &mut Findings) -> BTreeMap<KeyHash, &'static str> {
        self.owned.sort_unstable();
        for (blob, _) in self.blobs.iter().filter(|(_, claim)| *claim == Claim::Live) {
            if self.owned.binary_search(&blob.blob).is_err() {
                findings.add(Class::DamagedRow, || {
                    format!(
                        "{} blob {}: a manifest or part names it, but it has no owner row",
                        self.partition, blob.blob
                    )
                });
            }
        }
        self.beside.sort_unstable();
        let mut problems = BTreeMap::new();
        for (key, size_bytes) in &self.named {
            match self.beside.binary_search_by_key(key, |(key, _)| *key) {
                Err(_) => drop(problems.insert(*key, "another row names it, but it is not there")),
                Ok(index) if size_bytes.is_some_and(|size| size != self.beside[index].1) => {
                    problems.insert(*key, "it has another length than the row that names it says");
                }
                Ok(_) => {}
            }
        }
        self.named.sort_unstable();
        for (key, _) in &self.beside {
            if self.named.binary_search_by_key(key, |(key, _)| *key).is_err() {
                problems.insert(*key, "nothing names it");
            }
        }
        problems
    }

    /// A second walk, only if there are problems: finds the keys of the rows in question. Take every row again.
    pub(super) fn explain(
        &self,
        (key, value): (&[u8], &[u8]),
        problems: &mut BTreeMap<KeyHash, &'static str>,
        findings: &mut Findings,
    ) {
        let Ok(row) = decode_row(key, value) else { return };
        let null = matches!(row, DecodedRow::Version { .. }).then(|| null_version_row(key));
        let named = row.named_rows(key).into_iter().map(|named| named.key).chain(null);
        for key in named.chain([key.to_vec()]) {
            if let Some(problem) = problems.remove(&hash(&key)) {
                self.damaged(&key, problem, findings);
            }
        }
    }
}

fn hash(key: &[u8]) -> KeyHash {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}
