//! The real object layer and the real state machine of a partition over maps in memory: one device of each tier, one partition.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use quarry_clustermap::{
    BlobId, BucketConfig, BucketId, ClusterId, ClusterMap, DeviceEntry, DeviceId, DeviceState, DocumentKind,
    Epoch, Incarnation, MapVersion, NodeEntry, NodeId, PartitionConfig, PartitionId, PgId, PgState,
    PlacementGroup, ShardIndex, Tier, Versioning, WriterCounter,
};
use quarry_object::ReadLatency;
use quarry_object::api::ApiError;
use quarry_object::cluster::{Cluster, DamageKind, OpenShard, PeerError, ReserveShard};
use quarry_object::metadata::{Bucket, ExecuteError, Metadata};
use quarry_object::objects::{ObjectOptions, Objects};
use quarry_object::peer::PeerFault;
use quarry_partition::command::{
    Command, Entry, EvaluateError, EvaluationContext, List, Reply, View, ViewError, evaluate,
};
use quarry_storage::device::{BufferPool, IoBuf};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type Shard = (Rc<RefCell<Vec<u8>>>, Vec<u32>);

/// The only group of the cold tier.
pub const COLD_GROUP: PgId = PgId(2);

/// See the module.
pub struct RealCluster {
    map: Rc<ClusterMap>,
    rows: RefCell<Rows>,
    buckets: RefCell<BTreeMap<String, Bucket>>,
    shards: RefCell<BTreeMap<(BlobId, u8), Shard>>,
    pool: BufferPool,
    latency: ReadLatency,
    counter: Cell<u64>,
    /// A reader that comes too late for a shard is no failure.
    pub may_miss_shards: Cell<bool>,
}

/// What a gateway needs, with blobs for bodies of 64 KiB and more.
pub fn real_store() -> (Rc<RealCluster>, Rc<Objects<RealCluster>>) {
    let cluster = Rc::new(RealCluster {
        map: Rc::new(map()),
        rows: RefCell::default(),
        buckets: RefCell::default(),
        shards: RefCell::default(),
        pool: BufferPool::new(16).unwrap(),
        latency: ReadLatency::new(),
        counter: Cell::new(0),
        may_miss_shards: Cell::new(false),
    });
    let options = ObjectOptions { inline_below_bytes: 64 << 10 };
    (Rc::clone(&cluster), Rc::new(Objects::new(cluster, options)))
}

fn map() -> ClusterMap {
    let profile = "1+0".parse().unwrap();
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
    let group = |tier, device| PlacementGroup {
        epoch: Epoch(1),
        tier,
        profile,
        members: vec![device],
        state: PgState::Open,
        rebuilding: BTreeMap::new(),
    };
    let cold = DeviceEntry { tier: Tier::Cold, ..device.clone() };
    ClusterMap {
        cluster: ClusterId([7; 16]),
        version: MapVersion(1),
        hot_profile: profile,
        nodes: BTreeMap::from([(NodeId(1), node)]),
        devices: BTreeMap::from([(DeviceId(1), device), (DeviceId(2), cold)]),
        partitions: vec![PartitionConfig {
            epoch: Epoch(1),
            primary: DeviceId(1),
            replicas: vec![DeviceId(1)],
            joining: Vec::new(),
            lost: Default::default(),
            away: Default::default(),
        }],
        operations: quarry_clustermap::Operations::default(),
        tiering: quarry_clustermap::Tiering::default(),
        placement_groups: BTreeMap::from([
            (PgId(1), group(Tier::Hot, DeviceId(1))),
            (COLD_GROUP, group(Tier::Cold, DeviceId(2))),
        ]),
    }
}

impl RealCluster {
    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.borrow().len()
    }
}

struct RowsView(Rows);

impl View for RowsView {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        Ok(self.0.get(key).map(|value| Bytes::copy_from_slice(value)))
    }

    async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ViewError> {
        let range = self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        Ok(range.take(limit).map(|(key, value)| (key.clone().into(), value.clone().into())).collect())
    }
}

impl Metadata for RealCluster {
    async fn execute(&self, _: PartitionId, command: Command) -> Result<Reply, ExecuteError> {
        let buckets = self.buckets.borrow().clone();
        let bucket = command.bucket().and_then(|id| buckets.into_values().find(|bucket| bucket.id == id));
        let versioning = bucket.map(|bucket| bucket.config.versioning).unwrap_or_default();
        let context = EvaluationContext { now_ms: self.now_ms(), versioning };
        let view = RowsView(self.rows.take());
        let evaluated = evaluate(&view, context, &command).await;
        let mut rows = view.0;
        for row in evaluated.iter().flat_map(|evaluated| evaluated.rows.clone()) {
            match row.value {
                Some(value) => drop(rows.insert(row.key, value)),
                None => drop(rows.remove(&row.key)),
            }
        }
        self.rows.replace(rows);
        evaluated.map(|evaluated| evaluated.reply).map_err(|error| match error {
            EvaluateError::Refused(refusal) => refusal.into(),
            other => PeerFault::Damaged { detail: other.to_string() }.into(),
        })
    }

