//! A blob on its way to the devices of one group: which shards live, and who cleans up.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use futures::{FutureExt, channel::oneshot, future::join_all};
use quarry_clustermap::{
    BlobId, ClusterMap, DeviceId, Epoch, ErasureProfile, PartitionId, PgId, PlacementGroup, ShardIndex,
};
use quarry_partition::BlobRef;
use quarry_storage::device::IoBuf;

use super::{WriteError, patience};
use crate::{
    cluster::{Cluster, PeerError, ReserveShard},
    stripe::{Layout, shard_index},
};

/// A placement group as it was when it was chosen.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) pg: PgId,
    pub(super) epoch: Epoch,
    pub(super) profile: ErasureProfile,
    /// By shard; `None` where the device is out.
    pub(super) members: Vec<Option<DeviceId>>,
    /// By shard, in or out.
    all_members: Vec<DeviceId>,
}

impl Group {
    pub(super) fn new(map: &ClusterMap, pg: PgId, group: &PlacementGroup) -> Self {
        Self {
            pg,
            epoch: group.epoch,
            profile: group.profile,
            members: group.members.iter().map(|device| map.is_in(*device).then_some(*device)).collect(),
            all_members: group.members.clone(),
        }
    }

    /// Fewest shards worth going on with: one more than a reader needs, where there is parity at all.
    pub(super) fn needed(&self) -> usize {
        self.profile.data() + self.profile.parity().min(1)
    }
}

/// Life of one shard.
///
/// ```text
///   Failed <--reserve-- (start) --reserve--> Reserved --commit--> Committing --receipt--> Committed
///                                               |                     |
///                                               +---write error-------+--commit error--> Failed
/// ```
enum Shard<R> {
    Reserved(Rc<R>),
    /// The commit is under way, or its task was lost: it may be there.
    Committing,
    Committed,
    Failed {
        cause: PeerError,
        /// Still to be aborted.
        reserved: Option<Rc<R>>,
        /// A commit was tried: it may be there.
        uncertain: bool,
    },
}

/// A blob and its shards. Held by the writer and by every task that works for it; dropped by the last.
pub(super) struct Placed<C: Cluster> {
    cluster: Rc<C>,
    group: Group,
    blob: BlobId,
    size_bytes: u64,
    shards: RefCell<Vec<Shard<C::Reserved>>>,
    /// The caller has it: committed shards stay.
    kept: Cell<bool>,
}

impl<C: Cluster> Placed<C> {
    /// Asks every member for space. Those that refuse have failed; it is up to the caller whether that will
    /// do.
    pub(super) async fn reserve(cluster: &Rc<C>, group: Group, size_bytes: u64) -> Rc<Self> {
        let shards = group.members.iter().map(|_| Shard::failed(PeerError::DeviceOut)).collect();
        let placed = Rc::new(Self {
            cluster: Rc::clone(cluster),
            blob: cluster.next_blob_id(),
            group,
            size_bytes,
            shards: RefCell::new(shards),
            kept: Cell::new(false),
        });
        if size_bytes > 0 {
            let done = run(cluster, Rc::clone(&placed).reserve_shards());
            done.await.expect("spawned tasks run to their end");
        } else {
            // An empty blob has no shards: nothing can be missing.
            placed.shards.borrow_mut().iter_mut().for_each(|shard| *shard = Shard::Committed);
        }
        placed
    }

    async fn reserve_shards(self: Rc<Self>) {
        let len_bytes = Layout::new(self.group.profile, self.size_bytes).shard_len_bytes();
        let reservations = self.group.members.iter().enumerate().map(async |(index, device)| {
            let Some(device) = device else { return };
            let (pg, epoch, shard) = (self.group.pg, self.group.epoch, shard_index(index));
            let request = ReserveShard { pg, epoch, blob: self.blob, shard, len_bytes };
            let reserved = self.cluster.reserve_shard(*device, request).await;
            self.shards.borrow_mut()[index] = match reserved {
                Ok(reserved) => Shard::Reserved(Rc::new(reserved)),
                Err(cause) => Shard::failed(cause),
            };
        });
        join_all(reservations).await;
    }

