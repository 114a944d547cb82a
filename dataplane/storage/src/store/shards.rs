//! The shard table.
//!
//! A commit or free of one shard first looks up what is there, then journals: both under a lock of that shard,
//! kept until the record is durable and applied even if the caller goes away, so that no extent is freed twice.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use event_listener::Event;
use quarry_clustermap::{BlobId, Epoch, PgId, ShardIndex};

use super::{Inner, ShardExtent, ShardKey, ShardPin, ShardRow, Store, StoreError};
use crate::device::Device;
use crate::extent::Extent;
use crate::format::record::Record;
use crate::format::rows::{self, ShardRowV1};
use crate::journal::{Class, Subject};

/// Index rows read at once while enumerating.
const ENUMERATE_ROWS: usize = 256;

/// The shards that a commit or free is under way for.
#[derive(Clone, Default)]
pub(super) struct BusyShards(Rc<Busy>);

#[derive(Default)]
struct Busy {
    keys: RefCell<HashSet<ShardKey>>,
    released: Event,
}

struct ShardLock {
    busy: BusyShards,
    key: ShardKey,
}

impl Drop for ShardLock {
    fn drop(&mut self) {
        self.busy.0.keys.borrow_mut().remove(&self.key);
        self.busy.0.released.notify(usize::MAX);
    }
}

impl BusyShards {
    async fn lock(&self, key: ShardKey) -> ShardLock {
        loop {
            let listener = self.0.released.listen();
            if self.0.keys.borrow_mut().insert(key) {
                return ShardLock { busy: self.clone(), key };
            }
            listener.await;
        }
    }
}

/// Extents that return to the free map unless their commit was queued.
struct Unqueued<'s, D: Device + 'static> {
    inner: &'s Inner<D>,
    extents: Vec<Extent>,
}

impl<D: Device + 'static> Drop for Unqueued<'_, D> {
    fn drop(&mut self) {
        self.inner.space.release(&self.extents);
    }
}

impl<D: Device + 'static> Inner<D> {
    /// Before a record may take the place of an older one, the data it names must be durable: else a power cut
    /// could keep the record without the data, and the older copy would be lost.
    async fn flush_data(&self) -> Result<(), StoreError> {
        let flushed = self.device.flush().await.map_err(StoreError::from);
        match flushed {
            Ok(()) => self.stats.count_flush(),
            Err(ref error) => self.fail(error),
        }
        flushed
    }
}

