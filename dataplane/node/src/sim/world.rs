//! Several machines with one control plane: what each node runs is what [`super::machine`] runs, but the devices of the
//! others are reached over a [`Network`]. A node is killed by ending its tasks where they stand, with its devices
//! as a power cut or the kill of a process leaves them.
//!
//! The control plane is reached by every node but those that the world makes deaf, and told by the world when a node is to
//! be taken for gone. Monotonic clocks differ in origin and rate.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures::{channel::oneshot, future::join_all};
use quarry_clustermap::{ClusterId, ClusterMap, DeviceId, Incarnation, NodeId, Tier};
use quarry_controller::{
    Controller, ControllerHandle, ControllerOptions, DeviceReport, NodeRegistration, Published, Registered,
    StoredMap,
};
use quarry_metastore::Embedded;
use quarry_object::objects::{ObjectOptions, Objects};
use quarry_object::repair::Budget;
use quarry_partition::{LeaseTimes, Payload};
use quarry_planner::{
    DeviceObservation, Intent, Inventory, NodeObservation, PlanInput, Policy, REBUILD_AFTER_MS, Reports, plan,
};
use quarry_storage::{
    device::{BufferPool, SimDevice},
    store::{FormatParams, Mend, Store, StoreOptions},
};
use tempfile::TempDir;

use super::{
    executor::{SimTimer, Spawn},
    life::Life,
    network::{NetTransport, Network},
};
use crate::{
    cluster::{CoreParts, NodeCluster, Progress, Reads, Repairs},
    control::ControlHandle,
    host::{CoreHost, Links, SpaceTable, into_mutations},
    jobs,
    metrics::Metrics,
    platform::{Platform, Timer},
};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const PARTITIONS: u16 = 8;
const JOURNAL_BYTES: u64 = 512 << 10;
const OVERLAY_BYTES_MAX: usize = 64 << 10;
/// Bodies shorter than this ride inside the commit record.
pub(super) const INLINE_BELOW_BYTES: u64 = 4096;
const BUFFERS: usize = 60;
const TICK: Duration = Duration::from_millis(100);
const REPAIR_BYTES_PER_SECOND: u64 = 50 << 20;
const DEVICES_PER_NODE: u32 = 2;
pub(super) const LEASE_MS: u64 = 1_500;
/// Thousandths of true time at which clocks run: almost as far apart as leases allow.
const CLOCK_RATES: [u32; 3] = [955, 1000, 1045];

/// What the simulation of several nodes runs on.
pub(crate) enum ClusterSim {}

impl Platform for ClusterSim {
    type Device = SimDevice;
    type Transport = NetTransport;
    type Timer = SimTimer;
}

/// One run of a node.
pub(super) struct RunningNode {
    life: Rc<Life>,
    pub(super) host: Rc<CoreHost<ClusterSim>>,
    pub(super) cluster: Rc<NodeCluster<ClusterSim>>,
    pub(super) objects: Rc<Objects<NodeCluster<ClusterSim>>>,
}

impl RunningNode {
    /// Runs work in the node; `None`: the node was killed first.
    pub(super) async fn run<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        (self.life.spawner())(Box::pin(async move {
            let _gone = sender.send(work.await);
        }));
        receiver.await.ok()
    }
}

/// See the module.
pub(super) struct World {
    pub(super) timer: SimTimer,
    pub(super) network: Rc<Network>,
    spawn: Spawn,
    handle: ControllerHandle,
    devices: RefCell<BTreeMap<DeviceId, SimDevice>>,
    nodes: RefCell<BTreeMap<NodeId, Rc<RunningNode>>>,
    /// Pools outlive the node, as buffers that the world still holds do.
    buffers: BufferPool,
    device_bytes: SizeOf,
    pub(super) node_count: u32,
    /// Nodes that hear nothing of the control plane, and that it does not hear.
    deaf: Rc<RefCell<BTreeSet<NodeId>>>,
    /// Of primaries; `None`: they serve without.
    pub(super) leases: Cell<Option<LeaseTimes>>,
    seed: u64,
    _directory: TempDir,
}

/// Bytes of each device.
pub(super) type SizeOf = fn(DeviceId) -> u64;

fn owner(device: DeviceId) -> NodeId {
    NodeId(1 + u32::try_from(device.0).expect("few devices") / DEVICES_PER_NODE)
}

thread_local! {
    /// Of the world that was made last in this thread: for the control plane.
    static CLOCK: RefCell<Option<SimTimer>> = const { RefCell::new(None) };
}

