//! The side thread: one tokio runtime with the control plane's part of this node, the admin listener, and signals.
//!
//! The part is the whole controller on a standalone node, and a member in a cluster; the cores see the same handle. A node
//! of a cluster that is asked to stop first hands its primaries over ([`HandOver`]), then lets requests end as any other,
//! says that it leaves, and stops.
//!
//! Cores talk to it by bounded queues only and never wait for it on the data path.

mod admin;
mod hand_over;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use futures::future::LocalBoxFuture;
use quarry_clustermap::{DeviceId, Epoch, NodeId, PartitionId};
use quarry_controller::{
    Controller, ControllerHandle, ControllerOptions,
    cluster::{Member, MemberEnd},
};
use quarry_metastore::LazyEtcd;
use quarry_planner::Policy;

pub(crate) use self::{
    admin::{AdminAccess, AdminState, AdminToken, FaultSwitches},
    hand_over::HandOver,
};
use crate::{config::Config, membership::Plane, metrics::Metrics, runtime::clock};

/// Reports that may wait for the controller; those that repeat themselves are dropped beyond.
const EVENTS_MAX: usize = 4096;

/// Something a core noticed.
pub(crate) enum Event {
    DeviceFailed { device: DeviceId, reason: String },
    Joined { partition: PartitionId, epoch: Epoch, device: DeviceId },
    Lagging { partition: PartitionId, epoch: Epoch, device: DeviceId },
}

/// A core's way to the control plane.
#[derive(Clone)]
pub(crate) struct ControlHandle {
    controller: ControllerHandle,
    events: async_channel::Sender<Event>,
    metrics: Arc<Metrics>,
    /// Devices reported in this run: each is out until the next start.
    failed: Arc<Mutex<BTreeSet<DeviceId>>>,
    hand_over: HandOver,
}

impl ControlHandle {
    /// The handle, and where what cores noticed comes out: run [`pass_events`] on it.
    pub(crate) fn new(
        controller: ControllerHandle,
        metrics: Arc<Metrics>,
    ) -> (Self, async_channel::Receiver<Event>) {
        let (events, inbox) = async_channel::bounded(EVENTS_MAX);
        let (failed, hand_over) = (Arc::default(), HandOver::default());
        (Self { controller, events, metrics, failed, hand_over }, inbox)
    }

    /// Requests that have an answer.
    pub(crate) fn controller(&self) -> &ControllerHandle {
        &self.controller
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A device is broken. Repeating it is fine.
    pub(crate) fn device_failed(&self, device: DeviceId, reason: String) {
        if self.failed.lock().expect("nothing panics under this lock").contains(&device) {
            return;
        }
        tracing::error!(event = "device_failed", %device, reason);
        self.metrics.devices_failed.inc();
        if self.send(Event::DeviceFailed { device, reason }) {
            self.failed.lock().expect("nothing panics under this lock").insert(device);
        }
    }

    /// A joiner's history is whole. The replica repeats it until the map says so.
    pub(crate) fn joined(&self, partition: PartitionId, epoch: Epoch, device: DeviceId) {
        self.send(Event::Joined { partition, epoch, device });
    }

    /// A member keeps its primary waiting. The replica repeats it while that is so.
    pub(crate) fn lagging(&self, partition: PartitionId, epoch: Epoch, device: DeviceId) {
        tracing::warn!(event = "replica_lagging", %partition, %device, %epoch);
        self.send(Event::Lagging { partition, epoch, device });
    }

    /// Whether this node is to hand its primaries over.
    pub(crate) fn hand_over(&self) -> &HandOver {
        &self.hand_over
    }

    /// A read met a shard that is not as it should be.
    pub(crate) fn count_damage(&self) {
        self.metrics.damage.inc();
    }

    /// Whether this primary may acknowledge in its epoch. `false`: ask again on a later tick.
    pub(crate) async fn activate(&self, partition: PartitionId, epoch: Epoch) -> bool {
        match self.controller.activate(partition, epoch).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(event = "activation_refused", %partition, %epoch, %error);
                false
            }
        }
    }

    /// `false`: the queue is full, say it again.
    fn send(&self, event: Event) -> bool {
        let sent = self.events.try_send(event).is_ok();
        if !sent {
            tracing::warn!(event = "control_queue_full");
        }
        sent
    }
}

