//! One executor: its ring, its devices, its listener. Everything on a core is built here, in this order: ring and
//! buffers, recovery of the devices it owns, transport, map, jobs; and, once every core is that far, connections.

mod messages;
mod probes;
mod requests;

use std::{
    cell::{Cell, OnceCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use event_listener::{Event, EventListener};
use futures::{FutureExt, future::LocalBoxFuture};
use glommio::{
    Latency, Shares, TaskQueueHandle,
    net::{TcpListener, TcpStream},
};
use quarry_clustermap::{DeviceId, Incarnation, NodeId, PartitionId};
use quarry_controller::Published;
use quarry_gateway::{Client, Gateway};
use quarry_object::repair::Budget;
use quarry_partition::{LeaseTimes, Payload};
use quarry_storage::{
    device::{BufferPool, FaultDevice, MeteredDevice, Pause, Ring, UringDevice},
    store::{Mend, Store, StoreOptions},
};

use self::{
    messages::{start_mesh, start_net},
    probes::Probes,
    requests::gateway,
};
use crate::{
    audit::AuditSink,
    cluster::{CoreParts, NodeCluster, Progress, Reads, Repairs},
    config::Config,
    control::{AdminState, ControlHandle, FaultSwitches},
    credentials::Credentials,
    devices::FoundDevice,
    host::{CoreHost, DeviceSpace, Links, SpaceTable, into_mutations},
    jobs::{
        self,
        scrub::{ScrubBoard, ScrubOptions},
    },
    metrics::{CoreGauges, Metrics},
    platform::Platform,
    runtime::{
        clock::CoreTimer,
        fd::{CompletionEvents, HyperStream},
        mesh::{Inbox, Mesh},
        net::{ClusterKey, Net},
        pulse::CorePulse,
        tls::Tls,
    },
};

/// Submission queue of the device ring; up to four times as many operations are in flight.
const RING_DEPTH: u32 = 256;
/// Between ticks of the replicas.
const TICK: Duration = Duration::from_millis(100);
/// The same while primaries are handed over.
const HAND_OVER_TICK: Duration = Duration::from_millis(10);
/// How long a node that stops waits for its leave to be known.
const LEAVE_FOR: Duration = Duration::from_secs(5);
/// Connections of one core; more wait in the listen queue.
const CONNECTIONS_MAX: u64 = 4096;
/// How long requests in progress may take after a stop was asked for.
const DRAIN_FOR: Duration = Duration::from_secs(20);
/// Bytes of one pool buffer.
const BUFFER_BYTES: usize = quarry_clustermap::SHARD_BLOCK_BYTES;

/// A device as the node uses it: our ring, behind a switch that can inject errors, all of it counted.
type NodeDevice = MeteredDevice<FaultDevice<UringDevice>>;

/// What production runs on.
pub(crate) enum Production {}

impl Platform for Production {
    type Device = NodeDevice;
    type Transport = Mesh;
    type Timer = CoreTimer;
}

/// What every core gets from the main thread.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) tls: Option<Tls>,
    pub(crate) credentials: Credentials,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) devices: Vec<FoundDevice>,
    pub(crate) faults: FaultSwitches,
    pub(crate) published: Published,
    pub(crate) inboxes: Vec<Arc<Inbox>>,
    pub(crate) pulses: Vec<Arc<CorePulse>>,
    /// Where other nodes reach this one, and what they prove to each other; `None`: there are none.
    pub(crate) peers: Option<(SocketAddr, ClusterKey)>,
    /// Of primaries; `None`: all replicas are in this process.
    pub(crate) leases: Option<LeaseTimes>,
    pub(crate) progress: Progress,
    pub(crate) space: SpaceTable,
    pub(crate) reads: Reads,
    pub(crate) repairs: Repairs,
    pub(crate) scrub: ScrubBoard,
    pub(crate) control: ControlHandle,
    pub(crate) admin: Arc<AdminState>,
    pub(crate) metrics: Arc<Metrics>,
    /// `None`: there is no audit log.
    pub(crate) audit: Option<AuditSink>,
    pub(crate) stopping: Arc<AtomicBool>,
    /// Cores that have recovered their devices, and cores that have no request in progress any more.
    pub(crate) recovered: Arc<AtomicU64>,
    pub(crate) drained: Arc<AtomicU64>,
    /// Not 0: the others have been told that this node leaves.
    pub(crate) left: Arc<AtomicU64>,
}

