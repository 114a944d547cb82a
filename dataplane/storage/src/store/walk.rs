//! A walk over rows in key order: overlay over index, as each step finds them.

use std::rc::Rc;

use bytes::Bytes;
use quarry_clustermap::PartitionId;

use super::{Store, StoreError};
use crate::device::Device;
use crate::format::rows;
use crate::index::{Cursor, Pace};

/// Where the cursor of the index stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    /// Before the next row.
    Unknown,
    /// On it.
    Row,
    /// There is none.
    End,
}

/// What of the overlay comes next, and which overlay that was.
struct Above {
    edits: (u64, u64),
    row: Option<(Bytes, Option<Bytes>)>,
}

/// Walks a partition's committed rows; made by [`Store::walk`]. Keys are without the partition's prefix.
///
/// Each step sees what is committed at that moment: a row that is there from before the walk to its end is seen, one
/// that comes or goes meanwhile may be. It holds a page of the index on each level (16 KiB; they are shared with the cache).
pub struct RowWalk<D: Device> {
    store: Store<D>,
    /// Full keys from here on, less than `to`.
    from: Vec<u8>,
    to: Vec<u8>,
    index: Cursor<D>,
    /// Counts the root that `index` stays on.
    installs: u64,
    below: Below,
    above: Option<Above>,
    /// The row that the last step found.
    key: Bytes,
    value: Bytes,
    pace: Rc<Pace>,
}

impl<D: Device + 'static> Store<D> {
    /// A walk over a partition's committed rows with `from <= key < to`. Walks that are stepped in turns share a pace.
    pub fn walk(&self, partition: PartitionId, from: &[u8], to: &[u8], pace: Rc<Pace>) -> RowWalk<D> {
        let from = rows::partition_key(partition, from).to_vec();
        RowWalk {
            index: self.0.tree.cursor(&from),
            installs: self.0.installs.get(),
            store: self.clone(),
            from,
            to: rows::partition_key(partition, to).to_vec(),
            below: Below::Unknown,
            above: None,
            key: Bytes::new(),
            value: Bytes::new(),
            pace,
        }
    }
}

impl<D: Device + 'static> RowWalk<D> {
    /// Goes on with the first row whose key is at least `key`, which must not lie behind.
    pub fn seek(&mut self, key: &[u8]) {
        self.from.truncate(rows::PARTITION_PREFIX_BYTES);
        self.from.extend_from_slice(key);
        if self.below == Below::Unknown || self.below == Below::Row && self.index.key() < &self.from[..] {
            self.index.seek(&self.from);
            self.below = Below::Unknown;
        }
    }

    /// Steps to the next row; false at the end.
    ///
    /// # Errors
    /// [`StoreError::Index`], or the store failed or is closed.
    pub async fn next(&mut self) -> Result<bool, StoreError> {
        let inner = Rc::clone(&self.store.0);
        inner.check_readable()?;
        self.pace.spend(1).await;
        loop {
            if self.installs != inner.installs.get() {
                // Rows may have moved from the overlay to a newer root.
                self.index = inner.tree.cursor(&self.from);
                (self.installs, self.below) = (inner.installs.get(), Below::Unknown);
            }
            if self.below == Below::Unknown {
                self.below = if self.index.next().await? { Below::Row } else { Below::End };
                continue;
            }
            // Nothing waits from here until the row is chosen.
            self.look_above();
            let above = self.above.as_ref().and_then(|above| above.row.as_ref());
            let below =
                (self.below == Below::Row).then(|| self.index.key()).filter(|key| *key < &self.to[..]);
            match (above, below) {
                (None, None) => return Ok(false),
                (Some((key, value)), below) if below.is_none_or(|below| key[..] <= *below) => {
                    let (key, value) = (key.clone(), value.clone());
                    if below == Some(&key[..]) {
                        self.below = Below::Unknown;
                    }
                    self.pass(&key);
                    if let Some(value) = value {
                        (self.key, self.value) = (key, value);
                        return Ok(true);
                    }
                }
                _ => {
                    let key = Bytes::copy_from_slice(self.index.key());
                    let hidden = inner.core.borrow().overlay_wipes(&key);
                    if !hidden {
                        self.value = self.index.load_value().await?;
                    }
                    self.below = Below::Unknown;
                    self.pass(&key);
                    if !hidden {
                        self.key = key;
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// The key of the row that the last [`RowWalk::next`] stepped to.
    pub fn key(&self) -> &[u8] {
        &self.key[rows::PARTITION_PREFIX_BYTES..]
    }

    /// Its value.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The next row lies behind this one.
    fn pass(&mut self, key: &[u8]) {
        self.from.clear();
        self.from.extend_from_slice(key);
        self.from.push(0);
    }

    /// Finds the next row of the overlay, if what is known of it does not hold any more.
    fn look_above(&mut self) {
        let core = self.store.0.core.borrow();
        let edits = (core.active.edits(), self.store.0.installs.get());
        let holds = self.above.as_ref().is_some_and(|above| {
            above.edits == edits && above.row.as_ref().is_none_or(|(key, _)| key[..] >= self.from[..])
        });
        if !holds {
            self.above = Some(Above { edits, row: core.overlay_next(&self.from, &self.to) });
        }
    }
}
