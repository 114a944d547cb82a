//! A cluster in memory for tests: devices are maps, time is virtual, faults are switches, order is seeded.
//!
//! Nothing moves unless a task is ready or a timer is next, so a run in which nobody can go on is seen as a
//! deadlock.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    executor::{LocalPool, LocalSpawner},
    future::LocalBoxFuture,
    task::LocalSpawn,
};
use quarry_clustermap::{
    BlobId, ClusterId, ClusterMap, DeviceEntry, DeviceId, DeviceState, Epoch, Incarnation, MapVersion,
    NodeEntry, NodeId, PartitionId, PgId, PgState, PlacementGroup, ShardIndex, Tier, WriterCounter,
};
use quarry_storage::device::{BufferPool, IoBuf};

use crate::{
    api::{Body, BodyDigests, BodyError},
    cluster::{Cluster, DamageKind, OpenShard, PeerError, ReserveShard},
    latency::ReadLatency,
};

type ShardKey = (PgId, BlobId, ShardIndex);

pub(crate) struct Stored {
    pub(crate) bytes: Vec<u8>,
    pub(crate) checksums: Vec<u32>,
    pub(crate) owner: PartitionId,
}

/// One device and its fault switches.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) shards: RefCell<BTreeMap<ShardKey, Rc<RefCell<Stored>>>>,
    pub(crate) reserved: Cell<usize>,
    /// Answers `DeviceOut` to everything, though the map says it is in.
    pub(crate) out: Cell<bool>,
    pub(crate) full: Cell<bool>,
    pub(crate) write_cost: Cell<u64>,
    /// A shard may take the place of an older copy of itself: repair.
    pub(crate) may_replace: Cell<bool>,
    pub(crate) stale: RefCell<Vec<PgId>>,
    /// So many writes succeed, then none.
    pub(crate) writes_left: Cell<Option<u32>>,
    /// Commits do what they should, and then answer `Timeout`.
    pub(crate) commit_times_out: Cell<bool>,
    /// What a write takes, beside the way.
    pub(crate) write_delay: Cell<Duration>,
    pub(crate) read_error: Cell<Option<PeerError>>,
    /// The next so many reads answer `NotFound`.
    pub(crate) pins_end: Cell<u32>,
    pub(crate) read_delay: Cell<Duration>,
    pub(crate) reads: Cell<u64>,
    pub(crate) read_bytes: Cell<u64>,
}

#[derive(Default)]
struct Clock {
    now: Cell<Duration>,
    next_timer: Cell<u64>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
}

struct Sleep {
    clock: Rc<Clock>,
    key: (Duration, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.clock.now.get() >= self.key.0 {
            return Poll::Ready(());
        }
        self.clock.timers.borrow_mut().insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clock.timers.borrow_mut().remove(&self.key);
    }
}

pub(crate) struct TestCluster {
    clock: Rc<Clock>,
    spawner: LocalSpawner,
    pub(crate) map: RefCell<Rc<ClusterMap>>,
    pool: BufferPool,
    latency: ReadLatency,
    random: Cell<u64>,
    blobs: Cell<u64>,
    pub(crate) disks: BTreeMap<DeviceId, Disk>,
    pub(crate) damage: RefCell<Vec<(ShardIndex, DamageKind)>>,
}

pub(crate) struct TestReserved {
    device: DeviceId,
    request: ReserveShard,
    bytes: RefCell<Vec<u8>>,
}

pub(crate) struct TestOpened {
    device: DeviceId,
    shard: Rc<RefCell<Stored>>,
}

/// The cluster and what runs it.
pub(crate) struct Sim {
    executor: LocalPool,
    pub(crate) cluster: Rc<TestCluster>,
}

