//! A machine: devices and the controller's file, which outlive a node; and a node that runs on them. What starts a
//! node here mirrors [`crate::core::run`].

use std::{cell::Cell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use futures::future::join_all;
use quarry_clustermap::{ClusterId, ClusterMap, DeviceId, ErasureProfile, Incarnation, NodeId, Tier};
use quarry_controller::{
    Controller, ControllerHandle, ControllerOptions, DeviceReport, NodeRegistration, Published, Registered,
};
use quarry_metastore::Embedded;
use quarry_object::{
    objects::{ObjectOptions, Objects},
    repair::Budget,
};
use quarry_partition::Payload;
use quarry_planner::{Policy, REBUILD_AFTER_MS};
use quarry_storage::{
    device::{BufferPool, SimDevice},
    store::{FormatParams, Mend, Store, StoreOptions},
};
use tempfile::TempDir;

use super::{
    devices::{Devices, Probe},
    executor::{Executor, SimTimer},
    transport::LocalTransport,
};
use crate::{
    cluster::{CoreParts, NodeCluster, Progress, Reads, Repairs},
    control::ControlHandle,
    host::{CoreHost, Links, SpaceTable, into_mutations},
    jobs::{
        self,
        scrub::{ScrubBoard, ScrubOptions},
    },
    metrics::Metrics,
    platform::{Platform, Timer},
};

pub(super) const NODE: NodeId = NodeId(1);
const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Small, so that restarts are quick, and more than one per device, so that every device is primary of some.
const PARTITIONS: u16 = 8;
const DEVICE_BYTES: u64 = 48 << 20;
/// Bodies shorter than this ride inside the commit record.
pub(super) const INLINE_BELOW_BYTES: u64 = 4096;
/// Stripes of 4+2 that fit the pool at once, times six.
const BUFFERS: usize = 60;
const TICK: Duration = Duration::from_millis(100);
/// Small enough that repairs take turns with clients.
const REPAIR_BYTES_PER_SECOND: u64 = 50 << 20;
const WATCH_SPACE_EVERY: Duration = Duration::from_millis(20);

/// What the simulation runs on.
pub(crate) enum Sim {}

impl Platform for Sim {
    type Device = Probe;
    type Transport = LocalTransport;
    type Timer = SimTimer;
}

/// The controller's state as of some moment.
pub(super) type MetastoreImage = Option<Vec<u8>>;

/// Limits that decide how often checkpoints happen.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) journal_bytes: u64,
    pub(super) overlay_bytes_max: usize,
}

impl Limits {
    /// No checkpoint happens in a test.
    pub(super) const ROOMY: Self = Self { journal_bytes: 8 << 20, overlay_bytes_max: 8 << 20 };
    /// Checkpoints happen all the time, and the ring wraps.
    pub(super) const TIGHT: Self = Self { journal_bytes: 256 << 10, overlay_bytes_max: 8 << 10 };
}

/// Which devices the core has no hand on, as if they were of another node.
#[derive(Clone, Copy)]
pub(super) enum Remote {
    None,
    Half,
    All,
}

impl Remote {
    fn of_seed(seed: u64) -> Self {
        [Self::Half, Self::None, Self::All][usize::try_from(seed % 3).unwrap()]
    }

    fn has(self, device: DeviceId) -> bool {
        match self {
            Self::None => false,
            Self::Half => device.0 % 2 == 1,
            Self::All => true,
        }
    }
}

/// See the module.
pub(super) struct Machine {
    pub(super) seed: u64,
    pub(super) profile: ErasureProfile,
    /// The devices beyond those of the profile are of the cold tier, and have this one.
    pub(super) cold_profile: Option<ErasureProfile>,
    pub(super) limits: Limits,
    pub(super) devices: Rc<Devices>,
    /// Devices that are not there when a node starts.
    pub(super) missing: Vec<usize>,
    /// Devices whose bytes travel beside messages.
    pub(super) remote: Remote,
    metastore: MetastoreImage,
    buffers: BufferPool,
}

pub(super) fn device_id(index: usize) -> DeviceId {
    DeviceId(0xd0 + index as u64)
}

impl Machine {
    /// Formats new devices, as many as the profile has shards.
    pub(super) fn new(profile: &str, limits: Limits, seed: u64) -> Self {
        Self::with_tiers(profile, None, limits, seed)
    }