impl<D: Device + 'static> Store<D> {
    /// Takes room for a shard, in memory only: a crash forgets it. The caller must give the extents to
    /// [`Store::commit_shard`] or [`Store::release`], after its writes to them have completed.
    ///
    /// # Errors
    /// [`StoreError::Full`], or the store is not serving.
    pub fn reserve(&self, len_bytes: u64) -> Result<Vec<Extent>, StoreError> {
        self.0.check_serving()?;
        self.0.space.reserve(len_bytes)
    }

    /// Gives a reservation back.
    ///
    /// # Panics
    /// If an extent is not reserved.
    pub fn release(&self, extents: Vec<Extent>) {
        self.0.space.release(&extents);
    }

    /// Makes a shard durable: Ok after a flush that covers the record and every data write that completed before
    /// the call. A former copy of the same shard is replaced and its extents are freed, after a flush of its own for
    /// the new data. The extents belong to the store from the call on, whatever the result.
    ///
    /// A commit that was not acknowledged before a power cut may survive it without its data (one flush covers
    /// both, in any order): the checksums tell, and no manifest names such a shard.
    ///
    /// # Errors
    /// [`StoreError::StalePgEpoch`], [`StoreError::InvalidShard`], [`StoreError::RecordTooLarge`],
    /// [`StoreError::Overloaded`], [`StoreError::Index`], or the store is not serving.
    ///
    /// # Panics
    /// If an extent was not reserved.
    pub async fn commit_shard(&self, row: ShardRow) -> Result<(), StoreError> {
        let inner = &*self.0;
        let extents: Vec<Extent> = row.extents.iter().map(|piece| piece.extent).collect();
        assert!(inner.space.is_reserved(&extents), "a shard is committed to reserved extents");
        let mut unqueued = Unqueued { inner, extents };
        inner.check_serving()?;
        rows::validate_shard(&row).map_err(|reason| StoreError::InvalidShard { reason })?;
        inner.core.borrow_mut().fence_pg(row.pg, row.epoch)?;
        let key = row.key();
        let lock = inner.busy.lock(key).await;
        let replaced = self.extents_of(key).await?;
        if !replaced.is_empty() {
            inner.flush_data().await?;
        }
        inner.check_serving()?;
        inner.core.borrow_mut().fence_pg(row.pg, row.epoch)?;
        let record = Record::ShardCommit { row, replaced };
        let ticket = inner.journal(record, Subject::Pg(key.pg), Class::Ordinary, Some(Box::new(lock)))?;
        unqueued.extents.clear();
        ticket.wait().await
    }

    /// One shard, if it is stored here. To read its bytes, take a [`Store::pin`] first.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::BadRow`], or the store failed or is closed.
    pub async fn shard(
        &self,
        pg: PgId,
        blob: BlobId,
        shard: ShardIndex,
    ) -> Result<Option<ShardRow>, StoreError> {
        let key = ShardKey { pg, blob, shard };
        let (from, to) = (rows::shard_key(key, 0), rows::shard_key(key, u32::MAX));
        let found = self.scan(&from, &to, usize::MAX).await?;
        if found.is_empty() {
            return Ok(None);
        }
        let pieces = found.iter().map(|(_, value)| rows::decode_shard(value)).collect::<Result<Vec<_>, _>>();
        pieces.and_then(|pieces| ShardRowV1::into_row(key, pieces)).map(Some).map_err(|error| bad_row(&error))
    }

    async fn extents_of(&self, key: ShardKey) -> Result<Vec<Extent>, StoreError> {
        let row = self.shard(key.pg, key.blob, key.shard).await?;
        let extents =
            |row: ShardRow| row.extents.into_iter().map(|ShardExtent { extent, .. }| extent).collect();
        Ok(row.map(extents).unwrap_or_default())
    }

    /// Holds a shard's extents until the pin is dropped: a free takes effect at once, reuse waits.
    #[must_use]
    pub fn pin(&self, pg: PgId, blob: BlobId, shard: ShardIndex) -> ShardPin {
        self.0.space.pin(ShardKey { pg, blob, shard })
    }

    /// Removes a shard; durable when Ok. False if it was not there.
    ///
    /// # Errors
    /// [`StoreError::StalePgEpoch`], [`StoreError::Index`], or the store is not serving.
    pub async fn free_shard(
        &self,
        pg: PgId,
        epoch: Epoch,
        blob: BlobId,
        shard: ShardIndex,
    ) -> Result<bool, StoreError> {
        let inner = &*self.0;
        let key = ShardKey { pg, blob, shard };
        inner.check_serving()?;
        inner.core.borrow_mut().fence_pg(pg, epoch)?;
        let lock = inner.busy.lock(key).await;
        let extents = self.extents_of(key).await?;
        if extents.is_empty() {
            return Ok(false);
        }
        inner.check_serving()?;
        inner.core.borrow_mut().fence_pg(pg, epoch)?;
        let record = Record::ShardFree { key, epoch, extents };
        let ticket = inner.journal(record, Subject::Pg(pg), Class::Privileged, Some(Box::new(lock)))?;
        ticket.wait().await.map(|()| true)
    }

    /// Lower epochs of the placement group are refused from now on; durable when Ok, and then every shard that was
    /// accepted before is in [`Store::shards`].
    ///
    /// # Errors
    /// [`StoreError::StalePgEpoch`], or the store is not serving.
    pub async fn raise_pg_epoch(&self, pg: PgId, epoch: Epoch) -> Result<(), StoreError> {
        let inner = &*self.0;
        inner.check_serving()?;
        inner.core.borrow_mut().fence_pg(pg, epoch)?;
        let record = Record::PgEpoch { pg, epoch };
        inner.journal(record, Subject::Pg(pg), Class::Privileged, None)?.wait().await
    }

    /// Highest epoch of a placement group seen.
    #[must_use]
    pub fn pg_epoch(&self, pg: PgId) -> Epoch {
        self.0.core.borrow().pg_epoch(pg)
    }

    /// Shards ordered by placement group, blob and position, from after `after`, at most `limit`.
    ///
    /// # Errors
    /// As [`Store::shard`].
    pub async fn shards(&self, after: Option<ShardKey>, limit: usize) -> Result<Vec<ShardRow>, StoreError> {
        // No shard has that many extents, so the key stands after all rows of `after`.
        let mut from = after.map_or(vec![rows::TABLE_SHARDS], |key| rows::shard_key(key, u32::MAX).to_vec());
        let mut found: Vec<ShardRow> = Vec::new();
        let mut open: Option<(ShardKey, Vec<ShardRowV1>)> = None;
        while found.len() < limit {
            let page = self.scan(&from, &[rows::TABLE_SHARDS + 1], ENUMERATE_ROWS).await?;
            for (key, value) in &page {
                let bad = || StoreError::BadRow { table: rows::TABLE_SHARDS, reason: "malformed key".into() };
                let (key, _) = rows::parse_shard_key(key).ok_or_else(bad)?;
                let piece = rows::decode_shard(value).map_err(|error| bad_row(&error))?;
                match &mut open {
                    Some((current, pieces)) if *current == key => pieces.push(piece),
                    _ => found.extend(close(open.replace((key, vec![piece])))?),
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == ENUMERATE_ROWS => from = [last, &[0][..]].concat(),
                _ => {
                    found.extend(close(open.take())?);
                    break;
                }
            }
        }
        found.truncate(limit);
        Ok(found)
    }
}

fn close(open: Option<(ShardKey, Vec<ShardRowV1>)>) -> Result<Option<ShardRow>, StoreError> {
    let row = open.map(|(key, pieces)| ShardRowV1::into_row(key, pieces)).transpose();
    row.map_err(|error| bad_row(&error))
}

fn bad_row(error: &crate::format::FormatError) -> StoreError {
    StoreError::BadRow { table: rows::TABLE_SHARDS, reason: error.to_string() }
}
