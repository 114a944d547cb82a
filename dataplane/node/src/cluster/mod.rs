//! This core as the object layer sees it: the newest map, ids, clocks, memory, and the owners of devices behind the
//! transport, on this node and on others. Bulk bytes of local devices go through the core's own ring, whichever core
//! owns the device.

mod metadata;
mod reads;
mod repairs;
mod shards;

pub(crate) use self::{reads::Reads, repairs::Repairs};

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use quarry_clustermap::{BlobId, ClusterMap, DeviceId, Epoch, Incarnation, NodeId, WriterCounter};
use quarry_controller::{BucketTable, Published};
use quarry_identity::UserTable;
use quarry_object::{
    ReadLatency,
    peer::{DeviceFill, PeerFault, PeerRequest, PeerResponse, Run},
    transport::{Address, Class, Parcel, Transport, TransportError},
};
use quarry_storage::device::{BufferPool, DeviceError};

use crate::{
    control::ControlHandle,
    platform::{Platform, Timer},
};

/// Read errors of a device within [`READ_ERROR_WINDOW`] after which it is out.
const READ_ERRORS_MAX: u32 = 16;
/// See [`READ_ERRORS_MAX`].
const READ_ERROR_WINDOW: Duration = Duration::from_secs(60);

/// Writes that go on without a slow device within [`READ_ERROR_WINDOW`], on one core; beyond, they wait for it. Bounds
/// the buffers that its operations hold, and the repairs that follow.
const GIVE_UPS_MAX: u32 = 16;
/// Devices that are fuller by less than this are as good for new blobs as others: else the emptiest by a hair would take
/// twice the writes of others.
const FILL_STEP_PERMILLE: u16 = 20;

/// How far each core is: which map and which revisions of buckets and users it acts on.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Vec<CoreProgress>>);

#[derive(Default)]
struct CoreProgress {
    map_version: AtomicU64,
    bucket_revision: AtomicU64,
    user_revision: AtomicU64,
}

impl Progress {
    pub(crate) fn new(cores: usize) -> Self {
        Self(Arc::new((0..cores).map(|_| CoreProgress::default()).collect()))
    }

    fn set(&self, core: usize, published: &Published) {
        self.0[core].map_version.store(published.map.version.0, Ordering::Release);
        self.0[core].bucket_revision.store(published.buckets.revision, Ordering::Release);
        self.0[core].user_revision.store(published.users.revision, Ordering::Release);
    }

    /// Cores of this node.
    pub(crate) fn cores(&self) -> usize {
        self.0.len()
    }

    /// The oldest revision of the bucket table that a core acts on.
    pub(crate) fn bucket_revision(&self) -> u64 {
        let of_cores = self.0.iter().map(|core| core.bucket_revision.load(Ordering::Acquire));
        of_cores.min().unwrap_or_default()
    }

    /// Whether every core acts on this revision of the user table or a newer one.
    pub(crate) fn users_reached(&self, revision: u64) -> bool {
        self.0.iter().all(|core| core.user_revision.load(Ordering::Acquire) >= revision)
    }

    /// Whether every core acts on a map that has this epoch.
    pub(crate) fn epoch_reached(&self, epoch: Epoch) -> bool {
        self.0.iter().all(|core| core.map_version.load(Ordering::Acquire) >= epoch.0)
    }
}

/// What a core is made of, for [`NodeCluster::new`].
pub(crate) struct CoreParts<P: Platform> {
    pub(crate) core: usize,
    pub(crate) cores: usize,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) transport: Rc<P::Transport>,
    pub(crate) timer: P::Timer,
    /// Every device of the node, through this core's ring.
    pub(crate) devices: BTreeMap<DeviceId, Rc<P::Device>>,
    pub(crate) buffers: BufferPool,
    pub(crate) control: ControlHandle,
    pub(crate) progress: Progress,
    pub(crate) reads: Reads,
    pub(crate) repairs: Repairs,
    pub(crate) spawn: Rc<dyn Fn(LocalBoxFuture<'static, ()>)>,
    pub(crate) seed: u64,
}

