//! The store: one device's shard table, partition logs and rows, owned by one core.
//!
//! `callers -> journal queue -> batch + flush -> overlay -> checkpoint -> index`
//!
//! Promises:
//! - Ok means durable: the record's batch, and every data write that completed before the call, are covered by a
//!   flush that succeeded. One batch, one flush, for all callers that wait.
//! - Rows change in memory only after that flush, in journal order; replay runs the same code.
//! - Reads merge overlay over index; a checkpoint goes on beside readers and writers.
//! - Space named by a durable record is never handed out, space named by none is never lost (see `space`).
//! - Epochs of placement groups and partitions only grow; older ones are refused.
//!
//! Failure model: a failed write or flush of the journal or a checkpoint fails the store for ever
//! ([`StoreState::Failed`]): waiters and later calls get an error, nothing is retried. A full device still frees:
//! the space and the ring keep reserves, and a checkpoint that finds no room is given up and tried again after frees. Damage of the index is an error that names the keys; opening anew can mend it
//! (see `mend`), and `verify` finds it before a reader does.

mod checkpoint;
mod copy;
mod core;
mod error;
mod examine;
mod log;
mod losses;
mod mend;
mod overlay;
mod quarantine;
mod reads;
mod recovery;
mod shards;
mod space;
mod stats;
mod types;
mod verify;
mod walk;
mod writer;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use event_listener::Event;
use futures::channel::oneshot;
use quarry_clustermap::{ClusterId, DeviceId};

use self::core::Core;
use self::space::Space;
use crate::device::Device;
use crate::format::record::Record;
use crate::format::rows;
use crate::format::superblock::Superblock;
use crate::index::Tree;
use crate::journal::{Class, Pending, Queue, Ring, Subject};

pub(crate) use self::recovery::{newest_superblock, read_free_map, read_slot, root_of};

pub use self::copy::COPY_BYTES_MAX;
pub use self::error::StoreError;
pub use self::losses::Losses;
pub use self::recovery::{Identity, read_identity};
use self::shards::BusyShards;
pub use self::space::ShardPin;
pub use self::stats::{SharedStats, Stats};
pub use self::types::{
    CHECKSUM_UNIT_BYTES, DecodeEntry, FormatParams, JOURNAL_BYTES_DEFAULT, LogEntry, Mend, Mutation,
    OnFailed, RecoveredLog, SHARD_EXTENT_BYTES_MAX, ShardExtent, ShardKey, ShardRow, SpaceUsage, Spawn,
    StoreOptions, StoreState,
};
pub use self::verify::{CopiesHealth, IndexCursor, IndexDamage, VerifyStep};
pub use self::walk::RowWalk;

/// Handle to one device's store; clones share it. See the [module](self).
pub struct Store<D: Device>(Rc<Inner<D>>);

impl<D: Device> Clone for Store<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct Inner<D: Device> {
    device: Rc<D>,
    options: StoreOptions,
    /// As last made durable.
    superblock: RefCell<Superblock>,
    tree: Tree<D>,
    space: Rc<Space>,
    core: RefCell<Core>,
    queue: RefCell<Queue>,
    ring: RefCell<Ring>,
    state: RefCell<StoreState>,
    busy: BusyShards,
    stats: SharedStats,
    /// Wakes the writer.
    work: Event,
    /// Tells that a checkpoint ended, or the store failed, or the writer stopped.
    progress: Event,
    /// Counts installed roots: a reader that straddles one looks again.
    installs: Cell<u64>,
    checkpoint_wanted: Cell<bool>,
    checkpoints_begun: Cell<u64>,
    checkpoints_ended: Cell<u64>,
    /// Why the last checkpoint was given up.
    checkpoint_refused: RefCell<Option<StoreError>>,
    /// Free bytes when it was: one begins by itself only when there are more.
    free_when_refused: Cell<Option<u64>>,
    stopping: Cell<bool>,
    /// A batch is being written.
    writing: Cell<bool>,
    writer_stopped: Cell<bool>,
    /// As the device-local row says, or about to.
    shards_incomplete: Cell<bool>,
    /// Opening had to mend.
    mended: bool,
}