/// The running side thread.
pub(crate) struct Control {
    pub(crate) handle: ControlHandle,
    thread: std::thread::JoinHandle<()>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Control {
    /// Starts the controller and the admin listener; sets `stopping` when a signal asks to stop.
    pub(crate) fn start(
        config: &Config,
        plane: Plane,
        policy: Policy,
        (node, admin): (NodeId, Arc<AdminState>),
        stopping: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(config.admin).map_err(|error| {
            anyhow::anyhow!("cannot listen on the admin address {}: {error}", config.admin)
        })?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let in_cluster = matches!(plane, Plane::Member(_));
        let (part, controller_handle) = start_part(plane, policy, Arc::clone(&stopping));
        let (handle, inbox) = ControlHandle::new(controller_handle.clone(), Arc::clone(&admin.metrics));
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        let leaving = handle.hand_over.clone();
        leaving.set_cores(config.cores);
        let ticking = controller_handle.clone();
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            runtime.block_on(async move {
                let local = tokio::task::LocalSet::new();
                local.spawn_local(part);
                local.spawn_local(pass_events(inbox, controller_handle.clone(), |task| {
                    tokio::task::spawn_local(task);
                }));
                local.spawn_local(watch_map(controller_handle.clone(), Arc::clone(&admin)));
                local.spawn_local(admin::serve(listener, admin, controller_handle));
                let leaving = in_cluster.then(|| (node, ticking.clone(), leaving));
                local.spawn_local(wait_for_signal(stopping, leaving));
                if !in_cluster {
                    local.spawn_local(tick(ticking));
                }
                local
                    .run_until(async {
                        // An error means that the sender is gone: the same as a stop.
                        let _stopped = stopped.wait_for(|stop| *stop).await;
                    })
                    .await;
            });
        })?;
        Ok(Self { handle, thread, stop })
    }

    /// Ends the thread, after the cores have ended.
    pub(crate) fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!(event = "control_thread_panicked");
        }
    }
}

/// The future that does this node's part of the control plane, and the handle to it.
fn start_part(
    plane: Plane,
    policy: Policy,
    stopping: Arc<AtomicBool>,
) -> (futures::future::BoxFuture<'static, ()>, ControllerHandle) {
    match plane {
        Plane::Standalone(metastore) => {
            let options = ControllerOptions { policy, clock_ms: clock::unix_ms };
            let (controller, handle) = Controller::new(metastore, options);
            (Box::pin(controller.run()), handle)
        }
        Plane::Member(of_cluster) => {
            let (etcd, options) = *of_cluster;
            let (member, handle) = Member::new(Arc::new(LazyEtcd::new(etcd)), options);
            let run = async move {
                if Box::pin(member.run()).await == MemberEnd::Superseded {
                    tracing::error!(event = "node_superseded", "another run of this node has taken over");
                    stopping.store(true, std::sync::atomic::Ordering::Release);
                }
            };
            (Box::pin(run), handle)
        }
    }
}

/// Tells the controller what cores noticed.
pub(crate) async fn pass_events(
    inbox: async_channel::Receiver<Event>,
    controller: ControllerHandle,
    spawn: impl Fn(LocalBoxFuture<'static, ()>),
) {
    while let Ok(event) = inbox.recv().await {
        let controller = controller.clone();
        // Each in a task of its own, so that the controller can plan what is queued together.
        spawn(Box::pin(async move {
            let result = match event {
                Event::DeviceFailed { device, reason } => {
                    controller.device_failed(device, reason).await.map(drop)
                }
                Event::Joined { partition, epoch, device } => {
                    controller.joined(partition, epoch, device).await.map(drop)
                }
                Event::Lagging { partition, epoch, device } => {
                    controller.replica_lagging(partition, epoch, device).await.map(drop)
                }
            };
            if let Err(error) = result {
                tracing::error!(event = "report_failed", %error);
            }
        }));
    }
}

/// Lets the planner see that time has passed: a device that was out for long is replaced.
async fn tick(controller: ControllerHandle) {
    const EVERY: Duration = Duration::from_secs(10);
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = controller.tick().await {
            tracing::warn!(event = "tick_failed", %error);
        }
    }
}

async fn watch_map(controller: ControllerHandle, admin: Arc<AdminState>) {
    let Ok(newest) = controller.subscribe().await else { return };
    let mut version = None;
    while let Ok(published) = newest.recv().await {
        let map = Arc::clone(&published.map);
        admin.set_published(published);
        if version.replace(map.version) != Some(map.version) {
            admin.metrics.set_map(&map);
            tracing::info!(event = "map_changed", version = map.version.0);
        }
    }
}

/// `leaving`: a node of a cluster, whose primaries are handed over first.
async fn wait_for_signal(stopping: Arc<AtomicBool>, leaving: Option<(NodeId, ControllerHandle, HandOver)>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!(event = "signals_unavailable");
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!(event = "stopping");
    if let Some((node, controller, hand_over)) = leaving {
        hand_over.run(node, &controller).await;
    }
    stopping.store(true, std::sync::atomic::Ordering::Release);
}
