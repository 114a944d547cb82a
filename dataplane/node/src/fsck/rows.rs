//! The rows of one replica of a partition: those of its store, with entries of its log's tail applied in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound::{Excluded, Included, Unbounded},
};

use bytes::Bytes;
use quarry_clustermap::{PartitionId, Sequence};
use quarry_partition::{
    Payload,
    command::{View, ViewError},
};
use quarry_storage::{
    device::SyncDevice,
    store::{Mutation, Store, StoreError},
};

use crate::host::into_mutations;

/// Rows read at once: at most 8 MiB, since an inline body has at most 128 KiB.
const PAGE_ROWS: usize = 64;

/// Rows of one replica through one sequence.
pub(super) struct ReplicaRows {
    store: Store<SyncDevice>,
    partition: PartitionId,
    tail: BTreeMap<Bytes, Option<Bytes>>,
}

/// Where a page ends: rows from here on have not been read.
type Next = Option<Vec<u8>>;

/// Decodes the payload of a log entry.
pub(super) fn decode_entry(payload: &[u8]) -> Result<Vec<Mutation>, String> {
    Payload::decode(payload).map(into_mutations).map_err(|error| error.to_string())
}

impl ReplicaRows {
    /// Applies the tail up to and including `through`.
    ///
    /// # Errors
    /// An entry that cannot be decoded.
    pub(super) fn new(
        store: &Store<SyncDevice>,
        partition: PartitionId,
        through: Sequence,
    ) -> Result<Self, String> {
        let mut tail = BTreeMap::new();
        let log = store.recovered_log(partition);
        for entry in log.tail.iter().filter(|entry| entry.sequence <= through) {
            let mutations = decode_entry(&entry.payload);
            let mutations = mutations.map_err(|error| format!("{partition} {}: {error}", entry.sequence))?;
            tail.extend(mutations.into_iter().map(|Mutation { key, value }| (key, value)));
        }
        Ok(Self { store: store.clone(), partition, tail })
    }

    pub(super) async fn row(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.tail.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.store.row(self.partition, key).await,
        }
    }

    async fn page(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
    ) -> Result<(Vec<(Bytes, Bytes)>, Next), StoreError> {
        let stored = self.store.rows(self.partition, from, to, limit_rows).await?;
        let next = match stored.last() {
            Some((last, _)) if stored.len() == limit_rows => Some([last, &[0][..]].concat()),
            _ => None,
        };
        if next.as_deref().or(to).is_some_and(|end| from >= end) {
            return Ok((stored, next));
        }
        let end = next.as_deref().or(to).map_or(Unbounded, Excluded);
        let mut rows: BTreeMap<Bytes, Option<Bytes>> =
            stored.into_iter().map(|(key, value)| (key, Some(value))).collect();
        for (key, value) in self.tail.range::<[u8], _>((Included(from), end)) {
            rows.insert(key.clone(), value.clone());
        }
        Ok((rows.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(), next))
    }

    /// All rows, in order.
    pub(super) fn stream(&self) -> RowStream<'_> {
        RowStream { rows: self, page: VecDeque::new(), next: Some(Vec::new()) }
    }
}

/// The rows of a replica one after another.
pub(super) struct RowStream<'r> {
    rows: &'r ReplicaRows,
    page: VecDeque<(Bytes, Bytes)>,
    next: Next,
}

impl RowStream<'_> {
    pub(super) async fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        loop {
            if let Some(row) = self.page.pop_front() {
                return Ok(Some(row));
            }
            let Some(from) = self.next.take() else { return Ok(None) };
            let (page, next) = self.rows.page(&from, None, PAGE_ROWS).await?;
            (self.page, self.next) = (page.into(), next);
        }
    }
}

fn view_error(error: StoreError) -> ViewError {
    ViewError { detail: error.to_string() }
}

/// So that the partition's own commands can be asked.
impl View for ReplicaRows {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        self.row(key).await.map_err(view_error)
    }

    async fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit_rows: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, ViewError> {
        let (mut found, mut from) = (Vec::new(), from.to_vec());
        while found.len() < limit_rows {
            let (page, next) = self.page(&from, Some(to), limit_rows).await.map_err(view_error)?;
            found.extend(page);
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        found.truncate(limit_rows);
        Ok(found)
    }
}
