//! What a command sees of its partition: committed rows of the store, with proposed ones laid over them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use quarry_clustermap::PartitionId;
use quarry_partition::{
    Row,
    command::{View, ViewError, Walk},
};
use quarry_storage::{
    device::Device,
    index::Pace,
    store::{RowWalk, Store, StoreError},
};

use super::proposed::Proposed;

/// Rows of one partition on one device.
pub(crate) struct RowView<'a, D: Device> {
    store: &'a Store<D>,
    partition: PartitionId,
    proposed: Option<&'a RefCell<Proposed>>,
    device_is_bad: Cell<bool>,
}

impl<'a, D: Device + 'static> RowView<'a, D> {
    /// Committed rows only.
    pub(crate) fn committed(store: &'a Store<D>, partition: PartitionId) -> Self {
        Self { store, partition, proposed: None, device_is_bad: Cell::new(false) }
    }

    /// Committed and proposed rows.
    pub(crate) fn proposed(
        store: &'a Store<D>,
        partition: PartitionId,
        proposed: &'a RefCell<Proposed>,
    ) -> Self {
        Self { store, partition, proposed: Some(proposed), device_is_bad: Cell::new(false) }
    }

    /// Rows from a key on, at most so many and about so many bytes; and where the next page starts.
    pub(crate) async fn page(
        &self,
        from: &[u8],
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Row>, Option<Vec<u8>>), ViewError> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        let mut from = from.to_vec();
        loop {
            // Small steps, because a row may hold a whole inline body.
            let step = self.scan(&from, &[0xff; 8], 8).await?;
            let Some((last, _)) = step.last() else { return Ok((rows, None)) };
            from = [last, &[0][..]].concat();
            for (key, value) in step {
                bytes += key.len() + value.len();
                rows.push(Row { key: key.to_vec(), value: Some(value.to_vec()) });
            }
            if rows.len() >= rows_max || bytes >= bytes_max {
                return Ok((rows, Some(from)));
            }
        }
    }

    /// A walk over committed rows.
    pub(crate) fn walk(&self, (from, to): (&[u8], &[u8]), pace: &Rc<Pace>) -> CommittedWalk<'_, D> {
        CommittedWalk { rows: self.store.walk(self.partition, from, to, Rc::clone(pace)), view: self }
    }

    /// Whether the device gave an error or damaged rows: it cannot serve as primary then.
    pub(crate) fn device_is_bad(&self) -> bool {
        self.device_is_bad.get()
    }

    fn failed(&self, error: &StoreError) -> ViewError {
        if matches!(error, StoreError::Index { .. } | StoreError::Device(_)) {
            self.device_is_bad.set(true);
        }
        ViewError { detail: error.to_string() }
    }

    async fn scan_committed(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, ViewError> {
        self.store.rows(self.partition, from, Some(to), limit).await.map_err(|error| self.failed(&error))
    }
}

impl<D: Device + 'static> View for RowView<'_, D> {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        if let Some(pending) = self.proposed.and_then(|proposed| proposed.borrow().get(key)) {
            return Ok(pending);
        }
        self.store.row(self.partition, key).await.map_err(|error| self.failed(&error))
    }

    async fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit_rows: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, ViewError> {
        let pending = match self.proposed {
            Some(proposed) if !proposed.borrow().is_empty() => proposed.borrow().range(from, to),
            _ => Vec::new(),
        };
        if pending.is_empty() {
            return self.scan_committed(from, to, limit_rows).await;
        }
        // Each proposed removal may hide one committed row, so that many more are read.
        let committed = self.scan_committed(from, to, limit_rows.saturating_add(pending.len())).await?;
        Ok(merge(committed, pending, limit_rows))
    }
}

/// A walk over the committed rows of a view.
pub(crate) struct CommittedWalk<'a, D: Device> {
    rows: RowWalk<D>,
    view: &'a RowView<'a, D>,
}

impl<D: Device + 'static> Walk for CommittedWalk<'_, D> {
    fn seek(&mut self, key: &[u8]) {
        self.rows.seek(key);
    }

    async fn next(&mut self) -> Result<bool, ViewError> {
        self.rows.next().await.map_err(|error| self.view.failed(&error))
    }

    fn key(&self) -> &[u8] {
        self.rows.key()
    }

    fn value(&self) -> &[u8] {
        self.rows.value()
    }
}

/// Both in order; a proposed row replaces or removes the committed one of its key.
fn merge(
    committed: Vec<(Bytes, Bytes)>,
    pending: Vec<(Bytes, Option<Bytes>)>,
    limit: usize,
) -> Vec<(Bytes, Bytes)> {
    let mut merged = Vec::with_capacity(limit.min(committed.len() + pending.len()));
    let mut committed = committed.into_iter().peekable();
    for (key, value) in pending {
        while let Some(row) = committed.next_if(|(other, _)| *other < key) {
            merged.push(row);
        }
        committed.next_if(|(other, _)| *other == key);
        if let Some(value) = value {
            merged.push((key, value));
        }
    }
    merged.extend(committed);
    merged.truncate(limit);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposals_replace_remove_and_add() {
        let row = |key: &'static str, value: &'static str| (Bytes::from(key), Bytes::from(value));
        let committed = vec![row("a", "1"), row("b", "1"), row("d", "1")];
        let pending = vec![
            (Bytes::from("a"), None),
            (Bytes::from("b"), Some(Bytes::from("2"))),
            (Bytes::from("c"), Some(Bytes::from("2"))),
            (Bytes::from("e"), Some(Bytes::from("2"))),
        ];
        let merged = merge(committed.clone(), pending.clone(), 10);
        assert_eq!(merged, vec![row("b", "2"), row("c", "2"), row("d", "1"), row("e", "2")]);
        assert_eq!(merge(committed, pending, 2).len(), 2);
    }
}