    async fn list(&self, request: List) -> Result<(Vec<Entry>, bool), ExecuteError> {
        match self.execute(PartitionId(0), Command::List(request)).await? {
            Reply::Page { entries, truncated } => Ok((entries, truncated)),
            other => panic!("{other:?}"),
        }
    }

    fn bucket(&self, name: &str) -> Option<Bucket> {
        self.buckets.borrow().get(name).cloned()
    }

    fn buckets(&self) -> Vec<Bucket> {
        self.buckets.borrow().values().cloned().collect()
    }

    async fn create_bucket(
        &self,
        name: &str,
        documents: BTreeMap<DocumentKind, String>,
    ) -> Result<(), ApiError> {
        let id = BucketId(self.random());
        let config = Arc::new(BucketConfig { documents, ..BucketConfig::default() });
        let bucket = Bucket { id, name: name.into(), created_ms: 1, revision: 1, config };
        self.buckets.borrow_mut().insert(name.into(), bucket);
        Ok(())
    }

    async fn delete_bucket(&self, name: &str) -> Result<(), ApiError> {
        let bucket = self.bucket(name).ok_or(ApiError::NoSuchBucket)?.id;
        match self.execute(PartitionId(0), Command::BucketIsEmpty { bucket }).await? {
            Reply::Empty(true) => drop(self.buckets.borrow_mut().remove(name)),
            _ => return Err(ApiError::BucketNotEmpty),
        }
        Ok(())
    }

    async fn set_bucket_document(&self, _: &str, _: DocumentKind, _: Option<String>) -> Result<(), ApiError> {
        Ok(())
    }

    async fn set_versioning(&self, name: &str, versioning: Versioning) -> Result<(), ApiError> {
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.get_mut(name).ok_or(ApiError::NoSuchBucket)?;
        Arc::make_mut(&mut bucket.config).versioning = versioning;
        Ok(())
    }
}

fn at(offset: u64, len: usize) -> std::ops::Range<usize> {
    let offset = usize::try_from(offset).unwrap();
    offset..offset + len
}

impl Cluster for RealCluster {
    type Reserved = (ReserveShard, RefCell<Vec<u8>>);
    type Opened = Rc<RefCell<Vec<u8>>>;
    type Reading = ();

    fn map(&self) -> Rc<ClusterMap> {
        Rc::clone(&self.map)
    }

    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.random()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.random())
    }

    fn next_blob_id(&self) -> BlobId {
        let counter = WriterCounter(self.random());
        BlobId { writer: NodeId(1), incarnation: Incarnation(1), counter }
    }

    fn random(&self) -> u64 {
        self.counter.set(self.counter.get() + 1);
        self.counter.get()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        tokio::task::spawn_local(task);
    }

    fn buffers(&self) -> &BufferPool {
        &self.pool
    }

    fn read_latency(&self) -> &ReadLatency {
        &self.latency
    }

    fn report_damage(&self, _: PgId, blob: BlobId, _: ShardIndex, kind: DamageKind) {
        let expected = self.may_miss_shards.get() && kind == DamageKind::Missing;
        assert!(expected, "{blob} is damaged: {kind:?}");
    }

    fn reading(&self, _: &[BlobId]) {}

    async fn reserve_shard(&self, _: DeviceId, request: ReserveShard) -> Result<Self::Reserved, PeerError> {
        let bytes = vec![0; usize::try_from(request.len_bytes).unwrap()];
        Ok((request, RefCell::new(bytes)))
    }

    async fn write_shard(
        &self,
        shard: &Self::Reserved,
        offset: u64,
        buf: IoBuf,
    ) -> (Result<(), PeerError>, IoBuf) {
        shard.1.borrow_mut()[at(offset, buf.len())].copy_from_slice(&buf);
        (Ok(()), buf)
    }

    async fn commit_shard(
        &self,
        (request, bytes): Self::Reserved,
        _: PartitionId,
        checksums: Vec<u32>,
    ) -> Result<(), PeerError> {
        let shard = (Rc::new(bytes), checksums);
        self.shards.borrow_mut().insert((request.blob, request.shard.0), shard);
        Ok(())
    }

    async fn abort_shard(&self, _: Self::Reserved) {}

    async fn free_shard(
        &self,
        _: DeviceId,
        _: PgId,
        _: Epoch,
        blob: BlobId,
        shard: ShardIndex,
    ) -> Result<(), PeerError> {
        self.shards.borrow_mut().remove(&(blob, shard.0));
        Ok(())
    }

    async fn open_shard(
        &self,
        _: DeviceId,
        _: PgId,
        blob: BlobId,
        shard: ShardIndex,
    ) -> Result<OpenShard<Self::Opened>, PeerError> {
        let found = self.shards.borrow().get(&(blob, shard.0)).cloned().ok_or(PeerError::NotFound)?;
        let len_bytes = found.0.borrow().len() as u64;
        Ok(OpenShard { handle: found.0, len_bytes, checksums: found.1, owner: PartitionId(0) })
    }

    async fn read_shard(
        &self,
        shard: &Self::Opened,
        offset: u64,
        mut buf: IoBuf,
    ) -> (Result<(), PeerError>, IoBuf) {
        let len = buf.len();
        buf.copy_from_slice(&shard.borrow()[at(offset, len)]);
        (Ok(()), buf)
    }
}