/// See the module.
pub(crate) struct NodeCluster<P: Platform> {
    parts: CoreParts<P>,
    map: RefCell<Rc<ClusterMap>>,
    buckets: RefCell<Arc<BucketTable>>,
    users: RefCell<Arc<UserTable>>,
    latency: ReadLatency,
    blob_counter: Cell<u64>,
    random: Cell<u64>,
    read_errors: RefCell<BTreeMap<DeviceId, (Duration, u32)>>,
    /// Since when, and how often, writes went on without the device.
    given_up: RefCell<BTreeMap<DeviceId, (Duration, u32)>>,
    /// How full each device is, in thousandths, as of some seconds ago.
    fill: RefCell<BTreeMap<DeviceId, u16>>,
}

impl<P: Platform> NodeCluster<P> {
    pub(crate) fn new(parts: CoreParts<P>, published: &Published) -> Rc<Self> {
        let random = Cell::new(parts.seed | 1);
        Rc::new(Self {
            parts,
            map: RefCell::new(Rc::new(published.map.as_ref().clone())),
            buckets: RefCell::new(Arc::clone(&published.buckets)),
            users: RefCell::new(Arc::clone(&published.users)),
            latency: ReadLatency::new(),
            blob_counter: Cell::new(0),
            random,
            read_errors: RefCell::default(),
            given_up: RefCell::default(),
            fill: RefCell::default(),
        })
    }

    /// Acts on a newer map and bucket table from now on. The host of this core was told before.
    pub(crate) fn set_published(&self, published: &Published) {
        if self.map.borrow().version != published.map.version {
            *self.map.borrow_mut() = Rc::new(published.map.as_ref().clone());
        }
        *self.buckets.borrow_mut() = Arc::clone(&published.buckets);
        *self.users.borrow_mut() = Arc::clone(&published.users);
        self.parts.progress.set(self.parts.core, published);
    }

    /// The users that this core acts on.
    pub(crate) fn users(&self) -> Arc<UserTable> {
        Arc::clone(&self.users.borrow())
    }

    /// Blobs that are being read on this node.
    pub(crate) fn reads(&self) -> &Reads {
        &self.parts.reads
    }

    /// Shards of this node's groups that are to be repaired.
    pub(crate) fn repairs(&self) -> &Repairs {
        &self.parts.repairs
    }

    /// This core, of how many.
    pub(crate) fn core(&self) -> (usize, usize) {
        (self.parts.core, self.parts.cores)
    }

    /// Whether a device is one of this node, by the map.
    pub(crate) fn has(&self, device: DeviceId) -> bool {
        self.map.borrow().devices.get(&device).is_some_and(|entry| entry.node == self.parts.node)
    }

    /// The control plane.
    pub(crate) fn control(&self) -> &ControlHandle {
        &self.parts.control
    }

    /// The node's metrics.
    pub(crate) fn metrics(&self) -> &crate::metrics::Metrics {
        self.parts.control.metrics()
    }

    fn next_blob(&self) -> BlobId {
        let count = self.blob_counter.get();
        self.blob_counter.set(count + 1);
        BlobId {
            writer: self.parts.node,
            incarnation: self.parts.incarnation,
            counter: WriterCounter(((self.parts.core as u64) << 56) | count),
        }
    }