fn world_ms() -> u64 {
    CLOCK.with_borrow(|clock| clock.as_ref().map_or(0, Timer::unix_ms))
}

fn policy() -> Policy {
    Policy {
        cluster: CLUSTER,
        hot_profile: "4+2".parse().unwrap(),
        cold_profile: None,
        partition_count: PARTITIONS,
        rebuild_after_ms: REBUILD_AFTER_MS,
        groups_per_device: 1,
    }
}

/// The first map, of all nodes at once.
fn first_map(nodes: u32, device_bytes: SizeOf) -> ClusterMap {
    let node = |_| NodeObservation { address: String::new(), rack: String::new() };
    let device = |id| DeviceObservation {
        node: owner(id),
        tier: Tier::Hot,
        capacity_bytes: device_bytes(id),
        location: id.to_string(),
        present: true,
        replaces: None,
    };
    let inventory = Inventory {
        nodes: (1..=nodes).map(NodeId).map(|id| (id, node(id))).collect(),
        devices: (0..u64::from(nodes * DEVICES_PER_NODE)).map(DeviceId).map(|id| (id, device(id))).collect(),
    };
    let (policy, reports) = (policy(), Reports::default());
    let input = PlanInput { policy: &policy, inventory: &inventory, map: None, reports: &reports, now_ms: 0 };
    plan(&input).unwrap().map.unwrap()
}

impl World {
    /// Formatted devices, a control plane with a map of all nodes, and no node running.
    pub(super) fn new(
        nodes: u32,
        device_bytes: SizeOf,
        (timer, spawn): (SimTimer, Spawn),
        seed: u64,
    ) -> Rc<Self> {
        let map = first_map(nodes, device_bytes);
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let metastore = Embedded::open(directory.path()).unwrap();
        futures::executor::block_on(StoredMap::overwrite(&metastore, &map)).unwrap();
        CLOCK.set(Some(timer.clone()));
        let options = ControllerOptions { policy: policy(), clock_ms: world_ms };
        let (controller, handle) = Controller::new(metastore, options);
        spawn(Box::pin(controller.run()));
        let format = |id: &DeviceId| {
            let device = SimDevice::new(device_bytes(*id), seed.wrapping_add(id.0));
            let params = FormatParams { cluster: CLUSTER, device: *id, journal_bytes: JOURNAL_BYTES };
            futures::executor::block_on(Store::format(Rc::new(device.clone()), params)).unwrap();
            device.set_shuffle(true);
            (*id, device)
        };
        let owners = map.devices.iter().map(|(id, entry)| (*id, entry.node)).collect();
        Rc::new(Self {
            network: Network::new(timer.clone(), Rc::clone(&spawn), owners, seed),
            timer,
            spawn,
            handle,
            devices: RefCell::new(map.devices.keys().map(format).collect()),
            nodes: RefCell::default(),
            buffers: BufferPool::new(BUFFERS).unwrap(),
            device_bytes,
            node_count: nodes,
            deaf: Rc::default(),
            leases: Cell::new(Some(LeaseTimes::new(LEASE_MS))),
            seed,
            _directory: directory,
        })
    }

    /// Nodes that run.
    pub(super) fn running(&self) -> Vec<(NodeId, Rc<RunningNode>)> {
        self.nodes.borrow().iter().map(|(id, node)| (*id, Rc::clone(node))).collect()
    }

    fn devices_of(&self, node: NodeId) -> Vec<(DeviceId, SimDevice)> {
        let devices = self.devices.borrow();
        let of_node = devices.iter().filter(|(id, _)| owner(**id) == node);
        of_node.map(|(id, device)| (*id, device.clone())).collect()
    }

    /// Stops a node where it is.
    pub(super) fn kill(&self, node: NodeId, power_cut: bool, seed: u64) {
        self.network.detach(node);
        let gone = self.nodes.borrow_mut().remove(&node);
        let Some(running) = gone else { return };
        running.life.end();
        drop(running);
        for (id, device) in self.devices_of(node) {
            let left = if power_cut { device.crash(seed ^ id.0) } else { device };
            left.set_shuffle(true);
            self.devices.borrow_mut().insert(id, left);
        }
    }

    /// The control plane takes a node that does not run for gone: its devices are out.
    pub(super) async fn expire(&self, node: NodeId) {
        for (id, _) in self.devices_of(node) {
            if self.nodes.borrow().contains_key(&node) {
                return;
            }
            self.handle.device_failed(id, "its node is gone".into()).await.unwrap();
        }
    }

