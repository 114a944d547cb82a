//! What the object layer asks of the node it runs in: the map, clocks, memory, tasks, and shards on any
//! device, local or of a peer. The simulator implements it too.
//!
//! Contract of the shard calls:
//! - a reservation ([`Cluster::Reserved`]) is given up in exactly one way: commit or abort. The object layer
//!   never drops a write, commit or abort half way: they run in spawned tasks. Only an executor that is torn
//!   down drops them;
//! - data becomes durable with the commit, never before; a commit that failed may still have happened
//!   ([`PeerError::Timeout`]), and is followed by a free unless the blob is kept without that shard;
//! - an opened shard ([`Cluster::Opened`]) is pinned until dropped: its extents are not reused while it
//!   lives. A peer may end a pin that was not used for long; reads then answer [`PeerError::NotFound`], and
//!   the shard is opened again;
//! - bytes read are raw: whoever reads verifies them against the checksums;
//! - every call ends: the implementation turns a silent peer or device into [`PeerError::Timeout`].

use std::{rc::Rc, time::Duration};

use futures::future::LocalBoxFuture;
use quarry_clustermap::{BlobId, ClusterMap, DeviceId, Epoch, PartitionId, PgId, ShardIndex};
use quarry_storage::device::{BufferPool, IoBuf};

use crate::latency::ReadLatency;

/// Why a device or peer did not do what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerError {
    /// The device is out: failed, missing, or its node is gone.
    #[error("the device is out")]
    DeviceOut,
    /// No such shard, or the pin on it has ended.
    #[error("the shard does not exist")]
    NotFound,
    /// No space for the reservation.
    #[error("the device is full")]
    Full,
    /// The device has seen a newer epoch of the placement group, or it is sealed.
    #[error("the placement group is at {newest} there")]
    StaleEpoch {
        /// Highest epoch that the device has seen.
        newest: Epoch,
    },
    /// The device answered with an I/O error.
    #[error("the device answered with an I/O error")]
    Io,
    /// No answer in time: it may have been done or not.
    #[error("no answer in time")]
    Timeout,
    /// Overloaded; nothing was done.
    #[error("the peer is busy")]
    Busy,
}

impl PeerError {
    /// Whether the data may well be there and be readable later: the failure says nothing about the shard
    /// itself.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::DeviceOut | Self::StaleEpoch { .. } | Self::Timeout | Self::Busy)
    }
}

/// Space for one shard of a new blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReserveShard {
    /// Placement group, whose member the device is.
    pub pg: PgId,
    /// Epoch of that group in the writer's map; the device refuses lower ones than it has seen.
    pub epoch: Epoch,
    /// The blob.
    pub blob: BlobId,
    /// Which shard of it.
    pub shard: ShardIndex,
    /// Length of the whole shard, a positive multiple of `BLOCK_BYTES`.
    pub len_bytes: u64,
}

/// A shard opened for reading.
#[derive(Debug)]
pub struct OpenShard<H> {
    /// Keeps it pinned.
    pub handle: H,
    /// Length of the whole shard.
    pub len_bytes: u64,
    /// One per `CHECKSUM_UNIT_BYTES`, as committed.
    pub checksums: Vec<u32>,
    /// The partition whose manifest owns the blob, as committed.
    pub owner: PartitionId,
}

/// What a reader found wrong with a shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DamageKind {
    /// The device does not know it.
    Missing,
    /// The device cannot read it.
    Unreadable,
    /// Bytes, length or checksum list are not what was written.
    Corrupt,
}