impl Sim {
    /// `groups` placement groups of one profile over `devices` devices, rotated by one each.
    pub(crate) fn new(profile: &str, devices: u64, groups: u32, pool_slots: usize, seed: u64) -> Self {
        let executor = LocalPool::new();
        let cluster = TestCluster {
            clock: Rc::default(),
            spawner: executor.spawner(),
            map: RefCell::new(Rc::new(test_map(profile, devices, groups))),
            pool: BufferPool::new(pool_slots).unwrap(),
            latency: ReadLatency::new(),
            random: Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            blobs: Cell::new(0),
            disks: (0..devices).map(|device| (DeviceId(device), Disk::default())).collect(),
            damage: RefCell::default(),
        };
        Self { executor, cluster: Rc::new(cluster) }
    }

    /// Runs a future to its end, moving time when nothing else can.
    pub(crate) fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        self.cluster.spawn(Box::pin(async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        }));
        loop {
            self.executor.run_until_stalled();
            if let Some(value) = result.borrow_mut().take() {
                return value;
            }
            assert!(self.cluster.clock.advance(), "deadlock: no task is ready and no timer is set");
        }
    }

    /// Lets every task end, then checks that nothing is held.
    pub(crate) fn settle(&mut self) {
        self.executor.run_until_stalled();
        while self.cluster.clock.advance() {
            self.executor.run_until_stalled();
        }
        assert_eq!(self.cluster.pool.free_slots(), self.cluster.pool.slots(), "buffers leaked");
        for (device, disk) in &self.cluster.disks {
            assert_eq!(disk.reserved.get(), 0, "{device}: reservations leaked");
        }
    }

    pub(crate) fn disk(&self, device: u64) -> &Disk {
        &self.cluster.disks[&DeviceId(device)]
    }

    /// Shards on all devices.
    pub(crate) fn shards(&self) -> usize {
        self.cluster.disks.values().map(|disk| disk.shards.borrow().len()).sum()
    }

    /// The stored shard of a blob, wherever it is.
    pub(crate) fn stored(&self, blob: BlobId, shard: u8) -> Rc<RefCell<Stored>> {
        let all = self.cluster.disks.values().flat_map(|disk| disk.shards.borrow().clone());
        all.into_iter().find(|((_, b, s), _)| (*b, s.0) == (blob, shard)).expect("the shard is stored").1
    }

    pub(crate) fn edit_map(&self, edit: impl FnOnce(&mut ClusterMap)) {
        let mut map = (**self.cluster.map.borrow()).clone();
        edit(&mut map);
        map.version = map.version.next();
        map.validate().unwrap();
        *self.cluster.map.borrow_mut() = Rc::new(map);
    }
}

fn test_map(profile: &str, devices: u64, groups: u32) -> ClusterMap {
    let profile: quarry_clustermap::ErasureProfile = profile.parse().unwrap();
    let node = NodeEntry { address: String::new(), rack: String::new(), incarnation: Incarnation(1) };
    let device = DeviceEntry {
        node: NodeId(1),
        tier: Tier::Hot,
        capacity_bytes: 1 << 40,
        state: DeviceState::In,
        out_since_ms: None,
        replaced: false,
        location: String::new(),
    };
    let group = |index: u64| PlacementGroup {
        epoch: Epoch(1),
        tier: Tier::Hot,
        profile,
        members: (0..profile.total() as u64).map(|shard| DeviceId((index + shard) % devices)).collect(),
        state: PgState::Open,
        rebuilding: BTreeMap::new(),
    };
    let map = ClusterMap {
        cluster: ClusterId([7; 16]),
        version: MapVersion(1),
        hot_profile: profile,
        nodes: BTreeMap::from([(NodeId(1), node)]),
        devices: (0..devices).map(|id| (DeviceId(id), device.clone())).collect(),
        partitions: Vec::new(),
        operations: quarry_clustermap::Operations::default(),
        tiering: quarry_clustermap::Tiering::default(),
        placement_groups: (0..groups).map(|pg| (PgId(pg), group(u64::from(pg)))).collect(),
    };
    map.validate().unwrap();
    map
}

impl Clock {
    /// To the next timer; false if there is none.
    fn advance(&self) -> bool {
        let Some(((at, _), waker)) = self.timers.borrow_mut().pop_first() else { return false };
        self.now.set(self.now.get().max(at));
        waker.wake();
        true
    }