impl Shared {
    fn owner(&self, device: DeviceId) -> Option<usize> {
        self.devices.iter().position(|found| found.id == device).map(|index| index % self.config.cores)
    }
}

/// Task queues of a core: who gets how much of it while all want it.
#[derive(Clone, Copy)]
struct Queues {
    client: TaskQueueHandle,
    device: TaskQueueHandle,
    background: TaskQueueHandle,
}

impl Queues {
    fn new() -> Self {
        let executor = glommio::executor();
        // Replication, journals and completions go first: everybody waits for them.
        let device = executor.create_task_queue(
            Shares::Static(1000),
            Latency::Matters(Duration::from_millis(1)),
            "device",
        );
        let client = executor.create_task_queue(Shares::Static(800), Latency::NotImportant, "client");
        let background = executor.create_task_queue(Shares::Static(100), Latency::NotImportant, "background");
        Self { client, device, background }
    }
}

fn spawner(queue: TaskQueueHandle) -> Rc<dyn Fn(LocalBoxFuture<'static, ()>)> {
    Rc::new(move |task| {
        glommio::spawn_local_into(task, queue).expect("the queue exists as long as the executor").detach();
    })
}

/// Runs core `index` until the node stops.
pub(crate) async fn run(shared: Shared, index: usize) -> anyhow::Result<()> {
    shared.pulses[index].begin().await;
    let queues = Queues::new();
    let buffers = BufferPool::new(shared.config.buffers_per_core_bytes / BUFFER_BYTES)?;
    let ring = start_ring(&buffers, queues)?;
    let gauges = Arc::new(CoreGauges::default());
    let net = Rc::new(OnceCell::new());
    let serving = start_pulse(&shared, index, (&buffers, &ring), &gauges, (&net, queues));
    let devices = open_devices(&shared, &ring);
    let stores = recover(&shared, index, &devices, queues).await;
    report_losses(&shared, &stores).await?;
    shared.recovered.fetch_add(1, Ordering::AcqRel);

    let mesh = start_mesh(&shared, index, queues);
    let timer = CoreTimer::start();
    let links = Rc::new(Links::new(
        Rc::clone(&mesh),
        timer,
        spawner(queues.device),
        shared.control.clone(),
        shared.progress.clone(),
        shared.space.clone(),
        shared.leases,
    ));
    let host = CoreHost::new(stores, Arc::clone(&shared.published.map), links);
    let parts = CoreParts {
        core: index,
        cores: shared.config.cores,
        node: shared.node,
        incarnation: shared.incarnation,
        transport: Rc::clone(&mesh),
        timer,
        devices,
        buffers: buffers.clone(),
        control: shared.control.clone(),
        progress: shared.progress.clone(),
        reads: shared.reads.clone(),
        repairs: shared.repairs.clone(),
        spawn: spawner(queues.client),
        seed: u64::from_le_bytes(crate::credentials::random()?),
    };
    let cluster = NodeCluster::new(parts, &shared.published);
    let handler = Rc::clone(&host);
    mesh.set_handler(Rc::new(move |to, frame| handler.handle(to, frame)));
    // Primaries talk to replicas on other cores at once: all must be there first.
    wait_for_all(&shared.recovered, shared.config.cores).await;
    start_net(&shared, &mesh, &cluster, queues, &net)?;
    follow_map(&shared, (&host, &cluster), &net, queues).await?;
    start_ticks(&shared, &host, &gauges, queues);
    let background = spawner(queues.background);
    background(Box::pin(jobs::freer::run(Rc::clone(&host), Rc::clone(&cluster))));
    background(Box::pin(jobs::leftovers::run(Rc::clone(&host), Rc::clone(&cluster))));
    background(Box::pin(jobs::strays::run(Rc::clone(&host), Rc::clone(&cluster))));
    if shared.peers.is_some() {
        background(Box::pin(jobs::room::run(Rc::clone(&host), Rc::clone(&cluster))));
    }
    let tables = shared.control.tables();
    background(Box::pin(jobs::tables::run(Rc::clone(&host), Rc::clone(&cluster), tables)));
    let reading = Budget::new(shared.config.scrub_bytes_per_second / shared.config.cores as u64);
    background(Box::pin(jobs::expiry::run(Rc::clone(&host), Rc::clone(&cluster), reading)));
    let budget = Rc::new(Budget::new(shared.config.repair_bytes_per_second / shared.config.cores as u64));
    background(Box::pin(jobs::mover::run(Rc::clone(&cluster), Rc::clone(&budget))));
    background(Box::pin(jobs::repair::run(Rc::clone(&host), Rc::clone(&cluster), budget)));
    background(Box::pin(jobs::tiers::run(Rc::clone(&host), Rc::clone(&cluster))));
    background(Box::pin(jobs::why::run(Rc::clone(&host), Rc::clone(&cluster))));
    background(Box::pin(jobs::scrub::run(
        Rc::clone(&host),
        Rc::clone(&cluster),
        shared.scrub.clone(),
        ScrubOptions {
            every: shared.config.scrub_every,
            budget: Budget::new(shared.config.scrub_bytes_per_second / shared.config.cores as u64),
            node: shared.node,
            incarnation: shared.incarnation,
        },
    )));
    let collector =
        jobs::collector::follow(Rc::clone(&host), Rc::clone(&cluster), shared.node, shared.incarnation);
    background(Box::pin(collector));

    wait_until_serving(&shared, &host).await;
    serving.set(true);
    serve(&shared, index, &cluster, &gauges, queues).await?;
    leave(&shared, index).await;
    for (id, device) in host.devices() {
        if let Err(error) = device.store.shutdown().await {
            tracing::warn!(event = "device_not_closed", device = %id, %error);
        }
    }
    Ok(())
}