    /// As [`Machine::new`], with as many devices of a cold tier as its profile has shards.
    pub(super) fn with_tiers(profile: &str, cold_profile: Option<&str>, limits: Limits, seed: u64) -> Self {
        let profile: ErasureProfile = profile.parse().unwrap();
        let cold_profile: Option<ErasureProfile> = cold_profile.map(|profile| profile.parse().unwrap());
        let format = |index: usize| {
            let device = SimDevice::new(DEVICE_BYTES, seed.wrapping_add(index as u64));
            let params = FormatParams {
                cluster: CLUSTER,
                device: device_id(index),
                journal_bytes: limits.journal_bytes,
            };
            futures::executor::block_on(Store::format(Rc::new(device.clone()), params)).unwrap();
            device.set_shuffle(true);
            device
        };
        let count = profile.total() + cold_profile.map_or(0, |profile| profile.total());
        let devices = Devices::new((0..count).map(format).collect());
        let buffers = BufferPool::new(BUFFERS).unwrap();
        let (missing, remote) = (Vec::new(), Remote::of_seed(seed));
        Self { seed, profile, cold_profile, limits, devices, missing, remote, metastore: None, buffers }
    }

    /// The same machine with other devices and another state of the controller.
    pub(super) fn with(&self, devices: Vec<SimDevice>, metastore: MetastoreImage, seed: u64) -> Self {
        devices.iter().for_each(|device| device.set_shuffle(true));
        let (devices, buffers) = (Devices::new(devices), self.buffers.clone());
        Self { seed, devices, metastore, buffers, missing: self.missing.clone(), ..*self }
    }

    /// Starts a node; returns when it serves.
    pub(super) fn start(&self) -> Node {
        let mut executor = Executor::new();
        let directory = metastore_directory(&self.metastore);
        let policy = Policy {
            cluster: CLUSTER,
            hot_profile: self.profile,
            cold_profile: self.cold_profile,
            partition_count: PARTITIONS,
            rebuild_after_ms: REBUILD_AFTER_MS,
            groups_per_device: 1,
        };
        let options = ControllerOptions { policy, clock_ms: || 0 };
        let (controller, handle) = Controller::new(Embedded::open(directory.path()).unwrap(), options);
        let spawn = executor.spawn();
        spawn(Box::pin(controller.run()));
        let registered = {
            let (handle, registration) = (handle.clone(), self.registration());
            executor.run(async move { handle.register_node(registration).await.unwrap() })
        };
        let metrics = Metrics::new().unwrap();
        let (control, events) = ControlHandle::new(handle.clone(), metrics);
        let pass_spawn = executor.spawn();
        spawn(Box::pin(crate::control::pass_events(events, handle.clone(), move |task| pass_spawn(task))));
        let devices: BTreeMap<_, _> = self
            .present()
            .map(|index| (device_id(index), Rc::new(Probe::new(&self.devices, index))))
            .collect();
        let stores = executor.run(recover(self.limits, devices.clone(), control.clone(), executor.spawn()));
        let (newest, incomplete) = executor.run(report_losses(handle.clone(), stores.clone()));
        let registered = Registered { published: newest, ..registered };
        let core = Core { registered, devices, stores, control, handle, incomplete };
        Node::start(self, executor, core, directory)
    }

    fn present(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.devices.all().len()).filter(|index| !self.missing.contains(index))
    }

    fn registration(&self) -> NodeRegistration {
        let report = |index| DeviceReport {
            device: device_id(index),
            tier: if index < self.profile.total() { Tier::Hot } else { Tier::Cold },
            capacity_bytes: DEVICE_BYTES,
            location: format!("device-{index}"),
            found: true,
            replaces: None,
            lost_partitions: Vec::new(),
        };
        NodeRegistration {
            node: NODE,
            address: String::new(),
            rack: String::new(),
            devices: self.present().map(report).collect(),
        }
    }
}

/// In memory where possible: the controller flushes its file, and these runs restart it a thousand times.
fn metastore_directory(image: &MetastoreImage) -> TempDir {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    if let Some(bytes) = image {
        std::fs::write(directory.path().join("metastore"), bytes).unwrap();
    }
    directory
}

async fn recover(
    limits: Limits,
    devices: BTreeMap<DeviceId, Rc<Probe>>,
    control: ControlHandle,
    spawn: super::executor::Spawn,
) -> Vec<Store<Probe>> {
    let opened = devices.into_iter().map(|(id, device)| {
        let decode =
            |payload: &[u8]| Payload::decode(payload).map(into_mutations).map_err(|error| error.to_string());
        let mut options = StoreOptions::new(Rc::clone(&spawn), Rc::new(decode));
        options.cache_bytes = 1 << 20;
        options.mend = Mend::WhenDamaged;
        options.overlay_bytes_max = limits.overlay_bytes_max;
        let told = control.clone();
        options.on_failed = Some(Rc::new(move |error| told.device_failed(id, error.to_string())));
        let control = control.clone();
        async move {
            let opened = Store::open(device, options).await;
            opened.map_err(|error| control.device_failed(id, error.to_string())).ok()
        }
    });
    join_all(opened).await.into_iter().flatten().collect()
}