    /// Writes one block to every live shard. Returns when all have ended, or when those that have not were given up.
    pub(super) async fn write_stripe(self: Rc<Self>, offset: u64, blocks: Vec<IoBuf>) {
        let write = |(index, block): (usize, IoBuf)| {
            let task = Rc::clone(&self).write_block(index, offset, block);
            (index, run(&self.cluster, task))
        };
        let writes = blocks.into_iter().enumerate().map(write).collect();
        let give_up = |index| self.fail_write(index, PeerError::Timeout);
        patience::wait(&*self.cluster, &self, writes, give_up).await;
    }

    /// Holds the blob and the buffer until the device is done with them, whoever waits.
    async fn write_block(self: Rc<Self>, index: usize, offset: u64, block: IoBuf) {
        // In this order, so that a task that is dropped lets go of the reservation first.
        let placed = self;
        let Some(reserved) = placed.reserved(index) else { return };
        let (result, _block) = placed.cluster.write_shard(&reserved, offset, block).await;
        drop(reserved);
        if let Err(cause) = result {
            placed.fail_write(index, cause);
        }
    }

    /// Commits every live shard; all writes to them have ended. Returns as [`Placed::write_stripe`] does.
    pub(super) async fn commit_shards(self: Rc<Self>, owner: PartitionId, checksums: Vec<Vec<u32>>) {
        let commit = |(index, checksums)| {
            let task = Rc::clone(&self).commit_one(index, owner, checksums);
            (index, run(&self.cluster, task))
        };
        let commits = checksums.into_iter().enumerate().map(commit).collect();
        let give_up = |index| self.end_commit(index, Err(PeerError::Timeout));
        patience::wait(&*self.cluster, &self, commits, give_up).await;
    }

    async fn commit_one(self: Rc<Self>, index: usize, owner: PartitionId, checksums: Vec<u32>) {
        let Some(reserved) = self.begin_commit(index) else { return };
        let result = self.cluster.commit_shard(reserved, owner, checksums).await;
        self.end_commit(index, result);
    }

    /// A receipt that comes after its shard was given up changes nothing.
    fn end_commit(&self, index: usize, result: Result<(), PeerError>) {
        let shard = &mut self.shards.borrow_mut()[index];
        if matches!(shard, Shard::Committing) {
            *shard = match result {
                Ok(()) => Shard::Committed,
                Err(cause) => Shard::Failed { cause, reserved: None, uncertain: true },
            };
        }
    }

    /// The device of a shard, in or out.
    pub(super) fn device(&self, index: usize) -> DeviceId {
        self.group.all_members[index]
    }

    /// Whether a shard has not failed.
    pub(super) fn is_live(&self, index: usize) -> bool {
        !matches!(self.shards.borrow()[index], Shard::Failed { .. })
    }

    fn reserved(&self, index: usize) -> Option<Rc<C::Reserved>> {
        match &self.shards.borrow()[index] {
            Shard::Reserved(reserved) => Some(Rc::clone(reserved)),
            _ => None,
        }
    }

    fn begin_commit(&self, index: usize) -> Option<C::Reserved> {
        let shard = &mut self.shards.borrow_mut()[index];
        if !matches!(shard, Shard::Reserved(_)) {
            return None;
        }
        let Shard::Reserved(reserved) = std::mem::replace(shard, Shard::Committing) else { return None };
        Some(Rc::into_inner(reserved).expect("writes hold the reservation, and all have ended"))
    }

    fn fail_write(&self, index: usize, cause: PeerError) {
        let shard = &mut self.shards.borrow_mut()[index];
        // A second write in flight may find it failed already.
        if let Shard::Reserved(reserved) = shard {
            let reserved = Some(Rc::clone(reserved));
            *shard = Shard::Failed { cause, reserved, uncertain: false };
            tracing::warn!(blob = %self.blob, pg = %self.group.pg, shard = index, %cause, "shard_write_failed");
        }
    }

    pub(super) fn cluster(&self) -> &Rc<C> {
        &self.cluster
    }

    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    pub(super) fn id(&self) -> BlobId {
        self.blob
    }

    /// Shards that have not failed.
    pub(super) fn live(&self) -> usize {
        self.shards.borrow().iter().filter(|shard| !matches!(shard, Shard::Failed { .. })).count()
    }

    pub(super) fn needed(&self) -> usize {
        self.group.needed()
    }