/// Our own ring for device I/O: submitted once per scheduler round, reaped when its eventfd says so.
fn start_ring(buffers: &BufferPool, queues: Queues) -> anyhow::Result<Ring> {
    let ring = Ring::new(RING_DEPTH, buffers)?;
    let event_fd = ring_event_fd(&ring)?;
    let queued = Rc::new(Event::new());
    let wanted = Rc::new(Cell::new(false));
    ring.set_on_queue({
        let (queued, wanted) = (Rc::clone(&queued), Rc::clone(&wanted));
        Rc::new(move || {
            wanted.set(true);
            queued.notify(1);
        })
    });
    let submitter = ring.clone();
    spawner(queues.device)(Box::pin(async move {
        loop {
            let listener = queued.listen();
            if !wanted.replace(false) {
                listener.await;
                continue;
            }
            submitter.submit();
            submitter.reap();
            glommio::executor().yield_task_queue_now().await;
        }
    }));
    let reaper = ring.clone();
    spawner(queues.device)(Box::pin(async move {
        loop {
            if let Err(error) = event_fd.wait().await {
                tracing::error!(event = "completion_events_failed", %error);
                std::process::abort();
            }
            reaper.reap();
        }
    }));
    Ok(ring)
}

fn ring_event_fd(ring: &Ring) -> anyhow::Result<CompletionEvents> {
    Ok(CompletionEvents::new(ring.event_fd())?)
}

fn open_devices(shared: &Shared, ring: &Ring) -> BTreeMap<DeviceId, Rc<NodeDevice>> {
    let open = |found: &FoundDevice| {
        let switch = shared.faults.get(&found.id).cloned().unwrap_or_default();
        let pause: Pause = Rc::new(|duration| Box::pin(glommio::timer::sleep(duration)));
        let device = FaultDevice::new(UringDevice::new(ring, Arc::clone(&found.file)), switch, pause);
        (found.id, Rc::new(MeteredDevice::new(device, shared.metrics.device_meter(found.id))))
    };
    shared.devices.iter().map(open).collect()
}