/// As [`crate::core`] does before a replica is told its configuration.
async fn report_losses(handle: ControllerHandle, stores: Vec<Store<Probe>>) -> (Published, bool) {
    let mut incomplete = false;
    for store in stores {
        let losses = store.losses();
        if !losses.lost_partitions.is_empty() {
            let lost = losses.lost_partitions.into_iter().collect();
            handle.replicas_lost(store.device_id(), lost).await.unwrap();
        }
        incomplete |= losses.shards_incomplete;
    }
    (handle.subscribe().await.unwrap().recv().await.unwrap(), incomplete)
}

struct Core {
    /// Shards of some device are to be compared with what manifests name.
    incomplete: bool,
    registered: Registered,
    devices: BTreeMap<DeviceId, Rc<Probe>>,
    stores: Vec<Store<Probe>>,
    control: ControlHandle,
    handle: ControllerHandle,
}

/// A running node. Dropping it kills it: what was not flushed is as it may be.
pub(super) struct Node {
    executor: Executor,
    directory: TempDir,
    transport: Rc<LocalTransport>,
    pub(super) parts: Rc<NodeParts>,
}

/// What tests talk to.
pub(super) struct NodeParts {
    pub(super) host: Rc<CoreHost<Sim>>,
    pub(super) cluster: Rc<NodeCluster<Sim>>,
    pub(super) objects: Objects<NodeCluster<Sim>>,
    pub(super) timer: SimTimer,
    pub(super) scrub: ScrubBoard,
    collected: Cell<bool>,
}

impl Node {
    fn start(machine: &Machine, mut executor: Executor, core: Core, directory: TempDir) -> Self {
        let (timer, spawn) = (executor.timer(), executor.spawn());
        let Core { registered, devices, stores, control, handle, incomplete } = core;
        let Registered { incarnation, published } = registered;
        let transport = LocalTransport::new(Rc::clone(&spawn), machine.seed);
        let progress = Progress::new(1);
        let space = SpaceTable::new(devices.keys().copied());
        let links = Links::new(
            Rc::clone(&transport),
            timer.clone(),
            Rc::clone(&spawn),
            control.clone(),
            progress.clone(),
            space.clone(),
            None,
        );
        let host = CoreHost::new(stores, Arc::clone(&published.map), Rc::new(links));
        let devices = devices.into_iter().filter(|(id, _)| !machine.remote.has(*id)).collect();
        let cluster_parts = CoreParts {
            core: 0,
            cores: 1,
            node: NODE,
            incarnation,
            transport: Rc::clone(&transport),
            timer: timer.clone(),
            devices,
            buffers: machine.buffers.clone(),
            control,
            progress,
            reads: Reads::default(),
            repairs: Repairs::default(),
            spawn: Rc::clone(&spawn),
            seed: machine.seed,
        };
        let cluster = NodeCluster::new(cluster_parts, &published);
        let answering = Rc::clone(&host);
        transport.set_handler(Some(Rc::new(move |to, frame| answering.handle(to, frame))));
        host.set_map(Arc::clone(&published.map), Arc::clone(&published.buckets));
        cluster.set_published(&published);
        let options = ObjectOptions { inline_below_bytes: INLINE_BELOW_BYTES };
        let objects = Objects::new(Rc::clone(&cluster), options);
        let scrub = ScrubBoard::new(1);
        if incomplete {
            scrub.ask();
        }
        let parts = Rc::new(NodeParts { host, cluster, objects, timer, scrub, collected: Cell::new(false) });
        watch_space(&parts, &spawn, &space);
        start_tasks(&parts, &spawn, handle, &published, incarnation);
        let serving = Rc::clone(&parts);
        executor.run(async move { serving.wait_until_serving().await });
        Self { executor, directory, transport, parts }
    }