impl<D: Device + 'static> Store<D> {
    /// Identity of the device.
    #[must_use]
    pub fn device_id(&self) -> DeviceId {
        self.0.superblock.borrow().device
    }

    /// The cluster it belongs to.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.0.superblock.borrow().cluster
    }

    /// Whether it serves.
    #[must_use]
    pub fn state(&self) -> StoreState {
        self.0.state.borrow().clone()
    }

    /// Space now.
    #[must_use]
    pub fn space(&self) -> SpaceUsage {
        self.0.space.collect();
        SpaceUsage { pending_bytes: self.0.pending_bytes(), ..self.0.space.usage() }
    }

    /// The batch that the journal writes and flushes now, if any; never the same number twice. One that stays for long
    /// means that the device does.
    #[must_use]
    pub fn batch_under_way(&self) -> Option<u64> {
        self.0.writing.get().then(|| self.0.stats.load().batches)
    }

    /// Counters; the handle may be read from any thread.
    #[must_use]
    pub fn stats(&self) -> SharedStats {
        self.0.stats.clone()
    }

    /// The device under the store, for data reads and writes.
    #[must_use]
    pub fn device(&self) -> &Rc<D> {
        &self.0.device
    }

    /// Longest log entry payload or local value that the journal takes, in bytes.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        self.0.ring.borrow().payload_bytes_max() - FRAME_BYTES_MAX
    }

    /// Stores a device-local row; durable when Ok.
    ///
    /// # Errors
    /// [`StoreError::RecordTooLarge`], [`StoreError::Full`], or the store is not serving.
    pub async fn put_local(&self, name: &str, value: Bytes) -> Result<(), StoreError> {
        self.0.check_serving()?;
        self.0.space.check_room(value.len() as u64, self.0.space.reserve_blocks() / 2)?;
        let record = Record::LocalPut { name: name.to_owned(), value };
        self.0.journal(record, Subject::Local, Class::Ordinary, None)?.wait().await
    }

    /// Reads a device-local row.
    ///
    /// # Errors
    /// [`StoreError::Index`] or [`StoreError::Failed`].
    pub async fn get_local(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.get(&rows::local_key(name)).await
    }

    /// Writes a checkpoint now; Ok when its superblock is durable.
    ///
    /// # Errors
    /// [`StoreError::Full`]: there was no room for it, and all is as before. The store is not serving, or fails
    /// meanwhile.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.0.check_serving()?;
        self.0.run_checkpoint().await
    }

    /// Finishes what was submitted, writes a checkpoint and stops the background tasks. Later calls are refused.
    ///
    /// # Errors
    /// The store fails meanwhile, or was not serving.
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        let inner = &self.0;
        inner.check_serving()?;
        *inner.state.borrow_mut() = StoreState::Closed;
        let result = inner.run_checkpoint().await;
        inner.stopping.set(true);
        inner.work.notify(usize::MAX);
        inner.wait_until(|inner| inner.writer_stopped.get()).await;
        result
    }
}

/// Most bytes of a record beside its payload: frame header and the archive of the fields.
const FRAME_BYTES_MAX: usize = 1024;

/// A record on its way; resolves after its flush.
struct Ticket(oneshot::Receiver<Result<(), StoreError>>);

impl Ticket {
    async fn wait(self) -> Result<(), StoreError> {
        self.0.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl<D: Device + 'static> Inner<D> {
    fn check_serving(&self) -> Result<(), StoreError> {
        match &*self.state.borrow() {
            StoreState::Serving => Ok(()),
            StoreState::ReadOnly => Err(StoreError::ReadOnly),
            StoreState::Closed => Err(StoreError::Closed),
            StoreState::Failed(error) => Err(failed(error)),
        }
    }

    fn check_readable(&self) -> Result<(), StoreError> {
        match self.check_serving() {
            Err(StoreError::ReadOnly) => Ok(()),
            other => other,
        }
    }

    /// Queues a record at once, in the order of calls; the state check is the caller's.
    fn journal(
        &self,
        record: Record,
        subject: Subject,
        class: Class,
        hold: Option<Box<dyn std::any::Any>>,
    ) -> Result<Ticket, StoreError> {
        let bytes = record.encode();
        let limit = self.ring.borrow().payload_bytes_max();
        if bytes.len() > limit {
            let record_bytes = bytes.len() as u64;
            return Err(StoreError::RecordTooLarge { record_bytes, limit_bytes: limit as u64 });
        }
        let grows_tail = matches!(record, Record::LogAppend { .. });
        let (done, receiver) = oneshot::channel();
        let pending = Pending { bytes, record: Some(record), subject, class, grows_tail, done, hold };
        self.queue.borrow_mut().push(pending)?;
        self.stats.set_queued(self.queue.borrow().bytes());
        self.work.notify(usize::MAX);
        Ok(Ticket(receiver))
    }

    /// The store is failed from now on; every waiter is told.
    fn fail(&self, error: &StoreError) {
        if matches!(*self.state.borrow(), StoreState::Failed(_)) {
            return;
        }
        tracing::error!(event = "store_failed", device = %self.superblock.borrow().device, %error);
        *self.state.borrow_mut() = StoreState::Failed(error.clone());
        let waiting = self.queue.borrow_mut().drain();
        for pending in waiting {
            // A caller that went away does not care.
            let _ = pending.done.send(Err(failed(error)));
        }
        self.work.notify(usize::MAX);
        self.progress.notify(usize::MAX);
        if let Some(on_failed) = &self.options.on_failed {
            on_failed(error);
        }
    }

    async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        loop {
            let listener = self.progress.listen();
            if done(self) {
                return;
            }
            listener.await;
        }
    }
}

fn failed(error: &StoreError) -> StoreError {
    match error {
        StoreError::Failed { .. } => error.clone(),
        other => StoreError::Failed { reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests;