    /// Bit per failed shard.
    pub(super) fn missing_shards(&self) -> u32 {
        let shards = self.shards.borrow();
        let failed = shards.iter().enumerate().filter(|(_, shard)| matches!(shard, Shard::Failed { .. }));
        failed.fold(0, |bits, (index, _)| bits | 1 << index)
    }

    /// Devices that failed, and why.
    pub(super) fn failures(&self) -> impl Iterator<Item = (DeviceId, PeerError)> {
        let shards = self.shards.borrow();
        let failed = shards.iter().zip(&self.group.all_members).filter_map(|(shard, device)| match shard {
            Shard::Failed { cause, .. } => Some((*device, *cause)),
            _ => None,
        });
        failed.collect::<Vec<_>>().into_iter()
    }

    pub(super) fn too_few(&self) -> WriteError {
        let cause = self.failures().map(|(_, cause)| cause).next().unwrap_or(PeerError::DeviceOut);
        WriteError::TooFewShards { pg: self.group.pg, stored: self.live(), needed: self.needed(), cause }
    }

    pub(super) fn blob_ref(&self) -> BlobRef {
        BlobRef {
            blob: self.blob,
            pg: self.group.pg,
            profile: self.group.profile,
            size_bytes: self.size_bytes,
            missing_shards: self.missing_shards(),
        }
    }

    /// Hands the blob over: what is committed stays.
    pub(super) fn keep(&self) -> BlobRef {
        let uncommitted = |shard: &Shard<_>| matches!(shard, Shard::Reserved(_) | Shard::Committing);
        assert!(!self.shards.borrow().iter().any(uncommitted), "only receipts make a blob");
        self.kept.set(true);
        self.blob_ref()
    }

    /// What is left to do for a shard nobody wants.
    fn leftover(&self, index: usize, shard: Shard<C::Reserved>) -> Option<Leftover<C::Reserved>> {
        match shard {
            Shard::Reserved(reserved) | Shard::Failed { reserved: Some(reserved), .. } => {
                Some(Leftover::Abort(Rc::into_inner(reserved).expect("every task on it held the blob too")))
            }
            // A blob that is kept short keeps a shard that got there without a receipt: it is right, and to
            // free it might hit its repaired successor.
            Shard::Committing | Shard::Committed | Shard::Failed { uncertain: true, .. }
                if !self.kept.get() && self.size_bytes > 0 =>
            {
                Some(Leftover::Free(self.group.all_members[index], shard_index(index)))
            }
            _ => None,
        }
    }
}

enum Leftover<R> {
    Abort(R),
    Free(DeviceId, ShardIndex),
}

impl<R> Shard<R> {
    fn failed(cause: PeerError) -> Self {
        Self::Failed { cause, reserved: None, uncertain: false }
    }
}

impl<C: Cluster> Drop for Placed<C> {
    fn drop(&mut self) {
        let shards = std::mem::take(self.shards.get_mut()).into_iter().enumerate();
        let leftovers: Vec<_> = shards.filter_map(|(index, shard)| self.leftover(index, shard)).collect();
        if leftovers.is_empty() {
            return;
        }
        let (cluster, pg, epoch, blob) =
            (Rc::clone(&self.cluster), self.group.pg, self.group.epoch, self.blob);
        let clean_up = async move {
            join_all(leftovers.into_iter().map(async |leftover| match leftover {
                Leftover::Abort(reserved) => cluster.abort_shard(reserved).await,
                Leftover::Free(device, shard) => {
                    // What cannot be freed now is an orphan, and the collector's.
                    if let Err(cause) = cluster.free_shard(device, pg, epoch, blob, shard).await {
                        tracing::warn!(%blob, %device, %shard, %cause, "shard_free_failed");
                    }
                }
            }))
            .await;
        };
        self.cluster.spawn(clean_up.boxed_local());
    }
}

/// Runs a task to its end, whether or not anybody waits for it.
pub(super) fn run<C: Cluster>(
    cluster: &Rc<C>,
    task: impl Future<Output = ()> + 'static,
) -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    let announced = async move {
        task.await;
        // Nobody may be waiting any more.
        let _ = sender.send(());
    };
    cluster.spawn(announced.boxed_local());
    receiver
}
