//! The shards of one blob for one reader: opened when needed, read, verified; and what is known of their
//! failures.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeSet,
    pin::pin,
    rc::Rc,
};

use futures::{
    FutureExt,
    channel::oneshot,
    future::{Either, LocalBoxFuture, Shared, select},
};
use quarry_clustermap::{DeviceId, SHARD_BLOCK_BYTES, ShardIndex};
use quarry_erasure::Codec;
use quarry_partition::BlobRef;
use quarry_storage::device::IoBuf;

use super::ReadMemory;
use crate::{
    checksum::verify,
    cluster::{Cluster, DamageKind, OpenShard, PeerError},
    stripe::{Layout, StripeRead},
};

/// The map may change while a shard is opened, and the shard move: how often to follow.
const OPEN_ATTEMPTS_MAX: usize = 3;
/// A pin may have ended while the consumer paused: read, open again, read.
const READ_ATTEMPTS_MAX: usize = 2;

/// Reading ahead leaves one slot in this many free, so that slow consumers do not take what others wait for.
const AHEAD_LEAVES: usize = 4;

/// Why a shard's bytes are not to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Loss {
    /// Perhaps later.
    Transient,
    /// Gone or damaged.
    Permanent,
}

type Opening<H> = Shared<LocalBoxFuture<'static, Result<Rc<OpenShard<H>>, PeerError>>>;

pub(super) struct Source<C: Cluster> {
    cluster: Rc<C>,
    blob: BlobRef,
    layout: Layout,
    memory: ReadMemory,
    opened: RefCell<Vec<Option<Opening<C::Opened>>>>,
    /// Bit per shard that is better not asked: missing by the manifest, failed as a whole before, or too
    /// slow.
    avoided: Cell<u32>,
    reported: RefCell<BTreeSet<(ShardIndex, DamageKind)>>,
    codec: OnceCell<Codec>,
}

impl<C: Cluster> Source<C> {
    pub(super) fn new(cluster: Rc<C>, blob: BlobRef, memory: ReadMemory) -> Self {
        let source = Self {
            cluster,
            blob,
            layout: Layout::new(blob.profile, blob.size_bytes),
            memory,
            opened: RefCell::new(vec![None; blob.profile.total()]),
            avoided: Cell::new(blob.missing_shards),
            reported: RefCell::default(),
            codec: OnceCell::new(),
        };
        for index in 0..blob.profile.total() {
            let shard = crate::stripe::shard_index(index);
            if source.device_of(shard).is_none() {
                source.avoid(shard);
            }
        }
        source
    }

    pub(super) fn cluster(&self) -> &C {
        &self.cluster
    }