    fn sleep(self: &Rc<Self>, duration: Duration) -> Sleep {
        let id = self.next_timer.get();
        self.next_timer.set(id + 1);
        Sleep { clock: Rc::clone(self), key: (self.now.get() + duration, id) }
    }
}

impl TestCluster {
    /// Every call takes a while, a different one each time.
    async fn travel(&self) {
        let micros = self.random() % 300;
        self.clock.sleep(Duration::from_micros(micros)).await;
    }

    async fn reach(&self, device: DeviceId) -> Result<&Disk, PeerError> {
        self.travel().await;
        let disk = &self.disks[&device];
        if disk.out.get() { Err(PeerError::DeviceOut) } else { Ok(disk) }
    }

    async fn try_write(&self, shard: &TestReserved, offset: u64, buf: &[u8]) -> Result<(), PeerError> {
        let disk = self.reach(shard.device).await?;
        self.clock.sleep(disk.write_delay.get()).await;
        if let Some(left) = disk.writes_left.get() {
            disk.writes_left.set(Some(left.checked_sub(1).ok_or(PeerError::Io)?));
        }
        let offset = usize::try_from(offset).unwrap();
        assert!(offset.is_multiple_of(4096) && buf.len().is_multiple_of(4096));
        shard.bytes.borrow_mut()[offset..offset + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    async fn try_read(&self, shard: &TestOpened, offset: u64, buf: &mut [u8]) -> Result<(), PeerError> {
        let disk = self.reach(shard.device).await?;
        disk.reads.set(disk.reads.get() + 1);
        disk.read_bytes.set(disk.read_bytes.get() + buf.len() as u64);
        if let Some(left) = disk.pins_end.get().checked_sub(1) {
            disk.pins_end.set(left);
            return Err(PeerError::NotFound);
        }
        self.clock.sleep(disk.read_delay.get()).await;
        disk.read_error.get().map_or(Ok(()), Err)?;
        let offset = usize::try_from(offset).unwrap();
        assert!(offset.is_multiple_of(4096) && buf.len().is_multiple_of(4096));
        buf.copy_from_slice(&shard.shard.borrow().bytes[offset..offset + buf.len()]);
        Ok(())
    }
}

impl Cluster for TestCluster {
    type Reserved = TestReserved;
    type Opened = TestOpened;
    type Reading = ();

    fn reading(&self, _blobs: &[BlobId]) {}

    fn map(&self) -> Rc<ClusterMap> {
        Rc::clone(&self.map.borrow())
    }

    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + u64::try_from(self.clock.now.get().as_millis()).unwrap()
    }

    fn monotonic(&self) -> Duration {
        self.clock.now.get()
    }

    fn next_blob_id(&self) -> BlobId {
        self.blobs.set(self.blobs.get() + 1);
        BlobId { writer: NodeId(1), incarnation: Incarnation(1), counter: WriterCounter(self.blobs.get()) }
    }

    fn write_cost(&self, device: DeviceId) -> u64 {
        self.disks[&device].write_cost.get()
    }

    fn random(&self) -> u64 {
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    async fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        self.spawner.spawn_local_obj(task.into()).unwrap();
    }

    fn buffers(&self) -> &BufferPool {
        &self.pool
    }

    fn read_latency(&self) -> &ReadLatency {
        &self.latency
    }

    fn report_damage(&self, _: PgId, _: BlobId, shard: ShardIndex, kind: DamageKind) {
        self.damage.borrow_mut().push((shard, kind));
    }

    async fn reserve_shard(
        &self,
        device: DeviceId,
        request: ReserveShard,
    ) -> Result<TestReserved, PeerError> {
        let disk = self.reach(device).await?;
        if disk.stale.borrow().contains(&request.pg) {
            return Err(PeerError::StaleEpoch { newest: Epoch(9) });
        }
        if disk.full.get() {
            return Err(PeerError::Full);
        }
        disk.reserved.set(disk.reserved.get() + 1);
        let bytes = vec![0xee; usize::try_from(request.len_bytes).unwrap()];
        Ok(TestReserved { device, request, bytes: RefCell::new(bytes) })
    }

    async fn write_shard(
        &self,
        shard: &TestReserved,
        offset: u64,
        buf: IoBuf,
    ) -> (Result<(), PeerError>, IoBuf) {
        (self.try_write(shard, offset, &buf).await, buf)
    }

    async fn commit_shard(
        &self,
        shard: TestReserved,
        owner: PartitionId,
        checksums: Vec<u32>,
    ) -> Result<(), PeerError> {
        let reached = self.reach(shard.device).await;
        let disk = &self.disks[&shard.device];
        disk.reserved.set(disk.reserved.get() - 1);
        reached?;
        let ReserveShard { pg, blob, shard: index, .. } = shard.request;
        let stored = Stored { bytes: shard.bytes.into_inner(), checksums, owner };
        let before = disk.shards.borrow_mut().insert((pg, blob, index), Rc::new(RefCell::new(stored)));
        assert!(before.is_none() || disk.may_replace.get(), "a shard is written once");
        if disk.commit_times_out.get() { Err(PeerError::Timeout) } else { Ok(()) }
    }

    async fn abort_shard(&self, shard: TestReserved) {
        self.travel().await;
        let disk = &self.disks[&shard.device];
        disk.reserved.set(disk.reserved.get() - 1);
    }

    async fn free_shard(
        &self,
        device: DeviceId,
        pg: PgId,
        _: Epoch,
        blob: BlobId,
        shard: ShardIndex,
    ) -> Result<(), PeerError> {
        let disk = self.reach(device).await?;
        disk.shards.borrow_mut().remove(&(pg, blob, shard));
        Ok(())
    }

    async fn open_shard(
        &self,
        device: DeviceId,
        pg: PgId,
        blob: BlobId,
        shard: ShardIndex,
    ) -> Result<OpenShard<TestOpened>, PeerError> {
        let disk = self.reach(device).await?;
        let shard = disk.shards.borrow().get(&(pg, blob, shard)).cloned().ok_or(PeerError::NotFound)?;
        let (len_bytes, checksums, owner) = {
            let stored = shard.borrow();
            (stored.bytes.len() as u64, stored.checksums.clone(), stored.owner)
        };
        Ok(OpenShard { handle: TestOpened { device, shard }, len_bytes, checksums, owner })
    }

    async fn read_shard(
        &self,
        shard: &TestOpened,
        offset: u64,
        mut buf: IoBuf,
    ) -> (Result<(), PeerError>, IoBuf) {
        (self.try_read(shard, offset, &mut buf).await, buf)
    }
}

/// A body of known bytes in pieces of uneven size, each after a while.
pub(crate) struct TestBody {
    cluster: Rc<TestCluster>,
    bytes: Bytes,
    len_bytes: u64,
    end: Option<BodyError>,
}

impl TestBody {
    pub(crate) fn new(cluster: &Rc<TestCluster>, bytes: &[u8]) -> Self {
        let bytes = Bytes::copy_from_slice(bytes);
        Self { cluster: Rc::clone(cluster), len_bytes: bytes.len() as u64, bytes, end: None }
    }

    /// Announces another length than it has.
    pub(crate) fn announcing(mut self, len_bytes: u64) -> Self {
        self.len_bytes = len_bytes;
        self
    }

    /// Fails after its last byte.
    pub(crate) fn failing(mut self, error: BodyError) -> Self {
        self.end = Some(error);
        self
    }
}

impl Body for TestBody {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        self.cluster.travel().await;
        if self.bytes.is_empty() {
            return self.end.take().map(Err);
        }
        // Sometimes an empty piece.
        let limit = [2, 100, 5_000, 70_000, 400_000][usize::try_from(self.cluster.random() % 5).unwrap()];
        let count = usize::try_from(self.cluster.random() % limit).unwrap();
        Some(Ok(self.bytes.split_to(count.min(self.bytes.len()))))
    }

    fn digests(&mut self) -> BodyDigests {
        BodyDigests::default()
    }
}

/// Bytes from a seed.
pub(crate) fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    });
    words.flatten().take(len).collect()
}