/// Recovers the stores of this core's devices, all at once. One that cannot be recovered is reported and left out.
async fn recover(
    shared: &Shared,
    index: usize,
    devices: &BTreeMap<DeviceId, Rc<NodeDevice>>,
    queues: Queues,
) -> Vec<Store<NodeDevice>> {
    let mine = shared.devices.iter().filter(|found| shared.owner(found.id) == Some(index));
    let opened = mine.map(|found| {
        let (control, id) = (shared.control.clone(), found.id);
        let mut options = StoreOptions::new(spawner(queues.device), Rc::new(decode_entry));
        options.cache_bytes = shared.config.cache_per_device_bytes;
        options.mend = Mend::WhenDamaged;
        options.on_failed = Some(Rc::new(move |error| control.device_failed(id, error.to_string())));
        let device = Rc::clone(&devices[&found.id]);
        async move { (found.id, Store::open(device, options).await) }
    });
    let mut stores = Vec::new();
    for (id, opened) in futures::future::join_all(opened).await {
        match opened {
            Ok(store) => {
                let space = shared.space.of(id).expect("made for every device found");
                shared.metrics.add_device(id.to_string(), store.stats(), Arc::clone(&space));
                watch_space(&store, space, queues);
                checkpoint_when_quiet(&store, queues);
                stores.push(store);
            }
            Err(error) => shared.control.device_failed(id, format!("it cannot be recovered: {error}")),
        }
    }
    stores
}

/// Keeps what other cores know of a device's space at most a moment old.
fn watch_space(store: &Store<NodeDevice>, known: Arc<DeviceSpace>, queues: Queues) {
    const EVERY: Duration = Duration::from_millis(20);
    known.set(store);
    let store = store.clone();
    spawner(queues.device)(Box::pin(async move {
        loop {
            glommio::timer::sleep(EVERY).await;
            known.set(&store);
        }
    }));
}

/// Writes a checkpoint when none was written for a while and rows wait for one: what was deleted comes back also when
/// nothing else happens, and a restart has little to replay. An idle device is left alone after that.
fn checkpoint_when_quiet(store: &Store<NodeDevice>, queues: Queues) {
    const EVERY: Duration = Duration::from_secs(10);
    let store = store.clone();
    spawner(queues.background)(Box::pin(async move {
        let mut written = 0;
        loop {
            glommio::timer::sleep(EVERY).await;
            let now = store.stats().load().checkpoints;
            if now == written
                && store.space().pending_bytes > 0
                && let Err(error) = store.checkpoint().await
            {
                return tracing::debug!(event = "checkpoints_ended", %error);
            }
            written = now;
        }
    }));
}

fn decode_entry(payload: &[u8]) -> Result<Vec<quarry_storage::store::Mutation>, String> {
    Payload::decode(payload).map(into_mutations).map_err(|error| error.to_string())
}