    pub(super) fn blob(&self) -> &BlobRef {
        &self.blob
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn codec(&self) -> &Codec {
        self.codec
            .get_or_init(|| Codec::new(self.blob.profile).expect("a manifest holds valid profiles only"))
    }

    pub(super) fn is_avoided(&self, shard: ShardIndex) -> bool {
        self.avoided.get() & (1 << shard.0) != 0
    }

    pub(super) fn avoid(&self, shard: ShardIndex) {
        self.avoided.set(self.avoided.get() | 1 << shard.0);
    }

    /// Buffers that a stripe takes if nothing new fails: one per piece, or k sources and one per piece to
    /// decode.
    pub(super) fn buffers_for(&self, plan: &StripeRead) -> usize {
        match plan.pieces.iter().filter(|piece| self.is_avoided(piece.shard)).count() {
            0 => plan.pieces.len(),
            decoded => self.blob.profile.data() + decoded,
        }
    }

    /// Waits its turn for memory; the caller holds none.
    pub(super) async fn take(&self, count: usize) -> Vec<IoBuf> {
        match self.memory {
            ReadMemory::Pool => match self.cluster.buffers().try_take_many(count) {
                Some(buffers) => buffers,
                None => self.queue_for(count).await,
            },
            ReadMemory::Heap => heap_buffers(count),
        }
    }

    /// Stands in the pool's queue in a task of its own: a consumer that stops polling must not hold up those
    /// behind it.
    async fn queue_for(&self, count: usize) -> Vec<IoBuf> {
        let pool = self.cluster.buffers().clone();
        let (mut sender, receiver) = oneshot::channel();
        let wait = async move {
            let taken = match select(pin!(pool.take_many(count)), sender.cancellation()).await {
                Either::Left((taken, _)) => taken,
                Either::Right(_) => return,
            };
            // Nobody may be waiting any more.
            let _ = sender.send(taken);
        };
        self.cluster.spawn(wait.boxed_local());
        receiver.await.expect("spawned tasks run to their end")
    }

    /// Memory to read ahead, if there is any to spare.
    pub(super) fn take_ahead(&self, count: usize) -> Option<Vec<IoBuf>> {
        match self.memory {
            ReadMemory::Pool => {
                let pool = self.cluster.buffers();
                let left = pool.free_slots().checked_sub(count)?;
                if left < pool.slots() / AHEAD_LEAVES { None } else { pool.try_take_many(count) }
            }
            ReadMemory::Heap => None,
        }
    }

    /// One more buffer for a stripe under way, if free at once.
    pub(super) fn take_extra(&self) -> Option<IoBuf> {
        match self.memory {
            ReadMemory::Pool => self.cluster.buffers().try_take(),
            ReadMemory::Heap => heap_buffers(1).pop(),
        }
    }

    /// Fills `buf` from `offset` of a shard and verifies it.
    pub(super) async fn read(&self, shard: ShardIndex, offset: u64, buf: IoBuf) -> (Result<(), Loss>, IoBuf) {
        let mut buf = buf;
        let mut last = PeerError::NotFound;
        for _ in 0..READ_ATTEMPTS_MAX {
            let opened = match self.open(shard).await {
                Ok(opened) => opened,
                Err(error) => return (Err(self.shard_failed(shard, error)), buf),
            };
            if !self.is_plausible(&opened) {
                self.report(shard, DamageKind::Corrupt);
                self.avoid(shard);
                return (Err(Loss::Permanent), buf);
            }
            let started = self.cluster.monotonic();
            let (result, returned) = self.cluster.read_shard(&opened.handle, offset, buf).await;
            buf = returned;
            match result {
                Ok(()) => {
                    self.cluster.read_latency().observe(self.cluster.monotonic().saturating_sub(started));
                    let good = verify(self.blob.blob, shard, offset, &buf, &opened.checksums);
                    if !good {
                        self.report(shard, DamageKind::Corrupt);
                    }
                    return (good.then_some(()).ok_or(Loss::Permanent), buf);
                }
                // Bad blocks are no reason to give up the rest of the shard.
                Err(PeerError::Io) => {
                    self.report(shard, DamageKind::Unreadable);
                    return (Err(Loss::Permanent), buf);
                }
                Err(error) => {
                    last = error;
                    self.close(shard, &opened);
                    if error != PeerError::NotFound {
                        break;
                    }
                }
            }
        }
        (Err(self.shard_failed(shard, last)), buf)
    }

    /// Whether decoded bytes match the checksums of the shard they replace, as far as those are known.
    pub(super) fn contradicts(&self, shard: ShardIndex, offset: u64, bytes: &[u8]) -> bool {
        let opening = self.opened.borrow()[usize::from(shard.0)].clone();
        let known = opening.and_then(|opening| opening.peek().cloned()).and_then(Result::ok);
        known.is_some_and(|opened| {
            self.is_plausible(&opened) && !verify(self.blob.blob, shard, offset, bytes, &opened.checksums)
        })
    }

    fn is_plausible(&self, opened: &OpenShard<C::Opened>) -> bool {
        opened.len_bytes == self.layout.shard_len_bytes()
            && opened.checksums.len() == self.layout.shard_units()
    }

    /// Several stripes may ask at once; the shard is opened once.
    async fn open(&self, shard: ShardIndex) -> Result<Rc<OpenShard<C::Opened>>, PeerError> {
        let index = usize::from(shard.0);
        for _ in 0..OPEN_ATTEMPTS_MAX {
            let Some(device) = self.device_of(shard) else { return Err(PeerError::DeviceOut) };
            let opening =
                self.opened.borrow_mut()[index].get_or_insert_with(|| self.start_open(shard, device)).clone();
            match opening.clone().await {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    self.forget(shard, &opening);
                    if self.device_of(shard) == Some(device) {
                        return Err(error);
                    }
                }
            }
        }
        Err(PeerError::Busy)
    }

    fn start_open(&self, shard: ShardIndex, device: DeviceId) -> Opening<C::Opened> {
        let (cluster, pg, blob) = (Rc::clone(&self.cluster), self.blob.pg, self.blob.blob);
        let open = async move { cluster.open_shard(device, pg, blob, shard).await.map(Rc::new) };
        open.boxed_local().shared()
    }

    /// The device that holds a shard by the newest map, unless it is out; while a position moves, the former one.
    fn device_of(&self, shard: ShardIndex) -> Option<DeviceId> {
        let map = self.cluster.map();
        let group = map.placement_groups.get(&self.blob.pg)?;
        group.holder(&map, shard.0)
    }

    fn forget(&self, shard: ShardIndex, opening: &Opening<C::Opened>) {
        let slot = &mut self.opened.borrow_mut()[usize::from(shard.0)];
        if slot.as_ref().is_some_and(|current| current.ptr_eq(opening)) {
            *slot = None;
        }
    }

    /// The opened shard is of no use any more, unless another stripe has opened it anew already.
    fn close(&self, shard: ShardIndex, opened: &Rc<OpenShard<C::Opened>>) {
        let slot = &mut self.opened.borrow_mut()[usize::from(shard.0)];
        let same =
            |current: &Opening<C::Opened>| matches!(current.peek(), Some(Ok(o)) if Rc::ptr_eq(o, opened));
        if slot.as_ref().is_some_and(same) {
            *slot = None;
        }
    }

    /// A failure of the whole shard: later stripes do without it from the start.
    fn shard_failed(&self, shard: ShardIndex, error: PeerError) -> Loss {
        match error {
            PeerError::NotFound if self.blob.missing_shards & (1 << shard.0) == 0 => {
                self.report(shard, DamageKind::Missing);
            }
            PeerError::Io => self.report(shard, DamageKind::Unreadable),
            _ => {}
        }
        if error != PeerError::Busy {
            self.avoid(shard);
        }
        if error.is_transient() { Loss::Transient } else { Loss::Permanent }
    }

    fn report(&self, shard: ShardIndex, kind: DamageKind) {
        if self.reported.borrow_mut().insert((shard, kind)) {
            tracing::warn!(blob = %self.blob.blob, pg = %self.blob.pg, %shard, ?kind, "shard_damaged");
            self.cluster.report_damage(self.blob.pg, self.blob.blob, shard, kind);
        }
    }
}

fn heap_buffers(count: usize) -> Vec<IoBuf> {
    (0..count).map(|_| IoBuf::zeroed(SHARD_BLOCK_BYTES)).collect()
}