    /// Runs the node until `work` on it has ended.
    pub(super) fn run<F>(&mut self, work: impl FnOnce(Rc<NodeParts>) -> F) -> F::Output
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.executor.run(work(Rc::clone(&self.parts)))
    }

    pub(super) fn spawn(&self) -> super::executor::Spawn {
        self.executor.spawn()
    }

    /// The controller's state now.
    pub(super) fn metastore(&self) -> MetastoreImage {
        read_metastore(self.directory.path())
    }

    /// Reads the controller's state whenever it is called.
    pub(super) fn metastore_reader(&self) -> impl Fn() -> MetastoreImage + 'static {
        let path = self.directory.path().to_owned();
        move || read_metastore(&path)
    }

    /// Stops in an orderly way: checkpoints are written.
    pub(super) fn shutdown(mut self) -> MetastoreImage {
        self.run(|node| async move {
            for (_, device) in node.host.devices() {
                if let Err(error) = device.store.shutdown().await {
                    assert!(!node.host.map().is_in(device.store.device_id()), "{error}");
                }
            }
        });
        self.metastore()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The handler holds the host, which holds the transport.
        self.transport.set_handler(None);
    }
}

fn read_metastore(directory: &std::path::Path) -> MetastoreImage {
    std::fs::read(directory.join("metastore")).ok()
}

fn watch_space(parts: &Rc<NodeParts>, spawn: &super::executor::Spawn, space: &SpaceTable) {
    let (parts, space) = (Rc::clone(parts), space.clone());
    spawn(Box::pin(async move {
        loop {
            for (id, device) in parts.host.devices() {
                space.of(id).expect("made for every device").set(&device.store);
            }
            parts.timer.sleep(WATCH_SPACE_EVERY).await;
        }
    }));
}

fn start_tasks(
    parts: &Rc<NodeParts>,
    spawn: &super::executor::Spawn,
    handle: ControllerHandle,
    published: &Published,
    incarnation: Incarnation,
) {
    let (host, cluster, first) = (Rc::clone(&parts.host), Rc::clone(&parts.cluster), published.map.version);
    spawn(Box::pin(async move {
        let newest = handle.subscribe().await.unwrap();
        while let Ok(published) = newest.recv().await {
            if published.map.version >= first {
                host.set_map(Arc::clone(&published.map), Arc::clone(&published.buckets));
                cluster.set_published(&published);
            }
        }
    }));
    let ticking = Rc::clone(parts);
    spawn(Box::pin(async move {
        loop {
            ticking.timer.sleep(TICK).await;
            ticking.host.tick();
        }
    }));
    spawn(Box::pin(jobs::freer::run(Rc::clone(&parts.host), Rc::clone(&parts.cluster))));
    spawn(Box::pin(jobs::leftovers::run(Rc::clone(&parts.host), Rc::clone(&parts.cluster))));
    spawn(Box::pin(jobs::strays::run(Rc::clone(&parts.host), Rc::clone(&parts.cluster))));
    let budget = Rc::new(Budget::new(REPAIR_BYTES_PER_SECOND));
    spawn(Box::pin(jobs::mover::run(Rc::clone(&parts.cluster), Rc::clone(&budget))));
    spawn(Box::pin(jobs::repair::run(Rc::clone(&parts.host), Rc::clone(&parts.cluster), budget)));
    spawn(Box::pin(jobs::tiers::run(Rc::clone(&parts.host), Rc::clone(&parts.cluster))));
    let scrub = ScrubOptions {
        every: Duration::ZERO,
        budget: Budget::new(REPAIR_BYTES_PER_SECOND),
        node: NODE,
        incarnation,
    };
    let (host, cluster) = (Rc::clone(&parts.host), Rc::clone(&parts.cluster));
    spawn(Box::pin(jobs::scrub::run(host, cluster, parts.scrub.clone(), scrub)));
    let collecting = Rc::clone(parts);
    spawn(Box::pin(async move {
        let (host, cluster) = (Rc::clone(&collecting.host), Rc::clone(&collecting.cluster));
        jobs::collector::run(host, cluster, NODE, incarnation).await;
        collecting.collected.set(true);
    }));
}

impl NodeParts {
    /// The newest map that this core acts on.
    pub(super) fn map(&self) -> Arc<ClusterMap> {
        self.host.map()
    }

    /// Waits until every partition whose primary is in has a serving primary.
    pub(super) async fn wait_until_serving(&self) {
        self.wait_for("primaries", || self.host.primaries().len() == usize::from(PARTITIONS)).await;
    }

    /// Waits until the collector has decided on everything that earlier runs left.
    pub(super) async fn wait_until_collected(&self) {
        self.wait_for("the collector", || self.collected.get()).await;
    }

    /// Looks again and again, in virtual time.
    pub(super) async fn wait_for(&self, what: &str, done: impl Fn() -> bool) {
        const PATIENCE: Duration = Duration::from_secs(60);
        let started = self.timer.monotonic();
        while !done() {
            assert!(self.timer.monotonic() - started < PATIENCE, "waited too long for {what}");
            self.timer.sleep(Duration::from_millis(2)).await;
        }
    }
}