async fn wait_for_all(count: &AtomicU64, cores: usize) {
    while count.load(Ordering::Acquire) < cores as u64 {
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}

/// Replicas that a mended device has lost leave their in-sync sets before any of them is told its configuration: an
/// empty log would look like a whole one.
async fn report_losses(shared: &Shared, stores: &[Store<NodeDevice>]) -> anyhow::Result<()> {
    for store in stores {
        let losses = store.losses();
        // A device that cannot tell which ones it had names every one that could be.
        let count = shared.published.map.partition_count();
        let lost: Vec<PartitionId> =
            losses.lost_partitions.into_iter().filter(|partition| partition.0 < count).collect();
        if !lost.is_empty() {
            shared.control.controller().replicas_lost(store.device_id(), lost).await?;
        }
        if losses.shards_incomplete {
            shared.scrub.ask();
        }
    }
    Ok(())
}

/// Acts on the newest map, and on every newer one from then on.
async fn follow_map(
    shared: &Shared,
    (host, cluster): (&Rc<CoreHost<Production>>, &Rc<NodeCluster<Production>>),
    net: &Rc<OnceCell<Rc<Net>>>,
    queues: Queues,
) -> anyhow::Result<()> {
    let newest = shared.control.controller().subscribe().await?;
    // There is one, and it is not older than the registration of this node.
    let published = newest.recv().await?;
    let (host, cluster, net) = (Rc::clone(host), Rc::clone(cluster), Rc::clone(net));
    let act = move |published: &Published| {
        // First, so that replicas find the nodes of their new peers.
        if let Some(net) = net.get() {
            net.set_map(&published.map);
        }
        host.set_map(Arc::clone(&published.map), Arc::clone(&published.buckets));
        cluster.set_published(published);
    };
    act(&published);
    spawner(queues.device)(Box::pin(async move {
        while let Ok(published) = newest.recv().await {
            act(&published);
        }
    }));
    Ok(())
}

fn start_ticks(shared: &Shared, host: &Rc<CoreHost<Production>>, gauges: &Arc<CoreGauges>, queues: Queues) {
    /// Ticks between looks at all replicas for the metrics.
    const LOOK_TICKS: u32 = 10;
    let (host, hand_over) = (Rc::clone(host), shared.control.hand_over().clone());
    let gauges = Arc::clone(gauges);
    spawner(queues.device)(Box::pin(async move {
        let (mut asked, mut ready) = (false, false);
        for count in 0_u32.. {
            glommio::timer::sleep(if hand_over.is_wanted() { HAND_OVER_TICK } else { TICK }).await;
            host.tick();
            if count.is_multiple_of(LOOK_TICKS) {
                gauges.set_replicas(&host.totals());
            }
            if hand_over.is_wanted() && !std::mem::replace(&mut asked, true) {
                host.hand_over();
            }
            if asked && !ready && host.is_handed_over() {
                ready = true;
                hand_over.core_is_ready();
            }
        }
    }));
}

/// Tells the others that this node of a cluster goes on purpose, while its replicas still answer: nobody waits for them
/// then, nor for its lease to end.
async fn leave(shared: &Shared, index: usize) {
    if shared.config.cluster.is_none() {
        return;
    }
    if index == 0 {
        let told = shared.control.controller().node_left(shared.node);
        let mut told = std::pin::pin!(told.fuse());
        futures::select_biased! {
            result = told => match result {
                Ok(_) => tracing::info!(event = "node_left", node = %shared.node),
                Err(error) => tracing::warn!(event = "leave_not_known", %error),
            },
            () = glommio::timer::sleep(LEAVE_FOR).fuse() => {
                tracing::warn!(event = "leave_not_known", "its lease ends by itself");
            }
        }
        shared.left.store(1, Ordering::Release);
    }
    wait_for_all(&shared.left, 1).await;
}

/// Answers the pulse from the first I/O to the last: without it glommio may sleep on work (see `runtime::pulse`). The
/// core counts as busy until `serving` is set, and then while something is in flight.
fn start_pulse(
    shared: &Shared,
    index: usize,
    (buffers, ring): (&BufferPool, &Ring),
    gauges: &Arc<CoreGauges>,
    (net, queues): (&Rc<OnceCell<Rc<Net>>>, Queues),
) -> Rc<Cell<bool>> {
    let pulse = Arc::clone(&shared.pulses[index]);
    shared.metrics.add_core(index, Arc::clone(gauges), Arc::clone(&pulse));
    pulse.set_busy(true);
    let serving = Rc::new(Cell::new(false));
    let (buffers, ring, known) = (buffers.clone(), ring.clone(), Rc::clone(&serving));
    let net = Rc::clone(net);
    let probes = Probes::start(gauges, queues);
    let (shown, answered, stopping) = (Arc::clone(gauges), Arc::clone(&pulse), Arc::clone(&shared.stopping));
    let on_beat = move || {
        // The ring may have work that arrived while the executor wrongly slept.
        ring.submit();
        ring.reap();
        let asked = net.get().is_some_and(|net| net.is_busy());
        let idle =
            known.get() && !asked && ring.in_flight() == 0 && shown.connections.load(Ordering::Relaxed) == 0;
        answered.set_busy(!idle || stopping.load(Ordering::Relaxed));
        probes.on_beat();
        shown.buffers.store(buffers.slots() as u64, Ordering::Relaxed);
        shown.buffers_free.store(buffers.free_slots() as u64, Ordering::Relaxed);
        shown.device_io_in_flight.store(ring.in_flight() as u64, Ordering::Relaxed);
    };
    glommio::spawn_local(pulse.answer(on_beat)).detach();
    serving
}

/// Connections are taken when every partition whose primary is here serves, or after a bounded wait: one that has lost
/// its replicas must not keep the others from serving.
async fn wait_until_serving(shared: &Shared, host: &Rc<CoreHost<Production>>) {
    const PATIENCE: Duration = Duration::from_secs(10);
    let started = Instant::now();
    loop {
        let map = host.map();
        let mine = map.partitions.iter().filter(|config| host.owns(config.primary)).count();
        let serving = host.primaries().len();
        if serving >= mine || started.elapsed() > PATIENCE {
            tracing::info!(event = "core_serving", partitions = serving, of = mine);
            return;
        }
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        glommio::timer::sleep(Duration::from_millis(2)).await;
    }
}

/// Takes connections until the node stops, then lets requests in progress end.
async fn serve(
    shared: &Shared,
    index: usize,
    cluster: &Rc<NodeCluster<Production>>,
    gauges: &Arc<CoreGauges>,
    queues: Queues,
) -> anyhow::Result<()> {
    let gateway = gateway(shared, index, cluster, gauges);
    let stop = Event::new();
    take_connections(shared, &gateway, gauges, queues, (index, &stop)).await?;
    stop.notify(usize::MAX);
    let deadline = Instant::now() + DRAIN_FOR;
    while gauges.connections.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
        glommio::timer::sleep(Duration::from_millis(5)).await;
    }
    // Requests of other cores need this one's devices.
    shared.drained.fetch_add(1, Ordering::AcqRel);
    wait_for_all(&shared.drained, shared.config.cores).await;
    Ok(())
}