    /// xorshift64*: spreads load, draws ids that need not be secret.
    fn next_random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) async fn ask(&self, to: Address, request: PeerRequest) -> Result<PeerResponse, PeerFault> {
        Ok(self.ask_with(to, request, Bytes::new()).await?.0)
    }

    /// Asks with bytes beside the request; the answer may have bytes beside it.
    async fn ask_with(
        &self,
        to: Address,
        request: PeerRequest,
        bulk: Bytes,
    ) -> Result<(PeerResponse, Bytes), PeerFault> {
        let parcel = Parcel { message: request.encode().into(), bulk };
        self.send(to, request.class(), parcel).await
    }

    /// Sends an encoded request and waits for its answer.
    async fn send(
        &self,
        to: Address,
        class: Class,
        parcel: Parcel,
    ) -> Result<(PeerResponse, Bytes), PeerFault> {
        let answer = self.parts.transport.call(to, class, parcel).await.map_err(to_fault)?;
        match PeerResponse::decode(&answer.message) {
            Ok(PeerResponse::Failed(fault)) => Err(fault),
            Ok(response) => Ok((response, answer.bulk)),
            Err(error) => Err(PeerFault::Damaged { detail: error.to_string() }),
        }
    }

    /// A device answered a write with an error: it is out.
    fn write_failed(&self, device: DeviceId, problem: &str) {
        self.parts.control.device_failed(device, format!("a write failed: {problem}"));
    }

    /// What a node says of its devices.
    pub(crate) fn set_fill(&self, devices: Vec<DeviceFill>) {
        self.fill
            .borrow_mut()
            .extend(devices.into_iter().map(|DeviceFill { device, permille }| (device, permille)));
    }

    /// Worse is first what is slow, then what is fuller by some steps.
    fn cost_of(&self, device: DeviceId) -> u64 {
        let fuller = self.fill_permille(device) / FILL_STEP_PERMILLE;
        u64::from(self.times_given_up(device)) << 16 | u64::from(fuller)
    }

    /// How full a device is, in thousandths; 0 if nobody has said yet.
    pub(crate) fn fill_permille(&self, device: DeviceId) -> u16 {
        self.fill.borrow().get(&device).copied().unwrap_or_default()
    }

    /// How often writes went on without the device lately.
    fn times_given_up(&self, device: DeviceId) -> u32 {
        let now = self.parts.timer.monotonic();
        let given_up = self.given_up.borrow();
        let recent =
            given_up.get(&device).filter(|(since, _)| now.saturating_sub(*since) <= READ_ERROR_WINDOW);
        recent.map_or(0, |(_, count)| *count)
    }

    fn try_give_up(&self, device: DeviceId) -> bool {
        let times = self.times_given_up(device);
        if times >= GIVE_UPS_MAX {
            return false;
        }
        let now = self.parts.timer.monotonic();
        let mut given_up = self.given_up.borrow_mut();
        let entry = given_up.entry(device).or_insert((now, 0));
        *entry = if times == 0 { (now, 1) } else { (entry.0, times + 1) };
        tracing::warn!(event = "device_slow", %device, count = times + 1);
        self.metrics().writes_given_up.inc();
        true
    }

    /// A device answered a read with an error: what it could not read goes into quarantine, and it is out when that
    /// happens often. The reader's pin is dropped after this, in the same order: nobody else has the blocks yet.
    pub(crate) fn read_failed(&self, device: DeviceId, error: &DeviceError) {
        if let Some((offset, len_bytes)) = error.unreadable() {
            let request = PeerRequest::Quarantine { run: Run { offset, len_bytes } };
            let (class, parcel) = (request.class(), Parcel::from(request.encode()));
            if let Err(error) = self.parts.transport.send(Address::Device(device), class, parcel) {
                tracing::warn!(event = "quarantine_not_sent", %device, offset, %error);
            }
        }
        self.count_read_error(device, &error.to_string());
    }

    /// A read of a device failed, wherever it was tried.
    pub(crate) fn count_read_error(&self, device: DeviceId, problem: &str) {
        let now = self.parts.timer.monotonic();
        let mut errors = self.read_errors.borrow_mut();
        let (since, count) = errors.entry(device).or_insert((now, 0));
        if now.saturating_sub(*since) > READ_ERROR_WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        tracing::warn!(event = "device_read_error", %device, count = *count, problem);
        if *count == READ_ERRORS_MAX {
            let reason = format!("{READ_ERRORS_MAX} reads failed within a minute, the last one: {problem}");
            self.parts.control.device_failed(device, reason);
        }
    }
}

/// What a request that got no answer means for the asker.
pub(crate) fn to_fault(error: TransportError) -> PeerFault {
    match error {
        TransportError::Overloaded => PeerFault::Busy,
        TransportError::Unreachable => PeerFault::DeviceOut,
        TransportError::Lost => PeerFault::OutcomeUnknown,
    }
}

/// An answer of another kind than the request's.
fn unexpected() -> PeerFault {
    PeerFault::Damaged { detail: "a peer answered with an unexpected message".into() }
}
