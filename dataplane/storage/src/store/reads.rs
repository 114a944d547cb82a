//! Reads of rows: overlay over index.

use bytes::Bytes;
use quarry_clustermap::PartitionId;

use super::{Store, StoreError, overlay};
use crate::device::Device;
use crate::format::rows;

/// Rows of the index asked for beyond the limit: deletions in the overlay may hide some.
const SCAN_SLACK_ROWS: usize = 16;

impl<D: Device + 'static> Store<D> {
    /// The committed value of a full index key.
    ///
    /// # Errors
    /// [`StoreError::Index`], or the store failed or is closed.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let inner = &self.0;
        inner.check_readable()?;
        loop {
            let known = inner.core.borrow().overlay_get(key);
            if let Some(value) = known {
                return Ok(value);
            }
            let installs = inner.installs.get();
            let value = inner.tree.get(key).await?;
            // A checkpoint that ended meanwhile may have moved the row from the overlay to a newer root.
            if installs == inner.installs.get() {
                return Ok(value);
            }
        }
    }

    /// Committed rows with `from <= key < to` (full index keys), ascending, at most `limit_rows`.
    ///
    /// # Errors
    /// [`StoreError::Index`], or the store failed or is closed.
    pub async fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit_rows: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let inner = &self.0;
        inner.check_readable()?;
        let mut merged = Vec::new();
        let mut cursor = from.to_vec();
        while merged.len() < limit_rows && cursor[..] < *to {
            let wanted = (limit_rows - merged.len()).saturating_add(SCAN_SLACK_ROWS);
            let installs = inner.installs.get();
            let index = inner.tree.scan(&cursor, to, wanted).await?;
            if installs != inner.installs.get() {
                continue;
            }
            // The index has been seen up to here, whatever the overlay has beyond comes with the next step.
            let seen_to = match index.last() {
                Some((last, _)) if index.len() == wanted => [last, &[0][..]].concat(),
                _ => to.to_vec(),
            };
            let core = inner.core.borrow();
            let range = (&cursor[..], &seen_to[..]);
            let limit = limit_rows - merged.len();
            merged.extend(overlay::merge(&core.active, core.frozen.as_deref(), &index, range, limit));
            cursor = seen_to;
        }
        Ok(merged)
    }

    /// The committed value of a partition's row; `key` is without the prefix.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn row(&self, partition: PartitionId, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.get(&rows::partition_key(partition, key)).await
    }

    /// A partition's committed rows; keys are without the prefix, `to: None` means to the end.
    ///
    /// # Errors
    /// As [`Store::scan`].
    pub async fn rows(
        &self,
        partition: PartitionId,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let from = rows::partition_key(partition, from);
        let to = to.map_or(rows::partition_end(partition), |to| rows::partition_key(partition, to));
        let mut found = self.scan(&from, &to, limit_rows).await?;
        for (key, _) in &mut found {
            *key = key.slice(rows::PARTITION_PREFIX_BYTES..);
        }
        Ok(found)
    }
}