/// Serves every connection in a task of its own; returns when the node stops.
async fn take_connections(
    shared: &Shared,
    gateway: &Gateway,
    gauges: &Arc<CoreGauges>,
    queues: Queues,
    (index, stop): (usize, &Event),
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(shared.config.listen)
        .map_err(|error| anyhow::anyhow!("cannot listen on {}: {error}", shared.config.listen))?;
    shared.admin.core_ready();
    // Kept over the looks at the clock: dropping it drops a connection that the kernel has just taken for it.
    let mut accepting = std::pin::pin!(listener.accept().fuse());
    while !shared.stopping.load(Ordering::Acquire) {
        if gauges.connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            glommio::timer::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let accepted = futures::select_biased! {
            accepted = accepting => accepted,
            () = glommio::timer::sleep(Duration::from_millis(200)).fuse() => continue,
        };
        accepting.set(listener.accept().fuse());
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(event = "accept_failed", %error);
                glommio::timer::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        // Nagle and delayed acknowledgements together cost 40 ms.
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        gauges.connections.fetch_add(1, Ordering::Relaxed);
        shared.pulses[index].set_busy(true);
        let address = stream.peer_addr().ok().map(|address| address.ip());
        let tls = shared.tls.clone();
        let client = Client { address, tls: tls.is_some() };
        let (gateway, gauges, stopped) = (gateway.of_client(client), Arc::clone(gauges), stop.listen());
        spawner(queues.client)(Box::pin(async move {
            serve_connection(&gateway, tls, stream, stopped).await;
            gauges.connections.fetch_sub(1, Ordering::Relaxed);
        }));
    }
    Ok(())
}

async fn serve_connection(gateway: &Gateway, tls: Option<Tls>, stream: TcpStream, stopped: EventListener) {
    let served = match tls {
        None => gateway.serve_connection(HyperStream::new(stream), stopped).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => gateway.serve_connection(stream, stopped).await,
            Err(error) => return tracing::debug!(event = "tls_handshake_failed", %error),
        },
    };
    if let Err(error) = served
        && !error.is_client_gone()
    {
        tracing::debug!(event = "connection_failed", %error);
    }
}