/// The node, as the object layer sees it. One per core; nothing in it is shared with another core.
#[expect(async_fn_in_trait, reason = "single-threaded executors: futures need not be Send")]
pub trait Cluster: 'static {
    /// A reserved shard that is being written.
    type Reserved: 'static;
    /// A pinned shard that is being read.
    type Opened: 'static;
    /// Keeps blobs that are about to be read; see [`Cluster::reading`].
    type Reading: 'static;

    /// The newest cluster map known here.
    fn map(&self) -> Rc<ClusterMap>;
    /// Wall clock, Unix milliseconds.
    fn now_ms(&self) -> u64;
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
    /// A blob id that was never used.
    fn next_blob_id(&self) -> BlobId;
    /// 64 random bits, for load spreading only.
    fn random(&self) -> u64;
    /// Waits.
    async fn sleep(&self, duration: Duration);
    /// Runs a task on this core to its end, whoever drops what.
    fn spawn(&self, task: LocalBoxFuture<'static, ()>);
    /// The core's I/O memory. It must hold at least one stripe (k+m) of any profile in use.
    fn buffers(&self) -> &BufferPool;
    /// What reads took lately on this core; the reader keeps it up to date.
    fn read_latency(&self) -> &ReadLatency;
    /// How unattractive the device is for new blobs (slowness, fullness); compared only, 0 where nothing is known.
    fn write_cost(&self, _device: DeviceId) -> u64 {
        0
    }
    /// A write is about to go on without a device that is far slower than the others; false: this happens too often,
    /// so it is to wait.
    fn give_up(&self, _device: DeviceId) -> bool {
        true
    }
    /// A reader met damage; queues the repair. Called at most once per shard and kind in one read.
    fn report_damage(&self, pg: PgId, blob: BlobId, shard: ShardIndex, kind: DamageKind);

    /// Holds these blobs back from being freed until the guard is dropped: a reader opens the shards of a long object
    /// one blob after the other, and a delete must not take the later ones away.
    fn reading(&self, blobs: &[BlobId]) -> Self::Reading;

    /// Reserves space on a device.
    ///
    /// # Errors
    /// [`PeerError::Full`], [`PeerError::StaleEpoch`], [`PeerError::DeviceOut`], [`PeerError::Timeout`],
    /// [`PeerError::Busy`].
    async fn reserve_shard(
        &self,
        device: DeviceId,
        request: ReserveShard,
    ) -> Result<Self::Reserved, PeerError>;

    /// Writes the whole of `buf` at `offset` of a reserved shard; both are multiples of `BLOCK_BYTES`. Calls
    /// may overlap in time, never in range. The buffer comes back.
    ///
    /// # Errors
    /// [`PeerError::Io`], [`PeerError::DeviceOut`], [`PeerError::Timeout`]: the shard is lost and will be
    /// aborted.
    async fn write_shard(
        &self,
        shard: &Self::Reserved,
        offset: u64,
        buf: IoBuf,
    ) -> (Result<(), PeerError>, IoBuf);

    /// Makes a shard durable and visible, once all its writes have completed. `Ok` is the shard receipt.
    ///
    /// # Errors
    /// Any; the shard may be there nevertheless, so the caller frees it.
    async fn commit_shard(
        &self,
        shard: Self::Reserved,
        owner: PartitionId,
        checksums: Vec<u32>,
    ) -> Result<(), PeerError>;

    /// Gives the space of a reservation back.
    async fn abort_shard(&self, shard: Self::Reserved);

    /// Frees a committed shard, durably. One that is not there is freed already.
    ///
    /// # Errors
    /// [`PeerError::StaleEpoch`], [`PeerError::DeviceOut`], [`PeerError::Io`], [`PeerError::Timeout`].
    async fn free_shard(
        &self,
        device: DeviceId,
        pg: PgId,
        epoch: Epoch,
        blob: BlobId,
        shard: ShardIndex,
    ) -> Result<(), PeerError>;

    /// Opens and pins a committed shard.
    ///
    /// # Errors
    /// [`PeerError::NotFound`], [`PeerError::DeviceOut`], [`PeerError::Io`], [`PeerError::Timeout`],
    /// [`PeerError::Busy`].
    async fn open_shard(
        &self,
        device: DeviceId,
        pg: PgId,
        blob: BlobId,
        shard: ShardIndex,
    ) -> Result<OpenShard<Self::Opened>, PeerError>;

    /// Fills the whole of `buf` from `offset` of an opened shard; both are multiples of `BLOCK_BYTES`. The
    /// buffer comes back, with unverified bytes. Dropping the future is allowed.
    ///
    /// # Errors
    /// [`PeerError::NotFound`] (the pin has ended), [`PeerError::Io`], [`PeerError::DeviceOut`],
    /// [`PeerError::Timeout`].
    async fn read_shard(
        &self,
        shard: &Self::Opened,
        offset: u64,
        buf: IoBuf,
    ) -> (Result<(), PeerError>, IoBuf);
}