    /// An operator asks for something.
    pub(super) async fn operate(&self, intent: Intent) {
        self.handle.operate(intent).await.unwrap();
    }

    /// The control plane takes a node for gone that runs.
    pub(super) async fn suspect(&self, node: NodeId) {
        for (id, _) in self.devices_of(node) {
            self.handle.device_failed(id, "its node is silent".into()).await.unwrap();
        }
    }

    /// The node that was taken for gone says that it is not.
    pub(super) async fn returns(&self, node: NodeId) {
        for (id, _) in self.devices_of(node) {
            self.handle.device_returned(id, Vec::new()).await.unwrap();
        }
    }

    /// Whether a node hears of the control plane, and is heard there.
    pub(super) fn set_deaf(&self, node: NodeId, deaf: bool) {
        if deaf {
            self.deaf.borrow_mut().insert(node);
        } else {
            self.deaf.borrow_mut().remove(&node);
        }
    }

    /// As SIGSTOP and SIGCONT do it.
    pub(super) fn pause(&self, node: NodeId, paused: bool) {
        let Some(running) = self.nodes.borrow().get(&node).cloned() else { return };
        if paused { running.life.pause() } else { running.life.go_on() }
    }

    /// Waits as long as a node is deaf.
    fn heard(&self, node: NodeId) -> impl AsyncFn() + 'static {
        let (deaf, timer) = (Rc::clone(&self.deaf), self.timer.clone());
        async move || {
            while deaf.borrow().contains(&node) {
                timer.sleep(Duration::from_millis(10)).await;
            }
        }
    }

    fn registration(&self, node: NodeId) -> NodeRegistration {
        let report = |(device, _)| DeviceReport {
            device,
            tier: Tier::Hot,
            capacity_bytes: (self.device_bytes)(device),
            location: DeviceId::to_string(&device),
            found: true,
            replaces: None,
            lost_partitions: Vec::new(),
        };
        let devices = self.devices_of(node).into_iter().map(report).collect();
        NodeRegistration { node, address: String::new(), rack: String::new(), devices }
    }

    /// Starts a node that does not run; it serves a moment later.
    pub(super) async fn start(&self, node: NodeId) {
        let Registered { incarnation, .. } =
            self.handle.register_node(self.registration(node)).await.unwrap();
        let life = Life::new(Rc::clone(&self.spawn));
        let spawn = life.spawner();
        let (control, events) = ControlHandle::new(self.handle.clone(), Metrics::new().unwrap());
        let passing = Rc::clone(&spawn);
        let (sender, heard_events) = async_channel::unbounded();
        let heard = self.heard(node);
        spawn(Box::pin(async move {
            while let Ok(event) = events.recv().await {
                heard().await;
                // Whoever would take it may be gone.
                let _ = sender.send(event).await;
            }
        }));
        let passed =
            crate::control::pass_events(heard_events, self.handle.clone(), move |task| passing(task));
        spawn(Box::pin(passed));
        let devices: BTreeMap<_, _> =
            self.devices_of(node).into_iter().map(|(id, device)| (id, Rc::new(device))).collect();
        let stores = recover(&devices, &control, &spawn).await;
        for store in &stores {
            let losses = store.losses();
            assert!(losses.lost_partitions.is_empty(), "no device is damaged here");
        }
        let newest = self.handle.subscribe().await.unwrap();
        let published = newest.recv().await.unwrap();
        let rate = CLOCK_RATES[usize::try_from((self.seed + u64::from(node.0)) % 3).expect("three")];
        let timer = self.timer.of_machine(Duration::from_secs(100 * u64::from(node.0)), rate);
        let transport = Rc::new(NetTransport { me: node, network: Rc::clone(&self.network) });
        let (progress, space) = (Progress::new(1), SpaceTable::new(devices.keys().copied()));
        let links = Links::new(
            Rc::clone(&transport),
            timer.clone(),
            Rc::clone(&spawn),
            control.clone(),
            progress.clone(),
            space.clone(),
            self.leases.get(),
        );
        let host = CoreHost::new(stores, Arc::clone(&published.map), Rc::new(links));
        let parts = CoreParts {
            core: 0,
            cores: 1,
            node,
            incarnation,
            transport,
            timer,
            devices,
            buffers: self.buffers.clone(),
            control,
            progress,
            reads: Reads::default(),
            repairs: Repairs::default(),
            spawn: Rc::clone(&spawn),
            seed: self.seed ^ u64::from(node.0) << 32 ^ u64::from(incarnation.0),
        };
        let cluster = NodeCluster::new(parts, &published);
        let answering = Rc::clone(&host);
        let handler = Rc::new(move |to, parcel| answering.handle(to, parcel));
        self.network.attach(node, handler, Rc::clone(&spawn));
        host.set_map(Arc::clone(&published.map), Arc::clone(&published.buckets));
        cluster.set_published(&published);
        self.start_tasks((&host, &cluster), newest, space, (node, incarnation), &spawn);
        let options = ObjectOptions { inline_below_bytes: INLINE_BELOW_BYTES };
        let objects = Rc::new(Objects::new(Rc::clone(&cluster), options));
        let running = RunningNode { life, host, cluster, objects };
        self.nodes.borrow_mut().insert(node, Rc::new(running));
    }

    /// What runs in a node beside requests.
    fn start_tasks(
        &self,
        (host, cluster): (&Rc<CoreHost<ClusterSim>>, &Rc<NodeCluster<ClusterSim>>),
        newest: async_channel::Receiver<Published>,
        space: SpaceTable,
        (node, incarnation): (NodeId, Incarnation),
        spawn: &Spawn,
    ) {
        let (told, acting) = (Rc::clone(host), Rc::clone(cluster));
        let heard = self.heard(node);
        spawn(Box::pin(async move {
            while let Ok(published) = newest.recv().await {
                heard().await;
                told.set_map(Arc::clone(&published.map), Arc::clone(&published.buckets));
                acting.set_published(&published);
            }
        }));
        let (ticking, timer) = (Rc::clone(host), self.timer.clone());
        spawn(Box::pin(async move {
            loop {
                for (id, device) in ticking.devices() {
                    space.of(id).expect("made for every device").set(&device.store);
                }
                timer.sleep(TICK).await;
                ticking.tick();
            }
        }));
        let (budget, pair) =
            (Rc::new(Budget::new(REPAIR_BYTES_PER_SECOND)), || (Rc::clone(host), Rc::clone(cluster)));
        spawn(Box::pin(jobs::freer::run(pair().0, pair().1)));
        spawn(Box::pin(jobs::leftovers::run(pair().0, pair().1)));
        spawn(Box::pin(jobs::strays::run(pair().0, pair().1)));
        spawn(Box::pin(jobs::room::run(pair().0, pair().1)));
        spawn(Box::pin(jobs::mover::run(pair().1, Rc::clone(&budget))));
        spawn(Box::pin(jobs::repair::run(pair().0, pair().1, budget)));
        spawn(Box::pin(jobs::collector::follow(pair().0, pair().1, node, incarnation)));
    }

    /// Waits until every partition has one serving primary and all nodes act on the same map.
    pub(super) async fn wait_until_serving(&self) {
        const PATIENCE: Duration = Duration::from_secs(60);
        let started = self.timer.monotonic();
        loop {
            let running = self.running();
            let primaries: usize = running.iter().map(|(_, node)| node.host.primaries().len()).sum();
            let versions: Vec<_> = running.iter().map(|(_, node)| node.host.map().version).collect();
            if primaries == usize::from(PARTITIONS) && versions.windows(2).all(|pair| pair[0] == pair[1]) {
                return;
            }
            assert!(self.timer.monotonic() - started < PATIENCE, "{primaries} primaries, maps {versions:?}");
            self.timer.sleep(Duration::from_millis(20)).await;
        }
    }

    /// Shards of all devices.
    pub(super) async fn shards(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (node, running) in self.running() {
            for (id, device) in running.host.devices() {
                let rows = device.store.shards(None, usize::MAX).await.unwrap();
                found.extend(rows.iter().map(|row| format!("{node}, {id}: {:?}", row.key())));
            }
        }
        found
    }
}

async fn recover(
    devices: &BTreeMap<DeviceId, Rc<SimDevice>>,
    control: &ControlHandle,
    spawn: &Spawn,
) -> Vec<Store<SimDevice>> {
    let opened = devices.iter().map(|(id, device)| {
        let decode =
            |payload: &[u8]| Payload::decode(payload).map(into_mutations).map_err(|error| error.to_string());
        let mut options = StoreOptions::new(Rc::clone(spawn), Rc::new(decode));
        options.cache_bytes = 1 << 20;
        options.mend = Mend::WhenDamaged;
        options.overlay_bytes_max = OVERLAY_BYTES_MAX;
        let (told, id, device) = (control.clone(), *id, Rc::clone(device));
        options.on_failed = Some(Rc::new(move |error| told.device_failed(id, error.to_string())));
        async move { Store::open(device, options).await.unwrap() }
    });
    join_all(opened).await
}
